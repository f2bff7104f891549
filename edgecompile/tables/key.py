"""What decides the latency of a single fused operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Activation: TypeAlias = Literal["", "Relu", "Clip", "HardSwish", "SiLU"]

#: Operators with constant weights, which a key describes by its numbers.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Operators whose windows a key's ``kernel``, ``strides``, ``pads`` and ``dilations`` describe.
WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKey:
    """A fused operator: an ONNX operator with its bias and the activation behind it.

    ``in_shape`` is the first operand's shape, batch included (NCHW), ``other_shapes`` those of the other operands;
    ``constant_operands`` says that those are constants. ``out_channels`` is what Conv, ConvTranspose, Gemm and MatMul
    with constant weights make; it is 0 for all others. ``attributes`` are the node's other attributes, and its small
    constant operands (``#1`` is the second), each as JSON; ``opset`` is the one that they are meant for. ``out_shape``
    is given where no single operator can be made, so that the bytes it moves are known.
    """

    op_type: str
    in_shape: Shape
    out_channels: int = 0
    kernel: Shape = ()
    strides: Shape = ()
    pads: Shape = ()
    dilations: Shape = ()
    groups: int = 1
    activation: Activation = ""
    other_shapes: tuple[Shape, ...] = ()
    constant_operands: bool = False
    attributes: tuple[tuple[str, str], ...] = ()
    out_shape: Shape = ()
    opset: int = 17

    @property
    def in_shapes(self) -> tuple[Shape, ...]:
        """The shapes of all operands that are no weights."""
        return (self.in_shape, *self.other_shapes)

    @property
    def weight_shape(self) -> Shape:
        """The weights' shape in ONNX's layout; empty where there are none."""
        if not self.out_channels:
            return ()
        if self.op_type == "Conv":
            return (self.out_channels, self.in_shape[1] // self.groups, *self.kernel)
        if self.op_type == "ConvTranspose":
            return (self.in_shape[1], self.out_channels // self.groups, *self.kernel)
        return (self.in_shape[-1], self.out_channels)

    @property
    def elements(self) -> int:
        """How many elements are read and written, weights included, as far as the key tells."""
        written = math.prod(self.out_shape) if self.out_shape else math.prod(self.in_shape)
        weights = math.prod(self.weight_shape) if self.weight_shape else 0
        return sum(math.prod(shape) for shape in self.in_shapes) + written + weights
