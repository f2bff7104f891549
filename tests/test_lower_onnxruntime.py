"""ONNX Runtime files: the prepared graph as it is, and its QDQ INT8 form."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import lower, parity
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.types import Artifact, Model, Plan
from tests.lowering import Net, largest_error, run_onnx, samples, save_model, small_net

ONNXRUNTIME = lower.RUNTIMES["onnxruntime"]
FP32 = Plan(runtime="onnxruntime", precision="fp32")
INT8 = Plan(runtime="onnxruntime", precision="int8")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_net(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def int8(small: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return ONNXRUNTIME.lower(small, INT8, samples(small), tmp_path_factory.mktemp("int8"))


def graph_of(artifact: Artifact) -> onnx.GraphProto:
    return onnx.load(str(artifact.file)).graph


def test_the_float_file_is_the_prepared_graph(small: Model, tmp_path: Path) -> None:
    made = ONNXRUNTIME.lower(small, FP32, [], tmp_path)
    assert [node.op_type for node in graph_of(made).node] == [n.op_type for n in onnx.load(str(small.path)).graph.node]
    assert largest_error(run_onnx(made.file), run_onnx(small.path), samples(small)) == 0.0
    assert [port.permutation for port in made.inputs + made.outputs] == [None, None]
    assert made.path_taken == "onnx"


def test_int8_has_unsigned_activations_and_signed_per_channel_weights(small: Model, int8: Artifact) -> None:
    graph = graph_of(int8)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    activations = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert activations
    assert {constants[node.input[2]].dtype for node in activations} == {np.dtype(np.uint8)}
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(0)).ndim == 4
    ]
    assert len(weights) == 3
    for node in weights:
        assert constants[node.input[0]].dtype == np.int8
        assert constants[node.input[1]].shape == (constants[node.input[0]].shape[0],)
    assert int8.size_bytes > 0
    assert {port.spec.dtype for port in int8.inputs + int8.outputs} == {"float32"}


def test_int8_agrees_with_float(small: Model, int8: Artifact) -> None:
    found = parity.quantized(run_onnx(int8.file), run_onnx(small.path), samples(small, 32, seed=5))
    assert found.sqnr_db is not None
    assert found.sqnr_db > 20


def test_the_same_plan_gives_the_same_bytes(small: Model, int8: Artifact, tmp_path: Path) -> None:
    again = ONNXRUNTIME.lower(small, INT8, samples(small), tmp_path)
    assert again.file.read_bytes() == int8.file.read_bytes()


def test_reduce_range_keeps_weights_in_seven_bits(small: Model, int8: Artifact, tmp_path: Path) -> None:
    reduced = ONNXRUNTIME.lower(small, replace(INT8, reduce_range=True), samples(small), tmp_path)
    assert reduced.file.name != int8.file.name

    def largest(artifact: Artifact) -> int:
        arrays = [onnx.numpy_helper.to_array(t) for t in graph_of(artifact).initializer]
        return max(int(np.abs(a.astype(int)).max()) for a in arrays if a.dtype == np.int8 and a.ndim == 4)

    assert largest(int8) > 64
    assert largest(reduced) <= 64


def test_an_old_opset_is_raised_for_per_channel_weights(tmp_path: Path) -> None:
    net = Net(opset=11)
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    model = net.save(tmp_path / "old.onnx", net.add("Relu", x))
    made = ONNXRUNTIME.lower(model, INT8, samples(model), tmp_path)
    assert onnx.load(str(made.file)).opset_import[0].version >= 13
    assert largest_error(run_onnx(made.file), run_onnx(model.path), samples(model)) < 0.05


def test_a_note_tells_when_this_machines_integer_kernels_are_wrong(tmp_path: Path) -> None:
    """A 3x3 convolution of 3 to 24 channels: wrong on CPUs with AMX up to ONNX Runtime 1.23, right on others."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 32, 32), 3, 24))
    model = net.save(tmp_path / "amx.onnx", x)
    data = samples(model)
    made = ONNXRUNTIME.lower(model, INT8, data, tmp_path)
    losses = [sqnr_db(made.file, model.path, data, fused) for fused in (False, True)]
    assert losses[0] > 30
    assert bool(made.notes) == (losses[1] < losses[0] - 3)
    assert all("this CPU" in note for note in made.notes)


def sqnr_db(quantized: Path, floating: Path, data: list[dict[str, np.ndarray]], fused: bool) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(quantized), options, providers=["CPUExecutionProvider"])
    run = run_onnx(floating)
    signal = noise = 0.0
    for sample in data:
        (expected,) = run(sample).values()
        (found,) = session.run(None, sample)
        signal += float(np.square(expected).sum())
        noise += float(np.square(found - expected).sum())
    return 10 * float(np.log10(signal / noise))


def test_kernels_that_are_right_get_no_note(small: Model, tmp_path: Path) -> None:
    # With weights in seven bits no CPU saturates, and 16 channels are right on AMX too.
    assert ONNXRUNTIME.lower(small, replace(INT8, reduce_range=True), samples(small), tmp_path).notes == ()


def test_quantizing_prints_nothing_and_leaves_no_file(
    small: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    ONNXRUNTIME.lower(small, INT8, samples(small), tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert os.listdir(here) == []
    assert os.listdir(tmp_path / "out") == ["onnxruntime-int8.onnx"]


def test_float16_is_refused_with_what_to_do(small: Model, tmp_path: Path) -> None:
    for attempt in (
        lambda: ONNXRUNTIME.check(small, "fp16"),
        lambda: ONNXRUNTIME.lower(small, replace(FP32, precision="fp16"), [], tmp_path),
    ):
        with pytest.raises(InputError, match="float16") as caught:
            attempt()
        assert "fp32 or int8" in (caught.value.remedy or "")


def test_int8_without_samples_is_refused(small: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibration samples"):
        ONNXRUNTIME.lower(small, INT8, [], tmp_path)


def test_a_graph_that_onnx_runtime_does_not_take_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(str(small_net(tmp_path).path))
    proto.graph.node[0].op_type = "Wobble"
    model = save_model(proto, tmp_path / "wobble.onnx")
    with pytest.raises(UnsupportedModelError, match="Wobble") as caught:
        ONNXRUNTIME.check(model, "fp32")
    assert caught.value.exit_code == 5
    with pytest.raises(UnsupportedModelError, match="Wobble"):
        ONNXRUNTIME.lower(model, FP32, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
