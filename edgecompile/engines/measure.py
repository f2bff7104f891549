"""Measures engines on a board in alternating rounds, and says what is known and what should be doubted."""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgecompile import bench as cpu
from edgecompile.bench import intervals
from edgecompile.engines import board as boards
from edgecompile.engines.board import Moment
from edgecompile.engines.build import Bench, ModelFault, place, raise_fault
from edgecompile.errors import DeviceError
from edgecompile.jetson import failures, state, trtexec
from edgecompile.transport import Completed
from edgecompile.types import Engine, EngineLayer, Environment, GpuState, Measurement

#: A process on the board needs seconds to start CUDA, so rounds are few and no shorter than a second.
_ROUNDS = 5
_LAYERS = 20
_PERCENTILES = (50, 90, 95, 99)
#: Starting, loading and exporting, besides the run itself.
_BESIDES_S = 300.0


@dataclass(slots=True)
class _Series:
    """What the rounds of one engine gave: the times of all runs, or where these cannot be read, of the summary."""

    rounds: list[tuple[float, ...]] = field(default_factory=list)
    summaries: list[trtexec.Stats] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def rounds_of(options: cpu.BenchOptions) -> int:
    """How many rounds there will be."""
    return options.rounds or _ROUNDS


def measure(
    bench: Bench,
    engines: Sequence[Engine],
    options: cpu.BenchOptions,
    *,
    advance: Callable[[int], None] = lambda steps: None,
) -> tuple[cpu.BenchResult, tuple[Engine, ...]]:
    """Measure engines in turns, each round a process of its own; the figures, and the engines with their layers' times.

    A latency is the GPU's own time for a run, without the transfers to and from it. Raises `DeviceError` where an
    engine does not run.
    """
    count = rounds_of(options)
    found = [_Series() for _ in engines]
    moments = [boards.look(bench.transport)]
    for number in range(count):
        # The order turns with the rounds, so that none is always the one after another's heat.
        for index in [(number + i) % len(engines) for i in range(len(engines))]:
            _round(bench, engines[index], options, count, found[index])
            advance(1)
        moments.append(boards.look(bench.transport))
    profiled = tuple(_profiled(bench, engine) for engine in engines)
    environment = _environment(bench, moments)
    doubts = tuple(_doubts(moments))
    measurements = tuple(_measurement(bench, series, environment, doubts, options) for series in found)
    rounds = tuple(tuple(_of_rounds(series, options.percentile)) for series in found)
    return cpu.BenchResult(measurements=measurements, rounds=rounds, percentile=options.percentile), profiled


def _round(bench: Bench, engine: Engine, options: cpu.BenchOptions, count: int, series: _Series) -> None:
    at = place(bench, engine)
    warmup_ms = round(1000 * options.warmup_s)
    duration_s = max(1, round(options.min_seconds / count))
    command = trtexec.run_command(
        bench.board.capabilities,
        trtexec="trtexec",
        engine=f"{at}/model.engine",
        times=f"{at}/times.json",
        profile=None,
        layer_info=None,
        warmup_ms=warmup_ms,
        duration_s=duration_s,
        iterations=max(10, -(-options.min_runs // count)),
        percentiles=sorted({90.0, 95.0, 99.0, options.percentile} - {50.0}),
    )
    log = _ran(bench, command, duration_s + options.warmup_s)
    series.warnings += [words for words in log.warnings if words not in series.warnings]
    times = _exported(bench, f"{at}/times.json", warmup_ms)
    if times:
        series.rounds.append(tuple(times))
    elif log.gpu_compute or log.latency:
        series.summaries += [stats for stats in (log.gpu_compute or log.latency,) if stats]
    else:
        raise DeviceError(
            f"trtexec on {bench.transport.description} ended well and told no times",
            remedy="is its disk full? Free space there, and measure again",
        )


def _ran(bench: Bench, command: list[str], seconds: float) -> trtexec.TrtexecLog:
    done: Completed = bench.run(command, timeout_s=2 * seconds + _BESIDES_S)
    text = done.out + "\n" + done.err
    log = trtexec.parse_log(text)
    if done.code != 0 or log.outcome == "failed":
        try:
            raise_fault(failures.explain(text, returncode=done.code, step="run", version=bench.board.version))
        except ModelFault as exc:
            raise exc.error from exc
    return log


def _exported(bench: Bench, name: str, warmup_ms: int) -> list[float]:
    """The times of all runs; none where the file is not there or is broken: then the summary has to do."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DeviceError):
        local = Path(folder) / "times.json"
        bench.transport.get(name, local)
        text = local.read_text(errors="replace")
        return trtexec.parse_times(text, warmup_ms=warmup_ms if bench.board.capabilities.times_with_warmup else 0.0)
    return []


def _profiled(bench: Bench, engine: Engine) -> Engine:
    """The engine with the times of its layers, from a short run of its own; without them where that fails."""
    at = place(bench, engine)
    command = trtexec.run_command(
        bench.board.capabilities,
        trtexec="trtexec",
        engine=f"{at}/model.engine",
        times=None,
        profile=f"{at}/profile.json",
        layer_info=None,
        warmup_ms=200,
        duration_s=1,
        iterations=10,
        percentiles=(),
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DeviceError):
        _ran(bench, command, 2.0)
        local = Path(folder) / "profile.json"
        bench.transport.get(f"{at}/profile.json", local)
        layers = trtexec.parse_profile(local.read_text(errors="replace"))
        by_cost = sorted(layers, key=lambda layer: -layer.average_ms)
        times = [EngineLayer(name=one.name, average_ms=one.average_ms, percent=one.percent) for one in by_cost]
        return replace(engine, layers=tuple(times))
    return engine


# -------------------------------------------------------------------------------------------------- the figures


def _of_rounds(series: _Series, percentile: float) -> Iterator[tuple[float, ...]]:
    """The runs of each round; a round that only has its summary counts as one run of its percentile."""
    yield from series.rounds
    if not series.rounds:
        for summary in series.summaries:
            value = summary.percentile(percentile)
            yield (summary.max_ms if value is None else value,)


def _measurement(
    bench: Bench,
    series: _Series,
    environment: Environment,
    doubts: tuple[cpu.Doubt, ...],
    options: cpu.BenchOptions,
) -> Measurement:
    rounds = list(_of_rounds(series, options.percentile))
    value = intervals.percentile(rounds, options.percentile)
    runs = sum(map(len, series.rounds))
    own = [cpu.Doubt(words=f"trtexec: {words}") for words in series.warnings]
    if series.rounds:
        own += [cpu.Doubt(words=w) for w in cpu.unsteady(rounds, runs, value, options.percentile)]
    else:
        own.append(cpu.Doubt(words="trtexec's own summary of each round, since the times of the runs cannot be read"))
    median, p90, p95, p99 = _percentiles(series)
    return Measurement(
        provenance="measured",
        device=environment.device,
        runtime="tensorrt",
        runtime_version=str(bench.board.version),
        threads=1,
        percentile=options.percentile,
        value_ms=value.value,
        ci_low_ms=value.low,
        ci_high_ms=value.high,
        median_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        runs=runs or len(series.summaries),
        environment=environment,
        warnings=tuple(doubt.words for doubt in (*doubts, *own)),
        trusted=not any(doubt.grave for doubt in (*doubts, *own)),
    )


def _percentiles(series: _Series) -> tuple[float, float, float, float]:
    import numpy as np

    if series.rounds:
        found = np.percentile(np.concatenate(series.rounds), _PERCENTILES)
    else:
        # A percentile that a version does not print is bounded by the longest run.
        rows = [
            [summary.max_ms if (ms := summary.percentile(q)) is None else ms for q in _PERCENTILES]
            for summary in series.summaries
        ]
        found = np.median(rows, axis=0)
    median, p90, p95, p99 = (float(ms) for ms in found)
    return median, p90, p95, p99


# ---------------------------------------------------------------------------------------------------- the board


def _environment(bench: Bench, moments: Sequence[Moment]) -> Environment:
    board, first, last = bench.board, moments[0], moments[-1]
    before, after = first.board, last.board
    junctions = [j for m in moments if m.board.usage and (j := m.board.usage.junction_c) is not None]
    return Environment(
        device=board.name,
        machine=board.machine,
        cpu_model="",
        cpu_flags=(),
        cores=board.cores,
        affinity=tuple(range(board.cores)),
        kernel=board.kernel,
        load_before=first.load,
        load_after=last.load,
        temperature_c_before=before.usage.junction_c if before.usage else None,
        temperature_c_after=after.usage.junction_c if after.usage else None,
        temperature_c_highest=max(junctions, default=None),
        memory_available_bytes_before=first.memory_available_bytes,
        memory_available_bytes_after=last.memory_available_bytes,
        board=GpuState(
            gpu=board.gpu,
            tensorrt=str(board.version),
            jetpack=board.jetpack.name if board.jetpack else board.capabilities.jetpack,
            l4t=board.jetpack.l4t if board.jetpack else None,
            power_mode=before.power_mode.name if before.power_mode else None,
            clocks_locked=_locked(before),
            gpu_mhz_before=_mhz(before),
            gpu_mhz_after=_mhz(after),
            junction_c_highest=max(junctions, default=None),
            over_current=sum(
                max(0, after.over_current.get(name, count) - count) for name, count in before.over_current.items()
            ),
        ),
    )


def _locked(found: state.BoardState) -> bool | None:
    return found.clocks.gpu.asked_to_stay if found.clocks and found.clocks.gpu else None


def _mhz(found: state.BoardState) -> float | None:
    if found.clocks and found.clocks.gpu:
        return found.clocks.gpu.current_hz / 1e6
    return float(found.usage.gpu_mhz) if found.usage and found.usage.gpu_mhz else None


def _doubts(moments: Sequence[Moment]) -> Iterator[cpu.Doubt]:
    """What slowed the board between any two looks at it, and how it was set."""
    pairs = itertools.pairwise(moments)
    said = dict.fromkeys(words for a, b in pairs for words in state.throttled(a.board, b.board))
    for words in said:
        yield cpu.Doubt(words=f"throttled while measuring: {words}", grave=True)
    locked = _locked(moments[0].board)
    if locked is not True:
        known = "were not locked" if locked is False else "may not have been locked (the board does not tell)"
        yield cpu.Doubt(words=f"the GPU's clocks {known}: sudo jetson_clocks there makes figures comparable")


def layers_json(made: Engine) -> bytes:
    """What is known of an engine's layers: their times, and the rest as ``trtexec`` exported it."""
    times = [{"name": one.name, "average_ms": one.average_ms, "percent": one.percent} for one in made.layers]
    return json.dumps({"tensorrt": made.tensorrt, "gpu": made.gpu, "layers": times}, indent=1).encode() + b"\n"
