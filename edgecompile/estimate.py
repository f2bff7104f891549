"""Latency estimates from device profiles. (Thin version.)"""

from __future__ import annotations

from collections.abc import Sequence

from edgecompile.profiles import DeviceProfile
from edgecompile.types import Measurement, OperatorCost, Precision, RuntimeName


def latency(
    costs: Sequence[OperatorCost],
    profile: DeviceProfile,
    *,
    runtime: RuntimeName,
    precision: Precision,
    threads: int | None = None,
    percentile: float = 50.0,
) -> Measurement:
    """A rough estimate."""
    ms = 0.05 + sum(0.005 + c.macs / profile.gmacs_per_s[precision] / 1e6 for c in costs)
    return Measurement(
        provenance="estimated",
        device=profile.name,
        runtime=runtime,
        runtime_version="",
        threads=threads or profile.threads,
        percentile=percentile,
        value_ms=ms,
        ci_low_ms=ms * 0.7,
        ci_high_ms=ms * 1.3,
        median_ms=ms,
        p90_ms=ms,
        p95_ms=ms,
        p99_ms=ms,
    )
