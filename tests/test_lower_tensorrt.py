"""The ONNX for TensorRT: float16 inside, float32 outside, valid, and close to the original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import lower
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import float16_onnx
from edgecompile.types import Model, Plan
from tests.lowering import Net, largest_error, run_onnx, samples, small_net

TENSORRT = lower.RUNTIMES["tensorrt"]
FP16 = Plan(runtime="tensorrt", precision="fp16")


def types_of(path: Path) -> tuple[set[int], set[int]]:
    """The element types of inputs and outputs, and those of weights."""
    graph = onnx.load(str(path)).graph
    ports = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
    return ports, {tensor.data_type for tensor in graph.initializer}


def test_float16_weights_and_float_inputs_and_outputs(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    made = TENSORRT.lower(model, FP16, [], tmp_path / "out")
    assert types_of(made.file) == ({onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT16})
    assert made.size_bytes < 0.7 * model.path.stat().st_size
    onnx.checker.check_model(str(made.file), full_check=True)
    assert largest_error(run_onnx(made.file), run_onnx(model.path), samples(model)) < 1e-2


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    first, second = (TENSORRT.lower(model, FP16, [], tmp_path / name) for name in ("a", "b"))
    assert first.file.read_bytes() == second.file.read_bytes()


def converted(net: Net, path: Path, *outputs: str) -> tuple[Model, Path]:
    model = net.save(path / "net.onnx", *outputs)
    return model, TENSORRT.lower(model, FP16, [], path / "out").file


def test_an_output_that_is_also_read_inside(tmp_path: Path) -> None:
    net = Net()
    features = net.conv(net.input("x", 1, 3, 8, 8), 3, 8, out="features")
    model, file = converted(net, tmp_path, features, net.add("GlobalAveragePool", features))
    assert largest_error(run_onnx(file), run_onnx(model.path), samples(model)) < 1e-2


def test_inputs_that_the_standard_keeps_in_float32(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 8)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.add("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
    model, file = converted(net, tmp_path, net.add("Relu", x))
    assert onnx.TensorProto.FLOAT in types_of(file)[1]
    assert largest_error(run_onnx(file), run_onnx(model.path), samples(model)) < 1e-2


def test_a_weight_read_in_both_precisions_and_a_cast_and_constants(tmp_path: Path) -> None:
    net = Net()
    both = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.add("Mul", net.input("x", 1, 2, 4, 4), net.add("Reshape", both, net.constant(np.array([1, 1, 1, 4]))))
    x = net.add("Resize", x, "", both, mode="nearest")
    x = net.add("Add", x, net.add("Constant", value_float=0.5))
    x = net.add("Cast", net.add("Cast", x, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    model, file = converted(net, tmp_path, x)
    data = [{"x": 10 * sample["x"]} for sample in samples(model)]
    assert largest_error(run_onnx(file), run_onnx(model.path), data) < 0.1


def test_integer_inputs_stay_as_they_are(tmp_path: Path) -> None:
    net = Net()
    ids = net.input("ids", 1, 5, dtype=onnx.TensorProto.INT64)
    table = net.constant(net.rng.normal(size=(11, 6)).astype(np.float32))
    model, file = converted(net, tmp_path, net.add("Gather", table, ids))
    data = [{"ids": np.array([[0, 3, 10, 5, 5]])}]
    assert largest_error(run_onnx(file), run_onnx(model.path), data) < 1e-3


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Mul", net.input("x", 1, 4), net.constant(np.full((1, 4), 1e6, np.float32)))
    with pytest.raises(UnsupportedModelError, match=r"'w0' holds 1e\+06"):
        converted(net, tmp_path, x)


def test_an_attention_mask_is_clipped_to_the_lowest_float16(tmp_path: Path) -> None:
    net = Net()
    mask = net.constant(np.array([[0, 0, np.finfo(np.float32).min, 0]], np.float32))
    model, file = converted(net, tmp_path, net.add("Softmax", net.add("Add", net.input("x", 1, 4), mask)))
    assert largest_error(run_onnx(file), run_onnx(model.path), samples(model)) < 1e-2


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["b"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, (1, 4))],
    )
    net = Net()
    net.input("x", 1, 4)
    y = net.add("If", net.constant(np.array(True)), name="choose", then_branch=branch, else_branch=branch)
    with pytest.raises(UnsupportedModelError, match=r"If \(choose\)") as caught:
        converted(net, tmp_path, y)
    assert caught.value.operators == (("If", "choose"),)


def test_int8_needs_samples_that_fit(tmp_path: Path) -> None:
    model, int8 = small_net(tmp_path), replace(FP16, precision="int8")
    with pytest.raises(InputError, match="calibration samples"):
        TENSORRT.lower(model, int8, [], tmp_path)
    with pytest.raises(InputError, match="does not fit input 'image'"):
        TENSORRT.lower(model, int8, [{"image": np.zeros((1, 3, 8, 8), np.float32)}], tmp_path)


def test_int8_says_how_its_ranges_were_chosen(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    made = TENSORRT.lower(model, replace(FP16, precision="int8"), samples(model), tmp_path / "out")
    assert made.precision == "int8"
    assert any("INT8 ranges by" in note and "entropy" in note for note in made.notes)


def test_the_check_says_that_the_engine_is_built_on_the_device(tmp_path: Path) -> None:
    assert any("on the device" in finding for finding in TENSORRT.check(small_net(tmp_path), "fp16"))


def test_the_original_graph_is_left_alone(tmp_path: Path) -> None:
    proto = onnx.load(str(small_net(tmp_path).path))
    before = proto.SerializeToString(deterministic=True)
    float16_onnx.convert(proto, "net")
    assert proto.SerializeToString(deterministic=True) == before
