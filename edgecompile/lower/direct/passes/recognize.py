"""Recognizes activations that exporters write out, and that the runtime has as one operator.

Before::                                                          After::

    x * 0.5 * (1 + erf(x / sqrt(2)))                                  Gelu(x)
    x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))      Gelu(x, approximate)
    x * relu6(x + 3) / 6                                              HardSwish(x)
    min(max(x, 0), 6)                                                 Relu6(x)

The factors of a product may stand in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node
from edgecompile.lower.direct.passes.rewriter import binary_with_scalar, same, scalar_of, take_over


def run(graph: Graph) -> None:
    """Replace each activation that is found by one operator that makes the same tensor."""
    for node in list(graph.nodes):
        if node in graph.nodes and isinstance(node.op, ir.Binary) and node.op.activation == "NONE":
            if node.op.kind == "MUL":
                _product(graph, node)
            elif node.op.kind in ("MINIMUM", "MAXIMUM"):
                _clip(graph, node)


def _factors(graph: Graph, name: str, *, top: bool = True) -> Iterator[str]:
    """The tensors whose product ``name`` is; a factor that is also read elsewhere is not taken apart."""
    node = graph.producer(name)
    inner = node is not None and isinstance(node.op, ir.Binary) and node.op == ir.Binary(kind="MUL")
    if node is None or not inner or not (top or graph.only_consumer(name) is not None):
        yield name
        return
    for operand in node.inputs:
        yield from _factors(graph, operand, top=False)


def _product(graph: Graph, node: Node) -> None:
    """Take a product apart into a number, ``x``, and one other tensor."""
    number, tensors = 1.0, []
    for name in _factors(graph, node.outputs[0]):
        constant = scalar_of(graph, name)
        if constant is None:
            tensors.append(name)
        else:
            number *= constant
    if len(tensors) != 2:
        return
    for x, other in (tensors, tensors[::-1]):
        op = _unit(graph, x, other, number)
        if op is not None and graph.values[x].shape == graph.values[node.outputs[0]].shape:
            take_over(graph, node, op, (x,))
            return


def _unit(graph: Graph, x: str, other: str, number: float) -> ir.Op | None:
    """The activation that ``number * x * other`` is."""
    ramp = graph.producer(other)
    if ramp is not None and ramp.op == ir.Unary(kind="RELU6"):
        shifted = binary_with_scalar(graph, graph.producer(ramp.inputs[0]), "ADD")
        if shifted is not None and shifted[0] == x and same(shifted[1], 3) and same(number, 1 / 6):
            return ir.Unary(kind="HARD_SWISH")
    shifted = binary_with_scalar(graph, ramp, "ADD")
    if shifted is None or not same(shifted[1], 1) or not same(number, 0.5):
        return None
    curve = graph.producer(shifted[0])
    if curve is None or not isinstance(curve.op, ir.Unary):
        return None
    if curve.op.kind == "ERF":
        scaled = binary_with_scalar(graph, graph.producer(curve.inputs[0]), "MUL")
        if scaled is not None and scaled[0] == x and same(scaled[1], math.sqrt(0.5), 1e-5):
            return ir.Gelu(approximate=False)
    if curve.op.kind == "TANH" and _is_cubic(graph, curve.inputs[0], x):
        return ir.Gelu(approximate=True)
    return None


def _is_cubic(graph: Graph, name: str, x: str) -> bool:
    """Whether ``name`` is ``sqrt(2 / pi) * (x + 0.044715 * x ** 3)``, or that with the factor ``x`` in front."""
    number, tensors = _split(graph, name)
    if not same(number, math.sqrt(2 / math.pi), 1e-4):
        return False
    if len(tensors) == 2 and x in tensors:
        (rest,) = (t for t in tensors if t != x) if tensors[0] != tensors[1] else (x,)
        inner = binary_with_scalar(graph, graph.producer(rest), "ADD")
        return inner is not None and same(inner[1], 1) and _split(graph, inner[0]) == (_CUBIC, [x, x])
    total = graph.producer(tensors[0]) if len(tensors) == 1 else None
    if total is None or total.op != ir.Binary(kind="ADD") or x not in total.inputs:
        return False
    (cube,) = (t for t in total.inputs if t != x) if total.inputs[0] != total.inputs[1] else (x,)
    factor, thrice = _split(graph, cube)
    return same(factor, _CUBIC, 1e-4) and thrice == [x, x, x]


_CUBIC = 0.044715


def _split(graph: Graph, name: str) -> tuple[float, list[str]]:
    number, tensors = 1.0, []
    for factor in _factors(graph, name):
        constant = scalar_of(graph, factor)
        if constant is None:
            tensors.append(factor)
        else:
            number *= constant
    return (_CUBIC if same(number, _CUBIC, 1e-4) else number), tensors


def _clip(graph: Graph, node: Node) -> None:
    """``min(max(x, low), high)`` and ``max(min(x, high), low)`` with the bounds of an operator."""
    kind = node.op.kind  # type: ignore[attr-defined]
    outer = binary_with_scalar(graph, node, kind)
    if outer is None or graph.values[node.outputs[0]].dtype != "float32":
        return
    before = graph.producer(outer[0])
    if kind == "MAXIMUM" and outer[1] == 0:
        take_over(graph, node, ir.Unary(kind="RELU"), (outer[0],))
        return
    if before is None or graph.only_consumer(outer[0]) is not node:
        return
    if before.op == ir.Unary(kind="RELU"):
        bounds, x = (0.0, outer[1]) if kind == "MINIMUM" else None, before.inputs[0]
    else:
        inner = binary_with_scalar(graph, before, "MAXIMUM" if kind == "MINIMUM" else "MINIMUM")
        if inner is None:
            return
        bounds, x = (inner[1], outer[1]) if kind == "MINIMUM" else (outer[1], inner[1]), inner[0]
    if bounds in _CLIPS:
        take_over(graph, node, ir.Unary(kind=_CLIPS[bounds]), (x,))


_CLIPS: dict[tuple[float, float] | None, ir.UnaryKind] = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
