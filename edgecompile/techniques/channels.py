"""Which channels of a network must be removed together: a dependency analysis on its ONNX graph.

For every weighted operator the entries of its output's channel axis get labels (`labels.Labels`); rules carry them
through the graph (`channel_rules`). The result are *groups*: sets of units that can be removed one by one, where a unit
is all that goes with one channel, in every tensor and weight. Coupled channels of structured pruning are described in
"DepGraph: Towards Any Structural Pruning" (Fang et al., CVPR 2023); here, labels follow each single entry, so that
splits, shuffles, concatenations, padded shortcuts and flattened maps are exact.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.labels import AxisLabels, Labels, TensorLabels

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that can be removed one by one, all of the same kind.

    ``name`` is that of the first node that makes its channels; ``units`` are roots of labels in the order of the
    channels; ``nodes`` are all nodes whose outputs' channels belong to it. A unit is ``width`` channels of the weighted
    operators that make it: 1, or as many as an attention head has.
    """

    name: str
    units: tuple[int, ...]
    nodes: tuple[str, ...]
    width: int = 1

    @property
    def size(self) -> int:
        return len(self.units)

    def step(self, tile: int) -> int:
        """How many units are a whole number of tiles of channels."""
        return tile // math.gcd(tile, self.width)


@dataclass(slots=True, kw_only=True)
class Channels:
    """The analysis of one graph: labels of every tensor and constant, and the groups."""

    graph: GraphView
    labels: Labels
    tensors: dict[str, TensorLabels]
    groups: tuple[Group, ...] = ()
    #: What could not be followed: operators whose channels stay as they are, with the reason.
    notes: list[str] = field(default_factory=list)

    def removable(self, name: str) -> TensorLabels:
        """The roots along each axis of a tensor; axes that never shrink have ``None``."""
        found = self.tensors.get(name)
        if found is None:
            return (None,) * len(self.graph.shapes.get(name, ()))
        return tuple(None if axis is None else self.labels.roots(axis) for axis in found)

    def keep(self, name: str, removed: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_] | None, ...]:
        """For each axis of a tensor, which entries stay when the units ``removed`` (sorted roots) go."""
        return tuple(None if axis is None else ~np.isin(axis, removed) for axis in self.removable(name))


class GraphView:
    """A static ONNX graph with its shapes and constants by name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model)
        self.model = model
        self.nodes: tuple[onnx.NodeProto, ...] = tuple(model.graph.node)
        self.constants: dict[str, npt.NDArray[np.generic]] = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        self.shapes: dict[str, Shape] = {name: array.shape for name, array in self.constants.items()}
        graph = inferred.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                if all(dim.HasField("dim_value") for dim in dims):
                    self.shapes.setdefault(value.name, tuple(int(dim.dim_value) for dim in dims))
        self.outputs = tuple(value.name for value in model.graph.output)

    def attributes(self, node: onnx.NodeProto) -> dict[str, object]:
        """A node's attributes as Python values."""
        import onnx

        return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}

    def ints(self, name: str) -> tuple[int, ...] | None:
        """A constant of integers, or ``None`` where it is computed."""
        array = self.constants.get(name)
        return None if array is None else tuple(int(x) for x in array.ravel())


def analyze(model: onnx.ModelProto) -> Channels:
    """Find the groups of channels of a prepared ONNX graph (static shapes, opset 13 or newer)."""
    from edgecompile.techniques import channel_rules

    view = GraphView(model)
    found = Channels(graph=view, labels=Labels(), tensors={})
    for node in view.nodes:
        channel_rules.propagate(found, node)
    for name in view.outputs:
        for axis in found.tensors.get(name, ()):
            found.labels.pin(axis)
    found.groups = _groups(found)
    if not found.groups:
        found.notes.append(
            "no channel can be removed: all are joined with outputs, inputs, or statistics over channels"
        )
    return found


def _groups(found: Channels) -> tuple[Group, ...]:
    by_kind: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for root, origins in found.labels.units().items():
        by_kind[origins].append(root)
    names: Counter[str] = Counter()
    groups: list[Group] = []
    widths = _widths(found)
    for origins, roots in sorted(by_kind.items(), key=lambda item: min(item[1])):
        nodes = tuple(dict.fromkeys(origin.partition(":")[2] for origin in origins))
        names[nodes[0]] += 1
        name = nodes[0] if names[nodes[0]] == 1 else f"{nodes[0]}#{names[nodes[0]]}"
        width = min((widths[root] for root in roots if root in widths), default=1)
        groups.append(Group(name=name, units=tuple(sorted(roots)), nodes=nodes, width=width))
    return tuple(groups)


def _widths(found: Channels) -> dict[int, int]:
    """How many channels of an operator with weights each unit is, by its root: the fewest, where there are several."""
    widths: dict[int, int] = {}
    for node in found.graph.nodes:
        if (
            node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            or node.input[1] not in found.graph.constants
        ):
            continue
        for axis in found.removable(node.output[0]):
            if axis is not None:
                for root, count in zip(*np.unique(axis, return_counts=True), strict=True):
                    widths[int(root)] = min(widths.get(int(root), int(count)), int(count))
    return widths


def count(labels: AxisLabels, kept_by_group: Mapping[int, float], group_of: Mapping[int, int], size: int) -> float:
    """How long an axis is when each group keeps a share of its units (group's index -> share)."""
    if labels is None:
        return float(size)
    shares = [kept_by_group.get(group_of[int(root)], 1.0) if int(root) in group_of else 1.0 for root in labels]
    return float(sum(shares))


def removed_units(channels: Channels, kept: Mapping[str, Sequence[int]]) -> npt.NDArray[np.int64]:
    """The sorted roots to remove, given which positions of each group (by name) are kept."""
    gone: list[int] = []
    for group in channels.groups:
        if group.name in kept:
            stay = set(kept[group.name])
            gone += [unit for position, unit in enumerate(group.units) if position not in stay]
    return np.array(sorted(gone), np.int64)
