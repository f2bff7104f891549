"""A single operator as the device profiles' cost tables see it: for devices that cannot be reached."""

from __future__ import annotations

import math

from edgecompile.tables.key import WINDOWED, OperatorKey, Shape
from edgecompile.types import OperatorClass, OperatorCost

_POOLS = frozenset(
    {"MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"}
)
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Min", "Max", "Where", "BatchNormalization"})
_DATA = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Pad", "Gather", "Expand",
     "Tile", "DepthToSpace", "SpaceToDepth", "Resize", "Cast"}
)  # fmt: skip
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Elu", "Mish",
     "Softmax", "LogSoftmax"}
)  # fmt: skip


def cost_of(key: OperatorKey) -> OperatorCost:
    """What the operator asks of a device, as ``graph.operators`` tells it of a whole model's."""
    output = output_shape(key)
    weights = math.prod(key.weight_shape) if key.weight_shape else 0
    return OperatorCost(
        name=key.op_type,
        op_type=key.op_type,
        op_class=_class_of(key),
        macs=_macs(key, output),
        weight_elements=weights + (key.out_channels if weights else 0),
        input_elements=sum(math.prod(shape) for shape in key.in_shapes),
        output_elements=math.prod(output),
        in_channels=_in_channels(key),
        out_channels=key.out_channels or (output[1] if len(output) > 1 else 0),
        kernel=key.kernel,
        output_shape=output,
        groups=key.groups,
    )


def _in_channels(key: OperatorKey) -> int:
    if key.op_type in ("Gemm", "MatMul"):
        return key.in_shape[-1]
    return key.in_shape[1] if len(key.in_shape) > 1 else 0


def output_shape(key: OperatorKey) -> Shape:
    """The shape of the operator's output, as far as the key tells."""
    if key.op_type == "Conv" or (key.op_type in WINDOWED and key.op_type != "ConvTranspose" and not key.out_shape):
        channels = key.out_channels or key.in_shape[1]
        return (key.in_shape[0], channels, *_places(key))
    if key.op_type == "ConvTranspose" and key.out_channels:
        spatial = (
            (size - 1) * stride + dilation * (window - 1) + 1 - begin - end
            for size, stride, dilation, window, begin, end in _windows(key)
        )
        return (key.in_shape[0], key.out_channels, *spatial)
    if key.out_channels:
        return (*key.in_shape[:-1], key.out_channels)
    return key.out_shape or key.in_shape


def _windows(key: OperatorKey) -> list[tuple[int, int, int, int, int, int]]:
    rank = len(key.kernel)
    return list(
        zip(
            key.in_shape[2:], key.strides, key.dilations, key.kernel, key.pads[:rank], key.pads[rank:], strict=True
        )
    )  # fmt: skip


def _places(key: OperatorKey) -> Shape:
    return tuple(
        (size + begin + end - dilation * (window - 1) - 1) // stride + 1
        for size, stride, dilation, window, begin, end in _windows(key)
    )


def _macs(key: OperatorKey, output: Shape) -> int:
    if not key.weight_shape:
        if key.op_type == "MatMul" and key.other_shapes:
            return math.prod(output) * key.in_shape[-1]
        return 0
    if key.op_type in ("Conv", "ConvTranspose"):
        each = math.prod(key.weight_shape[1:])
        return each * math.prod(output if key.op_type == "Conv" else key.in_shape)
    return math.prod(output) * key.in_shape[-1]


def _class_of(key: OperatorKey) -> OperatorClass:
    if key.op_type in ("Conv", "ConvTranspose"):
        if key.groups > 1 and key.groups == key.in_shape[1]:
            return "depthwise"
        return "pointwise" if key.groups == 1 and all(size == 1 for size in key.kernel) else "conv"
    if key.op_type in ("Gemm", "MatMul"):
        return "dense"
    known: tuple[tuple[OperatorClass, frozenset[str]], ...] = (
        ("pool", _POOLS), ("elementwise", _ELEMENTWISE), ("data", _DATA), ("activation", _ACTIVATIONS),
    )  # fmt: skip
    return next((name for name, types in known if key.op_type in types), "other")
