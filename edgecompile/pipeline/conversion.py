"""From a plan to a file that has passed the parity gate."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgecompile import (
    execute,
    lower,
    parity,
)
from edgecompile.errors import (
    InputError,
    ParityError,
    UnsupportedModelError,
)
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import Job, some, versions
from edgecompile.types import (
    Arrays,
    Artifact,
    Candidate,
    Model,
    Parity,
    Plan,
    RunFunction,
    digest,
)

log = logging.getLogger(__name__)


PARITY_SAMPLES = 8
#: A GPU has FP16 at little cost, so that INT8 there must be close to float: noise of a tenth of the signal's power.
_INT8_ON_GPU_DB = 10.0


def lower_all(job: Job, plans: Sequence[Plan]) -> list[Candidate]:
    """One candidate a plan: its file and the parity gate's finding, or why there is none."""
    original = execute.original(job.model)
    candidates: list[Candidate] = []
    with job.progress.stage("Convert and compare", len(plans)) as advance:
        for plan in plans:
            candidates.append(lower_one(job, plan, original))
            advance(1)
    return candidates


def lower_one(job: Job, plan: Plan, original: RunFunction) -> Candidate:
    try:
        if plan.steps:
            job = changed(job, plan)
            original = execute.original(job.model)
        for note in lower.RUNTIMES[plan.runtime].check(job.model, plan.precision):
            job.progress.note(f"{plan.label}: {note}")
        floating, gate = _float_artifact(job, plan, original)
        if plan.precision == "fp32":
            return Candidate(plan=plan, artifact=floating, parity=gate)
        artifact = _quantized_artifact(job, plan, floating)
        for note in artifact.notes:
            job.progress.note(f"{plan.label}: {note}")
        gate = _compare_quantized(job, plan, artifact, floating)
        if not gate.passed:
            failure = _too_far(plan, gate)
            job.progress.warn(f"{plan.label}: {failure}")
            return Candidate(plan=plan, failure=failure, parity=gate)
        return Candidate(plan=plan, artifact=artifact, parity=gate)
    except UnsupportedModelError as exc:
        job.progress.warn(f"{plan.label}: {exc.message}")
        log.info("%s failed", plan.label, exc_info=exc)
        return Candidate(plan=plan, failure=exc.message)


def _float_artifact(job: Job, plan: Plan, original: RunFunction) -> tuple[Artifact, Parity]:
    """The float file of a runtime by the first lowering path that passes the parity gate.

    Raises `UnsupportedModelError` when no path can, or `ParityError` naming the first operator that differs.
    """
    float_plan = replace(
        plan, precision="fp32", reduce_range=False, io_dtype="float32", calibration_samples=0, float_operators=()
    )
    runtime = lower.RUNTIMES[plan.runtime]
    failure: UnsupportedModelError | None = None
    for path in runtime.paths:
        try:
            artifact = _lowered(job, float_plan, path, None)
            gate = _float_parity(job, float_plan, artifact, original)
            if gate.passed:
                return artifact, gate
            failure = _explain_divergence(job, float_plan, path, gate, original)
        except UnsupportedModelError as exc:
            # Keep the first path's reason: it is our own lowering's, and names operators.
            failure = failure or exc
        job.progress.note(f"{float_plan.label}: lowering path {path!r} is not usable: {failure.message}")
    assert failure is not None, "a runtime has at least one path"
    raise failure


def _lowered(job: Job, plan: Plan, path: str, float_artifact: Artifact | None) -> Artifact:
    key = digest(job.model.sha256, plan, path, job.data.digest if plan.calibration_samples else "", versions())

    def make(folder: Path) -> Artifact:
        return lower.RUNTIMES[plan.runtime].lower(
            job.model,
            plan,
            _conversion_samples(job, plan),
            folder,
            path=path,
            float_artifact=float_artifact,
        )

    return job.store.cached("lower", key, Artifact, make)


def _conversion_samples(job: Job, plan: Plan) -> Sequence[Arrays]:
    return job.data.calibration if plan.precision == "int8" else some(job.data.calibration, PARITY_SAMPLES)


def _float_parity(job: Job, plan: Plan, artifact: Artifact, original: RunFunction) -> Parity:
    key = digest("float", artifact.sha256, job.model.sha256, job.data.digest, versions())

    def make(_: Path) -> Parity:
        return parity.float_gate(execute.artifact(artifact), original, some(job.data.calibration, PARITY_SAMPLES))

    return job.store.cached("parity", key, Parity, make)


def _explain_divergence(job: Job, plan: Plan, path: str, gate: Parity, original: RunFunction) -> ParityError:
    """The error for a float file that computes something else, naming the first operator whose output differs."""

    def convert(part: Model, folder: Path) -> RunFunction:
        samples = some(job.data.calibration, PARITY_SAMPLES)
        return execute.artifact(lower.RUNTIMES[plan.runtime].lower(part, plan, samples, folder, path=path))

    with tempfile.TemporaryDirectory() as folder, job.progress.stage("Find the first operator that differs"):
        divergence = parity.first_divergence(job.model, convert, some(job.data.calibration, 2), workdir=Path(folder))
    where = f"; the first operator whose output differs: {divergence.describe()}" if divergence else ""
    return ParityError(
        f"the {plan.label} file made by {path} does not compute what the model does: output "
        f"{gate.worst_output!r} differs by {gate.max_error:.2g} of its range (allowed {gate.tolerance:g}){where}",
        remedy="rewrite that operator in the model, or use another --runtime",
        operators=((divergence.op_type, divergence.node_name),) if divergence else (),
    )


def _quantized_artifact(job: Job, plan: Plan, floating: Artifact) -> Artifact:
    return _lowered(job, plan, floating.path_taken, floating)


def _compare_quantized(job: Job, plan: Plan, artifact: Artifact, floating: Artifact) -> Parity:
    floor_db = _floor_db(plan)
    key = digest("quantized", artifact.sha256, floating.sha256, job.data.digest, floor_db, versions())

    def make(_: Path) -> Parity:
        samples = some(job.data.validation or job.data.calibration, 64)
        return parity.quantized(_running(artifact), execute.artifact(floating), samples, floor_db=floor_db)

    return job.store.cached("parity", key, Parity, make)


def _too_far(plan: Plan, gate: Parity) -> str:
    """Why a smaller file that did not pass is no candidate; some of its operators may still return to float."""
    if gate.sqnr_db is None or gate.sqnr_db < 0:
        against = "" if gate.sqnr_db is None else f" has an SQNR of {gate.sqnr_db:.1f} dB against float"
        return f"the {plan.precision} file is broken: its output {gate.worst_output!r}{against or f' {gate.fault}'}"
    return (
        f"the {plan.precision} file is too far from float: its output {gate.worst_output!r} has an SQNR of "
        f"{gate.sqnr_db:.1f} dB against it, and {_floor_db(plan):g} dB is the least"
    )


def _floor_db(plan: Plan) -> float:
    """The least SQNR of a smaller file against its float file."""
    if plan.precision == "fp16":
        return parity.FP16_SQNR_FLOOR_DB
    return _INT8_ON_GPU_DB if plan.runtime == "tensorrt" else parity.SQNR_FLOOR_DB


def _running(artifact: Artifact) -> RunFunction:
    """A file of ours that fails to run is no candidate, and no fault of the user's."""

    def run(sample: Arrays) -> Arrays:
        try:
            return opened(sample)
        except InputError as exc:
            raise UnsupportedModelError(exc.message, remedy="leave this precision out with --precision") from exc

    try:
        opened = execute.artifact(artifact)
    except InputError as exc:
        raise UnsupportedModelError(exc.message, remedy="leave this precision out with --precision") from exc
    return run


def is_far(candidate: Candidate) -> bool:
    """Whether there is an INT8 file that only quantization keeps from being a candidate."""
    gate = candidate.parity
    return (
        candidate.failure is not None
        and candidate.plan.precision == "int8"
        and gate is not None
        and gate.kind == "quantized"
        and gate.sqnr_db is not None
    )


def require_one(job: Job, candidates: Sequence[Candidate], *, mendable: bool = False) -> None:
    """Raise the failures when no candidate has a file (exit code 5).

    ``mendable``: one whose operators may still return to float will do.
    """
    if any(c.failure is None or (mendable and is_far(c)) for c in candidates):
        return
    reasons = "; ".join(f"{c.plan.label}: {c.failure}" for c in candidates)
    raise UnsupportedModelError(
        f"{job.model.name} cannot be lowered for {job.profile.name}: {reasons}",
        remedy="replace the operators named above in the model, or try another target",
    )
