"""Measuring through a transport: figures with intervals, and every failure as one clear error."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgecompile import bench, lower
from edgecompile.bench import document, intervals
from edgecompile.bench.measure import _doubts_about_file, _measurement, environment_of
from edgecompile.bench.state import doubts as doubts_about_machine
from edgecompile.errors import DeviceError, EdgecompileError, InputError
from edgecompile.stats import Interval
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Measurement, Model, Plan
from tests.lowering import Net, samples, small_net

QUICK = bench.BenchOptions(warmup_s=0.02, min_runs=9, min_seconds=0.06, rounds=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_net(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def tflite(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    plan = Plan(runtime="tflite", precision="fp32")
    return lower.RUNTIMES["tflite"].lower(model, plan, samples(model), tmp_path_factory.mktemp("file"))


def measure(artifacts: list[Artifact], options: bench.BenchOptions = QUICK) -> bench.BenchResult:
    with LocalTransport() as transport:
        return bench.measure(artifacts, transport, options)


# -------------------------------------------------------------------------------------------------- measurements


def big_net(folder: Path) -> Model:
    net = Net()
    x = net.input("image", 1, 32, 32, 32)
    for _ in range(6):
        x = net.add("Relu", net.conv(x, 32, 32))
    return net.save(folder / "big.onnx", x)


def test_files_of_different_runtimes_are_measured_together(tflite: Artifact, tmp_path: Path) -> None:
    big = bench.bare_file(big_net(tmp_path).path)
    result = measure([tflite, big], replace(QUICK, percentile=90.0, threads=2))
    small, large = result.measurements
    for m in result.measurements:
        assert m.provenance == "measured"
        assert m.runs >= 9
        assert (m.threads, m.percentile) == (2, 90.0)
        assert m.ci_low_ms <= m.value_ms <= m.ci_high_ms
        assert m.value_ms == m.p90_ms
        assert m.median_ms <= m.p90_ms <= m.p95_ms <= m.p99_ms
        assert m.environment is not None
        assert m.environment.cores == os.cpu_count()
    assert (small.runtime, large.runtime) == ("ai_edge_litert", "onnxruntime")
    assert small.delegated_operators == small.total_operators
    assert large.total_operators is None
    ratio = result.ratio(1, 0)
    assert 0 < ratio.ci_low <= ratio.value <= ratio.ci_high
    assert result.ratio(0, 1).value == pytest.approx(1 / ratio.value)
    assert len(result.rounds[0]) == len(result.rounds[1]) >= 3


@pytest.mark.parametrize(
    ("percentile", "name"), [(50.0, "median_ms"), (90.0, "p90_ms"), (95.0, "p95_ms"), (99.0, "p99_ms")]
)
def test_the_chosen_percentile_has_its_interval(percentile: float, name: str) -> None:
    """A bootstrap of runs whose truth is known, of every percentile that is told."""
    generator = np.random.default_rng(3)
    rounds = [list(10.0 + generator.exponential(1.0, 400)) for _ in range(10)]
    options = bench.BenchOptions(percentile=percentile)
    environment = environment_of(machine())
    found = _measurement(measured(rounds), machine(), environment, options)
    truth = 10.0 - np.log(1.0 - percentile / 100.0)
    assert found.value_ms == getattr(found, name)
    assert found.ci_low_ms < truth < found.ci_high_ms
    assert found.ci_high_ms - found.ci_low_ms < 0.1 * truth


def test_what_a_user_waits_for_is_told_apart(tflite: Artifact) -> None:
    """Loading, the first run and the memory stand beside the latency, each by itself."""
    (found,) = measure([tflite]).measurements
    assert found.load_ms is not None
    assert found.load_ms > 0
    assert found.cold_ms is not None
    assert found.cold_ms > 0
    assert found.peak_memory_bytes is not None
    assert 0 < found.peak_memory_bytes < 1e9
    twice = _measurement(measured([[1.0] * 50] * 9, load_ms=7.0, cold_ms=3.0, peak_memory_bytes=5), machine(),
                         environment_of(machine()), bench.BenchOptions())  # fmt: skip
    assert (twice.load_ms, twice.cold_ms, twice.peak_memory_bytes, twice.p99_ms) == (7.0, 3.0, 5, 1.0)


def test_passes_that_never_agree_are_not_trusted() -> None:
    calm, torn = (measured([[1.0] * 50] * 9, agreed=agreed) for agreed in (True, False))
    options, environment = bench.BenchOptions(), environment_of(machine())
    assert _measurement(calm, machine(), environment, options).trusted
    found = _measurement(torn, machine(), environment, options)
    assert not found.trusted
    assert "no two passes agreed within 5 %" in found.warnings
    assert found.meets(2.0)
    assert not found.counts(2.0)


def test_a_file_against_itself_is_about_as_fast(tflite: Artifact) -> None:
    ratio = measure([tflite, tflite], replace(QUICK, min_seconds=0.5)).ratio(0, 1)
    assert ratio.ci_low <= ratio.value <= ratio.ci_high
    assert 0.5 < ratio.value < 2.0


def test_rounds_follow_from_the_seconds() -> None:
    assert bench.BenchOptions().round_count == 10
    assert bench.BenchOptions(min_seconds=0.1).round_count == 3
    assert bench.BenchOptions(min_seconds=100).round_count == 10
    assert bench.BenchOptions(rounds=42).round_count == 42


def test_the_interval_holds_the_spread_between_rounds() -> None:
    """Thousands of runs, each round steady at another level: the next round will not lie within a thousandth."""
    generator = np.random.default_rng(0)
    levels = generator.normal(1.0, 0.05, 10)
    found = intervals.percentile([tuple(level + generator.normal(0, 1e-4, 500)) for level in levels], 50.0)
    assert found.low <= found.value <= found.high
    assert 0.02 < found.high - found.low < 0.3
    steady = intervals.percentile([tuple(1.0 + generator.normal(0, 1e-4, 500)) for _ in range(10)], 50.0)
    assert steady.high - steady.low < 1e-3


def test_what_slows_a_whole_round_cancels_in_the_ratio() -> None:
    generator = np.random.default_rng(0)
    levels = generator.uniform(1.0, 3.0, 10)
    first, second = ([tuple(k * level + generator.normal(0, 1e-3, 50)) for level in levels] for k in (2.0, 1.0))
    found = intervals.ratio(first, second, 50.0)
    assert 1.98 < found.low <= found.value <= found.high < 2.02
    with pytest.raises(ValueError, match="at least two rounds"):
        intervals.ratio(first[:1], second[:1], 50.0)


@pytest.mark.parametrize("rounds", [3, 10, 25])
def test_intervals_over_few_rounds_hold_the_truth(rounds: int) -> None:
    """95 of 100, within what 4,000 draws tell (a standard deviation of 0.35 %)."""
    generator = np.random.default_rng(rounds)
    point = Interval(value=1.0, low=1.0, high=1.0)
    hits = 0
    for _ in range(4000):
        logarithms = generator.normal(0, 0.01, rounds)
        found = intervals._widened(point, list(logarithms))
        hits += found.low <= np.exp(-logarithms.mean()) <= found.high
    assert 0.94 < hits / 4000 < 0.96


# ---------------------------------------------------------------------------------------------------------- doubts


def state(**changes: Any) -> document.State:
    return replace(document.State(load=0.0, frequency_mhz=None, governor=None, temperature_c=None), **changes)


def machine(**changes: Any) -> document.Machine:
    calm = document.Machine(
        device="d", machine="aarch64", cpu_model="c", cpu_flags=(), cores=4, kernel="6", affinity=(3,), before=state(),
        after=state(), own_cpus=1.0, other_cpus=0.0, stolen_cpus=0.0,
    )  # fmt: skip
    return replace(calm, **changes)


def measured(rounds: list[list[float]], **changes: Any) -> document.Measured:
    plain = document.Measured(
        package="p", version="1", load_ms=1.0, cold_ms=1.0, peak_memory_bytes=1, operators=None,
        latencies_ms=tuple(map(tuple, rounds)), runs=sum(map(len, rounds)), kept_every=1,
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"other_cpus": 1.2}, "1.2 of 4 CPUs"),
        ({"stolen_cpus": 0.1}, "host took 0.10 CPUs"),
        ({"cores": 1}, "2 threads on 1 CPUs"),
        ({"before": state(governor="powersave")}, "powersave"),
        ({"before": state(frequency_mhz=1500.0), "after": state(frequency_mhz=600.0)}, "from 1500 to 600 MHz"),
        ({"after": state(temperature_c=84.6)}, "85 degrees"),
    ],
)
def test_a_machine_that_disturbs_is_doubted(changes: dict[str, Any], words: str) -> None:
    assert list(doubts_about_machine(machine(), 2)) == []
    (doubt,) = doubts_about_machine(machine(**changes), 2)
    assert words in doubt.words


def doubts(found: document.Measured, percentile: float = 50.0, low: float = 1.0, high: float = 1.0) -> list[str]:
    options = bench.BenchOptions(percentile=percentile)
    return [doubt.words for doubt in _doubts_about_file(found, Interval(value=1.0, low=low, high=high), options)]


def test_figures_that_are_not_steady_are_doubted() -> None:
    calm = measured([[1.0] * 10] * 9)
    assert doubts(calm) == []
    assert "noisy" in doubts(calm, low=0.9, high=1.1)[0]
    assert "too few for the 99th" in doubts(calm, percentile=99.0)[0]
    (drift,) = doubts(measured([[1.0 + 0.02 * k] * 10 for k in range(9)]))
    assert "+12%" in drift


def test_heavy_operators_outside_the_delegate_are_doubted() -> None:
    left = document.Operators(total=9, delegated=7, partitions=1, left={"CONV_2D": 1, "SOFTMAX": 1})
    (doubt,) = doubts(measured([[1.0] * 50], operators=left))
    assert doubt == "the delegate took 7 of 9 operators, and not 1 CONV_2D"
    light = document.Operators(total=9, delegated=8, partitions=1, left={"SOFTMAX": 1})
    assert doubts(measured([[1.0] * 50], operators=light)) == []


# --------------------------------------------------------------------------------------------------------- failures


class Elsewhere(LocalTransport):
    """A machine whose Python is a shell script."""

    description = "the board"

    def __init__(self, folder: Path, script: str) -> None:
        super().__init__()
        path = folder / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.python = str(path)


def fail(transport: LocalTransport, artifact: Artifact, **changes: Any) -> EdgecompileError:
    with transport, pytest.raises(EdgecompileError) as found:
        bench.measure([artifact], transport, replace(QUICK, **changes))
    assert found.value.remedy
    return found.value


def test_a_machine_without_python(tflite: Artifact, tmp_path: Path) -> None:
    transport = Elsewhere(tmp_path, "")
    transport.python = "no-such-python"
    error = fail(transport, tflite)
    assert isinstance(error, DeviceError)
    assert "cannot start no-such-python on the board" in error.message


def test_a_python_without_numpy(tflite: Artifact, tmp_path: Path) -> None:
    error = fail(Elsewhere(tmp_path, f'exec {sys.executable} -S "$@"'), tflite)
    assert isinstance(error, DeviceError)
    assert error.message == "Python on the board has no package 'numpy'"
    assert error.remedy == "install it with: pip install numpy"


def test_a_python_without_the_runtime(tflite: Artifact, tmp_path: Path) -> None:
    for package in ("ai_edge_litert", "tflite_runtime", "tensorflow"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('blocked')")
    error = fail(Elsewhere(tmp_path, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"'), tflite)
    assert isinstance(error, DeviceError)
    assert str(tflite.file) in error.message
    assert error.remedy == "install it with: pip install ai-edge-litert"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -9 $$", "ended by SIGKILL"),
        ("echo something else", "failed with exit code 0: something else"),
        ("exit 3", "failed with exit code 3: it said nothing"),
        ("echo 'Illegal instruction' >&2; exit 132", "ended by SIGILL"),
        ("echo 'EDGECOMPILE-RESULT {'", "malformed"),
        ("echo 'EDGECOMPILE-RESULT []'", "malformed"),
        ("""echo 'EDGECOMPILE-RESULT {"schema_version": 1, "models": []}'""", "malformed"),
        ("""echo 'EDGECOMPILE-RESULT {"schema_version": 2, "error": {}}'""", "malformed"),
        ("echo 'EDGECOMPILE-RESULT {}'; echo 'EDGECOMPILE-RESULT {}'", "2 results instead of one"),
    ],
)
def test_a_runner_that_does_not_answer(script: str, words: str, tflite: Artifact, tmp_path: Path) -> None:
    error = fail(Elsewhere(tmp_path, script), tflite)
    assert isinstance(error, DeviceError)
    assert words in error.message


def test_a_runner_that_does_not_end(tflite: Artifact, tmp_path: Path) -> None:
    error = fail(Elsewhere(tmp_path, "sleep 60"), tflite, timeout_s=0.5)
    assert isinstance(error, DeviceError)
    assert "on the board did not end" in error.message


def test_a_damaged_file_is_the_files_fault(tflite: Artifact, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"not a model")
    error = fail(LocalTransport(), replace(tflite, runtime="onnxruntime", file=damaged))
    assert isinstance(error, InputError)
    assert str(damaged) in error.message
    truncated = tmp_path / "truncated.tflite"
    truncated.write_bytes(tflite.file.read_bytes()[: tflite.size_bytes // 2])
    error = fail(LocalTransport(), replace(tflite, file=truncated))
    assert str(truncated) in error.message


# ------------------------------------------------------------------------------------------------------- bare files


def test_bare_files_have_their_own_names(tflite: Artifact, model: Model) -> None:
    found = bench.bare_file(tflite.file)
    assert (found.runtime, found.precision, found.sha256) == ("tflite", "fp32", tflite.sha256)
    assert [port.spec for port in found.inputs] == [port.spec for port in tflite.inputs]
    assert found.inputs[0].permutation is None
    found = bench.bare_file(model.path)
    assert (found.runtime, found.precision) == ("onnxruntime", "fp32")
    assert [port.spec for port in found.inputs] == list(model.inputs)
    assert [port.spec for port in found.outputs] == list(model.outputs)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_precision_of_a_bare_file_is_seen(precision: Any, model: Model, tmp_path: Path) -> None:
    for runtime in ("tflite", "tensorrt" if precision == "fp16" else "onnxruntime"):
        plan = Plan(runtime=runtime, precision=precision)
        artifact = lower.RUNTIMES[plan.runtime].lower(model, plan, samples(model), tmp_path)
        assert bench.bare_file(artifact.file).precision == precision


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.onnx", b"not a model", "cannot be run here"),
        ("a.onnx", b"", "cannot be run here"),
        ("a.tflite", b"not a model", "not a TFLite file"),
        ("a.pt", b"", "its ending is '.pt'"),
        ("a", b"", "its ending is 'missing'"),
    ],
)
def test_what_is_no_model_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        bench.bare_file(tmp_path / name)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        bench.bare_file(tmp_path / "absent.tflite")


def test_an_onnx_file_with_its_weights_in_another(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(
        onnx.load(str(model.path)), str(path), save_as_external_data=True, location="split.onnx.data", size_threshold=0
    )
    assert (tmp_path / "split.onnx.data").is_file()
    result = measure([bench.bare_file(path)])
    assert isinstance(result.measurements[0], Measurement)


# ------------------------------------------------------------------------------------------------------ given inputs


def test_given_inputs_run_in_a_process_of_their_own(model: Model, tflite: Artifact, tmp_path: Path) -> None:
    from edgecompile import execute

    feeds = [execute.to_file_inputs(tflite, sample) for sample in samples(model, 3)]
    np.savez(tmp_path / "in.npz", image=np.stack([feed["image"] for feed in feeds]))
    with LocalTransport() as transport:
        bench.run_inputs(tflite, transport, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found["logits"].shape == (3, 1, 10)
        np.testing.assert_array_equal(found["logits"][2], execute.raw(tflite)(feeds[2])["logits"])


def test_given_inputs_that_do_not_fit_are_refused(tflite: Artifact, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", picture=np.zeros((1, 1, 16, 16, 3), np.float32))
    with LocalTransport() as transport, pytest.raises(InputError, match="no array 'image' among the inputs"):
        bench.run_inputs(tflite, transport, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()
