"""A student's architecture as a torch module that trains, and as an ONNX file that ships.

One list of blocks (`student_family.blocks`) is walked by both. The file has batch normalization folded into the
convolutions before it, in double precision, and holds nothing but convolutions, activations, additions, averages and
one dense layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.student_family import Architecture, Block, Interface, blocks, interface
from edgecompile.techniques.torch_call import torch
from edgecompile.types import Model

if TYPE_CHECKING:
    import onnx
    from torch import Tensor
    from torch.nn import Module as _Base
else:
    _Base = object

Array: TypeAlias = npt.NDArray[Any]
#: Weights and bias of the layer of that name, given the weights' shape.
Weights: TypeAlias = Callable[[str, tuple[int, ...]], tuple[Array, Array]]

#: Below this, activations of newer operator sets are written with older ones.
_CLIP_INPUTS, _HARD_SWISH = 11, 14
_PRODUCER = "edgecompile"
#: The name by which a student gives its last feature map (`StudentNet.forward`).
FEATURES = "student features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a student's file takes over from the original's: the operator set and the format's version."""

    opset: int
    ir_version: int

    @classmethod
    def of(cls, model: Model) -> Header:
        """Read from the prepared file."""
        import onnx

        proto = onnx.load(str(model.path), load_external_data=False)
        opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 17)
        return cls(opset=opset, ir_version=proto.ir_version)


class StudentNet(_Base):  # type: ignore[misc]
    """A net of the family; made by `net` only. Maps the original's input by name, N x C x H x W float32 of any N, to
    the original's output by name, N x classes."""

    def _build(self, architecture: Architecture, face: Interface, header: Header) -> None:
        nn = torch.nn
        self.architecture, self.face, self.header = architecture, face, header
        self._blocks = blocks(architecture, face)
        self.convs, self.norms, self.gates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for block in self._blocks:
            for conv in block.convs:
                self.convs[_slot(conv.name)] = nn.Conv2d(
                    conv.inputs, conv.outputs, conv.kernel, conv.stride, groups=conv.groups, bias=False
                )
                self.norms[_slot(conv.name)] = nn.BatchNorm2d(conv.outputs)
            for name, inputs, outputs in _gate_layers(block):
                self.gates[_slot(name)] = nn.Conv2d(inputs, outputs, 1)
        self.classifier = nn.Linear(self._blocks[-1].convs[-1].outputs, face.classes)

    def _initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for conv in (*self.convs.values(), *self.gates.values()):
                fan_out = conv.out_channels * conv.kernel_size[0] ** 2 // conv.groups
                conv.weight.normal_(0, (2 / fan_out) ** 0.5, generator=generator)
                if conv.bias is not None:
                    conv.bias.zero_()
            self.classifier.weight.normal_(0, 0.01, generator=generator)
            self.classifier.bias.zero_()

    def forward(self, inputs: Mapping[str, Tensor], collect: Collection[str] = ()) -> dict[str, Tensor]:
        """The logits by name; with ``FEATURES`` in ``collect`` also what is averaged before them."""
        x = inputs[self.face.input]
        for block in self._blocks:
            x = self._block(block, x)
        found = {self.face.output: self.classifier(x.mean(dim=(2, 3)))}
        return {**found, FEATURES: x} if FEATURES in collect else found

    def _block(self, block: Block, x: Tensor) -> Tensor:
        functional, y = torch.nn.functional, x
        for conv in block.convs:
            if block.gate and conv is block.convs[-1]:
                y = y * self._gate(block, y)
            top, left, bottom, right = conv.pads
            module = self.convs[_slot(conv.name)]
            same = top == bottom == left == right
            padded = y if same else functional.pad(y, (left, right, top, bottom))
            y = functional.conv2d(
                padded, module.weight, None, conv.stride, top if same else 0, 1, conv.groups
            )  # fmt: skip
            y = _activated(self.norms[_slot(conv.name)](y), conv.activation)
        return x + y if block.adds else y

    def _gate(self, block: Block, y: Tensor) -> Tensor:
        functional = torch.nn.functional
        (first, _, _), (second, _, _) = _gate_layers(block)
        squeezed = functional.relu(self.gates[_slot(first)](y.mean(dim=(2, 3), keepdim=True)))
        gate: Tensor = functional.hardsigmoid(self.gates[_slot(second)](squeezed))
        return gate


@cache
def _module_class() -> Any:
    """`StudentNet` as a ``torch.nn.Module``: made here so that importing this file does not import torch."""
    return type("StudentNet", (StudentNet, torch.nn.Module), {"__module__": __name__, "__doc__": StudentNet.__doc__})


def net(architecture: Architecture, model: Model, seed: int = 0) -> StudentNet:
    """A net with fresh weights that depend on ``seed`` only, in training mode, with batch normalization.

    Raises `UnsupportedModelError` for a ``model`` that can have no student.
    """
    return build(architecture, interface(model), Header.of(model), seed)


def build(architecture: Architecture, face: Interface, header: Header, seed: int = 0) -> StudentNet:
    """As `net`, for where there is no model at hand, only what is known of it."""
    made: StudentNet = _module_class()()
    made._build(architecture, face, header)
    made._initialize(seed)
    return made


def _slot(name: str) -> str:
    return name.replace(".", "_")


def _gate_layers(block: Block) -> tuple[tuple[str, int, int], ...]:
    """Name, inputs and outputs of a gate's two 1x1 convolutions."""
    if not block.gate:
        return ()
    last = block.convs[-1]
    name = last.name.rpartition(".")[0]
    return (f"{name}.squeeze", last.inputs, block.gate), (f"{name}.excite", block.gate, last.inputs)


def _activated(y: Tensor, activation: str) -> Tensor:
    functions = torch.nn.functional
    known = {"relu": functions.relu, "relu6": functions.relu6, "hardswish": functions.hardswish}
    found: Tensor = known[activation](y) if activation else y
    return found


# ----------------------------------------------------------------------------------------------------- the file


def to_onnx(module: StudentNet) -> onnx.ModelProto:
    """The net as an ONNX graph for one sample, checked and shape-inferred; equal weights give equal bytes.

    Its outputs are the module's in evaluation mode to within rounding (1e-4 of logits of the order of ten).
    """
    return _written(module.architecture, module.face, module.header, lambda name, shape: _folded(module, name))


def skeleton(architecture: Architecture, model: Model) -> onnx.ModelProto:
    """The file that a student would ship as, with weights of zero: what a latency table has to know of it."""
    return _written(
        architecture, interface(model), Header.of(model),
        lambda name, shape: (np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)),
    )  # fmt: skip


def _folded(module: StudentNet, name: str) -> tuple[Array, Array]:
    slot = _slot(name)
    if slot not in module.convs:
        layer = module.classifier if name == "classifier" else module.gates[slot]
        return _array(layer.weight), _array(layer.bias)
    norm = module.norms[slot]
    factor = _array(norm.weight).astype(float) / np.sqrt(_array(norm.running_var).astype(float) + norm.eps)
    weight = _array(module.convs[slot].weight) * factor[:, None, None, None]
    bias = _array(norm.bias) - _array(norm.running_mean) * factor
    return weight.astype(np.float32), bias.astype(np.float32)


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found


def _written(architecture: Architecture, face: Interface, header: Header, weights: Weights) -> onnx.ModelProto:
    import onnx
    from onnx import TensorProto, helper

    emitter = _Emitter(weights=weights, opset=header.opset, taken={face.input, face.output})
    x = face.input
    for block in blocks(architecture, face):
        x = emitter.block(block, x)
    emitter.classify(x, blocks(architecture, face)[-1].convs[-1].outputs, face)
    image = helper.make_tensor_value_info(
        face.input, TensorProto.FLOAT, [1, face.channels, face.height, face.width]
    )  # fmt: skip
    logits = helper.make_tensor_value_info(face.output, TensorProto.FLOAT, [1, face.classes])
    graph = helper.make_graph(emitter.nodes, "student", [image], [logits], emitter.tensors)
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", header.opset)], ir_version=header.ir_version,
        producer_name=_PRODUCER,
    )  # fmt: skip
    onnx.checker.check_model(made)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


@dataclass(slots=True, kw_only=True)
class _Emitter:
    """Writes nodes in order; a node is called like its layer, a tensor like the node that makes it."""

    weights: Weights
    opset: int
    #: The graph's own inputs and outputs, whose names nothing else may have.
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def block(self, block: Block, x: str) -> str:
        y = x
        for conv in block.convs:
            if block.gate and conv is block.convs[-1]:
                y = self._gated(block, y)
            shape = (conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel)
            y = self._weighted(
                "Conv", conv.name, shape, y, kernel_shape=[conv.kernel] * 2, strides=[conv.stride] * 2,
                pads=list(conv.pads), group=conv.groups,
            )  # fmt: skip
            y = self._activated(y, conv.name, conv.activation)
        return self._node("Add", f"{block.convs[0].name.rpartition('.')[0]}.add", [x, y]) if block.adds else y

    def classify(self, x: str, channels: int, face: Interface) -> None:
        pooled = self._node("GlobalAveragePool", "pool", [x])
        flat = self._node("Flatten", "flatten", [pooled], axis=1)
        self._weighted("Gemm", "classifier", (face.classes, channels), flat, output=face.output, transB=1)

    def _gated(self, block: Block, y: str) -> str:
        (first, inputs, inner), (second, _, outputs) = _gate_layers(block)
        name = first.rpartition(".")[0]
        z = self._node("GlobalAveragePool", f"{name}.average", [y])
        z = self._activated(self._weighted("Conv", first, (inner, inputs, 1, 1), z, kernel_shape=[1, 1]), first, "relu")
        z = self._weighted("Conv", second, (outputs, inner, 1, 1), z, kernel_shape=[1, 1])
        z = self._node("HardSigmoid", f"{name}.gate", [z], alpha=1 / 6, beta=0.5)
        return self._node("Mul", f"{name}.scale", [y, z])

    def _activated(self, y: str, name: str, activation: str) -> str:
        if activation == "relu":
            return self._node("Relu", f"{name}.relu", [y])
        if activation == "relu6":
            if self.opset < _CLIP_INPUTS:
                return self._node("Clip", f"{name}.relu6", [y], min=0.0, max=6.0)
            return self._node("Clip", f"{name}.relu6", [y, self._number("zero", 0.0), self._number("six", 6.0)])
        if activation == "hardswish":
            if self.opset >= _HARD_SWISH:
                return self._node("HardSwish", f"{name}.hardswish", [y])
            gate = self._node("HardSigmoid", f"{name}.hardsigmoid", [y], alpha=1 / 6, beta=0.5)
            return self._node("Mul", f"{name}.hardswish", [y, gate])
        return y

    def _weighted(
        self, op_type: str, name: str, shape: tuple[int, ...], x: str, *, output: str = "", **attributes: object
    ) -> str:
        weight, bias = self.weights(name, shape)
        inputs = [x, self._tensor(f"{name}.weight", weight), self._tensor(f"{name}.bias", bias)]
        return self._node(op_type, name, inputs, output=output, **attributes)

    def _number(self, name: str, value: float) -> str:
        known = self._free(name)
        if all(tensor.name != known for tensor in self.tensors):
            self._tensor(name, np.array(value, np.float32))
        return known

    def _tensor(self, name: str, array: Array) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), self._free(name)))
        return self._free(name)

    def _node(self, op_type: str, name: str, inputs: Sequence[str], *, output: str = "", **attributes: object) -> str:
        from onnx import helper

        made = output or self._free(name)
        self.nodes.append(helper.make_node(op_type, list(inputs), [made], name=name, **attributes))
        return made

    def _free(self, name: str) -> str:
        """The name, changed where the graph's inputs or outputs have it."""
        while name in self.taken:
            name = f"student.{name}"
        return name


__all__ = ["FEATURES", "Header", "StudentNet", "build", "net", "skeleton", "to_onnx"]
