"""Measures files interleaved in rounds, and says what is known and what should be doubted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgecompile import stats
from edgecompile.bench import document, intervals, runner, state
from edgecompile.transport import Transport
from edgecompile.types import Artifact, Cluster, Environment, Measurement, Ratio

#: Beyond these the figures of a measurement are not to be taken at their word.
_DRIFT = 0.05
_WIDE = 0.1
_RUNS_BEYOND = 5
#: For expectations only: the runner's share of the warm-up in later rounds, and what starting a round's process takes.
_LATER_WARMUP = 0.2
_ROUND_S = 0.5
#: Operators whose running outside the delegate makes a file several times slower.
_HEAVY = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure: each file runs at least ``min_runs`` times and ``min_seconds``, spread over rounds.

    A round is a fresh process in which the files take turns. Without ``rounds``: one for each 0.3 seconds, 3 to 10.

    The rounds make two passes. Where their medians differ by more than 5 %, passes are added until two agree, up to
    ``passes``; between two passes the machine may cool down for ``cool_down_s`` seconds. One pass: nothing is compared.
    """

    threads: int = 1
    percentile: float = 50.0
    warmup_s: float = 1.0
    min_runs: int = 50
    min_seconds: float = 3.0
    rounds: int | None = None
    passes: int = 5
    cool_down_s: float = 30.0
    pin: bool = True
    seed: int = 0
    timeout_s: float = 3600.0

    @property
    def round_count(self) -> int:
        """How many rounds there will be."""
        return self.rounds or min(10, max(3, round(self.min_seconds / 0.3)))

    def least_s(self, files: int) -> float:
        """The seconds that measuring so many files takes at least; slow or unsteady ones take longer."""
        warming = self.warmup_s * (1 + _LATER_WARMUP * (self.round_count - 1))
        return files * (warming + self.min_seconds) + _ROUND_S * self.round_count

    def title(self, files: int) -> str:
        """What the stage is called: nothing tells how far a measurement is, since watching would disturb it."""
        return f"Measure {files} file{'s' if files > 1 else ''}, {self.least_s(files):.0f} s or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured; ``rounds[i][k]`` holds file ``i``'s latencies (ms) in round ``k``."""

    measurements: tuple[Measurement, ...]
    rounds: tuple[tuple[tuple[float, ...], ...], ...]
    percentile: float

    def ratio(self, i: int, j: int) -> Ratio:
        """File ``i``'s percentile over file ``j``'s, with an interval over whole rounds (at least two)."""
        found = intervals.ratio(self.rounds[i], self.rounds[j], self.percentile)
        return Ratio(value=found.value, ci_low=found.low, ci_high=found.high)


def measure(artifacts: Sequence[Artifact], transport: Transport, options: BenchOptions) -> BenchResult:
    """Measure files interleaved in one process on a machine.

    Raises `DeviceError` when the machine or its runner fails, `InputError` when a file cannot be run at all.
    """
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


def environment_of(machine: document.Machine) -> Environment:
    """The machine, as results carry it."""
    before, during, after = machine.before, machine.during, machine.after
    return Environment(
        device=machine.device,
        machine=machine.machine,
        cpu_model=machine.cpu_model,
        cpu_flags=machine.cpu_flags,
        cores=machine.cores,
        affinity=machine.affinity,
        kernel=machine.kernel,
        load_before=-1.0 if before.load is None else before.load,
        load_after=-1.0 if after.load is None else after.load,
        governor=before.governor,
        frequency_mhz_before=before.frequency_mhz,
        frequency_mhz_after=after.frequency_mhz,
        temperature_c_before=before.temperature_c,
        temperature_c_after=after.temperature_c,
        clusters=tuple(map(_cluster, before.clusters)),
        frequency_mhz_during=during.frequency_mhz if during else None,
        frequency_mhz_lowest=during.frequency_mhz_lowest if during else None,
        temperature_c_highest=during.temperature_c_highest if during else None,
        throttled_before=before.throttled,
        throttled_during=during.throttled if during else None,
        throttled_after=after.throttled,
        memory_available_bytes_before=before.memory_available_bytes,
        memory_available_bytes_after=after.memory_available_bytes,
        passes=max(1, len(machine.passes)),
        cooled_s=sum(one.cooled_s for one in machine.passes),
    )


def _cluster(clock: document.Clock) -> Cluster:
    return Cluster(
        cpus=clock.cpus,
        core=clock.core,
        capacity=clock.capacity,
        governor=clock.governor,
        min_mhz=clock.min_mhz,
        max_mhz=clock.max_mhz,
    )


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
