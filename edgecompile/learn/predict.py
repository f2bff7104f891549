"""What a learned table says of operators and of whole nets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgecompile.learn import features
from edgecompile.learn.features import FAMILIES, Family, Moving, Part, Weighted
from edgecompile.profiles import Corrections, Learned, LearnedFamily

if TYPE_CHECKING:
    from edgecompile.learn.regression import Process
    from edgecompile.tables import OperatorKey

#: The curve of what moves data, where nothing nearer was measured.
_STREAM = "Add of two"
#: Operators that runtimes with a layout of their own often leave it for.
_GATING = frozenset(
    {"Sigmoid", "HardSigmoid", "HardSwish", "SiLU", "Mul by channel", "ReduceMean maps", "GlobalAveragePool"}
)
_BYTES = {"fp32": 4, "fp16": 4, "int8": 1}
#: Weights of so many bytes come from the caches, and of so many from main memory.
_WARM_BYTES, _COLD_BYTES = 4 << 20, 64 << 20
#: What an operator costs at least: a time is positive.
_LEAST_US = 0.05


@dataclass(slots=True, kw_only=True)
class _Model:
    """A family, ready to be asked."""

    coefficients: Sequence[float]
    tile: int
    process: Process
    known: dict[Weighted, float] = field(default_factory=dict)

    @classmethod
    def of(cls, name: Family, family: LearnedFamily, tile: int) -> _Model:
        import numpy as np

        from edgecompile.learn.regression import process

        parts = [features.weighted(name, point[:-1]) for point in family.points]
        sums = np.array([features.basis(part, tile) for part in parts]) @ np.array(family.coefficients_us)
        values = np.log(np.array([point[-1] for point in family.points]) / sums)
        places = np.array([features.place(part) for part in parts])
        made = process(places, values, family.scales, family.amplitude, family.noise)
        return cls(coefficients=family.coefficients_us, tile=tile, process=made)

    def us(self, parts: Sequence[Weighted]) -> list[float]:
        import numpy as np

        new = [part for part in dict.fromkeys(parts) if part not in self.known]
        if new:
            sums = np.array([features.basis(part, self.tile) for part in new]) @ np.array(self.coefficients)
            bend = self.process.at(np.array([features.place(part) for part in new]))
            self.known.update(zip(new, map(float, sums * np.exp(bend)), strict=True))
        return [self.known[part] for part in parts]


class Predictor:
    """Estimates by one learned table."""

    def __init__(self, table: Learned) -> None:
        self.table = table
        found = {name: getattr(table.families, name) for name in FAMILIES}
        self._models = {name: _Model.of(name, one, table.tile) for name, one in found.items() if one is not None}

    def alone_us(self, parts: Sequence[Part]) -> list[float]:
        """Microseconds of each part, measured alone."""
        found: dict[int, float] = {}
        for name in FAMILIES:
            mine = [(i, part) for i, part in enumerate(parts) if isinstance(part, Weighted) and part.family == name]
            if mine:
                found |= dict(zip((i for i, _ in mine), self._family_us(name, [part for _, part in mine]), strict=True))
        found |= {i: self._curve_us(part) for i, part in enumerate(parts) if isinstance(part, Moving)}
        return [max(found[i], _LEAST_US) for i in range(len(parts))]

    def _family_us(self, name: Family, parts: Sequence[Weighted]) -> list[float]:
        if name in self._models:
            return self._models[name].us(parts)
        # Too few points of its own: another family's, which comes nearest.
        others = [other for other in ("conv", "pointwise", "dense", "depthwise") if other in self._models]
        return self._models[others[0]].us(parts)

    def _curve_us(self, part: Moving) -> float:
        curves = self.table.curves
        if features.is_free(part):
            return 0.0
        if part.kind in curves:
            return on_curve(curves[part.kind], part.elements)
        like = [curve for kind, curve in curves.items() if kind.split()[0] == part.plain.split()[0]]
        like = like or [curves[_STREAM]] if _STREAM in curves else like or list(curves.values())
        values = sorted(on_curve(curve, part.elements) for curve in like)
        return values[len(values) // 2]

    def cold_us(self, parts: Sequence[Part]) -> float:
        """What a net's weights cost more than those of the operators measured alone, being more than caches hold."""
        count = sum(map(weights_of, parts))
        return self.table.cold_us * count / 1e6 * cold_share(count * _BYTES[self.table.precision])

    def operators_ms(self, keys: Sequence[OperatorKey]) -> dict[OperatorKey, float]:
        """Milliseconds of each distinct operator within a net."""
        distinct = list(dict.fromkeys(keys))
        groups = [features.parts(key) for key in distinct]
        alone = iter(self.alone_us([part for group in groups for part in group]))
        corrections = self.table.corrections
        return {
            key: sum(within_net(part, next(alone), corrections) for part in group) / 1e3
            for key, group in zip(distinct, groups, strict=True)
        }

    def net_ms(self, parts: Sequence[Part], input_elements: int) -> float:
        """Milliseconds of an inference of a net of these parts, as `views.view` tells them."""
        corrections = self.table.corrections
        fixed = corrections.inference_us + corrections.input_us * input_elements / 1e6
        fixed += corrections.cold * self.cold_us(parts)
        within = (within_net(part, us, corrections) for part, us in zip(parts, self.alone_us(parts), strict=True))
        return (fixed + sum(within)) / 1e3


def weights_of(part: Part) -> int:
    """The elements of an operator's weights."""
    if isinstance(part, Moving) or part.family == "product":
        return 0
    return part.groups * part.window * part.depth * part.columns


def within_net(part: Part, us: float, corrections: Corrections) -> float:
    """A part's microseconds within a net, from those that it takes alone."""
    if features.is_free(part):
        return 0.0
    return corrections.operator_us + us * float(getattr(corrections, group_of(part)))


def cold_share(weight_bytes: float) -> float:
    """The share of its weights that a net reads from main memory: none to all, as the logarithm of their bytes."""
    if weight_bytes <= _WARM_BYTES:
        return 0.0
    return min(1.0, math.log(weight_bytes / _WARM_BYTES) / math.log(_COLD_BYTES / _WARM_BYTES))


def group_of(part: Part) -> str:
    """Which of the corrections' factors is a part's."""
    if isinstance(part, Moving):
        return "compute" if part.kind == "ConvTranspose" else "gating" if part.kind in _GATING else "moving"
    return "depthwise" if part.family == "depthwise" else "grouped" if part.groups > 1 else "compute"


def on_curve(curve: Sequence[tuple[float, float]], elements: float) -> float:
    """Microseconds at a number of elements: straight between points on logarithmic axes.

    Beyond the ends it goes on in proportion upwards, and downwards as between the first two points.
    """
    at = math.log(elements)
    xs, ys = [math.log(x) for x, _ in curve], [math.log(max(y, _LEAST_US)) for _, y in curve]
    if at >= xs[-1]:
        return math.exp(ys[-1] + at - xs[-1])
    i = next((i for i in range(len(xs) - 1) if xs[i] <= at <= xs[i + 1]), 0)
    if len(xs) == 1:
        return math.exp(ys[0])
    slope = (ys[i + 1] - ys[i]) / max(xs[i + 1] - xs[i], 1e-9)
    slope = slope if at >= xs[0] else min(1.0, max(0.0, slope))
    return math.exp(ys[i] + slope * (at - xs[i]))
