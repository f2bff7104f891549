"""SqueezeNet 1.1: Iandola et al. 2016 (arXiv:1602.07360), with the cheaper layout of the authors' second release."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import Net, image

# Squeezed and expanded channels of each fire module; None is a pooling that rounds its size up.
_LAYERS = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """A squeezing 1x1, then a 1x1 and a 3x3 side by side."""

    def __init__(self, cin: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, squeezed, 1)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1(x)), F.relu(self.expand3(x))), 1)


def squeezenet(divisor: int = 1, classes: int = 1000) -> nn.Module:
    cin = 64 // divisor
    layers: list[nn.Module] = [nn.Conv2d(3, cin, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
    for row in _LAYERS:
        if row is None:
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        else:
            squeezed, expanded = row[0] // divisor, row[1] // divisor
            layers.append(Fire(cin, squeezed, expanded))
            cin = 2 * expanded
    layers += [nn.Conv2d(cin, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


NETS = {
    "squeezenet1_1": Net(
        full=squeezenet,
        shapes=image(224),
        small=partial(squeezenet, 8, 10),
        small_shapes=image(64),
        parameters=1_235_496,
    )
}
