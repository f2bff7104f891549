"""INT8 files of which some operators return to float, because their quantization costs too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import bundle, lower
from edgecompile import model as models
from edgecompile.errors import InputError
from edgecompile.lower.qdq import noise
from edgecompile.types import Arrays, Model, Plan, RuntimeName
from tests.net import Project, images, make_project
from tests.test_cli import edgecompile


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The net of `make_project`, with one channel between its convolutions 3,000 times as large as the others.

    In float it computes the same; no single scale holds that tensor in eight bits.
    """
    project = make_project(tmp_path_factory.mktemp("project"))
    proto = onnx.load(str(project.model))
    first, second = [node for node in proto.graph.node if node.op_type == "Conv"]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}

    def scale(name: str, axis: int, factor: float) -> None:
        values = onnx.numpy_helper.to_array(tensors[name]).copy()
        np.moveaxis(values, axis, 0)[3] *= factor
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(values, name))

    for name in first.input[1:]:
        scale(name, 0, 3000.0)
    scale(second.input[1], 1, 1 / 3000)
    onnx.save(proto, str(project.model))
    return project


def _loaded(project: Project, folder: Path) -> tuple[Model, list[Arrays]]:
    x, _ = images(32, 5)
    return models.load(str(project.model), folder), [{"image": image[None]} for image in x]


def test_noise_is_largest_where_one_scale_does_not_do(project: Project, tmp_path: Path) -> None:
    model, samples = _loaded(project, tmp_path)
    proto = onnx.load(str(model.path))
    found = noise.operators(proto, samples)
    weighted = [node.output[0] for node in proto.graph.node if node.op_type in ("Conv", "Gemm")]
    assert set(found) == set(weighted)
    assert sorted(found, key=lambda name: found[name])[0] == weighted[2]
    assert min(found[name] for name in weighted[:2]) > 100 * found[weighted[2]]


def _is_average(node: onnx.NodeProto) -> bool:
    """Whether it is a pooling: ONNX Runtime's INT8 file has those as convolutions."""
    return "edgecompile_average" in node.input[1]


@pytest.mark.parametrize("runtime", ["tflite", "onnxruntime", "tensorrt"])
def test_named_operators_stay_in_float(project: Project, tmp_path: Path, runtime: RuntimeName) -> None:
    model, samples = _loaded(project, tmp_path)
    names = tuple(node.output[0] for node in onnx.load(str(model.path)).graph.node if node.op_type == "Conv")
    plan = Plan(runtime=runtime, precision="int8", calibration_samples=32)
    floating = lower.RUNTIMES[runtime].lower(model, Plan(runtime=runtime, precision="fp32"), samples, tmp_path)
    sizes = {}
    for kept in ((), names):
        mixed = Plan(runtime=runtime, precision="int8", calibration_samples=32, float_operators=kept)
        artifact = lower.RUNTIMES[runtime].lower(model, mixed, samples, tmp_path, float_artifact=floating)
        sizes[len(kept)] = artifact.size_bytes
        if runtime == "tflite":
            assert artifact.float_islands == (3 if kept else 0)  # with the PAD between them
        else:
            proto = onnx.load(str(artifact.file))
            made = {output: node for node in proto.graph.node for output in node.output}
            convolutions = [n for n in proto.graph.node if n.op_type == "Conv" and not _is_average(n)]
            weights = [made[n.input[1]].op_type for n in convolutions if n.input[1] in made]
            assert weights == ["DequantizeLinear"] * (2 - len(kept))
    if runtime != "tensorrt":  # whose weights stay float32 in the ONNX
        assert sizes[0] < sizes[2]
    with pytest.raises(InputError, match="nothing like this"):
        bad = Plan(runtime=plan.runtime, precision="int8", float_operators=("nothing like this",))
        lower.RUNTIMES[runtime].lower(model, bad, samples, tmp_path, float_artifact=floating)


def test_a_build_returns_operators_to_float_until_the_accuracy_is_kept(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "x86", "--on", "local", "--data", project.train, "--eval", project.test,
        "--precision", "int8", "--runtime", "tflite", "--budget-ms", "1000", "--max-drop", "4", "--no-prune",
        "--min-runs", "5", "--min-seconds", "0.05", "--warmup-seconds", "0.05", "--accept-throttled", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert "Traceback" not in done.err
    manifest = bundle.read(tmp_path / "out").manifest
    whole = next(c for c in manifest.candidates if not c.plan.float_operators)
    assert whole.failure is not None, "its outputs are noise, and still its operators are what the search begins with"
    assert "the int8 file is too far from float" in whole.failure
    assert done.code == 0, done.err
    assert 0 < len(manifest.plan.float_operators) < 3
    assert manifest.float_islands is not None
    assert manifest.float_islands >= len(manifest.plan.float_operators)
    assert not manifest.full_integer
    faster = manifest.measurement.speed_up
    assert faster is not None, "the whole model in float took turns with it"
    assert 0 < faster.ci_low <= faster.value <= faster.ci_high
    assert "times the speed of the whole model in float32" in " ".join(done.out.split())
    assert "-f" in next(c.label for c in manifest.candidates if c.verdict.startswith("met"))
