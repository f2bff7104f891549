"""Products, normalizations, recurrent layers and resizing."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import direct
from tests.direct.graphs import compare, graph, node, normal, operators


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("known", [True, False])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None, known: bool) -> None:
    b_shape = (5, 4) if trans_b else (4, 5)
    shapes = {"b": b_shape} | ({"c": bias} if bias is not None else {})
    model = graph(
        [
            node(
                "Gemm", "a b c" if bias is not None else "a b", "y", transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0
            )
        ],
        {"a": (4, 3) if trans_a else (3, 4)} | ({} if known else shapes),
        ["y"],
        {name: normal(*shape) for name, shape in shapes.items()} if known else {},
    )
    compare(model)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((4,), (4, 5)),
        ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4, 4), (2, 3, 4, 4)), ((2, 1, 3, 4), (1, 3, 4, 5)), ((4,), (2, 4, 5)),
        ((2, 2, 3, 4), (4,)), ((1, 2, 1, 2, 3, 4), (1, 2, 1, 2, 4, 5)), ((2, 2, 3, 4), (1, 1, 4, 5)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", ["a", "b", "neither"])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], known: str) -> None:
    shapes = {"a": a, "b": b}
    constants = {known: normal(*shapes.pop(known))} if known in shapes else {}
    compare(graph([node("MatMul", "a b", "y")], shapes, ["y"], constants))


def test_product_of_images_in_memory_order() -> None:
    """Convolution results lie channels-last; the product is of their last two logical axes."""
    nodes = [node("Conv", "x w", "c"), node("Transpose", "c", "t", perm=[0, 1, 3, 2]), node("MatMul", "c t", "y")]
    compare(graph(nodes, {"x": (2, 4, 4, 4)}, ["y"], {"w": normal(4, 4, 1, 1)}))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]), ("i,j->ij", [(2,), (3,)]),
        ("bhqd,bhkd->bhqk", [(1, 2, 3, 4)] * 2), ("nchw,hwk->nck", [(2, 3, 4, 5), (4, 5, 6)]), ("ij->ji", [(2, 3)]),
        ("ij->i", [(2, 3)]),
        ("...ij,jk->...ik", [(2, 2, 3, 4), (4, 5)]), ("ij,ij->ij", [(2, 3)] * 2), ("ij,ij->", [(2, 3)] * 2),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]), ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]), ("i,i->i", [(4,), (4,)]),
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
    ],
)  # fmt: skip
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    names = ["a", "b", "c"][: len(shapes)]
    nodes = [node("Einsum", " ".join(names), "y", equation=equation)]
    compare(graph(nodes, dict(zip(names, shapes, strict=True)), ["y"]))


def test_einsum_of_a_diagonal_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="diagonal"):
        direct.lower(graph([node("Einsum", "a", "y", equation="ii->i")], {"a": (3, 3)}, ["y"]))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 5), (2, 4, 4, 4), (2, 4, 3, 2, 2)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    constants = {"s": normal(4), "b": normal(4, seed=1), "m": normal(4, seed=2), "v": np.abs(normal(4, seed=3)) + 0.1}
    nodes = [node("Relu", "x", "r"), node("BatchNormalization", "r s b m v", "y", epsilon=1e-3)]
    compare(graph(nodes, {"x": shape}, ["y"], constants))


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool) -> None:
    shape = (2, 3, 4, 5)[axis:]
    constants = {"s": normal(*shape)} | ({"b": normal(*shape, seed=1)} if bias else {})
    nodes = [node("LayerNormalization", "x s b" if bias else "x s", "y", axis=axis)]
    compare(graph(nodes, {"x": (2, 3, 4, 5)}, ["y"], constants))


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 4, 4)])
def test_instance_and_group_normalization(shape: tuple[int, ...]) -> None:
    constants = {"s": normal(4), "b": normal(4, seed=1)}
    compare(graph([node("InstanceNormalization", "x s b", "y")], {"x": shape}, ["y"], constants))
    by_channel = graph(
        [node("GroupNormalization", "x s b", "y", num_groups=2)], {"x": shape}, ["y"], constants, opset=21
    )
    compare(by_channel)
    constants = {"s": normal(2), "b": normal(2, seed=1)}
    by_group = graph([node("GroupNormalization", "x s b", "y", num_groups=2)], {"x": shape}, ["y"], constants, opset=18)
    compare(by_group)


@pytest.mark.parametrize("size", [1, 3, 5, 13])
@pytest.mark.parametrize("beta", [0.75, 0.5, 0.6])
def test_local_response_normalization(size: int, beta: float) -> None:
    nodes = [node("LRN", "x", "y", size=size, alpha=0.3, beta=beta, bias=1.5)]
    compare(graph(nodes, {"x": (2, 6, 4, 4)}, ["y"]))


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    compare(graph([node("LpNormalization", "x", "y", axis=1, p=p)], {"x": (2, 3, 4)}, ["y"]))


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("reset", [0, 1])
def test_recurrent_layers(op_type: str, direction: str, initial: bool, reset: int) -> None:
    if op_type != "GRU" and reset:
        pytest.skip("only a GRU has a reset gate")
    gates, directions = _GATES[op_type], 2 if direction == "bidirectional" else 1
    constants = {
        "w": normal(directions, gates * 5, 3), "r": normal(directions, gates * 5, 5, seed=1),
        "b": normal(directions, gates * 10, seed=2),
    }  # fmt: skip
    states = {"h": (directions, 2, 5)} | ({"c": (directions, 2, 5)} if op_type == "LSTM" else {})
    attributes = {"hidden_size": 5, "direction": direction} | (
        {"linear_before_reset": reset} if op_type == "GRU" else {}
    )
    operands = "x w r b" + (" _ " + " ".join(states) if initial else "")
    results = "y yh" + (" yc" if op_type == "LSTM" else "")
    inputs = {"x": (4, 2, 3)} | (states if initial else {})
    compare(graph([node(op_type, operands, results, **attributes)], inputs, results.split(), constants))


def test_weights_of_an_unrolled_layer_stand_in_the_file_once() -> None:
    constants = {"w": normal(1, 256, 64), "r": normal(1, 256, 64, seed=1)}
    model = graph([node("LSTM", "x w r", "y", hidden_size=64)], {"x": (16, 1, 64)}, ["y"], constants)
    assert len(compare(model).data) < 2 * 4 * 2 * 256 * 64


def test_too_many_steps_are_refused() -> None:
    constants = {"w": normal(1, 16, 4), "r": normal(1, 16, 4)}
    model = graph([node("LSTM", "x w r", "y", hidden_size=4)], {"x": (600, 1, 4)}, ["y"], constants)
    with pytest.raises(UnsupportedModelError, match="600 steps"):
        direct.lower(model)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("way", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("size", [(8, 8), (6, 9), (2, 2), (5, 7), (4, 1), (1, 4), (3, 12), (12, 3)])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize(mode: str, way: str, size: tuple[int, int], rounding: str) -> None:
    if mode == "linear" and rounding != "floor":
        pytest.skip("rounding is for nearest only")
    nodes = [node("Resize", "x _ _ s", "y", mode=mode, coordinate_transformation_mode=way, nearest_mode=rounding)]
    model = graph(nodes, {"x": (2, 3, 4, 4)}, ["y"], {"s": np.array([2, 3, *size], np.int64)})
    if direct.check(model):
        pytest.skip("refused")
    compare(model)


def test_resizes_that_exporters_write_are_all_lowered() -> None:
    ways = [
        ("nearest", "asymmetric"),
        ("linear", "half_pixel"),
        ("linear", "pytorch_half_pixel"),
        ("linear", "align_corners"),
    ]
    for mode, way in ways:
        attributes = {"mode": mode, "coordinate_transformation_mode": way, "nearest_mode": "floor"}
        for operand, value in (("s", np.array([1, 3, 8, 12], np.int64)), ("f", np.array([1, 1, 2, 3], np.float32))):
            operands = "x _ _ s" if operand == "s" else "x _ f"
            model = graph([node("Resize", operands, "y", **attributes)], {"x": (1, 3, 4, 4)}, ["y"], {operand: value})
            assert operators(compare(model))[-1].startswith(("RESIZE", "TRANSPOSE"))


@pytest.mark.parametrize("way", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("scale", [0.6, 0.8, 1.3, 1.5, 2.0, 2.6])
def test_nearest_by_scales_that_no_size_says(way: str, scale: float) -> None:
    nodes = [node("Resize", "x _ f", "y", mode="nearest", coordinate_transformation_mode=way)]
    constants = {"f": np.array([1, 1, scale, scale], np.float32)}
    compare(graph(nodes, {"x": (1, 3, 7, 5)}, ["y"], constants, opset=19))


def test_scales_that_sizes_cannot_say_are_refused() -> None:
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    constants = {"f": np.array([1, 1, 0.6, 0.6], np.float32)}
    with pytest.raises(UnsupportedModelError, match="scales"):
        direct.lower(graph([node("Resize", "x _ f", "y", **attributes)], {"x": (1, 3, 4, 4)}, ["y"], constants))


def test_upsample_of_old_models() -> None:
    constants = {"f": np.array([1, 1, 2, 2], np.float32)}
    for mode in ("nearest", "linear"):
        compare(graph([node("Upsample", "x f", "y", mode=mode)], {"x": (1, 3, 4, 4)}, ["y"], constants, opset=9))
