"""INT8 files of small graphs that have been quantized wrongly, or not at all, by one tool or another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import pytest

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import direct, flatbuffer, islands, quantize_tflite
from tests.corpora import harness
from tests.direct.graphs import graph, node, normal

#: ai-edge-quantizer lets LiteRT keep all tensors, of which LiteRT warns; a build runs it in a child.
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling:UserWarning")

IoType = Literal["float32", "int8"]
S = (1, 4, 4, 4)
WEIGHTS = {"w": normal(4, 4, 3, 3, seed=1) * np.float32(0.3)}


def conv(x: str, out: str, weights: str = "w") -> onnx.NodeProto:
    return node("Conv", f"{x} {weights}", out, pads=[1, 1, 1, 1])


def run(data: bytes, result: direct.DirectResult, inputs: Mapping[str, np.ndarray]) -> harness.Values:
    """The outputs of a quantized file, dequantized, in the model's layout."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    details = {detail["name"]: detail for detail in interpreter.get_input_details()}
    for name, value in quantize_tflite.to_file_inputs(result.inputs, inputs).items():
        detail = details[name]
        if detail["dtype"] == np.int8:
            scale, zero = detail["quantization"]
            value = np.clip(np.round(value / scale) + zero, -128, 127)
        interpreter.set_tensor(detail["index"], value.astype(detail["dtype"], order="C"))
    interpreter.invoke()
    found = {}
    for port, detail in zip(result.outputs, interpreter.get_output_details(), strict=True):
        assert detail["name"] == port.spec.name
        value = interpreter.get_tensor(detail["index"])
        if value.dtype == np.int8:
            value = (value.astype(np.float32) - detail["quantization"][1]) * detail["quantization"][0]
        found[port.model_name] = value if port.permutation is None else value.transpose(np.argsort(port.permutation))
    return found


def sqnr_db(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    if expected.dtype.kind != "f":
        return 200.0 if np.array_equal(found, expected) else -200.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(10 * np.log10((np.square(b).sum() + 1e-18) / (np.square(a - b).sum() + 1e-22)))


def compare(
    model: onnx.ModelProto,
    *,
    io_dtype: IoType = "float32",
    least_db: float = 20.0,
    inputs: harness.Values | None = None,
) -> bytes:
    """Quantize a graph on one sample, and hold every output against ONNX Runtime's on it."""
    inputs = inputs or harness.noise(model, seed=3)
    result = direct.lower(model)
    feeds = [quantize_tflite.to_file_inputs(result.inputs, inputs)]
    data = quantize_tflite.quantized(result.data, feeds, io_dtype=io_dtype)
    found = run(data, result, inputs)
    for name, expected in harness.reference(model, inputs).items():
        assert sqnr_db(found[name], expected) > least_db, name
    return data


IO_TYPES = pytest.mark.parametrize("io_dtype", ["float32", "int8"])


@IO_TYPES
def test_an_output_with_several_readers_inside(io_dtype: IoType) -> None:
    """The quantizer lets one reader take the float copy for 8 bits, or leaves out another's change of scale."""
    twice = [conv("x", "c"), node("Identity", "c", "a"), node("Identity", "c", "b")]
    compare(graph(twice, {"x": S}, ["a", "b", "c"], WEIGHTS), io_dtype=io_dtype)
    chosen = [conv("x", "c"), node("Less", "c z", "l"), node("Where", "l c z", "y"), conv("y", "d")]
    model = graph(chosen, {"x": S, "z": S}, ["c", "y", "d"], WEIGHTS)
    assert quantize_tflite.float_islands(compare(model, io_dtype=io_dtype)) == 0


@pytest.mark.parametrize("kept", ["right", "left", "both"])
def test_a_product_whose_factors_lie_around_other_numbers_than_zero(kept: str) -> None:
    """XNNPACK takes the right factor's zero point for 0, and a constant's many scales for none."""
    shifted = node("Add", "c k", "t")
    constants = {**WEIGHTS, "k": np.float32(3), "m": normal(1, 4, 4, 4) + np.float32(2)}
    product = {"right": "t m", "left": "m t", "both": "c t"}[kept]
    model = graph([conv("x", "c"), shifted, node("MatMul", product, "y")], {"x": S}, ["y"], constants)
    assert quantize_tflite.float_islands(compare(model)) == 0


def test_attention_whose_values_lie_around_another_number_than_zero() -> None:
    nodes = [
        node("MatMul", "x a", "q"), node("MatMul", "x b", "v"), node("Add", "v k", "v2"),
        node("Transpose", "q", "t", perm=[0, 2, 1]), node("MatMul", "q t", "s"), node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p v2", "y"), node("MatMul", "q p", "z"),
    ]  # fmt: skip
    constants = {"a": normal(8, 8) * np.float32(0.3), "b": normal(8, 8, seed=1), "k": np.float32(4)}
    assert quantize_tflite.float_islands(compare(graph(nodes, {"x": (1, 8, 8)}, ["y", "z"], constants))) == 0


def test_channels_without_weights_keep_their_bias() -> None:
    weights = np.concatenate([np.zeros((1, 4, 3, 3), np.float32), normal(3, 4, 3, 3)])
    nodes = [node("Conv", "x w b", "c", pads=[1, 1, 1, 1])]
    for value in (weights, np.zeros_like(weights)):
        compare(graph(nodes, {"x": S}, ["c"], {"w": value, "b": np.array([5, 0, -1, 0], np.float32)}), least_db=35)


def test_a_layer_that_was_zero_on_all_samples_can_be_loaded() -> None:
    nodes = [
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
        node("Relu", "c", "r"),
        conv("r", "d"),
        node("Add", "d x", "y"),
    ]
    compare(graph(nodes, {"x": S}, ["y", "r"], {**WEIGHTS, "b": np.full(4, -100, np.float32)}))


def test_a_constant_that_the_other_operands_scale_does_not_reach() -> None:
    nodes = [node("Softmax", "x", "s", axis=1), node("Min", "s k", "y"), node("Max", "s j", "z")]
    constants = {"k": np.linspace(-2, 1, 4).astype(np.float32), "j": np.float32(3)}
    assert quantize_tflite.float_islands(compare(graph(nodes, {"x": S}, ["y", "z"], constants))) == 0


@pytest.mark.parametrize("group", [1, 4])
def test_a_convolution_whose_weights_are_computed_stays_in_float(group: int) -> None:
    model = graph(
        [node("Conv", "x k", "y", pads=[1, 1, 1, 1], group=group), node("Relu", "y", "z")],
        {"x": S, "k": (4, 4 // group, 3, 3)},
        ["z"],
    )
    assert quantize_tflite.float_islands(compare(model, least_db=30)) == 1


@pytest.mark.parametrize("operator", ["Mish", "Softplus"])
def test_an_activation_of_several_steps_keeps_its_values(operator: str) -> None:
    model = graph([conv("x", "c"), node(operator, "c", "y")], {"x": S}, ["y"], WEIGHTS, opset=18)
    assert quantize_tflite.float_islands(compare(model, least_db=30)) == 0


def test_a_gru_as_torch_has_it() -> None:
    nodes = [node("GRU", "x w r b", "y h", hidden_size=4, linear_before_reset=1)]
    constants = {"w": normal(1, 12, 4), "r": normal(1, 12, 4, seed=1), "b": normal(1, 24, seed=2)}
    compare(graph(nodes, {"x": (4, 1, 4)}, ["y", "h"], constants))


def test_an_input_that_is_compared_and_moved() -> None:
    """XNNPACK wants a PAD's two scales to be the same to the last bit."""
    for seed in range(8):
        nodes = [node("Max", "k x", "m"), node("Pad", "m p", "q"), conv("q", "y"), node("Flatten", "x", "z")]
        constants = {**WEIGHTS, "k": np.float32(-0.5), "p": np.array([0, 0, 1, 0, 0, 0, 0, 1])}
        compare(graph(nodes, {"x": S}, ["y", "z"], constants), inputs={"x": normal(*S, seed=seed)})


def test_a_division_by_what_is_computed_stays_in_float() -> None:
    nodes = [conv("x", "c"), node("Abs", "c", "a"), node("Add", "a k", "d"), node("Div", "x d", "y")]
    inputs = {"x": normal(*S, seed=5)}
    for offset, islands_left in ((1e-3, 2), (1.0, 1)):
        result = direct.lower(graph(nodes, {"x": S}, ["y"], {**WEIGHTS, "k": np.float32(offset)}))
        data = quantize_tflite.quantized(result.data, [quantize_tflite.to_file_inputs(result.inputs, inputs)])
        assert quantize_tflite.float_islands(data) == islands_left
        assert np.isfinite(run(data, result, inputs)["y"]).all()


NAMES = ["a.b*c(+)[x]^$|\\d{2}?", "/a//b/", "x:0", "a b", "größe_图", "n" * 3000, "a;b", "t#3", "%s", "a\nb", "c_int8"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_will_do(name: str) -> None:
    """The quantizer looks operators and ranges up by names, of which one may be the start of another."""
    nodes = [
        onnx.helper.make_node("Conv", ["in" + name, "w"], [name + "1"], pads=[1] * 4),
        onnx.helper.make_node("LeakyRelu", [name + "1"], [name + "1_int8"], alpha=0.1),
        onnx.helper.make_node("Conv", [name + "1_int8", "w"], [name], pads=[1] * 4),
    ]
    model = graph(nodes, {"in" + name: S}, [name, name + "1"], WEIGHTS)
    assert quantize_tflite.float_islands(compare(model)) == 0
    result, inputs = direct.lower(model), harness.noise(model, seed=3)
    feeds = [quantize_tflite.to_file_inputs(result.inputs, inputs)]
    mixed = quantize_tflite.quantized(result.data, feeds, keep_float=[name])
    assert quantize_tflite.float_islands(mixed) == 1


def test_a_mixture_that_no_kernel_takes_is_refused() -> None:
    data = compare(
        graph([conv("x", "c"), node("Reshape", "c s", "y")], {"x": S}, ["y"], {**WEIGHTS, "s": np.array([4, 16])})
    )
    for change in ("type", "scale"):
        model = flatbuffer.unpack(data)
        operators = {flatbuffer.operator_name(model, op): op for op in model.subgraphs[0].operators}
        tensor = model.subgraphs[0].tensors[operators["RESHAPE"].inputs[0]]
        if change == "type":
            tensor.type = flatbuffer.FLOAT32
        else:
            tensor.quantization = flatbuffer.quantization(0.5, 3)
        what = "floats and integers at once" if change == "type" else "scales that differ"
        with pytest.raises(UnsupportedModelError, match=what):
            islands.quantize(flatbuffer.pack(model), {})
