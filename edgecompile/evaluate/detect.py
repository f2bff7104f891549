"""mAP: COCO's average precision, the mean over IoU 0.50 to 0.95 and over the classes (Lin et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import Boxes, Detection, Samples
from edgecompile.errors import InputError
from edgecompile.evaluate import boxes
from edgecompile.evaluate.boxes import Floats
from edgecompile.evaluate.scorer import difference, nothing_found
from edgecompile.types import Accuracy, Arrays

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MISS, _HIT, _IGNORED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """One image's boxes against the true ones: ``status`` (10, D) says miss, hit or ignored at each IoU threshold."""

    scores: Floats
    classes: npt.NDArray[np.int64]
    status: npt.NDArray[np.int8]


def match(found: boxes.Found, truth: Boxes) -> Matches:
    """COCO's matching: best scores first, each to the free true box of its class with the largest overlap.

    What is left over is ignored where it lies in a crowd, and a miss elsewhere.
    """
    status = np.zeros((len(IOU_THRESHOLDS), len(found.scores)), dtype=np.int8)
    for label in np.unique(found.classes):
        mine, theirs = np.flatnonzero(found.classes == label), np.flatnonzero(truth.classes == label)
        crowd = truth.crowd[theirs]
        overlap = boxes.iou(found.xyxy[mine], truth.xyxy[theirs], crowd=crowd)
        for level, threshold in enumerate(IOU_THRESHOLDS):
            status[level, mine] = _match_class(overlap, crowd, float(threshold))
    return Matches(scores=found.scores, classes=found.classes, status=status)


def _match_class(overlap: Floats, crowd: npt.NDArray[np.bool_], threshold: float) -> npt.NDArray[np.int8]:
    status = np.zeros(len(overlap), dtype=np.int8)
    free = ~crowd
    for index, row in enumerate(overlap):
        fits = free & (row >= threshold)
        if fits.any():
            status[index] = _HIT
            free[np.argmax(np.where(fits, row, -1.0))] = False
        elif (crowd & (row >= threshold)).any():
            status[index] = _IGNORED
    return status


class _Precision:
    """All matches of a part, sorted once, so that each resample only weighs them."""

    def __init__(self, kept: Sequence[Matches], positives: npt.NDArray[np.float64]) -> None:
        image = np.repeat(np.arange(len(kept)), [len(m.scores) for m in kept])
        scores = np.concatenate([m.scores for m in kept])
        classes = np.concatenate([m.classes for m in kept])
        status = np.concatenate([m.status for m in kept], axis=1)
        self.positives = positives
        self.by_class = []
        for label in range(positives.shape[1]):
            chosen = np.flatnonzero(classes == label)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
            self.by_class.append((image[chosen], status[:, chosen]))

    def mean(self, weights: Floats) -> float:
        """mAP in points, each image counted as often as its weight says; classes without true boxes do not count."""
        totals = weights @ self.positives
        found = [
            average_precision(weights[image], status, total)
            for (image, status), total in zip(self.by_class, totals, strict=True)
            if total > 0
        ]
        return 100 * float(np.mean(found)) if found else float("nan")


def average_precision(weights: Floats, status: npt.NDArray[np.int8], positives: float) -> float:
    """One class's precision, interpolated at 101 recalls, mean over the thresholds; boxes come best first."""
    hits = np.cumsum((status == _HIT) * weights, axis=1)
    misses = np.cumsum((status == _MISS) * weights, axis=1)
    total = hits + misses
    precision = np.divide(hits, total, out=np.zeros_like(total), where=total > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([precision, np.zeros((len(precision), 1))], axis=1)
    places = [np.searchsorted(row / positives, _RECALLS) for row in hits]
    return float(np.mean([line[place] for line, place in zip(padded, places, strict=True)]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanAveragePrecision:
    """mAP over samples with true boxes. ``classes`` is the number of classes without the background."""

    samples: Samples = field(repr=False)
    detection: Detection
    size: tuple[int, int]
    classes: int
    metric: Literal["mAP"] = "mAP"

    def __post_init__(self) -> None:
        highest = max((int(t.classes.max()) for t in self._truths() if len(t.classes)), default=None)
        if highest is None:
            raise InputError("the annotations have no boxes on these samples", remedy="give more data, or --eval")
        if highest >= self.classes:
            raise InputError(
                f"the annotations name class {highest}, but the model has {self.classes} (0-{self.classes - 1})",
                remedy="give --labels FILE with exactly the model's classes, one a line, in its output order,"
                " and check detection.background",
            )

    def _truths(self) -> list[Boxes]:
        return [t for i in range(len(self.samples)) if isinstance(t := self.samples.truth(i), Boxes)]

    def keep(self, outputs: Arrays, index: int) -> Matches:
        truth = self.samples.truth(index)
        assert isinstance(truth, Boxes)
        return match(boxes.decode(outputs, self.detection, self.size), truth)

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        positives = np.array([np.bincount(t.classes[~t.crowd], minlength=self.classes) for t in self._truths()])
        before = _Precision(original, positives.astype(np.float64))
        now = before if kept is original else _Precision(kept, positives.astype(np.float64))
        return difference(self.metric, now.mean, before.mean, len(kept), same=kept is original)

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        nothing_found(own, "the box format, activation and background of the table [detection]")
