"""Reshaping and moving data: the layout is never guessed, so sizes are equal on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import direct
from tests.direct.graphs import compare, graph, node, normal, operators

_W = {"w": normal(4, 4, 1, 1, seed=9)}
_X = {"x": (4, 4, 4, 4)}
_CONV = node("Conv", "x w", "c")


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "shape",
    [
        (16, 16), (4, 64), (64, 4), (256,), (4, 4, 16), (4, 16, 4), (16, 4, 4), (4, 2, 2, 4, 4), (4, 2, 2, 2, 2, 4),
        (1, 4, 4, 4, 4), (4, 1, 4, 4, 1, 4), (2, 2, 4, 4, 2, 2), (2, 8, 16), (8, 32), (0, -1, 4), (0, 0, -1), (8, -1),
    ],
)  # fmt: skip
def test_reshape_after_a_convolution(shape: tuple[int, ...]) -> None:
    nodes = [_CONV, node("Reshape", "c shape", "r"), node("Relu", "r", "y")]
    compare(graph(nodes, _X, ["y"], _W | {"shape": _ints(*shape)}))


@pytest.mark.parametrize(
    "permutation", [(0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2), (2, 0, 1, 3)]
)
def test_transpose_between_convolutions(permutation: tuple[int, ...]) -> None:
    nodes = [_CONV, node("Transpose", "c", "t", perm=permutation), node("Conv", "t w", "y")]
    compare(graph(nodes, _X, ["y", "t"], _W))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4, -1])
def test_flatten_after_a_convolution(axis: int) -> None:
    compare(graph([_CONV, node("Flatten", "c", "y", axis=axis)], _X, ["y"], _W))


def test_flattened_image_into_a_layer_needs_no_transpose() -> None:
    nodes = [_CONV, node("Flatten", "c", "f"), node("Gemm", "f g b", "y", transB=1)]
    model = graph(nodes, _X, ["y"], _W | {"g": normal(5, 64), "b": normal(5)})
    result = compare(model)
    assert operators(result) == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert result.transposes == 0


def test_flattened_image_that_is_also_read_elsewhere() -> None:
    nodes = [_CONV, node("Flatten", "c", "f"), node("Gemm", "f g", "y", transB=1), node("Relu", "f", "z")]
    compare(graph(nodes, _X, ["y", "z"], _W | {"g": normal(5, 64)}))


def test_channel_shuffle_between_convolutions_moves_no_data() -> None:
    """Its order goes into the weights."""
    nodes = [
        _CONV,
        node("Reshape", "c five", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t four", "s"),
        node("Conv", "s w", "y", group=1),
    ]
    constants = _W | {"five": _ints(4, 2, 2, 4, 4), "four": _ints(4, 4, 4, 4)}
    assert operators(compare(graph(nodes, _X, ["y"], constants))) == ["CONV_2D", "CONV_2D"]


def test_squeeze_and_unsqueeze() -> None:
    nodes = [
        _CONV,
        node("GlobalAveragePool", "c", "g"),
        node("Squeeze", "g axes", "s"),
        node("Unsqueeze", "s other", "u"),
        node("Mul", "u c", "y"),
    ]
    compare(graph(nodes, _X, ["y", "s"], _W | {"axes": _ints(2, 3), "other": _ints(-1, 2)}))


def test_squeeze_and_unsqueeze_of_old_models() -> None:
    nodes = [node("Unsqueeze", "x", "u", axes=[0, 3]), node("Squeeze", "u", "y", axes=[0])]
    compare(graph(nodes, {"x": (2, 3)}, ["y"], opset=11))


@pytest.mark.parametrize("shape", [(4, 4, 4, 4), (4, 1, 1, 4), (2, 4, 1, 4, 4), (1,)])
def test_expand(shape: tuple[int, ...]) -> None:
    nodes = [node("Conv", "x w", "c"), node("Expand", "c shape", "y")]
    compare(graph(nodes, {"x": (1, 4, 1, 4)}, ["y"], _W | {"shape": _ints(*shape)}))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_concat_and_split(axis: int) -> None:
    nodes = [
        _CONV,
        node("Concat", "c x c", "j", axis=axis),
        node("Split", "j sizes", "a b", axis=axis),
        node("Relu", "b", "y"),
    ]
    compare(graph(nodes, _X, ["a", "y"], _W | {"sizes": _ints(5, 7)}))


def test_split_into_equal_and_uneven_parts() -> None:
    compare(graph([_CONV, node("Split", "c", "a b", axis=1)], _X, ["a", "b"], _W))
    model = graph([node("Split", "x", "a b c", axis=1, num_outputs=3)], {"x": (2, 7)}, ["a", "b", "c"], opset=18)
    compare(model)
    compare(graph([node("Split", "x", "a b", axis=1, split=[3, 4])], {"x": (2, 7)}, ["a", "b"], opset=11))


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), (1,), (1,)),
        ((0, 0), (99, 99), (2, 3), (2, 2)),
        ((-1,), (-99,), (1,), (-1,)),
        ((3, 1), (0, 4), (-1, 0), (-2, 3)),
        ((1, 1, 1, 1), (3, 4, 2, 4), (0, 1, 2, 3), (1, 1, 1, 2)),
        ((-3,), (-1,), (2,), (1,)),
    ],
)
def test_slices(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    constants = {"s": _ints(*starts), "e": _ints(*ends), "a": _ints(*axes), "t": _ints(*steps)}
    nodes = [_CONV, node("Slice", "c s e a t", "l"), node("Relu", "l", "y")]
    compare(graph(nodes, _X, ["y"], _W | constants))


def test_slice_of_old_models() -> None:
    compare(
        graph([node("Slice", "x", "y", starts=[1, 0], ends=[3, -1], axes=[1, 2])], {"x": (1, 4, 4)}, ["y"], opset=9)
    )


def test_two_strided_slices_are_one() -> None:
    constants = {"s": _ints(0), "e": _ints(99), "t": _ints(2), "two": _ints(2), "three": _ints(3)}
    nodes = [_CONV, node("Slice", "c s e two t", "a"), node("Slice", "a s e three t", "y")]
    assert operators(compare(graph(nodes, _X, ["y"], _W | constants))).count("STRIDED_SLICE") == 1


def test_slices_without_elements_vanish() -> None:
    constants = {"s": _ints(0), "e": _ints(0), "a": _ints(1)}
    nodes = [_CONV, node("Slice", "c s e a", "none"), node("Concat", "none c none", "y", axis=1)]
    assert operators(compare(graph(nodes, _X, ["y"], _W | constants))) == ["CONV_2D"]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(0, 0, 1, 2, 0, 0, 2, 1), (1, 0, 0, 0, 0, 2, 0, 0), (0, 1, 3, 1, 0, 0, 0, 2)])
def test_pads(mode: str, pads: tuple[int, ...]) -> None:
    nodes = [_CONV, node("Pad", "c p", "d", mode=mode), node("Relu", "d", "y")]
    compare(graph(nodes, _X, ["y"], _W | {"p": _ints(*pads)}, opset=19))


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_long_pads(mode: str, dtype: str) -> None:
    values = {"x": (normal(1, 2, 12, 9) > 0.5).astype(dtype)}
    nodes = [node("Pad", "x p", "y", mode=mode)]
    compare(graph(nodes, {"x": ((1, 2, 12, 9), dtype)}, ["y"], {"p": _ints(0, 0, 7, 1, 0, 0, 2, 8)}, opset=19), values)


@pytest.mark.parametrize("value", [0.0, 1.5, -np.inf])
def test_pads_with_a_value_and_negative_ones(value: float) -> None:
    constants = _W | {"p": _ints(0, -1, 1, 0, 0, 2, -1, 0), "v": np.float32(value)}
    compare(graph([_CONV, node("Pad", "c p v", "y")], _X, ["y"], constants))


def test_pads_of_chosen_axes_and_of_old_models() -> None:
    constants = {"p": _ints(1, 2, 0, 3), "v": np.float32(1), "a": _ints(-1, 1)}
    compare(graph([node("Pad", "x p v a", "y")], {"x": (2, 3, 4)}, ["y"], constants, opset=18))
    compare(graph([node("Pad", "x", "y", pads=[1, 0, 0, 2], value=2.0)], {"x": (2, 3)}, ["y"], opset=10))


def test_an_unknown_padding_is_refused() -> None:
    model = graph([node("Pad", "x p v", "y")], {"x": (2, 3), "v": ()}, ["y"], {"p": _ints(1, 1, 1, 1)})
    with pytest.raises(UnsupportedModelError, match="value is computed at run time"):
        direct.lower(model)


@pytest.mark.parametrize("repeats", [(1, 2, 1, 1), (2, 1, 3, 2), (1, 1, 1, 1)])
def test_tile(repeats: tuple[int, ...]) -> None:
    compare(graph([_CONV, node("Tile", "c r", "y")], _X, ["y"], _W | {"r": _ints(*repeats)}))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("indices", [0, -1, [0, 2], [1, 2, 3], [3, 1, 1], [[0, 1], [2, -1]]])
def test_gather_known_places(axis: int, indices: object) -> None:
    nodes = [_CONV, node("Gather", "c i", "g", axis=axis), node("Relu", "g", "y")]
    compare(graph(nodes, _X, ["y"], _W | {"i": np.array(indices, np.int64)}))


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_places_of_run_time(axis: int) -> None:
    values = {"x": normal(3, 4), "i": np.array([[2, -1], [0, -3]], np.int64)}
    compare(graph([node("Gather", "x i", "y", axis=axis)], {"x": (3, 4), "i": ((2, 2), "int64")}, ["y"]), values)


def test_embedding() -> None:
    values = {"i": np.array([[2, 0, 4]], np.int64)}
    compare(graph([node("Gather", "t i", "y")], {"i": ((1, 3), "int64")}, ["y"], {"t": normal(5, 6)}), values)


def test_gather_elements_and_nd() -> None:
    places = np.random.default_rng(0).integers(-4, 4, (4, 4, 4, 2))
    compare(graph([_CONV, node("GatherElements", "c i", "y", axis=2)], _X, ["y"], _W | {"i": places}))
    compare(graph([_CONV, node("GatherND", "c i", "y")], _X, ["y"], _W | {"i": places[0, 0, :, :]}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_and_back(mode: str) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("DepthToSpace", "c", "d", blocksize=2, mode=mode),
        node("SpaceToDepth", "d", "y", blocksize=2),
    ]
    compare(graph(nodes, {"x": (1, 4, 4, 4)}, ["d", "y"], {"w": normal(8, 4, 1, 1)}))


def test_pixel_shuffle_goes_into_the_weights() -> None:
    nodes = [
        node("Conv", "x w b", "c"), node("Tanh", "c", "t"), node("DepthToSpace", "t", "y", blocksize=2, mode="CRD"),
    ]  # fmt: skip
    model = graph(nodes, {"x": (1, 4, 4, 4)}, ["y"], {"w": normal(8, 4, 1, 1), "b": normal(8)})
    assert operators(compare(model)) == ["CONV_2D", "TANH", "DEPTH_TO_SPACE"]


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive: int, reverse: int) -> None:
    nodes = [_CONV, node("CumSum", "c a", "y", exclusive=exclusive, reverse=reverse)]
    compare(graph(nodes, _X, ["y"], _W | {"a": np.array(1, np.int64)}))


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-1, 0, 2])
def test_triangles(upper: int, k: int) -> None:
    model = graph([node("Trilu", "x k", "y", upper=upper)], {"x": (2, 4, 5)}, ["y"], {"k": np.array(k, np.int64)})
    compare(model)


def test_arithmetic_of_shapes_is_computed_beforehand() -> None:
    """What exporters write for ``x.view(x.shape[0], -1)``."""
    nodes = [
        _CONV,
        node("Shape", "c", "s"),
        node("Gather", "s zero", "n", axis=0),
        node("Unsqueeze", "n axes", "u"),
        node("Concat", "u minus", "shape", axis=0),
        node("Reshape", "c shape", "y"),
    ]
    constants = _W | {"zero": np.array(0, np.int64), "axes": _ints(0), "minus": _ints(-1)}
    assert operators(compare(graph(nodes, _X, ["y"], constants)))[0] in ("TRANSPOSE", "CONV_2D")


@pytest.mark.parametrize("op_type", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
                                     "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"])  # fmt: skip
@pytest.mark.parametrize("axes", [(1,), (2, 3), (0, -1), (1, 2, 3), ()])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op_type: str, axes: tuple[int, ...], keepdims: int) -> None:
    nodes = [_CONV, node("Abs", "c", "a"), node(op_type, "a axes" if axes else "a", "y", keepdims=keepdims)]
    constants = _W | ({"axes": _ints(*axes)} if axes else {})
    # The product of many numbers spans many magnitudes.
    compare(graph(nodes, _X, ["y"], constants, opset=18), tolerance=1e-4)


def test_reductions_of_old_models() -> None:
    compare(graph([node("ReduceMean", "x", "y", axes=[-1], keepdims=0)], {"x": (2, 3, 4)}, ["y"], opset=11))
    compare(graph([node("ReduceSum", "x axes", "y")], {"x": (2, 3)}, ["y"], {"axes": _ints(1)}, opset=13))


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, 3, -1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_places_of_extremes(op_type: str, axis: int, keepdims: int) -> None:
    compare(graph([_CONV, node(op_type, "c", "y", axis=axis, keepdims=keepdims)], _X, ["y"], _W))


def test_first_of_equal_values() -> None:
    values = {"x": np.array([[1, 3, 3, 0, 3]], np.float32)}
    compare(graph([node("ArgMax", "x", "y", axis=1)], {"x": (1, 5)}, ["y"]), values)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k(axis: int, largest: int) -> None:
    nodes = [_CONV, node("TopK", "c k", "y i", axis=axis, largest=largest)]
    compare(graph(nodes, _X, ["y", "i"], _W | {"k": _ints(3)}))


def test_outputs_that_are_one_tensor_and_inputs_that_are_outputs() -> None:
    nodes = [node("Identity", "x", "same"), node("Relu", "x", "y"), node("Identity", "y", "again")]
    result = compare(graph(nodes, {"x": (1, 3, 4, 4)}, ["same", "y", "again", "x"]))
    assert [port.model_name for port in result.outputs] == ["same", "y", "again", "x"]
    assert len({port.spec.name for port in result.outputs}) == 4


def test_constant_outputs() -> None:
    nodes = [node("Relu", "x", "y"), node("Constant", "", "k", value_floats=[1.0, 2.0])]
    compare(graph(nodes, {"x": (2, 3)}, ["y", "k"]))


@pytest.mark.parametrize("rank", [5, 6, 7, 8])
def test_high_ranks(rank: int) -> None:
    shape = [2] * rank
    begin, end = _ints(*[0] * (rank - 1), 1), _ints(*[2] * rank)
    nodes = [
        node("ReduceSum", "x axes", "sum", keepdims=0), node("ReduceMax", "x", "max", axes=[1, 3], keepdims=1),
        node("Softmax", "x", "soft", axis=2), node("Concat", "x x", "join", axis=1), node("Split", "x", "a b", axis=2),
        node("Slice", "x begin end", "part"), node("MatMul", "x w", "product"), node("Transpose", "x", "turned"),
        node("Pad", "x pads", "padded"), node("Relu", "x", "relu"), node("MatMul", "x x", "square"),
    ]  # fmt: skip
    constants = {"axes": _ints(0, 2), "begin": begin, "end": end, "w": normal(2, 3)}
    constants["pads"] = _ints(*[0] * (rank - 2), 1, 0, *[0] * (rank - 1), 2)
    outputs = ["sum", "max", "soft", "join", "a", "b", "part", "product", "padded", "relu", "square"]
    compare(graph(nodes, {"x": shape}, [*outputs, *(["turned"] if rank < 7 else [])], constants))


def test_a_transpose_that_no_kernel_does_is_refused() -> None:
    model = graph([node("Transpose", "x", "y"), node("Relu", "y", "z")], {"x": [2] * 7}, ["z"])
    with pytest.raises(UnsupportedModelError, match="7 axes"):
        direct.lower(model)


def test_a_transpose_of_high_rank_whose_axes_move_together() -> None:
    nodes = [node("Transpose", "x", "y", perm=[0, 4, 5, 6, 1, 2, 3]), node("Relu", "y", "z")]
    compare(graph(nodes, {"x": [1, 2, 3, 2, 2, 1, 3]}, ["z"]))
