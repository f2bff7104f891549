"""Measures files interleaved in rounds, and says what is known and what should be doubted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgecompile import stats
from edgecompile.bench import document, intervals, runner
from edgecompile.transport import Transport
from edgecompile.types import Artifact, Environment, Measurement, Ratio

#: Beyond these the figures of a measurement are not to be taken at their word.
_BUSY_CPUS = 0.25
_STOLEN_CPUS = 0.02
_DRIFT = 0.05
_WIDE = 0.1
_SLOWER_CLOCK = 0.9
_HOT_C = 80.0
_RUNS_BEYOND = 5
#: Operators whose running outside the delegate makes a file several times slower.
_HEAVY = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure: each file runs at least ``min_runs`` times and ``min_seconds``, spread over rounds.

    A round is a fresh process in which the files take turns. Without ``rounds``: one for each 0.3 seconds, 3 to 10.
    """

    threads: int = 1
    percentile: float = 50.0
    warmup_s: float = 1.0
    min_runs: int = 50
    min_seconds: float = 3.0
    rounds: int | None = None
    pin: bool = True
    seed: int = 0
    timeout_s: float = 3600.0

    @property
    def round_count(self) -> int:
        """How many rounds there will be."""
        return self.rounds or min(10, max(3, round(self.min_seconds / 0.3)))


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
    for name in ("threads", "warmup_s", "min_runs", "min_seconds", "seed"):
        arguments += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    found = runner.run(artifacts, transport, arguments, document.Document, timeout_s=options.timeout_s)
    environment = _environment(found.environment)
    return BenchResult(
        measurements=tuple(_measurement(m, found.environment, environment, options) for m in found.models),
        rounds=tuple(m.latencies_ms for m in found.models),
        percentile=options.percentile,
    )


def _environment(machine: document.Machine) -> Environment:
    return Environment(
        device=machine.device,
        machine=machine.machine,
        cpu_model=machine.cpu_model,
        cpu_flags=machine.cpu_flags,
        cores=machine.cores,
        affinity=machine.affinity,
        kernel=machine.kernel,
        load_before=-1.0 if machine.before.load is None else machine.before.load,
        load_after=-1.0 if machine.after.load is None else machine.after.load,
        governor=machine.before.governor,
        frequency_mhz_before=machine.before.frequency_mhz,
        frequency_mhz_after=machine.after.frequency_mhz,
        temperature_c_before=machine.before.temperature_c,
        temperature_c_after=machine.after.temperature_c,
    )


def _measurement(
    found: document.Measured, machine: document.Machine, environment: Environment, options: BenchOptions
) -> Measurement:
    import numpy as np

    value = intervals.percentile(found.latencies_ms, options.percentile)
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
        warnings=(*_doubts_about_machine(machine, options), *_doubts_about_file(found, value, options)),
    )


def _doubts_about_machine(machine: document.Machine, options: BenchOptions) -> Iterator[str]:
    """Why all figures of a measurement should be doubted."""
    if options.threads > machine.cores:
        yield f"{options.threads} threads on {machine.cores} CPUs"
    if machine.other_cpus is not None and machine.other_cpus > _BUSY_CPUS:
        yield f"other programs kept {machine.other_cpus:.1f} of {machine.cores} CPUs busy while measuring"
    if machine.stolen_cpus is not None and machine.stolen_cpus > _STOLEN_CPUS:
        yield f"the virtual machine's host took {machine.stolen_cpus:.2f} CPUs away while measuring"
    before, after = machine.before, machine.after
    if before.governor is not None and "powersave" in before.governor.split():
        yield "the CPU's clock governor is powersave"
    if before.frequency_mhz and after.frequency_mhz and after.frequency_mhz < _SLOWER_CLOCK * before.frequency_mhz:
        yield f"the CPU's clock fell from {before.frequency_mhz:.0f} to {after.frequency_mhz:.0f} MHz"
    if after.temperature_c is not None and after.temperature_c >= _HOT_C:
        yield f"the CPU is at {after.temperature_c:.0f} degrees Celsius, where devices slow down"


def _doubts_about_file(found: document.Measured, value: stats.Interval, options: BenchOptions) -> Iterator[str]:
    """Why one file's figures should be doubted."""
    import numpy as np

    beyond = found.runs * min(options.percentile, 100.0 - options.percentile) / 100.0
    if beyond < _RUNS_BEYOND:
        yield f"{found.runs} runs are too few for the {options.percentile:g}th percentile"
    if value.high - value.low > _WIDE * value.value:
        yield f"the machine is noisy: the interval is {value.low:.3g} to {value.high:.3g} ms"
    medians = [float(np.median(one)) for one in found.latencies_ms]
    third = len(medians) // 3
    if third:
        drift = float(np.median(medians[-third:]) / np.median(medians[:third])) - 1.0
        if abs(drift) > _DRIFT:
            yield f"latency changed by {drift:+.0%} from the first rounds to the last"
    heavy = {name: n for name, n in (found.operators.left if found.operators else {}).items() if name in _HEAVY}
    if heavy and found.operators:
        names = ", ".join(f"{count} {name}" for name, count in heavy.items())
        yield f"the delegate took {found.operators.delegated} of {found.operators.total} operators, and not {names}"
