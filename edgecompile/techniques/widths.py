"""How wide every tensor of a graph is when each group of channels keeps so many of its units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from edgecompile.techniques.channels import Channels, Shape

#: What an axis is made of: entries that always stay, and for each group the entries that one unit brings.
_Axis: TypeAlias = "tuple[int, tuple[tuple[str, float], ...]]"


class Widths:
    """The shapes of all tensors and constants of a graph as a function of the groups' counts."""

    def __init__(self, channels: Channels) -> None:
        self._group_of = {unit: group for group in channels.groups for unit in group.units}
        self._axes: dict[str, tuple[_Axis, ...]] = {}
        for name, shape in channels.graph.shapes.items():
            axes = tuple(self._axis(size, labels) for size, labels in zip(shape, channels.removable(name), strict=True))
            if any(parts for _, parts in axes):
                self._axes[name] = axes

    def _axis(self, size: int, labels: object) -> _Axis:
        import numpy as np

        if not isinstance(labels, np.ndarray):
            return size, ()
        entries: dict[str, int] = {}
        for label in labels:
            group = self._group_of.get(int(label))
            if group is not None:
                entries[group.name] = entries.get(group.name, 0) + 1
        sizes = {group.name: group.size for group in self._group_of.values()}
        return size - sum(entries.values()), tuple((name, n / sizes[name]) for name, n in entries.items())

    def groups(self, *names: str) -> tuple[str, ...]:
        """The groups that any of these tensors depends on, in a fixed order."""
        found = {group for name in names for _, parts in self._axes.get(name, ()) for group, _ in parts}
        return tuple(sorted(found))

    def shapes(self, counts: Mapping[str, int]) -> dict[str, Shape]:
        """The shapes of what changes, with ``counts`` units left of each group named (all of those not named).

        Where a tensor holds a part of a group only, its share is rounded.
        """
        full = {group.name: group.size for group in self._group_of.values()}
        kept = {name: counts.get(name, size) for name, size in full.items()}
        return {
            name: tuple(max(1, round(fixed + sum(kept[g] * each for g, each in parts))) for fixed, parts in axes)
            for name, axes in self._axes.items()
        }
