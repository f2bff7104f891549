"""Measures files interleaved in rounds, and says what is known and what should be doubted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgecompile import stats
from edgecompile.bench import benchmark_model, document, intervals, runner, state
from edgecompile.bench.options import BenchOptions, BenchResult, environment_of
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import Transport, lab
from edgecompile.types import Artifact, Environment, Measurement

#: Beyond these the figures of a measurement are not to be taken at their word.
_DRIFT = 0.05
_WIDE = 0.1
_RUNS_BEYOND = 5
#: Operators whose running outside the delegate makes a file several times slower.
_HEAVY = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")


def doubts_by_file(names: Sequence[str], measurements: Sequence[Measurement]) -> list[str]:
    """The warnings of files measured together, each once; what is not about all of them names those it is about."""
    said: dict[str, list[str]] = {}
    for name, measurement in zip(names, measurements, strict=True):
        for words in measurement.warnings:
            said.setdefault(words, []).append(name)
    return [words if len(of) == len(names) else f"{', '.join(of)}: {words}" for words, of in said.items()]


def measure(artifacts: Sequence[Artifact], transport: Transport, options: BenchOptions) -> BenchResult:
    """Measure files interleaved in one process on a machine, or by ``benchmark_model`` where the options name it.

    Raises `DeviceError` when the machine or its runner fails, `InputError` when a file cannot be run at all, and for an
    emulated machine, which has no latency.
    """
    lab.refuse_latency(transport)
    if options.benchmark_model is not None:
        return benchmark_model.measure(artifacts, transport, options)
    arguments = ["--rounds", str(options.round_count), *([] if options.pin else ["--no-pin"])]
    for name in ("threads", "warmup_s", "min_runs", "min_seconds", "seed", "passes", "cool_down_s"):
        arguments += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    found = runner.run(artifacts, transport, arguments, document.Document, timeout_s=options.timeout_s)
    environment = environment_of(found.environment)
    return BenchResult(
        measurements=tuple(_measurement(m, found.environment, environment, options) for m in found.models),
        rounds=tuple(m.latencies_ms for m in found.models),
        percentile=options.percentile,
    )


def is_document(text: str) -> bool:
    """Whether a text is what our runner prints with ``--json``, or writes with ``--output``."""
    return document.SENTINEL in text or text.lstrip().startswith('{"schema_version"')


def from_document(text: str, percentile: float) -> dict[str, Measurement]:
    """What a runner's document says, by the SHA-256 of each file. Raises `InputError` for what is no such document."""
    body = text if document.SENTINEL in text else document.SENTINEL + " ".join(text.splitlines())
    try:
        found = document.parse(body, document.Document)
    except DeviceError as exc:
        raise InputError(
            f"this is no document of our runner: {exc.message}", remedy="give it as --output wrote it"
        ) from exc
    if isinstance(found, document.Failed):
        raise InputError(f"the runner failed when this was written: {found.error.message}")
    rounds = [times for model in found.models for times in (model.latencies_ms or ((),))]
    if any(min(times, default=-1.0) < 0 for times in rounds):
        raise InputError(
            "this document of our runner has rounds without runs, or latencies below zero",
            remedy="give it as --output wrote it",
        )
    options = BenchOptions(threads=found.threads, percentile=percentile)
    environment = environment_of(found.environment)
    return {m.sha256: _measurement(m, found.environment, environment, options) for m in found.models if m.sha256}


def _measurement(
    found: document.Measured, machine: document.Machine, environment: Environment, options: BenchOptions
) -> Measurement:
    import numpy as np

    value = intervals.percentile(found.latencies_ms, options.percentile)
    doubts = [*state.doubts(machine, options.threads), *_doubts_about_file(found, value, options)]
    median, p90, p95, p99 = np.percentile(np.concatenate(found.latencies_ms), [50, 90, 95, 99])
    return Measurement(
        provenance="measured",
        device=environment.device,
        runtime=found.package,
        runtime_version=found.version,
        threads=options.threads,
        percentile=options.percentile,
        value_ms=value.value,
        ci_low_ms=value.low,
        ci_high_ms=value.high,
        median_ms=float(median),
        p90_ms=float(p90),
        p95_ms=float(p95),
        p99_ms=float(p99),
        runs=found.runs,
        cold_ms=found.cold_ms,
        load_ms=found.load_ms,
        peak_memory_bytes=found.peak_memory_bytes,
        delegated_operators=found.operators.delegated if found.operators else None,
        total_operators=found.operators.total if found.operators else None,
        environment=environment,
        warnings=tuple(doubt.words for doubt in doubts),
        trusted=not any(doubt.grave for doubt in doubts),
    )


def _doubts_about_file(found: document.Measured, value: stats.Interval, options: BenchOptions) -> Iterator[state.Doubt]:
    """Why one file's figures should be doubted."""
    if found.agreed is False:
        yield state.Doubt(words="no two passes agreed within 5 %", grave=True)
    unsteady_words = unsteady(found.latencies_ms, found.runs, value, options.percentile)
    yield from (state.Doubt(words=words) for words in unsteady_words)
    heavy = {name: n for name, n in (found.operators.left if found.operators else {}).items() if name in _HEAVY}
    if heavy and found.operators:
        names = ", ".join(f"{count} {name}" for name, count in heavy.items())
        delegated, total = found.operators.delegated, found.operators.total
        yield state.Doubt(words=f"the delegate took {delegated} of {total} operators, and not {names}")


def unsteady(rounds: Sequence[Sequence[float]], runs: int, value: stats.Interval, percentile: float) -> Iterator[str]:
    """Why figures that come from these rounds of runs should be doubted, whatever the machine says."""
    import numpy as np

    beyond = runs * min(percentile, 100.0 - percentile) / 100.0
    if beyond < _RUNS_BEYOND:
        yield f"{runs} runs are too few for the {percentile:g}th percentile"
    if value.high - value.low > _WIDE * value.value:
        yield f"the machine is noisy: the interval is {value.low:.3g} to {value.high:.3g} ms"
    medians = [float(np.median(one)) for one in rounds]
    third = len(medians) // 3
    if third:
        drift = float(np.median(medians[-third:]) / np.median(medians[:third])) - 1.0
        if abs(drift) > _DRIFT:
            yield f"latency changed by {drift:+.0%} from the first rounds to the last"
