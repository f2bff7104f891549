"""Attention and mixing: ViT-Tiny, Swin blocks, a MobileViT block, MLP-Mixer.

ViT: Dosovitskiy et al. 2021 (arXiv:2010.11929), the tiny size of Touvron et al. 2021 (arXiv:2012.12877). Swin: Liu et
al. 2021 (arXiv:2103.14030). MobileViT: Mehta and Rastegari 2022 (arXiv:2110.02178). MLP-Mixer: Tolstikhin et al. 2021
(arXiv:2105.01601).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.common import ConvBn, Head, Net, image
from tests.zoo.mobilenet import InvertedResidual


class Mlp(nn.Sequential):
    def __init__(self, width: int, inner: int, act: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__(nn.Linear(width, inner), act(), nn.Linear(inner, width))


class Attention(nn.Module):
    """Multi-head self-attention, written out; ``bias`` is added to the logits."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        logits = query @ key.transpose(-2, -1) * self.scale
        if bias is not None:
            logits = logits + bias
        mixed = logits.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Encoder(nn.Module):
    """The pre-norm encoder layer."""

    def __init__(self, width: int, heads: int, ratio: int = 4, act: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, ratio * width, act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(
        self, size: int = 224, patch: int = 16, width: int = 192, heads: int = 3, depth: int = 12, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width) * 0.2)
        self.layers = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(x.shape[0], -1, -1), tokens), 1) + self.positions
        return self.head(self.norm(self.layers(tokens))[:, 0])


class SwinBlock(nn.Module):
    """Attention in windows with a relative position bias; ``shift`` rolls the map and masks what does not touch."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width, 4 * width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        self.register_buffer("index", _relative_index(window), persistent=False)
        self.register_buffer("mask", _shift_mask(size, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` is batch, row, column, channel."""
        batch, height, width, channels = x.shape
        w = self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, height // w, w, width // w, w, channels).transpose(2, 3).reshape(-1, w * w, channels)
        y = self.attention(y, self._bias(batch))
        y = y.view(batch, height // w, width // w, w, w, channels).transpose(2, 3).reshape(x.shape)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))

    def _bias(self, batch: int) -> Tensor:
        tokens = self.window**2
        bias = self.table[self.index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1)[None]
        return bias + self.mask.repeat(batch, 1, 1, 1) if self.shift else bias


def _relative_index(window: int) -> Tensor:
    """For each pair of tokens in a window, the row of the bias table for their offset."""
    token = torch.arange(window**2, device="cpu")
    row, column = token // window, token % window
    rows = row[:, None] - row[None] + window - 1
    return rows * (2 * window - 1) + column[:, None] - column[None] + window - 1


def _shift_mask(size: int, window: int, shift: int) -> Tensor:
    """Windows x 1 x tokens x tokens: -100 between tokens that were not neighbours before the roll."""
    edge = torch.arange(size, device="cpu")
    zone = (edge >= size - window).long() + (edge >= size - shift).long()
    zones = (3 * zone[:, None] + zone[None]).view(size // window, window, size // window, window)
    zones = zones.transpose(1, 2).reshape(-1, window**2)
    return (zones[:, :, None] != zones[:, None]).float()[:, None] * -100.0


class PatchMerging(nn.Module):
    """The four pixels of each 2x2 by channels, normalised, to twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Stages of a plain and a shifted block each, with the sizes of Swin-T's first stages."""

    def __init__(
        self, size: int = 224, width: int = 96, heads: tuple[int, ...] = (3, 6), window: int = 7, classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        cells, layers = size // 4, []
        for stage, count in enumerate(heads):
            if stage:
                layers.append(PatchMerging(width))
                width, cells = 2 * width, cells // 2
            layers += [SwinBlock(width, count, cells, window, shift) for shift in (0, window // 2)]
        self.layers = nn.Sequential(*layers)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.norm(self.patches(x).permute(0, 2, 3, 1)))
        return self.head(self.last(x).mean((1, 2)))


class MobileViTBlock(nn.Module):
    """Local convolutions, attention among the pixels at the same place of every 2x2 patch, fusion with the input."""

    def __init__(self, cin: int, width: int, depth: int, heads: int = 4, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.local = nn.Sequential(ConvBn(cin, cin, 3, act=nn.SiLU), nn.Conv2d(cin, width, 1, bias=False))
        self.layers = nn.Sequential(*(Encoder(width, heads, 2, nn.SiLU) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.back, self.fuse = ConvBn(width, cin, act=nn.SiLU), ConvBn(2 * cin, cin, 3, act=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        batch, width, rows, columns = y.shape
        p = self.patch
        y = y.reshape(batch * width * rows // p, p, columns // p, p).transpose(1, 2)
        y = y.reshape(batch, width, rows * columns // p**2, p**2).transpose(1, 3).reshape(batch * p**2, -1, width)
        y = self.norm(self.layers(y))
        y = y.view(batch, p**2, -1, width).transpose(1, 3)
        y = (
            y.reshape(batch * width * rows // p, columns // p, p, p)
            .transpose(1, 2)
            .reshape(batch, width, rows, columns)
        )
        return self.fuse(torch.cat((x, self.back(y)), 1))


def mobilevit(scale: int = 4, classes: int = 1000) -> nn.Module:
    """The first attention stage of MobileViT-XS between its convolutions; ``scale`` 4 is the published width."""
    a, b, c = 4 * scale, 8 * scale, 16 * scale
    step = partial(InvertedResidual, kernel=3, act=nn.SiLU)
    return nn.Sequential(
        ConvBn(3, a, 3, 2, act=nn.SiLU), step(a, 4 * a, b, stride=1), step(b, 4 * b, c, stride=2),
        step(c, 4 * c, c, stride=1), step(c, 4 * c, c, stride=2), MobileViTBlock(c, 24 * scale, 2),
        ConvBn(c, 4 * c, act=nn.SiLU), Head(4 * c, classes),
    )  # fmt: skip


class MixerBlock(nn.Module):
    """A dense net over the tokens of each channel, then one over the channels of each token."""

    def __init__(self, tokens: int, width: int, token_inner: int, channel_inner: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(width), Mlp(tokens, token_inner)
        self.norm2, self.channels = nn.LayerNorm(width), Mlp(width, channel_inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(
        self, size: int = 224, patch: int = 16, width: int = 768, inner: tuple[int, int] = (384, 3072), depth: int = 12,
        classes: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches, tokens = nn.Conv2d(3, width, patch, patch), (size // patch) ** 2
        self.layers = nn.Sequential(*(MixerBlock(tokens, width, *inner) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(x)).mean(1))


class FusedAttention(nn.Module):
    """One encoder layer by `torch.nn.functional.scaled_dot_product_attention`, which exporters decompose their way."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(self.norm(tokens)).view(batch, count, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(*parts)
        return tokens + self.out(mixed.transpose(1, 2).reshape(batch, count, width))


NETS = {
    "vit_tiny": Net(
        full=ViT,
        shapes=image(224),
        small=partial(ViT, 32, 8, 24, 3, 2, 10),
        small_shapes=image(32),
        parameters=5_717_416,
    ),
    "swin_blocks": Net(
        full=Swin, shapes=image(224), small=partial(Swin, 32, 12, (3, 6), 4, 10), small_shapes=image(32)
    ),
    "mobilevit_block": Net(
        full=mobilevit, shapes=image(256), small=partial(mobilevit, 1, 10), small_shapes=image(64)
    ),
    "mlp_mixer_b16": Net(
        full=Mixer,
        shapes=image(224),
        small=partial(Mixer, 32, 8, 24, (12, 48), 2, 10),
        small_shapes=image(32),
        parameters=59_880_472,
    ),
    "fused_attention": Net(
        full=FusedAttention, shapes={"tokens": (1, 196, 64)}, small=partial(FusedAttention, 16, 4),
        small_shapes={"tokens": (1, 9, 16)},
    ),
}  # fmt: skip
