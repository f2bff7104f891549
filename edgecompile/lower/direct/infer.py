"""Shapes and types of every operator's results, and the check that the whole graph agrees with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np

from edgecompile.lower.direct import ir, support
from edgecompile.lower.direct.ir import Graph, IRError, Op, Shape, Value

#: Shape and type of each result.
Results: TypeAlias = list[tuple[Shape, str]]
_Rule: TypeAlias = Callable[[Any, Sequence[Value]], Results]


def infer(op: Op, inputs: Sequence[Value]) -> Results:
    """The shape and type of each result of ``op``. Raises `IRError` when the operands do not fit it."""
    return _RULES[type(op)](op, inputs)


def broadcast(*shapes: Shape) -> Shape:
    """The common shape of ``shapes``. Raises `IRError` when there is none."""
    try:
        return tuple(int(d) for d in np.broadcast_shapes(*shapes))
    except ValueError as exc:
        raise IRError(f"shapes do not broadcast: {', '.join(map(str, shapes))}") from exc


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IRError(message)


def window_count(size: int, kernel: int, stride: int, dilation: int, padding: ir.Padding) -> int:
    """The number of places of a sliding window, as TFLite counts them."""
    if padding == "SAME":
        return -(-size // stride)
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def _windows(x: Value, kernel: Shape, op: Any, dilations: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    _require(x.rank == 4, f"{type(op).__name__} takes rank 4, not {x.shape}")
    found = [
        window_count(x.shape[2 + i], kernel[i], op.strides[i], dilations[i], op.padding) for i in range(2)
    ]  # fmt: skip
    _require(min(found) > 0, f"the window {kernel} does not fit {x.shape}")
    return found[0], found[1]


def _conv(op: ir.Conv2D, v: Sequence[Value]) -> Results:
    x, w, b = v
    _require(w.rank == 4 and b.shape == w.shape[:1], f"weights {w.shape} and bias {b.shape} do not fit together")
    windows = _windows(x, w.shape[2:], op, op.dilations)
    channels, outputs = w.shape[1], w.shape[0]
    _require(channels > 0 and x.shape[1] % channels == 0, f"weights {w.shape} do not fit input {x.shape}")
    _require(outputs % (x.shape[1] // channels) == 0, f"weights {w.shape} do not fit input {x.shape}")
    return [((x.shape[0], outputs, *windows), x.dtype)]


def _depthwise(op: ir.DepthwiseConv2D, v: Sequence[Value]) -> Results:
    x, w, b = v
    _require(w.rank == 4 and w.shape[1] == 1 and b.shape == w.shape[:1], f"weights {w.shape}, bias {b.shape}")
    windows = _windows(x, w.shape[2:], op, op.dilations)
    _require(w.shape[0] % x.shape[1] == 0, f"weights {w.shape} do not fit input {x.shape}")
    return [((x.shape[0], w.shape[0], *windows), x.dtype)]


def _transpose_conv(op: ir.TransposeConv2D, v: Sequence[Value]) -> Results:
    x, w, b = v
    _require(x.rank == 4 and w.rank == 4 and w.shape[0] == x.shape[1], f"weights {w.shape} do not fit {x.shape}")
    _require(b.shape == w.shape[1:2], f"bias {b.shape} does not fit weights {w.shape}")
    for i in range(2):
        full, size = (x.shape[2 + i] - 1) * op.strides[i] + w.shape[2 + i], op.size[i]
        fits = size == full if op.padding == "VALID" else size <= full and -(-size // op.strides[i]) == x.shape[2 + i]
        _require(fits, f"{op.padding} does not make {op.size} of {x.shape} with weights {w.shape}")
    return [((x.shape[0], w.shape[1], *op.size), x.dtype)]


def _fully_connected(op: ir.FullyConnected, v: Sequence[Value]) -> Results:
    x, w, b = v
    _require(x.rank >= 1 and w.rank == 2 and x.shape[-1] == w.shape[1], f"weights {w.shape} do not fit {x.shape}")
    _require(b.shape == w.shape[:1], f"bias {b.shape} does not fit weights {w.shape}")
    return [((*x.shape[:-1], w.shape[0]), x.dtype)]


def _matmul(op: ir.MatMul, v: Sequence[Value]) -> Results:
    a, b = v
    fits = a.rank == b.rank >= 2 and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
    _require(fits, f"cannot multiply {a.shape} by {b.shape}")
    return [((*a.shape[:-1], b.shape[-1]), a.dtype)]


def _pool(op: ir.Pool2D, v: Sequence[Value]) -> Results:
    (x,) = v
    return [((*x.shape[:2], *_windows(x, op.kernel, op)), x.dtype)]


def _same(op: Op, v: Sequence[Value]) -> Results:
    return [(v[0].shape, v[0].dtype)]


def _operands(v: Sequence[Value]) -> Shape:
    shape = broadcast(*(x.shape for x in v))
    _require(all(x.rank == len(shape) for x in v), f"ranks differ: {[x.shape for x in v]}")
    return shape


def _binary(op: ir.Binary, v: Sequence[Value]) -> Results:
    _require(v[0].dtype == v[1].dtype, f"{op.kind} of {v[0].dtype} and {v[1].dtype}")
    return [(_operands(v), v[0].dtype)]


def _compare(op: ir.Compare, v: Sequence[Value]) -> Results:
    _require(v[0].dtype == v[1].dtype, f"{op.kind} of {v[0].dtype} and {v[1].dtype}")
    return [(_operands(v), "bool")]


def _select(op: ir.Select, v: Sequence[Value]) -> Results:
    _require(v[0].dtype == "bool" and v[1].dtype == v[2].dtype, "operand types of Select differ")
    return [(_operands(v), v[1].dtype)]


def _prelu(op: ir.PRelu, v: Sequence[Value]) -> Results:
    x, slope = v
    _require(slope.rank == x.rank and broadcast(x.shape, slope.shape) == x.shape, f"slope {slope.shape} on {x.shape}")
    return [(x.shape, x.dtype)]


def _cast(op: ir.Cast, v: Sequence[Value]) -> Results:
    return [(v[0].shape, op.dtype)]


def _axis(axis: int, x: Value) -> None:
    _require(0 <= axis < x.rank, f"axis {axis} of {x.shape}")


def _softmax(op: ir.Softmax, v: Sequence[Value]) -> Results:
    _axis(op.axis, v[0])
    return _same(op, v)


def _cumsum(op: ir.CumSum, v: Sequence[Value]) -> Results:
    _axis(op.axis, v[0])
    return _same(op, v)


def _reduce(op: ir.Reduce, v: Sequence[Value]) -> Results:
    (x,) = v
    _require(len(set(op.axes)) == len(op.axes) and all(0 <= a < x.rank for a in op.axes), f"axes {op.axes}")
    if op.keepdims:
        return [(tuple(1 if a in op.axes else d for a, d in enumerate(x.shape)), x.dtype)]
    return [(tuple(d for a, d in enumerate(x.shape) if a not in op.axes), x.dtype)]


def _arg_reduce(op: ir.ArgReduce, v: Sequence[Value]) -> Results:
    _axis(op.axis, v[0])
    return [(v[0].shape[: op.axis] + v[0].shape[op.axis + 1 :], "int64")]


def _top_k(op: ir.TopK, v: Sequence[Value]) -> Results:
    (x,) = v
    _axis(op.axis, x)
    _require(0 < op.k <= x.shape[op.axis], f"the {op.k} largest of {x.shape[op.axis]}")
    shape = (*x.shape[: op.axis], op.k, *x.shape[op.axis + 1 :])
    return [(shape, x.dtype), (shape, "int32")]


def _concat(op: ir.Concat, v: Sequence[Value]) -> Results:
    _axis(op.axis, v[0])
    rest = {x.shape[: op.axis] + x.shape[op.axis + 1 :] for x in v}
    _require(len(rest) == 1 and len({(x.dtype, x.rank) for x in v}) == 1, f"cannot join {[x.shape for x in v]}")
    total = sum(x.shape[op.axis] for x in v)
    return [((*v[0].shape[: op.axis], total, *v[0].shape[op.axis + 1 :]), v[0].dtype)]


def _split(op: ir.Split, v: Sequence[Value]) -> Results:
    (x,) = v
    _axis(op.axis, x)
    _require(sum(op.sizes) == x.shape[op.axis] and min(op.sizes) > 0, f"cannot split {x.shape} into {op.sizes}")
    return [((*x.shape[: op.axis], n, *x.shape[op.axis + 1 :]), x.dtype) for n in op.sizes]


def _slice(op: ir.Slice, v: Sequence[Value]) -> Results:
    (x,) = v
    _require(len(op.begin) == len(op.size) == len(op.strides) == x.rank, f"a slice of rank {len(op.begin)}")
    for dim, begin, size, stride in zip(x.shape, op.begin, op.size, op.strides, strict=True):
        last = begin + (size - 1) * stride
        _require(stride != 0 and size > 0 and 0 <= begin < dim and 0 <= last < dim, f"slice {op} of {x.shape}")
    return [(op.size, x.dtype)]


def _pad(op: ir.Pad, v: Sequence[Value]) -> Results:
    (x,) = v
    _require(len(op.pads) == x.rank and all(min(p) >= 0 for p in op.pads), f"pads {op.pads} of {x.shape}")
    return [(tuple(d + sum(p) for d, p in zip(x.shape, op.pads, strict=True)), x.dtype)]


def _reshape(op: ir.Reshape, v: Sequence[Value]) -> Results:
    _require(prod(op.shape) == prod(v[0].shape), f"cannot reshape {v[0].shape} to {op.shape}")
    return [(op.shape, v[0].dtype)]


def _transpose(op: ir.Transpose, v: Sequence[Value]) -> Results:
    _require(sorted(op.permutation) == list(range(v[0].rank)), f"permutation {op.permutation} of {v[0].shape}")
    return [(tuple(v[0].shape[a] for a in op.permutation), v[0].dtype)]


def _gather(op: ir.Gather, v: Sequence[Value]) -> Results:
    x, indices = v
    _axis(op.axis, x)
    _require(indices.dtype in ("int32", "int64"), f"indices of {indices.dtype}")
    return [(x.shape[: op.axis] + indices.shape + x.shape[op.axis + 1 :], x.dtype)]


def _gather_nd(op: ir.GatherNd, v: Sequence[Value]) -> Results:
    x, indices = v
    _require(indices.dtype in ("int32", "int64") and 0 < indices.shape[-1] <= x.rank, f"indices {indices.shape}")
    return [(indices.shape[:-1] + x.shape[indices.shape[-1] :], x.dtype)]


def _tile(op: ir.Tile, v: Sequence[Value]) -> Results:
    _require(len(op.multiples) == v[0].rank and min(op.multiples, default=1) > 0, f"multiples {op.multiples}")
    return [(tuple(d * m for d, m in zip(v[0].shape, op.multiples, strict=True)), v[0].dtype)]


def _broadcast_to(op: ir.BroadcastTo, v: Sequence[Value]) -> Results:
    _require(v[0].rank == len(op.shape) and broadcast(v[0].shape, op.shape) == op.shape, f"{v[0].shape} to {op.shape}")
    return [(op.shape, v[0].dtype)]


def _resize(op: ir.Resize, v: Sequence[Value]) -> Results:
    _require(v[0].rank == 4 and min(op.size) > 0, f"cannot resize {v[0].shape} to {op.size}")
    return [((*v[0].shape[:2], *op.size), v[0].dtype)]


def _depth_to_space(op: ir.DepthToSpace, v: Sequence[Value]) -> Results:
    n, c, h, w = v[0].shape
    _require(c % op.block**2 == 0, f"{c} channels in blocks of {op.block}")
    return [((n, c // op.block**2, h * op.block, w * op.block), v[0].dtype)]


def _space_to_depth(op: ir.SpaceToDepth, v: Sequence[Value]) -> Results:
    n, c, h, w = v[0].shape
    _require(h % op.block == 0 and w % op.block == 0, f"{h}x{w} in blocks of {op.block}")
    return [((n, c * op.block**2, h // op.block, w // op.block), v[0].dtype)]


_RULES: dict[type[Op], _Rule] = {
    ir.Conv2D: _conv,
    ir.DepthwiseConv2D: _depthwise,
    ir.TransposeConv2D: _transpose_conv,
    ir.FullyConnected: _fully_connected,
    ir.MatMul: _matmul,
    ir.Pool2D: _pool,
    ir.Unary: _same,
    ir.LeakyRelu: _same,
    ir.Gelu: _same,
    ir.PRelu: _prelu,
    ir.Binary: _binary,
    ir.Compare: _compare,
    ir.Select: _select,
    ir.Cast: _cast,
    ir.Softmax: _softmax,
    ir.Reduce: _reduce,
    ir.ArgReduce: _arg_reduce,
    ir.TopK: _top_k,
    ir.CumSum: _cumsum,
    ir.Concat: _concat,
    ir.Split: _split,
    ir.Slice: _slice,
    ir.Pad: _pad,
    ir.Reshape: _reshape,
    ir.Transpose: _transpose,
    ir.Relayout: _same,
    ir.Gather: _gather,
    ir.GatherNd: _gather_nd,
    ir.Tile: _tile,
    ir.BroadcastTo: _broadcast_to,
    ir.Resize: _resize,
    ir.DepthToSpace: _depth_to_space,
    ir.SpaceToDepth: _space_to_depth,
}


def verify(graph: Graph) -> None:
    """Check that every value is made once before it is read, and has the shape, type and layout that follow.

    Raises `IRError`. After layouts are placed, what each operator demands of them is checked too.
    """
    known = set(graph.inputs) | {name for name, value in graph.values.items() if value.data is not None}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise IRError(f"{node.op} reads {missing[0]!r} before it is made")
        results = infer(node.op, [graph.values[name] for name in node.inputs])
        found = [(graph.values[name].shape, graph.values[name].dtype) for name in node.outputs]
        if results != found:
            raise IRError(f"{node.op} {node.outputs} gives {results}, the graph says {found}")
        reason = support.fault(node.op, [graph.values[name] for name in node.inputs])
        if reason is not None:
            raise IRError(f"{node.op}: {reason}")
        known.update(node.outputs)
    for name, value in graph.values.items():
        if sorted(value.layout) != list(range(value.rank)):
            raise IRError(f"{name!r} of shape {value.shape} has layout {value.layout}")
        if value.data is not None and (value.data.shape != value.shape or value.data.dtype.name != value.dtype):
            raise IRError(f"constant {name!r} is not what it says")
    for name, value_name in graph.outputs:
        if value_name not in known:
            raise IRError(f"output {name!r} is not made")
    if graph.placed:
        from edgecompile.lower.direct import layouts

        for node in graph.nodes:
            layouts.check(graph, node)
