"""What the corpora share: run a graph by ONNX Runtime and, lowered, by LiteRT with its delegate, and compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx

from edgecompile.lower import direct

Values = dict[str, np.ndarray]

#: Largest absolute difference that counts as right, over the range of the output.
TOLERANCE = 1e-4


def lowered(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], *, input_layout: Literal["nhwc", "nchw"] = "nhwc"
) -> Values:
    """The outputs of the lowered file, in the model's layout. Raises `UnsupportedModelError` for what is refused."""
    return run_tflite(direct.lower(model, input_layout=input_layout), inputs)


def run_tflite(result: direct.DirectResult, inputs: Mapping[str, np.ndarray]) -> Values:
    """Run a lowered file once."""
    return runner(result)(inputs)


def runner(result: direct.DirectResult) -> Callable[[Mapping[str, np.ndarray]], Values]:
    """Runs a lowered file in LiteRT, with the XNNPACK delegate that the interpreter applies by default."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=result.data, num_threads=1)
    interpreter.allocate_tensors()
    inputs_by_name = {detail["name"]: detail for detail in interpreter.get_input_details()}
    outputs = interpreter.get_output_details()
    assert [port.spec.name for port in result.outputs] == [detail["name"] for detail in outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> Values:
        for port in result.inputs:
            value = np.asarray(inputs[port.model_name])
            value = value if port.permutation is None else value.transpose(port.permutation)
            assert value.shape == port.spec.shape
            detail = inputs_by_name[port.spec.name]
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"], order="C"))
        interpreter.invoke()
        found = {}
        for port, detail in zip(result.outputs, outputs, strict=True):
            value = interpreter.get_tensor(detail["index"])
            assert value.shape == port.spec.shape
            found[port.model_name] = (
                value if port.permutation is None else value.transpose(np.argsort(port.permutation))
            )
        return found

    return run


def reference(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> Values:
    """The outputs by ONNX Runtime without its graph optimizations: what the operators are defined to compute."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # it warns of initializers that are inputs too, as old files have them
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name for value in session.get_inputs()}
    found = session.run(names, {name: value for name, value in inputs.items() if name in wanted})
    return dict(zip(names, found, strict=True))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference over the output's range; infinite where shape, NaNs or integers differ."""
    if found.shape != expected.shape:
        return float("inf")
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    special = ~np.isfinite(b)
    if not np.array_equal(a[special], b[special], equal_nan=True) or not np.isfinite(a[~special]).all():
        return float("inf")
    a, b = a[~special], b[~special]
    if not b.size:
        return 0.0
    # An output that hardly varies has no range to speak of; a hundredth of its size is some 1e5 float32 steps.
    scale = max(np.ptp(b), 0.01 * np.abs(b).max())
    return float(np.abs(a - b).max() / (scale or 1.0))


def worst(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest `error` over all outputs, and the output that has it. All outputs must be there, in order."""
    assert list(found) == list(expected)
    return max((error(found[name], value), name) for name, value in expected.items())


def noise(model: onnx.ModelProto, seed: int = 0) -> Values:
    """Seeded normal values for the inputs of a graph with static shapes (small counts where they are integers)."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _draw(value, rng) for value in model.graph.input if value.name not in constants}


def _draw(value: Any, rng: np.random.Generator) -> np.ndarray:
    kind = value.type.tensor_type
    shape = tuple(dimension.dim_value for dimension in kind.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0, 1, shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def conditioned(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> bool:
    """Whether the outputs keep well within the tolerance when inputs and weights change by a few float32 steps.

    Where they do not (an argument of the maximum of near equals, a normalization of a nearly constant channel), two
    right orders of summation differ by more than the tolerance, and a difference says nothing.
    """
    expected = reference(model, inputs)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        shaken = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in shaken.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                value = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(_shake(value, rng), tensor.name))
        moved = {name: _shake(v, rng) if v.dtype == np.float32 else v for name, v in inputs.items()}
        if worst(reference(shaken, moved), expected)[0] > TOLERANCE / 4:
            return False
    return True


def _shake(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (value * (1 + 1e-6 * rng.standard_normal(value.shape))).astype(np.float32)
