"""The technique ``student``: a new, smaller classifier, trained from nothing to give the original's outputs.

The nets are those of `student_family`; `candidates` names them and `edgecompile.students.rank` picks. The student keeps
the original's input and output names, so all that follows treats it like the original.

Options: ``architecture`` (`Architecture.code`), ``steps``, ``samples`` (how many), ``batch``, ``rate``, ``decay``,
``temperature``, ``shift``, ``flip``, ``mix``, ``seed``; see `student_training.Options`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import InputError
from edgecompile.progress import Progress
from edgecompile.techniques import student_training
from edgecompile.techniques.pruning import written
from edgecompile.techniques.student_family import Architecture, candidates, interface, macs, parse
from edgecompile.techniques.student_net import StudentNet, net, skeleton, to_onnx
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    from torch import Tensor

#: Training samples that a student needs. A pruned net starts from what the original knows; a student starts from
#: nothing, and with some hundred images it learns what the original says of these and little of others.
MIN_SAMPLES = 2000
_DEFAULTS = student_training.Options(steps=1)


def check_samples(count: int) -> str | None:
    """Why so many training samples are too few for a student; ``None`` where they are enough."""
    if count >= MIN_SAMPLES:
        return None
    return (
        f"a student is trained from nothing and needs at least {MIN_SAMPLES} training samples (no labels), "
        f"and there are {count}"
    )


def step(
    architecture: Architecture,
    *,
    steps: int,
    samples: int,
    batch: int = _DEFAULTS.batch,
    rate: float = _DEFAULTS.rate,
    decay: float = _DEFAULTS.decay,
    temperature: float = _DEFAULTS.temperature,
    shift: int = _DEFAULTS.shift,
    flip: bool = _DEFAULTS.flip,
    mix: float = _DEFAULTS.mix,
    seed: int = 0,
) -> Step:
    """The step that trains a student for so many batches on so many samples."""
    return Step(
        technique="student",
        options=(
            ("architecture", architecture.code),
            ("batch", batch),
            ("decay", decay),
            ("flip", flip),
            ("mix", mix),
            ("rate", rate),
            ("samples", samples),
            ("seed", seed),
            ("shift", shift),
            ("steps", steps),
            ("temperature", temperature),
        ),
    )


_TRAINING = tuple(field.name for field in fields(student_training.Options))
_KNOWN = ("architecture", "samples", *_TRAINING)


def _read(training: Step) -> tuple[Architecture, int, student_training.Options]:
    """A step's architecture, its number of samples and how it trains. Raises `InputError` for what cannot be run."""
    given: dict[str, Any] = dict(training.options)
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        raise InputError(f"a student's step has no option {unknown[0]!r}", remedy=f"known: {', '.join(_KNOWN)}")
    missing = [name for name in ("architecture", "samples", "steps") if name not in given]
    if missing:
        raise InputError(f"a student's step lacks {missing[0]!r}", remedy="give architecture, samples and steps")
    options = student_training.Options(**{name: given[name] for name in _TRAINING if name in given})
    possible = options.steps >= 1 and options.batch >= 2 and given["samples"] >= 2 and options.temperature > 0
    if not (possible and options.rate > 0 and options.shift >= 0 and 0 <= options.mix <= 1):
        raise InputError(
            f"a student's step with {given} cannot be run",
            remedy="give steps >= 1, batch >= 2, samples >= 2, rate > 0, temperature > 0, shift >= 0, mix from 0 to 1",
        )
    return parse(str(given["architecture"])), int(given["samples"]), options


def apply(
    original: Model, model: Model, training: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """Train the step's student towards ``original``. Nothing of ``model`` is used but its notes.

    Whether the samples are enough is for the caller to ask `check_samples`. Raises `UnsupportedModelError` for a model
    that can have no student or no gradient, `InputError` for a step that cannot be run, `EdgecompileError` where
    training diverges.
    """
    architecture, count, options = _read(training)
    trainer = _trainer(original, architecture, samples, count, options)
    with progress.stage("Train a student", options.steps) as advance:
        loss = trainer.run(advance)
    note = f"a student of {macs(architecture, trainer.student.face) / 1e6:.3g} M multiply-accumulates ("
    note += f"{architecture.code}) was trained by distillation; its loss ended at {loss:.3g}"
    return written(model, to_onnx(trainer.student), workdir, note=note)


def seconds_a_step(original: Model, samples: Sequence[Arrays], training: Step, *, count: int = 5) -> float:
    """What one training step takes on this machine: the median of a few, after one that is not counted."""
    architecture, _, options = _read(training)
    trainer = _trainer(original, architecture, samples, 2 * options.batch, replace(options, steps=count + 1))
    times: list[float] = []
    trainer.run(lambda done: times.append(time.perf_counter()) if done else None)
    return statistics.median(after - before for before, after in itertools.pairwise(times))


def _trainer(
    original: Model,
    architecture: Architecture,
    samples: Sequence[Arrays],
    count: int,
    options: student_training.Options,
) -> student_training.Trainer:
    made = net(architecture, original, options.seed)
    return student_training.Trainer(
        student=made,
        images=_stacked(made, [samples[i] for i in range(min(len(samples), count))]),
        teacher=teacher(original),
        options=options,
    )


def teacher(original: Model) -> Any:
    """The original as a module in evaluation mode. Raises `UnsupportedModelError` for operators it cannot hold."""
    import onnx

    from edgecompile.techniques.torch_graph import from_onnx

    return from_onnx(onnx.load(str(original.path)))


def _stacked(made: StudentNet, samples: Sequence[Arrays]) -> Tensor:
    import torch

    return torch.from_numpy(np.concatenate([np.asarray(sample[made.face.input]) for sample in samples]))


__all__ = [
    "MIN_SAMPLES",
    "Architecture",
    "apply",
    "candidates",
    "check_samples",
    "interface",
    "net",
    "seconds_a_step",
    "skeleton",
    "step",
    "teacher",
    "to_onnx",
]
