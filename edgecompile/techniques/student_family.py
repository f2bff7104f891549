"""The family of small classifiers that a student is chosen from: what each is made of, without a weight.

Two kinds of blocks. ``inverted``: a 1x1 expansion, a depthwise convolution, an optional gate, a linear 1x1 projection
(MobileNetV2, Sandler et al., CVPR 2018; gate and hardswish as in MobileNetV3, Howard et al., ICCV 2019). ``fused``: one
dense convolution in place of expansion and depthwise convolution (EfficientNetV2, Tan and Le, ICML 2021): more
multiply-accumulates, and yet often faster where dense convolutions run at a processor's full speed and depthwise ones
wait for memory.

An image of 32 pixels is halved twice on its way, one of 224 five times: the last map is about six pixels high.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.types import Model

Kind: TypeAlias = Literal["inverted", "fused"]
Activation: TypeAlias = Literal["relu", "relu6", "hardswish"]

#: Channels at width 1 of the stem, the four stages, and the 1x1 convolution before the average.
_STEM, _CHANNELS, _HEAD = 24, (24, 40, 80, 128), 320
#: The size in pixels that the last feature map comes closest to.
_LAST = 6
#: A gate's inner channels are this share of those that it acts on.
_GATE = 4
_MOST_CHANNELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What goes into and out of a classifier: one image, N x C x H x W with N = 1, and one row of logits."""

    input: str
    channels: int
    height: int
    width: int
    output: str
    classes: int


def interface(model: Model) -> Interface:
    """What a student of ``model`` has to look like from outside. Raises `UnsupportedModelError` naming why it cannot:
    only classifiers of one image have students, since for them a network's outputs say all there is to learn."""
    fault = _fault(model)
    if fault:
        raise UnsupportedModelError(
            f"{model.name} can have no student: {fault}", remedy="build without one; pruning works on any model"
        )
    (image,), (logits,) = model.inputs, model.outputs
    _, channels, height, width = image.shape
    return Interface(
        input=image.name, channels=channels, height=height, width=width, output=logits.name, classes=logits.shape[1]
    )


def _fault(model: Model) -> str | None:
    if len(model.inputs) != 1:
        return f"it has {len(model.inputs)} inputs, and a student takes one image"
    if len(model.outputs) != 1:
        return f"it has {len(model.outputs)} outputs, and a student gives one row of logits"
    (image,), (logits,) = model.inputs, model.outputs
    if len(image.shape) != 4 or image.shape[0] != 1 or image.dtype != "float32":
        return f"its input {image.name!r} is {image.dtype}{list(image.shape)}, not one float32 image [1, C, H, W]"
    if image.shape[1] > _MOST_CHANNELS:
        return f"its input {image.name!r} is {list(image.shape)}, whose {image.shape[1]} channels are no image's"
    if len(logits.shape) != 2 or logits.shape[0] != 1 or logits.shape[1] < 2 or logits.dtype != "float32":
        return f"its output {logits.name!r} is {logits.dtype}{list(logits.shape)}, not float32 logits [1, classes]"
    return _not_logits(model, logits.name)


def _not_logits(model: Model, output: str) -> str | None:
    import onnx

    graph = onnx.load(str(model.path), load_external_data=False).graph
    last = next((node.op_type for node in graph.node if output in node.output), None)
    if last in ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"):
        return f"its output {output!r} comes from {last}, and a student learns from logits"
    return None


# ------------------------------------------------------------------------------------------------ an architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One net of the family; channels are rounded to multiples of ``tile``.

    ``width`` scales all channels, ``depths`` are blocks a stage, ``expansion`` is how many times wider a block is
    inside, ``kernel`` the size of the stages' convolutions. ``stem_stride`` is 1, 2 or 4, ``strides`` that of each
    stage's first block. ``squeeze_excite`` gates every inverted block by its channels' averages.
    """

    kind: Kind
    width: float
    depths: tuple[int, ...]
    strides: tuple[int, ...]
    stem_stride: int
    expansion: int = 4
    kernel: int = 3
    squeeze_excite: bool = False
    activation: Activation = "relu"
    tile: int = 8

    @property
    def code(self) -> str:
        """The architecture in one word, as a plan holds it; `parse` reads it."""
        return "-".join(
            (
                self.kind, f"w{self.width:g}", f"d{_dotted(self.depths)}",
                f"s{_dotted((self.stem_stride, *self.strides))}", f"e{self.expansion}", f"k{self.kernel}",
                *(("se",) if self.squeeze_excite else ()), self.activation, f"t{self.tile}",
            )
        )  # fmt: skip


def parse(code: str) -> Architecture:
    """The inverse of `Architecture.code`. Raises `InputError` for a word that is none."""
    kind, *words = code.split("-")
    fields = {word[0]: word[1:] for word in words if word not in ("se", *get_args(Activation))}
    try:
        stem_stride, *strides = _undotted(fields["s"])
        found = Architecture(
            kind=kind,  # type: ignore[arg-type]
            width=float(fields["w"]),
            depths=_undotted(fields["d"]),
            strides=tuple(strides),
            stem_stride=stem_stride,
            expansion=int(fields["e"]),
            kernel=int(fields["k"]),
            squeeze_excite="se" in words,
            activation=next(name for name in get_args(Activation) if name in words),
            tile=int(fields["t"]),
        )
    except (KeyError, ValueError, StopIteration) as exc:
        raise InputError(f"{code!r} is no student's architecture", remedy=_EXAMPLE) from exc
    _check(found)
    return found


_EXAMPLE = "one looks like inverted-w0.5-d1.2.2.1-s1.1.2.2.1-e4-k3-relu-t8"


def _check(found: Architecture) -> None:
    counts = (*found.depths, found.expansion, found.tile)
    bad = (
        found.kind not in get_args(Kind)
        or not 0 < found.width <= 64
        or found.stem_stride not in (1, 2, 4)
        or len(found.depths) != len(_CHANNELS)
        or len(found.strides) != len(_CHANNELS)
        or any(stride not in (1, 2) for stride in found.strides)
        or any(not 1 <= count <= 64 for count in counts)
        or found.kernel not in (3, 5, 7)
    )
    if bad:
        raise InputError(f"{found.code!r} is no student's architecture", remedy=_EXAMPLE)


def _dotted(numbers: Iterable[int]) -> str:
    return ".".join(map(str, numbers))


def _undotted(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


# ------------------------------------------------------------------------------------------------ its convolutions


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """A convolution with batch normalization and, where ``activation`` is not empty, an activation.

    ``pads`` are those of TensorFlow's SAME (top, left, bottom, right): with them no runtime needs a pad of its own.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    groups: int
    activation: str
    pads: tuple[int, int, int, int]
    out_size: tuple[int, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.parameters * math.prod(self.out_size)

    @property
    def parameters(self) -> int:
        """Weights, the bias not counted."""
        return self.outputs * self.inputs // self.groups * self.kernel**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Convolutions one behind the other; a gate of that many inner channels stands before the last of them, and the
    block's input is added behind it."""

    convs: tuple[Conv, ...]
    gate: int = 0
    adds: bool = False


def blocks(architecture: Architecture, face: Interface) -> tuple[Block, ...]:
    """The net's blocks in order: the stem, the stages, the last 1x1 convolution. An average over the image and a dense
    layer follow."""
    maker = _Maker(architecture=architecture, channels=face.channels, size=(face.height, face.width))
    found = [maker.stem()]
    rows = zip(_CHANNELS, architecture.depths, architecture.strides, strict=True)
    for stage, (base, depth, stride) in enumerate(rows):
        for index in range(depth):
            found.append(maker.block(f"stage{stage}.{index}", base, stride if index == 0 else 1))
    return (*found, maker.head())


def macs(architecture: Architecture, face: Interface) -> int:
    """Multiply-accumulates of the convolutions and of the dense layer for one image."""
    return sum(conv.macs for conv in _convs(architecture, face)) + _dense(architecture, face)


def parameters(architecture: Architecture, face: Interface) -> int:
    """Weights of the convolutions and of the dense layer."""
    return sum(conv.parameters for conv in _convs(architecture, face)) + _dense(architecture, face)


def _convs(architecture: Architecture, face: Interface) -> list[Conv]:
    return [conv for block in blocks(architecture, face) for conv in block.convs]


def _dense(architecture: Architecture, face: Interface) -> int:
    return _convs(architecture, face)[-1].outputs * face.classes


def _on_grid(channels: float, tile: int) -> int:
    return max(tile, round(channels / tile) * tile)


@dataclass(slots=True, kw_only=True)
class _Maker:
    """Makes convolutions one after the other and knows how many channels of what size the last one gave."""

    architecture: Architecture
    channels: int
    size: tuple[int, int]

    def stem(self) -> Block:
        wide = self.architecture
        return Block(convs=(self._conv("stem", self._wide(_STEM), max(3, wide.stem_stride), wide.stem_stride),))

    def head(self) -> Block:
        return Block(convs=(self._conv("head", self._wide(_HEAD), 1),))

    def block(self, name: str, base: int, stride: int) -> Block:
        own, outputs = self.architecture, self._wide(base)
        inner = own.expansion * self.channels
        adds = stride == 1 and outputs == self.channels
        if own.kind == "inverted":
            return self._inverted(name, inner, outputs, stride, adds)
        if own.expansion == 1:
            return Block(convs=(self._conv(f"{name}.conv", outputs, own.kernel, stride),), adds=adds)
        wide = self._conv(f"{name}.fused", inner, own.kernel, stride)
        return Block(convs=(wide, self._conv(f"{name}.project", outputs, 1, linear=True)), adds=adds)

    def _inverted(self, name: str, inner: int, outputs: int, stride: int, adds: bool) -> Block:
        own = self.architecture
        expand = [self._conv(f"{name}.expand", inner, 1)] if inner != self.channels else []
        depthwise = self._conv(f"{name}.depthwise", inner, own.kernel, stride, groups=inner)
        project = self._conv(f"{name}.project", outputs, 1, linear=True)
        gate = _on_grid(inner / _GATE, own.tile) if own.squeeze_excite else 0
        return Block(convs=(*expand, depthwise, project), gate=gate, adds=adds)

    def _wide(self, base: int) -> int:
        return _on_grid(base * self.architecture.width, self.architecture.tile)

    def _conv(
        self, name: str, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, linear: bool = False
    ) -> Conv:
        (top, bottom), (left, right) = (_same(size, kernel, stride) for size in self.size)
        self.size = (math.ceil(self.size[0] / stride), math.ceil(self.size[1] / stride))
        made = Conv(
            name=name, inputs=self.channels, outputs=outputs, kernel=kernel, stride=stride, groups=groups,
            activation="" if linear else self.architecture.activation, pads=(top, left, bottom, right),
            out_size=self.size,
        )  # fmt: skip
        self.channels = outputs
        return made


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


# ---------------------------------------------------------------------------------------------------- candidates


def halvings(height: int, width: int) -> int:
    """How often an image of that size is halved before the average."""
    return max(0, round(math.log2(max(min(height, width) / _LAST, 1.0))))


def _strides(total: int, stem_stride: int) -> tuple[int, ...] | None:
    """The stages' strides, or ``None`` where they cannot do what the stem leaves to them.

    The first stage halves only where all others do: it is there to see the image at its size.
    """
    left = total - round(math.log2(stem_stride))
    stages = len(_CHANNELS)
    if left < 0 or left > stages:
        return None
    return (2,) * stages if left == stages else (1, *(2,) * left, *(1,) * (stages - 1 - left))


_WIDTHS: dict[Kind, tuple[float, ...]] = {
    "inverted": (0.35, 0.5, 0.75, 1.0, 1.4, 2.0),
    "fused": (0.25, 0.35, 0.5, 0.75, 1.0, 1.4),
}
_DEPTHS = ((1, 1, 2, 1), (1, 2, 3, 2))
#: Expansion, kernel, gated, activation: the plain one, then what is tried at some widths only.
_PLAIN: dict[Kind, tuple[int, int, bool, Activation]] = {
    "inverted": (4, 3, False, "relu"),
    "fused": (2, 3, False, "relu"),
}
_OTHERS: dict[Kind, tuple[tuple[int, int, bool, Activation], ...]] = {
    "inverted": ((6, 3, False, "relu6"), (3, 5, False, "relu"), (4, 3, False, "hardswish"), (4, 3, True, "hardswish")),
    "fused": ((1, 3, False, "relu"), (4, 3, False, "relu")),
}


def candidates(
    model: Model, tile: int, *, supports_se: bool = True, supports_hardswish: bool = True
) -> tuple[Architecture, ...]:
    """Some dozens of architectures for a classifier; those that rounding to ``tile`` makes the same are given once.

    Gates need ``supports_se`` and ``supports_hardswish`` (they are hard sigmoids). Raises `UnsupportedModelError` as
    `interface` does.
    """
    face = interface(model)
    found: dict[tuple[Block, ...], Architecture] = {}
    for kind in get_args(Kind):
        for width, depths, stem_stride in itertools.product(_WIDTHS[kind], _DEPTHS, (1, 2, 4)):
            strides = _strides(halvings(face.height, face.width), stem_stride)
            if strides is None or (stem_stride == 4 and min(face.height, face.width) < 128):
                continue
            for expansion, kernel, gated, activation in (_PLAIN[kind], *_others(kind, width, depths)):
                if (gated and not supports_se) or (activation == "hardswish" and not supports_hardswish):
                    continue
                made = Architecture(
                    kind=kind, width=width, depths=depths, strides=strides, stem_stride=stem_stride,
                    expansion=expansion, kernel=kernel, squeeze_excite=gated, activation=activation, tile=tile,
                )  # fmt: skip
                found.setdefault(blocks(made, face), made)
    return tuple(found.values())


def _others(kind: Kind, width: float, depths: tuple[int, ...]) -> tuple[tuple[int, int, bool, Activation], ...]:
    return _OTHERS[kind] if width in _WIDTHS[kind][::2] and depths == _DEPTHS[0] else ()


__all__ = [
    "Architecture",
    "Block",
    "Conv",
    "Interface",
    "blocks",
    "candidates",
    "halvings",
    "interface",
    "macs",
    "parameters",
    "parse",
]
