"""Builds whose budget the whole model misses: channels go until it is met, plans replay, work is not done twice."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgecompile import bundle, page, report
from tests.net import Project, make_project
from tests.test_cli import edgecompile


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def _estimated_ms(project: Project) -> float:
    """What the fastest file of the whole model is estimated at on a Raspberry Pi 3."""
    done = edgecompile(
        "build", project.model, "--target", "pi3", "--data", project.train, "--precision", "fp32",
        "--runtime", "tflite", "--budget-ms", "1000", "--dry-run", "--json", "--out", project.folder / "unused",
    )  # fmt: skip
    assert done.code == 0, done.err
    return float(json.loads(done.out)["candidates"][0]["estimate"]["ci_high_ms"])


def _build(project: Project, out: Path, budget_ms: float, *more: object) -> tuple[int, bundle.Manifest, str]:
    done = edgecompile(
        "build", project.model, "--target", "pi3", "--data", project.train, "--precision", "fp32",
        "--runtime", "tflite", "--budget-ms", f"{budget_ms:.6f}", "--out", out, *more,
    )  # fmt: skip
    assert "Traceback" not in done.err
    return done.code, bundle.read(out).manifest, done.err


def test_a_budget_that_the_whole_model_misses_is_met_by_a_smaller_one(project: Project, tmp_path: Path) -> None:
    budget_ms = 0.88 * _estimated_ms(project)
    code, manifest, err = _build(project, tmp_path / "out", budget_ms)
    assert code == 6, err
    assert manifest.verdict.status == "predicted"
    (step,) = manifest.plan.steps
    assert step.technique == "prune"
    assert any(name.startswith("keep:") for name, _ in step.options)
    whole = next(c for c in manifest.candidates if not c.plan.steps)
    assert whole.size_bytes is not None
    assert manifest.model_file.size_bytes < whole.size_bytes
    assert manifest.measurement.ci_high_ms <= budget_ms
    assert manifest.accuracy is not None
    assert manifest.accuracy.value > 50  # four classes
    assert edgecompile("verify", tmp_path / "out").code == 0


def test_the_plan_of_a_bundle_replays_to_the_same_bytes(project: Project, tmp_path: Path) -> None:
    budget_ms = 0.88 * _estimated_ms(project)
    _, first, _ = _build(project, tmp_path / "first", budget_ms)
    code, second, err = _build(project, tmp_path / "second", budget_ms, "--plan", tmp_path / "first")
    assert code == 6, err
    assert second.plan == first.plan
    assert second.model_file.sha256 == first.model_file.sha256
    assert len(second.candidates) == 1
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(json.loads((tmp_path / "first" / "manifest.json").read_text())["plan"]))
    _, third, _ = _build(project, tmp_path / "third", budget_ms, "--plan", plan)
    assert third.model_file.sha256 == first.model_file.sha256


def test_one_candidate_of_a_bundle_can_be_replayed(project: Project, tmp_path: Path) -> None:
    _build(project, tmp_path / "first", 0.88 * _estimated_ms(project))
    _, whole, _ = _build(project, tmp_path / "whole", 1000, "--plan", f"{tmp_path / 'first'}:tflite-fp32")
    assert whole.plan.steps == ()


@pytest.mark.parametrize("kind", ["missing", "no candidate", "no plan"])
def test_a_plan_that_cannot_be_replayed_is_refused(project: Project, tmp_path: Path, kind: str) -> None:
    _build(project, tmp_path / "first", 1000)
    (tmp_path / "bad.json").write_text("{}")
    ref = {
        "missing": tmp_path / "nothing",
        "no candidate": f"{tmp_path / 'first'}:nobody",
        "no plan": tmp_path / "bad.json",
    }
    done = edgecompile(
        "build", project.model, "--target", "pi3", "--data", project.train, "--budget-ms", "5", "--out",
        tmp_path / "out", "--plan", ref[kind],
    )  # fmt: skip
    assert done.code == 2, done.err
    assert "plan" in done.err or "candidate" in done.err
    assert "Traceback" not in done.err


def test_no_prune_leaves_the_model_whole(project: Project, tmp_path: Path) -> None:
    code, manifest, err = _build(project, tmp_path / "out", 0.88 * _estimated_ms(project), "--no-prune")
    assert code == 3, err
    assert all(not candidate.plan.steps for candidate in manifest.candidates)


def test_what_comes_nearest_is_made_and_what_would_buy_the_rest_is_said(project: Project, tmp_path: Path) -> None:
    code, manifest, err = _build(project, tmp_path / "out", 0.3 * _estimated_ms(project))
    assert code == 3, err
    assert manifest.verdict.status == "not met"
    (smaller,) = (c for c in manifest.candidates if c.plan.steps)
    assert manifest.plan == smaller.plan
    told = " | ".join(manifest.verdict.help)
    assert "--train --student" in told
    assert "a faster device: raspberry-pi-" in told
    assert "pixel" not in told


def test_a_frontier_has_smaller_models_for_tighter_budgets(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "pi3", "--data", project.train, "--precision", "fp32",
        "--runtime", "tflite", "--budget-ms", "1000", "--out", tmp_path / "out", "--frontier",
    )  # fmt: skip
    assert done.code == 6, done.err
    manifest = bundle.read(tmp_path / "out").manifest
    smaller = [c for c in manifest.candidates if c.plan.steps and c.measurement is not None]
    assert smaller
    latencies = [c.measurement.value_ms for c in smaller if c.measurement is not None]
    assert latencies == sorted(latencies, reverse=True)
    others = {f"frontier/{c.label}.tflite" for c in report.on_frontier(manifest) if c.plan != manifest.plan}
    assert {file.path for file in manifest.files if file.role == "frontier"} == others
    bundle.check_hashes(bundle.read(tmp_path / "out"))

    _each_point_is_shown(manifest)


def _each_point_is_shown(manifest: bundle.Manifest) -> None:
    """Were every faster candidate less accurate, all would be points of the frontier."""
    timed = sorted((c for c in manifest.candidates if c.measurement), key=lambda c: -c.measurement.value_ms)  # type: ignore[union-attr]
    tried = tuple(
        replace(c, validation=replace(c.validation, drop=float(i), value=90.0 - i), predicted_ms=1.0)
        for i, c in enumerate(timed)
        if c.validation is not None
    )
    traded = replace(manifest, candidates=tried)
    assert report.on_frontier(traded) == tuple(reversed(tried))
    console = Console(width=80, file=io.StringIO())
    console.print(*report.frontier(traded, "out"))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(c.label in told for c in tried)
    assert f"--plan out:{next(c.label for c in reversed(tried) if c.plan != manifest.plan)} --out OTHER" in " ".join(
        told.split()
    )
    assert '<path d="M' in page.render(traded)
    assert report.predictions(traded) is None, "nothing was measured"
    measured = [
        replace(c, measurement=replace(c.measurement, provenance="measured", ci_high_ms=ms))
        for c, ms in zip(tried, (1.25, 0.8, 1.0), strict=False)
        if c.measurement is not None
    ]
    assert "predicted within 25 % before" in str(report.predictions(replace(traded, candidates=tuple(measured))))


def test_the_same_command_again_does_not_work_twice(project: Project, tmp_path: Path) -> None:
    budget_ms = 0.88 * _estimated_ms(project)
    _, first, _ = _build(project, tmp_path / "out", budget_ms)
    made = sorted((tmp_path / "out.work" / "model").rglob("model.onnx"))
    stamps = [path.stat().st_mtime_ns for path in made]
    assert made
    _, again, _ = _build(project, tmp_path / "out", budget_ms, "--force")
    assert again.model_file.sha256 == first.model_file.sha256
    assert [path.stat().st_mtime_ns for path in made] == stamps


def test_training_follows_pruning_when_asked(project: Project, tmp_path: Path) -> None:
    code, manifest, err = _build(
        project, tmp_path / "out", 0.88 * _estimated_ms(project), "--train", "--time-limit", "0.05",
        "--validation-samples", "60", "--calibration-samples", "40",
    )  # fmt: skip
    assert code == 6, err
    trained = [c for c in manifest.candidates if [s.technique for s in c.plan.steps] == ["prune", "distill"]]
    assert len(trained) == 1
    assert trained[0].failure is None
    assert trained[0].validation is not None
