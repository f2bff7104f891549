"""What convolutions and pools share: reading strides, dilations and pads, and adding an axis to 1-D operands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Value

Pair: TypeAlias = tuple[int, int]


def image(b: Builder, x: Value) -> Value:
    """A tensor of rank 3, ``N, C, L``, as an image ``N, C, 1, L``; one of rank 4 as it is."""
    if x.rank == 4:
        return x
    if x.rank != 3:
        raise RefusedError(f"its operand has {x.rank - 2} spatial axes; 1 and 2 are lowered")
    return b.reshape(x, (*x.shape[:2], 1, x.shape[2]))


def like(b: Builder, y: Value, x: Value) -> Value:
    """The image ``y`` with the number of axes that ``x`` has."""
    return y if x.rank == 4 else b.reshape(y, (*y.shape[:2], y.shape[3]))


def pair(values: Sequence[int] | None, rank: int, default: int, what: str) -> Pair:
    """An attribute with one number for each spatial axis, for two axes."""
    if values is None:
        return default, default
    if len(values) != rank - 2 or min(values) < 1:
        raise RefusedError(f"its {what} are {tuple(values)}")
    return (default, values[0]) if rank == 3 else (values[0], values[1])


def pads_of(
    node: OnnxNode, rank: int, size: Sequence[int], kernel: Pair, strides: Pair, dilations: Pair
) -> tuple[Pair, Pair]:
    """``(before, after)`` of both spatial axes, as the node's ``pads`` or ``auto_pad`` give them."""
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        found = [same_pads(size[i], kernel[i], strides[i], dilations[i]) for i in range(2)]
        return tuple(p if auto == "SAME_UPPER" else p[::-1] for p in found)  # type: ignore[return-value]
    if auto not in ("NOTSET", "VALID", ""):
        raise RefusedError(f"auto_pad is {auto!r}")
    pads = node.ints("pads") if auto != "VALID" else None
    if pads is None:
        return (0, 0), (0, 0)
    if len(pads) != 2 * (rank - 2):
        raise RefusedError(f"its pads are {pads}")
    return ((0, 0), (pads[0], pads[1])) if rank == 3 else ((pads[0], pads[2]), (pads[1], pads[3]))


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> Pair:
    """Pads that give ``ceil(size / stride)`` places, the odd one after: ONNX's SAME_UPPER and TFLite's SAME."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def same_is_safe(size: int, kernel: int, stride: int, dilation: int) -> bool:
    """Whether SAME's places reach the end of an axis.

    Where a stride larger than the kernel leaves elements over behind the last place, XNNPACK (LiteRT 2.1) pads SAME
    wrongly on the other axis.
    """
    return (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 >= size


def pad_image(b: Builder, x: Value, pads: tuple[Pair, Pair], value: float = 0.0) -> Value:
    """An image with a border; negative pads crop it."""
    for i, (before, after) in enumerate(pads):
        end = x.shape[2 + i] + min(after, 0)
        if end <= max(-before, 0):
            raise RefusedError(f"its pads {pads} leave nothing of {x.shape}")
        x = b.slice(x, 2 + i, max(-before, 0), end)
    return b.pad(x, ((0, 0), (0, 0), *((max(p, 0), max(q, 0)) for p, q in pads)), value)
