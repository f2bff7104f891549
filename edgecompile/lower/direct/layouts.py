"""What each operator demands of the layouts of its operands, and what layout its results then have.

A rule is asked with a hint: "this operand lies like that", or "this result should lie like that". It answers with a
placement: layouts of all operands and results that the runtime's kernel can work on, with no data moved. Nothing is
decided from sizes, except that an axis of size 1 may stand anywhere, and that a reshape is by definition about sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import CHANNELS_LAST, Graph, IRError, Layout, Node, Op, Shape, Value, identity, inverse


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Layouts of a node's operands and results."""

    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """How operand ``source`` lies and how result ``target`` should lie, each as ``(index, layout)``."""

    source: tuple[int, Layout] | None = None
    target: tuple[int, Layout] | None = None


_Rule: TypeAlias = Callable[[Any, Sequence[Value], Sequence[Value], Hint], Placement | None]


def place(node: Node, inputs: Sequence[Value], outputs: Sequence[Value], hint: Hint) -> Placement | None:
    """A placement of ``node`` that follows the hint as far as it can; ``None`` when the hint is of no use to it."""
    return _RULES[type(node.op)](node.op, inputs, outputs, hint)


def check(graph: Graph, node: Node) -> None:
    """Raise `IRError` when the layouts around ``node`` are not a placement of it."""
    inputs = [graph.values[name] for name in node.inputs]
    outputs = [graph.values[name] for name in node.outputs]
    actual = Placement(inputs=tuple(v.layout for v in inputs), outputs=tuple(v.layout for v in outputs))
    if isinstance(node.op, ir.Relayout):
        return
    hint = Hint(source=(0, actual.inputs[0]), target=(0, actual.outputs[0]))
    hints = [hint, *(Hint(source=(i, layout)) for i, layout in enumerate(actual.inputs))]
    if not any(place(node, inputs, outputs, h) == actual for h in hints):
        raise IRError(f"{node.op} of {[v.shape for v in inputs]} cannot work on the layouts {actual}")


def same_order(shape: Shape, a: Layout, b: Layout) -> bool:
    """Whether two layouts put the elements of ``shape`` in the same order: they differ in axes of size 1 at most."""
    return [axis for axis in a if shape[axis] != 1] == [axis for axis in b if shape[axis] != 1]


def works_alike(op: Op) -> bool:
    """Whether an operator works in any layout, with all its operands and results in the same one."""
    return _RULES[type(op)] is _common or (isinstance(op, ir.Reduce) and op.keepdims)


def usual(shape: Shape, layout: Layout) -> Layout:
    """The layout of the same order in which axes of size 1 stand where they usually do."""
    return _with_unit_axes([axis for axis in layout if shape[axis] != 1], shape)


def with_last(layout: Layout, axis: int) -> Layout:
    """``layout`` with ``axis`` innermost."""
    return (*(a for a in layout if a != axis), axis)


# ---------------------------------------------------------------------------------------------------------- rules


def _fixed(*inputs: Layout, output: Layout) -> _Rule:
    placement = Placement(inputs=inputs, outputs=(output,))
    return lambda op, ins, outs, hint: placement


def _hinted(ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Layout:
    """The layout that the hint speaks of, where it has the result's rank; else the logical one."""
    rank = outs[0].rank
    for side in (hint.source, hint.target):
        if side is not None and len(side[1]) == rank:
            return side[1]
    return identity(rank)


def _common(op: Op, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    """All operands and results lie alike."""
    layout = _hinted(ins, outs, hint)
    return Placement(inputs=(layout,) * len(ins), outputs=(layout,) * len(outs))


def _axis_last(op: Any, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    layout = with_last(_hinted(ins, outs, hint), op.axis)
    return Placement(inputs=(layout,), outputs=(layout,) * len(outs))


def _fully_connected(op: Op, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    layout = with_last(_hinted(ins, outs, hint), outs[0].rank - 1)
    return Placement(inputs=(layout, (0, 1), (0,)), outputs=(layout,))


def _matmul(op: Op, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    """Batch axes outermost and alike; the second operand may lie transposed, which the kernel undoes."""
    rank = outs[0].rank
    batch = tuple(axis for axis in _hinted(ins, outs, hint) if axis < rank - 2)
    plain, swapped = (*batch, rank - 2, rank - 1), (*batch, rank - 1, rank - 2)
    second = ins[1].layout
    transposed = second.index(rank - 2) > second.index(rank - 1)
    return Placement(inputs=(plain, swapped if transposed else plain), outputs=(plain,))


def _reduce(op: ir.Reduce, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement | None:
    if op.keepdims:
        return _common(op, ins, outs, hint)
    return _dropping(op.axes, ins, hint)


def _arg_reduce(op: ir.ArgReduce, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement | None:
    return _dropping((op.axis,), ins, hint)


def _dropping(axes: tuple[int, ...], ins: Sequence[Value], hint: Hint) -> Placement | None:
    kept = [axis for axis in range(ins[0].rank) if axis not in axes]
    if hint.source is not None:
        layout = hint.source[1]
    elif hint.target is not None:
        layout = (*(kept[axis] for axis in hint.target[1]), *axes)
    else:
        layout = identity(ins[0].rank)
    return Placement(inputs=(layout,), outputs=(tuple(kept.index(axis) for axis in layout if axis in kept),))


def _gather(op: ir.Gather, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    x, indices = ins
    layout = hint.source[1] if hint.source is not None and hint.source[0] == 0 else identity(x.rank)
    result: list[int] = []
    for axis in layout:
        if axis == op.axis:
            result.extend(range(axis, axis + indices.rank))
        else:
            result.append(axis if axis < op.axis else axis + indices.rank - 1)
    return Placement(inputs=(layout, identity(indices.rank)), outputs=(tuple(result),))


def _transpose(op: ir.Transpose, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    if hint.source is None and hint.target is not None:
        source = tuple(op.permutation[axis] for axis in hint.target[1])
    else:
        source = hint.source[1] if hint.source is not None else identity(ins[0].rank)
    back = inverse(op.permutation)
    return Placement(inputs=(source,), outputs=(tuple(back[axis] for axis in source),))


def _reshape(op: ir.Reshape, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement | None:
    """Before: any layout in which each group of axes that is merged or split lies together, in order."""
    old, new = ins[0].shape, outs[0].shape
    if hint.source is not None:
        nearest = hint.source[1]
        nearest = nearest if carry(nearest, old, new) is not None else _gathered(nearest, old, new)
        moved = carry(nearest, old, new)
        if moved is None:
            return None
        wanted = hint.target is not None and same_order(new, hint.target[1], moved)
        return Placement(inputs=(nearest,), outputs=(hint.target[1] if wanted and hint.target else moved,))
    if hint.target is not None:
        source = carry(hint.target[1], new, old)
        return None if source is None else Placement(inputs=(source,), outputs=(hint.target[1],))
    return Placement(inputs=(identity(len(old)),), outputs=(identity(len(new)),))


def carry(layout: Layout, old: Shape, new: Shape) -> Layout | None:
    """The layout that ``old`` in ``layout`` has after its memory is read as ``new``; ``None`` when it has none."""
    groups = _groups(old, new)
    order = [axis for axis in layout if old[axis] != 1]
    moved: list[int] = []
    while order:
        before, after = groups[order[0]]
        if order[: len(before)] != before:
            return None
        order = order[len(before) :]
        moved.extend(after)
    return _with_unit_axes(moved, new)


def _gathered(layout: Layout, old: Shape, new: Shape) -> Layout:
    """The layout nearest to ``layout`` that a reshape can take: each group is brought to where its first axis lies."""
    groups = _groups(old, new)
    found: list[int] = []
    for axis in layout:
        if axis not in found:
            found.extend(groups[axis][0] if axis in groups else [axis])
    return tuple(found)


def _groups(old: Shape, new: Shape) -> dict[int, tuple[list[int], list[int]]]:
    """By its first axis of ``old``: the smallest groups of axes that hold the same elements on both sides."""
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    groups: dict[int, tuple[list[int], list[int]]] = {}
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        a, b = old[before[0]], new[after[0]]
        while a != b:
            if a < b:
                before.append(left.pop(0))
                a *= old[before[-1]]
            else:
                after.append(right.pop(0))
                b *= new[after[-1]]
        groups.update(dict.fromkeys(before, (before, after)))
    return groups


def _with_unit_axes(order: list[int], shape: Shape) -> Layout:
    """A layout with the larger axes in ``order``: a usual one, else each axis of size 1 after its left neighbour."""
    rank = len(shape)
    for usual in (identity(rank), CHANNELS_LAST, (0, 2, 1)):
        if len(usual) == rank and [axis for axis in usual if shape[axis] != 1] == order:
            return usual
    found = list(order)
    for axis in (axis for axis in range(rank) if shape[axis] == 1):
        found.insert(found.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(found)


def _logical(op: Op, ins: Sequence[Value], outs: Sequence[Value], hint: Hint) -> Placement:
    """Everything lies as the model says."""
    return Placement(inputs=tuple(identity(v.rank) for v in ins), outputs=tuple(identity(v.rank) for v in outs))


_IMAGE = _fixed(CHANNELS_LAST, output=CHANNELS_LAST)

_RULES: dict[type[Op], _Rule] = {
    ir.Conv2D: _fixed(CHANNELS_LAST, CHANNELS_LAST, (0,), output=CHANNELS_LAST),  # weights: O, kh, kw, I
    ir.DepthwiseConv2D: _fixed(CHANNELS_LAST, (1, 2, 3, 0), (0,), output=CHANNELS_LAST),  # 1, kh, kw, C*m
    ir.TransposeConv2D: _fixed(CHANNELS_LAST, (1, 2, 3, 0), (0,), output=CHANNELS_LAST),  # O, kh, kw, I
    ir.FullyConnected: _fully_connected,
    ir.MatMul: _matmul,
    ir.Pool2D: _IMAGE,
    ir.Unary: _common,
    ir.LeakyRelu: _common,
    ir.Gelu: _common,
    ir.PRelu: _common,
    ir.Binary: _common,
    ir.Compare: _common,
    ir.Select: _common,
    ir.Cast: _common,
    ir.Softmax: _axis_last,
    ir.Reduce: _reduce,
    ir.ArgReduce: _arg_reduce,
    ir.TopK: _axis_last,
    ir.CumSum: _common,
    ir.Concat: _common,
    ir.Split: _common,
    ir.Slice: _common,
    ir.Pad: _common,
    ir.Reshape: _reshape,
    ir.Transpose: _transpose,
    ir.Relayout: _common,
    ir.Gather: _gather,
    ir.GatherNd: _logical,
    ir.Tile: _common,
    ir.BroadcastTo: _common,
    ir.Resize: _IMAGE,
    ir.DepthToSpace: _IMAGE,
    ir.SpaceToDepth: _IMAGE,
}
