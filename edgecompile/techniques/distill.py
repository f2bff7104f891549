"""The technique ``distill``: trains a smaller model to give the original's outputs. Labels are not needed.

Each batch is flipped and mixed at random, and the original says what it makes of the very same batch ("Knowledge
distillation: A good teacher is patient and consistent", Beyer et al., CVPR 2022). Classifiers are compared by the
Kullback-Leibler divergence at a temperature (Hinton et al., 2015), or by ``dist``: the correlation of the classes
within each sample and of the samples within each class ("Knowledge Distillation from A Stronger Teacher", Huang et
al., NeurIPS 2022); all other outputs by their relative squared error. Of some points on the way, the best on held-back
samples is taken. Batch normalization that was folded into the weights stays folded: put back, it made training of
pruned nets less stable, not more.

Options: ``steps``, ``batch``, ``rate``, ``samples`` (how many), ``loss`` (``kl`` or ``dist``), ``temperature``,
``seed``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import EdgecompileError, InputError
from edgecompile.progress import Progress
from edgecompile.techniques.pruning import written
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    from torch import Tensor

    from edgecompile.techniques.torch_graph import TorchGraph

_KNOWN = ("batch", "loss", "rate", "samples", "seed", "steps", "temperature")
_LOSSES = ("kl", "dist")
#: Samples that the best point is chosen on, and how often it is looked at.
_HELD, _MOST_HELD, _CHECKS = 0.1, 500, 12
_WARM_UP = 0.05
_DECAY = 1e-4
_CLIP = 5.0


def step(
    *,
    steps: int,
    samples: int,
    batch: int = 64,
    rate: float = 5e-4,
    loss: str = "kl",
    temperature: float = 2.0,
    seed: int = 0,
) -> Step:
    """The step that trains for so many batches."""
    return Step(
        technique="distill",
        options=(
            ("batch", batch),
            ("loss", loss),
            ("rate", rate),
            ("samples", samples),
            ("seed", seed),
            ("steps", steps),
            ("temperature", temperature),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    steps: int
    samples: int
    batch: int = 64
    rate: float = 5e-4
    loss: str = "kl"
    temperature: float = 2.0
    seed: int = 0

    @classmethod
    def of(cls, distillation: Step) -> _Options:
        given: dict[str, Any] = dict(distillation.options)
        unknown = [name for name in given if name not in _KNOWN]
        if unknown:
            raise InputError(f"a distilling step has no option {unknown[0]!r}", remedy=f"known: {', '.join(_KNOWN)}")
        options = cls(**given)
        if options.steps < 1 or options.batch < 2 or options.samples < 4 or options.loss not in _LOSSES:
            raise InputError(
                f"a distilling step with {given} cannot be run",
                remedy="give steps >= 1, batch >= 2, samples >= 4, and loss kl or dist",
            )
        return options


def apply(
    original: Model, model: Model, distillation: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """Train ``model`` towards ``original``; see the module. Raises `UnsupportedModelError` naming the operators that
    cannot be differentiated, and `EdgecompileError` where training diverges."""
    import onnx

    from edgecompile.techniques.torch_graph import from_onnx

    options = _Options.of(distillation)
    stacks = _stacked(model, [samples[i] for i in range(min(len(samples), options.samples))])
    teacher = from_onnx(onnx.load(str(original.path)))
    student = from_onnx(onnx.load(str(model.path)))
    training = _Training(teacher=teacher, student=student, stacks=stacks, options=options)
    with progress.stage("Distil", options.steps) as advance:
        before, after = training.run(advance)
    return written(model, student.to_onnx(), workdir, note=f"distilled: its loss fell from {before:.3g} to {after:.3g}")


#: What the samples of one training may take in memory.
_MEMORY_BYTES = 1 << 30


def sample_count(model: Model, available: int) -> int:
    """How many samples a training on ``model`` takes: all, as far as they fit in memory."""
    each = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in model.inputs)
    return min(available, max(4, _MEMORY_BYTES // max(each, 1)))


def seconds_a_step(original: Model, model: Model, samples: Sequence[Arrays], distillation: Step) -> float:
    """What one training step takes on this machine: the median of a few, after one that is not counted."""
    import statistics
    import time

    import onnx

    from edgecompile.techniques.torch_graph import from_onnx

    options = _Options.of(distillation)
    some = [samples[i] for i in range(min(len(samples), 2 * options.batch))]
    training = _Training(
        teacher=from_onnx(onnx.load(str(original.path))),
        student=from_onnx(onnx.load(str(model.path))),
        stacks=_stacked(model, some),
        options=options,
    )
    return statistics.median(training.timed(time.perf_counter, 5)[1:])


def _stacked(model: Model, samples: Sequence[Arrays]) -> dict[str, Tensor]:
    """All samples of each input in one tensor, the batch axis first."""
    import torch

    return {
        spec.name: torch.from_numpy(np.concatenate([np.asarray(sample[spec.name]) for sample in samples]))
        for spec in model.inputs
    }


@dataclass(slots=True, kw_only=True)
class _Training:
    teacher: TorchGraph
    student: TorchGraph
    stacks: Mapping[str, Tensor]
    options: _Options

    def run(self, advance: Any) -> tuple[float, float]:
        """Train; the loss on held-back samples before and after."""
        import torch

        options = self.options
        generator = torch.Generator().manual_seed(options.seed)
        count = len(next(iter(self.stacks.values())))
        order = torch.randperm(count, generator=generator)
        held_count = min(_MOST_HELD, max(2, round(_HELD * count)))
        held, train = order[:held_count], order[held_count:]
        self.teacher.eval()
        weights = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=options.rate, weight_decay=_DECAY)
        best = before = self._held_loss(held)
        kept = self._state()
        every = max(1, options.steps // _CHECKS)
        for number in range(options.steps):
            for group in optimizer.param_groups:
                group["lr"] = options.rate * _schedule(number, options.steps)
            self._step(train, optimizer, weights, generator)
            advance(1)
            if (number + 1) % every == 0 or number + 1 == options.steps:
                found = self._held_loss(held)
                if found < best:
                    best, kept = found, self._state()
        self.student.load_state_dict(kept)
        self.student.eval()
        return before, best

    def timed(self, clock: Callable[[], float], count: int) -> list[float]:
        """The seconds of so many steps."""
        import torch

        generator = torch.Generator().manual_seed(0)
        train = torch.arange(len(next(iter(self.stacks.values()))))
        weights = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-9)
        times = []
        for _ in range(count):
            start = clock()
            self._step(train, optimizer, weights, generator)
            times.append(clock() - start)
        return times

    def _step(self, train: Tensor, optimizer: Any, weights: Sequence[Tensor], generator: Any) -> None:
        import torch

        some = train[torch.randint(len(train), (self.options.batch,), generator=generator)]
        batch = {name: _augmented(stack[some], generator) for name, stack in self.stacks.items()}
        with torch.no_grad():
            wanted = self.teacher(batch)
        self.student.train()
        optimizer.zero_grad()
        loss = self._loss(wanted, self.student(batch))
        if not bool(torch.isfinite(loss)):
            raise EdgecompileError(
                f"training diverged: its loss is {loss.item()}", remedy="give a lower learning rate, or leave it out"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        optimizer.step()

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.student.state_dict().items()}

    def _batches(self, indices: Tensor) -> list[dict[str, Tensor]]:
        size = self.options.batch
        return [
            {name: stack[indices[i : i + size]] for name, stack in self.stacks.items()}
            for i in range(0, len(indices), size)
        ]

    def _held_loss(self, held: Tensor) -> float:
        import torch

        self.student.eval()
        total = 0.0
        with torch.no_grad():
            for batch in self._batches(held):
                size = len(next(iter(batch.values())))
                total += size * float(self._loss(self.teacher(batch), self.student(batch)))
        return total / len(held)

    def _loss(self, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
        parts = [self._difference(wanted[name], found[name]) for name in wanted]
        return sum(parts[1:], start=parts[0]) / len(parts)

    def _difference(self, wanted: Tensor, found: Tensor) -> Tensor:
        if wanted.ndim != 2 or wanted.shape[1] < 2:
            return (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
        t = self.options.temperature
        return _dist(wanted / t, found / t) if self.options.loss == "dist" else _kl(wanted / t, found / t) * t * t


def _schedule(number: int, steps: int) -> float:
    """A short linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * steps))
    if number < warm:
        return (number + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, steps - warm)))


def _augmented(batch: Tensor, generator: Any) -> Tensor:
    """Images flipped sideways and mixed with one another, each half of the time; anything else is left as it is."""
    import torch

    if batch.ndim != 4 or not batch.is_floating_point():
        return batch
    flip = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
    batch = torch.where(flip, batch.flip(-1), batch)
    share = torch.rand(len(batch), 1, 1, 1, generator=generator)
    share = torch.where(torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5, share, torch.ones_like(share))
    return share * batch + (1 - share) * batch[torch.randperm(len(batch), generator=generator)]


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.kl_div(
        functional.log_softmax(found, 1), functional.log_softmax(wanted, 1), reduction="batchmean", log_target=True
    )


def _dist(wanted: Tensor, found: Tensor) -> Tensor:
    """Inter-class and intra-class relations, each one minus a mean Pearson correlation."""
    p, q = wanted.softmax(1), found.softmax(1)
    return (1 - _correlation(p, q)).mean() + (1 - _correlation(p.T, q.T)).mean()


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)
