"""What every metric can do, and the arithmetic that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile import stats
from edgecompile.errors import InputError
from edgecompile.types import Accuracy, Arrays, Metric

_RESAMPLES = 300

#: A figure of weighted samples: all weights are one for the figure itself, else how often a resample drew each.
Statistic: TypeAlias = Callable[["npt.NDArray[np.float64]"], float]


class Scorer(Protocol):
    """One metric on one part of the data. ``keep`` turns a sample's outputs into what the metric needs of them."""

    @property
    def metric(self) -> Metric: ...

    def keep(self, outputs: Arrays, index: int) -> Any:
        """What is kept of the outputs on sample ``index``."""

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        """The accuracy of what was kept, against the original's; the very same object means the original itself."""

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        """Raises `InputError` where the original itself does so badly that nothing can be judged by it."""


def resampled(statistics: Sequence[Statistic], count: int, *, seed: int = 0) -> npt.NDArray[np.float64]:
    """(resamples, statistics): the figures of each bootstrap resample of ``count`` samples (Efron 1979)."""
    generator = np.random.default_rng(seed)
    drawn = (np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(_RESAMPLES))
    return np.array([[statistic(weights.astype(np.float64)) for statistic in statistics] for weights in drawn])


def interval(value: float, resamples: npt.NDArray[np.float64]) -> stats.Interval:
    """The percentile interval; resamples in which the figure is not defined do not count."""
    finite = resamples[np.isfinite(resamples)]
    low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (value, value)
    return stats.Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def difference(metric: Metric, now: Statistic, before: Statistic, count: int, *, same: bool) -> Accuracy:
    """A figure of all samples together and its drop, both by bootstrap over samples (the drop's are paired).

    ``same`` says that a file is compared with itself. Else, where the figure and its resamples do not differ at all,
    the drop's interval is that of 0 differing samples (Wilson): samples alike cannot prove that no other differs.
    """
    ones = np.ones(count)
    value, drawn = now(ones), resampled((now,) if same else (now, before), count)
    drop = stats.Interval(value=0.0, low=0.0, high=0.0)
    if not same:
        drop = interval(before(ones) - value, drawn[:, 1] - drawn[:, 0])
    if not same and drop.low == drop.high:
        bound = 100 * stats.wilson(0, count).high
        drop = stats.Interval(value=drop.value, low=drop.value - bound, high=drop.value + bound)
    figure = interval(value, drawn[:, 0])
    return Accuracy(
        metric=metric,
        value=figure.value,
        ci_low=figure.low,
        ci_high=figure.high,
        samples=count,
        drop=drop.value,
        drop_ci_low=drop.low,
        drop_ci_high=drop.high,
    )


def nothing_found(own: Accuracy, suspects: str) -> None:
    """Raises `InputError` where the original is right about next to nothing."""
    if not math.isfinite(own.value) or (own.value < 1 and own.ci_high < 5):
        raise InputError(
            f"the original's {own.metric} is {own.value:.2f} % on {own.samples} samples",
            remedy=f"check the class order (--labels), {suspects}, and that the preset is what the model was"
            " trained with",
        )
