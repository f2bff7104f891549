"""Writes the flatbuffer: tensors, operators and weights as bytes, without a copy in Python's own types.

The schema is the one that ships in ``ai_edge_litert`` (``schema.fbs`` of TFLite, version 3 files). Weights are put
into the builder as blocks of memory, aligned to 16 bytes as the schema's ``force_align`` demands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompile.lower import flatbuffer
from edgecompile.lower.direct.ir import Array, Shape

_SCHEMA_VERSION = 3
_SIGNATURE = "serving_default"
#: Flatbuffers address their contents with 31 bits.
MAX_BYTES = (1 << 31) - (1 << 20)

#: NumPy's names and TFLite's ``TensorType`` numbers.
TENSOR_TYPES = {
    "float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9, "float64": 10,
    "uint64": 12, "uint32": 15, "uint16": 16,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of the file; ``data`` is a constant's, as it lies in memory."""

    name: str
    shape: Shape
    dtype: str
    data: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator of the file: its builtin's name and version, its options, and tensor indices."""

    builtin: str
    version: int
    options_name: str
    options: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class File:
    """What goes into a file, in the order in which it is written."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[tuple[str, int]] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)


def pack(file: File) -> bytes:
    """The bytes of the ``.tflite`` file; the same content gives the same bytes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version = _SCHEMA_VERSION
    model.description = b"edgecompile"
    buffers, places = _buffers(schema, file.tensors)
    codes = list(dict.fromkeys((op.builtin, op.version) for op in file.operators))
    model.operatorCodes = [_operator_code(schema, *code) for code in codes]
    graph = schema.SubGraphT()
    graph.name = b"main"
    graph.tensors = [_tensor(schema, t, place) for t, place in zip(file.tensors, places, strict=True)]
    graph.inputs = np.array([index for _, index in file.inputs], np.int32)
    graph.outputs = np.array([index for _, index in file.outputs], np.int32)
    graph.operators = [_operator(schema, op, codes.index((op.builtin, op.version))) for op in file.operators]
    model.subgraphs = [graph]
    model.buffers = buffers
    model.signatureDefs = [_signature(schema, file)]
    return flatbuffer.finish(model, content_bytes(file))


def content_bytes(file: File) -> int:
    """About how large the file will be: its constants, and room for the rest."""
    return sum(t.data.nbytes + 64 for t in file.tensors if t.data is not None) + 512 * len(file.operators) + (1 << 16)


def _bytes(data: Array) -> Array:
    little = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8)


def _buffers(schema: Any, tensors: Sequence[Tensor]) -> tuple[list[Any], list[int]]:
    """The file's buffers (the first is empty by convention) and each tensor's; equal small constants share one."""
    buffers = [schema.BufferT()]
    places: list[int] = []
    shared: dict[bytes, int] = {}
    for tensor in tensors:
        if tensor.data is None or tensor.data.size == 0:
            places.append(0)
            continue
        data = _bytes(tensor.data)
        key = data.tobytes() if data.size <= 1024 else None
        if key is not None and key in shared:
            places.append(shared[key])
            continue
        buffer = schema.BufferT()
        buffer.data = data
        buffers.append(buffer)
        places.append(len(buffers) - 1)
        if key is not None:
            shared[key] = places[-1]
    return buffers, places


def _operator_code(schema: Any, builtin: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, builtin)
    code.deprecatedBuiltinCode = min(code.builtinCode, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    code.version = version
    return code


def _tensor(schema: Any, tensor: Tensor, place: int) -> Any:
    made = schema.TensorT()
    made.name = tensor.name.encode()
    made.shape = np.array(tensor.shape, np.int32)
    made.type = TENSOR_TYPES[tensor.dtype]
    made.buffer = place
    made.hasRank = True
    return made


def _operator(schema: Any, op: Operator, code: int) -> Any:
    made = schema.OperatorT()
    made.opcodeIndex = code
    made.inputs = np.array(op.inputs, np.int32)
    made.outputs = np.array(op.outputs, np.int32)
    if op.options_name:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, op.options_name)
        options = getattr(schema, f"{op.options_name}T")()
        for name, value in op.options.items():
            assert hasattr(options, name), (op.options_name, name)
            setattr(options, name, value)
        made.builtinOptions = options
    return made


def _signature(schema: Any, file: File) -> Any:
    def entries(pairs: Sequence[tuple[str, int]]) -> list[Any]:
        listed = []
        for name, index in pairs:
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            listed.append(entry)
        return listed

    signature = schema.SignatureDefT()
    signature.signatureKey = _SIGNATURE.encode()
    signature.subgraphIndex = 0
    signature.inputs = entries(file.inputs)
    signature.outputs = entries(file.outputs)
    return signature
