"""Operators as ONNX Runtime is fast with them, in place of others that mean the same.

Exporters write GELU out (Hendrycks and Gimpel 2016), and each with its factors in another order. ONNX Runtime fuses::

    (x * (1 + erf(x / sqrt(2)))) * 0.5        (x * 0.5) * (1 + erf(x / sqrt(2)))

and computes five operators, each over the whole tensor, where it meets ``x * (0.5 * (1 + erf(x / sqrt(2))))``, which is
what PyTorch's exporter makes, or a product by ``sqrt(0.5)`` in place of the quotient.

In INT8 its convolutions want channels last. Global pooling, which comes as ReduceMean or AveragePool, is slow there,
and GlobalAveragePool is not; over windows that all hold the same number of elements, a depthwise convolution does what
its slow AveragePool does. In float32 neither is worth a change.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecompile.lower import base
from edgecompile.types import Precision

if TYPE_CHECKING:
    import onnx


#: ``onnx.TensorProto.FLOAT``.
_FLOAT = 1
_AVERAGE = "edgecompile_average_"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gelu:
    """The product of ``x``, ``half`` and ``shifted``, which is ``1 + erf(scaled)``: two of them are multiplied by the
    node ``inner``, that and the third by ``outer``. ``x``, ``half`` and ``shifted`` are names of tensors."""

    x: str
    half: str
    shifted: str
    scaled: onnx.NodeProto
    scale_shape: tuple[int, ...]
    inner: onnx.NodeProto
    outer: onnx.NodeProto


def arrange(proto: onnx.ModelProto, precision: Precision) -> int:
    """Change a prepared graph into what is fast in one precision; how many of its operators were something else.

    Needs the shapes of tensors in ``value_info``. INT8's activations are tables, so that GELU stays as it is there.
    """
    changed = _gelus(proto) if precision != "int8" else _pools(proto)
    if changed:
        _drop_unused(proto)
    return changed


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Drop constants that nothing reads any more: ONNX Runtime warns of each."""
    used = {name for node in base.nodes_of(proto.graph) for name in node.input}
    used |= {value.name for value in (*proto.graph.output, *proto.graph.input)}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _pools(proto: onnx.ModelProto) -> int:
    """Make poolings what is fast in INT8."""
    shapes = _shapes(proto)
    changed = sum(_global_pool(proto, node, shapes) for node in list(proto.graph.node))
    pools = [node for node in proto.graph.node if node.op_type == "AveragePool"]
    return changed + sum(_depthwise(proto, node, shapes) for node in pools)


def is_average(node: onnx.NodeProto) -> bool:
    """Whether a convolution is one that was made of an average: it has no weights that a precision matters to."""
    return any(name.startswith(_AVERAGE) for name in node.input)


def _unused(proto: onnx.ModelProto, prefix: str) -> str:
    """A name that nothing in the graph has."""
    taken = {name for node in base.nodes_of(proto.graph) for name in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in proto.graph.initializer}
    return next(name for i in itertools.count() if (name := f"{prefix}{i}") not in taken)


def _gelus(proto: onnx.ModelProto) -> int:
    """Bring every GELU into an order that is fused."""
    reader = _Reader(proto)
    found = [gelu for node in proto.graph.node if (gelu := reader.gelu(node)) is not None]
    for gelu in found:
        if gelu.x not in gelu.inner.input:
            gelu.inner.input[:] = [gelu.x, gelu.shifted]
            gelu.outer.input[:] = [gelu.inner.output[0], gelu.half]
        if gelu.scaled.op_type == "Mul":
            _divide(proto, gelu, _unused(proto, "edgecompile_root_"))
    return len(found)


def _divide(proto: onnx.ModelProto, gelu: _Gelu, name: str) -> None:
    import numpy as np
    from onnx import numpy_helper

    root = np.full(gelu.scale_shape, math.sqrt(2), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(root, name))
    gelu.scaled.op_type = "Div"
    gelu.scaled.input[:] = [gelu.x, name]


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of float32 tensors: others have kernels of their own, or none."""
    values = [v for v in (*proto.graph.input, *proto.graph.value_info) if v.type.tensor_type.elem_type == _FLOAT]
    return {v.name: tuple(int(d.dim_value) for d in v.type.tensor_type.shape.dim) for v in values}


def _axes(proto: onnx.ModelProto, node: onnx.NodeProto) -> list[int]:
    """The axes of a reduction: an attribute, and from opset 18 on a constant."""
    from onnx import numpy_helper

    if len(node.input) < 2:
        return base.integers(node, "axes")
    found = next((tensor for tensor in proto.graph.initializer if tensor.name == node.input[1]), None)
    return [] if found is None else [int(axis) for axis in numpy_helper.to_array(found)]


def _global_pool(proto: onnx.ModelProto, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Make a mean over whole maps a global pooling; whether it was one."""
    shape = shapes.get(node.input[0], ()) if node.input else ()
    if len(shape) != 4:
        return False
    if node.op_type == "ReduceMean":
        over_maps = {axis % 4 for axis in _axes(proto, node)} == {2, 3}
        if over_maps and base.integers(node, "keepdims", [1]) == [0]:
            _flatten_behind(proto, node)
    else:
        whole = base.integers(node, "kernel_shape") == list(shape[2:]) and not any(base.integers(node, "pads"))
        over_maps = node.op_type == "AveragePool" and whole and _plain_windows(node)
    if over_maps:
        del node.input[1:]
        del node.attribute[:]
        node.op_type = "GlobalAveragePool"
    return over_maps


def _flatten_behind(proto: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Let the pooling keep its axes, and another operator drop them."""
    from onnx import helper

    flat, place = node.output[0], list(proto.graph.node).index(node) + 1
    node.output[0] = _unused(proto, "edgecompile_pooled_")
    made = helper.make_node("Flatten", [node.output[0]], [flat], name=f"{node.name or flat}_flat", axis=1)
    proto.graph.node.insert(place, made)


def _plain_windows(node: onnx.NodeProto) -> bool:
    padded = any(attribute.name == "auto_pad" and attribute.s != b"NOTSET" for attribute in node.attribute)
    return (
        not padded
        and set(base.integers(node, "dilations", [1])) == {1}
        and base.integers(node, "ceil_mode", [0]) == [0]
    )


def _depthwise(proto: onnx.ModelProto, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Make a pooling whose windows all have as many elements a depthwise convolution; whether it was one."""
    import numpy as np
    from onnx import helper, numpy_helper

    shape, pads = shapes.get(node.input[0], ()), base.integers(node, "pads")
    alike = not any(pads) or base.integers(node, "count_include_pad") == [1]
    if len(shape) != 4 or not alike or not _plain_windows(node):
        return False
    kernel, name = base.integers(node, "kernel_shape"), _unused(proto, _AVERAGE)
    weights = np.full((shape[1], 1, *kernel), 1 / math.prod(kernel), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, name))
    kept = [attribute for attribute in node.attribute if attribute.name in ("kernel_shape", "strides", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("group", shape[1])])
    node.op_type = "Conv"
    node.input.append(name)
    return True


class _Reader:
    """Finds GELUs that ONNX Runtime does not."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._makers = {name: node for node in proto.graph.node for name in node.output}
        self._constants = {
            tensor.name: tensor
            for tensor in proto.graph.initializer
            if math.prod(tensor.dims) == 1 and tensor.data_type == _FLOAT
        }
        # What a branch of If reads is read, too.
        self._uses = Counter(name for node in base.nodes_of(proto.graph) for name in node.input)
        self._uses.update(value.name for value in proto.graph.output)

    def gelu(self, outer: onnx.NodeProto) -> _Gelu | None:
        """The GELU that a product ends; ``None`` where there is none, or one that is fused as it is."""
        for third, factor in _both(outer, "Mul"):
            inner = self._makers.get(factor)
            if inner is None or inner.op_type != "Mul" or not self._inside(inner):
                continue
            for x, half, shifted in itertools.permutations((third, *inner.input)):
                scaled = self._scaled(x, shifted) if self._is(half, 0.5) else None
                if scaled is not None and (x == third or scaled.op_type == "Mul"):
                    return _Gelu(
                        x=x, half=half, shifted=shifted, scaled=scaled, scale_shape=self._scale_shape(scaled),
                        inner=inner, outer=outer,
                    )  # fmt: skip
        return None

    def _scaled(self, x: str, shifted: str) -> onnx.NodeProto | None:
        """The node that makes ``x / sqrt(2)``, where ``shifted`` is one more than its error function."""
        added = self._makers.get(shifted)
        for name, one in _both(added, "Add"):
            curve = self._makers.get(name)
            if curve is None or added is None or curve.op_type != "Erf" or not self._is(one, 1.0):
                continue
            scaled = self._makers.get(curve.input[0])
            if scaled is not None and self._halves(scaled, x) and all(map(self._inside, (scaled, curve, added))):
                return scaled
        return None

    def _halves(self, scaled: onnx.NodeProto, x: str) -> bool:
        if scaled.op_type == "Div":
            return scaled.input[0] == x and self._is(scaled.input[1], math.sqrt(2))
        return any(name == x and self._is(other, math.sqrt(0.5)) for name, other in _both(scaled, "Mul"))

    def _scale_shape(self, scaled: onnx.NodeProto) -> tuple[int, ...]:
        return next((tuple(self._constants[name].dims) for name in scaled.input if name in self._constants), ())

    def _inside(self, node: onnx.NodeProto) -> bool:
        return self._uses[node.output[0]] == 1

    def _is(self, name: str, value: float) -> bool:
        from onnx import numpy_helper

        tensor = self._constants.get(name)
        return tensor is not None and math.isclose(float(numpy_helper.to_array(tensor).item()), value, rel_tol=1e-5)


def _both(node: onnx.NodeProto | None, op_type: str) -> tuple[tuple[str, str], ...]:
    """The operands of a node of two, in both orders; nothing for a node of another kind."""
    if node is None or node.op_type != op_type:
        return ()
    a, b = node.input
    return (a, b), (b, a)
