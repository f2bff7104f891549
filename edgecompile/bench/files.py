"""Files that did not come from a build, as something to measure and to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecompile import sandbox, tflite_file
from edgecompile.errors import InputError
from edgecompile.types import Artifact, Port, Precision, RuntimeName, TensorSpec, file_sha256

_TIMEOUT_S = 120.0
_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
_ONNX_FLOAT16 = 10


def bare_file(path: Path) -> Artifact:
    """A ``.tflite`` or ``.onnx`` file as an artifact, with its own names and layouts.

    The file is untrusted: it is opened in a limited child process. Raises `InputError` for anything else, and for a
    damaged file.
    """
    remedy = "give a bundle, a .tflite or an .onnx file"
    if not path.is_file():
        raise InputError(f"no such file: {path}", remedy=remedy)
    if path.suffix.lower() == ".tflite":
        summary = tflite_file.describe(path)
        return _artifact(path, "tflite", summary.precision, summary.inputs, summary.outputs)
    if path.suffix.lower() == ".onnx":
        return _onnx(path)
    raise InputError(f"cannot measure {path}: its ending is {path.suffix or 'missing'!r}", remedy=remedy)


def _artifact(
    path: Path,
    runtime: RuntimeName,
    precision: Precision,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Artifact:
    return Artifact(
        runtime=runtime,
        precision=precision,
        file=path,
        inputs=tuple(Port(spec=spec, model_name=spec.name) for spec in inputs),
        outputs=tuple(Port(spec=spec, model_name=spec.name) for spec in outputs),
        path_taken="given",
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def _onnx(path: Path) -> Artifact:
    found = sandbox.call(
        "edgecompile.bench.files:describe_onnx_in_child",
        str(path.resolve()),
        memory_bytes=sandbox.DEFAULT_MEMORY_BYTES,
        timeout_s=_TIMEOUT_S,
        what=f"the model file {path}",
    )
    inputs, outputs = (
        tuple(TensorSpec(name=s["name"], shape=tuple(s["shape"]), dtype=s["dtype"]) for s in found[side])
        for side in ("inputs", "outputs")
    )
    return _artifact(path, "onnxruntime", found["precision"], inputs, outputs)


def describe_onnx_in_child(argument: str) -> dict[str, Any]:
    """Inputs, outputs and precision of an ONNX file; runs in the limited child, without the ``onnx`` package."""
    from edgecompile import execute

    path = Path(argument)
    session = execute.open_session("onnxruntime", path)
    return {
        "inputs": [{"name": name, **spec} for name, spec in session.inputs.items()],
        "outputs": [{"name": name, **spec} for name, spec in session.outputs.items()],
        "precision": _onnx_precision(path.read_bytes()),
    }


def _onnx_precision(data: bytes) -> Precision:
    """What the weights of an ONNX file are, by its operators and the types of its initializers."""
    types: set[int] = set()
    for number, graph in _fields(memoryview(data)):
        if number != 7 or not isinstance(graph, memoryview):
            continue
        for kind, part in _fields(graph):
            if kind not in (1, 5) or not isinstance(part, memoryview):
                continue
            for field, value in _fields(part):
                if kind == 1 and field == 4 and isinstance(value, memoryview) and bytes(value).decode() in _QUANTIZED:
                    return "int8"
                if kind == 5 and field == 2 and isinstance(value, int):
                    types.add(value)
    return "fp16" if _ONNX_FLOAT16 in types else "fp32"


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one protobuf message: integers, and the bytes of what is nested.

    https://protobuf.dev/programming-guides/encoding/
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
        elif kind == 2:
            size = varint()
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            at += 8 if kind == 1 else 4
