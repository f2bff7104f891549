"""The same weights on smaller images, where `--resolutions` allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgecompile import evaluate, search
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.pipeline.attempts import attempt, fastest
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import ANY, Job
from edgecompile.techniques import resolution
from edgecompile.types import Candidate, Step


def other_resolutions(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """The fastest files at every other input size, where no file at the model's own keeps every limit."""
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    asked = job.request.frontier or not any(not search.violations(c, job.budget) for c in usable)
    if not job.request.resolutions or job.request.plan is not None or not asked:
        return []
    found: list[Candidate] = []
    for step in steps(job):
        for base in fastest(candidates):
            found.append(attempt(job, replace(base.plan, steps=(step,)), reference))
    return found


def steps(job: Job) -> list[Step]:
    """The resolutions that the request permits and that the model and the data allow, the largest first."""
    try:
        height, width = resolution.spatial_size(job.model)
    except UnsupportedModelError as exc:
        job.progress.warn(exc.message)
        return []
    allowed: list[Step] = []
    for size in sorted(set(job.request.resolutions), reverse=True):
        scale = size / min(height, width)
        step = resolution.step(round(height * scale), round(width * scale))
        if resolution.size_of(step) == (height, width):
            continue
        try:
            changed(job, replace(ANY, steps=(step,)))
        except (UnsupportedModelError, InputError) as exc:
            job.progress.warn(f"{size} pixels: {exc.message}")
            continue
        allowed.append(step)
    return allowed
