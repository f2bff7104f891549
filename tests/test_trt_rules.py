"""The rules of TensorRT's parser and builder: each broken by a small graph, none by the graphs we write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile import lower
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import trt_rules
from edgecompile.lower.trt_rules import Finding
from edgecompile.types import Plan, Precision
from tests.lowering import Net


class QuantizedNet(Net):
    """A graph under construction with Q/DQ pairs; each may break a rule."""

    def pair(self, x: str, scale: Any = 0.05, zero: Any = None, *, dtype: Any = np.int8, **attributes: int) -> str:
        scales = np.asarray(scale, np.float32)
        zeros = np.zeros(scales.shape, dtype) if zero is None else np.full(scales.shape, zero, dtype)
        ends = self.constant(scales), self.constant(zeros)
        codes = self.add("QuantizeLinear", x, *ends, name=f"{x}_Q", **attributes)
        return self.add("DequantizeLinear", codes, *ends, name=f"{x}_DQ", **attributes)

    def pconv(self, x: str, channels: int = 4, *, axis: int = 0, op: str = "Conv", out: str | None = None) -> str:
        """A convolution whose weights have a scale a channel."""
        weight = self.constant(self.rng.normal(size=(channels, channels, 3, 3)).astype(np.float32))
        weight = self.pair(weight, np.full(channels, 0.02), axis=axis)
        return self.add(op, x, weight, self.constant(np.zeros(channels, np.float32)), out=out, pads=[1] * 4)


def made(net: Net, *outputs: str, opset: int = 13) -> onnx.ModelProto:
    values = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(net.nodes, "net", net.inputs, values, net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def found(net: Net, *outputs: str, opset: int = 13, version: str | None = None) -> tuple[Finding, ...]:
    return trt_rules.check(made(net, *outputs, opset=opset), version)


def rules(findings: tuple[Finding, ...]) -> set[tuple[str, str]]:
    return {(finding.rule, finding.severity) for finding in findings}


def start() -> tuple[QuantizedNet, str]:
    net = QuantizedNet()
    return net, net.input("x", 1, 4, 8, 8)


def test_a_residual_block_quantized_by_the_rules_has_no_findings() -> None:
    net, x = start()
    quantized = net.pair(net.add("Relu", net.pconv(net.pair(x))))
    y = net.add("Relu", net.add("Add", net.pconv(quantized), quantized))
    assert found(net, y) == ()


def test_unsigned_codes() -> None:
    net, x = start()
    findings = found(net, net.pconv(net.pair(x, dtype=np.uint8)))
    assert rules(findings) == {("unsigned", "error")}
    assert {finding.node for finding in findings} == {"x_Q", "x_DQ"}
    assert all("int8" in finding.fix for finding in findings)


def test_a_quantizer_without_zero_point_is_unsigned_by_default() -> None:
    net, x = start()
    net.add("QuantizeLinear", x, net.constant(np.float32(0.1)), out="codes", name="Q")
    assert rules(found(net, "codes")) == {("unsigned", "error")}


def test_a_zero_point_other_than_zero() -> None:
    net, x = start()
    findings = found(net, net.pconv(net.pair(x, zero=3)))
    assert rules(findings) == {("zero-point", "error")}
    assert "the zero point is 3" in findings[0].message


def test_a_computed_zero_point_and_scale() -> None:
    net, x = start()
    scale = net.add("ReduceMax", x, keepdims=0)
    zero = net.add("Cast", scale, to=TensorProto.INT8)
    findings = found(net, net.add("QuantizeLinear", x, scale, zero))
    assert rules(findings) == {("zero-point", "error"), ("scale", "error")}


def test_a_scale_of_zero() -> None:
    net, x = start()
    assert ("scale", "error") in rules(found(net, net.pconv(net.pair(x, scale=0.0))))


def test_a_quantized_bias() -> None:
    net, x = start()
    weight = net.pair(net.constant(np.ones((4, 4, 3, 3), np.float32)), np.full(4, 0.02), axis=0)
    bias = net.add(
        "DequantizeLinear", net.constant(np.ones(4, np.int32)), net.constant(np.full(4, 1e-3, np.float32)),
        name="bias_DQ", axis=0,
    )  # fmt: skip
    findings = found(net, net.add("Conv", net.pair(x), weight, bias))
    assert rules(findings) == {("quantized-bias", "error")}
    assert findings[0].node == "bias_DQ"


@pytest.mark.parametrize(
    ("opset", "version", "expected"),
    [
        (13, "8.2", None), (14, "8.2.1", "error"), (17, "8.5", None), (17, "8.6.2", None), (18, "8.6", "error"),
        (20, "10.3", None), (21, "10.3", "error"), (21, "11", None), (13, None, None), (17, None, "hint"),
    ],
)  # fmt: skip
def test_opsets_too_new_for_the_version(opset: int, version: str | None, expected: str | None) -> None:
    net, x = start()
    findings = found(net, net.add("Relu", x), opset=opset, version=version)
    assert rules(findings) == (set() if expected is None else {("opset", expected)})


def test_a_version_that_is_none() -> None:
    net, x = start()
    with pytest.raises(InputError, match="'new' is not a version"):
        found(net, net.add("Relu", x), version="new")


def test_float64() -> None:
    net, x = start()
    wide = net.add("Cast", x, to=TensorProto.DOUBLE, out="wide")
    y = net.add("Cast", net.add("Mul", wide, net.constant(np.float64(2))), to=TensorProto.FLOAT)
    findings = found(net, y)
    assert rules(findings) == {("type", "error"), ("type", "hint")}
    assert findings[0].severity == "error"


def test_types_that_do_not_exist() -> None:
    net, x = start()
    findings = found(net, net.add("Cast", x, to=TensorProto.UINT16, out="short"))
    assert [(finding.node, finding.rule) for finding in findings] == [("short", "type")]
    assert "uint16" in findings[0].message


def test_int64_matters_before_tensorrt_10() -> None:
    net = Net()
    ids = net.input("ids", 1, 4, dtype=TensorProto.INT64)
    y = net.add("Add", ids, net.constant(np.int64(2**40)))
    assert {finding.node for finding in found(net, y, version="8.6")} == {"ids", y, "w0"}
    assert found(net, y, version="10.3") == ()


def test_to_the_end_is_no_finding() -> None:
    net, x = start()
    ends = [net.constant(np.array([v], np.int64)) for v in (0, np.iinfo(np.int64).max, 2)]
    assert found(net, net.add("Slice", x, *ends), version="8.2") == ()


def test_dynamic_shapes() -> None:
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4)))
    findings = found(net, net.add("NonZero", "x"))
    assert ("dynamic-shape", "error") in rules(findings)
    assert ("dynamic-shape", "hint") in rules(findings)
    assert findings[0].node == "x"


def test_both_inputs_of_an_add() -> None:
    net, x = start()
    quantized = net.pair(x)
    y = net.add("Add", net.pair(net.pconv(quantized)), quantized, name="sum")
    findings = found(net, y)
    assert rules(findings) == {("both-add-inputs", "hint")}
    assert findings[0].node == "sum"


def test_the_wrong_input_of_an_add() -> None:
    net, x = start()
    assert rules(found(net, net.add("Add", net.pair(net.pconv(net.pair(x))), x))) == {("blocks-fusion", "hint")}


def test_the_projection_of_a_residual_may_be_quantized() -> None:
    net, x = start()
    quantized = net.pair(x)
    assert found(net, net.add("Add", net.pconv(quantized), net.pair(net.pconv(quantized)))) == ()


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "LeakyRelu"])
def test_a_pair_between_a_convolution_and_its_activation(op: str) -> None:
    net, x = start()
    findings = found(net, net.add(op, net.pair(net.pconv(net.pair(x))), name="act"))
    assert rules(findings) == {("blocks-fusion", "hint")}
    assert findings[0].node == "act"


def test_a_pair_between_a_convolution_and_its_batch_norm() -> None:
    net, x = start()
    ones = [net.constant(np.ones(4, np.float32)) for _ in range(4)]
    y = net.add("BatchNormalization", net.pair(net.pconv(net.pair(x))), *ones)
    assert rules(found(net, y)) == {("blocks-fusion", "hint")}


def test_scales_a_channel_of_an_activation() -> None:
    net, x = start()
    findings = found(net, net.pconv(net.pair(x, np.full(4, 0.1), axis=1)))
    assert ("per-channel-activation", "error") in rules(findings)
    assert {finding.node for finding in findings} == {"x_Q", "x_DQ"}


@pytest.mark.parametrize(("op", "right"), [("Conv", 0), ("ConvTranspose", 1)])
def test_the_axis_of_weights(op: str, right: int) -> None:
    for axis in (0, 1):
        net, x = start()
        expected = set() if axis == right else {("weight-axis", "error")}
        assert rules(found(net, net.pconv(net.pair(x), axis=axis, op=op))) == expected


def test_inputs_of_a_concat_with_different_scales() -> None:
    net, x = start()
    for scales, expected in (((0.1, 0.1), set()), ((0.1, 0.2), {("concat-scales", "hint")})):
        net, x = start()
        parts = [net.pair(net.add(op, x), scale) for op, scale in zip(("Relu", "Neg"), scales, strict=True)]
        assert rules(found(net, net.add("Concat", *parts, axis=1))) == expected


def test_operators_on_integers_and_foreign_ones_and_absent_ones() -> None:
    net, x = start()
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], ["codes", "scale", "zero"], name="dynamic"))
    net.add("FusedConv", x, name="foreign", domain="com.microsoft")
    net.add("Unique", x, name="unique")
    found_at = {f.node for f in found(net, x) if (f.rule, f.severity) == ("operator", "error")}
    assert found_at == {"dynamic", "foreign", "unique"}


def test_other_codes() -> None:
    for version, expected in (("8.6", "error"), ("10.3", None), (None, "hint")):
        net, x = start()
        zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, (), [0.0])
        net.weights.append(zero)
        net.add("QuantizeLinear", x, net.constant(np.float32(0.1)), "zero", out="codes", name="Q")
        got = {r for r in rules(found(net, "codes", opset=19, version=version)) if r[0] == "code-type"}
        assert got == (set() if expected is None else {("code-type", expected)})


def test_sixteen_bits() -> None:
    net, x = start()
    findings = found(net, net.pair(x, dtype=np.int16), opset=21, version="11.0")
    assert ("code-type", "error") in rules(findings)


def test_constant_nodes_count_as_constants() -> None:
    net, x = start()
    zero = net.add("Constant", value=numpy_helper.from_array(np.int8(1)))
    y = net.add("QuantizeLinear", x, net.constant(np.float32(0.1)), zero)
    assert rules(found(net, y)) == {("zero-point", "error")}


def test_an_invalid_graph_is_still_read() -> None:
    net, x = start()
    net.add("DynamicQuantizeLinear", x, name="lacks outputs")
    assert rules(found(net, x)) == {("operator", "error")}


def test_a_finding_reads_as_a_sentence() -> None:
    net, x = start()
    text = str(found(net, net.pconv(net.pair(x, zero=3)))[0])
    assert text == "x_Q: the zero point is 3, not 0 [zero-point]; quantize symmetrically to int8 (zero point 0)"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_lowering_refuses_what_breaks_a_rule_and_names_it(precision: Precision, tmp_path: Path) -> None:
    net, x = start()
    wide = net.add("Cast", net.conv(x, 4, 4), to=TensorProto.DOUBLE, name="widen", out="wide")
    model = net.save(tmp_path / "net.onnx", net.add("Cast", wide, to=TensorProto.FLOAT))
    data = [{"x": np.ones((1, 4, 8, 8), np.float32)}]
    with pytest.raises(UnsupportedModelError, match=r"wide: TensorRT does not compute in float64 \[type\]"):
        lower.RUNTIMES["tensorrt"].lower(model, Plan(runtime="tensorrt", precision=precision), data, tmp_path)
    with pytest.raises(UnsupportedModelError, match="float64"):
        lower.RUNTIMES["tensorrt"].check(model, precision)


def test_lowering_refuses_a_graph_that_came_quantized_to_uint8_and_names_its_nodes(tmp_path: Path) -> None:
    net, x = start()
    model = net.save(tmp_path / "net.onnx", net.pconv(net.pair(x, dtype=np.uint8, zero=128)))
    with pytest.raises(UnsupportedModelError) as caught:
        lower.RUNTIMES["tensorrt"].check(model, "fp16")
    assert ("QuantizeLinear", "x_Q") in caught.value.operators
