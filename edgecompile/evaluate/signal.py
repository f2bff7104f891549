"""SQNR: how loud the original's outputs are against the file's errors, for outputs that no other metric reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompile.errors import EdgecompileError, InputError
from edgecompile.evaluate.scorer import interval, resampled
from edgecompile.types import Accuracy, Arrays

#: What is reported for outputs without any error, and (negative) for outputs that are not numbers.
CAP_DB = 200.0
#: All outputs of a part are kept in memory, so the part is bounded.
MAX_SAMPLES = 64
MAX_BYTES = 256 * 2**20


def sample_limit(outputs: Arrays) -> int:
    """On how many samples the outputs are compared."""
    size = sum(array.nbytes for array in outputs.values())
    return max(4, min(MAX_SAMPLES, MAX_BYTES // max(1, size)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sqnr:
    """Signal-to-quantization-noise ratio in dB over all floating-point outputs.

    For each output the squared errors of all samples are divided by the squared signal; the mean of these ratios over
    the outputs is the noise. So each output counts the same whatever its size and unit, and a bad one is not hidden by
    good ones. Outputs that are zero throughout the original have no signal: an error there counts as large as a signal.
    """

    metric: Literal["SQNR"] = "SQNR"

    def keep(self, outputs: Arrays, index: int) -> dict[str, npt.NDArray[Any]]:
        floats = {name: np.array(array) for name, array in outputs.items() if array.dtype.kind == "f"}
        if not floats:
            types = {name: str(array.dtype) for name, array in outputs.items()}
            raise InputError(f"no output to compare: SQNR needs floating-point outputs, found {types}")
        return floats

    def compare(self, kept: Sequence[Any], original: Sequence[Any]) -> Accuracy:
        powers = np.array([_powers(file, reference) for file, reference in zip(kept, original, strict=True)])
        drawn = resampled([lambda weights: _decibels(powers, weights)], len(powers))
        value = interval(_decibels(powers, np.ones(len(powers))), drawn[:, 0])
        return Accuracy(
            metric=self.metric,
            value=value.value,
            ci_low=value.low,
            ci_high=value.high,
            samples=len(powers),
        )

    def refuse(self, own: Accuracy, kept: Sequence[Any]) -> None:
        for outputs in kept:
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise InputError(
                        f"the original's output {name!r} has values that are not finite",
                        remedy="check the weights, and that --preset is the preprocessing the model was trained with",
                    )


def _powers(file: Arrays, original: Arrays) -> list[tuple[float, float]]:
    """(Squared error, squared signal), one pair an output, in the original's order."""
    pairs = []
    for name, expected in original.items():
        found = file.get(name)
        if found is None or found.shape != expected.shape:
            what = "is missing" if found is None else f"has shape {found.shape} instead of {expected.shape}"
            raise EdgecompileError(f"output {name!r} of the file {what}")
        signal = expected.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # not finite is infinitely wrong, below
            error = float(np.square(found.astype(np.float64) - signal).sum())
        pairs.append((error if math.isfinite(error) else math.inf, float(np.square(signal).sum())))
    return pairs


def _decibels(powers: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    drawn = powers[weights > 0]
    noise, signal = (drawn * weights[weights > 0, None, None]).sum(axis=0).T
    if not (np.isfinite(noise).all() and np.isfinite(signal).all()):
        return -CAP_DB
    relative = float(np.mean(noise / np.where(signal > 0, signal, np.where(noise > 0, noise, 1.0))))
    return CAP_DB if relative == 0 else float(np.clip(-10 * math.log10(relative), -CAP_DB, CAP_DB))
