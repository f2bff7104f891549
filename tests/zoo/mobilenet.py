"""MobileNets. V1: Howard et al. 2017 (arXiv:1704.04861). V2: Sandler et al. 2018 (arXiv:1801.04381)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tests.zoo.common import Activation, ConvBn, Head, Net, image, rounded

# Output channels and stride of the separable blocks (V1, table 1).
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
# Expansion, channels, repeats, stride of the first (V2, table 2).
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v1(width: float = 1.0, classes: int = 1000) -> nn.Module:
    cin = rounded(32 * width)
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2)]
    for channels, stride in _V1:
        cout = rounded(channels * width)
        layers += [ConvBn(cin, cin, 3, stride, groups=cin), ConvBn(cin, cout)]
        cin = cout
    return nn.Sequential(*layers, Head(cin, classes))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, optional gate, linear 1x1; a shortcut where the shapes agree."""

    def __init__(
        self, cin: int, inner: int, cout: int, kernel: int, stride: int, *, act: Activation,
        gate: nn.Module | None = None, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        expand = [] if inner == cin else [ConvBn(cin, inner, act=act, eps=eps)]
        self.body = nn.Sequential(
            *expand,
            ConvBn(inner, inner, kernel, stride, groups=inner, act=act, eps=eps),
            *([] if gate is None else [gate]),
            ConvBn(inner, cout, act=None, eps=eps),
        )
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2(width: float = 1.0, classes: int = 1000, *, most: int = 4) -> nn.Module:
    cin = rounded(32 * width)
    layers: list[nn.Module] = [ConvBn(3, cin, 3, 2, act=nn.ReLU6)]
    for expansion, channels, repeats, stride in _V2:
        cout = rounded(channels * width)
        for index in range(min(repeats, most)):
            step = stride if index == 0 else 1
            layers.append(InvertedResidual(cin, cin * expansion, cout, 3, step, act=nn.ReLU6))
            cin = cout
    last = rounded(1280 * max(1.0, width)) if width >= 0.5 else 128
    return nn.Sequential(*layers, ConvBn(cin, last, act=nn.ReLU6), Head(last, classes))


NETS = {
    "mobilenet_v1": Net(
        full=mobilenet_v1,
        shapes=image(224),
        small=partial(mobilenet_v1, 0.125, 10),
        small_shapes=image(64),
        parameters=4_231_976,
    ),
    "mobilenet_v2": Net(
        full=mobilenet_v2,
        shapes=image(224),
        small=partial(mobilenet_v2, 0.25, 10, most=2),
        small_shapes=image(64),
        parameters=3_504_872,
    ),
}
