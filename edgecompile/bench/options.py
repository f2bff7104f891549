"""How to measure, and what comes of it: what all ways to measure share."""

from __future__ import annotations

from dataclasses import dataclass

from edgecompile.bench import document, intervals
from edgecompile.errors import InputError
from edgecompile.types import Cluster, Environment, Measurement, Ratio

#: For expectations only: the runner's share of the warm-up in later rounds, and what starting a round's process takes.
_LATER_WARMUP = 0.2
_ROUND_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure: each file runs at least ``min_runs`` times and ``min_seconds``, spread over rounds.

    A round is a fresh process in which the files take turns. Without ``rounds``: one for each 0.3 seconds, 3 to 10.

    The rounds make two passes. Where their medians differ by more than 5 %, passes are added until two agree, up to
    ``passes``; between two passes the machine may cool down for ``cool_down_s`` seconds. One pass: nothing is compared.

    ``benchmark_model`` is LiteRT's program of this name, to be used in place of our runner: its path on the machine, or
    here for a machine that takes no other.
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
    benchmark_model: str | None = None

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


def require_program(on: str | None, benchmark_model: str | None) -> None:
    """Raise `InputError` where a machine is measured by ``benchmark_model`` alone, and none is given."""
    if on is not None and on.startswith("adb:") and benchmark_model is None:
        raise InputError(
            "a phone reached by adb is measured by LiteRT's benchmark_model, and none is given",
            remedy="download the one for Android and give it with --benchmark-model FILE",
        )


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
