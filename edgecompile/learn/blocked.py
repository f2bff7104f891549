"""Where ONNX Runtime changes layouts on machines whose convolutions want channels in blocks (its "NCHWc").

Convolutions and some operators beside them work on blocks of 8 or 16 channels; all others on NCHW. Between the two
kinds it puts ``ReorderInput`` and ``ReorderOutput``, which cost as much as small operators. Which operators take blocks
was found by reading the graphs that ONNX Runtime 1.23 optimized; a test compares the two on whole nets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgecompile.lower import base
from edgecompile.tables.key import Shape

if TYPE_CHECKING:
    import onnx

#: Activations that a convolution before them takes in, and those that take blocks also by themselves.
_FUSED = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"})
_ON_BLOCKS = frozenset({"Relu", "Sigmoid", "Tanh"})
_POOLS = frozenset({"MaxPool", "AveragePool"})
_GLOBAL_POOLS = frozenset({"GlobalAveragePool", "GlobalMaxPool"})
#: Channels come in fours at least where a convolution is to read a tensor in blocks.
_ALIGNMENT = 4
#: From this opset on its Resize takes no blocks.
_PLAIN_RESIZE = 18
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """What the runtime makes of a graph: the shapes of tensors that are changed into blocks and out of them, and names
    of nodes: additions that a convolution makes along with it, transpositions that are changes of layout now, and
    resizings of blocks."""

    into: tuple[Shape, ...]
    out_of: tuple[Shape, ...]
    added: frozenset[str]
    transposed: frozenset[str]
    resized: frozenset[str]


def layouts(model: onnx.ModelProto, block: int) -> Layouts:
    """The layouts of a prepared, shape-inferred graph where blocks hold ``block`` channels."""
    walk = _Walk.of(model, block)
    for node in model.graph.node:
        walk.visit(node)
    for value in model.graph.output:
        walk.read_plain(value.name)
    return Layouts(
        into=tuple(walk.shapes[name] for name in walk.into),
        out_of=tuple(walk.shapes[name] for name in walk.out_of),
        added=frozenset(walk.added),
        transposed=frozenset(walk.transposed),
        resized=frozenset(walk.resized),
    )


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass over a graph: which tensors are in blocks, and which had to change their layout."""

    block: int
    opset: int
    shapes: Mapping[str, Shape]
    inputs: frozenset[str]
    uses: Counter[str]
    readers: Mapping[str, Sequence[onnx.NodeProto]]
    #: Tensors in blocks; with ``True`` those that a convolution makes which can still add to what it makes.
    blocked: dict[str, bool] = field(default_factory=dict)
    # Dictionaries, since each tensor is changed once, and the order is that of the graph.
    into: dict[str, None] = field(default_factory=dict)
    out_of: dict[str, None] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    transposed: set[str] = field(default_factory=set)
    resized: set[str] = field(default_factory=set)
    #: Tensors within ``x * sigmoid(x)``, which is one operator that takes no blocks.
    gates: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: onnx.ModelProto, block: int) -> _Walk:
        graph = model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        shapes = {v.name: tuple(int(d.dim_value) for d in v.type.tensor_type.shape.dim) for v in values}
        shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        uses = Counter(name for node in graph.node for name in node.input)
        uses.update(value.name for value in graph.output)
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        return cls(
            block=block,
            opset=opset,
            shapes=shapes,
            inputs=frozenset(v.name for v in graph.input),
            uses=uses,
            readers=readers,
        )

    def visit(self, node: onnx.NodeProto) -> None:
        """Take an operator on blocks where the runtime does, else on plain tensors."""
        if not self._rule(node)(node):
            for name in node.input:
                self.read_plain(name)

    def _rule(self, node: onnx.NodeProto) -> Callable[[onnx.NodeProto], bool]:
        op_type = node.op_type
        if op_type == "Conv":
            return self._convolution
        if op_type in _POOLS or op_type in _GLOBAL_POOLS:
            return self._pool
        if op_type in ("Add", "Sum", "Mul"):
            return self._sum
        if op_type in _FUSED or op_type in _ON_BLOCKS:
            return self._activation
        return {"Concat": self._concat, "Resize": self._resize, "Transpose": self._transpose}.get(op_type, _plain)

    def read_plain(self, name: str) -> None:
        """An operator wants the plain tensor."""
        if name in self.blocked:
            self.out_of[name] = None

    def _read_blocks(self, name: str) -> None:
        """An operator wants the tensor in blocks."""
        if name not in self.blocked:
            self.into[name] = None

    def _made(self, node: onnx.NodeProto, *, adds: bool = False) -> bool:
        self.blocked[node.output[0]] = adds
        return True

    def _channels(self, name: str) -> int:
        shape = self.shapes.get(name, ())
        return shape[1] if len(shape) == 4 else 0

    # ------------------------------------------------------------------------------------------ one kind of operator

    def _convolution(self, node: onnx.NodeProto) -> bool:
        weights = self.shapes.get(node.input[1], ())
        channels = self._channels(node.input[0])
        if len(weights) != 4 or not channels:
            return False
        groups, direct = channels // weights[1], channels < self.block
        if groups > 1 and not self._takes_groups(weights, groups):
            return False
        if groups == 1 and not direct and channels % _ALIGNMENT:
            return False
        if groups == 1 and direct:  # its kernel reads few channels as they are
            self.read_plain(node.input[0])
        else:
            self._read_blocks(node.input[0])
        return self._made(node, adds=True)

    def _takes_groups(self, weights: Shape, groups: int) -> bool:
        if weights[1] == 1 and weights[0] == groups:
            return groups % _ALIGNMENT == 0
        return weights[1] % self.block == 0 and (weights[0] // groups) % self.block == 0

    def _pool(self, node: onnx.NodeProto) -> bool:
        name = node.input[0]
        channels = self._channels(name)
        if not channels or channels % self.block or len(node.output) > 1:
            return False
        if node.op_type in _GLOBAL_POOLS and name not in self.blocked and name not in self.inputs:
            return False
        self._read_blocks(name)
        return self._made(node)

    def _sum(self, node: onnx.NodeProto) -> bool:
        if self._is_gate(node):
            return False
        shapes = {self.shapes.get(name) for name in node.input}
        if len(shapes) > 1 or any(name not in self.blocked for name in node.input):
            return False
        joined = node.op_type != "Mul" and any(self.blocked[name] and self.uses[name] == 1 for name in node.input)
        if joined:
            self.added.add(node.name)
        return self._made(node)

    def _activation(self, node: onnx.NodeProto) -> bool:
        name = node.input[0]
        if self._opens_gate(node):
            self.gates.add(node.output[0])
            return False
        if name not in self.blocked:
            return False
        joined = self.blocked[name] and self.uses[name] == 1
        if node.op_type not in _ON_BLOCKS and not joined:
            return False
        return self._made(node)

    def _opens_gate(self, node: onnx.NodeProto) -> bool:
        """Whether it is the sigmoid of ``x * sigmoid(x)``."""
        if node.op_type != "Sigmoid" or self.uses[node.output[0]] != 1:
            return False
        after = self.readers.get(node.output[0], [])
        return bool(after) and after[0].op_type == "Mul" and node.input[0] in after[0].input

    def _is_gate(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Mul" and any(name in self.gates for name in node.input)

    def _concat(self, node: onnx.NodeProto) -> bool:
        whole = all(name in self.blocked and self._channels(name) % self.block == 0 for name in node.input)
        return base.integers(node, "axis") == [1] and whole and self._made(node)

    def _resize(self, node: onnx.NodeProto) -> bool:
        name = node.input[0]
        before, after = self.shapes.get(name, ()), self.shapes.get(node.output[0], ())
        if (
            self.opset >= _PLAIN_RESIZE
            or name not in self.blocked
            or not before
            or not after
            or before[:2] != after[:2]
        ):
            return False
        if any(large % small for small, large in zip(before[2:], after[2:], strict=True)):
            return False
        self.resized.add(node.name)
        return self._made(node)

    def _transpose(self, node: onnx.NodeProto) -> bool:
        order = base.integers(node, "perm")
        if order == _TO_CHANNELS_LAST and node.input[0] in self.blocked:
            self.transposed.add(node.name)
            self.out_of[node.input[0]] = None
            return True
        if order == _TO_CHANNELS_FIRST and self._only_for_convolutions(node.output[0]):
            self.transposed.add(node.name)  # reading it in blocks is counted where that is done
        return False

    def _only_for_convolutions(self, name: str) -> bool:
        readers = self.readers.get(name, [])
        blocks = self._channels(name) >= self.block and self._channels(name) % _ALIGNMENT == 0
        return blocks and len(readers) == self.uses[name] and all(node.op_type == "Conv" for node in readers)


def _plain(node: onnx.NodeProto) -> bool:
    return False
