"""Image folders: labelled (``class/*.jpg``) or flat."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import images
from edgecompile.calibration.pool import Pool
from edgecompile.calibration.preset import Preprocessing
from edgecompile.errors import InputError
from edgecompile.types import Arrays, file_sha256

#: Folder names that mean a part of a data set, not a class.
_PART_NAMES = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"))
#: Decoded pixels are kept up to this size, so that each candidate's pass does not decode again.
_CACHE_BYTES = 512 * 2**20


@dataclass(slots=True, kw_only=True)
class ImageSource:
    """Decodes files on demand; pixels (not inputs) are kept in memory up to a limit."""

    prep: Preprocessing
    paths: tuple[Path, ...]
    cache_bytes: int = _CACHE_BYTES
    _cache: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _cached_bytes: int = 0

    def read(self, index: int) -> Arrays:
        try:
            values = self._pixels(index)
        except images.ImageFault as exc:
            raise InputError(
                f"{self.paths[index]} could be read when the data was checked and cannot now: {exc}",
                remedy="leave the data alone while edgecompile works on it",
            ) from exc
        return {self.prep.input: images.to_input(values, self.prep)}

    def check(self, index: int) -> str | None:
        try:
            self._pixels(index)
        except images.ImageFault as exc:
            return str(exc)
        return None

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        if index in self._cache:
            return self._cache[index]
        image = images.decode(self.paths[index], gray=self.prep.color == "gray")
        values = images.pixels(image, self.prep)
        if self._cached_bytes + values.nbytes <= self.cache_bytes:
            self._cache[index] = values
            self._cached_bytes += values.nbytes
        return values


def scan(root: Path, prep: Preprocessing, class_names: tuple[str, ...] | None) -> Pool:
    """The images of a folder, sorted by name. Raises `InputError` for an empty, mixed or multi-part folder."""
    classes = _class_folders(root)
    flat = _images_in(root.iterdir())
    if classes and flat:
        raise InputError(
            f"{root} holds images ({flat[0].name}, ...) as well as folders of images ({next(iter(classes))}, ...)",
            remedy="give a folder with one sub-folder a class, or one with images only",
        )
    if not classes and not flat:
        raise InputError(f"no images in {root}", remedy=f"known image files: {', '.join(sorted(images.EXTENSIONS))}")
    if flat:
        return _pool(root, prep, flat, None, class_names, ())
    if {name.lower() for name in classes} <= _PART_NAMES:
        raise InputError(
            f"{root} holds the parts of a data set ({', '.join(classes)}), not classes",
            remedy=f"give one of them, such as {root / next(iter(classes))}",
        )
    names, notes = match_classes(root, tuple(classes), class_names)
    position = {name: i for i, name in enumerate(names)}
    paths = [path for files in classes.values() for path in files]
    labels = tuple(position[name] for name, files in classes.items() for _ in files)
    return _pool(root, prep, paths, labels, names, notes)


def class_folder_names(root: Path) -> tuple[str, ...]:
    """The sub-folders with images in them, sorted."""
    return tuple(_class_folders(root))


def match_classes(
    origin: object, found: tuple[str, ...], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class order and what to tell about it. Raises `InputError` naming folders that the labels do not know."""
    if given is None:
        return tuple(sorted(found)), (f"class order: the folder names of {origin}, sorted",)
    extra = sorted(set(found) - set(given))
    missing = [name for name in given if name not in found]
    if extra:
        unused = f"; labels without a folder: {_some(missing)}" if missing else ""
        raise InputError(
            f"{origin} has class folders that are not among the labels: {_some(extra)}{unused}",
            remedy="--labels must list every class folder by its name, one a line, in the model's output order",
        )
    notes = (f"{origin} has no images of {len(missing)} labels: {_some(missing)}",) if missing else ()
    return given, notes


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end are ignored. Raises `InputError` for repeated or no names."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(
            f"cannot read the labels {path}: {exc}", remedy="--labels is a text file, one name a line"
        ) from exc
    if not any(lines):
        raise InputError(f"the labels file {path} is empty", remedy="write one class name a line")
    for number, name in enumerate(lines, 1):
        if not name or lines.index(name) != number - 1:
            fault = f"{name!r} again" if name else "empty"
            raise InputError(f"{path}: line {number} is {fault}", remedy="each line names one class, once")
    return tuple(lines)


def _some(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(repr(name) for name in listed[:limit]) + more


def _class_folders(root: Path) -> dict[str, list[Path]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {folder.name: _images_in(folder.rglob("*")) for folder in folders}
    return {name: files for name, files in found.items() if files}


def _images_in(paths: Iterable[Path]) -> list[Path]:
    # Hidden files are left out: macOS puts a "._photo.jpg" that is no image beside each photo.
    return sorted(p for p in paths if p.suffix.lower() in images.EXTENSIONS and p.name[0] != "." and p.is_file())


def _pool(
    root: Path,
    prep: Preprocessing,
    paths: list[Path],
    labels: tuple[int, ...] | None,
    class_names: tuple[str, ...] | None,
    notes: tuple[str, ...],
) -> Pool:
    return Pool(
        origin=str(root),
        source=ImageSource(prep=prep, paths=tuple(paths)),
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        hashes=tuple(in_parallel(_hash, paths)),
        labels=labels,
        class_names=class_names,
        notes=notes,
    )


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", remedy="check the file's permissions") from exc


def in_parallel(function: Any, values: Iterable[Any]) -> list[Any]:
    """``map`` on a few threads: hashing and decoding release the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))
