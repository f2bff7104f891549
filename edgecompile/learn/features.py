"""An operator as a learned table sees it: its family with a few numbers, or a curve over the elements it moves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from edgecompile.tables import OperatorKey
from edgecompile.tables.costs import output_shape

Family: TypeAlias = Literal["pointwise", "conv", "depthwise", "dense", "product"]
FAMILIES: tuple[Family, ...] = get_args(Family)
#: What a point of a family is written as: its numbers, and then its microseconds.
COLUMNS = ("rows", "depth", "columns", "window", "stride", "groups", "dilation", "side")

#: What a convolution's Clip costs where the runtime does not make it within the convolution's own loop.
CLAMP = "Clip fused"
#: Maps of so many elements a channel put their channels on the same lines of a cache, one behind the other.
_PAGE = 1024
_WHOLE_BLOCK = 16
_SHORT = 64
_FUSED = frozenset({"", "Relu", "Clip"})
_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool"})
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
#: Operators whose kernels do the same, as far as a table goes.
_LIKE = {
    "Split": "Slice", "Flatten": "Reshape", "Squeeze": "Reshape", "Unsqueeze": "Reshape", "Gather": "Slice",
    "Upsample": "Resize nearest", "LpPool": "AveragePool", "GlobalMaxPool": "GlobalAveragePool", "Max": "Add",
    "Min": "Add", "LogSoftmax": "Softmax", "Elu": "Tanh", "Selu": "Tanh", "Softplus": "Tanh", "PRelu": "LeakyRelu",
    "SpaceToDepth": "DepthToSpace", "Log": "Exp", "Reciprocal": "Sqrt", "Abs": "Relu", "Neg": "Relu",
    "BatchNormalization": "Mul by constant",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """An operator of a family: ``rows`` results of ``columns`` channels, each from ``window`` times ``depth`` numbers.

    ``side`` is the shorter side of the map that a window moves over.
    """

    family: Family
    rows: int
    depth: int
    columns: int
    window: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    side: int = 1

    @property
    def numbers(self) -> tuple[int, ...]:
        """As in `COLUMNS`."""
        return tuple(getattr(self, name) for name in COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """An operator that mostly moves ``elements``; ``kind`` names its curve, ``plain`` the one to take without it."""

    kind: str
    plain: str
    elements: float


Part: TypeAlias = Weighted | Moving


def parts(key: OperatorKey) -> tuple[Part, ...]:
    """An operator's parts: itself, and its activation where runtimes compute that by itself."""
    if key.op_type in _RECURRENT and len(key.other_shapes) > 1:
        return _steps(key)
    activation = key.activation
    if activation in _FUSED:
        return (_main(key),)
    return _main(key), Moving(kind=activation, plain=activation, elements=2.0 * math.prod(output_shape(key)))


def _steps(key: OperatorKey) -> tuple[Part, ...]:
    """A recurrent net: input and state of all steps by the gates' matrices, ONNX's W (D, G*H, I) and R (D, G*H, H)."""
    weight, state = key.other_shapes[:2]
    rows, depth = math.prod(key.in_shape[:2]), weight[-1] + state[-1]
    return (Weighted(family="dense", rows=rows, depth=depth, columns=weight[-2]),) * weight[0]


def _main(key: OperatorKey) -> Part:
    if key.op_type == "Conv" and len(key.kernel) in (1, 2):
        return _convolution(key)
    if key.op_type in ("Gemm", "MatMul") and key.out_channels:
        depth = key.in_shape[-1]
        return Weighted(family="dense", rows=math.prod(key.in_shape) // depth, depth=depth, columns=key.out_channels)
    if key.op_type == "MatMul" and key.other_shapes:
        depth, columns = key.in_shape[-1], key.other_shapes[0][-1]
        rows = key.in_shape[-2] if len(key.in_shape) > 1 else 1
        return Weighted(family="product", rows=rows, depth=depth, columns=columns, groups=math.prod(key.in_shape[:-2]))
    if key.op_type == "ConvTranspose" and key.out_channels:
        # A product for each input position, and then what it gave is spread out.
        return Moving(kind="ConvTranspose", plain="Slice", elements=float(_transposed_work(key)))
    return _moving(key)


def _convolution(key: OperatorKey) -> Weighted:
    channels, window = key.in_shape[1], math.prod(key.kernel)
    depthwise = key.groups > 1 and key.groups == channels
    family: Family = "depthwise" if depthwise else "pointwise" if window == 1 and key.groups == 1 else "conv"
    rows = math.prod(output_shape(key)[2:])
    return Weighted(
        family=family,
        rows=rows,
        depth=1 if depthwise else channels // key.groups,
        columns=key.out_channels if depthwise else key.out_channels // key.groups,
        window=window,
        stride=max(key.strides or (1,)),
        groups=1 if depthwise else key.groups,
        dilation=max(key.dilations or (1,)),
        side=min(key.in_shape[2:]),
    )


def _transposed_work(key: OperatorKey) -> int:
    return math.prod(key.in_shape) * math.prod(key.weight_shape[1:])


def _moving(key: OperatorKey) -> Moving:
    written = math.prod(key.out_shape or output_shape(key))
    read = sum(math.prod(shape) for shape in key.in_shapes)
    elements = float(read + written)
    plain = key.op_type
    kind = plain
    if plain in _POOLS:
        kind = f"{plain} {math.prod(key.kernel)}/{math.prod(key.strides or (1,))}"
        elements = float(math.prod(key.in_shape) + written * math.prod(key.kernel))
    elif plain in _REDUCTIONS:
        kind = _reduction(key)
    elif plain in ("Add", "Mul", "Sub", "Div"):
        kind = f"{plain} {_operand(key)}"
    elif plain == "Transpose":
        kind = f"Transpose {_order(key)}"
    elif plain in ("ReorderInput", "ReorderOutput"):
        kind = _reorder(key)
    elif plain == "Softmax":
        kind = softmax_kind(key.in_shape)
    elif plain == "BlockedUpsample":
        kind = f"{plain} {_attribute(key, 'mode', 'nearest')}"
    elif plain == "Resize":
        plain = kind = f"Resize {_attribute(key, 'mode', 'nearest')}"
    elif plain == "Concat":
        kind = f"Concat {min(4, 1 + len(key.other_shapes))}"
    elif plain == "Split":
        # Its other outputs are written too.
        elements = 2.0 * math.prod(key.in_shape)
    plain = _LIKE.get(plain, plain)
    return Moving(kind=kind if key.op_type not in _LIKE else plain, plain=plain, elements=max(elements, 1.0))


def _reorder(key: OperatorKey) -> str:
    """Reading channels that are no whole blocks is slow, as is writing channels that are a page apart."""
    if key.op_type == "ReorderInput":
        return f"{key.op_type} part" if key.in_shape[1] % _WHOLE_BLOCK else key.op_type
    return f"{key.op_type} page" if math.prod(key.in_shape[2:]) % _PAGE == 0 else key.op_type


def softmax_kind(shape: Sequence[int]) -> str:
    """Short rows cost more an element."""
    return "Softmax short" if shape[-1] <= _SHORT else "Softmax"


def _operand(key: OperatorKey) -> str:
    if key.constant_operands or not key.other_shapes:
        return "by constant"
    sizes = [math.prod(shape) for shape in key.in_shapes]
    return "of two" if min(sizes) == max(sizes) else "by channel"


def _reduction(key: OperatorKey) -> str:
    if key.op_type.startswith("Global"):
        return key.op_type
    last = len(key.in_shape) - 1
    axes = _constant(key, "#1") or _attribute(key, "axes", [])
    inner = {axis % (last + 1) for axis in axes} == {last}
    return "ReduceMean rows" if inner else "ReduceMean maps" if len(key.in_shape) == 4 else "ReduceMean columns"


def _order(key: OperatorKey) -> str:
    """Which axes a transposition brings where, sizes of 1 and axes that stay together left out."""
    order = _attribute(key, "perm", list(range(len(key.in_shape)))[::-1])
    real = [axis for axis in map(int, order) if key.in_shape[axis] > 1]
    if real == sorted(real):
        return "none"
    return "outer" if real and real[-1] == max(real) else "inner"


def _attribute(key: OperatorKey, name: str, default: object) -> list[int] | str:
    found = dict(key.attributes).get(name)
    value: list[int] | str = default if found is None else json.loads(found)  # type: ignore[assignment]
    return value


def _constant(key: OperatorKey, name: str) -> list[int]:
    found = dict(key.attributes).get(name)
    return [] if found is None else list(json.loads(found)[2])


def is_free(part: Part) -> bool:
    """Whether runtimes do nothing for it but call it, or not even that."""
    return isinstance(part, Moving) and part.plain in _FREE


# --------------------------------------------------------------------------------------------- numbers of a family


def padded(part: Weighted, tile: int) -> Weighted:
    """With its output channels rounded up to whole tiles."""
    return replace(part, columns=math.ceil(part.columns / tile) * tile)


def basis(part: Weighted, tile: int) -> list[float]:
    """What its time is a sum of, in millions: a constant, multiply-accumulates, elements read, written, of weights,
    and those of all windows."""
    whole = padded(part, tile)
    inputs = part.groups * part.rows * part.stride**2 * (part.columns if part.family == "depthwise" else part.depth)
    if part.family == "product":
        inputs += part.groups * part.depth * part.columns
    weights = part.groups * part.window * part.depth * part.columns if part.family != "product" else 0
    return [
        1.0,
        part.groups * part.rows * part.window * part.depth * whole.columns / 1e6,
        inputs / 1e6,
        part.groups * part.rows * part.columns / 1e6,
        weights / 1e6,
        part.groups * part.rows * part.window * part.depth / 1e6 if part.family == "conv" else 0.0,
    ]


def place(part: Weighted) -> list[float]:
    """Where it lies among its family: what the difference between its time and the sum of `basis` depends on."""
    return [
        math.log2(part.rows),
        math.log2(part.depth),
        math.log2(part.columns),
        math.log2(part.window),
        float(part.stride > 1),
        math.log2(part.groups),
        float(part.dilation > 1),
        math.log2(math.gcd(part.depth, 32)),
        math.log2(math.gcd(part.columns, 32)),
        math.log2(part.side),
    ]


def weighted(family: Family, numbers: Sequence[float]) -> Weighted:
    """The operator that a written point stands for."""
    values = dict(zip(COLUMNS, map(int, numbers), strict=False))
    return Weighted(family=family, **values)
