"""`reference` runs the original once over a part of the data; `accuracy` compares any number of files with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile import stats
from edgecompile.calibration import Samples
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.types import Accuracy, Arrays, Metric, RunFunction

#: Called with (samples done, samples in all).
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What is kept of the original's outputs on ``samples``, and the original's own ``accuracy`` there.

    ``predictions`` are the classes it chose (top-1 and agreement).
    """

    metric: Metric
    samples: Samples = field(repr=False)
    accuracy: Accuracy
    predictions: npt.NDArray[np.int64] = field(repr=False)


def reference(
    original: RunFunction, samples: Samples, *, metric: Metric | None = None, progress: Progress | None = None
) -> Reference:
    """Run the original on every sample. ``metric`` overrides the one that the labels and the outputs suggest.

    Raises `InputError` for synthetic samples, for labels that the outputs cannot have, and where the original does
    hardly better than guessing on labelled data.
    """
    _refuse_unusable(samples)
    first = original(samples[0])
    chosen = _metric(metric, first, samples)
    predictions = _predictions(original, samples, progress)
    if chosen == "top-1":
        classes = _class_scores(first)
        own = _top1(predictions, predictions, _labels(samples, classes))
        _refuse_near_chance(own, predictions, samples, classes)
    else:
        own = _agreement(predictions, predictions)
    return Reference(metric=chosen, samples=samples, accuracy=own, predictions=predictions)


def accuracy(
    run: RunFunction,
    original: RunFunction | Reference,
    samples: Samples,
    *,
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """The metric of ``run`` on ``samples`` and its drop against the original there, both with 95 % intervals."""
    base = original if isinstance(original, Reference) else reference(original, samples, metric=metric)
    if base.samples.names != samples.names or (metric is not None and metric != base.metric):
        raise EdgecompileError("the reference was made on other samples or for another metric")
    predictions = _predictions(run, samples, progress)
    if base.metric == "top-1":
        assert samples.labels is not None
        return _top1(predictions, base.predictions, samples.labels)
    return _agreement(predictions, base.predictions)


# --------------------------------------------------------------------------------------------- which metric


def _class_scores(outputs: Arrays) -> int:
    """The number of classes when the outputs look like a classifier's, else 0.

    A classifier has one floating-point output of shape (1, C) or (1, C, 1, 1) with C of 2 or more.
    """
    if len(outputs) != 1:
        return 0
    array = next(iter(outputs.values()))
    shape = array.shape[:2] if array.shape[2:] in ((), (1, 1)) else ()
    return shape[1] if array.dtype.kind == "f" and len(shape) == 2 and shape[0] == 1 and shape[1] >= 2 else 0


def _metric(wanted: Metric | None, outputs: Arrays, samples: Samples) -> Metric:
    classifier = _class_scores(outputs) > 0
    found: Metric = "SQNR" if not classifier else "agreement" if samples.labels is None else "top-1"
    if wanted is not None and wanted != found:
        possible = {"top-1": classifier and samples.labels is not None, "agreement": classifier, "SQNR": True}
        if not possible.get(wanted, False):
            shapes = {name: array.shape for name, array in outputs.items()}
            raise InputError(f"{wanted} cannot be computed from outputs {shapes}", remedy=f"leave it out: {found}")
        found = wanted
    return found


def _refuse_unusable(samples: Samples) -> None:
    if samples.synthetic:
        raise InputError("random inputs say nothing about accuracy", remedy="give --data")
    if not len(samples):
        raise InputError("no samples to evaluate on", remedy="give more --data, or --eval")


def _labels(samples: Samples, classes: int) -> npt.NDArray[np.int64]:
    assert samples.labels is not None
    highest = int(samples.labels.max())
    if highest >= classes:
        raise InputError(
            f"the labels name class {highest}, but the model has {classes} outputs (0-{classes - 1})",
            remedy="give --labels FILE with exactly the model's classes, one a line, in its output order",
        )
    return samples.labels


# --------------------------------------------------------------------------------------------- classification


def _outputs(run: RunFunction, samples: Samples, progress: Progress | None) -> Iterator[Arrays]:
    for done, sample in enumerate(samples, 1):
        yield run(sample)
        if progress is not None:
            progress(done, len(samples))


def _predictions(run: RunFunction, samples: Samples, progress: Progress | None) -> npt.NDArray[np.int64]:
    """The class with the highest score, one a sample; -1, which is never right, where a score is not a number."""
    found = [_argmax(next(iter(outputs.values()))) for outputs in _outputs(run, samples, progress)]
    return np.array(found, dtype=np.int64)


def _argmax(scores: npt.NDArray[Any]) -> int:
    return -1 if np.isnan(scores).any() else int(np.argmax(scores))


def _top1(
    predictions: npt.NDArray[np.int64], original: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> Accuracy:
    right, before = predictions == labels, original == labels
    value = stats.wilson(int(right.sum()), len(labels))
    drop = _paired(100.0 * (before.astype(np.float64) - right))
    if predictions is original:
        drop = stats.Interval(value=0.0, low=0.0, high=0.0)
    return Accuracy(
        metric="top-1",
        value=100 * value.value,
        ci_low=100 * value.low,
        ci_high=100 * value.high,
        samples=len(labels),
        drop=drop.value,
        drop_ci_low=drop.low,
        drop_ci_high=drop.high,
    )


def _paired(differences: npt.NDArray[np.float64]) -> stats.Interval:
    """The mean difference with its bootstrap interval; where no sample differs, as wide as n samples can exclude.

    A bootstrap of zeros alone would give an interval of no width, as if n samples could prove that no sample ever
    differs. Wilson's upper end for 0 of n is used on both sides instead.
    """
    if differences.any():
        return stats.mean(differences)
    bound = 100 * stats.wilson(0, len(differences)).high
    return stats.Interval(value=0.0, low=-bound, high=bound)


def _agreement(predictions: npt.NDArray[np.int64], original: npt.NDArray[np.int64]) -> Accuracy:
    value = stats.wilson(int((predictions == original).sum()), len(original))
    low, high = (value.low, value.high) if predictions is not original else (1.0, 1.0)
    return Accuracy(
        metric="agreement",
        value=100 * value.value,
        ci_low=100 * low,
        ci_high=100 * high,
        samples=len(original),
        drop=100 * (1 - value.value),
        drop_ci_low=100 * (1 - high),
        drop_ci_high=100 * (1 - low),
    )


def _refuse_near_chance(own: Accuracy, predictions: npt.NDArray[np.int64], samples: Samples, classes: int) -> None:
    """Wrong labels or wrong preprocessing make a good model guess: say so before anything is built on it.

    "Near chance" is a value below five times chance, and below a tenth of the way from chance to perfect, of which the
    interval excludes a useful model (half of the way). Few samples exclude little, so they are never refused for that.
    """
    chance = 1 / classes
    bound = min(5 * chance, chance + 0.1 * (1 - chance))
    if own.value / 100 > bound or own.ci_high / 100 >= chance + 0.5 * (1 - chance):
        return
    raise InputError(
        f"the original is right on {own.value:.1f} % of {own.samples} labelled samples ({classes} classes: guessing"
        f" gives {100 * chance:.1f} %){_order_hint(predictions, samples)}",
        remedy="give --labels FILE with the class order of the model's outputs, and check that --preset is the"
        " preprocessing that the model was trained with",
    )


def _order_hint(predictions: npt.NDArray[np.int64], samples: Samples) -> str:
    """Whether another class order explains the predictions: each class's most frequent prediction, used once."""
    assert samples.labels is not None
    pairs, counts = np.unique(np.stack([samples.labels, predictions]), axis=1, return_counts=True)
    right, taken_labels, taken_outputs = 0, set(), set()
    for position in np.argsort(-counts, kind="stable"):
        label, output = pairs[:, position]
        if label not in taken_labels and output not in taken_outputs:
            taken_labels.add(label)
            taken_outputs.add(output)
            right += int(counts[position])
    share = 100 * right / len(predictions)
    return f"; with the classes in another order it would be {share:.1f} %" if share >= 50 else ""
