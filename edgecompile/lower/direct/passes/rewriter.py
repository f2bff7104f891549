"""Small helpers that passes share: looking back through the graph, and adding operators to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.infer import infer
from edgecompile.lower.direct.ir import Array, Graph, Node, Op, Value, identity


def add(graph: Graph, op: Op, inputs: tuple[str, ...], stem: str, origin: tuple[str, str]) -> Value:
    """The result of a new operator; its name begins with ``stem``."""
    ((shape, dtype),) = infer(op, [graph.values[name] for name in inputs])
    value = Value(name=graph.fresh(stem), shape=shape, dtype=dtype, layout=identity(len(shape)))
    graph.add_value(value)
    graph.add(Node(op=op, inputs=inputs, outputs=(value.name,), origin=origin))
    return value


def constant_of(graph: Graph, name: str) -> Array | None:
    """A constant's array; ``None`` for anything else."""
    return graph.values[name].data


def scalar_of(graph: Graph, name: str) -> float | None:
    """A constant of one element as a number."""
    data = graph.values[name].data
    return float(data.reshape(-1)[0]) if data is not None and data.size == 1 else None


def binary_with_scalar(graph: Graph, node: Node | None, kind: ir.BinaryKind) -> tuple[str, float] | None:
    """``(x, c)`` where ``node`` is ``x kind c`` with a constant of one element, on either side if the order is free."""
    if node is None or not isinstance(node.op, ir.Binary) or node.op.kind != kind or node.op.activation != "NONE":
        return None
    for x, c in (node.inputs, node.inputs[::-1]):
        number = scalar_of(graph, c)
        if number is not None and graph.values[x].data is None:
            return x, number
        if kind in ("SUB", "DIV", "POW"):
            return None
    return None


def take_over(
    graph: Graph, old: Node, op: Op, inputs: tuple[str, ...], *, origin: tuple[str, str] | None = None
) -> Node:
    """Let another operator on other operands make what ``old`` made."""
    graph.remove(old)
    return graph.add(replace(old, op=op, inputs=inputs, origin=origin or old.origin))


def same(a: float, b: float, tolerance: float = 1e-6) -> bool:
    """Whether two constants mean the same number: exporters round them to float32, or to a few decimals."""
    return bool(np.isclose(a, b, rtol=tolerance, atol=0))
