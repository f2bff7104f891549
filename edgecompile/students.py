"""Which students are worth training for a budget: latency is known before a single step, accuracy is not.

A student's latency depends on its architecture only, so the table of single operators says which meet the budget. How
accurate they will be is guessed from their capacity: the geometric mean of multiply-accumulates and weights. The guess
is for nets of the same sort of blocks only (a dense convolution takes more multiply-accumulates for the same accuracy
than a depthwise one), so nets are ordered within their sort, and the sorts take turns: the few that are trained first
are not all alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgecompile import tables
from edgecompile.tables import OperatorKey
from edgecompile.techniques import student_family
from edgecompile.techniques.student_family import Architecture
from edgecompile.techniques.student_net import skeleton
from edgecompile.types import Model

#: The milliseconds of single operators: measured ones, or a device profile's estimates.
Timing: TypeAlias = Callable[[Sequence[OperatorKey]], Mapping[OperatorKey, float]]
#: Nets of one sort: the kind of blocks, and whether they have gates.
_Sort: TypeAlias = tuple[str, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """An architecture, the milliseconds that are predicted of it, and its capacity (see the module)."""

    architecture: Architecture
    predicted_ms: float
    capacity: float


def predict(
    architectures: Sequence[Architecture], model: Model, time: Timing, *, scale: float = 1.0, fixed_ms: float = 0.0
) -> tuple[float, ...]:
    """The milliseconds predicted of each: ``fixed_ms + scale`` times the sum of its operators, which are timed in one
    go. Scale and fixed part are those observed of the original."""
    keys = [[key for _, key in tables.keys_of(skeleton(a, model))] for a in architectures]
    ms = time(list(dict.fromkeys(itertools.chain.from_iterable(keys))))
    return tuple(fixed_ms + scale * sum(ms[key] for key in mine) for mine in keys)


def rank(
    architectures: Sequence[Architecture],
    budget_ms: float,
    time: Timing,
    *,
    model: Model,
    scale: float = 1.0,
    fixed_ms: float = 0.0,
) -> tuple[Ranked, ...]:
    """Those predicted to meet the budget, the most promising first.

    Within a sort (kind of blocks, gated or not) a larger capacity comes first, and of equal ones the faster; the sorts
    take turns in the order of their best. Raises `UnsupportedModelError` for a ``model`` that can have no student.
    """
    face = student_family.interface(model)
    sorts: dict[_Sort, list[Ranked]] = {}
    for architecture, ms in zip(
        architectures, predict(architectures, model, time, scale=scale, fixed_ms=fixed_ms), strict=True
    ):
        if ms <= budget_ms:
            work = student_family.macs(architecture, face) * student_family.parameters(architecture, face)
            found = Ranked(architecture=architecture, predicted_ms=ms, capacity=math.sqrt(work))
            sorts.setdefault((architecture.kind, architecture.squeeze_excite), []).append(found)
    ordered = [sorted(mine, key=_promise) for mine in sorts.values()]
    ordered.sort(key=lambda mine: _promise(mine[0]))
    turns = itertools.zip_longest(*ordered)
    return tuple(found for turn in turns for found in turn if found is not None)


def _promise(found: Ranked) -> tuple[float, float, str]:
    return -found.capacity, found.predicted_ms, found.architecture.code


__all__ = ["Ranked", "Timing", "predict", "rank"]
