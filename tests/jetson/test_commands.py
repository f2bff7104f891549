"""The commands as a Jetson engineer runs them, against an SSH server whose host plays a board."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile import bundle
from tests.jetson.standin import Standin, known_to_us, standin
from tests.net import Project, make_project
from tests.test_cli import QUICK, Done, edgecompile

BUILD = ("--target", "jetson", "--budget-ms", "1.5", "--no-prune", "--min-seconds", "1", "--warmup-seconds", "0.1")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def host(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with standin(tmp_path_factory.mktemp("host"), "10.3.0") as found:
        assert found.server is not None
        known_to_us(found.server, home)
        yield found
        assert found.server.left() == []


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def built(project: Project, host: Standin, home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    out = tmp_path_factory.mktemp("built") / "an out"
    done = edgecompile(
        "build", project.model, *BUILD, "--on", host.where, "--data", project.train, "--out", out,
        "--power-mode", "maxn", "--precision", "fp16", "--precision", "int8", env={"HOME": str(home)},
    )  # fmt: skip
    return done, out


def test_a_build_chooses_by_what_the_board_measured(built: tuple[Done, Path], host: Standin) -> None:
    done, out = built
    assert done.code == 0, done.err
    assert "measured on NVIDIA Jetson Orin Nano" in " ".join(done.out.split())
    manifest = bundle.read(out).manifest
    assert manifest.verdict.status == "met"
    assert manifest.measurement.provenance == "measured"
    assert (manifest.measurement.runtime, manifest.measurement.runtime_version) == ("tensorrt", "10.3.0")
    assert {c.label for c in manifest.candidates} == {"tensorrt-fp16", "tensorrt-int8"}
    environment = manifest.measurement.environment
    assert environment is not None
    assert environment.board is not None
    assert (environment.board.jetpack, environment.board.power_mode) == ("6.2", "MAXN")
    assert host.mode == 1


def test_the_bundle_holds_the_engine_and_what_belongs_to_it(built: tuple[Done, Path]) -> None:
    _, out = built
    manifest = bundle.read(out).manifest
    (facts,) = manifest.engines
    (seen,) = manifest.golden.devices
    assert (seen.runtime, seen.fault) == ("TensorRT 10.3.0", None)
    assert facts.key == "trt10.3.0-nvidia-jetson-orin-nano-developer-kit-super-compute-8-7"
    names = {path.name for path in (out / "engines" / facts.key).iterdir()}
    assert names == {"model.engine", "timing.cache", "build.log", "layers.json", "layer_times.json"}
    assert facts.layers[0].percent == 70.0
    assert os.access(out / "build_engine.sh", os.X_OK)
    page = (out / "report.html").read_text()
    assert "TensorRT 10.3.0" in page
    assert "conv0 + relu" in page


def test_the_engine_in_the_bundle_is_measured_and_verified(built: tuple[Done, Path], host: Standin) -> None:
    _, out = built
    before = len(host.calls("trtexec"))
    done = edgecompile("bench", out, "--on", host.where, *QUICK, "--json")
    assert done.code == 0, done.err
    (measurement,) = json.loads(done.out)["measurements"]
    assert (measurement["provenance"], measurement["runtime"]) == ("measured", "tensorrt")
    done = edgecompile("verify", out, "--on", host.where)
    assert done.code == 0, done.err
    assert "golden vectors through the engine" in " ".join(done.out.split())
    assert not any("--saveEngine" in " ".join(call) for call in host.calls("trtexec")[before:])


def test_another_board_gets_an_engine_of_its_own(built: tuple[Done, Path], host: Standin) -> None:
    _, out = built
    host.set(version="8.6.2")
    try:
        done = edgecompile("verify", out, "--on", host.where)
    finally:
        host.set(version="10.3.0")
    assert done.code == 0, done.err
    assert "is for another board (TensorRT 10.3.0" in " ".join(done.err.split())


def test_a_bundle_without_its_engine_stays_as_it_is(built: tuple[Done, Path], host: Standin, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built[1], out)
    (engine,) = out.glob("engines/*/model.engine")
    engine.unlink()
    (cache,) = out.glob("engines/*/timing.cache")
    cache.write_bytes(before := cache.read_bytes() + b"known")
    done = edgecompile("bench", out, "--on", host.where, *QUICK)
    assert done.code == 0, done.err
    assert cache.read_bytes() == before


def test_an_engine_that_computes_something_else_is_found_out(built: tuple[Done, Path], host: Standin) -> None:
    _, out = built
    host.set(other_outputs=True)
    try:
        done = edgecompile("verify", out, "--on", host.where)
    finally:
        host.set(other_outputs=False)
    assert done.code == 3
    assert "differs from the golden vector" in done.err


def test_ctrl_c_puts_the_power_mode_back(built: tuple[Done, Path], host: Standin) -> None:
    _, out = built
    host.set(fault={"step": "run", "kind": "hang"})
    hanging = host.root / "hanging"
    command = [sys.executable, "-m", "edgecompile", "bench", str(out), "--on", host.where, "--power-mode", "MAXN"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 60
        while not hanging.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert host.mode == 0
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        host.set(fault=None)
        hanging.unlink(missing_ok=True)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    assert host.mode == 1


@pytest.mark.parametrize(
    ("kind", "code", "words"), [("plugins", 5, "GridSample3D"), ("memory", 4, "lower the workspace")]
)
def test_nothing_that_builds_is_an_error(
    kind: str, code: int, words: str, project: Project, host: Standin, tmp_path: Path
) -> None:
    host.set(fault={"step": "build", "kind": kind})
    try:
        done = edgecompile(
            "build", project.model, *BUILD, "--on", host.where, "--precision", "fp16", "--out", tmp_path / "out"
        )
    finally:
        host.set(fault=None)
    assert done.code == code, done.err
    assert words in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_what_does_not_build_or_start_leaves_the_others(project: Project, host: Standin, tmp_path: Path) -> None:
    """INT8 takes too much memory; of ONNX Runtime's ways to the GPU one works, and the other is there and does not."""
    host.set(
        providers=["TensorrtExecutionProvider", "CUDAExecutionProvider"], starting=["CUDAExecutionProvider"],
        fault={"step": "build", "kind": "memory", "precision": "int8"},
    )  # fmt: skip
    try:
        done = edgecompile(
            "build", project.model, *BUILD, "--on", host.where, "--data", project.train, "--out", tmp_path / "out",
            "--precision", "fp16", "--precision", "int8", "--min-runs", "5",
        )  # fmt: skip
    finally:
        host.set(providers=None, starting=None, fault=None)
    assert done.code == 0, done.err
    assert "tensorrt-int8: the board ran out of memory" in " ".join(done.err.split())
    found = {c.label: c for c in bundle.read(tmp_path / "out").manifest.candidates}
    assert set(found) == {"tensorrt-fp16", "tensorrt-int8", "onnxruntime-cuda-fp16", "onnxruntime-tensorrt-fp16"}
    assert "ran out of memory" in (found["tensorrt-int8"].failure or "")
    measured = found["onnxruntime-cuda-fp16"].measurement
    assert measured is not None
    assert (measured.provenance, measured.runtime) == ("measured", "onnxruntime+cuda")
    assert "does not start on this machine" in (found["onnxruntime-tensorrt-fp16"].failure or "")


def test_without_a_board_it_is_a_prediction(project: Project, tmp_path: Path) -> None:
    done = edgecompile("build", project.model, *BUILD, "--precision", "fp16", "--out", tmp_path / "out")
    assert done.code == 6, done.err
    manifest = bundle.read(tmp_path / "out").manifest
    assert (manifest.verdict.status, manifest.measurement.provenance) == ("predicted", "estimated")
    assert manifest.engines == ()
    assert (tmp_path / "out" / "build_engine.sh").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "x86", "--power-mode", "MAXN"), "--power-mode is for a Jetson"),
        (("--target", "jetson", "--on", "local"), "has no TensorRT"),
    ],
)
def test_what_cannot_be_a_jetson_is_refused(
    arguments: tuple[str, ...], words: str, project: Project, tmp_path: Path
) -> None:
    done = edgecompile("build", project.model, *arguments, "--out", tmp_path / "out")
    assert done.code in (2, 4)
    assert words in " ".join(done.err.split())
