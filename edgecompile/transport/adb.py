"""An Android phone, reached by the user's own ``adb`` client. See `edgecompile.transport.shell` for what is done there.

It has not met a phone yet: what is known is that the client is called as its documentation says, and that the scripts
run under Android's shell and tools (mksh and toybox).
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from edgecompile.errors import DeviceError, InputError
from edgecompile.transport.connection import SILENCE_S, Connection, Dropped, Refused
from edgecompile.transport.remote import Call
from edgecompile.transport.shell import Patience, ShellTransport

SCHEME = "adb:"
#: Where the shell's user of every phone may write and run programs.
FOLDER = "/data/local/tmp"
_FILES_S = 600.0
_FAREWELL_S = 5.0
_MOST_SAID = 64 << 20
#: How often a file that is coming is looked at.
_LOOK_S = 0.2
#: What the client says when the phone is away for now.
_AWAY = re.compile(
    r"\bdevice\b.* not found|offline|no devices|connection reset|closed|protocol fault|cannot connect|failed to read",
    re.IGNORECASE,
)


class AdbTransport(ShellTransport):
    """Runs on a phone, ``adb:SERIAL``; ``adb:`` alone is the only one. ``$ADB`` names another client than ``adb``.

    Raises `InputError` for what is no serial number.
    """

    #: There is no path of a program on the phone that a user would know.
    brings_programs = True

    def __init__(
        self, where: str, *, patience: Patience | None = None, waiting: Callable[[str], None] | None = None
    ) -> None:
        self._serial = where.removeprefix(SCHEME)
        if self._serial and not re.fullmatch(r"[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]*", self._serial):
            raise InputError(f"{self._serial!r} is no serial number of a phone", remedy="adb devices lists them")
        super().__init__(patience=patience, waiting=waiting)

    @property
    def description(self) -> str:
        """The address, as it was given."""
        return self.address

    @property
    def address(self) -> str:
        """What ``--on`` takes to come here again."""
        return f"{SCHEME}{self._serial}"

    @property
    def python(self) -> str:
        """There is none. Always raises `DeviceError`."""
        raise DeviceError(
            f"{self.description} has no Python: a phone reached by adb measures by LiteRT's benchmark_model",
            remedy="give it with --benchmark-model FILE",
        )

    def _new_connection(self) -> Connection:
        patience = self._patience
        return AdbConnection(_client(), self._serial, timeout_s=patience.connect_s, silence_s=patience.silence_s)

    def _cannot_reach(self, exc: Dropped) -> DeviceError:
        return DeviceError(
            f"cannot reach the phone {self.description}: {exc}",
            remedy="see that it is connected, unlocked and has USB debugging on: adb devices must list it",
        )


def _client() -> str:
    name = os.environ.get("ADB", "adb")
    found = shutil.which(name)
    if found is None:
        raise DeviceError(
            f"there is no program {name} on this machine",
            remedy="install Android's platform tools (on Debian and Ubuntu: sudo apt install adb), or set ADB",
        )
    return found


class AdbConnection:
    """A phone that answers. Every command is a run of the client, which has a time limit."""

    def __init__(self, client: str, serial: str, *, timeout_s: float = 15.0, silence_s: float = SILENCE_S) -> None:
        self._words = [client, *(["-s", serial] if serial else [])]
        self._silence_s = silence_s
        self._held: list[subprocess.Popen[bytes]] = []
        self.alive = True
        try:
            self._state(timeout_s)
        except BaseException:
            self.alive = False
            raise

    def _state(self, timeout_s: float) -> None:
        done = self._run(["get-state"], timeout_s)
        said = done.stderr.decode(errors="replace").strip()
        if "unauthorized" in said or "no permissions" in said:
            raise DeviceError(
                f"the phone does not let this computer in: {said.splitlines()[0]}",
                remedy="unlock it and allow USB debugging for this computer in the question that it shows",
            )
        if "more than one" in said:
            raise DeviceError("there are several phones", remedy="name one: --on adb:SERIAL (adb devices lists them)")
        if done.returncode or done.stdout.strip() != b"device":
            raise Dropped(said or f"its state is {done.stdout.decode(errors='replace').strip()!r}")

    def close(self) -> None:
        """End what is held; the phone notices that, and cleans up."""
        self.alive = False
        held, self._held = self._held, []
        for child in held:
            _end(child)

    def ask(self, question: Call, *, limit_s: float | None = None) -> list[str]:
        """Run a script to its end and return the words of its answer."""
        done = self._run(["shell", _shell(question)], limit_s or self._silence_s)
        words = question.answer(_unix(done.stdout))
        if words is None:
            self._refuse(done.stdout + done.stderr, done.returncode)
        return words or []

    def hold(self, question: Call) -> tuple[list[str], object]:
        """Start a script that goes on running after its answer, until the client is ended."""
        child = subprocess.Popen(
            [*self._words, "shell", _shell(question)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._held.append(child)
        received = b""
        with _limited(child, self._silence_s):
            assert child.stdout is not None
            while (words := question.answer(_unix(received))) is None:
                line = child.stdout.readline()
                if not line:
                    self._refuse(received, child.wait())
                received += line
        return words, child

    def send(self, local: Path, path: str, offset: int) -> None:
        """Push a file; the client cannot go on with a part of one, so that ``offset`` does not matter."""
        try:
            self._copy(["push", str(local), path])
        except Refused as exc:
            raise Refused(str(exc).rpartition(": ")[2]) from exc

    def fetch(self, path: str, size: int, local: Path) -> None:
        """Pull a file; one that turns out larger than it was said to be is left there."""
        self._copy(["pull", path, str(local)], most=(local, size))
        if local.stat().st_size != size:
            raise Refused(f"{local.stat().st_size} bytes came where {size} were announced")

    def _copy(self, words: list[str], *, most: tuple[Path, int] | None = None) -> None:
        done = self._run(words, _FILES_S, most=most)
        if done.returncode:
            self._refuse(done.stdout + done.stderr, done.returncode)

    def _run(
        self, words: list[str], limit_s: float, *, most: tuple[Path, int] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        # A group of its own: Ctrl-C on the terminal must not end the client in the middle of tidying up.
        try:
            child = subprocess.Popen(
                [*self._words, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            raise DeviceError(
                f"cannot start {self._words[0]}: {exc.strerror}", remedy="set ADB to a client that runs on this machine"
            ) from exc
        try:
            out, err = _said(child, limit_s, most)
        except subprocess.TimeoutExpired as exc:
            self.alive = False
            raise Dropped("it did not answer in time") from exc
        finally:
            _end(child)
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def _refuse(self, said: bytes, code: int) -> NoReturn:
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        text = lines[-1].strip() if lines else f"the client ended with exit code {code}"
        if code and _AWAY.search(text):
            self.alive = False
            raise Dropped(text)
        raise Refused(text[-300:])


def _said(child: subprocess.Popen[bytes], limit_s: float, most: tuple[Path, int] | None = None) -> tuple[bytes, bytes]:
    """What a client prints until it ends. Raises `Refused` for more than a phone has to say, and for a file that grows
    beyond ``most`` bytes: ``communicate`` would keep all that a broken phone sends.
    """
    end = time.monotonic() + limit_s
    said: dict[int, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            assert stream is not None
            said[stream.fileno()] = bytearray()
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(min(_LOOK_S, max(0.0, end - time.monotonic())))
            if most is not None and most[0].exists() and most[0].stat().st_size > most[1]:
                raise Refused(f"more than the {most[1]} bytes came that were announced")
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(child.args, limit_s)
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                said[key.fd] += data
                if not data:
                    selector.unregister(key.fileobj)
                if len(said[key.fd]) > _MOST_SAID:
                    raise Refused(f"it does not stop talking: more than {_MOST_SAID >> 20} MB came")
    child.wait(timeout=max(0.1, end - time.monotonic()))
    out, err = said.values()
    return bytes(out), bytes(err)


def _shell(question: Call) -> str:
    return f"TMPDIR={FOLDER} {question.command}"


def _unix(received: bytes) -> bytes:
    """Old phones end lines as a terminal does."""
    return received.replace(b"\r\n", b"\n")


@contextmanager
def _limited(child: subprocess.Popen[bytes], limit_s: float) -> Iterator[None]:
    timer = threading.Timer(limit_s, child.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None:
        with contextlib.suppress(OSError):
            child.stdin.close()
    child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(_FAREWELL_S)
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


__all__ = ["FOLDER", "SCHEME", "AdbConnection", "AdbTransport"]
