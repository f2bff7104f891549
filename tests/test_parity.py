"""The parity gate: what passes, what does not, and which operator is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompile import lower, parity
from edgecompile.errors import InputError, ParityError, UnsupportedModelError
from edgecompile.types import Model, Parity, Plan, RunFunction, decode, encode
from tests.lowering import Net, cifar_resnet20, option_a_net, run_artifact, run_onnx, samples, small_net

SAMPLES = [{"x": np.full((1, 4), i, np.float32)} for i in range(5)]


def scores(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Four scores that span exactly 10 over `SAMPLES`."""
    return {"y": sample["x"] * np.array([[0.0, 1.0, 2.0, 2.5]], np.float32)}


def off_by(error: float) -> RunFunction:
    return lambda sample: {"y": scores(sample)["y"] + np.float32(error)}


# ----------------------------------------------------------------------------------------------- float to float


def test_the_error_is_relative_to_the_range_over_all_samples() -> None:
    found = parity.float_gate(off_by(0.005), scores, SAMPLES)
    assert found.passed
    assert found.max_error == pytest.approx(0.0005, rel=1e-3)
    assert (found.kind, found.samples, found.worst_output, found.fault) == ("float", 5, "y", None)


def test_an_error_above_the_tolerance_fails() -> None:
    assert not parity.float_gate(off_by(0.02), scores, SAMPLES).passed
    assert parity.float_gate(off_by(0.02), scores, SAMPLES, tolerance=1e-2).passed


def test_one_bad_sample_among_good_ones_fails() -> None:
    def sometimes(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": scores(sample)["y"] + (1 if sample["x"][0, 0] == 3 else 0)}

    assert parity.float_gate(sometimes, scores, SAMPLES).max_error == pytest.approx(0.1)


def test_the_worst_of_several_outputs_is_named() -> None:
    def two(error: float) -> RunFunction:
        return lambda s: {"good": s["x"], "bad": s["x"] + np.float32(error)}

    found = parity.float_gate(two(1.0), two(0.0), SAMPLES)
    assert found.worst_output == "bad"
    assert "'bad' differs by 0.25 of its range" in parity.describe(found)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_fails(value: float) -> None:
    def broken(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        y = scores(sample)["y"].copy()
        y[0, 1] = value
        return {"y": y}

    found = parity.float_gate(broken, scores, SAMPLES)
    assert not found.passed
    assert "not finite" in parity.describe(found)


def test_another_shape_fails_and_both_shapes_are_told() -> None:
    found = parity.float_gate(lambda s: {"y": scores(s)["y"].T}, scores, SAMPLES)
    assert not found.passed
    assert found.fault == "its shape is (4, 1), expected (1, 4)"


def test_a_missing_output_fails() -> None:
    found = parity.float_gate(lambda s: {"z": scores(s)["y"]}, scores, SAMPLES)
    assert not found.passed
    assert found.fault == "it is missing"


def test_a_constant_output_is_measured_by_its_magnitude() -> None:
    def constant(value: float) -> RunFunction:
        return lambda _: {"y": np.full((1, 3), value, np.float32)}

    assert parity.float_gate(constant(5.0), constant(5.0), SAMPLES).max_error == 0.0
    assert parity.float_gate(constant(5.5), constant(5.0), SAMPLES).max_error == pytest.approx(0.1)
    assert not parity.float_gate(constant(1.0), constant(0.0), SAMPLES).passed


def test_an_original_that_is_not_finite_is_the_users_fault() -> None:
    with pytest.raises(InputError, match="original itself") as caught:
        parity.float_gate(scores, off_by(np.nan), SAMPLES)
    assert caught.value.remedy is not None


def test_no_samples_is_an_error_and_not_a_pass() -> None:
    with pytest.raises(InputError, match="at least one sample"):
        parity.float_gate(scores, scores, [])
    with pytest.raises(InputError, match="at least one sample"):
        parity.quantized(scores, scores, [])


def test_findings_survive_json() -> None:
    found = parity.float_gate(lambda s: {}, scores, SAMPLES)
    assert decode(encode(found), Parity) == found
    same = parity.quantized(scores, scores, SAMPLES)
    assert decode(encode(same), Parity) == same


# ------------------------------------------------------------------------------------------- quantized to float


def test_sqnr_is_signal_over_noise_power() -> None:
    found = parity.quantized(lambda s: {"y": scores(s)["y"] * np.float32(1.1)}, scores, SAMPLES)
    assert found.sqnr_db == pytest.approx(20.0, abs=0.01)
    assert found.passed


def test_noise_above_the_signal_fails() -> None:
    found = parity.quantized(lambda s: {"y": scores(s)["y"] * np.float32(-1.0)}, scores, SAMPLES)
    assert found.sqnr_db == pytest.approx(-6.02, abs=0.01)
    assert not found.passed
    with pytest.raises(ParityError, match=r"SQNR of -6\.0 dB"):
        parity.require(found, "the int8 file")


def test_an_output_of_nothing_but_zeros_fails_unless_it_is_zero() -> None:
    def zeros(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": np.zeros_like(scores(sample)["y"])}

    def next_to_zero(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": zeros(sample)["y"] + np.float32(4e-12)}

    assert not parity.quantized(zeros, scores, SAMPLES).passed
    assert parity.quantized(next_to_zero, zeros, SAMPLES).passed
    assert not parity.quantized(scores, zeros, SAMPLES).passed


def test_agreement_comes_with_its_interval() -> None:
    def rotated(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        y = scores(sample)["y"] + np.float32(0.001) * np.arange(4, dtype=np.float32)
        return {"y": y[:, ::-1] if sample["x"][0, 0] == 2 else y}

    found = parity.quantized(rotated, lambda s: {"y": scores(s)["y"] + np.arange(4, dtype=np.float32)}, SAMPLES)
    assert found.agreement == pytest.approx(80.0)
    assert found.agreement_ci_low is not None
    assert found.agreement_ci_high is not None
    assert found.agreement_ci_low < 80 < found.agreement_ci_high


def test_a_detector_has_no_agreement_unless_told_so() -> None:
    def boxes(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"boxes": np.repeat(sample["x"][..., None], 4, 2), "scores": sample["x"]}

    assert parity.quantized(boxes, boxes, SAMPLES).agreement is None
    assert parity.quantized(scores, scores, SAMPLES, classifier=False).agreement is None
    assert parity.quantized(boxes, boxes, SAMPLES, classifier=True).agreement == 100.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_quantized_file_with_values_that_are_not_finite_fails(value: float) -> None:
    found = parity.quantized(lambda s: {"y": scores(s)["y"] + np.float32(value)}, scores, SAMPLES)
    assert not found.passed
    assert found.fault is not None


# ---------------------------------------------------------------------------------------- the first divergence


def replaced(model: Model, node_name: str, op_type: str) -> None:
    """Rewrite a model's file so that one node computes something else: a converter's fault, made on purpose."""
    import onnx

    proto = onnx.load(str(model.path))
    for node in proto.graph.node:
        if node.name == node_name:
            node.op_type = op_type
    onnx.save(proto, str(model.path))


def faulty(node_name: str, op_type: str, *, all_at_once: bool = True) -> parity.Convert:
    """A converter that gets one node wrong; without ``all_at_once`` it takes no graph with many outputs."""

    def convert(part: Model, folder: Path) -> RunFunction:
        if not all_at_once and len(part.outputs) > 4:
            raise UnsupportedModelError("too many outputs")
        replaced(part, node_name, op_type)
        return run_onnx(part.path)

    return convert


def branching(folder: Path) -> Model:
    """Two branches of four nodes each; the left one comes first in the file, and both meet in an Add."""
    net = Net()
    left = right = net.input("x", 1, 8)
    for i in range(4):
        left = net.add("Tanh", left, name=f"left{i}")
    for i in range(4):
        right = net.add("Sigmoid", right, name=f"right{i}")
    return net.save(folder / "branching.onnx", net.add("Add", left, right, name="meet", out="y"))


@pytest.mark.parametrize("all_at_once", [True, False])
@pytest.mark.parametrize("culprit", ["left0", "left2", "right1", "right3"])
def test_the_faulty_operator_is_named_on_either_branch(tmp_path: Path, culprit: str, all_at_once: bool) -> None:
    model = branching(tmp_path)
    found = parity.first_divergence(
        model, faulty(culprit, "Sin", all_at_once=all_at_once), samples(model, 2), workdir=tmp_path / "cuts"
    )
    assert found is not None
    assert found.node_name == culprit
    assert found.op_type in ("Tanh", "Sigmoid")
    assert found.conversions <= (1 if all_at_once else 6)
    assert culprit in found.describe()


def test_no_divergence_where_there_is_none(tmp_path: Path) -> None:
    model = branching(tmp_path)
    for all_at_once in (True, False):
        convert = faulty("nothing", "Sin", all_at_once=all_at_once)
        assert parity.first_divergence(model, convert, samples(model, 2), workdir=tmp_path / "cuts") is None


def test_an_operator_that_does_not_convert_is_named(tmp_path: Path) -> None:
    model = branching(tmp_path)

    def convert(part: Model, folder: Path) -> RunFunction:
        import onnx

        if any(node.name == "right2" for node in onnx.load(str(part.path)).graph.node):
            raise UnsupportedModelError("no such operator")
        return run_onnx(part.path)

    found = parity.first_divergence(model, convert, samples(model, 1), workdir=tmp_path / "cuts")
    assert found is not None
    assert (found.node_name, found.fault) == ("right2", "cannot be lowered: no such operator")


def test_weights_and_inputs_that_a_cut_does_not_need_are_left_out(tmp_path: Path) -> None:
    net = Net()
    a, b = net.input("a", 1, 4), net.input("b", 1, 4)
    early = net.add("Mul", a, net.constant(np.full((1, 4), 2, np.float32)), name="early")
    model = net.save(tmp_path / "two.onnx", net.add("Add", early, b, name="late", out="y"))
    seen = []

    def convert(part: Model, folder: Path) -> RunFunction:
        seen.append(tuple(spec.name for spec in part.inputs))
        if len(part.outputs) > 1:
            raise UnsupportedModelError("one output at a time")
        replaced(part, "early", "Sub")
        return run_onnx(part.path)

    found = parity.first_divergence(model, convert, samples(model, 1), workdir=tmp_path / "cuts")
    assert found is not None
    assert found.node_name == "early"
    assert ("a",) in seen


def test_a_silent_fault_of_onnx2tf_stops_the_build_and_names_the_operator(tmp_path: Path) -> None:
    model = option_a_net(tmp_path)
    data = samples(model, 3)
    runtime, plan = lower.RUNTIMES["tflite"], Plan(runtime="tflite", precision="fp32")

    def convert(part: Model, folder: Path) -> RunFunction:
        return run_artifact(runtime.lower(part, plan, data, folder, path="onnx2tf"))

    found = parity.float_gate(convert(model, tmp_path / "whole"), run_onnx(model.path), data)
    assert not found.passed
    where = parity.first_divergence(model, convert, data[:1], workdir=tmp_path / "cuts")
    assert where is not None
    assert where.node_name.startswith("shortcut16/")
    with pytest.raises(ParityError, match="shortcut16/") as caught:
        parity.require(found, "the tflite-fp32 file", where)
    assert caught.value.exit_code == 5
    assert caught.value.operators == ((where.op_type, where.node_name),)


@pytest.mark.parametrize("path", ["direct", "onnx2tf"])
def test_the_cifar_resnet20_by_either_path(path: str, shared_data: Path, cifar10: Path, tmp_path: Path) -> None:
    checkpoint = shared_data / "models" / "resnet-cifar10" / "resnet20-12fca82f.th"
    model = cifar_resnet20(tmp_path, checkpoint, simplified=True)
    images = photographs(cifar10, 8)
    runtime, plan = lower.RUNTIMES["tflite"], Plan(runtime="tflite", precision="fp32")

    def convert(part: Model, folder: Path) -> RunFunction:
        return run_artifact(runtime.lower(part, plan, images, folder, path=path))

    found = parity.float_gate(convert(model, tmp_path / "whole"), run_onnx(model.path), images)
    if path == "direct":
        assert found.max_error < 1e-5
        return
    # onnx2tf writes this file without a word; its logits are off by more than ten.
    assert found.max_error > 0.3
    where = parity.first_divergence(model, convert, images[:1], workdir=tmp_path / "cuts")
    assert where is not None
    assert (where.op_type, where.node_name) == ("Pad", "/layer2/layer2.0/Pad")
    with pytest.raises(ParityError, match=r"/layer2/layer2\.0/Pad") as caught:
        parity.require(found, "the tflite-fp32 file", where)
    assert caught.value.exit_code == 5


def test_the_unsimplified_cifar_resnet20_is_refused_by_onnx2tf_with_the_operator(
    shared_data: Path, tmp_path: Path
) -> None:
    checkpoint = shared_data / "models" / "resnet-cifar10" / "resnet20-12fca82f.th"
    model = cifar_resnet20(tmp_path, checkpoint, simplified=False)
    with pytest.raises(UnsupportedModelError, match=r"Add \(/layer2/layer2\.0/Add\)") as caught:
        lower.RUNTIMES["tflite"].lower(
            model, Plan(runtime="tflite", precision="fp32"), samples(model), tmp_path, path="onnx2tf"
        )
    assert caught.value.exit_code == 5
    assert caught.value.operators == (("Add", "/layer2/layer2.0/Add"),)


def photographs(cifar10: Path, count: int) -> list[dict[str, np.ndarray]]:
    from PIL import Image

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    files = sorted((cifar10 / "test").glob("*/*.jpg"))[:: 5000 // count][:count]
    pixels = [np.asarray(Image.open(file), np.float32) / 255 for file in files]
    return [{"image": ((p - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)} for p in pixels]


def test_require_lets_a_good_file_pass() -> None:
    parity.require(parity.float_gate(scores, scores, SAMPLES), "the file")


def test_a_model_that_onnx2tf_converts_well_passes(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    data = samples(model, 3)
    artifact = lower.RUNTIMES["tflite"].lower(
        model, Plan(runtime="tflite", precision="fp32"), data, tmp_path, path="onnx2tf"
    )
    found = parity.float_gate(run_artifact(artifact), run_onnx(model.path), data, tolerance=1e-5)
    parity.require(found, "the file")
    assert replace(found, max_error=0.0).passed
