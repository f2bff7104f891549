"""Seeded, stratified, disjoint parts: identical samples always land in the same part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompile.calibration.pool import Pool


def ordered_groups(pool: Pool, seed: int) -> list[list[int]]:
    """Groups of identical samples in a seeded order of which every stretch has about the pool's class balance.

    Each class is shuffled and spread evenly over [0, 1) from a random start; sorting by that position interleaves
    the classes (systematic sampling, Cochran 1977, chapter 8), so any window of the order is stratified.
    """
    generator = np.random.default_rng(seed)
    by_class: dict[int, list[list[int]]] = {}
    for group in _identical(pool):
        by_class.setdefault(pool.labels[group[0]] if pool.labels is not None else 0, []).append(group)
    placed: list[tuple[float, int, list[int]]] = []
    for label in sorted(by_class):
        groups = by_class[label]
        start = generator.random()
        for rank, position in enumerate(generator.permutation(len(groups))):
            placed.append(((rank + start) / len(groups), label, groups[position]))
    return [group for _, _, group in sorted(placed, key=lambda item: item[:2])]


def _identical(pool: Pool) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for index, content in enumerate(pool.hashes):
        if index not in pool.exclude:
            groups.setdefault(content, []).append(index)
    return list(groups.values())


def take(groups: Sequence[list[int]], count: int) -> tuple[list[list[int]], list[list[int]]]:
    """(The first groups with at least ``count`` samples together, the groups that are left)."""
    taken = 0
    for position, group in enumerate(groups):
        if taken >= count:
            return list(groups[:position]), list(groups[position:])
        taken += len(group)
    return list(groups), []


def flat(groups: Sequence[list[int]]) -> tuple[int, ...]:
    """The samples of all groups."""
    return tuple(index for group in groups for index in group)
