"""`edgecompile check`: a bundle against the one before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgecompile import bench, bundle, checking, measuring
from edgecompile.errors import InputError, LimitNotMet
from edgecompile.progress import Progress, Silent
from edgecompile.transport import lab
from edgecompile.types import InstructionCount
from tests.net import Project, make_project
from tests.test_cli import edgecompile


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def bundles(project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float and an INT8 bundle of the same model and data; latency is estimated, so nothing is measured."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for precision in ("fp32", "int8"):
        made[precision] = folder / precision
        done = edgecompile(
            "build", project.model, "--target", "pi3", "--data", project.train, "--precision", precision, "--runtime",
            "tflite", "--budget-ms", "1000", "--out", made[precision],
        )  # fmt: skip
        assert done.code == 6, done.err
    return made


def _by_quantity(report: checking.CheckReport) -> dict[str, checking.Finding]:
    return {finding.quantity: finding for finding in report.findings}


OPTIONS = bench.BenchOptions(threads=1, warmup_s=0.05, min_runs=5, min_seconds=0.05)


def test_a_bundle_is_as_good_as_itself(bundles: dict[str, Path]) -> None:
    done = edgecompile("check", bundles["fp32"], "--against", bundles["fp32"], "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["passed"] is True
    assert {f["quantity"] for f in report["findings"]} == {"size", "accuracy", "outputs", "latency"}


def test_a_larger_file_is_found(bundles: dict[str, Path]) -> None:
    done = edgecompile("check", bundles["fp32"], "--against", bundles["int8"], "--no-latency")
    assert done.code == 3
    assert "worse" in done.out
    smaller = edgecompile("check", bundles["int8"], "--against", bundles["fp32"], "--no-latency", "--max-drop", "100")
    assert smaller.code == 0, smaller.out + smaller.err
    assert edgecompile(
        "check", bundles["fp32"], "--against", bundles["int8"], "--no-latency", "--max-larger", "10000"
    ).code == 0  # fmt: skip


def test_both_files_are_measured(bundles: dict[str, Path]) -> None:
    loose = checking.Tolerance(latency=1000.0, size=1000.0, accuracy_points=100.0)
    report = checking.check(bundles["int8"], bundles["fp32"], OPTIONS, Silent(), tolerance=loose)
    found = _by_quantity(report)["latency"]
    assert found.baseline.endswith(" ms")
    assert found.now.endswith(" ms")
    assert report.passed
    strict = checking.Tolerance(latency=1e-6, size=1000.0, accuracy_points=100.0)
    assert _by_quantity(checking.check(bundles["int8"], bundles["fp32"], OPTIONS, Silent(), tolerance=strict))[
        "latency"
    ].worse


def test_lost_accuracy_is_found(bundles: dict[str, Path], tmp_path: Path) -> None:
    worse = tmp_path / "worse"
    shutil.copytree(bundles["fp32"], worse)
    manifest = json.loads((worse / bundle.MANIFEST).read_text())
    for key in ("value", "ci_low", "ci_high"):
        manifest["accuracy"][key] -= 30
    (worse / bundle.MANIFEST).write_text(json.dumps(manifest))
    report = checking.check(worse, bundles["fp32"], OPTIONS, Silent(), latency=False)
    assert _by_quantity(report)["accuracy"].worse
    assert _by_quantity(report)["accuracy"].change == "-30.00 points"
    allowed = checking.Tolerance(accuracy_points=31.0)
    assert checking.check(worse, bundles["fp32"], OPTIONS, Silent(), latency=False, tolerance=allowed).passed
    better = checking.check(bundles["fp32"], worse, OPTIONS, Silent(), latency=False)
    assert not _by_quantity(better)["accuracy"].worse


def test_other_data_is_not_compared(bundles: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundles["fp32"], other)
    manifest = json.loads((other / bundle.MANIFEST).read_text())
    manifest["data"]["digest"] = "0" * 64
    (other / bundle.MANIFEST).write_text(json.dumps(manifest))
    report = checking.check(other, bundles["fp32"], OPTIONS, Silent(), latency=False)
    assert set(_by_quantity(report)) == {"size", "outputs"}


def test_what_is_no_bundle_or_was_changed_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        checking.check(bundles["fp32"], tmp_path, OPTIONS, Silent())
    with pytest.raises(InputError, match="by adb cannot be checked on"):
        checking.check(bundles["fp32"], bundles["int8"], OPTIONS, Silent(), on="adb:PHONE")
    changed = tmp_path / "changed"
    shutil.copytree(bundles["fp32"], changed)
    with (changed / "model.tflite").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(LimitNotMet):
        checking.check(changed, bundles["fp32"], OPTIONS, Silent())


# ------------------------------------------------------------------------- on an emulated board, which stands for none


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An emulated board that counts what stands in the list, for the baseline and for the new file."""
    counts: list[int] = []

    def count(paths: Sequence[Path], progress: Progress, *, on: str, runs: int = 5) -> measuring.CountReport:
        found = tuple(
            InstructionCount(core="Cortex-A72", per_inference=n, spread=0.0, runs=runs, runtime="some 1", image="x")
            for n in counts
        )
        ratios = tuple(n / counts[0] for n in counts)
        return measuring.CountReport(names=tuple(map(str, paths)), counts=found, ratios=ratios)

    def compare_golden(opened: bundle.Bundle, *, on: str, progress: Progress) -> measuring.GoldenReport:
        return measuring.GoldenReport(samples=8, comparison="exact", largest_error=0.0, through="the shipped file")

    monkeypatch.setattr(measuring, "count", count)
    monkeypatch.setattr(measuring, "compare_golden", compare_golden)
    monkeypatch.setattr(lab, "ready", lambda where, progress: None)
    return counts


@pytest.mark.parametrize(
    ("before", "after", "allowed", "worse", "change"),
    [
        (1000000, 1010000, 1.01, False, "+1.00 % (emulated Cortex-A72)"),
        (1000000, 1010001, 1.01, True, "+1.00 % (emulated Cortex-A72)"),
        (1000000, 900000, 1.01, False, "-10.00 % (emulated Cortex-A72)"),
        (1000000, 1200000, 1.5, False, "+20.00 % (emulated Cortex-A72)"),
    ],
)
def test_more_instructions_than_allowed_are_worse(
    bundles: dict[str, Path], board: list[int], before: int, after: int, allowed: float, worse: bool, change: str
) -> None:
    board += [before, after]
    loose = checking.Tolerance(size=1000.0, accuracy_points=100.0, instructions=allowed)
    report = checking.check(bundles["int8"], bundles["fp32"], OPTIONS, Silent(), on="lab:pi4", tolerance=loose)
    found = _by_quantity(report)
    assert set(found) == {"size", "accuracy", "outputs", "instructions"}
    assert (found["instructions"].worse, found["instructions"].change) == (worse, change)
    assert report.passed is not worse


def test_the_same_file_is_not_counted(bundles: dict[str, Path], board: list[int]) -> None:
    report = checking.check(bundles["int8"], bundles["int8"], OPTIONS, Silent(), on="lab:pi4")
    assert _by_quantity(report)["instructions"].now == "the same file"
