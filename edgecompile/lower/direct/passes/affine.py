"""Folds factors and terms by channel (BatchNorm, scales, biases) into the weights of their neighbours.

Before::                                        After::

    Add(Mul(Conv2D(x, w, b), s), t)                 Conv2D(x, w * s, b * s + t)
    FullyConnected(Add(Mul(x, s), t), w, b)         FullyConnected(x, w * s, b + w @ t)

The second form also serves a `Conv2D` that pads nothing. All readers must be able to take it, else nothing is gained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Array, Graph, Node, Op
from edgecompile.lower.direct.passes.rewriter import take_over


@dataclass(frozen=True, slots=True, kw_only=True)
class _Linear:
    """Where a linear operator has its channels, and the axes of its weights that they are."""

    channel_axis: int
    outputs: Callable[[Array, Array], Array]


def _scale_first(w: Array, s: Array) -> Array:
    return np.asarray(w * s.reshape(-1, *(1,) * (w.ndim - 1)))


def _scale_second(w: Array, s: Array) -> Array:
    return np.asarray(w * s.reshape(1, -1, *(1,) * (w.ndim - 2)))


_LINEAR: dict[type[Op], _Linear] = {
    ir.Conv2D: _Linear(channel_axis=1, outputs=_scale_first),
    ir.DepthwiseConv2D: _Linear(channel_axis=1, outputs=_scale_first),
    ir.FullyConnected: _Linear(channel_axis=-1, outputs=_scale_first),
    ir.TransposeConv2D: _Linear(channel_axis=1, outputs=_scale_second),
}


def run(graph: Graph) -> None:
    """Fold what follows linear operators until nothing folds, then what stands before them."""
    for node in list(graph.nodes):
        while node in graph.nodes and (folded := _fold_following(graph, node)) is not None:
            node = folded
    for node in reversed(list(graph.nodes)):
        if node in graph.nodes:
            _fold_preceding(graph, node)


def _per_channel(graph: Graph, node: Node, x: str, axis: int) -> Array | None:
    """The other operand of ``node`` as one number a channel of ``x``, if it is a constant that is no more than that."""
    (other,) = (name for name in node.inputs if name != x) if node.inputs.count(x) == 1 else (x,)
    data, shape = graph.values[other].data, graph.values[x].shape
    if data is None or graph.values[node.outputs[0]].shape != shape:
        return None
    axis %= len(shape)
    full = data.reshape((1,) * (len(shape) - data.ndim) + data.shape)
    if any(d != 1 for a, d in enumerate(full.shape) if a != axis):
        return None
    return np.broadcast_to(full.reshape(-1), shape[axis]).astype(np.float64)


def _constants(graph: Graph, node: Node) -> tuple[Array, Array] | None:
    w, b = (graph.values[name].data for name in node.inputs[1:3])
    return None if w is None or b is None else (w, b)


def _with_constants(graph: Graph, node: Node, w: Array, b: Array) -> tuple[str, str] | None:
    """New weights and bias; ``None`` where they overflow what they are stored as."""
    if not (np.isfinite(w).all() and np.isfinite(b).all()):
        return None
    names = []
    for old, data in zip(node.inputs[1:3], (w, b), strict=True):
        same = data.dtype == np.float32 and data is graph.values[old].data
        names.append(old if same else graph.constant(np.asarray(data, np.float32), old).name)
    return names[0], names[1]


def _fold_following(graph: Graph, node: Node) -> Node | None:
    linear, following = _LINEAR.get(type(node.op)), graph.only_consumer(node.outputs[0])
    if linear is None or following is None or getattr(node.op, "activation", "NONE") != "NONE":
        return None
    constants = _constants(graph, node)
    op: Any = following.op
    if constants is None or not isinstance(op, ir.Binary) or op.activation != "NONE":
        return None
    c = _per_channel(graph, following, node.outputs[0], linear.channel_axis)
    if c is None:
        return None
    changed = _after(op.kind, following.inputs[0] == node.outputs[0], constants, c, linear)
    names = None if changed is None else _with_constants(graph, node, *changed)
    if names is None:
        return None
    graph.remove(node)
    return take_over(graph, following, node.op, (node.inputs[0], *names), origin=node.origin)


def _after(
    kind: str, first: bool, constants: tuple[Array, Array], c: Array, linear: _Linear
) -> tuple[Array, Array] | None:
    """Weights and bias of an operator followed by ``kind`` with ``c``; ``first``: the operator is the left operand."""
    w, b = constants
    if kind == "ADD":
        return w, b + c
    if kind == "SUB":
        return (w, b - c) if first else (linear.outputs(w, -np.ones_like(c)), c - b)
    if kind == "MUL":
        return linear.outputs(w, c), b * c
    if kind == "DIV" and first and (c != 0).all():
        return linear.outputs(w, 1 / c), b / c
    return None


def _fold_preceding(graph: Graph, node: Node) -> None:
    """Move ``x * s`` or ``x + t`` into the weights of all that reads it."""
    op: Any = node.op
    if not isinstance(op, ir.Binary) or op.kind not in ("MUL", "ADD") or op.activation != "NONE":
        return
    if graph.is_output(node.outputs[0]):
        return
    data = [name for name in node.inputs if graph.values[name].data is None]
    if len(data) != 1:
        return
    readers = graph.consumers(node.outputs[0])
    changed = [_before(graph, node, reader, data[0], op.kind) for reader in readers]
    if not readers or any(c is None for c in changed):
        return
    graph.remove(node)
    for reader, names in zip(readers, changed, strict=True):
        assert names is not None
        graph.swap(reader, inputs=(data[0], *names))


def _before(graph: Graph, node: Node, reader: Node, x: str, kind: str) -> tuple[str, str] | None:
    linear = _LINEAR.get(type(reader.op))
    constants = None if linear is None or len(reader.inputs) != 3 else _constants(graph, reader)
    if linear is None or constants is None or reader.inputs.count(node.outputs[0]) != 1:
        return None
    if reader.inputs[0] != node.outputs[0] or isinstance(reader.op, ir.TransposeConv2D):
        return None
    c = _per_channel(graph, node, x, linear.channel_axis)
    if c is None or (kind == "ADD" and getattr(reader.op, "padding", "VALID") != "VALID"):
        return None
    w, b = constants
    weights = _by_input_channel(graph, reader, w, c)
    if kind == "MUL":
        return _with_constants(graph, reader, weights, b)
    return _with_constants(graph, reader, w, b + weights.reshape(len(b), -1).sum(axis=1))


def _by_input_channel(graph: Graph, reader: Node, w: Array, c: Array) -> Array:
    """Weights with each input channel's multiplied by its number."""
    if isinstance(reader.op, ir.FullyConnected):
        return np.asarray(w * c)
    outputs, channels = w.shape[0], len(c)
    groups = channels // w.shape[1]
    # Each output sees the channels of its own group, in order.
    seen = np.repeat(c.reshape(groups, -1), outputs // groups, axis=0)
    return np.asarray(w * seen.reshape(outputs, w.shape[1], 1, 1))
