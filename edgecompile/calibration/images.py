"""From an image file to an input array: decoding, geometry and arithmetic, exactly as ``docs/data.md`` writes it."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.calibration.preset import Preprocessing
from edgecompile.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))

#: Larger pictures are refused before they are decoded: a small file can ask for any amount of memory.
MAX_PIXELS = 100_000_000


class ImageFault(Exception):
    """A file that cannot be read as an image; the caller skips and counts it."""


def decode(path: Path, *, gray: bool) -> Image:
    """An upright 8-bit image, mode ``RGB`` or ``L``; alpha is dropped, as training loaders do.

    Raises `ImageFault` for what is broken, truncated or larger than `MAX_PIXELS`.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise MissingExtraError("PIL", "build") from exc
    try:
        with warnings.catch_warnings():
            # Warnings about odd EXIF blocks or palettes do not concern the pixels; the size limit is our own.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageFault(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _eight_bit(image, gray=gray)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as exc:
        raise ImageFault(str(exc) or type(exc).__name__) from exc
    except (TypeError, KeyError, IndexError, ArithmeticError, AttributeError, MemoryError) as exc:
        # Pillow's parsers raise these on broken headers.
        raise ImageFault(f"{type(exc).__name__}: {exc}") from exc


def _eight_bit(image: Image, *, gray: bool) -> Image:
    if image.mode.startswith("I;16"):
        from PIL import Image as factory

        # Pillow would clip 16-bit gray at 255; keep the upper eight bits instead.
        image = factory.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageFault(f"pixel format {image.mode!r} has no defined white")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert("L" if gray else "RGB")


def pixels(image: Image, prep: Preprocessing) -> npt.NDArray[np.uint8]:
    """The image resized and cropped to the input: ``uint8`` of shape (height, width, channels), RGB or gray."""
    resized = _fit(image, prep)
    array = np.asarray(resized, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def _fit(image: Image, prep: Preprocessing) -> Image:
    size = (prep.width, prep.height)
    if prep.resize == "exact":
        return _scaled(image, size, prep)
    if prep.resize == "shorter-side":
        side = prep.shorter_side or min(size)
        scaled = _scaled(image, shorter_side_size(image.size, side), prep)
        left = round((scaled.width - prep.width) / 2)
        top = round((scaled.height - prep.height) / 2)
        return scaled.crop((left, top, left + prep.width, top + prep.height))
    from PIL import Image as factory

    scaled_size = letterbox_size(image.size, size)
    canvas = factory.new(image.mode, size, (prep.pad_value,) * len(image.getbands()))
    canvas.paste(_scaled(image, scaled_size, prep), ((size[0] - scaled_size[0]) // 2, (size[1] - scaled_size[1]) // 2))
    return canvas


def shorter_side_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) with the shorter side exactly ``side`` and the longer one rounded down."""
    width, height = size
    return (side, side * height // width) if width <= height else (side * width // height, side)


def letterbox_size(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the largest copy that fits into ``box``, each side rounded and at least 1."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scaled(image: Image, size: tuple[int, int], prep: Preprocessing) -> Image:
    from PIL import Image as factory

    return image if image.size == size else image.resize(size, factory.Resampling[prep.filter.upper()])


def to_input(values: npt.NDArray[Any], prep: Preprocessing, *, white: float = 255.0) -> npt.NDArray[Any]:
    """(height, width, channels) of raw values -> the input array with its exact shape and type.

    ``x = value * multiplier[c] + offset[c]`` in float32; ``multiplier`` is scaled by ``255 / white`` for raw arrays.
    """
    multiplier = (np.asarray(prep.multiplier, dtype=np.float64) * (255.0 / white)).astype(np.float32)
    offset = np.asarray(prep.offset, dtype=np.float32)
    if prep.color == "bgr":
        values = values[..., ::-1]
    scaled = values.astype(np.float32) * multiplier + offset
    if prep.layout == "nchw":
        scaled = scaled.transpose(2, 0, 1)
    return _as_dtype(np.ascontiguousarray(scaled.reshape(prep.shape)), prep)


def _as_dtype(array: npt.NDArray[np.float32], prep: Preprocessing) -> npt.NDArray[Any]:
    dtype = np.dtype(prep.dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        rounded = np.rint(array)
        if rounded.min() < limits.min or rounded.max() > limits.max:
            raise InputError(
                f"preset {prep.preset!r} gives values outside {dtype}, the type of input {prep.input!r}",
                remedy="choose a preset whose range fits, such as raw-255 for uint8",
            )
        return rounded.astype(dtype)
    return array.astype(dtype, copy=False)
