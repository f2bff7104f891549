"""The way to a board and back, over a real SSH server whose host plays one: every version, every failure."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompile import bundle, engines, execute
from edgecompile.bench import BenchOptions
from edgecompile.errors import DeviceError, EdgecompileError, InputError, UnsupportedModelError
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Engine, Precision
from tests.jetson import standin as stands
from tests.jetson.conftest import reach
from tests.jetson.standin import HOSTS, Standin
from tests.sshd import Cable

QUICK = BenchOptions(rounds=2, min_seconds=1.0, warmup_s=0.1)
Files = dict[Precision, Artifact]
Start = Callable[[str], Standin]


def built(bench: engines.Bench, artifacts: list[Artifact], folder: Path) -> list[Engine]:
    made = []
    for artifact in artifacts:
        (folder / artifact.precision).mkdir(parents=True)
        made.append(engines.build(bench, artifact, folder / artifact.precision))
    return made


# ------------------------------------------------------------------------------------------------- the way it goes


@pytest.mark.parametrize("version", HOSTS)
def test_engines_are_built_measured_and_run(version: str, files: Files, board: Start, tmp_path: Path) -> None:
    host = board(version)
    artifacts = [files["fp16"], files["int8"]]
    with reach(host) as transport:
        found = engines.require(transport)
        with engines.session(transport, found) as bench:
            fp16, int8 = built(bench, artifacts, tmp_path / "made")
            result, profiled = engines.measure(bench, [fp16, int8], QUICK)
            outputs = run(bench, int8, files["int8"], tmp_path)
    assert str(found.version) == version
    assert found.name == HOSTS[version][2]
    slow, fast = result.measurements
    # The stand-in's times: what counts is that each engine's were read, and those of the warm-up were not.
    assert slow.value_ms == pytest.approx(1.0, rel=0.02)
    assert fast.value_ms == pytest.approx(0.6, rel=0.02)
    assert slow.ci_low_ms <= slow.value_ms <= slow.ci_high_ms
    assert (fast.provenance, fast.runtime, fast.runtime_version) == ("measured", "tensorrt", version)
    assert fast.trusted, fast.warnings
    assert result.ratio(1, 0).value == pytest.approx(0.6, rel=0.03)
    assert fast.environment is not None
    state = fast.environment.board
    assert state is not None
    assert (state.power_mode, state.clocks_locked, state.over_current) == ("15W", True, 0)
    assert [layer.name for layer in profiled[1].layers] == ['conv0 + relu "0"', "fc"]
    # Both builds share a timing cache, which comes home, and is larger for the second.
    assert int8.timing_cache is not None
    assert int8.timing_cache.read_bytes() == b"TIMING CACHE\nfp16\nint8\n"
    assert int8.layer_info is not None
    assert "FAILED" not in int8.log.read_text()
    expected = execute.raw(files["int8"])(inputs_of(files["int8"], 0))
    for name, value in expected.items():
        assert np.abs(outputs[name][0] - value).max() <= engines.TOLERANCE["int8"] * np.ptp(value)


def inputs_of(artifact: Artifact, number: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(number)
    return {p.spec.name: generator.normal(0, 1, p.spec.shape).astype(p.spec.dtype) for p in artifact.inputs}


def run(bench: engines.Bench, made: Engine, artifact: Artifact, folder: Path) -> dict[str, np.ndarray]:
    bundle.write_arrays(folder / "in.npz", [inputs_of(artifact, 0), inputs_of(artifact, 1)])
    engines.run_inputs(bench, made, artifact, inputs=folder / "in.npz", outputs=folder / "out.npz")
    with np.load(folder / "out.npz") as found:
        return dict(found)


def test_candidates_take_turns(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    host = at_the_board("10.3.0")
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        made = built(bench, [files["fp16"], files["int8"]], tmp_path / "made")
        engines.measure(bench, made, replace(QUICK, rounds=3))
    timed = [call[0] for call in host.calls("trtexec") if any(word.startswith("--exportTimes") for word in call)]
    assert [word[-len("0/model.engine")] for word in timed] == ["0", "1", "1", "0", "0", "1"]


def test_an_engine_that_was_built_before_is_sent_there(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    host = at_the_board("8.6.2")
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        (made,) = built(bench, [files["fp16"]], tmp_path / "made")
    with LocalTransport() as transport:
        found = engines.require(transport)
        assert engines.fits(made, found, files["fp16"])
        assert not engines.fits(made, found, files["int8"])
        with engines.session(transport, found) as bench:
            result, _ = engines.measure(bench, [made], QUICK)
    assert result.measurements[0].value_ms == pytest.approx(1.0, rel=0.02)
    assert sum("--saveEngine" in " ".join(call) for call in host.calls("trtexec")) == 1


@pytest.mark.parametrize(("version", "typed"), [("10.3.0", False), ("10.13.3", True), ("11.0.0", True)])
def test_int8_has_its_types_where_the_version_wants_them(
    version: str, typed: bool, files: Files, at_the_board: Start, tmp_path: Path
) -> None:
    at_the_board(version)
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        (made,) = built(bench, [files["int8"]], tmp_path / "made")
    sent = made.file.read_bytes().partition(b"\n")[2]
    typed_file = files["int8"].typed_file
    assert typed_file is not None
    assert sent == (typed_file if typed else files["int8"].file).read_bytes()
    assert ("--int8" in made.options) is not typed
    assert ("--stronglyTyped" in made.options) is (version == "10.13.3")


@pytest.mark.parametrize("setting", ["no_times", "cut_times"])
def test_the_summary_does_where_the_times_cannot_be_read(
    setting: str, files: Files, at_the_board: Start, tmp_path: Path
) -> None:
    host = at_the_board("8.5.2")
    host.set(**{setting: True})
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        result, _ = engines.measure(bench, built(bench, [files["fp16"]], tmp_path / "made"), QUICK)
    (measurement,) = result.measurements
    assert measurement.value_ms == pytest.approx(1.0, rel=0.02)
    assert any("summary" in words for words in measurement.warnings)


# ------------------------------------------------------------------------------------------------- what is marked


@pytest.mark.parametrize(
    ("settings", "words", "trusted"),
    [
        ({"over_current": True}, "current was over its limit", False),
        ({"tj": 98.5}, "98.5 C hot", False),
        ({"gpu_hz": 306000000}, "the GPU ran at 306 MHz", False),
        ({"locked": False}, "clocks were not locked", True),
        ({"unstable": True}, "coefficient of variance = 5.25%", True),
    ],
)
def test_a_board_that_was_not_itself_is_marked(
    settings: dict[str, object], words: str, trusted: bool, files: Files, at_the_board: Start, tmp_path: Path
) -> None:
    host = at_the_board("10.3.0")
    host.set(**settings)
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        result, _ = engines.measure(bench, built(bench, [files["fp16"]], tmp_path / "made"), QUICK)
    (measurement,) = result.measurements
    assert any(words in said for said in measurement.warnings), measurement.warnings
    assert measurement.trusted is trusted
    assert not measurement.counts(1000.0) or trusted


# --------------------------------------------------------------------------------------------------- what fails


#: What goes wrong in a build, whose fault it is, the error, and words of it.
MODEL_FAULTS = (
    ("plugin", UnsupportedModelError, "Round (node Preprocessor/cond)"),
    ("plugins", UnsupportedModelError, "GridSample3D (node /motion/GridSample)"),
    ("memory", DeviceError, "ran out of memory while building the engine"),
    ("killed", DeviceError, "signal 9"),
    ("nothing", DeviceError, "exit status 1"),
)
BOARD_FAULTS = (
    ("version", "built by another version of TensorRT (8.5.1.7 against 8.5.3.1)"),
    ("device", "built on another GPU"),
    ("memory", "ran out of memory while running the engine"),
    ("killed", "running the engine was killed"),
    ("cuda", "CUDA did not start on the board (error 222"),
)


def test_every_fault_is_translated(files: Files, board: Start, tmp_path: Path) -> None:
    """One after the other on one connection: none keeps the next command from working."""
    host = board("8.5.2")
    with reach(host) as transport, engines.session(transport, engines.require(transport)) as bench:
        for kind, error, words in MODEL_FAULTS:
            host.set(fault={"step": "build", "kind": kind})
            with pytest.raises(engines.ModelFault) as fault:
                engines.build(bench, files["fp16"], tmp_path)
            assert isinstance(fault.value.error, error)
            assert words in fault.value.error.message
            assert fault.value.error.remedy
        host.set(fault={"step": "build", "kind": "cuda"})
        with pytest.raises(DeviceError, match="CUDA did not start"):
            engines.build(bench, files["fp16"], tmp_path)
        host.set(fault=None)
        (made,) = built(bench, [files["fp16"]], tmp_path / "made")
        for kind, words in BOARD_FAULTS:
            host.set(fault={"step": "run", "kind": kind})
            with pytest.raises(DeviceError) as caught:
                engines.measure(bench, [made], QUICK)
            assert words in caught.value.message
            assert caught.value.exit_code == 4
            assert caught.value.remedy


def test_an_option_that_the_version_does_not_have(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    """The tools of a board may not fit its library: what refuses is older than what it says."""
    host = at_the_board("8.6.2")
    with LocalTransport() as transport:
        found = engines.require(transport)
        host.set(version="8.2.1")
        with engines.session(transport, found) as bench, pytest.raises(DeviceError) as caught:
            engines.build(bench, files["fp16"], tmp_path)
    assert "refuses --skipInference" in caught.value.message


def test_an_engine_of_another_version_is_not_taken(files: Files, board: Start, tmp_path: Path) -> None:
    old, new = board("8.5.2"), board("10.3.0")
    with reach(old) as transport, engines.session(transport, engines.require(transport)) as bench:
        (made,) = built(bench, [files["fp16"]], tmp_path / "made")
    with reach(new) as transport:
        found = engines.require(transport)
        assert not engines.fits(made, found, files["fp16"])
        with engines.session(transport, found) as bench, pytest.raises(DeviceError) as caught:
            engines.measure(bench, [made], QUICK)
    assert "built by another version of TensorRT" in caught.value.message
    assert "build the engine again" in (caught.value.remedy or "")


def test_outputs_of_another_shape_are_refused(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    host = at_the_board("8.6.2")
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        (made,) = built(bench, [files["fp32"]], tmp_path / "made")
        host.set(wrong_outputs=True)
        with pytest.raises(DeviceError, match="outputs that trtexec wrote"):
            run(bench, made, files["fp32"], tmp_path)


def test_a_board_without_trtexec_says_what_to_install(board: Start) -> None:
    host = board("10.3.0")
    (host.root / "tools" / "trtexec").unlink()
    with reach(host) as transport, pytest.raises(DeviceError) as caught:
        engines.require(transport)
    assert "there is no trtexec" in caught.value.message
    assert "libnvinfer10 10.3.0" in caught.value.message
    assert "libnvinfer-bin" in (caught.value.remedy or "")


def test_a_machine_that_is_no_jetson(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("EDGECOMPILE_HOST_ROOT", raising=False)
    with LocalTransport() as transport:
        assert engines.find(transport) is None
        with pytest.raises(DeviceError, match="has no TensorRT"):
            engines.require(transport)


def test_a_full_disk_is_told_before_anything_is_sent(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    at_the_board("10.3.0")
    with LocalTransport() as transport:
        small = replace(engines.require(transport), disk_free_bytes=1_000_000)
        with engines.session(transport, small) as bench, pytest.raises(DeviceError, match="1 MB free"):
            engines.build(bench, files["fp16"], tmp_path)


# --------------------------------------------------------------------------------------------------- power mode


def test_the_power_mode_is_set_by_name_and_put_back(board: Start) -> None:
    host = board("10.3.0")
    with reach(host) as transport:
        with engines.session(transport, engines.require(transport), power_mode="maxn"):
            assert host.mode == 0
        assert host.mode == 1


def test_the_power_mode_is_left_alone_unless_asked(files: Files, at_the_board: Start, tmp_path: Path) -> None:
    host = at_the_board("10.3.0")
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        engines.measure(bench, built(bench, [files["fp16"]], tmp_path / "made"), QUICK)
    assert not [call for call in host.calls("nvpmodel") if call != ["-q"]]


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceError("it failed"), ZeroDivisionError])
def test_the_power_mode_is_put_back_after_a_failure(error: BaseException, board: Start) -> None:
    host = board("8.6.2")
    with (
        pytest.raises((KeyboardInterrupt, DeviceError, ZeroDivisionError)),
        reach(host) as transport,
        engines.session(transport, engines.require(transport), power_mode="0"),
    ):
        raise error
    assert host.mode == 1


def test_the_board_puts_its_power_mode_back_when_we_never_come_back(board: Start) -> None:
    host = board("10.3.0")
    cable = Cable(host.server.port)
    host.server.knows(cable.port)
    try:
        with (
            pytest.raises(DeviceError),
            reach(host, port=cable.port) as transport,
            engines.session(transport, engines.require(transport), power_mode="MAXN"),
        ):
            assert host.mode == 0
            cable.unplug()
        end = time.monotonic() + 30
        while host.mode != 1 and time.monotonic() < end:
            time.sleep(0.2)
        assert host.mode == 1
    finally:
        cable.close()


@pytest.mark.parametrize(
    ("wanted", "settings", "error", "words"),
    [
        ("fast", {}, InputError, "no power mode 'fast'"),
        ("9", {}, InputError, "no power mode '9'"),
        ("7W", {"reboot_modes": [3]}, DeviceError, "only with a reboot"),
        ("MAXN", {"mode_fails": True}, DeviceError, "failed to set power mode"),
    ],
)
def test_a_power_mode_that_cannot_be_had(
    wanted: str, settings: dict[str, object], error: type[EdgecompileError], words: str, at_the_board: Start
) -> None:
    host = at_the_board("10.3.0")
    host.set(**settings)
    with LocalTransport() as transport:
        found = engines.require(transport)
        with pytest.raises(error) as caught, engines.session(transport, found, power_mode=wanted):
            pass
    assert words in caught.value.message
    assert host.mode == 1
    assert not (host.root / "rebooted").exists()


# ------------------------------------------------------------------------------------------- build_engine.sh


@pytest.mark.parametrize(
    ("version", "precision"), [*((version, "int8") for version in HOSTS), ("8.2.1", "fp32"), ("11.0.0", "fp16")]
)
def test_a_bundle_rebuilds_its_engine_by_itself(
    version: str, precision: Precision, files: Files, tmp_path: Path
) -> None:
    stands.make_host(tmp_path / "board", version)
    folder = tmp_path / "it's a bundle; $HOME"
    artifact = files[precision]
    with bundle.BundleWriter(folder) as writer:
        writer.add("model", artifact.file, "model.onnx")
        bundle.add_build_script(writer, artifact)
        writer._folder.rename(folder)
    done = subprocess.run(
        [folder / "build_engine.sh"],
        env=stands.environment(tmp_path / "board"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.splitlines()[-1])
    assert made.parent.parent == folder / "engines"
    assert made.parent.name.startswith(f"trt{version}-nvidia-jetson")
    head, _, sent = made.read_bytes().partition(b"\n")
    typed = precision == "int8" and version in ("10.13.3", "11.0.0")
    assert sent == (folder / ("model-typed.onnx" if typed else "model.onnx")).read_bytes()
    assert f'"precision": "{precision}"'.encode() in head


def test_a_rebuild_that_fails_says_why(files: Files, tmp_path: Path) -> None:
    root = tmp_path / "board"
    stands.make_host(root, "10.3.0")
    (root / "standin.json").write_text('{"version": "10.3.0", "fault": {"step": "build", "kind": "memory"}}')
    with bundle.BundleWriter(tmp_path / "out") as writer:
        writer.add("model", files["fp16"].file, "model.onnx")
        bundle.add_build_script(writer, files["fp16"])
        writer._folder.rename(tmp_path / "out")
    done = subprocess.run(
        [tmp_path / "out" / "build_engine.sh"],
        env=stands.environment(root), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert not list((tmp_path / "out").rglob("*.engine*"))
