"""The models of `published_latencies.csv` as lists of operator costs, written from their papers.

Each list is what `edgecompile.graph.operators` would count in the model's ONNX file: BatchNorm, bias and ReLU belong to
the operator before them, HardSwish and SiLU are one activation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from edgecompile.types import OperatorClass, OperatorCost

Shape = tuple[int, int, int]  # channels, height, width


def _divisible(channels: float, divisor: int = 8) -> int:
    """Channels as MobileNet and EfficientNet round them: to a multiple of 8, and never down by more than 10 %."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@dataclass(slots=True)
class Net:
    """Writes down one operator after the other; ``shape`` is that of the tensor in hand (batch 1)."""

    shape: Shape
    operators: list[OperatorCost] = field(default_factory=list)

    def _add(
        self,
        op_type: str,
        op_class: OperatorClass,
        result: Shape,
        *,
        macs: int = 0,
        weights: int = 0,
        inputs: int = 1,
        kernel: tuple[int, ...] = (),
        groups: int = 1,
    ) -> Net:
        self.operators.append(
            OperatorCost(
                name=f"{op_type}_{len(self.operators)}",
                op_type=op_type,
                op_class=op_class,
                macs=macs,
                weight_elements=weights,
                input_elements=inputs * math.prod(self.shape),
                output_elements=math.prod(result),
                in_channels=self.shape[0],
                out_channels=result[0],
                kernel=kernel,
                groups=groups,
                output_shape=(1, *result),
            )
        )
        self.shape = result
        return self

    def conv(self, out: int, size: int = 1, stride: int = 1, *, groups: int = 1, valid: bool = False) -> Net:
        """A convolution with bias; "same" padding unless ``valid``."""
        channels, height, width = self.shape
        lost = size - 1 if valid else 0
        result = (out, -(-(height - lost) // stride), -(-(width - lost) // stride))
        per_output = channels // groups * size * size
        kind: OperatorClass = "depthwise" if groups == channels > 1 else "pointwise" if size == groups == 1 else "conv"
        return self._add(
            "Conv", kind, result, macs=math.prod(result) * per_output, weights=out * per_output + out,
            kernel=(size, size), groups=groups,
        )  # fmt: skip

    def depthwise(self, size: int, stride: int = 1) -> Net:
        return self.conv(self.shape[0], size, stride, groups=self.shape[0])

    def pool(self, size: int, stride: int, *, valid: bool = False) -> Net:
        channels, height, width = self.shape
        lost = size - 1 if valid else 0  # "valid" pools round up where they are used here
        result = (channels, -(-(height - lost) // stride), -(-(width - lost) // stride))
        return self._add("MaxPool", "pool", result, kernel=(size, size))

    def global_pool(self) -> Net:
        return self._add("GlobalAveragePool", "pool", (self.shape[0], 1, 1))

    def dense(self, out: int) -> Net:
        count = math.prod(self.shape)
        return self._add("Gemm", "dense", (out, 1, 1), macs=count * out, weights=count * out + out)

    def matmul(self, left: tuple[int, int], columns: int, batch: int = 1) -> Net:
        """A batched product of two tensors, (rows, depth) x (depth, columns); the tensor in hand stays."""
        kept, (rows, depth) = self.shape, left
        self.shape = (batch, rows + columns, depth)
        self._add("MatMul", "dense", (batch, rows, columns), macs=batch * rows * depth * columns)
        self.shape = kept
        return self

    def act(self, op_type: str) -> Net:
        """An activation that is an operator of its own."""
        return self._add(op_type, "activation", self.shape)

    def add(self) -> Net:
        return self._add("Add", "elementwise", self.shape, inputs=2)

    def concat(self, channels: int) -> Net:
        """Join what is in hand with others, to ``channels`` in all."""
        result = (channels, *self.shape[1:])
        self.shape = result
        return self._add("Concat", "data", result)

    def upsample(self) -> Net:
        return self._add("Resize", "data", (self.shape[0], 2 * self.shape[1], 2 * self.shape[2]))

    def squeeze_excite(self, hidden: int, gate: str) -> Net:
        """Global pool, two 1x1 convolutions, a gate and a product with the tensor in hand."""
        kept = self.shape
        self.global_pool().conv(hidden)
        if gate == "Sigmoid":
            self.act("SiLU")
        self.conv(kept[0]).act(gate)
        self.shape = kept
        return self._add("Mul", "elementwise", kept)


# ------------------------------------------------------------------------------------------------------- mobile nets


def mobilenet_v1(resolution: int) -> Net:
    """Howard et al. 2017."""
    net = Net((3, resolution, resolution)).conv(32, 3, 2)
    for out, stride in (
        (64, 1),
        (128, 2),
        (128, 1),
        (256, 2),
        (256, 1),
        (512, 2),
        *[(512, 1)] * 5,
        (1024, 2),
        (1024, 1),
    ):
        net.depthwise(3, stride).conv(out)
    return net.global_pool().dense(1000).act("Softmax")


def _inverted(
    net: Net, out: int, size: int, stride: int, expanded: int, *, act: str = "", hidden: int = 0, gate: str = ""
) -> Net:
    """Expand, depthwise, squeeze-excite (``hidden`` > 0), project; a shortcut where the shapes agree."""
    before = net.shape
    if expanded != before[0]:
        net.conv(expanded)
        _ = net.act(act) if act else None
    net.depthwise(size, stride)
    _ = net.act(act) if act else None
    _ = net.squeeze_excite(hidden, gate) if hidden else None
    net.conv(out)
    return net.add() if net.shape == before else net


def mobilenet_v2(resolution: int, *, width: float = 1.0) -> Net:
    """Sandler et al. 2018."""
    net = Net((3, resolution, resolution)).conv(_divisible(32 * width), 3, 2)
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for factor, out, count, stride in settings:
        for i in range(count):
            _inverted(net, _divisible(out * width), 3, stride if i == 0 else 1, net.shape[0] * factor)
    return net.conv(_divisible(1280 * max(1.0, width))).global_pool().dense(1000).act("Softmax")


_V3_LARGE = (
    (3, 16, 16, 0, "", 1), (3, 64, 24, 0, "", 2), (3, 72, 24, 0, "", 1), (5, 72, 40, 1, "", 2), (5, 120, 40, 1, "", 1),
    (5, 120, 40, 1, "", 1), (3, 240, 80, 0, "HardSwish", 2), (3, 200, 80, 0, "HardSwish", 1),
    (3, 184, 80, 0, "HardSwish", 1), (3, 184, 80, 0, "HardSwish", 1), (3, 480, 112, 1, "HardSwish", 1),
    (3, 672, 112, 1, "HardSwish", 1), (5, 672, 160, 1, "HardSwish", 2), (5, 960, 160, 1, "HardSwish", 1),
    (5, 960, 160, 1, "HardSwish", 1),
)  # fmt: skip
_V3_SMALL = (
    (3, 16, 16, 1, "", 2), (3, 72, 24, 0, "", 2), (3, 88, 24, 0, "", 1), (5, 96, 40, 1, "HardSwish", 2),
    (5, 240, 40, 1, "HardSwish", 1), (5, 240, 40, 1, "HardSwish", 1), (5, 120, 48, 1, "HardSwish", 1),
    (5, 144, 48, 1, "HardSwish", 1), (5, 288, 96, 1, "HardSwish", 2), (5, 576, 96, 1, "HardSwish", 1),
    (5, 576, 96, 1, "HardSwish", 1),
)  # fmt: skip


def mobilenet_v3(resolution: int, *, large: bool) -> Net:
    """Howard et al. 2019."""
    net = Net((3, resolution, resolution)).conv(16, 3, 2).act("HardSwish")
    for size, expanded, out, squeeze, act, stride in _V3_LARGE if large else _V3_SMALL:
        hidden = _divisible(expanded / 4) if squeeze else 0
        _inverted(net, out, size, stride, expanded, act=act, hidden=hidden, gate="HardSigmoid")
    net.conv(960 if large else 576).act("HardSwish").global_pool()
    return net.dense(1280 if large else 1024).act("HardSwish").dense(1000).act("Softmax")


#: Kernel, expansion, channels, blocks, stride of each stage of EfficientNet-B0.
_EFFICIENT = (
    (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
    (3, 6, 320, 1, 1),
)  # fmt: skip


def efficientnet_b0(resolution: int) -> Net:
    """Tan and Le 2019."""
    net = Net((3, resolution, resolution)).conv(32, 3, 2).act("SiLU")
    for size, factor, out, count, stride in _EFFICIENT:
        for i in range(count):
            channels = net.shape[0]
            hidden, expanded = max(1, channels // 4), channels * factor
            _inverted(net, out, size, stride if i == 0 else 1, expanded, act="SiLU", hidden=hidden, gate="Sigmoid")
    return net.conv(1280).act("SiLU").global_pool().dense(1000).act("Softmax")


def efficientnet_lite(resolution: int, *, width: float, depth: float) -> Net:
    """EfficientNet-Lite: no squeeze-and-excite, ReLU6; stem, head, first and last stage keep their size."""
    net = Net((3, resolution, resolution)).conv(32, 3, 2)
    for stage, (size, factor, out, count, stride) in enumerate(_EFFICIENT):
        blocks = count if stage in (0, len(_EFFICIENT) - 1) else math.ceil(count * depth)
        for i in range(blocks):
            _inverted(net, _divisible(out * width), size, stride if i == 0 else 1, net.shape[0] * factor)
    return net.conv(1280).global_pool().dense(1000).act("Softmax")


def mnasnet(resolution: int) -> Net:
    """MnasNet-B1 1.0 (Tan et al. 2019), as torchvision's mnasnet1_0."""
    net = Net((3, resolution, resolution)).conv(32, 3, 2).depthwise(3).conv(16)
    for size, factor, out, count, stride in (
        (3, 3, 24, 3, 2), (5, 3, 40, 3, 2), (5, 6, 80, 3, 2), (3, 6, 96, 2, 1), (5, 6, 192, 4, 2), (3, 6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(count):
            _inverted(net, out, size, stride if i == 0 else 1, net.shape[0] * factor)
    return net.conv(1280).global_pool().dense(1000)


# -------------------------------------------------------------------------------------------------- nets for servers


def resnet(resolution: int, *, blocks: tuple[int, ...], bottleneck: bool, width: int = 1) -> Net:
    """He et al. 2016, with the stride in the 3x3 convolution; ``width`` is that of Wide ResNet's inner channels."""
    net = Net((3, resolution, resolution)).conv(64, 7, 2).pool(3, 2)
    for stage, count in enumerate(blocks):
        inner = 64 * 2**stage
        out = 4 * inner if bottleneck else inner
        for i in range(count):
            before, stride = net.shape, 2 if stage and i == 0 else 1
            if bottleneck:
                net.conv(inner * width).conv(inner * width, 3, stride).conv(out)
            else:
                net.conv(inner, 3, stride).conv(inner, 3)
            after = net.shape
            if after != before:
                net.shape = before
                net.conv(out, 1, stride)
            net.add()
    return net.global_pool().dense(1000)


def vgg16(resolution: int) -> Net:
    """Simonyan and Zisserman 2015."""
    net = Net((3, resolution, resolution))
    for out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            net.conv(out, 3)
        net.pool(2, 2)
    return net.dense(4096).dense(4096).dense(1000)


def squeezenet(resolution: int) -> Net:
    """SqueezeNet 1.1 (Iandola et al. 2016)."""
    net = Net((3, resolution, resolution)).conv(64, 3, 2, valid=True).pool(3, 2, valid=True)
    for squeeze, out, pool in (
        (16, 128, False), (16, 128, True), (32, 256, False), (32, 256, True), (48, 384, False), (48, 384, False),
        (64, 512, False), (64, 512, False),
    ):  # fmt: skip
        squeezed = net.conv(squeeze).shape
        net.conv(out // 2)
        net.shape = squeezed
        net.conv(out // 2, 3).concat(out)
        if pool:
            net.pool(3, 2, valid=True)
    return net.conv(1000).global_pool()


_INCEPTIONS = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip


def googlenet(resolution: int) -> Net:
    """Szegedy et al. 2015 as in torchvision: the third branch has a 3x3 convolution."""
    net = Net((3, resolution, resolution)).conv(64, 7, 2).pool(3, 2).conv(64).conv(192, 3).pool(3, 2)
    for i, (one, reduce3, three, reduce5, five, pooled) in enumerate(_INCEPTIONS):
        before = net.shape
        net.conv(one)
        for reduced, out in ((reduce3, three), (reduce5, five)):
            net.shape = before
            net.conv(reduced).conv(out, 3)
        net.shape = before
        net.pool(3, 1).conv(pooled).concat(one + three + five + pooled)
        if i in (1, 6):
            net.pool(3, 2)
    return net.global_pool().dense(1000)


# --------------------------------------------------------------------------------------------------------- detectors


def _silu(net: Net, out: int, size: int = 1, stride: int = 1, groups: int = 1) -> Net:
    return net.conv(out, size, stride, groups=groups).act("SiLU")


def _bottleneck(net: Net, inner: int, *, shortcut: bool = True) -> Net:
    out = net.shape[0]
    _silu(_silu(net, inner, 3), out, 3)
    return net.add() if shortcut else net


def _c3k2(net: Net, out: int, count: int, *, deep: bool, factor: float = 0.5) -> Net:
    """YOLO11's block: split, ``count`` bottlenecks (nested ones if ``deep``), join."""
    inner = int(out * factor)
    _silu(net, 2 * inner)
    net.shape = (inner, *net.shape[1:])
    for _ in range(count):
        if not deep:
            _bottleneck(net, inner // 2)
            continue
        before, half = net.shape, inner // 2
        _silu(net, half)
        net.shape = before
        _silu(net, half)
        _bottleneck(_bottleneck(net, half), half).concat(inner)
        _silu(net, inner)
    return _silu(net.concat((2 + count) * inner), out)


def _attention(net: Net, count: int) -> Net:
    """YOLO11's C2PSA: half of the channels go through attention and a feed-forward pair."""
    channels, height, width = net.shape
    inner, positions = channels // 2, height * width
    heads = inner // 64
    _silu(net, channels)
    net.shape = (inner, height, width)
    for _ in range(count):
        net.conv(2 * inner)
        net.matmul((positions, 32), positions, heads).matmul((64, positions), positions, heads)
        net.shape = (inner, height, width)
        net.depthwise(3).add().conv(inner).add()
        _silu(net, 2 * inner).conv(inner).add()
    return _silu(net.concat(channels), channels)


def yolo11(resolution: int, *, depth: float, width: float, limit: int, deep: bool) -> Net:
    """YOLO11 detection for 80 classes (Jocher and Qiu 2024)."""
    count = max(1, round(2 * depth))

    def channels(base: int) -> int:
        return math.ceil(min(base, limit) * width / 8) * 8

    net = _silu(Net((3, resolution, resolution)), channels(64), 3, 2)
    _c3k2(_silu(net, channels(128), 3, 2), channels(256), count, deep=deep, factor=0.25)
    _c3k2(_silu(net, channels(256), 3, 2), channels(512), count, deep=deep, factor=0.25)
    third = net.shape
    _c3k2(_silu(net, channels(512), 3, 2), channels(512), count, deep=True)
    fourth = net.shape
    _c3k2(_silu(net, channels(1024), 3, 2), channels(1024), count, deep=True)
    top = net.shape[0]
    _silu(net, top // 2).pool(5, 1).pool(5, 1).pool(5, 1).concat(2 * top)
    fifth = _attention(_silu(net, top), count).shape
    net.upsample().concat(fifth[0] + fourth[0])
    middle = _c3k2(net, channels(512), count, deep=deep).shape
    net.upsample().concat(middle[0] + third[0])
    levels = [_c3k2(net, channels(256), count, deep=deep).shape]
    _silu(net, channels(256), 3, 2).concat(channels(256) + middle[0])
    levels.append(_c3k2(net, channels(512), count, deep=deep).shape)
    _silu(net, channels(512), 3, 2).concat(channels(512) + fifth[0])
    levels.append(_c3k2(net, channels(1024), count, deep=True).shape)
    return _detect(net, levels)


def _detect(net: Net, levels: list[Shape]) -> Net:
    boxes, classes = max(16, levels[0][0] // 4, 64), max(levels[0][0], 80)
    for level in levels:
        net.shape = level
        _silu(_silu(net, boxes, 3), boxes, 3).conv(64)
        net.shape = level
        for out in (classes, classes):
            _silu(_silu(net, net.shape[0], 3, groups=net.shape[0]), out)
        net.conv(80).concat(144)
    net.shape = (144, sum(h * w for _, h, w in levels), 1)
    return net.act("Softmax").act("Sigmoid")


_YOLO = {
    "n": partial(yolo11, depth=0.5, width=0.25, limit=1024, deep=False),
    "s": partial(yolo11, depth=0.5, width=0.5, limit=1024, deep=False),
    "m": partial(yolo11, depth=0.5, width=1.0, limit=512, deep=True),
    "x": partial(yolo11, depth=1.0, width=1.5, limit=512, deep=True),
}
_LITE = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2), 3: (1.2, 1.4), 4: (1.4, 1.8)}

#: By the names of `published_latencies.csv`: resolution -> the model.
MODELS: dict[str, Callable[[int], Net]] = {
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    **{f"mobilenet_v2_{w}": partial(mobilenet_v2, width=w) for w in (0.35, 0.5, 0.75, 1.0, 1.4)},
    "mobilenet_v3_large": partial(mobilenet_v3, large=True),
    "mobilenet_v3_small": partial(mobilenet_v3, large=False),
    "efficientnet_b0": efficientnet_b0,
    **{f"efficientnet_lite{i}": partial(efficientnet_lite, width=w, depth=d) for i, (w, d) in _LITE.items()},
    "mnasnet1_0": mnasnet,
    "resnet18": partial(resnet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet50": partial(resnet, blocks=(3, 4, 6, 3), bottleneck=True),
    "wide_resnet50": partial(resnet, blocks=(3, 4, 6, 3), bottleneck=True, width=2),
    "vgg16": vgg16,
    "squeezenet": squeezenet,
    "googlenet": googlenet,
    **{f"yolo11{size}": build for size, build in _YOLO.items()},
}


def operators(model: str, resolution: int) -> tuple[OperatorCost, ...]:
    """The operator costs of a model by its name in the table. Raises ``KeyError`` for an unknown one."""
    return tuple(MODELS[model](resolution).operators)
