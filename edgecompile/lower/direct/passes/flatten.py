"""Reorders the weights of a layer that reads a flattened image, so that the image need not be transposed.

Before (``x`` lies N, H, W, C)::                        After::

    FullyConnected(Reshape(x, N, C*H*W), w)                 FullyConnected(Reshape(Transpose(x, 0, 2, 3, 1)), w')

The transpose moves nothing, since ``x`` lies that way already; ``w'`` has its columns in the new order.
"""

from __future__ import annotations

from dataclasses import replace

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node, identity
from edgecompile.lower.direct.passes.rewriter import add


def run(graph: Graph) -> bool:
    """Reorder weights wherever a `Relayout` stands before a flattening reshape; whether there was such a place.

    Runs on a placed graph; its layouts then have to be placed anew.
    """
    changed = [_reorder(graph, node) for node in list(graph.nodes) if isinstance(node.op, ir.Reshape)]
    return any(changed)


def _reorder(graph: Graph, node: Node) -> bool:
    """Only the axes that become the last one are put into the order in which they lie."""
    relayout = graph.producer(node.inputs[0])
    readers = graph.consumers(node.outputs[0])
    if relayout is None or not isinstance(relayout.op, ir.Relayout) or graph.is_output(node.outputs[0]):
        return False
    x, shape = graph.values[relayout.inputs[0]], graph.values[node.outputs[0]].shape
    kept = _kept(x.shape, shape)
    if kept is None or not readers or not all(_reorderable(graph, r, node.outputs[0]) for r in readers):
        return False
    flat = [axis for axis in x.layout if axis >= kept]
    order = (*range(kept), *flat)
    turned = add(graph, ir.Transpose(permutation=order), (x.name,), f"{node.outputs[0]}/turned", node.origin)
    graph.swap(node, inputs=(turned.name,))
    for reader in readers:
        w = graph.values[reader.inputs[1]].array
        sizes = x.shape[kept:]
        columns = w.reshape(w.shape[0], *sizes).transpose(0, *(1 + axis - kept for axis in flat))
        new = graph.constant(columns.reshape(w.shape), reader.inputs[1])
        graph.swap(reader, inputs=(reader.inputs[0], new.name, *reader.inputs[2:]))
    return True


def _kept(shape: tuple[int, ...], flat: tuple[int, ...]) -> int | None:
    """How many axes in front stay as they are, when all others become the last one."""
    kept = len(flat) - 1
    if kept < 0 or len(shape) < len(flat) or shape[:kept] != flat[:kept]:
        return None
    return kept


def _reorderable(graph: Graph, reader: Node, name: str) -> bool:
    return (
        isinstance(reader.op, ir.FullyConnected)
        and reader.inputs[0] == name
        and name not in reader.inputs[1:]
        and graph.values[reader.inputs[1]].data is not None
    )


def unplace(graph: Graph) -> None:
    """Take back all layouts: every `Relayout` goes, every value lies as the model says."""
    for node in list(graph.nodes):
        if isinstance(node.op, ir.Relayout):
            graph.forward(node.outputs[0], node.inputs[0])
            graph.remove(node)
    for name, value in graph.values.items():
        graph.values[name] = replace(value, layout=identity(value.rank))
    graph.placed = False
