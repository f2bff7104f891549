"""Residual nets: He et al., "Deep Residual Learning for Image Recognition", 2016 (arXiv:1512.03385).

ResNet-8 is the image classifier of MLPerf Tiny (Banbury et al. 2021, arXiv:2106.07597); ResNeXt is Xie et al. 2017
(arXiv:1611.05431); SE-ResNet is Hu et al. 2018 (arXiv:1709.01507).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Head, Net, SqueezeExcite, image


class TinyBlock(nn.Module):
    """The block of MLPerf Tiny's ResNet-8: every convolution has a bias, the shortcut convolution has no norm."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout)
        self.shortcut = nn.Identity() if cin == cout and stride == 1 else nn.Conv2d(cin, cout, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet8(width: int = 16, classes: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 1, 1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        TinyBlock(width, width, 1),
        TinyBlock(width, 2 * width, 2),
        TinyBlock(2 * width, 4 * width, 2),
        Head(4 * width, classes),
    )


class CifarBlock(nn.Module):
    """Two 3x3 convolutions; option A has a shortcut without parameters (subsample, pad channels), option B a 1x1."""

    def __init__(self, cin: int, cout: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.added = cout - cin
        self.shortcut = ConvBn(cin, cout, 1, stride, act=None) if option == "B" and stride != 1 else nn.Identity()
        self.pads = option == "A" and stride != 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.added // 2
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half)) if self.pads else self.shortcut(x)
        return F.relu(y + short)


class CifarResNet(nn.Module):
    """The nets of section 4.2 of the paper: depth 6n + 2. The keys fit the published CIFAR-10 checkpoints."""

    def __init__(self, n: int, *, option: str = "A", width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, n, 1, option)
        self.layer2 = self._stage(width, 2 * width, n, 2, option)
        self.layer3 = self._stage(2 * width, 4 * width, n, 2, option)
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(cin: int, cout: int, n: int, stride: int, option: str) -> nn.Sequential:
        first = CifarBlock(cin, cout, stride, option)
        return nn.Sequential(first, *(CifarBlock(cout, cout, 1, option) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBn(cin, width, 3, stride), ConvBn(width, width, 3, act=None))
        same = cin == width and stride == 1
        self.shortcut = nn.Identity() if same else ConvBn(cin, width, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride on the 3x3; ``groups`` make it ResNeXt's, ``se`` SE-ResNet's."""

    expansion = 4

    def __init__(
        self, cin: int, width: int, stride: int, *, groups: int = 1, group_width: int = 0, se: bool = False
    ) -> None:
        super().__init__()
        cout = width * self.expansion
        inner = width * groups * group_width // 64 if groups > 1 else width
        self.body = nn.Sequential(
            ConvBn(cin, inner), ConvBn(inner, inner, 3, stride, groups=groups), ConvBn(inner, cout, act=None)
        )
        self.se = SqueezeExcite(cout, cout // 16) if se else nn.Identity()
        same = cin == cout and stride == 1
        self.shortcut = nn.Identity() if same else ConvBn(cin, cout, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.se(self.body(x)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], *, width: int = 64, classes: int = 1000,
        **options: int | bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Sequential(ConvBn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        blocks, cin = [], width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(block(cin, width << stage, stride, **options))
                cin = (width << stage) * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = Head(cin, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def _imagenet(block: type[Basic] | type[Bottleneck], depths: tuple[int, ...], parameters: int, **options: int) -> Net:
    return Net(
        full=partial(ResNet, block, depths, **options),
        shapes=image(224),
        small=partial(ResNet, block, (1, 1, 1, 1), width=16, classes=10, **options),
        small_shapes=image(64),
        parameters=parameters,
    )


def _cifar(n: int, option: str) -> Net:
    return Net(
        full=partial(CifarResNet, n, option=option),
        shapes=image(32),
        small=partial(CifarResNet, 1, option=option, width=8),
        small_shapes=image(16),
    )


NETS = {
    "resnet8": Net(
        full=resnet8, shapes=image(32), small=partial(resnet8, 8), small_shapes=image(16), parameters=78_186
    ),
    "resnet20": _cifar(3, "A"),
    "resnet32": _cifar(5, "A"),
    "resnet20_option_b": _cifar(3, "B"),
    "resnet18": _imagenet(Basic, (2, 2, 2, 2), 11_689_512),
    "resnet50": _imagenet(Bottleneck, (3, 4, 6, 3), 25_557_032),
    "resnext50_32x4d": _imagenet(Bottleneck, (3, 4, 6, 3), 25_028_904, groups=32, group_width=4),
    "se_resnet50": _imagenet(Bottleneck, (3, 4, 6, 3), 28_088_024, se=True),
}
