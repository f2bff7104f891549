"""What a board is: its TensorRT, its GPU, its system, its memory, and how it is set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgecompile.engines import script
from edgecompile.errors import DeviceError
from edgecompile.jetson import state, trtexec, versions
from edgecompile.jetson.versions import Capabilities, JetPack, Version
from edgecompile.transport import Transport

#: The chip by the device tree, with the compute capability of its GPU.
_CHIPS = {
    "tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0",
}  # fmt: skip
#: A GPU of which nothing is known.
_NO_GPU = "GPU"
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A machine that builds and runs TensorRT engines.

    ``trtexec`` is its path there; ``None``: there is only the Python API, and a program of ours takes its place.
    ``gpu`` names what engines are tied to besides the version: the chip's GPU and its number of multiprocessors.
    ``python_api`` is the version that Python imports there, ``providers`` are those of its ONNX Runtime; ``modes`` are
    the power modes by name.
    """

    name: str
    trtexec: str | None
    version: Version
    gpu: str
    jetpack: JetPack | None = None
    machine: str = ""
    kernel: str = ""
    cores: int = 1
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    disk_free_bytes: int | None = None
    python_api: str | None = None
    providers: tuple[str, ...] = ()
    modes: tuple[tuple[str, int], ...] = ()

    @property
    def capabilities(self) -> Capabilities:
        """What its TensorRT takes."""
        return versions.capabilities(self.version)

    @property
    def key(self) -> str:
        """Its TensorRT and GPU, as a part of file names: what an engine is tied to."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-")
        return f"trt{self.version}-{gpu}"

    @property
    def typed(self) -> bool:
        """Whether its TensorRT takes types from the graph rather than from options."""
        return self.capabilities.typing != "flags"


def find(transport: Transport) -> Board | None:
    """The board behind a transport; ``None`` for a machine without a Jetson's system and without TensorRT.

    Raises `DeviceError` for a board whose TensorRT cannot be used: no ``trtexec``, or an unknown version.
    """
    said = script.ask(transport, script.PROBE)
    program = _line(said, "trtexec")
    # On a machine without a GPU, the API alone is of no use.
    by_python = versions.find(_line(said, "python")) if _gpu(said) != _NO_GPU else None
    if not program and by_python is None:
        if _is_jetson(said) or _line(said, "packages"):
            raise _no_trtexec(transport, said)
        return None
    version = _version(said, transport, program) if program or by_python is None else by_python
    versions.capabilities(version)
    return Board(
        name=_line(said, "model") or transport.description,
        trtexec=program or None,
        version=version,
        gpu=_gpu(said),
        jetpack=versions.jetpack(said.get("l4t", "")),
        machine=_line(said, "kernel"),
        kernel=_line(said, "kernel", 1),
        cores=_whole(_line(said, "cpus")) or 1,
        memory_bytes=memory_bytes(said, "MemTotal"),
        memory_available_bytes=memory_bytes(said, "MemAvailable"),
        disk_free_bytes=_disk(said),
        python_api=_line(said, "python") or None,
        providers=tuple(said.get("providers", "").split()),
        modes=tuple((m[2], int(m[1])) for m in _MODE.finditer(said.get("modes", ""))),
    )


def require(transport: Transport) -> Board:
    """The board behind a transport. Raises `DeviceError` where there is no TensorRT to use."""
    found = find(transport)
    if found is None:
        raise DeviceError(
            f"{transport.description} has no TensorRT: no trtexec on its PATH nor in /usr/src/tensorrt/bin",
            remedy="this needs a Jetson with its JetPack; measure elsewhere, or leave --on away for an estimate",
        )
    return found


def _is_jetson(said: Mapping[str, str]) -> bool:
    return bool(_line(said, "l4t")) or any(chip in said.get("compatible", "") for chip in _CHIPS)


def _no_trtexec(transport: Transport, said: Mapping[str, str]) -> DeviceError:
    there = _line(said, "packages")
    known = f" ({there} is installed)" if there else ""
    return DeviceError(
        f"there is no trtexec on {transport.description}{known}",
        remedy="install it there with: sudo apt install libnvinfer-bin (or the whole: sudo apt install nvidia-jetpack)",
    )


def _version(said: Mapping[str, str], transport: Transport, program: str) -> Version:
    banner = next((row for row in trtexec.lines(said.get("banner", "")) if "TensorRT.trtexec" in row), "")
    found = versions.find(banner) if banner else None
    for row in said.get("packages", "").splitlines():
        found = found or versions.find(row.rpartition(" ")[2])
    if found is None:
        first = next((row for row in said.get("banner", "").splitlines() if row.strip()), "nothing")
        raise DeviceError(
            f"{program} on {transport.description} does not tell its version; it said: {first.strip()[:120]}",
            remedy="start it there by hand: it needs the libraries of its JetPack",
        )
    return found


def _gpu(said: Mapping[str, str]) -> str:
    """By CUDA where Python reaches it, else by the device tree."""
    rows = [row.strip() for row in said.get("gpu", "").splitlines() if row.strip()]
    if len(rows) == 3 and re.fullmatch(r"\d+\.\d+", rows[1]) and rows[2].isdigit():
        return f"{rows[0]}, compute {rows[1]}, {rows[2]} multiprocessors"
    chip = next((chip for chip in _CHIPS if chip in said.get("compatible", "")), None)
    if chip is None:
        return _NO_GPU
    # Two boards with the same chip differ in multiprocessors, and their names say so.
    return f"{_line(said, 'model') or chip}, compute {_CHIPS[chip]}"


def _line(said: Mapping[str, str], name: str, index: int = 0) -> str:
    rows = [row.strip() for row in said.get(name, "").splitlines() if row.strip()]
    return _printable(rows[index]) if index < len(rows) else ""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def memory_bytes(said: Mapping[str, str], name: str) -> int | None:
    """A line of ``/proc/meminfo`` among the answers of a script."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", said.get("memory", ""), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _disk(said: Mapping[str, str]) -> int | None:
    words = _line(said, "disk").split()
    kilobytes = _whole(words[3]) if len(words) > 4 else None
    return None if kilobytes is None else kilobytes * 1024


# ---------------------------------------------------------------------------------------------------- its state


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A board's state at one moment, as `edgecompile.jetson.state` reads it, and the load and memory of its CPU."""

    board: state.BoardState
    load: float
    memory_available_bytes: int | None


def look(transport: Transport) -> Moment:
    """How the board is now. What a tool does not tell, for lack of rights or since it is absent, is ``None``."""
    said = script.ask(transport, script.STATE, timeout_s=60.0)
    clocks = state.parse_clocks(said.get("clocks", "")) or _devfreq(said)
    load = _line(said, "load")
    return Moment(
        board=state.BoardState(
            power_mode=state.parse_power_mode(said.get("mode", "")),
            clocks=clocks,
            usage=state.parse_usage(said.get("usage", "")),
            over_current=state.parse_over_current(said.get("over-current", "")),
        ),
        load=float(load) if re.fullmatch(r"\d+(\.\d+)?", load) else -1.0,
        memory_available_bytes=memory_bytes(said, "MemAvailable"),
    )


def _devfreq(said: Mapping[str, str]) -> state.Clocks | None:
    """The GPU's clock by the kernel, which needs no rights: the least, the highest and the present frequency."""
    rows = [_whole(row.strip()) for row in said.get("frequency", "").splitlines() if row.strip()]
    if len(rows) != 3 or any(row is None for row in rows):
        return None
    least, most, current = (row or 0 for row in rows)
    return state.Clocks(gpu=state.Clock(min_hz=least, max_hz=most, current_hz=current))
