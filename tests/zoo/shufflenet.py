"""ShuffleNets. V1: Zhang et al. 2018 (arXiv:1707.01083). V2: Ma et al. 2018 (arXiv:1807.11164)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Head, Net, image, shuffle_channels


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input, or beside its average where strided."""

    def __init__(self, cin: int, cout: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        self.groups, self.strided = groups, stride == 2
        made = cout - cin if self.strided else cout
        inner = cout // 4
        self.reduce = ConvBn(cin, inner, groups=first_groups)
        self.depthwise = ConvBn(inner, inner, 3, stride, groups=inner, act=None)
        self.expand = ConvBn(inner, made, groups=groups, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.depthwise(shuffle_channels(self.reduce(x), self.groups)))
        if self.strided:
            return F.relu(torch.cat((F.avg_pool2d(x, 3, 2, 1), y), 1))
        return F.relu(x + y)


def shufflenet_v1(
    widths: tuple[int, ...] = (240, 480, 960), repeats: tuple[int, ...] = (4, 8, 4), groups: int = 3,
    classes: int = 1000,
) -> nn.Module:  # fmt: skip
    cin = 24
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, (cout, count) in enumerate(zip(widths, repeats, strict=True)):
        for index in range(count):
            # The paper does not group the very first 1x1: its input has too few channels.
            first = 1 if stage == 0 and index == 0 else groups
            layers.append(UnitV1(cin, cout, 1 if index else 2, groups, first))
            cin = cout
    return nn.Sequential(*layers, Head(cin, classes))


class UnitV2(nn.Module):
    """Half of the channels pass by, the other half is convolved, and the halves are shuffled."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        half = cout // 2
        self.strided = stride == 2
        branch_in = cin if self.strided else half
        self.branch = nn.Sequential(
            ConvBn(branch_in, half), ConvBn(half, half, 3, stride, groups=half, act=None), ConvBn(half, half)
        )
        self.beside = (
            nn.Sequential(ConvBn(cin, cin, 3, 2, groups=cin, act=None), ConvBn(cin, half))
            if self.strided
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = (x, x) if self.strided else x.chunk(2, 1)
        return shuffle_channels(torch.cat((self.beside(left), self.branch(right)), 1), 2)


def shufflenet_v2(
    widths: tuple[int, ...] = (116, 232, 464), repeats: tuple[int, ...] = (4, 8, 4), last: int = 1024,
    classes: int = 1000,
) -> nn.Module:  # fmt: skip
    cin = 24
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2), nn.MaxPool2d(3, 2, 1)]
    for cout, count in zip(widths, repeats, strict=True):
        for index in range(count):
            layers.append(UnitV2(cin, cout, 1 if index else 2))
            cin = cout
    return nn.Sequential(*layers, ConvBn(cin, last), Head(last, classes))


NETS = {
    "shufflenet_v1_g3": Net(
        full=shufflenet_v1,
        shapes=image(224),
        small=partial(shufflenet_v1, (48, 96), (2, 2), classes=10),
        small_shapes=image(64),
    ),
    "shufflenet_v2_x1": Net(
        full=shufflenet_v2,
        shapes=image(224),
        small=partial(shufflenet_v2, (28, 56), (2, 2), 64, classes=10),
        small_shapes=image(64),
        parameters=2_278_604,
    ),
}
