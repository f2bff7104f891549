"""Fitting pruned layers, the order of removal, and what shrinking costs: on nets in which the right answer is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgecompile.techniques import channels, importance, prune, sensitivity
from edgecompile.techniques.channels import GraphView
from edgecompile.techniques.flow import Flow
from edgecompile.techniques.reconstruct import reconstruct
from tests import zoo
from tests.corpora import harness
from tests.lowering import Net
from tests.zoo import exported

_SHAPE = (1, 3, 8, 8)


def _proto(net: Net, output: str) -> onnx.ModelProto:
    graph = helper.make_graph(net.nodes, "net", net.inputs, [onnx.ValueInfoProto(name=output)], net.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def _samples(count: int = 24, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=_SHAPE).astype(np.float32)} for _ in range(count)]


def _with_copies(last: str) -> onnx.ModelProto:
    """Eight channels of which the last four are copies of the first four, before an operator ``last``."""
    net = Net(seed=1)
    x = net.input("x", *_SHAPE)
    w = net.rng.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
    b = net.rng.normal(0, 0.1, 4).astype(np.float32)
    weights = [net.constant(np.concatenate([part, part])) for part in (w, b)]
    a = net.add("Relu", net.add("Conv", x, *weights, kernel_shape=[3, 3], pads=[1] * 4))
    if last == "conv":
        return _proto(net, net.conv(a, 8, 5))
    if last == "dense":
        return _proto(net, net.dense(net.add("Flatten", net.add("GlobalAveragePool", a)), 8, 5))
    return _proto(net, net.conv(net.conv(a, 8, 8, groups=8), 8, 5, k=1))


@pytest.mark.parametrize("last", ["conv", "dense", "depthwise"])
def test_copies_go_first_and_nothing_is_lost(last: str) -> None:
    model, samples = _with_copies(last), _samples()
    found = channels.analyze(model)
    order = importance.orders(found, samples)["Conv_0"]
    if last != "depthwise":  # behind its own filters, a copy is no copy any more
        assert {position % 4 for position in order.kept(4)} == {0, 1, 2, 3}
        assert order.error[4] < 0.05 * order.error[7]
    kept = {"Conv_0": [0, 1, 6, 7]} if last == "depthwise" else {"Conv_0": order.kept(4)}
    kept = {"Conv_0": [0, 5, 2, 7]} if last == "conv" else kept
    pruned = prune.remove(found, kept)
    mended, fitted = reconstruct(found, pruned, channels.removed_units(found, kept), samples)
    before, after = (_error(model, m, samples) for m in (pruned, mended))
    assert after < before
    if last != "depthwise":
        assert after < 0.02
    assert all(layer.after <= layer.before for layer in fitted)


def _error(model: onnx.ModelProto, other: onnx.ModelProto, samples: list[dict[str, np.ndarray]]) -> float:
    a, b = (sensitivity.outputs(GraphView(m), samples) for m in (model, other))
    return sensitivity.mean_distance("signal", a, b)


def test_the_same_arguments_give_the_same_weights() -> None:
    model, samples = _with_copies("conv"), _samples()
    found = channels.analyze(model)
    kept = {"Conv_0": [0, 1, 2, 3]}
    removed = channels.removed_units(found, kept)
    made = [reconstruct(found, prune.remove(found, kept), removed, samples)[0].SerializeToString() for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize("name", ["resnet20", "resnet20_option_b", "shufflenet_v2_x1", "unet"])
def test_fitting_brings_real_blocks_nearer(name: str) -> None:
    model = onnx.load(str(exported.small(name)))
    samples = [dict(harness.noise(model, seed=i)) for i in range(24)]
    found = channels.analyze(model)
    orders = importance.orders(found, samples[:16])
    kept = {group.name: orders[group.name].kept(max(1, group.size * 3 // 4)) for group in found.groups}
    pruned = prune.remove(found, kept)
    mended, _ = reconstruct(found, pruned, channels.removed_units(found, kept), samples[:16])
    wanted, plain, better = (sensitivity.outputs(GraphView(m), samples[16:]) for m in (model, pruned, mended))
    before = sensitivity.mean_distance("signal", wanted, plain)
    assert sensitivity.mean_distance("signal", wanted, better) < before


@pytest.mark.parametrize("method", ["reconstruction", "magnitude"])
def test_an_order_names_every_channel_once_and_its_error_never_falls(method: importance.Importance) -> None:
    model = onnx.load(str(exported.small("mobilenet_v2")))
    found = channels.analyze(model)
    orders = importance.orders(found, [dict(harness.noise(model, seed=i)) for i in range(4)], method=method)
    assert set(orders) == {group.name for group in found.groups}
    for group in found.groups:
        order = orders[group.name]
        assert sorted(order.positions) == list(range(group.size))
        assert list(order.error) == sorted(order.error)
        assert len(order.kept(group.size // 2)) == group.size // 2


def test_shrinking_more_costs_more() -> None:
    model = onnx.load(str(exported.small("resnet20")))
    found = channels.analyze(model)
    samples = [dict(harness.noise(model, seed=i)) for i in range(16)]
    orders = importance.orders(found, samples)
    points = {group.name: (group.size // 2,) for group in found.groups}
    curves = sensitivity.curves(found, orders, points, samples)
    for group in found.groups:
        losses = [curves[group.name].loss(kept) for kept in range(1, group.size + 1)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == 0


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name.startswith(("resnet20", "vit", "yolo", "ds_cnn"))])
def test_a_graph_run_in_pieces_gives_what_it_gives_as_a_whole(name: str) -> None:
    model = onnx.load(str(exported.small(name)))
    inputs = dict(harness.noise(model, seed=1))
    flow = Flow(GraphView(model), [inputs])
    for stop in range(0, len(model.graph.node), 3):
        flow.advance(stop)
    flow.finish()
    found = {output: flow.value(output)[0] for output in flow.view.outputs}
    assert harness.worst(harness.reference(model, inputs), found)[0] <= 1e-4


def test_classifiers_are_compared_by_their_classes() -> None:
    a = {"y": np.array([[2.0, 0.0, -1.0]])}
    assert sensitivity.distance("logits", a, {"y": a["y"] + 7.0}) == pytest.approx(0, abs=1e-12)
    assert sensitivity.distance("logits", a, {"y": -a["y"]}) > 1
