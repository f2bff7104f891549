"""The regressions behind a learned table, on numpy alone.

A family's time is a sum of work and bytes with rates that are not negative; how far a point is from that sum, as a
logarithm, is a Gaussian process over where the point lies (Rasmussen and Williams 2006, chapters 2 and 5). Near
measured points an estimate so follows them; far from all it falls back to the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Where scales start from, and how far they are believed to be from there (standard deviation of the logarithm).
_BELIEF = 0.7
_AMPLITUDE, _NOISE = 0.3, 0.05
_STEPS = (0.5, 0.75, 1.35, 2.0)
_SWEEPS = 6
#: A point whose left-out error is so many standard deviations was disturbed, and gets this much more noise.
_OUTLIER, _DOUBT = 3.5, 30.0


def nonnegative(columns: Array, values: Array) -> Array:
    """Coefficients, none below 0, with the least sum of squares (Lawson and Hanson 1974)."""
    count = columns.shape[1]
    found, free = np.zeros(count), np.zeros(count, bool)
    scale = np.sqrt((columns**2).sum(0)) + 1e-300
    scaled = columns / scale
    for _ in range(3 * count):
        gradient = scaled.T @ (values - scaled @ found)
        if free.all() or gradient[~free].max() < 1e-10:
            break
        free[int(np.argmax(np.where(free, -np.inf, gradient)))] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(scaled[:, free], values, rcond=None)[0]
            low = free & (trial <= 0)
            if not low.any():
                found = trial
                break
            steps = found[low] / (found[low] - trial[low] + 1e-300)
            found = found + steps.min() * (trial - found)
            free &= found > 1e-14
    result: Array = found / scale
    return result


def relative(columns: Array, times: Array, sweeps: int = 12) -> Array:
    """Coefficients, none below 0, whose sums are near ``times`` by ratio; single outliers count less (Huber 1964)."""
    weights = np.ones(len(times))
    found = np.zeros(columns.shape[1])
    for _ in range(sweeps):
        root = np.sqrt(weights)
        found = nonnegative(columns / times[:, None] * root[:, None], root)
        error = np.abs(columns @ found / times - 1)
        limit = max(1.5 * float(np.median(error)), 1e-3)
        weights = np.minimum(1.0, limit / np.maximum(error, 1e-12))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A Gaussian process of mean 0; ``scales`` belong to the coordinates of ``places``."""

    places: Array
    scales: Array
    amplitude: float
    alpha: Array

    def at(self, places: Array) -> Array:
        """What it expects at other places."""
        return _kernel(places, self.places, self.scales, self.amplitude) @ self.alpha


def _kernel(a: Array, b: Array, scales: Array, amplitude: float) -> Array:
    squares = (((a[:, None, :] - b[None, :, :]) / scales) ** 2).sum(-1)
    kernel: Array = amplitude**2 * np.exp(-0.5 * squares)
    return kernel


def process(
    places: Array, values: Array, scales: Sequence[float], amplitude: float, noise: float, doubt: Array | None = None
) -> Process:
    """The process through ``values`` with given scales."""
    covariance = _covariance(places, np.array(scales), amplitude, noise, doubt)
    return Process(
        places=places, scales=np.array(scales), amplitude=amplitude, alpha=np.linalg.solve(covariance, values)
    )


def _covariance(places: Array, scales: Array, amplitude: float, noise: float, doubt: Array | None) -> Array:
    own = noise**2 * (np.ones(len(places)) if doubt is None else doubt)
    return _kernel(places, places, scales, amplitude) + np.diag(own + 1e-8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What was learned of a process; ``doubt`` multiplies the noise of each point, ``left_out`` is each point's error
    where it is left out, as a logarithm."""

    scales: Array
    amplitude: float
    noise: float
    doubt: Array
    left_out: Array


def learn_scales(places: Array, values: Array, start: Sequence[float]) -> Scales:
    """Scales, amplitude and noise under which ``values`` are likely, by coordinates in turn."""
    first = np.log(np.array([*start, _AMPLITUDE, _NOISE]))
    doubt = np.ones(len(values))
    best = _climb(places, values, first, first, doubt)
    left = _left_out(places, values, best, doubt)
    spread = 1.4826 * float(np.median(np.abs(left))) + 1e-6
    doubt = np.where(np.abs(left) > _OUTLIER * spread, _DOUBT, 1.0)
    best = _climb(places, values, best, first, doubt)
    *scales, amplitude, noise = np.exp(best)
    return Scales(
        scales=np.array(scales), amplitude=float(amplitude), noise=float(noise), doubt=doubt,
        left_out=_left_out(places, values, best, doubt),
    )  # fmt: skip


def _climb(places: Array, values: Array, start: Array, first: Array, doubt: Array) -> Array:
    best, score = start.copy(), _likelihood(places, values, start, first, doubt)
    for _ in range(_SWEEPS):
        before = score
        for i in range(len(best)):
            for step in _STEPS:
                trial = best.copy()
                trial[i] += np.log(step)
                found = _likelihood(places, values, trial, first, doubt)
                if found > score:
                    best, score = trial, found
        if score - before < 0.1:
            break
    return best


def _likelihood(places: Array, values: Array, logs: Array, first: Array, doubt: Array) -> float:
    *scales, amplitude, noise = np.exp(logs)
    covariance = _covariance(places, np.array(scales), float(amplitude), float(noise), doubt)
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return -np.inf
    white = np.linalg.solve(lower, values)
    belief = float(((logs - first) ** 2).sum()) / (2 * _BELIEF**2)
    return float(-0.5 * white @ white - np.log(np.diag(lower)).sum()) - belief


def _left_out(places: Array, values: Array, logs: Array, doubt: Array) -> Array:
    """Each value less what the others say of it (Rasmussen and Williams 2006, equation 5.12)."""
    *scales, amplitude, noise = np.exp(logs)
    inverse = np.linalg.inv(_covariance(places, np.array(scales), float(amplitude), float(noise), doubt))
    left: Array = (inverse @ values) / np.diag(inverse)
    return left
