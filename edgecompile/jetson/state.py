"""The state of a Jetson board: power mode, clocks, temperatures, power, and what slowed it down.

Functions of what the board's own tools print; frequencies are Hz or MHz, temperatures degrees Celsius, power
milliwatts, as the names say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


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
        return self.min_hz == self.max_hz == self.current_hz


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """``jetson_clocks --show``."""

    gpu: Clock | None
    emc: Clock | None = None
    cpus: tuple[Clock, ...] = ()

    @property
    def locked(self) -> bool:
        """Whether the GPU's clock is held, so that two measurements are comparable."""
        return self.gpu is not None and self.gpu.locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One line of ``tegrastats``; ``temperatures_c`` and ``power_mw`` (at this moment) by the board's names."""

    ram_used_mb: int | None
    ram_total_mb: int | None
    swap_used_mb: int | None = None
    cpu_percent: tuple[int | None, ...] = ()
    gpu_percent: int | None = None
    gpu_mhz: int | None = None
    temperatures_c: Mapping[str, float]
    power_mw: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardState:
    """All that is known of a board at one moment; ``over_current`` are event counts since boot, by counter."""

    power_mode: PowerMode | None = None
    clocks: Clocks | None = None
    stats: Stats | None = None
    over_current: Mapping[str, int]


def parse_power_mode(text: str) -> PowerMode | None:
    """Reads ``nvpmodel -q``."""
    match = re.search(r"NV Power Mode: *(\S.*)", text)
    number = re.search(r"^(\d+)$", text, re.MULTILINE)
    return match and PowerMode(name=match[1].strip(), number=int(number[1]) if number else None)


def parse_clocks(text: str) -> Clocks | None:
    """Reads ``jetson_clocks --show``."""
    raise NotImplementedError


def parse_stats(line: str) -> Stats | None:
    """Reads one line of ``tegrastats``."""
    raise NotImplementedError


def parse_over_current(text: str) -> dict[str, int]:
    """Reads lines of ``PATH:COUNT``, as ``grep . /sys/class/hwmon/hwmon*/oc*_event_cnt`` prints them."""
    raise NotImplementedError


def throttled(before: BoardState, after: BoardState) -> tuple[str, ...]:
    """What slowed the board between two moments, in words; empty where nothing is known to have."""
    raise NotImplementedError
