"""Writes out the error function, which TFLite lacks.

Before::  Erf(x)      After::  p(x) / q(x), two polynomials of x limited to [-4, 4]

The coefficients are Eigen's (``generic_fast_erf_float``): the error is below 1e-6.
"""

from __future__ import annotations

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.ir import Graph, Node
from edgecompile.lower.direct.passes.rewriter import add, take_over

#: From the highest power down: of the odd numerator, and of the even denominator.
_ODD = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_EVEN = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


def run(graph: Graph) -> None:
    """Replace every error function."""
    for node in list(graph.nodes):
        if node.op == ir.Unary(kind="ERF"):
            _write_out(graph, node)


def _write_out(graph: Graph, node: Node) -> None:
    def step(kind: ir.BinaryKind, a: str, b: str | float) -> str:
        if isinstance(b, float):
            shape = (1,) * graph.values[node.inputs[0]].rank
            b = graph.constant(np.full(shape, b, np.float32), f"{node.outputs[0]}/constant").name
        return add(graph, ir.Binary(kind=kind), (a, b), f"{node.outputs[0]}/erf", node.origin).name

    def polynomial(square: str, coefficients: tuple[float, ...]) -> str:
        total = step("ADD", step("MUL", square, coefficients[0]), coefficients[1])
        for coefficient in coefficients[2:]:
            total = step("ADD", step("MUL", total, square), coefficient)
        return total

    x = step("MINIMUM", step("MAXIMUM", node.inputs[0], -4.0), 4.0)
    square = step("MUL", x, x)
    top = step("MUL", x, polynomial(square, _ODD))
    take_over(graph, node, ir.Binary(kind="DIV"), (top, polynomial(square, _EVEN)))
