"""What a training makes small: how far a student's outputs are from a teacher's, and from labels.

Every function takes tensors with the batch on axis 0 and returns a scalar tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def difference(wanted: Tensor, found: Tensor, *, loss: str, temperature: float) -> Tensor:
    """How far ``found`` is from ``wanted``: N x C scores by ``kl`` or ``dist``, all else by `relative_error`."""
    if wanted.ndim != 2 or wanted.shape[1] < 2:
        return relative_error(wanted, found)
    if loss == "dist":
        return relations(wanted / temperature, found / temperature)
    return divergence(wanted / temperature, found / temperature) * temperature**2


def divergence(wanted: Tensor, found: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of the classes (Hinton et al., 2015), a mean over the N of N x C scores."""
    from torch.nn import functional

    return functional.kl_div(
        functional.log_softmax(found, 1), functional.log_softmax(wanted, 1), reduction="batchmean", log_target=True
    )


def relations(wanted: Tensor, found: Tensor) -> Tensor:
    """Relations of the classes within each sample and of the samples within each class, each one minus a mean Pearson
    correlation ("Knowledge Distillation from A Stronger Teacher", Huang et al., NeurIPS 2022)."""
    p, q = wanted.softmax(1), found.softmax(1)
    return (1 - _correlation(p, q)).mean() + (1 - _correlation(p.T, q.T)).mean()


def relative_error(wanted: Tensor, found: Tensor) -> Tensor:
    """The mean squared error over the mean square of what is wanted."""
    return (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)


def label_entropy(found: Tensor, labels: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Cross entropy of N x C scores against mixed labels: ``share`` (N) of ``labels`` (N), the rest of ``others``."""
    from torch.nn import functional

    own = functional.cross_entropy(found, labels, reduction="none")
    rest = functional.cross_entropy(found, others, reduction="none")
    return (share * own + (1 - share) * rest).mean()


def feature_error(wanted: Tensor, found: Tensor) -> Tensor:
    """`relative_error` of N x C x H x W features; the larger of two sizes is pooled to the smaller."""
    from torch.nn import functional

    size = [min(a, b) for a, b in zip(wanted.shape[2:], found.shape[2:], strict=True)]
    if list(wanted.shape[2:]) != size:
        wanted = functional.adaptive_avg_pool2d(wanted, size)
    if list(found.shape[2:]) != size:
        found = functional.adaptive_avg_pool2d(found, size)
    return relative_error(wanted, found)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1, eps=1e-8)
