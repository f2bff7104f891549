"""Where the lab keeps its things, and how it runs the programs of this machine that it needs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from edgecompile.errors import DeviceError
from edgecompile.store import cache_root

_SEARCHED = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/sbin")))
_LAST_WORDS = 400
_WATCH_S = 0.2
_PATIENCE_S = 1.0
#: What to do when the disk is full.
ROOM = "make room, or name a folder on another disk with the variable EDGECOMPILE_LAB"


def root() -> Path:
    """The lab's folder: ``$EDGECOMPILE_LAB``, or ``lab`` in edgecompile's cache folder."""
    given = os.environ.get("EDGECOMPILE_LAB")
    return Path(given).absolute() if given else cache_root().absolute() / "lab"


class Deadline:
    """A moment by which all must be done. ``left_s`` raises `DeviceError` when it has passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self._end

    def passed(self) -> DeviceError:
        """The error of a lab that took too long."""
        return DeviceError(
            f"the emulated board was not ready within {self._seconds:.0f} s",
            remedy="see that the network is quick enough (about 100 MB are fetched the first time), and try again: "
            "what was fetched is kept",
        )


def program(name: str, package: str, why: str) -> str:
    """The path of a program. Raises `DeviceError` naming it and the Debian package to install."""
    found = shutil.which(name, path=_SEARCHED)
    if found is None:
        raise DeviceError(
            f"there is no program {name} on this machine, which {why}",
            remedy=f"install it (on Debian and Ubuntu: sudo apt install {package})",
        )
    return found


def run(
    argv: Sequence[str],
    deadline: Deadline,
    doing: str,
    *,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> str:
    """What a command prints. Raises `DeviceError` with its last words when it fails or takes too long.

    ``watch`` is called now and then while it runs. The command ends with this process, however that ends.
    """
    with subprocess.Popen(
        [*_ending_with_this_process(), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
    ) as process:
        try:
            out, err = _communicate(process, deadline, watch)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = (err.strip() or out.strip())[-_LAST_WORDS:]
        full = is_full(said)
        raise DeviceError(
            f"{doing} failed: {Path(argv[0]).name} ended with exit code {process.returncode}: {said}",
            remedy=ROOM if full else "see that the package mirrors can be reached from here",
        )
    return out


def is_full(said: str) -> bool:
    """Whether a program complains of a full disk."""
    return os.strerror(errno.ENOSPC) in said or os.strerror(errno.EDQUOT) in said


def _communicate(process: subprocess.Popen[str], deadline: Deadline, watch: Callable[[], None]) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=min(_WATCH_S, deadline.left_s))
        except subprocess.TimeoutExpired:
            watch()


def _ending_with_this_process() -> list[str]:
    """What to put before a command so that the kernel ends it when this process is gone, also by SIGKILL."""
    found = shutil.which("setpriv", path=_SEARCHED)
    return [found, "--pdeathsig", "TERM"] if found else []


@contextlib.contextmanager
def locked(path: Path, deadline: Deadline, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``; it goes with the process that holds it.

    ``waiting`` is called once when another one has it. Raises `DeviceError` when it still has when time is up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    told = time.monotonic() + _PATIENCE_S
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if deadline.over:
                    raise DeviceError(
                        f"another process is at work on the emulated boards, and holds {path}",
                        remedy="wait for it (it may be fetching the board's file system), or end it",
                    ) from exc
                if time.monotonic() > told:
                    waiting()
                    told = float("inf")
                time.sleep(0.1)
        yield


__all__ = ["ROOM", "Deadline", "is_full", "locked", "program", "root", "run"]
