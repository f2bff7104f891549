"""What each operator of a ``.tflite`` file costs, by the differences of its prefixes.

LiteRT's Python interpreter has no profiler. So the file is cut after operators: each prefix is a file whose outputs
are the tensors that live there, all prefixes are measured interleaved, and an operator costs what its prefix takes more
than the one before. Nothing is scaled. The differences of neighbours add up to the last prefix, which has every
operator; the file itself is measured with them, and reported beside the sum.

What this cannot see: a tensor that is an output cannot be worked on in place, nor can its maker be fused with its
reader. Where that matters the maker looks dearer, and the reader cheaper, by the same amount.
The first operator has what a call of the runtime costs by itself, below a microsecond here.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

import msgspec

from edgecompile import sandbox
from edgecompile.bench import document, runner
from edgecompile.errors import InputError
from edgecompile.lower import flatbuffer
from edgecompile.progress import Progress
from edgecompile.tflite_file import TfliteSummary
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, to_builtins

log = logging.getLogger(__name__)

_MEMORY_BYTES = 16 << 30
_CUT_TIMEOUT_S = 300.0
#: A graph with more cut points than this is cut coarsely first; a measurement holds at most so many prefixes at once.
MOST_CUTS = 60
_COARSE = 30
#: Segments of a coarsely cut graph that cost less than this share of the whole stay in one piece.
_REFINED_SHARE = 0.02
#: Measurements that refine, at most, the dearest segments first: each takes about a minute.
_REFINEMENTS = 3
#: What the prefixes of one measurement may hold together on disk: the process that runs them holds them all, twice.
_MOST_BYTES = 2 << 30
_FEWEST_CUTS = 4
_ROUNDS = 5
#: The 97.5th percentile of Student's t with ``_ROUNDS - 1`` degrees of freedom.
_T = 2.776
#: Tensors of these types (resource, variant: TFLite 13 and 14) hold no values and cannot be outputs.
_OPAQUE = (13, 14)
_OPTIONAL = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOptions:
    """How long to measure: every prefix runs at least so often and so long, spread over five fresh processes."""

    threads: int = 1
    min_runs: int = 15
    min_seconds: float = 0.5
    warmup_s: float = 0.2
    seed: int = 0
    timeout_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some operators in a row, by their indices, and what they cost together.

    ``ms`` is the difference of two medians and may be negative; ``noise_ms`` is the half width of its 95 % interval
    (Student's t over the rounds). ``share`` is ``ms`` over the whole file's.
    """

    operators: tuple[int, ...]
    ms: float
    noise_ms: float
    share: float

    @property
    def shown_ms(self) -> float:
        """``ms``, but 0 where it is negative by no more than the noise."""
        return 0.0 if -self.noise_ms <= self.ms < 0 else self.ms


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """What the parts of a file cost, in the order of the graph; every figure in milliseconds.

    ``whole_ms`` is the file itself; ``sum_ms`` adds up what is shown of the parts, so that it can be judged.
    ``folded`` are operators on constants only, which count with the part that reads what they make. ``other_cpus`` is
    how many CPUs other programs kept busy while measuring, ``None`` where the machine does not tell.
    """

    threads: int
    runtime: str
    device: str
    whole_ms: float
    whole_noise_ms: float
    sum_ms: float
    parts: tuple[Part, ...]
    folded: tuple[int, ...]
    prefixes: int
    other_cpus: float | None = None


def measure(path: Path, summary: TfliteSummary, options: TimeOptions, progress: Progress) -> OperatorTimes:
    """Time the operators of a file on this machine.

    Raises `InputError` for a file that cannot be run or cut, `DeviceError` when measuring fails or takes too long.
    """
    if summary.not_loaded is not None:
        raise InputError(
            f"{path} cannot be run here, so its operators cannot be timed: {summary.not_loaded}",
            remedy="leave --time out",
        )
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as name:
        job = _Job(path=path, folder=Path(name), options=options, progress=progress)
        points = _points(path)
        limit = max(_FEWEST_CUTS, min(MOST_CUTS, _MOST_BYTES // max(1, path.stat().st_size // 2)))
        first = points.cuts if len(points.cuts) <= limit else _spread(points.cuts, min(_COARSE, limit // 2))
        coarse = _take(first, points.cuts, job)
        segments = _refined(coarse, points.cuts, limit, job)
    return _result(coarse, segments, points, summary, options)


# ------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    path: Path
    folder: Path
    options: TimeOptions
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Points:
    """Where a graph can be cut: after these operators, the last included; and what is made of constants only."""

    cuts: tuple[int, ...]
    folded: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """Operators after ``start`` (-1: the beginning) up to and with ``end``, and the milliseconds of each round."""

    start: int
    end: int
    ms: float
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """One measurement: the segments between its cuts, and the whole file, by rounds."""

    segments: tuple[_Segment, ...]
    whole_ms: float
    whole_rounds: tuple[float, ...]
    runtime: str
    device: str
    prefixes: int
    other_cpus: float | None


def _spread(cuts: Sequence[int], count: int) -> tuple[int, ...]:
    """About ``count`` of the cuts, evenly spread, the last one among them."""
    return tuple(cuts[round((i + 1) * len(cuts) / count) - 1] for i in range(min(count, len(cuts))))


def _take(cuts: Sequence[int], known: Sequence[int], job: _Job) -> _Taken:
    """Measure the prefixes that end at ``cuts`` and the whole file, interleaved, and take their differences."""
    files = [job.folder / f"{cut}.tflite" for cut in cuts]
    sandbox.call(
        "edgecompile.operator_times:cut_in_child",
        {"path": str(job.path.resolve()), "files": {str(cut): str(f) for cut, f in zip(cuts, files, strict=True)}},
        memory_bytes=_MEMORY_BYTES,
        timeout_s=_CUT_TIMEOUT_S,
        what=f"the model file {job.path}",
    )
    o = job.options
    arguments = ["--rounds", str(_ROUNDS), "--threads", str(o.threads), "--min-runs", str(o.min_runs)]
    arguments += ["--min-seconds", str(o.min_seconds), "--warmup-s", str(o.warmup_s), "--seed", str(o.seed)]
    artifacts = [_artifact(file) for file in (*files, job.path)]
    title = f"Measure {len(files)} prefixes of {len(known)}"
    with job.progress.stage(title), LocalTransport() as transport:
        found = runner.run(artifacts, transport, arguments, document.Document, timeout_s=o.timeout_s)
    for file in files:
        file.unlink()
    return _differences(cuts, found)


def _artifact(file: Path) -> Artifact:
    # The runner looks at nothing but the file and its runtime.
    return Artifact(
        runtime="tflite", precision="fp32", file=file, inputs=(), outputs=(), path_taken="",
        size_bytes=file.stat().st_size, sha256="",
    )  # fmt: skip


def _differences(cuts: Sequence[int], found: document.Document) -> _Taken:
    rounds = [tuple(median(one) for one in model.latencies_ms) for model in found.models]
    pooled = [median(ms for one in model.latencies_ms for ms in one) for model in found.models]
    segments, start, before, before_rounds = [], -1, 0.0, (0.0,) * _ROUNDS
    for cut, ms, by_round in zip(cuts, pooled, rounds, strict=False):
        differences = tuple(b - a for a, b in zip(before_rounds, by_round, strict=True))
        segments.append(_Segment(start=start, end=cut, ms=ms - before, rounds=differences))
        start, before, before_rounds = cut, ms, by_round
    return _Taken(
        segments=tuple(segments),
        whole_ms=pooled[-1],
        whole_rounds=rounds[-1],
        runtime=f"{found.models[0].package} {found.models[0].version}",
        device=found.environment.device,
        prefixes=len(cuts),
        other_cpus=found.environment.other_cpus,
    )


def _refined(coarse: _Taken, cuts: Sequence[int], limit: int, job: _Job) -> tuple[_Segment, ...]:
    """The segments, those that cost much cut at every point inside; each is measured with its own two ends."""
    segments = list(coarse.segments)

    def too_dear(found: Iterable[_Segment]) -> list[_Segment]:
        return [s for s in found if s.ms > _REFINED_SHARE * coarse.whole_ms and len(_inside(s, cuts)) > 1]

    dear = too_dear(segments)
    for _ in range(_REFINEMENTS):
        dear.sort(key=lambda segment: -segment.ms)
        chosen: list[_Segment] = []
        points: set[int] = set()
        while dear and (not chosen or len(points | _ends(dear[0], cuts, limit)) <= limit):
            chosen.append(dear.pop(0))
            points |= _ends(chosen[-1], cuts, limit)
        if not chosen:
            break
        taken = _take(sorted(points), cuts, job)
        for old in chosen:
            at = segments.index(old)
            finer = [s for s in taken.segments if old.start <= s.start and s.end <= old.end]
            segments[at : at + 1] = finer
            dear += too_dear(finer)
    return tuple(segments)


def _inside(segment: _Segment, cuts: Sequence[int]) -> list[int]:
    return [cut for cut in cuts if segment.start < cut <= segment.end]


def _ends(segment: _Segment, cuts: Sequence[int], limit: int) -> set[int]:
    """Where to cut a segment to refine it, its two ends included."""
    inside = _inside(segment, cuts)
    chosen = inside if len(inside) < limit else _spread(inside, limit - 1)
    return {*chosen, *([segment.start] if segment.start >= 0 else [])}


def _result(
    coarse: _Taken, segments: Sequence[_Segment], points: _Points, summary: TfliteSummary, options: TimeOptions
) -> OperatorTimes:
    parts = tuple(
        Part(
            operators=tuple(i for i in range(s.start + 1, s.end + 1) if i not in points.folded),
            ms=s.ms,
            noise_ms=_noise(s.rounds),
            share=s.ms / coarse.whole_ms,
        )
        for s in segments
    )
    return OperatorTimes(
        threads=options.threads,
        runtime=coarse.runtime,
        device=coarse.device,
        whole_ms=coarse.whole_ms,
        whole_noise_ms=_noise(coarse.whole_rounds),
        sum_ms=sum(part.shown_ms for part in parts),
        parts=parts,
        folded=points.folded,
        prefixes=coarse.prefixes,
        other_cpus=coarse.other_cpus,
    )


def _noise(rounds: Sequence[float]) -> float:
    return float(_T * stdev(rounds) / len(rounds) ** 0.5)


# ---------------------------------------------------------------------------------- cutting, in a limited child


def _points(path: Path) -> _Points:
    found = sandbox.call(
        "edgecompile.operator_times:points_in_child",
        {"path": str(path.resolve())},
        memory_bytes=_MEMORY_BYTES,
        timeout_s=_CUT_TIMEOUT_S,
        what=f"the model file {path}",
    )
    points = msgspec.convert(found, _Points)
    if not points.cuts:
        raise InputError(f"{path} has no operators to time", remedy="leave --time out")
    return points


def points_in_child(argument: dict[str, str]) -> Any:
    """Where a file can be cut; runs in the limited child."""
    model = _unpacked(Path(argument["path"]))
    folded = _folded(model)
    graph = model.subgraphs[0]
    last = len(graph.operators) - 1
    cuts = [k for k in range(last) if k not in folded and _live(model, k, folded)]
    return to_builtins(_Points(cuts=(*cuts, last) if last >= 0 else (), folded=tuple(sorted(folded))))


def cut_in_child(argument: dict[str, Any]) -> None:
    """Write a prefix for each cut to its file; runs in the limited child."""
    model = _unpacked(Path(argument["path"]))
    folded = _folded(model)
    for cut, file in argument["files"].items():
        Path(file).write_bytes(flatbuffer.pack(_prefix(model, int(cut), folded)))


def _unpacked(path: Path) -> Any:
    """The file's object tree, with lists where the file has none."""
    model = flatbuffer.unpack(path.read_bytes())
    if any(buffer.offset > 1 for buffer in model.buffers):
        raise InputError(f"{path} has its values after the flatbuffer: it cannot be cut", remedy="leave --time out")
    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = _listed(graph.inputs), _listed(graph.outputs)
    graph.operators = graph.operators or []
    for operator in graph.operators:
        operator.inputs, operator.outputs = _listed(operator.inputs), _listed(operator.outputs)
    return model


def _listed(indices: Any) -> list[int]:
    return [] if indices is None else [int(index) for index in indices]


def _folded(model: Any) -> set[int]:
    """Operators that read only constants, such as DEQUANTIZE of float16 weights.

    What they make must not become an output: the delegate folds them into their readers, and could not then.
    """
    graph = model.subgraphs[0]
    fixed = {i for i, tensor in enumerate(graph.tensors) if flatbuffer.is_constant(model, tensor)} | {_OPTIONAL}
    found = set()
    for number, operator in enumerate(graph.operators):
        if operator.inputs and fixed.issuperset(operator.inputs) and not set(operator.outputs) & set(graph.outputs):
            found.add(number)
            fixed.update(operator.outputs)
    return found


def _live(model: Any, cut: int, folded: Iterable[int]) -> list[int]:
    """The tensors made up to an operator that are read after it, or are outputs of the file."""
    graph = model.subgraphs[0]
    skipped = set(folded)
    made = {i for k, op in enumerate(graph.operators[: cut + 1]) if k not in skipped for i in op.outputs}
    later = {i for op in graph.operators[cut + 1 :] for i in op.inputs} | set(graph.outputs)
    return sorted(i for i in made & later if graph.tensors[i].type not in _OPAQUE)


def _prefix(model: Any, cut: int, folded: set[int]) -> Any:
    """The model with the operators up to ``cut``; those on constants only where one of these reads them."""
    made = copy.copy(model)
    made.buffers = [copy.copy(buffer) for buffer in model.buffers]
    graph = copy.copy(model.subgraphs[0])
    kept: list[Any] = []
    read: set[int] = set()
    for number in range(cut, -1, -1):
        operator = graph.operators[number]
        if number not in folded or read & set(operator.outputs):
            kept.insert(0, copy.copy(operator))
            read |= set(operator.inputs)
    whole = cut == len(graph.operators) - 1
    graph.outputs = graph.outputs if whole else _live(model, cut, folded)
    graph.operators = kept
    made.subgraphs = [graph, *model.subgraphs[1:]]
    made.signatureDefs = None
    flatbuffer.drop_unused_tensors(made)
    flatbuffer.drop_unused_buffers(made)
    return made
