"""The work folder: every step's result is kept under the hash of what made it, so a killed build goes on by itself.

An entry is a folder whose ``result.json`` is written last, to a temporary name, and renamed: an entry without it
was cut off and is made again. The user's cache folder holds one small pointer file for each work folder, which is
what ``edgecompile cache`` lists.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edgecompile.errors import InputError
from edgecompile.types import decode, encode

T = TypeVar("T")
_RESULT = "result.json"
#: The folder, in a work folder or the user's cache, of what single operators take on a device.
TIMES = "operator"
_LOCK = "lock"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is either whole or absent, also after a crash or a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Store:
    """The work folder of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def forget(self, kind: str, key: str) -> None:
        """Let a result be made anew the next time."""
        shutil.rmtree(self.root / kind / key[:32], ignore_errors=True)

    def cached(self, kind: str, key: str, result_type: type[T], make: Callable[[Path], T]) -> T:
        """The result kept under ``kind`` and ``key``, or what ``make(folder)`` returns, which is then kept.

        ``make`` may leave files in the folder it is given; they belong to the entry.
        """
        folder = self.root / kind / key[:32]
        marker = folder / _RESULT
        if marker.is_file():
            try:
                return decode(marker.read_bytes(), result_type)
            except msgspec.ValidationError:  # written by another version: make it anew
                pass
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = make(folder)
        write_atomically(marker, encode(result))
        return result

    def discard_if_empty(self) -> None:
        """Remove the work folder where no step has left anything in it."""
        if {path.name for path in self.root.rglob("*") if path.is_file()} <= {_LOCK}:
            shutil.rmtree(self.root, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the work folder for this process. Raises `InputError` when another build holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / _LOCK).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise InputError(
                    f"another build is using {self.root}", remedy="wait for it, or give another --out"
                ) from exc
            yield


# ------------------------------------------------------------------------------------------- all work folders


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFolder:
    """A work folder some build left, with its size and when it was last used (seconds since the epoch)."""

    path: Path
    size_bytes: int
    last_used_s: float
    finished: bool


def cache_root() -> Path:
    """The user's cache folder: ``$EDGECOMPILE_CACHE``, else ``$XDG_CACHE_HOME/edgecompile``, else in ``~/.cache``."""
    explicit = os.environ.get("EDGECOMPILE_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgecompile"


def clean_times(*, older_than_days: float = 0.0) -> int:
    """Remove the times of single operators that builds share, taken more than ``older_than_days`` ago; how many."""
    old = [
        path
        for path in (cache_root() / TIMES).glob("*.json")
        if time.time() - path.stat().st_mtime >= older_than_days * 86400
    ]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def register(work: Path) -> None:
    """Remember a work folder, so that ``cache list`` finds it. A cache that cannot be written is no fault."""
    pointer = cache_root() / "work" / hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:16]
    try:
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(pointer, str(work.resolve()).encode())
    except OSError:
        return


def work_folders() -> list[WorkFolder]:
    """All remembered work folders that still exist, the last used first; pointers to ones that are gone are dropped."""
    folders: list[WorkFolder] = []
    pointers = cache_root() / "work"
    for pointer in sorted(pointers.iterdir()) if pointers.is_dir() else []:
        path = Path(pointer.read_text())
        if not _is_work_folder(path):
            pointer.unlink(missing_ok=True)
            continue
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        out = path.with_name(path.name.removesuffix(".work"))
        folders.append(
            WorkFolder(path=path, size_bytes=size, last_used_s=(path / _LOCK).stat().st_mtime, finished=out.is_dir())
        )
    return sorted(folders, key=lambda folder: folder.last_used_s, reverse=True)


def _is_work_folder(path: Path) -> bool:
    # A pointer file could be tampered with: only ever delete what looks like ours.
    return path.name.endswith(".work") and (path / _LOCK).is_file() and not path.is_symlink()


def clean(folders: list[WorkFolder], *, older_than_days: float = 0.0) -> tuple[list[WorkFolder], list[WorkFolder]]:
    """Remove work folders last used more than ``older_than_days`` ago. Bundles stay.

    Returns those removed, and those left because a build is using them.
    """
    removed: list[WorkFolder] = []
    busy: list[WorkFolder] = []
    for folder in folders:
        if time.time() - folder.last_used_s < older_than_days * 86400:
            continue
        try:
            with Store(folder.path).locked():
                shutil.rmtree(folder.path)
        except InputError:
            busy.append(folder)
        else:
            removed.append(folder)
    return removed, busy
