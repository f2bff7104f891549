"""`edgecompile inspect`: what is in a model file, without running it more than its parser must."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
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


def onnx_rows(found: OnnxReport) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Totals and one row an operator type: nodes in the graph, fused operators, multiply-accumulates."""
    summary = found.summary
    facts = [
        ("on disk", report.size(found.size_bytes)),
        ("parameters", report.count(summary.parameters)),
        ("MACs", report.count(summary.macs)),
        (f"nodes, which runtimes fuse to {summary.fused_operators}, opset {summary.opset}", str(summary.nodes)),
    ]
    macs: Counter[str] = Counter()
    for cost in found.operators:
        macs[cost.op_type] += cost.macs
    rows = [(name, str(count), report.count(macs[name]) if macs[name] else "-") for name, count in summary.histogram]
    return facts, [tuple(row) for row in rows]
