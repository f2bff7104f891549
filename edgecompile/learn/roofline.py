"""The plain cost table (`profiles.CostTable`) that belongs to a learned one, for whatever asks for no more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompile import estimate
from edgecompile.learn import features, nets
from edgecompile.learn.features import Part, Weighted
from edgecompile.learn.fit import interval_factor
from edgecompile.learn.predict import Predictor
from edgecompile.profiles import CostTable, Fit, Learned
from edgecompile.tables import OperatorKey, keys_of
from edgecompile.tables.costs import cost_of
from edgecompile.types import OperatorClass, OperatorCost

_BYTES = {"fp32": 4.0, "fp16": 4.0, "int8": 1.0}
#: How operators scale with threads, where one number of threads was measured: as in the fits of published rows.
_COMPUTE_SCALING, _MEMORY_SCALING = 0.85, 0.4
_CLASSES: tuple[OperatorClass, ...] = ("conv", "pointwise", "depthwise", "dense")


def cost_table(learned: Learned, points: Mapping[OperatorKey, float | None], *, scaling: float | None) -> CostTable:
    """The roofline that is nearest to the points, in milliseconds; ``scaling`` is what other threads showed."""
    known = [(cost_of(key), ms) for key, ms in points.items() if ms is not None]
    width = _BYTES[learned.precision]
    table = CostTable(
        conv_gmacs=1.0, pointwise_gmacs=1.0, depthwise_gmacs=1.0, dense_gmacs=1.0,
        bandwidth_gb_s=_bandwidth(known, width),
        operator_us=_rounded(float(np.percentile([1e3 * ms for _, ms in known], 5)) + learned.corrections.operator_us),
        inference_us=learned.corrections.inference_us,
        compute_scaling=_COMPUTE_SCALING if scaling is None else scaling,
        memory_scaling=_MEMORY_SCALING,
        bytes_per_element=width,
        fit=learned.fit,
    )  # fmt: skip
    for name in _CLASSES:
        table = _with_rate(table, name, _rate(table, name, known, learned.tile))
    return replace(table, fit=_tested(table, learned))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _bandwidth(known: Sequence[tuple[OperatorCost, float]], width: float) -> float:
    """Gigabytes a second of the additions that move most."""
    moved = sorted((c.input_elements + c.output_elements, ms) for c, ms in known if c.op_type == "Add")
    rates = [width * elements / (ms * 1e6) for elements, ms in moved[-3:]]
    return _rounded(float(np.median(rates))) if rates else 5.0


def _with_rate(table: CostTable, name: OperatorClass, rate: float) -> CostTable:
    changes: dict[str, Any] = {f"{name}_gmacs": rate}
    return replace(table, **changes)


def _rate(table: CostTable, name: OperatorClass, known: Sequence[tuple[OperatorCost, float]], tile: int) -> float:
    """The rate of a class under which its larger points are as often too slow as too fast."""
    mine = sorted(((cost, ms) for cost, ms in known if cost.op_class == name and cost.macs), key=lambda p: -p[0].macs)
    mine = mine[: max(8, len(mine) // 2)]
    low, high = math.log(1e-2), math.log(1e5)
    for _ in range(40):
        middle = (low + high) / 2
        trial = _with_rate(table, name, math.exp(middle))
        ratios = [estimate.operator_ms(cost, trial, threads=1, tile=tile) / ms for cost, ms in mine]
        low, high = (middle, high) if ratios and np.median(ratios) > 1 else (low, middle)
    return _rounded(math.exp(low)) if mine else 1.0


def _tested(table: CostTable, learned: Learned) -> Fit:
    ratios = []
    for name, measured_ms, _ in learned.nets:
        costs = [cost_of(key) for _, key in keys_of(nets.build(name))]
        ms = sum(estimate.operator_ms(cost, table, threads=1, tile=learned.tile) for cost in costs)
        ratios.append((ms + table.inference_us / 1e3) / measured_ms)
    return replace(
        learned.fit,
        median_error=_rounded(float(np.median(np.abs(np.array(ratios) - 1)))),
        interval_factor=_rounded(interval_factor(np.array(ratios))),
        basis=f"{learned.points} operators measured on the device; tested on {len(ratios)} small nets",
    )


def scaling_of(one: Learned, many: Learned) -> float:
    """By which power of the threads the families' points got faster; between 0 and 1."""
    first, second = Predictor(one), Predictor(many)
    parts = [part for name, _, _ in one.nets for _, key in keys_of(nets.build(name)) for part in _heavy(key)]
    ratio = sum(first.alone_us(parts)) / max(sum(second.alone_us(parts)), 1e-9)
    return _rounded(min(1.0, max(0.0, math.log(ratio) / math.log(many.threads / one.threads))))


def _heavy(key: OperatorKey) -> list[Part]:
    return [part for part in features.parts(key) if isinstance(part, Weighted)]
