"""Normalizations."""

from __future__ import annotations

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError, axis_of
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.read import Handler


def _float(x: Value) -> Value:
    if x.dtype != "float32":
        raise RefusedError(f"its operand is {x.dtype}; float32 is lowered")
    return x


def _along_channels(b: Builder, v: Value, rank: int) -> Value:
    """One number a channel, for a tensor of ``rank`` with the channels on axis 1."""
    return b.reshape(v, (v.elements, *(1,) * (rank - 2)) if rank > 2 else (v.elements,))


def _batch_norm(b: Builder, node: OnnxNode) -> list[Value | None]:
    """A factor and a term for each channel, which later go into a convolution where one stands before."""
    x = _float(node.required(0))
    if node.flag("training_mode") or any(node.outputs[1:]):
        raise RefusedError("it is in training mode")
    if x.rank < 2:
        raise RefusedError(f"its operand has shape {x.shape}")
    parameters = [node.constant(i, what) for i, what in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))]
    scale, bias, mean, variance = (np.asarray(p, np.float64).reshape(-1) for p in parameters)
    if any(p.shape != (x.shape[1],) for p in (scale, bias, mean, variance)):
        raise RefusedError(f"its parameters do not fit {x.shape[1]} channels")
    factor = scale / np.sqrt(variance + node.number("epsilon", 1e-5))
    y = b.binary("MUL", x, _along_channels(b, b.constant(factor, "float32"), x.rank))
    return [b.binary("ADD", y, _along_channels(b, b.constant(bias - mean * factor, "float32"), x.rank))]


def standardized(b: Builder, x: Value, axes: tuple[int, ...], epsilon: float) -> tuple[Value, Value, Value]:
    """``(x - mean) / sqrt(variance + epsilon)`` over ``axes``, and the mean and the inverse deviation."""
    mean = b.add(ir.Reduce(kind="MEAN", axes=axes, keepdims=True), x)
    centred = b.binary("SUB", x, mean)
    variance = b.add(ir.Reduce(kind="MEAN", axes=axes, keepdims=True), b.binary("MUL", centred, centred))
    inverse = b.unary("RSQRT", b.binary("ADD", variance, b.scalar(epsilon, x)))
    return b.binary("MUL", centred, inverse), mean, inverse


def _layer_norm(b: Builder, node: OnnxNode) -> list[Value | None]:
    x = _float(node.required(0))
    axis = axis_of(node.integer("axis", -1), x.rank)
    y, mean, inverse = standardized(b, x, tuple(range(axis, x.rank)), node.number("epsilon", 1e-5))
    y = b.binary("MUL", y, node.required(1))
    bias = node.operand(2)
    return [y if bias is None else b.binary("ADD", y, bias), mean, inverse]


def _rms_norm(b: Builder, node: OnnxNode) -> Value:
    x = _float(node.required(0))
    axes = tuple(range(axis_of(node.integer("axis", -1), x.rank), x.rank))
    square = b.add(ir.Reduce(kind="MEAN", axes=axes, keepdims=True), b.binary("MUL", x, x))
    inverse = b.unary("RSQRT", b.binary("ADD", square, b.scalar(node.number("epsilon", 1e-5), x)))
    return b.binary("MUL", b.binary("MUL", x, inverse), node.required(1))


def _instance_norm(b: Builder, node: OnnxNode) -> Value:
    x = _float(node.required(0))
    if x.rank < 3:
        raise RefusedError(f"its operand has shape {x.shape}")
    y, _, _ = standardized(b, x, tuple(range(2, x.rank)), node.number("epsilon", 1e-5))
    y = b.binary("MUL", y, _along_channels(b, node.required(1), x.rank))
    return b.binary("ADD", y, _along_channels(b, node.required(2), x.rank))


def _group_norm(b: Builder, node: OnnxNode) -> Value:
    """Channels in groups, each group standardized; the scale is by group before version 21, then by channel."""
    x, groups = _float(node.required(0)), node.integer("num_groups", 0)
    if x.rank < 2 or groups < 1 or x.shape[1] % groups:
        raise RefusedError(f"{groups} groups do not fit {x.shape}")
    size = x.shape[1] // groups
    split = b.reshape(x, (x.shape[0], groups, size, *x.shape[2:]))
    y, _, _ = standardized(b, split, tuple(range(2, split.rank)), node.number("epsilon", 1e-5))
    scale, bias = node.required(1), node.required(2)
    if scale.elements != bias.elements or scale.elements not in (groups, x.shape[1]):
        raise RefusedError(f"scale {scale.shape} and bias {bias.shape} do not fit {groups} groups of {size}")
    if node.opset < 21 and scale.elements == groups:
        y = b.binary("MUL", y, b.reshape(scale, (groups, *(1,) * (split.rank - 2))))
        return b.reshape(b.binary("ADD", y, b.reshape(bias, (groups, *(1,) * (split.rank - 2)))), x.shape)
    y = b.reshape(y, x.shape)
    y = b.binary("MUL", y, _along_channels(b, scale, x.rank))
    return b.binary("ADD", y, _along_channels(b, bias, x.rank))


def _lp_norm(b: Builder, node: OnnxNode) -> Value:
    x, p = _float(node.required(0)), node.integer("p", 2)
    axes = (axis_of(node.integer("axis", -1), x.rank),)
    if p == 1:
        return b.binary("DIV", x, b.add(ir.Reduce(kind="SUM", axes=axes, keepdims=True), b.unary("ABS", x)))
    if p != 2:
        raise RefusedError(f"p is {p}; 1 and 2 are lowered")
    square = b.add(ir.Reduce(kind="SUM", axes=axes, keepdims=True), b.binary("MUL", x, x))
    return b.binary("DIV", x, b.unary("SQRT", square))


def _local_response_norm(b: Builder, node: OnnxNode) -> Value:
    """``x * (bias + alpha / size * sum of squares of neighbouring channels) ** -beta``.

    The sum is a convolution of 1 x 1 with a band of weights, which carries the bias too: TFLite's own operator takes
    twenty times as long, and no delegate takes it.
    """
    x, size = _float(node.required(0)), node.integer("size", 0)
    if x.rank not in (3, 4) or size < 1:
        raise RefusedError(f"a window of {size} channels of {x.shape}; those of images are lowered")
    wide = x if x.rank == 4 else b.reshape(x, (*x.shape, 1))
    channels = x.shape[1]
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    near = (distance >= -((size - 1) // 2)) & (distance <= size // 2)
    weights = b.constant((near * (node.number("alpha", 1e-4) / size))[:, :, None, None], "float32")
    bias = b.constant(np.full(channels, node.number("bias", 1.0)), "float32")
    squares = b.binary("MUL", wide, wide)
    total = b.add(ir.Conv2D(strides=(1, 1), dilations=(1, 1)), squares, weights, bias)
    return b.reshape(b.binary("MUL", wide, _inverse_power(b, total, node.number("beta", 0.75))), x.shape)


def _inverse_power(b: Builder, x: Value, power: float) -> Value:
    """``x ** -power``; roots for the powers that nets use, which are faster than a power."""
    if power == 0.5:
        return b.unary("RSQRT", x)
    if power == 0.75:
        root = b.unary("RSQRT", x)
        return b.binary("MUL", root, b.unary("SQRT", root))
    return b.binary("POW", x, b.scalar(-power, x))


def _mean_variance_norm(b: Builder, node: OnnxNode) -> Value:
    """``(x - mean) / (deviation + 1e-9)``, as the function in ONNX's standard has it."""
    x = _float(node.required(0))
    axes = tuple(axis_of(a, x.rank) for a in node.ints("axes") or (0, 2, 3))
    mean = b.add(ir.Reduce(kind="MEAN", axes=axes, keepdims=True), x)
    centred = b.binary("SUB", x, mean)
    variance = b.add(ir.Reduce(kind="MEAN", axes=axes, keepdims=True), b.binary("MUL", centred, centred))
    deviation = b.unary("SQRT", variance)
    return b.binary("DIV", centred, b.binary("ADD", deviation, b.scalar(1e-9, x)))


HANDLERS: dict[str, Handler] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance_norm,
    "RMSNormalization": _rms_norm,
}
