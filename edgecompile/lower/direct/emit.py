"""Turns placed IR operators into TFLite operators: logical axes become physical ones here, and only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from edgecompile.lower.direct import ir, layouts
from edgecompile.lower.direct.build import RefusedError
from edgecompile.lower.direct.ir import Array, Graph, Layout, Node, Op, Shape, Value, inverse
from edgecompile.lower.direct.versions import version
from edgecompile.lower.direct.write import TENSOR_TYPES, File, Operator, Tensor

_ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
_TRANSPOSE_RANK = 6
_PADDINGS = {"SAME": 0, "VALID": 1}


class Emitter:
    """Fills a `File` from a placed graph, node by node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.file = File()
        #: What turned out only now to be beyond a kernel: the node's origin, and why.
        self.refusals: list[tuple[tuple[str, str], str]] = []
        self._index: dict[str, int] = {}
        self._helpers: dict[tuple[str, Shape, bytes], int] = {}

    def run(self) -> File:
        for name in self.graph.inputs:
            self.file.inputs.append((name, self.tensor(name)))
        for node in self.graph.nodes:
            try:
                _EMIT[type(node.op)](self, node.op, node, self._values(node.inputs), self._values(node.outputs))
            except RefusedError as exc:
                self.refusals.append((node.origin, str(exc)))
        for name, value in self.graph.outputs:
            self._output(name, self.graph.values[value])
        return self.file

    def _output(self, name: str, value: Value) -> None:
        """Let an output be a tensor of its own, which has its name: not an input, a constant or another output."""
        index = self.tensor(value.name)
        taken = {i for _, i in [*self.file.inputs, *self.file.outputs]}
        if index in taken or self.file.tensors[index].data is not None:
            shape = value.physical_shape
            new = self.intermediate(name, shape, value.dtype)
            self.reshape(index, new, shape)
            index = new
        elif self.file.tensors[index].name != name:
            self.file.tensors[index] = replace(self.file.tensors[index], name=self._free(name))
        self.file.outputs.append((self.file.tensors[index].name, index))

    def _values(self, names: Sequence[str]) -> list[Value]:
        return [self.graph.values[name] for name in names]

    def tensor(self, name: str) -> int:
        """The index of a value's tensor in the file."""
        if name not in self._index:
            value = self.graph.values[name]
            data = None if value.data is None else np.transpose(value.data, value.layout)
            self._index[name] = self._add(Tensor(name=name, shape=value.physical_shape, dtype=value.dtype, data=data))
        return self._index[name]

    def alias(self, new: str, old: str) -> None:
        """Let two values of the same bytes and shape be one tensor."""
        self._index[new] = self.tensor(old)

    def helper(self, data: Array | Sequence[int], dtype: str = "int32") -> int:
        """The index of a constant that an operator needs beside its operands; equal ones are shared."""
        array = np.array(data, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._helpers:
            name = f"constant/{len(self._helpers)}"
            while name in self.graph.values:
                name += "'"
            self._helpers[key] = self._add(Tensor(name=name, shape=array.shape, dtype=dtype, data=array))
        return self._helpers[key]

    def intermediate(self, stem: str, shape: Shape, dtype: str) -> int:
        """The index of a new tensor that stands for no value of the graph."""
        return self._add(Tensor(name=self._free(stem), shape=shape, dtype=dtype))

    def _free(self, stem: str) -> str:
        used = {tensor.name for tensor in self.file.tensors}
        name = stem
        while name in used:
            name += "'"
        return name

    def _add(self, tensor: Tensor) -> int:
        self.file.tensors.append(tensor)
        return len(self.file.tensors) - 1

    def operator(
        self,
        builtin: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options_name: str = "",
        **options: Any,
    ) -> None:
        beyond = [f"{key} {v}" for key, v in options.items() if isinstance(v, int) and not -(1 << 31) <= v < 1 << 31]
        if beyond:
            raise RefusedError(f"a .tflite file holds no {beyond[0]}")
        operands = [self.file.tensors[index] for index in inputs]
        number = version(builtin, [t.dtype for t in operands], [t.shape for t in operands], options)
        self.file.operators.append(
            Operator(
                builtin=builtin,
                version=number,
                options_name=options_name,
                options=options,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
            )
        )

    def reshape(self, x: int, y: int, shape: Shape) -> None:
        """A RESHAPE between two tensors."""
        self.operator("RESHAPE", [x, self.helper(shape)], [y], "ReshapeOptions", newShape=np.array(shape, np.int32))

    def simple(self, builtin: str, node: Node, options_name: str = "", **options: Any) -> None:
        """An operator with the node's own operands and results."""
        inputs, outputs = [self.tensor(n) for n in node.inputs], [self.tensor(n) for n in node.outputs]
        self.operator(builtin, inputs, outputs, options_name, **options)

    def with_helpers(
        self,
        builtin: str,
        node: Node,
        helpers: Sequence[int],
        options_name: str = "",
        **options: Any,
    ) -> None:
        """An operator with the node's operands, then helper constants."""
        inputs = [*(self.tensor(n) for n in node.inputs), *helpers]
        self.operator(builtin, inputs, [self.tensor(n) for n in node.outputs], options_name, **options)


_Emit: TypeAlias = Callable[[Emitter, Any, Node, list[Value], list[Value]], None]


def _physical(axis: int, layout: Layout) -> int:
    return layout.index(axis)


def _by_axis(values: Sequence[Any], layout: Layout) -> list[Any]:
    """Per-axis attributes in memory order."""
    return [values[axis] for axis in layout]


# --------------------------------------------------------------------------------------------------- convolutions


def _window(op: ir.Conv2D | ir.DepthwiseConv2D) -> dict[str, int]:
    return {
        "padding": _PADDINGS[op.padding],
        "strideH": op.strides[0],
        "strideW": op.strides[1],
        "dilationHFactor": op.dilations[0],
        "dilationWFactor": op.dilations[1],
        "fusedActivationFunction": _ACTIVATIONS[op.activation],
    }


def _conv(e: Emitter, op: ir.Conv2D, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("CONV_2D", node, "Conv2DOptions", **_window(op))


def _depthwise(e: Emitter, op: ir.DepthwiseConv2D, node: Node, ins: list[Value], outs: list[Value]) -> None:
    multiplier = ins[1].shape[0] // ins[0].shape[1]
    e.simple("DEPTHWISE_CONV_2D", node, "DepthwiseConv2DOptions", depthMultiplier=multiplier, **_window(op))


def _transpose_conv(e: Emitter, op: ir.TransposeConv2D, node: Node, ins: list[Value], outs: list[Value]) -> None:
    x, w, b = (e.tensor(v.name) for v in ins)
    shape = e.helper(outs[0].physical_shape)
    e.operator(
        "TRANSPOSE_CONV",
        [shape, w, x, b],
        [e.tensor(node.outputs[0])],
        "TransposeConvOptions",
        padding=_PADDINGS[op.padding],
        strideH=op.strides[0],
        strideW=op.strides[1],
    )


def _fully_connected(e: Emitter, op: ir.FullyConnected, node: Node, ins: list[Value], outs: list[Value]) -> None:
    keep = ins[0].rank != 2
    e.simple(
        "FULLY_CONNECTED",
        node,
        "FullyConnectedOptions",
        keepNumDims=keep,
        fusedActivationFunction=_ACTIVATIONS[op.activation],
    )


def _matmul(e: Emitter, op: ir.MatMul, node: Node, ins: list[Value], outs: list[Value]) -> None:
    adjoint = ins[1].layout[-1] == ins[1].rank - 2
    e.simple("BATCH_MATMUL", node, "BatchMatMulOptions", adjX=False, adjY=adjoint)


def _pool(e: Emitter, op: ir.Pool2D, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple(
        f"{op.kind}_POOL_2D",
        node,
        "Pool2DOptions",
        padding=_PADDINGS[op.padding],
        strideH=op.strides[0],
        strideW=op.strides[1],
        filterHeight=op.kernel[0],
        filterWidth=op.kernel[1],
        fusedActivationFunction=_ACTIVATIONS[op.activation],
    )


# ---------------------------------------------------------------------------------------------------- elementwise

#: Options and version of the unary operators that have options, or are newer than version 1.
_UNARY = {
    "HARD_SWISH": "HardSwishOptions",
    "ABS": "AbsOptions",
    "NEG": "NegOptions",
    "EXP": "ExpOptions",
    "SQUARE": "SquareOptions",
    "COS": "CosOptions",
    "LOGICAL_NOT": "LogicalNotOptions",
}
_BINARY = {
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "POW": "PowOptions",
    "SQUARED_DIFFERENCE": "SquaredDifferenceOptions",
    "FLOOR_DIV": "FloorDivOptions",
    "FLOOR_MOD": "FloorModOptions",
    "LOGICAL_AND": "LogicalAndOptions",
    "LOGICAL_OR": "LogicalOrOptions",
}
_WITH_ACTIVATION = frozenset({"ADD", "SUB", "MUL", "DIV"})
_COMPARE = {
    "EQUAL": "EqualOptions",
    "NOT_EQUAL": "NotEqualOptions",
    "LESS": "LessOptions",
    "LESS_EQUAL": "LessEqualOptions",
    "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
}


def _unary(e: Emitter, op: ir.Unary, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple(op.kind, node, _UNARY.get(op.kind, ""))


def _leaky_relu(e: Emitter, op: ir.LeakyRelu, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("LEAKY_RELU", node, "LeakyReluOptions", alpha=op.alpha)


def _gelu(e: Emitter, op: ir.Gelu, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("GELU", node, "GeluOptions", approximate=op.approximate)


def _prelu(e: Emitter, op: ir.PRelu, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("PRELU", node)


def _binary(e: Emitter, op: ir.Binary, node: Node, ins: list[Value], outs: list[Value]) -> None:
    options = {"fusedActivationFunction": _ACTIVATIONS[op.activation]} if op.kind in _WITH_ACTIVATION else {}
    e.simple(op.kind, node, _BINARY[op.kind], **options)


def _compare(e: Emitter, op: ir.Compare, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple(op.kind, node, _COMPARE[op.kind])


def _select(e: Emitter, op: ir.Select, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("SELECT_V2", node, "SelectV2Options")


def _cast(e: Emitter, op: ir.Cast, node: Node, ins: list[Value], outs: list[Value]) -> None:
    types = {"inDataType": TENSOR_TYPES[ins[0].dtype], "outDataType": TENSOR_TYPES[op.dtype]}
    e.simple("CAST", node, "CastOptions", **types)


def _softmax(e: Emitter, op: ir.Softmax, node: Node, ins: list[Value], outs: list[Value]) -> None:
    if op.log:
        e.simple("LOG_SOFTMAX", node, "LogSoftmaxOptions")
    else:
        e.simple("SOFTMAX", node, "SoftmaxOptions", beta=1.0)


# ------------------------------------------------------------------------------------------------------ reductions


def _reduce(e: Emitter, op: ir.Reduce, node: Node, ins: list[Value], outs: list[Value]) -> None:
    axes = sorted(_physical(axis, ins[0].layout) for axis in op.axes)
    e.with_helpers(op.kind, node, [e.helper(axes)], "ReducerOptions", keepDims=op.keepdims)


def _arg_reduce(e: Emitter, op: ir.ArgReduce, node: Node, ins: list[Value], outs: list[Value]) -> None:
    axis = e.helper(_physical(op.axis, ins[0].layout))  # type: ignore[arg-type]
    options = "ArgMaxOptions" if op.kind == "ARG_MAX" else "ArgMinOptions"
    e.with_helpers(op.kind, node, [axis], options, outputType=TENSOR_TYPES["int64"])


def _top_k(e: Emitter, op: ir.TopK, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.with_helpers("TOPK_V2", node, [e.helper(op.k)], "TopKV2Options")  # type: ignore[arg-type]


def _cumsum(e: Emitter, op: ir.CumSum, node: Node, ins: list[Value], outs: list[Value]) -> None:
    axis = e.helper(_physical(op.axis, ins[0].layout))  # type: ignore[arg-type]
    e.with_helpers("CUMSUM", node, [axis], "CumsumOptions", exclusive=op.exclusive, reverse=op.reverse)


# --------------------------------------------------------------------------------------------------- data movement


def _concat(e: Emitter, op: ir.Concat, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("CONCATENATION", node, "ConcatenationOptions", axis=_physical(op.axis, ins[0].layout))


def _split(e: Emitter, op: ir.Split, node: Node, ins: list[Value], outs: list[Value]) -> None:
    place = _physical(op.axis, ins[0].layout)
    x, parts = e.tensor(node.inputs[0]), [e.tensor(name) for name in node.outputs]
    if len(set(op.sizes)) == 1:
        axis = e.helper(place)  # type: ignore[arg-type]
        e.operator("SPLIT", [axis, x], parts, "SplitOptions", numSplits=len(parts))
        return
    # XNNPACK takes SLICE and not SPLIT_V.
    begin = [0] * ins[0].rank
    for part, value in zip(parts, outs, strict=True):
        e.operator("SLICE", [x, e.helper(begin), e.helper(value.physical_shape)], [part], "SliceOptions")
        begin[place] += value.physical_shape[place]


def _slice(e: Emitter, op: ir.Slice, node: Node, ins: list[Value], outs: list[Value]) -> None:
    layout = ins[0].layout
    begin, size, strides = (_by_axis(v, layout) for v in (op.begin, op.size, op.strides))
    if all(stride == 1 for stride in strides):
        e.with_helpers("SLICE", node, [e.helper(begin), e.helper(size)], "SliceOptions")
        return
    # An end before the first element, which a negative stride needs for a whole axis, can only be said by the mask.
    end, mask = [], 0
    for i, (b, n, s) in enumerate(zip(begin, size, strides, strict=True)):
        last = b + (n - 1) * s
        end.append(last + (1 if s > 0 else -1))
        if end[-1] < 0:
            end[-1], mask = 0, mask | 1 << i
    helpers = [e.helper(begin), e.helper(end), e.helper(strides)]
    e.with_helpers("STRIDED_SLICE", node, helpers, "StridedSliceOptions", endMask=mask)


def _pad(e: Emitter, op: ir.Pad, node: Node, ins: list[Value], outs: list[Value]) -> None:
    pads = e.helper(_by_axis(op.pads, ins[0].layout))
    if op.value == 0:
        e.with_helpers("PAD", node, [pads], "PadOptions")
    else:
        value = e.helper(op.value, ins[0].dtype)  # type: ignore[arg-type]
        e.with_helpers("PADV2", node, [pads, value], "PadV2Options")


def _reshape(e: Emitter, op: ir.Reshape, node: Node, ins: list[Value], outs: list[Value]) -> None:
    if ins[0].physical_shape == outs[0].physical_shape:
        e.alias(node.outputs[0], node.inputs[0])
    else:
        e.reshape(e.tensor(ins[0].name), e.tensor(outs[0].name), outs[0].physical_shape)


def _transpose(e: Emitter, op: ir.Transpose, node: Node, ins: list[Value], outs: list[Value]) -> None:
    """The rule of layouts for this operator leaves nothing to move."""
    assert ins[0].physical_shape == outs[0].physical_shape
    e.alias(node.outputs[0], node.inputs[0])


def _relayout(e: Emitter, op: ir.Relayout, node: Node, ins: list[Value], outs: list[Value]) -> None:
    x, y = ins[0], outs[0]
    if layouts.same_order(x.shape, x.layout, y.layout):
        if x.physical_shape == y.physical_shape:
            e.alias(y.name, x.name)
        else:
            e.reshape(e.tensor(x.name), e.tensor(y.name), y.physical_shape)
        return
    where = inverse(x.layout)
    permutation = [where[axis] for axis in y.layout]
    if x.rank <= _TRANSPOSE_RANK:
        e.with_helpers("TRANSPOSE", node, [e.helper(permutation)], "TransposeOptions")
    else:
        _transpose_runs(e, x, y, permutation)


def _transpose_runs(e: Emitter, x: Value, y: Value, permutation: Sequence[int]) -> None:
    """A transpose of high rank: axes that stay neighbours move as one, and those of size 1 not at all."""
    places = {axis: place for place, axis in enumerate(a for a in range(x.rank) if x.physical_shape[a] != 1)}
    runs: list[list[int]] = []
    for axis in (a for a in permutation if a in places):
        if runs and places[axis] == places[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    if len(runs) > _TRANSPOSE_RANK:
        raise RefusedError(f"it transposes {len(runs)} axes; TFLite's TRANSPOSE takes {_TRANSPOSE_RANK}")
    order = sorted(range(len(runs)), key=lambda i: runs[i][0])
    moves = inverse(order)
    before = tuple(prod(x.physical_shape[axis] for axis in runs[i]) for i in order)
    after = tuple(before[i] for i in moves)
    middle = e.intermediate(f"{y.name}/merged", before, x.dtype)
    moved = e.intermediate(f"{y.name}/moved", after, x.dtype)
    e.reshape(e.tensor(x.name), middle, before)
    e.operator("TRANSPOSE", [middle, e.helper(moves)], [moved], "TransposeOptions")
    e.reshape(moved, e.tensor(y.name), y.physical_shape)


def _gather(e: Emitter, op: ir.Gather, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("GATHER", node, "GatherOptions", axis=_physical(op.axis, ins[0].layout), batchDims=0)


def _gather_nd(e: Emitter, op: ir.GatherNd, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("GATHER_ND", node, "GatherNdOptions")


def _tile(e: Emitter, op: ir.Tile, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.with_helpers("TILE", node, [e.helper(_by_axis(op.multiples, ins[0].layout))], "TileOptions")


def _broadcast_to(e: Emitter, op: ir.BroadcastTo, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.with_helpers("BROADCAST_TO", node, [e.helper(outs[0].physical_shape)], "BroadcastToOptions")


def _resize(e: Emitter, op: ir.Resize, node: Node, ins: list[Value], outs: list[Value]) -> None:
    options = "ResizeBilinearOptions" if op.kind == "BILINEAR" else "ResizeNearestNeighborOptions"
    flags = {"alignCorners": op.align_corners, "halfPixelCenters": op.half_pixel_centers}
    e.with_helpers(f"RESIZE_{op.kind}", node, [e.helper(op.size)], options, **flags)


def _depth_to_space(e: Emitter, op: ir.DepthToSpace, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("DEPTH_TO_SPACE", node, "DepthToSpaceOptions", blockSize=op.block)


def _space_to_depth(e: Emitter, op: ir.SpaceToDepth, node: Node, ins: list[Value], outs: list[Value]) -> None:
    e.simple("SPACE_TO_DEPTH", node, "SpaceToDepthOptions", blockSize=op.block)


_EMIT: dict[type[Op], _Emit] = {
    ir.Conv2D: _conv,
    ir.DepthwiseConv2D: _depthwise,
    ir.TransposeConv2D: _transpose_conv,
    ir.FullyConnected: _fully_connected,
    ir.MatMul: _matmul,
    ir.Pool2D: _pool,
    ir.Unary: _unary,
    ir.LeakyRelu: _leaky_relu,
    ir.Gelu: _gelu,
    ir.PRelu: _prelu,
    ir.Binary: _binary,
    ir.Compare: _compare,
    ir.Select: _select,
    ir.Cast: _cast,
    ir.Softmax: _softmax,
    ir.Reduce: _reduce,
    ir.ArgReduce: _arg_reduce,
    ir.TopK: _top_k,
    ir.CumSum: _cumsum,
    ir.Concat: _concat,
    ir.Split: _split,
    ir.Slice: _slice,
    ir.Pad: _pad,
    ir.Reshape: _reshape,
    ir.Transpose: _transpose,
    ir.Relayout: _relayout,
    ir.Gather: _gather,
    ir.GatherNd: _gather_nd,
    ir.Tile: _tile,
    ir.BroadcastTo: _broadcast_to,
    ir.Resize: _resize,
    ir.DepthToSpace: _depth_to_space,
    ir.SpaceToDepth: _space_to_depth,
}
