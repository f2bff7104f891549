"""Boards that have TensorRT's Python API and no trtexec: our program takes its place, and is read by the same code.

The API and CUDA are stand-ins, and what they compute is right, since ONNX Runtime computes it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import bundle, engines, execute
from edgecompile.errors import DeviceError, UnsupportedModelError
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Precision
from tests.jetson import standin
from tests.jetson.standin import Standin
from tests.jetson.test_board import QUICK, built, inputs_of, run
from tests.lowering import Net

Files = dict[Precision, Artifact]
_API = Path(standin.__file__).parent / "python_api"


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a CUDA library for tests with")
    path = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, _API / "cudart.c"], check=True)
    return path


@pytest.fixture
def python_only(
    at_the_board: Callable[[str], Standin], cudart: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Standin]:
    """A board with the API of a version, and no trtexec."""

    def start(version: str) -> Standin:
        host = at_the_board(version)
        (host.root / "tools" / "trtexec").unlink()
        monkeypatch.setenv("PYTHONPATH", str(_API))
        monkeypatch.setenv("EDGECOMPILE_CUDART", str(cudart))
        host.set(python_api=True)
        return host

    return start


@pytest.mark.parametrize("version", ["8.2.1", "11.0.0"])
def test_it_builds_measures_and_runs(
    version: str, files: Files, python_only: Callable[[str], Standin], tmp_path: Path
) -> None:
    python_only(version)
    with LocalTransport() as transport:
        board = engines.require(transport)
        assert board.trtexec is None
        assert str(board.version) == version
        with engines.session(transport, board) as bench:
            (made,) = built(bench, [files["int8"]], tmp_path / "made")
            result, (profiled,) = engines.measure(bench, [made], replace(QUICK, rounds=1))
            outputs = run(bench, made, files["int8"], tmp_path)
    (measurement,) = result.measurements
    assert measurement.runs >= 10
    assert any("Python API, without CUDA graphs" in words for words in measurement.warnings)
    assert [(layer.name, layer.percent) for layer in profiled.layers] == [("conv0", 75.0), ("fc", 25.0)]
    assert made.timing_cache is not None
    assert made.timing_cache.read_bytes() == b"by python\n"
    assert made.layer_info is not None
    for number in (0, 1):
        for name, value in execute.raw(files["int8"])(inputs_of(files["int8"], number)).items():
            assert np.abs(outputs[name][number] - value).max() <= engines.TOLERANCE["int8"] * np.ptp(value)


def test_what_goes_wrong_is_told_as_trtexec_would(
    files: Files, python_only: Callable[[str], Standin], tmp_path: Path
) -> None:
    host = python_only("8.6.2")
    net = Net()
    model = net.save(tmp_path / "det.onnx", net.add("Det", net.input("x", 1, 3, 3), name="the det"))
    onnx.checker.check_model(str(model.path))
    det = replace(files["fp32"], file=model.path, sha256="0" * 64)
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        with pytest.raises(engines.ModelFault) as fault:
            engines.build(bench, det, tmp_path)
        assert isinstance(fault.value.error, UnsupportedModelError)
        assert "Det (node the det)" in fault.value.error.message
        (made,) = built(bench, [files["fp32"]], tmp_path / "made")
        host.set(version="8.5.2")
        with pytest.raises(DeviceError, match="built by another version of TensorRT"):
            engines.measure(bench, [made], QUICK)
        host.set(version="8.6.2", fault=True)
        with pytest.raises(engines.ModelFault) as fault:
            engines.build(bench, files["fp16"], tmp_path)
    assert "ran out of memory while building the engine" in fault.value.error.message


def test_a_board_without_cuda(
    files: Files, python_only: Callable[[str], Standin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no library, or (on a machine with one) no GPU for it."""
    python_only("10.3.0")
    monkeypatch.delenv("EDGECOMPILE_CUDART")
    with LocalTransport() as transport, engines.session(transport, engines.require(transport)) as bench:
        (made,) = built(bench, [files["fp32"]], tmp_path / "made")
        with pytest.raises(DeviceError, match=r"CUDA (did not start|failed)"):
            engines.measure(bench, [made], QUICK)


def test_a_bundle_rebuilds_its_engine_so_too(
    files: Files, python_only: Callable[[str], Standin], tmp_path: Path
) -> None:
    python_only("10.13.3")
    with bundle.BundleWriter(tmp_path / "a bundle") as writer:
        writer.add("model", files["int8"].file, "model.onnx")
        bundle.add_build_script(writer, files["int8"])
        shutil.copytree(writer._folder, tmp_path / "a bundle")
    done = subprocess.run([tmp_path / "a bundle" / "build_engine.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).read_bytes().startswith(b'{"version": "10.13.3.1", "strong": true}')
