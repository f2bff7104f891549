"""Passes: what they make of real blocks, and that they leave alone what only looks like one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import pytest

from tests.direct.graphs import compare, graph, node, normal, operators

_IMAGE = {"x": (1, 4, 6, 6)}


def _scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _gelu(half_first: bool, factor: float) -> onnx.ModelProto:
    """``x * 0.5 * (1 + erf(x / sqrt(2)))`` in the orders that exporters write."""
    nodes = [node("Div", "x root", "d"), node("Erf", "d", "e"), node("Add", "e one", "a")]
    if half_first:
        nodes += [node("Mul", "x half", "h"), node("Mul", "h a", "y")]
    else:
        nodes += [node("Mul", "x a", "h"), node("Mul", "h half", "y")]
    constants = {"root": _scalar(math.sqrt(2)), "one": _scalar(1), "half": _scalar(factor)}
    return graph(nodes, _IMAGE, ["y"], constants)


@pytest.mark.parametrize("half_first", [True, False])
def test_gelu_by_erf(half_first: bool) -> None:
    assert operators(compare(_gelu(half_first, 0.5))) == ["GELU"]


def test_what_is_almost_gelu_is_not() -> None:
    assert "GELU" not in operators(compare(_gelu(True, 0.51)))


def test_gelu_by_tanh() -> None:
    nodes = [
        node("Pow", "x three", "cube"), node("Mul", "cube k", "c"), node("Add", "x c", "s"), node("Mul", "s root", "t"),
        node("Tanh", "t", "h"), node("Add", "h one", "a"), node("Mul", "x a", "p"), node("Mul", "p half", "y"),
    ]  # fmt: skip
    constants = {"three": _scalar(3), "k": _scalar(0.044715), "root": _scalar(math.sqrt(2 / math.pi))}
    constants |= {"one": _scalar(1), "half": _scalar(0.5)}
    assert operators(compare(graph(nodes, _IMAGE, ["y"], constants))) == ["GELU"]


@pytest.mark.parametrize("form", ["hard sigmoid", "clip and divide", "operator"])
def test_hard_swish(form: str) -> None:
    nodes = {
        "hard sigmoid": [node("HardSigmoid", "x", "h", alpha=1 / 6, beta=0.5), node("Mul", "x h", "y")],
        "clip and divide": [
            node("Add", "x three", "a"), node("Clip", "a zero six", "c"), node("Mul", "x c", "m"),
            node("Div", "m six", "y"),
        ],
        "operator": [node("HardSwish", "x", "y")],
    }[form]  # fmt: skip
    constants = {"three": _scalar(3), "zero": _scalar(0), "six": _scalar(6)}
    assert operators(compare(graph(nodes, _IMAGE, ["y"], constants))) == ["HARD_SWISH"]


def test_a_division_by_a_deviation_is_a_product() -> None:
    nodes = [node("Sqrt", "v", "s"), node("Div", "x s", "y")]
    values = {"x": normal(1, 4, 6, 6), "v": np.abs(normal(1, 4, 1, 1)) + 0.1}
    result = compare(graph(nodes, _IMAGE | {"v": (1, 4, 1, 1)}, ["y"]), values)
    assert "DIV" not in operators(result)


def test_squeeze_and_excitation() -> None:
    nodes = [
        node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "p"), node("Conv", "p r", "q"), node("Relu", "q", "a"),
        node("Conv", "a e", "b"), node("Sigmoid", "b", "g"), node("Mul", "c g", "y"),
    ]  # fmt: skip
    constants = {"w": normal(8, 4, 1, 1), "r": normal(2, 8, 1, 1), "e": normal(8, 2, 1, 1)}
    result = compare(graph(nodes, _IMAGE, ["y"], constants))
    assert operators(result) == ["CONV_2D", "MEAN", "CONV_2D", "CONV_2D", "LOGISTIC", "MUL"]


def test_factors_and_terms_around_linear_operators_fold() -> None:
    nodes = [
        node("Mul", "x s", "a"), node("Conv", "a w", "c"), node("Sub", "c t", "d"), node("Div", "d s", "e"),
        node("Relu", "e", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
        node("Mul", "f u", "g"), node("Add", "g v", "h"), node("MatMul", "h m", "i"), node("Add", "i b", "y"),
    ]  # fmt: skip
    constants = {
        "s": np.abs(normal(1, 4, 1, 1)) + 0.5, "w": normal(4, 4, 3, 3), "t": normal(4, 1, 1), "u": normal(4),
        "v": normal(1, 4), "m": normal(4, 5), "b": normal(5),
    }  # fmt: skip
    assert operators(compare(graph(nodes, _IMAGE, ["y"], constants))) == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]


def test_a_term_before_a_padded_convolution_does_not_fold() -> None:
    nodes = [node("Add", "x t", "a"), node("Conv", "a w", "y", pads=[1, 1, 1, 1])]
    model = graph(nodes, _IMAGE, ["y"], {"t": normal(4, 1, 1), "w": normal(4, 4, 3, 3)})
    assert operators(compare(model)) == ["ADD", "CONV_2D"]


def test_a_factor_by_place_does_not_fold() -> None:
    nodes = [node("Conv", "x w", "c"), node("Mul", "c t", "y")]
    model = graph(nodes, {"x": (1, 4, 4, 4)}, ["y"], {"t": normal(4, 4), "w": normal(4, 4, 1, 1)})
    assert operators(compare(model)) == ["CONV_2D", "MUL"]


def test_batch_norm_alone_is_one_operator() -> None:
    constants = {name: np.abs(normal(4, seed=i)) + 0.1 for i, name in enumerate("sbmv")}
    nodes = [node("BatchNormalization", "x s b m v", "n"), node("Relu", "n", "y")]
    assert operators(compare(graph(nodes, _IMAGE, ["y"], constants))) == ["DEPTHWISE_CONV_2D"]


def test_a_residual_block_needs_no_transpose() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1, 1, 1, 1]), node("Relu", "a", "r"),
        node("Conv", "r v", "b", pads=[1, 1, 1, 1]), node("Add", "b x", "s"), node("Relu", "s", "y"),
    ]  # fmt: skip
    model = graph(nodes, {"x": (4, 4, 4, 4)}, ["y"], {"w": normal(4, 4, 3, 3), "v": normal(4, 4, 3, 3, seed=1)})
    assert operators(compare(model)) == ["CONV_2D", "CONV_2D", "ADD"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("count", [2, 3])
def test_a_shuffle_of_joined_channels(batch: int, count: int) -> None:
    """As in ShuffleNetV2, with every size that can be equal being equal; the result's order cannot be changed."""
    names = "abc"[:count]
    nodes = [node("Conv", f"x w{name}", name) for name in names]
    nodes += [
        node("Concat", " ".join(names), "j", axis=1), node("Reshape", "j five", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]), node("Reshape", "t four", "s"), node("Conv", "s v", "y"),
    ]  # fmt: skip
    constants = {f"w{name}": normal(count, 4, 1, 1, seed=i) for i, name in enumerate(names)}
    constants["five"] = np.array([batch, count, count, count, count], np.int64)
    constants |= {"four": np.array([batch, count * count, count, count], np.int64), "v": normal(5, count * count, 1, 1)}
    result = compare(graph(nodes, {"x": (batch, 4, count, count)}, ["y", "s"], constants))
    # Tensors as small as these may also be joined element by element, for which each gets an axis of its own.
    assert result.transposes <= 1
    assert operators(result).count("RESHAPE") <= (2 if result.transposes else count + 1)


def test_option_a_shortcut() -> None:
    """A strided slice and padded channels: what converters that guess layouts from sizes are known to get wrong."""
    ints = {
        name: np.array(value, np.int64)
        for name, value in (("s", [0, 0]), ("e", [99, 99]), ("a", [2, 3]), ("t", [2, 2]))
    }
    nodes = [
        node("Conv", "x w", "c"), node("Conv", "c v", "d", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Slice", "c s e a t", "l"), node("Pad", "l p", "m"), node("Add", "d m", "y"),
    ]  # fmt: skip
    constants = ints | {
        "p": np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64),
        "w": normal(8, 8, 1, 1),
        "v": normal(12, 8, 3, 3),
    }
    assert compare(graph(nodes, {"x": (1, 8, 8, 8)}, ["y"], constants)).transposes == 0


def test_one_dimensional_convolutions_stay_images_between() -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1]), node("BatchNormalization", "c s b m v", "n"), node("Relu", "n", "r"),
        node("Conv", "r w", "d", pads=[1, 1]), node("Add", "d r", "s2"), node("Relu", "s2", "y"),
    ]  # fmt: skip
    constants = {name: np.abs(normal(4, seed=i)) + 0.1 for i, name in enumerate("sbmv")} | {"w": normal(4, 4, 3)}
    result = compare(graph(nodes, {"x": (1, 4, 9)}, ["y"], constants))
    count = Counter(operators(result))
    assert count["CONV_2D"] == 2
    assert count["RESHAPE"] <= 2


def test_attention_moves_each_operand_once() -> None:
    """Eight tokens of four features in two heads."""
    ints = {"five": np.array([1, 8, 2, 2], np.int64), "flat": np.array([1, 8, 4], np.int64)}
    nodes = []
    for name in "qkv":
        nodes += [node("MatMul", f"x w{name}", name), node("Reshape", f"{name} five", f"{name}5")]
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes.append(node("Transpose", f"{name}5", f"{name}t", perm=perm))
    nodes += [
        node("MatMul", "qt kt", "scores"), node("Softmax", "scores", "p", axis=-1), node("MatMul", "p vt", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]), node("Reshape", "ot flat", "of"), node("MatMul", "of wq", "y"),
    ]  # fmt: skip
    constants = ints | {f"w{name}": normal(4, 4, seed=i) for i, name in enumerate("qkv")}
    assert compare(graph(nodes, {"x": (1, 8, 4)}, ["y"], constants)).transposes == 4


@pytest.mark.parametrize("number", [0.4, -0.4])
@pytest.mark.parametrize("op_type", ["Max", "Min"])
@pytest.mark.parametrize("before", ["MaxPool", "Conv", "ConvTranspose"])
@pytest.mark.parametrize("size", [1, 4])
def test_limits_that_leave_out_zero(number: float, op_type: str, before: str, size: int) -> None:
    """XNNPACK fails to build pools and depthwise convolutions whose limits leave out 0."""
    constants = {"k": _scalar(number)}
    if before == "MaxPool":
        first = node("MaxPool", "x", "c", kernel_shape=[1, 1] if size == 1 else [2, 2])
    else:
        constants["w"] = normal(4, 1, 1, 1)
        first = node(before, "x w", "c", group=4)
    channels = 1 if before == "MaxPool" else 4
    compare(graph([first, node(op_type, "c k", "y")], {"x": (1, channels, size, size)}, ["y"], constants))


_LINEAR = {
    "Conv": ({"w": normal(6, 4, 3, 3)}, {"pads": [1, 1, 1, 1]}, 6),
    "grouped Conv": ({"w": normal(6, 2, 3, 3)}, {"group": 2}, 6),
    "depthwise Conv": ({"w": normal(8, 1, 3, 3)}, {"group": 4}, 8),
    "ConvTranspose": ({"w": normal(4, 6, 3, 3)}, {"strides": [2, 2], "pads": [1, 1, 0, 0]}, 6),
    "grouped ConvTranspose": ({"w": normal(4, 3, 3, 3)}, {"strides": [2, 2], "group": 2}, 6),
    "depthwise ConvTranspose": ({"w": normal(4, 1, 3, 3)}, {"strides": [2, 2], "group": 4}, 4),
}


@pytest.mark.parametrize("kind", sorted(_LINEAR))
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("by", ["channel", "number", "place"])
def test_constants_around_every_linear_operator(kind: str, op_type: str, side: str, place: str, by: str) -> None:
    constants, attributes, outputs = _LINEAR[kind]
    channels = 4 if place == "before" else outputs
    if by == "place" and place == "after" and "Transpose" in kind:
        pytest.skip("the sizes differ")
    height = {"before": 6, "after": 6 if kind == "Conv" else 4}[place]
    shape = {"channel": (channels, 1, 1), "number": (), "place": (height, 1)}[by]
    constants = constants | {"k": np.asarray(np.abs(normal(*shape, seed=3)) + 0.5, np.float32)}
    name = kind.split()[-1]
    if place == "before":
        # A denominator that is data must keep away from 0.
        first = [node("Sigmoid", "x", "s"), node(op_type, "k s" if side == "left" else "s k", "a")]
        nodes = [*first, node(name, "a w", "y", **attributes)]
    else:
        order = "k c" if side == "left" else "c k"
        nodes = [node(name, "x w", "c", **attributes), node(op_type, order, "y")]
        if side == "left" and op_type == "Div":
            nodes = [node(name, "x w", "l", **attributes), node("Exp", "l", "c"), node(op_type, order, "y")]
            constants["w"] = constants["w"] * np.float32(0.1)
    compare(graph(nodes, _IMAGE, ["y"], constants))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (2, 1, 1), (3, 4)])
def test_constants_around_layers(op_type: str, side: str, place: str, shape: tuple[int, ...]) -> None:
    constants = {"w": normal(4, 4), "k": np.asarray(np.abs(normal(*shape, seed=3)) + 0.5, np.float32)}
    order = ("k s", "k c") if side == "left" else ("s k", "c k")
    if place == "before":
        nodes = [node("Sigmoid", "x", "s"), node(op_type, order[0], "a"), node("MatMul", "a w", "y")]
    else:
        nodes = [node("MatMul", "x w", "m"), node("Exp" if op_type == "Div" else "Identity", "m", "c")]
        nodes.append(node(op_type, order[1], "y"))
        constants["w"] *= np.float32(0.3)
    compare(graph(nodes, {"x": (2, 3, 4)}, ["y"], constants))
