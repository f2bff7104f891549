"""What `device learn` measures: single operators at sizes that nets have, chosen without looking at any net.

Each family of operators has a list of its own, ordered so that every beginning of it covers the family: a device
that is slow, or a time that is short, measures fewer points and still sees all of the range.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edgecompile.tables import OperatorKey
from edgecompile.tables.key import Activation, Shape

#: The sides of feature maps, and how wide the layers on them can be.
_SIDES = (4, 5, 7, 8, 10, 14, 16, 20, 28, 32, 40, 56, 64, 80, 112, 128, 160)
#: Bounds of one point: what is larger takes longer than it teaches.
_MOST_MACS = 150e6
_LEAST_MACS = 2e4
_MOST_ELEMENTS = 1.7e6
_MOST_WEIGHTS = 2.4e6
#: How often a family is drawn from; what does not fit is left out.
_DRAWS = 1500
#: Sizes of the operators without weights: (channels, side).
_MAPS = ((64, 7), (48, 14), (32, 28), (64, 56), (32, 112))
_FEW_MAPS = ((48, 7), (64, 28), (32, 112))


def points(seed: int = 0, *, float_onnxruntime: bool = False) -> tuple[OperatorKey, ...]:
    """All points, the most useful first: the families take turns by their share of all points.

    With ``float_onnxruntime`` what only ONNX Runtime does in float32 is among them.
    """
    families = [
        _first(_pointwise(seed), 110),
        _first(_convolutions(seed), 120),
        _first(_grouped(seed), 20),
        _first(_depthwise(seed), 64),
        _first(_dense(seed), 32),
        _rotated(tuple(_maps())),
        tuple(_sequences()),
        tuple(_stems()),
        *([(*reorders(), *blocked_upsamples()), tuple(_with_relu())] if float_onnxruntime else []),
    ]
    placed = [((i + 0.5) / len(family), key) for family in families for i, key in enumerate(family)]
    return tuple(dict.fromkeys([*staircase(), *heavy(), *(key for _, key in sorted(placed, key=lambda pair: pair[0]))]))


def staircase() -> tuple[OperatorKey, ...]:
    """Pointwise convolutions that differ in their output channels alone: they show the channel tile."""
    return tuple(_conv(64, out, 28, kernel=(1, 1)) for out in (32, 33, 36, 40, 44, 48, 49, 52, 56, 60, 64))


def heavy() -> tuple[OperatorKey, ...]:
    """Operators with many weights and little else to do: they show what weights cost that are in no cache."""
    return (
        _conv(512, 1024, 7, kernel=(1, 1)),
        _conv(256, 256, 7, kernel=(3, 3)),
        _conv(1024, 512, 4, kernel=(1, 1)),
        OperatorKey(op_type="Gemm", in_shape=(1, 1280), out_channels=1000),
        OperatorKey(op_type="Gemm", in_shape=(1, 2048), out_channels=1000),
    )


def reorders() -> tuple[OperatorKey, ...]:
    """ONNX Runtime's changes of layout into blocks of channels and out of them; others have no such operator."""
    maps = (
        (96, 1), (64, 7), (48, 14), (32, 28), (144, 28), (64, 56), (32, 112),  # whole blocks
        (72, 1), (40, 14), (120, 28), (24, 56),  # parts of blocks
        (96, 32), (48, 64), (32, 128),  # channels a page apart
    )  # fmt: skip
    return tuple(
        OperatorKey(op_type=op_type, in_shape=_map(channels, side), attributes=attributes)
        for channels, side in maps
        for op_type, attributes in (
            ("ReorderInput", ()), ("ReorderOutput", (("channels", str(channels)),))
        )
    )  # fmt: skip


def blocked_upsamples() -> tuple[OperatorKey, ...]:
    """Resizing of maps that are in blocks."""
    return tuple(
        OperatorKey(
            op_type="BlockedUpsample",
            in_shape=_map(channels, side),
            out_shape=_map(channels, 2 * side),
            attributes=(
                ("coordinate_transformation_mode", f'"{how}"'),
                ("mode", f'"{mode}"'),
                ("scales", "[1, 1, 2, 2]"),
            ),
        )
        for channels, side in ((48, 7), (64, 28), (16, 64))
        for mode, how in (("nearest", "asymmetric"), ("linear", "half_pixel"))
    )


def clamped() -> tuple[OperatorKey, ...]:
    """Convolutions with a Clip behind them, which are points with a Relu too: what is between the two is the Clip's."""
    return tuple(
        _conv(channels, out, side, kernel=(size, size), stride=stride, groups=groups, activation="Clip")
        for channels, out, side, size, stride, groups in _CLAMPED
    )


def _with_relu() -> Iterator[OperatorKey]:
    for key in clamped():
        yield from (key, replace(key, activation="Relu"))


_CLAMPED = (
    (16, 64, 56, 1, 1, 1), (24, 144, 28, 1, 1, 1), (48, 288, 14, 1, 1, 1), (96, 576, 7, 1, 1, 1),
    (3, 32, 160, 3, 2, 1), (96, 96, 56, 3, 1, 96), (144, 144, 28, 3, 2, 144),
)  # fmt: skip


# ------------------------------------------------------------------------------------------- operators with weights


def _conv(
    channels: int,
    out: int,
    side: int,
    *,
    kernel: Shape,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    activation: Activation = "Relu",
) -> OperatorKey:
    pads = tuple(dilation * (size // 2) for size in kernel)
    return OperatorKey(
        op_type="Conv",
        in_shape=(1, channels, side, side),
        out_channels=out,
        kernel=kernel,
        strides=(stride, stride),
        pads=(*pads, *pads),
        dilations=(dilation, dilation),
        groups=groups,
        activation=activation,
    )


class _Draw:
    """Numbers between 0 and 1 that fill a cube evenly (additive recurrence, Roberts 2018), and choices from them."""

    def __init__(self, seed: int, dimensions: int = 8) -> None:
        root = 2.0
        for _ in range(40):  # the one real root of x ** (d + 1) = x + 1
            root = (1 + root) ** (1 / (dimensions + 1))
        self._steps = [root ** -(i + 1) for i in range(dimensions)]
        self._at = [(0.5 + seed * 0.754877666) % 1.0] * dimensions

    def next(self) -> list[float]:
        self._at = [(at + step) % 1.0 for at, step in zip(self._at, self._steps, strict=True)]
        return self._at


def _channels(place: float, kind: float, low: float, high: float) -> int:
    """Channels between two bounds, evenly by their logarithm; mostly whole vectors of common machines."""
    exact = low * math.exp(place * math.log(high / low))
    multiple = 32 if kind < 0.25 else 16 if kind < 0.55 else 8 if kind < 0.8 else 4 if kind < 0.93 else 1
    return max(1, round(exact / multiple) * multiple) if exact >= multiple else max(1, round(exact))


def _pick(place: float, choices: Sequence[int]) -> int:
    return choices[min(len(choices) - 1, int(place * len(choices)))]


def _widest(side: int) -> float:
    return min(1280.0, 900e3 / side**2)


def _fits(key: OperatorKey) -> bool:
    macs, elements = macs_of(key)
    return (
        _LEAST_MACS <= macs <= _MOST_MACS
        and elements <= _MOST_ELEMENTS
        and math.prod(key.weight_shape) <= _MOST_WEIGHTS
    )


def macs_of(key: OperatorKey) -> tuple[float, float]:
    """A convolution's multiply-accumulates, and the elements of its input and output."""
    places = math.prod(-(-size // stride) for size, stride in zip(key.in_shape[2:], key.strides, strict=True))
    made = places * key.out_channels
    return float(made * math.prod(key.weight_shape[1:])), float(math.prod(key.in_shape) + made)


def _pointwise(seed: int) -> Iterator[OperatorKey]:
    draw = _Draw(seed)
    for _ in range(_DRAWS):
        u = draw.next()
        side = _pick(u[0], (1, *_SIDES))
        widest = _widest(side)
        channels, out = _channels(u[1], u[2], 8, widest), _channels(u[3], u[4], 8, widest)
        key = _conv(channels, out, side, kernel=(1, 1), stride=2 if u[5] < 0.08 and side > 1 else 1)
        if _fits(key):
            yield key


def _convolutions(seed: int) -> Iterator[OperatorKey]:
    draw = _Draw(seed + 1)
    kernels = ((3, 3),) * 13 + ((5, 5), (5, 5), (7, 7), (1, 7), (7, 1), (1, 3), (3, 1))
    for _ in range(_DRAWS):
        u = draw.next()
        side, kernel = _pick(u[0], _SIDES), kernels[int(u[5] * len(kernels))]
        widest = min(512.0, _widest(side))
        stem = u[7] < 0.1
        channels = _pick(u[1], (1, 3, 3)) if stem else _channels(u[1], u[2], 8, widest)
        out = _channels(u[3], u[4], 8, min(widest, 128.0) if stem else widest)
        groups = _pick(u[2], (2, 4, 8, 32)) if not stem and 0.1 < u[7] < 0.2 else 1
        channels, out = (-(-size // groups) * groups for size in (channels, out))
        dilated = 2 if 0.2 < u[7] < 0.24 and side > 8 else 1
        stride = 2 if u[6] < 0.25 and not dilated > 1 else 1
        key = _conv(channels, out, side, kernel=kernel, stride=stride, groups=groups, dilation=dilated)
        if _fits(key) and groups < channels:
            yield key


def _grouped(seed: int) -> Iterator[OperatorKey]:
    """Convolutions in groups: of few channels each, as nets have them, kernels make what they make of no others."""
    draw = _Draw(seed + 4)
    for _ in range(_DRAWS):
        u = draw.next()
        side, width = _pick(u[0], (7, 8, 14, 16, 28, 32, 56)), _pick(u[1], (4, 8, 8, 16, 16, 24, 32))
        groups = round(2 * math.exp(u[2] * math.log(32)))
        channels = groups * width
        size = _pick(u[3], (3, 3, 3, 3, 1))
        key = _conv(channels, channels, side, kernel=(size, size), stride=2 if u[4] < 0.25 else 1, groups=groups)
        if _fits(key) and channels <= min(512.0, 2 * _widest(side)):
            yield key


def _stems() -> Iterator[OperatorKey]:
    """First layers: of the few channels of an image, kernels make what they make of no others."""
    for channels, out, side, size, stride in (
        (3, 32, 224, 3, 2), (3, 64, 112, 7, 2), (1, 64, 64, 5, 1), (3, 16, 32, 3, 1), (3, 24, 160, 3, 2),
        (3, 48, 96, 3, 1), (3, 16, 192, 3, 2), (3, 32, 224, 7, 2), (1, 32, 48, 3, 1), (3, 64, 64, 5, 1),
        (3, 64, 128, 3, 2), (3, 40, 128, 7, 2), (3, 96, 112, 4, 4), (3, 64, 224, 3, 2), (1, 16, 96, 3, 2),
        (3, 24, 128, 5, 2),
    ):  # fmt: skip
        yield _conv(channels, out, side, kernel=(size, size), stride=stride)


def _depthwise(seed: int) -> Iterator[OperatorKey]:
    draw = _Draw(seed + 2)
    for _ in range(_DRAWS):
        u = draw.next()
        side, size = _pick(u[0], _SIDES), _pick(u[3], (3, 3, 3, 3, 5, 5, 7))
        channels = _channels(u[1], u[2], 8, _widest(side))
        stride = 2 if u[4] < 0.3 else 1
        key = _conv(channels, channels, side, kernel=(size, size), stride=stride, groups=channels)
        if _fits(key) and channels > 1:
            yield key


def _dense(seed: int) -> Iterator[OperatorKey]:
    draw = _Draw(seed + 3)
    for _ in range(_DRAWS):
        u = draw.next()
        depth, columns = (_channels(u[i], u[i + 1], 16, 2048) for i in (0, 2))
        if depth * columns > _MOST_WEIGHTS or depth * columns < 500:
            continue
        rows = _pick(u[4], (1, 1, 16, 49, 64, 196, 256, 784, 3136))
        if rows == 1:
            yield OperatorKey(op_type="Gemm", in_shape=(1, depth), out_channels=columns)
        elif rows * depth * columns <= _MOST_MACS:
            yield OperatorKey(op_type="MatMul", in_shape=(1, rows, depth), out_channels=columns)


# ------------------------------------------------------------------------------------- operators without weights


def _maps() -> Iterator[tuple[OperatorKey, ...]]:
    """Operators on feature maps: for each kind, its sizes."""
    for make in (_add, _scale):
        yield tuple(make(channels, side) for channels, side in _MAPS)
    for op_type in ("Mul", "Sub", "Div"):
        yield tuple(OperatorKey(op_type=op_type, in_shape=_map(c, s), other_shapes=(_map(c, s),)) for c, s in _FEW_MAPS)
    for op_type in ("Add", "Mul"):  # by a constant for each channel
        yield tuple(
            OperatorKey(op_type=op_type, in_shape=_map(c, s), other_shapes=((1, c, 1, 1),), constant_operands=True)
            for c, s in _FEW_MAPS
        )
    for op_type in ("Sigmoid", "HardSwish", "SiLU", "Relu", "Clip"):
        yield tuple(
            OperatorKey(op_type=op_type, in_shape=_map(c, s), attributes=_clip(op_type)) for c, s in (*_MAPS, (96, 1))
        )
    yield tuple(OperatorKey(op_type="HardSigmoid", in_shape=_map(c, s)) for c, s in ((96, 1), *_FEW_MAPS))
    for op_type in ("Tanh", "LeakyRelu", "Erf", "Gelu", "Sqrt", "Exp"):
        yield tuple(OperatorKey(op_type=op_type, in_shape=_map(c, s), opset=_opset(op_type)) for c, s in _FEW_MAPS)
    yield tuple(_pool("MaxPool", c, s, 3, 2) for c, s in _MAPS)
    yield tuple(_pool("MaxPool", c, s, 2, 2) for c, s in _FEW_MAPS)
    yield tuple(_pool("MaxPool", c, s, 3, 1) for c, s in _FEW_MAPS)
    yield tuple(_pool("AveragePool", c, s, 3, 1) for c, s in _FEW_MAPS)
    yield tuple(_pool("AveragePool", c, s, 2, 2) for c, s in _FEW_MAPS)
    yield tuple(OperatorKey(op_type="GlobalAveragePool", in_shape=_map(c, s), out_shape=(1, c, 1, 1)) for c, s in _MAPS)
    yield tuple(_mean(c, s) for c, s in _MAPS)
    yield tuple(_concat(c, s, 2) for c, s in _MAPS)
    yield tuple(_concat(c, s, 4) for c, s in _FEW_MAPS)
    yield tuple(_slice(c, s) for c, s in _FEW_MAPS)
    yield tuple(_pad(c, s) for c, s in _FEW_MAPS)
    yield tuple(_transpose(_map(c, s), (0, 2, 3, 1)) for c, s in _FEW_MAPS)
    yield tuple(_transpose((1, 4, c // 4, s, s), (0, 2, 1, 3, 4)) for c, s in _FEW_MAPS)
    for mode in ("nearest", "linear"):
        yield tuple(_resize(c, s, mode) for c, s in ((48, 7), (64, 28), (16, 64)))
    yield tuple(_upconv(c, s) for c, s in ((96, 7), (64, 28), (32, 56)))
    yield tuple(_depth_to_space(c, s) for c, s in ((64, 14), (36, 64), (12, 128)))
    yield tuple(
        OperatorKey(
            op_type="Reshape", in_shape=_map(c, s), out_shape=(1, c, s * s), attributes=(_integers(1, 1, c, s * s),)
        )
        for c, s in _FEW_MAPS
    )


def _sequences() -> Iterator[OperatorKey]:
    """Operators on rows of tokens, as transformers have them."""
    for rows, width, maps in ((49, 768, 3), (196, 192, 3), (256, 96, 3), (784, 128, 3), (3136, 96, 0)):
        shape = (1, rows, width)
        yield OperatorKey(
            op_type="ReduceMean", in_shape=shape, out_shape=(1, rows, 1),
            attributes=(("#1", '["int64", [1], [-1]]'), ("keepdims", "1")), opset=18,
        )  # fmt: skip
        yield OperatorKey(op_type="LayerNormalization", in_shape=shape, other_shapes=((width,), (width,)),
                          constant_operands=True, attributes=(("axis", "-1"),), out_shape=shape)  # fmt: skip
        yield OperatorKey(op_type="Add", in_shape=shape, other_shapes=(shape,))
        # Many tokens attend within windows only.
        scores = (1, maps, rows, rows) if maps else (1, 3 * rows // 49, 49, 49)
        yield OperatorKey(op_type="Softmax", in_shape=scores, attributes=(("axis", "-1"),))
        yield _transpose((1, rows, max(1, width // 32), 32), (0, 2, 1, 3))
        yield _transpose(shape, (0, 2, 1))
        if not maps:
            yield _transpose((8, 7, 8, 7, width), (0, 2, 1, 3, 4))
    for heads, rows, depth in ((3, 49, 32), (3, 196, 64), (6, 64, 32), (4, 256, 36)):
        yield OperatorKey(op_type="MatMul", in_shape=(1, heads, rows, depth), other_shapes=((1, heads, depth, rows),),
                          out_shape=(1, heads, rows, rows))  # fmt: skip
        yield OperatorKey(op_type="MatMul", in_shape=(1, heads, rows, rows), other_shapes=((1, heads, rows, depth),),
                          out_shape=(1, heads, rows, depth))  # fmt: skip
    yield OperatorKey(op_type="Softmax", in_shape=(1, 1000), attributes=(("axis", "-1"),))


def _map(channels: int, side: int) -> Shape:
    return (1, channels, side, side)


def _integers(position: int, *values: int) -> tuple[str, str]:
    return f"#{position}", json.dumps(["int64", [len(values)], list(values)])


def _clip(op_type: str) -> tuple[tuple[str, str], ...]:
    if op_type != "Clip":
        return ()
    return ("#1", '["float32", [], [0.0]]'), ("#2", '["float32", [], [6.0]]')


def _opset(op_type: str) -> int:
    return 20 if op_type == "Gelu" else 17


def _add(channels: int, side: int) -> OperatorKey:
    return OperatorKey(
        op_type="Add", in_shape=_map(channels, side), other_shapes=(_map(channels, side),), activation="Relu"
    )


def _scale(channels: int, side: int) -> OperatorKey:
    """A map times one gate for each channel."""
    return OperatorKey(op_type="Mul", in_shape=_map(channels, side), other_shapes=((1, channels, 1, 1),))


def _pool(op_type: str, channels: int, side: int, size: int, stride: int) -> OperatorKey:
    pads = (size // 2 if size % 2 else 0,) * 4
    return OperatorKey(
        op_type=op_type, in_shape=_map(channels, side), kernel=(size, size), strides=(stride, stride), pads=pads,
        dilations=(1, 1),
    )  # fmt: skip


def _mean(channels: int, side: int) -> OperatorKey:
    """Global pooling as PyTorch exports it."""
    return OperatorKey(
        op_type="ReduceMean", in_shape=_map(channels, side), out_shape=(1, channels, 1, 1),
        attributes=(_integers(1, 2, 3), ("keepdims", "1")), opset=18,
    )  # fmt: skip


def _concat(channels: int, side: int, parts: int) -> OperatorKey:
    part = _map(channels // parts, side)
    return OperatorKey(
        op_type="Concat", in_shape=part, other_shapes=(part,) * (parts - 1), attributes=(("axis", "1"),),
        out_shape=_map(channels // parts * parts, side),
    )  # fmt: skip


def _slice(channels: int, side: int) -> OperatorKey:
    numbers = [_integers(i, value) for i, value in enumerate((0, channels // 2, 1, 1), start=1)]
    return OperatorKey(
        op_type="Slice", in_shape=_map(channels, side), out_shape=_map(channels // 2, side), attributes=tuple(numbers)
    )


def _pad(channels: int, side: int) -> OperatorKey:
    sizes = _integers(1, 0, 0, 1, 1, 0, 0, 1, 1)
    return OperatorKey(
        op_type="Pad", in_shape=_map(channels, side), out_shape=_map(channels, side + 2),
        attributes=(sizes, ("mode", '"constant"')),
    )  # fmt: skip


def _transpose(shape: Shape, order: Sequence[int]) -> OperatorKey:
    return OperatorKey(
        op_type="Transpose", in_shape=shape, out_shape=tuple(shape[i] for i in order),
        attributes=(("perm", json.dumps(list(order))),),
    )  # fmt: skip


def _resize(channels: int, side: int, mode: str) -> OperatorKey:
    out = _map(channels, 2 * side)
    how = ("asymmetric", "floor") if mode == "nearest" else ("half_pixel", "round_prefer_floor")
    return OperatorKey(
        op_type="Resize", in_shape=_map(channels, side), out_shape=out,
        attributes=(_integers(3, *out), ("coordinate_transformation_mode", f'"{how[0]}"'), ("mode", f'"{mode}"'),
                    ("nearest_mode", f'"{how[1]}"')),
    )  # fmt: skip


def _upconv(channels: int, side: int) -> OperatorKey:
    return OperatorKey(
        op_type="ConvTranspose", in_shape=_map(channels, side), out_channels=channels // 2, kernel=(2, 2),
        strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1),
    )  # fmt: skip


def _depth_to_space(channels: int, side: int) -> OperatorKey:
    return OperatorKey(
        op_type="DepthToSpace", in_shape=_map(channels, side), out_shape=_map(channels // 4, 2 * side),
        attributes=(("blocksize", "2"), ("mode", '"CRD"')),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- orders


def _first(drawn: Iterator[OperatorKey], count: int) -> tuple[OperatorKey, ...]:
    """So many distinct points of those drawn; every beginning of an even sequence is even itself."""
    return tuple(itertools.islice(dict.fromkeys(drawn), count))


def _rotated(kinds: Sequence[Sequence[OperatorKey]]) -> tuple[OperatorKey, ...]:
    """One size of each kind, then another: a middle one first, then the ends."""
    orders = [[*sizes[len(sizes) // 2 :], *sizes[: len(sizes) // 2]] for sizes in kinds]
    most = max(len(sizes) for sizes in orders)
    return tuple(sizes[i] for i in range(most) for sizes in orders if i < len(sizes))
