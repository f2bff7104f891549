"""One folder with the emulated boards' file system for the whole session, and boards that are ended with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecompile import lower
from edgecompile.errors import DeviceError
from edgecompile.transport import lab
from edgecompile.types import Artifact, Plan, Precision
from tests.lowering import Net, samples

#: What a first start may take, the fetching of 100 MB included.
TIME_LIMIT_S = 600.0


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The lab's folder of this session; where no board can be started, tests are skipped, in CI they fail."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECOMPILE_LAB", str(folder))
        try:
            lab.up("pi4", timeout_s=TIME_LIMIT_S)
        except DeviceError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            if os.environ.get("CI") == "true":
                pytest.fail(f"no emulated board: {exc}")
            pytest.skip(f"no emulated board: {exc}")
        yield folder
        for board in lab.CORES:
            lab.down(board)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], Artifact]:
    """A small convolutional network as a ``.tflite`` file of a precision."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 24, 24), 3, 16, stride=2))
    y = net.add("Add", x, net.conv(net.add("Relu", net.conv(x, 16, 16, groups=16)), 16, 16, k=1))
    out = net.dense(net.add("Flatten", net.add("GlobalAveragePool", y)), 16, 5)
    model = net.save(tmp_path_factory.mktemp("net") / "net.onnx", out)
    files: dict[Precision, Artifact] = {}

    def make(precision: Precision) -> Artifact:
        if precision not in files:
            folder = tmp_path_factory.mktemp(precision)
            plan = Plan(runtime="tflite", precision=precision)
            files[precision] = lower.RUNTIMES["tflite"].lower(model, plan, samples(model), folder)
        return files[precision]

    return make
