"""Every ONNX operator that torch computes here, by its type: element-wise ones, products and reductions below."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from edgecompile.techniques import torch_layers, torch_recurrent, torch_shapes
from edgecompile.techniques.torch_call import Call, NotDifferentiable, Operator, Refused, broadcast, torch


def _method(name: str) -> Operator:
    """An operator of one input that is a tensor's method."""
    return lambda call: getattr(call[0], name)()


def _functional(name: str, **defaults: Any) -> Operator:
    """One of ``torch.nn.functional``, with ONNX attributes (and their defaults) in torch's order."""
    return lambda call: getattr(torch.nn.functional, name)(
        call[0], *(call.attribute(key, default) for key, default in defaults.items())
    )


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda call: function(*broadcast(call))


def _folded(function: Callable[[Any, Any], Any]) -> Operator:
    """An operator of any number of inputs, two at a time."""
    return lambda call: reduce(function, broadcast(call))


def _div(a: Any, b: Any) -> Any:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _pow(call: Call) -> Any:
    exponent = call.known[1]
    if exponent is not None and exponent.size == 1 and call[0].is_floating_point():
        return call[0] ** exponent.item()  # a plain number, whose power torch computes and derives faster
    return torch.pow(*broadcast(call)).to(call[0].dtype)


def _mod(call: Call) -> Any:
    a, b = broadcast(call)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def _mean(call: Call) -> Any:
    return _folded(lambda a, b: a + b)(call) / len(call.inputs)


def _clip(call: Call) -> Any:
    low, high = call.attribute("min", call.value(1)), call.attribute("max", call.value(2))
    return call[0] if low is None and high is None else call[0].clamp(low, high)


def _prelu(call: Call) -> Any:
    x, slope = call.inputs
    return torch.where(x >= 0, x, x * slope)


def _hard_sigmoid(call: Call) -> Any:
    return (call[0] * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)).clamp(0, 1)


def _gelu(call: Call) -> Any:
    return torch.nn.functional.gelu(call[0], approximate=call.attribute("approximate", "none"))


def _selu(call: Call) -> Any:
    alpha, gamma = (
        call.attribute("alpha", 1.67326319217681884765625),
        call.attribute("gamma", 1.05070102214813232421875),
    )
    return gamma * torch.nn.functional.elu(call[0], alpha)


def _swish(call: Call) -> Any:
    return call[0] * torch.sigmoid(call[0] * call.attribute("alpha", 1.0))


def _thresholded_relu(call: Call) -> Any:
    return torch.where(call[0] > call.attribute("alpha", 1.0), call[0], torch.zeros_like(call[0]))


def _softmax(logarithm: bool) -> Operator:
    def run(call: Call) -> Any:
        function = torch.log_softmax if logarithm else torch.softmax
        x, axis = call[0], call.attribute("axis", -1 if call.opset >= 13 else 1)
        if call.opset >= 13:
            return function(x, axis)
        axis %= x.dim()  # older ones take all axes from this one on together
        return function(x.flatten(axis), -1).reshape(x.shape) if axis else function(x.flatten(), 0).reshape(x.shape)

    return run


def _gemm(call: Call) -> Any:
    a, b, c = call[0], call[1], call.get(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    a = a.transpose(0, 1) if call.attribute("transA", 0) else a
    b = b if call.attribute("transB", 0) else b.transpose(0, 1)
    if alpha == 1.0 and (c is None or (c.dim() == 1 and beta == 1.0 and c.shape[0] == b.shape[0])):
        return torch.nn.functional.linear(a, b, c)
    y = alpha * (a @ b.transpose(0, 1))
    return y if c is None else y + beta * c


# ---------------------------------------------------------------------------------------------------- reductions


def _reduced(call: Call) -> tuple[Any, tuple[int, ...], bool] | None:
    """The tensor, the axes and whether they are kept; None where no axes mean no reduction."""
    axes = call.attribute("axes")
    axes = axes if axes is not None else call.values(1)
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return None
    rank = call[0].dim()
    return call[0], tuple(sorted(axis % rank for axis in axes or range(rank))), bool(call.attribute("keepdims", 1))


def _reduce(
    function: Callable[[Any, tuple[int, ...], bool], Any],
    before: Callable[[Any], Any] = lambda x: x,
    after: Callable[[Any], Any] = lambda x: x,
) -> Operator:
    def run(call: Call) -> Any:
        found = _reduced(call)
        if found is None:
            return after(before(call[0]))
        x, axes, keep = found
        return after(function(before(x), axes, keep)) if axes else after(before(x))

    return run


def _product(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    for axis in reversed(axes):
        x = x.prod(dim=axis, keepdim=keep)
    return x


def _sum(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return x.sum(dim=axes, keepdim=keep, dtype=x.dtype)


def _average(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return x.mean(dim=axes, keepdim=keep)


def _largest(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return x.amax(dim=axes, keepdim=keep)


def _smallest(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return x.amin(dim=axes, keepdim=keep)


def _log_sum_exp(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    return torch.logsumexp(x, dim=axes, keepdim=keep)


def _argument(name: str) -> Operator:
    def run(call: Call) -> Any:
        x, axis, keep = call[0], call.attribute("axis", 0) % call[0].dim(), bool(call.attribute("keepdims", 1))
        if call.attribute("select_last_index", 0):
            return x.shape[axis] - 1 - getattr(x.flip(axis), name)(dim=axis, keepdim=keep)
        return getattr(x, name)(dim=axis, keepdim=keep)

    return run


def _cumulative_sum(call: Call) -> Any:
    if call.attribute("exclusive", 0) or call.attribute("reverse", 0):
        raise Refused("exclusive or reverse")
    return call[0].cumsum(call.value(1))


OPERATORS: dict[str, Operator] = {
    **torch_layers.OPERATORS,
    **torch_recurrent.OPERATORS,
    **torch_shapes.OPERATORS,
    "Abs": _method("abs"),
    "Add": _binary(lambda a, b: a + b),
    "And": _binary(lambda a, b: a & b),
    "ArgMax": _argument("argmax"),
    "ArgMin": _argument("argmin"),
    "Ceil": _method("ceil"),
    "Celu": _functional("celu", alpha=1.0),
    "Clip": _clip,
    "Cos": _method("cos"),
    "CumSum": _cumulative_sum,
    "Div": _binary(_div),
    "Elu": _functional("elu", alpha=1.0),
    "Equal": _binary(lambda a, b: a == b),
    "Erf": _method("erf"),
    "Exp": _method("exp"),
    "Floor": _method("floor"),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _binary(lambda a, b: a > b),
    "GreaterOrEqual": _binary(lambda a, b: a >= b),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _functional("hardswish"),
    "LeakyRelu": _functional("leaky_relu", alpha=0.01),
    "Less": _binary(lambda a, b: a < b),
    "LessOrEqual": _binary(lambda a, b: a <= b),
    "Log": _method("log"),
    "LogSoftmax": _softmax(True),
    "MatMul": _binary(lambda a, b: a @ b),
    "Max": _folded(lambda a, b: torch.maximum(a, b)),
    "Mean": _mean,
    "Min": _folded(lambda a, b: torch.minimum(a, b)),
    "Mish": _functional("mish"),
    "Mod": _mod,
    "Mul": _binary(lambda a, b: a * b),
    "Neg": _method("neg"),
    "Not": _method("logical_not"),
    "Or": _binary(lambda a, b: a | b),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _method("reciprocal"),
    "ReduceL1": _reduce(_sum, before=lambda x: x.abs()),
    "ReduceL2": _reduce(_sum, before=lambda x: x * x, after=lambda x: x.sqrt()),
    "ReduceLogSum": _reduce(_sum, after=lambda x: x.log()),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(_largest),
    "ReduceMean": _reduce(_average),
    "ReduceMin": _reduce(_smallest),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(_sum, before=lambda x: x * x),
    "Relu": _method("relu"),
    "Round": _method("round"),
    "Selu": _selu,
    "Sigmoid": _method("sigmoid"),
    "Sign": _method("sign"),
    "Sin": _method("sin"),
    "Softmax": _softmax(False),
    "Softplus": _functional("softplus"),
    "Softsign": _functional("softsign"),
    "Sqrt": _method("sqrt"),
    "Sub": _binary(lambda a, b: a - b),
    "Sum": _folded(lambda a, b: a + b),
    "Swish": _swish,
    "Tanh": _method("tanh"),
    "ThresholdedRelu": _thresholded_relu,
    "Where": lambda call: torch.where(*broadcast(call)),
    "Xor": _binary(lambda a, b: a ^ b),
}

__all__ = ["OPERATORS", "NotDifferentiable"]
