"""mIoU: the mean over the classes of intersection over union, for outputs with one score a class and pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import Samples
from edgecompile.errors import InputError
from edgecompile.evaluate.boxes import Floats
from edgecompile.evaluate.scorer import difference, nothing_found
from edgecompile.types import Accuracy, Arrays


def pixel_scores(outputs: Arrays, size: tuple[int, int]) -> npt.NDArray[Any] | None:
    """A segmenter's scores as (C, H, W): its only floating-point output, (1, C, H, W) or (1, H, W, C) with C >= 2.

    The two spatial sizes are those of the input (height, width) up to one common integer factor, which tells the
    layouts apart; where both fit, the channels come first.
    """
    floats = [array for array in outputs.values() if array.dtype.kind == "f"]
    if len(floats) != 1 or floats[0].ndim != 4 or floats[0].shape[0] != 1:
        return None
    array = floats[0][0]
    for candidate in (array, array.transpose(2, 0, 1)):
        classes, height, width = candidate.shape
        if classes >= 2 and height > 1 and round(size[0] / height) == round(size[1] / width) >= 1:
            return np.asarray(candidate)
    return None


def enlarge(scores: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Bilinear interpolation of (C, h, w) to (C, height, width), pixel centres aligned by half pixels."""
    rows, columns = (_weights(old, new) for old, new in zip(scores.shape[1:], size, strict=True))
    return np.asarray(np.einsum("ih,chw,jw->cij", rows, scores.astype(np.float32), columns, optimize=True))


def _weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old) matrix of linear interpolation."""
    if old == new:
        return np.eye(old, dtype=np.float32)
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.floor(position).astype(np.int64)
    right = np.minimum(left + 1, old - 1)
    matrix = np.zeros((new, old), dtype=np.float32)
    np.add.at(matrix, (np.arange(new), left), 1 - (position - left))
    np.add.at(matrix, (np.arange(new), right), position - left)
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanIou:
    """mIoU at the input's size over all pixels of all samples; classes that occur nowhere do not count."""

    samples: Samples = field(repr=False)
    classes: int
    ignore: int
    metric: Literal["mIoU"] = "mIoU"

    def _mask(self, index: int) -> npt.NDArray[np.int32]:
        mask = self.samples.truth(index)
        assert isinstance(mask, np.ndarray)
        return mask

    def keep(self, outputs: Arrays, index: int) -> Floats:
        """(2, C): pixels of intersection, and of union, for each class."""
        mask = self._mask(index)
        counted = mask != self.ignore
        self._refuse_strange(mask[counted], index)
        size = (mask.shape[0], mask.shape[1])
        scores = pixel_scores(outputs, size)
        assert scores is not None
        chosen = np.argmax(enlarge(scores, size), axis=0)
        if np.isnan(scores).any():
            chosen[:] = -1
        both = np.bincount(mask[counted & (chosen == mask)], minlength=self.classes)
        true = np.bincount(mask[counted], minlength=self.classes)
        said = np.bincount(chosen[counted & (chosen >= 0)], minlength=self.classes)
        return np.asarray(np.stack([both, true + said - both]), dtype=np.float64)

    def _refuse_strange(self, values: npt.NDArray[np.int32], index: int) -> None:
        strange = values[(values < 0) | (values >= self.classes)]
        if strange.size:
            raise InputError(
                f"the mask of {self.samples.names[index]} has class {int(strange[0])}, but the model has"
                f" {self.classes} (0-{self.classes - 1}); {self.ignore} is ignored",
                remedy="masks hold class indices; set segmentation.ignore in the preset to the value to ignore",
            )

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        before, now = np.stack(original), np.stack(kept)
        return difference(
            self.metric, lambda w: _mean_iou(now, w), lambda w: _mean_iou(before, w), len(kept), same=kept is original
        )

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        nothing_found(own, "the class indices in the masks and segmentation.ignore")


def _mean_iou(counts: Floats, weights: Floats) -> float:
    both, either = np.tensordot(weights, counts, axes=1)
    return 100 * float(np.mean(both[either > 0] / either[either > 0])) if (either > 0).any() else float("nan")
