"""The differentiable graph computes what ONNX Runtime computes, for any batch, and goes back to the same file."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import InputError
from edgecompile.techniques.torch_call import NotDifferentiable
from edgecompile.techniques.torch_graph import from_onnx
from tests import zoo
from tests.zoo import exported

#: Largest absolute difference that counts as right, over the range of the output.
_TOLERANCE = 1e-4
_REFUSED = {"lstm"}
_NETS = [name for name in zoo.NAMES if name not in _REFUSED]

Values = dict[str, np.ndarray]


@cache
def _model(name: str) -> onnx.ModelProto:
    return onnx.load(str(exported.small(name)))


def _samples(model: onnx.ModelProto, count: int) -> list[Values]:
    rng = np.random.default_rng(3)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(count)
    ]


def _runtime(model: onnx.ModelProto, samples: list[Values]) -> Values:
    """The outputs of all samples, computed one by one."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = [session.run(names, sample) for sample in samples]
    return {name: np.concatenate([values[i] for values in found]) for i, name in enumerate(names)}


def _batch(samples: list[Values]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.concatenate([sample[name] for sample in samples])) for name in samples[0]}


def _hold_same(found: dict[str, torch.Tensor], expected: Values) -> None:
    for name, value in expected.items():
        assert tuple(found[name].shape) == value.shape
        bound = _TOLERANCE * max(float(value.max() - value.min()), 1e-6)
        assert np.abs(found[name].detach().numpy() - value).max() <= bound, name


@pytest.mark.parametrize("name", _NETS)
def test_a_net_computes_what_onnx_runtime_computes(name: str) -> None:
    model = _model(name)
    graph, samples = from_onnx(model), _samples(model, 3)
    assert graph.batched
    for part in (samples[:1], samples):
        _hold_same(graph(_batch(part)), _runtime(model, part))
