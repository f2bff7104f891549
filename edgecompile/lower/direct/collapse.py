"""Operators of higher rank than a kernel takes, done on fewer axes: neighbouring axes that are treated alike are one.

Before::  Add(x [2,3,4,5,6,7], y [1,1,4,5,6,7])      After::  Reshape(Add(x' [6,840], y' [1,840]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Op, Shape, Value


def groups(op: Op, inputs: Sequence[Value]) -> list[list[int]] | None:
    """Which axes may be one, in order; ``None`` for an operator that cannot be done so."""
    rank = max(v.rank for v in inputs)
    if isinstance(op, ir.Binary | ir.Compare | ir.Select | ir.PRelu):
        full = [v for v in inputs if v.rank == rank]
        widest = [max(v.shape[axis] for v in full) for axis in range(rank)]
        kinds = [tuple(v.shape[axis] == widest[axis] for v in full) for axis in range(rank)]
        kinds = [kinds[axis] if widest[axis] > 1 else (True,) for axis in range(rank)]
        return _runs(kinds, joins=[widest[axis] == 1 for axis in range(rank)])
    x = inputs[0]
    if isinstance(op, ir.Slice):
        whole = [op.begin[a] == 0 and op.size[a] == x.shape[a] and op.strides[a] == 1 for a in range(rank)]
        return _runs([(w,) for w in whole], alone=[not w for w in whole])
    if isinstance(op, ir.Pad):
        return _runs([(not any(p),) for p in op.pads], alone=[any(p) for p in op.pads])
    if isinstance(op, ir.Reduce):
        return _runs([(axis in op.axes,) for axis in range(rank)])
    if isinstance(op, _ONE_AXIS):
        return [part for part in ([*range(op.axis)], [op.axis], [*range(op.axis + 1, rank)]) if part]
    if isinstance(op, ir.FullyConnected):
        return [[*range(rank - 1)], [rank - 1]]
    return None


#: Operators on one axis.
_ONE_AXIS = (ir.Concat, ir.Softmax, ir.Split)


def _runs(
    kinds: list[tuple[bool, ...]], *, alone: list[bool] | None = None, joins: list[bool] | None = None
) -> list[list[int]]:
    """Neighbours of one kind together; those that stand ``alone`` never; those that ``join`` go with anything."""
    found: list[list[int]] = []
    current: tuple[bool, ...] | None = None
    for axis, kind in enumerate(kinds):
        if joins is not None and joins[axis] and found:
            found[-1].append(axis)
        elif found and (kind == current or current is None) and not (alone is not None and alone[axis]):
            found[-1].append(axis)
            current = kind
        else:
            found.append([axis])
            current = None if joins is not None and joins[axis] else kind
    return found


def merged(shape: Shape, parts: Sequence[Sequence[int]]) -> Shape:
    """A shape with each group of axes as one."""
    return tuple(prod(shape[axis] for axis in part) for part in parts)


def merged_op(op: Op, inputs: Sequence[Value], parts: Sequence[Sequence[int]]) -> Op:
    """The operator with its attributes for the merged axes."""
    if isinstance(op, ir.Slice):
        begin = tuple(op.begin[part[0]] if len(part) == 1 else 0 for part in parts)
        strides = tuple(op.strides[part[0]] if len(part) == 1 else 1 for part in parts)
        return replace(op, begin=begin, size=merged(op.size, parts), strides=strides)
    if isinstance(op, ir.Pad):
        return replace(op, pads=tuple(op.pads[part[0]] if len(part) == 1 else (0, 0) for part in parts))
    if isinstance(op, ir.Reduce):
        return replace(op, axes=tuple(i for i, part in enumerate(parts) if part[0] in op.axes))
    if isinstance(op, _ONE_AXIS):
        return replace(op, axis=list(parts).index([op.axis]))
    return op
