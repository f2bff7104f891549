"""Quantizes what ai-edge-quantizer leaves in float inside an INT8 file.

Before: ``CONV_2D -> DEQUANTIZE -> LEAKY_RELU -> QUANTIZE -> ADD``. After: ``CONV_2D -> LEAKY_RELU -> ADD``, all int8.

An operator of `RULES` becomes an int8 one when every tensor that it computes on can be had in int8. What moves values
without changing them (a nearest-neighbour resize) keeps its input's scale exactly; what computes gets a scale from the
calibration ranges. An operator that TFLite has no int8 kernel for stays in float, and is counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import flatbuffer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: The smallest and largest value of each float tensor over the calibration samples, by the tensor's name.
Ranges = Mapping[str, tuple[float, float]]

_LOW, _HIGH = -128, 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How an operator becomes int8.

    ``data`` are the inputs that hold data (others are axes, shapes, ...). ``output`` says where the output's scale
    comes from: ``input`` (values only move), ``common`` (values are compared, so all inputs take the output's scale),
    ``range`` (calibration), ``fixed`` (what the kernel demands), ``none`` (the output is no quantity). ``version`` is
    the first version of the operator with an int8 kernel.
    """

    output: Literal["input", "common", "range", "fixed", "none"]
    version: int
    data: tuple[int, ...] = (0,)
    fixed: tuple[float, int] | None = None


RULES: dict[str, Rule] = {
    "ABS": Rule(output="range", version=2),
    "ARG_MAX": Rule(output="none", version=2),
    "ARG_MIN": Rule(output="none", version=2),
    "BATCH_TO_SPACE_ND": Rule(output="input", version=2),
    "DEPTH_TO_SPACE": Rule(output="input", version=1),
    "ELU": Rule(output="range", version=1),
    "EXP": Rule(output="range", version=2),
    "EXPAND_DIMS": Rule(output="input", version=1),
    "GREATER": Rule(output="none", version=2, data=(0, 1)),
    "GREATER_EQUAL": Rule(output="none", version=2, data=(0, 1)),
    "L2_NORMALIZATION": Rule(output="fixed", version=2, fixed=(1 / 128, 0)),
    "LEAKY_RELU": Rule(output="range", version=2),
    "LESS": Rule(output="none", version=2, data=(0, 1)),
    "LESS_EQUAL": Rule(output="none", version=2, data=(0, 1)),
    "LOG": Rule(output="range", version=2),
    "LOG_SOFTMAX": Rule(output="fixed", version=2, fixed=(16 / 256, 127)),
    "MAXIMUM": Rule(output="common", version=2, data=(0, 1)),
    "MINIMUM": Rule(output="common", version=2, data=(0, 1)),
    "PRELU": Rule(output="range", version=1, data=(0, 1)),
    "REDUCE_MAX": Rule(output="input", version=2),
    "RELU6": Rule(output="range", version=2),
    "RELU_N1_TO_1": Rule(output="range", version=1),
    "RESIZE_NEAREST_NEIGHBOR": Rule(output="input", version=2),
    "REVERSE_V2": Rule(output="input", version=3),
    "SPACE_TO_BATCH_ND": Rule(output="input", version=2),
    "SPLIT_V": Rule(output="input", version=2),
    "SQUEEZE": Rule(output="input", version=1),
    "TILE": Rule(output="input", version=2),
    "TOPK_V2": Rule(output="input", version=2),
}

#: What ai-edge-quantizer itself gives the scale of its (first) input, so that ranges can be carried along.
_CARRIED = frozenset(
    {
        "AVERAGE_POOL_2D",
        "BROADCAST_TO",
        "GATHER",
        "GATHER_ND",
        "MAX_POOL_2D",
        "MIRROR_PAD",
        "PAD",
        "REDUCE_MIN",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "SLICE",
        "SPACE_TO_DEPTH",
        "STRIDED_SLICE",
        "TRANSPOSE",
        "UNPACK",
    }
)
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE", "CAST"})
#: Operators whose kernels hand integers on as they are.
_ONE_SCALE = (
    (_CARRIED - {"RESIZE_BILINEAR", "AVERAGE_POOL_2D"})
    | {name for name, rule in RULES.items() if rule.output in ("input", "common")}
    | {"PACK", "SELECT_V2", "SPLIT"}
)
#: The ranges that the fixed scales of these kernels stand for.
_FIXED = {"LOGISTIC": (0.0, 255 / 256), "SOFTMAX": (0.0, 255 / 256), "TANH": (-1.0, 127 / 128)}


def carry_ranges(data: bytes, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """The ranges with those of tensors whose values only moved replaced by the range of where they came from.

    Then both get the same scale, and no conversion is needed between them. ``data`` is the float file.
    """
    carried = dict(ranges)
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    for operator in subgraph.operators:
        name = flatbuffer.operator_name(graph, operator)
        rule = RULES.get(name)
        outputs = [flatbuffer.tensor_name(subgraph.tensors[i]) for i in operator.outputs]
        if name in _FIXED:
            carried[outputs[0]] = _FIXED[name]
        elif rule is not None and rule.fixed is not None:
            scale, zero = rule.fixed
            carried[outputs[0]] = ((_LOW - zero) * scale, (_HIGH - zero) * scale)
        elif (place := _moved_input(graph, operator, carried)) is not None:
            source = flatbuffer.tensor_name(subgraph.tensors[operator.inputs[place]])
            carried.update({output: carried[source] for output in outputs if source in carried and output in carried})
    return carried


def around_zero(data: bytes, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """The ranges with those of the right factors of products made symmetric, where that costs a third of a bit at most.

    XNNPACK takes a right factor's zero point for 0 (LiteRT 2.1), so it has to be 0. The range is that of the tensor
    that was computed, from which the factor was only moved; `_center` sees to the other factors.
    """
    centered = dict(ranges)
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    producers = {int(i): operator for operator in subgraph.operators for i in operator.outputs}
    for operator in subgraph.operators:
        if flatbuffer.operator_name(graph, operator) != "BATCH_MATMUL":
            continue
        index = origin(graph, producers, int(operator.inputs[1]), centered)
        name = flatbuffer.tensor_name(subgraph.tensors[index])
        maker = flatbuffer.operator_name(graph, producers[index]) if index in producers else ""
        if name not in centered or maker in _FIXED or (maker in RULES and RULES[maker].fixed):
            continue
        low, high = centered[name]
        largest = max(abs(low), abs(high))
        if 2 * largest <= _SKEW * (max(high, 0.0) - min(low, 0.0)):
            centered[name] = (largest * _LOW / _HIGH, largest)
    return centered


#: How much wider a symmetric range may be than the one that was observed.
_SKEW = 1.25


def origin(graph: Any, producers: Mapping[int, Any], index: int, ranges: Ranges) -> int:
    """The tensor that was computed and whose scale, its values being moved only, a tensor will have."""
    while (operator := producers.get(index)) is not None:
        place = _moved_input(graph, operator, ranges)
        if place is None:
            break
        index = int(operator.inputs[place])
    return index


def _center(graph: Any) -> None:
    """Before: ``BATCH_MATMUL(a, b)`` with b around -12. After: ``BATCH_MATMUL(a, QUANTIZE(b))``, around 0."""
    subgraph = graph.subgraphs[0]
    operators = []
    for operator in subgraph.operators:
        if flatbuffer.operator_name(graph, operator) == "BATCH_MATMUL":
            tensor = subgraph.tensors[operator.inputs[1]]
            zero = int(tensor.quantization.zeroPoint[0]) if tensor.type == flatbuffer.INT8 else 0
            if zero:
                scale = float(tensor.quantization.scale[0]) * max(zero - _LOW, _HIGH - zero) / _HIGH
                made = flatbuffer.like(graph, tensor, flatbuffer.INT8, flatbuffer.quantization(scale, 0), "_centered")
                operators.append(flatbuffer.make_operator(graph, "QUANTIZE", [operator.inputs[1]], [made]))
                operator.inputs = [int(operator.inputs[0]), made]
        operators.append(operator)
    subgraph.operators = operators


def _moved_input(graph: Any, operator: Any, ranges: Ranges) -> int | None:
    """Which input an operator hands on unchanged, or compares with a constant only; ``None`` if it does neither."""
    name = flatbuffer.operator_name(graph, operator)
    if name == "SPLIT":
        return 1
    rule = RULES.get(name)
    if name in _CARRIED or (rule is not None and rule.output == "input"):
        return 0
    return None if rule is None else _compared_input(graph, operator, rule, ranges)


def _compared_input(graph: Any, operator: Any, rule: Rule, ranges: Ranges) -> int | None:
    """The only input of a comparison that is not a constant, where the constant can take that input's scale.

    It cannot where the result can be a constant that this scale does not reach: the minimum of a softmax and -2.
    """
    if rule.output != "common":
        return None
    tensors = graph.subgraphs[0].tensors
    variable = [i for i in rule.data if not flatbuffer.is_constant(graph, tensors[operator.inputs[i]])]
    if len(variable) != 1:
        return None
    (constant,) = (
        flatbuffer.constant_floats(graph, tensors[operator.inputs[i]]) for i in rule.data if i not in variable
    )
    span = ranges.get(flatbuffer.tensor_name(tensors[operator.inputs[variable[0]]]))
    if constant is None or span is None:
        return None
    below = flatbuffer.operator_name(graph, operator) == "MINIMUM" and constant.min() < min(span[0], 0.0)
    above = flatbuffer.operator_name(graph, operator) == "MAXIMUM" and constant.max() > max(span[1], 0.0)
    return None if below or above else variable[0]


def quantize(data: bytes, ranges: Ranges, keep_float: Collection[str] = ()) -> bytes:
    """The INT8 file with every float operator that `RULES` covers computing in int8."""
    graph = flatbuffer.unpack(data)
    if len(graph.subgraphs) == 1:
        _read_integers(graph)
        _quantize_unread_outputs(graph)
        _Pass(graph, ranges, keep_float).run()
        _center(graph)
    _require_sound(graph)
    return flatbuffer.pack(graph)


def _read_integers(graph: Any) -> None:
    """Let an operator that makes integers read them where the quantizer has it read their float copy.

    Before: ``CONV_2D -> a -> DEQUANTIZE -> f (an output); RESHAPE(f) -> int8``, as the quantizer leaves it where an
    output has several readers inside; kernels take the float's bytes for integers. After: ``RESHAPE(a) -> int8``.
    """
    subgraph = graph.subgraphs[0]
    tensors = subgraph.tensors
    integer = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in subgraph.operators
        if flatbuffer.operator_name(graph, operator) == "DEQUANTIZE"
        and tensors[operator.inputs[0]].type == flatbuffer.INT8
    }
    for operator in subgraph.operators:
        if flatbuffer.operator_name(graph, operator) not in _CONVERSIONS and any(
            tensors[i].type == flatbuffer.INT8 for i in operator.outputs
        ):
            operator.inputs = [integer.get(int(i), int(i)) for i in operator.inputs]


def _require_sound(graph: Any) -> None:
    """Raise where an operator mixes types or scales that no kernel mixes: it would compute something else.

    Some kernels read floats as 8 bits, beyond the tensor's end; those that only move values do not look at scales, but
    XNNPACK does, to the last bit, which two scales of one range may have apart: then one takes the other's place.
    """
    for subgraph in graph.subgraphs:
        for operator in subgraph.operators:
            name = flatbuffer.operator_name(graph, operator)
            tensors = [subgraph.tensors[i] for i in [*operator.inputs, *operator.outputs] if i >= 0]
            integers = [tensor for tensor in tensors if tensor.type == flatbuffer.INT8]
            mixed = bool(integers) and any(tensor.type == flatbuffer.FLOAT32 for tensor in tensors)
            apart = name in _ONE_SCALE and not all(
                _same_scale(tensor.quantization, integers[0].quantization) for tensor in integers[1:]
            )
            if name not in _CONVERSIONS and (mixed or apart):
                made = flatbuffer.tensor_name(subgraph.tensors[operator.outputs[0]])
                what = "floats and integers at once" if mixed else "scales that differ"
                raise UnsupportedModelError(
                    f"the quantizer left {name}, which makes {made!r}, with {what}",
                    remedy="leave int8 out with --precision",
                    operators=((name, made),),
                )
            if name in _ONE_SCALE and integers:
                for index in operator.outputs:
                    if subgraph.tensors[index].type == flatbuffer.INT8:
                        subgraph.tensors[index].quantization = integers[0].quantization


def _quantize_unread_outputs(graph: Any) -> None:
    """Give an output that nothing reads the type of the operator's other outputs.

    Before: ``SPLIT -> a: int8, b: float32`` with b unread, since the quantizer works from readers; kernels refuse the
    mixture. After: ``SPLIT -> a: int8, b: int8``.
    """
    subgraph = graph.subgraphs[0]
    read = {int(i) for operator in subgraph.operators for i in operator.inputs} | {int(i) for i in subgraph.outputs}
    for operator in subgraph.operators:
        outputs = [subgraph.tensors[i] for i in operator.outputs]
        quantized = [tensor for tensor in outputs if tensor.type == flatbuffer.INT8]
        for index in operator.outputs:
            tensor = subgraph.tensors[index]
            if quantized and tensor.type == flatbuffer.FLOAT32 and int(index) not in read:
                tensor.type, tensor.quantization = flatbuffer.INT8, quantized[0].quantization


class _Pass:
    """One pass over the operators in order; ``int8_of`` maps a float tensor to the int8 tensor with its values."""

    def __init__(self, graph: Any, ranges: Ranges, keep_float: Collection[str]) -> None:
        self.graph = graph
        self.ranges = ranges
        self.keep_float = frozenset(keep_float)
        self.subgraph = graph.subgraphs[0]
        self.tensors = self.subgraph.tensors
        self.int8_of: dict[int, int] = {}
        self.operators: list[Any] = []

    def run(self) -> None:
        consumers = _consumers(self.subgraph)
        for operator in self.subgraph.operators:
            name = flatbuffer.operator_name(self.graph, operator)
            if name == "DEQUANTIZE" and self.tensors[operator.inputs[0]].type == flatbuffer.INT8:
                self.int8_of[int(operator.outputs[0])] = int(operator.inputs[0])
            kept = flatbuffer.tensor_name(self.tensors[operator.outputs[0]]) in self.keep_float
            rule = None if kept else RULES.get(name)
            if rule is None or not self._is_float(operator, rule) or not self._convert(operator, rule, consumers):
                self.operators.append(operator)
        self.subgraph.operators = self.operators
        _join_requantized(self.graph)
        _drop_unread(self.graph)

    def _is_float(self, operator: Any, rule: Rule) -> bool:
        return all(self.tensors[operator.inputs[i]].type == flatbuffer.FLOAT32 for i in rule.data)

    def _convert(self, operator: Any, rule: Rule, consumers: Mapping[int, list[Any]]) -> bool:
        """Append the int8 form of an operator; false, and nothing changed, where it cannot be had."""
        outputs = [int(i) for i in operator.outputs if self.tensors[i].type == flatbuffer.FLOAT32]
        target = self._target(operator, rule, outputs, consumers)
        if target is None:
            return False
        inputs = [int(i) for i in operator.inputs]
        leading = 0 if rule.output == "input" else _compared_input(self.graph, operator, rule, self.ranges)
        if leading is not None:
            source = self._as_int8(inputs[leading], None)
            if source is None:
                return False
            target = self.tensors[source].quantization
        for position in rule.data:
            source = self._as_int8(inputs[position], target if rule.output == "common" else None)
            if source is None:
                return False
            inputs[position] = source
        operator.inputs = inputs
        results = [int(i) for i in operator.outputs]
        made = {index: self._int8_tensor(index, target) for index in outputs}
        operator.outputs = [made.get(index, index) for index in results]
        flatbuffer.require_version(self.graph, operator, rule.version)
        self.operators.append(operator)
        for index, quantized in made.items():
            # Read by what stays in float, if by anything; dropped again if not.
            self.int8_of[index] = quantized
            self.operators.append(flatbuffer.make_operator(self.graph, "DEQUANTIZE", [quantized], [index]))
        return True

    def _target(self, operator: Any, rule: Rule, outputs: list[int], consumers: Mapping[int, list[Any]]) -> Any:
        """The output's quantization; for ``input`` and ``none`` any that is not ``None``. ``None`` where unknown."""
        if rule.output in ("input", "none"):
            return flatbuffer.quantization(1.0, 0)
        if rule.fixed is not None:
            return flatbuffer.quantization(*rule.fixed)
        for consumer in consumers.get(outputs[0], []):
            if flatbuffer.operator_name(self.graph, consumer) == "QUANTIZE":
                return self.tensors[consumer.outputs[0]].quantization
        return self._from_range(outputs[0])

    def _from_range(self, index: int) -> Any:
        found = self.ranges.get(flatbuffer.tensor_name(self.tensors[index]))
        return None if found is None else flatbuffer.quantization(*affine(*found))

    def _as_int8(self, index: int, wanted: Any) -> int | None:
        """The int8 tensor with a float tensor's values, on the scale ``wanted`` if one is."""
        values = flatbuffer.constant_floats(self.graph, self.tensors[index])
        if values is not None:
            return self._constant(index, values, wanted)
        source = self.int8_of.get(index)
        if source is None:
            parameters = wanted or self._from_range(index)
            if parameters is None:
                return None
            return self._converted(index, index, parameters)
        if wanted is None or _same_scale(self.tensors[source].quantization, wanted):
            return source
        return self._converted(source, index, wanted)

    def _converted(self, source: int, like: int, parameters: Any) -> int:
        target = self._int8_tensor(like, parameters)
        self.operators.append(flatbuffer.make_operator(self.graph, "QUANTIZE", [source], [target]))
        return target

    def _constant(self, index: int, values: npt.NDArray[np.float32], wanted: Any) -> int:
        import numpy as np

        parameters = wanted or flatbuffer.quantization(*affine(float(values.min()), float(values.max())))
        scale, zero = float(parameters.scale[0]), int(parameters.zeroPoint[0])
        rounded = np.clip(np.round(values / scale) + zero, _LOW, _HIGH).astype(np.int8)
        made = flatbuffer.add_constant(self.graph, rounded, self.tensors[index], suffix="_int8", dtype=flatbuffer.INT8)
        self.tensors[made].quantization = parameters
        return made

    def _int8_tensor(self, like: int, parameters: Any) -> int:
        return flatbuffer.like(self.graph, self.tensors[like], flatbuffer.INT8, parameters, "_int8")


def affine(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of asymmetric int8 over a range, which is widened to hold zero exactly.

    In float32 and in the order of ai-edge-quantizer, so that both give the same scale to the last bit.
    """
    import numpy as np

    least, most = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    scale = np.maximum(most - least, np.float32(1e-9)) / np.float32(_HIGH - _LOW)
    return float(scale), max(_LOW, min(_HIGH, int(np.rint(_LOW - least / scale))))


def _same_scale(a: Any, b: Any) -> bool:
    """Whether two quantizations are the same but for the last bit of a float32 that two formulas round apart."""
    import numpy as np

    return bool(
        np.allclose(np.asarray(a.scale), np.asarray(b.scale), rtol=1e-5, atol=0.0)
        and np.array_equal(np.asarray(a.zeroPoint), np.asarray(b.zeroPoint))
    )


def _consumers(subgraph: Any) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for operator in subgraph.operators:
        for index in operator.inputs:
            found.setdefault(int(index), []).append(operator)
    return found


def _join_requantized(graph: Any) -> None:
    """Read through ``int8 -> DEQUANTIZE -> QUANTIZE -> int8``, and through conversions between equal scales.

    Before: ``a -> DEQUANTIZE -> f -> QUANTIZE -> b``. After: ``a -> QUANTIZE -> b``, or ``a`` in the place of ``b``.
    """
    subgraph = graph.subgraphs[0]
    tensors = subgraph.tensors
    dequantized: dict[int, int] = {}
    replaced: dict[int, int] = {}
    kept = []
    ends = {int(i) for i in [*subgraph.inputs, *subgraph.outputs]}
    for operator in subgraph.operators:
        operator.inputs = [replaced.get(int(i), int(i)) for i in operator.inputs]
        name = flatbuffer.operator_name(graph, operator)
        if name == "DEQUANTIZE" and tensors[operator.inputs[0]].type == flatbuffer.INT8:
            dequantized[int(operator.outputs[0])] = operator.inputs[0]
        if name == "QUANTIZE":
            source, target = dequantized.get(operator.inputs[0], operator.inputs[0]), int(operator.outputs[0])
            operator.inputs = [source]
            if _may_replace(tensors, source, target, ends):
                replaced[target] = source
                if target in ends:
                    ends.add(source)
                continue
        kept.append(operator)
    subgraph.operators = kept
    flatbuffer.replace_outputs(graph, replaced)


def _may_replace(tensors: Any, source: int, target: int, ends: set[int]) -> bool:
    """Whether ``source`` holds what ``target`` does, and no tensor would be both an input and an output, or two."""
    if tensors[source].type != flatbuffer.INT8 or (source in ends and target in ends):
        return False
    return _same_scale(tensors[source].quantization, tensors[target].quantization)


def _drop_unread(graph: Any) -> None:
    """Drop conversions whose result nothing reads, then compact the tensors that are left."""
    subgraph = graph.subgraphs[0]
    needed = {int(i) for i in subgraph.outputs}
    kept = []
    for operator in reversed(subgraph.operators):
        conversion = flatbuffer.operator_name(graph, operator) in ("QUANTIZE", "DEQUANTIZE")
        if conversion and int(operator.outputs[0]) not in needed:
            continue
        needed.update(int(i) for i in operator.inputs)
        kept.append(operator)
    subgraph.operators = kept[::-1]
    flatbuffer.drop_unused_tensors(graph)
    flatbuffer.drop_unused_buffers(graph)
