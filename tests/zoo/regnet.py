"""RegNetX and RegNetY of 400 MF: Radosavovic et al., "Designing Network Design Spaces", 2020 (arXiv:2003.13678)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Head, Net, SqueezeExcite, image


class BlockXY(nn.Module):
    """1x1, grouped 3x3, 1x1 of one width; Y has a gate that squeezes to a quarter of the block's input channels."""

    def __init__(self, cin: int, cout: int, stride: int, group_width: int, gated: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvBn(cin, cout),
            ConvBn(cout, cout, 3, stride, groups=cout // group_width),
            SqueezeExcite(cout, round(cin / 4)) if gated else nn.Identity(),
            ConvBn(cout, cout, act=None),
        )
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else ConvBn(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def regnet(
    depths: tuple[int, ...], widths: tuple[int, ...], group_width: int, *, gated: bool, classes: int = 1000
) -> nn.Module:
    cin = 32
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2)]
    for depth, width in zip(depths, widths, strict=True):
        for index in range(depth):
            layers.append(BlockXY(cin, width, 1 if index else 2, group_width, gated))
            cin = width
    return nn.Sequential(*layers, Head(cin, classes))


NETS = {
    "regnet_x_400mf": Net(
        full=partial(regnet, (1, 2, 7, 12), (32, 64, 160, 400), 16, gated=False),
        shapes=image(224),
        small=partial(regnet, (1, 1, 2), (32, 48, 64), 16, gated=False, classes=10),
        small_shapes=image(64),
        parameters=5_495_976,
    ),
    "regnet_y_400mf": Net(
        full=partial(regnet, (1, 3, 6, 6), (48, 104, 208, 440), 8, gated=True),
        shapes=image(224),
        small=partial(regnet, (1, 1, 2), (24, 32, 48), 8, gated=True, classes=10),
        small_shapes=image(64),
        parameters=4_344_144,
    ),
}
