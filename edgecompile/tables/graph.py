"""The fused operators of a prepared ONNX graph as keys of a latency table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError
from edgecompile.tables.key import WINDOWED, Activation, OperatorKey, Shape

if TYPE_CHECKING:
    import onnx

#: What costs nothing, or what runtimes fold into the operator before.
_FREE = frozenset({"Constant", "ConstantOfShape", "Identity", "Dropout", "Shape", "Size"})
_GATED: dict[str, Activation] = {"Sigmoid": "SiLU", "HardSigmoid": "HardSwish"}
_SINGLE: dict[str, Activation] = {"Relu": "Relu", "Clip": "Clip", "HardSwish": "HardSwish"}
_TAKES_ACTIVATION = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_TAKES_CLAMP = _TAKES_ACTIVATION | {"Add", "Sub", "Mul"}
_NUMBERS = ("kernel_shape", "strides", "pads", "dilations", "group")
#: Constant operands of more elements are data, of fewer are numbers that say what an operator does.
_FEW = 16


def keys_of(model: onnx.ModelProto, shapes: Mapping[str, Shape] | None = None) -> tuple[tuple[str, OperatorKey], ...]:
    """The fused operators of a static, shape-inferred graph, in its order: (the node's name, its key).

    ``shapes`` are those of tensors and constants in a narrower variant of the graph, by name: what is not named there
    is as in the graph. Depthwise convolutions stay depthwise.

    Relu, Clip, HardSwish and ``x * sigmoid(x)`` belong to the operator directly before them, as does a constant bias.
    Raises `InputError` when an operator's tensors have no static shape.
    """
    return _Reader.of(model, shapes or {}).keys()


@dataclass(slots=True, kw_only=True)
class _Reader:
    """One pass over a graph."""

    graph: onnx.GraphProto
    opset: int
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    taken: set[str] = field(default_factory=set)
    #: How many channels each tensor has in the graph itself.
    channels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> _Reader:
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 17)
        reader = cls(graph=model.graph, opset=opset)
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            if all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim):
                reader.shapes[value.name] = tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)
        for tensor in model.graph.initializer:
            reader._constant(tensor.name, tensor)
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                reader._constant(node.output[0], node.attribute[0].t)
            for name in filter(None, node.input):
                reader.readers.setdefault(name, []).append(node)
                reader.uses[name] += 1
        reader.uses.update(value.name for value in model.graph.output)
        reader.channels = {name: shape[1] for name, shape in reader.shapes.items() if len(shape) > 1}
        reader.shapes.update(shapes)
        return reader

    def _constant(self, name: str, tensor: onnx.TensorProto) -> None:
        self.constants[name] = tensor
        self.shapes[name] = tuple(tensor.dims)

    def keys(self) -> tuple[tuple[str, OperatorKey], ...]:
        found = []
        for index, node in enumerate(self.graph.node):
            if node.op_type in _FREE or node.output[0] in self.taken or self._is_constant(node):
                continue
            name = node.name or f"{node.op_type}_{index}"
            end = self._behind_bias(node) if node.op_type in _TAKES_ACTIVATION else node.output[0]
            found.append((name, replace(self._key(node), activation=self._activation(node, end))))
        return tuple(found)

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        return bool(node.input) and all(not name or name in self.constants for name in node.input)

    def _shape(self, node: onnx.NodeProto, name: str) -> Shape:
        if name not in self.shapes:
            raise InputError(
                f"tensor {name!r} of {node.op_type} {node.name or node.output[0]!r} has no static shape",
                remedy="fix the model's input shapes with --input-shape",
            )
        return self.shapes[name]

    # ------------------------------------------------------------------------------------------------- what is fused

    def _only_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.readers.get(name, [])
        return readers[0] if self.uses[name] == 1 and readers else None

    def _behind_bias(self, node: onnx.NodeProto) -> str:
        """The tensor after a constant bias, where one directly follows."""
        after = self._only_reader(node.output[0])
        if after is None or after.op_type != "Add":
            return str(node.output[0])
        other = [name for name in after.input if name in self.constants]
        if len(other) != 1 or self._elements(other[0]) > max(self._shape(node, node.output[0])):
            return str(node.output[0])
        self.taken.add(after.output[0])
        return str(after.output[0])

    def _elements(self, name: str) -> int:
        size = 1
        for dim in self.shapes[name]:
            size *= dim
        return size

    def _activation(self, node: onnx.NodeProto, end: str) -> Activation:
        """The activation that directly follows the tensor ``end``; its nodes are taken from the graph."""
        after = self._only_reader(end)
        allowed = ("Relu", "Clip", "HardSwish") if node.op_type in _TAKES_ACTIVATION else ("Relu", "Clip")
        if after is not None and node.op_type in _TAKES_CLAMP and after.op_type in allowed:
            self.taken.add(after.output[0])
            return _SINGLE[after.op_type]
        if node.op_type in _TAKES_ACTIVATION and self.uses[end] == 2:
            return self._gate(end)
        return ""

    def _gate(self, end: str) -> Activation:
        """``x * sigmoid(x)`` on the tensor ``end``."""
        readers = self.readers.get(end, [])
        gate = next((reader for reader in readers if reader.op_type in _GATED), None)
        product = next((reader for reader in readers if reader.op_type == "Mul"), None)
        if gate is None or product is None or gate.output[0] not in product.input or self.uses[gate.output[0]] != 1:
            return ""
        self.taken |= {gate.output[0], product.output[0]}
        return _GATED[gate.op_type]

    # ---------------------------------------------------------------------------------------------------- one operator

    def _key(self, node: onnx.NodeProto) -> OperatorKey:
        attributes = _attributes(node)
        dynamic = [name for name in node.input if name and name not in self.constants]
        first = dynamic[0] if dynamic else node.input[0]
        key = OperatorKey(op_type=node.op_type, in_shape=self._shape(node, first), opset=self.opset)
        if node.op_type in WINDOWED:
            key = self._with_window(node, key, attributes)
        if node.op_type in _TAKES_ACTIVATION and len(node.input) > 1 and node.input[1] in self.constants:
            return replace(key, out_channels=self._out_channels(node, attributes), in_shape=self._rows(key, attributes))
        numbers = [(i, n) for i, n in enumerate(node.input) if n in self.constants and self._is_number(node, n)]
        data = [n for n in node.input if n in self.constants and not self._is_number(node, n)]
        texts = {name: json.dumps(value) for name, value in attributes.items() if name not in _used(node)}
        texts |= {f"#{position}": self._as_text(name) for position, name in numbers}
        others = [*dynamic[1:], *data]
        return replace(
            key,
            other_shapes=tuple(self._shape(node, name) for name in others),
            constant_operands=bool(data) and len(dynamic) == 1,
            attributes=tuple(sorted(texts.items())),
            out_shape=self.shapes.get(node.output[0], ()),
        )

    def _with_window(self, node: onnx.NodeProto, key: OperatorKey, attributes: dict[str, Any]) -> OperatorKey:
        kernel = tuple(attributes.get("kernel_shape") or self._shape(node, node.input[1])[2:])
        rank = len(kernel)
        pads = tuple(attributes.get("pads") or (0,) * (2 * rank))
        if attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
            pads = tuple(size // 2 for size in kernel) * 2  # near enough: the same number of windows
        return replace(
            key,
            kernel=kernel,
            strides=tuple(attributes.get("strides") or (1,) * rank),
            pads=pads,
            dilations=tuple(attributes.get("dilations") or (1,) * rank),
            groups=self._groups(node, int(attributes.get("group", 1))),
        )

    def _groups(self, node: onnx.NodeProto, groups: int) -> int:
        depthwise = groups > 1 and groups == self.channels.get(node.input[0])
        return self._shape(node, node.input[0])[1] if depthwise else groups

    def _out_channels(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> int:
        shape = self._shape(node, node.input[1])
        if node.op_type == "ConvTranspose":
            return shape[1] * self._groups(node, int(attributes.get("group", 1)))
        if node.op_type == "Conv" or attributes.get("transB"):
            return shape[0]
        return shape[-1]

    def _rows(self, key: OperatorKey, attributes: dict[str, Any]) -> Shape:
        return tuple(reversed(key.in_shape)) if attributes.get("transA") else key.in_shape

    def _is_number(self, node: onnx.NodeProto, name: str) -> bool:
        small = self._elements(name) <= _FEW and len(self.shapes[name]) <= 1
        return small and (self.constants[name].data_type != 1 or not self.shapes[name] or node.op_type in ("Resize",))

    def _as_text(self, name: str) -> str:
        from onnx import numpy_helper

        values = numpy_helper.to_array(self.constants[name])
        return json.dumps([str(values.dtype), list(values.shape), values.ravel().tolist()])


def _used(node: onnx.NodeProto) -> tuple[str, ...]:
    """The attributes that a key's own fields carry."""
    return _NUMBERS if node.op_type in WINDOWED else ()


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes that can be written as JSON."""
    from onnx import helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            found[attribute.name] = value.decode()
        elif isinstance(value, (int, float)):
            found[attribute.name] = value
        elif attribute.ints or attribute.floats:
            found[attribute.name] = list(value)
    return found
