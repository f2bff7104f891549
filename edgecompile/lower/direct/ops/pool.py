"""Pools over one and two spatial axes, and global pools."""

from __future__ import annotations

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Array, Value
from edgecompile.lower.direct.ops.windows import Pair, image, like, pad_image, pads_of, pair, same_is_safe, same_pads
from edgecompile.lower.direct.read import Handler


def _setting(node: OnnxNode, x: Value) -> tuple[Pair, Pair, Pair]:
    rank = node.required(0).rank
    kernel_attribute = node.ints("kernel_shape")
    if kernel_attribute is None:
        raise RefusedError("it has no kernel_shape")
    kernel = pair(kernel_attribute, rank, 1, "kernel")
    strides = pair(node.ints("strides"), rank, 1, "strides")
    return kernel, strides, pair(node.ints("dilations"), rank, 1, "dilations")


def _covering(
    node: OnnxNode, x: Value, kernel: Pair, strides: Pair, dilations: Pair
) -> tuple[tuple[Pair, Pair], tuple[Pair, Pair]]:
    """The pads that the node declares, and those that cover its windows: ``ceil_mode`` adds places at the end."""
    pads = pads_of(node, node.required(0).rank, x.shape[2:], kernel, strides, dilations)
    covering: list[Pair] = []
    for i, (before, after) in enumerate(pads):
        size, reach = x.shape[2 + i], (kernel[i] - 1) * dilations[i] + 1
        if min(before, after) < 0 or max(before, after) >= reach:
            raise RefusedError(f"its pads {pads} do not fit its kernel {kernel}")
        room = size + before + after - reach
        count = (-(-room // strides[i]) if node.flag("ceil_mode") else room // strides[i]) + 1
        # A window that would begin behind the input and its pads in front is none.
        if node.flag("ceil_mode") and (count - 1) * strides[i] >= size + before:
            count -= 1
        if count < 1:
            raise RefusedError(f"its kernel {kernel} does not fit {x.shape}")
        covering.append((before, (count - 1) * strides[i] + reach - size - before))
    return pads, (covering[0], covering[1])


def _max_pool(b: Builder, node: OnnxNode) -> list[Value | None]:
    """The largest values; their indices are not lowered."""
    x = image(b, node.required(0))
    if x.dtype != "float32":
        raise RefusedError(f"its operand is {x.dtype}; float32 is lowered")
    kernel, strides, dilations = _setting(node, x)
    _, pads = _covering(node, x, kernel, strides, dilations)
    x = pad_image(b, x, pads, -np.inf)
    if dilations != (1, 1):
        return [like(b, _dilated_max(b, x, kernel, strides, dilations), node.required(0)), None]
    return [like(b, b.add(ir.Pool2D(kind="MAX", kernel=kernel, strides=strides), x), node.required(0)), None]


def _dilated_max(b: Builder, x: Value, kernel: Pair, strides: Pair, dilations: Pair) -> Value:
    """The largest of the shifted images, one axis after the other."""
    for i in range(2):
        axis, reach = 2 + i, (kernel[i] - 1) * dilations[i]
        last = x.shape[axis] - reach
        shifted = [
            b.slice(x, axis, k * dilations[i], k * dilations[i] + last, strides[i]) for k in range(kernel[i])
        ]  # fmt: skip
        x = shifted[0]
        for other in shifted[1:]:
            x = b.binary("MAXIMUM", x, other)
    return x


def _average_pool(b: Builder, node: OnnxNode) -> Value:
    x = image(b, node.required(0))
    kernel, strides, dilations = _setting(node, x)
    declared, pads = _covering(node, x, kernel, strides, dilations)
    if node.flag("count_include_pad") and any(before != after for before, after in declared):
        # ONNX's standard counts the pads of each side, ONNX Runtime those of another.
        raise RefusedError(f"it counts pads that differ in front and behind: {declared}")
    counts = _counts(x, declared, pads, kernel, strides, dilations, padded=node.flag("count_include_pad"))
    full = kernel[0] * kernel[1]
    if dilations != (1, 1):
        weights = b.constant(np.full((x.shape[1], 1, *kernel), 1 / full), "float32")
        bias = b.constant(np.zeros(x.shape[1]), "float32")
        op = ir.DepthwiseConv2D(strides=strides, dilations=dilations)
        y = b.add(op, pad_image(b, x, pads), weights, bias)
    elif not any(map(any, pads)) or not _same_fits(x, pads, kernel, strides, counts):
        y = b.add(ir.Pool2D(kind="AVERAGE", kernel=kernel, strides=strides), pad_image(b, x, pads))
    else:
        y = b.add(ir.Pool2D(kind="AVERAGE", kernel=kernel, strides=strides, padding="SAME"), x)
        return like(b, y, node.required(0))
    if (counts != full).any():
        y = b.binary("MUL", y, b.constant((full / counts)[None, None], "float32"))
    return like(b, y, node.required(0))


def _counts(
    x: Value, declared: tuple[Pair, Pair], pads: tuple[Pair, Pair], kernel: Pair, strides: Pair, dilations: Pair, *,
    padded: bool,
) -> Array:  # fmt: skip
    """By how much ONNX divides each window's sum: its elements of the input, and if ``padded`` of the declared pads."""
    ones = []
    for i in range(2):
        size, (before, after) = x.shape[2 + i], pads[i]
        line = np.zeros(before + size + after)
        line[before : before + size] = 1
        if padded:
            line[: before + size + declared[i][1]] = 1
        count = (line.size - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        starts = np.arange(count) * strides[i]
        ones.append(sum(line[starts + k * dilations[i]] for k in range(kernel[i])))
    return np.outer(*ones)


def _same_fits(x: Value, pads: tuple[Pair, Pair], kernel: Pair, strides: Pair, counts: Array) -> bool:
    """Whether TFLite's SAME padding has these windows and divides by these counts."""
    for i in range(2):
        size = x.shape[2 + i]
        if same_pads(size, kernel[i], strides[i], 1)[0] != pads[i][0] or -(-size // strides[i]) != counts.shape[i]:
            return False
        if not same_is_safe(size, kernel[i], strides[i], 1):
            return False
    inside = _counts(x, pads, pads, kernel, strides, (1, 1), padded=False)
    return bool((inside == counts).all())


def _global_average(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    if x.rank < 3:
        raise RefusedError(f"its operand has shape {x.shape}")
    return b.add(ir.Reduce(kind="MEAN", axes=tuple(range(2, x.rank)), keepdims=True), x)


def _global_max(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    if x.rank not in (3, 4):
        return b.add(ir.Reduce(kind="REDUCE_MAX", axes=tuple(range(2, x.rank)), keepdims=True), x)
    wide = image(b, x)
    kernel: Pair = (wide.shape[2], wide.shape[3])
    return like(b, b.add(ir.Pool2D(kind="MAX", kernel=kernel, strides=(1, 1)), wide), x)


def _lp_pool(b: Builder, node: OnnxNode) -> Value:
    """``(sum of |x|^p)^(1/p)``: an average of the powers, times the window's size."""
    p = node.integer("p", 2)
    x = image(b, node.required(0))
    kernel, strides, dilations = _setting(node, x)
    if p not in (1, 2) or dilations != (1, 1):
        raise RefusedError(f"p is {p}, dilations are {dilations}; 1 and 2 are lowered, without dilation")
    _, pads = _covering(node, x, kernel, strides, dilations)
    powers = b.unary("ABS" if p == 1 else "SQUARE", pad_image(b, x, pads))
    mean = b.add(ir.Pool2D(kind="AVERAGE", kernel=kernel, strides=strides), powers)
    total = b.binary("MUL", mean, b.scalar(kernel[0] * kernel[1], mean))
    return like(b, total if p == 1 else b.unary("SQRT", total), node.required(0))


HANDLERS: dict[str, Handler] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
