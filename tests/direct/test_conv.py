"""Convolutions: groups, strides, dilations and every kind of padding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.direct.graphs import compare, graph, node, normal, operators


def _conv(x: tuple[int, ...], w: tuple[int, ...], *, bias: bool = True, **attributes: object) -> object:
    constants = {"w": normal(*w, seed=1)} | ({"b": normal(w[0], seed=2)} if bias else {})
    return graph([node("Conv", "x w b" if bias else "x w", "y", **attributes)], {"x": x}, ["y"], constants)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 1), (1, 0), (2, 2)])
def test_strides_and_pads(size: int, stride: int, kernel: int, pads: tuple[int, int]) -> None:
    compare(_conv((1, 3, size, size), (4, 3, kernel, kernel), strides=[stride] * 2, pads=[pads[0]] * 2 + [pads[1]] * 2))


def test_all_axes_of_one_size() -> None:
    compare(_conv((4, 4, 4, 4), (4, 4, 4, 4), pads=[1, 2, 2, 1]))


def test_axes_differ_in_everything() -> None:
    compare(_conv((2, 3, 9, 12), (5, 3, 2, 3), strides=[2, 1], dilations=[1, 2], pads=[1, 0, 2, 3]))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("stride", [1, 2])
def test_automatic_pads(auto_pad: str, stride: int) -> None:
    compare(_conv((1, 3, 8, 9), (4, 3, 3, 2), auto_pad=auto_pad, strides=[stride, stride]))


@pytest.mark.parametrize(("groups", "channels", "outputs"), [(2, 4, 6), (4, 4, 4), (4, 4, 8), (3, 12, 6), (1, 1, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_groups(groups: int, channels: int, outputs: int, dilation: int) -> None:
    model = _conv(
        (2, channels, 7, 6), (outputs, channels // groups, 3, 3), group=groups, dilations=[dilation] * 2, pads=[1] * 4
    )
    names = operators(compare(model))
    assert ("DEPTHWISE_CONV_2D" in names) == (groups == channels and groups > 1)


def test_one_spatial_axis() -> None:
    result = compare(_conv((2, 3, 11), (4, 3, 3), strides=[2], pads=[1, 2], dilations=[2]))
    assert result.outputs[0].permutation is None


def test_no_bias() -> None:
    compare(_conv((1, 3, 5, 5), (4, 3, 3, 3), bias=False))


def test_negative_pads_crop() -> None:
    compare(_conv((1, 3, 8, 8), (4, 3, 3, 3), pads=[-1, 1, 0, -2]))


def test_weights_computed_at_run_time() -> None:
    nodes = [node("Conv", "x w b", "y", pads=[1, 1, 1, 1]), node("Conv", "y d", "z", group=4)]
    inputs = {"x": (1, 3, 6, 6), "w": (4, 3, 3, 3), "b": (4,), "d": (8, 1, 2, 2)}
    compare(graph(nodes, inputs, ["z"]))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "pads", "more"), [(2, 0, 0), (3, 1, 0), (3, 1, 1), (4, 1, 0), (4, 2, 1), (5, 0, 1), (1, 0, 0)]
)
def test_transposed(stride: int, kernel: int, pads: int, more: int) -> None:
    if more >= stride:
        pytest.skip("not a valid model: output_padding must be less than the stride")
    constants = {"w": normal(3, 5, kernel, kernel), "b": normal(5, seed=1)}
    attributes = {"strides": [stride] * 2, "pads": [pads] * 4, "output_padding": [more] * 2}
    compare(graph([node("ConvTranspose", "x w b", "y", **attributes)], {"x": (2, 3, 4, 6)}, ["y"], constants))


@pytest.mark.parametrize(("groups", "channels", "each"), [(2, 4, 3), (4, 4, 1), (4, 4, 2)])
def test_transposed_in_groups(groups: int, channels: int, each: int) -> None:
    constants = {"w": normal(channels, each, 3, 2), "b": normal(groups * each, seed=1)}
    attributes = {"strides": [2, 3], "pads": [1, 0, 1, 1], "group": groups}
    compare(graph([node("ConvTranspose", "x w b", "y", **attributes)], {"x": (1, channels, 4, 5)}, ["y"], constants))


def test_transposed_and_dilated() -> None:
    model = graph(
        [node("ConvTranspose", "x w", "y", strides=[2, 1], dilations=[2, 3], pads=[1, 1, 0, 2])],
        {"x": (1, 3, 4, 5)},
        ["y"],
        {"w": normal(3, 4, 3, 2)},
    )
    compare(model)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_transposed_with_automatic_pads(auto_pad: str) -> None:
    model = graph(
        [node("ConvTranspose", "x w", "y", strides=[2, 2], auto_pad=auto_pad)],
        {"x": (1, 3, 4, 5)},
        ["y"],
        {"w": normal(3, 4, 3, 3)},
    )
    compare(model)


@pytest.mark.parametrize("size", [[9, 11], [10, 12], [8, 11]])
def test_transposed_to_a_size(size: list[int]) -> None:
    model = graph(
        [node("ConvTranspose", "x w", "y", strides=[2, 2], output_shape=size)],
        {"x": (1, 3, 4, 5)},
        ["y"],
        {"w": normal(3, 4, 3, 3)},
    )
    compare(model)


def test_one_spatial_axis_transposed() -> None:
    model = graph(
        [node("ConvTranspose", "x w", "y", strides=[2], pads=[1, 0])], {"x": (1, 3, 7)}, ["y"], {"w": normal(3, 4, 3)}
    )
    compare(model)


def test_a_padding_that_tflite_has_itself_is_not_written_out() -> None:
    stride_one = compare(_conv((1, 3, 8, 8), (4, 3, 3, 3), pads=[1] * 4))
    odd_size = compare(_conv((1, 3, 9, 9), (4, 3, 3, 3), pads=[1] * 4, strides=[2, 2]))
    even_size = compare(_conv((1, 3, 8, 8), (4, 3, 3, 3), pads=[1] * 4, strides=[2, 2]))
    assert operators(stride_one) == operators(odd_size) == ["CONV_2D"]
    assert operators(even_size) == ["PAD", "CONV_2D"]


def test_batch_norm_and_activation_go_into_the_convolution() -> None:
    constants = {"w": normal(4, 3, 3, 3), "s": normal(4, seed=1), "b": normal(4, seed=2), "m": normal(4, seed=3)}
    constants["v"] = np.abs(normal(4, seed=4)) + 0.1
    constants |= {"low": np.float32(0), "high": np.float32(6)}
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c s b m v", "n"),
        node("Clip", "n low high", "y"),
    ]
    assert operators(compare(graph(nodes, {"x": (1, 3, 6, 6)}, ["y"], constants))) == ["CONV_2D"]


def test_a_result_that_is_read_twice_is_not_folded_away() -> None:
    nodes = [node("Conv", "x w", "c"), node("Mul", "c s", "m"), node("Relu", "m", "r"), node("Add", "r m", "y")]
    model = graph(nodes, {"x": (1, 3, 6, 6)}, ["y", "c"], {"w": normal(4, 3, 3, 3), "s": normal(1, 4, 1, 1)})
    compare(model)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1)])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_kernels_shorter_than_their_stride(
    groups: int, kernel: tuple[int, int], strides: tuple[int, int], size: tuple[int, int]
) -> None:
    """XNNPACK pads one axis wrongly where the other one has elements left over."""
    pads = [kernel[0] // 2, kernel[1] // 2] * 2
    compare(_conv((1, 4, *size), (4, 4 // groups, *kernel), group=groups, strides=list(strides), pads=pads))
