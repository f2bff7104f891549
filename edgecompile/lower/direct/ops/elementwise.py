"""Functions of two and more tensors, with broadcasting; comparisons, logic, types."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.read import Handler
from edgecompile.lower.direct.write import TENSOR_TYPES


def _operands(b: Builder, node: OnnxNode) -> tuple[Value, Value]:
    """The two operands; before version 7 the second was placed by an ``axis``."""
    a, c = node.required(0), node.required(1)
    if a.dtype != c.dtype:
        raise RefusedError(f"its operands are {a.dtype} and {c.dtype}")
    if node.opset < 7 and node.has("axis"):
        axis = node.integer("axis", 0)
        c = b.reshape(c, c.shape + (1,) * (a.rank - axis - c.rank))
    return a, c


def _binary(kind: ir.BinaryKind) -> Handler:
    return lambda b, node: b.binary(kind, *_operands(b, node))


def _chain(kind: ir.BinaryKind) -> Handler:
    def lower(b: Builder, node: OnnxNode) -> Value:
        return chain(b, kind, [node.required(i) for i in range(len(node.inputs))])

    return lower


def chain(b: Builder, kind: ir.BinaryKind, values: Sequence[Value]) -> Value:
    """``values`` joined by an operator from left to right."""
    total = values[0]
    for value in values[1:]:
        if value.dtype != total.dtype:
            raise RefusedError(f"its operands are {total.dtype} and {value.dtype}")
        total = b.binary(kind, total, value)
    return total


def _mean(b: Builder, node: OnnxNode) -> Value:
    values = [node.required(i) for i in range(len(node.inputs))]
    total = chain(b, "ADD", values)
    return total if len(values) == 1 else b.binary("MUL", total, b.scalar(1 / len(values), total))


def _div(b: Builder, node: OnnxNode) -> Value:
    x, y = _operands(b, node)
    if x.dtype == "float32" and y.data is not None:
        inverse = 1 / y.data.astype(np.float64)
        # Multiplying by a power of two's inverse is the same division; others may differ in the last bit.
        if np.isfinite(inverse).all() and (y.data != 0).all() and np.abs(inverse).max() < 1e30:
            return b.binary("MUL", x, b.constant(inverse, "float32"))
    return b.binary("DIV", x, y)


def _pow(b: Builder, node: OnnxNode) -> Value:
    x, exponent = node.required(0), node.required(1)
    if x.dtype != "float32":
        raise RefusedError(f"a power of {x.dtype}")
    if exponent.data is None:
        if exponent.dtype != x.dtype:
            exponent = b.add(ir.Cast(dtype=x.dtype), exponent)
        return b.binary("POW", x, exponent)
    power = b.constant(exponent.data, x.dtype)
    if power.elements == 1 and power.rank <= x.rank:
        simple = _simple_power(b, x, float(power.array.reshape(-1)[0]))
        if simple is not None:
            return simple
    return b.binary("POW", x, power)


def _simple_power(b: Builder, x: Value, power: float) -> Value | None:
    if power == 1:
        return x
    if power == 2:
        return b.binary("MUL", x, x)
    if power == 3:
        return b.binary("MUL", b.binary("MUL", x, x), x)
    if power == 0.5:
        return b.unary("SQRT", x)
    if power == -0.5:
        return b.unary("RSQRT", x)
    return b.binary("DIV", b.scalar(1, x), x) if power == -1 else None


def _mod(b: Builder, node: OnnxNode) -> Value:
    x, y = _operands(b, node)
    if not node.flag("fmod"):
        if x.dtype == "float32":
            raise RefusedError("the remainder of floats needs fmod=1")
        return b.binary("FLOOR_MOD", x, y)
    # C's fmod has the sign of its first operand.
    size = b.binary("FLOOR_MOD", b.unary("ABS", x), b.unary("ABS", y))
    zero = b.scalar(0, x)
    negative = b.add(ir.Compare(kind="LESS"), *b.broadcastable(x, zero))
    return b.add(ir.Select(), *b.broadcastable(negative, b.unary("NEG", size), size))


def _compare(kind: str) -> Handler:
    def lower(b: Builder, node: OnnxNode) -> Value:
        operands = b.broadcastable(*_operands(b, node))
        return b.add(ir.Compare(kind=kind), *operands)  # type: ignore[arg-type]

    return lower


def _xor(b: Builder, node: OnnxNode) -> Value:
    return b.add(ir.Compare(kind="NOT_EQUAL"), *b.broadcastable(*_operands(b, node)))


def _where(b: Builder, node: OnnxNode) -> Value:
    condition, x, y = (node.required(i) for i in range(3))
    if x.dtype != y.dtype:
        raise RefusedError(f"its operands are {x.dtype} and {y.dtype}")
    return b.add(ir.Select(), *b.broadcastable(condition, x, y))


def _cast(b: Builder, node: OnnxNode) -> Value:
    from onnx import helper

    x = node.required(0)
    try:
        dtype = helper.tensor_dtype_to_np_dtype(node.integer("to", 0)).name
    except KeyError as exc:
        raise RefusedError(f"it casts to an unknown type ({node.integer('to', 0)})") from exc
    return cast(b, x, dtype)


def cast(b: Builder, x: Value, dtype: str) -> Value:
    """``x`` as another type. Raises `RefusedError` for a type, or a way between two, that TFLite has not exactly."""
    if x.dtype == dtype:
        return x
    if dtype not in TENSOR_TYPES:
        raise RefusedError(f"it casts to {dtype}")
    if dtype == "bool":
        # TFLite's cast to bool would do, but not every kernel compares with 0 as C does.
        x = b.add(ir.Cast(dtype="int32"), x) if x.dtype in ("uint8", "int8") else x
        return b.add(ir.Compare(kind="NOT_EQUAL"), *b.broadcastable(x, b.scalar(0, x)))
    return b.add(ir.Cast(dtype=dtype), x)


def _cast_like(b: Builder, node: OnnxNode) -> Value:
    return cast(b, node.required(0), node.required(1).dtype)


def _identity(b: Builder, node: OnnxNode) -> Value:
    return node.required(0)


def _dropout(b: Builder, node: OnnxNode) -> list[Value]:
    training = node.constant(2, "training_mode") if node.opset >= 12 else None
    if training is not None and training.any():
        raise RefusedError("it is in training mode")
    x = node.required(0)
    return [x, b.constant(np.ones(x.shape), "bool" if node.opset >= 10 else x.dtype)]


HANDLERS: dict[str, Handler] = {
    "Add": _binary("ADD"),
    "And": _binary("LOGICAL_AND"),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Div": _div,
    "Dropout": _dropout,
    "Equal": _compare("EQUAL"),
    "Greater": _compare("GREATER"),
    "GreaterOrEqual": _compare("GREATER_EQUAL"),
    "Identity": _identity,
    "Less": _compare("LESS"),
    "LessOrEqual": _compare("LESS_EQUAL"),
    "Max": _chain("MAXIMUM"),
    "Mean": _mean,
    "Min": _chain("MINIMUM"),
    "Mod": _mod,
    "Mul": _binary("MUL"),
    "Or": _binary("LOGICAL_OR"),
    "Pow": _pow,
    "Sub": _binary("SUB"),
    "Sum": _chain("ADD"),
    "Where": _where,
    "Xor": _xor,
}
