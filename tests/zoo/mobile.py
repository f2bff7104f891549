"""Networks of depthwise-separable convolutions and inverted residuals.

MobileNetV1: Howard et al. 2017, arXiv:1704.04861. MobileNetV2: Sandler et al. 2018, arXiv:1801.04381. MobileNetV3:
Howard et al. 2019, arXiv:1905.02244. MNASNet: Tan et al. 2019, arXiv:1807.11626. EfficientNet: Tan & Le 2019,
arXiv:1905.11946; its Lite form (2020) has no squeeze-excitation and ReLU6 for SiLU.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from tests.zoo.blocks import Activation, InvertedResidual, SqueezeExcite, conv_bn, divisible, pooled_classifier


def mobilenet_v1(width: float = 1.0, classes: int = 1000) -> nn.Module:
    plan = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    cin = divisible(32 * width)
    layers: list[nn.Module] = [conv_bn(3, cin, 3, 2)]
    for channels, stride in plan:
        cout = divisible(channels * width)
        layers += [conv_bn(cin, cin, 3, stride, groups=cin), conv_bn(cin, cout, 1)]
        cin = cout
    return nn.Sequential(*layers, pooled_classifier(cin, classes))


def mobilenet_v2(width: float = 1.0, classes: int = 1000) -> nn.Module:
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    cin = divisible(32 * width)
    layers: list[nn.Module] = [conv_bn(3, cin, 3, 2, act=nn.ReLU6)]
    for expansion, channels, depth, stride in plan:
        for block in range(depth):
            cout = divisible(channels * width)
            layers.append(InvertedResidual(cin, cout, 3, 1 if block else stride, hidden=cin * expansion))
            cin = cout
    last = divisible(1280 * max(1.0, width))
    return nn.Sequential(*layers, conv_bn(cin, last, 1, act=nn.ReLU6), pooled_classifier(last, classes))


#: (kernel, expanded, out, squeeze-excite, hard-swish, stride): tables 1 and 2 of the paper.
_V3_LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip
_V3_SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)  # fmt: skip


def _v3_se(hidden: int) -> nn.Module:
    return SqueezeExcite(hidden, divisible(hidden / 4), gate=nn.Hardsigmoid)


def mobilenet_v3(large: bool = True, width: float = 1.0, classes: int = 1000) -> nn.Module:
    cin = divisible(16 * width)
    layers: list[nn.Module] = [conv_bn(3, cin, 3, 2, act=nn.Hardswish)]
    for k, expanded, channels, se, swish, stride in _V3_LARGE if large else _V3_SMALL:
        hidden, cout = divisible(expanded * width), divisible(channels * width)
        act: Activation = nn.Hardswish if swish else nn.ReLU
        layers.append(InvertedResidual(cin, cout, k, stride, hidden=hidden, act=act, se=_v3_se if se else None))
        cin = cout
    last, head = 6 * cin, divisible((1280 if large else 1024) * width)
    return nn.Sequential(
        *layers, conv_bn(cin, last, 1, act=nn.Hardswish), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(last, head), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(head, classes),
    )  # fmt: skip


def mnasnet(width: float = 1.0, classes: int = 1000) -> nn.Module:
    """MnasNet-B1: without squeeze-excitation, ReLU."""
    plan = (
        (3, 3, 24, 3, 2),
        (5, 3, 40, 3, 2),
        (5, 6, 80, 3, 2),
        (3, 6, 96, 2, 1),
        (5, 6, 192, 4, 2),
        (3, 6, 320, 1, 1),
    )
    stem, cin = divisible(32 * width), divisible(16 * width)
    layers = [conv_bn(3, stem, 3, 2), conv_bn(stem, stem, 3, groups=stem), conv_bn(stem, cin, 1, act=None)]
    blocks: list[nn.Module] = []
    for k, expansion, channels, depth, stride in plan:
        for block in range(depth):
            cout = divisible(channels * width)
            hidden = cin * expansion
            blocks.append(InvertedResidual(cin, cout, k, 1 if block else stride, hidden=hidden, act=nn.ReLU))
            cin = cout
    return nn.Sequential(*layers, *blocks, conv_bn(cin, 1280, 1), pooled_classifier(1280, classes))


def efficientnet(lite: bool = False, width: float = 1.0, classes: int = 1000) -> nn.Module:
    """B0, or Lite0."""
    plan = (
        (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 3, 2), (5, 6, 112, 3, 1), (5, 6, 192, 4, 2),
        (3, 6, 320, 1, 1),
    )  # fmt: skip
    act: Activation = nn.ReLU6 if lite else nn.SiLU
    cin = divisible(32 * width)
    layers: list[nn.Module] = [conv_bn(3, cin, 3, 2, act=act)]
    for k, expansion, channels, depth, stride in plan:
        for block in range(depth):
            cout = divisible(channels * width)
            se = None if lite else partial(SqueezeExcite, squeezed=max(1, cin // 4), act=nn.SiLU)
            layers.append(
                InvertedResidual(cin, cout, k, 1 if block else stride, hidden=cin * expansion, act=act, se=se)
            )
            cin = cout
    last = divisible(1280 * max(1.0, width))
    return nn.Sequential(*layers, conv_bn(cin, last, 1, act=act), pooled_classifier(last, classes))
