"""`edgecompile inspect`: what is in a model file, without running it more than its parser must, unless it is timed."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import bundle, graph, operator_times, report, tflite_file
from edgecompile import model as models
from edgecompile.errors import InputError
from edgecompile.operator_times import OperatorTimes, Part, TimeOptions
from edgecompile.progress import Progress, Silent
from edgecompile.types import OperatorCost, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxReport:
    """What is in an ONNX file, after it was made static and simplified as a build would."""

    path: Path
    size_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    summary: graph.GraphSummary
    operators: tuple[OperatorCost, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteReport:
    """What is in a TFLite file, and what its operators cost where that was asked for."""

    path: Path
    size_bytes: int
    summary: tflite_file.TfliteSummary
    times: OperatorTimes | None = None


def inspect(
    path: Path,
    *,
    input_shapes: Mapping[str, tuple[int, ...]],
    time: TimeOptions | None = None,
    progress: Progress | None = None,
) -> OnnxReport | TfliteReport:
    """Describe an ``.onnx``, a ``.tflite``, or the model file of a bundle; with ``time`` its operators are measured.

    Raises `InputError` for anything else, and for ``time`` with a file that is no ``.tflite``.
    """
    if path.is_dir():
        path = bundle.read(path).file("model")
    if not path.is_file():
        raise InputError(f"no such file: {path}", remedy="give an .onnx, a .tflite or a bundle folder")
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        summary = tflite_file.describe(path)
        times = operator_times.measure(path, summary, time, progress or Silent()) if time is not None else None
        return TfliteReport(path=path, size_bytes=path.stat().st_size, summary=summary, times=times)
    if time is not None:
        raise InputError(f"--time needs a .tflite file, which {path} is not", remedy="leave --time out")
    if suffix == ".onnx":
        return _onnx(path, input_shapes)
    raise InputError(
        f"cannot inspect {path}: its ending is {path.suffix or 'missing'!r}",
        remedy="give an .onnx, a .tflite or a bundle folder",
    )


def _onnx(path: Path, input_shapes: Mapping[str, tuple[int, ...]]) -> OnnxReport:
    shapes = input_shapes[""] if set(input_shapes) == {""} else (input_shapes or None)
    with tempfile.TemporaryDirectory() as folder:
        model = models.load(str(path), Path(folder), input_shapes=shapes)
        return OnnxReport(
            path=path,
            size_bytes=path.stat().st_size,
            inputs=model.inputs,
            outputs=model.outputs,
            summary=graph.summary(model.path),
            operators=graph.operators(model.path),
            notes=model.notes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A report as people read it: a title, totals, the inputs and outputs, and a table of operators."""

    title: str
    facts: tuple[tuple[str, str], ...]
    tensors: tuple[tuple[str, TensorSpec], ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    costliest: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


def sheet(found: OnnxReport | TfliteReport) -> Sheet:
    """The figures of a report, as words."""
    return _onnx_sheet(found) if isinstance(found, OnnxReport) else _tflite_sheet(found)


def _tensors(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tuple[tuple[str, TensorSpec], ...]:
    return (*(("input", spec) for spec in inputs), *(("output", spec) for spec in outputs))


def _onnx_sheet(found: OnnxReport) -> Sheet:
    summary = found.summary
    macs: Counter[str] = Counter()
    for cost in found.operators:
        macs[cost.op_type] += cost.macs
    return Sheet(
        title=str(found.path),
        facts=(
            ("on disk", report.size(found.size_bytes)),
            ("parameters", report.count(summary.parameters)),
            ("multiply-accumulates", report.count(summary.macs)),
            (f"nodes (runtimes fuse them to {summary.fused_operators} operators)", str(summary.nodes)),
            ("", f"opset {summary.opset}"),
        ),
        tensors=_tensors(found.inputs, found.outputs),
        heads=("operator", "nodes", "MACs"),
        rows=tuple((name, str(n), report.count(macs[name]) if macs[name] else "-") for name, n in summary.operators),
    )


def _tflite_sheet(found: TfliteReport) -> Sheet:
    summary = found.summary
    kinds = Counter(operator.op_type for operator in summary.operators)
    macs: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    for operator in summary.operators:
        macs[operator.op_type] += operator.macs
        taken[operator.op_type] += bool(operator.delegated)
    known = summary.delegated is not None
    plain = Sheet(
        title=str(found.path),
        facts=(
            ("on disk", report.size(found.size_bytes)),
            ("parameters", report.count(summary.parameters)),
            ("multiply-accumulates", report.count(sum(macs.values()))),
            ("operators", str(len(summary.operators))),
            ("of them taken by the XNNPACK delegate", str(summary.delegated) if known else "unknown"),
        ),
        tensors=_tensors(summary.inputs, summary.outputs),
        heads=("operator", "count", "MACs", "XNNPACK takes"),
        rows=tuple(
            (name, str(n), report.count(macs[name]) if macs[name] else "-", str(taken[name]) if known else "?")
            for name, n in kinds.most_common()
        ),
    )
    return plain if found.times is None else _timed_sheet(plain, summary, found.times)


# ----------------------------------------------------------------------------------------------- operators in time

Figure = Callable[[float], str]
_TIME_HEADS = ("#", "operator", "output", "taken", "ms", "±", "%", "share")
_BAR_WIDTH = 8
_COSTLIEST = 5
_BUSY_CPUS = 0.25


def _timed_sheet(plain: Sheet, summary: tflite_file.TfliteSummary, times: OperatorTimes) -> Sheet:
    """The sheet with one row a part in the order of the graph in place of one row a kind."""
    figure = _figures(times)
    most = max(part.shown_ms for part in times.parts)
    dearest = sorted(times.parts, key=lambda part: -part.ms)[:_COSTLIEST]
    return replace(
        plain,
        heads=_TIME_HEADS,
        rows=tuple(_part_row(part, summary.operators, most, figure) for part in times.parts),
        costliest=tuple(_costly_row(part, summary.operators, figure) for part in dearest),
        notes=(*_left_out(summary, times, figure), *_doubts(times, summary, figure)),
    )


def _figures(times: OperatorTimes) -> Figure:
    """How milliseconds are written: as many decimals for all as give the whole four digits; nothing is plain ``0``."""
    decimals = min(5, max(1, 3 - math.floor(math.log10(times.whole_ms))))
    return lambda ms: f"{ms:.{decimals}f}" if ms else "0"


def _part_row(part: Part, operators: Sequence[tflite_file.Operator], most: float, figure: Figure) -> tuple[str, ...]:
    own = [operators[i] for i in part.operators]
    taken = sum(bool(op.delegated) for op in own)
    words = "yes" if taken == len(own) else "NO" if taken == 0 else f"{taken}/{len(own)}"
    bar = "#" * round(_BAR_WIDTH * max(0.0, part.shown_ms) / most) if most > 0 else ""
    shape = "x".join(map(str, own[-1].outputs[0].shape)) if own and own[-1].outputs else ""
    return (
        _numbers(part), _kinds(own), shape, words, figure(part.shown_ms),
        figure(part.noise_ms), _percent(part), bar,
    )  # fmt: skip


def _costly_row(part: Part, operators: Sequence[tflite_file.Operator], figure: Figure) -> tuple[str, ...]:
    own = [operators[i] for i in part.operators]
    ms = figure(part.shown_ms)
    return ms, f"{_percent(part)} %", f"#{_numbers(part)}", _kinds(own), own[-1].name


def _percent(part: Part) -> str:
    return f"{100 * part.share:.1f}" if part.shown_ms else "0"


def _numbers(part: Part) -> str:
    first, last = part.operators[0], part.operators[-1]
    return str(first) if first == last else f"{first}-{last}"


def _kinds(operators: Sequence[tflite_file.Operator]) -> str:
    """``CONV_2D``, or ``5 CONV_2D, ADD`` for several."""
    kinds = Counter(op.op_type for op in operators)
    return ", ".join(name if n == 1 else f"{n} {name}" for name, n in kinds.items())


def _left_out(summary: tflite_file.TfliteSummary, times: OperatorTimes, figure: Figure) -> Iterator[str]:
    """What breaks the delegation, with its cost."""
    folded = set(times.folded)
    left = [op for op in summary.operators if not op.delegated and op.index not in folded]
    parts = f"{summary.partitions} partition{'' if summary.partitions == 1 else 's'}"
    if not left:
        yield f"XNNPACK takes every operator, in {parts}."
        return
    indices = {op.index for op in left}
    alone = [part for part in times.parts if indices.issuperset(part.operators)]
    mixed = sum(bool(indices.intersection(part.operators)) for part in times.parts) - len(alone)
    ms, share = sum(part.shown_ms for part in alone), sum(part.share for part in alone if part.shown_ms)
    more = f", without those in {mixed} parts with others" if mixed else ""
    yield (
        f"XNNPACK leaves {len(left)} of {len(summary.operators)} operators ({_kinds(left)}) and works in {parts}; "
        f"those left cost {figure(ms)} ms ({100 * share:.1f} %){more}."
    )


def _doubts(times: OperatorTimes, summary: tflite_file.TfliteSummary, figure: Figure) -> Iterator[str]:
    """What a reader needs to judge the figures."""
    whole = f"{figure(times.whole_ms)} ±{figure(times.whole_noise_ms)} ms"
    threads = f"{times.threads} thread{'' if times.threads == 1 else 's'}"
    yield (
        f"The parts add up to {figure(times.sum_ms)} ms, {times.sum_ms / times.whole_ms:.2f} times the "
        f"whole file's {whole} ({threads}, {times.runtime}, {times.device}); nothing is scaled to fit."
    )
    if times.other_cpus is not None and times.other_cpus > _BUSY_CPUS:
        yield (
            f"Other programs kept {times.other_cpus:.1f} CPUs busy while measuring: differences suffer most from that. "
            "Measure again on a quiet machine."
        )
    zeros = sum(part.ms < 0 and part.shown_ms == 0 for part in times.parts)
    hidden = sum(abs(part.ms) <= part.noise_ms for part in times.parts)
    noisy = f", {zeros} of them negative and shown as 0" if zeros else ""
    yield (
        "Each ms is the median of the graph up to there less that of the graph before, ± its 95 % interval: "
        f"{hidden} of {len(times.parts)} are within their noise{noisy}. An output in the middle prevents fusion there, "
        "so what neighbours cost may be shifted from one to the other."
    )
    if times.folded:
        kinds = _kinds([summary.operators[i] for i in times.folded])
        yield f"Not listed: {kinds} on constants, counted with what reads them."
    if any(len(part.operators) > 1 for part in times.parts):
        yield (
            f"The graph is long: it was cut at {len(times.parts)} places, more finely where it costs more than 2 %, "
            "and operators in between are shown together."
        )
