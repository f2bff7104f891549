"""The technique ``student``: a new, smaller classifier, trained from nothing to give the original's outputs.

The nets are those of `student_family`; `candidates` names them and `edgecompile.students.rank` picks. The student keeps
the original's input and output names, so all that follows treats it like the original. Where samples have labels, the
original is best trained on them first (``teacher_steps``, see `teaching`) and the labels given a share of the loss:
CIFAR-10's ResNet-32, which has never seen a JPEG, is right on 82 % of JPEG images, and a student of what it says there
stays below one that learns from labels alone.

Options: ``architecture`` (`Architecture.code`) and the fields of `training.TrainingOptions`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import InputError
from edgecompile.progress import Progress
from edgecompile.techniques import distill, features, teaching, training
from edgecompile.techniques.pruning import written
from edgecompile.techniques.student_family import Architecture, candidates, interface, macs, parse
from edgecompile.techniques.student_net import FEATURES, StudentNet, net, skeleton, to_onnx
from edgecompile.techniques.training import TrainingOptions
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    from torch import Tensor

#: Training samples that a student needs. A pruned net starts from what the original knows; a student starts from
#: nothing, and with some hundred images it learns what the original says of these and little of others.
MIN_SAMPLES = 2000
#: How students are trained where a step does not say.
_USUAL: dict[str, Any] = {
    "augment": "flip+shift", "batch": 128, "decay": 5e-4, "optimizer": "sgd", "rate": 0.1, "temperature": 4.0,
}  # fmt: skip
_TRAINING = tuple(field.name for field in fields(TrainingOptions))
_KNOWN = ("architecture", *_TRAINING)


def check_samples(count: int) -> str | None:
    """Why so many training samples are too few for a student; ``None`` where they are enough."""
    if count >= MIN_SAMPLES:
        return None
    return (
        f"a student is trained from nothing and needs at least {MIN_SAMPLES} training samples (no labels), "
        f"and there are {count}"
    )


def step(architecture: Architecture, *, steps: int, samples: int, seed: int = 0, **others: Any) -> Step:
    """The step that trains a student for so many batches on so many samples; ``others`` are further fields of
    `TrainingOptions`."""
    given: dict[str, Any] = {**_USUAL, **others, "samples": samples, "seed": seed, "steps": steps}
    return Step(technique="student", options=(("architecture", architecture.code), *sorted(given.items())))


def recipe(*, labelled: bool, steps: int) -> dict[str, Any]:
    """How a student is best trained for so many steps, as options of `step`; with labels the original is trained first,
    for half as many."""
    return {"steps": steps, **({"label_weight": 0.1, "teacher_steps": max(1, steps // 2)} if labelled else {})}


def _read(training_step: Step) -> tuple[Architecture, TrainingOptions]:
    """A step's architecture and how it trains. Raises `InputError` for what cannot be run."""
    given: dict[str, Any] = dict(training_step.options)
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise InputError(f"a student's step has no option {unknown[0]!r}", remedy=f"known: {', '.join(_KNOWN)}")
    missing = [name for name in ("architecture", "samples", "steps") if name not in given]
    if missing:
        raise InputError(f"a student's step lacks {missing[0]!r}", remedy="give architecture, samples and steps")
    architecture = parse(str(given.pop("architecture")))
    return architecture, TrainingOptions(**given)


def apply(
    original: Model, model: Model, training_step: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """Train the step's student towards ``original``. Nothing of ``model`` is used but its notes. Within
    `training.checkpoints_in` a killed training goes on.

    Whether the samples are enough is for the caller to ask `check_samples`. Raises `UnsupportedModelError` for a model
    that can have no student or no gradient, `InputError` for a step that cannot be run, `EdgecompileError` where
    training diverges.
    """
    architecture, options = _read(training_step)
    made = net(architecture, original, options.seed)
    count = min(len(samples), options.samples)
    stacks, labels = _stacked(made, samples, count), distill.wanted_labels(samples, count, options)
    taught = None
    if options.loss != "labels":
        taught = teaching.of(original, options, lambda: stacks, labels, progress)
    identity, watch = f"{original.sha256} {architecture.code}", training.watch()
    outcome = training.train(
        taught,
        made,
        stacks,
        options,
        labels=labels,
        checkpoint=training.checkpoint_file(training.file_key(options, identity)),
        progress=progress,
        features=_features(original, options),
        stop=watch.asked,
        identity=identity,
    )
    watch.steps = outcome.steps
    for note in outcome.notes:
        progress.note(note)
    note = f"a student of {macs(architecture, made.face) / 1e6:.3g} M multiply-accumulates ("
    note += f"{architecture.code}) was trained; its loss ended at {outcome.after:.3g}"
    return written(model, to_onnx(made), workdir, note=note)


def seconds_a_step(original: Model, samples: Sequence[Arrays], training_step: Step, *, count: int = 5) -> float:
    """What one training step takes on this machine: the median of a few, after one that is not counted."""
    architecture, options = _read(training_step)
    made = net(architecture, original, options.seed)
    some = min(len(samples), 2 * options.batch)
    times = training.seconds(
        teacher(original) if options.loss != "labels" else None,
        made,
        _stacked(made, samples, some),
        options,
        clock=time.perf_counter,
        count=count + 1,
        labels=distill.wanted_labels(samples, some, options),
        features=_features(original, options),
    )
    return statistics.median(times[1:])


def _features(original: Model, options: TrainingOptions) -> tuple[str, str] | None:
    import onnx

    if not options.feature_weight:
        return None
    pooled = features.pooled(onnx.load(str(original.path)))
    if pooled is None:
        raise InputError("the model has no pooling over all pixels to take features from", remedy="feature_weight 0")
    return pooled, FEATURES


def teacher(original: Model) -> Any:
    """The original as a module in evaluation mode. Raises `UnsupportedModelError` for operators it cannot hold."""
    import onnx

    from edgecompile.techniques.torch_graph import from_onnx

    return from_onnx(onnx.load(str(original.path)))


def _stacked(made: StudentNet, samples: Sequence[Arrays], count: int) -> dict[str, Tensor]:
    import torch

    images = [np.asarray(samples[i][made.face.input]) for i in range(count)]
    return {made.face.input: torch.from_numpy(np.concatenate(images))}


__all__ = [
    "MIN_SAMPLES",
    "Architecture",
    "apply",
    "candidates",
    "check_samples",
    "interface",
    "net",
    "recipe",
    "seconds_a_step",
    "skeleton",
    "step",
    "teacher",
    "to_onnx",
]
