"""Which channels to give up first: an order for every group, and the error that following it leaves behind.

``reconstruction`` asks what the readers of a channel lose when their remaining inputs make up for it as well as they
can: the cost of removing input c of a layer with weights W and Gram matrix H is |W_c|^2 / (H^-1)_cc, after which W and
H^-1 are updated, as in the Optimal Brain Surgeon (Hassibi & Stork, 1993) and ZipLM (Kurtic et al., 2023,
arXiv:2302.04089). ``taylor`` is the Fisher information of a gate on the channel (`fisher`). ``magnitude`` is the
squared norm of all weights of a channel, relative to their layers' (Li et al., 2017, arXiv:1608.08710).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile.techniques import fisher
from edgecompile.techniques.channels import Channels, Group
from edgecompile.techniques.flow import Flow
from edgecompile.techniques.rows import Linear, linear

if TYPE_CHECKING:
    from edgecompile.types import Arrays

Array = npt.NDArray[Any]
Importance: TypeAlias = Literal["reconstruction", "taylor", "magnitude"]
IMPORTANCES: tuple[Importance, ...] = ("reconstruction", "taylor", "magnitude")

_PLACES = 64
_DAMPING = 1e-3
#: Rounds in which a group's units are removed at least, one a round where it has no more.
_ROUNDS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The units of one group, as positions, the first to go first.

    ``error[n]`` is what is lost when the first ``n`` of them are gone, ``error[0]`` is 0; it never falls. Its unit is
    that of the method, so that it compares counts of one group, not groups.
    """

    group: str
    positions: tuple[int, ...]
    error: tuple[float, ...]

    def kept(self, count: int) -> list[int]:
        """The positions that stay when ``count`` do, sorted."""
        return sorted(self.positions[len(self.positions) - count :])


def orders(
    channels: Channels,
    samples: Sequence[Arrays],
    *,
    method: Importance = "reconstruction",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Order]:
    """The order of removal for every group, by name.

    ``reconstruction`` and ``taylor`` need ``samples``. Raises `UnsupportedModelError` where ``taylor`` cannot
    differentiate an operator.
    """
    if method == "reconstruction":
        readers = _readers(channels, samples, seed, progress)
        return {group.name: _surgeon(group, readers) for group in channels.groups}
    if method == "taylor":
        found = fisher.scores(channels, samples, seed=seed)
    else:
        found = {group.name: _magnitudes(channels, group) for group in channels.groups}
    return {group.name: _by_score(group, np.asarray(found[group.name], np.float64)) for group in channels.groups}


def _by_score(group: Group, scores: Array) -> Order:
    order = np.argsort(scores, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(scores[order])])
    return Order(group=group.name, positions=tuple(int(i) for i in order), error=tuple(float(e) for e in total))


def _magnitudes(channels: Channels, group: Group) -> Array:
    position = {unit: i for i, unit in enumerate(group.units)}
    scores = np.zeros(group.size)
    for name, array in channels.graph.constants.items():
        if array.dtype.kind != "f":
            continue
        for axis, labels in enumerate(channels.removable(name)):
            if labels is None or not any(int(label) in position for label in labels):
                continue
            energy = np.square(array.astype(np.float64)).sum(axis=tuple(i for i in range(array.ndim) if i != axis))
            for label, share in zip(labels, energy / max(energy.sum(), 1e-30), strict=True):
                if int(label) in position:
                    scores[position[int(label)]] += share
    return scores


# ------------------------------------------------------------------------------------------ reconstruction


@dataclass(slots=True, kw_only=True)
class _Reader:
    """A layer that reads removable channels: their labels, the inverse Gram matrix, the weights by input channel."""

    labels: npt.NDArray[np.int64]
    inverse: Array
    weights: Array
    energy: float

    def copy(self) -> _Reader:
        return _Reader(labels=self.labels, inverse=self.inverse.copy(), weights=self.weights.copy(), energy=self.energy)

    def costs(self) -> Array:
        """What removing each input channel costs, as a share of the layer's output energy."""
        loss: Array = np.square(self.weights).sum(axis=1) / np.maximum(np.diag(self.inverse), 1e-30)
        return loss / self.energy

    def remove(self, channels: npt.NDArray[np.intp]) -> None:
        """Take input channels out; the others make up for them."""
        inner = self.inverse[np.ix_(channels, channels)]
        ridge = 1e-12 * max(float(np.trace(inner)) / len(channels), 1e-30)
        columns = np.linalg.solve(inner + ridge * np.eye(len(channels)), self.inverse[channels]).T
        self.weights -= columns @ self.weights[channels]
        self.inverse -= columns @ self.inverse[channels]
        self.weights[channels] = 0.0
        # Exactly zero rows and columns, or rounding would let what was removed come back.
        self.inverse[channels, :] = 0.0
        self.inverse[:, channels] = 0.0


def _readers(
    channels: Channels, samples: Sequence[Arrays], seed: int, progress: Callable[[int, int], None] | None
) -> list[_Reader]:
    view = channels.graph
    flow = Flow(view, samples)
    found: list[_Reader] = []
    rng = np.random.default_rng(seed)
    for index, node in enumerate(view.nodes):
        job = linear(view, node)
        labels = _input_labels(channels, job) if job is not None else None
        if job is not None and labels is not None:
            flow.advance(index)
            found.append(_reader(job, labels, flow, rng))
        if progress is not None:
            progress(index + 1, len(view.nodes))
    return found


def _input_labels(channels: Channels, job: Linear) -> npt.NDArray[np.int64] | None:
    """The labels of the channels that a layer mixes; a depthwise layer mixes none."""
    labels = channels.removable(job.node.input[0])
    if job.is_convolution:
        mixes = job.groups < channels.graph.shapes[job.node.input[0]][1] or job.groups == 1
        return labels[1] if mixes else None
    return labels[-1]


def _reader(job: Linear, labels: npt.NDArray[np.int64], flow: Flow, rng: np.random.Generator) -> _Reader:
    weight = flow.constants[job.weight].astype(np.float64)
    gram = np.zeros((len(labels) + 1, len(labels) + 1))
    rows = 0
    for values in flow.values:
        array = np.asarray(values[job.node.input[0]])
        flat = array[0].reshape(array.shape[1], -1).T if job.is_convolution else array.reshape(-1, array.shape[-1])
        some = flat[rng.choice(len(flat), min(_PLACES, len(flat)), replace=False)].astype(np.float64)
        some = np.concatenate([some, np.ones((len(some), 1))], axis=1)
        gram += some.T @ some
        rows += len(some)
    gram /= rows
    matrix = _by_input(job, weight)
    # The last row is the constant one: what a channel gives on average goes into the bias at no cost.
    energy = float(np.einsum("co,cd,do->", matrix, gram[:-1, :-1], matrix))
    scale = _DAMPING * float(np.trace(gram[:-1, :-1])) / len(labels)
    gram[np.arange(len(labels)), np.arange(len(labels))] += max(scale, 1e-12)
    inverse = np.linalg.inv(gram)
    return _Reader(labels=labels, inverse=inverse[:-1, :-1].copy(), weights=matrix, energy=max(energy, 1e-30))


def _by_input(job: Linear, weight: Array) -> Array:
    """The weights as (input channels, everything else)."""
    if not job.is_convolution:
        return np.array(weight.T if job.transposed else weight)
    outputs = weight.shape[0] // job.groups
    split = weight.reshape(job.groups, outputs, weight.shape[1], -1)
    return split.transpose(0, 2, 1, 3).reshape(job.groups * weight.shape[1], -1).copy()


def _surgeon(group: Group, readers: Sequence[_Reader]) -> Order:
    """Remove one unit after the other, each time the one that costs its readers least; of a large group some at a time,
    so that a group of thousands takes seconds."""
    position = {unit: i for i, unit in enumerate(group.units)}
    mine = [reader.copy() for reader in readers if any(int(label) in position for label in reader.labels)]
    places = [np.array([position.get(int(label), -1) for label in reader.labels]) for reader in mine]
    gone: list[int] = []
    error = [0.0]
    left = np.ones(group.size, bool)
    while left.any():
        costs = np.zeros(group.size)
        for reader, where in zip(mine, places, strict=True):
            ours = where >= 0
            np.add.at(costs, where[ours], reader.costs()[ours])
        ranked = np.argsort(np.where(left, costs, np.inf), kind="stable")
        cheapest = ranked[: min(max(1, group.size // _ROUNDS), int(left.sum()))]
        for reader, where in zip(mine, places, strict=True):
            channels = np.flatnonzero(np.isin(where, cheapest))
            if len(channels):
                reader.remove(channels)
        left[cheapest] = False
        for unit in cheapest:
            gone.append(int(unit))
            error.append(error[-1] + max(float(costs[unit]), 0.0))
    return Order(group=group.name, positions=tuple(gone), error=tuple(error))
