"""Fuses activations into the operator before them.

Before::  Relu6(Conv2D(x, w, b))      After::  Conv2D(x, w, b, RELU6)
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node
from edgecompile.lower.direct.passes.rewriter import take_over

_FUSIBLE = frozenset({"RELU", "RELU6", "RELU_N1_TO_1"})
_BINARY = frozenset({"ADD", "SUB", "MUL", "DIV"})


def run(graph: Graph) -> None:
    """Fuse what is the only reader of an operator that can carry it; the fused one makes the activation's tensor."""
    for node in list(graph.nodes):
        if isinstance(node.op, ir.Unary) and node.op.kind in _FUSIBLE:
            before = graph.producer(node.inputs[0])
            if before is not None and graph.only_consumer(node.inputs[0]) is node and _carries(graph, before):
                fused = replace(before.op, activation=cast(ir.Activation, node.op.kind))  # type: ignore[call-arg]
                graph.remove(before)
                take_over(graph, node, fused, before.inputs, origin=before.origin)


def _carries(graph: Graph, node: Node) -> bool:
    if getattr(node.op, "activation", None) != "NONE" or graph.values[node.outputs[0]].dtype != "float32":
        return False
    return not isinstance(node.op, ir.Binary) or node.op.kind in _BINARY
