"""Corpus 2: the node tests of the ``onnx`` package, for the operators that image models use.

Each test is a model of one operator (or of the operators that define it) with data. Weights, shapes, axes, scales and
pads are inputs there and constants in every real model: they are frozen from the test's own data first.

``python -m tests.corpora.node_tests`` prints what is passed, refused by name and wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from edgecompile.errors import UnsupportedModelError
from tests.corpora.harness import TOLERANCE, Values, lowered, worst

#: Operators that image models use.
LISTED = {
    "Conv", "ConvTranspose", "Gemm", "MatMul",
    "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "LpPool",
    "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "MeanVarianceNormalization", "LpNormalization", "RMSNormalization",
    "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Erf", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Softmax", "LogSoftmax", "ThresholdedRelu", "Swish",
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Sum", "Mean", "Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal",
    "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Mod",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Not", "And", "Or", "Xor",
    "Concat", "Split", "Slice", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile",
    "Gather", "DepthToSpace", "SpaceToDepth", "Cast", "Shape", "Size", "Einsum", "Resize", "Upsample",
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin", "TopK", "LSTM", "GRU", "RNN", "Dropout", "Identity",
}  # fmt: skip
#: What the bodies of operators that are defined by others use besides: constants and arithmetic on shapes.
_AROUND = {"Constant", "ConstantOfShape", "CastLike", "Range"}

#: Inputs that are constants in a real model, by operator and position.
_CONSTANTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "BatchNormalization": (1, 2, 3, 4),
    "LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "RMSNormalization": (1,), "PRelu": (1,), "Clip": (1, 2), "Split": (1,), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3),
    "Reshape": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "Expand": (1,), "Tile": (1,), "Resize": (1, 2, 3),
    "Upsample": (1,), "TopK": (1,), "LSTM": (1, 2, 3, 4, 5, 6, 7), "GRU": (1, 2, 3, 4, 5), "RNN": (1, 2, 3, 4, 5),
    "Dropout": (1, 2), "Range": (0, 1, 2), "ConstantOfShape": (0,), "ReduceSum": (1,), "ReduceMean": (1,),
    "ReduceMax": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceL1": (1,), "ReduceL2": (1,),
    "ReduceSumSquare": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
}  # fmt: skip
_MAX_RANK = 4
#: Data sets whose expected values were typed in with four decimals.
_ROUNDED = {"test_averagepool_2d_ceil_last_window_starts_on_pad": 1e-3}
_DTYPES = (np.float32, np.int32, np.int64, np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    model: onnx.ModelProto
    inputs: Values
    expected: Values


def cases() -> Iterator[Case]:
    """The node tests that are in scope, with their constants frozen."""
    for folder in sorted((Path(onnx.__file__).parent / "backend/test/data/node").iterdir()):
        model = _single_precision(onnx.load(folder / "model.onnx"))
        if {node.op_type for node in model.graph.node} - LISTED - _AROUND or any(n.domain for n in model.graph.node):
            continue
        data = folder / "test_data_set_0"
        inputs, expected = _read(data, "input", model.graph.input), _read(data, "output", model.graph.output)
        frozen = _freeze(model, inputs or {})
        if inputs is None or expected is None or not _in_scope(frozen, inputs, expected):
            continue
        live = {name: value for name, value in inputs.items() if name in {i.name for i in frozen.graph.input}}
        yield Case(name=folder.name, model=frozen, inputs=live, expected=expected)


def _read(folder: Path, kind: str, infos: list[onnx.ValueInfoProto]) -> Values | None:
    """The arrays of a data set by name; None where one is not a tensor (a sequence, an optional)."""
    values = {}
    for number, info in enumerate(infos):
        if info.type.WhichOneof("value") != "tensor_type":
            return None
        tensor = onnx.TensorProto.FromString((folder / f"{kind}_{number}.pb").read_bytes())
        value = numpy_helper.to_array(tensor)
        values[info.name] = value.astype(np.float32) if value.dtype == np.float64 else value
    return values


def _single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take inputs and outputs of float64 as float32: some operators (Einsum) have no other tests."""
    for info in (*model.graph.input, *model.graph.output):
        if info.type.tensor_type.elem_type == onnx.TensorProto.DOUBLE:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return model


def _freeze(model: onnx.ModelProto, inputs: Values) -> onnx.ModelProto:
    constant = {
        node.input[at]
        for node in model.graph.node
        for at in _CONSTANTS.get(node.op_type, ())
        if at < len(node.input) and node.input[at] in inputs
    }
    frozen = onnx.ModelProto.FromString(model.SerializeToString())
    for info in list(frozen.graph.input):
        if info.name in constant:
            frozen.graph.input.remove(info)
            frozen.graph.initializer.append(numpy_helper.from_array(inputs[info.name], info.name))
    return frozen


def _in_scope(model: onnx.ModelProto, inputs: Values, expected: Values) -> bool:
    """Static shapes, something in float, rank 4 and below, and something left to compute."""
    live = [inputs[info.name] for info in model.graph.input]
    static = all(
        dimension.WhichOneof("value") == "dim_value"
        for i in model.graph.input
        for dimension in i.type.tensor_type.shape.dim
    )
    everything = [*inputs.values(), *expected.values()]
    return (
        bool(live)
        and static
        and any(value.dtype == np.float32 for value in live)
        and all(value.dtype in _DTYPES and value.ndim <= _MAX_RANK for value in everything)
        and all(value.size for value in everything)
    )


def outcome(case: Case, input_layout: Literal["nhwc", "nchw"] = "nhwc") -> tuple[str, str]:
    """``passed``, ``refused`` (by name) or ``wrong``, and why."""
    try:
        found = lowered(case.model, case.inputs, input_layout=input_layout)
    except UnsupportedModelError as refusal:
        return ("refused", str(refusal)) if refusal.operators else ("wrong", f"refused without a name: {refusal}")
    except Exception as exc:  # whatever else comes out is a fault of the lowering, and is counted
        return "wrong", f"{type(exc).__name__}: {exc}"
    difference, output = worst(found, case.expected)
    return (
        ("passed", "")
        if difference < _ROUNDED.get(case.name, TOLERANCE)
        else ("wrong", f"output {output} is off by {difference:.1e}")
    )


def table(outcomes: Mapping[str, tuple[str, str]], operators: Mapping[str, str]) -> str:
    """Passed, refused and wrong by the operator that a test is about, as a Markdown table."""
    rows: dict[str, Counter[str]] = {}
    for name, (verdict, _) in outcomes.items():
        rows.setdefault(operators[name], Counter())[verdict] += 1
    total = Counter(verdict for verdict, _ in outcomes.values())
    lines = ["| operator | passed | refused by name | wrong |", "|---|---:|---:|---:|"]
    for operator, count in [*sorted(rows.items()), ("all", total)]:
        lines.append(f"| {operator} | {count['passed']} | {count['refused']} | {count['wrong']} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, then why each test that did not pass did not."""
    outcomes, operators = {}, {}
    for case in cases():
        outcomes[case.name] = outcome(case)
        expanded = case.name.endswith("_expanded") or "_expanded_" in case.name
        operators[case.name] = (
            "(bodies of operators defined by others)" if expanded else case.model.graph.node[0].op_type
        )
    print(table(outcomes, operators), end="\n\n")
    for name, (verdict, reason) in outcomes.items():
        if verdict != "passed":
            print(f"- {verdict}: {name}: {' '.join(reason.split())[:200]}")


if __name__ == "__main__":
    main()
