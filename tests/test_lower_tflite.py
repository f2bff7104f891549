"""TFLite files: right values, names and order; the same bytes again; no network; nothing on the terminal."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import lower
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import flatbuffer, tflite, via_onnx2tf
from edgecompile.lower.via_onnx2tf import output_permutation
from edgecompile.types import Artifact, Model, Plan
from tests.lowering import Net, largest_error, run_onnx, run_tflite, samples, save_model, small_net

TFLITE = lower.RUNTIMES["tflite"]
FP32 = Plan(runtime="tflite", precision="fp32")
FP16 = Plan(runtime="tflite", precision="fp16")
INT8 = Plan(runtime="tflite", precision="int8")
INT8_IO = Plan(runtime="tflite", precision="int8", io_dtype="int8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_net(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def through_onnx2tf(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return TFLITE.lower(small, FP32, samples(small), tmp_path_factory.mktemp("float"), path="onnx2tf")


# ------------------------------------------------------------------------------------------------ through onnx2tf


def test_a_float_file_computes_what_the_model_does(small: Model, through_onnx2tf: Artifact) -> None:
    assert largest_error(run_tflite(through_onnx2tf), run_onnx(small.path), samples(small, seed=1)) < 1e-5
    (port,) = through_onnx2tf.inputs
    assert (port.model_name, port.spec.name, port.spec.shape, port.permutation) == (
        "image",
        "image",
        (1, 16, 16, 3),
        (0, 2, 3, 1),
    )
    assert through_onnx2tf.path_taken == "onnx2tf"
    assert through_onnx2tf.size_bytes == through_onnx2tf.file.stat().st_size


def test_the_same_model_gives_the_same_bytes(small: Model, through_onnx2tf: Artifact, tmp_path: Path) -> None:
    again = TFLITE.lower(small, FP32, samples(small), tmp_path, path="onnx2tf")
    assert again.sha256 == through_onnx2tf.sha256
    for plan in (FP16, INT8):
        pair = [
            TFLITE.lower(small, plan, samples(small), tmp_path / str(i), float_artifact=through_onnx2tf)
            for i in range(2)
        ]
        assert pair[0].file.read_bytes() == pair[1].file.read_bytes()


def many_ports(folder: Path) -> Model:
    """Inputs and outputs of equal sizes on every axis, in an order and with names that converters do not keep."""
    net = Net()
    b, a = net.input("b:0", 1, 4, 4, 4), net.input("/a/in", 1, 4, 4, 4)
    first = net.conv(b, 4, 4, out="z/first")
    second = net.add("Mul", net.conv(a, 4, 4, groups=2), first, out="a:second")
    third = net.add("Flatten", second, out="/m")
    return net.save(folder / "ports.onnx", first, third, second)


@pytest.fixture(scope="module", params=TFLITE.paths)
def ported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Artifact]:
    folder = tmp_path_factory.mktemp("ports")
    model = many_ports(folder)
    return model, TFLITE.lower(model, FP32, samples(model), folder, path=request.param)


def test_names_order_and_layouts_are_exact_where_all_sizes_are_equal(
    ported: tuple[Model, Artifact], tmp_path: Path
) -> None:
    model, artifact = ported
    assert [port.spec.name for port in artifact.inputs] == ["b:0", "/a/in"]
    assert [port.spec.name for port in artifact.outputs] == ["z/first", "/m", "a:second"]
    assert largest_error(run_tflite(artifact), run_onnx(model.path), samples(model, seed=3)) < 1e-5
    quantized = TFLITE.lower(model, INT8, samples(model), tmp_path, float_artifact=artifact)
    assert [port.permutation for port in quantized.outputs] == [port.permutation for port in artifact.outputs]
    assert largest_error(run_tflite(quantized), run_onnx(model.path), samples(model)) < 0.1


def test_the_files_tensors_carry_the_names_in_the_models_order(ported: tuple[Model, Artifact], tmp_path: Path) -> None:
    model, artifact = ported
    for plan in (FP32, FP16, INT8, INT8_IO):
        made = artifact
        if plan is not FP32:
            made = TFLITE.lower(model, plan, samples(model), tmp_path, float_artifact=artifact)
        graph = flatbuffer.unpack(made.file.read_bytes())
        subgraph = graph.subgraphs[0]
        assert [flatbuffer.tensor_name(subgraph.tensors[i]) for i in subgraph.inputs] == ["b:0", "/a/in"]
        named = [flatbuffer.tensor_name(subgraph.tensors[i]) for i in subgraph.outputs]
        assert named == ["z/first", "/m", "a:second"]
        names = [tensor.name for tensor in subgraph.tensors]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", TFLITE.paths)
def test_an_output_that_is_an_input_or_an_output_twice(tmp_path: Path, path: str) -> None:
    net = Net()
    x = net.input("x", 1, 3, 8, 8)
    y = net.conv(x, 3, 4, out="y")
    proto = onnx.load(str(net.save(tmp_path / "a.onnx", y).path))
    proto.graph.output.append(proto.graph.input[0])
    model = save_model(proto, tmp_path / "echo.onnx")
    artifact = TFLITE.lower(model, FP32, samples(model), tmp_path, path=path)
    assert largest_error(run_tflite(artifact), run_onnx(model.path), samples(model)) < 1e-5


@pytest.mark.parametrize("path", TFLITE.paths)
def test_on_request_all_lies_as_in_the_model(tmp_path: Path, path: str) -> None:
    model = many_ports(tmp_path)
    plans = [replace(plan, input_layout="nchw") for plan in (FP32, FP16, INT8, INT8_IO)]
    floating = TFLITE.lower(model, plans[0], samples(model), tmp_path, path=path)
    for plan in plans:
        made = TFLITE.lower(model, plan, samples(model), tmp_path, path=path, float_artifact=floating)
        assert "-nchw" in made.file.name
        assert made.path_taken == path
        assert [p.permutation for p in (*made.inputs, *made.outputs)] == [None] * 5
        assert made.float_islands in (None, 0)
        allowed = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[plan.precision]
        assert largest_error(run_tflite(made), run_onnx(model.path), samples(model)) < allowed


def test_the_order_of_trust_is_our_own_lowering_first(tmp_path: Path) -> None:
    assert TFLITE.paths == ("direct", "onnx2tf")
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    odd = net.save(tmp_path / "odd.onnx", net.add("Hardmax", net.add("Flatten", x)))
    data = samples(odd)
    artifact = TFLITE.lower(odd, FP32, data, tmp_path)
    assert artifact.path_taken == "onnx2tf"
    assert largest_error(run_tflite(artifact), run_onnx(odd.path), data) < 1e-5
    with pytest.raises(UnsupportedModelError, match="Hardmax"):
        TFLITE.lower(odd, FP32, data, tmp_path, path="direct")


def test_an_operator_that_onnx2tf_fails_on_is_named(tmp_path: Path) -> None:
    net = Net(opset=20)
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    theta = net.constant(np.tile(np.eye(2, 3, dtype=np.float32), (1, 1, 1)))
    size = net.constant(np.array([1, 4, 8, 8], np.int64))
    grid = net.add("AffineGrid", theta, size, name="warp/grid")
    x = net.add("GridSample", x, grid, name="warp/sample")
    model = net.save(tmp_path / "warp.onnx", x)
    with pytest.raises(UnsupportedModelError, match=r"AffineGrid \(warp/grid\)") as caught:
        TFLITE.lower(model, FP32, samples(model), tmp_path / "out", path="onnx2tf")
    assert caught.value.exit_code == 5
    assert ("AffineGrid", "warp/grid") in caught.value.operators
    assert not list((tmp_path / "out").glob("*"))


def test_an_unknown_operator_is_found_before_any_work(tmp_path: Path) -> None:
    proto = onnx.load(str(small_net(tmp_path).path))
    proto.graph.node[0].op_type = "Wobble"
    proto.graph.node[0].domain = "com.example"
    model = save_model(proto, tmp_path / "wobble.onnx")
    with pytest.raises(UnsupportedModelError, match=r"com\.example\.Wobble \(Conv_0\)") as caught:
        TFLITE.check(model, "fp32")
    assert caught.value.operators == (("com.example.Wobble", "Conv_0"),)


def test_an_operator_that_tflite_lacks_is_named(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    model = net.save(tmp_path / "acosh.onnx", net.add("Acosh", x))
    with pytest.raises(UnsupportedModelError, match="TFLite has no operator for TensorFlow's Acosh"):
        TFLITE.lower(model, FP32, samples(model), tmp_path / "out", path="onnx2tf")


def test_the_check_tells_when_the_file_will_be_made_through_onnx2tf(small: Model, tmp_path: Path) -> None:
    assert TFLITE.check(small, "fp32") == ()
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    model = net.save(tmp_path / "odd.onnx", net.add("Hardmax", x))
    assert [finding for finding in TFLITE.check(model, "fp32") if "Hardmax" in finding and "onnx2tf" in finding]


def test_a_sample_of_the_wrong_shape_is_refused_with_both_shapes(small: Model, tmp_path: Path) -> None:
    wrong = [{"image": np.zeros((1, 3, 8, 8), np.float32)}]
    with pytest.raises(InputError, match=r"expected shape \(1, 3, 16, 16\), found \(1, 3, 8, 8\)"):
        TFLITE.lower(small, FP32, wrong, tmp_path, path="onnx2tf")


def test_an_unknown_path_is_refused(small: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lowering path 'guess'"):
        TFLITE.lower(small, FP32, samples(small), tmp_path, path="guess")


OFFLINE = """
    import sys
    from pathlib import Path
    # An RGB model: what onnx2tf downloads images for. Any try to reach the network would raise in the child too.
    from edgecompile.lower import via_onnx2tf
    from tests.lowering import samples, small_net
    model = small_net(Path(sys.argv[1]))
    made = via_onnx2tf.convert(model, samples(model))
    assert made.data[4:8] == b"TFL3"
"""


def test_converting_prints_nothing_and_leaves_no_file_behind(tmp_path: Path) -> None:
    here = tmp_path / "cwd"
    here.mkdir()
    (tmp_path / "tmp").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OFFLINE), str(tmp_path)],
        cwd=here,
        env={
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PATH": "/usr/bin:/bin",
            "TMPDIR": str(tmp_path / "tmp"),
            # Should a request get past the block in the child, it would end here.
            "https_proxy": "http://127.0.0.1:9",
            "http_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(here.iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_child_cannot_reach_the_network(tmp_path: Path) -> None:
    code = """
        import sys, socket
        from pathlib import Path
        from edgecompile.lower import child
        with child.isolated(Path(sys.argv[1])):
            import requests
            try:
                requests.get("http://127.0.0.1:9", timeout=1)
            except OSError as exc:
                assert "forbids network access" in str(exc), exc
            else:
                raise SystemExit("reached the network")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=True)


# -------------------------------------------------------------------------------------------------- output layouts


def pairs(permutation: tuple[int, ...], *shape: int) -> list[tuple[np.ndarray, np.ndarray]]:
    reference = np.random.default_rng(0).normal(size=shape)
    return [(reference.transpose(permutation), reference)]


@pytest.mark.parametrize("permutation", [(0, 2, 3, 1), (0, 1, 2, 3), (0, 3, 2, 1), (0, 1, 3, 2)])
def test_a_layout_is_found_by_values_when_all_sizes_are_equal(permutation: tuple[int, ...]) -> None:
    assert output_permutation(pairs(permutation, 1, 5, 5, 5), "y") == permutation


def test_axes_of_size_one_do_not_matter() -> None:
    found = output_permutation(pairs((0, 2, 3, 1), 1, 7, 1, 1), "y")
    assert [(1, 7, 1, 1)[axis] for axis in found] == [1, 1, 1, 7]


def test_a_broadcast_output_takes_the_one_known_layout() -> None:
    reference = np.broadcast_to(np.arange(4.0).reshape(1, 4, 1, 1), (1, 4, 4, 4))
    assert output_permutation([(reference.transpose(0, 2, 3, 1), reference)], "y") == (0, 2, 3, 1)


def test_a_layout_that_values_do_not_tell_is_not_guessed() -> None:
    reference = np.fromfunction(lambda _, c, h, w: c + h + w, (1, 4, 4, 4))
    with pytest.raises(via_onnx2tf.ConversionFailure, match="cannot be established"):
        output_permutation([(reference, reference)], "y")


def test_an_output_of_another_rank_is_refused() -> None:
    with pytest.raises(via_onnx2tf.ConversionFailure, match=r"shape \(1, 12\)"):
        output_permutation([(np.zeros((1, 12)), np.zeros((1, 3, 4)))], "y")


# ------------------------------------------------------------------------------------------------ smaller precisions


def test_float16_halves_the_weights_and_keeps_float_inputs_and_outputs(
    small: Model, through_onnx2tf: Artifact, tmp_path: Path
) -> None:
    half = TFLITE.lower(small, FP16, samples(small), tmp_path, float_artifact=through_onnx2tf)
    assert half.size_bytes < through_onnx2tf.size_bytes
    assert {port.spec.dtype for port in half.inputs + half.outputs} == {"float32"}
    assert 0 < largest_error(run_tflite(half), run_onnx(small.path), samples(small)) < 1e-2
    assert half.float_islands is None


def test_weights_that_float16_does_not_hold_stay_float32(tmp_path: Path) -> None:
    for number, factor in enumerate((1.0, 1e6, 1e-7)):
        net = Net()
        x = net.conv(net.input("x", 1, 3, 8, 8), 3, 8)
        net.weights[0] = onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(net.weights[0]) * np.float32(factor), "w0"
        )
        model = net.save(tmp_path / f"{number}.onnx", x)
        made = TFLITE.lower(model, FP16, samples(model), tmp_path / str(number), path="direct")
        assert largest_error(run_tflite(made), run_onnx(model.path), samples(model)) < 2e-3
        halves = [
            t for t in flatbuffer.unpack(made.file.read_bytes()).subgraphs[0].tensors if t.type == flatbuffer.FLOAT16
        ]
        assert bool(halves) == (factor == 1)


def test_the_delegate_takes_all_of_a_float16_file(small: Model, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    half = TFLITE.lower(small, FP16, samples(small), tmp_path)
    interpreter = Interpreter(model_path=str(half.file))
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    left = [d["op_name"] for d in details if d["op_name"] == "DELEGATE"]
    assert len(left) == 1
    names = operator_names(half)
    assert names.count("DEQUANTIZE") == 2 * sum(
        name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for name in names
    )


def operator_names(artifact: Artifact) -> list[str]:
    graph = flatbuffer.unpack(artifact.file.read_bytes())
    return [flatbuffer.operator_name(graph, operator) for operator in graph.subgraphs[0].operators]


def test_int8_has_per_channel_weights_static_activations_and_no_float_operator(
    small: Model, through_onnx2tf: Artifact, tmp_path: Path
) -> None:
    made = TFLITE.lower(small, INT8, samples(small), tmp_path, float_artifact=through_onnx2tf)
    assert {port.spec.dtype for port in made.inputs + made.outputs} == {"float32"}
    assert made.float_islands == 0
    assert largest_error(run_tflite(made), run_onnx(small.path), samples(small)) < 0.1
    graph = flatbuffer.unpack(made.file.read_bytes())
    subgraph = graph.subgraphs[0]
    names = [flatbuffer.operator_name(graph, operator) for operator in subgraph.operators]
    assert names[0] == "QUANTIZE"
    assert names[-1] == "DEQUANTIZE"
    convolutions = [op for op, name in zip(subgraph.operators, names, strict=True) if name == "CONV_2D"]
    assert convolutions
    for operator in convolutions:
        weights = subgraph.tensors[operator.inputs[1]]
        assert weights.type == flatbuffer.INT8
        assert len(weights.quantization.scale) == weights.shape[0]


def test_int8_inputs_and_outputs_on_request(small: Model, through_onnx2tf: Artifact, tmp_path: Path) -> None:
    made = TFLITE.lower(small, INT8_IO, samples(small), tmp_path, float_artifact=through_onnx2tf)
    for port in made.inputs + made.outputs:
        assert port.spec.dtype == "int8"
        assert port.spec.quantization is not None
        assert port.spec.quantization.axis is None
    assert made.float_islands == 0
    assert largest_error(run_tflite(made), run_onnx(small.path), samples(small)) < 0.1


def test_int8_without_samples_is_refused(small: Model, through_onnx2tf: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration samples"):
        TFLITE.lower(small, INT8, [], tmp_path, float_artifact=through_onnx2tf)


def test_a_lost_float_file_is_told(small: Model, through_onnx2tf: Artifact, tmp_path: Path) -> None:
    from dataclasses import replace

    gone = replace(through_onnx2tf, file=tmp_path / "gone.tflite")
    with pytest.raises(InputError, match="cannot be read"):
        TFLITE.lower(small, FP16, samples(small), tmp_path, float_artifact=gone)


def test_weights_lie_on_sixteen_byte_boundaries(through_onnx2tf: Artifact) -> None:
    from ai_edge_litert import schema_py_generated as schema

    data = through_onnx2tf.file.read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    checked = 0
    for i in range(model.BuffersLength()):
        array = model.Buffers(i).DataAsNumpy()
        if isinstance(array, np.ndarray) and array.size:
            start = array.__array_interface__["data"][0] - np.frombuffer(data, np.uint8).__array_interface__["data"][0]
            assert start % 16 == 0
            checked += 1
    assert checked > 3


def test_the_first_path_that_takes_the_model_is_taken(small: Model) -> None:
    made, taken = tflite.float_file(small, samples(small))
    assert taken == "direct"
    assert made.data[4:8] == b"TFL3"


@pytest.mark.parametrize("path", TFLITE.paths)
def test_a_padded_max_pool_keeps_a_fine_scale(tmp_path: Path, path: str) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 3, 16, 16), 3, 8)
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    model = net.save(tmp_path / "pool.onnx", net.conv(x, 8, 4, out="y"))
    floating = TFLITE.lower(model, FP32, samples(model), tmp_path, path=path)
    assert largest_error(run_tflite(floating), run_onnx(model.path), samples(model)) < 1e-5
    made = TFLITE.lower(model, INT8, samples(model), tmp_path, float_artifact=floating)
    assert made.float_islands == 0
    assert largest_error(run_tflite(made), run_onnx(model.path), samples(model)) < 0.05
