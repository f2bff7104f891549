"""Activations, and functions of one tensor."""

from __future__ import annotations

import math

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError, axis_of
from edgecompile.lower.direct.infer import broadcast
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.read import Handler


def _unary(kind: ir.UnaryKind) -> Handler:
    return lambda b, node: b.unary(kind, node.required(0))


def _scale(b: Builder, x: Value, factor: float) -> Value:
    return x if factor == 1 else b.binary("MUL", x, b.scalar(factor, x))


def _shift(b: Builder, x: Value, term: float) -> Value:
    return x if term == 0 else b.binary("ADD", x, b.scalar(term, x))


def _limit(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    if low is not None:
        x = b.binary("MAXIMUM", x, b.scalar(low, x))
    return x if high is None else b.binary("MINIMUM", x, b.scalar(high, x))


#: Bounds that one operator of TFLite has.
_CLIPS: dict[tuple[float, float], ir.UnaryKind] = {
    (0.0, math.inf): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}


def _clip(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    low, high = _bound(node, 1, "min", -math.inf), _bound(node, 2, "max", math.inf)
    if x.dtype != "float32":
        return _limit_integers(b, x, low, high)
    extreme = float(np.finfo(np.float32).max)
    low, high = (-math.inf if low <= -extreme else low), (math.inf if high >= extreme else high)
    if (low, high) in _CLIPS:
        return b.unary(_CLIPS[low, high], x)
    return _limit(b, x, None if low == -math.inf else low, None if high == math.inf else high)


def _bound(node: OnnxNode, index: int, name: str, default: float) -> float:
    if node.opset < 11:
        return node.number(name, default)
    data = node.constant(index, name)
    if data is not None and data.size != 1:
        raise RefusedError(f"its {name} has shape {data.shape}")
    return default if data is None else float(data.reshape(-1)[0])


def _limit_integers(b: Builder, x: Value, low: float, high: float) -> Value:
    if x.dtype not in ("int32", "int64"):
        raise RefusedError(f"it clips {x.dtype}")
    return _limit(b, x, None if low == -math.inf else low, None if high == math.inf else high)


def _leaky_relu(b: Builder, node: OnnxNode) -> Value:
    return b.add(ir.LeakyRelu(alpha=node.number("alpha", 0.01)), node.required(0))


def _prelu(b: Builder, node: OnnxNode) -> Value:
    x, slope = node.required(0), node.required(1)
    if broadcast(x.shape, slope.shape) != x.shape:
        raise RefusedError(f"a slope of shape {slope.shape} does not fit {x.shape}")
    if slope.data is not None and slope.elements == 1:
        return b.add(ir.LeakyRelu(alpha=float(slope.data.reshape(-1)[0])), x)
    return b.add(ir.PRelu(), x, b.with_rank(slope, x.rank))


def _hard_sigmoid(b: Builder, node: OnnxNode) -> Value:
    """``clip(alpha * x + beta, 0, 1)``, as ``relu6(6 * alpha * x + 6 * beta) / 6``."""
    return _ramp(b, node.required(0), node.number("alpha", 0.2), node.number("beta", 0.5))


def _ramp(b: Builder, x: Value, alpha: float, beta: float) -> Value:
    # float32's 1/6 times 6 is not quite 1; a slope of one sixth is meant.
    slope = 1.0 if abs(6 * alpha - 1) < 1e-6 else 6 * alpha
    return _scale(b, b.unary("RELU6", _shift(b, _scale(b, x, slope), 6 * beta)), 1 / 6)


def _hard_swish(b: Builder, node: OnnxNode) -> Value:
    return b.unary("HARD_SWISH", node.required(0))


def _gelu(b: Builder, node: OnnxNode) -> Value:
    kind = node.text("approximate", "none")
    if kind not in ("none", "tanh"):
        raise RefusedError(f"its approximation is {kind!r}")
    return b.add(ir.Gelu(approximate=kind == "tanh"), node.required(0))


def _elu(b: Builder, node: OnnxNode) -> Value:
    return exponential_unit(b, node.required(0), node.number("alpha", 1.0), 1.0)


def _selu(b: Builder, node: OnnxNode) -> Value:
    gamma = node.number("gamma", 1.05070102214813232421875)
    y = exponential_unit(b, node.required(0), node.number("alpha", 1.67326319217681884765625), 1.0)
    return _scale(b, y, gamma)


def _celu(b: Builder, node: OnnxNode) -> Value:
    alpha = node.number("alpha", 1.0)
    return exponential_unit(b, node.required(0), alpha, alpha)


def exponential_unit(b: Builder, x: Value, height: float, width: float) -> Value:
    """``x`` where positive, else ``height * (exp(x / width) - 1)``; TFLite's ELU is the one with 1 and 1."""
    if height == width == 1:
        return b.unary("ELU", x)
    below = b.unary("ELU", _scale(b, b.binary("MINIMUM", x, b.scalar(0, x)), 1 / width))
    return b.binary("ADD", b.unary("RELU", x), _scale(b, below, height))


def _thresholded_relu(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    above = b.add(ir.Compare(kind="GREATER"), *b.broadcastable(x, b.scalar(node.number("alpha", 1.0), x)))
    return b.add(ir.Select(), *b.broadcastable(above, x, b.scalar(0, x)))


def _shrink(b: Builder, node: OnnxNode) -> Value:
    """``x`` moved towards 0 by ``bias`` where further from it than ``lambd``, else 0."""
    x = node.required(0)
    bias, limit = node.number("bias", 0.0), node.number("lambd", 0.5)
    low = b.add(ir.Compare(kind="LESS"), *b.broadcastable(x, b.scalar(-limit, x)))
    high = b.add(ir.Compare(kind="GREATER"), *b.broadcastable(x, b.scalar(limit, x)))
    upper = b.add(ir.Select(), *b.broadcastable(high, _shift(b, x, -bias), b.scalar(0, x)))
    return b.add(ir.Select(), *b.broadcastable(low, _shift(b, x, bias), upper))


def _softplus(b: Builder, node: OnnxNode) -> Value:
    """``log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    x = node.required(0)
    small = b.unary("EXP", _scale(b, b.unary("ABS", x), -1.0))
    return b.binary("ADD", b.unary("RELU", x), b.unary("LOG", _shift(b, small, 1.0)))


def _mish(b: Builder, node: OnnxNode) -> Value:
    """``x * tanh(log(1 + exp(x)))``, of factors that are small numbers, which eight bits hold as well."""
    x = node.required(0)
    return b.binary("MUL", x, b.unary("TANH", _softplus(b, node)))


def _softsign(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return b.binary("DIV", x, _shift(b, b.unary("ABS", x), 1.0))


def _swish(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return b.binary("MUL", x, b.unary("LOGISTIC", _scale(b, x, node.number("alpha", 1.0))))


def _softmax(log: bool) -> Handler:
    def lower(b: Builder, node: OnnxNode) -> Value:
        x = node.required(0)
        if node.opset >= 13:
            return b.add(ir.Softmax(axis=axis_of(node.integer("axis", -1), x.rank), log=log), x)
        axis = axis_of(node.integer("axis", 1), x.rank)
        if math.prod(x.shape[axis + 1 :]) == 1:
            return b.add(ir.Softmax(axis=axis, log=log), x)
        # Before version 13, everything from the axis on was one.
        flat = b.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
        return b.reshape(b.add(ir.Softmax(axis=1, log=log), flat), x.shape)

    return lower


def _reciprocal(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return b.binary("DIV", b.scalar(1, x), x)


def _tan(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return b.binary("DIV", b.unary("SIN", x), b.unary("COS", x))


def _neg(b: Builder, node: OnnxNode) -> Value:
    """As a factor, which goes into weights, and which has a kernel for eight bits."""
    x = node.required(0)
    return _scale(b, x, -1.0) if x.dtype == "float32" else b.unary("NEG", x)


def _is_nan(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    return b.add(ir.Compare(kind="NOT_EQUAL"), x, x)


HANDLERS: dict[str, Handler] = {
    "Abs": _unary("ABS"),
    "Ceil": _unary("CEIL"),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _unary("COS"),
    "Elu": _elu,
    "Erf": _unary("ERF"),
    "Exp": _unary("EXP"),
    "Floor": _unary("FLOOR"),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "IsNaN": _is_nan,
    "LeakyRelu": _leaky_relu,
    "Log": _unary("LOG"),
    "LogSoftmax": _softmax(log=True),
    "Mish": _mish,
    "Neg": _neg,
    "Not": _unary("LOGICAL_NOT"),
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
    "Relu": _unary("RELU"),
    "Round": _unary("ROUND"),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _unary("LOGISTIC"),
    "Sign": _unary("SIGN"),
    "Sin": _unary("SIN"),
    "Softmax": _softmax(log=False),
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Sqrt": _unary("SQRT"),
    "Swish": _swish,
    "Tan": _tan,
    "Tanh": _unary("TANH"),
    "ThresholdedRelu": _thresholded_relu,
}
