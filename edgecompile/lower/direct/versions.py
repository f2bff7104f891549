"""The version that each TFLite operator's code carries: the first one whose kernel has what is asked of it.

An older runtime refuses a file with newer versions, instead of computing something else. The numbers are those of
TensorFlow's ``lite/tools/versioning/op_version.cc``, for what this lowering writes (float32, integers, booleans).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from edgecompile.lower.direct.ir import Shape

#: ``(types of the operands, shapes of the operands, options) -> version``.
_Rule: TypeAlias = Callable[[Sequence[str], Sequence[Shape], Mapping[str, Any]], int]


def version(builtin: str, types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    """The version of an operator with these operands (constants that only direct it included) and options."""
    rule = _RULES.get(builtin)
    if rule is not None:
        return rule(types, shapes, options)
    return 2 if types and types[0] == "int8" else 1


def _by_type(numbers: Mapping[str, int], operand: int = 0) -> _Rule:
    return lambda types, shapes, options: numbers.get(types[operand], 1)


def _by_rank(numbers: Mapping[int, int], by_type: Mapping[str, int]) -> _Rule:
    """``numbers``: the version above a rank, the largest first; then by type."""

    def rule(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
        for rank, number in numbers.items():
            if len(shapes[0]) > rank:
                return number
        return by_type.get(types[0], 1)

    return rule


def _broadcast(number: int, by_type: Mapping[str, int]) -> _Rule:
    """``number`` where operands of more than 4 axes are broadcast; a type's number where that is higher."""

    def rule(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
        high = shapes[0] != shapes[1] and max(map(len, shapes)) > 4
        return max(number if high else 1, by_type.get(types[0], 1))

    return rule


def _conv(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    return 6 if shapes[0][-1] != shapes[1][-1] else 1


def _depthwise(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    return 2 if max(options["dilationHFactor"], options["dilationWFactor"]) > 1 else 1


def _fully_connected(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    return 5 if options["keepNumDims"] else 1


def _resize_bilinear(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    return 3 if options["halfPixelCenters"] else 1


def _resize_nearest(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    return 3 if options["halfPixelCenters"] or options["alignCorners"] else 1


def _cast(types: Sequence[str], shapes: Sequence[Shape], options: Mapping[str, Any]) -> int:
    from edgecompile.lower.direct.write import TENSOR_TYPES

    return 3 if TENSOR_TYPES["int8"] in (options["inDataType"], options["outDataType"]) else 1


_RULES: dict[str, _Rule] = {
    "ABS": _by_type({"int32": 5}),
    "ADD": _by_type({"int64": 4}),
    "BROADCAST_TO": lambda types, shapes, options: 3 if types[0] == "int8" else 2,
    "CAST": _cast,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DIV": _broadcast(2, {}),
    "FLOOR_DIV": _by_type({"float32": 2}),
    "FULLY_CONNECTED": _fully_connected,
    "GATHER": _by_type({"bool": 3, "int8": 2}),
    "MAXIMUM": _broadcast(3, {"int8": 2}),
    "MINIMUM": _broadcast(3, {"int8": 2}),
    "MUL": _by_type({"int64": 5}),
    "PAD": _by_rank({4: 4}, {"int8": 2}),
    "PADV2": _by_rank({4: 4}, {"int8": 2}),
    "RESHAPE": _by_type({}),
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "SELECT_V2": _by_type({}),
    "SIGN": _by_type({"int32": 2}),
    "SLICE": _by_rank({4: 5}, {"int8": 2}),
    "SPLIT": _by_type({"int32": 3, "int8": 2}, operand=1),
    "STRIDED_SLICE": _by_rank({4: 4}, {"bool": 3, "int8": 2}),
    "SUB": _broadcast(3, {"int64": 4}),
    "TILE": _by_type({"int8": 3}),
    "TRANSPOSE": _by_rank({5: 6, 4: 4}, {"bool": 3, "int8": 2}),
    "TRANSPOSE_CONV": lambda types, shapes, options: 3 if len(types) == 4 else 1,
}
