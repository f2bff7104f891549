"""Operators that change a tensor's shape and none of its elements."""

from __future__ import annotations

from math import prod

import numpy as np

from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError, axis_of
from edgecompile.lower.direct.infer import broadcast
from edgecompile.lower.direct.ir import IRError, Value
from edgecompile.lower.direct.read import Handler


def _reshape(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    wanted = node.ints("shape") if node.opset < 5 else node.ints_operand(1, "shape")
    if wanted is None:
        raise RefusedError("it has no shape")
    shape = list(wanted)
    if not node.flag("allowzero"):
        shape = [x.shape[i] if d == 0 and i < x.rank else d for i, d in enumerate(shape)]
    if shape.count(-1) == 1:
        rest = prod(d for d in shape if d != -1)
        if rest <= 0 or x.elements % rest:
            raise RefusedError(f"cannot reshape {x.shape} to {tuple(wanted)}")
        shape[shape.index(-1)] = x.elements // rest
    if prod(shape) != x.elements or min(shape, default=1) < 0:
        raise RefusedError(f"cannot reshape {x.shape} to {tuple(wanted)}")
    return b.reshape(x, shape)


def _flatten(b: Builder, node: OnnxNode) -> Value:
    x, axis = node.required(0), node.integer("axis", 1)
    if not -x.rank <= axis <= x.rank:
        raise RefusedError(f"axis {axis} of {x.shape}")
    axis += x.rank if axis < 0 else 0
    return b.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))


def _axes(node: OnnxNode) -> tuple[int, ...] | None:
    return node.ints("axes") if node.opset < 13 else node.ints_operand(1, "axes")


def _squeeze(b: Builder, node: OnnxNode) -> Value:
    x, axes = node.required(0), _axes(node)
    if axes is None:
        return b.reshape(x, [d for d in x.shape if d != 1])
    dropped = {axis_of(axis, x.rank) for axis in axes}
    if any(x.shape[axis] != 1 for axis in dropped):
        raise RefusedError(f"axes {axes} of {x.shape} are not all of size 1")
    return b.reshape(x, [d for axis, d in enumerate(x.shape) if axis not in dropped])


def _unsqueeze(b: Builder, node: OnnxNode) -> Value:
    x, axes = node.required(0), _axes(node)
    if axes is None:
        raise RefusedError("it has no axes")
    rank = x.rank + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    if len(new) != len(axes):
        raise RefusedError(f"axes {axes} are not all different")
    old = iter(x.shape)
    return b.reshape(x, [1 if axis in new else next(old) for axis in range(rank)])


def _transpose(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    permutation = node.ints("perm")
    if permutation is None:
        permutation = tuple(reversed(range(x.rank)))
    return b.transpose(x, permutation)


def _expand(b: Builder, node: OnnxNode) -> Value:
    x, shape = node.required(0), node.ints_operand(1, "shape")
    if shape is None:
        raise RefusedError("it has no shape")
    try:
        wanted = broadcast(x.shape, shape)
    except (IRError, ValueError) as exc:
        raise RefusedError(f"{x.shape} does not expand to {shape}") from exc
    return b.expand(x, wanted)


def _shape(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    end = node.integer("end", x.rank)
    return b.constant(np.array(x.shape, np.int64)[node.integer("start", 0) : end], "int64")


def _size(b: Builder, node: OnnxNode) -> Value:
    return b.constant(node.required(0).elements, "int64")


HANDLERS: dict[str, Handler] = {
    "Expand": _expand,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
