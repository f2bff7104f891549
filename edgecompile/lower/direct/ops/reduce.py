"""Reductions, and the places and order of largest values."""

from __future__ import annotations

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError, axis_of
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.ops.elementwise import cast
from edgecompile.lower.direct.read import Handler

#: Since when axes are an operand and no attribute.
_AXES_OPERAND = {"ReduceSum": 13}
_AXES_OPERAND_OTHERS = 18


def _axes(node: OnnxNode, x: Value) -> tuple[int, ...] | None:
    """The axes to reduce; ``None`` when nothing is reduced."""
    if node.opset < _AXES_OPERAND.get(node.op_type, _AXES_OPERAND_OTHERS):
        axes = node.ints("axes")
    else:
        axes = node.ints_operand(1, "axes")
    if axes:
        return tuple(sorted({axis_of(axis, x.rank) for axis in axes}))
    return None if node.flag("noop_with_empty_axes") else tuple(range(x.rank))


def _reduce(kind: str) -> Handler:
    def lower(b: Builder, node: OnnxNode) -> Value:
        x = node.required(0)
        return _over(b, node, x, kind)

    return lower


def _over(b: Builder, node: OnnxNode, x: Value, kind: str) -> Value:
    axes = _axes(node, x)
    if axes is None or x.rank == 0:
        return x
    op = ir.Reduce(kind=kind, axes=axes, keepdims=node.flag("keepdims", default=True))  # type: ignore[arg-type]
    return b.add(op, x)


def _l1(b: Builder, node: OnnxNode) -> Value:
    return _over(b, node, b.unary("ABS", node.required(0)), "SUM")


def _sum_square(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return _over(b, node, b.binary("MUL", x, x), "SUM")


def _l2(b: Builder, node: OnnxNode) -> Value:
    return b.unary("SQRT", _sum_square(b, node))


def _log_sum(b: Builder, node: OnnxNode) -> Value:
    return b.unary("LOG", _over(b, node, node.required(0), "SUM"))


def _log_sum_exp(b: Builder, node: OnnxNode) -> Value:
    """``m + log(sum(exp(x - m)))`` with the largest value ``m``, which does not overflow."""
    x = node.required(0)
    axes = _axes(node, x)
    if axes is None or x.rank == 0:
        return x
    largest = b.add(ir.Reduce(kind="REDUCE_MAX", axes=axes, keepdims=True), x)
    powers = b.unary("EXP", b.binary("SUB", x, largest))
    total = b.unary("LOG", b.add(ir.Reduce(kind="SUM", axes=axes, keepdims=True), powers))
    result = b.binary("ADD", total, largest)
    if node.flag("keepdims", default=True):
        return result
    return b.reshape(result, [d for axis, d in enumerate(x.shape) if axis not in axes])


def _arg(kind: str) -> Handler:
    def lower(b: Builder, node: OnnxNode) -> Value:
        x = node.required(0)
        axis = axis_of(node.integer("axis", 0), x.rank)
        if node.flag("select_last_index"):
            raise RefusedError("it wants the last of equal values; TFLite gives the first")
        found = b.add(ir.ArgReduce(kind=kind, axis=axis), x)  # type: ignore[arg-type]
        if not node.flag("keepdims", default=True):
            return found
        return b.reshape(found, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))

    return lower


def _top_k(b: Builder, node: OnnxNode) -> list[Value]:
    x = node.required(0)
    axis = axis_of(node.integer("axis", -1), x.rank)
    k = (node.integer("k", 0),) if node.opset < 10 else node.ints_operand(1, "k")
    if k is None or len(k) != 1 or not 0 < k[0] <= x.shape[axis]:
        raise RefusedError(f"the {k} largest of {x.shape[axis]}")
    largest = node.flag("largest", default=True)
    if not largest and x.dtype != "float32":
        raise RefusedError(f"the smallest of {x.dtype}")
    values, places = b.add_all(ir.TopK(axis=axis, k=k[0]), x if largest else b.unary("NEG", x))
    return [values if largest else b.unary("NEG", values), cast(b, places, "int64")]


HANDLERS: dict[str, Handler] = {
    "ArgMax": _arg("ARG_MAX"),
    "ArgMin": _arg("ARG_MIN"),
    "ReduceL1": _l1,
    "ReduceL2": _l2,
    "ReduceLogSum": _log_sum,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduce("REDUCE_MAX"),
    "ReduceMean": _reduce("MEAN"),
    "ReduceMin": _reduce("REDUCE_MIN"),
    "ReduceProd": _reduce("REDUCE_PROD"),
    "ReduceSum": _reduce("SUM"),
    "ReduceSumSquare": _sum_square,
    "TopK": _top_k,
}
