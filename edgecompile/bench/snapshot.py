"""What a machine without Python says about itself: ``targets/state.sh`` prints files, ``probes.py`` reads them here.

On Android its services are asked, too: ``dumpsys thermalservice`` and ``dumpsys battery``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from edgecompile import content
from edgecompile.bench.document import State
from edgecompile.bench.state import Doubt
from edgecompile.errors import DeviceError, EdgecompileError
from edgecompile.transport import Transport

_SCRIPT = "state.sh"
_TIMEOUT_S = 120.0
_END = "==> the end <=="
#: https://developer.android.com/reference/android/os/PowerManager#THERMAL_STATUS_NONE
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_LOW_BATTERY = 20
#: ``mType`` of a CPU's temperature, and of the skin's: android.hardware.thermal, TemperatureType.
_CPU_TYPE, _SKIN_TYPE = 0, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Android:
    """What Android's services tell; ``None`` where they do not. ``thermal_status`` counts in `THERMAL_STATUS`."""

    thermal_status: int | None
    cpu_c: float | None
    skin_c: float | None
    battery_percent: int | None
    battery_c: float | None
    charging: bool
    saving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A machine at one moment. ``affinity`` are the CPUs to measure on, the big ones first chosen."""

    device: str
    machine: str
    kernel: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cores: int
    affinity: tuple[int, ...]
    state: State
    android: Android | None


def take(transport: Transport, threads: int) -> Snapshot:
    """Ask a machine. Raises `DeviceError` when it does not answer."""
    transport.put(content.builtin_root("targets") / _SCRIPT, _SCRIPT)
    done = transport.run(["sh", _SCRIPT], timeout_s=_TIMEOUT_S)
    if _END not in done.out:
        last = (done.err or done.out).strip().splitlines()
        raise DeviceError(
            f"{transport.description} does not tell its state: {last[-1] if last else f'exit code {done.code}'}",
            remedy="it needs a POSIX shell with cat; see -vv for more",
        )
    return read(done.out, threads, fallback=transport.description)


def read(text: str, threads: int, *, fallback: str) -> Snapshot:
    """What `state.sh` printed. ``fallback`` names the machine where it has no name of its own."""
    with _unpacked(text) as (probes, said):
        cpu = probes.cpu()
        cores = len(probes.processors()[0]) or 1
        affinity = tuple(probes.biggest(list(range(cores)), threads))
        state = msgspec.convert(probes.state(list(affinity)), State, strict=False)
        name = probes.device()
    android = _android(said)
    if android is not None and android.cpu_c is not None:
        state = dataclasses.replace(state, temperature_c=android.cpu_c)
    return Snapshot(
        device=name or _phone(said) or fallback,
        machine=said.get("uname -m", "").strip() or "unknown",
        kernel=said.get("uname -r", "").strip() or "unknown",
        cpu_model=cpu["model"],
        cpu_flags=tuple(cpu["flags"]),
        cores=cores,
        affinity=affinity,
        state=state,
        android=android,
    )


@contextmanager
def _unpacked(text: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """The printed files as files below a folder, and ``Probes`` on them; what programs printed, by their commands."""
    said: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        for path, body in re.findall(r"^==> /(.*?) <==\n(.*?)\n?(?=\n==> |\Z)", text, re.MULTILINE | re.DOTALL):
            if path.startswith("usr/bin/"):
                said[path.removeprefix("usr/bin/")] = body
            elif ".." not in Path(path).parts and path.startswith(("proc/", "sys/")):
                (Path(name) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / path).write_text(body)
        yield _probes().Probes(name, program=lambda command: said.get(" ".join(command))), said


@functools.cache
def _probes() -> ModuleType:
    path = content.builtin_root("targets") / "probes.py"
    spec = importlib.util.spec_from_file_location("edgecompile_probes", path)
    if spec is None or spec.loader is None:
        raise EdgecompileError(f"this installation of edgecompile lacks {path}", remedy="install it again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------ Android


def _phone(said: Mapping[str, str]) -> str:
    words = [said.get(f"getprop ro.product.{name}", "").strip() for name in ("manufacturer", "model")]
    return " ".join(word for word in words if word)


def _android(said: Mapping[str, str]) -> Android | None:
    thermal, battery = said.get("dumpsys thermalservice"), said.get("dumpsys battery")
    if thermal is None and battery is None:
        return None
    status = re.search(r"^\s*Thermal Status: (\d+)", thermal or "", re.MULTILINE)
    fields = dict(re.findall(r"^\s+([A-Za-z ]+): (\S+)\s*$", battery or "", re.MULTILINE))
    percent, tenths = fields.get("level", ""), fields.get("temperature", "")
    return Android(
        thermal_status=int(status[1]) if status else None,
        cpu_c=_hottest(thermal or "", _CPU_TYPE),
        skin_c=_hottest(thermal or "", _SKIN_TYPE),
        battery_percent=int(percent) if percent.isdigit() else None,
        battery_c=int(tenths) / 10 if tenths.isdigit() else None,
        charging=any(fields.get(f"{kind} powered") == "true" for kind in ("AC", "USB", "Wireless", "Dock")),
        saving=said.get("settings get global low_power", "").strip() == "1",
    )


def _hottest(thermal: str, kind: int) -> float | None:
    """The highest temperature of a kind, of those that the hardware tells now: the cached ones may be hours old."""
    now = thermal.partition("Current temperatures from HAL:")[2].partition("Current cooling devices")[0]
    pairs = re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=(-?\d+),", now)
    found = [float(value) for value, number in pairs if int(number) == kind and 0 < float(value) < 150]
    return max(found) if found else None


def doubts(before: Snapshot, after: Snapshot) -> Iterator[Doubt]:
    """Why figures that a phone gave between two moments should be doubted."""
    sides = [one.android for one in (before, after) if one.android is not None]
    status = max((one.thermal_status or 0 for one in sides), default=0)
    if status:
        name = THERMAL_STATUS[min(status, len(THERMAL_STATUS) - 1)]
        yield Doubt(words=f"Android throttles because of heat (thermal status {status}, {name})", grave=True)
    if any(one.saving for one in sides):
        yield Doubt(words="Android's battery saver is on", grave=True)
    low = [one.battery_percent for one in sides if one.battery_percent is not None and not one.charging]
    if low and min(low) < _LOW_BATTERY:
        yield Doubt(words=f"the battery is at {min(low)} % and not charging")
