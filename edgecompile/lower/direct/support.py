"""What TFLite's kernels take, beyond what an operator means: types and ranks.

Taken from LiteRT 2.1 by running every operator with every type and rank, without a delegate, since some kernels end the
process where others answer with an error; the delegate XNNPACK fails on some of what it takes, from rank 7 on.
``tests/direct/test_support.py`` does that again. Types that a kernel takes only together with quantization parameters
(int8 in most) are not listed: such a tensor would be computed with wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Op, Value

_FLOAT = frozenset({"float32"})
_BOOL = frozenset({"bool"})
_FLOAT_INT32 = _FLOAT | {"int32"}
_NUMBERS = _FLOAT_INT32 | {"int64"}
_WITH_BYTES = _NUMBERS | {"uint8", "int8"}
_ALL = _WITH_BYTES | {"bool"}

_UNARY: dict[str, frozenset[str]] = {
    "ABS": _FLOAT_INT32,
    "LOGICAL_NOT": _BOOL,
    "NEG": _NUMBERS,
    "SIGN": _FLOAT_INT32,
}
_BINARY: dict[str, frozenset[str]] = {
    "ADD": _NUMBERS,
    "DIV": _FLOAT_INT32,
    "FLOOR_DIV": _FLOAT_INT32,
    "FLOOR_MOD": _NUMBERS,
    "LOGICAL_AND": _BOOL,
    "LOGICAL_OR": _BOOL,
    "MAXIMUM": _WITH_BYTES,
    "MINIMUM": _WITH_BYTES,
    "MUL": _NUMBERS,
    "POW": _FLOAT_INT32,
    "SQUARED_DIFFERENCE": _FLOAT_INT32,
    "SUB": _NUMBERS,
}
_REDUCE: dict[str, frozenset[str]] = {
    "MEAN": _FLOAT,
    "REDUCE_ALL": _BOOL,
    "REDUCE_ANY": _BOOL,
    "REDUCE_MAX": _WITH_BYTES,
    "REDUCE_MIN": _WITH_BYTES,
}
#: Types of the operand that carries data, by operator; float32 where an operator is not listed.
_TYPES: dict[type[Op], frozenset[str]] = {
    ir.ArgReduce: _FLOAT_INT32 | {"uint8", "int8"},
    ir.BroadcastTo: _ALL,
    ir.Cast: _ALL,
    ir.Concat: _ALL,
    ir.CumSum: _NUMBERS,
    ir.DepthToSpace: _WITH_BYTES,
    ir.Gather: _ALL,
    ir.Pad: _ALL,
    ir.GatherNd: _ALL,
    ir.Relayout: _ALL,
    ir.Reshape: _ALL,
    ir.Select: _ALL,
    ir.Slice: _ALL,
    ir.SpaceToDepth: _WITH_BYTES,
    ir.Split: _WITH_BYTES,
    ir.Tile: _ALL,
    ir.TopK: _WITH_BYTES,
    ir.Transpose: _ALL,
}
#: The largest rank, where a kernel has one. For elementwise operators it binds only where something is broadcast.
_RANKS: dict[type[Op], int] = {
    ir.Compare: 4,
    ir.Concat: 6,
    ir.FullyConnected: 6,
    ir.MatMul: 5,
    ir.PRelu: 4,
    ir.Pad: 5,
    ir.Reduce: 6,
    ir.Select: 5,
    ir.Slice: 5,
    ir.Softmax: 6,
    ir.Split: 5,
}
#: The same for the kinds of `Binary`; 4 for those that are not listed.
_BINARY_RANKS = {"ADD": 6, "DIV": 5, "MAXIMUM": 5, "MINIMUM": 5, "MUL": 6, "SUB": 6}
_ELEMENTWISE = (ir.Binary, ir.Compare, ir.Select, ir.PRelu)


def types(op: Op) -> frozenset[str]:
    """The types that the operator's data may have."""
    if isinstance(op, ir.Unary):
        return _UNARY.get(op.kind, _FLOAT)
    if isinstance(op, ir.Binary):
        return _BINARY[op.kind]
    if isinstance(op, ir.Reduce):
        return _REDUCE.get(op.kind, _NUMBERS)
    if isinstance(op, ir.Compare):
        return _NUMBERS | _BOOL if op.kind in ("EQUAL", "NOT_EQUAL") else _NUMBERS
    return _TYPES.get(type(op), _FLOAT)


def max_rank(op: Op, inputs: Sequence[Value]) -> int | None:
    """The largest rank that the operator's kernel takes with these operands; ``None`` where there is no limit."""
    if isinstance(op, _ELEMENTWISE) and len({v.shape for v in inputs}) == 1:
        return None
    return _BINARY_RANKS.get(op.kind, 4) if isinstance(op, ir.Binary) else _RANKS.get(type(op))


def fault(op: Op, inputs: Sequence[Value]) -> str | None:
    """Why TFLite's kernel does not take these operands; ``None`` where it does."""
    name = getattr(op, "kind", type(op).__name__)
    for value in inputs[1:] if isinstance(op, ir.Select) else inputs[:1]:
        if value.dtype not in types(op):
            return f"TFLite's {name} does not take {value.dtype}"
    limit = max_rank(op, inputs)
    rank = max((v.rank for v in inputs), default=0)
    if limit is not None and rank > limit:
        return f"TFLite's {name} takes rank {limit} at most, not {rank}"
    return None
