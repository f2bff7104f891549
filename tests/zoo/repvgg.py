"""RepVGG-A0 in its training form, and VGG-11.

RepVGG: Ding et al. 2021 (arXiv:2101.03697). VGG: Simonyan and Zisserman 2015 (arXiv:1409.1556).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Head, Net, image

_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)


class RepBlock(nn.Module):
    """A 3x3, a 1x1 and, where the shapes agree, an identity, each with its own norm, summed."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.three = ConvBn(cin, cout, 3, stride, act=None)
        self.one = ConvBn(cin, cout, 1, stride, act=None)
        self.same = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return F.relu(y if self.same is None else y + self.same(x))


def repvgg(
    depths: tuple[int, ...] = (1, 2, 4, 14, 1), widths: tuple[int, ...] = (48, 48, 96, 192, 1280), classes: int = 1000
) -> nn.Module:
    layers: list[nn.Module] = []
    cin = 3
    for depth, cout in zip(depths, widths, strict=True):
        for index in range(depth):
            layers.append(RepBlock(cin, cout, 1 if index else 2))
            cin = cout
    return nn.Sequential(*layers, Head(cin, classes))


def vgg11(divisor: int = 1, pooled: int = 7, hidden: int = 4096, classes: int = 1000) -> nn.Module:
    """The large dense layers read the flattened channels-first map: a layout trap for converters."""
    layers: list[nn.Module] = []
    cin = 3
    for channels in _VGG11:
        if channels is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(cin, channels // divisor, 3, padding=1), nn.ReLU()]
            cin = channels // divisor
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(cin * pooled**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Dropout(), nn.Linear(hidden, classes),
    )  # fmt: skip


NETS = {
    "repvgg_a0": Net(
        full=repvgg,
        shapes=image(224),
        small=partial(repvgg, (1, 2, 2), (16, 16, 32), 10),
        small_shapes=image(32),
    ),
    "vgg11": Net(
        full=vgg11,
        shapes=image(224),
        small=partial(vgg11, 16, 2, 64, 10),
        small_shapes=image(64),
        parameters=132_863_336,
    ),
}
