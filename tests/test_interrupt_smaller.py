"""SIGKILL while a smaller model is looked for: the same command goes on, and repeats nothing that was finished."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecompile import bundle
from edgecompile.store import TIMES
from tests.net import Project, make_project
from tests.test_cli import edgecompile

#: A moment to kill a build at: what lies in the work folder, and how many files of it there are then.
MOMENTS = {
    "channels are measured": ("curves/*", 1),
    "a pruned model is being made": ("model/*/0-prune", 1),
    "training has begun": ("checkpoints/*.pt", 1),
    "what was trained is converted": ("trained/*/result.json", 1),
    "all is validated": ("accuracy/*/result.json", 5),
}
QUICK = ("channels are measured", "training has begun")
#: Folders whose entries are not made twice.
KEPT = ("lower", "measure", "model", "curves", "accuracy", "training", "trained")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def budget_ms(project: Project) -> float:
    """A little less than what the fastest file of the whole model is estimated at."""
    done = edgecompile(
        *_command(project, project.folder / "unused", 1000.0)[4:], "--dry-run", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return 0.88 * min(float(c["estimate"]["ci_high_ms"]) for c in json.loads(done.out)["candidates"])


@pytest.fixture(scope="module")
def undisturbed(project: Project, budget_ms: float, tmp_path_factory: pytest.TempPathFactory) -> bundle.Manifest:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = subprocess.run(_command(project, out, budget_ms), capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    return bundle.read(out).manifest


def _command(project: Project, out: Path, budget_ms: float, *more: str) -> list[str]:
    # Estimated latency is the same in every run, and so is a training of so many steps: an undisturbed build and one
    # that went on make the same.
    return [
        sys.executable, "-u", "-m", "edgecompile", "build", str(project.model), "--target", "pi3",
        "--runtime", "tflite", "--precision", "fp32", "--precision", "int8", "--data", str(project.train),
        "--validation-samples", "60", "--calibration-samples", "40", "--budget-ms", f"{budget_ms:.6f}",
        "--out", str(out), "--train", "--training", "steps=60", "--training", "batch=8", *more,
    ]  # fmt: skip


def _kill_when(is_time: Callable[[], bool], command: list[str]) -> bool:
    """Start the build and kill it when it is time; whether it had not ended before."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while process.poll() is None:
        if is_time():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.005)
    return False


def _finished(work: Path) -> dict[Path, int]:
    """The files of finished entries, and when they were written."""
    entries = [marker.parent for kind in KEPT for marker in work.glob(f"{kind}/*/result.json")]
    return {path: path.stat().st_mtime_ns for entry in entries for path in entry.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[] if moment in QUICK else [pytest.mark.slow]) for moment in MOMENTS]
)
def test_a_killed_search_goes_on_where_it_was(
    moment: str, project: Project, budget_ms: float, undisturbed: bundle.Manifest, tmp_path: Path
) -> None:
    out, work, (pattern, count) = tmp_path / "out", tmp_path / "out.work", MOMENTS[moment]
    command = _command(project, out, budget_ms)
    assert _kill_when(lambda: len(list(work.glob(pattern))) >= count, command)
    assert not out.exists()
    before = _finished(work)
    assert before
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before, "finished work is not repeated"
    _same(bundle.read(out), undisturbed)


def _same(made: bundle.Bundle, undisturbed: bundle.Manifest) -> None:
    bundle.check_hashes(made)
    assert [c.plan for c in made.manifest.candidates] == [c.plan for c in undisturbed.candidates]
    assert made.manifest.model_file.sha256 == undisturbed.model_file.sha256
    assert [c.size_bytes for c in made.manifest.candidates] == [c.size_bytes for c in undisturbed.candidates]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_a_build_ends_with_the_same_bytes(
    seed: int, project: Project, budget_ms: float, undisturbed: bundle.Manifest, tmp_path: Path
) -> None:
    draws, out, seen = random.Random(seed), tmp_path / "out", {}
    command = _command(project, out, budget_ms)
    for _ in range(60):
        end = time.monotonic() + draws.uniform(2.0, 9.0)
        killed = _kill_when(lambda end=end: time.monotonic() > end, command)  # type: ignore[misc]
        for path, written in _finished(tmp_path / "out.work").items():
            assert seen.setdefault(path, written) == written, f"{path} was made twice"
        if not killed:
            break
    assert out.exists()
    _same(bundle.read(out), undisturbed)
    replayed = tmp_path / "replayed"
    again = subprocess.run(
        _command(project, replayed, budget_ms, "--plan", str(out)), capture_output=True, text=True, check=False
    )
    assert again.returncode == 6, again.stderr
    assert bundle.read(replayed).manifest.model_file.sha256 == undisturbed.model_file.sha256


@pytest.mark.slow
def test_a_table_of_operators_goes_on_where_it_was(project: Project, tmp_path: Path) -> None:
    """On this machine, where latency is measured: what was measured before the kill is not measured again."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-u", "-m", "edgecompile", "build", str(project.model), "--target", "x86", "--on", "local",
        "--runtime", "onnxruntime", "--precision", "fp32", "--data", str(project.train), "--threads", "1",
        "--validation-samples", "60", "--budget-ms", "0.0001", "--warmup-seconds", "0.05", "--min-runs", "10",
        "--min-seconds", "0.2", "--out", str(out),
    ]  # fmt: skip
    times = Path(os.environ["EDGECOMPILE_CACHE"]) / TIMES
    assert _kill_when(lambda: len(list(times.glob("*.json"))) >= 3, command)
    # Of whole files a measurement that is not trusted may be made again; single operators have none of that.
    before = {path: path.stat().st_mtime_ns for path in times.glob("*.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    manifest = bundle.read(out).manifest
    assert any(c.plan.steps for c in manifest.candidates), "the nearest smaller model is made"
    assert manifest.verdict.help
