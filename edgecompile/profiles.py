"""Device profiles: what a device is, what to try on it, and what operators cost there. One TOML file a device.

`docs/device-profiles.md` explains every key. Keys are strict: an unknown one is an error that names the nearest.
"""

from __future__ import annotations

import dataclasses
import difflib
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgecompile import content
from edgecompile.errors import InputError
from edgecompile.types import PRECISIONS, OperatorClass, Precision, RuntimeName

#: What people call the devices; ``x86`` is not here since it depends on this machine's CPU.
ALIASES: Mapping[str, str] = {
    "pizero2": "raspberry-pi-zero-2w",
    "pi3": "raspberry-pi-3",
    "pi4": "raspberry-pi-4",
    "pi5": "raspberry-pi-5",
    "android": "android-mid-range",
    "jetson": "jetson-orin-nano",
    "xavier-nx": "jetson-xavier-nx",
    "orin-nano": "jetson-orin-nano",
    "agx-orin": "jetson-agx-orin",
}
#: Budgets in milliseconds by what the model is for (``--use-case``).
USE_CASES: Mapping[str, float] = {"video": 33.0, "voice": 100.0, "search": 50.0, "recommendation": 100.0}

_REMEDY = "see docs/device-profiles.md for what each key may hold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How this machine is recognised as the device; nothing given: it never is.

    ``boards`` are beginnings of ``/proc/device-tree/model``; of the CPU's flags all of ``cpu_flags`` must be there and
    none of ``absent_cpu_flags``.
    """

    boards: tuple[str, ...] = ()
    cpu_flags: tuple[str, ...] = ()
    absent_cpu_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Where the device tells its state: files to read, or a command line to run; ``None`` where it has none."""

    temperature: str | None = None
    frequency: str | None = None
    governor: str | None = None
    throttled: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Output channels are computed in groups of this many: fewer than a full group cost as much as a full one."""

    fp32: int = 1
    fp16: int = 1
    int8: int = 1

    def of(self, precision: Precision) -> int:
        """The tile of one precision, in channels."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSupport:
    """One runtime on a device, with the precisions worth trying, best first, and its channel tiles."""

    name: RuntimeName
    precisions: tuple[Precision, ...]
    tile: Tile = field(default_factory=Tile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a cost table stands on.

    ``rows`` published (or measured) latencies of ``runtime`` on this device; ``median_error`` is the median of
    ``|estimate / published - 1|`` with the tested model left out of the fit (``None``: there is nothing to test it on).
    The 95 % interval of an estimate goes from ``1 / interval_factor`` of it to ``interval_factor`` times it.
    ``extrapolated``: fewer than six rows, or none of the runtime that ships; ``basis`` says where the figures are from.
    """

    rows: int
    runtime: str
    interval_factor: float
    extrapolated: bool
    basis: str
    median_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """What operators cost in one runtime and precision on one device: a roofline with fixed costs.

    ``*_gmacs`` are giga-multiply-accumulates per second and ``bandwidth_gb_s`` gigabytes per second, with one thread;
    ``t`` threads multiply the first by ``t ** compute_scaling`` and the second by ``t ** memory_scaling``.
    ``bytes_per_element`` is that of tensors as the runtime computes with them. Operators of ``fused_classes`` cost
    nothing: the runtime computes them in the pass of the operator before.
    """

    conv_gmacs: float
    pointwise_gmacs: float
    depthwise_gmacs: float
    dense_gmacs: float
    bandwidth_gb_s: float
    operator_us: float
    inference_us: float
    compute_scaling: float
    memory_scaling: float
    bytes_per_element: float
    fit: Fit
    fused_classes: tuple[OperatorClass, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeCosts:
    """The cost tables of one runtime by precision; ``None`` where the precision is not offered."""

    fp32: CostTable | None = None
    fp16: CostTable | None = None
    int8: CostTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost tables of a device by runtime."""

    tflite: RuntimeCosts = field(default_factory=RuntimeCosts)
    onnxruntime: RuntimeCosts = field(default_factory=RuntimeCosts)
    tensorrt: RuntimeCosts = field(default_factory=RuntimeCosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFamily:
    """Operators of one family on a device: a sum of work and bytes, and measured points that it is bent to.

    ``coefficients_us`` belong to ``edgecompile.learn.features.basis``: microseconds of the call, and of a million
    multiply-accumulates, elements read, written, of weights and of windows. A point is the operator's numbers
    (``features.COLUMNS``) and its microseconds; ``scales``, ``amplitude`` and ``noise`` are those of the Gaussian
    process over them.
    """

    coefficients_us: tuple[float, ...]
    scales: tuple[float, ...]
    amplitude: float
    noise: float
    points: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedFamilies:
    """The families of operators that multiply; ``None`` where too few points were measured."""

    pointwise: LearnedFamily | None = None
    conv: LearnedFamily | None = None
    depthwise: LearnedFamily | None = None
    dense: LearnedFamily | None = None
    product: LearnedFamily | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """What operators cost within a net beside what they cost alone: factors for those that multiply, for depthwise and
    for grouped convolutions, for gates (activations by a table, means and products by channel), for all others, and for
    weights that come from memory; microseconds of each call, of each inference, and of a million input elements."""

    compute: float = 1.0
    depthwise: float = 1.0
    grouped: float = 1.0
    gating: float = 1.0
    moving: float = 1.0
    cold: float = 1.0
    operator_us: float = 0.0
    inference_us: float = 0.0
    input_us: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What `edgecompile device learn` found of one runtime, precision and number of threads on a device.

    ``staircase`` holds output channels and microseconds of pointwise convolutions that differ in nothing else, and
    ``tile`` is the step that they show; ``cold_us`` is what a million weights cost more from main memory than from the
    caches; ``curves`` hold elements and microseconds of operators that mostly move data;
    ``nets`` the name of each small net, its measured milliseconds, and what is predicted of it by corrections fitted
    without it. ``block`` is how many channels lie together in the layout that ONNX Runtime's convolutions want there,
    0 where they want none of their own. ``points`` operators were measured; ``package`` and ``version`` are those of
    the runtime on the device.
    """

    runtime: RuntimeName
    precision: Precision
    threads: int
    package: str
    version: str
    points: int
    tile: int
    cold_us: float
    staircase: tuple[tuple[float, float], ...]
    corrections: Corrections
    fit: Fit
    nets: tuple[tuple[str, float, float], ...]
    families: LearnedFamilies
    curves: dict[str, tuple[tuple[float, float], ...]]
    block: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine as far as profiles are recognised by it."""

    architecture: str
    cpu_flags: frozenset[str]
    board: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device: ``runtimes`` in order of preference, ``threads`` to use, memory in bytes, default budget in ms.

    ``jetpacks`` are the systems that there are for a Jetson, oldest first: what its TensorRT can be follows from them.
    ``int8_saturates``: products of u8 activations and s8 weights are summed in 16 bits there (x86 without VNNI).
    """

    name: str
    description: str
    origin: str
    architecture: Literal["aarch64", "x86_64"]
    core: str
    cores: int
    threads: int
    memory_bytes: int
    runtimes: tuple[RuntimeSupport, ...]
    default_budget_ms: float = USE_CASES["video"]
    int8_saturates: bool = False
    jetpacks: tuple[str, ...] = ()
    match: Match = field(default_factory=Match)
    probes: Probes = field(default_factory=Probes)
    cost: Costs = field(default_factory=Costs)
    learned: tuple[Learned, ...] = ()

    def runtime(self, name: RuntimeName) -> RuntimeSupport | None:
        """The device's support for a runtime, or ``None``."""
        return next((runtime for runtime in self.runtimes if runtime.name == name), None)

    def costs(self, runtime: RuntimeName, precision: Precision) -> CostTable | None:
        """The cost table of a runtime and precision, or ``None``."""
        table: CostTable | None = getattr(getattr(self.cost, runtime), precision)
        return table

    def learned_for(self, runtime: RuntimeName, precision: Precision, threads: int) -> Learned | None:
        """What was learned of a runtime, precision and number of threads, or ``None``."""
        wanted = (runtime, precision, threads)
        return next((one for one in self.learned if (one.runtime, one.precision, one.threads) == wanted), None)

    def matches(self, machine: Machine) -> bool:
        """Whether ``machine`` is such a device."""
        if machine.architecture != self.architecture:
            return False
        rule = self.match
        if rule.boards:
            return machine.board.startswith(rule.boards)
        if not rule.cpu_flags:
            return False
        return machine.cpu_flags.issuperset(rule.cpu_flags) and machine.cpu_flags.isdisjoint(rule.absent_cpu_flags)

    def matches_this_machine(self) -> bool:
        """Whether this machine is such a device, so that it can be measured here."""
        return self.matches(this_machine())


# ---------------------------------------------------------------------------------------------------- this machine


def this_machine(root: Path = Path("/proc")) -> Machine:
    """This machine's architecture, CPU flags and board name, as far as ``root`` (``/proc``) tells them."""
    lines = _read(root / "cpuinfo").splitlines()
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    flags = next((value for key, value in pairs if key in ("flags", "Features")), "")
    model = next((value for key, value in pairs if key == "Model"), "")
    board = _read(root / "device-tree" / "model").rstrip("\0\n") or model
    architecture = platform.machine().lower()
    known = {"amd64": "x86_64", "arm64": "aarch64"}
    return Machine(architecture=known.get(architecture, architecture), cpu_flags=frozenset(flags.split()), board=board)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or a machine without a device tree
        return ""


# --------------------------------------------------------------------------------------------------------- loading


def load(ref: str, *, content_dir: Path | None = None) -> DeviceProfile:
    """The profile of a name, an alias or a file. Raises `InputError` for an unknown name or a faulty file."""
    known = content.names("device_profiles", content_dir=content_dir)
    if "/" not in ref and not ref.endswith(".toml") and ref not in known:
        aliases = aliases_here()
        if ref not in aliases:
            raise content.unknown_name("device_profiles", ref, (*known, *aliases))
        ref = aliases[ref]
    return _parse(content.find("device_profiles", ref, content_dir=content_dir))


def all_profiles(*, content_dir: Path | None = None) -> tuple[DeviceProfile, ...]:
    """Every profile that can be found, by name. Raises `InputError` for the first faulty file."""
    found = content.names("device_profiles", content_dir=content_dir)
    return tuple(_parse(found[name]) for name in sorted(found))


def aliases_here(machine: Machine | None = None) -> dict[str, str]:
    """All aliases, with ``x86`` standing for the built-in profile that this machine's CPU flags fit best."""
    flags = (machine or this_machine()).cpu_flags
    x86 = "x86-avx512-vnni" if "avx512_vnni" in flags else "x86-avx2"
    return {**ALIASES, "x86": x86}


def _parse(found: content.Found) -> DeviceProfile:
    try:
        raw = tomllib.loads(found.path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise InputError(f"{found.path}: not a device profile: {exc}", remedy="a profile is a TOML file") from exc
    _refuse_unknown(found.path, raw, DeviceProfile, hidden=("name", "origin"))
    try:
        profile = msgspec.convert({**raw, "name": found.name, "origin": found.origin}, DeviceProfile)
    except msgspec.ValidationError as exc:
        raise InputError(f"{found.path}: {exc}", remedy=_REMEDY) from exc
    for fault, true in _faults(profile).items():
        if true:
            raise InputError(f"{found.path}: {fault}", remedy=_REMEDY)
    return profile


_NESTED: Mapping[type, Mapping[str, type]] = {
    DeviceProfile: {
        "match": Match,
        "probes": Probes,
        "cost": Costs,
        "runtimes": RuntimeSupport,
        "learned": Learned,
    },
    RuntimeSupport: {"tile": Tile},
    Costs: {"tflite": RuntimeCosts, "onnxruntime": RuntimeCosts, "tensorrt": RuntimeCosts},
    RuntimeCosts: dict.fromkeys(PRECISIONS, CostTable),
    CostTable: {"fit": Fit},
    Learned: {"corrections": Corrections, "fit": Fit, "families": LearnedFamilies},
    LearnedFamilies: dict.fromkeys(("pointwise", "conv", "depthwise", "dense", "product"), LearnedFamily),
}


def _refuse_unknown(path: Path, table: object, kind: type, *, prefix: str = "", hidden: tuple[str, ...] = ()) -> None:
    """Refuse a key that ``kind`` has no field for, here and in the tables below; wrong types are left to msgspec."""
    if not isinstance(table, dict):
        return
    known = [f.name for f in dataclasses.fields(kind) if f.name not in hidden]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {prefix + near[0]!r}? " if near else ""
            raise InputError(f"{path}: unknown key {prefix + key!r}", remedy=f"{hint}known: {', '.join(known)}")
        inner = _NESTED.get(kind, {}).get(key)
        if inner is not None:
            for item in value if isinstance(value, list) else [value]:
                _refuse_unknown(path, item, inner, prefix=f"{prefix}{key}.")


def _faults(profile: DeviceProfile) -> dict[str, bool]:
    names = [runtime.name for runtime in profile.runtimes]
    faults = {
        "cores must be above 0": profile.cores < 1,
        "threads must be between 1 and cores": not 1 <= profile.threads <= profile.cores,
        "memory_bytes must be above 0": profile.memory_bytes < 1,
        "default_budget_ms must be above 0": not 0 < profile.default_budget_ms < float("inf"),
        "runtimes must hold at least one runtime": not names,
        "runtimes names one runtime twice": len(set(names)) < len(names),
    }
    for runtime in profile.runtimes:
        faults[f"runtimes: {runtime.name} has no precisions"] = not runtime.precisions
        tiles = [runtime.tile.of(p) for p in PRECISIONS]
        faults[f"runtimes: the tiles of {runtime.name} must be above 0"] = min(tiles) < 1
        for precision in runtime.precisions:
            table = profile.costs(runtime.name, precision)
            faults[f"the table [cost.{runtime.name}.{precision}] is missing"] = table is None
            faults |= _cost_faults(f"cost.{runtime.name}.{precision}", table) if table is not None else {}
    for number, learned in enumerate(profile.learned, start=1):
        faults |= _learned_faults(f"[[learned]] number {number}", learned, profile.cores)
    keys = [(one.runtime, one.precision, one.threads) for one in profile.learned]
    faults["[[learned]] holds one runtime, precision and number of threads twice"] = len(set(keys)) < len(keys)
    return faults


def _cost_faults(where: str, table: CostTable) -> dict[str, bool]:
    above: dict[str, Any] = {
        key: getattr(table, key)
        for key in ("conv_gmacs", "pointwise_gmacs", "depthwise_gmacs", "dense_gmacs", "bandwidth_gb_s")
    } | {"bytes_per_element": table.bytes_per_element}
    faults = {f"{where}.{key} must be above 0": not 0 < value < float("inf") for key, value in above.items()}
    for key in ("operator_us", "inference_us"):
        faults[f"{where}.{key} must not be negative"] = not 0 <= getattr(table, key) < float("inf")
    for key in ("compute_scaling", "memory_scaling"):
        faults[f"{where}.{key} must be between 0 and 1"] = not 0 <= getattr(table, key) <= 1
    faults[f"{where}.fit.interval_factor must be above 1"] = not 1 < table.fit.interval_factor < float("inf")
    return faults


#: How many coefficients, scales, and numbers of a point (its microseconds included) a learned family has.
_FAMILY_SIZES = (6, 10, 9)


def _learned_faults(where: str, learned: Learned, cores: int) -> dict[str, bool]:
    corrections = [getattr(learned.corrections, f.name) for f in dataclasses.fields(learned.corrections)]
    faults = {
        f"{where}: threads must be between 1 and cores": not 1 <= learned.threads <= cores,
        f"{where}: tile must be above 0": learned.tile < 1,
        f"{where}: fit.interval_factor must be above 1": not 1 < learned.fit.interval_factor < float("inf"),
        f"{where}: cold_us must not be negative": not 0 <= learned.cold_us < float("inf"),
        f"{where}: corrections must not be negative": not all(0 <= value < float("inf") for value in corrections),
    }
    for field_ in dataclasses.fields(LearnedFamilies):
        family: LearnedFamily | None = getattr(learned.families, field_.name)
        if family is not None:
            faults |= _family_faults(f"{where}: families.{field_.name}", family)
    for kind, curve in learned.curves.items():
        sizes = [elements for elements, _ in curve]
        rising = bool(sizes) and sizes == sorted(set(sizes))
        faults[f"{where}: curves.{kind!r} must hold rising elements, each with its microseconds"] = not rising
        faults[f"{where}: curves.{kind!r} must be above 0"] = not _above_zero(*curve)
    return faults


def _family_faults(where: str, family: LearnedFamily) -> dict[str, bool]:
    coefficients, scales, columns = _FAMILY_SIZES
    known = [value for value in family.coefficients_us if 0 <= value < float("inf")]
    return {
        f"{where}.coefficients_us must be {coefficients} numbers, none negative, not all 0": len(known) != coefficients
        or len(family.coefficients_us) != coefficients
        or not any(known),
        f"{where}.scales must be {scales} numbers above 0": len(family.scales) != scales
        or not _above_zero(family.scales),
        f"{where}.amplitude and noise must be above 0": not _above_zero((family.amplitude, family.noise)),
        f"{where}.points must each be {columns} numbers above 0": not family.points
        or any(len(point) != columns for point in family.points)
        or not _above_zero(*family.points),
    }


def _above_zero(*rows: tuple[float, ...]) -> bool:
    return all(0 < value < float("inf") for row in rows for value in row)
