"""What a network loses when one group of channels shrinks and its readers are fitted anew: measured on its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgecompile.techniques import prune
from edgecompile.techniques.channels import Channels, GraphView, Group, removed_units
from edgecompile.techniques.flow import Flow
from edgecompile.techniques.importance import Order
from edgecompile.techniques.reconstruct import reconstruct
from edgecompile.techniques.rows import linear

if TYPE_CHECKING:
    import onnx

    from edgecompile.types import Arrays

Array = npt.NDArray[Any]
Kind = Literal["logits", "signal"]

#: Below this a loss is rounding.
_LEAST = 1e-9


def kind_of(channels: Channels) -> Kind:
    """Outputs of one row of several figures are a classifier's logits; all others are compared as signals."""
    shapes = [channels.graph.shapes[name] for name in channels.graph.outputs]
    return "logits" if len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] > 1 else "signal"


def distance(kind: Kind, wanted: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """Kullback-Leibler divergence of the classes (nats), or the error's energy over the signal's, over all outputs."""
    if kind == "logits":
        (name,) = wanted
        p, q = (_log_softmax(np.asarray(side[name], np.float64)) for side in (wanted, found))
        return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    shares = []
    for name, array in wanted.items():
        energy = float(np.square(array.astype(np.float64)).sum())
        shares.append(float(np.square(array.astype(np.float64) - found[name]).sum()) / max(energy, 1e-30))
    return sum(shares) / len(shares)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def outputs(view: GraphView, samples: Sequence[Arrays]) -> list[dict[str, Array]]:
    """The outputs of every sample."""
    flow = Flow(view, samples)
    flow.finish()
    return [{name: values[name] for name in view.outputs} for values in flow.values]


def mean_distance(kind: Kind, wanted: Sequence[Mapping[str, Array]], found: Sequence[Mapping[str, Array]]) -> float:
    """The mean over samples."""
    return float(np.mean([distance(kind, a, b) for a, b in zip(wanted, found, strict=True)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A group's loss by the number of units removed: a power of the order's own error, through measured points."""

    group: str
    scale: float
    power: float
    error: tuple[float, ...]

    def loss(self, kept: int) -> float:
        """The loss when ``kept`` units are left."""
        gone = len(self.error) - 1 - kept
        return self.scale * self.error[gone] ** self.power if gone > 0 else 0.0


def curves(
    channels: Channels,
    orders: Mapping[str, Order],
    points: Mapping[str, Sequence[int]],
    samples: Sequence[Arrays],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Curve]:
    """The loss curve of every group in ``points``, measured with so many units kept as listed there.

    Each time one group shrinks, the layers that read it are fitted on the first three quarters of the samples, and the
    outputs compared on the last.
    """
    kind = kind_of(channels)
    fitting = samples[: max(1, len(samples) * 3 // 4)]
    held = samples[len(fitting) :] or fitting
    wanted = outputs(channels.graph, held)
    found: dict[str, Curve] = {}
    total, done = sum(len(counts) for counts in points.values()), 0
    for group in channels.groups:
        measured: list[tuple[float, float]] = []
        for kept in points.get(group.name, ()):
            order = orders[group.name]
            pruned = _one_group(channels, group, order.kept(kept), fitting, seed)
            loss = mean_distance(kind, wanted, outputs(GraphView(pruned), held))
            measured.append((order.error[group.size - kept], max(loss, _LEAST)))
            done += 1
            if progress is not None:
                progress(done, total)
        if measured:
            scale, power = _fit(measured)
            found[group.name] = Curve(group=group.name, scale=scale, power=power, error=orders[group.name].error)
    return found


def _one_group(
    channels: Channels, group: Group, kept: Sequence[int], samples: Sequence[Arrays], seed: int
) -> onnx.ModelProto:
    chosen = {group.name: kept}
    pruned = prune.remove(channels, chosen)
    mended, _ = reconstruct(
        channels, pruned, removed_units(channels, chosen), samples, seed=seed, only=readers(channels, group)
    )
    return mended


def readers(channels: Channels, group: Group) -> frozenset[str]:
    """The first outputs of the layers whose weights mix a group's channels."""
    units = set(group.units)
    found = set()
    for node in channels.graph.nodes:
        if linear(channels.graph, node) is None:
            continue
        labels = channels.removable(node.input[0])[1 if node.op_type == "Conv" else -1]
        if labels is not None and any(int(label) in units for label in labels):
            found.add(node.output[0])
    return frozenset(found)


def _fit(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The scale and the power (between a half and three) of a loss through points of (error, loss)."""
    logs = [(math.log(max(error, 1e-12)), math.log(loss)) for error, loss in measured]
    x, y = (float(np.mean([log[i] for log in logs])) for i in (0, 1))
    spread = sum((log[0] - x) ** 2 for log in logs)
    slope = sum((log[0] - x) * (log[1] - y) for log in logs) / spread if spread > 1e-9 else 1.0
    power = min(max(slope, 0.5), 3.0)
    return math.exp(y - power * x), power
