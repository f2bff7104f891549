"""From an image file to an input array: decoding, geometry and arithmetic, exactly as ``docs/data.md`` writes it."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.calibration.preset import Filter, Preprocessing
from edgecompile.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))

#: Larger pictures are refused before they are decoded: a small file can ask for any amount of memory.
MAX_PIXELS = 100_000_000


class ImageFault(Exception):
    """A file that cannot be read as an image; the caller skips and counts it."""


@contextlib.contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """Silences Pillow about odd EXIF blocks and palettes, which do not concern the pixels.

    The filters are the interpreter's, so this goes around threads that decode, never inside them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: Path, *, gray: bool) -> Image:
    """An upright 8-bit image, mode ``RGB`` or ``L``; alpha is dropped, as training loaders do.

    Raises `ImageFault` for what is broken, truncated or larger than `MAX_PIXELS`.
    """
    with _opened(path) as image:
        from PIL import ImageOps

        ImageOps.exif_transpose(image, in_place=True)
        return _eight_bit(image, gray=gray)


def decode_mask(path: Path) -> npt.NDArray[np.int32]:
    """A mask's class indices, (height, width): the stored numbers, never the colours of a palette.

    Raises `ImageFault` for what is broken, too large, or has several channels.
    """
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise ImageFault(f"a mask holds one class index a pixel, but this one is {image.mode}")
        return np.asarray(image).astype(np.int32)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The loaded image, with every way in which it can be broken turned into an `ImageFault`."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise MissingExtraError("PIL", "build") from exc
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageFault(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            image.load()
            yield image
    except UnidentifiedImageError as exc:  # its words repeat the path, which the message names already
        raise ImageFault("not an image") from exc
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as exc:
        raise ImageFault(str(exc) or type(exc).__name__) from exc
    except (TypeError, KeyError, IndexError, ArithmeticError, AttributeError, MemoryError) as exc:
        # Pillow's parsers raise these on broken headers.
        raise ImageFault(f"{type(exc).__name__}: {exc}") from exc


def _eight_bit(image: Image, *, gray: bool) -> Image:
    # Pillow opens 16-bit files as "I" or "I;16", depending on its version and the format.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        from PIL import Image as factory

        # Pillow would clip 16-bit gray at 255; keep the upper eight bits instead.
        image = factory.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageFault(f"pixel format {image.mode!r} has no defined white")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    return image.convert("L" if gray else "RGB")


def pixels(image: Image, prep: Preprocessing) -> npt.NDArray[np.uint8]:
    """The image resized and cropped to the input: ``uint8`` of shape (height, width, channels), RGB or gray."""
    resized = _fit(image, prep, prep.filter, prep.pad_value)
    array = np.asarray(resized, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def fit_mask(mask: npt.NDArray[np.int32], prep: Preprocessing, ignore: int) -> npt.NDArray[np.int32]:
    """The mask at the input's size, by nearest neighbour; what the image has as padding gets ``ignore``."""
    from PIL import Image as factory

    return np.asarray(_fit(factory.fromarray(mask), prep, "nearest", ignore), dtype=np.int32)


def _fit(image: Image, prep: Preprocessing, resample: Filter, pad: int) -> Image:
    (width, height), (left, top) = place(image.size, prep)
    scaled = _scaled(image, (width, height), resample)
    if prep.resize == "exact":
        return scaled
    if prep.resize == "shorter-side":
        return scaled.crop((-left, -top, prep.width - left, prep.height - top))
    from PIL import Image as factory

    canvas = factory.new(
        image.mode, (prep.width, prep.height), pad if image.mode == "I" else (pad,) * len(image.getbands())
    )
    canvas.paste(scaled, (left, top))
    return canvas


def place(size: tuple[int, int], prep: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where an image of (width, height) lies on the input: its scaled (width, height), and its (left, top)."""
    box = (prep.width, prep.height)
    if prep.resize == "exact":
        return box, (0, 0)
    if prep.resize == "shorter-side":
        width, height = shorter_side_size(size, prep.shorter_side or min(box))
        return (width, height), (-round((width - prep.width) / 2), -round((height - prep.height) / 2))
    width, height = letterbox_size(size, box)
    return (width, height), ((prep.width - width) // 2, (prep.height - height) // 2)


def shorter_side_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) with the shorter side exactly ``side`` and the longer one rounded down."""
    width, height = size
    return (side, side * height // width) if width <= height else (side * width // height, side)


def letterbox_size(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the largest copy that fits into ``box``, each side rounded and at least 1."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _scaled(image: Image, size: tuple[int, int], resample: Filter) -> Image:
    from PIL import Image as factory

    return image if image.size == size else image.resize(size, factory.Resampling[resample.upper()])


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
