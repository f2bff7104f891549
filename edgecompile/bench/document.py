"""What the device-side runner answers: one JSON document, checked as it enters (``targets/README.md`` explains it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from edgecompile.errors import DeviceError

T = TypeVar("T")

SENTINEL = "EDGECOMPILE-RESULT "
_VERSION: Literal[1] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """CPUs that share a clock; ``allowed_mhz`` is what the kernel lets it be at present, at most."""

    cpus: tuple[int, ...]
    core: str | None
    capacity: int | None
    governor: str | None
    mhz: float | None
    min_mhz: float | None
    max_mhz: float | None
    allowed_mhz: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What may change while measuring; ``None`` where the machine does not tell.

    ``throttled`` are the bits of a Raspberry Pi, ``cooling`` the kernel's means that slow the CPU and are in use.
    """

    load: float | None
    frequency_mhz: float | None
    governor: str | None
    temperature_c: float | None
    memory_available_bytes: int | None = None
    throttled: int | None = None
    cooling: dict[str, int] = field(default_factory=dict)
    clusters: tuple[Clock, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class During:
    """What samples taken while measuring say: the usual clock, its lowest, the share it lost within a pass.

    ``clock_samples`` of the ``samples`` told the clock: a Raspberry Pi's firmware is not asked each time.
    """

    samples: int
    clock_samples: int
    frequency_mhz: float | None
    frequency_mhz_lowest: float | None
    frequency_fall: float
    temperature_c_highest: float | None
    throttled: int | None
    cooling: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Some rounds, which are compared with those of other passes; ``kept`` ones make the figures."""

    medians_ms: tuple[float, ...]
    cooled_s: float
    temperature_c: float | None
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine, and how busy it was: ``*_cpus`` are CPUs in use on average while measuring."""

    device: str
    machine: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cores: int
    kernel: str
    affinity: tuple[int, ...]
    before: State
    after: State
    own_cpus: float | None
    other_cpus: float | None
    stolen_cpus: float | None
    during: During | None = None
    passes: tuple[Pass, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """How many of a file's operators its delegate took, in how many parts; ``left`` counts the others by type."""

    total: int
    delegated: int
    partitions: int
    left: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One file: ``latencies_ms[k]`` are those of round ``k``, of which every ``kept_every``-th was kept.

    ``agreed`` tells whether two passes gave about the same median; ``None`` where only one was made.
    """

    package: str
    version: str
    load_ms: float
    cold_ms: float
    peak_memory_bytes: int | None
    operators: Operators | None
    latencies_ms: tuple[tuple[float, ...], ...]
    runs: int
    kept_every: int
    agreed: bool | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A measurement of several files, interleaved."""

    schema_version: Literal[1]
    threads: int
    environment: Machine
    models: tuple[Measured, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the probe of a file says."""

    package: str
    version: str
    load_ms: float
    cold_ms: float
    peak_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedDocument:
    """One file run for a long time; the entry ``i`` of every series is about the moment ``at_s[i]``."""

    schema_version: Literal[1]
    threads: int
    environment: Machine
    model: Loaded
    at_s: tuple[float, ...]
    latency_ms: tuple[float, ...]
    runs: tuple[int, ...]
    temperature_c: tuple[float | None, ...]
    frequency_mhz: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """Given inputs were run through one file."""

    schema_version: Literal[1]
    samples: int
    package: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why the runner did not do it; ``model`` is the index of the file it was about."""

    kind: Literal["usage", "no_runtime", "bad_model", "bad_inputs", "crash", "no_memory"]
    message: str
    model: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The document of a runner that could not do it."""

    schema_version: Literal[1]
    error: Fault


def parse(text: str, kind: type[T]) -> T | Failed:
    """The document among what a runner printed. Raises `DeviceError` when there is none, or another than expected."""
    lines = [line for line in text.splitlines() if line.startswith(SENTINEL)]
    remedy = "the runner on the device is not the one of this edgecompile, or its output was cut off"
    if len(lines) != 1:
        raise DeviceError(f"the runner gave {len(lines)} results instead of one", remedy=remedy)
    data = lines[0].removeprefix(SENTINEL).encode()
    try:
        if "error" in msgspec.json.decode(data, type=dict):
            return msgspec.json.decode(data, type=Failed)
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        raise DeviceError(f"the runner's result is malformed: {exc}", remedy=remedy) from exc
