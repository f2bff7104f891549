"""Pools: every padding, ceil_mode, what an average divides by."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import direct
from tests.direct.graphs import compare, graph, node, operators


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_maximum(size: int, kernel: int, stride: int, pads: tuple[int, int], ceil_mode: int) -> None:
    attributes = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [pads[0]] * 2 + [pads[1]] * 2,
        "ceil_mode": ceil_mode,
    }
    # All values are negative: padding with 0 would show.
    values = {"x": -np.abs(np.random.default_rng(0).standard_normal((2, 3, size, size))).astype(np.float32) - 1}
    compare(graph([node("MaxPool", "x", "y", **attributes)], {"x": (2, 3, size, size)}, ["y"]), values)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 1), (1, 0)])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average(
    size: int, kernel: int, stride: int, pads: tuple[int, int], ceil_mode: int, count_include_pad: int
) -> None:
    attributes = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [pads[0]] * 2 + [pads[1]] * 2,
        "ceil_mode": ceil_mode,
        "count_include_pad": count_include_pad,
    }
    model = graph([node("AveragePool", "x", "y", **attributes)], {"x": (2, 3, size, size)}, ["y"], opset=19)
    if count_include_pad and pads[0] != pads[1]:
        # ONNX Runtime divides by something else than the standard says: neither answer would be the model's.
        with pytest.raises(UnsupportedModelError, match="counts pads"):
            direct.lower(model)
    else:
        compare(model)


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_pads(op_type: str, auto_pad: str) -> None:
    attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": auto_pad}
    compare(graph([node(op_type, "x", "y", **attributes)], {"x": (1, 3, 8, 9)}, ["y"]))


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_dilated(op_type: str) -> None:
    attributes = {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [1, 1, 0, 1], "dilations": [3, 2]}
    compare(graph([node(op_type, "x", "y", **attributes)], {"x": (1, 3, 9, 9)}, ["y"], opset=19))


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_one_spatial_axis(op_type: str) -> None:
    attributes = {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}
    compare(graph([node(op_type, "x", "y", **attributes)], {"x": (2, 3, 10)}, ["y"]))


@pytest.mark.parametrize("op_type", ["GlobalMaxPool", "GlobalAveragePool"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (2, 3, 7), (4, 4, 4, 4)])
def test_global(op_type: str, shape: tuple[int, ...]) -> None:
    compare(graph([node(op_type, "x", "y")], {"x": shape}, ["y"]))


@pytest.mark.parametrize("p", [1, 2])
def test_norm(p: int) -> None:
    attributes = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 1], "p": p}
    compare(graph([node("LpPool", "x", "y", **attributes)], {"x": (1, 3, 6, 6)}, ["y"]))


def test_after_an_activation_that_is_never_negative_zeros_are_padded() -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [node("Relu", "x", "r"), node("MaxPool", "r", "y", **attributes)]
    assert operators(compare(graph(nodes, {"x": (1, 3, 8, 8)}, ["y"]))) == ["RELU", "PAD", "MAX_POOL_2D"]


def test_indices_are_refused_only_when_they_are_read() -> None:
    attributes = {"kernel_shape": [2, 2]}
    compare(graph([node("MaxPool", "x", "y unused", **attributes)], {"x": (1, 3, 8, 8)}, ["y"]))
    with pytest.raises(UnsupportedModelError, match="result 1 of MaxPool"):
        direct.lower(graph([node("MaxPool", "x", "y i", **attributes)], {"x": (1, 3, 8, 8)}, ["y", "i"]))


def test_three_spatial_axes_are_refused_by_name() -> None:
    model = graph([node("MaxPool", "x", "y", kernel_shape=[2, 2, 2])], {"x": (1, 3, 4, 4, 4)}, ["y"])
    with pytest.raises(UnsupportedModelError) as caught:
        direct.lower(model)
    assert caught.value.operators == (("MaxPool", "the_MaxPool_y"),)
    assert "3 spatial axes" in caught.value.message


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (2, 1), (1, 3), (3, 1)])
def test_kernels_shorter_than_their_stride(op_type: str, kernel: tuple[int, int], strides: tuple[int, int]) -> None:
    attributes = {"kernel_shape": list(kernel), "strides": list(strides), "pads": [kernel[0] // 2, kernel[1] // 2] * 2}
    compare(graph([node(op_type, "x", "y", **attributes)], {"x": (1, 4, 8, 6)}, ["y"]))
