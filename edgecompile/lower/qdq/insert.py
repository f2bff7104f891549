"""Places QuantizeLinear/DequantizeLinear pairs where TensorRT fuses them into int8 kernels.

Before: a float graph. After: each Conv, ConvTranspose, Gemm and MatMul with constant float weights reads its data and
its weights through a pair; all int8 is symmetric (zero point 0), weights have a scale a channel, activations one a
tensor, and biases stay float. Further pairs follow from those: the skip input of a residual Add behind a convolution
(the convolution's side stays bare, or the Add could not be fused into it), the inputs of a Concat whose output is
quantized (all with one scale, so that nothing is scaled again), and the inputs of poolings between quantized tensors.
The rules are those of NVIDIA, "Working with Quantized Types" in the TensorRT documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
#: What only moves values: a pair behind it commutes to its front, so that none is needed there.
_MOVING = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity", "DepthToSpace",
    "SpaceToDepth", "Expand", "Tile",
)  # fmt: skip
_AVERAGING = ("AveragePool", "GlobalAveragePool")
_FLOAT = 1
_LARGEST_CODE = 127
#: The smallest scale: what float16 still tells from zero. Trained nets have dead channels of weights near 1e-7, whose
#: scales would vanish in the graph that is otherwise float16.
_SMALLEST_SCALE = 2.0**-24

#: One place where a quantized tensor is read: the node's number and the input's.
Edge = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """Where the pairs go. ``edges`` are the places that read a tensor quantized; ``group`` names the tensors that
    share its scale (by their first); ``weights`` gives a weight's edges with the axis of its scales (``None``: one)."""

    edges: Mapping[str, tuple[Edge, ...]]
    group: Mapping[str, str]
    weights: Mapping[Edge, int | None]
    quantized: tuple[str, ...]
    left_in_float: tuple[str, ...]


def sites(proto: onnx.ModelProto, exclude: Collection[str] = ()) -> Sites:
    """Decide where pairs go. Nodes named in ``exclude`` keep float inputs, whatever their operator."""
    finder = _Finder(proto, exclude)
    finder.run()
    return finder.sites()


class _Finder:
    """One walk over the graph: from the weighted operators back to what feeds them."""

    def __init__(self, proto: onnx.ModelProto, exclude: Collection[str]) -> None:
        self.nodes = list(proto.graph.node)
        self.exclude = set(exclude)
        self.constants = _float_constants(proto)
        self.maker = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, int] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1
        self.outputs = {value.name for value in proto.graph.output}
        self.shapes = _shapes(proto)
        self.edges: dict[str, list[Edge]] = {}
        self.parent: dict[str, str] = {}
        self.weights: dict[Edge, int | None] = {}
        #: Tensors followed back already, and the tensor whose scale each has.
        self.seen: dict[str, str] = {}
        self.depths = self._depths()

    def _depths(self) -> list[int]:
        found: list[int] = []
        for node in self.nodes:
            found.append(1 + max((found[self.maker[n]] for n in node.input if n in self.maker), default=0))
        return found

    def run(self) -> None:
        for i, node in enumerate(self.nodes):
            if self.is_weighted(i) and node.name not in self.exclude:
                self._read_quantized(i, 0)
                self.weights[i, 1] = _channel_axis(node, self.constants[node.input[1]].ndim)
        for i, node in enumerate(self.nodes):
            if node.op_type == "Add" and node.name not in self.exclude:
                self._residual(i)

    def sites(self) -> Sites:
        weighted = [i for i in range(len(self.nodes)) if self.is_weighted(i)]
        done = {i for i, _ in self.weights}
        return Sites(
            edges={name: tuple(sorted(edges)) for name, edges in self.edges.items()},
            group={name: self._root(name) for name in self.edges},
            weights=self.weights,
            quantized=tuple(self.nodes[i].name for i in weighted if i in done),
            left_in_float=tuple(self.nodes[i].name for i in weighted if i not in done),
        )

    def is_weighted(self, index: int) -> bool:
        """A weighted operator whose second input is a constant of floats, and whose first is not."""
        node = self.nodes[index]
        if node.op_type not in WEIGHTED or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            return False
        weight = self.constants.get(node.input[1])
        return weight is not None and weight.ndim >= 2 and node.input[0] not in self.constants

    # ------------------------------------------------------------------------------------ which tensors

    def _read_quantized(self, index: int, place: int) -> None:
        name = self.nodes[index].input[place]
        edges = self.edges.setdefault(name, [])
        if (index, place) not in edges:
            edges.append((index, place))
        self._feed(name, name)

    def _feed(self, name: str, scale_of: str) -> None:
        """Quantize what ``name`` is made of, where its maker runs in int8 between quantized tensors.

        ``scale_of`` is the tensor whose scale ``name`` has: itself, or the one that values were moved to.
        """
        if name in self.seen:
            self._unite(self.seen[name], scale_of)
            return
        self.seen[name] = scale_of
        if name not in self.maker:
            return
        index = self.maker[name]
        node = self.nodes[index]
        if node.name in self.exclude:
            return
        if node.op_type in _MOVING:
            self._feed(node.input[0], scale_of)
        elif node.op_type == "MaxPool":
            self._read_quantized(index, 0)
            self._unite(node.input[0], scale_of)
        elif node.op_type == "Concat":
            for place, source in enumerate(node.input):
                self._read_quantized(index, place)
                self._unite(source, scale_of)
        elif node.op_type in _AVERAGING:
            self._read_quantized(index, 0)

    def _residual(self, index: int) -> None:
        """Quantize the skip input of an Add into which TensorRT can fuse the convolution on the other side."""
        names = self.nodes[index].input
        if names[0] == names[1] or not self._same_shape(names[0], names[1]):
            return
        bare = [place for place in (0, 1) if self._is_fusible_convolution(names[place])]
        if bare:
            # Of two convolutions the later one takes the Add along: the main branch's, not the projection's.
            kept = max(bare, key=lambda place: self.depths[self.maker[names[place]]])
            self._read_quantized(index, 1 - kept)

    def _is_fusible_convolution(self, name: str) -> bool:
        index = self.maker.get(name, -1)
        alone = self.readers.get(name) == 1 and name not in self.outputs
        return alone and (index, 1) in self.weights and self.nodes[index].op_type in _CONVOLUTIONS

    def _same_shape(self, left: str, right: str) -> bool:
        constant = left in self.constants or right in self.constants
        return not constant and self.shapes.get(left) is not None and self.shapes.get(left) == self.shapes.get(right)

    # ------------------------------------------------------------------------------------ which share a scale

    def _root(self, name: str) -> str:
        while self.parent.get(name, name) != name:
            name = self.parent[name]
        return name

    def _unite(self, left: str, right: str) -> None:
        # The alphabetically first stands for the group, so that the order of the walk does not show.
        first, second = sorted((self._root(left), self._root(right)))
        self.parent[second] = first


def _float_constants(proto: onnx.ModelProto) -> dict[str, npt.NDArray[np.float32]]:
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.data_type == _FLOAT}


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The static shapes that are known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    found = {}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(d.dim_value for d in dims)
    return found


def _channel_axis(node: Any, rank: int) -> int | None:
    """The axis of the output channels in a weight; ``None`` for stacked matrices, which take one scale."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if rank == 2 else None


# ------------------------------------------------------------------------------------------------- rewriting


def scales(where: Sites, limits: Mapping[str, float]) -> dict[str, float]:
    """The scale of each quantized tensor from the limits of all: a group takes its largest."""
    largest: dict[str, float] = {}
    for name, group in where.group.items():
        largest[group] = max(largest.get(group, 0.0), limits[name])
    return {name: _scale(largest[group]) for name, group in where.group.items()}


def _scale(limit: float) -> float:
    # A tensor that is always zero is represented by any scale.
    return max(limit / _LARGEST_CODE, _SMALLEST_SCALE) if limit > 1e-30 else 1.0


def insert(proto: onnx.ModelProto, where: Sites, activation_scales: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of the graph with the pairs of ``where``."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    _Inserter(result, where, activation_scales).run()
    return result


class _Inserter:
    """One rewrite in place: new nodes come right before the first that reads them."""

    def __init__(self, proto: onnx.ModelProto, where: Sites, activation_scales: Mapping[str, float]) -> None:
        self.graph = proto.graph
        self.where = where
        self.scales = activation_scales
        self.constants = _float_constants(proto)
        self.taken = {name for node in self.graph.node for name in (*node.input, *node.output, node.name)}
        self.taken |= {tensor.name for tensor in self.graph.initializer}
        self.edge_tensor = {edge: name for name, edges in where.edges.items() for edge in edges}
        self.pairs: dict[tuple[str, int | None, bool], str] = {}
        self.nodes: list[Any] = []

    def run(self) -> None:
        original = [_copy(node) for node in self.graph.node]
        del self.graph.node[:]
        for index, node in enumerate(original):
            for place, name in enumerate(node.input):
                edge = (index, place)
                if edge in self.where.weights:
                    node.input[place] = self._weight(name, self.where.weights[edge])
                elif edge in self.edge_tensor:
                    node.input[place] = self._activation(name)
            self.nodes.append(node)
        self.graph.node.extend(self.nodes)

    def _activation(self, name: str) -> str:
        import numpy as np

        return self._pair(name, np.asarray(self.scales[name], np.float32), None, weight=False)

    def _weight(self, name: str, axis: int | None) -> str:
        import numpy as np

        values = np.abs(self.constants[name])
        others = tuple(i for i in range(values.ndim) if i != axis)
        largest = values.max(axis=others if axis is not None else None)
        fitting = np.maximum(largest / np.float32(_LARGEST_CODE), np.float32(_SMALLEST_SCALE))
        scale = np.where(largest > 1e-30, fitting, np.float32(1.0)).astype(np.float32)
        return self._pair(name, scale, axis, weight=True)

    def _pair(self, name: str, scale: npt.NDArray[np.float32], axis: int | None, *, weight: bool) -> str:
        """Add a pair behind ``name`` once, and give the name of what it makes."""
        import numpy as np
        import onnx

        key = (name, axis, weight)
        if key in self.pairs:
            return self.pairs[key]
        numpy_helper, helper = onnx.numpy_helper, onnx.helper
        scale_name, zero_name = self._new(f"{name}_scale"), self._new(f"{name}_zero_point")
        self.graph.initializer.append(numpy_helper.from_array(scale, scale_name))
        self.graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), zero_name))
        codes, values = self._new(f"{name}_quantized"), self._new(f"{name}_dequantized")
        where = {} if axis is None else {"axis": axis}
        for op, source, target in (("QuantizeLinear", name, codes), ("DequantizeLinear", codes, values)):
            node_name = self._new(f"{name}_{op}")
            self.nodes.append(helper.make_node(op, [source, scale_name, zero_name], [target], name=node_name, **where))
        self.pairs[key] = values
        return values

    def _new(self, wanted: str) -> str:
        name, number = wanted, 1
        while name in self.taken:
            name, number = f"{wanted}_{number}", number + 1
        self.taken.add(name)
        return name


def _copy(node: Any) -> Any:
    import onnx

    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied
