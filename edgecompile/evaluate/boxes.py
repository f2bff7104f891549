"""From a detector's raw outputs to final boxes: decoding, non-maximum suppression, overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import Detection
from edgecompile.errors import InputError
from edgecompile.types import Arrays

Floats = npt.NDArray[np.float64]

#: Boxes that enter suppression, the best first: more do not change the result and make it slow.
_MAX_CANDIDATES = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Final boxes of one image, the highest score first: ``xyxy`` (D, 4) in pixels of the input."""

    xyxy: Floats
    scores: Floats
    classes: npt.NDArray[np.int64]


def class_count(outputs: Arrays, detection: Detection) -> int:
    """The number of classes without the background. Raises `InputError` where the outputs are not as declared."""
    boxes, scores = (_output(outputs, name) for name in (detection.boxes, detection.scores))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.ndim != 2 or len(boxes) != len(scores):
        raise InputError(
            f"output {detection.boxes!r} has shape {outputs[detection.boxes].shape} and {detection.scores!r}"
            f" {outputs[detection.scores].shape}, but boxes are (1, N, 4) and scores (1, N, C)",
            remedy="correct the table [detection] of the preset",
        )
    if detection.background is not None and detection.background >= scores.shape[1]:
        raise InputError(
            f"detection.background is {detection.background}, but there are {scores.shape[1]} scores a box",
            remedy="correct the table [detection] of the preset",
        )
    return int(scores.shape[1]) - (detection.background is not None)


def _output(outputs: Arrays, name: str) -> Floats:
    if name not in outputs:
        raise InputError(
            f"the preset reads boxes and scores from output {name!r}, which the model does not have",
            remedy=f"correct the table [detection]; the outputs are {', '.join(map(repr, outputs))}",
        )
    array = outputs[name].astype(np.float64)
    return np.asarray(array[0] if array.ndim == 3 else array)


def decode(outputs: Arrays, detection: Detection, size: tuple[int, int]) -> Found:
    """The boxes that a user of the detector would get. ``size`` is (width, height) of the input in pixels."""
    boxes = _corners(_output(outputs, detection.boxes), detection)
    if detection.normalized:
        boxes = boxes * np.array([*size, *size], dtype=np.float64)
    scores = _activated(_output(outputs, detection.scores), detection)
    if detection.background is not None:
        scores = np.delete(scores, detection.background, axis=1)
    scores = np.where(np.isfinite(scores) & np.isfinite(boxes).all(axis=1, keepdims=True), scores, -1.0)
    rows, classes = np.nonzero(scores > detection.score_threshold)
    order = np.argsort(-scores[rows, classes], kind="stable")[:_MAX_CANDIDATES]
    rows, classes = rows[order], classes[order]
    kept = suppress(boxes[rows], classes, detection.iou_threshold)[: detection.max_detections]
    rows, classes = rows[kept], classes[kept]
    return Found(xyxy=boxes[rows], scores=scores[rows, classes], classes=classes.astype(np.int64))


def _corners(boxes: Floats, detection: Detection) -> Floats:
    first, second = boxes[:, :2], boxes[:, 2:]
    if detection.box_format == "xywh":
        return np.concatenate([first, first + second], axis=1)
    if detection.box_format == "cxcywh":
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return boxes


def _activated(scores: Floats, detection: Detection) -> Floats:
    if detection.activation == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(scores / 2)))
    if detection.activation == "softmax":
        raised = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))
    return scores


def suppress(boxes: Floats, classes: npt.NDArray[np.int64], threshold: float) -> list[int]:
    """Greedy non-maximum suppression within each class: indices kept of boxes that come best first."""
    kept: list[int] = []
    alive = np.ones(len(boxes), dtype=np.bool_)
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        overlap = iou(boxes[index : index + 1], boxes)[0]
        alive &= ~((overlap > threshold) & (classes == classes[index]))
    return kept


def iou(first: Floats, second: Floats, *, crowd: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Intersection over union, (len(first), len(second)); over the area of ``first`` where ``second`` is a crowd."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=2)
    area = np.prod(np.clip(first[:, 2:] - first[:, :2], 0, None), axis=1)[:, None]
    other = np.prod(np.clip(second[:, 2:] - second[:, :2], 0, None), axis=1)[None, :]
    union = area + other - both
    if crowd is not None:
        union = np.where(crowd[None, :], area, union)
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))
