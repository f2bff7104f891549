"""Techniques: what makes a smaller model of a model, at some cost of accuracy. Each is a function of the model, its
options and the data, and gives the same bytes for the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edgecompile.errors import InputError
from edgecompile.progress import Progress, Silent
from edgecompile.techniques import blocks, distill, pruning, resolution, student
from edgecompile.types import Arrays, Model, Step

Technique: TypeAlias = Callable[[Model, Model, Step, Sequence[Arrays], Path, Progress], Model]

#: Each takes the original, the model so far, its step, samples, a folder, and who watches.
TECHNIQUES: dict[str, Technique] = {
    "distill": distill.apply,
    "drop": blocks.apply,
    "prune": pruning.apply,
    "resolution": resolution.apply,
    "student": student.apply,
}


def apply(
    model: Model,
    steps: Sequence[Step],
    samples: Sequence[Arrays],
    workdir: Path,
    progress: Progress | None = None,
    *,
    original: Model | None = None,
) -> Model:
    """The model that the steps make of ``model``, one after the other, written into ``workdir``.

    ``samples`` are calibration samples in the model's layout; ``original`` is what training imitates, if that is not
    ``model``. Raises `InputError` for an unknown technique or option.
    """
    original = original or model
    for number, step in enumerate(steps):
        if step.technique not in TECHNIQUES:
            raise InputError(f"there is no technique {step.technique!r}", remedy=f"known: {', '.join(TECHNIQUES)}")
        folder = workdir / f"{number}-{step.technique}"
        folder.mkdir(parents=True, exist_ok=True)
        model = TECHNIQUES[step.technique](original, model, step, samples, folder, progress or Silent())
    return model


__all__ = ["TECHNIQUES", "Technique", "apply"]
