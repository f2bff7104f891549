"""Image folders: labelled (``class/*.jpg``), flat, with boxes (COCO JSON), or with masks (``images/``, ``masks/``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgecompile import types
from edgecompile.calibration import coco, images
from edgecompile.calibration.coco import some
from edgecompile.calibration.image_sources import BoxSource, ImageSource, MaskSource
from edgecompile.calibration.pool import Pool
from edgecompile.calibration.preset import Preprocessing, Preset
from edgecompile.calibration.samples import Source, TruthKind
from edgecompile.errors import InputError
from edgecompile.types import file_sha256

A = TypeVar("A")
B = TypeVar("B")

#: Folder names that mean a part of a data set, not a class.
_PART_NAMES = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"))


def scan(root: Path, preset: Preset, prep: Preprocessing, class_names: tuple[str, ...] | None) -> Pool:
    """The images of a folder, sorted by name. Raises `InputError` for an empty, mixed or multi-part folder."""
    if _has_masks(root):
        return _with_masks(root, preset, prep, class_names)
    if (annotations := coco.find(root)) is not None:
        return _with_boxes(root, annotations, prep, class_names)
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
        return _pool(root, flat, ImageSource(prep=prep, paths=tuple(flat)), class_names=class_names)
    return _labelled(root, classes, prep, class_names)


def _labelled(
    root: Path, classes: dict[str, list[Path]], prep: Preprocessing, class_names: tuple[str, ...] | None
) -> Pool:
    if {name.lower() for name in classes} <= _PART_NAMES:
        raise InputError(
            f"{root} holds the parts of a data set ({', '.join(classes)}), not classes",
            remedy=f"give one of them, such as {root / next(iter(classes))}",
        )
    if len(classes) == 1 and class_names is None:
        only = next(iter(classes.values()))
        note = f"{root} has a single folder of images: taken as unlabelled"
        return _pool(root, only, ImageSource(prep=prep, paths=tuple(only)), notes=(note,))
    names, notes = match_classes(root, tuple(classes), class_names)
    position = {name: i for i, name in enumerate(names)}
    paths = [path for files in classes.values() for path in files]
    labels = tuple(position[name] for name, files in classes.items() for _ in files)
    source = ImageSource(prep=prep, paths=tuple(paths))
    return _pool(root, paths, source, labels=labels, class_names=names, notes=notes)


def _with_boxes(root: Path, annotations: coco.Coco, prep: Preprocessing, class_names: tuple[str, ...] | None) -> Pool:
    entries, names, notes = coco.entries(root, annotations, class_names)
    paths = [entry.path for entry in entries]
    source = BoxSource(images=ImageSource(prep=prep, paths=tuple(paths)), entries=entries)
    truth = types.digest([(entry.xywh, entry.classes, entry.crowd) for entry in entries])
    return _pool(root, paths, source, class_names=names, notes=notes, truths="boxes", truth_sha256=truth)


def _with_masks(root: Path, preset: Preset, prep: Preprocessing, class_names: tuple[str, ...] | None) -> Pool:
    paths = _images_in((root / "images").rglob("*"))
    masks = {_pair_key(root / "masks", path): path for path in _images_in((root / "masks").rglob("*"))}
    keys = [_pair_key(root / "images", path) for path in paths]
    if missing := [key for key in keys if key not in masks]:
        raise InputError(
            f"{root / 'masks'} has no mask for {len(missing)} of {len(keys)} images: {some(missing)}",
            remedy="each images/NAME.jpg needs a masks/NAME.png whose pixels are class indices",
        )
    if not paths:
        raise InputError(f"no images in {root / 'images'}", remedy="put images there, and their masks into masks/")
    found = tuple(masks[key] for key in keys)
    source = MaskSource(
        images=ImageSource(prep=prep, paths=tuple(paths)), masks=found, ignore=preset.segmentation.ignore
    )
    truth = types.digest(in_parallel(_hash, found))
    return _pool(root, paths, source, class_names=class_names, truths="masks", truth_sha256=truth)


def _pair_key(folder: Path, path: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def class_folder_names(root: Path) -> tuple[str, ...]:
    """The class folders of a labelled folder, sorted; none where it is flat, or has masks or boxes."""
    return () if _has_masks(root) or coco.find(root) is not None else tuple(_class_folders(root))


def _has_masks(root: Path) -> bool:
    return (root / "images").is_dir() and (root / "masks").is_dir()


def match_classes(
    origin: object, found: tuple[str, ...], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class order and what to tell about it. Raises `InputError` naming folders that the labels do not know."""
    if given is None:
        return tuple(sorted(found)), (f"class order: the folder names of {origin}, sorted",)
    extra = sorted(set(found) - set(given))
    missing = [name for name in given if name not in found]
    if extra:
        unused = f"; labels without a folder: {some(missing)}" if missing else ""
        raise InputError(
            f"{origin} has class folders that are not among the labels: {some(extra)}{unused}",
            remedy="--labels must list every class folder by its name, one a line, in the model's output order",
        )
    notes = (f"{origin} has no images of {len(missing)} labels: {some(missing)}",) if missing else ()
    return given, notes


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one a line; empty lines at the end are ignored. Raises `InputError` for repeated or no names."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise InputError(
            f"cannot read the labels {path}: {reason}", remedy="--labels is a text file, one name a line"
        ) from exc
    if not any(lines):
        raise InputError(f"the labels file {path} is empty", remedy="write one class name a line")
    for number, name in enumerate(lines, 1):
        if not name or lines.index(name) != number - 1:
            fault = f"{name!r} again" if name else "empty"
            raise InputError(f"{path}: line {number} is {fault}", remedy="each line names one class, once")
    return tuple(lines)


def _class_folders(root: Path) -> dict[str, list[Path]]:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    found = {folder.name: _images_in(folder.rglob("*")) for folder in folders}
    return {name: files for name, files in found.items() if files}


def _images_in(paths: Iterable[Path]) -> list[Path]:
    # Hidden files are left out: macOS puts a "._photo.jpg" that is no image beside each photo.
    return sorted(p for p in paths if p.suffix.lower() in images.EXTENSIONS and p.name[0] != "." and p.is_file())


def _pool(
    root: Path,
    paths: list[Path],
    source: Source,
    *,
    labels: tuple[int, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
    truths: TruthKind = "none",
    truth_sha256: str = "",
) -> Pool:
    return Pool(
        origin=str(root),
        source=source,
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        hashes=tuple(in_parallel(_hash, paths)),
        labels=labels,
        class_names=class_names,
        notes=notes,
        truths=truths,
        truth_sha256=truth_sha256,
    )


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", remedy="check the file's permissions") from exc


def in_parallel(function: Callable[[A], B], values: Iterable[A]) -> list[B]:
    """``map`` on a few threads: hashing and decoding release the interpreter's lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))
