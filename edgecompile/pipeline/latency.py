"""The latency of candidates: measured on the device, or estimated from its profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import bench, estimate, tables
from edgecompile.pipeline.conversion import changed
from edgecompile.pipeline.job import Job, bench_options, versions
from edgecompile.tables.costs import cost_of
from edgecompile.types import (
    Candidate,
    Measurement,
    Plan,
    digest,
)


def add_latency(job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    if job.here:
        return _measured(job, candidates)
    job.progress.note(
        f"{job.profile.name} is not this machine: latency is estimated from the device profile, not measured"
    )
    return [replace(c, measurement=estimated(job, c.plan)) if c.failure is None else c for c in candidates]


def estimated(job: Job, plan: Plan) -> Measurement:
    return estimate.latency(
        changed(job, plan).costs if plan.steps else job.costs,
        job.profile,
        runtime=plan.runtime,
        precision=plan.precision,
        threads=job.threads,
        percentile=job.budget.percentile,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurements:
    items: tuple[Measurement, ...]


def _measured(job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Measure all files on this machine, interleaved, so that their figures can be compared."""
    with_files = [c for c in candidates if c.artifact is not None]
    options = bench_options(job)
    key = digest([c.artifact.sha256 for c in with_files if c.artifact], options, job.machine, versions())

    def make(_: Path) -> _Measurements:
        artifacts = [c.artifact for c in with_files if c.artifact is not None]
        with job.transport() as transport:
            return _Measurements(items=bench.measure(artifacts, transport, options).measurements)

    with job.progress.stage(f"Measure {len(with_files)} files, interleaved"):
        measurements = job.store.cached("measure", key, _Measurements, make).items
    by_plan = {c.plan: m for c, m in zip(with_files, measurements, strict=True)}
    for warning in dict.fromkeys(w for m in measurements for w in m.warnings):
        job.progress.warn(warning)
    return [replace(c, measurement=by_plan.get(c.plan)) for c in candidates]


def tile_of(job: Job, plan: Plan) -> int:
    """The channels that the plan's runtime computes at a time on the device."""
    support = job.profile.runtime(plan.runtime)
    return support.tile.of(plan.precision) if support is not None else 8


def operator_times(job: Job, plan: Plan, keys: Sequence[tables.OperatorKey]) -> dict[tables.OperatorKey, float]:
    """The milliseconds of single operators at a plan's runtime and precision: measured, or the profile's estimates."""
    if job.here:
        with job.transport() as transport:
            return tables.measure(
                keys,
                runtime=plan.runtime,
                precision=plan.precision,
                threads=job.threads,
                workdir=job.store.root / "operators",
                cache=job.store,
                fingerprint=job.machine,
                transport=transport,
            )
    costs = job.profile.costs(plan.runtime, plan.precision)
    assert costs is not None, "what is estimated has a cost table"
    tile = tile_of(job, plan)
    return {key: estimate.operator_ms(cost_of(key), costs, threads=job.threads, tile=tile) for key in keys}
