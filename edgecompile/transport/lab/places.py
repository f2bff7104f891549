"""Where the lab keeps its things, and how it runs the programs of this machine that it needs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgecompile.errors import DeviceError
from edgecompile.store import cache_root

_SEARCHED = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin", "/sbin")))
_LAST_WORDS = 400


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


def run(argv: Sequence[str], deadline: Deadline, doing: str, *, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. Raises `DeviceError` with its last words when it fails or takes too long."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline.left_s,
            check=False,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
    except subprocess.TimeoutExpired as exc:
        raise deadline.passed() from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-_LAST_WORDS:]
        raise DeviceError(
            f"{doing} failed: {Path(argv[0]).name} ended with exit code {done.returncode}: {said}",
            remedy="see that the package mirrors can be reached from here and that there is room on the disk",
        )
    return done.stdout


@contextlib.contextmanager
def locked(path: Path, deadline: Deadline) -> Iterator[None]:
    """Hold the lock file ``path``; it goes with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(min(0.1, deadline.left_s))
        yield


__all__ = ["Deadline", "locked", "program", "root", "run"]
