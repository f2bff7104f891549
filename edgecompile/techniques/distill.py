"""The technique ``distill``: trains a smaller model to give the original's outputs. Labels are not needed.

The training itself is in `training`: KL divergence at a temperature or ``dist``, AdamW or SGD, images flipped and
mixed with one another. Samples that carry ``labels`` (as `calibration.Samples` does) may add a term of their own, and
may train the original first (`teaching`).

Options: the fields of `training.TrainingOptions`; those at their defaults may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.errors import EdgecompileError, InputError
from edgecompile.progress import Progress
from edgecompile.techniques import features, teaching, training
from edgecompile.techniques.pruning import written
from edgecompile.techniques.training import TrainingOptions
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

_KNOWN = tuple(f.name for f in fields(TrainingOptions))
#: Options that every step names; others only where they are not at their defaults.
_NAMED = ("batch", "loss", "rate", "samples", "seed", "steps", "temperature")


def step(
    *,
    steps: int,
    samples: int,
    batch: int = 64,
    rate: float = 5e-4,
    loss: str = "kl",
    temperature: float = 2.0,
    seed: int = 0,
    **others: Any,
) -> Step:
    """The step that trains for so many batches; ``others`` are further fields of `TrainingOptions`."""
    given: dict[str, Any] = {
        "steps": steps,
        "samples": samples,
        "batch": batch,
        "rate": rate,
        "loss": loss,
        "seed": seed,
    }
    given |= {"temperature": temperature, **others}
    usual = {f.name: f.default for f in fields(TrainingOptions)}
    kept = {name: value for name, value in given.items() if name in _NAMED or value != usual.get(name)}
    return Step(technique="distill", options=tuple(sorted(kept.items())))


def recipe(*, labelled: bool, features: bool, steps: int) -> dict[str, Any]:
    """How a smaller model is best trained for so many steps, as options of `step`.

    With labels the original is trained on them first, for as many steps. What is here was compared on CIFAR-10's
    training images that had been held back (docs/smaller-models.md).
    """
    if not labelled:
        return {"steps": steps}
    return {
        "augment": "flip+shift", "batch": 128, "batch_norm": True, "decay": 5e-4, "feature_weight": float(features),
        "label_weight": 0.3, "loss": "dist", "optimizer": "sgd", "rate": 0.015, "steps": steps,
        "teacher_steps": steps, "temperature": 1.0,
    }  # fmt: skip


def options_of(distillation: Step) -> TrainingOptions:
    """The options of a step. Raises `InputError` for unknown ones and for values that make no sense."""
    given: dict[str, Any] = dict(distillation.options)
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise InputError(f"a distilling step has no option {unknown[0]!r}", remedy=f"known: {', '.join(_KNOWN)}")
    return TrainingOptions(**given)


def apply(
    original: Model, model: Model, distillation: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """Train ``model`` towards ``original``; see the module. Within `training.checkpoints_in` a killed training goes on.

    Raises `UnsupportedModelError` naming the operators that cannot be differentiated, `InputError` where labels are
    wanted and ``samples`` have none, and `EdgecompileError` where training diverges.
    """
    import onnx

    options = options_of(distillation)
    count = min(len(samples), options.samples)
    large, small = onnx.load(str(original.path)), onnx.load(str(model.path))
    stacks, labels = _stacked(model, [samples[i] for i in range(count)]), wanted_labels(samples, count, options)
    teacher = None
    if options.loss != "labels":
        teacher = teaching.of(original, options, lambda: _enlarged(stacks, original), labels, progress)
        teacher = _resized(teacher, original, model)
    student = teaching.trainable(small, stacks, options)
    identity, watch = f"{original.sha256} {model.sha256}", training.watch()
    outcome = training.train(
        teacher,
        student,
        stacks,
        options,
        labels=labels,
        checkpoint=training.checkpoint_file(training.file_key(options, identity)),
        progress=progress,
        features=_features(large, small, options),
        stop=watch.asked,
        identity=identity,
    )
    watch.steps = outcome.steps
    for note in outcome.notes:
        progress.note(note)
    said = f"distilled: its loss fell from {outcome.before:.3g} to {outcome.after:.3g}"
    return written(model, student.to_onnx(), workdir, note=said)


def _resized(teacher: Any, original: Model, model: Model) -> Any:
    """A teacher for images of the model's size: where it takes larger ones, they are enlarged for it."""
    sizes = {spec.name: spec.shape[2:] for spec in original.inputs}
    if sizes == {spec.name: spec.shape[2:] for spec in model.inputs}:
        return teacher
    import torch

    class Resized(torch.nn.Module):  # type: ignore[misc]
        """Enlarges what it gets, then asks the teacher."""

        def __init__(self) -> None:
            super().__init__()
            self.teacher = teacher

        def forward(self, batch: Mapping[str, Tensor], **others: Any) -> Any:
            larger = {
                name: torch.nn.functional.interpolate(value, size=tuple(sizes[name]), mode="bilinear", antialias=True)
                for name, value in batch.items()
            }
            return self.teacher(larger, **others)

    return Resized()


def _enlarged(stacks: Mapping[str, Tensor], original: Model) -> dict[str, Tensor]:
    """The samples at the size that the original takes."""
    import torch

    found = {}
    for spec in original.inputs:
        stack, size = stacks[spec.name], spec.shape[2:]
        if tuple(stack.shape[2:]) != tuple(size):
            stack = torch.nn.functional.interpolate(stack, size=tuple(size), mode="bilinear", antialias=True)
        found[spec.name] = stack
    return found


def wanted_labels(samples: Sequence[Arrays], count: int, options: TrainingOptions) -> Tensor | None:
    """The class numbers of the first samples, where the training wants any and the sequence has ``labels``."""
    import torch

    if options.loss != "labels" and not options.label_weight and not options.teacher_steps:
        return None
    labels: npt.NDArray[np.int64] | None = getattr(samples, "labels", None)
    return None if labels is None else torch.from_numpy(np.asarray(labels[:count], np.int64))


def _features(large: onnx.ModelProto, small: onnx.ModelProto, options: TrainingOptions) -> tuple[str, str] | None:
    if not options.feature_weight:
        return None
    mine, other = features.pooled(large), features.pooled(small)
    if mine is None or other is None:
        raise InputError("the model has no pooling over all pixels to take features from", remedy="feature_weight 0")
    return mine, other


def pools(original: Model, model: Model) -> bool:
    """Whether both models have features to compare: what they pool over all pixels."""
    import onnx

    return all(features.pooled(onnx.load(str(m.path))) is not None for m in (original, model))


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

    options = options_of(distillation)
    count = min(len(samples), 2 * options.batch)
    large, small = onnx.load(str(original.path)), onnx.load(str(model.path))
    stacks = _stacked(model, [samples[i] for i in range(count)])
    times = training.seconds(
        _resized(from_onnx(large), original, model),
        teaching.trainable(small, stacks, options),
        stacks,
        options,
        clock=time.perf_counter,
        count=5,
        labels=wanted_labels(samples, count, options),
        features=_features(large, small, options),
    )
    return statistics.median(times[1:])


def _stacked(model: Model, samples: Sequence[Arrays]) -> dict[str, Tensor]:
    """All samples of each input in one tensor, the batch axis first."""
    import torch

    return {
        spec.name: torch.from_numpy(np.concatenate([np.asarray(sample[spec.name]) for sample in samples]))
        for spec in model.inputs
    }


__all__ = [
    "EdgecompileError", "apply", "options_of", "pools", "recipe", "sample_count", "seconds_a_step", "step",
    "wanted_labels",
]  # fmt: skip
