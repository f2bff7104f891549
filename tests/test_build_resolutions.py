"""Builds that may use smaller images: the shipped file, its preprocessing and its golden vectors are of that size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecompile import bundle
from tests.net import images
from tests.test_cli import edgecompile

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx``, which ends in a global pooling, and ``photos/*.png`` of 32x32 pixels."""
    folder = tmp_path_factory.mktemp("project")
    x, y = images(240, 1)
    pixels = np.clip(255 * (0.5 + 0.2 * x), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for number, (image, label) in enumerate(zip(pixels, y, strict=True)):
        path = folder / "photos" / f"{number}-{label}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((32, 32)).save(path)
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    torch.onnx.export(
        net, (torch.zeros(1, 3, 32, 32),), folder / "model.onnx", dynamo=True, verbose=False, external_data=False,
        input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    return folder


def _estimates(project: Path, out: Path) -> float:
    done = edgecompile(
        "build", project / "model.onnx", "--target", "pi3", "--data", project / "photos", "--preset", "zero-to-one",
        "--precision", "fp32", "--runtime", "tflite", "--budget-ms", "1000", "--out", out,
    )  # fmt: skip
    assert done.code == 6, done.err
    return float(bundle.read(out).manifest.measurement.ci_high_ms)


def test_a_smaller_image_meets_a_budget_that_the_model_misses(project: Path, tmp_path: Path) -> None:
    whole_ms = _estimates(project, tmp_path / "whole")
    done = edgecompile(
        "build", project / "model.onnx", "--target", "pi3", "--data", project / "photos", "--preset", "zero-to-one",
        "--precision", "fp32", "--runtime", "tflite", "--budget-ms", 0.7 * whole_ms, "--resolutions", "32,16",
        "--no-prune", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "Traceback" not in done.err
    assert done.code == 6, done.err
    manifest = bundle.read(tmp_path / "out").manifest
    assert done.code == 6, done.err
    assert [step.technique for step in manifest.plan.steps] == ["resolution"]
    assert sorted(manifest.inputs[0].spec.shape) == [1, 3, 16, 16]
    assert manifest.preprocessing is not None
    assert (manifest.preprocessing["height"], manifest.preprocessing["width"]) == (16, 16)
    assert {len(c.plan.steps) for c in manifest.candidates} == {0, 1}
    assert manifest.accuracy is not None
    assert edgecompile("verify", tmp_path / "out").code == 0


def test_data_that_cannot_be_made_smaller_is_said(project: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", image=np.random.default_rng(0).random((40, 3, 32, 32)).astype(np.float32))
    done = edgecompile(
        "build", project / "model.onnx", "--target", "pi3", "--data", tmp_path / "arrays.npz", "--precision", "fp32",
        "--runtime", "tflite", "--budget-ms", 0.0001, "--resolutions", "16", "--no-prune", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 3, done.err
    assert "16 pixels:" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("bad", ["x", "0", "16,-1", ","])
def test_sizes_that_are_none_are_refused(project: Path, tmp_path: Path, bad: str) -> None:
    done = edgecompile(
        "build", project / "model.onnx", "--target", "pi3", "--resolutions", bad, "--out", tmp_path / "out"
    )
    assert done.code == 2
    assert "resolutions" in done.err
