"""SIGKILL while a smaller model is looked for: the same command goes on, and repeats nothing that was finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompile import bundle
from tests.net import Project, make_project
from tests.test_build_smaller import _estimated_ms

#: A stage, and how often it must have been announced when the build is killed.
MOMENTS = (
    ("Order channels", 1),
    ("Measure what channels are worth", 1),
    ("Fit pruned layers", 1),
    ("Distil", 1),
    ("Validate", 3),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def budget_ms(project: Project) -> float:
    return 0.88 * _estimated_ms(project)


@pytest.fixture(scope="module")
def undisturbed(project: Project, budget_ms: float, tmp_path_factory: pytest.TempPathFactory) -> bundle.Manifest:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = subprocess.run(_command(project, out, budget_ms), capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    return bundle.read(out).manifest


def _command(project: Project, out: Path, budget_ms: float) -> list[str]:
    # Estimated latency is the same in every run, and the count of training steps is kept once it is known, so that an
    # undisturbed build and one that went on choose the same; --time-limit is a minute's hundredth.
    return [
        sys.executable, "-u", "-m", "edgecompile", "build", str(project.model), "--target", "pi3",
        "--precision", "fp32",
        "--runtime", "tflite", "--data", str(project.train), "--validation-samples", "60", "--budget-ms",
        f"{budget_ms:.6f}", "--out", str(out), "--train", "--time-limit", "0.01",
    ]  # fmt: skip


def _kill_at(stage: str, times: int, command: list[str]) -> None:
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        times -= line.startswith(stage)
        if times == 0:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate(timeout=120)
    assert times == 0, said


@pytest.mark.parametrize(("stage", "times"), MOMENTS)
def test_a_killed_search_goes_on_where_it_was(
    stage: str, times: int, project: Project, budget_ms: float, undisturbed: bundle.Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = _command(project, out, budget_ms)
    _kill_at(stage, times, command)
    assert not out.exists()
    work = tmp_path / "out.work"
    kept = [p for kind in ("lower", "model", "curves", "accuracy") for p in work.rglob(f"{kind}/*/*") if p.is_file()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished work is not repeated"
    manifest = bundle.read(out).manifest
    bundle.check_hashes(bundle.read(out))
    first = [c.plan for c in undisturbed.candidates if not any(s.technique == "distill" for s in c.plan.steps)]
    assert [c.plan for c in manifest.candidates][: len(first)] == first
    replayed = tmp_path / "replayed"
    again = subprocess.run(
        [*_command(project, replayed, budget_ms), "--plan", str(out)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 6, again.stderr
    assert bundle.read(replayed).manifest.model_file.sha256 == manifest.model_file.sha256
