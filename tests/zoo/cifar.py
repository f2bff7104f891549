"""Residual networks for 32x32 images.

CIFAR ResNets: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, section 4.2; the names
of the parameters are those of common checkpoints (``layer1.0.conv1.weight``, ..., ``linear.bias``). ResNet-8: Banbury
et al. 2021, "MLPerf Tiny Benchmark", arXiv:2106.07597 (convolutions with bias, the shortcut of one 1x1 convolution).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


class OptionA(nn.Module):
    """The shortcut without parameters: every second pixel, and zero channels on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, option: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity()
        if cin != cout and option == "A":
            self.shortcut = OptionA(cout - cin)
        elif cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """``6 n + 2`` layers; ResNet-20 has ``n = 3``, ResNet-32 ``n = 5``."""

    def __init__(self, n: int, option: Literal["A", "B"] = "A", width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(Block(cin if i == 0 else cout, cout, 2 if i == 0 and cin != cout else 1, option) for i in range(n))
            )
            for cin, cout in ((width, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[2:]).flatten(1))


class TinyStack(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout)
        self.shortcut: nn.Module = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def tiny_resnet8(width: int = 16, classes: int = 10) -> nn.Module:
    """The image classifier of MLPerf Tiny: 78,666 parameters, 12.5 million multiplications."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
    stacks = (TinyStack(width, width, 1), TinyStack(width, 2 * width, 2), TinyStack(2 * width, 4 * width, 2))
    return nn.Sequential(stem, *stacks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4 * width, classes), nn.Softmax(dim=1))
