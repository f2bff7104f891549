"""Builds that train: time limits that hold, choices that arrive, and what is said where training cannot be done."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgecompile
from edgecompile import __main__, bundle
from edgecompile.errors import InputError
from edgecompile.pipeline.changing import _Timer
from edgecompile.techniques import training
from tests.net import Project


@dataclass
class Watcher:
    """A progress that remembers what was said."""

    said: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.said.append(title)
        yield lambda steps: None

    def note(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.said.append(f"warning: {text}")


@pytest.fixture(scope="module")
def budget_ms(project: Project, tmp_path_factory: pytest.TempPathFactory) -> float:
    """A little less than what the whole model is estimated at on a Raspberry Pi 3."""
    options: Any = {"target": "pi3", "precision": ["fp32"], "runtime": ["tflite"], "budget_ms": 1000.0}
    out = tmp_path_factory.mktemp("whole") / "out"
    return 0.88 * edgecompile.build(str(project.model), out=out, **options).bundle.manifest.measurement.ci_high_ms


def _build(project: Project, out: Path, budget_ms: float, **more: Any) -> tuple[bundle.Manifest, list[str]]:
    watcher = Watcher()
    options: Any = {
        "target": "pi3", "data": project.train, "precision": ["fp32"], "runtime": ["tflite"], "budget_ms": budget_ms,
        "validation_samples": 60, "calibration_samples": 40, "train": True, **more,
    }  # fmt: skip
    result = edgecompile.build(str(project.model), out=out, progress=watcher, **options)
    return result.bundle.manifest, watcher.said


def _trained(manifest: bundle.Manifest) -> list[dict[str, object]]:
    return [dict(s.options) for c in manifest.candidates for s in c.plan.steps if s.technique == "distill"]


def test_a_training_ends_at_its_time_limit_and_its_plan_replays(
    project: Project, budget_ms: float, tmp_path: Path
) -> None:
    manifest, _ = _build(
        project, tmp_path / "out", budget_ms, time_limit=0.02, training={"steps": 1_000_000, "batch": 16}
    )
    (found,) = _trained(manifest)
    assert found["steps"] == 1_000_000
    assert 0 < int(str(found["cut"])) < 100_000
    label = next(c.label for c in manifest.candidates if any(s.technique == "distill" for s in c.plan.steps))
    # What was trained under a limit lies right in its entry, what a step made of itself in a folder of the step.
    (kept,) = (path.read_bytes() for path in (tmp_path / "out.work" / "model").glob("*/model.onnx"))
    assert not list((tmp_path / "out.work" / "checkpoints").glob("*.pt"))
    _build(project, tmp_path / "again", budget_ms, plan=f"{tmp_path / 'out'}:{label}", train=False)
    (again,) = (path.read_bytes() for path in (tmp_path / "again.work" / "model").glob("*/*distill*/model.onnx"))
    assert again == kept


def test_choices_of_a_training_arrive_in_its_plan(project: Project, budget_ms: float, tmp_path: Path) -> None:
    choices = ["loss=dist", "steps=3", "label_weight=0.5", "augment=flip+shift", "patience=2"]
    manifest, _ = _build(project, tmp_path / "out", budget_ms, training=choices)
    (found,) = _trained(manifest)
    assert {"loss": "dist", "steps": 3, "label_weight": 0.5, "augment": "flip+shift", "patience": 2}.items() <= (
        found.items()
    )


def test_a_limit_too_short_for_one_step_is_said(project: Project, budget_ms: float, tmp_path: Path) -> None:
    manifest, said = _build(project, tmp_path / "out", budget_ms, time_limit=1e-7)
    assert any("nothing is trained: one training step takes" in text for text in said)
    assert _trained(manifest) == []
    assert any(c.plan.steps for c in manifest.candidates)


def test_a_training_that_diverges_costs_the_training_only(project: Project, budget_ms: float, tmp_path: Path) -> None:
    manifest, said = _build(project, tmp_path / "out", budget_ms, training={"rate": 1e30, "steps": 40})
    assert any("was not trained: training diverged" in text for text in said), said
    assert _trained(manifest) == []
    assert manifest.plan.steps


def test_a_class_without_a_sample_is_named_and_few_images_make_no_student(
    project: Project, budget_ms: float, tmp_path: Path
) -> None:
    with np.load(project.train) as arrays:
        there = arrays["labels"] != 3
        np.savez(tmp_path / "three.npz", image=arrays["image"][there], labels=arrays["labels"][there])
    _, said = _build(
        project, tmp_path / "out", budget_ms, data=tmp_path / "three.npz", training={"steps": 2}, student=True
    )
    assert any("no example of 1 of 4 classes: 3" in text for text in said)
    assert any("a student is trained from nothing and needs at least 2000" in text for text in said)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"data": None}, "--train has nothing to train on"),
        ({"train": False, "student": True}, "--student is about training"),
        ({"train": False, "training": ["loss=dist"]}, "--training is about training"),
        ({"training": ["loss"]}, "'loss' is no choice"),
        ({"training": {"lr": 1}}, "no choice 'lr'"),
        ({"training": {"loss": "mse"}}, "cannot be run"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    project: Project, tmp_path: Path, more: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        _build(project, tmp_path / "out", 1.0, **more)
    assert caught.value.remedy
    assert list(tmp_path.glob("out*")) == []


def test_labels_are_asked_for_where_there_are_none(project: Project, budget_ms: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs labels"):
        _build(project, tmp_path / "out", budget_ms, data=project.flat, training={"label_weight": 0.5, "steps": 2})


def test_a_disk_that_fills_up_during_training_is_said(
    project: Project,
    budget_ms: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(training, "write_atomically", full)
    code = __main__.run(
        ["build", str(project.model), "--target", "pi3", "--data", str(project.train), "--precision", "fp32",
         "--runtime", "tflite", "--budget-ms", str(budget_ms), "--train", "--training", "steps=4", "--out",
         str(tmp_path / "out"), "--validation-samples", "60"]
    )  # fmt: skip
    assert code == 2
    assert "no space is left on the disk" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_time_spent_before_a_kill_counts(tmp_path: Path) -> None:
    now = [0.0]
    first = _Timer(file=tmp_path / "times" / "one", limit_s=10.0, clock=lambda: now[0])
    assert not first()
    now[0] = 6.0
    assert not first()
    second = _Timer(file=tmp_path / "times" / "one", limit_s=10.0, clock=lambda: now[0])
    now[0] = 9.5
    assert not second()
    now[0] = 10.1
    assert second()
