"""What each operator's quantization does to the network's outputs: the order in which operators return to float.

One weighted operator at a time computes in int8 (what it reads, its weights and what it makes pass through Q/DQ pairs),
all others in float, and the outputs are compared with the float network's on unlabelled samples, as in "A White Paper
on Neural Network Quantization" (Nagel et al., 2021, arXiv:2106.08295, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgecompile.lower import qdq
from edgecompile.lower.qdq import insert, ranges
from edgecompile.types import Arrays

if TYPE_CHECKING:
    import onnx

#: Activations that runtimes fuse into the operator before them.
_FUSED = ("Relu", "Clip")


def operators(
    proto: onnx.ModelProto, samples: Sequence[Arrays], *, progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """For each weighted operator, by its output's name: noise power over signal power at the network's outputs.

    ``samples`` in the model's layout; ranges are their extremes. An operator that cannot be quantized is left out.
    """
    floating = qdq.prepared(proto)
    whole = insert.sites(floating)
    nodes = list(floating.graph.node)
    names = {node.name for node in nodes}
    made = {node.name: _made(floating, node) for node in nodes if node.name in whole.quantized}
    tapped = list(dict.fromkeys([*whole.edges, *(tensor for tensor, edges in made.values() if edges)]))
    limits = ranges.limits(ranges.measure(floating, tapped, samples), "max")
    expected = qdq.outputs_of(floating, samples)
    found: dict[str, float] = {}
    for number, node in enumerate(node for node in nodes if node.name in made):
        alone = _with_output(insert.sites(floating, names - {node.name}), *made[node.name])
        quantized = insert.insert(floating, alone, insert.scales(alone, limits))
        found[node.output[0]] = 10 ** (-qdq.sqnr_db(expected, qdq.outputs_of(quantized, samples)) / 10)
        if progress is not None:
            progress(number + 1, len(made))
    return found


def _made(proto: onnx.ModelProto, node: onnx.NodeProto) -> tuple[str, tuple[insert.Edge, ...]]:
    """What an operator makes, behind an activation that is fused into it, and where that is read."""
    nodes = list(proto.graph.node)
    tensor = node.output[0]
    readers = [reader for reader in nodes if tensor in reader.input]
    if len(readers) == 1 and readers[0].op_type in _FUSED:
        tensor = readers[0].output[0]
    edges = [(i, place) for i, reader in enumerate(nodes) for place, name in enumerate(reader.input) if name == tensor]
    return tensor, tuple(edges)


def _with_output(where: insert.Sites, tensor: str, edges: tuple[insert.Edge, ...]) -> insert.Sites:
    if not edges:
        return where
    return replace(where, edges={**where.edges, tensor: edges}, group={**where.group, tensor: tensor})
