"""A machine whose shell can be reached, in one fresh folder there that is always removed.

A lost connection is made again: uploads go on where they broke off, a running command is found again, for it does not
depend on the connection. Builds that want the same machine take turns. See `edgecompile.transport.Transport`; what a
connection is, SSH or adb, is up to those that derive from `ShellTransport`.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import posixpath
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self, TypeVar

from edgecompile.errors import DeviceError, EdgecompileError
from edgecompile.transport import Completed, checked_name, remote
from edgecompile.transport.connection import SILENCE_S, Connection, Dropped, Refused
from edgecompile.transport.remote import call
from edgecompile.types import file_sha256

log = logging.getLogger(__name__)

T = TypeVar("T")
_PYTHONS = ("python3", "python", *(f"python3.{minor}" for minor in range(14, 6, -1)), "/usr/bin/python3")
#: Of what a machine sends back, in bytes: what a command printed, a document, and any other file (engines are large).
_LARGEST_OUTPUT = 64 << 20
_LARGEST_DOCUMENT = 256 << 20
_LARGEST_FILE = 16 << 30
#: So much of the end of what a command said is logged.
_LAST_WORDS = 4000
#: How fast the slowest device hashes a file, in bytes a second.
_HASHED_PER_S = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, all in seconds. ``retries_s`` are the pauses before each further try after a lost connection.

    ``silence_s`` without an answer counts as a lost connection; ``turn_s`` is how long to wait for another build;
    after ``grace_s`` without us the device cleans up by itself, so this must be longer than all retries.
    """

    connect_s: float = 15.0
    silence_s: float = SILENCE_S
    first_retries_s: tuple[float, ...] = (0.5, 1.0)
    retries_s: tuple[float, ...] = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
    turn_s: float = 3600.0
    grace_s: int = 180


class ShellTransport(abc.ABC):
    """Runs on a machine whose shell can be reached. ``waiting`` is told once when another build has the machine."""

    is_this_machine = False

    def __init__(self, *, patience: Patience | None = None, waiting: Callable[[str], None] | None = None) -> None:
        self._patience = patience or Patience()
        self._waiting = waiting
        self._reset()

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What a person calls the machine."""

    @property
    @abc.abstractmethod
    def address(self) -> str:
        """What ``--on`` takes to come here again."""

    @abc.abstractmethod
    def _new_connection(self) -> Connection:
        """A connection that is ready to be used. Raises `Dropped` where another try may help, else `DeviceError`."""

    @abc.abstractmethod
    def _cannot_reach(self, exc: Dropped) -> DeviceError:
        """The error of a machine that was never reached."""

    def _reset(self) -> None:
        self._connection: Connection | None = None
        self._keeper: object = None
        self._folder: str | None = None
        self._token = secrets.token_hex(8)
        self._python: str | None = None
        self._commands = 0

    @property
    def folder(self) -> str:
        """The folder on the machine. Raises ``RuntimeError`` outside the ``with`` block."""
        if self._folder is None:
            raise RuntimeError("use the transport in a with statement")
        return self._folder

    @property
    def python(self) -> str:
        """The Python of the environment that ``edgecompile device setup`` made there, else the first 3.7 or later."""
        if self._python is None:
            self._python = self._find_python("own")
        return self._python

    @property
    def system_python(self) -> str:
        """The first Python 3.7 or later found there, other than that of our own environment."""
        return self._find_python("system")

    def _find_python(self, which: str) -> str:
        words = self._try("looking for Python", lambda c: c.ask(call(remote.PYTHON, which, _PYTHONS)))
        if words[0] != "found":
            raise DeviceError(
                f"there is no Python 3.7 or later on {self.description}",
                remedy="install it there (on Debian and Ubuntu: sudo apt install python3), then run: edgecompile "
                f"device setup --on {self.address}",
            )
        return " ".join(words[1:])

    # ------------------------------------------------------------------------------------------- coming and going

    def __enter__(self) -> Self:
        try:
            self._take_turn()
        except BaseException as exc:
            self.__exit__(type(exc), exc, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        folder, needed = self._folder, self._connection is not None or self._folder is not None
        try:
            fault = self._remove() if needed else None
        finally:
            self._disconnect()
            self._reset()
        if fault is None or folder is None:
            return
        remedy = f"remove it there with: rm -rf {shlex.quote(folder)} (the machine does so itself where it still can)"
        if error is None:
            raise DeviceError(f"the folder {folder} on {self.description} is left: {fault}", remedy=remedy)
        if isinstance(error, EdgecompileError):
            error.remedy = f"{error.remedy or ''}\nthe folder {folder} on {self.description} is left; {remedy}".strip()

    def _remove(self) -> str | None:
        """Remove folder and lock, with one new connection if need be; return why that failed, if it did."""
        fault = None
        for _ in range(2):
            try:
                connection = self._connection if self._alive() else self._connect()
                assert connection is not None
                words = connection.ask(call(remote.REMOVE, self._token, 0))
                return None if words[0] == "removed" else "something there still writes into it"
            except (Dropped, Refused, DeviceError) as exc:
                fault = str(exc)
                self._disconnect()
        return fault

    def _alive(self) -> bool:
        return self._connection is not None and self._connection.alive

    def _connect(self) -> Connection:
        self._disconnect()
        self._connection = self._new_connection()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._keeper = self._connection, None, None
        if connection is not None:
            connection.close()

    def _take_turn(self) -> None:
        """Wait until no other build has the machine, then make the folder there."""
        end = time.monotonic() + self._patience.turn_s
        told = False
        while not self._take_lock(first=True):
            if not told and self._waiting is not None:
                self._waiting(f"waiting for {self.description}: another build has it")
            told = True
            if time.monotonic() > end:
                raise DeviceError(
                    f"{self.description} is used by another build for more than {self._patience.turn_s:.0f} s",
                    remedy="wait for it, or end it; if there is none, remove edgecompile.lock in the machine's "
                    "temporary folder",
                )
            time.sleep(min(1.0, self._patience.turn_s / 10))

    def _take_lock(self, *, first: bool) -> bool:
        pauses = self._patience.first_retries_s if first else ()
        words = self._try("connecting", self._keep, pauses=pauses, enter=True)
        if words[0] == "taken":
            self._folder = " ".join(words[1:])
        elif words[0] == "unwritable":
            said = " ".join(words[2:]).rpartition(":")[2].strip()
            raise DeviceError(
                f"cannot make a folder in {words[1]} on {self.description}: {said or 'it is not writable'}",
                remedy="make room there or make it writable, or set TMPDIR for the account to a folder that is",
            )
        return words[0] == "taken"

    def _keep(self, connection: Connection) -> list[str]:
        words, self._keeper = connection.hold(call(remote.KEEP, self._token, self._patience.grace_s))
        return words

    def _connected(self) -> Connection:
        """The connection, made again if it was lost; then the folder is taken over again."""
        if self._connection is not None and self._connection.alive:
            return self._connection
        connection = self._connect()
        if self._folder is not None:
            words = self._keep(connection)
            if words[0] != "taken" or " ".join(words[1:]) != self._folder:
                self._lost_folder()
        return connection

    def _lost_folder(self) -> NoReturn:
        raise DeviceError(
            f"the folder on {self.description} is gone: the machine was restarted, or cleaned up, meanwhile",
            remedy="see that its power is steady and its network stays up, then run the command again",
        )

    def _try(
        self,
        doing: str,
        action: Callable[[Connection], T],
        *,
        pauses: tuple[float, ...] | None = None,
        enter: bool = False,
    ) -> T:
        """Do something with the connection, again with a new one when it is lost, with longer and longer pauses."""
        if not enter:
            _ = self.folder
        for pause in (*(self._patience.retries_s if pauses is None else pauses), None):
            try:
                return action(self._connected())
            except Dropped as exc:
                self._disconnect()
                if pause is None:
                    raise self._unreachable(doing, exc) from exc
                time.sleep(pause)
            except Refused as exc:
                raise DeviceError(
                    f"{self.description} failed while {doing}: {exc}",
                    remedy="the account needs a shell that runs commands, and a machine with room and memory to do so",
                ) from exc
        raise AssertionError("not reached")

    def _unreachable(self, doing: str, exc: Dropped) -> DeviceError:
        if self._folder is None:
            return self._cannot_reach(exc)
        return DeviceError(
            f"the connection to {self.description} was lost while {doing}, and could not be made again: {exc}",
            remedy="see that its power is steady and its network stays up, then run the command again",
        )

    # ------------------------------------------------------------------------------------------------------ files

    def _path(self, name: str) -> str:
        path = checked_name(name)
        if path.parts[0] == ".run":
            raise ValueError(f"not a name for a file: {name!r}")
        return posixpath.join(self.folder, str(path))

    def put(self, local: Path, name: str) -> None:
        """Upload ``local`` under a temporary name, check size and SHA-256, and rename it to ``name``."""
        path = self._path(name)
        try:
            size, digest = local.stat().st_size, file_sha256(local)
        except OSError as exc:
            raise DeviceError(f"there is no file {local} to put on {self.description}: {exc.strerror}") from exc
        part = f"{path}.part-{digest[:12]}"
        for _ in range(2):
            words = self._try(f"uploading {name}", lambda c: self._upload(c, local, part, path, size, digest))
            if words[0] == "done":
                return
        raise DeviceError(f"{name} did not arrive whole on {self.description} ({' '.join(words)})", remedy=_STORAGE)

    def _upload(self, c: Connection, local: Path, part: str, path: str, size: int, digest: str) -> list[str]:
        words = c.ask(call(remote.PREPARE, part))
        offset = int(words[1]) if words[0] == "holds" else 0
        if words[0] != "holds":
            self._cannot_write(c, path, " ".join(words[1:]).rpartition(":")[2].strip())
        try:
            if offset != size or not size:
                c.send(local, part, offset if offset <= size else 0)
        except Refused as exc:
            self._cannot_write(c, path, str(exc))
        limit_s = self._patience.silence_s + size / _HASHED_PER_S
        words = c.ask(call(remote.FINISH, part, path, size, digest), limit_s=limit_s)
        if words[0] in ("size", "absent", "refused"):
            self._cannot_write(c, path, f"{' '.join(words[1:]) or 'nothing'} of {size} bytes arrived")
        return words

    def _cannot_write(self, connection: Connection, path: str, why: str) -> NoReturn:
        free = ""
        with contextlib.suppress(Dropped, Refused):
            words = connection.ask(call(remote.SPACE, self.folder))
            free = f"; {int(words[0]) / 1024:.0f} MB are free there" if words and words[0].isdigit() else ""
        name = posixpath.relpath(path, self.folder)
        raise DeviceError(f"cannot write {name} on {self.description}: {why}{free}", remedy=_STORAGE)

    def get(self, name: str, local: Path) -> None:
        """Copy the file ``name`` to ``local``, which appears when it is whole and its SHA-256 is checked."""
        path = self._path(name)
        part = local.with_name(f"{local.name}.part-{secrets.token_hex(4)}")
        limit = _LARGEST_DOCUMENT if name.endswith(".json") else _LARGEST_FILE
        try:
            for _ in range(2):
                digest = self._try(f"copying {name}", lambda c: self._download(c, path, name, part, limit))
                if not digest or digest == file_sha256(part):
                    part.replace(local)
                    return
                part.unlink()
        except OSError as exc:
            raise DeviceError(f"cannot copy {name} from {self.description} to {local}: {exc.strerror}") from exc
        finally:
            part.unlink(missing_ok=True)
        raise DeviceError(f"{name} did not arrive whole from {self.description}", remedy=_STORAGE)

    def _download(self, c: Connection, path: str, name: str, part: Path, limit: int) -> str:
        words = c.ask(call(remote.ABOUT, path), limit_s=self._patience.silence_s * 4)
        if words[0] != "file":
            raise DeviceError(f"cannot copy {name} from {self.description}: there is no such file")
        size = int(words[1])
        if size > limit:
            raise DeviceError(
                f"{name} on {self.description} is {size} bytes, more than the {limit} that are taken from a machine",
                remedy="see what fills it there; a machine that is not yours may send anything",
            )
        free = shutil.disk_usage(part.parent).free
        if size > free:
            raise DeviceError(
                f"{name} on {self.description} is {size} bytes, and {part.parent} here has {free} free",
                remedy="make room on this machine",
            )
        c.fetch(path, size, part)
        return words[2] if len(words) > 2 else ""

    # --------------------------------------------------------------------------------------------------- commands

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command in the folder. It does not depend on the connection, and does not outlive this call."""
        self._commands += 1
        state = posixpath.join(self.folder, ".run", str(self._commands))
        end = time.monotonic() + timeout_s
        limit = math.ceil(timeout_s) + self._patience.grace_s
        start = call(remote.START, self.folder, state, limit, remote.INNER, list(argv))
        name = posixpath.basename(argv[0])
        try:
            self._started(self._try(f"starting {name}", lambda c: c.ask(start)), argv[0])
            code = self._wait(state, name, end, timeout_s)
        except BaseException:
            self._kill(state)
            raise
        done = Completed(code=code, out=self._output(state, "out"), err=self._output(state, "err"))
        said = f"{done.out}\n{done.err}".strip()[-_LAST_WORDS:]
        log.debug("%s on %s ended with %d, and said: %s", name, self.description, code, said or "nothing")
        return done

    def _started(self, words: list[str], program: str) -> None:
        if words[0] == "missing":
            raise DeviceError(
                f"cannot start {program} on {self.description}: there is no such program",
                remedy="install it there, or give its path",
            )
        if words[0] == "gone":
            self._lost_folder()
        if words[0] != "started":
            raise DeviceError(f"cannot start {program} on {self.description}: {' '.join(words[1:])}", remedy=_STORAGE)

    def _wait(self, state: str, name: str, end: float, timeout_s: float) -> int:
        while True:
            left = max(0.0, end - time.monotonic())
            tenths = min(10, math.ceil(left * 10))
            seconds = min(10, math.floor(left - 1)) if left > 1 else 0
            wait = call(remote.WAIT, state, tenths, seconds)
            words = self._try(f"running {name}", partial(_patiently, wait, self._patience.silence_s + 15))
            if words[0] == "ended":
                return int(words[1])
            if words[0] == "gone":
                self._lost_folder()
            if words[0] == "lost":
                raise DeviceError(
                    f"{name} on {self.description} was ended by the machine, with everything it had started",
                    remedy="the machine may be out of memory (see dmesg there); try a smaller model",
                )
            if time.monotonic() >= end:
                raise DeviceError(
                    f"{name} on {self.description} did not end within {timeout_s:.0f} s",
                    remedy="measure a smaller model or fewer runs, or see what else the machine is doing",
                )

    def _kill(self, state: str) -> None:
        """End a command; whatever fails here, leaving the ``with`` block tries once more."""
        if self._alive() and self._connection is not None:
            with contextlib.suppress(Dropped, Refused):
                self._connection.ask(call(remote.KILL, state))

    def _output(self, state: str, stream: str) -> str:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / stream
            path = posixpath.join(state, stream)
            self._try("reading its output", lambda c: self._download(c, path, f"std{stream}", part, _LARGEST_OUTPUT))
            return part.read_text(encoding="utf-8", errors="replace")


_STORAGE = "make room on the machine, see that its storage is sound, or set TMPDIR for the account to another folder"


def _patiently(question: remote.Call, limit_s: float, connection: Connection) -> list[str]:
    return connection.ask(question, limit_s=limit_s)


__all__ = ["Patience", "ShellTransport"]
