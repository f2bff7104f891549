"""From measurements to a learned table: the families, the curves, the tile, and what nets cost beside their parts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgecompile.errors import InputError
from edgecompile.learn import features, grid, nets, views
from edgecompile.learn.features import CLAMP, FAMILIES, Family, Moving, Part, Weighted
from edgecompile.learn.predict import Predictor, group_of
from edgecompile.learn.regression import Array, learn_scales, nonnegative, relative
from edgecompile.profiles import Corrections, Fit, Learned, LearnedFamilies, LearnedFamily
from edgecompile.tables import OperatorKey
from edgecompile.tables.costs import output_shape
from edgecompile.types import Precision, RuntimeName

#: Fewer points than this say too little of a device, fewer of a family too little of the family.
FEWEST_POINTS = 100
_FEWEST_OF_FAMILY = 12
_FEWEST_NETS = 6
_TILES = (1, 2, 4, 8, 16, 32)
#: Where the process's scales start from, in the order of `features.place`.
_SCALES = (3.0, 3.0, 3.0, 2.0, 1.0, 2.0, 1.0, 2.5, 2.5, 3.0)
#: How far the corrections are believed to be from "as measured alone": the factors, us a call, us an inference, us a
#: million elements of the input.
_BELIEF = (0.15, 0.2, 0.4, 0.6, 0.3, 1.5, 1.0, 10.0, 300.0)
#: A device is not the same an hour later, and nets of users are not the small ones: an interval is this wide at least.
_LEAST_SPREAD = 0.07
#: Student's t at 97.5 % for some degrees of freedom.
_T = {4: 2.78, 6: 2.45, 8: 2.31, 10: 2.23, 12: 2.18, 15: 2.13, 18: 2.10, 30: 2.04}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a runtime and precision, in milliseconds: operators (``None``: not alone), those of
    `grid.heavy` again with their weights in no cache, and whole nets."""

    runtime: RuntimeName
    precision: Precision
    threads: int
    package: str
    version: str
    operators: Mapping[OperatorKey, float | None]
    cold: Mapping[OperatorKey, float | None]
    nets: Mapping[str, float]


def learn(measured: Measured) -> Learned:
    """The table that the measurements make. Raises `InputError` when they are too few."""
    known = {key: 1e3 * ms for key, ms in measured.operators.items() if ms is not None}
    _refuse_too_few(measured, len(known))
    clamped = set(grid.clamped())
    plain = {key: us for key, us in known.items() if key not in clamped}
    parts = [(part, us) for key, us in plain.items() if (part := views.alone(key, measured.runtime)) is not None]
    steps = tuple((float(key.out_channels), known[key]) for key in grid.staircase() if key in known)
    tile = tile_of(steps)
    alone = Learned(
        runtime=measured.runtime,
        precision=measured.precision,
        threads=measured.threads,
        package=measured.package,
        version=measured.version,
        points=len(known),
        tile=tile,
        block=block_of(known, tile),
        cold_us=_rounded(cold_us(known, measured.cold)),
        staircase=tuple((channels, _rounded(us)) for channels, us in steps),
        corrections=Corrections(),
        fit=Fit(rows=0, runtime=measured.package, interval_factor=2.0, extrapolated=True, basis=""),
        nets=(),
        families=LearnedFamilies(**_families(parts, tile)),
        curves=_curves([*parts, *_clamps(known)]),
    )
    return _corrected(alone, measured.nets)


def _refuse_too_few(measured: Measured, points: int) -> None:
    label = f"{measured.runtime} {measured.precision}"
    if points < FEWEST_POINTS:
        raise too_few(label, points)
    if len(measured.nets) < _FEWEST_NETS:
        raise InputError(
            f"{len(measured.nets)} small nets of {label} were measured: a cost table is tested on {_FEWEST_NETS}",
            remedy="see -v for why the others could not be made",
        )


def too_few(label: str, points: int) -> InputError:
    """The error of a table that there was too little time for."""
    return InputError(
        f"{points} operators of {label} were measured in the time there was: a cost table needs {FEWEST_POINTS}",
        remedy="run the same command again, it goes on from there; or give it longer with --time-limit",
    )


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


# -------------------------------------------------------------------------------------------------- single operators


def tile_of(steps: Sequence[tuple[float, float]]) -> int:
    """The number of channels that are computed at a time: the steps that explain a staircase best.

    A larger tile has to explain clearly more than a smaller one: noise looks like fine steps, and a line like tile 1.
    """
    if len(steps) < 4:
        return 1
    channels, us = np.array([n for n, _ in steps]), np.array([t for _, t in steps])
    errors = {}
    for tile in _TILES:
        columns = np.stack([np.ones_like(channels), np.ceil(channels / tile) * tile], 1)
        errors[tile] = float(((columns @ relative(columns, us) / us - 1) ** 2).mean() ** 0.5)
    best = min(errors.values())
    return min(tile for tile, error in errors.items() if error <= 1.1 * best + 0.003)


def block_of(known: Iterable[OperatorKey], tile: int) -> int:
    """The channels in a block of the runtime's own layout; 0 where it could not change a layout, having none.

    ONNX Runtime's blocks are what its convolutions compute at a time: 16 channels, or 8 where vectors are shorter.
    """
    if not any(key.op_type == "ReorderInput" for key in known):
        return 0
    return 16 if tile >= 16 else 8


def cold_us(known: Mapping[OperatorKey, float], cold: Mapping[OperatorKey, float | None]) -> float:
    """Microseconds that a million weights cost more when they are in no cache."""
    pairs = [(key, ms) for key, ms in cold.items() if ms is not None and key in known]
    extra = [(1e3 * ms - known[key]) * 1e6 / math.prod(key.weight_shape) for key, ms in pairs]
    return max(0.0, float(np.median(extra))) if extra else 0.0


def _families(known: Sequence[tuple[Part, float]], tile: int) -> dict[str, LearnedFamily | None]:
    points: dict[Family, dict[Weighted, float]] = {name: {} for name in FAMILIES}
    for part, us in known:
        if isinstance(part, Weighted):
            points[part.family][part] = us
    return {name: _family(mine, tile) if len(mine) >= _fewest(name) else None for name, mine in points.items()}


def _fewest(name: Family) -> int:
    return 6 if name == "product" else _FEWEST_OF_FAMILY


def _family(points: Mapping[Weighted, float], tile: int) -> LearnedFamily:
    parts, us = list(points), np.array(list(points.values()))
    sums = np.array([features.basis(part, tile) for part in parts])
    coefficients = relative(sums, us)
    coefficients = np.array([_rounded(float(c), 5) for c in coefficients])
    places = np.array([features.place(part) for part in parts])
    found = learn_scales(places, np.log(us / (sums @ coefficients)), _SCALES)
    return LearnedFamily(
        coefficients_us=tuple(map(float, coefficients)),
        scales=tuple(_rounded(float(scale)) for scale in found.scales),
        amplitude=_rounded(found.amplitude),
        noise=_rounded(found.noise),
        points=tuple(
            (*part.numbers, _rounded(t)) for part, t, doubt in zip(parts, us, found.doubt, strict=True) if doubt == 1.0
        ),
    )


def _clamps(known: Mapping[OperatorKey, float]) -> list[tuple[Part, float]]:
    """What a convolution takes longer with a Clip behind it than with a Relu: each pair is noisy, all give a rate."""
    pairs = [(key, replace(key, activation="Relu")) for key in grid.clamped()]
    pairs = [(key, bare) for key, bare in pairs if key in known and bare in known]
    elements = [math.prod(output_shape(key)) for key, _ in pairs]
    extra = sum(known[key] - known[bare] for key, bare in pairs)
    if extra <= 0:
        return []
    rate = extra / sum(elements)
    return [(Moving(kind=CLAMP, plain=CLAMP, elements=float(n)), rate * n) for n in (min(elements), max(elements))]


def _curves(known: Sequence[tuple[Part, float]]) -> dict[str, tuple[tuple[float, float], ...]]:
    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for part, us in known:
        if isinstance(part, Moving):
            points[part.kind][part.elements].append(us)
    return {
        kind: tuple((elements, _rounded(float(np.median(us)))) for elements, us in sorted(sizes.items()))
        for kind, sizes in sorted(points.items())
    }


# -------------------------------------------------------------------------------------------------------- whole nets


def columns_of(predictor: Predictor, parts: Sequence[Part], input_elements: int) -> list[float]:
    """What `Corrections` are coefficients of, for one net: microseconds of the five groups and of weights from memory,
    calls, inferences, input (in millions of elements)."""
    sums = dict.fromkeys(("compute", "depthwise", "grouped", "gating", "moving"), 0.0)
    for part, us in zip(parts, predictor.alone_us(parts), strict=True):
        if not features.is_free(part):
            sums[group_of(part)] += us
    calls = sum(not features.is_free(part) for part in parts)
    return [*sums.values(), predictor.cold_us(parts), float(calls), 1.0, input_elements / 1e6]


def corrections_of(columns: Array, us: Array, int8: bool) -> Corrections:
    """Corrections under which the nets are likely, near those that change nothing."""
    prior = np.array([1.0] * 6 + [0.0] * 3)
    belief = np.array(_BELIEF) if int8 else np.array([*_BELIEF[:-1], 1e-6])
    noise = 0.06
    weights = np.ones(len(us))
    found = prior
    for _ in range(10):
        root = np.sqrt(weights)[:, None] / noise
        rows = np.concatenate([columns / us[:, None] * root, np.diag(1 / belief)])
        found = nonnegative(rows, np.concatenate([root[:, 0], prior / belief]))
        error = np.abs(columns @ found / us - 1)
        weights = np.minimum(1.0, max(1.5 * float(np.median(error)), 0.02) / np.maximum(error, 1e-9))
    return Corrections(**dict(zip(Corrections.__dataclass_fields__, (_rounded(float(v)) for v in found), strict=True)))


def _corrected(alone: Learned, measured: Mapping[str, float]) -> Learned:
    """With corrections, and the error on nets that were left out of these."""
    names = [name for name in nets.NAMES if name in measured]
    predictor = Predictor(alone)
    columns = np.array([_columns_of_net(predictor, name) for name in names])
    us = np.array([1e3 * measured[name] for name in names])
    int8 = alone.precision == "int8"
    predicted = []
    for i in range(len(names)):
        others = np.arange(len(names)) != i
        predicted.append(float(columns[i] @ vector(corrections_of(columns[others], us[others], int8))))
    ratios = np.array(predicted) / us
    return replace(
        alone,
        corrections=corrections_of(columns, us, int8),
        nets=tuple(
            (name, _rounded(float(t) / 1e3), _rounded(p / 1e3)) for name, t, p in zip(names, us, predicted, strict=True)
        ),
        fit=Fit(
            rows=len(names),
            runtime=alone.package,
            median_error=_rounded(float(np.median(np.abs(ratios - 1))), 3),
            interval_factor=_rounded(interval_factor(ratios), 3),
            extrapolated=False,
            basis=f"{alone.points} operators and {len(names)} small nets measured on the device with {alone.package} "
            f"{alone.version}; the error is that of each net left out",
        ),
    )


def _columns_of_net(predictor: Predictor, name: str) -> list[float]:
    model, table = nets.build(name), predictor.table
    return columns_of(predictor, views.of_table(model, table), views.input_elements(model))


def vector(corrections: Corrections) -> Array:
    """In the order of `columns_of`."""
    return np.array([getattr(corrections, name) for name in Corrections.__dataclass_fields__])


def interval_factor(ratios: Array) -> float:
    """How far an estimate may be off with 95 %, by those of nets that were left out."""
    logs = np.log(ratios)
    spread = max(math.sqrt(float((logs**2).mean()) * len(logs) / max(1, len(logs) - 1)), _LEAST_SPREAD)
    t = next((value for count, value in sorted(_T.items(), reverse=True) if len(logs) - 1 >= count), 3.0)
    return float(math.exp(t * spread))
