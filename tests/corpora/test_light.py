"""Corpus 1: the nine real classifiers that ship with the ``onnx`` package, with weights under which inputs matter.

Their files carry constants for weights, so that their outputs do not depend on the input: a wrong lowering would pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.corpora.harness import TOLERANCE, Values, lowered, noise, reference, worst

NAMES = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip
#: More than 60 million weights each, drawn and copied several times.
_SLOW = {"bvlc_alexnet", "vgg19", "zfnet512"}


def original(name: str) -> onnx.ModelProto:
    return onnx.load(Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx")


def with_weights(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The graph with He-normal weights and the batch statistics that noise causes in it, and an output before softmax.

    Nodes are run one by one, so that each normalization sees what its calibrated predecessors make.
    """
    rng = np.random.default_rng(seed)
    folded = {node.output[0]: node for node in model.graph.node if node.op_type == "ConstantOfShape"}
    made = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights: Values = {
        name: np.zeros(made[node.input[0]], np.float32) for name, node in folded.items()
    } | {name: value for name, value in made.items() if value.dtype == np.float32}  # fmt: skip
    shapes = {name: value for name, value in made.items() if value.dtype != np.float32}
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    inputs = [value for value in model.graph.input if value.name not in made]
    known = noise(helper.make_model(helper.make_graph([], "inputs", inputs, [])), seed)
    values: Values = {**known, **shapes}
    for node in nodes:
        _draw(node, values, weights, rng)
        values.update(_run(node, {**weights, **values}, model.opset_import[0].version))
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(value, name) for name, value in {**weights, **shapes}.items() if name in used]
    outputs = [*model.graph.output, *_logits(nodes, values)]
    graph = helper.make_graph(nodes, model.graph.name, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=4)


def _draw(node: onnx.NodeProto, values: Values, weights: Values, rng: np.random.Generator) -> None:
    """New values for the weights of one node, in place, by the role they play there."""
    mine = [(at, name) for at, name in enumerate(node.input) if name in weights]
    for at, name in mine:
        shape = weights[name].shape
        if node.op_type in ("Conv", "Gemm") and at == 1:
            drawn = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        elif node.op_type in ("BatchNormalization", "Mul", "Unsqueeze") and at <= 1:
            drawn = rng.uniform(0.5, 1.5, shape)
        else:
            drawn = rng.normal(0, 0.1, shape)
        weights[name] = drawn.astype(np.float32)
    if node.op_type == "BatchNormalization":
        x = values[node.input[0]]
        variance = x.var(axis=(0, 2, 3))
        variance = np.maximum(variance, 0.1 * variance.mean() + 1e-6)
        weights[node.input[3]] = x.mean(axis=(0, 2, 3)) + 0.1 * np.sqrt(variance)
        weights[node.input[4]] = (variance * rng.uniform(0.75, 1.25, variance.shape)).astype(np.float32)


def _run(node: onnx.NodeProto, values: Values, opset: int) -> Values:
    feed = {name: values[name] for name in node.input if name}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feed.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output[:1]]
    graph = helper.make_graph([node], "node", infos, outputs)
    return reference(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4), feed)


def _logits(nodes: list[onnx.NodeProto], values: Values) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, values[node.input[0]].shape)
        for node in nodes
        if node.op_type == "Softmax"
    ]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in NAMES]
)
def test_a_real_classifier_computes_the_same(name: str) -> None:
    model = with_weights(original(name))
    inputs = noise(model, seed=1)
    expected = reference(model, inputs)
    other = reference(model, noise(model, seed=2))
    logits = list(expected)[-1]  # before the softmax, which may saturate
    assert np.isfinite(expected[logits]).all()
    moved = np.abs(expected[logits] - other[logits]).max() / np.ptp(expected[logits])
    assert moved > 100 * TOLERANCE, "the input hardly matters"
    difference, output = worst(lowered(model, inputs), expected)
    assert difference < TOLERANCE, f"output {output} is off by {difference:.1e} of its range"
