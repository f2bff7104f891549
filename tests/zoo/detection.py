"""Detectors: a YOLO-style one, an SSD head on MobileNetV2 blocks, BlazeFace.

YOLO: the CSP blocks and path aggregation of YOLOv4/v5 (Bochkovskiy et al. 2020, arXiv:2004.10934; PANet: Liu et al.
2018, arXiv:1803.01534). SSD: Liu et al. 2016 (arXiv:1512.02325), SSDLite: Sandler et al. 2018 (arXiv:1801.04381).
BlazeFace: Bazarevsky et al. 2019 (arXiv:1907.05047).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Net, image
from tests.zoo.mobilenet import InvertedResidual

_Silu = partial(ConvBn, act=nn.SiLU)
_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))


class Csp(nn.Module):
    """Half of the channels through bottlenecks, half past them, joined by a 1x1."""

    def __init__(self, cin: int, cout: int, repeats: int, *, adds: bool) -> None:
        super().__init__()
        half = cout // 2
        self.left, self.right = _Silu(cin, half), _Silu(cin, half)
        self.steps = nn.ModuleList(nn.Sequential(_Silu(half, half), _Silu(half, half, 3)) for _ in range(repeats))
        self.join, self.adds = _Silu(cout, cout), adds

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        for step in self.steps:
            y = y + step(y) if self.adds else step(y)
        return self.join(torch.cat((y, self.right(x)), 1))


class PoolPyramid(nn.Module):
    """Three 5x5 max-poolings in a row and what they started from, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.join = _Silu(channels, channels // 2), _Silu(channels * 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(F.max_pool2d(levels[-1], 5, 1, 2))
        return self.join(torch.cat(levels, 1))


class Yolo(nn.Module):
    """Three scales; the defaults give the size of YOLOv5s.

    With ``decode`` there is one tensor of boxes in pixels with scores, else there are the three raw maps.
    """

    def __init__(self, width: int = 32, depth: int = 1, classes: int = 80, *, decode: bool, size: int) -> None:
        super().__init__()
        w = [width << level for level in range(5)]
        self.stem = nn.Sequential(
            _Silu(3, w[0], 6, 2, padding=2), _Silu(w[0], w[1], 3, 2), Csp(w[1], w[1], depth, adds=True)
        )
        self.down3 = nn.Sequential(_Silu(w[1], w[2], 3, 2), Csp(w[2], w[2], 2 * depth, adds=True))
        self.down4 = nn.Sequential(_Silu(w[2], w[3], 3, 2), Csp(w[3], w[3], 3 * depth, adds=True))
        self.down5 = nn.Sequential(_Silu(w[3], w[4], 3, 2), Csp(w[4], w[4], depth, adds=True), PoolPyramid(w[4]))
        self.lateral5, self.lateral4 = _Silu(w[4], w[3]), _Silu(w[3], w[2])
        self.top4, self.top3 = Csp(w[4], w[3], depth, adds=False), Csp(w[3], w[2], depth, adds=False)
        self.back3, self.back4 = _Silu(w[2], w[2], 3, 2), _Silu(w[3], w[3], 3, 2)
        self.out4, self.out5 = Csp(w[3], w[3], depth, adds=False), Csp(w[4], w[4], depth, adds=False)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 3 * (5 + classes), 1) for channels in w[2:])
        self.values, self.decode = 5 + classes, decode
        for level, stride in enumerate((8, 16, 32)):
            cells = size // stride
            rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
            grid = torch.stack((columns, rows), -1).float().view(1, 1, cells, cells, 2)
            self.register_buffer(f"grid{level}", grid, persistent=False)
            anchors = torch.tensor(_ANCHORS[level]).float().view(1, 3, 1, 1, 2)
            self.register_buffer(f"anchors{level}", anchors, persistent=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        c3 = self.down3(self.stem(x))
        c4 = self.down4(c3)
        p5 = self.lateral5(self.down5(c4))
        p4 = self.lateral4(self.top4(torch.cat((F.interpolate(p5, scale_factor=2.0), c4), 1)))
        n3 = self.top3(torch.cat((F.interpolate(p4, scale_factor=2.0), c3), 1))
        n4 = self.out4(torch.cat((self.back3(n3), p4), 1))
        n5 = self.out5(torch.cat((self.back4(n4), p5), 1))
        maps = tuple(head(level) for head, level in zip(self.heads, (n3, n4, n5), strict=True))
        return torch.cat([self._boxes(level, raw) for level, raw in enumerate(maps)], 1) if self.decode else maps

    def _boxes(self, level: int, raw: Tensor) -> Tensor:
        """Centre, size, objectness and class scores of each anchor of each cell, in the form of YOLOv5."""
        batch, _, height, width = raw.shape
        y = raw.view(batch, 3, self.values, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        grid, anchors = getattr(self, f"grid{level}"), getattr(self, f"anchors{level}")
        centre, extent, scores = y.split((2, 2, self.values - 4), 4)
        centre = (centre * 2 - 0.5 + grid) * float(8 << level)
        return torch.cat((centre, (extent * 2) ** 2 * anchors, scores), 4).view(batch, -1, self.values)


class SsdLite(nn.Module):
    """Six maps, each with a separable head for boxes and one for scores; the maps are flattened in box order."""

    def __init__(self, width: int = 32, classes: int = 21, anchors: int = 6) -> None:
        super().__init__()
        self.classes = classes
        w = [width, 3 * width, 10 * width, 16 * width, 8 * width, 8 * width, 4 * width]
        self.stem = nn.Sequential(ConvBn(3, width, 3, 2, act=nn.ReLU6), self._step(width, width))
        self.steps = nn.ModuleList(
            self._step(cin, cout, 4 if index == 0 else 2) for index, (cin, cout) in enumerate(pairwise(w))
        )
        self.boxes = nn.ModuleList(self._head(channels, 4 * anchors) for channels in w[1:])
        self.scores = nn.ModuleList(self._head(channels, classes * anchors) for channels in w[1:])

    @staticmethod
    def _step(cin: int, cout: int, stride: int = 2) -> nn.Module:
        first = InvertedResidual(cin, 2 * cin, cout, 3, min(stride, 2), act=nn.ReLU6)
        second = InvertedResidual(cout, 2 * cout, cout, 3, 2 if stride == 4 else 1, act=nn.ReLU6)
        return nn.Sequential(first, second)

    @staticmethod
    def _head(cin: int, cout: int) -> nn.Sequential:
        return nn.Sequential(ConvBn(cin, cin, 3, groups=cin, act=nn.ReLU6), nn.Conv2d(cin, cout, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, boxes, scores = self.stem(x), [], []
        for step, box, score in zip(self.steps, self.boxes, self.scores, strict=True):
            x = step(x)
            boxes.append(box(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
            scores.append(score(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes))
        return torch.cat(boxes, 1), torch.cat(scores, 1).softmax(2)


class BlazeBlock(nn.Module):
    """Depthwise 3x3 and 1x1 with a shortcut; where the width grows the shortcut's new channels are zero.

    A strided block pads below and to the right only, as TensorFlow's "SAME" does.
    """

    residual_gain = 0.3

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.strided, self.added = stride == 2, cout - cin
        self.convs = nn.Sequential(
            nn.Conv2d(cin, cin, 3, stride, 0 if self.strided else 1, groups=cin), nn.Conv2d(cin, cout, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        short = F.max_pool2d(x, 2) if self.strided else x
        y = F.pad(x, (0, 2, 0, 2)) if self.strided else x
        if self.added:
            short = F.pad(short, (0, 0, 0, 0, 0, self.added))
        return F.relu(self.convs(y) + short)


class BlazeFace(nn.Module):
    """The front camera's detector: 896 anchors, 16 numbers and one logit each. Keys fit the published state dict."""

    _WIDTHS = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88)

    def __init__(self) -> None:
        super().__init__()
        pairs = zip(self._WIDTHS, self._WIDTHS[1:], strict=False)
        blocks = [BlazeBlock(cin, cout, 2 if index in (2, 5) else 1) for index, (cin, cout) in enumerate(pairs)]
        self.backbone1 = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU(), *blocks)
        self.backbone2 = nn.Sequential(BlazeBlock(88, 96, 2), *(BlazeBlock(96, 96) for _ in range(4)))
        self.classifier_8, self.classifier_16 = nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)
        self.regressor_8, self.regressor_16 = nn.Conv2d(88, 32, 1), nn.Conv2d(96, 96, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.backbone1(F.pad(x, (1, 2, 1, 2)))
        coarse = self.backbone2(fine)
        return (
            self._rows(16, self.regressor_8(fine), self.regressor_16(coarse)),
            self._rows(1, self.classifier_8(fine), self.classifier_16(coarse)),
        )

    @staticmethod
    def _rows(values: int, *maps: Tensor) -> Tensor:
        return torch.cat([level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, values) for level in maps], 1)


NETS = {
    "yolo": Net(
        full=partial(Yolo, decode=False, size=320),
        shapes=image(320),
        small=partial(Yolo, 4, 1, 3, decode=False, size=64),
        small_shapes=image(64),
        parameters=7_235_389,
    ),
    "yolo_decoded": Net(
        full=partial(Yolo, decode=True, size=320),
        shapes=image(320),
        small=partial(Yolo, 4, 1, 3, decode=True, size=64),
        small_shapes=image(64),
        parameters=7_235_389,
    ),
    "ssdlite": Net(full=SsdLite, shapes=image(320), small=partial(SsdLite, 4, 4, 3), small_shapes=image(128)),
    "blazeface": Net(full=BlazeFace, shapes=image(128), small=BlazeFace, small_shapes=image(128)),
}
