"""Classification: top-1 on labelled samples, agreement with the original on unlabelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompile import stats
from edgecompile.errors import InputError
from edgecompile.types import Accuracy, Arrays

_EXACTLY_ZERO = stats.Interval(value=0.0, low=0.0, high=0.0)


def class_scores(outputs: Arrays) -> npt.NDArray[Any] | None:
    """A classifier's scores: its only floating-point output, of shape (1, C) or (1, C, 1, 1) with C of 2 or more."""
    floats = [array for array in outputs.values() if array.dtype.kind == "f"]
    if len(floats) != 1:
        return None
    shape = floats[0].shape
    if len(shape) < 2 or shape[0] != 1 or shape[1] < 2 or shape[2:] not in ((), (1, 1)):
        return None
    return floats[0].reshape(shape[1])


def _predicted(outputs: Arrays) -> int:
    """The class with the highest score; -1, which is never right, where a score is not a number."""
    scores = class_scores(outputs)
    return -1 if scores is None or np.isnan(scores).any() else int(np.argmax(scores))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopOne:
    """The share of samples whose highest score is at the label. ``classes`` is the number of the model's outputs."""

    labels: npt.NDArray[np.int64] = field(repr=False)
    classes: int
    metric: Literal["top-1"] = "top-1"

    def __post_init__(self) -> None:
        if (highest := int(self.labels.max())) >= self.classes:
            raise InputError(
                f"the labels name class {highest}, but the model has {self.classes} outputs (0-{self.classes - 1})",
                remedy="give --labels FILE with exactly the model's classes, one a line, in its output order",
            )

    def keep(self, outputs: Arrays, index: int) -> int:
        return _predicted(outputs)

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        right, before = np.asarray(kept) == self.labels, np.asarray(original) == self.labels
        value = stats.wilson(int(right.sum()), len(self.labels))
        drop = _EXACTLY_ZERO if kept is original else paired(100.0 * (before.astype(np.float64) - right))
        return Accuracy(
            metric=self.metric,
            value=100 * value.value,
            ci_low=100 * value.low,
            ci_high=100 * value.high,
            samples=len(self.labels),
            drop=drop.value,
            drop_ci_low=drop.low,
            drop_ci_high=drop.high,
        )

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        """Wrong labels or wrong preprocessing make a good model guess: say so before anything is built on it.

        "Near chance" is a value below five times chance, and below a tenth of the way from chance to perfect, of which
        the interval excludes a useful model (half of the way). A few samples exclude little and are let through. A
        model that would be right far more often with the classes in another order is refused as well: a class whose
        folder is missing moves all those behind it.
        """
        chance = 1 / self.classes
        bound, useful = min(5 * chance, chance + 0.1 * (1 - chance)), chance + 0.5 * (1 - chance)
        reordered = _best_order(np.asarray(kept), self.labels)
        enough = len(self.labels) >= _ENOUGH * len(np.unique(self.labels))
        moved = enough and reordered >= useful and own.ci_high / 100 < _MOVED * reordered
        if not moved and (own.value / 100 > bound or own.ci_high / 100 >= useful):
            return
        hint = f"; with the classes in another order it would be {100 * reordered:.1f} %" if reordered >= useful else ""
        raise InputError(
            f"the original is right on {own.value:.1f} % of {own.samples} labelled samples ({self.classes} classes:"
            f" guessing gives {100 * chance:.1f} %){hint}",
            remedy="give --labels FILE with the class order of the model's outputs, and check that --preset is the"
            " preprocessing that the model was trained with",
        )


#: Samples a class that tell another order from chance, and the share of what it would give that is suspicious.
_ENOUGH, _MOVED = 10, 0.7


def _best_order(predictions: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    """The share that would be right in another class order: classes paired with outputs, the commonest pair first."""
    pairs, counts = np.unique(np.stack([labels, predictions]), axis=1, return_counts=True)
    right, used_labels, used_outputs = 0, set(), set()
    for position in np.argsort(-counts, kind="stable"):
        label, output = pairs[:, position]
        if label not in used_labels and output not in used_outputs:
            used_labels.add(label)
            used_outputs.add(output)
            right += int(counts[position])
    return right / len(predictions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """The share of samples on which the file chooses the original's class; the drop is what is missing to 100."""

    metric: Literal["agreement"] = "agreement"

    def keep(self, outputs: Arrays, index: int) -> int:
        return _predicted(outputs)

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        same = (np.asarray(kept) == np.asarray(original)) & (np.asarray(kept) >= 0)
        value = stats.wilson(int(same.sum()), len(same))
        low, high = (1.0, 1.0) if kept is original and same.all() else (value.low, value.high)
        return Accuracy(
            metric=self.metric,
            value=100 * value.value,
            ci_low=100 * low,
            ci_high=100 * high,
            samples=len(same),
            drop=100 * (1 - value.value),
            drop_ci_low=100 * (1 - high),
            drop_ci_high=100 * (1 - low),
        )

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        if own.value < 100:
            raise InputError(
                f"the original's outputs are not numbers (NaN) on {100 - own.value:.1f} % of the samples",
                remedy="check the weights, and that --preset is the preprocessing that the model was trained with",
            )


def paired(differences: npt.NDArray[np.float64]) -> stats.Interval:
    """The mean of paired differences in points with its bootstrap interval; where none differs, never of no width.

    A bootstrap of zeros alone gives an interval of width zero, as if n samples could prove that no sample ever
    differs. Wilson's upper end for 0 of n is used on both sides instead.
    """
    if differences.any():
        return stats.mean(differences)
    bound = 100 * stats.wilson(0, len(differences)).high
    return stats.Interval(value=0.0, low=-bound, high=bound)
