"""Removes what does nothing, and joins neighbours that do one thing.

Before::                                        After::

    Reshape(Reshape(x))                             Reshape(x)
    Transpose(Transpose(x, p), q)                   Transpose(x, p * q), or x
    Pad(Pad(x, a), b), both with one constant       Pad(x, a + b)
    Reshape(x), Slice(x), ... to what it is         x
    Add(Add(x, 1), 2), Mul(Mul(x, 2), 3)            Add(x, 3), Mul(x, 6)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node, Op, identity
from edgecompile.lower.direct.passes.rewriter import constant_of, take_over


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
        return False
    take_over(graph, node, op, before.inputs)
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
    if (op.mode, inner.mode) != ("CONSTANT", "CONSTANT") or op.value != inner.value:
        return False
    pads = tuple((a + c, b + d) for (a, b), (c, d) in zip(op.pads, inner.pads, strict=True))
    take_over(graph, node, ir.Pad(pads=pads, value=op.value), before.inputs)
    return True


def _slice(graph: Graph, node: Node, op: ir.Slice) -> bool:
    whole = op.size == graph.values[node.inputs[0]].shape and all(s == 1 for s in op.strides)
    return whole and _drop(graph, node)


def _binary(graph: Graph, node: Node, op: ir.Binary) -> bool:
    """Join a chain of additions, or of products, of constants."""
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
    ir.Pad: _pad,
    ir.Reshape: _reshape,
    ir.Slice: _slice,
    ir.Transpose: _transpose,
}
