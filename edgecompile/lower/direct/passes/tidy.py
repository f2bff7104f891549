"""Removes what does nothing, and joins neighbours that do one thing.

Before::                                        After::

    Reshape(Reshape(x))                             Reshape(x)
    Transpose(Transpose(x, p), q)                   Transpose(x, p * q), or x
    Pad(Pad(x, a), b), both with one constant       Pad(x, a + b)
    Reshape(x), Slice(x), ... to what it is         x
    Slice(Slice(x)), strides of both above 0        Slice(x)
    Add(Add(x, 1), 2), Mul(Mul(x, 2), 3)            Add(x, 3), Mul(x, 6)
    Div(x, Sqrt(y))                                 Mul(x, Rsqrt(y))
    Reshape(Reduce(x, keepdims)), axes dropped      Reduce(x)
    Relu(Reshape(x)), Add(Reshape(x), Reshape(y))   Reshape(Relu(x)), Reshape(Add(x, y))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node, Op, Shape, identity
from edgecompile.lower.direct.passes.rewriter import add, constant_of, take_over


def run(graph: Graph) -> None:
    """Apply the rules until none applies."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            rule = _RULES.get(type(node.op))
            if node in graph.nodes and rule is not None and rule(graph, node, node.op):
                changed = True


def _drop(graph: Graph, node: Node) -> bool:
    """Let readers of a node that does nothing read its operand; a graph output keeps its name in the file anyway."""
    graph.forward(node.outputs[0], node.inputs[0])
    graph.remove(node)
    return True


def _before(graph: Graph, node: Node, kind: type[Op]) -> Node | None:
    maker = graph.producer(node.inputs[0])
    return maker if maker is not None and isinstance(maker.op, kind) else None


def _reshape(graph: Graph, node: Node, op: ir.Reshape) -> bool:
    if graph.values[node.inputs[0]].shape == op.shape:
        return _drop(graph, node)
    before = _before(graph, node, ir.Reshape)
    if before is None:
        return _reshape_of_reduce(graph, node, op)
    take_over(graph, node, op, before.inputs)
    return True


def _reshape_of_reduce(graph: Graph, node: Node, op: ir.Reshape) -> bool:
    before = _before(graph, node, ir.Reduce)
    if before is None or graph.only_consumer(node.inputs[0]) is not node:
        return False
    reduce = before.op
    assert isinstance(reduce, ir.Reduce)
    x = graph.values[before.inputs[0]]
    dropped = tuple(d for axis, d in enumerate(x.shape) if axis not in reduce.axes)
    if not reduce.keepdims or op.shape != dropped:
        return False
    graph.remove(before)
    take_over(graph, node, replace(reduce, keepdims=False), before.inputs, origin=before.origin)
    return True


def _transpose(graph: Graph, node: Node, op: ir.Transpose) -> bool:
    if op.permutation == identity(len(op.permutation)):
        return _drop(graph, node)
    before = _before(graph, node, ir.Transpose)
    if before is None:
        return False
    joined = tuple(before.op.permutation[axis] for axis in op.permutation)  # type: ignore[attr-defined]
    take_over(graph, node, ir.Transpose(permutation=joined), before.inputs)
    return True


def _pad(graph: Graph, node: Node, op: ir.Pad) -> bool:
    before = _before(graph, node, ir.Pad)
    if before is None or graph.only_consumer(node.inputs[0]) is not node:
        return False
    inner = before.op
    assert isinstance(inner, ir.Pad)
    if op.value != inner.value:
        return False
    pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(op.pads, inner.pads, strict=True))
    take_over(graph, node, ir.Pad(pads=pads, value=op.value), before.inputs)
    return True


def _slice(graph: Graph, node: Node, op: ir.Slice) -> bool:
    if op.size == graph.values[node.inputs[0]].shape and all(s == 1 for s in op.strides):
        return _drop(graph, node)
    before = _before(graph, node, ir.Slice)
    if before is None or graph.only_consumer(node.inputs[0]) is not node:
        return False
    inner = before.op
    assert isinstance(inner, ir.Slice)
    if min(*op.strides, *inner.strides) < 1:
        return False
    begin = tuple(b + s * a for a, b, s in zip(op.begin, inner.begin, inner.strides, strict=True))
    strides = tuple(a * b for a, b in zip(op.strides, inner.strides, strict=True))
    take_over(graph, node, ir.Slice(begin=begin, size=op.size, strides=strides), before.inputs)
    return True


def _sink_reshape(graph: Graph, node: Node) -> bool:
    """Let an elementwise operator work before the reshapes of its operands, where they all reshape alike."""
    shapes = {graph.values[name].shape for name in node.inputs if graph.values[name].elements != 1}
    makers = [graph.producer(name) for name in node.inputs]
    reshapes = [m for m in makers if m is not None and isinstance(m.op, ir.Reshape)]
    if not reshapes or any(graph.only_consumer(m.outputs[0]) is not node for m in reshapes):
        return False
    inner = graph.values[reshapes[0].inputs[0]].shape
    outer = graph.values[node.outputs[0]].shape
    sources = [_unreshaped(graph, name, maker, inner, outer) for name, maker in zip(node.inputs, makers, strict=True)]
    if any(s is None for s in sources) or (
        len(reshapes) < 2 and shapes != {outer} and not _only_unit_axes(inner, outer)
    ):
        return False
    names = tuple(s for s in sources if s is not None)
    moved = add(graph, node.op, names, f"{node.outputs[0]}/inner", node.origin)
    take_over(graph, node, ir.Reshape(shape=outer), (moved.name,))
    return True


def _unreshaped(graph: Graph, name: str, maker: Node | None, inner: Shape, outer: Shape) -> str | None:
    """An operand as it is before the reshape from ``inner`` to ``outer``."""
    value = graph.values[name]
    if value.data is not None and value.elements == 1:
        return graph.constant(value.data.reshape((1,) * len(inner)), name).name
    if value.data is not None and _only_unit_axes(inner, outer) and value.rank == len(outer):
        return graph.constant(value.data.reshape(_unit_shape(value.shape, inner, outer)), name).name
    if maker is None or not isinstance(maker.op, ir.Reshape) or value.shape != outer:
        return None
    return maker.inputs[0] if graph.values[maker.inputs[0]].shape == inner else None


def _only_unit_axes(inner: Shape, outer: Shape) -> bool:
    """Whether a reshape adds or removes axes of size 1, and nothing else."""
    return [d for d in inner if d != 1] == [d for d in outer if d != 1]


def _unit_shape(shape: Shape, inner: Shape, outer: Shape) -> Shape:
    """The shape of what broadcasts to ``outer`` for ``inner``, which has other axes of size 1."""
    sizes = iter([shape[axis] for axis, d in enumerate(outer) if d != 1])
    return tuple(1 if d == 1 else next(sizes) for d in inner)


def _unary(graph: Graph, node: Node, op: Op) -> bool:
    return _sink_reshape(graph, node)


def _div(graph: Graph, node: Node, op: ir.Binary) -> bool:
    root = graph.producer(node.inputs[1])
    if op.kind != "DIV" or root is None or root.op != ir.Unary(kind="SQRT"):
        return False
    if graph.only_consumer(node.inputs[1]) is not node:
        return False
    inverse = add(graph, ir.Unary(kind="RSQRT"), root.inputs, f"{node.outputs[0]}/rsqrt", root.origin)
    take_over(graph, node, replace(op, kind="MUL"), (node.inputs[0], inverse.name))
    return True


def _binary(graph: Graph, node: Node, op: ir.Binary) -> bool:
    """Join a chain of additions, or of products, of constants."""
    if _div(graph, node, op) or _sink_reshape(graph, node):
        return True
    if op.kind not in ("ADD", "MUL") or graph.values[node.outputs[0]].dtype != "float32":
        return False
    for x, c in (node.inputs, node.inputs[::-1]):
        outer, before = constant_of(graph, c), graph.producer(x)
        if outer is None or before is None or before.op != op or graph.only_consumer(x) is not node:
            continue
        for y, d in (before.inputs, before.inputs[::-1]):
            inner = constant_of(graph, d)
            if inner is None or op.activation != "NONE" or graph.values[y].data is not None:
                continue
            joined = np.add(inner, outer) if op.kind == "ADD" else np.multiply(inner, outer)
            if joined.size > max(inner.size, outer.size) or not np.isfinite(joined).all():
                continue
            constant = graph.constant(joined.astype(np.float32), f"{node.outputs[0]}/constant")
            take_over(graph, node, op, (y, constant.name))
            return True
    return False


_RULES: dict[type[Op], Callable[[Graph, Node, Any], bool]] = {
    ir.Binary: _binary,
    ir.Gelu: _unary,
    ir.LeakyRelu: _unary,
    ir.Pad: _pad,
    ir.Reshape: _reshape,
    ir.Slice: _slice,
    ir.Transpose: _transpose,
    ir.Unary: _unary,
}
