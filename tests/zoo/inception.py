"""GoogLeNet: Szegedy et al. 2015 (arXiv:1409.4842), with BatchNorm. Inception v3: Szegedy et al. 2016 (1512.00567).

Of Inception v3 all five kinds of block are here, one of each, behind its stem.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo.common import ConvBn, Head, Net, image


class Branches(nn.Module):
    """Several branches on the same input, concatenated by channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


# 1x1; 3x3 reduction and 3x3; 5x5 reduction and 5x5; pool projection (GoogLeNet, table 1). None is a pooling.
_GOOGLENET = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None, (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), None, (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)  # fmt: skip


def _mixed(cin: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> Branches:
    return Branches(
        ConvBn(cin, one),
        nn.Sequential(ConvBn(cin, reduce3), ConvBn(reduce3, three, 3)),
        nn.Sequential(ConvBn(cin, reduce5), ConvBn(reduce5, five, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvBn(cin, pool)),
    )


def googlenet(
    rows: tuple[tuple[int, ...] | None, ...] = _GOOGLENET, divisor: int = 1, classes: int = 1000
) -> nn.Module:
    stem, cin = 64 // divisor, 192 // divisor
    layers: list[nn.Module] = [
        ConvBn(3, stem, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True), ConvBn(stem, stem), ConvBn(stem, cin, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]  # fmt: skip
    for row in rows:
        if row is None:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        else:
            channels = [value // divisor for value in row]
            layers.append(_mixed(cin, *channels))
            cin = channels[0] + channels[2] + channels[4] + channels[5]
    return nn.Sequential(*layers, Head(cin, classes))


def _chain(*sizes: int, kernels: tuple[int | tuple[int, int], ...], last_stride: int = 1) -> nn.Sequential:
    """Convolutions in a row; where the last one is strided it is not padded, as in the grid reductions."""
    layers: list[nn.Module] = []
    for index, kernel in enumerate(kernels):
        strided = last_stride > 1 and index == len(kernels) - 1
        layers.append(ConvBn(sizes[index], sizes[index + 1], kernel, last_stride if strided else 1,
                             padding=0 if strided else None, eps=1e-3))  # fmt: skip
    return nn.Sequential(*layers)


def _pooled(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvBn(cin, cout, eps=1e-3))


def _split(stem: nn.Module, cin: int, cout: int) -> nn.Sequential:
    """The expanded filter bank of figure 7: a 1x3 and a 3x1 side by side."""
    pair = Branches(ConvBn(cin, cout, (1, 3), eps=1e-3), ConvBn(cin, cout, (3, 1), eps=1e-3))
    return nn.Sequential(stem, pair)


def inception_v3_blocks(d: int = 1, classes: int = 1000) -> nn.Module:
    """Channels are divided by ``d``; figures 5, 6 and 7 of the paper and the two grid reductions of figure 10."""
    a, b, e, w = 192 // d, 288 // d, 768 // d, 1280 // d
    row, column = (1, 7), (7, 1)
    return nn.Sequential(
        ConvBn(3, 32 // d, 3, 2, padding=0, eps=1e-3),
        ConvBn(32 // d, a, 3, eps=1e-3),
        nn.MaxPool2d(3, 2),
        Branches(
            _chain(a, 64 // d, kernels=(1,)),
            _chain(a, 48 // d, 64 // d, kernels=(1, 5)),
            _chain(a, 64 // d, 96 // d, 96 // d, kernels=(1, 3, 3)),
            _pooled(a, 64 // d),
        ),
        Branches(
            _chain(b, 384 // d, kernels=(3,), last_stride=2),
            _chain(b, 64 // d, 96 // d, 96 // d, kernels=(1, 3, 3), last_stride=2),
            nn.MaxPool2d(3, 2),
        ),
        Branches(
            _chain(e, 192 // d, kernels=(1,)),
            _chain(e, 128 // d, 128 // d, 192 // d, kernels=(1, row, column)),
            _chain(e, *(128 // d,) * 4, 192 // d, kernels=(1, column, row, column, row)),
            _pooled(e, 192 // d),
        ),
        Branches(
            _chain(e, 192 // d, 320 // d, kernels=(1, 3), last_stride=2),
            _chain(e, *(192 // d,) * 4, kernels=(1, row, column, 3), last_stride=2),
            nn.MaxPool2d(3, 2),
        ),
        Branches(
            _chain(w, 320 // d, kernels=(1,)),
            _split(_chain(w, 384 // d, kernels=(1,)), 384 // d, 384 // d),
            _split(_chain(w, 448 // d, 384 // d, kernels=(1, 3)), 384 // d, 384 // d),
            _pooled(w, 192 // d),
        ),
        Head(2048 // d, classes),
    )


NETS = {
    "googlenet": Net(
        full=googlenet,
        shapes=image(224),
        small=partial(googlenet, (*_GOOGLENET[1:5], *_GOOGLENET[8:10]), 8, 10),
        small_shapes=image(64),
        # 6,998,552 with biases as in the Caffe release, and 7,280 more since a norm has two values a channel.
        parameters=7_005_832,
    ),
    "inception_v3_blocks": Net(
        full=inception_v3_blocks, shapes=image(149), small=partial(inception_v3_blocks, 16, 10), small_shapes=image(63)
    ),
}
