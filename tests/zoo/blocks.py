"""What many architectures are built of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Activation = Callable[[], nn.Module]


def conv_bn(
    cin: int, cout: int, k: int | tuple[int, int] = 3, stride: int = 1, *, groups: int = 1, dilation: int = 1,
    act: Activation | None = nn.ReLU, pad: int | tuple[int, int] | None = None,
) -> nn.Sequential:  # fmt: skip
    """Convolution without bias, batch normalization and an activation; padded to keep the size at stride 1."""
    if pad is None:
        pad = tuple(dilation * (n // 2) for n in k) if isinstance(k, tuple) else dilation * (k // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, k, stride, pad, dilation, groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def divisible(channels: float, by: int = 8) -> int:
    """The multiple of ``by`` nearest to ``channels``, not more than 10 % below it (Sandler et al. 2018, code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv:1709.01507)."""

    def __init__(self, channels: int, squeezed: int, act: Activation = nn.ReLU, gate: Activation = nn.Sigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, (squeeze-excite,) project: MBConv of MobileNetV2/V3, MNASNet and EfficientNet."""

    def __init__(
        self, cin: int, cout: int, k: int = 3, stride: int = 1, *, hidden: int, act: Activation = nn.ReLU6,
        se: Callable[[int], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        layers: list[nn.Module] = [] if hidden == cin else [conv_bn(cin, hidden, 1, act=act)]
        layers.append(conv_bn(hidden, hidden, k, stride, groups=hidden, act=act))
        layers += [se(hidden)] if se else []
        layers.append(conv_bn(hidden, cout, 1, act=None))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def pooled_classifier(channels: int, classes: int) -> nn.Sequential:
    """Global average pooling and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
