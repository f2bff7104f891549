"""Devices that fail in the middle of a command: what is said, what is left there, and what goes on from there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecompile import bundle, lower
from edgecompile.types import Artifact, Plan
from tests.adb import executable
from tests.lowering import samples, small_net
from tests.net import Project
from tests.sshd import Server, serve
from tests.test_cli import QUICK, edgecompile
from tests.test_device_setup import at_home


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("tiny")
    model = small_net(folder)
    return lower.RUNTIMES["tflite"].lower(
        model, Plan(runtime="tflite", precision="fp32"), samples(model), folder / "lowered"
    )


@contextmanager
def device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], *options: str, **environment: str
) -> Iterator[Server]:
    """A host on which some programs are others; afterwards nothing may be left on it."""
    for name, text in programs.items():
        executable(tmp_path / "bin" / name, f"#!/bin/sh\n{text}\n")
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with serve(tmp_path / "sshd", environment={"PATH": path, **environment}, options=options) as server:
        at_home(server, tmp_path / "our-home", monkeypatch)
        yield server
        assert server.left() == []


#: A Python that measures nothing: what the words stand for happens as soon as the runner is started.
RUNNER = 'case " $* " in *" runner.py "*) {what};; esac\nexec "' + sys.executable + '" "$@"'


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kill -9 $$", ("SIGKILL", "not enough memory")),
        ("echo \"ModuleNotFoundError: No module named 'numpy'\" >&2; exit 1", ("'numpy'", "device setup")),
        pytest.param("echo 'disk I/O error' >&2; exit 5", ("exit code 5", "disk I/O"), marks=pytest.mark.slow),
        pytest.param("echo Illegal instruction >&2; kill -4 $$", ("SIGILL",), marks=pytest.mark.slow),
    ],
)
def test_a_runner_that_ends_is_told(
    what: str, words: tuple[str, ...], tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device(tmp_path, monkeypatch, {"python3": RUNNER.format(what=what)}) as server:
        done = edgecompile("bench", tiny.file, "--on", server.where, *QUICK)
    assert done.code == 4
    said = " ".join(done.err.split())
    assert all(word in said for word in words), said
    assert "what to do" in said
    assert "Traceback" not in said


def test_a_file_that_takes_all_memory_is_told(tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that loads the file is killed, as the kernel does it; the runner itself lives on and says so."""
    code = "import os, sys; sys.executable = sys.argv[1]; sys.argv[:2] = []; __file__ = os.path.abspath('runner.py')"
    wrapper = (
        'case " $* " in *" --probe "*) kill -9 $$;; esac\n'
        f'case $1 in runner.py) exec "{sys.executable}" -c "{code}; exec(open(__file__).read())" "$0" "$@";; esac\n'
        f'exec "{sys.executable}" "$@"'
    )
    with device(tmp_path, monkeypatch, {"python3": wrapper}) as server:
        done = edgecompile("bench", tiny.file, "--on", server.where, *QUICK)
    assert done.code == 4
    assert "signal 9" in done.err
    assert "memory" in done.err


@pytest.mark.parametrize(
    ("programs", "environment"),
    [
        ({"date": "echo 0"}, {"HOME": "/proc"}),
        pytest.param({"date": "echo 99999999999"}, {}, marks=pytest.mark.slow),
    ],
    ids=["clock of 1970 and read-only home", "clock far ahead"],
)
def test_what_does_not_matter_does_not_hurt(
    programs: dict[str, str],
    environment: dict[str, str],
    tiny: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with device(tmp_path, monkeypatch, programs, **environment) as server:
        done = edgecompile("bench", tiny.file, "--on", server.where, *QUICK)
    assert done.code == 0, done.err


def test_no_key_and_no_terminal_to_ask_on_is_told(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with device(tmp_path, monkeypatch, {}) as server:
        (tmp_path / "our-home" / ".ssh" / "id_ed25519").unlink()
        done = edgecompile("bench", tiny.file, "--on", server.where, *QUICK)
    assert done.code == 4
    assert "there was no key to try" in done.err
    assert "ssh-copy-id" in done.err


# ----------------------------------------------------------------------------------------- builds that are cut off


def command(project: Project, out: Path, server: Server) -> list[str]:
    return [
        "build", str(project.model), "--target", "pi4", "--on", server.where, "--budget-ms", "1000", *QUICK, "--data",
        str(project.train), "--runtime", "tflite", "--precision", "fp32", "--validation-samples", "20",
        "--eval-samples", "20", "--calibration-samples", "20", "--out", str(out),
    ]  # fmt: skip


def stop_at(stage: str, words: list[str]) -> tuple[int, str]:
    """Start a command, press Ctrl-C when it announces a stage; its exit code and what it said."""
    child = subprocess.Popen(
        [sys.executable, "-u", "-m", "edgecompile", *words],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert child.stderr is not None
    said = ""
    for line in child.stderr:
        said += line
        if line.startswith(stage):
            os.killpg(child.pid, signal.SIGINT)
            break
    _, rest = child.communicate(timeout=60)
    return child.returncode, said + rest


def test_a_build_goes_on_where_a_device_or_ctrl_c_ended_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with device(tmp_path, monkeypatch, {"python3": RUNNER.format(what="kill -9 $$")}) as server:
        words = command(project, out, server)
        done = edgecompile(*words)
        assert done.code == 4
        assert "SIGKILL" in done.err
        made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.work").rglob("lower/*/result.json")}
        assert made, "what was converted is kept"
        shutil.rmtree(tmp_path / "bin")
        for stage in ("Measure", "Check the golden vectors on the device"):
            code, said = stop_at(stage, words)
            assert code == 130, said
            assert "Traceback" not in said
            assert server.left() == []
            assert not out.exists()
        measured = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.work").rglob("measure/*/result.json")}
        assert measured, "what was measured is kept"
        done = edgecompile(*words)
        assert done.code == 0, done.err
        kept = {**made, **measured}
        assert {p: p.stat().st_mtime_ns for p in kept} == kept, "nothing was done twice"
    assert bundle.read(out).manifest.golden.devices[0].fault is None
