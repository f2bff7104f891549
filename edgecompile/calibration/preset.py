"""Presets: declared preprocessing, one TOML file each, and its resolution for a model's input.

The arithmetic is the same for every preset and is written down in ``docs/data.md``: decode, resize, crop, colour
order, then ``x = pixel * multiplier[c] + offset[c]`` in float32.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from edgecompile import content
from edgecompile.errors import InputError
from edgecompile.types import TensorSpec

Color: TypeAlias = Literal["rgb", "bgr", "gray"]
Layout: TypeAlias = Literal["nchw", "nhwc", "nhw", "flat"]
Filter: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
BoxFormat: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
ResizeMode: TypeAlias = Literal["exact", "shorter-side", "letterbox"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """How an image gets the input's height and width.

    ``exact`` scales both sides; ``shorter-side`` scales the shorter side to ``shorter_side`` pixels (or to the larger
    input side / ``crop_fraction``) and crops the centre; ``letterbox`` fits the whole image and pads with
    ``pad_value``.
    """

    mode: ResizeMode = "exact"
    filter: Filter = "bilinear"
    shorter_side: int | None = None
    crop_fraction: float | None = None
    pad_value: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What pixel values become: black to white spans ``range``, then ``(x - mean) / std`` per channel.

    ``mean`` and ``std`` have one entry, or one a channel in the order of ``color``. White is 255 in image files and
    ``array_white`` in raw arrays.
    """

    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    array_white: float = 255.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How a detector's outputs are read, for mAP: ``boxes`` (1, N, 4) and ``scores`` (1, N, C) name two outputs.

    Boxes are in pixels of the input, or in fractions of its width and height (``normalized``). ``background`` is the
    class index that means "nothing". ``iou_threshold`` is that of non-maximum suppression; 1 leaves every box.
    """

    boxes: str
    scores: str
    box_format: BoxFormat = "xyxy"
    normalized: bool = False
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    background: int | None = None
    score_threshold: float = 0.01
    iou_threshold: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """How masks are read, for mIoU: pixels hold class indices, and ``ignore`` marks those that do not count."""

    ignore: int = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Declared preprocessing, as its TOML file says it. ``layout`` settles it where the input's shape does not."""

    name: str
    description: str = ""
    color: Color = "rgb"
    layout: Literal["nchw", "nhwc"] | None = None
    resize: Resize = field(default_factory=Resize)
    values: Values = field(default_factory=Values)
    detection: Detection | None = None
    segmentation: Segmentation = field(default_factory=Segmentation)

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """A preset resolved for one input: everything an app needs, with no arithmetic left to guess.

    ``multiplier`` and ``offset`` have one entry a channel, in the order of ``color``, for pixels 0-255 (``array_white``
    is what stands for 255 in raw arrays). ``shorter_side`` is in pixels. ``layout`` is the original model's.
    """

    preset: str
    input: str
    dtype: str
    layout: Layout
    shape: tuple[int, ...]
    height: int
    width: int
    channels: int
    color: Color
    resize: ResizeMode
    filter: Filter
    shorter_side: int | None
    pad_value: int
    multiplier: tuple[float, ...]
    offset: tuple[float, ...]
    array_white: float = 255.0


# ------------------------------------------------------------------------------------------------ reading TOML

_TABLES: dict[str, type] = {
    "resize": Resize,
    "values": Values,
    "detection": Detection,
    "segmentation": Segmentation,
}


def load_preset(ref: str, content_dir: Path | None = None) -> Preset:
    """The preset of that name, or in that file. Raises `InputError` for anything the file says that is not known."""
    found = content.find("calibration", ref, content_dir=content_dir)
    try:
        raw = tomllib.loads(found.path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError(f"{found.path}: not a preset: {exc}", remedy="a preset is a TOML file") from exc
    _refuse_unknown(found.path, raw, Preset, hidden=("name",))
    for table, kind in _TABLES.items():
        if isinstance(raw.get(table), dict):
            _refuse_unknown(found.path, raw[table], kind, prefix=f"{table}.")
    try:
        preset = msgspec.convert({"name": found.name, **raw}, Preset)
    except msgspec.ValidationError as exc:
        raise InputError(f"{found.path}: {exc}", remedy="see docs/data.md for what each key may hold") from exc
    _check(found.path, preset)
    return preset


def preset_names(content_dir: Path | None = None) -> tuple[str, ...]:
    """The names of all presets that can be found."""
    return tuple(sorted(content.names("calibration", content_dir=content_dir)))


def _refuse_unknown(
    path: Path, table: dict[str, Any], kind: type, *, prefix: str = "", hidden: tuple[str, ...] = ()
) -> None:
    known = [f.name for f in dataclasses.fields(kind) if f.name not in hidden]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix + near[0]!r}? " if near else ""
            raise InputError(f"{path}: unknown key {prefix + key!r}", remedy=f"{hint}known: {', '.join(known)}")


def _check(path: Path, preset: Preset) -> None:
    for key, entries in (("mean", preset.values.mean), ("std", preset.values.std)):
        if len(entries) not in (1, preset.channels):
            raise InputError(
                f"{path}: values.{key} has {len(entries)} entries, but color {preset.color!r} has {preset.channels}",
                remedy=f"give 1 or {preset.channels}",
            )
    for fault, true in {**_value_faults(preset.values), **_resize_faults(preset.resize)}.items():
        if true:
            raise InputError(f"{path}: {fault}", remedy="see docs/data.md for what each key may hold")
    if preset.detection is not None:
        _check_detection(path, preset.detection)


def _value_faults(values: Values) -> dict[str, bool]:
    numbers = (*values.range, *values.mean, *values.std, values.array_white)
    return {
        "values must be finite numbers": not all(math.isfinite(number) for number in numbers),
        "values.std must be above 0": min(values.std) <= 0,
        "values.range must go from a smaller to a larger number": values.range[0] >= values.range[1],
        "values.array_white must be above 0": values.array_white <= 0,
    }


def _resize_faults(resize: Resize) -> dict[str, bool]:
    side, fraction = resize.shorter_side, resize.crop_fraction
    return {
        "resize.pad_value must be 0-255": not 0 <= resize.pad_value <= 255,
        "resize.shorter_side must be above 0": side is not None and side < 1,
        "resize.crop_fraction must be above 0 and at most 1": fraction is not None and not 0 < fraction <= 1,
        "give resize.shorter_side or resize.crop_fraction, not both": side is not None and fraction is not None,
        "resize.shorter_side and resize.crop_fraction belong to mode 'shorter-side'": resize.mode != "shorter-side"
        and (side is not None or fraction is not None),
    }


def _check_detection(path: Path, detection: Detection) -> None:
    faults = {
        "detection.score_threshold must be 0-1": not 0 <= detection.score_threshold <= 1,
        "detection.iou_threshold must be above 0 and at most 1": not 0 < detection.iou_threshold <= 1,
        "detection.max_detections must be above 0": detection.max_detections < 1,
        "detection.background must not be negative": detection.background is not None and detection.background < 0,
        "detection.boxes and detection.scores must be two outputs": detection.boxes == detection.scores,
    }
    for fault, true in faults.items():
        if true:
            raise InputError(f"{path}: {fault}", remedy="see docs/data.md for what each key may hold")


# ------------------------------------------------------------------------------------------- fitting to an input


def resolve(preset: Preset, spec: TensorSpec, *, input_layout: Layout | None = None) -> Preprocessing:
    """The preset's numbers for the input ``spec``. Raises `InputError` where the layout is unclear or does not fit."""
    layout = find_layout(preset, spec, input_layout or preset.layout)
    height, width = _spatial(spec.shape, layout)
    multiplier, offset = _affine(preset)
    return Preprocessing(
        preset=preset.name,
        input=spec.name,
        dtype=spec.dtype,
        layout=layout,
        shape=spec.shape,
        height=height,
        width=width,
        channels=preset.channels,
        color=preset.color,
        resize=preset.resize.mode,
        filter=preset.resize.filter,
        shorter_side=_shorter_side(preset, height, width),
        pad_value=preset.resize.pad_value,
        multiplier=multiplier,
        offset=offset,
        array_white=preset.values.array_white,
    )


def find_layout(preset: Preset, spec: TensorSpec, wanted: Layout | None = None) -> Layout:
    """Where the input's channel axis is: read from the position of the 1 or 3 channels, never guessed between two."""
    shape, channels = spec.shape, preset.channels
    if not shape or shape[0] != 1:
        raise InputError(
            f"input {spec.name!r} has shape {shape}: samples are fed one at a time",
            remedy="fix the batch to 1 with --input-shape",
        )
    fits: list[Layout] = []
    if len(shape) == 4:
        fits = [name for name, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] == channels]  # type: ignore[misc]
    elif channels == 1:
        fits = ["nhw"] if len(shape) == 3 else ["flat"] if len(shape) == 2 else []
    if wanted is not None and wanted in fits:
        return wanted
    if wanted is not None or not fits:
        raise InputError(
            f"input {spec.name!r} has shape {shape}, which preset {preset.name!r} ({channels} channel"
            f"{'s' if channels > 1 else ''}, {preset.color}) cannot fill" + (f" as {wanted}" if wanted else ""),
            remedy="choose a preset with as many channels as the input, or give .npy/.npz data without a preset",
        )
    if len(fits) > 1:
        raise InputError(
            f"input {spec.name!r} has shape {shape}: both axis 1 and axis 3 could be the {channels} channels",
            remedy=f'say which with layout = "nchw" or "nhwc" in a copy of the preset {preset.name!r}',
        )
    return fits[0]


def _spatial(shape: tuple[int, ...], layout: Layout) -> tuple[int, int]:
    axes = {"nchw": (2, 3), "nhwc": (1, 2), "nhw": (1, 2)}.get(layout)
    return (shape[axes[0]], shape[axes[1]]) if axes else (1, shape[1])


def _affine(preset: Preset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = preset.values.range
    count = preset.channels
    mean = preset.values.mean * (count if len(preset.values.mean) == 1 else 1)
    std = preset.values.std * (count if len(preset.values.std) == 1 else 1)
    multiplier = tuple((high - low) / (255.0 * s) for s in std)
    offset = tuple((low - m) / s for m, s in zip(mean, std, strict=True))
    return multiplier, offset


def _shorter_side(preset: Preset, height: int, width: int) -> int | None:
    if preset.resize.mode != "shorter-side":
        return None
    side = preset.resize.shorter_side
    if side is None:
        side = round(max(height, width) / (preset.resize.crop_fraction or 1.0))
    if side < max(height, width):
        raise InputError(
            f"preset {preset.name!r} resizes the shorter side to {side}, but the input is {height} x {width}",
            remedy=f"set resize.shorter_side to at least {max(height, width)}, or use resize.crop_fraction",
        )
    return side
