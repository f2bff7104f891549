"""Sources that decode files on demand: plain images, images with boxes, images with masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import images
from edgecompile.calibration.coco import Entry
from edgecompile.calibration.preset import Preprocessing
from edgecompile.calibration.samples import Boxes
from edgecompile.errors import InputError
from edgecompile.types import Arrays

#: Decoded pixels are kept up to this size, so that each candidate's pass does not decode again.
_CACHE_BYTES = 512 * 2**20


@dataclass(slots=True, kw_only=True)
class ImageSource:
    """Decodes files on demand; pixels (not inputs) are kept in memory up to a limit."""

    prep: Preprocessing
    paths: tuple[Path, ...]
    cache_bytes: int = _CACHE_BYTES
    _cache: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    _cached_bytes: int = 0

    def read(self, index: int) -> Arrays:
        try:
            with images.no_pillow_warnings():
                values = self._pixels(index)
        except images.ImageFault as exc:
            raise InputError(
                f"{self.paths[index]} could be read when the data was checked and cannot now: {exc}",
                remedy="leave the data alone while edgecompile works on it",
            ) from exc
        return {self.prep.input: images.to_input(values, self.prep)}

    def check(self, index: int) -> str | None:
        """Called from several threads, inside one `images.no_pillow_warnings`."""
        try:
            self._pixels(index)
        except images.ImageFault as exc:
            return str(exc)
        return None

    def truth(self, index: int) -> None:
        return None

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image, before it is resized."""
        if index not in self._sizes:
            self._pixels(index)
        return self._sizes[index]

    def _pixels(self, index: int) -> npt.NDArray[np.uint8]:
        if index in self._cache:
            return self._cache[index]
        image = images.decode(self.paths[index], gray=self.prep.color == "gray")
        self._sizes[index] = image.size
        values = images.pixels(image, self.prep)
        if self._cached_bytes + values.nbytes <= self.cache_bytes:
            self._cache[index] = values
            self._cached_bytes += values.nbytes
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSource:
    """Images with boxes; an image of another size than its annotation says is unusable."""

    images: ImageSource
    entries: tuple[Entry, ...]

    def read(self, index: int) -> Arrays:
        return self.images.read(index)

    def check(self, index: int) -> str | None:
        fault = self.images.check(index)
        entry = self.entries[index]
        if fault is None and self.images.size(index) != (entry.width, entry.height):
            width, height = self.images.size(index)
            fault = f"it is {width} x {height}, but annotated as {entry.width} x {entry.height}"
        return fault

    def truth(self, index: int) -> Boxes:
        entry = self.entries[index]
        (width, height), (left, top) = images.place((entry.width, entry.height), self.images.prep)
        scale = np.array([width / entry.width, height / entry.height])
        xywh = np.array(entry.xywh, dtype=np.float64).reshape(-1, 4)
        corners = np.stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1) * scale + (left, top)
        return Boxes(
            xyxy=corners.reshape(-1, 4),
            classes=np.array(entry.classes, dtype=np.int64),
            crowd=np.array(entry.crowd, dtype=np.bool_),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """Images with masks of class indices, of the image's own size."""

    images: ImageSource
    masks: tuple[Path, ...]
    ignore: int

    def read(self, index: int) -> Arrays:
        return self.images.read(index)

    def check(self, index: int) -> str | None:
        if (fault := self.images.check(index)) is not None:
            return fault
        try:
            mask = images.decode_mask(self.masks[index])
        except images.ImageFault as exc:
            return f"its mask: {exc}"
        if mask.shape[::-1] != self.images.size(index):
            return f"its mask is {mask.shape[1]} x {mask.shape[0]}, the image {self.images.size(index)}"
        return None

    def truth(self, index: int) -> npt.NDArray[np.int32]:
        try:
            mask = images.decode_mask(self.masks[index])
        except images.ImageFault as exc:
            raise InputError(f"{self.masks[index]} cannot be read: {exc}", remedy="repair or remove it") from exc
        return images.fit_mask(mask, self.images.prep, self.ignore)
