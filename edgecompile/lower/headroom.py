"""Room for eight bits: ranges and weights for which an int8 convolution or dense layer can be built.

The bias of such a layer is an int32 on the scale of its input times that of its weights, channel by channel. One
whose weights are all 0 (it was pruned, or its BatchNorm has a factor of 0) has next to no scale, and its bias no
integer. A layer whose input or output was 0 on all samples has ratios of scales that XNNPACK refuses to load.

What is changed stays below the last bit: a bias moves by at most 2e-5 of itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgecompile.lower import flatbuffer, islands
from edgecompile.lower.islands import Ranges

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: By operator: where the input, the weights and the bias stand, and the weights' axis of output channels.
_LAYERS = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
_STEPS, _WEIGHT_STEPS = 255, 127
#: A bias may be so many steps of its scale: half of int32, so that sums have room beside it.
_BIAS_STEPS = 2.0**30
#: XNNPACK refuses scales of input and weights whose product is 256 times the output's; half of that is asked for.
_LARGEST_RATIO = 128.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer with constant weights; ``largest`` holds each channel's largest one.

    ``source`` names the tensor from which its input's scale comes, ``result`` its output.
    """

    operator: Any
    source: str
    result: str
    weights: npt.NDArray[np.float32]
    largest: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    axis: int


def with_room(data: bytes, ranges: Ranges) -> tuple[bytes, Ranges]:
    """A float file and its ranges with which every layer can be built in int8; mostly the same ones."""
    graph = flatbuffer.unpack(data)
    widened = dict(ranges)
    for layer in _layers(graph, widened):
        if layer.source in widened and layer.result in widened:
            _widen(layer, widened)
            _give_scales(graph, layer, widened)
    return flatbuffer.pack(graph), widened


def _layers(graph: Any, ranges: Ranges) -> Iterator[_Layer]:
    import numpy as np

    producers = {int(i): operator for operator in graph.subgraphs[0].operators for i in operator.outputs}
    tensors = graph.subgraphs[0].tensors
    for operator in graph.subgraphs[0].operators:
        places = _LAYERS.get(flatbuffer.operator_name(graph, operator))
        if places is None:
            continue
        source, at, bias_at, axis = places
        weights = flatbuffer.constant_floats(graph, tensors[operator.inputs[at]])
        if weights is None:
            continue
        shaped = weights.reshape([int(d) for d in tensors[operator.inputs[at]].shape])
        channels = shaped.shape[axis]
        given = bias_at < len(operator.inputs) and operator.inputs[bias_at] >= 0
        bias = flatbuffer.constant_floats(graph, tensors[operator.inputs[bias_at]]) if given else None
        yield _Layer(
            operator=operator,
            source=flatbuffer.tensor_name(tensors[islands.origin(graph, producers, operator.inputs[source], ranges)]),
            result=flatbuffer.tensor_name(tensors[operator.outputs[0]]),
            weights=shaped,
            largest=np.abs(shaped).max(axis=tuple(a for a in range(shaped.ndim) if a != axis)),
            bias=np.zeros(channels, np.float32) if bias is None else bias,
            axis=axis,
        )


def _width(span: tuple[float, float]) -> float:
    return max(span[1], 0.0) - min(span[0], 0.0)


def _at_least(ranges: dict[str, tuple[float, float]], name: str, width: float) -> None:
    """Widen a range, which always holds 0, upwards."""
    if _width(ranges[name]) < width:
        low = min(ranges[name][0], 0.0)
        ranges[name] = (low, low + width)


def _widen(layer: _Layer, ranges: dict[str, tuple[float, float]]) -> None:
    """The input's range so that the largest weight's scale gives the largest bias an integer; the output's by ratio."""
    weight = float(layer.largest.max()) or 1.0
    bias = float(abs(layer.bias).max(initial=0.0))
    _at_least(ranges, layer.source, bias * _STEPS * _WEIGHT_STEPS / (weight * _BIAS_STEPS))
    _at_least(ranges, layer.result, _width(ranges[layer.source]) * weight / (_WEIGHT_STEPS * _LARGEST_RATIO))


def _give_scales(graph: Any, layer: _Layer, ranges: Ranges) -> None:
    """Raise the largest weight of a channel whose weights have too small a scale for its bias.

    Before: ``w = [0, 0, 0], b = 5``. After: ``w = [4e-6, 0, 0], b = 5``, for an input of up to 6.
    """
    import numpy as np

    step = max(_width(ranges[layer.source]), 1e-9) / _STEPS
    needed = np.abs(layer.bias) * _WEIGHT_STEPS / (step * _BIAS_STEPS)
    short = np.flatnonzero(layer.largest < needed)
    if not short.size:
        return
    weights = layer.weights.copy()
    for channel in short:
        part = np.moveaxis(weights, layer.axis, 0)[channel]
        place = np.unravel_index(np.abs(part).argmax(), part.shape)
        part[place] = needed[channel] if part[place] >= 0 else -needed[channel]
    at = _LAYERS[flatbuffer.operator_name(graph, layer.operator)][1]
    inputs = [int(i) for i in layer.operator.inputs]
    inputs[at] = flatbuffer.add_constant(graph, weights, graph.subgraphs[0].tensors[inputs[at]])
    layer.operator.inputs = inputs
