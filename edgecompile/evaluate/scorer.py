"""What every metric can do, and the arithmetic that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgecompile import stats
from edgecompile.types import Accuracy, Arrays, Metric

_RESAMPLES = 1000


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


def bootstrap(statistic: Callable[[npt.NDArray[np.float64]], float], count: int, *, seed: int = 0) -> stats.Interval:
    """A statistic of weighted samples with its percentile bootstrap interval (Efron 1979).

    ``statistic`` takes one weight a sample: all ones for the figure itself, how often each was drawn in a resample.
    """
    generator = np.random.default_rng(seed)
    value = statistic(np.ones(count))
    drawn = [
        statistic(np.bincount(generator.integers(0, count, count), minlength=count).astype(np.float64))
        for _ in range(_RESAMPLES if count > 1 else 1)
    ]
    finite = [figure for figure in drawn if np.isfinite(figure)] or [value]
    low, high = np.percentile(finite, [2.5, 97.5])
    return stats.Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))
