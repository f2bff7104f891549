"""What TensorRT's ONNX parser refuses, and what keeps its builder from fusing: found in the graph, without TensorRT.

`check` reads an ONNX graph and lists findings. An *error* is a graph that the parser refuses, or silently changes (it
clips uint8, and gives dynamic inputs a size of its own choice); a *hint* costs speed or deserves a look. Sources: the
operator tables of onnx-tensorrt and "Working with Quantized Types" in NVIDIA's documentation of TensorRT. No findings
means that no known rule is broken; only the device can say that the engine builds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from edgecompile.errors import InputError
from edgecompile.lower import base

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

Severity: TypeAlias = Literal["error", "hint"]

#: The newest opset that a version's parser takes; a version between two of these is taken for the older one.
NEWEST_OPSET: tuple[tuple[tuple[int, int], int], ...] = (
    ((8, 0), 13),
    ((8, 5), 17),
    ((10, 0), 20),
    ((11, 0), 25),
)
#: Before, INT64 is cast down to INT32 and 4- and 8-bit floats do not exist.
_INT64_SINCE = (10, 0)

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
#: What the builder fuses into the convolution before it.
_FUSED_AFTER = ("Relu", "BatchNormalization", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "PRelu")
#: Operators on integers: INT8 that is not explicit quantization.
_INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
#: Absent from every version's parser.
_ABSENT_OPERATORS = ("Det", "Unique", "StringNormalizer", "TfIdfVectorizer", "SoftmaxCrossEntropyLoss")
#: Where INT64 constants beyond INT32 are meant: "to the end".
_CLAMPED_HARMLESSLY = ("Slice",)

# ONNX element types.
_FLOAT, _UINT8, _INT8, _UINT16, _INT16, _INT32, _INT64, _STRING = 1, 2, 3, 4, 5, 6, 7, 8
_DOUBLE, _UINT32, _UINT64, _COMPLEX64, _COMPLEX128 = 11, 12, 13, 14, 15
_UNKNOWN_TYPES = (_UINT16, _INT16, _STRING, _UINT32, _UINT64, _COMPLEX64, _COMPLEX128)
#: float8e4m3fn and int4.
_NEWER_CODES = (17, 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One broken rule: where, how bad, what it means and what to do. ``node`` is an operator's or a tensor's name."""

    node: str
    rule: str
    severity: Severity
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.node}: {self.message} [{self.rule}]; {self.fix}"


def check(model: onnx.ModelProto, version: str | None = None) -> tuple[Finding, ...]:
    """All findings, errors first, in the order of the graph.

    ``version`` is TensorRT's (``8.2``, ``8.6.1``, ``10.3``); without it, what depends on the version is a hint. Raises
    `InputError` for a version that is not a number.
    """
    graph = _Graph(model, _parsed(version))
    found = [finding for rule in _RULES for finding in rule(graph)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "error"))


def errors(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Those that stop a build."""
    return tuple(finding for finding in findings if finding.severity == "error")


def _parsed(version: str | None) -> tuple[int, int] | None:
    if version is None:
        return None
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:\.\d+)*", version.strip())
    if match is None:
        raise InputError(f"{version!r} is not a version of TensorRT", remedy="write it like 8.6 or 10.3")
    return int(match[1]), int(match[2] or 0)


class _Graph:
    """The graph, with the look-ups that rules need."""

    def __init__(self, model: onnx.ModelProto, version: tuple[int, int] | None) -> None:
        self.model = model
        self.version = version
        self.nodes: list[Any] = base.nodes_of(model.graph)
        self.makers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}

    @cached_property
    def initializers(self) -> dict[str, Any]:
        found = {tensor.name: tensor for tensor in self.model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        return found

    @cached_property
    def types(self) -> dict[str, int]:
        """The element type of each tensor that is known."""
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
        except (
            onnx.shape_inference.InferenceError
        ):  # the checker of ONNX says what is wrong; here the recorded types do
            inferred = self.model.graph
        values = [*inferred.value_info, *inferred.output, *inferred.input]
        found = {value.name: int(value.type.tensor_type.elem_type) for value in values}
        return found | {name: int(tensor.data_type) for name, tensor in self.initializers.items()}

    def values(self, name: str) -> npt.NDArray[np.generic] | None:
        """A constant's values."""
        import onnx

        tensor = self.initializers.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def before(self, version: tuple[int, int]) -> bool:
        """Whether the version asked for is older, or might be since none was given."""
        return self.version is None or self.version < version

    def severity_before(self, version: tuple[int, int]) -> Severity:
        return "error" if self.version is not None and self.version < version else "hint"

    def source(self, name: str) -> str:
        """The tensor behind ``name`` when a pair stands between, else ``name``."""
        dequantize = self.makers.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return name
        quantize = self.makers.get(dequantize.input[0])
        return str(quantize.input[0]) if quantize is not None and quantize.op_type == "QuantizeLinear" else name

    def is_dequantized(self, name: str) -> bool:
        return name in self.makers and self.makers[name].op_type == "DequantizeLinear"

    def is_constant(self, name: str) -> bool:
        """A constant, also behind a QuantizeLinear or a pair."""
        while name not in self.initializers:
            node = self.makers.get(name)
            if node is None or node.op_type not in _QUANTIZERS:
                return False
            name = node.input[0]
        return True

    def code_type(self, node: Any) -> int:
        """The element type of the codes that a QuantizeLinear makes or a DequantizeLinear reads; 0 if unknown."""
        if len(node.input) > 2 and node.input[2] in self.types:
            return self.types[node.input[2]]
        if node.op_type == "DequantizeLinear":
            return self.types.get(node.input[0], 0)
        chosen = next((int(a.i) for a in node.attribute if a.name == "output_dtype"), 0)
        return chosen or _UINT8  # the standard's default

    def maker_type(self, name: str) -> str:
        return str(self.makers[name].op_type) if name in self.makers else ""


Rule: TypeAlias = Callable[[_Graph], Iterator[Finding]]


def _name(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))


def _error(node: str, rule: str, message: str, fix: str) -> Finding:
    return Finding(node=node, rule=rule, severity="error", message=message, fix=fix)


def _hint(node: str, rule: str, message: str, fix: str) -> Finding:
    return Finding(node=node, rule=rule, severity="hint", message=message, fix=fix)


def _quantizers(graph: _Graph) -> Iterator[Any]:
    for node in graph.nodes:
        if node.op_type in _QUANTIZERS and node.domain in ("", "ai.onnx"):
            yield node


# ------------------------------------------------------------------------------------------ the whole file


def _opset(graph: _Graph) -> Iterator[Finding]:
    opset = next((o.version for o in graph.model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if graph.version is None:
        lowest = next((v for v, newest in NEWEST_OPSET if opset <= newest), None)
        if lowest not in (None, NEWEST_OPSET[0][0]):
            message = f"opset {opset} needs TensorRT {_written(lowest)} or newer"
            yield _hint("graph", "opset", message, "export with opset 13 for JetPack 4, with 17 for JetPack 5 and 6.0")
        return
    newest = max((entry for entry in NEWEST_OPSET if entry[0] <= graph.version), default=NEWEST_OPSET[0])[1]
    if opset > newest:
        message = f"opset {opset} is too new for TensorRT {_written(graph.version)}, which takes up to {newest}"
        yield _error("graph", "opset", message, f"export the model with opset {newest} or older")


def _written(version: tuple[int, int] | None) -> str:
    return "?" if version is None else f"{version[0]}.{version[1]}"


def _operators(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            message = f"{node.domain}:{node.op_type} is not an operator of the ONNX standard"
            yield _error(_name(node), "operator", message, "replace it, or write a plugin and build the engine by hand")
        elif node.op_type in _INTEGER_OPERATORS:
            message = f"{node.op_type} is not explicit quantization"
            yield _error(_name(node), "operator", message, "quantize with QuantizeLinear/DequantizeLinear pairs")
        elif node.op_type in _ABSENT_OPERATORS:
            yield _error(_name(node), "operator", f"TensorRT has no {node.op_type}", "replace it in the model")


def _dynamic_shapes(graph: _Graph) -> Iterator[Finding]:
    for value in graph.model.graph.input:
        if value.name in graph.initializers:
            continue
        kind = value.type.tensor_type
        known = kind.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in kind.shape.dim)
        if not known:
            message = "the input's shape is not static, and TensorRT would take 1 where it is open"
            yield _error(value.name, "dynamic-shape", message, "fix it with --input-shape")
    for node in graph.nodes:
        if node.op_type in ("NonZero", "Compress", "Unique"):
            message = f"the shape of what {node.op_type} makes depends on the data"
            yield _hint(_name(node), "dynamic-shape", message, "leave it out of the model, and do it on the host")


def _types(graph: _Graph) -> Iterator[Finding]:
    ports = {value.name for value in [*graph.model.graph.input, *graph.model.graph.output]} - set(graph.initializers)
    for name, kind in graph.types.items():
        if kind == _DOUBLE and name in graph.initializers:
            message = "float64 weights are cast to float32"
            yield _hint(name, "type", message, "export the model in float32")
        elif kind == _DOUBLE:
            yield _error(name, "type", "TensorRT does not compute in float64", "export the model in float32")
        elif kind in _UNKNOWN_TYPES:
            message = f"TensorRT has no tensors of {_type_name(kind)}"
            yield _error(name, "type", message, "export the model with float32, float16, int8, int32 or bool tensors")
        elif kind == _INT64 and name in ports and graph.before(_INT64_SINCE):
            message = "int64 inputs and outputs are int32 before TensorRT 10"
            yield _hint(name, "type", message, "give and expect int32 there")
    yield from _wide_integers(graph)


def _wide_integers(graph: _Graph) -> Iterator[Finding]:
    import numpy as np

    limits = np.iinfo(np.int32)
    for name, tensor in graph.initializers.items():
        readers = [node.op_type for node in graph.readers.get(name, [])]
        if tensor.data_type != _INT64 or not graph.before(_INT64_SINCE) or set(readers) <= set(_CLAMPED_HARMLESSLY):
            continue
        values = graph.values(name)
        if values is not None and values.size and (values.min() < limits.min or values.max() > limits.max):
            message = "holds values beyond int32, which are clamped before TensorRT 10"
            yield _hint(name, "type", message, "use smaller values")


def _type_name(kind: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(kind)).lower()


# ------------------------------------------------------------------------------------------ single quantizers


def _code_types(graph: _Graph) -> Iterator[Finding]:
    for node in _quantizers(graph):
        kind = graph.code_type(node)
        if kind == _UINT8:
            message = "quantizes to uint8, which TensorRT clips as if it were int8"
            yield _error(_name(node), "unsigned", message, "quantize symmetrically to int8 (zero point 0)")
        elif kind == _INT32 and node.op_type == "DequantizeLinear":
            yield _error(_name(node), "quantized-bias", "dequantizes int32", "leave the bias in float")
        elif kind in _NEWER_CODES:
            if graph.before(_INT64_SINCE):
                yield Finding(
                    node=_name(node),
                    rule="code-type",
                    severity=graph.severity_before(_INT64_SINCE),
                    message=f"{_type_name(kind)} needs TensorRT 10",
                    fix="quantize to int8",
                )
        elif kind not in (0, _INT8):
            message = f"TensorRT does not quantize to {_type_name(kind)}"
            yield _error(_name(node), "code-type", message, "quantize to int8")


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    for node in _quantizers(graph):
        if len(node.input) < 3 or not node.input[2]:
            continue
        zero = graph.values(node.input[2])
        if zero is None:
            yield _error(_name(node), "zero-point", "the zero point is not a constant", "make it a constant 0")
        elif zero.astype("int64").any():
            value = zero.astype("int64").reshape(-1)[zero.reshape(-1).astype("int64").nonzero()[0][0]]
            message = f"the zero point is {value}, not 0"
            yield _error(_name(node), "zero-point", message, "quantize symmetrically to int8 (zero point 0)")


def _scales(graph: _Graph) -> Iterator[Finding]:
    for node in _quantizers(graph):
        scale = graph.values(node.input[1])
        if scale is None:
            yield _error(_name(node), "scale", "the scale is not a constant", "make it a constant")
            continue
        if not (scale.astype("float64") > 0).all():
            yield _error(_name(node), "scale", "a scale is not positive", "use any positive scale for what is zero")
        if scale.size > 1 and not graph.is_constant(node.input[0]):
            message = f"an activation has {scale.size} scales, and TensorRT takes one a tensor"
            yield _error(_name(node), "per-channel-activation", message, "quantize activations with one scale")


def _weight_axes(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in _CONVOLUTIONS or len(node.input) < 2 or not graph.is_dequantized(node.input[1]):
            continue
        dequantize = graph.makers[node.input[1]]
        scale = graph.values(dequantize.input[1])
        wanted = 0 if node.op_type == "Conv" else 1
        axis = next((int(a.i) for a in dequantize.attribute if a.name == "axis"), 1)
        if scale is not None and scale.size > 1 and axis != wanted:
            message = f"the weights of {node.op_type} {_name(node)} have their scales along axis {axis}, not {wanted}"
            yield _error(_name(dequantize), "weight-axis", message, f"quantize them along axis {wanted}")


# ------------------------------------------------------------------------------------------ what blocks fusion


def _adds(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type != "Add" or any(graph.is_constant(name) for name in node.input):
            continue
        quantized = [name for name in node.input if graph.is_dequantized(name)]
        convolved = [name for name in node.input if graph.maker_type(graph.source(name)) in _CONVOLUTIONS]
        bare = [name for name in convolved if name not in quantized]
        if convolved and len(quantized) == 2:
            message = "both inputs are quantized, so that the convolution before cannot take the Add along"
            yield _hint(_name(node), "both-add-inputs", message, "quantize the skip input only")
        elif convolved and quantized and not bare:
            message = "the pair stands between a convolution and its Add"
            yield _hint(_name(node), "blocks-fusion", message, "quantize the other (skip) input instead")


def _activations(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in _FUSED_AFTER or not node.input or not graph.is_dequantized(node.input[0]):
            continue
        maker = graph.maker_type(graph.source(node.input[0]))
        if maker in _WEIGHTED:
            message = f"the pair stands between {maker} and {node.op_type}, which would be one kernel"
            yield _hint(_name(node), "blocks-fusion", message, f"quantize behind the {node.op_type}")


def _concats(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type != "Concat" or not all(graph.is_dequantized(name) for name in node.input):
            continue
        scales = {graph.makers[name].input[1]: graph.values(graph.makers[name].input[1]) for name in node.input}
        if len({scale.tobytes() for scale in scales.values() if scale is not None}) > 1:
            message = "the inputs have different scales, so that each is scaled again"
            yield _hint(_name(node), "concat-scales", message, "give all inputs the same scale")


_RULES: tuple[Rule, ...] = (
    _opset, _operators, _dynamic_shapes, _types, _code_types, _zero_points, _scales, _weight_axes, _adds,
    _activations, _concats,
)  # fmt: skip
