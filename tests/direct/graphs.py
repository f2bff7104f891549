"""Builds small ONNX graphs, and compares what they compute with what their lowered files do, in both input layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgecompile.lower import direct
from tests.corpora import harness

OPSET = 17


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int] | tuple[Sequence[int], str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A checked model; an input is a shape (float32), or ``(shape, type)``; output shapes are ONNX's own inference."""
    declared = [_declared(name, spec) for name, spec in inputs.items()]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    model = helper.make_model(
        helper.make_graph(list(nodes), "test", declared, results, initializers),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _declared(name: str, spec: Any) -> onnx.ValueInfoProto:
    shape, dtype = spec if len(spec) == 2 and isinstance(spec[1], str) else (spec, "float32")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node whose operands and results are given as words; ``_`` is an absent one."""
    names = [name.replace("_", "") if name == "_" else name for name in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=f"the_{op_type}_{outputs.split()[0]}", **attributes)


def compare(
    model: onnx.ModelProto,
    values: Mapping[str, np.ndarray] | None = None,
    *,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> direct.DirectResult:
    """Lower, run and compare with ONNX Runtime in both input layouts; the NHWC file's result."""
    inputs = dict(values) if values is not None else harness.noise(model, seed)
    expected = harness.reference(model, inputs)
    for layout in ("nchw", "nhwc"):
        result = direct.lower(model, input_layout=layout)  # type: ignore[arg-type]
        found = harness.run_tflite(result, inputs)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype, name
            error = harness.error(found[name], value)
            assert error <= tolerance, f"{layout}: {name} differs by {error:.2e}"
    return result


def operators(result: direct.DirectResult) -> list[str]:
    """The file's operators in order."""
    from edgecompile.lower import flatbuffer

    model = flatbuffer.unpack(result.data)
    return [flatbuffer.operator_name(model, operator) for operator in model.subgraphs[0].operators]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded normal weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
