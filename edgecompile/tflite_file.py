"""Describes a ``.tflite`` file: what goes in and out, its operators, and which of them the XNNPACK delegate takes.

The file is untrusted and the parsers under us are native code (LiteRT crashes on a truncated file): it is opened in a
limited child process. Needs neither TensorFlow nor torch nor onnx.
"""

from __future__ import annotations

import runpy
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from edgecompile import content, sandbox
from edgecompile.errors import InputError
from edgecompile.types import Precision, Quantization, TensorSpec, to_builtins

_MEMORY_BYTES = 8 << 30
_TIMEOUT_S = 120.0
_IDENTIFIER = b"TFL3"
#: `TensorType` of the TFLite schema, by number.
_DTYPES = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64",
    "complex128", "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16",
)  # fmt: skip
_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that an operator takes or makes; ``constant`` when its values are in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator; ``name`` is that of the first tensor it makes, ``macs`` its multiply-accumulates.

    ``delegated`` says whether the XNNPACK delegate takes it; ``None`` where the file could not be loaded to find out.
    """

    index: int
    op_type: str
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    macs: int
    delegated: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteSummary:
    """What is in a TFLite file; ``inputs`` and ``outputs`` by the names of its signature, or else of its tensors.

    ``parameters`` counts the elements of weights and biases, ``partitions`` the parts that the delegate takes.
    ``not_loaded`` says why the file could be read but not run here (such as a custom operator).
    """

    size_bytes: int
    schema_version: int
    description: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[Operator, ...]
    parameters: int
    macs: int
    subgraphs: int
    partitions: int | None
    runtime: str
    not_loaded: str | None = None

    @property
    def delegated(self) -> int | None:
        """How many operators the delegate takes; ``None`` where it could not be found out."""
        if self.not_loaded is not None:
            return None
        return sum(op.delegated is True for op in self.operators)


def describe(path: Path) -> TfliteSummary:
    """Describe a file. Raises `InputError` for what is not a TFLite file, or a damaged one."""
    if not path.is_file():
        raise InputError(f"no such file: {path}", remedy="give the path of a .tflite file")
    what = f"the model file {path}"
    found = sandbox.call(
        "edgecompile.tflite_file:describe_in_child",
        {"path": str(path.resolve()), "what": what},
        memory_bytes=_MEMORY_BYTES,
        timeout_s=_TIMEOUT_S,
        what=what,
    )
    return msgspec.convert(found, TfliteSummary)


def describe_in_child(argument: dict[str, str]) -> Any:
    """Parse a file, then load it to see what the delegate takes; runs in the limited child."""
    path, what = Path(argument["path"]), argument["what"]
    try:
        summary = _parse(path.read_bytes(), what)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, AttributeError) as exc:
        raise InputError(f"{what} is damaged: {exc}", remedy="convert or download it again") from exc
    return to_builtins(_loaded(path, summary))


def _loaded(path: Path, summary: TfliteSummary) -> TfliteSummary:
    """The summary with what the runtime tells of the file."""
    backend = runpy.run_path(str(content.builtin_root("targets") / "tflite" / "backend.py"))
    runtime = backend["import_runtime"]()
    name = f"{runtime.package} {runtime.version}"
    try:
        details = backend["Session"](str(path)).interpreter._get_ops_details()
    except Exception as exc:  # of a damaged file LiteRT's Python raises whatever its parts stumble over
        text = str(exc).strip() or type(exc).__name__
        return replace(summary, runtime=name, not_loaded=text.splitlines()[0])
    taken = backend["delegated"](details)
    operators = tuple(replace(op, delegated=op.index in taken) for op in summary.operators)
    return replace(summary, runtime=name, operators=operators, partitions=len(details) - len(operators))


# ------------------------------------------------------------------------------------------------- the parser


def _parse(data: bytes, what: str) -> TfliteSummary:
    """What the flatbuffer says, without running anything. Raises Python's errors where it is damaged."""
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != _IDENTIFIER:
        raise InputError(f"{what} is not a TFLite file", remedy="give a .tflite file")
    model = schema.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    if graph is None:
        raise InputError(f"{what} has no graph in it", remedy="convert it again")
    constants = _constants(model, len(data))
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    tensors = [_tensor(graph.Tensors(i), constants) for i in range(graph.TensorsLength())]
    operators = tuple(_operator(model, graph.Operators(i), i, tensors, names) for i in range(graph.OperatorsLength()))
    input_names, output_names = _signature(model)
    return TfliteSummary(
        size_bytes=len(data),
        schema_version=int(model.Version()),
        description=_text(model.Description()),
        precision=_precision(operators, tensors),
        inputs=_interface(graph, [int(i) for i in graph.InputsAsNumpy()], input_names),
        outputs=_interface(graph, [int(i) for i in graph.OutputsAsNumpy()], output_names),
        operators=operators,
        parameters=_parameters(graph, tensors),
        macs=sum(op.macs for op in operators),
        subgraphs=int(model.SubgraphsLength()),
        partitions=None,
        runtime="",
    )


def _constants(model: Any, size: int) -> set[int]:
    """The buffers that hold values; each is looked at, so that a truncated file is noticed here."""
    found = set()
    for index in range(model.BuffersLength()):
        buffer = model.Buffers(index)
        if buffer.DataLength():
            buffer.DataAsNumpy()
            found.add(index)
        elif buffer.Offset() > 1:  # values after the flatbuffer, of files over 2 GB
            if buffer.Offset() + buffer.Size() > size:
                raise ValueError(f"buffer {index} ends after the file")
            found.add(index)
    return found


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")


def _tensor(tensor: Any, constants: set[int]) -> Tensor:
    return Tensor(
        name=_text(tensor.Name()),
        shape=_ints(tensor.ShapeAsNumpy()),
        dtype=_DTYPES[tensor.Type()] if tensor.Type() < len(_DTYPES) else f"type {tensor.Type()}",
        constant=tensor.Buffer() in constants,
    )


def _ints(values: Any) -> tuple[int, ...]:
    """A vector of the flatbuffer; an absent one is given as the number 0."""
    return () if isinstance(values, int) else tuple(int(value) for value in values)


def _operator(model: Any, operator: Any, index: int, tensors: Sequence[Tensor], names: dict[int, str]) -> Operator:
    code = model.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    custom = _text(code.CustomCode())
    inputs, outputs = (
        # -1 stands for an optional input that is not there.
        tuple(tensors[i] for i in _ints(vector) if i >= 0)
        for vector in (operator.InputsAsNumpy(), operator.OutputsAsNumpy())
    )
    op_type = custom or names.get(number, f"operator {number}")
    return Operator(
        index=index,
        op_type=op_type,
        name=outputs[0].name if outputs else "",
        inputs=inputs,
        outputs=outputs,
        macs=_macs(op_type, [t.shape for t in inputs], outputs[0].shape if outputs else ()),
        delegated=None,
    )


def _macs(op_type: str, inputs: Sequence[tuple[int, ...]], output: tuple[int, ...]) -> int:
    """Multiply-accumulates, from the shapes (layouts of weights: the TFLite operator reference)."""
    if op_type not in _WEIGHTED or len(inputs) < 2 or len(inputs[1]) < 2:
        return 0
    weights = inputs[1]
    if op_type == "CONV_2D":
        return prod(output) * prod(weights[1:])
    if op_type == "DEPTHWISE_CONV_2D":
        return prod(output) * prod(weights[1:3])
    if op_type == "FULLY_CONNECTED":
        return prod(output) * weights[1]
    if op_type == "CONV_3D":
        return prod(output) * prod(weights[:-1])
    if op_type == "TRANSPOSE_CONV":  # inputs: output shape, weights, data
        return prod(inputs[2]) * prod(weights[:3]) if len(inputs) > 2 else 0
    # BATCH_MATMUL: the left matrix may be transposed, so what is not the output's rows is summed over.
    rows = output[-2] if len(output) > 1 else 1
    return prod(output) * (inputs[0][-1] * inputs[0][-2] // max(1, rows)) if len(inputs[0]) > 1 else 0


def _precision(operators: Iterable[Operator], tensors: Iterable[Tensor]) -> Precision:
    """``int8`` where a weighted operator has integer weights, ``fp16`` where constants are float16."""
    weights = {op.inputs[1].dtype for op in operators if op.op_type in _WEIGHTED and len(op.inputs) > 1}
    if weights & {"int8", "uint8", "int4"}:
        return "int8"
    return "fp16" if any(t.constant and t.dtype == "float16" for t in tensors) else "fp32"


def _parameters(graph: Any, tensors: Sequence[Tensor]) -> int:
    """Elements of weights and biases: constants that are floats, 8 bits or less, or quantized (not shapes and axes)."""
    total = 0
    for index, tensor in enumerate(tensors):
        small = tensor.dtype in ("int8", "uint8", "int4", "int16") or "float" in tensor.dtype
        if tensor.constant and (small or _quantization(graph.Tensors(index)) is not None):
            total += prod(tensor.shape)
    return total


def _signature(model: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Tensor index -> name in the one signature of the main graph; empty where there is none, or several."""
    if model.SignatureDefsLength() != 1 or model.SignatureDefs(0).SubgraphIndex() != 0:
        return {}, {}
    signature = model.SignatureDefs(0)
    inputs = [signature.Inputs(i) for i in range(signature.InputsLength())]
    outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    return {m.TensorIndex(): _text(m.Name()) for m in inputs}, {m.TensorIndex(): _text(m.Name()) for m in outputs}


def _interface(graph: Any, indices: Sequence[int], names: dict[int, str]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs, named as ``targets/tflite/backend.py`` names them."""
    found: list[TensorSpec] = []
    for index in indices:
        tensor = graph.Tensors(index)
        name = names.get(index, _text(tensor.Name()))
        if not name or name in {spec.name for spec in found}:
            name = f"{name}#{index}"
        shape, dtype = _ints(tensor.ShapeAsNumpy()), _tensor(tensor, set()).dtype
        found.append(TensorSpec(name=name, shape=shape, dtype=dtype, quantization=_quantization(tensor)))
    return tuple(found)


def _quantization(tensor: Any) -> Quantization | None:
    parameters = tensor.Quantization()
    if parameters is None or not parameters.ScaleLength():
        return None
    scale = tuple(float(value) for value in parameters.ScaleAsNumpy())
    zero_point = _ints(parameters.ZeroPointAsNumpy()) or (0,) * len(scale)
    axis = int(parameters.QuantizedDimension()) if len(scale) > 1 else None
    return Quantization(scale=scale, zero_point=zero_point, axis=axis)
