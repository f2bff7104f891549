"""Emulated Arm boards: they start, compute what this machine computes, count the same every time, and end."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgecompile import bench, content
from edgecompile.bench import document, runner
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import Transport, lab, open_transport
from edgecompile.transport.lab import box, fetch
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Precision

Make = Callable[[Precision], Artifact]


def processes(folder: Path) -> list[int]:
    """The processes that have a file of the lab's folder open, or run from it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes() + os.readlink(entry / "root").encode()
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(entry.name))
    return found


def outputs(artifact: Artifact, transport: Transport, folder: Path, package: str) -> dict[str, np.ndarray]:
    """What the file gives for three seeded samples, run there by our runner with one package."""
    generator = np.random.default_rng(7)
    feed = {}
    for port in artifact.inputs:
        shape = (3, *port.spec.shape)
        integer = port.spec.dtype == "int8"
        feed[port.spec.name] = (
            generator.integers(-128, 128, shape).astype(np.int8)
            if integer
            else generator.standard_normal(shape).astype(np.float32)
        )
    given, found = folder / "inputs.npz", folder / "outputs.npz"
    np.savez(given, **feed)
    with transport as there:
        there.put(given, "inputs.npz")
        arguments = ["--run-inputs", "inputs.npz", "--write-outputs", "outputs.npz", "--runtime-module", package]
        ran = runner.run([artifact], there, arguments, document.Ran, timeout_s=300.0)
        assert ran.package == package
        there.get("outputs.npz", found)
    with np.load(found, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("board", "part", "name"),
    [("pi3", "0xd03", "cortex-a53"), ("pi4", "0xd08", "cortex-a72"), ("pi5", "0xd0b", "cortex-a76")],
)
def test_a_board_is_an_arm_machine_with_its_core(lab_folder: Path, board: str, part: str, name: str) -> None:
    with open_transport(f"lab:{board}") as there:
        said = there.run(["uname", "-m", "-n"], timeout_s=60)
        info = there.run(["cat", "/proc/cpuinfo"], timeout_s=60)
        assert there.run(["id", "-u"], timeout_s=60).out.strip() == "1000"
    assert said.out.split() == [f"emulated-{name}", "aarch64"]
    assert info.out.count(f"CPU part\t: {part}") == 4
    assert board in [one.name for one in lab.boxes()]


@pytest.mark.parametrize("package", ["ai_edge_litert", "tflite_runtime"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("int8", 0.0)])
def test_outputs_equal_those_of_this_machine(
    lab_folder: Path, made: Make, tmp_path: Path, precision: Precision, tolerance: float, package: str
) -> None:
    artifact = made(precision)
    here = outputs(artifact, LocalTransport(), tmp_path, package)
    there = outputs(artifact, open_transport("lab:pi4"), tmp_path, package)
    assert here.keys() == there.keys()
    for name, expected in here.items():
        assert np.ptp(expected.astype(np.float64)) > 0
        np.testing.assert_allclose(there[name].astype(np.float64), expected.astype(np.float64), rtol=0, atol=tolerance)


def test_instructions_are_the_same_every_time(lab_folder: Path, made: Make) -> None:
    artifact = made("int8")
    with open_transport("lab:pi4") as there:
        first = bench.instructions(artifact, there, runs=3)
    with open_transport("lab:pi4") as there:
        second = bench.instructions(artifact, there, runs=3)
    assert first == second
    assert first.label == "instructions (emulated Cortex-A72)"
    assert first.runtime == "ai_edge_litert 2.1.0"
    assert 10_000 < first.per_inference < 10_000_000
    assert first.spread < 0.05
    with open_transport("lab:pi5") as there:  # which has the dot product that INT8 kernels use
        assert bench.instructions(artifact, there, runs=3).per_inference < first.per_inference


def test_times_of_an_emulated_board_are_not_taken(lab_folder: Path, made: Make) -> None:
    """What measures refuses; whatever a runner says there all the same carries the emulator's name."""
    artifact = made("int8")
    with open_transport("lab:pi4") as there:
        with pytest.raises(InputError, match="emulated Cortex-A72 has no latency"):
            bench.measure([artifact], there, bench.BenchOptions())
        with pytest.raises(InputError, match="emulated Cortex-A72 has no latency"):
            bench.sustained(artifact, there, bench.BenchOptions(), seconds=1.0)
        arguments = ["--warmup-s", "0", "--min-runs", "1", "--min-seconds", "0", "--rounds", "1", "--passes", "1"]
        found = runner.run([artifact], there, arguments, document.Document, timeout_s=300.0)
    assert found.environment.device == "emulated-cortex-a72"
    lab.refuse_latency(LocalTransport())


def test_down_leaves_nothing_and_up_starts_once(lab_folder: Path) -> None:
    first = lab.up("pi3")
    assert lab.up("pi3") == first
    assert set(processes(lab_folder / "boxes" / "pi3")) >= {first.pid}
    server = box._children(first.pid)
    assert server
    assert lab.down("pi3")
    assert not lab.down("pi3")
    assert not first.alive
    assert not any(Path(f"/proc/{pid}").exists() for pid in server)
    assert not (lab_folder / "boxes" / "pi3").exists()
    assert processes(lab_folder / "boxes" / "pi3") == []


def test_a_board_that_died_is_started_anew(lab_folder: Path) -> None:
    stale = lab.up("pi3")
    for pid in (*box._children(stale.pid), stale.pid):
        os.kill(pid, 9)
    os.waitpid(stale.pid, 0)
    assert "pi3" not in [one.name for one in lab.boxes()]
    fresh = lab.up("pi3")
    assert fresh.alive
    assert (fresh.pid, fresh.started) != (stale.pid, stale.started)
    assert lab.down("pi3")


def test_a_process_of_another_time_with_the_same_number_is_not_ended(lab_folder: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        folder = lab_folder / "boxes" / "pi3"
        folder.mkdir(parents=True, exist_ok=True)
        state = {"name": "pi3", "core": "Cortex-A53", "port": 1, "pid": child.pid, "started": 1, "folder": str(folder)}
        (folder / "state.json").write_text(json.dumps(state))
        assert "pi3" not in [one.name for one in lab.boxes()]
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()


def test_nothing_of_the_users_ssh_is_read(lab_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host *\n  ProxyCommand false\n  User nobody\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_transport("lab:pi4") as there:
        assert there.run(["true"], timeout_s=60).code == 0
    assert [path.name for path in (tmp_path / ".ssh").iterdir()] == ["config"]


# ------------------------------------------------------------------------------------ what needs no board


def test_a_board_that_there_is_not_is_named() -> None:
    with pytest.raises(InputError, match="pi9") as caught:
        open_transport("lab:pi9")
    assert "pi3, pi4, pi5" in (caught.value.remedy or "")


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_LAB", str(tmp_path))
    monkeypatch.setattr("edgecompile.transport.lab.places._SEARCHED", str(tmp_path))
    with pytest.raises(DeviceError, match="no program unshare") as caught:
        lab.up("pi4")
    assert "apt install util-linux" in (caught.value.remedy or "")


def test_the_time_limit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_LAB", str(tmp_path))
    with pytest.raises(DeviceError, match="not ready within 0 s"):
        lab.up("pi4", timeout_s=1e-6)


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        ("mount: permission denied\nedgecompile-fault proc", "(proc)", "systempaths=unconfined"),
        ("edgecompile-fault binfmt", "(binfmt)", "Linux 6.7"),
        ("unshare: unshare failed: No space left on device", "did not start", "max_user_namespaces"),
    ],
)
def test_what_is_missing_is_said(said: str, kind: str, remedy: str) -> None:
    error = box._fault(lab.CORES["pi4"], said)
    assert kind in error.message
    assert remedy in (error.remedy or "")


def test_only_emulated_boards_count(made: Make) -> None:
    with LocalTransport() as here, pytest.raises(InputError, match="not counted on this machine"):
        bench.instructions(made("fp32"), here)


def test_the_plugin_travels_with_the_runners() -> None:
    root = content.builtin_root("targets") / "lab"
    assert (root / "count.py").is_file()
    assert "qemu_plugin_install" in (root / "insn_count.c").read_text()


def test_clean_removes_nothing_that_is_not_the_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_LAB", str(tmp_path))
    for name in ("image-0123456789ab", "apt-0123456789ab", "wheels-0123456789ab", "boxes/pi4"):
        (tmp_path / name).mkdir(parents=True)
    mine = ("wheels/a.whl", "image-holidays/a.jpg", "boxes/mine/a")
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    box.clean()
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in kept if not name.endswith(".lock")} == set(mine)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["boxes", "image-holidays", "wheels"]


def test_a_mirrors_password_is_not_shown() -> None:
    assert fetch._shown("https://me:secret@example.org/debian") == "https://example.org/debian"
    assert fetch._shown("http://example.org/a@b") == "http://example.org/a@b"
