"""How many channels each group keeps, so that the sum of measured operators meets a budget at the least loss.

Every operator's milliseconds depend on the groups at its inputs and outputs, so the cost of a group depends on its
neighbours and no knapsack over groups is exact. The search is Lagrangian instead: for a price of a millisecond, groups
choose in turn what costs least in loss and time, given their neighbours, until none changes; the price is bisected
until the budget is met, and what is then left of the budget is spent greedily (Everett, 1963, on the multipliers;
NetAdapt, Yang et al., 2018, and HALP, Shen et al., 2021, for measured tables).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Counts tried for one group at most.
MOST_LEVELS = 8
_BISECTIONS = 40
_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator's milliseconds: ``ms`` by the counts of ``groups``, in their order."""

    name: str
    groups: tuple[str, ...]
    ms: Mapping[tuple[int, ...], float]

    def at(self, counts: Mapping[str, int]) -> float:
        return self.ms[tuple(counts[group] for group in self.groups)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What there is to choose from: ``levels`` are each group's counts, rising, the last one the whole group.

    ``loss`` is the network's loss when only that group shrinks to that count, 0 for the whole group; losses add up.
    """

    levels: Mapping[str, tuple[int, ...]]
    loss: Mapping[str, Mapping[int, float]]
    operators: tuple[Operator, ...]

    def whole(self) -> dict[str, int]:
        """Every group complete."""
        return {name: levels[-1] for name, levels in self.levels.items()}

    def ms(self, counts: Mapping[str, int]) -> float:
        """The sum of the operators."""
        return math.fsum(operator.at(counts) for operator in self.operators)

    def total_loss(self, counts: Mapping[str, int]) -> float:
        return math.fsum(self.loss[name][count] for name, count in counts.items())

    def least_ms(self) -> float:
        """The sum of the operators with every group at its smallest."""
        return self.ms({name: levels[0] for name, levels in self.levels.items()})


def solve(space: Space, budget_ms: float) -> dict[str, int] | None:
    """The counts of least loss whose operators sum up to at most ``budget_ms``; ``None`` where there are none."""
    if space.ms(space.whole()) <= budget_ms:
        return space.whole()
    if space.least_ms() > budget_ms:
        return None
    by_group = _by_group(space)
    low, high = 0.0, _highest_price(space)
    best: dict[str, int] | None = None
    for _ in range(_BISECTIONS):
        price = math.sqrt(low * high) if low > 0 else high / 2**10 if best is None else high / 4
        counts = _settle(space, by_group, price, best or space.whole())
        if space.ms(counts) <= budget_ms:
            high = price
            if best is None or space.total_loss(counts) < space.total_loss(best):
                best = counts
        else:
            low = price
    if best is None:
        best = {name: levels[0] for name, levels in space.levels.items()}
    return _improve(space, by_group, best, budget_ms)


def uniform(space: Space, budget_ms: float) -> dict[str, int] | None:
    """The widest of the variants in which every group keeps the same share: what the search must beat."""
    for share in sorted({n / levels[-1] for levels in space.levels.values() for n in levels if n}, reverse=True):
        counts = {
            name: _nearest(levels, share * levels[-1]) if levels[0] else levels[-1]  # a block stays
            for name, levels in space.levels.items()
        }
        if space.ms(counts) <= budget_ms:
            return counts
    return None


def greedy(space: Space, budget_ms: float) -> dict[str, int] | None:
    """One level down at a time, each where a millisecond costs least loss (as NetAdapt does)."""
    by_group = _by_group(space)
    counts = space.whole()
    while space.ms(counts) > budget_ms:
        steps = []
        for name, levels in space.levels.items():
            place = levels.index(counts[name])
            if place == 0:
                continue
            lower = {**counts, name: levels[place - 1]}
            saved = _local(by_group[name], counts) - _local(by_group[name], lower)
            cost = space.loss[name][lower[name]] - space.loss[name][counts[name]]
            steps.append((cost / max(saved, 1e-12), name, lower[name]))
        if not steps:
            return None
        _, name, count = min(steps)
        counts[name] = count
    return counts


def _nearest(levels: Sequence[int], wanted: float) -> int:
    return min(levels, key=lambda level: (abs(level - wanted), level))


def _by_group(space: Space) -> dict[str, list[Operator]]:
    found: dict[str, list[Operator]] = {name: [] for name in space.levels}
    for operator in space.operators:
        for group in operator.groups:
            found[group].append(operator)
    return found


def _local(operators: Iterable[Operator], counts: Mapping[str, int]) -> float:
    return math.fsum(operator.at(counts) for operator in operators)


def _highest_price(space: Space) -> float:
    """So dear a millisecond that every group would shrink as far as that saves anything."""
    most = sum(max(losses.values()) for losses in space.loss.values())
    return 1e4 * max(most, 1e-9) / max(space.ms(space.whole()), 1e-9)


def _settle(
    space: Space, by_group: Mapping[str, Sequence[Operator]], price: float, start: Mapping[str, int]
) -> dict[str, int]:
    """Groups choose in turn until none changes; from the whole net and from ``start``, the cheaper outcome."""
    outcomes = [_descend(space, by_group, price, dict(s)) for s in (space.whole(), start)]
    return min(outcomes, key=lambda counts: space.total_loss(counts) + price * space.ms(counts))


def _descend(
    space: Space, by_group: Mapping[str, Sequence[Operator]], price: float, counts: dict[str, int]
) -> dict[str, int]:
    for _ in range(_ROUNDS):
        changed = False
        for name, levels in space.levels.items():
            best = min(
                levels,
                key=lambda n, name=name: (  # type: ignore[misc]
                    space.loss[name][n] + price * _local(by_group[name], {**counts, name: n})
                ),
            )
            changed |= best != counts[name]
            counts[name] = best
        if not changed:
            break
    return counts


def _improve(
    space: Space, by_group: Mapping[str, Sequence[Operator]], counts: dict[str, int], budget_ms: float
) -> dict[str, int]:
    """Spend what is left: single groups up, and pairs of one up and another down, while the loss falls."""
    while True:
        now, moves = space.ms(counts), []
        singles = [
            (name, n, space.loss[name][n] - space.loss[name][counts[name]])
            for name, levels in space.levels.items()
            for n in levels
            if n != counts[name]
        ]
        gains = [single for single in singles if single[2] < 0]
        for name, n, change in gains:
            moves.append((change, {name: n}))
        for (name, n, gain), (other, m, cost) in itertools.product(gains, singles):
            if other != name and gain + cost < -1e-12:
                moves.append((gain + cost, {name: n, other: m}))
        for _, move in sorted(moves, key=lambda item: item[0]):
            changed = {**counts, **move}
            touched = {id(op): op for name in move for op in by_group[name]}.values()
            if now - _local(touched, counts) + _local(touched, changed) <= budget_ms:
                counts = changed
                break
        else:
            return counts


def levels(size: int, tile: int, most: int = MOST_LEVELS) -> tuple[int, ...]:
    """Counts worth trying for a group: on the tile grid, at most ``most`` of them, evenly spread by ratio.

    The smallest is an eighth of the group, at least one tile.
    """
    grid = [n for n in range(tile, size, tile) if n * 8 >= size] + [size]
    if len(grid) <= most:
        return tuple(grid)
    wanted = np.geomspace(grid[0], grid[-1], most)
    return tuple(sorted({min(grid, key=lambda n, w=w: (abs(n - w), n)) for w in wanted}))  # type: ignore[misc]
