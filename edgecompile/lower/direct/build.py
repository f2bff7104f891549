"""What handlers of ONNX operators work with: the node, typed, and a builder of IR."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from edgecompile.lower.direct import collapse, ir, support
from edgecompile.lower.direct.infer import broadcast, infer
from edgecompile.lower.direct.ir import Array, Graph, IRError, Node, Op, Shape, Value, identity

#: A constant larger than this is not computed: no model for a small device has one, a hostile file may.
MAX_ELEMENTS = 1 << 28


class RefusedError(Exception):
    """A construct that is not lowered exactly; the message says which and why."""


class OnnxNode:
    """An ONNX node: its attributes by type, and its operands as values (``None`` where an optional one is absent)."""

    def __init__(self, proto: Any, inputs: Sequence[Value | None], opset: int) -> None:
        self.op_type: str = proto.op_type
        self.name: str = proto.name
        self.outputs: tuple[str, ...] = tuple(proto.output)
        self.inputs = tuple(inputs)
        self.opset = opset
        self._attributes = {a.name: a for a in proto.attribute}

    def operand(self, index: int) -> Value | None:
        """An optional operand."""
        return self.inputs[index] if index < len(self.inputs) else None

    def required(self, index: int) -> Value:
        """An operand that must be there."""
        value = self.operand(index)
        if value is None:
            raise RefusedError(f"operand {index} is missing")
        return value

    def constant(self, index: int, what: str) -> Array | None:
        """An optional operand that must be known now; ``what`` names it in the message."""
        value = self.operand(index)
        if value is None:
            return None
        if value.data is None:
            raise RefusedError(f"its {what} is computed at run time")
        return value.data

    def ints_operand(self, index: int, what: str) -> tuple[int, ...] | None:
        """An optional operand of integers that must be known now."""
        data = self.constant(index, what)
        if data is None:
            return None
        if data.dtype.kind not in "iu":
            raise RefusedError(f"its {what} is of type {data.dtype}")
        return tuple(int(i) for i in data.reshape(-1))

    def has(self, name: str) -> bool:
        return name in self._attributes

    def _attribute(self, name: str, kind: int, what: str) -> Any:
        attribute = self._attributes[name]
        if attribute.type != kind:
            raise RefusedError(f"attribute {name!r} is not {what}")
        return attribute

    def integer(self, name: str, default: int) -> int:
        return int(self._attribute(name, 2, "an integer").i) if name in self._attributes else default

    def flag(self, name: str, *, default: bool = False) -> bool:
        """An integer attribute that is 0 or 1: of other numbers, every runtime makes something else."""
        value = self.integer(name, int(default))
        if value not in (0, 1):
            raise RefusedError(f"its {name} is {value}")
        return bool(value)

    def number(self, name: str, default: float) -> float:
        return float(self._attribute(name, 1, "a number").f) if name in self._attributes else default

    def text(self, name: str, default: str) -> str:
        if name not in self._attributes:
            return default
        return str(self._attribute(name, 3, "text").s.decode(errors="replace"))

    def ints(self, name: str) -> tuple[int, ...] | None:
        if name not in self._attributes:
            return None
        return tuple(int(i) for i in self._attribute(name, 7, "a list of integers").ints)

    def floats(self, name: str) -> tuple[float, ...] | None:
        if name not in self._attributes:
            return None
        return tuple(float(f) for f in self._attribute(name, 6, "a list of numbers").floats)

    def strings(self, name: str) -> tuple[str, ...] | None:
        if name not in self._attributes:
            return None
        return tuple(s.decode(errors="replace") for s in self._attribute(name, 8, "a list of texts").strings)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises `RefusedError` when there is no such axis."""
    if not -rank <= axis < rank:
        raise RefusedError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


class Builder:
    """Adds IR operators for one ONNX node after the other; inferred shapes come from `infer`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stem = ""
        self.origin = ("", "")
        #: Names of the values that were made since this was last cleared.
        self.made: set[str] = set()

    def add(self, op: Op, *inputs: Value) -> Value:
        """The one result of an operator. Raises `RefusedError` when the operands do not fit it."""
        return self.add_all(op, *inputs)[0]

    def add_all(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        """All results of an operator."""
        try:
            results = infer(op, inputs)
        except IRError as exc:
            raise RefusedError(str(exc)) from exc
        if any(prod(shape) == 0 for shape, _ in results):
            return tuple(self._without_elements(shape, dtype) for shape, dtype in results)
        limit = support.max_rank(op, inputs)
        if limit is not None and max(v.rank for v in inputs) > limit:
            made = self._on_fewer_axes(op, inputs, results[0][0], limit)
            return tuple(self.reshape(v, shape) for v, (shape, _) in zip(made, results, strict=True))
        reason = support.fault(op, inputs)
        if reason is not None:
            raise RefusedError(reason)
        values = []
        for shape, dtype in results:
            if prod(shape) > MAX_ELEMENTS:
                raise RefusedError(f"it makes a tensor of {prod(shape)} elements")
            name = self.graph.fresh(f"{self.stem}/{type(op).__name__.lower()}")
            values.append(self.graph.add_value(Value(name=name, shape=shape, dtype=dtype, layout=identity(len(shape)))))
        names = tuple(v.name for v in values)
        self.made.update(names)
        self.graph.add(Node(op=op, inputs=tuple(v.name for v in inputs), outputs=names, origin=self.origin))
        return tuple(values)

    def _without_elements(self, shape: Shape, dtype: str) -> Value:
        """A tensor without elements is known, whatever makes it."""
        if prod(shape):
            raise RefusedError("some of its results have no elements")
        return self.constant(np.zeros(shape), dtype)

    def _on_fewer_axes(self, op: Op, inputs: Sequence[Value], shape: Shape, limit: int) -> tuple[Value, ...]:
        """The results, on fewer axes, of an operator of a higher rank than its kernel takes."""
        if isinstance(op, ir.MatMul):
            batch = prod(shape[:-2])
            return self.add_all(op, *(self.reshape(v, (batch, *v.shape[-2:])) for v in inputs))
        parts = collapse.groups(op, inputs)
        if isinstance(op, ir.Binary | ir.Compare | ir.Select) and (parts is None or len(parts) > limit):
            # Operands of one shape are no matter of rank.
            return self.add_all(op, *(self.expand(v, shape) for v in inputs))
        if parts is None or len(parts) > limit:
            raise RefusedError(f"TFLite's {type(op).__name__} takes rank {limit} at most, not {len(shape)}")
        rank = max(v.rank for v in inputs)
        small = [self.reshape(v, collapse.merged(v.shape, parts)) if v.rank == rank else v for v in inputs]
        return self.add_all(collapse.merged_op(op, inputs, parts), *small)

    def constant(self, data: Any, dtype: str) -> Value:
        """A new constant."""
        return self.graph.constant(np.asarray(data, dtype=dtype), f"{self.stem}/constant")

    def scalar(self, data: float, like: Value) -> Value:
        """A constant of rank 0 with ``like``'s type."""
        return self.constant(data, like.dtype)

    # -- shapes: of constants, the result is a constant

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        shape = tuple(int(d) for d in shape)
        if x.shape == shape:
            return x
        if x.data is not None and prod(shape) == x.data.size:
            return self.constant(x.data.reshape(shape), x.dtype)
        return self.add(ir.Reshape(shape=shape), x)

    def transpose(self, x: Value, permutation: Sequence[int]) -> Value:
        permutation = tuple(permutation)
        if permutation == identity(x.rank):
            return x
        if x.data is not None and sorted(permutation) == list(range(x.rank)):
            return self.constant(x.data.transpose(permutation), x.dtype)
        return self.add(ir.Transpose(permutation=permutation), x)

    def with_rank(self, x: Value, rank: int) -> Value:
        """``x`` with axes of size 1 in front, as broadcasting puts them."""
        return self.reshape(x, (1,) * (rank - x.rank) + x.shape)

    def broadcastable(self, *values: Value) -> tuple[Value, ...]:
        """The values with equal ranks: XNNPACK fails on some operands that have fewer axes than the other."""
        rank = max(v.rank for v in values)
        try:
            broadcast(*(v.shape for v in values))
        except IRError as exc:
            raise RefusedError(str(exc)) from exc
        return tuple(self.with_rank(value, rank) for value in values)

    def binary(self, kind: ir.BinaryKind, a: Value, b: Value) -> Value:
        return self.add(ir.Binary(kind=kind), *self.broadcastable(a, b))

    def expand(self, x: Value, shape: Shape) -> Value:
        """``x`` broadcast to ``shape``."""
        x = self.with_rank(x, len(shape))
        if x.shape == shape:
            return x
        if x.data is not None:
            return self.constant(np.broadcast_to(x.data, shape), x.dtype)
        return self.add(ir.BroadcastTo(shape=shape), x)

    def unary(self, kind: ir.UnaryKind, x: Value) -> Value:
        return self.add(ir.Unary(kind=kind), x)

    def pad(self, x: Value, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Value:
        """``x`` with a constant border; none where all pads are 0."""
        if not any(map(any, pads)):
            return x
        return self.add(ir.Pad(pads=tuple(pads), value=value), x)

    def slice(self, x: Value, axis: int, begin: int, end: int, stride: int = 1) -> Value:
        """``x[begin:end:stride]`` on one axis, with a positive stride."""
        size = list(x.shape)
        size[axis] = -(-(end - begin) // stride)
        if size[axis] == x.shape[axis]:
            return x
        begins = [0] * x.rank
        begins[axis] = begin
        strides = [1] * x.rank
        strides[axis] = stride
        return self.add(ir.Slice(begin=tuple(begins), size=tuple(size), strides=tuple(strides)), x)


def full_shape(shape: Shape, rank: int) -> Shape:
    """``shape`` with ones in front."""
    return (1,) * (rank - len(shape)) + shape
