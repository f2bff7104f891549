"""What a build would do, with estimates and nothing converted."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompile.pipeline.job import Job, bench_options, prepare
from edgecompile.pipeline.latency import estimated
from edgecompile.pipeline.plans import propose
from edgecompile.progress import Progress
from edgecompile.store import Store
from edgecompile.types import (
    Budget,
    BuildRequest,
    Measurement,
    Plan,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCandidate:
    """One plan that a build would try, with its estimated latency and file size."""

    label: str
    estimate: Measurement
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a build would do: nothing was converted, and every figure is an estimate.

    ``may_shrink``: where no file meets the budget, the search for a smaller model comes on top of time and disk.
    """

    model: str
    target: str
    measured_here: bool
    budget: Budget
    candidates: tuple[PlannedCandidate, ...]
    time_s: float
    disk_bytes: int
    may_shrink: bool


_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}


def dry_run(request: BuildRequest, progress: Progress) -> DryRun:
    """What `build` would try, with estimates, expected time and disk. Leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(request, Store(Path(folder)), progress)
        planned = tuple(_planned(job, plan) for plan in propose(job))
    files = sum(c.size_bytes for c in planned)
    return DryRun(
        model=job.model.name,
        target=job.profile.name,
        measured_here=job.here,
        budget=job.budget,
        candidates=planned,
        time_s=_expected_s(job, planned),
        # The work folder keeps the prepared model twice, every candidate, and the bundle one more copy.
        disk_bytes=2 * 4 * job.model.parameters + files + max(c.size_bytes for c in planned),
        may_shrink=request.prune and request.plan is None and not job.data.synthetic,
    )


def _planned(job: Job, plan: Plan) -> PlannedCandidate:
    return PlannedCandidate(
        label=plan.label,
        estimate=estimated(job, plan),
        size_bytes=job.model.parameters * _BYTES[plan.precision],
    )


def _expected_s(job: Job, planned: Sequence[PlannedCandidate]) -> float:
    """A rough time for the build on this machine: the runs it makes, at some GMAC/s, plus conversion."""
    one_run_s = max(sum(cost.macs for cost in job.costs) / _HOST_MACS_PER_S, 1e-3)
    slow_runs_s = max(0.0, job.request.min_runs * one_run_s - job.request.min_seconds)
    measured_s = bench_options(job).least_s(len(planned)) + len(planned) * slow_runs_s if job.here else 0.0
    samples = 0 if job.data.synthetic else len(job.data.validation) + len(job.data.calibration)
    evaluation = 0 if job.data.synthetic else 2 * len(job.data.evaluation)
    return measured_s + len(planned) * (_CONVERSION_S + samples * one_run_s) + evaluation * one_run_s


#: For `dry_run` only: what one thread of a small x86 machine does, and what a small net's conversion takes.
_HOST_MACS_PER_S = 2e10
_CONVERSION_S = 3.0
