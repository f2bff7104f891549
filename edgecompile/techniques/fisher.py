"""Taylor importance: what the network's outputs lose, to second order, when a channel is scaled down to nothing.

Every unit gets a gate of value one wherever it is made. At the original the Kullback-Leibler divergence to its own
outputs is at its minimum, so its first derivative by a gate is zero, and its second one is the Fisher information:
the mean, over samples and over classes drawn from what the network says, of the squared derivative of the log
probability ("Faster gaze prediction with dense networks and Fisher pruning", Theis et al., 2018, arXiv:1801.05787;
"Importance Estimation for Neural Network Pruning", Molchanov et al., CVPR 2019). Labels are not needed. Other outputs
than classes are treated as means of a normal distribution: random projections take the place of classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.channels import Channels, Group

if TYPE_CHECKING:
    from torch import Tensor

    from edgecompile.techniques.torch_graph import TorchGraph
    from edgecompile.types import Arrays

Array = npt.NDArray[Any]
#: Samples at a time, and classes or projections drawn for each.
_BATCH, _DRAWS = 16, 8
#: So many classes are all looked at, each with its probability; of more, some are drawn.
_FEW_CLASSES = 16


def scores(channels: Channels, samples: Sequence[Arrays], *, seed: int = 0) -> dict[str, Array]:
    """One non-negative figure for each unit of each group: half of the second derivative by its gate, a sample.

    Raises `UnsupportedModelError` naming operators that cannot be differentiated.
    """
    import torch

    from edgecompile.techniques.torch_graph import from_onnx

    graph = from_onnx(channels.graph.model)
    graph.eval()
    places = _places(channels)
    generator = torch.Generator().manual_seed(seed)
    found = {group.name: np.zeros(group.size) for group in channels.groups}
    # Where the first axis of a gated tensor is not the batch (windows of attention), samples go one by one.
    size = _BATCH if all(place.shape[0] == 1 for place in places.values()) else 1
    for start in range(0, len(samples), size):
        some = [samples[i] for i in range(start, min(start + size, len(samples)))]
        batch = {name: torch.from_numpy(np.concatenate([np.asarray(s[name]) for s in some])) for name in some[0]}
        for name, values in _squares(graph, channels.groups, places, batch, len(some), generator).items():
            found[name] += values
    return {name: values / (2 * max(len(samples), 1)) for name, values in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Place:
    """A tensor that is gated: its shape, the gated axis, and for each group the entries there with their positions."""

    shape: tuple[int, ...]
    axis: int
    entries: Mapping[str, tuple[Array, Array]]


def _places(channels: Channels) -> dict[str, _Place]:
    """Where units are made: the outputs of weighted operators."""
    found: dict[str, _Place] = {}
    positions = {group.name: {unit: i for i, unit in enumerate(group.units)} for group in channels.groups}
    for node in channels.graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        for axis, labels in enumerate(channels.removable(node.output[0])):
            if labels is None:
                continue
            mine: dict[str, tuple[Array, Array]] = {}
            for name, position in positions.items():
                entries = [i for i, label in enumerate(labels) if int(label) in position]
                if entries:
                    where = [position[int(labels[i])] for i in entries]
                    mine[name] = (np.array(entries, np.int64), np.array(where, np.int64))
            if mine:
                shape = tuple(channels.graph.shapes[node.output[0]])
                found[node.output[0]] = _Place(shape=shape, axis=axis, entries=mine)
                break
    return found


def _squares(
    graph: TorchGraph,
    groups: Sequence[Group],
    places: Mapping[str, _Place],
    batch: Mapping[str, Tensor],
    count: int,
    generator: Any,
) -> dict[str, Array]:
    """The squared derivatives by each gate, summed over a batch and averaged over draws."""
    import torch

    gates = {group.name: torch.ones(count, group.size, requires_grad=True) for group in groups}
    outputs = graph(batch, gates={name: _gate(place, gates) for name, place in places.items()})
    targets = [draw for value in outputs.values() for draw in _draws(value, generator)]
    total = {group.name: np.zeros(group.size) for group in groups}
    for number, (weight, target) in enumerate(targets):
        wanted = list(gates.values())
        last = number + 1 == len(targets)
        slopes = torch.autograd.grad(target, wanted, retain_graph=not last, allow_unused=True)
        for name, slope in zip(gates, slopes, strict=True):
            if slope is not None:
                total[name] += weight * slope.square().sum(0).numpy()
    return total


def _gate(place: _Place, gates: Mapping[str, Tensor]) -> Tensor:
    """One tensor's gate, batch first, of the groups that have entries there."""
    import torch

    count = len(next(iter(gates.values())))
    full = torch.ones(count, place.shape[place.axis])
    for group, (entries, where) in place.entries.items():
        full = full.index_copy(1, torch.from_numpy(entries), gates[group][:, torch.from_numpy(where)])
    shape = [1] * len(place.shape)
    shape[0], shape[place.axis] = count, place.shape[place.axis]
    return full.reshape(shape)


def _draws(value: Tensor, generator: Any) -> list[tuple[float, Tensor]]:
    """What to differentiate for one output: its weight in the mean, and a sum over the batch."""
    import torch

    if value.ndim == 2 and value.shape[1] > 1:
        logs = torch.log_softmax(value, 1)
        if value.shape[1] <= _FEW_CLASSES:
            roots = (logs.detach() / 2).exp()
            return [(1.0, (roots[:, i] * logs[:, i]).sum()) for i in range(value.shape[1])]
        chosen = torch.multinomial(logs.detach().exp(), _DRAWS, replacement=True, generator=generator)
        return [(1 / _DRAWS, logs.gather(1, chosen[:, i : i + 1]).sum()) for i in range(_DRAWS)]
    scale = value.detach().square().mean().sqrt().clamp_min(1e-12) * value[0].numel() ** 0.5
    noises = [torch.randn(value.shape, generator=generator) for _ in range(_DRAWS)]
    return [(1 / _DRAWS, (value * noise).sum() / scale) for noise in noises]
