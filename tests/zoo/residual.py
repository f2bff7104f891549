"""Residual networks for ImageNet, and their relatives with groups, attention and design-space widths.

ResNet: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385 (stride in the 3x3 convolution
of a bottleneck, as later implementations have it). ResNeXt: Xie et al. 2017, arXiv:1611.05431. SE-ResNet: Hu et al.
2018, arXiv:1709.01507. RegNet: Radosavovic et al. 2020, "Designing Network Design Spaces", arXiv:2003.13678.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import SqueezeExcite, conv_bn, divisible, pooled_classifier


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``; the shortcut is a 1x1 convolution where the shape changes (option B)."""

    def __init__(self, body: nn.Module, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(cin, cout, 1, stride, act=None)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def basic(cin: int, cout: int, stride: int) -> Residual:
    return Residual(nn.Sequential(conv_bn(cin, cout, 3, stride), conv_bn(cout, cout, act=None)), cin, cout, stride)


def bottleneck(
    cin: int, cout: int, stride: int, *, inner: int, groups: int = 1, se: int | None = None, se_inside: bool = False
) -> Residual:
    """1x1, 3x3, 1x1; ``se`` channels of squeeze-excitation after the last, or after the 3x3 (RegNetY)."""
    layers: list[nn.Module] = [conv_bn(cin, inner, 1), conv_bn(inner, inner, 3, stride, groups=groups)]
    if se and se_inside:
        layers.append(SqueezeExcite(inner, se))
    layers.append(conv_bn(inner, cout, 1, act=None))
    if se and not se_inside:
        layers.append(SqueezeExcite(cout, se))
    return Residual(nn.Sequential(*layers), cin, cout, stride)


def _stem(width: int) -> list[nn.Module]:
    return [conv_bn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]


def resnet_basic(depths: tuple[int, ...] = (2, 2, 2, 2), width: int = 64, classes: int = 1000) -> nn.Module:
    layers, cin = _stem(width), width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            cout = width * 2**stage
            layers.append(basic(cin, cout, 2 if stage and not block else 1))
            cin = cout
    return nn.Sequential(*layers, pooled_classifier(cin, classes))


def resnet_bottleneck(
    depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000, *, groups: int = 1,
    group_width: int | None = None, se_ratio: int | None = None,
) -> nn.Module:  # fmt: skip
    """ResNet-50 and, with ``groups`` of ``group_width`` channels, ResNeXt; with ``se_ratio``, SE-ResNet."""
    layers, cin = _stem(width), width
    for stage, depth in enumerate(depths):
        inner = (groups * group_width if group_width else width) * 2**stage
        cout = 4 * width * 2**stage
        se = cout // se_ratio if se_ratio else None
        for block in range(depth):
            layers.append(bottleneck(cin, cout, 2 if stage and not block else 1, inner=inner, groups=groups, se=se))
            cin = cout
    return nn.Sequential(*layers, pooled_classifier(cin, classes))


def regnet(
    depths: tuple[int, ...], widths: tuple[int, ...], group_width: int, *, se: bool = False, classes: int = 1000
) -> nn.Module:
    """RegNetX, or RegNetY with squeeze-excitation of a quarter of the block's input width."""
    cin = min(32, widths[0])
    layers: list[nn.Module] = [conv_bn(3, cin, 3, 2)]
    for depth, cout in zip(depths, widths, strict=True):
        for block in range(depth):
            squeezed = divisible(cin / 4, 2) if se else None
            stride = 1 if block else 2
            groups = cout // group_width
            layers.append(bottleneck(cin, cout, stride, inner=cout, groups=groups, se=squeezed, se_inside=True))
            cin = cout
    return nn.Sequential(*layers, pooled_classifier(cin, classes))
