"""INT8 files without float islands: each operator that the quantizer leaves in float, and mixtures of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecompile.lower import flatbuffer, islands, quantize_tflite
from edgecompile.types import Port, TensorSpec

SHAPE = (1, 8, 8, 8)


class Builder:
    """A float ``.tflite`` file, operator by operator."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self.rng = np.random.default_rng(0)

    def tensor(self, shape: tuple[int, ...], name: str = "t", dtype: int = flatbuffer.FLOAT32) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), dtype, 0
        return flatbuffer.add_tensor(self.model, tensor, name)

    def constant(self, values: np.ndarray) -> int:
        like = schema.TensorT()
        like.shape = list(values.shape)
        like.type = {"float32": flatbuffer.FLOAT32, "int32": flatbuffer.INT32, "bool": 6}[str(values.dtype)]
        like.name = b"c"
        return flatbuffer.add_constant(self.model, values, like)

    def add(self, op: str, inputs: list[int], *shapes: tuple[int, ...], dtype: int = 0, **options: Any) -> list[int]:
        outputs = [self.tensor(shape, op.lower(), dtype) for shape in shapes]
        operator = flatbuffer.make_operator(self.model, op, inputs, outputs)
        kind = options.pop("options", None)
        if kind is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(schema, kind + "T")()
            for name, value in options.items():
                setattr(operator.builtinOptions, name, value)
        self.graph.operators.append(operator)
        return outputs

    def conv(self, x: int, shape: tuple[int, ...], cin: int) -> int:
        weights = self.constant(self.rng.normal(0, cin**-0.5, (shape[-1], 1, 1, cin)).astype(np.float32))
        bias = self.constant(self.rng.normal(0, 0.5, shape[-1]).astype(np.float32))
        return self.add("CONV_2D", [x, weights, bias], shape, options="Conv2DOptions", strideH=1, strideW=1)[0]

    def finish(self, inputs: list[int], outputs: list[int]) -> bytes:
        named_inputs = [(index, f"in{i}") for i, index in enumerate(inputs)]
        named_outputs = [(index, f"out{i}") for i, index in enumerate(outputs)]
        flatbuffer.set_interface(self.model, named_inputs, named_outputs)
        return flatbuffer.pack(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator on an 8x8x8 map: its further inputs, its output's shape, and its options."""

    op: str
    constants: tuple[Any, ...] = ()
    shape: tuple[int, ...] = SHAPE
    options: tuple[tuple[str, Any], ...] = ()
    binary: bool = False

    def __str__(self) -> str:
        return self.op


def case(op: str, *constants: Any, shape: tuple[int, ...] = SHAPE, binary: bool = False, **options: Any) -> Case:
    return Case(op=op, constants=constants, shape=shape, options=tuple(options.items()), binary=binary)


ints = np.int32
CASES = [
    case("ABS", options="AbsOptions"),
    case("BATCH_TO_SPACE_ND", np.array([1, 1], ints), np.zeros((2, 2), ints), options="BatchToSpaceNDOptions"),
    case("DEPTH_TO_SPACE", shape=(1, 16, 16, 2), options="DepthToSpaceOptions", blockSize=2),
    case("ELU"),
    case("EXP", options="ExpOptions"),
    case("EXPAND_DIMS", np.array(0, ints), shape=(1, 1, 8, 8, 8), options="ExpandDimsOptions"),
    case("L2_NORMALIZATION", options="L2NormOptions"),
    case("LEAKY_RELU", options="LeakyReluOptions", alpha=0.1),
    case("LOG_SOFTMAX", options="LogSoftmaxOptions"),
    case("MAXIMUM", binary=True, options="MaximumMinimumOptions"),
    case("MINIMUM", binary=True, options="MaximumMinimumOptions"),
    case("MAXIMUM", np.float32(0.25).reshape(1), options="MaximumMinimumOptions"),
    case("MINIMUM", np.float32(0.25).reshape(1), options="MaximumMinimumOptions"),
    case("PRELU", np.linspace(-0.2, 0.4, 8).astype(np.float32).reshape(1, 1, 8)),
    case("REDUCE_MAX", np.array([1, 2], ints), shape=(1, 1, 1, 8), options="ReducerOptions", keepDims=True),
    case("RELU6"),
    case("RELU_N1_TO_1"),
    case("RESIZE_NEAREST_NEIGHBOR", np.array([16, 16], ints), shape=(1, 16, 16, 8),
         options="ResizeNearestNeighborOptions", halfPixelCenters=True),
    case("REVERSE_V2", np.array([3], ints), options="ReverseV2Options"),
    case("SPACE_TO_BATCH_ND", np.array([2, 2], ints), np.zeros((2, 2), ints), shape=(4, 4, 4, 8),
         options="SpaceToBatchNDOptions"),
    case("TILE", np.array([1, 2, 1, 1], ints), shape=(1, 16, 8, 8), options="TileOptions"),
]  # fmt: skip


def net(what: Case) -> bytes:
    """``CONV_2D -> the operator -> CONV_2D`` (or, for ranks other than 4, the operator's own output)."""
    builder = Builder()
    x = builder.tensor(SHAPE)
    first = builder.conv(x, SHAPE, 8)
    inputs = [first]
    if what.binary:
        inputs.append(builder.conv(x, SHAPE, 8))
    inputs += [builder.constant(np.asarray(values)) for values in what.constants]
    (y,) = builder.add(what.op, inputs, what.shape, **dict(what.options))
    if len(what.shape) == 4:
        y = builder.conv(y, (*what.shape[:3], 4), what.shape[3])
    return builder.finish([x], [y])


INPUT = (Port(spec=TensorSpec(name="in0", shape=SHAPE, dtype="float32"), model_name="in0"),)


def data(count: int = 24, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"in0": rng.normal(0, 1, SHAPE).astype(np.float32)} for _ in range(count)]


def run(file: bytes, sample: dict[str, np.ndarray], *, delegate: bool) -> dict[str, np.ndarray]:
    kind = OpResolverType.BUILTIN if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_content=file, experimental_op_resolver_type=kind).get_signature_runner()
    found: dict[str, np.ndarray] = runner(**sample)
    return found


def sqnr_db(file: bytes, floating: bytes, *, delegate: bool) -> float:
    signal = noise = 0.0
    for sample in data(4, seed=1):
        expected = run(floating, sample, delegate=delegate)["out0"].astype(np.float64)
        found = run(file, sample, delegate=delegate)["out0"]
        signal += float((expected**2).sum())
        noise += float(((expected - found) ** 2).sum())
    return 10 * np.log10(signal / noise)


@pytest.mark.parametrize("what", CASES, ids=str)
def test_no_island_is_left_and_the_result_agrees_with_float(what: Case) -> None:
    floating = net(what)
    made = quantize_tflite.int8(floating, INPUT, data())
    assert quantize_tflite.float_islands(made) == 0
    names = operators(made)
    assert names.count("QUANTIZE") - names.count("DEQUANTIZE") in (0, *([1, 2] if what.binary else []))
    for delegate in (True, False):
        assert sqnr_db(made, floating, delegate=delegate) > 20


@pytest.mark.parametrize(
    "what", [c for c in CASES if c.op in ("RESIZE_NEAREST_NEIGHBOR", "LEAKY_RELU", "TILE")], ids=str
)
def test_no_conversion_is_left_beside_the_operator(what: Case) -> None:
    names = operators(quantize_tflite.int8(net(what), INPUT, data()))
    assert names == ["QUANTIZE", "CONV_2D", what.op, "CONV_2D", "DEQUANTIZE"]


def operators(file: bytes) -> list[str]:
    graph = flatbuffer.unpack(file)
    return [flatbuffer.operator_name(graph, operator) for operator in graph.subgraphs[0].operators]


def test_a_chain_of_islands_at_the_inputs_and_outputs() -> None:
    builder = Builder()
    x = builder.tensor(SHAPE)
    (y,) = builder.add("LEAKY_RELU", [x], SHAPE, options="LeakyReluOptions", alpha=0.2)
    size = builder.constant(np.array([16, 16], np.int32))
    (y,) = builder.add("RESIZE_NEAREST_NEIGHBOR", [y, size], (1, 16, 16, 8), options="ResizeNearestNeighborOptions")
    y = builder.conv(y, (1, 16, 16, 8), 8)
    (y,) = builder.add("ELU", [y], (1, 16, 16, 8))
    (y,) = builder.add("DEPTH_TO_SPACE", [y], (1, 32, 32, 2), options="DepthToSpaceOptions", blockSize=2)
    floating = builder.finish([x], [y])
    for io_dtype in ("float32", "int8"):
        made = quantize_tflite.int8(floating, INPUT, data(), io_dtype=io_dtype)  # type: ignore[arg-type]
        assert quantize_tflite.float_islands(made) == 0
        inner = ["LEAKY_RELU", "RESIZE_NEAREST_NEIGHBOR", "CONV_2D", "ELU", "DEPTH_TO_SPACE"]
        ends = (["QUANTIZE"], ["DEQUANTIZE"]) if io_dtype == "float32" else ([], [])
        assert operators(made) == [*ends[0], *inner, *ends[1]]
        if io_dtype == "float32":
            assert sqnr_db(made, floating, delegate=True) > 25


def test_arg_max_reads_int8_and_gives_integers() -> None:
    builder = Builder()
    x = builder.tensor(SHAPE)
    axis = builder.constant(np.array(3, np.int32))
    (y,) = builder.add(
        "ARG_MAX", [builder.conv(x, SHAPE, 8), axis], (1, 8, 8), dtype=flatbuffer.INT32,
        options="ArgMaxOptions", outputType=flatbuffer.INT32,
    )  # fmt: skip
    floating = builder.finish([x], [y])
    made = quantize_tflite.int8(floating, INPUT, data())
    assert operators(made) == ["QUANTIZE", "CONV_2D", "ARG_MAX"]
    sample = data(1, seed=2)[0]
    same = run(made, sample, delegate=True)["out0"] == run(floating, sample, delegate=True)["out0"]
    assert same.mean() > 0.9


@pytest.mark.parametrize("how", ["ADD", "SELECT_V2"])
def test_a_mask_of_minus_infinity_does_not_spoil_the_scale(how: str) -> None:
    builder = Builder()
    x = builder.tensor(SHAPE)
    scores = builder.conv(x, SHAPE, 8)
    hidden = np.tile(np.arange(8) < 3, (1, 8, 8, 1))
    lowest = np.finfo(np.float32).min
    if how == "ADD":
        mask = builder.constant(np.where(hidden, lowest, np.float32(0)).astype(np.float32))
        (masked,) = builder.add("ADD", [scores, mask], SHAPE, options="AddOptions")
    else:
        inputs = [builder.constant(~hidden), scores, builder.constant(np.full((1, 1, 1, 1), lowest, np.float32))]
        (masked,) = builder.add("SELECT_V2", inputs, SHAPE, options="SelectV2Options")
    (y,) = builder.add("SOFTMAX", [masked], SHAPE, options="SoftmaxOptions", beta=1.0)
    floating = builder.finish([x], [y])
    made = quantize_tflite.int8(floating, INPUT, data())
    for delegate in (True, False):
        assert sqnr_db(made, floating, delegate=delegate) > 20
        assert run(made, data(1)[0], delegate=delegate)["out0"][..., :3].max() == 0


def test_an_output_that_nothing_reads() -> None:
    builder = Builder()
    x = builder.tensor(SHAPE)
    axis = builder.constant(np.array(3, np.int32))
    halves = builder.add(
        "SPLIT", [axis, builder.conv(x, SHAPE, 8)], *[(1, 8, 8, 4)] * 2, options="SplitOptions", numSplits=2
    )
    floating = builder.finish([x], [builder.conv(halves[1], (1, 8, 8, 4), 4)])
    made = quantize_tflite.int8(floating, INPUT, data())
    assert quantize_tflite.float_islands(made) == 0
    for delegate in (True, False):
        assert sqnr_db(made, floating, delegate=delegate) > 25


def test_an_operator_without_an_int8_kernel_stays_and_is_counted() -> None:
    builder = Builder()
    x = builder.tensor(SHAPE)
    y = builder.conv(x, SHAPE, 8)
    (y,) = builder.add("LEAKY_RELU", [y], SHAPE, options="LeakyReluOptions", alpha=0.2)
    (y,) = builder.add("SIN", [y], SHAPE)
    (y,) = builder.add("RELU6", [y], SHAPE)
    floating = builder.finish([x], [builder.conv(y, SHAPE, 8)])
    made = quantize_tflite.int8(floating, INPUT, data())
    assert quantize_tflite.float_islands(made) == 1
    assert operators(made) == [
        "QUANTIZE", "CONV_2D", "LEAKY_RELU", "DEQUANTIZE", "SIN", "QUANTIZE", "RELU6", "CONV_2D", "DEQUANTIZE",
    ]  # fmt: skip
    assert sqnr_db(made, floating, delegate=True) > 20


def test_what_only_moves_values_has_exactly_its_inputs_scale() -> None:
    made = flatbuffer.unpack(quantize_tflite.int8(net(CASES[17]), INPUT, data()))
    tensors = made.subgraphs[0].tensors
    (resize,) = [o for o in made.subgraphs[0].operators if flatbuffer.operator_name(made, o) == CASES[17].op]
    before, after = tensors[resize.inputs[0]].quantization, tensors[resize.outputs[0]].quantization
    assert (before.scale, before.zeroPoint) == (after.scale, after.zeroPoint)


def test_the_same_file_gives_the_same_bytes() -> None:
    first, second = (quantize_tflite.int8(net(CASES[7]), INPUT, data()) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 6.0), (-3.0, 0.0), (2.0, 5.0), (0.0, 0.0)])
def test_zero_is_exact_in_every_scale(low: float, high: float) -> None:
    scale, zero = islands.affine(low, high)
    assert scale > 0
    assert -128 <= zero <= 127
    for value in (low, high):
        quantized = np.clip(round(value / scale) + zero, -128, 127)
        assert abs((quantized - zero) * scale - value) <= scale


def test_files_leave_nothing_unread(tmp_path: Path) -> None:
    graph = flatbuffer.unpack(quantize_tflite.int8(net(CASES[7]), INPUT, data()))
    subgraph = graph.subgraphs[0]
    used = {int(i) for op in subgraph.operators for i in [*op.inputs, *op.outputs]}
    assert used == set(range(len(subgraph.tensors)))
