"""Lets windows do their own padding where TFLite's SAME means exactly that.

Before::                                                    After::

    Conv2D(Pad(x, 1 before and after, 0), VALID)                Conv2D(x, SAME)
    Pool2D MAX(Pad(x, ..., -inf), VALID)                        Pool2D MAX(x, SAME)

TFLite's SAME makes ``ceil(size / stride)`` places and puts the odd element of padding *behind*. With a stride of 2 on
an even size, a symmetric ONNX padding is therefore something else, and stays a `Pad`.

What is left before a maximum is not padded with -inf, which no delegate takes and no quantizer bears: with 0, where
nothing is negative; else with copies of the edge, each of which lies in every window that reaches that far.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.infer import window_count
from edgecompile.lower.direct.ir import Graph, Node
from edgecompile.lower.direct.ops.windows import same_is_safe, same_pads
from edgecompile.lower.direct.passes.rewriter import add, take_over

_Windowed: TypeAlias = ir.Conv2D | ir.DepthwiseConv2D | ir.Pool2D


def run(graph: Graph) -> None:
    """Absorb pads into convolutions and maxima."""
    for node in list(graph.nodes):
        op = node.op
        if isinstance(op, ir.Conv2D | ir.DepthwiseConv2D):
            w = graph.values[node.inputs[1]].shape
            _absorb(graph, node, op, 0.0, (w[2], w[3]), op.dilations)
        elif (
            isinstance(op, ir.Pool2D)
            and op.kind == "MAX"
            and not _absorb(graph, node, op, -float("inf"), op.kernel, (1, 1))
        ):
            _pad_maximum(graph, node)


def _pad_of(graph: Graph, node: Node) -> Node | None:
    """The constant `Pad` of the two last axes that a window reads."""
    pad = graph.producer(node.inputs[0])
    if pad is None or not isinstance(pad.op, ir.Pad) or any(map(any, pad.op.pads[:2])):
        return None
    return pad


def _absorb(
    graph: Graph, node: Node, op: _Windowed, value: float, kernel: tuple[int, int], dilations: tuple[int, int]
) -> bool:
    pad = _pad_of(graph, node)
    if pad is None or op.padding != "VALID" or pad.op.value != value:  # type: ignore[attr-defined]
        return False
    before, after = graph.values[pad.inputs[0]].shape, graph.values[node.inputs[0]].shape
    for i in range(2):
        places = window_count(after[2 + i], kernel[i], op.strides[i], dilations[i], "VALID")
        same = same_pads(before[2 + i], kernel[i], op.strides[i], dilations[i])
        # The windows are the same when their number is, and the first begins at the same place.
        if places != -(-before[2 + i] // op.strides[i]) or same[0] != pad.op.pads[2 + i][0]:  # type: ignore[attr-defined]
            return False
        if not same_is_safe(before[2 + i], kernel[i], op.strides[i], dilations[i]):
            return False
    take_over(graph, node, replace(op, padding="SAME"), (pad.inputs[0], *node.inputs[1:]))
    return True


#: Operators whose results are never negative, and those that keep what they get so.
_POSITIVE_UNARY = frozenset({"RELU", "RELU6", "RELU_0_TO_1", "LOGISTIC", "ABS", "EXP", "SQRT", "SQUARE"})
_POSITIVE_ACTIVATIONS = frozenset({"RELU", "RELU6"})
_KEEPING = (ir.Concat, ir.Slice, ir.Split, ir.Reshape, ir.Transpose, ir.Relayout, ir.Pool2D)


def never_negative(graph: Graph, name: str, depth: int = 32) -> bool:
    """Whether it follows from the operators alone that no element of a value is negative."""
    data, node = graph.values[name].data, graph.producer(name)
    if data is not None:
        return bool((data >= 0).all())
    if node is None or depth == 0:
        return False
    op = node.op
    if getattr(op, "activation", "NONE") in _POSITIVE_ACTIVATIONS:
        return True
    if isinstance(op, ir.Unary):
        return op.kind in _POSITIVE_UNARY
    if isinstance(op, ir.Binary):
        if op.kind == "MAXIMUM":
            return any(never_negative(graph, n, depth - 1) for n in node.inputs)
        return op.kind in ("ADD", "MUL", "MINIMUM") and all(never_negative(graph, n, depth - 1) for n in node.inputs)
    return isinstance(op, _KEEPING) and all(never_negative(graph, n, depth - 1) for n in node.inputs)


def _pad_maximum(graph: Graph, node: Node) -> None:
    pad = _pad_of(graph, node)
    if pad is None or pad.op.value != -float("inf"):  # type: ignore[attr-defined]
        return
    op: ir.Pad = pad.op  # type: ignore[assignment]
    if never_negative(graph, pad.inputs[0]):
        zeros = add(graph, replace(op, value=0.0), pad.inputs, f"{node.outputs[0]}/pad", node.origin)
        graph.swap(node, inputs=(zeros.name,))
        return
    x = pad.inputs[0]
    for axis in (2, 3):
        before, after = op.pads[axis]
        size = graph.values[x].shape[axis]
        parts = [_edge(graph, x, axis, 0, node)] * before + [x] + [_edge(graph, x, axis, size - 1, node)] * after
        if len(parts) > 1:
            x = add(graph, ir.Concat(axis=axis), tuple(parts), f"{node.outputs[0]}/pad", node.origin).name
    graph.swap(node, inputs=(x,))


def _edge(graph: Graph, x: str, axis: int, place: int, node: Node) -> str:
    shape = graph.values[x].shape
    begin = tuple(place if a == axis else 0 for a in range(len(shape)))
    size = tuple(1 if a == axis else d for a, d in enumerate(shape))
    op = ir.Slice(begin=begin, size=size, strides=(1,) * len(shape))
    return add(graph, op, (x,), f"{node.outputs[0]}/edge", node.origin).name
