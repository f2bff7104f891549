"""Removes channels from an ONNX graph: weights are cut, and numbers that depend on a channel count are set anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.techniques import channel_rules
from edgecompile.techniques.channels import Channels, Group, Shape, removed_units

if TYPE_CHECKING:
    import onnx


def remove(channels: Channels, kept: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph with only the positions ``kept`` of each group named there; groups not named stay whole.

    Weights are cut, not changed: what the network loses is for `reconstruct` to mend. Tensors keep their names. Raises
    `InputError` for an unknown group or a position it does not have, and for a group that would vanish.
    """
    _check(channels.groups, kept)
    return _Surgeon(channels=channels, removed=removed_units(channels, kept)).operate()


def _check(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> None:
    sizes = {group.name: group.size for group in groups}
    for name, positions in kept.items():
        if name not in sizes:
            raise InputError(f"there is no group of channels {name!r}", remedy=f"known: {', '.join(sizes) or 'none'}")
        if any(not 0 <= position < sizes[name] for position in positions):
            raise InputError(f"group {name!r} has {sizes[name]} channels, and position {max(positions)} was asked for")


@dataclass(slots=True, kw_only=True)
class _Surgeon:
    channels: Channels
    removed: npt.NDArray[np.int64]
    #: Constants of the new graph, and nodes.
    constants: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def operate(self) -> onnx.ModelProto:
        import onnx

        old = self.channels.graph.model
        for name, array in self.channels.graph.constants.items():
            self.constants[name] = self._cut(name, array)
        for node in self.channels.graph.nodes:
            if node.op_type == "Constant" and node.output[0] in self.constants:
                continue
            self.nodes.append(self._adapted(node))
        used = {name for node in self.nodes for name in node.input} | set(self.channels.graph.outputs)
        graph = onnx.helper.make_graph(
            self.nodes,
            old.graph.name,
            list(old.graph.input),
            list(old.graph.output),
            [onnx.numpy_helper.from_array(a, name) for name, a in self.constants.items() if name in used],
        )
        model = onnx.helper.make_model(graph, opset_imports=list(old.opset_import), producer_name="edgecompile")
        model.ir_version = old.ir_version
        model.functions.extend(old.functions)
        return _checked(model)

    # -- what stays

    def _keep(self, name: str) -> tuple[npt.NDArray[np.bool_] | None, ...]:
        return self.channels.keep(name, self.removed)

    def _cut(self, name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        for axis, keep in enumerate(self._keep(name)):
            if keep is not None and not keep.all():
                array = np.compress(keep, array, axis)
        return array if array.ndim == 0 else np.ascontiguousarray(array)

    def _shape(self, name: str) -> Shape:
        old = self.channels.graph.shapes[name]
        kept = self._keep(name)
        return tuple(n if keep is None else int(keep.sum()) for n, keep in zip(old, kept, strict=True))

    def _changed(self, name: str) -> bool:
        return self._shape(name) != self.channels.graph.shapes[name]

    # -- nodes

    def _adapted(self, node: onnx.NodeProto) -> onnx.NodeProto:
        import onnx

        new = onnx.NodeProto()
        new.CopyFrom(node)
        names = [name for name in (*node.input, *node.output) if name and name in self.channels.graph.shapes]
        for name in names:
            if 0 in self._shape(name) and 0 not in self.channels.graph.shapes[name]:
                raise InputError(
                    f"no channel would be left in {name!r} of {channel_rules.name_of(node)!r}",
                    remedy="keep at least one channel of every group",
                )
        adapt = _ADAPT.get(node.op_type)
        if adapt is not None and any(self._changed(name) for name in names):
            adapt(self, new)
        return new

    def _ints(self, node: onnx.NodeProto, position: int, values: Sequence[int]) -> None:
        """Give a node its own constant of integers as operand ``position``."""
        name = f"{node.output[0]}_{('shape', 'operand')[position > 1]}{position}_pruned"
        self.constants[name] = np.array(values, np.int64)
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = name

    def convolution(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            old = self.channels.graph.shapes[node.input[0]][1]
            if attribute.name == "group" and attribute.i > 1 and attribute.i == old:
                attribute.i = self._shape(node.input[0])[1]

    def reshape(self, node: onnx.NodeProto) -> None:
        if node.op_type != "Reshape":
            return
        self._ints(node, 1, self._shape(node.output[0]))
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(attribute)

    def expand(self, node: onnx.NodeProto) -> None:
        self._ints(node, 1, self._shape(node.output[0]))

    def resize(self, node: onnx.NodeProto) -> None:
        if len(node.input) > 3 and node.input[3]:
            sizes = self._shape(node.output[0])
            axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), list(range(len(sizes))))
            self._ints(node, 3, [sizes[axis] for axis in axes])

    def split(self, node: onnx.NodeProto) -> None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        self._ints(node, 1, [self._shape(output)[axis] for output in node.output])
        for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
            node.attribute.remove(attribute)

    def slice(self, node: onnx.NodeProto) -> None:
        cuts = channel_rules.slices(self.channels, node)
        assert cuts is not None, "a slice whose operands are computed keeps its channels"
        keeps = self._keep(node.input[0])
        shape = self.channels.graph.shapes[node.input[0]]
        new: list[tuple[int, int, int, int]] = []
        for axis, start, end, step in cuts:
            keep = keeps[axis]
            if keep is not None and step == 1:
                first, last, _ = slice(start, end).indices(shape[axis])
                start, end = int(keep[:first].sum()), int(keep[: max(first, last)].sum())
            new.append((axis, start, end, step))
        for position, field_ in ((1, 1), (2, 2), (3, 0), (4, 3)):
            self._ints(node, position, [cut[field_] for cut in new])

    def gather(self, node: onnx.NodeProto) -> None:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        keep = self._keep(node.input[0])[axis]
        if keep is None or keep.all():
            return
        old = self.channels.graph.constants[node.input[1]].astype(np.int64)
        place = np.cumsum(keep) - 1
        wanted = np.where(old < 0, old + keep.size, old)
        self._ints(node, 1, [int(place[i]) for i in wanted.ravel() if keep[i]])

    def pad(self, node: onnx.NodeProto) -> None:
        amounts = channel_rules.pads_of(self.channels, node)
        assert amounts is not None, "a pad whose operands are computed keeps its channels"
        begins, ends = [], []
        for (before, after), keep in zip(amounts, self._keep(node.output[0]), strict=True):
            begins.append(before if keep is None else int(keep[:before].sum()))
            ends.append(after if keep is None else int(keep[keep.size - after :].sum()))
        self._ints(node, 1, [*begins, *ends])
        if len(node.input) > 3:
            del node.input[3:]


_ADAPT = {
    "Conv": _Surgeon.convolution,
    "ConvTranspose": _Surgeon.convolution,
    "Reshape": _Surgeon.reshape,
    "Expand": _Surgeon.expand,
    "Resize": _Surgeon.resize,
    "Split": _Surgeon.split,
    "Slice": _Surgeon.slice,
    "Gather": _Surgeon.gather,
    "Pad": _Surgeon.pad,
}


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of all tensors. What does not fit together here is a fault of ours."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, check_type=True)
        onnx.checker.check_model(inferred)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as exc:
        raise UnsupportedModelError(
            f"the pruned graph does not fit together: {exc}", remedy="build without pruning (--no-prune)"
        ) from exc
    return inferred


def grid(size: int, tile: int) -> tuple[int, ...]:
    """The channel counts worth trying: multiples of ``tile`` below ``size``, and ``size`` itself."""
    return (*range(tile, size, tile), size) if size > tile else (size,)


def parameters(model: onnx.ModelProto) -> int:
    """How many float weights a graph has."""
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in (1, 10, 11))
