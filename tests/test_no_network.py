"""No step of a build looks for the network: every process of it tells when it opens a socket or asks for a name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompile import lower
from edgecompile.types import Plan
from tests.lowering import samples, small_net
from tests.net import Project

ROOT = Path(__file__).resolve().parents[1]
#: Python reads this first in every process that has its folder on the path.
SPY = """\
import os, socket, sys
def tell(words):
    with open(os.environ["SPY_LOG"], "a") as stream:
        stream.write(words + "\\n")
tell("started")
def watch(event, arguments):
    if event == "socket.getaddrinfo":
        tell(f"asked for {arguments[0]}")
    if event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        tell(f"connected to {arguments[1]}")
sys.addaudithook(watch)
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What processes started from here on tell."""
    folder = tmp_path / "spy"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SPY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    monkeypatch.setenv("SPY_LOG", str(tmp_path / "log.txt"))
    return tmp_path / "log.txt"


def told(log: Path) -> list[str]:
    lines = log.read_text().splitlines()
    assert "started" in lines, "the spy was there"
    return [line for line in lines if line != "started"]


def test_the_spy_sees_what_it_should(log: Path) -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0
    assert told(log) == ["asked for 127.0.0.1", "connected to ('127.0.0.1', 9)"]


def test_a_build_asks_nobody(project: Project, log: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgecompile", "build", str(project.model), "--target", "x86", "--budget-ms", "1000",
         "--data", str(project.train), "--warmup-seconds", "0.1", "--min-runs", "5", "--min-seconds", "0.1",
         "--accept-throttled", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told(log) == []


def test_neither_does_onnx2tf_which_downloads_images_for_nets_of_three_channels(log: Path, tmp_path: Path) -> None:
    model = small_net(tmp_path)
    plan = Plan(runtime="tflite", precision="fp32")
    made = lower.RUNTIMES["tflite"].lower(model, plan, samples(model), tmp_path / "made", path="onnx2tf")
    assert made.path_taken == "onnx2tf"
    assert told(log) == []
