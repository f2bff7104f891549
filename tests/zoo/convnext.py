"""ConvNeXt-Tiny: Liu et al., "A ConvNet for the 2020s", 2022 (arXiv:2201.03545)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo.common import Net, image


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a channels-first map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, two dense layers on channels-last values, a learned scale, a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand, self.act = nn.Linear(channels, 4 * channels), nn.GELU()
        self.reduce = nn.Linear(4 * channels, channels)
        # The paper starts at 1e-6; a trained net's scales are of this size.
        self.scale = nn.Parameter(torch.empty(channels).uniform_(0.1, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.reduce(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext(
    depths: tuple[int, ...] = (3, 3, 9, 3), widths: tuple[int, ...] = (96, 192, 384, 768), classes: int = 1000
) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6)]
    cin = widths[0]
    for depth, width in zip(depths, widths, strict=True):
        if width != cin:
            layers += [ChannelNorm(cin, eps=1e-6), nn.Conv2d(cin, width, 2, 2)]
        layers += [Block(width) for _ in range(depth)]
        cin = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), ChannelNorm(cin, eps=1e-6), nn.Flatten(), nn.Linear(cin, classes)
    )


NETS = {
    "convnext_tiny": Net(
        full=convnext,
        shapes=image(224),
        small=partial(convnext, (1, 2), (16, 32), 10),
        small_shapes=image(32),
        parameters=28_589_128,
    )
}
