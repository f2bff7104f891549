"""Operators of one and more tensors: broadcasting in any layout, types, activations."""

from __future__ import annotations

import numpy as np
import pytest

from tests.direct.graphs import compare, graph, node, normal, operators

#: A convolution in front makes the operand lie channels-last, whatever the input's layout.
_CONV = {"w": normal(4, 4, 1, 1, seed=9)}


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize(
    "shape",
    [(), (1,), (4,), (4, 4), (4, 1), (1, 4, 1), (4, 1, 1), (1, 4, 1, 1), (1, 1, 4, 4), (1, 4, 4, 4), (1, 1, 1, 1)],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_broadcast_constants_after_a_convolution(op_type: str, shape: tuple[int, ...], side: str) -> None:
    order = "k c" if side == "left" else "c k"
    nodes = [node("Conv", "x w", "c"), node(op_type, order, "y")]
    constants = _CONV | {"k": np.asarray(np.abs(normal(*shape, seed=1)) + 0.5, np.float32)}
    compare(graph(nodes, {"x": (1, 4, 4, 4)}, ["y"], constants))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (5, 1, 4), (1, 3, 1), (2, 5, 1, 1), (1, 1, 3, 4), (2, 1, 1, 4)])
def test_broadcast_inputs_after_a_convolution(shape: tuple[int, ...]) -> None:
    constants = {"w": normal(5, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Add", "c k", "y"), node("Mul", "k c", "z")]
    compare(graph(nodes, {"x": (2, 4, 3, 4), "k": shape}, ["y", "z"], constants))


def test_both_operands_broadcast() -> None:
    compare(graph([node("Mul", "x k", "y")], {"x": (2, 1, 3, 1), "k": (1, 4, 1, 5)}, ["y"]))


@pytest.mark.parametrize("rank", [5, 6, 7])
@pytest.mark.parametrize("op_type", ["Add", "Max", "Pow", "Less", "Div"])
def test_high_ranks(rank: int, op_type: str) -> None:
    left, right = [2] * rank, [2] * rank
    left[1], right[rank - 2] = 1, 1
    values = {"x": np.abs(normal(*left)) + 0.5, "k": np.abs(normal(*right, seed=1)) + 0.5}
    compare(graph([node(op_type, "x k", "y")], {"x": left, "k": right}, ["y"]), values)


@pytest.mark.parametrize("op_type", ["Less", "Add", "Pow"])
def test_a_broadcast_that_no_kernel_does(op_type: str) -> None:
    left, right = (1, 2, 1, 2, 1, 2, 1), (2, 1, 2, 1, 2, 1, 2)
    values = {"x": np.abs(normal(*left)), "k": np.abs(normal(*right, seed=1))}
    compare(graph([node(op_type, "x k", "y")], {"x": left, "k": right}, ["y"]), values)


@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_operands(op_type: str, count: int) -> None:
    names = ["a", "b", "c"][:count]
    shapes = {"a": (1, 4, 4, 4), "b": (4, 1, 1), "c": (4,)}
    compare(graph([node(op_type, " ".join(names), "y")], {n: shapes[n] for n in names}, ["y"]))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Max", "Min"])
def test_integers(dtype: str, op_type: str) -> None:
    values = {"x": np.array([[-5, 3], [7, 2]], dtype), "k": np.array([[2, -3]], dtype)}
    compare(graph([node(op_type, "x k", "y")], {"x": ((2, 2), dtype), "k": ((1, 2), dtype)}, ["y"]), values)


def test_integer_division_truncates() -> None:
    values = {"x": np.array([-7, 7, -6, 5], np.int32), "k": np.array([2, -2, 4, 5], np.int32)}
    compare(graph([node("Div", "x k", "y")], {"x": ((4,), "int32"), "k": ((4,), "int32")}, ["y"]), values)


def test_remainders() -> None:
    floats = {"x": np.array([-7.5, 7.5, -6, 5], np.float32), "k": np.array([2, -2, 4, 5], np.float32)}
    compare(graph([node("Mod", "x k", "y", fmod=1)], {"x": (4,), "k": (4,)}, ["y"]), floats)
    integers = {"x": np.array([-7, 7, -6, 5], np.int64), "k": np.array([2, -2, 4, 5], np.int64)}
    compare(graph([node("Mod", "x k", "y")], {"x": ((4,), "int64"), "k": ((4,), "int64")}, ["y"]), integers)


@pytest.mark.parametrize("op_type", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_comparisons(op_type: str, dtype: str) -> None:
    values = {"x": np.array([[1, 2, 3]], dtype), "k": np.array([[2], [3]], dtype)}
    compare(graph([node(op_type, "x k", "y")], {"x": ((1, 3), dtype), "k": ((2, 1), dtype)}, ["y"]), values)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    values = {"x": np.array([0, 0, 1, 1], bool), "k": np.array([0, 1, 0, 1], bool)}
    nodes = [node(op_type, "x k", "y"), node("Not", "y", "z")]
    compare(graph(nodes, {"x": ((4,), "bool"), "k": ((4,), "bool")}, ["y", "z"]), values)


def test_where() -> None:
    nodes = [node("Conv", "x w", "c"), node("Greater", "c zero", "g"), node("Where", "g c k", "y")]
    constants = _CONV | {"zero": np.float32(0), "k": normal(4, 1, 1)}
    compare(graph(nodes, {"x": (1, 4, 4, 4)}, ["y"], constants))


@pytest.mark.parametrize("source", ["float32", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("target", ["float32", "int32", "int64", "bool"])
def test_casts(source: str, target: str) -> None:
    import onnx

    values = {"x": np.array([0, 1, 3, 200], np.float64).astype(source)}
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    compare(graph([node("Cast", "x", "y", to=to)], {"x": ((4,), source)}, ["y"]), values)


def test_unsigned_image_input() -> None:
    """An app's camera image: bytes, cast and scaled in the model."""
    nodes = [node("Cast", "x", "f", to=1), node("Div", "f k", "s"), node("Conv", "s w", "y")]
    values = {"x": np.random.default_rng(0).integers(0, 256, (1, 3, 4, 4)).astype(np.uint8)}
    constants = {"k": np.float32(255), "w": normal(2, 3, 1, 1)}
    result = compare(graph(nodes, {"x": ((1, 3, 4, 4), "uint8")}, ["y"], constants), values)
    assert result.inputs[0].spec.dtype == "uint8"
    assert result.inputs[0].permutation == (0, 2, 3, 1)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0, 0.5, -0.5, -1.0, 2.5, 0.0])
def test_powers(exponent: float) -> None:
    values = {"x": np.abs(normal(2, 3)) + 0.1}
    compare(graph([node("Pow", "x e", "y")], {"x": (2, 3)}, ["y"], {"e": np.float32(exponent)}), values)


_UNARY: dict[str, dict[str, object]] = {
    "Abs": {}, "Ceil": {}, "Cos": {}, "Elu": {"alpha": 0.7}, "Erf": {}, "Exp": {}, "Floor": {}, "HardSwish": {},
    "LeakyRelu": {"alpha": 0.2}, "Neg": {}, "Relu": {}, "Round": {}, "Sigmoid": {}, "Sign": {}, "Sin": {},
    "Softplus": {}, "Softsign": {}, "Tan": {}, "Tanh": {}, "Selu": {}, "Celu": {"alpha": 1.7}, "Mish": {},
    "HardSigmoid": {}, "ThresholdedRelu": {"alpha": 0.6}, "Identity": {}, "Shrink": {"bias": 0.4, "lambd": 0.6},
}  # fmt: skip


@pytest.mark.parametrize("op_type", sorted(_UNARY))
def test_functions_of_one_tensor(op_type: str) -> None:
    values = {"x": np.concatenate([np.linspace(-12, 12, 121), [0.5, 1.5, -2.5, -0.0, 60, -60]]).astype(np.float32)}
    if op_type == "Tan":  # near its poles every rounding shows
        values = {"x": np.linspace(-1.4, 1.4, 127).astype(np.float32)}
    if op_type == "Exp":
        values["x"][-2] = 12
    compare(graph([node(op_type, "x", "y", **_UNARY[op_type])], {"x": (127,)}, ["y"], opset=18), values)


@pytest.mark.parametrize("op_type", ["Sqrt", "Log", "Reciprocal"])
def test_functions_of_positive_numbers(op_type: str) -> None:
    values = {"x": np.linspace(0.1, 20, 50).astype(np.float32)}
    compare(graph([node(op_type, "x", "y")], {"x": (50,)}, ["y"]), values)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 1.5])
def test_leaky_relu_with_unusual_slopes(alpha: float) -> None:
    compare(graph([node("LeakyRelu", "x", "y", alpha=alpha)], {"x": (1, 3, 4, 4)}, ["y"]))


@pytest.mark.parametrize("alpha", [0.2, 1 / 6, 0.5])
def test_hard_sigmoid_slopes(alpha: float) -> None:
    values = {"x": np.linspace(-6, 6, 101).astype(np.float32)}
    compare(graph([node("HardSigmoid", "x", "y", alpha=alpha, beta=0.4)], {"x": (101,)}, ["y"]), values)


@pytest.mark.parametrize("low", [None, -1.0, 0.0, -0.3])
@pytest.mark.parametrize("high", [None, 1.0, 6.0, 0.4])
def test_clip(low: float | None, high: float | None) -> None:
    constants = {n: np.float32(v) for n, v in (("low", low), ("high", high)) if v is not None}
    operands = f"x {'low' if low is not None else '_'} {'high' if high is not None else '_'}"
    values = {"x": np.linspace(-8, 8, 33).astype(np.float32)}
    compare(graph([node("Clip", operands, "y")], {"x": (33,)}, ["y"], constants), values)


def test_clip_of_old_models() -> None:
    compare(graph([node("Clip", "x", "y", min=0.0, max=6.0)], {"x": (1, 3, 4, 4)}, ["y"], opset=10))


@pytest.mark.parametrize("slope", [(), (1,), (4,), (4, 1, 1), (1, 4, 1, 1), (4, 4, 4)])
def test_prelu(slope: tuple[int, ...]) -> None:
    nodes = [node("Conv", "x w", "c"), node("PRelu", "c s", "y")]
    compare(graph(nodes, {"x": (1, 4, 4, 4)}, ["y"], _CONV | {"s": normal(*slope)}))


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax(op_type: str, axis: int, opset: int) -> None:
    nodes = [node("Conv", "x w", "c"), node(op_type, "c", "y", axis=axis)]
    compare(graph(nodes, {"x": (2, 4, 3, 4)}, ["y"], _CONV, opset=opset))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    values = {"x": np.linspace(-8, 8, 101).astype(np.float32)}
    model = graph([node("Gelu", "x", "y", approximate=approximate)], {"x": (101,)}, ["y"], opset=20)
    assert operators(compare(model, values)) == ["GELU"]


def test_not_a_number() -> None:
    values = {"x": np.array([1, np.nan, np.inf, -np.inf], np.float32)}
    compare(graph([node("IsNaN", "x", "y")], {"x": (4,)}, ["y"]), values)


def test_scalars() -> None:
    nodes = [node("Add", "x k", "s"), node("Relu", "s", "y")]
    compare(graph(nodes, {"x": (), "k": ()}, ["y"]))


def test_dropout_is_the_identity_and_its_mask_is_true() -> None:
    compare(graph([node("Dropout", "x", "y mask"), node("Relu", "y", "z")], {"x": (2, 3)}, ["z", "mask"]))
