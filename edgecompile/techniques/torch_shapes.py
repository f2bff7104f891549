"""Operators that move, cut, join and look up in torch, as ONNX defines them, for any batch size."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgecompile.techniques.torch_call import BatchLost, Call, Operator, Refused, batch_axis, reshaped, together, torch

#: ONNX's number of an element type, and torch's name of it.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64",
    16: "bfloat16",
}  # fmt: skip


def _dtype(number: int) -> Any:
    if number not in DTYPES:
        raise Refused(f"element type {number}")
    return getattr(torch, DTYPES[number])


def _reshape(call: Call) -> Any:
    x = call[0]
    if batch_axis(call) is not None:
        return x.reshape(reshaped(call, call.static_outputs[0]))
    target = call.values(1) or []
    if not call.attribute("allowzero", 0):
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def _flatten(call: Call) -> Any:
    x, axis = call[0], call.attribute("axis", 1)
    if batch_axis(call) is not None:
        return x.reshape(reshaped(call, call.static_outputs[0]))
    rows = int(np.prod(x.shape[:axis], dtype=np.int64)) if axis else 1
    return x.reshape(rows, -1)


def _axes(call: Call) -> list[int] | None:
    """The axes, which are an input since opset 13."""
    found = call.attribute("axes")
    return found if found is not None else call.values(1)


def _squeeze(call: Call) -> Any:
    x, axes = call[0], _axes(call)
    static = call.static_inputs[0] or tuple(x.shape)
    dropped = {axis % x.dim() for axis in axes} if axes is not None else {i for i, n in enumerate(static) if n == 1}
    if any(x.shape[axis] != 1 for axis in dropped):
        return x.reshape(reshaped(call, call.static_outputs[0]))
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in dropped])


def _unsqueeze(call: Call) -> Any:
    x, axes = call[0], _axes(call) or []
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _transpose(call: Call) -> Any:
    x = call[0]
    return x.permute(call.attribute("perm", list(reversed(range(x.dim())))))


def _expand(call: Call) -> Any:
    x, target, found = call[0], tuple(call.values(1) or []), batch_axis(call)
    if found is None:
        return x.expand(torch.broadcast_shapes(tuple(x.shape), target))
    shape = list(call.static_outputs[0] or torch.broadcast_shapes(_file_shape(call), target))
    shape[len(shape) - x.dim() + found[0]] *= found[1]
    return x.expand(shape)


def _file_shape(call: Call) -> tuple[int, ...]:
    return call.static_inputs[0] or tuple(call[0].shape)


def _tile(call: Call) -> Any:
    return call[0].repeat(call.values(1))


def _concat(call: Call) -> Any:
    """What is the same for all samples, a class token for one, is repeated for the batch of the others."""
    axis = call.attribute("axis") % call[0].dim()
    grown = [batch_axis(call, i) for i in range(len(call.inputs))]
    found = {pair for pair in grown if pair is not None and pair[0] != axis}
    if not found:
        if any(pair is not None for pair in grown):
            raise BatchLost  # joining samples mixes them up
        return torch.cat(together(call.inputs), dim=axis)
    if len(found) > 1:
        raise BatchLost
    where, times = found.pop()
    repeats = [times if i == where else 1 for i in range(call[0].dim())]
    parts = [x if pair is not None else x.repeat(repeats) for x, pair in zip(call.inputs, grown, strict=True)]
    return torch.cat(together(parts), dim=axis)


def _split(call: Call) -> Any:
    x, axis, parts = call[0], call.attribute("axis", 0) % call[0].dim(), len(call.static_outputs)
    sizes = call.attribute("split") or call.values(1)
    if not sizes:
        each = -(-x.shape[axis] // parts)
        sizes = [min(each, x.shape[axis] - i * each) for i in range(parts)]
    return tuple(x.split(sizes, dim=axis))


def _slice(call: Call) -> Any:
    x = call[0]
    starts, ends = call.values(1) or [], call.values(2) or []
    axes = call.values(3) or list(range(len(starts)))
    steps = call.values(4) or [1] * len(starts)
    grown = batch_axis(call)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= x.dim()
        chosen = _rows(start, end, step, _file_shape(call)[axis])
        if grown is not None and grown[0] == axis:
            if chosen != range(_file_shape(call)[axis]):
                raise BatchLost
        elif step > 0:
            x = x.narrow(axis, chosen.start, len(range(chosen.start, chosen.stop))) if chosen else x.narrow(axis, 0, 0)
            x = x[(slice(None),) * axis + (slice(None, None, step),)] if step > 1 else x
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), device=x.device, dtype=torch.int64))
    return x


def _rows(start: int, end: int, step: int, size: int) -> range:
    """ONNX's bounds, which may lie anywhere, as a range of rows."""
    start, end = (value + size if value < 0 else value for value in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _pad(call: Call) -> Any:
    x, mode = call[0], call.attribute("mode", "constant")
    flat = call.values(1) or []
    axes = [axis % x.dim() for axis in call.values(3) or range(x.dim())]
    pads = {axis: (flat[i], flat[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode == "constant":
        pairs = [pads.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
        return torch.nn.functional.pad(x, [n for pair in pairs for n in pair], value=call.value(2, 0))
    for axis, pair in pads.items():
        if min(pair) < 0:
            raise Refused(f"negative pads in mode {mode}")
        if pair != (0, 0):
            rows = np.pad(np.arange(x.shape[axis]), pair, mode=mode)
            x = x.index_select(axis, torch.as_tensor(rows, device=x.device))
    return x


def _gather(call: Call) -> Any:
    x, axis = call[0], call.attribute("axis", 0) % call[0].dim()
    if call.known[1] is not None and call.known[1].ndim == 0 and (batch_axis(call) or (-1,))[0] != axis:
        return x.select(axis, int(call.known[1]))
    x, index = together([x, call[1].to(torch.int64)])
    grown = batch_axis(call)
    size = x.shape[axis]
    if grown is not None and grown[0] == axis:  # each sample's rows lie behind those of the one before
        size //= grown[1]
        index = torch.cat([torch.where(index < 0, index + size, index) + i * size for i in range(grown[1])])
    index = torch.where(index < 0, index + size, index)
    chosen = x.index_select(axis, index.reshape(-1))
    return chosen.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call) -> Any:
    axis = call.attribute("axis", 0) % call[0].dim()
    x, index = together([call[0], call[1].to(torch.int64)])
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


def _gather_nd(call: Call) -> Any:
    if call.attribute("batch_dims", 0):
        raise Refused("batch_dims")
    x, index = together([call[0], call[1].to(torch.int64)])
    return x[tuple(index.unbind(-1))]


def _depth_to_space(call: Call) -> Any:
    x, size = call[0], call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "CRD":
        return torch.nn.functional.pixel_shuffle(x, size)
    split = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(n, c // size**2, h * size, w * size)


def _space_to_depth(call: Call) -> Any:
    x, size = call[0], call.attribute("blocksize")
    n, c, h, w = x.shape
    split = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, c * size**2, h // size, w // size)


def _cast(call: Call) -> Any:
    return call[0].to(_dtype(call.attribute("to")))


def _cast_like(call: Call) -> Any:
    return call[0].to(call[1].dtype)


def _identity(call: Call) -> Any:
    return call[0]


def _dropout(call: Call) -> Any:
    if call.value(2, False):
        raise Refused("training mode")
    return (call[0], torch.ones_like(call[0], dtype=torch.bool))[: len(call.static_outputs)]


def _shape(call: Call) -> Any:
    end = call.attribute("end")
    return torch.tensor(list(call[0].shape)[call.attribute("start", 0) : end], dtype=torch.int64)


def _size(call: Call) -> Any:
    return torch.tensor(call[0].numel(), dtype=torch.int64)


def _constant_of_shape(call: Call) -> Any:
    value = call.attribute("value")
    filled = np.zeros(1, np.float32) if value is None else value.reshape(-1)
    return torch.as_tensor(filled, device=call[0].device).expand(call.values(0)).clone()


def _range(call: Call) -> Any:
    return torch.arange(call.value(0), call.value(1), call.value(2), dtype=call[0].dtype, device=call[0].device)


def _top_k(call: Call) -> Any:
    """By a stable sort: of equals, ONNX takes the first."""
    axis = call.attribute("axis", -1)
    values, rows = call[0].sort(dim=axis, descending=bool(call.attribute("largest", 1)), stable=True)
    return (values.narrow(axis, 0, call.value(1)), rows.narrow(axis, 0, call.value(1)))


def _einsum(call: Call) -> Any:
    return torch.einsum(call.attribute("equation"), *call.inputs)


OPERATORS: dict[str, Operator] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": _identity,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
