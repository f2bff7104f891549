"""Latencies measured elsewhere: brought into a bundle, about its own file only, and never called met."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgecompile import bundle, report
from tests.net import Project
from tests.test_adb import LOG, PERCENTILES
from tests.test_cli import edgecompile


@pytest.fixture(scope="module")
def made(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for a device that is not here: its budget is predicted."""
    out = tmp_path_factory.mktemp("made") / "out"
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--budget-ms", "1000", "--runtime", "tflite", "--precision", "fp32",
        "--out", out,
    )  # fmt: skip
    assert done.code == 6, done.err
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def log(out: Path, **changes: str) -> str:
    size = f"{bundle.read(out).manifest.model_file.size_bytes / 1e6:g}"
    return LOG.format(more=changes.get("more", PERCENTILES)).replace("4.27635", changes.get("size", size))


def test_a_log_is_imported_and_not_met(out: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(log(out))
    before = bundle.read(out).manifest
    done = edgecompile("import-result", tmp_path / "log", "--bundle", out, "--device", "Pixel 7")
    assert done.code == 0, done.err
    assert "imported: p50 33.1 [33.0, 33.3] ms on Pixel 7" in " ".join(done.out.split())
    assert "the verdict stays as it is: predicted" in " ".join(done.out.split())
    after = bundle.read(out)
    (found,) = after.manifest.imported
    assert (found.provenance, found.value_ms, found.threads, found.runs) == ("imported", 33.15, 4, 50)
    assert after.manifest.verdict == before.verdict
    assert bundle.check_hashes(after) == len(before.files)
    assert "brought in; the verdict does not stand on it" in (out / "report.html").read_text()
    assert [p.name for p in out.parent.iterdir() if p.name.startswith(".")] == []


def test_what_else_lies_in_the_folder_stays(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "engines/trt10-other").mkdir(parents=True)
    (out / "engines/trt10-other/model.engine").write_text("built there")
    (out / "result.log").write_text(log(out))
    (out / "runner/runner.py").chmod(0o755)
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(out)
    for where in (".", tmp_path / "link"):
        done = edgecompile("import-result", out / "result.log", "--bundle", where, "--device", "Pixel 7")
        assert done.code == 0, done.err
        monkeypatch.chdir(out)
    assert (out / "engines/trt10-other/model.engine").read_text() == "built there"
    assert (out / "result.log").is_file()
    assert os.access(out / "runner/runner.py", os.X_OK)
    assert len(bundle.read(out).manifest.imported) == 2
    assert bundle.check_hashes(bundle.read(out)) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_several_runs_give_the_interval_of_several(out: Path, tmp_path: Path) -> None:
    logs = []
    for k, median in enumerate((33000, 33150, 33600)):
        logs.append(tmp_path / f"log{k}")
        logs[-1].write_text(log(out, more=f" p5=1 median={median} p95=34000"))
    done = edgecompile("import-result", *logs, "--bundle", out, "--device", "x", "--percentile", "95", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["value_ms"] == 34.0
    manifest = bundle.read(out).manifest
    (found,) = manifest.imported
    stricter = replace(manifest, budget=replace(manifest.budget, latency_ms=1e6, percentile=99.0))
    assert "would keep" in report.imported(found, replace(stricter, budget=replace(stricter.budget, percentile=50)))[1]
    assert "is for p99, of which it tells nothing" in report.imported(found, stricter)[1]
    assert (
        "would not keep"
        in report.imported(
            replace(found, trusted=False), replace(stricter, budget=replace(stricter.budget, percentile=50))
        )[1]
    )
    done = edgecompile("import-result", *logs, "--bundle", out, "--device", "x", "--json")
    found = json.loads(done.out)
    assert found["ci_low_ms"] < 33.0 < found["value_ms"] == 33.15
    assert found["ci_high_ms"] > 33.6
    assert found["runs"] == 150


def test_a_runners_document_is_imported(out: Path, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    subprocess.run(
        [sys.executable, "runner/runner.py", "--model", "tflite:model.tflite", "--output", str(result), "--warmup-s",
         "0.05", "--min-runs", "9", "--min-seconds", "0.1", "--rounds", "3"],
        cwd=out, check=True, capture_output=True,
    )  # fmt: skip
    done = edgecompile("import-result", result, "--bundle", out)
    assert done.code == 0, done.err
    (found,) = bundle.read(out).manifest.imported
    assert (found.provenance, found.runtime) == ("imported", "ai_edge_litert")
    assert found.environment is not None
    document = json.loads(result.read_text())
    document["models"][0]["latencies_ms"][0] = []
    (broken := tmp_path / "broken.json").write_text(json.dumps(document))
    done = edgecompile("import-result", broken, "--bundle", out)
    assert (done.code, "rounds without runs" in done.err) == (2, True)
    result.write_text(result.read_text().replace(bundle.read(out).manifest.model_file.sha256, "0" * 64))
    done = edgecompile("import-result", result, "--bundle", out)
    assert done.code == 2
    assert "not about the file of this bundle" in done.err


@pytest.mark.parametrize(
    ("changes", "device", "word"),
    [
        ({"size": "1.5"}, "x", "is about a file of 1.5 MB"),
        ({"more": ""}, "x", "the mean only"),
        ({}, None, "--device"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, str], device: str | None, word: str, out: Path) -> None:
    file = out.parent / "log"
    file.write_text(log(out, **changes))
    done = edgecompile("import-result", file, "--bundle", out, *(("--device", device) if device else ()))
    assert done.code == 2
    assert word in " ".join(done.err.split())
    assert bundle.read(out).manifest.imported == ()


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        '{"schema_version": 1, "x": 2}',
        "",
        "count=50 first=1.2.3 curr=5 min=1 max=9 avg=5 std=1 p5=1 median=5 p95=9",
        "count=50 first=1 curr=5 min=1 max=9 avg=-5 std=1 p5=1 median=-5 p95=9",
    ],
)
def test_what_is_no_result_is_refused(text: str, out: Path) -> None:
    file = out.parent / "log"
    file.write_text(text)
    done = edgecompile("import-result", file, "--bundle", out, "--device", "x")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert edgecompile("import-result", out.parent / "none", "--bundle", out, "--device", "x").code == 2
