"""Operator costs of an ONNX file. (Thin version.)"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompile.types import OperatorCost


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSummary:
    """Totals of a graph."""

    parameters: int
    macs: int
    opset: int
    operators: tuple[tuple[str, int], ...]


def _prod(values: Any) -> int:
    total = 1
    for v in values:
        total *= v
    return total


def operators(path: Path) -> tuple[OperatorCost, ...]:
    """Convolutions and matrix products of a static graph."""
    import onnx

    model = onnx.load(path)
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        w = weights.get(node.input[1], (1,))
        out = shapes.get(node.output[0], (1,))
        macs = _prod(out) * _prod(w[1:]) if node.op_type == "Conv" else _prod(w)
        found.append(
            OperatorCost(
                name=node.name,
                op_type=node.op_type,
                op_class="conv",
                macs=macs,
                weight_elements=_prod(w),
                input_elements=_prod(shapes.get(node.input[0], (1,))),
                output_elements=_prod(out),
            )
        )
    return tuple(found)


def summary(path: Path) -> GraphSummary:
    """Totals of a graph."""
    import collections

    import onnx

    model = onnx.load(path)
    return GraphSummary(
        parameters=sum(_prod(t.dims) for t in model.graph.initializer),
        macs=sum(c.macs for c in operators(path)),
        opset=model.opset_import[0].version,
        operators=tuple(collections.Counter(n.op_type for n in model.graph.node).most_common()),
    )
