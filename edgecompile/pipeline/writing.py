"""The bundle: its files, golden vectors, page and manifest."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecompile import (
    __version__,
    bench,
    bundle,
    engines,
    execute,
    measuring,
    page,
    search,
)
from edgecompile.errors import (
    EXIT_PREDICTED,
    LimitNotMet,
)
from edgecompile.pipeline.accuracy import Evaluation
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import Job, some, versions
from edgecompile.types import (
    Accuracy,
    Artifact,
    Candidate,
    Engine,
    Option,
    to_builtins,
)

GOLDEN_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build gives back: the bundle on disk and the exit code that its verdict stands for."""

    bundle: bundle.Bundle
    exit_code: int


def write_bundle(
    job: Job,
    candidates: Sequence[Candidate],
    choice: search.Choice,
    evaluation: Evaluation,
) -> BuildResult:
    artifact = choice.candidate.artifact
    assert artifact is not None
    assert choice.candidate.measurement is not None
    mine = changed(job, choice.candidate.plan)
    with job.progress.stage("Write the bundle"), bundle.BundleWriter(job.request.out) as writer:
        model_path = writer.add("model", artifact.file, f"model{artifact.file.suffix}")
        golden = _checked(
            job,
            _add_golden(mine, writer, replace(artifact, file=model_path)),
            artifact,
            choice.candidate.engine,
            writer,
        )
        verdict = _verdict(job, choice, evaluation.shipped, golden)
        if job.data.class_names:
            writer.add_bytes("labels", ("\n".join(job.data.class_names) + "\n").encode(), "labels.txt")
        bundle.add_runner(writer, artifact.runtime)
        if job.request.frontier:
            _add_frontier(writer, candidates, choice.candidate)
        made = _add_engines(writer, choice.candidate)
        manifest = bundle.Manifest(
            schema_version=bundle.SCHEMA_VERSION,
            edgecompile_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command_line=job.request.command_line,
            seed=job.request.seed,
            options=_options(job),
            model=_model_facts(job),
            target=job.profile.name,
            architecture=job.profile.architecture,
            budget=job.budget,
            verdict=verdict,
            plan=choice.candidate.plan,
            runtime=artifact.runtime,
            precision=artifact.precision,
            path_taken=artifact.path_taken,
            full_integer=artifact.precision == "int8" and artifact.float_islands == 0,
            float_islands=artifact.float_islands,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            preprocessing=to_builtins(mine.data.preprocessing) if mine.data.preprocessing is not None else None,
            measurement=choice.candidate.measurement,
            accuracy=evaluation.shipped,
            original_accuracy=evaluation.original,
            device_accuracy=evaluation.device,
            emulated=job.emulated,
            parity=tuple(
                c.parity for c in candidates if c.parity and c.artifact and c.plan.runtime == artifact.runtime
            ),
            candidates=_tried(candidates, choice),
            data=_data_facts(job),
            golden=golden,
            versions=versions(),
            engines=made,
            files=writer.files,
        )
        writer.add_bytes("page", page.render(manifest).encode(), "report.html")
        result = writer.finish(replace(manifest, files=writer.files))
    return BuildResult(bundle=result, exit_code=verdict.exit_code)


def _verdict(job: Job, choice: search.Choice, accuracy: Accuracy | None, golden: bundle.Golden) -> bundle.Verdict:
    """The verdict on the file that ships: its accuracy limit is checked on the evaluation part."""
    missed = search.accuracy_violations(accuracy, job.budget)
    faults = [f"{found.device}: {found.fault}" for found in golden.devices if found.fault is not None]
    if faults:
        text = f"{choice.candidate.plan.label} does not compute the same on {job.there}: {'; '.join(faults)}"
        help_ = ("see what it costs there: --eval-on-device N", "install the runtime of this machine on the device")
        return bundle.Verdict(status="not met", text=text, exit_code=LimitNotMet.exit_code, help=help_)
    if choice.status == "not met" or missed:
        text = choice.text
        if choice.status != "not met":
            text = f"{choice.candidate.plan.label} kept the limits on the validation part, but on the evaluation part: "
            text += "; ".join(missed)
        return bundle.Verdict(status="not met", text=text, exit_code=LimitNotMet.exit_code, help=choice.help)
    code = EXIT_PREDICTED if choice.status == "predicted" else 0
    return bundle.Verdict(status=choice.status, text=choice.text, exit_code=code, help=choice.help)


def _add_frontier(writer: bundle.BundleWriter, candidates: Sequence[Candidate], chosen: Candidate) -> None:
    """The files of the other points of the frontier, for whoever would rather take one of these."""
    for candidate in search.frontier(candidates):
        if candidate.plan != chosen.plan and candidate.artifact is not None:
            file = candidate.artifact.file
            writer.add("frontier", file, f"frontier/{candidate.plan.label}{file.suffix}")


def _add_golden(job: Job, writer: bundle.BundleWriter, artifact: Artifact) -> bundle.Golden:
    """Golden vectors: real inputs as the file takes them, and what the shipped file made of them here."""
    samples = some(job.data.evaluation if not job.data.synthetic else job.data.calibration, GOLDEN_SAMPLES)
    run = execute.raw(artifact)
    inputs = [execute.to_file_inputs(artifact, sample) for sample in samples]
    outputs = [run(sample) for sample in inputs]
    with tempfile.TemporaryDirectory() as folder:
        for role, name, arrays in (("golden inputs", "inputs", inputs), ("golden outputs", "outputs", outputs)):
            path = Path(folder) / f"{name}.npz"
            bundle.write_arrays(path, arrays)
            writer.add(role, path, f"golden/{name}.npz")  # type: ignore[arg-type]
    exact = artifact.precision == "int8" and artifact.float_islands == 0
    return bundle.Golden(
        samples=len(samples),
        comparison="exact" if exact else "relative",
        tolerance=0.0 if exact else bundle.GOLDEN_FLOAT_TOLERANCE,
        runtime=execute.runtime_name(artifact.runtime),
        steps=execute.output_steps(artifact) if exact else {},
    )


def _add_engines(writer: bundle.BundleWriter, chosen: Candidate) -> tuple[bundle.EngineFacts, ...]:
    """For TensorRT, the engine where a board built one, and what builds it on another."""
    if chosen.artifact is None or chosen.artifact.runtime != "tensorrt":
        return ()
    bundle.add_build_script(writer, chosen.artifact)
    if chosen.engine is None:
        return ()
    return (bundle.add_engine(writer, chosen.engine, engines.layers_json(chosen.engine)),)


def _checked(
    job: Job, golden: bundle.Golden, artifact: Artifact, engine: Engine | None, writer: bundle.BundleWriter
) -> bundle.Golden:
    """The golden vectors with what the device makes of them, where there is one that runs files of this runtime."""
    if job.board is None and job.request.on in (None, "local"):
        return golden
    if artifact.runtime == "tensorrt" and engine is None:
        return golden
    with (
        job.progress.stage(f"Check the golden vectors on {job.there}"),
        tempfile.TemporaryDirectory() as folder,
        job.transport() as transport,
    ):
        found = Path(folder) / "outputs.npz"
        inputs, outputs = (writer.path(f"golden/{name}.npz") for name in ("inputs", "outputs"))
        device = transport.description
        if engine is not None and job.board is not None:
            with engines.session(transport, job.board) as on_board:
                engines.run_inputs(on_board, engine, artifact, inputs=inputs, outputs=found)
            runtime = f"TensorRT {engine.tensorrt}"
        else:
            tool = job.request.benchmark_model
            runtime = bench.run_inputs(artifact, transport, inputs=inputs, outputs=found, benchmark_model=tool)
        allowed = measuring.golden_on(golden, artifact, by_gpu=engine is not None or artifact.provider is not None)
        with np.load(outputs, allow_pickle=False) as want, np.load(found, allow_pickle=False) as have:
            try:
                worst, fault = bundle.compare_golden(allowed, dict(want), dict(have), runtime=runtime), None
            except LimitNotMet as exc:
                worst, fault = None, exc.message
    seen = bundle.GoldenOnDevice(device=device, runtime=runtime, largest_error=worst, fault=fault)
    return replace(golden, devices=(seen,))


def _options(job: Job) -> tuple[Option, ...]:
    """Where each value came from: the user's options, and what the device profile gave in their place."""
    request = job.request
    found: dict[str, str] = {}
    if request.budget_ms is None and request.use_case is None:
        found["budget_ms"] = str(job.budget.latency_ms)
    if request.threads is None:
        found["threads"] = str(job.threads)
    given = (Option(name=name, value=value, origin="profile") for name, value in found.items())
    return tuple(sorted((*request.options, *given), key=lambda option: option.name))


def _model_facts(job: Job) -> bundle.ModelFacts:
    return bundle.ModelFacts(
        name=job.model.name,
        source=job.model.source,
        kind=job.model.kind,
        sha256=job.model.sha256,
        parameters=job.model.parameters,
        macs=sum(cost.macs for cost in job.costs),
        notes=job.model.notes,
        license=job.request.model_license,
        source_url=job.request.model_source,
    )


def _tried(candidates: Sequence[Candidate], choice: search.Choice) -> tuple[bundle.TriedCandidate, ...]:
    return tuple(
        bundle.TriedCandidate(
            label=c.plan.label,
            plan=c.plan,
            verdict=verdict,
            size_bytes=c.artifact.size_bytes if c.artifact else None,
            path_taken=c.artifact.path_taken if c.artifact else None,
            float_islands=c.artifact.float_islands if c.artifact else None,
            measurement=c.measurement,
            validation=c.accuracy,
            parity=c.parity,
            failure=c.failure,
            predicted_ms=c.predicted_ms,
            instructions=c.instructions,
        )
        for c, verdict in zip(candidates, choice.verdicts, strict=True)
    )


def _data_facts(job: Job) -> bundle.DataFacts | None:
    if job.data.synthetic:
        return None
    return bundle.DataFacts(
        calibration=len(job.data.calibration),
        validation=len(job.data.validation),
        evaluation=len(job.data.evaluation),
        evaluation_from="--eval" if job.request.evaluation is not None else "held back from --data",
        skipped=job.data.skipped,
        digest=job.data.digest,
        notes=job.data.notes,
    )
