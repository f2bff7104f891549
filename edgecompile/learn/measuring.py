"""The measurements that a cost table is learned from: points of the grid and small nets, as many as the time allows.

Each is kept as soon as it was made, so that a run that was stopped, or that had too little time, goes on from there.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompile import bench, tables
from edgecompile.errors import DeviceError
from edgecompile.learn import grid, nets
from edgecompile.progress import Progress
from edgecompile.store import Store
from edgecompile.tables import OperatorKey, files
from edgecompile.transport import Transport
from edgecompile.types import Artifact, Precision, RuntimeName, digest, file_sha256

#: Raised when the grid's nets, or the way they are measured, change.
_FORMAT = 1
#: A portion is kept as a whole: a slow machine measures fewer points in one.
_PORTIONS = (24, 64)
#: Small enough that a board's last caches hold it, large enough that its first do not.
_FOOTPRINT = 4 << 20
#: Larger than the caches of all boards, and of most machines.
_COLD_FOOTPRINT = 64 << 20
_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What is measured, and where: the transport was entered, ``fingerprint`` is what the machine is known by."""

    runtime: RuntimeName
    precision: Precision
    threads: int
    transport: Transport
    store: Store
    fingerprint: str
    seed: int = 0

    @property
    def float_onnxruntime(self) -> bool:
        """Whether it is measured what only ONNX Runtime does, and not with 8-bit numbers: layouts of its own."""
        return (self.runtime, self.precision) == ("onnxruntime", "fp32")

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.runtime} {self.precision}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"


def operators(
    keys: Sequence[OperatorKey], where: Where, progress: Progress, *, until: float
) -> dict[OperatorKey, float | None]:
    """The milliseconds of the first of ``keys``, as many as there is time for until ``until`` (`time.monotonic`).

    ``None`` for an operator that cannot be a file of its own. What was measured before takes no time.
    """
    found: dict[OperatorKey, float | None] = {}
    least, most = _PORTIONS
    size = least
    with progress.stage(f"Measure operators ({where.label})", len(keys)) as advance:
        while len(found) < len(keys) and (time.monotonic() < until or not found):
            portion = keys[len(found) : len(found) + size]
            start = time.monotonic()
            found |= _operators(portion, where)
            advance(len(portion))
            each = max(1e-6, (time.monotonic() - start) / len(portion))
            size = int(max(least, min(most, (until - time.monotonic()) / each)))
    return found


def cold(where: Where, progress: Progress) -> dict[OperatorKey, float | None]:
    """The milliseconds of `grid.heavy`'s operators when their weights are in no cache."""
    with progress.stage(f"Measure weights from memory ({where.label})"):
        return _operators(grid.heavy(), where, footprint_bytes=_COLD_FOOTPRINT)


def _operators(
    keys: Sequence[OperatorKey], where: Where, *, footprint_bytes: int = _FOOTPRINT
) -> dict[OperatorKey, float | None]:
    return tables.measure_alone(
        keys,
        runtime=where.runtime,
        precision=where.precision,
        threads=where.threads,
        workdir=where.store.root / "files",
        cache=where.store,
        fingerprint=where.fingerprint,
        transport=where.transport,
        options=tables.MeasureOptions(passes=3, blocks=6, footprint_bytes=footprint_bytes),
        seed=where.seed,
    )


# ------------------------------------------------------------------------------------------------------- whole nets


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNets:
    """The nets that were measured whole: milliseconds by name; ``version`` is that of the runtime there."""

    ms: dict[str, float]
    package: str
    version: str
    warnings: tuple[str, ...]


def whole_nets(where: Where, progress: Progress, *, seconds: float) -> WholeNets:
    """The small nets, each as the file that would ship, interleaved; they get about ``seconds`` in all.

    Raises `DeviceError` when the machine or its runtime fails.
    """
    key = digest(_FORMAT, nets.NAMES, where.runtime, where.precision, where.threads, where.fingerprint, where.seed)
    with progress.stage(f"Measure small nets ({where.label})"):
        return where.store.cached("nets", key, WholeNets, lambda folder: _whole_nets(where, folder, seconds))


def _whole_nets(where: Where, folder: Path, seconds: float) -> WholeNets:
    with tempfile.TemporaryDirectory(prefix="nets-", dir=folder) as name:
        made = files.lowered(
            [nets.build(net, where.seed) for net in nets.NAMES],
            runtime=where.runtime,
            precision=where.precision,
            workdir=Path(name),
            seed=where.seed,
            float_edges=True,
        )
        present = [(net, file) for net, file in zip(nets.NAMES, made, strict=True) if file is not None]
        if not present:
            raise DeviceError(f"none of the small nets could be made for {where.label}", remedy="see -v for why")
        options = bench.BenchOptions(
            threads=where.threads,
            warmup_s=0.1,
            min_runs=12,
            min_seconds=max(0.1, 0.8 * seconds / len(present)),
            rounds=_ROUNDS,
            passes=1,
            seed=where.seed,
        )
        artifacts = [_artifact(file, where) for _, file in present]
        result = bench.measure(artifacts, where.transport, options)
    first = result.measurements[0]
    return WholeNets(
        ms={
            net: statistics.median(statistics.median(one) for one in rounds)
            for (net, _), rounds in zip(present, result.rounds, strict=True)
        },
        package=first.runtime,
        version=first.runtime_version,
        warnings=first.warnings,
    )


def _artifact(file: Path, where: Where) -> Artifact:
    # The runner looks at nothing but the file and its runtime.
    return Artifact(
        runtime=where.runtime, precision=where.precision, file=file, inputs=(), outputs=(), path_taken="",
        size_bytes=file.stat().st_size, sha256=file_sha256(file),
    )  # fmt: skip
