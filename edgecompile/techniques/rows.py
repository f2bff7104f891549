"""A weighted operator as a linear map: rows of its input and output at sampled places, and its weights as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.channels import GraphView

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """How to see one Conv, Gemm or MatMul as ``rows @ matrix + bias``, group by group.

    ``weight`` and ``bias`` name constants (``bias`` is empty where there is none, and may then not be added).
    """

    node: onnx.NodeProto
    weight: str
    bias: str
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def is_convolution(self) -> bool:
        return bool(self.node.op_type == "Conv")

    def matrix(self, weight: Array) -> Array:
        """The weights as (groups, inputs a group, outputs a group)."""
        if not self.is_convolution:
            return (weight.T if self.transposed else weight)[None]
        outputs = weight.shape[0] // self.groups
        return weight.reshape(self.groups, outputs, -1).transpose(0, 2, 1)

    def weights(self, matrix: Array, like: Array) -> Array:
        """The inverse of `matrix`, in the shape and type of ``like``."""
        if not self.is_convolution:
            return np.ascontiguousarray(matrix[0].T if self.transposed else matrix[0]).astype(like.dtype)
        return np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(like.shape)).astype(like.dtype)

    def places(self, output: tuple[int, ...]) -> int:
        """At how many places the operator computes a row of outputs."""
        return int(np.prod(output[2:])) if self.is_convolution else int(np.prod(output[:-1]))

    def outputs(self, array: Array, at: Array) -> Array:
        """Rows (places, output channels) of an output."""
        if not self.is_convolution:
            return np.asarray(array.reshape(-1, array.shape[-1])[at])
        return np.asarray(array[0].reshape(array.shape[1], -1).T[at])

    def inputs(self, array: Array, at: Array, output: tuple[int, ...]) -> Array:
        """Rows (groups, places, inputs a group) of an input: what each output place sees, padding included."""
        if not self.is_convolution:
            return array.reshape(-1, array.shape[-1])[at][None]
        rank = len(self.kernel)
        amounts = [(0, 0), *zip(self.pads[:rank], self.pads[rank:], strict=True)]
        padded = np.pad(array[0], amounts)
        coordinates = np.unravel_index(at, output[2:])
        channels = padded.shape[0]
        rows = np.empty((len(at), channels, *self.kernel), array.dtype)
        for offset in np.ndindex(*self.kernel):
            where = tuple(
                c * s + o * d for c, s, o, d in zip(coordinates, self.strides, offset, self.dilations, strict=True)
            )
            into: Any = (slice(None), slice(None), *offset)
            out_of: Any = (slice(None), *where)
            rows[into] = padded[out_of].T
        return rows.reshape(len(at), self.groups, -1).transpose(1, 0, 2)


def linear(view: GraphView, node: onnx.NodeProto) -> Linear | None:
    """``node`` as a linear map, or ``None`` where it is none of constant weights and batch 1."""
    if node.op_type == "Conv":
        return _convolution(view, node)
    if node.op_type == "Gemm":
        attributes = view.attributes(node)
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if not plain or attributes.get("transA", 0) or node.input[1] not in view.constants:
            return None
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and (bias not in view.constants or view.shapes[bias] != (view.shapes[node.output[0]][-1],)):
            return None
        return Linear(node=node, weight=node.input[1], bias=bias, transposed=bool(attributes.get("transB", 0)))
    if node.op_type == "MatMul" and node.input[1] in view.constants and len(view.shapes[node.input[1]]) == 2:
        return Linear(node=node, weight=node.input[1], bias="")
    return None


def _convolution(view: GraphView, node: onnx.NodeProto) -> Linear | None:
    weight, bias = node.input[1], node.input[2] if len(node.input) > 2 else ""
    if weight not in view.constants or (bias and bias not in view.constants) or view.shapes[node.input[0]][0] != 1:
        return None
    attributes = view.attributes(node)
    kernel = view.shapes[weight][2:]
    ones = (1,) * len(kernel)
    strides, dilations = (_ints(attributes.get(name), ones) for name in ("strides", "dilations"))
    pads = _ints(attributes.get("pads"), (0,) * 2 * len(kernel))
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET", b"VALID", "VALID"):
        return None
    groups = attributes.get("group", 1)
    assert isinstance(groups, int)
    return Linear(
        node=node,
        weight=weight,
        bias=bias,
        groups=groups,
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
    )


def _ints(value: object, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else default
