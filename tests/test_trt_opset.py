"""Graphs at an older opset compute the same to the bit, and keep the newer one where they need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.lower import trt_opset
from tests import zoo
from tests.corpora import harness
from tests.lowering import Net
from tests.zoo import exported

_QUICK = {"resnet20", "mobilenet_v3_small", "shufflenet_v2_x1", "fpn", "vit_tiny", "yolo_decoded", "lstm"}


def lowered(net: Net, *outputs: str, folder: Path) -> onnx.ModelProto:
    """The lowered graph, after it was run against the original."""
    proto = onnx.load(str(net.save(folder / "net.onnx", *outputs).path))
    before = proto.SerializeToString(deterministic=True)
    made = trt_opset.lowered(proto)
    assert proto.SerializeToString(deterministic=True) == before
    inputs = harness.noise(proto)
    assert harness.worst(harness.reference(made, inputs), harness.reference(proto, inputs))[0] < 1e-6
    return made


def version(proto: onnx.ModelProto) -> int:
    return int(proto.opset_import[0].version)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in zoo.NAMES]
)
def test_every_net_of_the_zoo_gets_to_17_or_lower_and_is_the_same(name: str) -> None:
    proto = onnx.load(exported.small(name))
    assert version(proto) == 18
    made = trt_opset.lowered(proto)
    assert version(made) == (17 if any(node.op_type == "LayerNormalization" for node in proto.graph.node) else 13)
    inputs = harness.noise(proto)
    assert harness.worst(harness.reference(made, inputs), harness.reference(proto, inputs))[0] < 1e-6


@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"])
@pytest.mark.parametrize("noop", [None, 0, 1])
def test_axes_of_reductions(op: str, noop: int | None, tmp_path: Path) -> None:
    net = Net(opset=18)
    extra = {} if noop is None else {"noop_with_empty_axes": noop}
    x = net.input("x", 1, 3, 4, 4)
    some = net.add(op, x, net.constant(np.array([2, -1], np.int64)), keepdims=0, **extra)
    assert version(lowered(net, some, net.add(op, x, keepdims=1), folder=tmp_path)) == 13


def test_a_reduction_over_nothing_needs_18(tmp_path: Path) -> None:
    net = Net(opset=18)
    y = net.add("ReduceMean", net.input("x", 1, 3), noop_with_empty_axes=1)
    proto = onnx.load(str(net.save(tmp_path / "net.onnx", y).path))  # which ONNX Runtime does not run
    assert trt_opset.lowered(proto) is proto


def test_splits_into_a_number_of_outputs(tmp_path: Path) -> None:
    net = Net(opset=18)
    x = net.input("x", 1, 7, 2)
    net.nodes.append(helper.make_node("Split", [x], ["a", "b", "c"], name="split", axis=1, num_outputs=3))
    made = lowered(net, "a", "b", "c", folder=tmp_path)
    assert version(made) == 13
    sizes = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == made.graph.node[0].input[1])
    assert sizes.tolist() == [3, 3, 1]


@pytest.mark.parametrize(
    ("op", "attributes", "expected"),
    [
        ("Reshape", {"allowzero": 1}, 13),
        ("Identity", {}, 13),
        ("HardSwish", {}, 13),
        ("Mish", {}, 18),
        ("LayerNormalization", {}, 17),
    ],
)
def test_single_operators(op: str, attributes: dict[str, Any], expected: int, tmp_path: Path) -> None:
    net = Net(opset=18)
    extra = {
        "Reshape": [net.constant(np.array([4, -1], np.int64))], "LayerNormalization": [net.constant(np.ones(4, "f"))],
    }.get(op, [])  # fmt: skip
    assert version(lowered(net, net.add(op, net.input("x", 2, 4), *extra, **attributes), folder=tmp_path)) == expected


def test_a_zero_in_a_shape_that_means_zero(tmp_path: Path) -> None:
    net = Net(opset=18)
    y = net.add("Reshape", net.input("x", 0, 4), net.constant(np.array([0, 2, 2], np.int64)), allowzero=1)
    assert version(lowered(net, y, folder=tmp_path)) == 17


def test_a_resize_that_smooths_needs_18(tmp_path: Path) -> None:
    for smooth, expected in ((0, 13), (1, 18)):
        net = Net(opset=18)
        scales = net.constant(np.array([1, 1, 0.5, 0.5], np.float32))
        y = net.add("Resize", net.input("x", 1, 2, 8, 8), "", scales, mode="linear", antialias=smooth)
        assert version(lowered(net, y, folder=tmp_path)) == expected


def test_control_flow_functions_and_old_graphs_stay_as_they_are(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "branch", [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, (1, 4))],
    )  # fmt: skip
    net = Net(opset=18)
    net.input("x", 1, 4)
    y = net.add("If", net.constant(np.array(True)), then_branch=branch, else_branch=branch)
    assert version(lowered(net, y, folder=tmp_path)) == 18
    net = Net(opset=11)
    assert version(lowered(net, net.add("Relu", net.input("x", 1, 4)), folder=tmp_path)) == 11
