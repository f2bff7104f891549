"""GhostNet: Han et al., "GhostNet: More Features from Cheap Operations", 2020 (arXiv:1911.11907)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo.common import ConvBn, Net, SqueezeExcite, image, rounded

# Kernel, inner channels, output channels, ratio of the gate, stride (table 1 and the authors' release).
_ROWS = (
    (3, 16, 16, 0.0, 1), (3, 48, 24, 0.0, 2), (3, 72, 24, 0.0, 1), (5, 72, 40, 0.25, 2), (5, 120, 40, 0.25, 1),
    (3, 240, 80, 0.0, 2), (3, 200, 80, 0.0, 1), (3, 184, 80, 0.0, 1), (3, 184, 80, 0.0, 1), (3, 480, 112, 0.25, 1),
    (3, 672, 112, 0.25, 1), (5, 672, 160, 0.25, 2), (5, 960, 160, 0.0, 1), (5, 960, 160, 0.25, 1),
    (5, 960, 160, 0.0, 1), (5, 960, 160, 0.25, 1),
)  # fmt: skip


class Ghost(nn.Module):
    """Half of the channels by a 1x1, the other half from those by a depthwise 3x3."""

    def __init__(self, cin: int, cout: int, *, relu: bool) -> None:
        super().__init__()
        half = (cout + 1) // 2
        act = nn.ReLU if relu else None
        self.primary = ConvBn(cin, half, act=act)
        self.cheap = ConvBn(half, half, 3, groups=half, act=act)
        self.channels = cout

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat((first, self.cheap(first)), 1)[:, : self.channels]


class GhostBottleneck(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, kernel: int, stride: int, ratio: float) -> None:
        super().__init__()
        strided = [ConvBn(inner, inner, kernel, stride, groups=inner, act=None)] if stride > 1 else []
        gate = [SqueezeExcite(inner, rounded(inner * ratio, 4), gate=nn.Hardsigmoid)] if ratio else []
        self.body = nn.Sequential(Ghost(cin, inner, relu=True), *strided, *gate, Ghost(inner, cout, relu=False))
        same = cin == cout and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(ConvBn(cin, cin, kernel, stride, groups=cin, act=None), ConvBn(cin, cout, act=None))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def ghostnet(
    rows: tuple[tuple[int, int, int, float, int], ...] = _ROWS,
    width: float = 1.0,
    hidden: int = 1280,
    classes: int = 1000,
) -> nn.Module:
    cin = rounded(16 * width, 4)
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2)]
    for kernel, expanded, channels, ratio, stride in rows:
        inner, cout = rounded(expanded * width, 4), rounded(channels * width, 4)
        layers.append(GhostBottleneck(cin, inner, cout, kernel, stride, ratio))
        cin = cout
    last = rounded(960 * width, 4)
    return nn.Sequential(
        *layers, ConvBn(cin, last), nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, hidden, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


NETS = {
    "ghostnet": Net(
        full=ghostnet,
        shapes=image(224),
        small=partial(ghostnet, (*_ROWS[:5], _ROWS[11]), 0.25, 64, 10),
        small_shapes=image(64),
    )
}
