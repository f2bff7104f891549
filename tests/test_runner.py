"""The device-side runner as a device sees it: a script in a folder, run by a Python that knows no edgecompile."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgecompile import content, execute, lower
from edgecompile.types import Artifact, Model, Plan, RuntimeName
from tests.lowering import Net, samples, small_net

SENTINEL = "EDGECOMPILE-RESULT "
QUICK = ("--warmup-s", "0.02", "--min-runs", "6", "--min-seconds", "0.02", "--rounds", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_net(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def artifacts(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("files")
    made = {}
    for runtime, precision in (("tflite", "fp32"), ("tflite", "int8"), ("onnxruntime", "fp32")):
        plan = Plan(runtime=runtime, precision=precision, io_dtype="int8" if precision == "int8" else "float32")
        made[plan.label] = lower.RUNTIMES[plan.runtime].lower(model, plan, samples(model), folder)
    return made


@pytest.fixture
def targets(tmp_path: Path) -> Path:
    """A copy of the folder as it lies on a device."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(content.builtin_root("targets"), tmp_path / "targets", ignore=ignored))


def ref(artifact: Artifact) -> str:
    return f"{artifact.runtime}:{artifact.file}"


def run(root: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "runner.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = [line for line in done.stdout.splitlines() if line.startswith(SENTINEL)]
    assert len(lines) == 1, (done.stdout, done.stderr)
    found = json.loads(lines[0].removeprefix(SENTINEL))
    assert found["schema_version"] == 1
    return dict(found)


# ------------------------------------------------------------------------------------------------- measurements


@pytest.fixture(scope="module")
def measured(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    models = [argument for a in artifacts.values() for argument in ("--model", ref(a))]
    done = run(content.builtin_root("targets"), *models, *QUICK, "--min-seconds", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    return document(done)


def test_every_file_has_its_runs_and_seconds_in_every_round(measured: dict[str, Any]) -> None:
    assert len(measured["models"]) == 3
    for model in measured["models"]:
        assert len(model["latencies_ms"]) == 2
        assert all(model["latencies_ms"])
        assert model["runs"] >= 6
        kept = [ms for one in model["latencies_ms"] for ms in one]
        assert len(kept) >= model["runs"] / model["kept_every"]
        # Between two runs the loop itself takes time, as much as a file of two microseconds does: the latencies add up
        # to a part of the seconds, but of their order.
        assert 0.1 * 200 < sum(kept) * model["kept_every"] < 10 * 200
        assert all(ms > 0 for ms in kept)


def test_what_is_known_of_a_file_is_told(measured: dict[str, Any]) -> None:
    tflite, int8, onnx = measured["models"]
    assert (tflite["package"], onnx["package"]) == ("ai_edge_litert", "onnxruntime")
    assert tflite["operators"]["delegated"] == tflite["operators"]["total"] > 0
    assert tflite["operators"]["left"] == {}
    assert onnx["operators"] is None
    assert tflite["inputs"] == {"image": {"shape": [1, 16, 16, 3], "dtype": "float32"}}
    assert int8["inputs"]["image"]["dtype"] == "int8"
    assert len(int8["inputs"]["image"]["scale"]) == 1
    for model in measured["models"]:
        assert model["load_ms"] > 0
        assert model["cold_ms"] > 0
        assert 0 < model["peak_memory_bytes"] < model["process_peak_memory_bytes"]


def test_what_is_known_of_the_machine_is_told(measured: dict[str, Any]) -> None:
    environment = measured["environment"]
    assert len(environment["affinity"]) == 1
    assert set(environment["affinity"]) <= os.sched_getaffinity(0)
    assert environment["cpu_model"]
    assert environment["cores"] == os.cpu_count()
    assert environment["numpy"] == np.__version__
    assert environment["own_cpus"] > 0
    assert environment["other_cpus"] >= 0
    told = {"load", "frequency_mhz", "governor", "temperature_c", "memory_available_bytes", "throttled", "cooling"}
    assert set(environment["before"]) == set(environment["after"]) == {*told, "clusters"}
    assert environment["before"]["memory_available_bytes"] > 0


def test_threads_decide_how_many_cpus_and_no_pin_leaves_them(artifacts: dict[str, Artifact], targets: Path) -> None:
    model = ("--model", ref(artifacts["tflite-fp32"]), *QUICK, "--rounds", "1", "--json")
    available = sorted(os.sched_getaffinity(0))
    two = document(run(targets, *model, "--threads", "2"))["environment"]["affinity"]
    assert len(two) == min(2, len(available))
    assert document(run(targets, *model, "--no-pin"))["environment"]["affinity"] == available


def test_a_fast_file_keeps_some_ten_thousand_latencies(targets: Path, tmp_path: Path) -> None:
    net = Net()
    tiny = net.save(tmp_path / "tiny.onnx", net.add("Relu", net.input("x", 1, 4)))
    done = run(targets, "--model", f"onnxruntime:{tiny.path}", *QUICK, "--min-seconds", "1.5", "--json")
    (found,) = document(done)["models"]
    kept = sum(map(len, found["latencies_ms"]))
    assert found["kept_every"] > 1
    assert found["runs"] > kept
    assert kept < 40_000


def test_without_json_it_speaks_to_people_and_output_writes_the_document(
    artifacts: dict[str, Artifact], targets: Path, tmp_path: Path
) -> None:
    done = run(targets, "--model", ref(artifacts["tflite-fp32"]), *QUICK, "--output", tmp_path / "d.json")
    assert "latency in ms, 1 thread(s)" in done.stdout
    assert "median" in done.stdout
    assert SENTINEL not in done.stdout
    written = json.loads((tmp_path / "d.json").read_text())
    assert not list(targets.rglob("__pycache__"))
    assert written["models"][0]["runs"] >= 6
    assert len(written["models"][0]["latencies_ms"]) == 2


def test_inputs_may_be_given(artifacts: dict[str, Artifact], targets: Path, tmp_path: Path) -> None:
    good, wrong = tmp_path / "good.npz", tmp_path / "wrong.npz"
    np.savez(good, image=np.zeros((3, 1, 16, 16, 3), np.float32))
    np.savez(wrong, image=np.zeros((1, 16, 16, 4), np.float32))
    call = ("--model", ref(artifacts["tflite-fp32"]), *QUICK, "--rounds", "1", "--json", "--inputs")
    assert document(run(targets, *call, good))["inputs"] == str(good)
    error = document(run(targets, *call, wrong))["error"]
    assert (error["kind"], error["model"]) == ("bad_inputs", 0)
    assert "(1, 16, 16, 4)" in error["message"]
    assert "(1, 16, 16, 3)" in error["message"]


# ------------------------------------------------------------------------------------------------------- passes


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """The program as a module, of which no process was made."""
    path = content.builtin_root("targets") / "runner.py"
    spec = importlib.util.spec_from_file_location("edgecompile_runner_tested", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("medians", "kept"),
    [
        ([[1.0, 8.0]], None),
        ([[1.0, 8.0], [1.04, 7.7]], [0, 1]),
        ([[1.0, 8.0], [1.06, 8.0]], None),
        ([[1.0, 8.0], [1.0, 9.0], [1.2, 8.0]], None),
        ([[2.0, 8.0], [1.0, 8.0], [1.5, 8.0], [1.02, 8.0]], [1, 3]),
    ],
)
def test_passes_agree_when_every_files_median_does(
    medians: list[list[float]], kept: list[int] | None, runner: ModuleType
) -> None:
    passes = [{"medians_ms": one} for one in medians]
    assert runner.agreeing(passes) == (None if kept is None else [passes[k] for k in kept])


def test_each_file_is_told_whether_its_passes_agree(runner: ModuleType) -> None:
    passes = [{"medians_ms": one} for one in ([1.0, 8.0], [1.5, 8.1], [2.5, 9.9])]
    assert [runner.agreed(passes, index) for index in range(2)] == [False, True]
    assert runner.agreed(passes[:1], 0) is None


def test_passes_that_never_agree_are_made_to_the_end_and_all_are_kept(
    artifacts: dict[str, Artifact], targets: Path
) -> None:
    slower = "time.sleep(0.004 * 3 ** int(sys.argv[sys.argv.index('--round') + 1] if '--round' in sys.argv else 0))"
    backend(targets, "slowing", invoke=f"import sys; {slower}")
    model = ("--model", f"slowing:{artifacts['tflite-fp32'].file}", *QUICK, "--min-runs", "2", "--json")
    found = document(run(targets, *model, "--passes", "3"))
    assert found["models"][0]["agreed"] is False
    assert len(found["models"][0]["latencies_ms"]) == 3
    assert [one["kept"] for one in found["environment"]["passes"]] == [True] * 3
    assert document(run(targets, *model))["models"][0]["agreed"] is None


def test_the_wait_for_a_cooler_machine_is_bounded(runner: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    celsius = iter([70.0, 60.0, 54.0, 54.0])
    monkeypatch.setattr(runner.HOST, "temperature", lambda: next(celsius))
    monkeypatch.setattr(runner.time, "sleep", lambda _: None)
    runner.cool_down(50.0, 1e6)
    assert next(celsius) == 54.0  # three looks were enough
    monkeypatch.setattr(runner.HOST, "temperature", lambda: 90.0)
    assert runner.cool_down(50.0, 0.0) >= 0.0
    assert runner.cool_down(50.0, 0.01) >= 0.01
    monkeypatch.setattr(runner.HOST, "temperature", lambda: None)
    runner.cool_down(50.0, 1e6)
    runner.cool_down(None, 1e6)


# --------------------------------------------------------------------------------------------------- given inputs


@pytest.mark.parametrize("label", ["tflite-fp32", "tflite-int8", "onnxruntime-fp32"])
def test_given_inputs_give_what_the_file_gives_in_process(
    label: str, model: Model, artifacts: dict[str, Artifact], targets: Path, tmp_path: Path
) -> None:
    artifact = artifacts[label]
    feeds = [execute.to_file_inputs(artifact, sample) for sample in samples(model, 5, seed=7)]
    np.savez(tmp_path / "in.npz", **{name: np.stack([f[name] for f in feeds]) for name in feeds[0]})
    call = ("--model", ref(artifact), "--run-inputs", tmp_path / "in.npz", "--write-outputs", tmp_path / "out.npz")
    done = run(targets, *call, "--json")
    assert document(done)["samples"] == 5, done.stderr
    with np.load(tmp_path / "out.npz") as outputs:
        for number, feed in enumerate(feeds):
            expected = execute.raw(artifact)(feed)
            assert set(expected) == set(outputs.files)
            for name, value in expected.items():
                np.testing.assert_array_equal(outputs[name][number], value)


def test_inputs_that_are_not_stacked_are_refused(artifacts: dict[str, Artifact], targets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", image=np.float32(1))
    call = ("--model", ref(artifacts["tflite-fp32"]), "--run-inputs", tmp_path / "in.npz", "--write-outputs", "o.npz")
    done = run(targets, *call, "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert document(done)["error"]["kind"] == "bad_inputs"
    assert not (tmp_path / "o.npz").exists()


def test_a_pickle_among_the_inputs_is_not_opened(artifacts: dict[str, Artifact], targets: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "in.npz", image=np.array([Trap()], dtype=object))
    call = ("--model", ref(artifacts["tflite-fp32"]), "--run-inputs", tmp_path / "in.npz", "--write-outputs", "o.npz")
    assert document(run(targets, *call, "--json", cwd=tmp_path))["error"]["kind"] == "bad_inputs"
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------------------------------ failures


def failure(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 1, done.stderr
    return dict(document(done)["error"])


def test_a_file_that_is_no_model_is_named(artifacts: dict[str, Artifact], targets: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model at all")
    error = failure(run(targets, "--model", ref(artifacts["tflite-fp32"]), "--model", f"onnxruntime:{bad}", "--json"))
    assert (error["kind"], error["model"]) == ("bad_model", 1)
    assert "bad.onnx cannot be loaded" in error["message"]


@pytest.mark.parametrize("given", ["tflite:absent.tflite", "absent.tflite", "noruntime:{file}", "../x:{file}"])
def test_what_cannot_be_measured_is_refused(given: str, artifacts: dict[str, Artifact], targets: Path) -> None:
    given = given.format(file=artifacts["tflite-fp32"].file)
    assert failure(run(targets, "--model", given, "--json"))["kind"] == "usage"


def test_a_package_that_no_runtime_has_is_refused(artifacts: dict[str, Artifact], targets: Path) -> None:
    done = run(targets, "--model", ref(artifacts["tflite-fp32"]), "--runtime-module", "tflite", "--json")
    assert "ai_edge_litert, tflite_runtime, tensorflow" in failure(done)["message"]


def test_a_package_can_be_forced(artifacts: dict[str, Artifact], targets: Path) -> None:
    pytest.importorskip("tflite_runtime")
    done = run(
        targets, "--model", ref(artifacts["tflite-fp32"]), "--runtime-module", "tflite_runtime", *QUICK, "--json"
    )
    assert document(done)["models"][0]["package"] == "tflite_runtime"


def blocked(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which packages cannot be imported."""
    for package in packages:
        folder.mkdir(exist_ok=True)
        (folder / f"{package}.py").write_text("raise ImportError('blocked')\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_the_next_package_is_taken_where_the_first_is_missing(
    artifacts: dict[str, Artifact], targets: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tflite_runtime")
    environment = blocked(tmp_path / "block", "ai_edge_litert")
    done = run(targets, "--model", ref(artifacts["tflite-fp32"]), *QUICK, "--rounds", "1", "--json", env=environment)
    assert document(done)["models"][0]["package"] == "tflite_runtime"


@pytest.mark.parametrize(
    ("label", "packages"),
    [("tflite-fp32", ("ai_edge_litert", "tflite_runtime", "tensorflow")), ("onnxruntime-fp32", ("onnxruntime",))],
)
def test_no_runtime_at_all_is_told_with_the_remedy(
    label: str, packages: tuple[str, ...], artifacts: dict[str, Artifact], targets: Path, tmp_path: Path
) -> None:
    environment = blocked(tmp_path / "block", *packages)
    error = failure(run(targets, "--model", ref(artifacts[label]), "--json", env=environment))
    assert (error["kind"], error["model"]) == ("no_runtime", 0)
    assert "pip install" in error["message"]


def backend(targets: Path, name: str, load: str = "pass", invoke: str = "pass") -> None:
    """A runtime that does as it is told."""
    (targets / name).mkdir()
    (targets / name / "backend.py").write_text(
        textwrap.dedent(f"""
        import collections, os, signal, time
        PACKAGES = ("{name}",)
        Runtime = collections.namedtuple("Runtime", "package version module")
        def import_runtime(package=None):
            return Runtime("{name}", "1", None)
        class Session:
            inputs = outputs = {{"x": {{"shape": [1], "dtype": "float32"}}}}
            def __init__(self, path, threads=1, package=None):
                {load}
            def operators(self): return None
            def set(self, feed): self.feed = feed
            def invoke(self):
                {invoke}
            def get(self): return self.feed
        """)
    )


def test_a_file_that_crashes_its_runtime_is_named(artifacts: dict[str, Artifact], targets: Path) -> None:
    backend(targets, "crashing", load="os.kill(os.getpid(), signal.SIGSEGV)")
    file = artifacts["tflite-fp32"].file
    error = failure(run(targets, "--model", f"tflite:{file}", "--model", f"crashing:{file}", *QUICK, "--json"))
    assert (error["kind"], error["model"]) == ("crash", 1)
    assert f"signal {signal.SIGSEGV.value}" in error["message"]


def test_a_file_that_fails_only_when_it_runs_is_named(artifacts: dict[str, Artifact], targets: Path) -> None:
    backend(targets, "failing", invoke="raise RuntimeError('node 3 failed to invoke')")
    error = failure(run(targets, "--model", f"failing:{artifacts['tflite-fp32'].file}", *QUICK, "--json"))
    assert error["kind"] == "bad_model"
    assert "node 3 failed to invoke" in error["message"]


def test_noise_on_standard_output_does_not_hurt(artifacts: dict[str, Artifact], targets: Path) -> None:
    backend(targets, "loud", load="os.write(1, b'INFO: half a line')", invoke="os.write(1, b'{\"models\": []}')")
    done = run(targets, "--model", f"loud:{artifacts['tflite-fp32'].file}", *QUICK, "--json")
    assert document(done)["models"][0]["package"] == "loud"
    assert "half a line" not in done.stdout
    assert "half a line" in done.stderr


def test_a_folder_named_like_a_package_is_not_taken_for_it(artifacts: dict[str, Artifact], targets: Path) -> None:
    """``targets/onnxruntime`` lies beside the script, where Python looks first."""
    (targets / "onnxruntime" / "__init__.py").write_text("raise ImportError('this is not the package')\n")
    done = run(targets, "--model", ref(artifacts["onnxruntime-fp32"]), *QUICK, "--rounds", "1", "--json", cwd=targets)
    assert document(done)["models"][0]["package"] == "onnxruntime"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_children(
    number: signal.Signals, code: int, artifacts: dict[str, Artifact], targets: Path, tmp_path: Path
) -> None:
    backend(
        targets, "endless", invoke=f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(60)"
    )
    command = [sys.executable, str(targets / "runner.py"), "--model", f"endless:{artifacts['tflite-fp32'].file}"]
    child = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = wait_for(tmp_path / "pids")
    child.send_signal(number)
    out, _ = child.communicate(timeout=20)
    assert child.returncode == code
    assert SENTINEL not in out
    for pid in pids:
        assert not alive(pid)


def wait_for(path: Path) -> list[int]:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if path.is_file() and path.read_text().endswith(" "):
            return [int(pid) for pid in path.read_text().split()]
        time.sleep(0.05)
    raise AssertionError(f"{path} was not written")


def alive(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


# ---------------------------------------------------------------------------------------------------- old Pythons


@pytest.mark.parametrize("path", sorted(content.builtin_root("targets").rglob("*.py")), ids=lambda p: p.parent.name)
def test_the_syntax_is_that_of_python_3_7(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 7))


def test_only_the_standard_library_numpy_and_runtimes_are_imported() -> None:
    allowed: set[RuntimeName | str] = {*sys.stdlib_module_names, "numpy", "onnxruntime", "tensorrt"}
    for path in content.builtin_root("targets").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, path
