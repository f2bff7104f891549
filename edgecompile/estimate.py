"""Latency estimates from a device profile's cost tables. An estimate is never reported as a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgecompile.errors import InputError
from edgecompile.profiles import CostTable, DeviceProfile, Fit
from edgecompile.types import Measurement, OperatorCost, Precision, RuntimeName


def supported(profile: DeviceProfile, runtime: RuntimeName, precision: Precision) -> bool:
    """Whether the profile can estimate this runtime and precision."""
    return profile.costs(runtime, precision) is not None


def latency(
    costs: Sequence[OperatorCost],
    profile: DeviceProfile,
    *,
    runtime: RuntimeName,
    precision: Precision,
    threads: int | None = None,
    percentile: float = 50.0,
) -> Measurement:
    """Latency in milliseconds of operators run one after the other, with ``provenance`` ``"estimated"``.

    A roofline for each operator (Williams, Waterman, Patterson 2009): the longer of computing and of moving its
    tensors, plus a fixed cost. The 95 % interval is the error of this profile's fit on models that were left out of it.
    The published figures are those of typical runs, so every percentile gets the same value, and the interval says
    nothing about tails. Raises `InputError` for a runtime or precision that the profile does not know.
    """
    table = profile.costs(runtime, precision)
    if table is None:
        raise InputError(
            f"{profile.name} has no cost table for {runtime} {precision}",
            remedy=f"it knows: {', '.join(_known(profile))}",
        )
    wanted = threads or profile.threads
    used = min(wanted, profile.cores)
    support = profile.runtime(runtime)
    tile = support.tile.of(precision) if support is not None else 1
    value = table.inference_us / 1e3 + sum(operator_ms(cost, table, threads=used, tile=tile) for cost in costs)
    return measurement(value, profile, table.fit, runtime=runtime, wanted_threads=wanted, percentile=percentile)


def measurement(
    value_ms: float, profile: DeviceProfile, fit: Fit, *, runtime: RuntimeName, wanted_threads: int, percentile: float
) -> Measurement:
    """An estimate of typical runs as a `Measurement` with ``provenance`` ``"estimated"`` and the fit's interval."""
    return Measurement(
        provenance="estimated",
        device=profile.name,
        runtime=runtime,
        runtime_version="",
        threads=min(wanted_threads, profile.cores),
        percentile=percentile,
        value_ms=value_ms,
        ci_low_ms=value_ms / fit.interval_factor,
        ci_high_ms=value_ms * fit.interval_factor,
        median_ms=value_ms,
        p90_ms=value_ms,
        p95_ms=value_ms,
        p99_ms=value_ms,
        warnings=_warnings(profile, fit, wanted=wanted_threads, percentile=percentile),
    )


def operator_ms(cost: OperatorCost, table: CostTable, *, threads: int, tile: int) -> float:
    """Milliseconds of one fused operator: the longer of computing and moving, plus the fixed cost."""
    if cost.op_class in table.fused_classes:
        return 0.0
    rate = _rate(cost, table) * math.pow(threads, table.compute_scaling)
    compute_ms = cost.macs * padding(cost, tile) / (rate * 1e6)
    moved = (cost.weight_elements + cost.input_elements + cost.output_elements) * table.bytes_per_element
    memory_ms = moved / (table.bandwidth_gb_s * math.pow(threads, table.memory_scaling) * 1e6)
    return max(compute_ms, memory_ms) + table.operator_us / 1e3


def padding(cost: OperatorCost, tile: int) -> float:
    """How much the output channels grow when rounded up to whole tiles: latency is a staircase in channels.

    A grouped convolution is rounded up in each group; a depthwise one is computed across its groups.
    """
    groups = 1 if cost.op_class == "depthwise" else cost.groups
    channels = cost.out_channels // groups
    if channels < 1:
        return 1.0
    return math.ceil(channels / tile) * tile / channels


def _rate(cost: OperatorCost, table: CostTable) -> float:
    rates = {"conv": table.conv_gmacs, "pointwise": table.pointwise_gmacs, "depthwise": table.depthwise_gmacs}
    return rates.get(cost.op_class, table.dense_gmacs)


def _known(profile: DeviceProfile) -> list[str]:
    pairs: list[tuple[RuntimeName, Precision]] = [(r.name, p) for r in profile.runtimes for p in r.precisions]
    return [f"{runtime} {precision}" for runtime, precision in pairs]


def _warnings(profile: DeviceProfile, fit: Fit, *, wanted: int, percentile: float) -> tuple[str, ...]:
    found: list[str] = []
    if fit.extrapolated:
        found.append(f"extrapolated: {fit.basis}")
    if wanted > profile.cores:
        found.append(f"{wanted} threads were asked for; {profile.name} has {profile.cores} cores")
    if percentile > 50:
        found.append(f"the profile knows typical runs only: p{percentile:g} is estimated like the median")
    return tuple(found)
