"""How labels of channels pass through ONNX operators: one rule a kind of operator, in an explicit table.

A rule reads the labels of a node's operands, unites or pins some, and gives those of its results. What no rule follows
is pinned: it keeps its channels, and so does whatever is joined with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.channels import Channels, Shape
from edgecompile.techniques.labels import AxisLabels, TensorLabels, pin_all

if TYPE_CHECKING:
    import onnx

Rule: TypeAlias = "Callable[[Channels, onnx.NodeProto], None]"


def name_of(node: onnx.NodeProto) -> str:
    """What a node is called: exporters may leave names empty, outputs are unique."""
    return str(node.name or node.output[0])


def propagate(found: Channels, node: onnx.NodeProto) -> None:
    """Label the outputs of one node, all of whose operands are labelled."""
    if all(not name or name in found.graph.constants for name in node.input) and node.op_type not in _RULES:
        return
    shapes = found.graph.shapes
    if any(name and name not in shapes for name in (*node.input, *node.output)):
        _refuse(found, node)
        return
    _RULES.get(node.op_type, _refuse)(found, node)


# ------------------------------------------------------------------------------------------------- helpers


def _labels(found: Channels, name: str) -> TensorLabels:
    known = found.tensors.get(name)
    return known if known is not None else (None,) * len(found.graph.shapes.get(name, ()))


def _set(found: Channels, name: str, labels: Sequence[AxisLabels]) -> None:
    shape = found.graph.shapes[name]
    assert len(labels) == len(shape), f"{name}: {len(labels)} axes of labels for shape {shape}"
    for size, axis in zip(shape, labels, strict=True):
        assert axis is None or axis.shape == (size,), f"{name}: labels {axis} for shape {shape}"
    found.tensors[name] = tuple(labels)


def _is_constant(found: Channels, name: str) -> bool:
    return name in found.graph.constants


def _mark(found: Channels, constant: str, axis: int, labels: AxisLabels) -> None:
    """Tie an axis of a constant to labels. A constant with several readers ties these readers together."""
    shape = found.graph.shapes[constant]
    known = list(_labels(found, constant))
    before = known[axis]
    if labels is None:
        # Read here as a whole: it can never shrink.
        labels = found.labels.fresh(shape[axis], constant) if before is None else before
        found.labels.pin(labels)
    if before is not None:
        found.labels.unite(before, labels)
    known[axis] = labels
    found.tensors[constant] = tuple(known)


def _refuse(found: Channels, node: onnx.NodeProto) -> None:
    """Keep everything that goes into a node that no rule follows."""
    operands = [_labels(found, name) for name in node.input if name]
    if any(axis is not None for operand in operands for axis in operand):
        found.notes.append(f"channels that reach {node.op_type} {name_of(node)!r} are kept")
    pin_all(found.labels, operands)
    for name in node.input:
        if name and _is_constant(found, name):
            for axis in range(len(found.graph.shapes[name])):
                _mark(found, name, axis, None)


def _attribute(found: Channels, node: onnx.NodeProto, name: str, default: int) -> int:
    value = found.graph.attributes(node).get(name, default)
    return int(value) if isinstance(value, int) else default


# --------------------------------------------------------------------------------------- element by element


def _elementwise(found: Channels, node: onnx.NodeProto) -> None:
    """Operands are broadcast: entries that meet are united, a single entry that meets many is kept."""
    shape = found.graph.shapes[node.output[0]]
    names = [name for name in node.input if name]
    result = [_meet(found, names, axis, shape) for axis in range(len(shape))]
    for name in names:
        if _is_constant(found, name):
            _tie_constant(found, name, shape, result)
    for output in node.output:
        if output:
            _set(found, output, result if found.graph.shapes[output] == shape else [None] * len(shape))


def _meet(found: Channels, names: Sequence[str], axis: int, shape: Shape) -> AxisLabels:
    met: AxisLabels = None
    whole = False
    for name in names:
        local = axis - (len(shape) - len(found.graph.shapes[name]))
        if local < 0 or _is_constant(found, name):
            continue
        labels, size = _labels(found, name)[local], found.graph.shapes[name][local]
        if labels is None:
            whole |= size == shape[axis] and size > 1
        elif size != shape[axis]:
            found.labels.pin(labels)
        elif met is None:
            met = labels
        else:
            found.labels.unite(met, labels)
    if whole:
        found.labels.pin(met)
    return met


def _tie_constant(found: Channels, name: str, shape: Shape, result: Sequence[AxisLabels]) -> None:
    own = found.graph.shapes[name]
    for local, size in enumerate(own):
        labels = result[local + len(shape) - len(own)]
        if size > 1 and (labels is not None or _labels(found, name)[local] is not None):
            _mark(found, name, local, labels if labels is not None and labels.size == size else None)


def _unary(found: Channels, node: onnx.NodeProto) -> None:
    """The first operand's labels; further operands are numbers to go by."""
    for output in node.output:
        if output and len(found.graph.shapes[output]) == len(found.graph.shapes[node.input[0]]):
            _set(found, output, _labels(found, node.input[0]))


def _along_axis(found: Channels, node: onnx.NodeProto) -> None:
    """Operators that mix entries along one axis, which therefore keeps its entries."""
    rank = len(found.graph.shapes[node.input[0]])
    default = 1 if node.op_type in ("Hardmax",) else -1
    axis = _attribute(found, node, "axis", default) % rank
    labels = list(_labels(found, node.input[0]))
    found.labels.pin(labels[axis])
    for output in node.output:
        shape = found.graph.shapes[output]
        kept = [label if label is not None and shape[i] == label.size else None for i, label in enumerate(labels)]
        _set(found, output, kept) if len(shape) == rank else pin_all(found.labels, [tuple(labels)])


def _layer_norm(found: Channels, node: onnx.NodeProto) -> None:
    """Statistics over the last axes: these keep their entries."""
    labels = _labels(found, node.input[0])
    axis = _attribute(found, node, "axis", -1) % len(labels)
    pin_all(found.labels, [labels], range(axis, len(labels)))
    for output in node.output:
        if output:
            shape = found.graph.shapes[output]
            _set(
                found,
                output,
                [v if v is not None and v.size == n else None for v, n in zip(labels, shape, strict=True)],
            )


def _channel_norm(found: Channels, node: onnx.NodeProto) -> None:
    """BatchNormalization and InstanceNormalization: one entry of each parameter a channel."""
    labels = _labels(found, node.input[0])
    if node.op_type == "InstanceNormalization":
        pin_all(found.labels, [labels], range(2, len(labels)))
    for name in node.input[1:]:
        if not _is_constant(found, name):
            pin_all(found.labels, [labels])
        else:
            _mark(found, name, 0, labels[1])
    _set(found, node.output[0], labels)


def _across_channels(found: Channels, node: onnx.NodeProto) -> None:
    """LRN and the like look at neighbouring channels: these stay."""
    labels = _labels(found, node.input[0])
    pin_all(found.labels, [labels], [1])
    _set(found, node.output[0], labels)


# -------------------------------------------------------------------------------------- weighted operators


def _convolution(found: Channels, node: onnx.NodeProto) -> None:
    weight, transposed = node.input[1], node.op_type == "ConvTranspose"
    source = _labels(found, node.input[0])
    groups = _attribute(found, node, "group", 1)
    if not _is_constant(found, weight) or any(not _is_constant(found, n) for n in node.input[2:] if n):
        _refuse(found, node)
        return
    pin_all(found.labels, [source], range(2, len(source)))
    shape = found.graph.shapes[weight]
    channels = found.graph.shapes[node.input[0]][1]
    outputs = found.graph.shapes[node.output[0]][1]
    into, out_of = (0, 1) if transposed else (1, 0)
    if groups == 1:
        _mark(found, weight, into, source[1]) if source[1] is not None else None
        made = _made(found, weight, out_of, outputs, name_of(node))
    elif groups == channels and outputs % groups == 0 and source[1] is not None:
        # Depthwise: a channel's filters come and go with it.
        made = np.repeat(source[1], outputs // groups)
        _mark(found, weight, 0, source[1] if transposed else made)
    elif groups == channels:
        made = None
    else:
        made = _grouped(found, node, groups, source[1], shape, transposed=transposed)
    if len(node.input) > 2 and node.input[2] and made is not None:
        _mark(found, node.input[2], 0, made)
    _set(found, node.output[0], [source[0], made, *[None] * (len(shape) - 2)])


def _made(found: Channels, weight: str, axis: int, count: int, origin: str) -> npt.NDArray[np.int64]:
    """The labels of what a weight's axis makes: its own from another reader, or new ones."""
    known = _labels(found, weight)[axis]
    labels = known if known is not None else found.labels.fresh(count, origin)
    _mark(found, weight, axis, labels)
    return labels


def _grouped(
    found: Channels, node: onnx.NodeProto, groups: int, source: AxisLabels, shape: Shape, *, transposed: bool
) -> AxisLabels:
    """All groups of a grouped convolution shrink alike: the j-th channels of all groups go together."""
    weight = node.input[1]
    if transposed:
        pin_all(found.labels, [(source,)])
        return None
    if source is not None:
        rows = source.reshape(groups, -1)
        for row in rows[1:]:
            found.labels.unite(rows[0], row)
        _mark(found, weight, 1, rows[0])
    known = _labels(found, weight)[0]
    labels = known if known is not None else np.tile(found.labels.fresh(shape[0] // groups, name_of(node)), groups)
    _mark(found, weight, 0, labels)
    return labels


def _gemm(found: Channels, node: onnx.NodeProto) -> None:
    left, weight = node.input[0], node.input[1]
    if not _is_constant(found, weight) or _is_constant(found, left) or _attribute(found, node, "transA", 0):
        _refuse(found, node)
        return
    into, out_of = (1, 0) if _attribute(found, node, "transB", 0) else (0, 1)
    source = _labels(found, left)
    if source[1] is not None:
        _mark(found, weight, into, source[1])
    made = _made(found, weight, out_of, found.graph.shapes[node.output[0]][1], name_of(node))
    if len(node.input) > 2 and node.input[2]:
        bias, size = node.input[2], found.graph.shapes[node.input[2]]
        if not _is_constant(found, bias) or (len(size) > 1 and size[0] > 1):
            found.labels.pin(made)
        elif size and size[-1] > 1:
            _mark(found, bias, len(size) - 1, made)
    _set(found, node.output[0], [source[0], made])


def _matmul(found: Channels, node: onnx.NodeProto) -> None:
    a, b = node.input
    shapes = found.graph.shapes
    if min(len(shapes[a]), len(shapes[b])) < 2:
        _refuse(found, node)
    elif _is_constant(found, b):
        _product_with_constant(found, node, a, b, right=True)
    elif _is_constant(found, a):
        _product_with_constant(found, node, b, a, right=False)
    else:
        _product(found, node)


def _product_with_constant(found: Channels, node: onnx.NodeProto, source: str, weight: str, *, right: bool) -> None:
    labels = list(_labels(found, source))
    if len(found.graph.shapes[weight]) != 2:
        _refuse(found, node)
        return
    mixed, into, out_of = (-1, 0, 1) if right else (-2, 1, 0)
    if labels[mixed] is not None:
        _mark(found, weight, into, labels[mixed])
    labels[mixed] = _made(found, weight, out_of, found.graph.shapes[weight][out_of], name_of(node))
    _set(found, node.output[0], labels)


def _product(found: Channels, node: onnx.NodeProto) -> None:
    """Two computed operands, as in attention: what is summed over is united, rows and columns pass."""
    (a, b), shape = node.input, found.graph.shapes[node.output[0]]
    left, right = _labels(found, a), _labels(found, b)
    if left[-1] is not None and right[-2] is not None:
        found.labels.unite(left[-1], right[-2])
    else:
        pin_all(found.labels, [(left[-1], right[-2])])
    batch = [
        _batch(found, [left, right], [found.graph.shapes[a], found.graph.shapes[b]], i, shape)
        for i in range(len(shape) - 2)
    ]
    _set(found, node.output[0], [*batch, left[-2], right[-1]])


def _batch(
    found: Channels, operands: Sequence[TensorLabels], shapes: Sequence[Shape], axis: int, shape: Shape
) -> AxisLabels:
    met: AxisLabels = None
    missing = False
    for labels, own in zip(operands, shapes, strict=True):
        local = axis - (len(shape) - len(own))
        if local < 0 or local >= len(own) - 2:
            continue
        vector = labels[local]
        if vector is None:
            missing |= own[local] > 1
        elif own[local] != shape[axis]:
            found.labels.pin(vector)
        elif met is None:
            met = vector
        else:
            found.labels.unite(met, vector)
    if missing:
        found.labels.pin(met)
    return met


# --------------------------------------------------------------------------------------- pools and resizing


def _spatial(found: Channels, node: onnx.NodeProto) -> None:
    """Pools: channels pass, places stay."""
    labels = _labels(found, node.input[0])
    pin_all(found.labels, [labels], range(2, len(labels)))
    for output in node.output:
        if output:
            _set(found, output, [*labels[:2], *[None] * (len(labels) - 2)])


def _resize(found: Channels, node: onnx.NodeProto) -> None:
    labels, before = _labels(found, node.input[0]), found.graph.shapes[node.input[0]]
    after = found.graph.shapes[node.output[0]]
    changed = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    pin_all(found.labels, [labels], changed)
    _set(found, node.output[0], [None if axis in changed else labels[axis] for axis in range(len(before))])


def _reduce(found: Channels, node: onnx.NodeProto) -> None:
    """Statistics over channels change when one goes: reduced axes stay."""
    labels = _labels(found, node.input[0])
    rank = len(labels)
    listed = found.graph.attributes(node).get("axes")
    if len(node.input) > 1 and node.input[1]:
        listed = found.graph.ints(node.input[1])
        if listed is None:
            _refuse(found, node)
            return
    axes = [int(axis) % rank for axis in listed] if isinstance(listed, list | tuple) and listed else list(range(rank))
    pin_all(found.labels, [labels], axes)
    keep = _attribute(found, node, "keepdims", 1)
    _set(
        found,
        node.output[0],
        [None if i in axes else v for i, v in enumerate(labels) if keep or i not in axes],
    )


# ------------------------------------------------------------------------------------------- moving of data


def _moved(
    found: Channels, node: onnx.NodeProto, move: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
) -> None:
    """Move each axis's labels as the node moves the data, and see along which axis they vary afterwards."""
    name, output = node.input[0], node.output[0]
    before, after = found.graph.shapes[name], found.graph.shapes[output]
    result: list[AxisLabels] = [None] * len(after)
    for axis, labels in enumerate(_labels(found, name)):
        if labels is None:
            continue
        shape = [1] * len(before)
        shape[axis] = labels.size
        moved = move(np.broadcast_to(labels.reshape(shape), before)).reshape(after)
        target = _varying_axis(found, moved)
        if target is None or result[target] is not None:
            found.labels.pin(labels)
            if target is not None:
                found.labels.pin(result[target])
            continue
        index = [0] * len(after)
        index[target] = slice(None)  # type: ignore[call-overload]
        result[target] = moved[tuple(index)].copy()
    _set(found, output, result)


def _varying_axis(found: Channels, moved: npt.NDArray[np.int64]) -> int | None:
    """The axis along which labels vary. Where there are several, the longest; along the others entries are united."""
    axes = [
        axis for axis in range(moved.ndim) if moved.shape[axis] > 1 and bool((moved != moved.take([0], axis)).any())
    ]
    if not axes:
        return None if moved.size != 1 else 0
    target = max(axes, key=lambda axis: moved.shape[axis])
    for axis in axes:
        if axis != target:
            first = moved.take([0], axis)
            found.labels.unite(np.broadcast_to(first, moved.shape).ravel(), moved.ravel())
            moved = np.broadcast_to(first, moved.shape)
    return target


def _reshape(found: Channels, node: onnx.NodeProto) -> None:
    _moved(found, node, lambda array: array.reshape(found.graph.shapes[node.output[0]]))


def _transpose(found: Channels, node: onnx.NodeProto) -> None:
    labels = _labels(found, node.input[0])
    permutation = found.graph.attributes(node).get("perm")
    order = [int(i) for i in permutation] if isinstance(permutation, list | tuple) else list(range(len(labels)))[::-1]
    _set(found, node.output[0], [labels[i] for i in order])


def _depth_to_space(found: Channels, node: onnx.NodeProto) -> None:
    size = _attribute(found, node, "blocksize", 1)
    mode = found.graph.attributes(node).get("mode", b"DCR")

    def move(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        n, c, h, w = array.shape
        if mode in (b"CRD", "CRD"):
            return array.reshape(n, c // size**2, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
        return array.reshape(n, size, size, c // size**2, h, w).transpose(0, 3, 4, 1, 5, 2)

    _moved_united(found, node, move)


def _moved_united(
    found: Channels, node: onnx.NodeProto, move: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
) -> None:
    """As `_moved`, for operators that spread channels over places: all of a channel's places go together."""
    source, shape = _labels(found, node.input[0]), found.graph.shapes[node.input[0]]
    pin_all(found.labels, [source], [axis for axis in range(len(source)) if axis != 1])
    result: list[AxisLabels] = [None] * len(shape)
    if source[1] is not None:
        labels = source[1].reshape(1, -1, 1, 1)
        moved = move(np.broadcast_to(labels, shape)).reshape(found.graph.shapes[node.output[0]])
        first = moved[:, :, :1, :1]
        found.labels.unite(np.broadcast_to(first, moved.shape).ravel(), moved.ravel())
        result[1] = first[0, :, 0, 0].copy()
    _set(found, node.output[0], result)


def _concat(found: Channels, node: onnx.NodeProto) -> None:
    rank = len(found.graph.shapes[node.output[0]])
    axis = _attribute(found, node, "axis", 0) % rank
    operands = [_labels(found, name) for name in node.input]
    result: list[AxisLabels] = []
    for i in range(rank):
        columns = [operand[i] for operand in operands]
        if all(column is None for column in columns):
            result.append(None)
        elif i == axis:
            result.append(
                np.concatenate([_or_pinned(found, n, i, c) for n, c in zip(node.input, columns, strict=True)])
            )
        else:
            result.append(_all_alike(found, columns))
    for name, labels in zip(node.input, operands, strict=True):
        if _is_constant(found, name):
            for i in range(rank):
                if result[i] is not None and labels[i] is None and found.graph.shapes[name][i] > 1:
                    _mark(found, name, i, None if i == axis else result[i])
    _set(found, node.output[0], result)


def _or_pinned(found: Channels, name: str, axis: int, labels: AxisLabels) -> npt.NDArray[np.int64]:
    if labels is not None:
        return labels
    fresh = found.labels.fresh(found.graph.shapes[name][axis], name)
    found.labels.pin(fresh)
    return fresh


def _all_alike(found: Channels, columns: Sequence[AxisLabels]) -> AxisLabels:
    known = [column for column in columns if column is not None]
    for other in known[1:]:
        found.labels.unite(known[0], other)
    if len(known) < len(columns):
        found.labels.pin(known[0])
    return known[0]


def _split(found: Channels, node: onnx.NodeProto) -> None:
    labels = _labels(found, node.input[0])
    axis = _attribute(found, node, "axis", 0) % len(labels)
    start = 0
    for output in node.output:
        size = found.graph.shapes[output][axis]
        part = list(labels)
        whole = labels[axis]
        part[axis] = whole[start : start + size] if whole is not None else None
        _set(found, output, part)
        start += size


def slices(found: Channels, node: onnx.NodeProto) -> list[tuple[int, int, int, int]] | None:
    """The (axis, start, end, step) of a Slice with constant operands, else ``None``."""
    given = [found.graph.ints(name) if name else None for name in node.input[1:]]
    if len(given) < 2 or given[0] is None or given[1] is None:
        return None
    rank = len(found.graph.shapes[node.input[0]])
    axes = given[2] if len(given) > 2 and given[2] is not None else tuple(range(len(given[0])))
    steps = given[3] if len(given) > 3 and given[3] is not None else (1,) * len(axes)
    return [(a % rank, s, e, t) for a, s, e, t in zip(axes, given[0], given[1], steps, strict=True)]


def _slice(found: Channels, node: onnx.NodeProto) -> None:
    cuts = slices(found, node)
    if cuts is None:
        _refuse(found, node)
        return
    result = list(_labels(found, node.input[0]))
    for axis, start, end, step in cuts:
        labels = result[axis]
        if labels is not None and step != 1 and found.graph.shapes[node.output[0]][axis] != labels.size:
            found.labels.pin(labels)
        result[axis] = labels[slice(start, end if end > -(2**31) else None, step)] if labels is not None else None
    _set(found, node.output[0], result)


def _gather(found: Channels, node: onnx.NodeProto) -> None:
    labels = list(_labels(found, node.input[0]))
    axis = _attribute(found, node, "axis", 0) % max(len(labels), 1)
    indices = found.graph.constants.get(node.input[1])
    if _is_constant(found, node.input[0]) or indices is None:
        _refuse(found, node)
        return
    whole = labels[axis]
    if indices.ndim == 1:
        labels[axis] = whole[indices.astype(np.int64)] if whole is not None else None
        _set(found, node.output[0], labels)
        return
    found.labels.pin(whole)
    _set(found, node.output[0], [*labels[:axis], *[None] * indices.ndim, *labels[axis + 1 :]])


def _pad(found: Channels, node: onnx.NodeProto) -> None:
    """Padded entries are new ones, which nothing makes: a shortcut padded with channels of zeros shrinks with both."""
    amounts = pads_of(found, node)
    if amounts is None:
        _refuse(found, node)
        return
    mode = found.graph.attributes(node).get("mode", b"constant")
    result: list[AxisLabels] = []
    for (before, after), labels in zip(amounts, _labels(found, node.input[0]), strict=True):
        if labels is None or not (before or after):
            result.append(labels)
        elif mode not in (b"constant", "constant") or min(before, after) < 0:
            found.labels.pin(labels)
            result.append(None)
        else:
            added = found.labels.fresh(before + after, name_of(node))
            result.append(np.concatenate((added[:before], labels, added[before:])))
    _set(found, node.output[0], result)


def pads_of(found: Channels, node: onnx.NodeProto) -> list[tuple[int, int]] | None:
    """How much a Pad with constant operands adds before and behind each axis, else ``None``."""
    given = found.graph.ints(node.input[1]) if len(node.input) > 1 else None
    if given is None:
        return None
    rank = len(found.graph.shapes[node.input[0]])
    axes: Sequence[int] = range(rank)
    if len(node.input) > 3 and node.input[3]:
        listed = found.graph.ints(node.input[3])
        if listed is None:
            return None
        axes = [axis % rank for axis in listed]
    amounts = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        amounts[axis] = (given[i], given[i + len(axes)])
    return amounts


def _expand(found: Channels, node: onnx.NodeProto) -> None:
    labels, shape = _labels(found, node.input[0]), found.graph.shapes[node.output[0]]
    own = found.graph.shapes[node.input[0]]
    result: list[AxisLabels] = [None] * (len(shape) - len(own))
    for vector, size, target in zip(labels, own, shape[len(shape) - len(own) :], strict=True):
        if size != target:
            found.labels.pin(vector)
        result.append(vector if size == target else None)
    _set(found, node.output[0], result)


def _tile(found: Channels, node: onnx.NodeProto) -> None:
    repeats = found.graph.ints(node.input[1])
    labels = _labels(found, node.input[0])
    if repeats is None:
        _refuse(found, node)
        return
    _set(
        found, node.output[0], [np.tile(v, n) if v is not None else None for v, n in zip(labels, repeats, strict=True)]
    )


def _nothing(found: Channels, node: onnx.NodeProto) -> None:
    """Results that are numbers to go by, such as a shape; a shape of what shrinks would shrink too, so it is kept."""
    if node.op_type != "Constant":
        pin_all(found.labels, [_labels(found, name) for name in node.input if name])


_BY_RULE: dict[Rule, str] = {
    _elementwise: "Add Sub Mul Div Pow Min Max Sum Mean Mod PRelu Where And Or Xor Equal Less LessOrEqual Greater "
    "GreaterOrEqual",
    _unary: "Relu Clip LeakyRelu Sigmoid Tanh HardSigmoid HardSwish Gelu Erf Elu Selu Celu Softplus Softsign Mish "
    "Swish ThresholdedRelu Identity Dropout Cast Sqrt Exp Log Abs Neg Reciprocal Floor Ceil Round Sign Not Sin Cos",
    _along_axis: "Softmax LogSoftmax Hardmax ArgMax ArgMin TopK CumSum LpNormalization",
    _layer_norm: "LayerNormalization",
    _channel_norm: "BatchNormalization InstanceNormalization",
    _across_channels: "LRN GroupNormalization MeanVarianceNormalization",
    _convolution: "Conv ConvTranspose",
    _gemm: "Gemm",
    _matmul: "MatMul",
    _spatial: "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool",
    _resize: "Resize",
    _reduce: "ReduceMean ReduceMax ReduceMin ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare",
    _reshape: "Reshape Flatten Squeeze Unsqueeze",
    _transpose: "Transpose",
    _depth_to_space: "DepthToSpace",
    _concat: "Concat",
    _split: "Split",
    _slice: "Slice",
    _gather: "Gather",
    _pad: "Pad",
    _expand: "Expand",
    _tile: "Tile",
    _nothing: "Constant Shape Size ConstantOfShape",
}
_RULES: dict[str, Rule] = {name: rule for rule, names in _BY_RULE.items() for name in names.split()}
