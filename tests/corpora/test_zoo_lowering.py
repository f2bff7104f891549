"""Every net of the zoo through the direct lowering: LiteRT agrees with ONNX Runtime on each."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from edgecompile.lower import direct
from tests import zoo
from tests.corpora import harness
from tests.zoo import exported


def _holds(name: str, model: onnx.ModelProto) -> None:
    assert direct.check(model) == ()
    inputs = harness.noise(model, seed=5)
    error, output = harness.worst(harness.lowered(model, inputs), harness.reference(model, inputs))
    assert error <= harness.TOLERANCE, f"{output} of {name}"


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_small_net_is_lowered_exactly(name: str) -> None:
    _holds(name, onnx.load(str(exported.small(name))))


@pytest.mark.filterwarnings("ignore")  # the older exporter's, on itself
def test_an_lstm_operator_is_lowered_exactly(tmp_path: Path) -> None:
    """The newer exporter unrolls an LSTM into its steps; the older one keeps the operator."""
    module, shapes = zoo.small("lstm")
    path = tmp_path / "lstm.onnx"
    torch.onnx.export(
        module,
        tuple(torch.zeros(shape) for shape in shapes.values()),
        path,
        input_names=list(shapes),
        dynamo=False,
        opset_version=17,
    )
    model = onnx.load(str(path))
    assert "LSTM" in {node.op_type for node in model.graph.node}
    _holds("lstm", model)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_full_net_is_lowered_exactly(name: str, tmp_path: Path) -> None:
    path = zoo.export_onnx(zoo.build(name), zoo.input_shapes(name), tmp_path / f"{name}.onnx")
    _holds(name, onnx.load(str(path)))
