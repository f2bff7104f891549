"""What a device is, as it says itself: the facts that a learned profile begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgecompile import content
from edgecompile.errors import DeviceError
from edgecompile.transport import Transport
from edgecompile.types import RuntimeName

_TIMEOUT_S = 120.0
_PIP: dict[RuntimeName, str] = {"tflite": "ai-edge-litert", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A runtime on the device: its package and version, or why there is none."""

    package: str = ""
    version: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A device: the board's or the host's name, its core, and the runtimes that were looked for."""

    schema_version: Literal[1]
    device: str
    machine: str
    core: str
    cores: int
    memory_bytes: int
    runtimes: dict[str, Found]


def facts(transport: Transport, runtimes: Sequence[RuntimeName]) -> Facts:
    """Ask a device what it is. Raises `DeviceError` when it does not answer."""
    root = content.builtin_root("targets")
    for name in ("facts.py", "probes.py", *(f"{runtime}/backend.py" for runtime in runtimes)):
        transport.put(root / name, name)
    done = transport.run([transport.python, "facts.py", *runtimes], timeout_s=_TIMEOUT_S)
    # A login shell may greet before, and a runtime may warn.
    line = next((line for line in reversed(done.out.splitlines()) if line.startswith("{")), "")
    try:
        return msgspec.json.decode(line, type=Facts)
    except msgspec.DecodeError as exc:
        lines = (done.err or done.out).strip().splitlines() or ["it said nothing"]
        raise DeviceError(
            f"{transport.description} does not tell what it is (exit code {done.code}): {lines[-1]}",
            remedy="see that Python 3.7 or later runs there",
        ) from exc


def usable(found: Facts, asked: Sequence[RuntimeName], transport: Transport) -> tuple[RuntimeName, ...]:
    """The runtimes that can be measured: all that were asked for, or without that, those that are there.

    Raises `DeviceError` when one that was asked for, or every one, is missing.
    """
    present = tuple(name for name in _PIP if name in found.runtimes and found.runtimes[name].error is None)
    wanted = tuple(asked) or present or _PIP
    missing = [name for name in wanted if name not in present]
    if missing:
        reason = found.runtimes[missing[0]].error
        raise DeviceError(
            f"{transport.description} has no runtime for {missing[0]}: {reason}",
            remedy=f"install it there with: pip install {_PIP[missing[0]]}, or by edgecompile device setup",
        )
    return tuple(asked) or present
