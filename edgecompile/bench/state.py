"""Whether the machine was itself while measuring: what its clocks, temperatures and throttling bits say.

A doubt is a warning in plain words; some doubts are grave: a figure taken while the machine was slowed is about that
moment and not about the file, so it is not to be trusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgecompile.bench.document import Clock, During, Machine, State

#: Bits of a Raspberry Pi's get_throttled:
#: https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
THROTTLED = {
    0: "the supply's voltage is too low",
    1: "the firmware caps the clock",
    2: "the firmware throttles the CPU",
    3: "the soft temperature limit is reached",
    16: "the supply's voltage has been too low since boot",
    17: "the firmware has capped the clock since boot",
    18: "the firmware has throttled the CPU since boot",
    19: "the soft temperature limit has been reached since boot",
}
_NOW = 0xF
_SINCE_BOOT = 0xF0000

#: Beyond these the figures of a measurement are not to be taken at their word.
_BUSY_CPUS = 0.25
_STOLEN_CPUS = 0.02
_SLOWER_CLOCK = 0.9
_BELOW_MAXIMUM = 0.95
_HOT_C = 80.0
_LEAST_SAMPLES = 3
#: What is left above the temperature at the start when the wait between two passes ends in vain.
_NEAR_C = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Why figures should be doubted; a ``grave`` one makes them untrusted."""

    words: str
    grave: bool = False


def explain(bits: int) -> tuple[str, ...]:
    """What the bits that are set in a Raspberry Pi's ``get_throttled`` mean."""
    return tuple(words for bit, words in THROTTLED.items() if bits >> bit & 1)


def doubts(machine: Machine, threads: int) -> Iterator[Doubt]:
    """Why all figures of a measurement should be doubted."""
    yield from _company(machine, threads)
    yield from _clocks(machine)
    yield from _throttling(machine)
    yield from _heat(machine)
    left_out = sum(not one.kept for one in machine.passes)
    if left_out:
        count = len(machine.passes)
        yield Doubt(words=f"{left_out} of {count} passes were left out: they differed from the two that agree")


def _company(machine: Machine, threads: int) -> Iterator[Doubt]:
    """Who else had the CPUs."""
    if threads > machine.cores:
        yield Doubt(words=f"{threads} threads on {machine.cores} CPUs")
    if machine.other_cpus is not None and machine.other_cpus > _BUSY_CPUS:
        yield Doubt(words=f"other programs kept {machine.other_cpus:.1f} of {machine.cores} CPUs busy while measuring")
    if machine.stolen_cpus is not None and machine.stolen_cpus > _STOLEN_CPUS:
        yield Doubt(words=f"the virtual machine's host took {machine.stolen_cpus:.2f} CPUs away while measuring")
    load = machine.before.load
    # The load of the last minute may have been our own work, which was over when the measurement began.
    alone = machine.other_cpus is not None and machine.other_cpus <= _BUSY_CPUS
    if load is not None and load > machine.cores and not alone:
        yield Doubt(words=f"the load average was {load:.1f} on {machine.cores} CPUs before the start", grave=True)
    kinds = [clock for clock in machine.before.clusters if set(clock.cpus) & set(machine.affinity)]
    if len({(clock.core, clock.capacity, clock.max_mhz) for clock in kinds}) > 1:
        names = " and ".join(clock.core or f"CPUs {_list(clock.cpus)}" for clock in kinds)
        yield Doubt(words=f"the threads run on cores of different kinds: {names}")


def _list(cpus: tuple[int, ...]) -> str:
    return ", ".join(map(str, cpus))


def _clocks(machine: Machine) -> Iterator[Doubt]:
    """Whether the clock was as fast as it can be, and stayed so."""
    before, after, watched = machine.before, machine.after, _watched(machine)
    if before.governor is not None and "powersave" in before.governor.split():
        yield Doubt(words="the CPU's clock governor is powersave")
    if watched is not None:
        # A clock that is slow afterwards is then no fall, but rest.
        if watched.frequency_fall > 1.0 - _SLOWER_CLOCK:
            share, lowest = watched.frequency_fall, watched.frequency_mhz_lowest
            yield Doubt(words=f"the CPU's clock fell by {share:.0%} while measuring, to {lowest:.0f} MHz", grave=True)
    elif before.frequency_mhz and after.frequency_mhz and after.frequency_mhz < _SLOWER_CLOCK * before.frequency_mhz:
        fell = f"from {before.frequency_mhz:.0f} to {after.frequency_mhz:.0f} MHz"
        yield Doubt(words=f"the CPU's clock fell {fell}", grave=True)
    yield from _below_maximum(machine)


def _watched(machine: Machine) -> During | None:
    """What samples say of the clock; ``None`` where there are too few."""
    during = machine.during
    enough = during is not None and during.clock_samples >= _LEAST_SAMPLES
    return during if enough else None


def _below_maximum(machine: Machine) -> Iterator[Doubt]:
    """Whether the clock was kept below what the CPU can do.

    A Jetson's power mode does so by the user's own choice; elsewhere a cap is often the doing of a thermal daemon.
    """
    ours = _ours(machine, machine.before) + _ours(machine, machine.after)
    by_choice = _has_power_modes(machine)
    capped = [c for c in ours if c.allowed_mhz and c.max_mhz and c.allowed_mhz < _BELOW_MAXIMUM * c.max_mhz]
    if capped:
        words = f"the clock is capped at {capped[-1].allowed_mhz:.0f} of {capped[-1].max_mhz:.0f} MHz"
        yield Doubt(words=words + (" by the power mode" if by_choice else ""), grave=not by_choice)
        if not by_choice:
            return
    watched = _watched(machine)
    most = max((mhz for c in ours if (mhz := c.allowed_mhz if by_choice else c.max_mhz)), default=0.0)
    if watched is None or watched.frequency_mhz is None or not _can_hold(machine):
        return
    if watched.frequency_mhz < _BELOW_MAXIMUM * most:
        words = f"the CPU ran at {watched.frequency_mhz:.0f} of {most:.0f} MHz while measuring"
        yield Doubt(words=words, grave=True)


def _has_power_modes(machine: Machine) -> bool:
    return re.search("jetson|nvidia", machine.device, re.IGNORECASE) is not None


def _ours(machine: Machine, state: State) -> list[Clock]:
    return [clock for clock in state.clusters if set(clock.cpus) & set(machine.affinity)]


def _can_hold(machine: Machine) -> bool:
    """Whether the highest clock is one that the CPU can hold: on x86 it is the turbo of a single core."""
    return machine.machine.startswith(("aarch64", "arm"))


def _throttling(machine: Machine) -> Iterator[Doubt]:
    """A Raspberry Pi's own words. Bits since boot count where they were set while measuring."""
    before, after = machine.before.throttled, machine.after.throttled
    seen = machine.during.throttled if machine.during is not None else None
    bits = [value for value in (before, seen, after) if value is not None]
    if not bits:
        return
    now = new = 0
    for value in bits:
        now |= value & _NOW
        new |= value & _SINCE_BOOT & ~(before if before is not None else value)
    for words in explain(now | (new >> 16 & ~now)):
        yield Doubt(words=f"throttled while measuring: {words}", grave=True)
    old = (before or 0) & _SINCE_BOOT & ~(now << 16)
    for words in explain(old):
        yield Doubt(words=f"before the measurement: {words}")


def _heat(machine: Machine) -> Iterator[Doubt]:
    """Whether the kernel slowed the CPU because of its temperature, or soon will."""
    states = [machine.before.cooling, machine.after.cooling]
    if machine.during is not None:
        states.append(machine.during.cooling)
    names = sorted({name for cooling in states for name in cooling})
    if names:
        yield Doubt(words=f"the kernel slows the CPU to cool it ({', '.join(names)})", grave=True)
    highest = [machine.after.temperature_c, machine.during.temperature_c_highest if machine.during else None]
    hot = max((celsius for celsius in highest if celsius is not None), default=0.0)
    if hot >= _HOT_C:
        yield Doubt(words=f"the CPU is at {hot:.0f} degrees Celsius, where devices slow down")
    start = machine.before.temperature_c
    for one in machine.passes[1:]:
        if start is not None and one.temperature_c is not None and one.temperature_c > start + _NEAR_C:
            rest = one.temperature_c - start
            yield Doubt(
                words=f"after {one.cooled_s:.0f} s of cooling the CPU was still {rest:.0f} degrees above the start"
            )
            return
