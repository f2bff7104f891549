"""One file run for minutes without a break: does the device hold its speed, or does it slow down as it heats up?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgecompile.bench import document, intervals, runner, state
from edgecompile.bench.options import BenchOptions, environment_of
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.transport import Transport, lab
from edgecompile.types import Artifact, Environment, Ratio

_MINUTE_S = 60.0
#: The first and the last minute are cut into so many blocks, as neighbouring seconds resemble each other.
_BLOCKS = 6
#: Loading, probing and the transport have this long besides the run itself.
_BESIDES_S = 300.0
#: Where the runner writes down each second.
_LOG = "sustained.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """Latency against time: ``latency_ms[i]`` is the median of the second that ended at ``at_s[i]``.

    ``temperature_c`` and ``frequency_mhz`` hold ``None`` where the machine does not tell. ``slow_down`` is the last
    minute's median over the first's; of a run shorter than two minutes, they are its halves. It is ``None`` where a
    single run took about as long as that. ``interrupted``: somebody ended it before its time.
    """

    device: str
    runtime: str
    runtime_version: str
    threads: int
    seconds: float
    at_s: tuple[float, ...]
    latency_ms: tuple[float, ...]
    temperature_c: tuple[float | None, ...]
    frequency_mhz: tuple[float | None, ...]
    first_minute_ms: float
    last_minute_ms: float
    slow_down: Ratio | None
    runs: int
    environment: Environment
    warnings: tuple[str, ...] = ()
    interrupted: bool = False


def seconds_of(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1h`` in seconds. Raises `InputError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise InputError(f"{text!r} is no length of time", remedy="write seconds, or for example 90s, 10m or 1h")
    return seconds


def sustained(artifact: Artifact, transport: Transport, options: BenchOptions, seconds: float) -> Sustained:
    """Run a file for ``seconds`` on a machine and follow latency, temperature and clock.

    Ctrl-C ends it; what was measured by then is kept, from the second second on. Of the options, ``threads``, ``seed``
    and ``pin`` apply. Raises `DeviceError` when the machine or its runner fails, `InputError` when the file cannot be
    run, ``seconds`` is not positive, or the machine is an emulated one.
    """
    lab.refuse_latency(transport)
    if seconds <= 0:
        raise InputError(f"cannot run for {seconds:g} seconds", remedy="give a positive number")
    arguments = ["--sustained", f"{seconds:.3f}", *([] if options.pin else ["--no-pin"])]
    arguments += ["--threads", str(options.threads), "--seed", str(options.seed)]
    placed, interrupted = runner.put([artifact], transport), False
    try:
        found = _run(artifact, transport, [*arguments, "--log", _LOG], 2.0 * seconds + _BESIDES_S, placed)
    except KeyboardInterrupt:
        found, interrupted = _so_far(artifact, transport, placed), True
    first, last = _ends(found.at_s, found.latency_ms)
    return Sustained(
        device=found.environment.device,
        runtime=found.model.package,
        runtime_version=found.model.version,
        threads=found.threads,
        seconds=found.at_s[-1],
        at_s=found.at_s,
        latency_ms=found.latency_ms,
        temperature_c=found.temperature_c,
        frequency_mhz=found.frequency_mhz,
        first_minute_ms=intervals.median(first),
        last_minute_ms=intervals.median(last),
        slow_down=_slow_down(first, last),
        runs=sum(found.runs),
        environment=environment_of(found.environment),
        warnings=tuple(doubt.words for doubt in state.doubts(found.environment, options.threads)),
        interrupted=interrupted,
    )


def _run(
    artifact: Artifact, transport: Transport, arguments: Sequence[str], timeout_s: float, placed: Sequence[str]
) -> document.SustainedDocument:
    kind = document.SustainedDocument
    return runner.run([artifact], transport, arguments, kind, timeout_s=timeout_s, placed=placed)


def _so_far(artifact: Artifact, transport: Transport, placed: Sequence[str]) -> document.SustainedDocument:
    """What an interrupted run had measured. Raises ``KeyboardInterrupt`` where that is nothing."""
    try:
        found = _run(artifact, transport, ["--from-log", _LOG], _BESIDES_S, placed)
    except EdgecompileError as exc:
        raise KeyboardInterrupt from exc
    if len(found.at_s) < 2:
        raise KeyboardInterrupt
    return found


def _slow_down(first: Sequence[float], last: Sequence[float]) -> Ratio | None:
    if min(len(first), len(last)) < 2:
        return None
    found = intervals.quotient(last, first, _BLOCKS)
    return Ratio(value=found.value, ci_low=found.low, ci_high=found.high)


def _ends(at_s: Sequence[float], latency_ms: Sequence[float]) -> tuple[list[float], list[float]]:
    """The latencies of the first minute and of the last; of a short run, of its halves."""
    window = min(_MINUTE_S, at_s[-1] / 2)
    first = [ms for at, ms in zip(at_s, latency_ms, strict=True) if at <= window] or [latency_ms[0]]
    last = [ms for at, ms in zip(at_s, latency_ms, strict=True) if at > at_s[-1] - window] or [latency_ms[-1]]
    return first, last
