"""The state of a Jetson board: power mode, clocks, temperatures, power, and what slowed it down.

Functions of what the board's own tools print. A line that is cut or mixed with another gives ``None`` for what is not
there whole, never another figure. Units are in the names: Hz, MHz, degrees Celsius, milliwatts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompile.jetson import trtexec

#: A sensor whose part of the chip is without power says -256; below this, a reading is none.
_COLDEST_C = -100.0
#: The junction temperature from which Orin's software lowers the clocks (NVIDIA's design guides: 99 degrees, hardware
#: at 103), less two degrees: `tegrastats` looks once a second.
HOT_C = 97.0
#: A GPU asked for its locked frequency may stand one step of its clock lower.
_FREQUENCY_SLACK = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """``nvpmodel -q``: the mode's name, and its number, which differs by board."""

    name: str
    number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The limits of a clock and where it stands, in Hz."""

    min_hz: int
    max_hz: int
    current_hz: int

    @property
    def locked(self) -> bool:
        """Whether the clock is held where it stands."""
        return self.min_hz == self.max_hz == self.current_hz

    @property
    def asked_to_stay(self) -> bool:
        """Whether the clock's limits leave it one frequency, wherever it stands."""
        return self.min_hz == self.max_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """``jetson_clocks --show``; ``emc`` is the memory's."""

    gpu: Clock | None
    emc: Clock | None = None
    cpus: tuple[Clock, ...] = ()

    @property
    def locked(self) -> bool:
        """Whether the GPU's clock is held, so that two measurements are comparable."""
        return self.gpu is not None and self.gpu.locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One line of ``tegrastats``; ``temperatures_c`` and ``power_mw`` (at that moment) by the board's own names.

    ``cpu_percent`` has ``None`` for a core that is off.
    """

    ram_used_mb: int | None = None
    ram_total_mb: int | None = None
    swap_used_mb: int | None = None
    swap_total_mb: int | None = None
    cpu_percent: tuple[int | None, ...] = ()
    gpu_percent: int | None = None
    gpu_mhz: int | None = None
    emc_percent: int | None = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    power_mw: Mapping[str, int] = field(default_factory=dict)

    @property
    def junction_c(self) -> float | None:
        """The hottest spot of the chip: ``tj`` where the board has it, else the hottest of its GPU and CPU."""
        by_name = {name.lower(): c for name, c in self.temperatures_c.items()}
        chip = [c for name, c in by_name.items() if name in ("gpu", "cpu")]
        return by_name.get("tj", max(chip, default=None))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """What is known of a board at one moment; ``None`` and empty where a tool said nothing.

    ``over_current`` are the events since the board started, by counter (``oc1``: under-voltage, ``oc2``: average and
    ``oc3``: instantaneous over-current).
    """

    power_mode: PowerMode | None = None
    clocks: Clocks | None = None
    usage: Usage | None = None
    over_current: Mapping[str, int] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- mode and clocks

_MODE = re.compile(r"NV Power Mode: *(\S(?:.*\S)?)")


def parse_power_mode(text: str) -> PowerMode | None:
    """Reads ``nvpmodel -q``; ``None`` where it names no mode.

    The number is the line right after the name. A text that is cut within the name or the number cannot be told from a
    whole one, so either counts only where its line is ended.
    """
    rows = trtexec.lines(text)[:-1]
    for at, row in enumerate(rows):
        match = _MODE.fullmatch(row)
        if match:
            following = rows[at + 1] if at + 1 < len(rows) else ""
            return PowerMode(name=match[1], number=int(following) if re.fullmatch(r"\d{1,3}", following) else None)
    return None


_FREQUENCIES = r"MinFreq=(\d+) +MaxFreq=(\d+) +CurrentFreq=(\d+)"
_GPU = re.compile(rf"GPU +{_FREQUENCIES}")
_EMC = re.compile(rf"EMC +{_FREQUENCIES} +FreqOverride=[01]")
_CPU = re.compile(rf"cpu\d+: +(?:Online=([01]) +)?Go\w*nor=\S+ +{_FREQUENCIES}(?: .*)?")


def parse_clocks(text: str) -> Clocks | None:
    """Reads ``jetson_clocks --show``; ``None`` where it shows no clock. Cores that are off are left out.

    The last line counts only where it is ended, as its last figure may be cut. (It needs root: without, it shows none.)
    """
    rows = trtexec.lines(text)[:-1]
    gpu = [_clock(m.groups()) for row in rows if (m := _GPU.fullmatch(row))]
    emc = [_clock(m.groups()) for row in rows if (m := _EMC.fullmatch(row))]
    cpus = tuple(_clock(m.groups()[1:]) for row in rows if (m := _CPU.fullmatch(row)) and m[1] != "0")
    if not (gpu or emc or cpus):
        return None
    return Clocks(gpu=_one(gpu), emc=_one(emc), cpus=cpus)


def _clock(groups: tuple[str, ...]) -> Clock:
    least, most, current = (int(group) for group in groups)
    return Clock(min_hz=least, max_hz=most, current_hz=current)


def _one(found: list[Clock]) -> Clock | None:
    """The only one; where the same text shows a clock twice and differently, none is right."""
    return found[0] if len(set(found)) == 1 else None


# --------------------------------------------------------------------------------------------------- tegrastats

# Every figure is read with what follows it, so that a cut line gives no cut figure.
_RAM = re.compile(r"(?:^| )RAM (\d+)/(\d+)MB ")
_SWAP = re.compile(r" SWAP (\d+)/(\d+)MB ")
_CORES = re.compile(r" (?:CPU|cpu) \[([^\[\] ]*)\](?:@\d+)? ")
_GPU_USE = re.compile(r" GR3D(?:_FREQ)? (\d+)%(?=[@ ])")
_GPU_MHZ = re.compile(r" GR3D(?:_FREQ)? \d+%@(?:\[(\d+)(?:,\d+)*\] |(\d+) (?=\S))")
_EMC_USE = re.compile(r" EMC(?:_FREQ)? (\d+)%(?:@\d+)? ")
_TEMPERATURE = re.compile(r"(?<= )([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?= )")
_POWER = re.compile(r"(?<= )([A-Z][A-Z0-9_]*) (\d+)(mW)?/(\d+)(mW)?(?= )")
#: Memory, and a channel that is not connected.
_NOT_RAILS = ("RAM", "SWAP", "IRAM", "NC")
_START = re.compile(r"(?:\d\d-\d\d-\d{4} \d\d:\d\d:\d\d )?RAM \d")


def parse_usage(text: str) -> Usage | None:
    """Reads the last line of ``tegrastats`` in ``text`` that is ended, or else what there is of one.

    Knows the formats from JetPack 4 (``GR3D_FREQ 0%@76``, rails without units) to 6 (``GR3D_FREQ 84%@[713]``). The
    temperature of a part without power is left out. ``None`` where there is no such line.
    """
    *ended, cut = trtexec.lines(text)
    rows = [row for row in ended if _START.match(row)] or [row for row in (cut,) if _START.match(row)]
    return _usage(rows[-1] + " ") if rows else None


def _usage(row: str) -> Usage:
    ram, swap, cores = _RAM.search(row), _SWAP.search(row), _CORES.search(row)
    gpu, clock, emc = _GPU_USE.search(row), _GPU_MHZ.search(row), _EMC_USE.search(row)
    return Usage(
        ram_used_mb=int(ram[1]) if ram else None,
        ram_total_mb=int(ram[2]) if ram else None,
        swap_used_mb=int(swap[1]) if swap else None,
        swap_total_mb=int(swap[2]) if swap else None,
        cpu_percent=_cores(cores[1]) if cores else (),
        gpu_percent=int(gpu[1]) if gpu else None,
        gpu_mhz=int(clock[1] or clock[2]) if clock else None,
        emc_percent=int(emc[1]) if emc else None,
        temperatures_c={m[1]: float(m[2]) for m in _TEMPERATURE.finditer(row) if float(m[2]) > _COLDEST_C},
        power_mw=_power(row),
    )


def _cores(text: str) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for core in text.split(","):
        match = re.fullmatch(r"(\d+)%(?:@\d+)?|off", core)
        if match is None:
            return ()
        found.append(int(match[1]) if match[1] else None)
    return tuple(found)


def _power(row: str) -> dict[str, int]:
    found = (m for m in _POWER.finditer(row) if m[3] == m[5])
    return {m[1]: int(m[2]) for m in found if m[1] not in _NOT_RAILS}


# -------------------------------------------------------------------------------------------------- throttling

_COUNTER = re.compile(r"(?:.*/)?(oc[123])_event_cnt[:=] ?(\d+)")
_REASONS = {
    "oc1": "the supply's voltage was too low",
    "oc2": "the average current was over its limit",
    "oc3": "the current was over its limit for moments",
}


def parse_over_current(text: str) -> dict[str, int]:
    """Reads ``PATH:COUNT`` lines, as ``grep -H . /sys/class/hwmon/hwmon*/oc*_event_cnt`` prints them.

    Older boards have none: the result is empty. A line counts only where it is ended.
    """
    counts: dict[str, int] = {}
    for row in trtexec.lines(text)[:-1]:
        match = _COUNTER.fullmatch(row)
        if match:
            counts[match[1]] = counts.get(match[1], 0) + int(match[2])
    return counts


def throttled(before: BoardState, after: BoardState) -> tuple[str, ...]:
    """What slowed the board between two moments, in words, or will have; empty where nothing is known to have."""
    reasons = [
        f"{why} ({after.over_current[name] - count} times)"
        for name, why in _REASONS.items()
        if (count := before.over_current.get(name)) is not None and after.over_current.get(name, count) > count
    ]
    reasons += _lowered(before, after)
    for moment, state in (("before", before), ("after", after)):
        junction = state.usage.junction_c if state.usage else None
        if junction is not None and junction >= HOT_C:
            reasons.append(f"the chip was {junction:g} C hot {moment} the measurement ({HOT_C:g} C slows it)")
    return tuple(reasons)


def _lowered(before: BoardState, after: BoardState) -> list[str]:
    """The GPU's clock against the one that it was locked at, and changes of the lock and of the power mode."""
    reasons: list[str] = []
    old = before.clocks.gpu if before.clocks else None
    new = after.clocks.gpu if after.clocks else None
    if old is not None and new is not None and old.asked_to_stay:
        if new.max_hz != old.max_hz or not new.asked_to_stay:
            reasons.append("the GPU's clock was locked before the measurement, and no longer or elsewhere after it")
        elif min(old.current_hz, new.current_hz) < _FREQUENCY_SLACK * old.max_hz:
            lowest = min(old.current_hz, new.current_hz)
            reasons.append(f"the GPU ran at {lowest / 1e6:g} MHz, and was locked at {old.max_hz / 1e6:g} MHz")
    if before.power_mode and after.power_mode and before.power_mode != after.power_mode:
        reasons.append(f"the power mode changed from {before.power_mode.name} to {after.power_mode.name}")
    return reasons
