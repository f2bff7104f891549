"""Leaving out residual blocks: which can go, what the graph is without them, and what fitting mends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgecompile import model as models
from edgecompile.errors import InputError
from edgecompile.lower import direct
from edgecompile.progress import Silent
from edgecompile.techniques import blocks, channels, sensitivity
from edgecompile.techniques.channels import GraphView
from edgecompile.types import Step
from tests.corpora import harness
from tests.lowering import Net
from tests.techniques.test_prune import _model
from tests.zoo import NAMES, exported

#: How many blocks some of the small nets have that nothing but their own input feeds.
COUNTS = {"mobilenet_v1": 0, "vgg11": 0, "squeezenet1_1": 0}


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return list(onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed))


@pytest.mark.parametrize("name", NAMES)
def test_any_block_can_be_left_out(name: str) -> None:
    model = onnx.load(str(exported.small(name)))
    found = blocks.find(model)
    assert len(found) == COUNTS.get(name, len(found))
    feed = dict(harness.noise(model, seed=1))
    shapes = [value.shape for value in _run(model, feed)]
    for block in found[:2]:
        rest, _ = blocks.remove(model, [block.name])
        assert len(rest.graph.node) < len(model.graph.node)
        assert [value.shape for value in _run(rest, feed)] == shapes
        assert all(np.isfinite(value).all() for value in _run(rest, feed))
    if found:
        everything, _ = blocks.remove(model, [block.name for block in found])
        assert [value.shape for value in _run(everything, feed)] == shapes
        assert blocks.find(everything) == ()


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_a_net_without_blocks_is_lowered(name: str) -> None:
    model = onnx.load(str(exported.small(name)))
    rest, _ = blocks.remove(model, [blocks.find(model)[0].name])
    assert direct.lower(rest).operators < direct.lower(model).operators


def _residual(zero: bool) -> onnx.ModelProto:
    net = Net(seed=2)
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 8))
    branch = net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8)
    x = net.add("Relu", net.add("Add", x, branch))
    model = _model(net, net.conv(x, 8, 4, 1))
    if zero:
        last = [node for node in model.graph.node if node.op_type == "Conv"][2]
        for tensor in model.graph.initializer:
            if tensor.name in list(last.input[1:]):
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros_like(values), tensor.name))
    return model


def test_a_block_that_adds_nothing_changes_nothing_when_it_goes() -> None:
    model = _residual(zero=True)
    (block,) = blocks.find(model)
    rest, standing = blocks.remove(model, [block.name])
    assert standing == {block.name}
    feed = dict(harness.noise(model, seed=0))
    for before, after in zip(_run(model, feed), _run(rest, feed), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)
    assert sum(node.op_type == "Relu" for node in rest.graph.node) == 1


def test_a_branch_that_is_read_elsewhere_is_no_block() -> None:
    net = Net(seed=2)
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 8))
    branch = net.conv(x, 8, 8)
    total = net.add("Add", x, branch)
    assert blocks.find(_model(net, net.add("Mul", total, branch))) == ()


def test_fitting_makes_up_for_a_block(tmp_path: Path) -> None:
    model = models.load(str(exported.small("resnet20")), tmp_path / "model")
    proto = onnx.load(str(model.path))
    samples = [dict(harness.noise(proto, seed=i)) for i in range(48)]
    name = blocks.find(proto)[0].name
    made = {}
    for fit in (False, True):
        folder = tmp_path / str(fit)
        folder.mkdir()
        step = blocks.step([name], samples=32, fit=fit)
        made[fit] = blocks.apply(model, model, step, samples[:32], folder, Silent())
    wanted = sensitivity.outputs(GraphView(proto), samples[32:])

    def lost(path: Path) -> float:
        found = sensitivity.outputs(GraphView(onnx.load(str(path))), samples[32:])
        return sensitivity.mean_distance(sensitivity.kind_of(channels.analyze(proto)), wanted, found)

    assert lost(made[True].path) < 0.7 * lost(made[False].path)
    again = tmp_path / "again"
    again.mkdir()
    twice = blocks.apply(model, model, blocks.step([name], samples=32), samples[:32], again, Silent())
    assert twice.sha256 == made[True].sha256
    assert made[True].parameters < model.parameters


def test_every_block_has_a_loss() -> None:
    model = onnx.load(str(exported.small("resnet20")))
    found = blocks.find(model)
    samples = [dict(harness.noise(model, seed=i)) for i in range(12)]
    lost = blocks.losses(channels.analyze(model), found, samples)
    assert set(lost) == {block.name for block in found}
    assert min(lost.values()) > 0


@pytest.mark.parametrize(
    "options", [(("drop:nobody", True),), (("surprise", 1), ("drop:add", True)), (), (("drop:add", 2),)]
)
def test_a_step_that_does_not_fit_is_refused(options: tuple[tuple[str, int], ...], tmp_path: Path) -> None:
    model = models.load(str(exported.small("resnet20")), tmp_path / "model")
    samples = [dict(harness.noise(onnx.load(str(model.path)), seed=0))]
    with pytest.raises(InputError, match=r"dropping step|drops a block"):
        blocks.apply(model, model, Step(technique="drop", options=options), samples, tmp_path, Silent())
