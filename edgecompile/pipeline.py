"""The main job: a trained model in, a measured and verified bundle out.

`build` reads top to bottom like the list of what is done. Every step's result is kept in the work folder under the hash
of what made it, so the same command goes on where a killed one was.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, overload

import msgspec

from edgecompile import (
    __version__,
    bench,
    bundle,
    calibration,
    estimate,
    evaluate,
    execute,
    graph,
    lower,
    page,
    parity,
    profiles,
    search,
    shrink,
    tables,
    techniques,
)
from edgecompile import model as models
from edgecompile.errors import (
    EXIT_PREDICTED,
    EdgecompileError,
    InputError,
    LimitNotMet,
    ParityError,
    UnsupportedModelError,
)
from edgecompile.progress import Progress
from edgecompile.store import Store, register
from edgecompile.tables.costs import cost_of
from edgecompile.techniques import distill
from edgecompile.transport import Transport, open_transport
from edgecompile.types import (
    Accuracy,
    Arrays,
    Artifact,
    Budget,
    BuildRequest,
    Candidate,
    Measurement,
    Model,
    OperatorCost,
    Parity,
    Plan,
    RunFunction,
    decode,
    digest,
    to_builtins,
)

log = logging.getLogger(__name__)

#: Samples that the parity gate compares on; each costs one run of the original.
PARITY_SAMPLES = 8
GOLDEN_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build gives back: the bundle on disk and the exit code that its verdict stands for."""

    bundle: bundle.Bundle
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all steps of one build share."""

    request: BuildRequest
    profile: profiles.DeviceProfile
    model: Model
    costs: tuple[OperatorCost, ...]
    data: calibration.CalibrationSet
    budget: Budget
    store: Store
    progress: Progress

    @property
    def here(self) -> bool:
        """Whether the device can be measured: it is this machine, or the request says where it is."""
        return self.request.on is not None or self.profile.matches_this_machine()

    @property
    def machine(self) -> str:
        """What measurements of the device are known by."""
        return machine_id() if self.request.on in (None, "local") else digest(self.request.on)

    def transport(self) -> Transport:
        """The way to the device."""
        return open_transport(self.request.on or "local", waiting=self.progress.note)

    @property
    def threads(self) -> int:
        return self.request.threads or self.profile.threads


def build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Build one model for one device. Raises `EdgecompileError`; a missed limit is a result, not an error."""
    bundle.check_output(request.out, force=request.force)
    with _work_folder(request) as store:
        job = prepare(request, store, progress)
        plans = propose(job)
        reference = _reference(job)
        candidates = _lower_all(job, plans)
        _require_one(job, candidates)
        candidates = _add_latency(job, candidates)
        if reference is not None:
            candidates = _add_validation(job, candidates, reference)
            candidates += _shrink(job, candidates, reference)
        choice = search.choose(candidates, job.budget)
        accuracy, original = _evaluate(job, choice.candidate)
        return _write_bundle(job, candidates, choice, accuracy, original)


@contextmanager
def _work_folder(request: BuildRequest) -> Iterator[Store]:
    work = request.out.resolve().with_name(request.out.resolve().name + ".work")
    if request.fresh:
        shutil.rmtree(work, ignore_errors=True)
    store = Store(work)
    with store.locked():
        register(work)
        yield store


# ----------------------------------------------------------------------------------------------------- inputs


def prepare(request: BuildRequest, store: Store, progress: Progress) -> _Job:
    """Load the profile, the model and the data; fail before any long work on what cannot be built."""
    profile = profiles.load(request.target, content_dir=request.content_dir)
    with progress.stage("Load the model"):
        model = models.load(
            request.model,
            store.root / "model",
            weights=request.weights,
            input_shapes=_input_shapes(request),
            trust=request.trust,
        )
    for note in model.notes:
        progress.note(note)
    with progress.stage("Read the data"):
        data = _load_data(request, model)
    for note in data.notes:
        progress.note(note)
    return _Job(
        request=request,
        profile=profile,
        model=model,
        costs=graph.operators(model.path),
        data=data,
        budget=_budget(request, profile),
        store=store,
        progress=progress,
    )


def _input_shapes(request: BuildRequest) -> dict[str, tuple[int, ...]] | tuple[int, ...] | None:
    shapes = dict(request.input_shapes)
    if not shapes:
        return None
    if set(shapes) == {""}:  # --input-shape 1,3,32,32 without a name
        return shapes[""]
    return shapes


def _load_data(request: BuildRequest, model: Model) -> calibration.CalibrationSet:
    limits = (request.evaluation, request.max_drop, request.min_sqnr_db)
    if request.data is None and any(limit is not None for limit in limits):
        raise InputError("accuracy was asked for, but there is no data", remedy="give a folder with --data")
    preset = None
    if request.preset is not None:
        preset = calibration.load_preset(request.preset, content_dir=request.content_dir)
    return calibration.load(
        preset,
        model.inputs,
        data=request.data,
        evaluation=request.evaluation,
        labels=request.labels,
        seed=request.seed,
        calibration_samples=request.calibration_samples,
        validation_samples=request.validation_samples,
        evaluation_samples=request.evaluation_samples,
        training_samples=None if request.train else _FIT_SAMPLES if request.prune else 0,
    )


def _budget(request: BuildRequest, profile: profiles.DeviceProfile) -> Budget:
    latency_ms = request.budget_ms
    if latency_ms is None and request.use_case is not None:
        latency_ms = profiles.USE_CASES[request.use_case]
    if latency_ms is None:
        latency_ms = profile.default_budget_ms
    return Budget(
        latency_ms=latency_ms,
        percentile=request.percentile,
        max_drop=request.max_drop,
        min_sqnr_db=request.min_sqnr_db,
        max_size_bytes=round(request.max_size_mb * 1e6) if request.max_size_mb is not None else None,
    )


def propose(job: _Job) -> tuple[Plan, ...]:
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
    if not plans:
        known = ", ".join(f"{r}-{p}" for r, p in combinations)
        reason = " (INT8 needs --data)" if job.data.synthetic and "int8" in job.request.precisions else ""
        raise InputError(
            f"no runtime and precision is left for {job.profile.name}{reason}",
            remedy=f"it knows: {known}; widen --runtime and --precision",
        )
    return plans


def _replayed(job: _Job, ref: str) -> Plan:
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


# ---------------------------------------------------------------------------------------------------- dry run


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCandidate:
    """One plan that a build would try, with its estimated latency and file size."""

    label: str
    estimate: Measurement
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a build would do: nothing was converted, and every figure is an estimate."""

    model: str
    target: str
    measured_here: bool
    budget: Budget
    candidates: tuple[PlannedCandidate, ...]
    time_s: float
    disk_bytes: int


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
    )


def _planned(job: _Job, plan: Plan) -> PlannedCandidate:
    return PlannedCandidate(
        label=plan.label,
        estimate=_estimated(job, plan),
        size_bytes=job.model.parameters * _BYTES[plan.precision],
    )


def _expected_s(job: _Job, planned: Sequence[PlannedCandidate]) -> float:
    """A rough time for the build on this machine: the runs it makes, at some GMAC/s, plus conversion."""
    request, macs = job.request, sum(cost.macs for cost in job.costs)
    one_run_s = max(macs / _HOST_MACS_PER_S, 1e-3)
    measured = request.warmup_s + max(request.min_seconds, request.min_runs * one_run_s) if job.here else 0.0
    samples = 0 if job.data.synthetic else len(job.data.validation) + len(job.data.calibration)
    each = measured + _CONVERSION_S + samples * one_run_s
    evaluation = 0 if job.data.synthetic else 2 * len(job.data.evaluation) * one_run_s
    return len(planned) * each + evaluation


#: For `dry_run` only: what one thread of a small x86 machine does, and what a small net's conversion takes.
_HOST_MACS_PER_S = 2e10
_CONVERSION_S = 3.0


# --------------------------------------------------------------------------------------------------- lowering


def _lower_all(job: _Job, plans: Sequence[Plan]) -> list[Candidate]:
    """One candidate a plan: its file and the parity gate's finding, or why there is none."""
    original = execute.original(job.model)
    candidates: list[Candidate] = []
    with job.progress.stage("Convert and compare", len(plans)) as advance:
        for plan in plans:
            candidates.append(_lower_one(job, plan, original))
            advance(1)
    return candidates


def _lower_one(job: _Job, plan: Plan, original: RunFunction) -> Candidate:
    try:
        if plan.steps:
            job = _changed(job, plan)
            original = execute.original(job.model)
        for note in lower.RUNTIMES[plan.runtime].check(job.model, plan.precision):
            job.progress.note(f"{plan.label}: {note}")
        floating, gate = _float_artifact(job, plan, original)
        if plan.precision == "fp32":
            return Candidate(plan=plan, artifact=floating, parity=gate)
        artifact = _quantized_artifact(job, plan, floating)
        for note in artifact.notes:
            job.progress.note(f"{plan.label}: {note}")
        return Candidate(plan=plan, artifact=artifact, parity=_compare_quantized(job, plan, artifact, floating))
    except UnsupportedModelError as exc:
        job.progress.warn(f"{plan.label}: {exc.message}")
        log.info("%s failed", plan.label, exc_info=exc)
        return Candidate(plan=plan, failure=exc.message)


def _float_artifact(job: _Job, plan: Plan, original: RunFunction) -> tuple[Artifact, Parity]:
    """The float file of a runtime by the first lowering path that passes the parity gate.

    Raises `UnsupportedModelError` when no path can, or `ParityError` naming the first operator that differs.
    """
    float_plan = replace(plan, precision="fp32", reduce_range=False, io_dtype="float32", calibration_samples=0)
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


def _lowered(job: _Job, plan: Plan, path: str, float_artifact: Artifact | None) -> Artifact:
    key = digest(job.model.sha256, plan, path, job.data.digest if plan.calibration_samples else "", _versions())

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


def _conversion_samples(job: _Job, plan: Plan) -> Sequence[Arrays]:
    return job.data.calibration if plan.precision == "int8" else _some(job.data.calibration, PARITY_SAMPLES)


def _some(samples: Sequence[Arrays], count: int) -> list[Arrays]:
    return [samples[i] for i in range(min(count, len(samples)))]


def _float_parity(job: _Job, plan: Plan, artifact: Artifact, original: RunFunction) -> Parity:
    key = digest("float", artifact.sha256, job.model.sha256, job.data.digest, _versions())

    def make(_: Path) -> Parity:
        return parity.float_gate(execute.artifact(artifact), original, _some(job.data.calibration, PARITY_SAMPLES))

    return job.store.cached("parity", key, Parity, make)


def _explain_divergence(job: _Job, plan: Plan, path: str, gate: Parity, original: RunFunction) -> ParityError:
    """The error for a float file that computes something else, naming the first operator whose output differs."""

    def convert(part: Model, folder: Path) -> RunFunction:
        samples = _some(job.data.calibration, PARITY_SAMPLES)
        return execute.artifact(lower.RUNTIMES[plan.runtime].lower(part, plan, samples, folder, path=path))

    with tempfile.TemporaryDirectory() as folder, job.progress.stage("Find the first operator that differs"):
        divergence = parity.first_divergence(job.model, convert, _some(job.data.calibration, 2), workdir=Path(folder))
    where = f"; the first operator whose output differs: {divergence.describe()}" if divergence else ""
    return ParityError(
        f"the {plan.label} file made by {path} does not compute what the model does: output "
        f"{gate.worst_output!r} differs by {gate.max_error:.2g} of its range (allowed {gate.tolerance:g}){where}",
        remedy="rewrite that operator in the model, or use another --runtime",
        operators=((divergence.op_type, divergence.node_name),) if divergence else (),
    )


def _quantized_artifact(job: _Job, plan: Plan, floating: Artifact) -> Artifact:
    return _lowered(job, plan, floating.path_taken, floating)


def _compare_quantized(job: _Job, plan: Plan, artifact: Artifact, floating: Artifact) -> Parity:
    key = digest("quantized", artifact.sha256, floating.sha256, job.data.digest, _versions())

    def make(_: Path) -> Parity:
        samples = _some(job.data.validation or job.data.calibration, 64)
        return parity.quantized(execute.artifact(artifact), execute.artifact(floating), samples)

    found = job.store.cached("parity", key, Parity, make)
    if not found.passed:
        raise ParityError(
            f"the {plan.precision} file is broken: its output {found.worst_output!r} has an SQNR of "
            f"{found.sqnr_db:.1f} dB against float",
            remedy="leave this precision out with --precision",
        )
    return found


def _require_one(job: _Job, candidates: Sequence[Candidate]) -> None:
    """Raise the failure of the first plan when no candidate has a file (exit code 5)."""
    if any(c.failure is None for c in candidates):
        return
    reasons = "; ".join(f"{c.plan.label}: {c.failure}" for c in candidates)
    raise UnsupportedModelError(
        f"{job.model.name} cannot be lowered for {job.profile.name}: {reasons}",
        remedy="replace the operators named above in the model, or try another target",
    )


# ---------------------------------------------------------------------------------------------------- latency


def _add_latency(job: _Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    if job.here:
        return _measured(job, candidates)
    job.progress.note(
        f"{job.profile.name} is not this machine: latency is estimated from the device profile, not measured"
    )
    return [replace(c, measurement=_estimated(job, c.plan)) if c.failure is None else c for c in candidates]


def _estimated(job: _Job, plan: Plan) -> Measurement:
    return estimate.latency(
        _changed(job, plan).costs if plan.steps else job.costs,
        job.profile,
        runtime=plan.runtime,
        precision=plan.precision,
        threads=job.threads,
        percentile=job.budget.percentile,
    )


def _bench_options(job: _Job) -> bench.BenchOptions:
    return bench.BenchOptions(
        threads=job.threads,
        percentile=job.budget.percentile,
        warmup_s=job.request.warmup_s,
        min_runs=job.request.min_runs,
        min_seconds=job.request.min_seconds,
        seed=job.request.seed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurements:
    items: tuple[Measurement, ...]


def _measured(job: _Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Measure all files on this machine, interleaved, so that their figures can be compared."""
    with_files = [c for c in candidates if c.artifact is not None]
    options = _bench_options(job)
    key = digest([c.artifact.sha256 for c in with_files if c.artifact], options, job.machine, _versions())

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


def machine_id() -> str:
    """What keys a measurement to this machine, so that a moved work folder does not claim another's figures."""
    import platform

    try:
        unique = Path("/etc/machine-id").read_text().strip()
    except OSError:
        unique = ""
    return digest(platform.node(), platform.machine(), unique)


# -------------------------------------------------------------------------------------------- smaller models

#: Ways to run the model that smaller ones start from: the fastest few.
_BASES = 3
#: What a frontier aims at, as shares of the fastest file's latency.
_FRONTIER = (0.9, 0.75, 0.6, 0.45)


#: The share of the time limit that is for training steps; looking at held-back samples takes some, too.
_TRAINING_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """How many training steps fit in the time limit, as they were counted once: a plan holds counts, never seconds."""

    count: int


def _value_ms(candidate: Candidate) -> float:
    return candidate.measurement.value_ms if candidate.measurement is not None else float("inf")


def _shrink(job: _Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """Smaller models, where no file of the whole model keeps every limit."""
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    if not usable or not job.request.prune or job.request.plan is not None:
        return []
    if not job.request.frontier and any(not search.violations(c, job.budget) for c in usable):
        return []
    whole = sorted(usable, key=_value_ms)
    bases = {c.plan.label: c for c in whole if not c.plan.reduce_range}
    try:
        return _Shrinking(job=job, bases=dict([*bases.items()][:_BASES]), reference=reference).run()
    except UnsupportedModelError as exc:
        job.progress.warn(exc.message)
        return []


@dataclass(slots=True, kw_only=True)
class _Shrinking:
    """One search for smaller models: the ways to run them that it starts from, and what came of it."""

    job: _Job
    bases: dict[str, Candidate]
    reference: evaluate.Reference
    found: list[Candidate] = field(default_factory=list)
    prospect: shrink.Prospect | None = None

    def run(self) -> list[Candidate]:
        job = self.job
        tile = max(self._tile(c.plan) for c in self.bases.values())
        prospect = self.prospect = shrink.explore(
            job.model,
            _fitting(job),
            macs=sum(cost.macs for cost in job.costs),
            tile=tile,
            seed=job.request.seed,
            progress=job.progress,
        )
        aims = {name: self._aim(prospect, name, c) for name, c in self.bases.items()}
        least = min(aim.reachable_ms() for aim in aims.values())
        for budget_ms in self._budgets(min(aim.whole_ms for aim in aims.values())):
            if not shrink.search(aims, budget_ms, self._attempt):
                job.progress.note(
                    f"no smaller model was found for {budget_ms:.3g} ms: pruning may reach about {least:.3g} ms"
                )
        if job.request.train:
            self._train()
        return self.found

    def _train(self) -> None:
        """Distil the best of what was found: latency does not depend on the weights, so nothing else is worth it."""
        usable = [c for c in self.found if c.failure is None]
        if not usable:
            return
        best = search.choose(usable, self.job.budget).candidate
        job, plan = self.job, best.plan
        student, samples = _changed(job, plan).model, _fitting(job)
        count = distill.sample_count(job.model, len(samples))
        one = distill.step(steps=1, samples=count, seed=job.request.seed)
        key = digest("training", job.model.sha256, student.sha256, one, job.request.time_limit_min, _versions())

        def make(_: Path) -> _Steps:
            seconds = distill.seconds_a_step(job.model, student, samples, one)
            return _Steps(count=max(1, round(_TRAINING_SHARE * 60 * job.request.time_limit_min / seconds)))

        steps = job.store.cached("training", key, _Steps, make).count
        trained = distill.step(steps=steps, samples=count, seed=job.request.seed)
        self.found.append(_with_steps(job, replace(plan, steps=(*plan.steps, trained)), self.reference))

    def _budgets(self, fastest_ms: float) -> list[float]:
        """What to aim at: the budget where it is not met yet, and for a frontier shares of the fastest file."""
        budget_ms = self.job.budget.latency_ms
        aims = [budget_ms] if budget_ms < fastest_ms else []
        if self.job.request.frontier:
            aims += [share * fastest_ms for share in _FRONTIER if share * fastest_ms < 0.95 * budget_ms]
        return aims

    def _tile(self, plan: Plan) -> int:
        support = self.job.profile.runtime(plan.runtime)
        return support.tile.of(plan.precision) if support is not None else 8

    def _aim(self, prospect: shrink.Prospect, name: str, candidate: Candidate) -> shrink.Aim:
        plan, measurement = candidate.plan, candidate.measurement
        assert measurement is not None
        with self.job.progress.stage(f"Time the operators of {name}"):
            space = shrink.space(prospect, lambda keys: self._times(plan, keys), tile=self._tile(plan))
        aim = shrink.Aim(space=space)
        aim.note(space.whole(), measurement.ci_high_ms)
        return aim

    def _times(self, plan: Plan, keys: Sequence[tables.OperatorKey]) -> dict[tables.OperatorKey, float]:
        job = self.job
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
        return {
            key: estimate.operator_ms(cost_of(key), costs, threads=job.threads, tile=self._tile(plan)) for key in keys
        }

    def _attempt(self, name: str, counts: Mapping[str, int]) -> float | None:
        """Make, convert and time one smaller model; its milliseconds, or ``None`` where there is no file."""
        assert self.prospect is not None
        plan = replace(self.bases[name].plan, steps=shrink.steps(self.prospect, counts))
        candidate = _with_steps(self.job, plan, self.reference)
        self.found.append(candidate)
        return candidate.measurement.ci_high_ms if candidate.measurement is not None else None


#: Samples beyond those of the calibration that layers may be fitted on.
_FIT_SAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Joined(Sequence[Arrays]):
    """Two parts of the data one behind the other, read when they are asked for."""

    first: Sequence[Arrays]
    second: Sequence[Arrays]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, index: int) -> Arrays: ...

    @overload
    def __getitem__(self, index: slice) -> list[Arrays]: ...

    def __getitem__(self, index: int | slice) -> Arrays | list[Arrays]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.first[index] if index < len(self.first) else self.second[index - len(self.first)]


def _fitting(job: _Job) -> Sequence[Arrays]:
    """The samples that smaller models are fitted on: none of those that choices or figures come from."""
    return _Joined(first=job.data.calibration, second=job.data.training)


def _with_steps(job: _Job, plan: Plan, reference: evaluate.Reference) -> Candidate:
    """The candidate of a plan that changes the model first."""
    candidate = _lower_one(job, plan, execute.original(job.model))
    if candidate.failure is not None:
        return candidate
    (candidate,) = _add_latency(job, [candidate])
    (candidate,) = _add_validation(job, [candidate], reference)
    return candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changed:
    """What the steps of a plan made, as the work folder keeps it."""

    model: Model


def _changed(job: _Job, plan: Plan) -> _Job:
    """The job with the model that the plan's steps make."""
    key = digest("steps", job.model.sha256, plan.steps, job.data.digest, _versions())
    kept = job.store.cached(
        "model",
        key,
        _Changed,
        lambda folder: _Changed(model=techniques.apply(job.model, plan.steps, _fitting(job), folder, job.progress)),
    )
    return replace(job, model=kept.model, costs=graph.operators(kept.model.path))


# --------------------------------------------------------------------------------------------------- accuracy


def _reference(job: _Job) -> evaluate.Reference | None:
    """The original on the validation part: run before any long work, since labels or limits may not fit it."""
    if job.data.synthetic:
        return None
    with job.progress.stage("Run the original", len(job.data.validation)) as advance:
        reference = evaluate.reference(execute.original(job.model), job.data.validation, progress=_each(advance))
    _check_limits_fit(job, reference)
    return reference


def _add_validation(job: _Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """The accuracy of every file on the validation part, which the choice is made on."""
    with_files = [c for c in candidates if c.artifact is not None and c.failure is None]
    with job.progress.stage("Validate", len(with_files) * len(job.data.validation)) as advance:
        by_plan = {c.plan: _accuracy(job, c, reference, "validation", advance) for c in with_files}
    return [replace(c, accuracy=by_plan.get(c.plan)) for c in candidates]


def _each(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    return lambda done, total: advance(1)


def _check_limits_fit(job: _Job, reference: evaluate.Reference) -> None:
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
    job: _Job,
    candidate: Candidate,
    reference: evaluate.Reference,
    part: Literal["validation", "evaluation"],
    advance: Callable[[int], None],
) -> Accuracy:
    artifact = candidate.artifact
    assert artifact is not None
    samples = job.data.validation if part == "validation" else job.data.evaluation
    key = digest(part, artifact.sha256, job.model.sha256, job.data.digest, len(samples), _versions())
    return job.store.cached(
        "accuracy",
        key,
        Accuracy,
        lambda _: evaluate.accuracy(execute.artifact(artifact), reference, samples, progress=_each(advance)),
    )


def _evaluate(job: _Job, chosen: Candidate) -> tuple[Accuracy | None, Accuracy | None]:
    """The accuracy of the file that ships, and of the original, on the part that nothing was chosen on."""
    if job.data.synthetic:
        return None, None
    samples = job.data.evaluation
    with job.progress.stage("Evaluate the file that ships", 2 * len(samples)) as advance:
        reference = evaluate.reference(execute.original(job.model), samples, progress=_each(advance))
        return _accuracy(job, chosen, reference, "evaluation", advance), reference.accuracy


# ----------------------------------------------------------------------------------------------------- bundle


def _write_bundle(
    job: _Job,
    candidates: Sequence[Candidate],
    choice: search.Choice,
    accuracy: Accuracy | None,
    original: Accuracy | None,
) -> BuildResult:
    artifact = choice.candidate.artifact
    assert artifact is not None
    assert choice.candidate.measurement is not None
    verdict = _verdict(job, choice, accuracy)
    with job.progress.stage("Write the bundle"), bundle.BundleWriter(job.request.out) as writer:
        model_path = writer.add("model", artifact.file, f"model{artifact.file.suffix}")
        golden = _add_golden(job, writer, replace(artifact, file=model_path))
        if job.data.class_names:
            writer.add_bytes("labels", ("\n".join(job.data.class_names) + "\n").encode(), "labels.txt")
        bundle.add_runner(writer, artifact.runtime)
        manifest = bundle.Manifest(
            schema_version=bundle.SCHEMA_VERSION,
            edgecompile_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command_line=job.request.command_line,
            seed=job.request.seed,
            options=job.request.options,
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
            preprocessing=to_builtins(job.data.preprocessing) if job.data.preprocessing is not None else None,
            measurement=choice.candidate.measurement,
            accuracy=accuracy,
            original_accuracy=original,
            parity=tuple(
                c.parity for c in candidates if c.parity and c.artifact and c.plan.runtime == artifact.runtime
            ),
            candidates=_tried(candidates, choice),
            data=_data_facts(job),
            golden=golden,
            versions=_versions(),
            files=writer.files,
        )
        writer.add_bytes("page", page.render(manifest).encode(), "report.html")
        result = writer.finish(replace(manifest, files=writer.files))
    return BuildResult(bundle=result, exit_code=verdict.exit_code)


def _verdict(job: _Job, choice: search.Choice, accuracy: Accuracy | None) -> bundle.Verdict:
    """The verdict on the file that ships: its accuracy limit is checked on the evaluation part."""
    missed = search.accuracy_violations(accuracy, job.budget)
    if choice.status == "not met" or missed:
        text = choice.text
        if choice.status != "not met":
            text = f"{choice.candidate.plan.label} kept the limits on the validation part, but on the evaluation part: "
            text += "; ".join(missed)
        return bundle.Verdict(status="not met", text=text, exit_code=LimitNotMet.exit_code, help=choice.help)
    code = EXIT_PREDICTED if choice.status == "predicted" else 0
    return bundle.Verdict(status=choice.status, text=choice.text, exit_code=code, help=choice.help)


def _add_golden(job: _Job, writer: bundle.BundleWriter, artifact: Artifact) -> bundle.Golden:
    """Golden vectors: real inputs as the file takes them, and what the shipped file made of them here."""
    samples = _some(job.data.evaluation if not job.data.synthetic else job.data.calibration, GOLDEN_SAMPLES)
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
    )


def _model_facts(job: _Job) -> bundle.ModelFacts:
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
        )
        for c, verdict in zip(candidates, choice.verdicts, strict=True)
    )


def _data_facts(job: _Job) -> bundle.DataFacts | None:
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


_RECORDED = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "tensorflow",
    "torch",
)


@functools.cache
def _versions() -> dict[str, str]:
    """The versions that results depend on: they key the work folder and stand in the manifest."""
    found = {"edgecompile": __version__}
    for name in _RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["BuildResult", "EdgecompileError", "build", "prepare", "propose"]
