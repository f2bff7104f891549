"""DenseNet-121: Huang et al., "Densely Connected Convolutional Networks", 2017 (arXiv:1608.06993)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tests.zoo.common import ConvBn, Head, Net, image


class NormConv(nn.Sequential):
    """The order of pre-activation nets: BatchNorm, ReLU, convolution. No norm of these folds into a convolution."""

    def __init__(self, cin: int, cout: int, kernel: int) -> None:
        super().__init__(nn.BatchNorm2d(cin), nn.ReLU(), nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False))


class DenseLayer(nn.Module):
    """A 1x1 bottleneck and a 3x3, whose ``growth`` channels are put behind all those before."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(NormConv(cin, 4 * growth, 1), NormConv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def densenet(depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000) -> nn.Module:
    cin = 2 * growth
    layers: list[nn.Module] = [ConvBn(3, cin, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        if stage:
            layers += [NormConv(cin, cin // 2, 1), nn.AvgPool2d(2)]
            cin //= 2
        layers += [DenseLayer(cin + index * growth, growth) for index in range(depth)]
        cin += depth * growth
    return nn.Sequential(*layers, nn.BatchNorm2d(cin), nn.ReLU(), Head(cin, classes))


NETS = {
    "densenet121": Net(
        full=densenet,
        shapes=image(224),
        small=partial(densenet, (2, 2, 2), 8, 10),
        small_shapes=image(64),
        parameters=7_978_856,
    )
}
