"""The batches of a training: samples drawn and changed at random, the same for teacher, student and labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Ways to change images: mirrored sideways, mixed with one another, moved by some pixels.
AUGMENTATIONS = ("flip", "mix", "shift")
#: How far an image is moved, over its height: 4 pixels of 32, as usual for small images.
_SHIFT = 1 / 8
#: The largest shift, in pixels: large images need no more.
_MOST_SHIFT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Inputs by name, and for each of the N samples its own share in them (N) and the labels (N), if there are any.

    ``others`` are the labels of the samples that have the rest of each share.
    """

    inputs: dict[str, Tensor]
    share: Tensor
    labels: Tensor | None = None
    others: Tensor | None = None


def draw(
    stacks: Mapping[str, Tensor],
    labels: Tensor | None,
    some: Tensor,
    *,
    augment: Collection[str],
    generator: Any,
    device: Any = "cpu",
) -> Batch:
    """The samples numbered ``some``, changed at random and on ``device``.

    All random numbers come from ``generator``, which is the processor's, so that every device sees the same batches.
    Images (float, N x C x H x W) are changed, other inputs are not; with such an input beside them nothing is mixed.
    """
    import torch

    inputs = {name: stack[some].to(device) for name, stack in stacks.items()}
    images = {name: batch for name, batch in inputs.items() if batch.ndim == 4 and batch.is_floating_point()}
    count, share, partner = len(some), torch.ones(len(some)), torch.arange(len(some))
    if images and "flip" in augment:
        flip = (torch.rand(count, 1, 1, 1, generator=generator) < 0.5).to(device)
        images = {name: torch.where(flip, batch.flip(-1), batch) for name, batch in images.items()}
    if images and "shift" in augment:
        way = torch.rand(2, count, generator=generator)
        images = {name: _shifted(batch, way) for name, batch in images.items()}
    if images and len(images) == len(inputs) and "mix" in augment:
        share = torch.rand(count, generator=generator)
        share = torch.where(torch.rand(count, generator=generator) < 0.5, share, torch.ones_like(share))
        partner = torch.randperm(count, generator=generator)
        images = {name: _mixed(batch, share.to(device), partner.to(device)) for name, batch in images.items()}
    mine = None if labels is None else labels[some]
    return Batch(
        inputs=inputs | images,
        share=share.to(device),
        labels=None if mine is None else mine.to(device),
        others=None if mine is None else mine[partner].to(device),
    )


def plain(stacks: Mapping[str, Tensor], labels: Tensor | None, some: Tensor, *, device: Any = "cpu") -> Batch:
    """The samples numbered ``some`` as they are."""
    return draw(stacks, labels, some, augment=(), generator=None, device=device)


def _mixed(batch: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """Each sample's share of itself and the rest of its partner (mixup: Zhang et al., ICLR 2018)."""
    wide = share[:, None, None, None].to(batch.dtype)
    return wide * batch + (1 - wide) * batch[partner]


def _shifted(batch: Tensor, way: Tensor) -> Tensor:
    """Each image moved by up to an eighth of its size; its border is repeated, since samples are normalized and zero
    may be any colour. ``way`` (2 x N) says how far, from 0 to 1."""
    import torch

    count, channels, height, width = batch.shape
    device = batch.device
    rows, columns = (
        ((way[axis] * (2 * most + 1)).long() - most)[:, None].to(device) + torch.arange(size, device=device)
        for axis, size in ((0, height), (1, width))
        for most in (min(_MOST_SHIFT, round(_SHIFT * size)),)
    )
    samples = torch.arange(count, device=device)[:, None, None, None]
    planes = torch.arange(channels, device=device)[None, :, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return batch[samples, planes, rows[:, None, :, None], columns[:, None, None, :]]
