"""INT8 as explicit quantization: QuantizeLinear/DequantizeLinear pairs in an ONNX graph, as TensorRT takes them.

`quantize` measures ranges (`ranges`), places pairs (`insert`) and keeps the method of ranges whose graph is closest to
the float one on the calibration samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import base, trt_opset
from edgecompile.lower.qdq import insert, ranges
from edgecompile.lower.qdq.ranges import METHODS, Method
from edgecompile.types import Arrays

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

#: Scales a channel, as weights have them, came with this opset.
MIN_OPSET = 13
#: Samples on which the methods are compared.
_COMPARED = 32
_CEILING_DB = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """An INT8 graph, and how it came about.

    ``method`` is the one whose graph has the highest SQNR; ``sqnr_db`` has that of every method tried, against the
    float graph on calibration samples. ``quantized`` and ``left_in_float`` name the operators with weights.
    """

    model: onnx.ModelProto
    method: Method
    sqnr_db: tuple[tuple[Method, float], ...]
    quantized: tuple[str, ...]
    left_in_float: tuple[str, ...]


def quantize(
    proto: onnx.ModelProto,
    samples: Sequence[Arrays],
    *,
    name: str = "the model",
    exclude: Collection[str] = (),
    methods: Sequence[Method] = METHODS,
) -> Quantized:
    """The graph in Q/DQ form: the same graph and samples, the same bytes.

    ``exclude`` names nodes whose inputs stay in float. Raises `InputError` without samples and for a name in
    ``exclude`` that no node has, `UnsupportedModelError` where there is nothing to quantize.
    """
    base.require_samples(samples, "INT8 quantization")
    floating = prepared(proto)
    _require_known(floating, exclude)
    where = insert.sites(floating, exclude)
    if not where.quantized:
        raise UnsupportedModelError(
            f"{name} has no convolution or matrix product with constant float weights: nothing to run in INT8",
            remedy="use --precision fp16",
        )
    histograms = ranges.measure(floating, list(where.edges), samples)
    made = {m: insert.insert(floating, where, insert.scales(where, ranges.limits(histograms, m))) for m in methods}
    found = _compared(floating, made, samples)
    # In the order of preference: a method must be strictly better to displace the one before it.
    best = max(methods, key=lambda method: found[method])
    return Quantized(
        model=made[best],
        method=best,
        sqnr_db=tuple((method, found[method]) for method in methods),
        quantized=where.quantized,
        left_in_float=where.left_in_float,
    )


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every node named, Constant nodes as initializers, at an opset that has scales a channel."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(trt_opset.raised(proto, MIN_OPSET))
    graph = result.graph
    taken = {node.name for node in graph.node}
    kept = []
    for number, node in enumerate(graph.node):
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None:
            constant = onnx.TensorProto()
            constant.CopyFrom(tensor)
            constant.name = node.output[0]
            graph.initializer.append(constant)
            continue
        if not node.name:
            node.name = _unused(f"{node.op_type}_{number}", taken)
            taken.add(node.name)
        kept.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _unused(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted


def _require_known(proto: onnx.ModelProto, exclude: Collection[str]) -> None:
    names = {node.name for node in proto.graph.node}
    unknown = sorted(set(exclude) - names)
    if unknown:
        raise InputError(f"no operator is named {unknown[0]!r}", remedy="operators are named as in the prepared ONNX")


# ------------------------------------------------------------------------------------------------- comparing


def _compared(
    floating: onnx.ModelProto, made: dict[Method, onnx.ModelProto], samples: Sequence[Arrays]
) -> dict[Method, float]:
    """The SQNR (dB) of each graph against the float one; equal graphs are run once."""
    used = [samples[i] for i in range(min(_COMPARED, len(samples)))]
    expected = outputs_of(floating, used)
    by_bytes: dict[bytes, float] = {}
    found = {}
    for method, model in made.items():
        data = model.SerializeToString(deterministic=True)
        if data not in by_bytes:
            by_bytes[data] = sqnr_db(expected, outputs_of(model, used))
        found[method] = by_bytes[data]
    return found


def outputs_of(model: onnx.ModelProto, samples: Sequence[Arrays]) -> list[dict[str, npt.NDArray[Any]]]:
    """A graph's outputs for each sample, computed as it is defined, without integer kernels."""
    run = ranges.runner(model.SerializeToString(deterministic=True), fused=False)
    return [run(sample) for sample in samples]


def sqnr_db(expected: list[dict[str, npt.NDArray[Any]]], found: list[dict[str, npt.NDArray[Any]]]) -> float:
    """Signal over noise power (dB), where each output counts relative to its own power over all samples."""
    import numpy as np

    ratios = []
    for name in expected[0]:
        signal = np.stack([np.asarray(values[name], np.float64) for values in expected])
        noise = np.stack([np.asarray(values[name], np.float64) for values in found]) - signal
        finite = np.isfinite(signal) & np.isfinite(noise)
        ratios.append(np.square(noise[finite]).sum() / max(np.square(signal[finite]).sum(), 1e-30))
    return float(min(-10 * np.log10(max(float(np.mean(ratios)), 1e-30)), _CEILING_DB))


__all__ = ["METHODS", "MIN_OPSET", "Method", "Quantized", "outputs_of", "prepared", "quantize", "sqnr_db"]
