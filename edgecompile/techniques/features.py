"""The features of a classifier: what it pools over all pixels before it decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_POOLS = ("GlobalAveragePool", "ReduceMean", "AveragePool")


def pooled(model: onnx.ModelProto) -> str | None:
    """The name of the N x C x H x W tensor that the last pooling over all pixels reads, or ``None``.

    Only a pooling that ends on one pixel counts, and only where shapes are known.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        info.name: tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    }
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in reversed(model.graph.node):
        if node.op_type not in _POOLS or node.input[0] in constants:
            continue
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        if len(before) == 4 and before[2] * before[3] > 1 and _one_pixel(before, after):
            return str(node.input[0])
    return None


def _one_pixel(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether all pixels became one, and no channel went with them."""
    return after[:2] == before[:2] and all(size == 1 for size in after[2:])


__all__ = ["pooled"]
