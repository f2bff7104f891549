"""A real SSH server on loopback, started as the current user, and a cable that can be cut."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_PLACES = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/usr/local/sbin")))


def program(name: str) -> str:
    """The path of a program; in CI it must be there, elsewhere the test is skipped with the reason."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        message = f"{name} is not installed (on Debian and Ubuntu: apt install openssh-server openssh-client)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new private key at ``path``, and its public half next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [program("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class Server:
    """A running SSH server. ``tmp`` is the temporary folder of those who log in; ``user`` is who we are."""

    port: int
    home: Path
    tmp: Path
    identity: Path
    known_hosts: Path
    host_key: Path
    log: Path
    user: str = field(default_factory=getpass.getuser)

    @property
    def where(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    def knows(self, port: int) -> None:
        """Write the server's host key down as that of ``port``, too."""
        key = " ".join(self.host_key.with_suffix(".pub").read_text().split()[:2])
        with self.known_hosts.open("a") as stream:
            stream.write(f"[127.0.0.1]:{port} {key}\n")

    def left(self) -> list[str]:
        """What lies in the temporary folder, after waiting a moment for what is just being removed."""
        end = time.monotonic() + 8
        while (names := sorted(p.name for p in self.tmp.iterdir())) and time.monotonic() < end:
            time.sleep(0.05)
        return names


@contextlib.contextmanager
def serve(root: Path, *, environment: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> Iterator[Server]:
    """Start ``sshd`` with new keys in ``root``. ``options`` are lines of its configuration that go first."""
    sshd = program("sshd")
    server = _prepare(root)
    variables = {"TMPDIR": str(server.tmp), "HOME": str(server.home), **(environment or {})}
    lines = [
        *options,
        f"Port {server.port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {server.host_key}",
        f"AuthorizedKeysFile {root}/authorized_keys",
        f"PidFile {root}/sshd.pid",
        "UsePAM no",
        "StrictModes no",
        "PermitRootLogin yes",
        "MaxStartups 100",
        "MaxAuthTries 20",
        "LogLevel VERBOSE",
        *([] if any(line.startswith("Subsystem sftp") for line in options) else ["Subsystem sftp internal-sftp"]),
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in variables.items()),
    ]
    (root / "sshd_config").write_text("\n".join(lines) + "\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd as root wants to lock itself in
    command = [sshd, "-D", "-f", str(root / "sshd_config"), "-E", str(server.log)]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _await(server, child)
        yield server
    finally:
        child.terminate()
        child.wait()


@contextlib.contextmanager
def serve_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A host whose key this user's files know, and which has the runtimes of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with serve(folder / "sshd", environment={"PATH": path}) as server:
        ssh = folder / "home" / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(server.identity, ssh / "id_ed25519")
        shutil.copy(server.known_hosts, ssh / "known_hosts")
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield server


def _prepare(root: Path) -> Server:
    for name in ("home", "tmp"):
        (root / name).mkdir(parents=True)
    server = Server(
        port=free_port(),
        home=root / "home",
        tmp=root / "tmp",
        identity=make_key(root / "client_key"),
        known_hosts=root / "known_hosts",
        host_key=make_key(root / "host_key"),
        log=root / "sshd.log",
    )
    shutil.copy(root / "client_key.pub", root / "authorized_keys")
    server.knows(server.port)
    return server


def _await(server: Server, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
            return
        if child.poll() is not None or time.monotonic() > end:
            raise AssertionError(f"sshd does not start: {server.log.read_text() if server.log.exists() else ''}")
        time.sleep(0.02)


class Cable:
    """A TCP proxy to the server. ``cut_after(up=..., down=...)`` cuts the next connection after that many bytes.

    Every call of ``cut_after`` adds one cut; connections after the last are left alone. ``unplug()`` cuts all, and
    refuses new ones until ``plug()``; ``stall()`` lets connections hang without a word.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._cuts: list[tuple[int | None, int | None]] = []
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._plugged = True
        self._stalled = threading.Event()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name="cable")
        self._threads.append(thread)
        thread.start()

    def cut_after(self, *, up: int | None = None, down: int | None = None) -> None:
        self._cuts.append((up, down))

    def unplug(self) -> None:
        self._plugged = False
        self.cut()

    def plug(self) -> None:
        self._plugged = True

    def stall(self) -> None:
        self._stalled.set()

    def cut(self) -> None:
        with self._lock:
            sockets, self._open = self._open, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._stalled.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._plugged:
                client.close()
                continue
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._to))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open += [client, server]
            up, down = self._cuts.pop(0) if self._cuts else (None, None)
            self._start(self._pump, client, server, up)
            self._start(self._pump, server, client, down)

    def _pump(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        with source, contextlib.suppress(OSError):
            while data := source.recv(16384):
                while self._stalled.is_set():
                    time.sleep(0.02)
                sink.sendall(data)
                passed += len(data)
                if limit is not None and passed >= limit:
                    break
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
