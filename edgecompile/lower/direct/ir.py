"""The typed IR: a graph of operators that speak of *logical* axes, over tensors that carry an explicit layout.

A tensor's logical shape is the one the ONNX model gives it. Its layout says how it lies in memory: physical axis ``i``
holds logical axis ``layout[i]``, so an image that is logically ``N, C, H, W`` and lies channels-last has the layout
``(0, 2, 3, 1)``. Operators' attributes (axes, permutations, pads) are always logical. What an operator means therefore
never depends on a layout, and a layout may be chosen, or changed, without touching what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Shape: TypeAlias = tuple[int, ...]
Layout: TypeAlias = tuple[int, ...]
Array: TypeAlias = npt.NDArray[Any]
Activation: TypeAlias = Literal["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]
Padding: TypeAlias = Literal["SAME", "VALID"]

CHANNELS_LAST: Layout = (0, 2, 3, 1)


def identity(rank: int) -> Layout:
    """The layout in which memory order is logical order."""
    return tuple(range(rank))


def inverse(permutation: Iterable[int]) -> Layout:
    """The permutation that undoes ``permutation``."""
    listed = list(permutation)
    found = [0] * len(listed)
    for place, axis in enumerate(listed):
        found[axis] = place
    return tuple(found)


# ------------------------------------------------------------------------------------------------------ operators


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """An operator with its attributes; what it takes and gives is in the comment of each class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2D(Op):
    """``x [N,C,H,W], w [O,C/groups,kh,kw], b [O] -> [N,O,H',W']``; the number of groups follows from the shapes."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: Padding = "VALID"
    activation: Activation = "NONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseConv2D(Op):
    """``x [N,C,H,W], w [C*m,1,kh,kw], b [C*m] -> [N,C*m,H',W']``."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: Padding = "VALID"
    activation: Activation = "NONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransposeConv2D(Op):
    """``x [N,C,H,W], w [C,O,kh,kw], b [O] -> [N,O,*size]``.

    The full result is ``(H-1)*s+kh`` by ``(W-1)*s+kw``. VALID is all of it; SAME crops it to ``size``, the odd element
    behind, for sizes with ``ceil(size / s)`` as many places as the input.
    """

    strides: tuple[int, int]
    size: tuple[int, int]
    padding: Padding = "VALID"


@dataclass(frozen=True, slots=True, kw_only=True)
class FullyConnected(Op):
    """``x [...,K], w [M,K], b [M] -> [...,M]``."""

    activation: Activation = "NONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul(Op):
    """``a [...,M,K], b [...,K,N] -> [...,M,N]`` over equal batch axes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool2D(Op):
    """``x [N,C,H,W] -> [N,C,H',W']``; padded places count neither for the maximum nor for the average."""

    kind: Literal["MAX", "AVERAGE"]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Padding = "VALID"
    activation: Activation = "NONE"


UnaryKind: TypeAlias = Literal[
    "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "LOGISTIC", "TANH", "HARD_SWISH", "ELU", "ABS", "NEG", "EXP", "LOG",
    "SQRT", "RSQRT", "SQUARE", "SIN", "COS", "FLOOR", "CEIL", "ROUND", "SIGN", "LOGICAL_NOT", "ERF",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Unary(Op):
    """``x -> f(x)``, elementwise. TFLite has no ERF: what a pass does not recognize with it is written out."""

    kind: UnaryKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakyRelu(Op):
    """``x -> x if x > 0 else alpha * x``."""

    alpha: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gelu(Op):
    """``x -> x * Phi(x)``, or its approximation by tanh."""

    approximate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PRelu(Op):
    """``x, slope -> x if x > 0 else slope * x``; the slope has x's rank and broadcasts to it."""


BinaryKind: TypeAlias = Literal[
    "ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "FLOOR_DIV", "FLOOR_MOD",
    "LOGICAL_AND", "LOGICAL_OR",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary(Op):
    """``a, b -> f(a, b)`` with broadcasting; both have the output's rank."""

    kind: BinaryKind
    activation: Activation = "NONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare(Op):
    """``a, b -> bool``; ranks as for `Binary`."""

    kind: Literal["EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Select(Op):
    """``condition, a, b -> a where condition else b``; ranks as for `Binary`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast(Op):
    """``x -> x`` as another type."""

    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax(Op):
    """``x -> softmax(x)`` along ``axis``; ``log`` takes the logarithm of it."""

    axis: int
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduce(Op):
    """``x -> x`` reduced over ``axes``."""

    kind: Literal["MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"]
    axes: tuple[int, ...]
    keepdims: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgReduce(Op):
    """``x -> int64`` index of the first largest or smallest value along ``axis``, which goes away."""

    kind: Literal["ARG_MAX", "ARG_MIN"]
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK(Op):
    """``x -> values, int32 indices`` of the ``k`` largest along ``axis``, largest first."""

    axis: int
    k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CumSum(Op):
    """``x -> `` running sum along ``axis``."""

    axis: int
    exclusive: bool = False
    reverse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat(Op):
    """``x, y, ... -> `` joined along ``axis``."""

    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Op):
    """``x -> parts`` of ``sizes`` along ``axis``."""

    axis: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Op):
    """``x -> x[begin::stride]`` with ``size`` elements on each axis; strides may be negative."""

    begin: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Op):
    """``x -> x`` with ``pads[axis] = (before, after)`` more elements of one value."""

    pads: tuple[tuple[int, int], ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshape(Op):
    """``x -> x`` with another shape, in logical row-major order."""

    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Transpose(Op):
    """``x -> y`` with ``y``'s logical axis ``i`` being ``x``'s ``permutation[i]``; usually only layouts change."""

    permutation: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayout(Op):
    """``x -> x``, the same logical tensor in another layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather(Op):
    """``x, indices -> x`` taken along ``axis``; the axis is replaced by the axes of the indices, which are in range."""

    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatherNd(Op):
    """``x, indices [...,k] -> x[indices]``; the indices are in range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile(Op):
    """``x -> x`` repeated ``multiples[axis]`` times along each axis."""

    multiples: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastTo(Op):
    """``x -> x`` broadcast to ``shape``, which has its rank."""

    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(Op):
    """``x [N,C,H,W] -> [N,C,*size]`` by TFLite's definition of these flags."""

    kind: Literal["BILINEAR", "NEAREST_NEIGHBOR"]
    size: tuple[int, int]
    align_corners: bool
    half_pixel_centers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthToSpace(Op):
    """``x [N,C*b*b,H,W] -> [N,C,H*b,W*b]``, the block's place before the channel (ONNX's DCR)."""

    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceToDepth(Op):
    """``x [N,C,H,W] -> [N,C*b*b,H/b,W/b]``, the block's place before the channel."""

    block: int


# ---------------------------------------------------------------------------------------------------------- graph


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Value:
    """A tensor. ``data`` is a constant's array in logical order; ``dtype`` is NumPy's name."""

    name: str
    shape: Shape
    dtype: str
    layout: Layout
    data: Array | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) if self.shape else 1

    @property
    def physical_shape(self) -> Shape:
        """The shape as it lies in memory."""
        return tuple(self.shape[axis] for axis in self.layout)

    @property
    def array(self) -> Array:
        """A constant's array, in logical order."""
        assert self.data is not None, self.name
        return self.data


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One operator in the graph; ``origin`` is the ONNX ``(operator type, node name)`` it comes from."""

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: tuple[str, str]


class IRError(Exception):
    """The IR contradicts itself: a fault of ours, found by `verify`."""


class Graph:
    """Values by name and nodes in execution order, with producers and consumers kept up to date.

    ``inputs`` are value names; ``outputs`` pairs of the model's output name and the value that holds it. ``placed``
    says that layouts have been decided, so that what each operator demands of them is checked too.
    """

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.nodes: dict[Node, None] = {}
        self.inputs: list[str] = []
        self.outputs: list[tuple[str, str]] = []
        self.placed = False
        self._producer: dict[str, Node] = {}
        self._consumers: dict[str, dict[Node, None]] = {}
        self._names = 0

    # -- reading

    def value(self, name: str) -> Value:
        return self.values[name]

    def producer(self, name: str) -> Node | None:
        """The node that makes a value; ``None`` for inputs and constants."""
        return self._producer.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read a value, each once, in the order they were added."""
        return tuple(self._consumers.get(name, ()))

    def is_output(self, name: str) -> bool:
        return any(value == name for _, value in self.outputs)

    def only_consumer(self, name: str) -> Node | None:
        """The one node that reads a value which is not also an output; ``None`` when there is more than that."""
        readers = self._consumers.get(name, {})
        return next(iter(readers)) if len(readers) == 1 and not self.is_output(name) else None

    # -- writing

    def fresh(self, stem: str) -> str:
        """A value name that is not taken."""
        if stem not in self.values:
            return stem
        while True:
            self._names += 1
            name = f"{stem}/{self._names}"
            if name not in self.values:
                return name

    def add_value(self, value: Value) -> Value:
        if value.name in self.values:
            raise IRError(f"two values are named {value.name!r}")
        self.values[value.name] = value
        return value

    def constant(self, data: Array, stem: str) -> Value:
        """A new constant."""
        return self.add_value(
            Value(name=self.fresh(stem), shape=data.shape, dtype=data.dtype.name, layout=identity(data.ndim), data=data)
        )

    def set_layout(self, name: str, layout: Layout) -> None:
        self.values[name] = replace(self.values[name], layout=layout)

    def add(self, node: Node) -> Node:
        for name in node.outputs:
            if name in self._producer:
                raise IRError(f"{name!r} is made twice")
            self._producer[name] = node
        for name in node.inputs:
            self._consumers.setdefault(name, {})[node] = None
        self.nodes[node] = None
        return node

    def remove(self, node: Node) -> None:
        del self.nodes[node]
        for name in node.outputs:
            del self._producer[name]
        for name in dict.fromkeys(node.inputs):
            del self._consumers[name][node]

    def swap(self, old: Node, *, op: Op | None = None, inputs: tuple[str, ...] | None = None) -> Node:
        """Replace a node by one with another operator or other inputs and the same outputs."""
        self.remove(old)
        return self.add(replace(old, op=op or old.op, inputs=old.inputs if inputs is None else inputs))

    def forward(self, old: str, new: str) -> None:
        """Let everything that reads ``old`` read ``new``."""
        for node in self.consumers(old):
            self.swap(node, inputs=tuple(new if name == old else name for name in node.inputs))
        self.outputs = [(name, new if value == old else value) for name, value in self.outputs]

    def rename(self, old: str, new: str) -> None:
        """Give the value ``old``, which a node makes, the free name ``new``."""
        if new in self.values:
            raise IRError(f"two values are named {new!r}")
        self.values[new] = replace(self.values.pop(old), name=new)
        node = self._producer[old]
        self.remove(node)
        self.add(replace(node, outputs=tuple(new if name == old else name for name in node.outputs)))
        self.forward(old, new)

    def sort(self) -> None:
        """Put the nodes into execution order, keeping their order where it is free."""
        done: dict[Node, None] = {}
        for root in list(self.nodes):
            stack: list[tuple[Node, Iterator[str]]] = [(root, iter(root.inputs))] if root not in done else []
            open_nodes = {root}
            while stack:
                node, names = stack[-1]
                maker = next((m for m in map(self._producer.get, names) if m is not None and m not in done), None)
                if maker is None:
                    done[node] = None
                    stack.pop()
                elif maker in open_nodes and any(maker is n for n, _ in stack):
                    raise IRError(f"a cycle through {maker.outputs[0]!r}")
                else:
                    open_nodes.add(maker)
                    stack.append((maker, iter(maker.inputs)))
        self.nodes = done

    def sweep(self) -> None:
        """Remove nodes whose results nobody reads, and values that nothing uses."""
        wanted = {value for _, value in self.outputs}
        stack = [self._producer[name] for name in wanted if name in self._producer]
        live: dict[Node, None] = {}
        while stack:
            node = stack.pop()
            if node not in live:
                live[node] = None
                stack.extend(self._producer[name] for name in node.inputs if name in self._producer)
        for node in [n for n in self.nodes if n not in live]:
            self.remove(node)
        used = wanted | set(self.inputs)
        for node in self.nodes:
            used.update(node.inputs, node.outputs)
        self.values = {name: value for name, value in self.values.items() if name in used}
