"""What a runtime makes of a graph: the operators that it executes, as parts of a learned table.

LiteRT executes what our own lowering leaves after all its passes: affine operators folded into weights, activations
fused, transposes that only change how a tensor is read gone. ONNX Runtime executes its own optimized graph, which
`ort_view` follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecompile.learn import ort_view
from edgecompile.learn.features import CLAMP, Family, Moving, Part, Weighted, parts, softmax_kind
from edgecompile.lower import direct
from edgecompile.lower.direct import ir, layouts
from edgecompile.profiles import Learned
from edgecompile.tables import OperatorKey, files
from edgecompile.types import Precision, RuntimeName

if TYPE_CHECKING:
    import onnx

_NAMES = {
    "LOGISTIC": "Sigmoid", "HARD_SWISH": "HardSwish", "RELU": "Relu", "RELU6": "Clip", "RELU_N1_TO_1": "Clip",
    "RELU_0_TO_1": "Clip", "TANH": "Tanh", "EXP": "Exp", "SQRT": "Sqrt", "RSQRT": "Sqrt", "SQUARE": "Relu",
    "ELU": "Tanh", "ABS": "Relu", "NEG": "Relu", "LOG": "Exp", "ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div",
    "MAXIMUM": "Add", "MINIMUM": "Add", "SQUARED_DIFFERENCE": "Sub", "POW": "Exp", "BILINEAR": "linear",
    "NEAREST_NEIGHBOR": "nearest",
}  # fmt: skip


def of_table(model: onnx.ModelProto, table: Learned) -> tuple[Part, ...]:
    """The parts of a prepared graph as a learned table knows them."""
    return view(model, table.runtime, table.precision, block=table.block, clamps=CLAMP in table.curves)


def view(
    model: onnx.ModelProto,
    runtime: RuntimeName,
    precision: Precision = "fp32",
    *,
    block: int = 0,
    clamps: bool = False,
) -> tuple[Part, ...]:
    """The parts of a prepared graph in one runtime; ``block`` as in `edgecompile.profiles.Learned`, ``clamps`` as in
    `ort_view.view`."""
    if runtime == "tflite":
        graph = direct.placed(model)
        if graph is not None:
            return tuple(part for node in graph.nodes if (part := _of_node(graph, node)) is not None)
    return ort_view.view(model, precision, block=block, clamps=clamps)


def alone(key: OperatorKey, runtime: RuntimeName) -> Part | None:
    """The one part that an operator measured alone stands for; ``None``: the runtime makes several of it, or none."""
    found = parts(key)
    if runtime == "tflite" and isinstance(found[0], Moving):
        found = view(files.onnx_model(key), runtime)
    return found[0] if len(found) == 1 else None


def input_elements(model: onnx.ModelProto) -> int:
    """The elements of a graph's inputs."""
    dims = [value.type.tensor_type.shape.dim for value in model.graph.input]
    return sum(math.prod(int(d.dim_value) for d in shape) for shape in dims)


# --------------------------------------------------------------------------------------------------------- LiteRT


def _of_node(graph: ir.Graph, node: ir.Node) -> Part | None:
    """A node of the lowered graph; ``None`` for one that is not in the file, or that counts with another."""
    op = node.op
    if _is_gate(graph, node):
        return None
    ins, out = [graph.value(name) for name in node.inputs], graph.value(node.outputs[0])
    moved = float(sum(v.elements for v in ins) + sum(graph.value(name).elements for name in node.outputs))
    if isinstance(op, (ir.Conv2D, ir.DepthwiseConv2D)):
        return _convolution(op, ins, out)
    if isinstance(op, ir.FullyConnected):
        columns, depth = ins[1].shape
        return Weighted(family="dense", rows=ins[0].elements // depth, depth=depth, columns=columns)
    if isinstance(op, ir.MatMul):
        *batch, rows, depth = ins[0].shape
        return Weighted(family="product", rows=rows, depth=depth, columns=ins[1].shape[-1], groups=math.prod(batch))
    if isinstance(op, ir.TransposeConv2D):
        work = ins[0].elements * math.prod(ins[1].shape[1:])
        return Moving(kind="ConvTranspose", plain="Slice", elements=float(work))
    if isinstance(op, ir.Relayout):
        return _relayout(ins[0], out, moved)
    if isinstance(op, ir.Pad) and _pads_a_window(graph, node):
        return None
    if isinstance(op, (ir.Transpose, ir.Reshape)):
        return None if isinstance(op, ir.Transpose) else Moving(kind="Reshape", plain="Reshape", elements=moved)
    if isinstance(op, ir.Binary) and any(_gates(graph, name, node) for name in node.inputs):
        return Moving(kind="SiLU", plain="SiLU", elements=2.0 * out.elements)
    kind, plain, moved = _moving(op, ins, out, moved)
    return Moving(kind=kind, plain=plain, elements=max(moved, 1.0))


def _convolution(op: ir.Conv2D | ir.DepthwiseConv2D, ins: Sequence[ir.Value], out: ir.Value) -> Weighted:
    channels, weight = ins[0].shape[1], ins[1].shape
    window, rows = math.prod(weight[2:]), math.prod(out.shape[2:])
    groups = channels // weight[1] if isinstance(op, ir.Conv2D) else 1
    depthwise = isinstance(op, ir.DepthwiseConv2D)
    family: Family = "depthwise" if depthwise else "pointwise" if window == 1 and groups == 1 else "conv"
    return Weighted(
        family=family,
        rows=rows,
        depth=1 if depthwise else weight[1],
        columns=weight[0] // groups,
        window=window,
        stride=max(op.strides),
        groups=groups,
        dilation=max(op.dilations),
        side=min(ins[0].shape[2:]),
    )


def _pads_a_window(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether it is the padding of a convolution or pooling alone: an operator measured alone has that with it."""
    after = graph.only_consumer(node.outputs[0])
    return after is not None and isinstance(after.op, (ir.Conv2D, ir.DepthwiseConv2D, ir.Pool2D))


def _is_gate(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether it is the sigmoid of ``x * sigmoid(x)``, which is one table in INT8, and counted as one always."""
    after = graph.only_consumer(node.outputs[0])
    return after is not None and _gates(graph, node.outputs[0], after)


def _gates(graph: ir.Graph, name: str, product: ir.Node) -> bool:
    gate = graph.producer(name)
    return (
        gate is not None
        and gate.op == ir.Unary(kind="LOGISTIC")
        and isinstance(product.op, ir.Binary)
        and product.op.kind == "MUL"
        and gate.inputs[0] in product.inputs
        and graph.only_consumer(name) is product
    )


def _relayout(before: ir.Value, after: ir.Value, moved: float) -> Moving | None:
    """A transposition, unless the elements keep their order in memory."""
    if layouts.same_order(before.shape, before.layout, after.layout):
        return None
    real = [axis for axis in after.layout if before.shape[axis] > 1]
    last = [axis for axis in before.layout if before.shape[axis] > 1][-1]
    return Moving(kind=f"Transpose {'outer' if real[-1] == last else 'inner'}", plain="Transpose", elements=moved)


def _moving(op: ir.Op, ins: Sequence[ir.Value], out: ir.Value, moved: float) -> tuple[str, str, float]:
    """The curve of a node, the one to take without it, and the elements."""
    name = type(op).__name__
    if isinstance(op, ir.Unary):
        name = _NAMES.get(op.kind, op.kind)
    elif isinstance(op, ir.Binary):
        plain = _NAMES.get(op.kind, "Add")
        return f"{plain} {_operand(ins)}", plain, moved
    elif isinstance(op, ir.Pool2D):
        plain = "MaxPool" if op.kind == "MAX" else "AveragePool"
        work = float(ins[0].elements + out.elements * math.prod(op.kernel))
        return f"{plain} {math.prod(op.kernel)}/{math.prod(op.strides)}", plain, work
    elif isinstance(op, ir.Reduce):
        return f"ReduceMean {_axes(op, ins[0])}", "ReduceMean", moved
    elif isinstance(op, ir.Concat):
        return f"Concat {min(4, len(ins))}", "Concat", moved
    elif isinstance(op, ir.Resize):
        return f"Resize {_NAMES[op.kind]}", f"Resize {_NAMES[op.kind]}", moved
    elif name == "Softmax":
        return softmax_kind(ins[0].shape), name, moved
    name = {"Split": "Slice", "Gather": "Slice", "PRelu": "LeakyRelu", "SpaceToDepth": "DepthToSpace"}.get(name, name)
    return name, name, moved


def _operand(ins: Sequence[ir.Value]) -> str:
    if any(value.data is not None for value in ins):
        return "by constant"
    return "of two" if ins[0].elements == ins[1].elements else "by channel"


def _axes(op: ir.Reduce, value: ir.Value) -> str:
    axes = {axis % value.rank for axis in op.axes}
    if value.rank == 4 and axes == {2, 3}:
        return "maps"
    return "rows" if axes == {value.layout[-1]} else "columns"
