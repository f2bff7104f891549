"""The commands that take ``--on lab:...``, and ``edgecompile lab`` itself, as a user runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgecompile import bundle
from edgecompile.cli.lab import BOARD
from edgecompile.transport import lab
from tests.net import Project, make_project
from tests.test_cli import Done, edgecompile


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def built(lab_folder: Path, project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """A build for a Raspberry Pi 4 with an emulated one at hand, float and INT8."""
    out = tmp_path_factory.mktemp("built") / "out"
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--on", "lab:pi4", "--data", project.train, "--budget-ms", "1000",
        "--precision", "fp32", "--precision", "int8", "--eval-on-device", "40", "--out", out,
    )  # fmt: skip
    return done, out


@pytest.fixture(scope="module")
def bundles(lab_folder: Path, project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float and an INT8 bundle of the same model and data, made without any device."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for precision in ("fp32", "int8"):
        made[precision] = folder / precision
        done = edgecompile(
            "build", project.model, "--target", "pi4", "--data", project.train, "--precision", precision,
            "--runtime", "tflite", "--budget-ms", "1000", "--out", made[precision],
        )  # fmt: skip
        assert done.code == 6, done.err
    return made


# ------------------------------------------------------------------------------------------------------- build


def test_a_build_runs_on_the_board_and_takes_no_latency_from_it(built: tuple[Done, Path]) -> None:
    done, out = built
    assert done.code == 6, done.err  # the budget is predicted: nothing that was emulated can meet it
    manifest = bundle.read(out).manifest
    assert manifest.verdict.status == "predicted"
    assert {c.measurement.provenance for c in manifest.candidates if c.measurement} == {"estimated"}
    assert "an emulated board has no latency" in " ".join(done.err.split())
    assert "Check the golden vectors on the emulated Cortex-A72" in done.err
    (there,) = manifest.golden.devices
    assert there.device == "lab:pi4 (emulated Cortex-A72)"
    assert there.fault is None


def test_a_build_counts_the_instructions_of_every_candidate(built: tuple[Done, Path]) -> None:
    done, out = built
    manifest = bundle.read(out).manifest
    assert manifest.emulated == "Cortex-A72"
    counts = {c.label: c.instructions for c in manifest.candidates}
    assert set(counts) == {"tflite-fp32", "tflite-int8"}
    assert all(one is not None and one.core == "Cortex-A72" and one.per_inference > 10_000 for one in counts.values())
    assert "instructions (emulated Cortex-A72)" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    page = (out / "report.html").read_text()
    assert "<h2>Instructions</h2>" in page
    assert "emulated Cortex-A72, whose times mean nothing" in page


def test_accuracy_on_the_board_is_said_to_be_emulated(built: tuple[Done, Path]) -> None:
    done, out = built
    found = bundle.read(out).manifest.device_accuracy
    assert found is not None
    assert found.samples == 40
    assert found.value > 50
    words = " ".join(done.out.split())
    assert "on the emulated Cortex-A72, 40 samples" in words
    assert "device itself" not in words


def test_an_arm_board_does_not_stand_in_for_another_architecture(project: Project, tmp_path: Path) -> None:
    done = edgecompile("build", project.model, "--target", "x86", "--on", "lab:pi4", "--out", tmp_path / "out")
    assert done.code == 2
    assert "says nothing about x86" in done.err


# ----------------------------------------------------------------------------------------------- bench, verify


@pytest.fixture(scope="module")
def counted(bundles: dict[str, Path]) -> dict[str, object]:
    """What ``bench`` says of the float and the INT8 bundle."""
    done = edgecompile("bench", bundles["fp32"], bundles["int8"], "--on", "lab:pi4", "--cost", "instructions", "--json")
    assert done.code == 0, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


def test_bench_counts_instructions(counted: dict[str, Any]) -> None:
    assert counted["cost"] == "instructions (emulated Cortex-A72)"
    before, after = (one["per_inference"] for one in counted["counts"])
    assert counted["ratios"] == [1.0, pytest.approx(after / before)]
    assert {one["runtime"] for one in counted["counts"]} == {"ai_edge_litert 2.1.0"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--on", "lab:pi4"), "an emulated Cortex-A72 has no latency"),
        (("--cost", "instructions"), "instructions are not counted on this machine"),
        (("--on", "lab:pi4", "--cost", "instructions", "--threads", "2"), "--threads is about latency"),
        (("--on", "lab:pi4", "--cost", "instructions", "--budget-ms", "2"), "--budget-ms is about latency"),
        (("--on", "lab:pi9", "--cost", "instructions"), "no emulated board 'pi9'"),
    ],
)
def test_what_an_emulated_board_cannot_tell_is_refused(
    bundles: dict[str, Path], arguments: tuple[str, ...], words: str
) -> None:
    done = edgecompile("bench", bundles["fp32"], *arguments)
    assert done.code == 2
    assert words in done.err
    assert "what to do" in done.err


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_golden_vectors_are_equal_on_the_board(bundles: dict[str, Path], precision: str) -> None:
    done = edgecompile("verify", bundles[precision], "--on", "lab:pi5", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["comparison"] == ("exact" if precision == "int8" else "relative")
    assert found["largest_error"] <= (0 if precision == "int8" else 1e-5)


# ------------------------------------------------------------------------------------------------------- check


def by_quantity(done: Done) -> dict[str, dict[str, object]]:
    return {finding["quantity"]: finding for finding in json.loads(done.out)["findings"]}


def test_more_instructions_fail_a_check(bundles: dict[str, Path], counted: dict[str, Any]) -> None:
    """Without the dot product this little net takes more instructions in INT8, and the file is smaller all the same."""
    done = edgecompile(
        "check", bundles["int8"], "--against", bundles["fp32"], "--on", "lab:pi4", "--max-drop", "100", "--json"
    )
    assert done.code == 3, done.err
    found = by_quantity(done)
    assert set(found) == {"size", "accuracy", "outputs", "instructions"}
    assert [name for name, one in found.items() if one["worse"]] == ["instructions"]
    assert "latency is not compared" in done.err
    before, after = (f"{one['per_inference']:,}" for one in counted["counts"])
    assert (found["instructions"]["baseline"], found["instructions"]["now"]) == (before, after)  # another process's


def test_a_check_of_emulated_latency_is_refused(bundles: dict[str, Path]) -> None:
    done = edgecompile("check", bundles["fp32"], "--against", bundles["int8"], "--on", "lab:pi4", "--latency")
    assert done.code == 2
    assert "has no latency" in done.err


def test_outputs_that_differ_on_the_board_fail_a_check(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A bundle whose golden outputs are another file's, with hashes that fit."""
    import numpy as np

    from edgecompile.types import file_sha256

    other = tmp_path / "other"
    shutil.copytree(bundles["int8"], other)
    golden = bundle.read(other).file("golden outputs")
    with np.load(golden) as arrays:
        moved = {name: array + np.asarray(1, array.dtype) for name, array in arrays.items()}
    np.savez(golden, **moved)
    manifest = json.loads((other / bundle.MANIFEST).read_text())
    for entry in manifest["files"]:
        if entry["role"] == "golden outputs":
            entry["sha256"], entry["size_bytes"] = file_sha256(golden), golden.stat().st_size
    (other / bundle.MANIFEST).write_text(json.dumps(manifest))
    done = edgecompile("check", other, "--against", bundles["int8"], "--on", "lab:pi4", "--json")
    assert done.code == 3, done.err
    assert [name for name, one in by_quantity(done).items() if one["worse"]] == ["outputs"]


# --------------------------------------------------------------------------------------------- edgecompile lab


def test_boards_are_started_listed_and_ended(lab_folder: Path) -> None:
    done = edgecompile("lab", "up", "pi3", "pi5", "--json")
    assert done.code == 0, done.err
    facts = {one["name"]: one for one in json.loads(done.out)}
    assert facts["pi3"]["core"] == "Cortex-A53"
    assert Path(facts["pi5"]["identity"]).is_file()
    again = edgecompile("lab", "up", "pi3")
    assert again.code == 0
    assert again.out == "pi3 runs: an emulated Cortex-A53; use it with --on lab:pi3\n"
    listed = json.loads(edgecompile("lab", "list", "--json").out)
    assert {one["name"]: one["running"] for one in listed["boards"]}.items() >= {"pi3": True, "pi5": True}.items()
    assert listed["size_bytes"] > 100e6
    table = edgecompile("lab", "list").out
    assert f"port {facts['pi3']['port']}" in table
    assert edgecompile("lab", "down", "pi3").out == "pi3 has ended\n"
    ended = edgecompile("lab", "down", "pi3")
    assert (ended.code, ended.out) == (0, "pi3 did not run\n")


def test_the_boards_of_the_command_line_are_those_of_the_lab() -> None:
    assert tuple(BOARD.choices) == tuple(lab.CORES)


def test_two_processes_that_start_the_same_board_get_the_same(lab_folder: Path) -> None:
    lab.down("pi3")
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "edgecompile", "lab", "up", "pi3", "--json"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in both)
    assert first == second
    assert lab.down("pi3")


def test_a_start_that_is_killed_leaves_nothing_that_hinders_the_next(lab_folder: Path) -> None:
    for delay_s in (0.3, 0.7, 1.0):
        lab.down("pi3")
        process = subprocess.Popen([sys.executable, "-m", "edgecompile", "lab", "up", "pi3"], stdout=subprocess.DEVNULL)
        time.sleep(delay_s)
        process.kill()
        process.wait()
    assert edgecompile("lab", "up", "pi3").code == 0
    assert lab.down("pi3")
    assert boards_of(lab_folder / "boxes" / "pi3") == []


def boards_of(folder: Path) -> list[int]:
    """The processes that were started for the board in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(entry.name))
    return found


def test_a_board_outlives_whoever_started_it_and_leaves_no_mounts(lab_folder: Path) -> None:
    assert edgecompile("lab", "up", "pi3").code == 0
    assert "pi3" in [one.name for one in lab.boxes()]
    assert str(lab_folder) not in Path("/proc/self/mountinfo").read_text()
    assert lab.down("pi3")
    assert str(lab_folder) not in Path("/proc/self/mountinfo").read_text()


# ------------------------------------------------------------------------------------------ what can be missing


def test_no_network_is_said(tmp_path: Path) -> None:
    env = {"EDGECOMPILE_LAB": str(tmp_path), "EDGECOMPILE_DEBIAN_MIRROR": "http://127.0.0.1:9/debian"}
    done = edgecompile("lab", "up", "pi4", env=env)
    assert done.code == 4
    assert "reading Debian's index failed" in done.err
    assert "127.0.0.1" in done.err
    assert "EDGECOMPILE_DEBIAN_MIRROR" in done.err


def test_a_full_disk_is_said_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompile.errors import DeviceError

    monkeypatch.setenv("EDGECOMPILE_LAB", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
    with pytest.raises(DeviceError, match="100 MB are free") as caught:
        lab.up("pi4")
    assert "EDGECOMPILE_LAB" in (caught.value.remedy or "")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.skipif(not Path("/proc/self/ns/user").exists(), reason="this kernel has no user namespaces at all")
def test_missing_user_namespaces_are_named(lab_folder: Path, tmp_path: Path) -> None:
    """In a user namespace that allows no further ones, as in a container that forbids them."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-m", "edgecompile"]
    folder = tmp_path / "lab"
    folder.mkdir()
    (image,) = lab_folder.glob("image-*")
    (folder / image.name).symlink_to(image)
    done = subprocess.run(
        [*command, "lab", "up", "pi4"],
        env={**os.environ, "EDGECOMPILE_LAB": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "unshare" in done.stderr
    assert "user.max_user_namespaces" in done.stderr


# ---------------------------------------------------------------------------------------- the documented workflow


def test_the_commands_of_the_documented_workflow_run(
    bundles: dict[str, Path], project: Project, tmp_path: Path
) -> None:
    """Those of edgecompile itself, as the workflow's shell runs them, in a project whose baseline is in it."""
    root = Path(__file__).resolve().parents[2]
    commands = re.findall(r"^ *run: (edgecompile .+)$", (root / "docs" / "ci-workflow.yml").read_text(), re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["build", "check", "lab"]
    (tmp_path / "edgecompile.toml").write_text(
        f'model = "{project.model}"\ndata = "{project.train}"\ntarget = "pi4"\nbudget_ms = 1000\nprecision = "fp32"\n'
    )
    shutil.copytree(bundles["fp32"], tmp_path / "bundles" / "pi4")
    program = tmp_path / "bin" / "edgecompile"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgecompile "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    for command in commands:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", command],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert bundle.read(tmp_path / "built").manifest.emulated == "Cortex-A72"
    assert lab.boxes() == ()
