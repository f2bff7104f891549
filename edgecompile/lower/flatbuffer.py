"""Reads and writes TFLite flatbuffers through the schema that ships in ``ai_edge_litert``: no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgecompile.errors import UnsupportedModelError
from edgecompile.types import Port, Quantization, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SIGNATURE_KEY = "serving_default"
_IDENTIFIER = b"TFL3"
#: ``Buffer.data`` is declared ``force_align: 16`` in the TFLite schema: kernels may load weights with aligned loads.
_BUFFER_ALIGNMENT = 16
#: What the builder can hold.
_MOST_BYTES = (1 << 31) - 1

FLOAT32, FLOAT16, INT32, INT8 = 0, 1, 2, 9
#: Versions of operators that are added here, where 1 does not do: DEQUANTIZE (6) of float16, QUANTIZE (114) of int8.
_VERSIONS = {6: 3, 114: 2}
#: TFLite's ``TensorType`` numbers and NumPy's names for them.
_DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    8: "complex64",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
}


def unpack(data: bytes) -> Any:
    """The flatbuffer as a mutable ``schema_py_generated.ModelT``."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(data, 0)


def pack(model: Any) -> bytes:
    """A ``ModelT`` as the bytes of a ``.tflite`` file, buffers aligned to 16 bytes."""
    import numpy as np

    size = 1 << 20
    for buffer in model.buffers:
        if buffer.data is not None:
            if not isinstance(buffer.data, np.ndarray):
                buffer.data = np.frombuffer(bytes(buffer.data), dtype=np.uint8)
            size += buffer.data.nbytes + _BUFFER_ALIGNMENT
    return finish(model, size)


def finish(model: Any, size: int) -> bytes:
    """A ``ModelT`` whose buffers are NumPy arrays as bytes; ``size`` is about how many, so that nothing is moved."""
    import flatbuffers  # type: ignore[import-untyped]
    import numpy as np

    class AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
        # `Builder.CreateNumpyVector` aligns to the item size and so ignores the schema's `force_align` of buffers:
        # kernels may load weights with aligned loads.
        def CreateNumpyVector(self, x: npt.NDArray[np.generic]) -> int:
            if x.dtype != np.uint8 or x.ndim != 1:
                return int(super().CreateNumpyVector(x))
            self.StartVector(1, x.size, _BUFFER_ALIGNMENT)
            self.head = int(self.Head() - x.size)
            self.Bytes[self.Head() : self.Head() + x.size] = np.ascontiguousarray(x).data
            self.vectorNumElems = x.size
            return int(self.EndVector())

    builder = AlignedBuilder(min(size, _MOST_BYTES))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def operator_name(model: Any, operator: Any) -> str:
    """The operator's name, such as ``CONV_2D``; a custom operator's own name."""
    code = model.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return str(code.customCode.decode(errors="replace"))
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _operator_names().get(number, f"operator {number}")


def _operator_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}


def tensor_name(tensor: Any) -> str:
    """A tensor's name as text."""
    return "" if tensor.name is None else str(tensor.name.decode(errors="replace"))


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether a tensor's values are in the file."""
    buffer = model.buffers[tensor.buffer]
    return (buffer.data is not None and len(buffer.data) > 0) or bool(buffer.size)


def constant_floats(model: Any, tensor: Any) -> npt.NDArray[np.float32] | None:
    """The values of a float32 constant, flat; ``None`` when the tensor is no such constant."""
    import numpy as np

    if tensor.type != FLOAT32 or not is_constant(model, tensor):
        return None
    data = model.buffers[tensor.buffer].data
    return np.ascontiguousarray(data).view("<f4") if isinstance(data, np.ndarray) else np.frombuffer(bytes(data), "<f4")


def add_constant(
    model: Any, values: npt.NDArray[np.generic], like: Any, *, suffix: str = "_constant", dtype: int | None = None
) -> int:
    """Add a constant with the shape of the tensor ``like``, and its type unless told, to the main graph.

    Returns the tensor's index; its name is that of ``like`` with ``suffix``, made unique.
    """
    import copy

    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    tensor = copy.copy(like)
    tensor.buffer = len(model.buffers) - 1
    tensor.type = like.type if dtype is None else dtype
    return add_tensor(model, tensor, tensor_name(like) + suffix)


def add_tensor(model: Any, tensor: Any, name: str) -> int:
    """Add a tensor to the main graph under ``name``, made unique; returns its index."""
    tensors = model.subgraphs[0].tensors
    taken = {existing.name for existing in tensors}
    tensor.name = name.encode() if name.encode() not in taken else f"{name}#{len(tensors)}".encode()
    tensors.append(tensor)
    return len(tensors) - 1


def like(model: Any, tensor: Any, dtype: int, parameters: Any, suffix: str) -> int:
    """Add a tensor of another type and quantization for the values of ``tensor``; returns its index."""
    import copy

    made = copy.copy(tensor)
    made.type, made.quantization, made.buffer = dtype, parameters, 0
    return add_tensor(model, made, tensor_name(tensor) + suffix)


def make_operator(model: Any, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
    """A builtin operator without options that reads and makes these tensors; it is in no graph yet."""
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex = _operator_code(model, int(getattr(schema.BuiltinOperator, name)))
    operator.inputs = list(inputs)
    operator.outputs = list(outputs)
    return operator


def _operator_code(model: Any, builtin: int) -> int:
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and not code.customCode:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)  # what readers before 2020 look at; 127 sends them to the new field
    code.version = _VERSIONS.get(builtin, 1)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def require_version(model: Any, operator: Any, version: int) -> None:
    """Raise the version that the file states for an operator's type to ``version``, if it is lower."""
    code = model.operatorCodes[operator.opcodeIndex]
    code.version = max(int(code.version), version)


def quantization(scale: float, zero_point: int) -> Any:
    """Per-tensor affine quantization, as the schema holds it."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    parameters = schema.QuantizationParametersT()
    parameters.scale = np.array([scale], np.float32)
    parameters.zeroPoint = np.array([zero_point], np.int64)
    return parameters


def drop_unused_tensors(model: Any) -> None:
    """Remove the tensors of the main graph that nothing reads or makes, and renumber the rest."""
    subgraph = model.subgraphs[0]
    lists = [subgraph.inputs, subgraph.outputs]
    for operator in subgraph.operators:
        lists += [operator.inputs, operator.outputs]
        lists += [operator.intermediates] if operator.intermediates is not None else []
    used = sorted({int(index) for listed in lists for index in listed if index >= 0})
    renumbered = {old: new for new, old in enumerate(used)} | {-1: -1}

    def moved(listed: Any) -> list[int]:
        return [renumbered[int(index)] for index in listed]

    subgraph.tensors = [subgraph.tensors[index] for index in used]
    subgraph.inputs, subgraph.outputs = moved(subgraph.inputs), moved(subgraph.outputs)
    for operator in subgraph.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        if operator.intermediates is not None:
            operator.intermediates = moved(operator.intermediates)
    for signature in model.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = renumbered[int(entry.tensorIndex)]


def drop_unused_buffers(model: Any) -> None:
    """Empty the buffers that no tensor reads any more; their numbers stay."""
    used = {tensor.buffer for subgraph in model.subgraphs for tensor in subgraph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def tensor_spec(tensor: Any, name: str) -> TensorSpec:
    """What a tensor of the file is: shape, type and quantization. Raises `UnsupportedModelError` for a foreign type."""
    dtype = _DTYPES.get(tensor.type)
    if dtype is None:
        raise UnsupportedModelError(
            f"tensor {name!r} has a type that edgecompile does not handle (TFLite {tensor.type})"
        )
    shape = () if tensor.shape is None else tuple(int(d) for d in tensor.shape)
    return TensorSpec(name=name, shape=shape, dtype=dtype, quantization=_quantization(tensor.quantization))


def _quantization(parameters: Any) -> Quantization | None:
    if parameters is None or parameters.scale is None or len(parameters.scale) == 0:
        return None
    scale = tuple(float(s) for s in parameters.scale)
    zero = tuple(int(z) for z in parameters.zeroPoint) if parameters.zeroPoint is not None else (0,) * len(scale)
    axis = int(parameters.quantizedDimension) if len(scale) > 1 else None
    return Quantization(scale=scale, zero_point=zero, axis=axis)


def set_interface(model: Any, inputs: Sequence[tuple[int, str]], outputs: Sequence[tuple[int, str]]) -> None:
    """Give the file exactly these inputs and outputs, in this order, as ``(tensor index, name)``.

    The tensors and the one signature carry the names; an inner tensor that has one of them is renamed.
    """
    from ai_edge_litert import schema_py_generated as schema

    subgraph = model.subgraphs[0]
    subgraph.inputs = [index for index, _ in inputs]
    subgraph.outputs = [index for index, _ in outputs]
    for index, name in [*inputs, *outputs]:
        subgraph.tensors[index].name = name.encode()
    _make_names_unique(subgraph, keep={index for index, _ in [*inputs, *outputs]})
    signature = schema.SignatureDefT()
    signature.signatureKey = SIGNATURE_KEY.encode()
    signature.subgraphIndex = 0
    signature.inputs = [_tensor_map(schema, *pair) for pair in inputs]
    signature.outputs = [_tensor_map(schema, *pair) for pair in outputs]
    model.signatureDefs = [signature]


def _tensor_map(schema: Any, index: int, name: str) -> Any:
    entry = schema.TensorMapT()
    entry.name = name.encode()
    entry.tensorIndex = index
    return entry


def _make_names_unique(subgraph: Any, keep: set[int]) -> None:
    # Calibration results and quantization recipes go by tensor name.
    taken = {subgraph.tensors[index].name for index in keep}
    for index, tensor in enumerate(subgraph.tensors):
        if index in keep:
            continue
        if tensor.name is None or tensor.name in taken:
            tensor.name = (tensor.name or b"tensor") + f"#{index}".encode()
        taken.add(tensor.name)


def signature_indices(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The tensor index of each input and output by its name in the file's one signature."""
    (signature,) = model.signatureDefs
    return (
        {entry.name.decode(): int(entry.tensorIndex) for entry in signature.inputs},
        {entry.name.decode(): int(entry.tensorIndex) for entry in signature.outputs},
    )


def replace_outputs(model: Any, replaced: Mapping[int, int]) -> None:
    """Let other tensors be outputs of the main graph in the place, and under the names, of those replaced."""
    subgraph = model.subgraphs[0]
    for old, new in replaced.items():
        if old in {int(i) for i in subgraph.outputs}:
            tensors = subgraph.tensors
            tensors[old].name, tensors[new].name = tensors[new].name, tensors[old].name
    subgraph.outputs = [replaced.get(int(i), int(i)) for i in subgraph.outputs]
    for signature in model.signatureDefs or []:
        for entry in signature.outputs:
            entry.tensorIndex = replaced.get(int(entry.tensorIndex), int(entry.tensorIndex))


def interface_names(model: Any, side: Literal["inputs", "outputs"]) -> list[str]:
    """The names of the inputs or outputs in the order of the main graph, as the one signature has them."""
    (signature,) = model.signatureDefs
    by_index: dict[int, list[str]] = {}
    for entry in getattr(signature, side):
        by_index.setdefault(int(entry.tensorIndex), []).append(entry.name.decode())
    return [by_index[int(index)].pop(0) for index in getattr(model.subgraphs[0], side)]


def ports(model: Any, like: Sequence[Port], indices: Sequence[int]) -> tuple[Port, ...]:
    """The ports of a file whose tensors ``indices`` correspond to ``like``, which has the names and permutations."""
    tensors = model.subgraphs[0].tensors
    return tuple(_port(tensors[index], port) for port, index in zip(like, indices, strict=True))


def interface(
    data: bytes, inputs: Sequence[Port], outputs: Sequence[Port]
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The ports of a file by the names in its one signature: `ports`, read without unpacking the rest of the file."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    signature, graph = schema.SignatureDefT.InitFromObj(model.SignatureDefs(0)), model.Subgraphs(0)

    def made(entries: Sequence[Any], like: Sequence[Port]) -> tuple[Port, ...]:
        index = {entry.name.decode(): int(entry.tensorIndex) for entry in entries}
        return tuple(_port(schema.TensorT.InitFromObj(graph.Tensors(index[p.spec.name])), p) for p in like)

    return made(signature.inputs, inputs), made(signature.outputs, outputs)


def _port(tensor: Any, like: Port) -> Port:
    spec = tensor_spec(tensor, tensor_name(tensor))
    return Port(spec=spec, model_name=like.model_name, permutation=like.permutation)
