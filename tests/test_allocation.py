"""The allocation of channels: it meets its budget, and is as good as trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgecompile import allocation
from edgecompile.allocation import Operator, Space


def _space(seed: int, groups: int = 4) -> Space:
    """A chain of layers with random costs, in which a layer's time depends on both its sides."""
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in range(groups)]
    levels = dict.fromkeys(names, (8, 16, 24, 32))
    scale = {name: float(rng.lognormal(0, 1.5)) for name in names}
    loss = {name: {n: scale[name] * (32 / n - 1) ** 1.5 for n in levels[name]} for name in names}
    operators = []
    for a, b in itertools.pairwise(names):
        k = float(rng.lognormal(0, 0.7))
        times = {(x, y): k * (0.1 + x * y / 1024) for x in levels[a] for y in levels[b]}
        operators.append(Operator(name=f"{a}{b}", groups=(a, b), ms=times))
    operators.append(Operator(name="first", groups=("g0",), ms={(n,): 0.2 * n / 32 for n in levels["g0"]}))
    operators.append(Operator(name="fixed", groups=(), ms={(): 0.3}))
    return Space(levels=levels, loss=loss, operators=tuple(operators))


def _exhaustive(space: Space, budget_ms: float) -> float:
    names = list(space.levels)
    every = (dict(zip(names, choice, strict=True)) for choice in itertools.product(*space.levels.values()))
    return min(space.total_loss(counts) for counts in every if space.ms(counts) <= budget_ms)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_the_allocation_is_close_to_the_best_of_all(seed: int, share: float) -> None:
    space = _space(seed)
    whole, least = space.ms(space.whole()), space.least_ms()
    budget = least + share * (whole - least)
    counts = allocation.solve(space, budget)
    assert counts is not None
    assert space.ms(counts) <= budget
    assert space.total_loss(counts) <= 1.1 * _exhaustive(space, budget) + 1e-9


def test_the_allocation_is_never_worse_than_uniform_or_greedy_ones() -> None:
    for seed in range(20):
        space = _space(seed, groups=7)
        budget = 0.5 * space.ms(space.whole())
        ours = allocation.solve(space, budget)
        assert ours is not None
        for other in (allocation.uniform(space, budget), allocation.greedy(space, budget)):
            assert other is None or space.total_loss(ours) <= space.total_loss(other) + 1e-9


def test_a_budget_that_all_meet_leaves_the_net_whole() -> None:
    space = _space(0)
    assert allocation.solve(space, 2 * space.ms(space.whole())) == space.whole()


def test_a_budget_that_none_meets_has_no_answer() -> None:
    space = _space(0)
    for method in (allocation.solve, allocation.uniform, allocation.greedy):
        assert method(space, 0.5 * space.least_ms()) is None


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [(16, 8, (8, 16)), (64, 8, (8, 16, 24, 32, 40, 48, 56, 64)), (12, 8, (8, 12)), (4, 8, (4,))],
)
def test_levels_lie_on_the_grid(size: int, tile: int, expected: tuple[int, ...]) -> None:
    assert allocation.levels(size, tile) == expected


def test_wide_groups_have_few_levels() -> None:
    found = allocation.levels(960, 8, most=5)
    assert len(found) == 5
    assert found[-1] == 960
    assert all(level % 8 == 0 for level in found)
    assert found[0] >= 120
