"""The latency of candidates: measured on the device, or estimated from its profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import bench, engines, estimate, learn, tables
from edgecompile.errors import DeviceError, EdgecompileError, InputError, UnsupportedModelError
from edgecompile.jetson import versions as versions_of_tensorrt
from edgecompile.lower import tensorrt
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import Job, bench_options, versions
from edgecompile.store import Store, cache_root
from edgecompile.tables.costs import cost_of
from edgecompile.types import (
    Artifact,
    Candidate,
    Engine,
    Measurement,
    Plan,
    digest,
)


def add_latency(
    job: Job, candidates: Sequence[Candidate], *, required: bool = False, yardstick: Candidate | None = None
) -> list[Candidate]:
    """The latency of every file. ``required`` says that these are the first: what keeps all from becoming engines is
    raised, and what is only estimated is said.

    ``yardstick`` takes turns with files that are measured apart from the whole model's.
    """
    if job.board is not None:
        candidates = _on_board(job, job.board, candidates, required=required)
    else:
        candidates = [_buildable(job, c) for c in candidates]
    if job.here:
        return _measured(job, candidates, yardstick)
    if required:  # once a build, and not again for every file that is tried later
        reason = "is not this machine" if job.emulated is None else "is emulated, and an emulated board has no latency"
        job.progress.note(f"{job.profile.name} {reason}: latency is estimated from the device profile, not measured")
    return [replace(c, measurement=estimated(job, c.plan)) if c.failure is None else c for c in candidates]


def estimated(job: Job, plan: Plan) -> Measurement:
    """By what was learned of the device, else by its cost tables."""
    shaped = changed(job, plan) if plan.steps else job
    learned = learn.latency(
        shaped.model.path,
        job.profile,
        runtime=plan.runtime,
        precision=plan.precision,
        threads=job.threads,
        percentile=job.budget.percentile,
    )
    return learned or estimate.latency(
        shaped.costs,
        job.profile,
        runtime=plan.runtime,
        precision=plan.precision,
        threads=job.threads,
        percentile=job.budget.percentile,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measurements:
    items: tuple[Measurement, ...]


def _measured(job: Job, candidates: Sequence[Candidate], yardstick: Candidate | None) -> list[Candidate]:
    """Measure all files on this machine, interleaved, so that their figures can be compared."""
    rest = [_by_provider(job, c) if c.artifact is not None and c.plan.provider is not None else c for c in candidates]
    plain = [c for c in rest if c.artifact is not None and c.plan.provider is None and not _for_board(job, c)]
    return _in_turns(job, rest, plain, yardstick)


def _by_provider(job: Job, candidate: Candidate) -> Candidate:
    """ONNX Runtime on the board's GPU: an alternative, so that one that does not start there is only said to."""
    try:
        return _in_turns(job, [candidate], [candidate])[0]
    except (DeviceError, InputError) as exc:
        job.progress.warn(f"{candidate.plan.label}: {exc.message}")
        return replace(candidate, failure=exc.message)


def _in_turns(
    job: Job, candidates: Sequence[Candidate], with_files: Sequence[Candidate], yardstick: Candidate | None = None
) -> list[Candidate]:
    if not with_files:
        return list(candidates)
    with_files = [*with_files, *([yardstick] if yardstick is not None else [])]
    options = bench_options(job)
    files = [(c.artifact.sha256, c.artifact.provider) for c in with_files if c.artifact]
    key = digest(files, options, job.machine, versions())

    new: list[bool] = []

    def make(_: Path) -> _Measurements:
        new.append(True)
        artifacts = [c.artifact for c in with_files if c.artifact is not None]
        with job.transport() as transport:
            return _Measurements(items=_with_speed_up(with_files, bench.measure(artifacts, transport, options)))

    with job.progress.stage(options.title(len(with_files))):
        measurements = job.store.cached("measure", key, _Measurements, make).items
        if not new and not job.budget.accept_throttled and not all(m.trusted for m in measurements):
            job.store.forget("measure", key)  # of an earlier build: the device may be in a better state now
            measurements = job.store.cached("measure", key, _Measurements, make).items
    by_plan = {c.plan: m for c, m in zip(with_files, measurements, strict=True)}
    for warning in bench.doubts_by_file([c.plan.label for c in with_files], measurements):
        job.progress.warn(warning)
    return [replace(c, measurement=by_plan[c.plan]) if c.plan in by_plan else c for c in candidates]


def _with_speed_up(files: Sequence[Candidate], result: bench.BenchResult) -> tuple[Measurement, ...]:
    """The measurements, each with its ratio to the whole model's float file for its runtime, which had turns too."""
    whole = {c.plan.runtime: i for i, c in enumerate(files) if is_yardstick(c.plan)}
    found = []
    for i, (candidate, measurement) in enumerate(zip(files, result.measurements, strict=True)):
        place = whole.get(candidate.plan.runtime, i)
        compared = place != i and len(result.rounds[i]) > 1
        found.append(replace(measurement, speed_up=result.ratio(place, i) if compared else None))
    return tuple(found)


def is_yardstick(plan: Plan) -> bool:
    """Whether a plan makes the whole model's float file, which others are compared with."""
    return plan.precision == "fp32" and not plan.steps and plan.provider is None


# ----------------------------------------------------------------------------------------- engines on a board


def _for_board(job: Job, candidate: Candidate) -> bool:
    return job.board is not None and candidate.plan.runtime == "tensorrt" and candidate.plan.provider is None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnBoard:
    """Engines as they were measured, with the times of their layers."""

    items: tuple[Measurement, ...]
    engines: tuple[Engine, ...]


def _on_board(job: Job, board: engines.Board, candidates: Sequence[Candidate], *, required: bool) -> list[Candidate]:
    """Build the engines that are not there yet, and measure them in turns. One that cannot be built says why."""
    wanted = [c for c in candidates if c.artifact is not None and c.failure is None and _for_board(job, c)]
    built: dict[Plan, Engine] = {}
    faults: dict[Plan, EdgecompileError] = {}
    with ExitStack() as stack:
        reach = _reaching(job, board, stack)
        with job.progress.stage(f"Build {len(wanted)} engines on {board.name}", len(wanted)) as advance:
            for candidate in wanted:
                assert candidate.artifact is not None
                try:
                    built[candidate.plan] = _engine(job, board, candidate.artifact, reach)
                except engines.ModelFault as exc:
                    faults[candidate.plan] = exc.error
                except UnsupportedModelError as exc:
                    faults[candidate.plan] = exc
                advance(1)
        for plan, fault in faults.items():
            job.progress.warn(f"{plan.label}: {fault.message}")
        if faults and not built and required:
            raise next(iter(faults.values()))
        found = _measured_engines(job, list(built.values()), reach) if built else _OnBoard(items=(), engines=())
    for warning in dict.fromkeys(w for m in found.items for w in m.warnings):
        job.progress.warn(warning)
    measured = dict(zip(built, zip(found.items, found.engines, strict=True), strict=True))
    return [_with_engine(c, measured.get(c.plan), faults.get(c.plan)) for c in candidates]


def _buildable(job: Job, candidate: Candidate) -> Candidate:
    """Without a board, what not even the newest TensorRT that there is for it takes is no candidate."""
    newest = versions_of_tensorrt.newest_of(job.profile.jetpacks)
    if newest is None or candidate.artifact is None or candidate.plan.runtime != "tensorrt":
        return candidate
    try:
        tensorrt.require(candidate.artifact, str(newest))
    except UnsupportedModelError as exc:
        job.progress.warn(f"{candidate.plan.label}: {exc.message}")
        return replace(candidate, failure=exc.message, measurement=None)
    return candidate


def _with_engine(
    candidate: Candidate, found: tuple[Measurement, Engine] | None, fault: EdgecompileError | None
) -> Candidate:
    if fault is not None:
        return replace(candidate, failure=fault.message)
    return candidate if found is None else replace(candidate, measurement=found[0], engine=found[1])


def _reaching(job: Job, board: engines.Board, stack: ExitStack) -> Callable[[], engines.Bench]:
    """The board to work on; connected when it is first needed, so that a build that has all its results is not."""
    opened: list[engines.Bench] = []

    def reach() -> engines.Bench:
        if not opened:
            transport = stack.enter_context(job.transport())
            cache = job.store.root / "timing-caches" / f"{board.key}.cache"
            session = engines.session(transport, board, power_mode=job.request.power_mode, timing_cache=cache)
            opened.append(stack.enter_context(session))
        return opened[0]

    return reach


def _engine(job: Job, board: engines.Board, artifact: Artifact, reach: Callable[[], engines.Bench]) -> Engine:
    tensorrt.require(artifact, str(board.version))
    key = digest(artifact.sha256, board.key, job.request.power_mode, versions())
    return job.store.cached("engine", key, Engine, lambda folder: engines.build(reach(), artifact, folder))


def _measured_engines(job: Job, made: Sequence[Engine], reach: Callable[[], engines.Bench]) -> _OnBoard:
    options = bench_options(job)
    key = digest("engines", [engine.source_sha256 for engine in made], options, job.machine, versions())

    new: list[bool] = []

    def make(_: Path) -> _OnBoard:
        new.append(True)
        with job.progress.stage(f"Measure {len(made)} engines in turns", engines.rounds(options) * len(made)) as step:
            result, profiled = engines.measure(reach(), made, options, advance=step)
        return _OnBoard(items=result.measurements, engines=profiled)

    found = job.store.cached("measure", key, _OnBoard, make)
    if not new and not job.budget.accept_throttled and not all(m.trusted for m in found.items):
        job.store.forget("measure", key)  # of an earlier build: the board may be in a better state now
        found = job.store.cached("measure", key, _OnBoard, make)
    return found


def tile_of(job: Job, plan: Plan) -> int:
    """The channels that the plan's runtime computes at a time on the device."""
    support = job.profile.runtime(plan.runtime)
    return support.tile.of(plan.precision) if support is not None else 8


def operator_times(job: Job, plan: Plan, keys: Sequence[tables.OperatorKey]) -> dict[tables.OperatorKey, float]:
    """The milliseconds of single operators at a plan's runtime and precision: measured, or the profile's estimates."""
    # Single operators are no engines: launching them costs more than computing them. Whole ones are measured.
    # benchmark_model takes a second a file and tells whole microseconds, too coarse for these.
    if job.here and plan.runtime != "tensorrt" and job.request.benchmark_model is None:
        with job.transport() as transport:
            return tables.measure(
                keys,
                runtime=plan.runtime,
                precision=plan.precision,
                threads=job.threads,
                workdir=job.store.root / "operators",
                # A user's builds share what single operators take; with --fresh they are measured anew.
                cache=job.store if job.request.fresh else Store(cache_root()),
                fingerprint=job.machine,
                transport=transport,
            )
    learned = learn.operator_times(
        keys, job.profile, runtime=plan.runtime, precision=plan.precision, threads=job.threads
    )
    if learned is not None:
        return learned
    costs = job.profile.costs(plan.runtime, plan.precision)
    assert costs is not None, "what is estimated has a cost table"
    tile = tile_of(job, plan)
    return {key: estimate.operator_ms(cost_of(key), costs, threads=job.threads, tile=tile) for key in keys}
