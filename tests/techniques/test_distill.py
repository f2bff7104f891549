"""Distillation: the smaller model comes nearer to the original, and the same step gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import techniques
from edgecompile.errors import InputError
from edgecompile.progress import Silent
from edgecompile.techniques import distill, pruning, sensitivity, training
from edgecompile.techniques.channels import GraphView
from edgecompile.types import Model, Step
from tests.net import Project, images, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def original(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Model:
    from edgecompile import model

    return model.load(str(project.model), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def samples() -> list[dict[str, np.ndarray]]:
    return [{"image": image[None]} for image in images(120, 3)[0]]


def _pruning(original: Model) -> Step:
    groups = pruning.open_model(original).groups
    return pruning.step({group.name: group.size // 4 for group in groups}, samples=40, fit=False)


def _loss(original: Model, other: Model, samples: list[dict[str, np.ndarray]]) -> float:
    a, b = (sensitivity.outputs(GraphView(onnx.load(str(m.path))), samples) for m in (original, other))
    return sensitivity.mean_distance("logits", a, b)


@pytest.mark.parametrize("loss", ["kl", "dist"])
def test_a_distilled_model_is_nearer_to_the_original(
    original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path, loss: str
) -> None:
    step = distill.step(steps=80, samples=120, batch=16, rate=3e-3, loss=loss)
    pruned = techniques.apply(original, [_pruning(original)], samples, tmp_path / "pruned")
    trained = techniques.apply(original, [_pruning(original), step], samples, tmp_path / "trained")
    fresh = [{"image": image[None]} for image in images(60, 9)[0]]
    assert _loss(original, trained, fresh) < 0.8 * _loss(original, pruned, fresh)
    assert trained.parameters == pruned.parameters


def test_the_same_step_gives_the_same_bytes(
    original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    steps = [_pruning(original), distill.step(steps=5, samples=40, batch=8)]
    made = [techniques.apply(original, steps, samples, tmp_path / name).sha256 for name in "ab"]
    assert made[0] == made[1]


def test_training_that_diverges_says_so(original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    broken = [{"image": np.full_like(sample["image"], np.nan)} for sample in samples[:20]]
    with pytest.raises(distill.EdgecompileError, match="diverged"):
        techniques.apply(original, [distill.step(steps=5, samples=20, batch=4)], broken, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"), [({"steps": 0, "samples": 8}, "cannot be run"), ({"steps": 1, "samples": 8, "x": 1}, "'x'")]
)
def test_a_step_that_makes_no_sense_is_refused(
    original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path, options: dict[str, int], words: str
) -> None:
    step = Step(technique="distill", options=tuple(options.items()))
    with pytest.raises(InputError, match=words):
        distill.apply(original, original, step, samples, tmp_path, Silent())


def test_an_unknown_technique_is_named(original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alchemy"):
        techniques.apply(original, [Step(technique="alchemy")], samples, tmp_path)


class _Labelled(list[dict[str, np.ndarray]]):
    """Samples that carry class numbers, as those of a calibration set do."""

    labels: np.ndarray


def test_labels_are_taken_from_the_samples_and_must_be_there(
    original: Model, samples: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    step = distill.step(steps=4, samples=40, batch=8, label_weight=0.5)
    assert dict(step.options)["label_weight"] == 0.5
    with pytest.raises(InputError, match="needs labels"):
        distill.apply(original, original, step, samples, tmp_path, Silent())
    labelled = _Labelled(samples)
    labelled.labels = images(120, 3)[1]
    distill.apply(original, original, step, labelled, tmp_path, Silent())


class Labelled(list[dict[str, np.ndarray]]):
    """Samples with labels, as `calibration.Samples` has them."""

    labels: np.ndarray


def test_with_labels_the_original_is_trained_first_and_once(
    original: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, classes = images(120, 3)
    # The classes in another order: what the original says of them is wrong.
    samples = Labelled({"image": image[None]} for image in found)
    samples.labels = (classes + 1) % (int(classes.max()) + 1)
    recipe = {**distill.recipe(labelled=True, features=distill.pools(original, original), steps=150), "batch": 16}
    steps = [_pruning(original), distill.step(**{**recipe, "samples": 120, "augment": "none"})]
    with training.checkpoints_in(tmp_path / "kept"):
        made = techniques.apply(original, steps, samples, tmp_path / "a")
        (teacher,) = (tmp_path / "kept").glob("*.onnx")
        written = teacher.stat().st_mtime_ns
        again = techniques.apply(original, steps, samples, tmp_path / "b")
    assert teacher.stat().st_mtime_ns == written
    assert again.sha256 == made.sha256
    scores = sensitivity.outputs(GraphView(onnx.load(str(made.path))), samples)
    right = [int(next(iter(s.values())).argmax()) == label for s, label in zip(scores, samples.labels, strict=True)]
    assert np.mean(right) > 0.8
    assert {node.op_type for node in onnx.load(str(made.path)).graph.node}.isdisjoint({"BatchNormalization"})
