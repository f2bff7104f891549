"""What a static, shape-inferred ONNX graph asks of a device: fused operators with multiply-accumulates and elements."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError
from edgecompile.types import OperatorClass, OperatorCost

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

_FLOAT_TYPES = (1, 10, 11, 16)  # TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16
#: Where a weighted operator has its weights.
_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_MATRIX_PRODUCTS = {"Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
#: Nodes that cost nothing: runtimes remove them.
_FREE = frozenset({"Constant", "ConstantOfShape", "Identity", "Dropout", "Shape", "Size"})
#: What runtimes compute in the same pass as the operator before it.
#: ``x * gate(x)`` is one activation in most runtimes, whatever the exporter made of it.
_GATED = {"Sigmoid": "SiLU", "HardSigmoid": "HardSwish"}
_CLAMPS = frozenset({"Relu", "Clip"})
_TAKES_CLAMP = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization"})
_TAKES_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TAKES_NORM = frozenset({"Conv", "ConvTranspose", "Gemm"})

_OPERATORS: dict[OperatorClass, str] = {
    "pool": "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool ReduceMean ReduceMax ReduceMin "
    "ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare",
    "activation": "Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Gelu Erf Elu Selu Celu Softplus "
    "Softsign Mish Swish ThresholdedRelu Softmax LogSoftmax Hardmax Shrink",
    "elementwise": "Add Sub Mul Div Mod Pow Sqrt Exp Log Abs Neg Min Max Sum Mean Where Equal Greater GreaterOrEqual "
    "Less LessOrEqual Not And Or Xor Reciprocal Floor Ceil Round Sign Sin Cos Tan BatchNormalization BitShift IsNaN "
    "IsInf QLinearAdd",
    "data": "Reshape Flatten Squeeze Unsqueeze Transpose Concat Split Slice Pad Gather GatherElements GatherND Expand "
    "Tile DepthToSpace SpaceToDepth Resize Upsample Cast CastLike QuantizeLinear DequantizeLinear "
    "DynamicQuantizeLinear ReverseSequence ScatterElements ScatterND Trilu",
}
_CLASS_OF: dict[str, OperatorClass] = {op: name for name, ops in _OPERATORS.items() for op in ops.split()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """Totals of a graph. ``operators`` counts ONNX nodes by type, the most frequent first; ``opset`` is ai.onnx's."""

    opset: int
    parameters: int
    macs: int
    nodes: int
    fused_operators: int
    operators: tuple[tuple[str, int], ...]


def operators(onnx_path: Path) -> tuple[OperatorCost, ...]:
    """The fused operators of a static, shape-inferred ONNX file, in its order.

    BatchNormalization, a constant bias and Relu or Clip count with the operator before them, ``x * sigmoid(x)`` is one
    activation, constants cost nothing.
    MACs count one for a multiplication with its addition; elements are those read and written, weights apart. Raises
    `InputError` when the file is not ONNX, or an operator with MACs has no static shape.
    """
    return _Reader.open(onnx_path).operators()


def summary(onnx_path: Path) -> GraphSummary:
    """The totals of an ONNX file. Raises `InputError` as `operators` does."""
    reader = _Reader.open(onnx_path)
    fused = reader.operators()
    graph = reader.model.graph
    counts = Counter(node.op_type for node in graph.node)
    return GraphSummary(
        opset=next((o.version for o in reader.model.opset_import if o.domain in ("", "ai.onnx")), 0),
        parameters=sum(math.prod(t.dims) for t in graph.initializer if t.data_type in _FLOAT_TYPES),
        macs=sum(operator.macs for operator in fused),
        nodes=len(graph.node),
        fused_operators=len(fused),
        operators=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    )


@dataclass(slots=True, kw_only=True)
class _Reader:
    """One pass over a graph: shapes by name, what is constant, how often each is read, and inputs of gates."""

    model: onnx.ModelProto
    path: Path
    shapes: dict[str, Shape | None] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)
    uses: Counter[str] = field(default_factory=Counter)
    gates: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> _Reader:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        try:
            model = onnx.load(str(path), load_external_data=False)
        except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as exc:
            raise InputError(f"{path} is not an ONNX model, or is damaged: {exc}", remedy="export it again") from exc
        made = {name for node in model.graph.node for name in node.output if name}
        values = (*model.graph.value_info, *model.graph.output)
        if not made <= {v.name for v in values if _static_shape(v.type.tensor_type) is not None}:
            model = _inferred(model, path)
        reader = cls(model=model, path=path)
        reader._survey()
        return reader

    def _survey(self) -> None:
        graph = self.model.graph
        for value in (*graph.input, *graph.value_info, *graph.output):
            self.shapes[value.name] = _static_shape(value.type.tensor_type)
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            self.constants.add(tensor.name)
        for node in graph.node:
            self.uses.update(name for name in node.input if name)
            if node.op_type in ("Constant", "Shape", "Size") or (
                node.input and all(not n or n in self.constants for n in node.input)
            ):
                self.constants.update(node.output)
            if node.op_type in _GATED:
                self.gates[node.output[0]] = node.input[0]
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                self.shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
        self.uses.update(value.name for value in graph.output)

    def operators(self) -> tuple[OperatorCost, ...]:
        found: list[OperatorCost] = []
        producer: dict[str, int] = {}
        for index, node in enumerate(self.model.graph.node):
            if node.op_type in _FREE or all(name in self.constants for name in node.output):
                self._forward(node, producer)
                continue
            gate, host = self._gate(node, producer), self._host(node, found, producer)
            if gate is not None:
                host = gate
                found[host] = replace(found[host], op_type=_GATED[found[host].op_type])
            elif host is not None:
                found[host] = self._absorbed(found[host], node)
            else:
                found.append(self._cost(node, index))
                host = len(found) - 1
            producer.update(dict.fromkeys(node.output, host))
        return tuple(found)

    def _forward(self, node: onnx.NodeProto, producer: dict[str, int]) -> None:
        """What reads an Identity's output reads its input."""
        if node.input and node.input[0] in producer:
            producer.update(dict.fromkeys(node.output, producer[node.input[0]]))

    def _gate(self, node: onnx.NodeProto, producer: dict[str, int]) -> int | None:
        """The Sigmoid or HardSigmoid that makes ``node``, its product with its own input, one activation."""
        if node.op_type != "Mul":
            return None
        for name, other in (tuple(node.input), tuple(reversed(node.input))):
            if self.gates.get(name) == other and self.uses[name] == 1:
                return producer[name]
        return None

    def _host(self, node: onnx.NodeProto, found: Sequence[OperatorCost], producer: dict[str, int]) -> int | None:
        """The operator before ``node`` that computes it in the same pass, if there is one."""
        dynamic = [name for name in node.input if name and name not in self.constants]
        if len(dynamic) != 1 or self.uses[dynamic[0]] != 1 or dynamic[0] not in producer:
            return None
        host = found[producer[dynamic[0]]]
        takers = {"BatchNormalization": _TAKES_NORM, "Add": _TAKES_BIAS}
        takes = _TAKES_CLAMP if node.op_type in _CLAMPS else takers.get(node.op_type, frozenset())
        # A constant of one value a channel is a bias; a larger one is an operand.
        bias = node.op_type != "Add" or self._constant_elements(node) <= max(1, host.out_channels)
        return producer[dynamic[0]] if host.op_type in takes and bias else None

    def _absorbed(self, host: OperatorCost, node: onnx.NodeProto) -> OperatorCost:
        bias = self._constant_elements(node) if node.op_type == "Add" else 0
        return replace(host, weight_elements=host.weight_elements + bias)

    def _constant_elements(self, node: onnx.NodeProto) -> int:
        return sum(self._elements(name) for name in node.input if name in self.constants)

    def _elements(self, name: str) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            log.debug("%s: tensor %r has no static shape and counts as empty", self.path, name)
            return 0
        return math.prod(shape)

    def _shape(self, node: onnx.NodeProto, name: str) -> Shape:
        shape = self.shapes.get(name)
        if shape is None:
            raise InputError(
                f"{self.path}: tensor {name!r} of {node.op_type} {node.name or node.output[0]!r} has no static shape",
                remedy="fix the model's input shapes with --input-shape",
            )
        return shape

    def _cost(self, node: onnx.NodeProto, index: int) -> OperatorCost:
        dynamic = [name for name in node.input if name and name not in self.constants]
        outputs = [name for name in node.output if name]
        op_class = _CLASS_OF.get(node.op_type, "other")
        plain = OperatorCost(
            name=node.name or f"{node.op_type}_{index}",
            op_type=node.op_type,
            op_class=op_class,
            macs=0,
            # What a Reshape or a Gather has as constants are numbers to go by, not tensors that it reads whole.
            weight_elements=self._constant_elements(node) if op_class != "data" else 0,
            input_elements=sum(self._elements(name) for name in dynamic),
            output_elements=sum(self._elements(name) for name in outputs),
            output_shape=self.shapes.get(outputs[0]) or () if outputs else (),
        )
        if node.op_type in _WEIGHT_INPUT:
            return self._convolution(node, plain)
        if node.op_type in _MATRIX_PRODUCTS:
            return self._matrix_product(node, plain)
        if node.op_type in _GATES:
            return self._recurrent(node, plain)
        if node.op_type == "Einsum":
            return replace(plain, op_class="dense", macs=self._einsum_macs(node))
        channels = plain.output_shape[1] if len(plain.output_shape) > 1 else 0
        return replace(plain, in_channels=channels, out_channels=channels) if plain.op_class == "pool" else plain

    def _convolution(self, node: onnx.NodeProto, plain: OperatorCost) -> OperatorCost:
        weight = self._shape(node, node.input[_WEIGHT_INPUT[node.op_type]])
        source, result = self._shape(node, node.input[0]), self._shape(node, node.output[0])
        group = int(_attribute(node, "group", 1))
        transposed = node.op_type == "ConvTranspose"
        in_channels, out_channels = source[1], result[1]
        # A convolution does weight[0].size MACs for each output element, a transposed one for each input element.
        per_element = math.prod(weight[1:])
        return replace(
            plain,
            op_class=_convolution_class(weight[2:], group, in_channels, out_channels),
            macs=math.prod(source if transposed else result) * per_element,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=weight[2:],
            groups=group,
        )

    def _matrix_product(self, node: onnx.NodeProto, plain: OperatorCost) -> OperatorCost:
        left, right = (self._shape(node, node.input[i]) for i in _MATRIX_PRODUCTS[node.op_type])
        result = self._shape(node, node.output[0])
        depth = left[0] if node.op_type == "Gemm" and _attribute(node, "transA", 0) else left[-1]
        columns = result[-1] if len(right) > 1 else 1
        return replace(plain, op_class="dense", macs=math.prod(result) * depth, in_channels=depth, out_channels=columns)

    def _recurrent(self, node: onnx.NodeProto, plain: OperatorCost) -> OperatorCost:
        """Each step multiplies input and state by the gates' matrices: ONNX's W (D, G*H, I) and R (D, G*H, H)."""
        source, weight = self._shape(node, node.input[0]), self._shape(node, node.input[1])
        state = self._shape(node, node.input[2])
        steps_and_batch = source[0] * source[1]
        return replace(
            plain,
            op_class="dense",
            macs=steps_and_batch * (math.prod(weight) + math.prod(state)),
            in_channels=weight[2],
            out_channels=weight[1] // _GATES[node.op_type],
        )

    def _einsum_macs(self, node: onnx.NodeProto) -> int:
        """The product of the sizes of all indices."""
        equation = str(_attribute(node, "equation", "")).replace(" ", "").partition("->")[0]
        sizes: dict[str, int] = {}
        for term, name in zip(equation.split(","), node.input, strict=True):
            shape = self._shape(node, name)
            letters = term.replace("...", "." * max(0, len(shape) - len(term.replace("...", ""))))
            for position, (letter, size) in enumerate(zip(letters, shape, strict=True)):
                key = f".{position}" if letter == "." else letter
                sizes[key] = max(size, sizes.get(key, 1))
        return math.prod(sizes.values())


def _inferred(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as exc:
        raise InputError(f"{path}: the shapes of the model cannot be worked out: {exc}") from exc


def _static_shape(tensor: Any) -> Shape | None:
    if not tensor.HasField("shape"):
        return None
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    return None if None in dims else tuple(int(d) for d in dims if d is not None)


def _convolution_class(kernel: Shape, group: int, in_channels: int, out_channels: int) -> OperatorClass:
    if group > 1 and group == in_channels and out_channels % group == 0:
        return "depthwise"
    return "pointwise" if group == 1 and all(size == 1 for size in kernel) else "conv"


def _attribute(node: onnx.NodeProto, name: str, default: int | str) -> int | str:
    import onnx

    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else int(value)
    return default
