"""Intervals: every figure that is reported carries one, and all of them are computed here.

All intervals are two-sided at 95 %. Random numbers are seeded, so the same data gives the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_Z95 = 1.959963984540054
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, total: int) -> Interval:
    """A proportion in [0, 1] with Wilson's score interval (Wilson 1927), which holds near 0 and 1 and for small n.

    Raises ``ValueError`` when ``total`` is not positive.
    """
    if total <= 0:
        raise ValueError("a proportion needs at least one sample")
    p = successes / total
    denominator = 1 + _Z95**2 / total
    centre = (p + _Z95**2 / (2 * total)) / denominator
    half = _Z95 * ((p * (1 - p) / total + _Z95**2 / (4 * total**2)) ** 0.5) / denominator
    return Interval(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


def _block_resample(count: int, block: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of one moving-block resample: runs of ``block`` neighbours, so that drift stays in the resample."""
    import numpy as np

    blocks = -(-count // block)
    starts = generator.integers(0, count - block + 1, size=blocks)
    return (starts[:, None] + np.arange(block)[None, :]).ravel()[:count]


def percentile(values: Sequence[float] | npt.NDArray[np.float64], q: float, *, seed: int = 0) -> Interval:
    """The ``q``-th percentile of a series of latencies with a moving-block bootstrap interval (Künsch 1989).

    Neighbouring latencies are correlated (a busy machine is busy for a while): resampling single runs would give
    intervals that are too narrow. Blocks hold ``n ** (1/3)`` neighbours. Values in time order, any unit.
    """
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a percentile needs at least one value")
    generator = np.random.default_rng(seed)
    block = max(1, round(data.size ** (1 / 3)))
    resamples = [np.percentile(data[_block_resample(data.size, block, generator)], q) for _ in range(_RESAMPLES)]
    low, high = np.percentile(resamples, [2.5, 97.5])
    point = float(np.percentile(data, q))
    return Interval(value=point, low=min(point, float(low)), high=max(point, float(high)))


def percentile_ratio(
    numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]], q: float, *, seed: int = 0
) -> Interval:
    """The ratio of two percentiles measured in interleaved rounds, with a bootstrap over whole rounds.

    ``numerator[k]`` and ``denominator[k]`` hold the latencies of round ``k``. Rounds are resampled as pairs, so what
    slowed both in a round cancels. Raises ``ValueError`` when the numbers of rounds differ or are zero.
    """
    import numpy as np

    if len(numerator) != len(denominator) or not numerator:
        raise ValueError("a ratio needs the same positive number of rounds on both sides")
    generator = np.random.default_rng(seed)
    top = [np.asarray(r, dtype=np.float64) for r in numerator]
    bottom = [np.asarray(r, dtype=np.float64) for r in denominator]

    def ratio(indices: Sequence[int] | npt.NDArray[np.int64]) -> float:
        a = np.percentile(np.concatenate([top[i] for i in indices]), q)
        b = np.percentile(np.concatenate([bottom[i] for i in indices]), q)
        return float(a / b)

    point = ratio(range(len(top)))
    resamples = [ratio(generator.integers(0, len(top), size=len(top))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Interval(value=point, low=min(point, float(low)), high=max(point, float(high)))


def mean(values: Sequence[float] | npt.NDArray[np.float64], *, seed: int = 0) -> Interval:
    """The mean with a bootstrap interval over samples (for paired differences: give the differences)."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("a mean needs at least one value")
    generator = np.random.default_rng(seed)
    resamples = np.array([data[generator.integers(0, data.size, data.size)].mean() for _ in range(_RESAMPLES)])
    low, high = np.percentile(resamples, [2.5, 97.5])
    return Interval(value=float(data.mean()), low=float(low), high=float(high))
