"""The ONNX operators that are lowered, by name: each family has a module with a dictionary of its handlers."""

from __future__ import annotations

from edgecompile.lower.direct.ops import (
    activation,
    conv,
    data,
    elementwise,
    linear,
    norm,
    pool,
    recurrent,
    reduce,
    resize,
    shape,
)
from edgecompile.lower.direct.read import Handler

HANDLERS: dict[str, Handler] = {
    **activation.HANDLERS,
    **conv.HANDLERS,
    **data.HANDLERS,
    **elementwise.HANDLERS,
    **linear.HANDLERS,
    **norm.HANDLERS,
    **pool.HANDLERS,
    **recurrent.HANDLERS,
    **reduce.HANDLERS,
    **resize.HANDLERS,
    **shape.HANDLERS,
}

__all__ = ["HANDLERS"]
