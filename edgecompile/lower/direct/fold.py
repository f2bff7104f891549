"""Computes what is known before the model runs: constants, and all that follows from constants and from static shapes.

The arithmetic of shapes, which exporters write by the hundred, is done in NumPy; any other node is run once by ONNX
Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgecompile.lower.direct.build import MAX_ELEMENTS, RefusedError
from edgecompile.lower.direct.ir import Array, Shape

if TYPE_CHECKING:
    import onnx

#: Types that a constant may have while it is computed with; fewer reach the file.
CONSTANT_TYPES = frozenset(
    {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}
)
#: Operators that are computed when their operands are known, and otherwise not lowered.
FOLD_ONLY = frozenset(
    {
        "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Compress", "Constant", "ConstantOfShape",
        "DequantizeLinear", "EyeLike", "Hardmax", "IsInf", "NonZero", "OneHot", "QuantizeLinear", "Range",
        "ScatterElements", "ScatterND", "Shape", "Size", "Unique",
    }
)  # fmt: skip
#: What ONNX Runtime is not asked to compute: kernels that trust their attributes, and end the process on bad ones.
_NOT_FOLDED = frozenset(
    {
        "AveragePool", "Conv", "ConvTranspose", "Einsum", "GRU", "GatherND", "LRN", "LSTM", "LpPool", "MaxPool", "RNN",
        "Resize", "Upsample",
    }
)  # fmt: skip

_Evaluate: TypeAlias = Callable[["onnx.NodeProto", Sequence[Any], int], Array]


class _NeedsRuntime(Exception):
    """NumPy's definition differs from ONNX's here."""


def to_array(tensor: onnx.TensorProto) -> Array:
    """A tensor's array. Raises `RefusedError` where its data lies outside of the file or is not what it says."""
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise RefusedError("its data lies in another file")
    if prod(tensor.dims) > MAX_ELEMENTS or min(tensor.dims, default=0) < 0:
        raise RefusedError(f"its shape is {tuple(tensor.dims)}")
    array: Array = numpy_helper.to_array(tensor)
    return array


def static_type(info: onnx.ValueInfoProto) -> tuple[Shape, str]:
    """The static shape and NumPy's type name of a graph input. Raises `RefusedError` where it has none."""
    from onnx import helper

    if not info.type.HasField("tensor_type"):
        raise RefusedError("it is not a tensor")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        raise RefusedError("it has no shape")
    shape = []
    for dim in tensor.shape.dim:
        if not dim.HasField("dim_value") or dim.dim_value <= 0:
            raise RefusedError(f"it has an axis of variable size ({dim.dim_param or dim.dim_value})")
        shape.append(int(dim.dim_value))
    if prod(shape) > MAX_ELEMENTS:
        raise RefusedError(f"its shape is {tuple(shape)}")
    try:
        return tuple(shape), helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError as exc:
        raise RefusedError(f"its type is unknown ({tensor.elem_type})") from exc


def evaluate(
    node: onnx.NodeProto, inputs: Sequence[Array | None], opset: int, model: onnx.ModelProto
) -> Sequence[Array]:
    """The results of a node whose operands are known. Raises `RefusedError` when they cannot be computed."""
    _limit(node, inputs)
    if node.op_type in _NOT_FOLDED:
        raise RefusedError("its operands are constant")
    if node.op_type in ("Div", "Mod"):
        _check_divisor(inputs[1])
    if node.op_type == "Split":
        return _split(node, inputs, opset)
    simple = _NUMPY.get(node.op_type)
    if simple is not None and node.domain in ("", "ai.onnx"):
        try:
            return [np.asarray(simple(node, inputs, opset))]
        except _NeedsRuntime:
            pass
    return _run(node, inputs, model)


def _check_divisor(divisor: Array | None) -> None:
    """Dividing integers by 0, or the smallest one by -1, ends the process."""
    if divisor is not None and divisor.dtype.kind in "iu" and np.isin(divisor, (0, -1)).any():
        raise RefusedError("it divides integers by 0 or -1")


def _limit(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> None:
    """Refuse a node whose result follows from numbers in its operands and is enormous."""
    first = inputs[0] if inputs else None
    second = inputs[1] if len(inputs) > 1 else None
    size = 0
    if node.op_type == "ConstantOfShape" and first is not None:
        size = prod(int(d) for d in first)
    elif node.op_type == "Expand" and first is not None and second is not None:
        size = prod(np.broadcast_shapes(first.shape, tuple(int(d) for d in second)))
    elif node.op_type == "Tile" and first is not None and second is not None:
        size = first.size * prod(int(d) for d in second.reshape(-1))
    elif node.op_type == "Range" and all(i is not None for i in inputs):
        start, limit, delta = (float(i.reshape(-1)[0]) for i in inputs if i is not None)
        size = int(abs((limit - start) / delta)) if delta else MAX_ELEMENTS + 1
    if size > MAX_ELEMENTS:
        raise RefusedError(f"it makes a tensor of {size} elements")


# ----------------------------------------------------------------------------------------------------- in NumPy


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _constant(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    attributes = _attributes(node)
    if len(attributes) != 1:
        raise RefusedError("it does not have exactly one value")
    ((name, value),) = attributes.items()
    if name == "value":
        return to_array(value)
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in types:
        raise RefusedError(f"its value is of the kind {name!r}")
    return np.asarray(value, types[name])


def _constant_of_shape(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    attributes = _attributes(node)
    value = to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(tuple(int(d) for d in inputs[0]), value.reshape(-1)[0], value.dtype)


def _shape(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    attributes = _attributes(node)
    return np.array(inputs[0].shape, np.int64)[attributes.get("start", 0) : attributes.get("end", None)]


def _size(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    return np.array(inputs[0].size, np.int64)


def _gather(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    data, indices = inputs
    axis = _attributes(node).get("axis", 0)
    if indices.size and not (-data.shape[axis] <= indices.min() and indices.max() < data.shape[axis]):
        raise RefusedError("an index is out of range")
    return np.asarray(np.take(data, indices, axis=axis))


def _concat(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    return np.concatenate(inputs, axis=_attributes(node)["axis"])


def _axes(node: onnx.NodeProto, inputs: Sequence[Any]) -> tuple[int, ...] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return tuple(int(a) for a in inputs[1].reshape(-1))
    axes = _attributes(node).get("axes")
    return None if axes is None else tuple(axes)


def _unsqueeze(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    axes = _axes(node, inputs)
    if axes is None:
        raise RefusedError("it has no axes")
    return np.expand_dims(inputs[0], axes)


def _squeeze(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    return np.asarray(np.squeeze(inputs[0], _axes(node, inputs)))


def _cast(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
    from onnx import helper

    to = helper.tensor_dtype_to_np_dtype(_attributes(node)["to"])
    if inputs[0].dtype.kind not in "iub" or to.name not in CONSTANT_TYPES:
        raise _NeedsRuntime
    converted: Array = inputs[0].astype(to)
    return converted


def _split(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> list[Array]:
    """ONNX Runtime ends the process when there are fewer results than parts."""
    x, attributes = inputs[0], _attributes(node)
    axis, parts = attributes.get("axis", 0), len(node.output)
    given = inputs[1] if len(inputs) > 1 else attributes.get("split")
    each = -(-x.shape[axis] // parts)
    sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)] if given is None else [int(s) for s in given]
    if len(sizes) != parts or sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise RefusedError(f"{x.shape[axis]} elements do not split into {sizes}")
    return [np.asarray(part) for part in np.split(x, np.cumsum(sizes)[:-1], axis=axis)]


def _integer(operation: Callable[[Any, Any], Any]) -> _Evaluate:
    def run(node: onnx.NodeProto, inputs: Sequence[Any], opset: int) -> Array:
        a, b = inputs
        return np.asarray(operation(a, b), dtype=a.dtype)

    return run


_NUMPY: dict[str, _Evaluate] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Add": _integer(np.add),
    "Sub": _integer(np.subtract),
    "Mul": _integer(np.multiply),
}


# ----------------------------------------------------------------------------------------------- by ONNX Runtime


def _run(node: onnx.NodeProto, inputs: Sequence[Array | None], model: onnx.ModelProto) -> Sequence[Array]:
    """Run one node alone, its operands given as inputs so that weights are not copied into a file."""
    import onnxruntime
    from onnx import helper

    feeds = {name: array for name, array in zip(node.input, inputs, strict=False) if name and array is not None}
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    names = [name for name in node.output if name]
    graph = helper.make_graph([node], "constant", declared, [helper.make_empty_tensor_value_info(n) for n in names])
    single = helper.make_model(graph, opset_imports=list(model.opset_import), functions=list(model.functions))
    single.ir_version = min(max(model.ir_version, 4), 10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as exc:  # ONNX Runtime's exceptions have no common base of their own
        raise RefusedError(f"its operands are constant, and ONNX Runtime cannot compute it: {_first(exc)}") from exc
    return [np.asarray(found[name]) if name else np.zeros(0, np.float32) for name in node.output]


def _first(exc: Exception) -> str:
    lines = str(exc).splitlines()
    return lines[0][:200] if lines else type(exc).__name__
