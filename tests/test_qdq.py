"""INT8 by Q/DQ pairs: where they stand, what their scales are, and that the graph is still the same net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgecompile import calibration, evaluate, execute, lower
from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import qdq, trt_rules
from edgecompile.lower.qdq import ranges
from edgecompile.types import Model, Plan
from tests import zoo
from tests.lowering import Net, cifar_resnet20, run_onnx, samples, save_model, small_net
from tests.zoo import exported

TENSORRT = lower.RUNTIMES["tensorrt"]
INT8 = Plan(runtime="tensorrt", precision="int8")
#: One of each kind of structure; the rest takes minutes.
_QUICK = {
    "resnet20", "mobilenet_v3_small", "shufflenet_v2_x1", "googlenet", "convnext_tiny", "unet", "vit_tiny", "ssdlite",
    "lstm",
}  # fmt: skip
#: Eight bits on random weights are noisy; an output that has nothing to do with the original is at -3 dB.
_LEAST_SQNR_DB = 3.0


class Pairs:
    """A quantized graph with look-ups: what feeds an input, and by which scale."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}

    def of(self, op_type: str) -> list[Any]:
        return [node for node in self.nodes if node.op_type == op_type]

    def named(self, name: str) -> Any:
        return next(node for node in self.nodes if node.name == name)

    def is_quantized(self, name: str) -> bool:
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def scale(self, name: str) -> np.ndarray:
        return self.constants[self.makers[name].input[1]]

    def behind(self, name: str) -> str:
        """The tensor that a pair quantizes."""
        return str(self.makers[self.makers[name].input[0]].input[0])


def quantized(net: Net, folder: Path, *outputs: str, **options: Any) -> Pairs:
    model = net.save(folder / "net.onnx", *outputs)
    made = qdq.quantize(onnx.load(str(model.path)), samples(model), **options)
    onnx.checker.check_model(made.model, full_check=True)
    findings = trt_rules.check(made.model)
    assert [finding for finding in findings if finding.rule != "opset"] == []
    return Pairs(made.model)


def sqnr_db(model: Model, run: Any, data: list[dict[str, np.ndarray]]) -> float:
    """Signal over noise power over all samples, of the output that lies in the middle."""
    original = run_onnx(model.path)
    power: dict[str, np.ndarray] = {}
    for sample in data:
        found, expected = run(sample), original(sample)
        assert list(found) == list(expected)
        for name, value in expected.items():
            noise = found[name].astype(np.float64) - value
            both = np.array([np.square(value.astype(np.float64)).sum(), np.square(noise).sum()])
            power[name] = power.get(name, 0) + both
    return float(np.median([10 * np.log10(signal / max(noise, 1e-12)) for signal, noise in power.values()]))


# -------------------------------------------------------------------------------------------------- the zoo


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in zoo.NAMES]
)
def test_every_net_passes_the_rules_in_fp16_and_int8_and_is_the_same_net(name: str, tmp_path: Path) -> None:
    model = save_model(onnx.load(exported.small(name)), tmp_path / "model.onnx")
    data = samples(model)
    half = TENSORRT.lower(model, Plan(runtime="tensorrt", precision="fp16"), [], tmp_path / "out")
    int8 = TENSORRT.lower(model, INT8, data, tmp_path / "out")
    assert int8.typed_file is not None
    typed = onnx.load(str(int8.typed_file))
    assert trt_rules.errors(trt_rules.check(typed, "10.13")) == ()
    assert sqnr_db(model, _rounding(typed, tmp_path), data) > _LEAST_SQNR_DB
    for made in (half, int8):
        assert trt_rules.errors(trt_rules.check(onnx.load(str(made.file)), "8.6")) == ()
        assert not any("was not run here" in note for note in made.notes)
    assert sqnr_db(model, execute.artifact(half), data[:1]) > 20
    assert sqnr_db(model, execute.artifact(int8), data) > _LEAST_SQNR_DB
    _assert_by_the_rules(Pairs(onnx.load(str(int8.file))))


def _rounding(typed: onnx.ModelProto, folder: Path) -> Any:
    """Runs a graph with float16 quantizers as TensorRT would: each in float32 between two casts.

    ONNX Runtime's own quantizer from float16 cuts off where it should round.
    """
    made = onnx.ModelProto.FromString(typed.SerializeToString())
    halves = {t.name: t for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    nodes: list[Any] = []
    for node in list(made.graph.node):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(node)
            continue
        scale = f"{node.input[1]}_float32"
        if not any(t.name == scale for t in made.graph.initializer):
            values = numpy_helper.to_array(halves[node.input[1]]).astype(np.float32)
            made.graph.initializer.append(numpy_helper.from_array(values, scale))
        node.input[1] = scale
        whole = f"{node.output[0]}_float32"
        if node.op_type == "QuantizeLinear":
            nodes.append(onnx.helper.make_node("Cast", [node.input[0]], [whole], to=onnx.TensorProto.FLOAT))
            node.input[0] = whole
            nodes.append(node)
        else:
            output, node.output[0] = node.output[0], whole
            nodes += [node, onnx.helper.make_node("Cast", [whole], [output], to=onnx.TensorProto.FLOAT16)]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.save(made, str(folder / "rounding.onnx"))
    return run_onnx(folder / "rounding.onnx")


def _assert_by_the_rules(pairs: Pairs) -> None:
    """Symmetric int8, per-channel weights, per-tensor activations, float biases, no quantized outputs of operators."""
    for node in [*pairs.of("QuantizeLinear"), *pairs.of("DequantizeLinear")]:
        zero, scale = pairs.constants[node.input[2]], pairs.constants[node.input[1]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
    for node in [*pairs.of("Conv"), *pairs.of("ConvTranspose")]:
        assert pairs.is_quantized(node.input[0])
        assert pairs.scale(node.input[0]).shape == ()
        weight = pairs.constants[pairs.behind(node.input[1])]
        axis = 0 if node.op_type == "Conv" else 1
        assert pairs.scale(node.input[1]).shape == (weight.shape[axis],)
        assert all(pairs.constants[name].dtype == np.float32 for name in node.input[2:])
    for node in pairs.of("Concat"):
        assert len({pairs.scale(n).tobytes() for n in node.input if pairs.is_quantized(n)}) <= 1


# ------------------------------------------------------------------------------------------------ placement


def test_scales_are_the_largest_magnitudes_over_127(tmp_path: Path) -> None:
    net = Net()
    y = net.conv(net.input("x", 1, 3, 8, 8), 3, 8, out=None)
    pairs = quantized(net, tmp_path, y, methods=("max",))
    conv = pairs.of("Conv")[0]
    weight = pairs.constants["w0"]
    np.testing.assert_allclose(pairs.scale(conv.input[1]), np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    model = net.save(tmp_path / "again.onnx", y)
    largest = max(float(np.abs(sample["x"]).max()) for sample in samples(model))
    assert pairs.scale(conv.input[0]) == pytest.approx(largest / 127)
    assert conv.input[2] == "w1"


def test_the_skip_input_of_a_residual_add_only(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 8))
    y = net.add("Relu", net.add("Add", net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8), x, name="sum"))
    pairs = quantized(net, tmp_path, net.conv(y, 8, 8))
    add = pairs.named("sum")
    assert [pairs.is_quantized(name) for name in add.input] == [False, True]
    assert pairs.behind(add.input[1]) == x
    # The pair that the next convolution reads is the same: one int8 tensor serves both.
    assert any(node.input[0] == add.input[1] for node in pairs.of("Conv"))


def test_of_a_projected_residual_the_main_branch_stays_bare(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 8, 8), 3, 8))
    main = net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8, out="main")
    projected = net.conv(x, 8, 8, 1, out="projected")
    pairs = quantized(net, tmp_path, net.add("Relu", net.add("Add", projected, main, name="sum")))
    assert [pairs.is_quantized(name) for name in pairs.named("sum").input] == [True, False]


def test_an_add_without_a_convolution_to_fuse_into_stays_in_float(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 8)
    y = net.add("Add", net.add("Relu", x), net.add("Sigmoid", x), name="sum")
    pairs = quantized(net, tmp_path, net.conv(y, 8, 8))
    assert not any(pairs.is_quantized(name) for name in pairs.named("sum").input)


def test_inputs_of_a_concat_share_one_scale(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 3, 8, 8)
    left, right = net.add("Relu", net.conv(x, 3, 8)), net.add("Relu", net.conv(x, 3, 8, 1))
    joined = net.add("Concat", left, right, axis=1, name="joined")
    side = net.conv(right, 8, 4)  # reads one of them by itself, by the same pair
    pairs = quantized(net, tmp_path, net.conv(joined, 16, 8), side)
    inputs = pairs.named("joined").input
    assert all(pairs.is_quantized(name) for name in inputs)
    after = next(node for node in pairs.of("Conv") if pairs.constants[pairs.behind(node.input[1])].shape[1] == 16)
    shared = {float(pairs.scale(name)) for name in [*inputs, after.input[0]]}
    assert len(shared) == 1
    assert sum(node.input[0] == inputs[1] for node in pairs.of("Conv")) == 1


def test_a_channel_shuffle_between_concat_and_convolution(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 3, 8, 8)
    x = net.add("Concat", net.conv(x, 3, 4), net.conv(x, 3, 4, 1), axis=1, name="joined")
    x = net.add("Reshape", x, net.constant(np.array([1, 2, 4, 8, 8], np.int64)))
    x = net.add("Reshape", net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), net.constant(np.array([1, 8, 8, 8])))
    pairs = quantized(net, tmp_path, net.conv(x, 8, 8))
    assert all(pairs.is_quantized(name) for name in pairs.named("joined").input)
    assert not any(pairs.is_quantized(node.input[0]) for node in [*pairs.of("Reshape"), *pairs.of("Transpose")])


def test_poolings_between_quantized_tensors(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 16, 16), 3, 8))
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name="largest")
    x = net.add("Relu", net.conv(x, 8, 8))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x, name="average"))
    pairs = quantized(net, tmp_path, net.dense(pooled, 8, 4))
    after = pairs.of("Conv")[1]
    largest = pairs.named("largest")
    assert pairs.is_quantized(largest.input[0])
    assert pairs.scale(largest.input[0]) == pairs.scale(after.input[0])
    assert pairs.is_quantized(pairs.named("average").input[0])
    # Without a reader in int8 there is nothing to gain.
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", 1, 3, 16, 16), 3, 8))
    pairs = quantized(net, tmp_path, net.add("MaxPool", x, kernel_shape=[2, 2], name="largest"))
    assert not pairs.is_quantized(pairs.named("largest").input[0])


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_products_have_a_scale_a_column(transposed: bool, tmp_path: Path) -> None:
    net = Net()
    x = net.add("MatMul", net.input("x", 2, 6), net.constant(net.rng.normal(size=(6, 5)).astype(np.float32)))
    weight = net.rng.normal(size=(3, 5) if transposed else (5, 3)).astype(np.float32)
    y = net.add("Gemm", x, net.constant(weight), transB=int(transposed))
    pairs = quantized(net, tmp_path, y)
    product, gemm = pairs.of("MatMul")[0], pairs.of("Gemm")[0]
    assert pairs.scale(product.input[1]).shape == (5,)
    expected = np.abs(weight).max(axis=1 if transposed else 0) / 127
    np.testing.assert_allclose(pairs.scale(gemm.input[1]), expected, rtol=1e-6)


def test_products_of_activations_and_stacked_weights(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 2, 3, 4)
    x = net.add("MatMul", x, net.constant(net.rng.normal(size=(2, 4, 4)).astype(np.float32)), name="stacked")
    y = net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1]), name="attention")
    pairs = quantized(net, tmp_path, y)
    assert pairs.scale(pairs.named("stacked").input[1]).shape == ()
    assert not any(pairs.is_quantized(name) for name in pairs.named("attention").input)


def test_excluded_operators_keep_float_inputs(tmp_path: Path) -> None:
    net = Net()
    first = net.conv(net.input("x", 1, 3, 8, 8), 3, 8)
    y = net.conv(net.add("Relu", first), 8, 4)
    model = net.save(tmp_path / "net.onnx", y)
    made = qdq.quantize(onnx.load(str(model.path)), samples(model), exclude=["Conv_0"])
    assert (made.quantized, made.left_in_float) == (("Conv_2",), ("Conv_0",))
    assert list(Pairs(made.model).named("Conv_0").input) == ["x", "w0", "w1"]
    with pytest.raises(InputError, match="no operator is named 'Conv_9'"):
        qdq.quantize(onnx.load(str(model.path)), samples(model), exclude=["Conv_9"])


def test_shared_weights_unnamed_nodes_constant_nodes_and_old_opsets(tmp_path: Path) -> None:
    net = Net(opset=11)
    x = net.input("x", 1, 4, 8, 8)
    weight = net.add("Constant", value=numpy_helper.from_array(net.rng.normal(size=(4, 4, 3, 3)).astype(np.float32)))
    x = net.add("Conv", x, weight, name="", pads=[1] * 4)
    y = net.add("Conv", net.add("Relu", x, name=""), weight, name="", pads=[1] * 4)
    model = net.save(tmp_path / "net.onnx", y)
    proto = onnx.load(str(model.path))
    before = proto.SerializeToString(deterministic=True)
    made = qdq.quantize(proto, samples(model))
    assert proto.SerializeToString(deterministic=True) == before
    assert made.model.opset_import[0].version == 13
    assert len(set(made.quantized)) == 2
    assert len(Pairs(made.model).of("QuantizeLinear")) == 3  # two activations, one weight


def test_a_constant_beside_activations_in_a_concat(tmp_path: Path) -> None:
    net = Net()
    x = net.conv(net.input("x", 1, 3, 8, 8), 3, 4)
    large = net.constant(np.full((1, 1, 8, 8), 1000, np.float32))
    pairs = quantized(net, tmp_path, net.conv(net.add("Concat", x, large, axis=1, name="joined"), 5, 4))
    scales = {float(pairs.scale(name)) for name in pairs.named("joined").input}
    assert len(scales) == 1
    assert scales.pop() > 1


def test_outputs_of_the_model_stay_as_they_are(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    made = TENSORRT.lower(model, INT8, samples(model), tmp_path / "out")
    assert [(port.spec.name, port.spec.dtype) for port in made.outputs] == [("logits", "float32")]
    assert sqnr_db(model, execute.artifact(made), samples(model)) > 25


def test_nothing_to_quantize(tmp_path: Path) -> None:
    net = Net()
    model = net.save(tmp_path / "net.onnx", net.add("Relu", net.input("x", 1, 4)))
    with pytest.raises(UnsupportedModelError, match="nothing to run in INT8"):
        TENSORRT.lower(model, INT8, samples(model), tmp_path)


def test_the_same_model_and_samples_give_the_same_bytes(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    first, second = (TENSORRT.lower(model, INT8, samples(model), tmp_path / name) for name in ("a", "b"))
    assert first.file.read_bytes() == second.file.read_bytes()


# -------------------------------------------------------------------------------------------------- ranges


def test_a_histogram_grows_with_its_values_and_forgets_none() -> None:
    rng = np.random.default_rng(0)
    histogram = ranges.Histogram()
    values = [np.zeros(7, np.float32)] + [rng.normal(0, s, 10_000).astype(np.float32) for s in (0.01, 5, 1, 300)]
    for value in values:
        histogram.add(value, "x")
    everything = np.abs(np.concatenate(values))
    assert histogram.counts.sum() == everything.size
    assert histogram.limit("max") == everything.max()
    exact = np.percentile(everything, ranges.PERCENTILE)
    assert histogram.limit("percentile") == pytest.approx(exact, rel=2e-3)


def test_a_lone_outlier_is_clipped_by_percentile_and_entropy_but_not_by_max() -> None:
    histogram = ranges.Histogram()
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    values[0] = 100
    histogram.add(values, "x")
    assert histogram.limit("max") == 100
    assert 3.5 < histogram.limit("percentile") < 4.5
    assert 2.5 < histogram.limit("entropy") < 20


def test_entropy_keeps_a_distribution_that_fills_its_range() -> None:
    histogram = ranges.Histogram()
    histogram.add(np.random.default_rng(0).uniform(0, 3, 200_000).astype(np.float32), "x")
    assert histogram.limit("entropy") == pytest.approx(3, rel=0.02)


def test_tensors_without_a_range() -> None:
    histogram = ranges.Histogram()
    for method in ranges.METHODS:
        assert histogram.limit(method) == 0
    histogram.add(np.zeros(5, np.float32), "x")
    histogram.add(np.zeros(0, np.float32), "x")
    for method in ranges.METHODS:
        assert histogram.limit(method) == 0
    with pytest.raises(InputError, match="'x' is not finite"):
        histogram.add(np.array([1, np.inf], np.float32), "x")


def test_a_channel_that_is_always_zero(tmp_path: Path) -> None:
    net = Net()
    weight = np.zeros((4, 3, 1, 1), np.float32)
    y = net.add("Conv", net.add("Mul", net.input("x", 1, 3, 8, 8), net.constant(np.float32(0))), net.constant(weight))
    pairs = quantized(net, tmp_path, y)
    conv = pairs.of("Conv")[0]
    assert pairs.scale(conv.input[0]) == 1
    assert (pairs.scale(conv.input[1]) == 1).all()


def test_a_dead_channel_keeps_a_scale_in_float16(tmp_path: Path) -> None:
    """Trained nets have channels of weights near 1e-7: a scale of 1e-9 is zero in a graph that is otherwise float16."""
    net = Net()
    weight = np.full((4, 3, 1, 1), 0.5, np.float32)
    weight[1] = 2.8e-7
    model = net.save(tmp_path / "dead.onnx", net.add("Conv", net.input("x", 1, 3, 8, 8), net.constant(weight)))
    plan = Plan(runtime="tensorrt", precision="int8", calibration_samples=4)
    made = lower.RUNTIMES["tensorrt"].lower(model, plan, samples(model), tmp_path / "made")
    assert made.typed_file is not None
    pairs = Pairs(onnx.load(made.typed_file))
    (conv,) = pairs.of("Conv")
    scale = pairs.scale(conv.input[1])
    assert scale.dtype == np.float16
    assert (scale > 0).all()


def test_the_closest_method_is_taken_and_all_are_told(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    data = samples(model, count=64)
    for sample in data:
        sample["image"][0, 0, 0, 0] = 400  # one pixel that would take all the codes
    made = qdq.quantize(onnx.load(str(model.path)), data)
    figures = dict(made.sqnr_db)
    assert list(figures) == list(ranges.METHODS)
    assert figures[made.method] == max(figures.values())


# -------------------------------------------------------------------------------------------- a trained net


def test_a_trained_resnet20_loses_next_to_nothing(shared_data: Path, cifar10: Path, tmp_path: Path) -> None:
    checkpoint = shared_data / "models" / "resnet-cifar10" / "resnet20-12fca82f.th"
    model = cifar_resnet20(tmp_path, checkpoint, simplified=True)
    data = calibration.load(
        calibration.load_preset("cifar10-imagenet-stats"), model.inputs, data=cifar10 / "train",
        evaluation=cifar10 / "test", evaluation_samples=500,
    )  # fmt: skip
    made = TENSORRT.lower(model, INT8, data.calibration, tmp_path / "out")
    assert trt_rules.check(onnx.load(str(made.file)), "8.2") == ()
    reference = evaluate.reference(execute.original(model), data.evaluation)
    found = evaluate.accuracy(execute.artifact(made), reference, data.evaluation)
    assert reference.accuracy.value > 70
    assert found.drop is not None
    assert abs(found.drop) <= 1.5
