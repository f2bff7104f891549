"""Running files and originals on this machine: names, layouts and types are the original's."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompile import bench, execute, lower
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.types import Artifact, Model, Plan, Port, Quantization, TensorSpec
from tests.lowering import Net, run_onnx, samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An input and an output of four axes (laid out anew in TFLite), and an output of two."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 8, 10), 3, 6), out="map")
    scores = net.dense(net.add("Flatten", net.add("GlobalAveragePool", x)), 6, 4, out="scores")
    return net.save(tmp_path_factory.mktemp("net") / "net.onnx", x, scores)


@pytest.fixture(scope="module")
def made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("files")
    plans = {
        "tflite-fp32": Plan(runtime="tflite", precision="fp32"),
        "tflite-fp16": Plan(runtime="tflite", precision="fp16"),
        "tflite-int8": Plan(runtime="tflite", precision="int8"),
        "tflite-int8-io": Plan(runtime="tflite", precision="int8", io_dtype="int8"),
        "onnxruntime-fp32": Plan(runtime="onnxruntime", precision="fp32"),
        "onnxruntime-int8": Plan(runtime="onnxruntime", precision="int8"),
    }
    return {k: lower.RUNTIMES[p.runtime].lower(model, p, samples(model, 16), folder) for k, p in plans.items()}


TOLERANCE = {"tflite-fp32": 1e-5, "onnxruntime-fp32": 1e-5, "tflite-fp16": 1e-2}
LABELS = ["tflite-fp32", "tflite-fp16", "tflite-int8", "tflite-int8-io", "onnxruntime-fp32", "onnxruntime-int8"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_gives_the_originals_outputs(label: str, threads: int, model: Model, made: dict[str, Artifact]) -> None:
    run, reference = execute.artifact(made[label], threads=threads), run_onnx(model.path)
    for sample in samples(model, 3, seed=5):
        found, expected = run(sample), reference(sample)
        assert list(found) == ["map", "scores"]
        for name, value in expected.items():
            assert found[name].shape == value.shape
            assert found[name].dtype == np.float32
            assert np.abs(found[name] - value).max() <= TOLERANCE.get(label, 0.1) * np.ptp(value)


def test_the_file_takes_its_own_layout_and_type(model: Model, made: dict[str, Artifact]) -> None:
    (sample,) = samples(model, 1)
    feed = execute.to_file_inputs(made["tflite-int8-io"], sample)
    quantization = made["tflite-int8-io"].inputs[0].spec.quantization
    assert quantization is not None
    assert feed["image"].dtype == np.int8
    assert feed["image"].shape == (1, 8, 10, 3)
    back = (feed["image"].astype(np.float64) - quantization.zero_point[0]) * quantization.scale[0]
    inside = np.abs(feed["image"].astype(int)) < 127
    error = np.abs(back - sample["image"].transpose(0, 2, 3, 1))[inside]
    assert error.max() <= 0.5001 * quantization.scale[0]
    raw = execute.raw(made["tflite-int8-io"])(feed)
    assert raw["map"].shape == (1, 8, 10, 6)
    assert raw["scores"].dtype == np.int8


def test_values_beyond_the_quantized_range_are_clipped() -> None:
    spec = TensorSpec(name="x", shape=(3,), dtype="uint8", quantization=Quantization(scale=(0.5,), zero_point=(10,)))
    port = Port(spec=spec, model_name="x")
    np.testing.assert_array_equal(execute._to_file(port, np.array([-1e9, 1.0, 1e9], np.float32)), [0, 12, 255])


def test_results_of_earlier_runs_stay_as_they_are(model: Model, made: dict[str, Artifact]) -> None:
    first, second = samples(model, 2)
    for label in LABELS:
        run = execute.artifact(made[label])
        found = run(first)
        kept = {name: value.copy() for name, value in found.items()}
        run(second)
        for name, value in kept.items():
            np.testing.assert_array_equal(found[name], value)


def test_integers_stay_integers(tmp_path: Path) -> None:
    net = Net()
    best = net.add("ArgMax", net.input("x", 1, 5), axis=1, keepdims=0, out="best")
    model = net.save(tmp_path / "argmax.onnx", best)
    (sample,) = samples(model, 1)
    for run in (execute.original(model), execute.artifact(bench.bare_file(model.path))):
        found = run(sample)["best"]
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, np.argmax(sample["x"], axis=1))


# ------------------------------------------------------------------------------------------------- the original


def test_an_onnx_original_runs_without_its_file_being_optimized(model: Model) -> None:
    (sample,) = samples(model, 1)
    found, expected = execute.original(model)(sample), run_onnx(model.path)(sample)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def torch_model(model: Model, forward: Any) -> Model:
    import torch

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return forward(x)

    return replace(model, module=Module().eval(), kind="factory")


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: (x + 1, x.mean((2, 3))),
        lambda x: [x + 1, x.mean((2, 3))],
        lambda x: {"a": x + 1, "b": x.mean((2, 3))},
        lambda x: (x + 1, {"inner": (x.mean((2, 3)), None)}),
    ],
    ids=["tuple", "list", "dictionary", "nested"],
)
def test_a_torch_originals_outputs_have_the_models_names(forward: Any, model: Model) -> None:
    import torch

    (sample,) = samples(model, 1)
    before = torch.get_num_threads()
    found = execute.original(torch_model(model, forward))(sample)
    assert torch.get_num_threads() == before
    np.testing.assert_allclose(found["map"], sample["image"] + 1, rtol=1e-6)
    np.testing.assert_allclose(found["scores"], sample["image"].mean((2, 3)), atol=1e-6)


def test_a_torch_original_cannot_change_the_sample(model: Model) -> None:
    (sample,) = samples(model, 1)
    kept = sample["image"].copy()
    found = execute.original(torch_model(model, lambda x: (x, x.mean((2, 3)))))(sample)
    found["map"][:] = 0
    np.testing.assert_array_equal(sample["image"], kept)
    view = {"image": sample["image"][:, ::-1]}  # torch takes no negative strides
    np.testing.assert_array_equal(
        execute.original(torch_model(model, lambda x: (x, x.mean((2, 3)))))(view)["map"], view["image"]
    )


def test_a_torch_original_that_fails_is_one_clear_error(model: Model) -> None:
    (sample,) = samples(model, 1)
    with pytest.raises(InputError, match=r"cannot be run on this sample: .*mat1"):
        execute.original(torch_model(model, lambda x: x.flatten(1) @ x.flatten(1)))(sample)
    with pytest.raises(EdgecompileError, match="gave 1 tensors, but was exported with 2"):
        execute.original(torch_model(model, lambda x: x))(sample)


# ------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("label", ["tflite-fp32", "onnxruntime-fp32"])
def test_samples_that_do_not_fit_are_refused(label: str, made: dict[str, Artifact]) -> None:
    run = execute.raw(made[label])
    shape = made[label].inputs[0].spec.shape
    with pytest.raises(InputError, match=r"no input 'image'; it has: picture"):
        run({"picture": np.zeros(shape, np.float32)})
    with pytest.raises(InputError, match=r"takes float32 .* the sample has float64"):
        run({"image": np.zeros(shape, np.float64)})
    with pytest.raises(InputError, match="the sample has float32"):
        run({"image": np.zeros(shape[1:], np.float32)})
    with pytest.raises(InputError, match="cannot be run on this sample"):
        run({"image": np.zeros((1, 5, 5, 5), np.float32)})
    assert run({"image": np.zeros(shape, np.float32)})  # and it still works afterwards


def test_a_file_that_is_no_model_is_refused(made: dict[str, Artifact], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"damaged\.onnx cannot be run here"):
        execute.raw(replace(made["onnxruntime-fp32"], file=damaged))
    with pytest.raises(InputError, match="cannot be run here"):
        execute.raw(replace(made["tflite-fp32"], file=damaged))
    with pytest.raises(InputError, match="cannot be run here"):
        execute.raw(replace(made["tflite-fp32"], file=tmp_path / "absent.tflite"))


# ------------------------------------------------------------------------------------------------------- the inside


def test_the_tensors_inside_can_be_read(model: Model, made: dict[str, Artifact]) -> None:
    (sample,) = samples(model, 1)
    expected = run_onnx(model.path)(sample)["map"].transpose(0, 2, 3, 1)
    inside = execute.intermediate(made["tflite-fp32"], sample)
    np.testing.assert_allclose(inside["map"], expected, atol=1e-5)
    np.testing.assert_allclose(inside["scores"], run_onnx(model.path)(sample)["scores"], atol=1e-5)
    assert len(inside) > 2
    quantized = execute.intermediate(made["tflite-int8-io"], sample)
    assert quantized["map"].dtype == np.float32
    assert np.abs(quantized["map"] - expected).max() < 0.1 * np.ptp(expected)


def test_the_tensors_inside_of_an_onnx_file_cannot_be_read(model: Model, made: dict[str, Artifact]) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        execute.intermediate(made["onnxruntime-fp32"], samples(model, 1)[0])


# ---------------------------------------------------------------------------------------------------------- quiet


def test_nothing_reaches_the_terminal(made: dict[str, Artifact], tmp_path: Path) -> None:
    """A process of its own: LiteRT speaks only once in a process."""
    script = (
        "from edgecompile import bench, execute; from pathlib import Path; import numpy as np\n"
        f"for file in ({str(made['tflite-fp32'].file)!r}, {str(made['onnxruntime-fp32'].file)!r}):\n"
        "    a = bench.bare_file(Path(file))\n"
        "    sample = {'image': np.zeros(a.inputs[0].spec.shape, np.float32)}\n"
        "    execute.raw(a)(sample)\n"
        "    if a.runtime == 'tflite': execute.intermediate(a, sample)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""


def test_what_was_said_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), execute.quiet_stderr():
        os.write(2, b"a native library speaks\n")
    assert "a native library speaks" in caplog.text


def test_standard_error_comes_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), execute.quiet_stderr():
        os.write(2, b"unheard\n")
        raise ZeroDivisionError
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"
