"""`reference` runs the original once over a part of the data; `accuracy` compares any number of files with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edgecompile.calibration import Samples
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.evaluate import signal
from edgecompile.evaluate.boxes import class_count
from edgecompile.evaluate.classify import Agreement, TopOne, class_scores
from edgecompile.evaluate.detect import MeanAveragePrecision
from edgecompile.evaluate.scorer import Scorer
from edgecompile.evaluate.segment import MeanIou, pixel_scores
from edgecompile.types import Accuracy, Arrays, Metric, RunFunction

#: Called with (samples done, samples in all).
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The original on a part of the data: its own ``accuracy`` there, and what each file is compared with.

    ``samples`` may be fewer than were given (SQNR keeps whole outputs in memory).
    """

    samples: Samples = field(repr=False)
    scorer: Scorer = field(repr=False)
    kept: tuple[Any, ...] = field(repr=False)
    accuracy: Accuracy

    @property
    def metric(self) -> Metric:
        return self.scorer.metric


def reference(
    original: RunFunction, samples: Samples, *, metric: Metric | None = None, progress: Progress | None = None
) -> Reference:
    """Run the original on every sample. ``metric`` overrides the one that the labels and the outputs suggest.

    Raises `InputError` for synthetic samples, for labels that the outputs cannot have, and where the original does
    hardly better than guessing on labelled data.
    """
    if samples.synthetic:
        raise InputError("random inputs say nothing about accuracy", remedy="give --data")
    if not len(samples):
        raise InputError("no samples to evaluate on", remedy="give more --data, or --eval")
    first = original(samples[0])
    scorer = _scorer(metric, first, samples)
    if scorer.metric == "SQNR":
        samples = samples[: signal.sample_limit(first)]
    kept = _run(original, samples, scorer, progress)
    own = scorer.compare(kept, kept)
    scorer.refuse(own, kept)
    return Reference(samples=samples, scorer=scorer, kept=kept, accuracy=own)


def accuracy(
    run: RunFunction,
    original: RunFunction | Reference,
    samples: Samples,
    *,
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """The metric of ``run`` on ``samples`` and its drop against the original there, both with 95 % intervals.

    Give a `Reference` to run the original once for many files.
    """
    base = original if isinstance(original, Reference) else reference(original, samples, metric=metric)
    if base.samples.names != samples.names[: len(base.samples)] or metric not in (None, base.metric):
        raise EdgecompileError("the reference was made on other samples, or for another metric")
    # The same images, though they may be of another size than the original takes.
    kept = _run(run, samples[: len(base.samples)], base.scorer, progress)
    return base.scorer.compare(kept, base.kept)


def _run(run: RunFunction, samples: Samples, scorer: Scorer, progress: Progress | None) -> tuple[Any, ...]:
    kept = []
    for index, sample in enumerate(samples):
        kept.append(scorer.keep(run(sample), index))
        if progress is not None:
            progress(index + 1, len(samples))
    return tuple(kept)


def _scorer(wanted: Metric | None, outputs: Arrays, samples: Samples) -> Scorer:
    """The metric that labels and outputs allow, the most telling one first, unless one is asked for."""
    possible = _possible(outputs, samples, wanted)
    if wanted is None:
        return next(iter(possible.values()))()
    if wanted not in possible:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
        raise InputError(
            f"{wanted} cannot be computed from this data and the outputs {shapes}",
            remedy=f"possible here: {', '.join(possible)}",
        )
    return possible[wanted]()


def _possible(outputs: Arrays, samples: Samples, wanted: Metric | None) -> dict[Metric, Callable[[], Scorer]]:
    found: dict[Metric, Callable[[], Scorer]] = {}
    scores = class_scores(outputs)
    labels = samples.labels
    if scores is not None and labels is not None:
        classes = len(scores)
        found["top-1"] = lambda: TopOne(labels=labels, classes=classes)
    # Asking for another metric must not fail on what only these two need.
    if wanted in (None, "mAP") and (boxes := _boxes(outputs, samples)) is not None:
        found["mAP"] = boxes
    if wanted in (None, "mIoU") and (masks := _masks(outputs, samples)) is not None:
        found["mIoU"] = masks
    if scores is not None:
        found["agreement"] = Agreement
    found["SQNR"] = signal.Sqnr
    return found


def _boxes(outputs: Arrays, samples: Samples) -> Callable[[], Scorer] | None:
    preset, prep = samples.preset, samples.preprocessing
    if samples.truths != "boxes" or preset is None or prep is None:
        return None
    if preset.detection is None:
        raise InputError(
            f"the data has boxes, but the preset {preset.name!r} does not say how the outputs are to be read as boxes",
            remedy="add a table [detection] to a copy of the preset: boxes and scores name the outputs"
            f" ({', '.join(outputs)}); see docs/data.md",
        )
    detection, classes = preset.detection, class_count(outputs, preset.detection)
    size = (prep.width, prep.height)
    return lambda: MeanAveragePrecision(samples=samples, detection=detection, size=size, classes=classes)


def _masks(outputs: Arrays, samples: Samples) -> Callable[[], Scorer] | None:
    preset, prep = samples.preset, samples.preprocessing
    if samples.truths != "masks" or preset is None or prep is None:
        return None
    scores = pixel_scores(outputs, (prep.height, prep.width))
    if scores is None:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
        raise InputError(
            f"the data has masks, but the outputs are not scores of classes and pixels: {shapes}",
            remedy="one output of shape (1, C, H, W) or (1, H, W, C) is needed; give the images folder alone otherwise",
        )
    ignore, classes = preset.segmentation.ignore, len(scores)
    return lambda: MeanIou(samples=samples, classes=classes, ignore=ignore)
