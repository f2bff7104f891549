"""Ctrl-C and SIGKILL at every stage: nothing half-written under the final name, and the same command goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompile import bundle
from tests.net import Project

STAGES = (
    "Load the model",
    "Read the data",
    "Run the original",
    "Convert and compare",
    "Measure",
    "Validate",
    "Evaluate the file that ships",
    "Write the bundle",
)


def command(project: Project, out: Path) -> list[str]:
    return [
        sys.executable, "-u", "-m", "edgecompile", "build", str(project.model), "--target", "x86",
        "--budget-ms", "1000", "--data", str(project.train), "--runtime", "onnxruntime", "--threads", "1",
        "--warmup-seconds", "0.1",
        "--min-runs", "20", "--min-seconds", "0.5", "--accept-throttled", "--out", str(out),
    ]  # fmt: skip


def stop_at(stage: str, project: Project, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a build, send it a signal when it announces ``stage``, and return its exit code and what it said."""
    process = subprocess.Popen(
        command(project, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(stage):
            # Ctrl-C in a terminal reaches the whole foreground group.
            os.killpg(process.pid, number)
            break
    else:
        pytest.fail(f"the stage {stage!r} was never announced:\n{said}")
    rest = process.communicate(timeout=120)[1]
    return process.returncode, said + rest


def leftovers(out: Path) -> list[str]:
    return sorted(p.name for p in out.parent.iterdir() if p.name not in (out.name + ".work", "edgecompile-cache"))


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_leaves_nothing_half_written(stage: str, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = stop_at(stage, project, out, signal.SIGINT)
    if stage == STAGES[-1] and out.exists():
        bundle.check_hashes(bundle.read(out))  # the bundle had its final name before the signal came: it is whole
        assert leftovers(out) == [out.name]
        return
    assert code == 130, said
    assert "Traceback" not in said
    assert "interrupted" in said
    assert leftovers(out) == []


def test_a_killed_build_goes_on_where_it_was(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_at("Validate", project, out, signal.SIGKILL)
    assert not out.exists()
    work = tmp_path / "out.work"
    before = {p: p.stat().st_mtime_ns for p in [*work.rglob("lower/*/*"), *work.rglob("measure/*/*")] if p.is_file()}
    assert before
    done = subprocess.run(command(project, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before, "finished work is not repeated"
    bundle.check_hashes(bundle.read(out))


def test_fresh_starts_anew(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_at("Validate", project, out, signal.SIGKILL)
    marker = tmp_path / "out.work" / "marker"
    marker.write_text("old")
    done = subprocess.run([*command(project, out), "--fresh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_at_once(project: Project, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = subprocess.run(command(project, locked / "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot write" in done.stderr


def test_a_file_system_that_is_read_only(project: Project, tmp_path: Path) -> None:
    """``/proc`` takes no files from anybody, root included."""
    done = subprocess.run(command(project, Path("/proc/out")), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write to the folder /proc" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", ["60k", "120k"])
def test_a_full_disk_is_told_as_such(size: str, project: Project, tmp_path: Path) -> None:
    """A small file system of our own, in a namespace that needs no rights: while reading the model, and later."""
    small = tmp_path / "small"
    small.mkdir()
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    script = 'mount -t tmpfs -o size="$1" none "$2" && shift 2 && "$@"; code=$?; ls -A "$OUT_OF"; exit $code'
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, f"mount -t tmpfs none {small}"], check=False).returncode
    ):
        pytest.skip("this machine lets nobody mount a small file system")
    done = subprocess.run(
        [*inside, script, "sh", size, str(small), *command(project, small / "out")],
        capture_output=True, text=True, check=False, env={**os.environ, "OUT_OF": str(small)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no space is left on the disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["out.work"], "nothing under the final name, nor half of it beside it"


def test_an_interrupt_that_a_native_module_hides_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while ONNX Runtime was being imported came out as ``ImportError: initialization failed``."""
    from edgecompile import __main__ as program

    def importing(**_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(program.cli, "main", importing)
    assert program.run(["devices"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
