"""Measures single operators on a machine and keeps what was measured, so that nothing is measured twice."""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edgecompile import content
from edgecompile.errors import DeviceError, UnsupportedModelError
from edgecompile.progress import Progress, Silent
from edgecompile.store import TIMES, Store, write_atomically
from edgecompile.tables import files
from edgecompile.tables.key import OperatorKey
from edgecompile.transport import Transport, identity, lab
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Precision, RuntimeName, decode, digest, encode

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

#: Raised when the way of measuring changes.
_FORMAT = 1
#: Files are made, measured and forgotten in portions, so that a killed run keeps what it had.
_PORTION = 64
#: The lengths of the chains of tiny operators that tell a call's fixed costs.
_CHAINS = (1, 17)
_DISTRIBUTIONS = {"tflite": "ai-edge-litert", "onnxruntime": "onnxruntime", "tensorrt": "onnxruntime"}
#: What carries bytes and does little else: the rate of the operators that cannot be measured is fitted on these.
_STREAMING = frozenset({"Add", "Sub", "Mul", "Concat", "Relu", "Clip", "Pad", "Slice", "Transpose", "Resize"})
#: Bytes per millisecond where nothing was measured to fit a rate on.
_RATE = 2e6
#: What an operator costs at least, also where noise hides it: a time is positive.
_LEAST_MS = 1e-4
_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 4, "int8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How single operators are measured: every one in each of ``passes``, ``blocks`` of ``block_runs`` runs a pass.

    ``footprint_bytes`` is what a whole inference touches, that is what lies between two uses of an operator's weights.
    """

    passes: int = 4
    blocks: int = 8
    block_runs: int = 2
    footprint_bytes: int = 8 << 20
    timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One operator's milliseconds; ``None`` where no file can be made of it alone."""

    ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Time:
    ms: float | None = None
    share: float = 1.0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    schema_version: Literal[1]
    version: str
    times: tuple[_Time, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What a time holds for, and where it is taken."""

    runtime: RuntimeName
    precision: Precision
    threads: int
    seed: int
    options: MeasureOptions
    fingerprint: str
    version: str

    def cache_key(self, key: OperatorKey) -> str:
        # Footprints that differ by little leave the same in the caches.
        footprint = self.options.footprint_bytes.bit_length()
        return digest(
            _FORMAT,
            key,
            self.runtime,
            self.precision,
            self.threads,
            self.version,
            self.fingerprint,
            footprint,
        )


def measure(
    keys: Sequence[OperatorKey],
    *,
    runtime: RuntimeName,
    precision: Precision,
    threads: int,
    workdir: Path,
    cache: Path | Store,
    fingerprint: str = "",
    transport: Transport | None = None,
    options: MeasureOptions | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[OperatorKey, float]:
    """The milliseconds of each distinct key on a machine (this one without ``transport``), by measuring it alone.

    ``transport`` is one that was entered; ``workdir`` holds the files while they are measured.
    What ``cache`` holds is not measured again; ``fingerprint`` is what the machine is known by there, of another one
    with the versions of its runtimes (without one, it is asked each time). An operator that
    cannot be a file of its own is estimated by the bytes it moves, at the rate of the operators measured that do
    little else. Raises `DeviceError` when the machine or its runtime fails, `InputError` for an emulated machine.
    """
    known = measure_alone(
        keys,
        runtime=runtime,
        precision=precision,
        threads=threads,
        workdir=workdir,
        cache=cache,
        fingerprint=fingerprint,
        transport=transport,
        options=options,
        seed=seed,
        progress=progress,
    )
    return _completed(list(known), known, precision)


def measure_alone(
    keys: Sequence[OperatorKey],
    *,
    runtime: RuntimeName,
    precision: Precision,
    threads: int,
    workdir: Path,
    cache: Path | Store,
    fingerprint: str = "",
    transport: Transport | None = None,
    options: MeasureOptions | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[OperatorKey, float | None]:
    """As `measure`; ``None`` for an operator that cannot be a file of its own."""
    lab.refuse_latency(transport)
    where = _Where(
        runtime=runtime,
        precision=precision,
        threads=threads,
        seed=seed,
        options=options or MeasureOptions(),
        fingerprint=fingerprint,
        version=_known_by(runtime, transport, fingerprint),
    )
    store = cache if isinstance(cache, Store) else Store(cache)
    distinct = list(dict.fromkeys(keys))
    known = {key: timed for key in distinct if (timed := _kept(store, where.cache_key(key))) is not None}
    missing = [key for key in distinct if key not in known]
    watcher = progress or Silent()
    with watcher.stage(f"Measure {len(missing)} operators", len(missing)) as advance:
        for at in range(0, len(missing), _PORTION):
            portion = missing[at : at + _PORTION]
            found = _measure(portion, where, workdir, transport)
            for key in portion:
                known[key] = _keep(store, where.cache_key(key), found[key])
            advance(len(portion))
    return {key: known[key].ms for key in distinct}


def _kept(store: Store, key: str) -> Timed | None:
    """What the store has under a key."""
    try:
        return decode(_place(store, key).read_bytes(), Timed)
    except (OSError, msgspec.ValidationError):
        return None


def _keep(store: Store, key: str, timed: Timed) -> Timed:
    """Write a time down; one file each, since several builds may share the folder."""
    path = _place(store, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encode(timed))
    return timed


def _place(store: Store, key: str) -> Path:
    return store.root / TIMES / f"{key[:32]}.json"


def _known_by(runtime: RuntimeName, transport: Transport | None, fingerprint: str) -> str:
    """What times are kept under beside the fingerprint. One of another machine's was asked of it, with its versions."""
    if transport is None or transport.is_this_machine:
        return _version(runtime)
    return "" if fingerprint else identity.of(transport)


def _version(runtime: RuntimeName) -> str:
    from importlib import metadata

    try:
        return metadata.version(_DISTRIBUTIONS[runtime])
    except metadata.PackageNotFoundError:
        return "unknown"


def _measure(
    keys: Sequence[OperatorKey], where: _Where, workdir: Path, transport: Transport | None
) -> dict[OperatorKey, Timed]:
    """Make the files of some keys and time them, and chains of tiny operators for what a call costs."""
    workdir.mkdir(parents=True, exist_ok=True)
    graphs = (*(files.tiny_chain(length) for length in _CHAINS), *(_graph(key, where.seed) for key in keys))
    with tempfile.TemporaryDirectory(prefix="operators-", dir=workdir) as name:
        made = files.lowered(
            graphs, runtime=where.runtime, precision=where.precision, workdir=Path(name), seed=where.seed
        )
        labels = [*("Add" for _ in _CHAINS), *(key.op_type for key in keys)]
        present = [i for i, file in enumerate(made) if file is not None]
        named = [(labels[i], file) for i, file in enumerate(made) if file is not None]
        times = dict(zip(present, _timed(named, where, Path(name), transport), strict=True))
    fixed, found = _call_ms(times), {}
    for i, key in enumerate(keys, start=len(_CHAINS)):
        one = times.get(i, _Time(error="no file can be made of it"))
        if one.ms is None:
            log.info("%s %s is estimated: %s", key.op_type, key.in_shape, one.error)
        found[key] = Timed(ms=None if one.ms is None else max((one.ms - fixed) * one.share, _LEAST_MS))
    return found


def _graph(key: OperatorKey, seed: int) -> onnx.ModelProto | None:
    try:
        return files.onnx_model(key, seed=seed)
    except UnsupportedModelError as exc:
        log.info("%s", exc)
        return None


def _call_ms(times: Mapping[int, _Time]) -> float:
    """What a run costs beside its operators: a short chain's time, less what its operators cost by the longer one.

    An operator's own time so keeps the cost of being called by the runtime, which it has in a whole model too.
    """
    short, long = (times[i].ms if i in times else None for i in range(len(_CHAINS)))
    if short is None or long is None:
        return short or 0.0
    each = max(0.0, (long - short) / (_CHAINS[1] - _CHAINS[0]))
    return max(0.0, short - _CHAINS[0] * each)


def _timed(
    named: Sequence[tuple[str, Path]], where: _Where, folder: Path, transport: Transport | None
) -> tuple[_Time, ...]:
    """Put the files and the program on the machine, run it there and get the times."""
    backend = "onnxruntime" if where.runtime == "tensorrt" else where.runtime
    job = {
        "runtime": backend, "threads": where.threads, "seed": where.seed, "passes": where.options.passes,
        "blocks": where.options.blocks, "block_runs": where.options.block_runs,
        "footprint_bytes": where.options.footprint_bytes,
        "files": [{"file": f"{i}{file.suffix}", "keep": [op_type]} for i, (op_type, file) in enumerate(named)],
    }  # fmt: skip
    (folder / "job.json").write_bytes(msgspec.json.encode(job))
    root = content.builtin_root("targets")
    with contextlib.nullcontext(transport) if transport is not None else LocalTransport() as there:
        for name in ("runner.py", "probes.py", "operators.py", f"{backend}/backend.py"):
            there.put(root / name, name)
        there.put(folder / "job.json", "job.json")
        for i, (_, file) in enumerate(named):
            there.put(file, f"{i}{file.suffix}")
        done = there.run([there.python, "operators.py", "job.json", "times.json"], timeout_s=where.options.timeout_s)
        if done.code:
            lines = (done.err or done.out).strip().splitlines() or ["it said nothing"]
            raise DeviceError(
                f"timing operators on {there.description} failed with exit code {done.code}: {lines[-1]}",
                remedy=f"see that {_DISTRIBUTIONS[where.runtime]} and numpy are installed there",
            )
        there.get("times.json", folder / "times.json")
    return _parsed((folder / "times.json").read_bytes())


def _parsed(data: bytes) -> tuple[_Time, ...]:
    try:
        return msgspec.json.decode(data, type=_Document).times
    except msgspec.DecodeError as exc:
        raise DeviceError(
            f"the times of the operators are malformed: {exc}", remedy="the program there is of another version"
        ) from exc


def _completed(
    keys: Sequence[OperatorKey], known: Mapping[OperatorKey, float | None], precision: Precision
) -> dict[OperatorKey, float]:
    """The times, with estimates by the bytes moved where there is none."""
    width = _BYTES[precision]
    streamed = [(width * k.elements, ms) for k, ms in known.items() if ms is not None and k.op_type in _STREAMING]
    rate = sum(size for size, _ in streamed) / sum(ms for _, ms in streamed) if streamed else _RATE
    found = {}
    for key in keys:
        ms = known[key]
        found[key] = width * key.elements / rate if ms is None else ms
    return found


def footprint_bytes(keys: Sequence[OperatorKey], precision: Precision) -> int:
    """About what one inference of a model of these operators reads: all weights, and every operator's inputs."""
    weights = sum(math.prod(key.weight_shape) for key in keys if key.weight_shape)
    return _BYTES[precision] * (weights + sum(math.prod(shape) for key in keys for shape in key.in_shapes))
