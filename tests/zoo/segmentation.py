"""Nets that give a map: U-Net, DeepLabv3's head, a feature pyramid, super-resolution.

U-Net: Ronneberger et al. 2015 (arXiv:1505.04597). DeepLabv3: Chen et al. 2017 (arXiv:1706.05587). FPN: Lin et al. 2017
(arXiv:1612.03144). ESPCN: Shi et al. 2016 (arXiv:1609.05158).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Net, image
from tests.zoo.resnet import Basic


def _double(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(ConvBn(cin, cout, 3), ConvBn(cout, cout, 3))


class UNet(nn.Module):
    """Contracting and expanding paths joined by concatenation; "same" padding, transposed convolutions to go up."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.first = _double(3, width)
        sizes = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, b // 2, 2, 2) for b in reversed(sizes[1:]))
        self.merge = nn.ModuleList(_double(b, b // 2) for b in reversed(sizes[1:]))
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((levels.pop(), up(x)), 1))
        return self.last(x)


class AtrousPyramid(nn.Module):
    """A 1x1, dilated 3x3 convolutions and the broadcast global mean, side by side (section 3.3)."""

    def __init__(self, cin: int, cout: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvBn(cin, cout), *(ConvBn(cin, cout, 3, dilation=rate) for rate in rates)])
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBn(cin, cout))
        self.project = nn.Sequential(ConvBn(cout * (len(rates) + 2), cout), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.mean(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], 1))


class DeepLabV3(nn.Module):
    """A small residual backbone of stride 8, the atrous pyramid, and bilinear upsampling to the input's size."""

    def __init__(self, width: int = 64, channels: int = 256, classes: int = 21) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            ConvBn(3, width, 3, 2), Basic(width, width, 1), Basic(width, 2 * width, 2), Basic(2 * width, 4 * width, 2)
        )
        self.pyramid = AtrousPyramid(4 * width, channels, (12, 24, 36))
        self.head = nn.Sequential(ConvBn(channels, channels, 3), nn.Conv2d(channels, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.pyramid(self.backbone(x)))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)


class FeaturePyramid(nn.Module):
    """Top-down nearest upsampling with lateral 1x1 convolutions; one output a level, the finest first."""

    def __init__(self, width: int = 64, channels: int = 256) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        sizes = [width << level for level in range(4)]
        self.stages = nn.ModuleList(
            Basic(cin, cout, 1 if cin == cout else 2) for cin, cout in zip([width, *sizes], sizes, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(size, channels, 1) for size in sizes)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x, maps = self.stem(x), []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            maps.append(lateral(x))
        for level in range(len(maps) - 2, -1, -1):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[2:], mode="nearest")
        return tuple(smooth(level) for smooth, level in zip(self.smooth, maps, strict=True))


def espcn(width: int = 64, scale: int = 3) -> nn.Module:
    """Luminance in, ``scale`` times as large out: convolutions at the low resolution, then a pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2), nn.Tanh(), nn.Conv2d(width, width // 2, 3, padding=1), nn.Tanh(),
        nn.Conv2d(width // 2, scale**2, 3, padding=1), nn.PixelShuffle(scale),
    )  # fmt: skip


def espcn_rgb(width: int = 64, scale: int = 2) -> nn.Module:
    """The colour variant: several channels after the pixel shuffle, whose order a converter can get wrong."""
    return nn.Sequential(
        nn.Conv2d(3, width, 5, padding=2), nn.Tanh(), nn.Conv2d(width, width // 2, 3, padding=1), nn.Tanh(),
        nn.Conv2d(width // 2, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale),
    )  # fmt: skip


NETS = {
    "unet": Net(full=UNet, shapes=image(256), small=partial(UNet, 8, 2), small_shapes=image(32)),
    "deeplab_v3": Net(full=DeepLabV3, shapes=image(257), small=partial(DeepLabV3, 8, 16, 5), small_shapes=image(65)),
    "fpn": Net(full=FeaturePyramid, shapes=image(256), small=partial(FeaturePyramid, 8, 16), small_shapes=image(64)),
    "espcn_x3": Net(full=espcn, shapes=image(128, 1), small=partial(espcn, 8), small_shapes=image(12, 1)),
    "espcn_rgb_x2": Net(full=espcn_rgb, shapes=image(128), small=partial(espcn_rgb, 8), small_shapes=image(12)),
}
