"""Every net of the zoo through the direct lowering: LiteRT agrees with ONNX Runtime on each."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgecompile.lower import direct
from tests import zoo
from tests.corpora import harness
from tests.zoo import exported


def _holds(name: str, path: Path) -> None:
    model = onnx.load(str(path))
    assert direct.check(model) == ()
    inputs = harness.noise(model, seed=5)
    error, output = harness.worst(harness.lowered(model, inputs), harness.reference(model, inputs))
    assert error <= harness.TOLERANCE, f"{output} of {name}"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_small_net_is_lowered_exactly(name: str) -> None:
    _holds(name, exported.small(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_full_net_is_lowered_exactly(name: str, tmp_path: Path) -> None:
    path = zoo.export_onnx(zoo.build(name), zoo.input_shapes(name), tmp_path / f"{name}.onnx")
    _holds(name, path)
