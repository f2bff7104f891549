"""Writes around faults of the runtime.

XNNPACK turns a maximum or minimum with one number into the limits of the operator before it, and then fails to build
that operator when the limits leave out 0 (LiteRT 2.1: depthwise and transposed convolutions, pools). A constant that
has that number more than once is not taken for limits.

Before::  Maximum(Pool2D(x), 0.4)      After::  Maximum(Pool2D(x), [0.4, 0.4, 0.4, ...])
"""

from __future__ import annotations

from math import prod

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node
from edgecompile.lower.direct.passes.rewriter import add, scalar_of


def run(graph: Graph) -> None:
    """Repeat the constants of limits that leave out 0."""
    for node in list(graph.nodes):
        if isinstance(node.op, ir.Binary) and node.op.kind in ("MAXIMUM", "MINIMUM"):
            for place, name in enumerate(node.inputs):
                number = scalar_of(graph, name)
                if number is not None and (number > 0 if node.op.kind == "MAXIMUM" else number < 0):
                    _repeat(graph, node, place)
                    break


def _repeat(graph: Graph, node: Node, place: int) -> None:
    """Along the shortest axis that is longer than 1; a single element is taken out of its operator's reach."""
    shape = graph.values[node.outputs[0]].shape
    inputs = list(node.inputs)
    if prod(shape) == 1:
        other = inputs[1 - place]
        lifted = add(graph, ir.Reshape(shape=(*shape, 1)), (other,), f"{node.outputs[0]}/lifted", node.origin)
        back = add(graph, ir.Reshape(shape=shape), (lifted.name,), f"{node.outputs[0]}/lowered", node.origin)
        inputs[1 - place] = back.name
    else:
        axis = min((a for a, d in enumerate(shape) if d > 1), key=lambda a: shape[a])
        constant = graph.values[inputs[place]]
        full = np.full([d if a == axis else 1 for a, d in enumerate(shape)], constant.array.reshape(-1)[0])
        inputs[place] = graph.constant(full.astype(constant.dtype), constant.name).name
    graph.swap(node, inputs=tuple(inputs))
