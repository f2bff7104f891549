"""Operators that move, join and take apart data."""

from __future__ import annotations

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError, axis_of
from edgecompile.lower.direct.ir import Value
from edgecompile.lower.direct.read import Handler


def _concat(b: Builder, node: OnnxNode) -> Value:
    values = [node.required(i) for i in range(len(node.inputs))]
    axis = axis_of(node.integer("axis", 1 if node.opset < 4 else 0), values[0].rank)
    kept = [v for v in values if v.elements] or values[:1]
    return kept[0] if len(kept) == 1 else b.add(ir.Concat(axis=axis), *kept)


def _split(b: Builder, node: OnnxNode) -> list[Value]:
    x = node.required(0)
    axis = axis_of(node.integer("axis", 0), x.rank)
    sizes = node.ints("split") if node.opset < 13 else node.ints_operand(1, "sizes")
    if sizes is None:
        count = node.integer("num_outputs", len(node.outputs))
        if count < 1 or count > x.shape[axis] or count != len(node.outputs):
            raise RefusedError(f"{x.shape[axis]} elements in {count} parts")
        part = -(-x.shape[axis] // count)
        sizes = (*(part,) * (count - 1), x.shape[axis] - part * (count - 1))
        if node.opset < 18 and part * count != x.shape[axis]:
            raise RefusedError(f"{x.shape[axis]} elements do not split into {count} equal parts")
    if min(sizes, default=-1) < 0 or sum(sizes) != x.shape[axis] or len(sizes) != len(node.outputs):
        raise RefusedError(f"it splits {x.shape[axis]} elements into {sizes}")
    filled = tuple(size for size in sizes if size)
    parts = iter(b.add_all(ir.Split(axis=axis, sizes=filled), x) if len(filled) > 1 else [x])
    empty = [*x.shape[:axis], 0, *x.shape[axis + 1 :]]
    return [next(parts) if size else b.constant(np.zeros(empty), x.dtype) for size in sizes]


def _slice(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    if node.opset < 10:
        starts, ends, axes, steps = node.ints("starts"), node.ints("ends"), node.ints("axes"), None
    else:
        starts, ends = node.ints_operand(1, "starts"), node.ints_operand(2, "ends")
        axes, steps = node.ints_operand(3, "axes"), node.ints_operand(4, "steps")
    if starts is None or ends is None:
        raise RefusedError("it has no starts or no ends")
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise RefusedError(f"starts {starts}, ends {ends}, axes {axes}, steps {steps}")
    begin, size, strides = [0] * x.rank, list(x.shape), [1] * x.rank
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = axis_of(given, x.rank)
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        begin[axis], size[axis], strides[axis] = places.start, len(places), step if len(places) > 1 else 1
    if min(size, default=1) == 0:
        return b.constant(np.zeros(size), x.dtype)
    if tuple(size) == x.shape and all(s == 1 for s in strides):
        return x
    return b.add(ir.Slice(begin=tuple(begin), size=tuple(size), strides=tuple(strides)), x)


def _pad(b: Builder, node: OnnxNode) -> Value:
    x = node.required(0)
    pads = _pads(node, x)
    if any(min(p) < 0 for p in pads):
        begin = tuple(max(-before, 0) for before, _ in pads)
        size = tuple(d + min(p, 0) + min(q, 0) for d, (p, q) in zip(x.shape, pads, strict=True))
        if min(size) <= 0:
            raise RefusedError(f"its pads {pads} leave nothing of {x.shape}")
        x = b.add(ir.Slice(begin=begin, size=size, strides=(1,) * x.rank), x)
        pads = [(max(p, 0), max(q, 0)) for p, q in pads]
    if not any(map(any, pads)):
        return x
    mode = node.text("mode", "constant")
    if mode == "constant":
        return b.pad(x, pads, _pad_value(node))
    if mode in ("edge", "reflect", "wrap"):
        return _pad_with_slices(b, x, pads, mode)
    raise RefusedError(f"its mode is {mode!r}")


def _pads(node: OnnxNode, x: Value) -> list[tuple[int, int]]:
    if node.opset < 11:
        pads = node.ints("pads") or node.ints("paddings")
        axes: tuple[int, ...] | None = None
    else:
        pads, axes = node.ints_operand(1, "pads"), node.ints_operand(3, "axes")
    listed = [axis_of(a, x.rank) for a in axes] if axes is not None else list(range(x.rank))
    if pads is None or len(pads) != 2 * len(listed):
        raise RefusedError(f"its pads are {pads}")
    found = [(0, 0)] * x.rank
    for i, axis in enumerate(listed):
        found[axis] = (pads[i], pads[len(listed) + i])
    return found


def _pad_value(node: OnnxNode) -> float:
    if node.opset < 11:
        return node.number("value", 0.0)
    value = node.constant(2, "value")
    if value is None or value.size == 0:
        return 0.0
    if value.dtype.kind == "b":
        raise RefusedError("it pads booleans")
    return float(value.reshape(-1)[0]) if value.dtype.kind == "f" else int(value.reshape(-1)[0])


#: Up to so many places are reflected one by one, as slices that XNNPACK takes.
_REFLECTED_SINGLY = 4


def _pad_with_slices(b: Builder, x: Value, pads: list[tuple[int, int]], mode: str) -> Value:
    """Joins pieces of each axis to it: TFLite's MIRROR_PAD takes ten times as long, and has no other modes."""
    for axis, (before, after) in enumerate(pads):
        size = x.shape[axis]
        if (mode == "wrap" and max(before, after) > size) or (mode == "reflect" and max(before, after) >= size):
            raise RefusedError(f"its mode is {mode!r}, and its pads are {pads} for {x.shape}")
        if mode == "wrap":
            front = [b.slice(x, axis, size - before, size)] if before else []
            back = [b.slice(x, axis, 0, after)] if after else []
        elif mode == "edge":
            front = [_repeated(b, b.slice(x, axis, 0, 1), axis, before)] if before else []
            back = [_repeated(b, b.slice(x, axis, size - 1, size), axis, after)] if after else []
        else:
            front = _reversed(b, x, axis, 1, before) if before else []
            back = _reversed(b, x, axis, size - 1 - after, after) if after else []
        if front or back:
            x = b.add(ir.Concat(axis=axis), *front, x, *back)
    return x


def _reversed(b: Builder, x: Value, axis: int, begin: int, count: int) -> list[Value]:
    """``count`` places from ``begin`` on, the last one first, as pieces to join."""
    if count <= _REFLECTED_SINGLY:
        return [b.slice(x, axis, place, place + 1) for place in range(begin + count - 1, begin - 1, -1)]
    begins, sizes, strides = [0] * x.rank, list(x.shape), [1] * x.rank
    begins[axis], sizes[axis], strides[axis] = begin + count - 1, count, -1
    return [b.add(ir.Slice(begin=tuple(begins), size=tuple(sizes), strides=tuple(strides)), x)]


def _repeated(b: Builder, x: Value, axis: int, count: int) -> Value:
    if count == 1:
        return x
    shape = list(x.shape)
    shape[axis] = count
    return b.add(ir.BroadcastTo(shape=tuple(shape)), x)


def _tile(b: Builder, node: OnnxNode) -> Value:
    x, repeats = node.required(0), node.ints_operand(1, "repeats")
    if repeats is None or len(repeats) != x.rank:
        raise RefusedError(f"its repeats are {repeats}")
    return x if all(r == 1 for r in repeats) else b.add(ir.Tile(multiples=repeats), x)


def _gather(b: Builder, node: OnnxNode) -> Value:
    x, indices = node.required(0), node.required(1)
    axis = axis_of(node.integer("axis", 0), x.rank)
    size = x.shape[axis]
    if indices.data is not None:
        return _gather_known(b, x, axis, indices)
    if x.data is not None and x.dtype not in ("float32", "int32", "int64", "uint8", "int8", "bool"):
        raise RefusedError(f"it takes from {x.dtype}")
    return b.add(ir.Gather(axis=axis), x, _from_front(b, indices, size))


def _gather_known(b: Builder, x: Value, axis: int, indices: Value) -> Value:
    """Known places: neighbours at one distance are a slice, others a gather."""
    size, flat = x.shape[axis], indices.array.reshape(-1).astype(np.int64)
    if flat.size == 0 or flat.min() < -size or flat.max() >= size:
        raise RefusedError(f"its indices do not fit an axis of {size}")
    flat = np.where(flat < 0, flat + size, flat)
    steps = np.diff(flat)
    if flat.size == 1 or (steps[0] > 0 and (steps == steps[0]).all()):
        stride = int(steps[0]) if flat.size > 1 else 1
        taken = b.slice(x, axis, int(flat[0]), int(flat[-1]) + 1, stride)
    else:
        taken = b.add(ir.Gather(axis=axis), x, b.constant(flat, "int32"))
    return b.reshape(taken, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _from_front(b: Builder, indices: Value, size: int) -> Value:
    """Indices counted from the front: ONNX counts negative ones from the end."""
    if indices.dtype not in ("int32", "int64"):
        raise RefusedError(f"its indices are {indices.dtype}")
    negative = b.add(ir.Compare(kind="LESS"), *b.broadcastable(indices, b.scalar(0, indices)))
    shifted = b.binary("ADD", indices, b.scalar(size, indices))
    return b.add(ir.Select(), negative, shifted, indices)


def _gather_elements(b: Builder, node: OnnxNode) -> Value:
    """Each element's full place is known, where the indices are."""
    x, indices = node.required(0), node.constant(1, "indices")
    axis = axis_of(node.integer("axis", 0), x.rank)
    if indices is None or indices.ndim != x.rank:
        raise RefusedError("it has no indices of its operand's rank")
    size = x.shape[axis]
    if indices.size == 0 or indices.min() < -size or indices.max() >= size:
        raise RefusedError(f"its indices do not fit an axis of {size}")
    places = np.stack(list(np.indices(indices.shape)), axis=-1)
    places[..., axis] = np.where(indices < 0, indices + size, indices)
    return b.add(ir.GatherNd(), x, b.constant(places, "int32"))


def _gather_nd(b: Builder, node: OnnxNode) -> Value:
    x, indices = node.required(0), node.constant(1, "indices")
    if node.integer("batch_dims", 0) or indices is None or indices.ndim == 0 or not 0 < indices.shape[-1] <= x.rank:
        raise RefusedError("batch_dims, or indices that do not fit")
    sizes = np.array(x.shape[: indices.shape[-1]])
    if ((indices < -sizes) | (indices >= sizes)).any():
        raise RefusedError(f"its indices do not fit {x.shape}")
    return b.add(ir.GatherNd(), x, b.constant(np.where(indices < 0, indices + sizes, indices), "int32"))


def _depth_to_space(b: Builder, node: OnnxNode) -> Value:
    x, block, mode = node.required(0), node.integer("blocksize", 0), node.text("mode", "DCR")
    if x.rank != 4 or block < 1 or x.shape[1] % block**2 or mode not in ("DCR", "CRD"):
        raise RefusedError(f"blocks of {block} of {x.shape} in mode {mode!r}")
    if block == 1:
        return x
    if mode == "CRD":
        # TFLite's channels have the block's place in front; a fixed order of channels makes the one the other.
        places = np.arange(x.shape[1]).reshape(-1, block**2).T.reshape(-1)
        x = b.add(ir.Gather(axis=1), x, b.constant(places, "int32"))
    return b.add(ir.DepthToSpace(block=block), x)


def _space_to_depth(b: Builder, node: OnnxNode) -> Value:
    x, block = node.required(0), node.integer("blocksize", 0)
    if x.rank != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        raise RefusedError(f"blocks of {block} of {x.shape}")
    return x if block == 1 else b.add(ir.SpaceToDepth(block=block), x)


def _cumsum(b: Builder, node: OnnxNode) -> Value:
    x, axis = node.required(0), node.ints_operand(1, "axis")
    if axis is None or len(axis) != 1:
        raise RefusedError("it has no axis")
    exclusive, reverse = node.flag("exclusive"), node.flag("reverse")
    return b.add(ir.CumSum(axis=axis_of(axis[0], x.rank), exclusive=exclusive, reverse=reverse), x)


def _trilu(b: Builder, node: OnnxNode) -> Value:
    """A product with a mask would make NaN of an infinity; a choice does not."""
    x, offset = node.required(0), node.ints_operand(1, "k") or (0,)
    if x.rank < 2:
        raise RefusedError(f"its operand has shape {x.shape}")
    keep = np.tri(x.shape[-2], x.shape[-1], k=offset[0] - (1 if node.flag("upper", default=True) else 0), dtype=bool)
    keep = ~keep if node.flag("upper", default=True) else keep
    return b.add(ir.Select(), *b.broadcastable(b.constant(keep, "bool"), x, b.scalar(0, x)))


HANDLERS: dict[str, Handler] = {
    "Concat": _concat,
    "CumSum": _cumsum,
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Tile": _tile,
    "Trilu": _trilu,
}
