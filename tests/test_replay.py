"""Every kind of plan makes the same file again, from its own file and from a bundle that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgecompile
from edgecompile import bundle
from edgecompile import model as models
from edgecompile.techniques import blocks, distill, pruning, resolution, student
from edgecompile.techniques.student_family import parse
from edgecompile.types import Model, Plan, Step, encode
from tests.net import images

torch = pytest.importorskip("torch")
_ARCHITECTURE = "inverted-w0.25-d1.1.1.1-s1.1.2.2.1-e2-k3-relu-t8"


def _net() -> Any:
    """Two residual blocks and a global pooling: all that a step may change is in it."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Any) -> Any:
            return (x + self.second(self.first(x).relu())).relu()

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx`` and ``photos/*.png`` of 32x32 pixels, which may become smaller."""
    folder = tmp_path_factory.mktemp("project")
    x, y = images(120, 1)
    pixels = np.clip(255 * (0.5 + 0.2 * x), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    (folder / "photos").mkdir()
    for number, (image, label) in enumerate(zip(pixels, y, strict=True)):
        Image.fromarray(image).resize((32, 32)).save(folder / "photos" / f"{number}-{label}.png")
    torch.manual_seed(0)
    torch.onnx.export(
        _net().eval(), (torch.zeros(1, 3, 32, 32),), folder / "model.onnx", dynamo=True, verbose=False,
        external_data=False, input_names=["image"], output_names=["logits"],
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return models.load(str(folder / "model.onnx"), folder / "work")


def _prune(model: Model) -> Step:
    groups = pruning.open_model(model).groups
    return pruning.step({groups[0].name: groups[0].size // 2}, samples=20)


def _drop(model: Model) -> Step:
    import onnx

    found = blocks.find(onnx.load(str(model.path)))
    return blocks.step([found[-1].name], samples=20)


def _operators(model: Model) -> tuple[str, ...]:
    import onnx

    return (next(n.output[0] for n in onnx.load(str(model.path)).graph.node if n.op_type == "Conv"),)


Make = Callable[[Model], dict[str, Any]]
_DISTILL = distill.step(steps=3, samples=24, batch=8)
KINDS: dict[str, Make] = {
    "pruned": lambda m: {"steps": (_prune(m),)},
    "without a block": lambda m: {"steps": (_drop(m),)},
    "mixed precision": lambda m: {"precision": "int8", "calibration_samples": 16, "float_operators": _operators(m)},
    "pruned, distilled, INT8": lambda m: {
        "precision": "int8", "calibration_samples": 16, "steps": (_prune(m), _DISTILL),
    },
    "student": lambda m: {"steps": (student.step(parse(_ARCHITECTURE), steps=2, samples=16, batch=8),)},
    "smaller image, pruned": lambda m: {"steps": (resolution.step(16, 16), _prune(m))},
}  # fmt: skip


def _sha(folder: Path, plan: Path, out: Path) -> str:
    result = edgecompile.build(
        str(folder / "model.onnx"), target="pi3", data=folder / "photos", preset="zero-to-one", budget_ms=1000,
        calibration_samples=16, validation_samples=16, plan=str(plan), out=out,
    )  # fmt: skip
    assert result.exit_code == 6
    return result.bundle.manifest.model_file.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_makes_the_same_bytes_again(kind: str, folder: Path, model: Model, tmp_path: Path) -> None:
    given: dict[str, Any] = {"runtime": "tflite", "precision": "fp32", **KINDS[kind](model)}
    plan = Plan(**given)
    (tmp_path / "PLAN.json").write_bytes(encode(plan))
    first = _sha(folder, tmp_path / "PLAN.json", tmp_path / "first")
    assert bundle.read(tmp_path / "first").manifest.plan == plan
    assert _sha(folder, tmp_path / "first", tmp_path / "second") == first
    whole = {"runtime": "tflite", "precision": given["precision"]}
    (tmp_path / "whole.json").write_text(json.dumps({**whole, "calibration_samples": plan.calibration_samples}))
    assert _sha(folder, tmp_path / "whole.json", tmp_path / "whole") != first
