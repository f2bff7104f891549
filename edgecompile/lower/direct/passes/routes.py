"""Lets weights do what joins, splits and shuffles of channels do between convolutions.

Before (ShuffleNetV2)::                                     After::

    c = Concat(Relu(Conv(p)), Relu(Conv(q)))                a = Relu(Conv'(p)), its channels ordered by who reads them
    s = Reshape(Transpose(Reshape(c)))                      b = Relu(Conv'(q)), likewise
    l, r = Split(s)                                         Conv'(Concat(Slice(a), Slice(b)))        in place of Conv(r)
    Conv(r), Concat(l, ...) shuffled again, and so on

Every channel that is only moved is followed from the convolution that makes it to the convolutions that read it. The
makers' weights are reordered so that each reader finds its channels in few runs, these are joined, and the readers'
weights are reordered to what comes out. A channel is moved twice, however many blocks it passes by, and nothing is
transposed; in INT8 it is rounded to another scale once, not at each join. The results are the same but for the order in
which the readers sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Array, Graph, Node
from edgecompile.lower.direct.passes.rewriter import add

_MOVES = (ir.Concat, ir.Split, ir.Slice, ir.Reshape, ir.Transpose)
_UNARY = (ir.Unary, ir.LeakyRelu, ir.Gelu)

#: XNNPACK joins no more operands than this at once; what it does not take goes to the slower reference kernel.
_MOST_JOINED = 5
#: Each run is a slice at the least; with more of them than this for one move before, little can be gained.
_RUNS_PER_MOVE = 2


@dataclass(slots=True, kw_only=True)
class _Region:
    """What moves that hang together do. Channels are numbered throughout, source by source.

    ``first`` is the number of the first channel of each source, ``numbers`` holds those of each value's channels, in
    an array of the value's shape without its first axis and its last two. ``targets`` are what others than moves read.
    """

    first: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, Array] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Channels of a reordered source that lie together."""

    source: str
    begin: int
    count: int


def run(graph: Graph) -> None:
    """Rewrite every region of moves between convolutions that transposes."""
    for moves in _regions(graph):
        region = _followed(graph, moves)
        if region is None or not region.targets or not _is_free(graph, region):
            continue
        place = _places(region)
        runs = {target: _runs(region, place, target) for target in region.targets}
        if sum(len(found) for found in runs.values()) <= _RUNS_PER_MOVE * len(moves):
            _rewrite(graph, region, place, runs)


def _regions(graph: Graph) -> list[list[Node]]:
    """The moves that hang together, in execution order, where one of them transposes."""
    moves = [node for node in graph.nodes if isinstance(node.op, _MOVES)]
    root = {node: node for node in moves}

    def find(node: Node) -> Node:
        while root[node] is not node:
            node = root[node]
        return node

    by_value: dict[str, Node] = {}
    for node in moves:
        for name in (*node.inputs, *node.outputs):
            if graph.values[name].data is None:
                root[find(node)] = find(by_value.setdefault(name, node))
    groups: dict[Node, list[Node]] = {}
    for node in moves:
        groups.setdefault(find(node), []).append(node)
    return [g for g in groups.values() if any(isinstance(node.op, ir.Transpose) for node in g)]


# ------------------------------------------------------------------------------------------- following the channels


def _followed(graph: Graph, moves: list[Node]) -> _Region | None:
    """Where every channel goes; ``None`` where a move does not move whole channels."""
    region = _Region()
    for node in moves:
        if not _moves_channels(graph, node):
            return None
        for name in node.inputs:
            if name not in region.numbers:
                _add_source(graph, region, name)
        results = _moved(node.op, [region.numbers[name] for name in node.inputs])
        region.numbers.update(zip(node.outputs, results, strict=True))
    made = [name for node in moves for name in node.outputs]
    region.targets = [name for name in made if graph.is_output(name) or _readers(graph, name)]
    return region


def _moves_channels(graph: Graph, node: Node) -> bool:
    """Whether an operator leaves the batch and the two axes of the image as they are."""
    op: Any = node.op
    values = [graph.values[name] for name in (*node.inputs, *node.outputs)]
    if any(value.data is not None or len(value.shape) < 4 for value in values):
        return False
    if len({(value.shape[0], *value.shape[-2:]) for value in values}) != 1:
        return False
    last = len(values[0].shape) - 2
    if isinstance(op, ir.Concat | ir.Split):
        return bool(0 < op.axis < last)
    if isinstance(op, ir.Slice):
        # All sizes are the same, so only a stride below 0 can still change an order.
        return all(op.strides[axis] == 1 for axis in (0, last, last + 1))
    return not isinstance(op, ir.Transpose) or (op.permutation[0], *op.permutation[-2:]) == (0, last, last + 1)


def _add_source(graph: Graph, region: _Region, name: str) -> None:
    shape = graph.values[name].shape[1:-2]
    count = sum(region.numbers[source].size for source in region.first)
    region.first[name] = count
    region.numbers[name] = np.arange(count, count + int(np.prod(shape))).reshape(shape)


def _moved(op: Any, numbers: list[Array]) -> list[Array]:
    """What a move does to the numbers of its operands' channels."""
    if isinstance(op, ir.Concat):
        return [np.concatenate(numbers, axis=op.axis - 1)]
    if isinstance(op, ir.Split):
        return list(np.split(numbers[0], np.cumsum(op.sizes)[:-1], axis=op.axis - 1))
    if isinstance(op, ir.Reshape):
        return [numbers[0].reshape(op.shape[1:-2])]
    if isinstance(op, ir.Transpose):
        return [numbers[0].transpose([axis - 1 for axis in op.permutation[1:-2]])]
    result = numbers[0]
    for axis, (begin, size, stride) in enumerate(zip(op.begin[1:-2], op.size[1:-2], op.strides[1:-2], strict=True)):
        result = result.take(begin + stride * np.arange(size), axis)
    return [result]


# ----------------------------------------------------------------------------------------- what may be reordered


def _is_free(graph: Graph, region: _Region) -> bool:
    """Whether weights can take up any order of all sources and all targets, and no target reads a channel twice."""
    for name in region.first:
        moved_only = all(isinstance(node.op, _MOVES) for node in graph.consumers(name))
        if graph.is_output(name) or not moved_only or _maker(graph, name) is None:
            return False
    for name in region.targets:
        numbers = region.numbers[name]
        if numbers.ndim != 1 or np.unique(numbers).size != numbers.size or graph.is_output(name):
            return False
        if not all(_takes(graph, node, name) for node in _readers(graph, name)):
            return False
    return True


def _readers(graph: Graph, name: str) -> list[Node]:
    """What reads a value other than moves; moves that read a value of a region belong to it."""
    return [node for node in graph.consumers(name) if not isinstance(node.op, _MOVES)]


def _maker(graph: Graph, name: str) -> tuple[Node, list[str]] | None:
    """The ungrouped convolution with constant weights behind a value, and the values from this one to its result."""
    path = [name]
    node = graph.producer(name)
    while node is not None and isinstance(node.op, _UNARY):
        path.append(node.inputs[0])
        if graph.only_consumer(path[-1]) is not node:
            return None
        node = graph.producer(path[-1])
    return (node, path) if node is not None and _is_full(graph, node) else None


def _is_full(graph: Graph, node: Node) -> bool:
    """Whether an operator is an ungrouped convolution with constant weights and bias."""
    if not isinstance(node.op, ir.Conv2D) or any(graph.values[n].data is None for n in node.inputs[1:]):
        return False
    return graph.values[node.inputs[0]].shape[1] == graph.values[node.inputs[1]].shape[1]


def _passes(graph: Graph, node: Node, name: str) -> bool:
    """Whether an operator hands each channel on by itself, and its weights can be reordered."""
    if isinstance(node.op, ir.DepthwiseConv2D):
        channels = graph.values[name].shape[1]
        constants = [graph.values[n] for n in node.inputs[1:]]
        return all(value.data is not None and value.shape[0] == channels for value in constants)
    if isinstance(node.op, ir.Pad):
        return node.op.pads[1] == (0, 0)
    return isinstance(node.op, (*_UNARY, ir.Pool2D))


def _takes(graph: Graph, node: Node, name: str) -> bool:
    """Whether a reader, or else all of its readers, can take the channels in any order."""
    if node.inputs[0] != name or name in node.inputs[1:]:
        return False
    if _is_full(graph, node):
        return True
    result = node.outputs[0]
    readers = graph.consumers(result)
    if graph.is_output(result) or not readers or not _passes(graph, node, name):
        return False
    return all(_takes(graph, reader, result) for reader in readers)


# ---------------------------------------------------------------------------------------------------- the planning


def _places(region: _Region) -> Array:
    """The new place of each channel by its number, counted like the numbers: each source sorted by its readers."""
    sizes = [region.numbers[name].size for name in region.first]
    reads = np.stack([np.isin(np.arange(sum(sizes)), region.numbers[name]) for name in region.targets])
    place = np.empty(sum(sizes), np.int64)
    for first, size in zip(region.first.values(), sizes, strict=True):
        channels = np.arange(first, first + size)
        # The last key counts most: what the first target reads comes first.
        place[channels[np.lexsort(~reads[::-1, channels])]] = channels
    return place


def _runs(region: _Region, place: Array, target: str) -> list[_Run]:
    """The fewest runs that hold a target's channels, source by source."""
    found: list[_Run] = []
    wanted = np.sort(place[region.numbers[target]])
    for source, first in region.first.items():
        inside = wanted[(wanted >= first) & (wanted < first + region.numbers[source].size)] - first
        for part in np.split(inside, np.flatnonzero(np.diff(inside) != 1) + 1):
            if part.size:
                found.append(_Run(source=source, begin=int(part[0]), count=part.size))
    return found


# -------------------------------------------------------------------------------------------------- the rewriting


def _rewrite(graph: Graph, region: _Region, place: Array, runs: dict[str, list[_Run]]) -> None:
    names = {}
    for source, first in region.first.items():
        order = np.argsort(place[first : first + region.numbers[source].size])
        names[source] = _reorder_source(graph, source, order)
    for target, found in runs.items():
        joined = _joined(graph, target, [_sliced(graph, target, names[one.source], one) for one in found])
        order = np.argsort(place[region.numbers[target]])
        for node in _readers(graph, target):
            _reorder_reader(graph, graph.swap(node, inputs=(joined, *node.inputs[1:])), order)


def _reorder_source(graph: Graph, name: str, order: Array) -> str:
    """Let a source's channels be made in another order; returns its new name."""
    found = _maker(graph, name)
    assert found is not None
    maker, path = found
    _reorder_constants(graph, maker, order, axis=0)
    renamed = [_renamed(graph, value) for value in path]
    return renamed[0]


def _renamed(graph: Graph, name: str) -> str:
    """A new name: a tensor that has the model's name holds what the model's tensor holds."""
    fresh = graph.fresh(f"{name}/reordered")
    graph.rename(name, fresh)
    return fresh


def _sliced(graph: Graph, target: str, name: str, one: _Run) -> str:
    batch, channels, *size = graph.values[name].shape
    if one.count == channels:
        return name
    op = ir.Slice(begin=(0, one.begin, 0, 0), size=(batch, one.count, *size), strides=(1, 1, 1, 1))
    return add(graph, op, (name,), f"{target}/part", _origin(graph, target)).name


def _joined(graph: Graph, target: str, parts: list[str]) -> str:
    """The parts joined in their order; where they are many the first ones beforehand, since the oldest are smallest."""
    while len(parts) > 1:
        excess = len(parts) - _MOST_JOINED
        count = min(_MOST_JOINED, excess + 1) if excess > 0 else len(parts)
        value = add(graph, ir.Concat(axis=1), tuple(parts[:count]), f"{target}/joined", _origin(graph, target))
        parts = [value.name, *parts[count:]]
    return parts[0]


def _origin(graph: Graph, name: str) -> tuple[str, str]:
    maker = graph.producer(name)
    assert maker is not None
    return maker.origin


def _reorder_reader(graph: Graph, node: Node, order: Array) -> None:
    """Let a reader, or else all of its readers, take the first operand's channels in another order."""
    if _is_full(graph, node):
        _reorder_constants(graph, node, order, axis=1)
        return
    if isinstance(node.op, ir.DepthwiseConv2D):
        node = _reorder_constants(graph, node, order, axis=0)
    name = _renamed(graph, node.outputs[0])
    for reader in graph.consumers(name):
        _reorder_reader(graph, reader, order)


def _reorder_constants(graph: Graph, node: Node, order: Array, *, axis: int) -> Node:
    """A convolution with its weights reordered by input channels (axis 1), or weights and bias by output channels."""
    names = [node.inputs[0]]
    for name in node.inputs[1:]:
        data = graph.values[name].array
        if axis < data.ndim:
            name = graph.constant(np.ascontiguousarray(data.take(order, axis)), name).name
        names.append(name)
    return graph.swap(node, inputs=tuple(names))
