"""What files lose against the original: on the validation part to choose, on the evaluation part to report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgecompile import bench, bundle, engines, evaluate, execute
from edgecompile.errors import (
    InputError,
)
from edgecompile.pipeline.changing import changed
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is reported of the file that ships: its accuracy and the original's, on data that nothing was chosen on.

    ``device`` is the accuracy of the outputs that the device itself gave, on the first of these samples.
    """

    shipped: Accuracy | None = None
    original: Accuracy | None = None
    device: Accuracy | None = None


def evaluated(job: Job, chosen: Candidate) -> Evaluation:
    """The accuracy of the file that ships, and of the original, on the part that nothing was chosen on."""
    if job.data.synthetic:
        return Evaluation()
    samples = job.data.evaluation
    with job.progress.stage("Evaluate the file that ships", 2 * len(samples)) as advance:
        reference = evaluate.reference(execute.original(job.model), samples, progress=each(advance))
        shipped = _accuracy(job, chosen, reference, "evaluation", advance)
    device = _on_device(job, chosen) if job.request.eval_on_device is not None else None
    return Evaluation(shipped=shipped, original=reference.accuracy, device=device)


def _on_device(job: Job, chosen: Candidate) -> Accuracy:
    """The accuracy of what the file gives on the device. Raises `DeviceError` where it fails there."""
    artifact, count = chosen.artifact, job.request.eval_on_device
    assert artifact is not None
    mine = changed(job, chosen.plan)
    samples = job.data.evaluation[:count]
    with job.progress.stage(f"Run {len(samples)} samples on {job.there}"), tempfile.TemporaryDirectory() as name:
        reference = evaluate.reference(execute.original(job.model), samples)
        inputs, outputs = Path(name) / "inputs.npz", Path(name) / "outputs.npz"
        bundle.write_arrays(inputs, [execute.to_file_inputs(artifact, s) for s in mine.data.evaluation[:count]])
        with job.transport() as transport:
            if job.board is not None and chosen.engine is not None:
                with engines.session(transport, job.board) as on_board:
                    engines.run_inputs(on_board, chosen.engine, artifact, inputs=inputs, outputs=outputs)
            else:
                tool = job.request.benchmark_model
                bench.run_inputs(artifact, transport, inputs=inputs, outputs=outputs, benchmark_model=tool)
        with np.load(outputs, allow_pickle=False) as stacked:
            given = [{key: stacked[key][i] for key in stacked.files} for i in range(len(samples))]
    results = iter(given)
    return evaluate.accuracy(lambda _: execute.from_file_outputs(artifact, next(results)), reference, samples)
