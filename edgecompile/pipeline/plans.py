"""The plans that a build tries: the runtimes and precisions of the device, or one that is replayed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgecompile import (
    bundle,
    search,
)
from edgecompile.errors import (
    InputError,
)
from edgecompile.pipeline.job import Job
from edgecompile.types import (
    Plan,
    Provider,
    decode,
)


def propose(job: Job) -> tuple[Plan, ...]:
    """The plans worth trying on this device under the request's restrictions. Raises `InputError` when none is left."""
    if job.request.plan is not None:
        return (_replayed(job, job.request.plan),)
    combinations = [(r.name, p) for r in job.profile.runtimes for p in r.precisions]
    plans = search.propose(
        job.request,
        combinations,
        has_data=not job.data.synthetic,
        saturates=lambda runtime: runtime == "onnxruntime" and job.profile.int8_saturates,
    )
    plans += _by_onnxruntime(job)
    if not plans:
        known = ", ".join(f"{r}-{p}" for r, p in combinations)
        if job.data.synthetic and "int8" in job.request.precisions:
            raise InputError("INT8 needs data to calibrate with", remedy="give some hundred images with --data")
        asked = [f"--runtime {name}" for name in job.request.runtimes]
        asked += [f"--precision {name}" for name in job.request.precisions]
        raise InputError(
            f"{job.profile.name} has nothing for {' '.join(asked)}", remedy=f"it takes: {known}; choose among those"
        )
    return plans


#: ONNX Runtime's names of what it computes on a GPU with.
_PROVIDERS: dict[str, Provider] = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}


def _by_onnxruntime(job: Job) -> tuple[Plan, ...]:
    """On a board whose ONNX Runtime reaches the GPU, the FP16 graph by it too; on others nothing, without a word."""
    there = job.board.providers if job.board is not None else ()
    if job.request.precisions and "fp16" not in job.request.precisions:
        return ()
    return tuple(
        Plan(runtime="tensorrt", precision="fp16", provider=provider, seed=job.request.seed)
        for name, provider in _PROVIDERS.items()
        if name in there
    )


def _replayed(job: Job, ref: str) -> Plan:
    """The plan of a bundle, of one candidate in it (``BUNDLE:LABEL``), or of a plan's own file."""
    path, _, label = (ref, "", "") if Path(ref).exists() else ref.rpartition(":")
    if not path or not Path(path).exists():
        raise InputError(f"no such plan: {ref}", remedy="give a bundle, BUNDLE:CANDIDATE, or a plan's .json file")
    plan = _plan_file(Path(path)) if Path(path).is_file() else _bundled_plan(Path(path), label)
    if (plan.precision == "int8" or plan.steps) and job.data.synthetic:
        raise InputError(f"the plan of {ref} needs data", remedy="give the --data that it was made with")
    return plan


def _plan_file(path: Path) -> Plan:
    try:
        return decode(path.read_bytes(), Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InputError(
            f"{path} is not a plan: {exc}", remedy="give a bundle, or the plan part of its manifest"
        ) from exc


def _bundled_plan(path: Path, label: str) -> Plan:
    manifest = bundle.read(path).manifest
    if not label:
        return manifest.plan
    by_label = {candidate.label: candidate.plan for candidate in manifest.candidates}
    if label not in by_label:
        raise InputError(f"{path} has no candidate {label!r}", remedy=f"it has: {', '.join(by_label)}")
    return by_label[label]
