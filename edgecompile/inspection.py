"""`edgecompile inspect`: what is in a model file, without running it more than its parser must."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompile import bundle, graph, report, tflite_file
from edgecompile import model as models
from edgecompile.errors import InputError
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
    """What is in a TFLite file."""

    path: Path
    size_bytes: int
    summary: tflite_file.TfliteSummary


def inspect(path: Path, *, input_shapes: Mapping[str, tuple[int, ...]]) -> OnnxReport | TfliteReport:
    """Describe an ``.onnx``, a ``.tflite``, or the model file of a bundle. Raises `InputError` for anything else."""
    if path.is_dir():
        path = bundle.read(path).file("model")
    if not path.is_file():
        raise InputError(f"no such file: {path}", remedy="give an .onnx, a .tflite or a bundle folder")
    if path.suffix == ".tflite":
        return TfliteReport(path=path, size_bytes=path.stat().st_size, summary=tflite_file.describe(path))
    if path.suffix == ".onnx":
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
            ("is the opset", str(summary.opset)),
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
    return Sheet(
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
