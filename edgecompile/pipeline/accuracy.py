"""What files lose against the original: on the validation part to choose, on the evaluation part to report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from edgecompile import (
    evaluate,
    execute,
)
from edgecompile.errors import (
    InputError,
)
from edgecompile.pipeline.conversion import changed
from edgecompile.pipeline.job import Job, each, versions
from edgecompile.types import (
    Accuracy,
    Candidate,
    digest,
)


def reference_of(job: Job) -> evaluate.Reference | None:
    """The original on the validation part: run before any long work, since labels or limits may not fit it."""
    if job.data.synthetic:
        return None
    with job.progress.stage("Run the original", len(job.data.validation)) as advance:
        reference = evaluate.reference(execute.original(job.model), job.data.validation, progress=each(advance))
    _check_limits_fit(job, reference)
    return reference


def add_validation(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """The accuracy of every file on the validation part, which the choice is made on."""
    with_files = [c for c in candidates if c.artifact is not None and c.failure is None]
    with job.progress.stage("Validate", len(with_files) * len(job.data.validation)) as advance:
        by_plan = {c.plan: _accuracy(job, c, reference, "validation", advance) for c in with_files}
    return [replace(c, accuracy=by_plan.get(c.plan)) for c in candidates]


def _check_limits_fit(job: Job, reference: evaluate.Reference) -> None:
    if reference.metric == "SQNR" and job.budget.max_drop is not None:
        raise InputError(
            "--max-drop needs a metric with a baseline, but this model's outputs are compared by SQNR",
            remedy="use --min-sqnr DB, or give labels (see the data page of the documentation)",
        )
    if reference.metric != "SQNR" and job.budget.min_sqnr_db is not None:
        raise InputError(
            f"--min-sqnr was given, but this model's metric is {reference.metric}", remedy="use --max-drop"
        )


def _accuracy(
    job: Job,
    candidate: Candidate,
    reference: evaluate.Reference,
    part: Literal["validation", "evaluation"],
    advance: Callable[[int], None],
) -> Accuracy:
    artifact = candidate.artifact
    assert artifact is not None
    # The reference is the original's, on the same images at its own size.
    data = changed(job, candidate.plan).data
    samples = data.validation if part == "validation" else data.evaluation
    key = digest(part, artifact.sha256, job.model.sha256, job.data.digest, data.digest, len(samples), versions())
    return job.store.cached(
        "accuracy",
        key,
        Accuracy,
        lambda _: evaluate.accuracy(execute.artifact(artifact), reference, samples, progress=each(advance)),
    )


def evaluated(job: Job, chosen: Candidate) -> tuple[Accuracy | None, Accuracy | None]:
    """The accuracy of the file that ships, and of the original, on the part that nothing was chosen on."""
    if job.data.synthetic:
        return None, None
    samples = job.data.evaluation
    with job.progress.stage("Evaluate the file that ships", 2 * len(samples)) as advance:
        reference = evaluate.reference(execute.original(job.model), samples, progress=each(advance))
        return _accuracy(job, chosen, reference, "evaluation", advance), reference.accuracy
