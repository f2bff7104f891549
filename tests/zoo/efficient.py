"""Nets of inverted residuals found by search.

MNASNet-B1: Tan et al. 2019 (arXiv:1807.11626). MobileNetV3: Howard et al. 2019 (arXiv:1905.02244). EfficientNet-B0:
Tan and Le 2019 (arXiv:1905.11946); EfficientNet-Lite0 is its mobile variant without gates, with ReLU6, and with a
stem and a head that are not scaled.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from tests.zoo.common import Activation, ConvBn, Head, Net, SqueezeExcite, image, rounded
from tests.zoo.mobilenet import InvertedResidual

_RE, _HS = nn.ReLU, nn.Hardswish
# Kernel, inner channels, output channels, gate, activation, stride (MobileNetV3, tables 1 and 2).
_V3_LARGE = (
    (3, 16, 16, False, _RE, 1), (3, 64, 24, False, _RE, 2), (3, 72, 24, False, _RE, 1), (5, 72, 40, True, _RE, 2),
    (5, 120, 40, True, _RE, 1), (5, 120, 40, True, _RE, 1), (3, 240, 80, False, _HS, 2), (3, 200, 80, False, _HS, 1),
    (3, 184, 80, False, _HS, 1), (3, 184, 80, False, _HS, 1), (3, 480, 112, True, _HS, 1), (3, 672, 112, True, _HS, 1),
    (5, 672, 160, True, _HS, 2), (5, 960, 160, True, _HS, 1), (5, 960, 160, True, _HS, 1),
)  # fmt: skip
_V3_SMALL = (
    (3, 16, 16, True, _RE, 2), (3, 72, 24, False, _RE, 2), (3, 88, 24, False, _RE, 1), (5, 96, 40, True, _HS, 2),
    (5, 240, 40, True, _HS, 1), (5, 240, 40, True, _HS, 1), (5, 120, 48, True, _HS, 1), (5, 144, 48, True, _HS, 1),
    (5, 288, 96, True, _HS, 2), (5, 576, 96, True, _HS, 1), (5, 576, 96, True, _HS, 1),
)  # fmt: skip
# Expansion, kernel, channels, repeats, stride (EfficientNet, table 1; MNASNet-B1, figure 7).
_B0 = (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)  # fmt: skip
_MNASNET = (
    (3, 3, 24, 3, 2),
    (3, 5, 40, 3, 2),
    (6, 5, 80, 3, 2),
    (6, 3, 96, 2, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def mobilenet_v3(
    rows: tuple[tuple[int, int, int, bool, Activation, int], ...], hidden: int, *, width: float = 1.0,
    classes: int = 1000,
) -> nn.Module:  # fmt: skip
    cin = rounded(16 * width)
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2, act=nn.Hardswish, eps=1e-3)]
    for kernel, expanded, channels, gated, act, stride in rows:
        inner, cout = rounded(expanded * width), rounded(channels * width)
        gate = SqueezeExcite(inner, rounded(inner / 4), gate=nn.Hardsigmoid) if gated else None
        layers.append(InvertedResidual(cin, inner, cout, kernel, stride, act=act, gate=gate, eps=1e-3))
        cin = cout
    last = 6 * cin
    return nn.Sequential(
        *layers,
        ConvBn(cin, last, act=nn.Hardswish, eps=1e-3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(last, hidden),
        nn.Hardswish(),
        nn.Linear(hidden, classes),
    )


def efficientnet(*, lite: bool = False, width: float = 1.0, one_each: bool = False, classes: int = 1000) -> nn.Module:
    act: Activation = nn.ReLU6 if lite else nn.SiLU
    cin = 32 if lite else rounded(32 * width)
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2, act=act, eps=1e-3)]
    for expansion, kernel, channels, repeats, stride in _B0:
        cout = rounded(channels * width)
        for index in range(1 if one_each else repeats):
            inner = cin * expansion
            gate = None if lite else SqueezeExcite(inner, max(1, cin // 4), act=nn.SiLU)
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(cin, inner, cout, kernel, step, act=act, gate=gate, eps=1e-3))
            cin = cout
    last = 1280 if lite and width == 1.0 else rounded(1280 * width)
    return nn.Sequential(*layers, ConvBn(cin, last, act=act, eps=1e-3), Head(last, classes))


def mnasnet(*, width: float = 1.0, one_each: bool = False, classes: int = 1000) -> nn.Module:
    stem, cin = rounded(32 * width), rounded(16 * width)
    layers: list[nn.Module] = [ConvBn(3, stem, 3, 2), ConvBn(stem, stem, 3, groups=stem), ConvBn(stem, cin, act=None)]
    for expansion, kernel, channels, repeats, stride in _MNASNET:
        cout = rounded(channels * width)
        for index in range(1 if one_each else repeats):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(cin, cin * expansion, cout, kernel, step, act=nn.ReLU))
            cin = cout
    last = rounded(1280 * width)
    return nn.Sequential(*layers, ConvBn(cin, last), Head(last, classes))


NETS = {
    "mobilenet_v3_large": Net(
        full=partial(mobilenet_v3, _V3_LARGE, 1280),
        shapes=image(224),
        small=partial(mobilenet_v3, (_V3_LARGE[0], *_V3_LARGE[2:5], *_V3_LARGE[6:13:3]), 64, width=0.25, classes=10),
        small_shapes=image(64),
        parameters=5_483_032,
    ),
    "mobilenet_v3_small": Net(
        full=partial(mobilenet_v3, _V3_SMALL, 1024),
        shapes=image(224),
        small=partial(mobilenet_v3, (_V3_SMALL[0], *_V3_SMALL[2:5], *_V3_SMALL[8:10]), 64, width=0.25, classes=10),
        small_shapes=image(64),
        parameters=2_542_856,
    ),
    "efficientnet_b0": Net(
        full=efficientnet,
        shapes=image(224),
        small=partial(efficientnet, width=0.25, one_each=True, classes=10),
        small_shapes=image(64),
        parameters=5_288_548,
    ),
    "efficientnet_lite0": Net(
        full=partial(efficientnet, lite=True),
        shapes=image(224),
        small=partial(efficientnet, lite=True, width=0.25, one_each=True, classes=10),
        small_shapes=image(64),
        parameters=4_652_008,
    ),
    "mnasnet_b1": Net(
        full=mnasnet,
        shapes=image(224),
        small=partial(mnasnet, width=0.25, one_each=True, classes=10),
        small_shapes=image(64),
        parameters=4_383_312,
    ),
}
