"""`edgecompile device learn`: measure a device within a time limit, and write what was learned as a profile."""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgecompile.errors import DeviceError, InputError
from edgecompile.learn import device, fit, grid, measuring, profile_file, roofline
from edgecompile.learn.device import Facts
from edgecompile.profiles import Costs, CostTable, DeviceProfile, Learned, RuntimeCosts, RuntimeSupport, Tile
from edgecompile.progress import Progress
from edgecompile.store import Store, cache_root, write_atomically
from edgecompile.tables import OperatorKey
from edgecompile.transport import Transport, identity, lab, open_transport
from edgecompile.types import PRECISIONS, Precision, RuntimeName, digest

#: The runtimes that can be learned, and what is worth learning of them.
RUNTIMES: tuple[RuntimeName, ...] = ("tflite", "onnxruntime")
LEARNED_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
#: The part of a table's time that the small nets get.
_NETS_SHARE = 0.25
_ARCHITECTURES: Mapping[str, Literal["aarch64", "x86_64"]] = {
    "aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnRequest:
    """What to learn: ``time_limit_s`` is for all tables together; without ``runtimes`` all that the device has.

    ``out`` is the file; without it one of the device's name in the current folder. ``force`` replaces a file that is
    there, ``fresh`` forgets what was measured before.
    """

    on: str = "local"
    out: Path | None = None
    runtimes: tuple[RuntimeName, ...] = ()
    precisions: tuple[Precision, ...] = LEARNED_PRECISIONS
    threads: tuple[int, ...] = (1,)
    time_limit_s: float = 300.0
    force: bool = False
    fresh: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnResult:
    """The profile and its file, and how long measuring took."""

    profile: DeviceProfile
    path: Path
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedTable:
    """A learned table with the points behind it."""

    learned: Learned
    points: Mapping[OperatorKey, float | None]


def learn(request: LearnRequest, progress: Progress) -> LearnResult:
    """Measure and fit; the file is written at the end.

    What was measured is kept in the user's cache folder as it comes, so the same command goes on from there. Raises
    `DeviceError` for a device that fails or lacks a runtime, `InputError` for a file that is there already, and where
    there was too little time for any table.
    """
    if request.out is not None:
        _refuse_taken(request.out, request.force)
    start = time.monotonic()
    way = open_transport(request.on, waiting=progress.note)
    lab.refuse_latency(way)  # before a board is started for nothing
    with way as transport:
        facts = device.facts(transport, request.runtimes or RUNTIMES)
        path = request.out or Path(f"{name_of(facts)}.toml")
        _refuse_taken(path, request.force)
        refuse_unusable(facts, request)
        runtimes = device.usable(facts, request.runtimes, transport)
        store = _store(facts, request, transport)
        with store.locked():
            tables = _tables(runtimes, facts, request, transport, store, progress, start + request.time_limit_s)
    profile = profile_of(facts, [table.learned for table in tables], costs_of(tables))
    write_atomically(path, profile_file.text(profile, _comment(facts, request)).encode())
    return LearnResult(profile=replace(profile, name=path.stem), path=path, seconds=time.monotonic() - start)


def name_of(facts: Facts) -> str:
    """The device's name as a profile's: ``Raspberry Pi 4 Model B`` becomes ``raspberry-pi-4-model-b``."""
    return re.sub(r"[^a-z0-9]+", "-", facts.device.lower()).strip("-") or "device"


def _refuse_taken(path: Path, force: bool) -> None:
    if path.suffix != ".toml":
        raise InputError(f"{path} is no name for a profile", remedy="its name must end in .toml")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent}", remedy="make it, or give another --out")
    if path.exists() and not force:
        raise InputError(f"there is a profile {path} already", remedy="give another --out, or replace it with --force")


def refuse_unusable(facts: Facts, request: LearnRequest) -> None:
    if facts.machine.lower() not in _ARCHITECTURES:
        raise DeviceError(
            f"{facts.device} is a {facts.machine} machine: profiles are of 64-bit Arm or x86 only",
            remedy="install a 64-bit system there",
        )
    most = max(request.threads)
    if most > facts.cores:
        raise InputError(
            f"{most} threads were asked for; {facts.device} has {facts.cores} cores", remedy="give fewer --threads"
        )


def _store(facts: Facts, request: LearnRequest, transport: Transport) -> Store:
    """Where the device's measurements are kept: another device, also at the same address, is another place."""
    where = platform.node() if request.on == "local" else identity.of(transport)
    store = Store(cache_root() / "learn" / digest(where, facts.device, facts.machine, facts.core)[:16])
    if request.fresh:
        shutil.rmtree(store.root, ignore_errors=True)
    return store


def _tables(
    runtimes: Sequence[RuntimeName],
    facts: Facts,
    request: LearnRequest,
    transport: Transport,
    store: Store,
    progress: Progress,
    end: float,
) -> list[LearnedTable]:
    """A table for each runtime, precision and number of threads; those with too few points are left out."""
    wanted = [(r, p, t) for t in request.threads for r in runtimes for p in request.precisions]
    found: list[LearnedTable] = []
    shortage: InputError | None = None
    for i, (runtime, precision, threads) in enumerate(wanted):
        there = facts.runtimes[runtime]
        where = measuring.Where(
            runtime=runtime, precision=precision, threads=threads, transport=transport, store=store,
            fingerprint=digest(there.package, there.version), seed=request.seed,
        )  # fmt: skip
        try:
            found.append(_table(where, progress, (end - time.monotonic()) / (len(wanted) - i)))
        except InputError as exc:
            shortage = exc
            progress.warn(exc.message)
    if not found and shortage is not None:
        raise shortage
    return found


def _table(where: measuring.Where, progress: Progress, seconds: float) -> LearnedTable:
    start = time.monotonic()
    points = measuring.operators(
        grid.points(where.seed, float_onnxruntime=where.float_onnxruntime),
        where,
        progress,
        until=start + (1 - _NETS_SHARE) * max(0.0, seconds),
    )
    known = sum(ms is not None for ms in points.values())
    if known < fit.FEWEST_POINTS:  # no time is spent on nets that nothing can be tested with
        raise fit.too_few(where.label, known)
    cold = measuring.cold(where, progress)
    left = max(5.0, start + seconds - time.monotonic())
    whole = measuring.whole_nets(where, progress, seconds=min(left, _NETS_SHARE * max(20.0, seconds)))
    for warning in whole.warnings:
        progress.warn(warning)
    with progress.stage(f"Fit ({where.label})"):
        measured = fit.Measured(
            runtime=where.runtime, precision=where.precision, threads=where.threads, package=whole.package,
            version=whole.version, operators=points, cold=cold, nets=whole.ms,
        )  # fmt: skip
        return LearnedTable(learned=fit.learn(measured), points=points)


# --------------------------------------------------------------------------------------------------------- profiles


def costs_of(tables: Sequence[LearnedTable]) -> Costs:
    """The plain cost tables, from the tables of the fewest threads."""
    found: dict[RuntimeName, dict[Precision, CostTable]] = {}
    for table in sorted(tables, key=lambda one: one.learned.threads):
        one = table.learned
        more = [t.learned for t in tables if _same(t.learned, one) and t.learned.threads > one.threads]
        scaling = roofline.scaling_of(one, max(more, key=lambda other: other.threads)) if more else None
        mine = found.setdefault(one.runtime, {})
        if one.precision not in mine:
            mine[one.precision] = roofline.cost_table(one, table.points, scaling=scaling)
    if "fp32" in found.get("tflite", {}):
        plain = found["tflite"]["fp32"]
        basis = f"as fp32: weights are unpacked when the file is loaded; {plain.fit.basis}"
        found["tflite"].setdefault("fp16", replace(plain, fit=replace(plain.fit, basis=basis)))
    return Costs(**{name: RuntimeCosts(**tables) for name, tables in found.items()})


def _same(a: Learned, b: Learned) -> bool:
    return (a.runtime, a.precision) == (b.runtime, b.precision)


def profile_of(facts: Facts, tables: Sequence[Learned], costs: Costs) -> DeviceProfile:
    """The device's profile; runtimes and precisions that were fastest on the small nets go first."""
    return DeviceProfile(
        name=name_of(facts),
        origin="file",
        description=f"{facts.device} ({facts.core or facts.machine}), as learned by edgecompile device learn",
        architecture=_ARCHITECTURES[facts.machine.lower()],
        core=facts.core or facts.machine,
        cores=facts.cores,
        threads=min(table.threads for table in tables),
        memory_bytes=max(facts.memory_bytes, 1),
        runtimes=_runtimes(tables, costs),
        cost=costs,
        learned=tuple(tables),
    )


def _runtimes(tables: Sequence[Learned], costs: Costs) -> tuple[RuntimeSupport, ...]:
    fastest = sorted(tables, key=lambda table: sum(ms for _, ms, _ in table.nets) / len(table.nets))
    found = []
    for name in dict.fromkeys(table.runtime for table in fastest):
        mine = [table for table in fastest if table.runtime == name]
        order = list(dict.fromkeys(table.precision for table in mine))
        order += [p for p in PRECISIONS if getattr(getattr(costs, name), p) is not None and p not in order]
        tiles = {table.precision: table.tile for table in mine}
        if "fp32" in tiles and "fp16" in order:
            tiles["fp16"] = tiles["fp32"]
        found.append(RuntimeSupport(name=name, precisions=tuple(order), tile=Tile(**tiles)))
    return tuple(found)


def _comment(facts: Facts, request: LearnRequest) -> list[str]:
    return [
        f"{facts.device}, measured by edgecompile device learn on {time.strftime('%Y-%m-%d')}.",
        "It is shared by sharing this file: edgecompile build MODEL --target ./THIS.toml estimates by it.",
        "docs/device-learn.md explains [[learned]], docs/device-profiles.md all other keys.",
    ]
