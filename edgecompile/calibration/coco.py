"""Boxes in COCO's JSON form (https://cocodataset.org/#format-data), as far as detection needs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec

from edgecompile.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image as COCO lists it."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One box: ``bbox`` is (left, top, width, height) in pixels of the image."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A class."""

    id: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """The parts of an annotation file that are read; all others are ignored."""

    images: tuple[Picture, ...]
    annotations: tuple[Annotation, ...]
    categories: tuple[Category, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image on disk with its boxes, in pixels of the image, and the classes as indices."""

    path: Path
    width: int
    height: int
    xywh: tuple[tuple[float, float, float, float], ...]
    classes: tuple[int, ...]
    crowd: tuple[bool, ...]


def find(root: Path) -> Coco | None:
    """The folder's annotations: its only ``*.json`` with images, annotations and categories; ``None`` without one."""
    found = {path: coco for path in sorted(root.glob("*.json")) if (coco := _read(path)) is not None}
    if len(found) > 1:
        raise InputError(
            f"{root} has several annotation files: {some(path.name for path in found)}",
            remedy="leave one of them there",
        )
    return next(iter(found.values()), None)


def _read(path: Path) -> Coco | None:
    try:
        data = path.read_bytes()
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError):
        return None  # Some other JSON: a data folder may hold anything beside its images.
    if not {"images", "annotations", "categories"} <= set(head):
        return None
    try:
        return msgspec.json.decode(data, type=Coco)
    except msgspec.ValidationError as exc:
        raise InputError(f"{path} is not in COCO form: {exc}", remedy="export it again as COCO detection JSON") from exc


def entries(
    root: Path, coco: Coco, class_names: tuple[str, ...] | None
) -> tuple[tuple[Entry, ...], tuple[str, ...], tuple[str, ...]]:
    """(The images that are there, the class names in order, notes).

    Classes follow ``class_names``, else the categories sorted by id. Raises `InputError` for names that lead out of the
    folder, categories that the labels do not know, and boxes of images or categories that are not listed.
    """
    names, index, notes = _classes(root, coco, class_names)
    boxes: dict[int, list[Annotation]] = defaultdict(list)
    for annotation in coco.annotations:
        if annotation.category_id not in index:
            raise InputError(
                f"{root}: a box has category {annotation.category_id}, which is not listed", remedy="list it"
            )
        boxes[annotation.image_id].append(annotation)
    if strange := set(boxes) - {picture.id for picture in coco.images}:
        raise InputError(f"{root}: boxes belong to images that are not listed: {some(map(str, strange))}")
    there = {picture.id: path for picture in coco.images if (path := _path(root, picture.file_name)) is not None}
    if not there:
        raise InputError(
            f"none of the {len(coco.images)} annotated images is in {root}",
            remedy="file_name is relative to the folder of the annotations, or to images/ in it",
        )
    if missing := len(coco.images) - len(there):
        notes += (f"{root}: {missing} of {len(coco.images)} annotated images are not there",)
    pictures = sorted((p for p in coco.images if p.id in there), key=lambda p: p.file_name)
    return tuple(_entry(p, there[p.id], boxes[p.id], index) for p in pictures), names, notes


def _classes(
    root: Path, coco: Coco, class_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[int, int], tuple[str, ...]]:
    categories = sorted(coco.categories, key=lambda category: category.id)
    if class_names is None:
        names = tuple(category.name for category in categories)
        note = f"class order: the categories of {root}, sorted by id"
        return names, {category.id: i for i, category in enumerate(categories)}, (note,)
    used = {annotation.category_id for annotation in coco.annotations}
    if strange := [c.name for c in categories if c.id in used and c.name not in class_names]:
        raise InputError(
            f"{root} has boxes of categories that are not among the labels: {some(strange)}",
            remedy="--labels must list every category by its name, one a line, in the model's output order",
        )
    return class_names, {c.id: class_names.index(c.name) for c in categories if c.name in class_names}, ()


def _path(root: Path, file_name: str) -> Path | None:
    relative = PurePosixPath(file_name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(
            f"{root}: the annotations name {file_name!r}, outside the folder", remedy="use names relative to it"
        )
    return next((path for base in (root, root / "images") if (path := base / relative).is_file()), None)


def _entry(picture: Picture, path: Path, boxes: list[Annotation], index: dict[int, int]) -> Entry:
    return Entry(
        path=path,
        width=picture.width,
        height=picture.height,
        xywh=tuple(box.bbox for box in boxes),
        classes=tuple(index[box.category_id] for box in boxes),
        crowd=tuple(bool(box.iscrowd) for box in boxes),
    )


def some(names: Iterable[str], limit: int = 5) -> str:
    """A few names of many, quoted."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(repr(name) for name in listed[:limit]) + more
