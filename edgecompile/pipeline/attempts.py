"""Further candidates, one at a time, all the way: made, converted, compared, timed and validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgecompile import evaluate, execute
from edgecompile.pipeline.accuracy import add_validation
from edgecompile.pipeline.conversion import lower_one
from edgecompile.pipeline.job import Job
from edgecompile.pipeline.latency import add_latency, is_yardstick
from edgecompile.types import Candidate, Plan


def attempt(job: Job, plan: Plan, reference: evaluate.Reference) -> Candidate:
    """The candidate of a plan; one that has no file says why."""
    candidate = lower_one(job, plan, execute.original(job.model))
    if candidate.failure is not None:
        return candidate
    (candidate,) = add_latency(job, [candidate], yardstick=_yardstick(job, plan))
    (candidate,) = add_validation(job, [candidate], reference)
    return candidate


def _yardstick(job: Job, plan: Plan) -> Candidate | None:
    """The whole model's float file for a plan's runtime, which the build has made already."""
    if not job.here or plan.runtime == "tensorrt" or plan.provider is not None or is_yardstick(plan):
        return None
    whole = replace(
        plan,
        precision="fp32",
        steps=(),
        reduce_range=False,
        io_dtype="float32",
        calibration_samples=0,
        float_operators=(),
    )
    found = lower_one(job, whole, execute.original(job.model))
    return found if found.failure is None else None


#: Ways to run the model that changed ones start from.
_BASES = 3


def fastest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The fastest few files of the whole model, in plain precisions."""
    plain = [
        c
        for c in candidates
        if c.measurement is not None and not (c.plan.steps or c.plan.reduce_range or c.plan.float_operators)
    ]
    return sorted(plain, key=lambda c: c.measurement.value_ms if c.measurement is not None else 0.0)[:_BASES]
