"""One further candidate, all the way: made, converted, compared, timed and validated."""

from __future__ import annotations

from edgecompile import evaluate, execute
from edgecompile.pipeline.accuracy import add_validation
from edgecompile.pipeline.conversion import lower_one
from edgecompile.pipeline.job import Job
from edgecompile.pipeline.latency import add_latency
from edgecompile.types import Candidate, Plan


def attempt(job: Job, plan: Plan, reference: evaluate.Reference) -> Candidate:
    """The candidate of a plan; one that has no file says why."""
    candidate = lower_one(job, plan, execute.original(job.model))
    if candidate.failure is not None:
        return candidate
    (candidate,) = add_latency(job, [candidate])
    (candidate,) = add_validation(job, [candidate], reference)
    return candidate
