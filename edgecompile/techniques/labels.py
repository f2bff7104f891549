"""Labels of channels: which entries of which axes of which tensors must be kept or removed together.

Every entry of an axis that can shrink carries a label; labels that must share a fate are united. Nothing is guessed
from sizes: where data moves, labels move with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

#: The labels of one axis, one an entry; ``None`` for an axis that never shrinks.
AxisLabels: TypeAlias = "npt.NDArray[np.int64] | None"
#: The labels of a tensor, axis by axis.
TensorLabels: TypeAlias = "tuple[AxisLabels, ...]"


class Labels:
    """A union-find over labels. A label that is pinned can never be removed, nor what it is united with."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: set[int] = set()
        #: Where a label was made: the number of the vector that it belongs to.
        self._vector: list[int] = []
        self._vectors: list[str] = []

    def fresh(self, count: int, origin: str) -> npt.NDArray[np.int64]:
        """New labels for one axis, made by ``origin`` (a node's name)."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._vector.extend([len(self._vectors)] * count)
        self._vectors.append(origin)
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, label: int) -> int:
        """The label that stands for all that ``label`` is united with."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The roots of a vector of labels, in its shape."""
        flat = np.fromiter((self.root(int(label)) for label in labels.ravel()), np.int64, labels.size)
        return flat.reshape(labels.shape)

    def unite(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> None:
        """Unite two vectors entry by entry; one of length 1 goes with every entry of the other."""
        for x, y in np.nditer(np.broadcast_arrays(a, b)) if a.size and b.size else ():
            first, second = self.root(int(x)), self.root(int(y))
            if first != second:
                low, high = min(first, second), max(first, second)
                self._parent[high] = low

    def pin(self, labels: AxisLabels) -> None:
        """Keep these entries for ever."""
        if labels is not None:
            self._pinned.update(int(label) for label in labels.ravel())

    def units(self) -> dict[int, tuple[str, ...]]:
        """What can be removed: root -> the origins of all that goes with it, sorted, as often as each is hit."""
        origins: dict[int, list[int]] = defaultdict(list)
        for label, vector in enumerate(self._vector):
            origins[self.root(label)].append(vector)
        for label in self._pinned:
            origins.pop(self.root(label), None)
        return {
            root: tuple(f"{number}:{self._vectors[number]}" for number in sorted(numbers))
            for root, numbers in origins.items()
        }


def pin_all(labels: Labels, tensors: Iterable[TensorLabels], axes: Sequence[int] | None = None) -> None:
    """Pin whole tensors, or some of their axes."""
    for tensor in tensors:
        for axis, vector in enumerate(tensor):
            if axes is None or axis in axes:
                labels.pin(vector)
