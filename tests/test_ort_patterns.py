"""What ONNX Runtime is slow with is written as something else: GELU in every order of its factors, and poolings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.lower import ort_patterns
from edgecompile.lower.onnxruntime import quantize
from edgecompile.types import Precision

NUMBERS = {"root": math.sqrt(2), "inverse": math.sqrt(0.5), "one": 1.0, "half": 0.5, "third": 1 / 3}


def gelu(outer: tuple[str, str], inner: tuple[str, str], *, by: str = "Div", half: str = "half") -> onnx.ModelProto:
    """``outer`` holds ``inner`` for the product of the two others."""
    scale = "root" if by == "Div" else "inverse"
    nodes = [
        helper.make_node("Add", ["a", "a"], ["x"], name="before"),
        helper.make_node(by, ["x", scale], ["scaled"], name="scale"),
        helper.make_node("Erf", ["scaled"], ["curve"], name="curve"),
        helper.make_node("Add", ["curve", "one"], ["shifted"], name="shift"),
        helper.make_node("Mul", list(inner), ["inner"], name="inner"),
        helper.make_node("Mul", list(outer), ["y"], name="outer"),
    ]
    for node in nodes:
        node.input[:] = [half if name == "half" else name for name in node.input]
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 6, 8]) for name in ("a", "y")]
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(np.float32(v), name) for name, v in NUMBERS.items() if name in used]
    graph = helper.make_graph(nodes, "gelu", io[:1], io[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def fused(proto: onnx.ModelProto, folder: Path) -> list[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(folder / "optimized.onnx")).graph.node]


def run(proto: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.linspace(-4, 4, 48, dtype=np.float32).reshape(1, 6, 8)})
    return np.asarray(found)


def groupings() -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Each way to multiply three factors two at a time, in both orders of each product."""
    found = []
    for third in ("x", "half", "shifted"):
        a, b = (name for name in ("x", "half", "shifted") if name != third)
        found += [(outer, inner) for outer in ((third, "inner"), ("inner", third)) for inner in ((a, b), (b, a))]
    return found


@pytest.mark.parametrize("by", ["Div", "Mul"])
@pytest.mark.parametrize(("outer", "inner"), groupings())
def test_every_order_is_fused(outer: tuple[str, str], inner: tuple[str, str], by: str, tmp_path: Path) -> None:
    proto = gelu(outer, inner, by=by)
    before = run(proto)
    changed = ort_patterns.arrange(proto, "fp32")
    onnx.checker.check_model(proto)
    assert fused(proto, tmp_path) == ["Add", "Gelu"]
    assert run(proto) == pytest.approx(before, abs=1e-6)
    assert changed == int(by == "Mul" or "x" in outer)


def test_what_is_fused_as_it_is_stays(tmp_path: Path) -> None:
    proto = gelu(("inner", "half"), ("x", "shifted"))
    before = proto.SerializeToString()
    assert ort_patterns.arrange(proto, "fp32") == 0
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("other", ["half", "x", "curve"])
def test_what_only_looks_like_it_stays(other: str) -> None:
    """Another factor, another input of the error function, and a curve that is read elsewhere too."""
    proto = gelu(("x", "inner"), ("half", "shifted"), half="third" if other == "half" else "half")
    if other == "x":
        proto.graph.node[1].input[0] = "a"
    if other == "curve":
        proto.graph.output.append(helper.make_tensor_value_info("curve", TensorProto.FLOAT, [1, 6, 8]))
    before = proto.SerializeToString()
    assert ort_patterns.arrange(proto, "fp32") == 0
    assert proto.SerializeToString() == before


# ------------------------------------------------------------------------------------------------------- poolings


def pooling(
    op_type: str,
    *,
    behind: str = "Conv",
    axes: Sequence[int] | None = None,
    shape: Sequence[int] = (1, 16, 8, 8),
    **attributes: object,
) -> onnx.ModelProto:
    """A pooling between two convolutions, shapes inferred."""
    rng = np.random.default_rng(0)
    constants = [
        numpy_helper.from_array(rng.normal(0, 0.2, (16, 16, 1, 1)).astype(np.float32), name) for name in ("w0", "w1")
    ]
    inputs = ["before"]
    if axes is not None:
        constants.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
        inputs.append("axes")
    nodes = [
        helper.make_node("Conv", ["a", "w0"], ["before"], name="before"),
        helper.make_node(op_type, inputs, ["pooled"], name="pool", **attributes),
        helper.make_node(behind, ["pooled", "w1"] if behind == "Conv" else ["pooled"], ["y"], name="behind"),
    ]
    graph = helper.make_graph(
        nodes, "pooling", [helper.make_tensor_value_info("a", TensorProto.FLOAT, list(shape))],
        [onnx.ValueInfoProto(name="y")], constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)


def outputs(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.random.default_rng(1).normal(0, 1, (1, 16, 8, 8)).astype(np.float32)})
    return np.asarray(found)


def arranged(proto: onnx.ModelProto, precision: Precision) -> list[str]:
    """The operators after it, which compute what they did before."""
    before = outputs(proto)
    changed = ort_patterns.arrange(proto, precision)
    onnx.checker.check_model(proto, full_check=True)
    assert outputs(proto) == pytest.approx(before, abs=1e-5)
    read = {name for node in proto.graph.node for name in node.input}
    assert not changed or {tensor.name for tensor in proto.graph.initializer} <= read
    found = [node.op_type for node in proto.graph.node]
    assert changed == int(found[1] not in ("ReduceMean", "AveragePool"))
    return found[1:-1]


@pytest.mark.parametrize("axes", [(2, 3), (3, 2), (-1, -2)])
def test_a_mean_over_maps_is_a_global_pooling_in_int8_alone(axes: tuple[int, ...]) -> None:
    assert arranged(pooling("ReduceMean", axes=axes, keepdims=1), "fp32") == ["ReduceMean"]
    assert arranged(pooling("ReduceMean", axes=axes, keepdims=1), "int8") == ["GlobalAveragePool"]


def test_a_mean_that_drops_its_axes_is_a_global_pooling_too() -> None:
    proto = pooling("ReduceMean", axes=(2, 3), keepdims=0, behind="Relu")
    assert arranged(proto, "int8") == ["GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("kind", ["mean", "average"])
def test_other_types_stay(kind: str, dtype: int) -> None:
    io = [helper.make_tensor_value_info(name, dtype, [1, 4, 6, 6]) for name in ("a", "y")]
    node = helper.make_node("AveragePool", ["a"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    constants = []
    if kind == "mean":
        node = helper.make_node("ReduceMean", ["a", "axes"], ["y"], keepdims=1)
        constants = [numpy_helper.from_array(np.array([2, 3], np.int64), "axes")]
    graph = helper.make_graph([node], "typed", io[:1], io[1:], constants)
    assert ort_patterns.arrange(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), "int8") == 0


def test_names_that_are_there_stay_theirs() -> None:
    proto = pooling("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "edgecompile_average_0"))
    assert arranged(proto, "int8") == ["Conv"]
    assert proto.graph.node[1].input[1] == "edgecompile_average_1"
    assert arranged(pooling("AveragePool", kernel_shape=[2, 2], strides=[2, 2]), "int8") == ["Conv"]


def test_a_pool_between_operators_that_stay_in_float_stays_in_float() -> None:
    proto = pooling("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    samples = [{"a": np.random.default_rng(i).normal(0, 1, (1, 16, 8, 8)).astype(np.float32)} for i in range(4)]
    ort_patterns.arrange(proto, "int8")
    kept = quantize(proto, samples, keep_float=["before", "y"])
    assert [node.op_type for node in kept.graph.node] == ["Conv", "Conv", "Conv"]


def test_what_a_branch_reads_stays() -> None:
    proto = gelu(("x", "inner"), ("half", "shifted"))
    branch = [
        helper.make_graph(
            [helper.make_node("Identity", ["inner"], [f"{name}_out"])], name, [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 6, 8])],
        )
        for name in ("then", "else")
    ]  # fmt: skip
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.append(
        helper.make_node("If", ["flag"], ["z"], then_branch=branch[0], else_branch=branch[1], name="if")
    )
    assert ort_patterns.arrange(proto, "fp32") == 0


def test_a_scale_keeps_its_rank() -> None:
    proto = gelu(("x", "inner"), ("half", "shifted"), by="Mul")
    tensor = next(t for t in proto.graph.initializer if t.name == "inverse")
    tensor.dims.extend([1, 1, 1])
    before = run(proto)
    assert ort_patterns.arrange(proto, "fp32") == 1
    assert run(proto).shape == before.shape
    assert run(proto) == pytest.approx(before, abs=1e-6)


def test_a_window_over_the_whole_map_is_a_global_pooling() -> None:
    assert arranged(pooling("AveragePool", kernel_shape=[8, 8], strides=[8, 8]), "int8") == ["GlobalAveragePool"]


def test_other_means_stay() -> None:
    assert arranged(pooling("ReduceMean", axes=(2,), keepdims=1), "int8") == ["ReduceMean"]


ALIKE = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    {"kernel_shape": [2, 3], "strides": [1, 2]},
]


@pytest.mark.parametrize("attributes", ALIKE)
def test_equal_windows_are_a_convolution_in_int8_alone(attributes: dict[str, object]) -> None:
    assert arranged(pooling("AveragePool", **attributes), "fp32") == ["AveragePool"]
    assert arranged(pooling("AveragePool", **attributes), "int8") == ["Conv"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 2], "dilations": [2, 2]},
    ],
)
def test_windows_of_several_sizes_stay(attributes: dict[str, object]) -> None:
    assert arranged(pooling("AveragePool", **attributes), "int8") == ["AveragePool"]


def test_an_average_by_a_convolution_is_as_exact_in_int8(tmp_path: Path) -> None:
    """All weights are one number, which is exactly its scale times the largest integer."""
    rng = np.random.default_rng(2)
    samples = [{"a": rng.normal(0, 1, (1, 16, 8, 8)).astype(np.float32)} for _ in range(8)]
    proto = pooling("AveragePool", **ALIKE[1])
    expected = outputs(proto)

    def error(made: onnx.ModelProto) -> float:
        return float(np.abs(outputs(made) - expected).max() / np.ptp(expected))

    plain = error(quantize(proto, samples))
    ort_patterns.arrange(proto, "int8")
    assert error(quantize(proto, samples)) <= plain + 1 / 255
