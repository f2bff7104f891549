"""Training a student from nothing: by what the original makes of each batch, or, to compare with, from labels.

The original says what it makes of the very same changed batch ("Knowledge distillation: A good teacher is patient and
consistent", Beyer et al., CVPR 2022), and the Kullback-Leibler divergence at a temperature is the loss (Hinton et al.,
2015). AdamW, a short warm-up, half a cosine down to zero; the last weights are taken. A checkpoint, where one is asked
for, makes a killed training go on, and on the CPU it ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import DivergedError
from edgecompile.techniques.student_net import StudentNet
from edgecompile.techniques.torch_call import torch

if TYPE_CHECKING:
    from torch import Tensor

_WARM_UP = 0.05
_CLIP = 5.0
#: Steps between two checkpoints.
_EVERY = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``rate`` is AdamW's highest, ``decay`` its weight decay; images are moved by up to ``shift`` pixels; ``flip``
    mirrors half of them sideways; ``mix`` is the share of a batch that is mixed with other images."""

    steps: int
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.02
    temperature: float = 2.0
    shift: int = 2
    flip: bool = True
    mix: float = 0.5
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One training. ``images`` are N x C x H x W; without a ``teacher`` the ``labels`` (N class numbers) teach."""

    student: StudentNet
    images: Tensor
    options: Options
    teacher: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    labels: Tensor | None = None
    device: str = "cpu"
    checkpoint: Path | None = None

    def run(self, advance: Callable[[int], None]) -> float:
        """Train; the mean loss of the last steps. Raises `DivergedError` where training diverges."""
        options = self.options
        generator = torch.Generator().manual_seed(options.seed)
        self.student.to(self.device).train()
        optimizer = torch.optim.AdamW(_groups(self.student, options.decay), lr=options.rate)
        start, loss = self._resumed(optimizer, generator), 0.0
        advance(start)
        for number in range(start, options.steps):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * _schedule(number, options.steps)
            latest = self._step(optimizer, generator)
            loss = latest if number == start else 0.95 * loss + 0.05 * latest
            advance(1)
            if self.checkpoint is not None and (number + 1) % _EVERY == 0:
                self._keep(number + 1, optimizer, generator)
        self.student.to("cpu").eval()
        return loss

    def _step(self, optimizer: Any, generator: Any) -> float:
        some = torch.randint(len(self.images), (self.options.batch,), generator=generator)
        batch, shares, partners = self._changed(self.images[some], generator)
        batch = batch.to(self.device)
        face = self.student.face
        found = self.student({face.input: batch})[face.output]
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher({face.input: batch})[face.output]
            loss = _divergence(wanted, found, self.options.temperature)
        else:
            assert self.labels is not None
            mine = self.labels[some]
            loss = _mixed_entropy(found, mine.to(self.device), mine[partners].to(self.device), shares.to(self.device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), _CLIP)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(f"training diverged: its loss is {value}", remedy="give a lower learning rate")
        return value

    def _changed(self, batch: Tensor, generator: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The batch changed at random, each image's own share in it, and which image has the rest."""
        options, count = self.options, len(batch)
        if options.flip:
            mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
            batch = torch.where(mirrored, batch.flip(-1), batch)
        if options.shift:
            batch = _shifted(batch, options.shift, generator)
        share = torch.rand(count, generator=generator)
        share = torch.where(torch.rand(count, generator=generator) < options.mix, share, torch.ones_like(share))
        partners = torch.randperm(count, generator=generator)
        wide = share[:, None, None, None]
        return wide * batch + (1 - wide) * batch[partners], share, partners

    def _keep(self, done: int, optimizer: Any, generator: Any) -> None:
        assert self.checkpoint is not None
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {"done": done, "net": self.student.state_dict(), "optimizer": optimizer.state_dict(),
             "generator": generator.get_state()},
            temporary,
        )  # fmt: skip
        temporary.replace(self.checkpoint)

    def _resumed(self, optimizer: Any, generator: Any) -> int:
        if self.checkpoint is None or not self.checkpoint.is_file():
            return 0
        kept = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.student.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        generator.set_state(kept["generator"])
        return int(kept["done"])


def _groups(student: StudentNet, decay: float) -> list[dict[str, Any]]:
    """Weights decay; factors, shifts and biases do not."""
    weights = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _schedule(number: int, steps: int) -> float:
    warm = max(1, round(_WARM_UP * steps))
    if number < warm:
        return (number + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, steps - warm)))


def _shifted(batch: Tensor, most: int, generator: Any) -> Tensor:
    """Each image moved by up to so many pixels; what comes in at the border is zero."""
    count, _, height, width = batch.shape
    padded = torch.nn.functional.pad(batch, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(count)[:, None, None, None]
    channels = torch.arange(batch.shape[1])[None, :, None, None]
    moved: Tensor = padded[samples, channels, rows, columns]
    return moved


def _divergence(wanted: Tensor, found: Tensor, temperature: float) -> Tensor:
    functional = torch.nn.functional
    wanted, found = functional.log_softmax(wanted / temperature, 1), functional.log_softmax(found / temperature, 1)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True) * temperature**2


def _mixed_entropy(found: Tensor, mine: Tensor, other: Tensor, shares: Tensor) -> Tensor:
    functional = torch.nn.functional
    own = functional.cross_entropy(found, mine, reduction="none")
    theirs = functional.cross_entropy(found, other, reduction="none")
    return (shares * own + (1 - shares) * theirs).mean()


__all__ = ["Options", "Trainer"]
