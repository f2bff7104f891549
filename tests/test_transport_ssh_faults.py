"""Machines that are not as they should be: keys, storage, shells, two builds at once, and what must never leak."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile import bench, lower
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import open_transport, ssh_keys
from edgecompile.transport.ssh import SSHTransport
from edgecompile.types import Plan
from tests.lowering import samples, small_net
from tests.sshd import Cable, Server, make_key, program, serve
from tests.test_transport_ssh import QUICK, at_home, client, refused, running, server

__all__ = ["running", "server"]


@pytest.fixture
def home(server: Server) -> Path:
    """Our own home folder, empty."""
    return Path(os.environ["HOME"])


def config(home: Path, text: str) -> None:
    (home / ".ssh/config").write_text(text)


@contextlib.contextmanager
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **environment: str) -> Iterator[Server]:
    """A server with another configuration, on which nothing may be left either."""
    at_home(tmp_path, monkeypatch)
    with serve(tmp_path / "other", environment=environment, options=options) as found:
        yield found
        assert found.left() == []


# -------------------------------------------------------------------------------------------------------- who is there


def test_an_unknown_host_key_is_shown_and_refused(server: Server, tmp_path: Path) -> None:
    nobody = tmp_path / "known"
    with pytest.raises(DeviceError, match="is not known") as found:  # noqa: SIM117
        with SSHTransport(server.where, identity=server.identity, known_hosts=nobody):
            pass
    shown = subprocess.run(
        [program("ssh-keygen"), "-lf", f"{server.host_key}.pub"], capture_output=True, text=True, check=True
    )
    refused(found, shown.stdout.split()[1])
    assert "ssh-keyscan" in str(found.value)
    assert not nobody.exists(), "a key is never accepted silently"


def test_a_changed_host_key_is_refused_loudly(server: Server, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong").with_suffix(".pub").read_text()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {wrong}")
    with pytest.raises(DeviceError, match="REFUSED: THE HOST KEY .* HAS CHANGED") as found:  # noqa: SIM117, RUF043
        with SSHTransport(server.where, identity=server.identity, known_hosts=known):
            pass
    refused(found, "SHA256:")
    assert "ssh-keygen -R" in str(found.value)


def test_a_revoked_host_key_is_refused(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "known"
    line = server.known_hosts.read_text().splitlines()[0]
    known.write_text(f"{line}\n@revoked {line}\n")
    with pytest.raises(DeviceError, match="revoked") as found:  # noqa: SIM117
        with SSHTransport(server.where, identity=server.identity, known_hosts=known):
            pass
    refused(found)


def test_hashed_names_are_known(server: Server, tmp_path: Path) -> None:
    known = tmp_path / "known"
    shutil.copy(server.known_hosts, known)
    subprocess.run([program("ssh-keygen"), "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert "127.0.0.1" not in known.read_text()
    with SSHTransport(server.where, identity=server.identity, known_hosts=known, patience=QUICK):
        pass


# ---------------------------------------------------------------------------------------------------------- who we are


def test_a_wrong_key_is_told(server: Server, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong")
    with pytest.raises(DeviceError, match="does not let") as found:  # noqa: SIM117
        with SSHTransport(server.where, identity=wrong, known_hosts=server.known_hosts):
            pass
    refused(found, str(wrong))
    assert "ssh-copy-id" in str(found.value)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_keys_work(kind: str, server: Server, home: Path) -> None:
    key = make_key(home / ".ssh" / f"id_{kind}", kind=kind)
    with allowed(server, key), SSHTransport(server.where, known_hosts=server.known_hosts, patience=QUICK):
        pass


@contextlib.contextmanager
def allowed(server: Server, key: Path) -> Iterator[None]:
    """Let a key in for a while."""
    path = server.home.parent / "authorized_keys"
    before = path.read_text()
    path.write_text(before + key.with_suffix(".pub").read_text())
    try:
        yield
    finally:
        path.write_text(before)


def test_a_locked_key_asks_on_a_terminal_only(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = make_key(home / ".ssh/id_ed25519", passphrase="open-sesame")
    asked: list[str] = []
    with allowed(server, key):
        with pytest.raises(DeviceError, match="no terminal") as found:  # noqa: SIM117
            with SSHTransport(server.where, known_hosts=server.known_hosts):
                pass
        refused(found)
        monkeypatch.setattr(ssh_keys, "ask", lambda prompt: asked.append(prompt) or "open-sesame")
        with SSHTransport(server.where, known_hosts=server.known_hosts, patience=QUICK) as transport:
            transport._disconnect()
            assert transport.run(["echo", "again"], timeout_s=10).out == "again\n"
    assert asked == [f"Passphrase of {key}: "], "what was typed is remembered for the next connection"
    assert "sesame" not in repr(vars(transport)) + "".join(capfd.readouterr())


def test_a_wrong_passphrase_and_a_wrong_password_are_told_and_never_shown(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_key(home / ".ssh/id_ed25519", passphrase="open-sesame")
    monkeypatch.setattr(ssh_keys, "ask", lambda prompt: "hunter2secret")
    caplog.set_level("DEBUG")
    with pytest.raises(DeviceError, match="passphrase was wrong.*a password") as found:  # noqa: SIM117, RUF043
        with SSHTransport(server.where, known_hosts=server.known_hosts):
            pass
    refused(found)
    assert "hunter2secret" not in str(found.value) + caplog.text


def test_the_agent_is_asked(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = home / "agent"
    agent = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        while not socket.exists():
            time.sleep(0.02)
        subprocess.run([program("ssh-add"), "-q", str(server.identity)], check=True, capture_output=True)
        with SSHTransport(server.where, known_hosts=server.known_hosts, patience=QUICK) as transport:
            assert transport.run(["true"], timeout_s=10).code == 0
    finally:
        agent.terminate()
        agent.wait()


def test_without_any_key_that_is_said(server: Server) -> None:
    with pytest.raises(DeviceError, match="there was no key to try") as found:  # noqa: SIM117
        with SSHTransport(server.where, known_hosts=server.known_hosts):
            pass
    refused(found)


# ------------------------------------------------------------------------------------------------------- the way there


def test_the_configuration_leads_there(server: Server, home: Path) -> None:
    config(home, "Include more.conf\n")
    (home / ".ssh/more.conf").write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {server.identity}\n  UserKnownHostsFile {server.known_hosts}\n  StrictHostKeyChecking no\n"
    )
    with open_transport("ssh://board") as transport:
        assert transport.description == "board"
        assert transport.run(["echo", "hello"], timeout_s=10).out == "hello\n"


@pytest.mark.parametrize("way", ["ProxyJump 127.0.0.1:{port}", "ProxyCommand {nc} %h %p"])
def test_a_jump_and_a_proxy_program(way: str, server: Server, home: Path, tmp_path: Path) -> None:
    proxy = tmp_path / "nc"
    proxy.write_text(
        "#!/usr/bin/env python3\nimport os, socket, sys, threading\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def pump(read, write):\n    while data := read():\n        write(data)\n"
        "threading.Thread(target=pump, args=(lambda: os.read(0, 9999), s.sendall), daemon=True).start()\n"
        "pump(lambda: s.recv(9999), lambda data: os.write(1, data))\n"
    )
    proxy.chmod(0o755)
    config(
        home,
        f"Host 127.0.0.1 board\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}\n"
        f"  IdentityFile {server.identity}\n  UserKnownHostsFile {server.known_hosts}\n"
        f"Host board\n  {way.format(port=server.port, nc=proxy)}\n",
    )
    with open_transport("ssh://board") as transport:
        assert transport.run(["echo", "hello"], timeout_s=10).out == "hello\n"


def test_a_proxy_command_for_a_shell_is_refused(home: Path) -> None:
    config(home, "Host board\n  ProxyCommand nc %h %p | tee log\n")
    with pytest.raises(InputError, match="needs a shell") as found:
        open_transport("ssh://board")
    assert "ProxyJump" in str(found.value)


@pytest.mark.parametrize(
    "where", ["", "board", "ssh://", "ssh://-oProxyCommand=x", "ssh://a b", "ssh://a:99999", "ssh://a/b"]
)
def test_what_is_no_address_is_refused(where: str) -> None:
    with pytest.raises(InputError) as found:
        open_transport(where)
    assert found.value.remedy


@pytest.mark.parametrize("where", ["ssh://me:hunter2@board", "me:hunter2@board", "ssh://me:hunter2"])
def test_a_password_in_the_address_is_refused_and_not_repeated(where: str) -> None:
    with pytest.raises(InputError) as found:
        open_transport(where)
    assert "hunter2" not in str(found.value)


# ----------------------------------------------------------------------------------------------- what it is like there


def test_without_sftp_files_go_through_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with other(tmp_path, monkeypatch, "Subsystem sftp /nonexistent/sftp-server") as server:
        file = tmp_path / "file"
        file.write_bytes(os.urandom(700_000))
        with client(server) as transport:
            transport.put(file, "a/there")
            transport.get("a/there", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_a_shell_that_greets_does_not_hurt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greeting = "printf 'Welcome to the board! '; cat /etc/os-release; echo noise >&2"
    login = tmp_path / "login.sh"
    login.write_text(f'{greeting}\neval "$SSH_ORIGINAL_COMMAND"\n')
    with other(tmp_path, monkeypatch, f"ForceCommand sh {login}") as server:
        file = tmp_path / "file"
        file.write_bytes(os.urandom(700_000))
        with client(server) as transport:
            transport.put(file, "there")
            done = transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=10)
            transport.get("there", tmp_path / "back")
        assert (done.code, done.out, done.err) == (3, "out\n", "err\n")
        assert (tmp_path / "back").read_bytes() == file.read_bytes()


def test_an_account_without_a_shell_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with other(tmp_path, monkeypatch, "ForceCommand echo this account is closed; exit 1") as server:
        with pytest.raises(DeviceError, match="this account is closed") as found, client(server):
            pass
        refused(found)


def test_without_python_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cat", "mkdir", "mktemp", "rm", "date", "cut", "chmod", "sleep"):
        (tools / name).symlink_to(program(name))
    monkeypatch.setattr("edgecompile.transport.shell._PYTHONS", ("python3", "python", "/nowhere/python3"))
    with other(tmp_path, monkeypatch, PATH=str(tools)) as server:
        with pytest.raises(DeviceError, match="no Python 3") as found, client(server) as transport:
            _ = transport.python
        refused(found)
        assert "install" in str(found.value)


@pytest.mark.parametrize("place", ["/proc", "/nonexistent/folder"])
def test_a_temporary_folder_that_takes_nothing_is_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other(tmp_path, monkeypatch, TMPDIR=place) as server:
        with pytest.raises(DeviceError, match=f"cannot make a folder in {place}") as found, client(server):
            pass
        refused(found)
        assert "TMPDIR" in str(found.value)


@pytest.mark.parametrize("subsystem", ["internal-sftp", "/nonexistent"], ids=["sftp", "cat"])
def test_a_full_disk_is_told(subsystem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs a small file system, which only root may make")
    try:
        with other(tmp_path, monkeypatch, f"Subsystem sftp {subsystem}", TMPDIR=str(small)) as server:
            file = tmp_path / "file"
            file.write_bytes(os.urandom(3_000_000))
            with pytest.raises(DeviceError, match="cannot write there") as found, client(server) as transport:
                transport.put(file, "there")
            refused(found, "MB are free")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# ------------------------------------------------------------------------------------------------------- more than one


def test_two_builds_take_turns(server: Server) -> None:
    order: list[str] = []
    told: list[str] = []

    def second() -> None:
        transport = client(server)
        transport._waiting = told.append
        with transport:
            order.append("second")

    with client(server):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(1.5)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert len(told) == 1
    assert "another build" in told[0]


def test_waiting_for_a_turn_ends(server: Server) -> None:
    with client(server):
        impatient = dataclasses.replace(QUICK, turn_s=0.5)
        with pytest.raises(DeviceError, match="used by another build") as found:  # noqa: SIM117
            with client(server, patience=impatient):
                pass
    refused(found)


@pytest.mark.parametrize("why", ["pid", "boot", "born"])
def test_a_stale_lock_is_removed_with_what_it_left(why: str, server: Server) -> None:
    left = server.tmp / "edgecompile-abcdefgh"
    (left / ".run").mkdir(parents=True)
    lock = server.tmp / "edgecompile.lock"
    lock.mkdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    fields = {"token": "old", "pid": str(os.getpid()), "boot": boot, "born": born, "since": "0", "folder": str(left)}
    fields[why] = {"pid": "4194304", "boot": "another", "born": "1"}[why]
    for name, value in fields.items():
        (lock / name).write_text(value)
    with client(server) as transport:
        assert not left.exists()
        assert Path(transport.folder).is_dir()


def sockets_and_threads() -> tuple[int, int]:
    end = time.monotonic() + 5
    while True:
        names = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        found = (sum(name.startswith("socket:") for name in names), threading.active_count())
        if found[1] == 1 or time.monotonic() > end:
            return found
        time.sleep(0.05)


def deploy(server: Server, file: Path, times: int) -> None:
    before = sockets_and_threads()
    for _ in range(times):
        with client(server) as transport:
            transport.put(file, "models/0/file")
            assert transport.run(["cat", "models/0/file"], timeout_s=10).out == "content"
            transport.get("models/0/file", file.with_name("back"))
    assert server.left() == []
    after = sockets_and_threads()
    assert after[0] <= before[0]
    assert after[1] <= before[1]


def test_twenty_deployments_leave_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    deploy(server, tmp_path / "file", 20)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_two_hundred_deployments_leave_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    deploy(server, tmp_path / "file", 20)  # what is loaded and pooled once is no leak
    before = resident_bytes()
    deploy(server, tmp_path / "file", 180)
    assert resident_bytes() - before < 8e6


# ------------------------------------------------------------------------------------------------------ a measurement


def test_a_measurement_survives_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_net(tmp_path)
    artifact = lower.RUNTIMES["onnxruntime"].lower(
        model, Plan(runtime="onnxruntime", precision="fp32"), samples(model), tmp_path / "lowered"
    )
    options = bench.BenchOptions(warmup_s=0.02, min_runs=9, min_seconds=0.06, rounds=3)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with other(tmp_path, monkeypatch, PATH=path) as server:
        cable = Cable(server.port)
        server.knows(cable.port)
        with client(server, port=cable.port) as transport:
            timer = threading.Timer(1.5, cable.cut)
            timer.start()
            result = bench.measure([artifact], transport, options)
            timer.join()
        cable.close()
    assert result.measurements[0].provenance == "measured"
    assert result.measurements[0].runs >= 9
