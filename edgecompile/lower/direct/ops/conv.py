"""Convolutions and transposed convolutions over one and two spatial axes."""

from __future__ import annotations

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.ops.windows import Pair, image, like, pad_image, pads_of, pair
from edgecompile.lower.direct.read import Handler


def _bias(b: Builder, node: OnnxNode, outputs: int) -> Value:
    bias = node.operand(2)
    if bias is None:
        return b.constant(np.zeros(outputs), "float32")
    if bias.shape != (outputs,):
        raise RefusedError(f"its bias has shape {bias.shape} for {outputs} outputs")
    return bias


def _conv(b: Builder, node: OnnxNode) -> Value:
    x, w = image(b, node.required(0)), image(b, node.required(1))
    rank, groups = node.required(0).rank, node.integer("group", 1)
    kernel: Pair = (w.shape[2], w.shape[3])
    strides = pair(node.ints("strides"), rank, 1, "strides")
    dilations = pair(node.ints("dilations"), rank, 1, "dilations")
    if node.has("kernel_shape") and pair(node.ints("kernel_shape"), rank, 1, "kernel") != kernel:
        raise RefusedError(f"its kernel_shape is not that of its weights, {kernel}")
    if groups < 1 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise RefusedError(f"weights {w.shape} in {groups} groups do not fit {x.shape}")
    x = pad_image(b, x, pads_of(node, rank, x.shape[2:], kernel, strides, dilations))
    bias = _bias(b, node, w.shape[0])
    if groups > 1 and w.shape[1] == 1:
        return like(b, b.add(ir.DepthwiseConv2D(strides=strides, dilations=dilations), x, w, bias), node.required(0))
    return like(b, b.add(ir.Conv2D(strides=strides, dilations=dilations), x, w, bias), node.required(0))


# ------------------------------------------------------------------------------------------------------ transposed


def _conv_transpose(b: Builder, node: OnnxNode) -> Value:
    x, w = image(b, node.required(0)), image(b, node.required(1))
    rank, groups = node.required(0).rank, node.integer("group", 1)
    if groups < 1 or x.shape[1] != w.shape[0] or w.shape[0] % groups:
        raise RefusedError(f"weights {w.shape} in {groups} groups do not fit {x.shape}")
    strides = pair(node.ints("strides"), rank, 1, "strides")
    w = _dilate(b, w, pair(node.ints("dilations"), rank, 1, "dilations"))
    crops = _crops(node, rank, x, (w.shape[2], w.shape[3]), strides)
    # Where more is asked for than the kernel reaches, a kernel with zeros behind it reaches that far.
    w = _extend(b, w, tuple(max(-after, 0) for _, after in crops))
    crops = [(before, max(after, 0)) for before, after in crops]
    bias = _bias(b, node, w.shape[1] * groups)
    size = [(x.shape[2 + i] - 1) * strides[i] + w.shape[2 + i] - sum(crops[i]) for i in range(2)]
    if min(size) < 1 or min(before for before, _ in crops) < 0:
        raise RefusedError(f"its pads leave nothing, or ask for more than there is: {crops}")
    # TFLite's SAME takes off half in front, of so many places.
    same = all(c[0] == sum(c) // 2 and -(-size[i] // strides[i]) == x.shape[2 + i] for i, c in enumerate(crops))
    if groups == 1 and (same or not any(map(any, crops))):
        padding: ir.Padding = "SAME" if any(map(any, crops)) else "VALID"
        op = ir.TransposeConv2D(strides=strides, size=(size[0], size[1]), padding=padding)
        return like(b, b.add(op, x, w, bias), node.required(0))
    y = _transposed(b, x, w, bias, strides, groups)
    for i, (before, _) in enumerate(crops):
        y = b.slice(y, 2 + i, before, before + size[i])
    return like(b, y, node.required(0))


def _dilate(b: Builder, w: Value, dilations: Pair) -> Value:
    if dilations == (1, 1):
        return w
    if w.data is None:
        raise RefusedError("its weights are computed at run time, and dilated")
    size = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    spread = np.zeros((*w.shape[:2], *size), w.dtype)
    spread[:, :, :: dilations[0], :: dilations[1]] = w.data
    return b.constant(spread, w.dtype)


def _extend(b: Builder, w: Value, extra: tuple[int, ...]) -> Value:
    if not any(extra):
        return w
    if w.data is None:
        raise RefusedError("its weights are computed at run time, and its output is padded")
    return b.constant(np.pad(w.data, ((0, 0), (0, 0), (0, extra[0]), (0, extra[1]))), w.dtype)


def _crops(node: OnnxNode, rank: int, x: Value, kernel: Pair, strides: Pair) -> list[Pair]:
    """What is taken off the full result ``(size - 1) * stride + kernel`` on both sides; negative adds to it."""
    more_attribute = node.ints("output_padding")
    more = (0, 0) if more_attribute is None else tuple(more_attribute) if rank == 4 else (0, *more_attribute)
    if len(more) != 2 or min(more) < 0:
        raise RefusedError(f"its output_padding is {more_attribute}")
    full = [(x.shape[2 + i] - 1) * strides[i] + kernel[i] for i in range(2)]
    auto = node.text("auto_pad", "NOTSET")
    shape = node.ints("output_shape")
    if shape is not None:
        if len(shape) not in (rank - 2, rank):
            raise RefusedError(f"its output_shape is {shape}")
        size = list(shape)[-(rank - 2) :]
        wanted = size if rank == 4 else [1, *size]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [x.shape[2 + i] * strides[i] for i in range(2)]
    else:
        pads = pads_of(node, rank, x.shape[2:], kernel, strides, (1, 1))
        return [(before, after - plus) for (before, after), plus in zip(pads, more, strict=True)]
    crops = []
    for i in range(2):
        # The pads that an output size implies are shared between both sides; what is missing then stands behind.
        total = max(full[i] + more[i] - wanted[i], 0)
        before = total // 2 if auto == "SAME_UPPER" else total - total // 2
        crops.append((before, full[i] - before - wanted[i]))
    return crops


def _transposed(b: Builder, x: Value, w: Value, bias: Value, strides: Pair, groups: int) -> Value:
    if groups == 1:
        return b.add(_full(x, w, strides), x, w, bias)
    if w.data is not None and groups == x.shape[1]:
        return _depthwise_transposed(b, x, w, bias, strides)
    size = x.shape[1] // groups
    parts = b.add_all(ir.Split(axis=1, sizes=(size,) * groups), x)
    weights, biases = _parts(b, w, groups), _parts(b, bias, groups)
    op = _full(parts[0], weights[0], strides)
    return b.add(ir.Concat(axis=1), *(b.add(op, *p) for p in zip(parts, weights, biases, strict=True)))


def _full(x: Value, w: Value, strides: Pair) -> ir.TransposeConv2D:
    """The whole result, uncropped."""
    height, width = ((x.shape[2 + i] - 1) * strides[i] + w.shape[2 + i] for i in range(2))
    return ir.TransposeConv2D(strides=strides, size=(height, width))


def _parts(b: Builder, value: Value, count: int) -> tuple[Value, ...]:
    """Equal parts along the first axis."""
    if value.data is not None:
        return tuple(b.constant(part, value.dtype) for part in np.split(value.data, count))
    return b.add_all(ir.Split(axis=0, sizes=(value.shape[0] // count,) * count), value)


def _depthwise_transposed(b: Builder, x: Value, w: Value, bias: Value, strides: Pair) -> Value:
    """One channel a group: a depthwise convolution, its kernel turned, over ``x`` with zeros between its places."""
    n, c, height, width = x.shape
    if strides != (1, 1):
        spread = b.reshape(x, (n, c, height, 1, width, 1))
        spread = b.pad(spread, ((0, 0), (0, 0), (0, 0), (0, strides[0] - 1), (0, 0), (0, strides[1] - 1)))
        x = b.reshape(spread, (n, c, height * strides[0], width * strides[1]))
    kernel = w.shape[2:]
    pads = tuple((k - 1, k - s) for k, s in zip(kernel, strides, strict=True))
    turned = w.array[:, :, ::-1, ::-1].reshape(c * w.shape[1], 1, *kernel)
    op = ir.DepthwiseConv2D(strides=(1, 1), dilations=(1, 1))
    return b.add(op, pad_image(b, x, (pads[0], pads[1])), b.constant(turned, w.dtype), bias)


HANDLERS: dict[str, Handler] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
