"""The search for the smaller model that meets a budget: what can go, what it costs and saves, and what to try next.

The loss of every group is measured on the network's outputs, the milliseconds of every operator on the device, and
`allocation.solve` chooses. Whole models are then measured, the sum of the table is set right by what was observed, and
the choice is made again: a handful of times, since conversion and measurement of a whole model cost far more than
everything else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from edgecompile import allocation, tables
from edgecompile.allocation import Operator, Space
from edgecompile.progress import Progress
from edgecompile.tables import OperatorKey
from edgecompile.tables.costs import output_shape
from edgecompile.techniques import blocks, importance, pruning, sensitivity
from edgecompile.techniques.channels import Channels
from edgecompile.techniques.widths import Widths
from edgecompile.types import Arrays, Model, Step

#: The milliseconds of single operators: measured ones, or a device profile's estimates.
Timing: TypeAlias = Callable[[Sequence[OperatorKey]], Mapping[OperatorKey, float]]

#: Samples that losses are measured on, and those that pruned layers are fitted on at the end.
LOSS_SAMPLES = 128
FIT_SAMPLES = 500
#: A model of more multiply-accumulates has fewer samples and points, so that exploring it takes minutes.
_SMALL_MACS = 100_000_000
#: Single operators measured at most; with more, every group gets fewer counts to choose from.
MOST_KEYS = 500
#: Operators whose constants tell sizes: their time follows the elements that they move.
_BY_ELEMENTS = frozenset({"Reshape", "Pad", "Slice", "Split", "Expand", "Gather", "Tile", "Resize"})
#: The budget's share that a model is aimed at: the verdict stands on the upper end of an interval.
AIM = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What every group's channels are worth, by the group's name; and what the network loses with each block."""

    by_group: Mapping[str, sensitivity.Curve]
    by_block: Mapping[str, float]


#: Gives what the function it gets makes, or what it made before.
Keep: TypeAlias = Callable[[Callable[[], Curves]], Curves]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What is known of a model before anything is timed."""

    model: Model
    channels: Channels
    curves: Mapping[str, sensitivity.Curve]
    blocks: Mapping[str, float]
    samples: int
    method: importance.Importance
    seed: int


def explore(
    model: Model,
    samples: Sequence[Arrays],
    *,
    macs: int,
    tile: int,
    method: importance.Importance = "reconstruction",
    seed: int = 0,
    progress: Progress,
    keep: Keep | None = None,
) -> Prospect:
    """Find the groups of channels and what each costs the network. Raises `UnsupportedModelError` where none can go.

    ``keep`` may remember the curves, which take most of the time: it gets a function that makes them.
    """
    found = pruning.open_model(model)
    share = min(1.0, math.sqrt(_SMALL_MACS / max(macs, 1)))
    fit = max(32, round(FIT_SAMPLES * share))

    def make() -> Curves:
        some = [samples[i] for i in range(min(len(samples), fit))]
        with progress.stage("Order channels"):
            orders = importance.orders(found, some[: pruning.ORDER_SAMPLES], method=method, seed=seed)
        points = _points(found, tile, few=share < 1)
        with progress.stage("Measure what channels are worth", sum(map(len, points.values()))) as advance:
            curves = sensitivity.curves(
                found,
                orders,
                points,
                some[: max(16, round(LOSS_SAMPLES * share))],
                seed=seed,
                progress=lambda done, total: advance(1),
            )
        residual = blocks.find(found.graph.model)
        with progress.stage("Measure what blocks are worth", len(residual)) as advance:
            few = some[: max(16, round(2 * LOSS_SAMPLES * share))]
            lost = blocks.losses(
                found, residual, few, seed=seed, near=share < 1, progress=lambda done, total: advance(1)
            )
        return Curves(by_group=curves, by_block=lost)

    curves = keep(make) if keep is not None else make()
    return Prospect(
        model=model,
        channels=found,
        curves=curves.by_group,
        blocks=curves.by_block,
        samples=fit,
        method=method,
        seed=seed,
    )


def _points(found: Channels, tile: int, *, few: bool) -> dict[str, tuple[int, ...]]:
    """Where each group's loss is measured: at a half, and at the first step down."""
    points: dict[str, tuple[int, ...]] = {}
    for group in found.groups:
        below = allocation.levels(group.size, group.step(tile))[:-1]
        if below:
            half = min(below, key=lambda n, size=group.size: (abs(n - size / 2), n))  # type: ignore[misc]
            points[group.name] = (half,) if few else tuple(dict.fromkeys((half, below[-1])))
    return points


# -------------------------------------------------------------------------------------------- the choices


def space(prospect: Prospect, timing: Timing, *, tile: int, most_keys: int = MOST_KEYS) -> Space:
    """What there is to choose from on one device, runtime and precision. Every group has at least its whole."""
    for most in range(allocation.MOST_LEVELS, 1, -1):
        levels = {
            group.name: allocation.levels(group.size, group.step(tile), most)
            if group.name in prospect.curves
            else (group.size,)
            for group in prospect.channels.groups
        }
        drafts = _drafts(prospect, levels)
        keys = list(dict.fromkeys(key for draft in drafts for key in draft.keys.values()))
        if len(keys) <= most_keys or most == 2:
            break
    ms = timing(keys)
    loss = {
        name: {n: prospect.curves[name].loss(n) if name in prospect.curves else 0.0 for n in counts}
        for name, counts in levels.items()
    }
    whole = Space(levels=levels, loss=loss, operators=tuple(draft.finished(levels, ms) for draft in drafts))
    return with_drops(whole, _operators(prospect), prospect.blocks)


def _operators(prospect: Prospect) -> dict[str, frozenset[str]]:
    """The names of the operators of each block that can be left out."""
    nodes = prospect.channels.graph.nodes
    return {
        block.name: frozenset(node.name for node in nodes if node.output[0] in block.nodes)
        for block in blocks.find(prospect.channels.graph.model)
        if block.name in prospect.blocks
    }


#: A block that can be dropped is a group of its own in the space, which keeps one of one, or none.
_DROP = "drop:"


def with_drops(space: Space, blocks: Mapping[str, frozenset[str]], losses: Mapping[str, float]) -> Space:
    """The space with blocks that can go as a whole: ``blocks`` are the names of their operators, by block.

    An operator takes no time where a block that it belongs to is gone; what groups inside lose or save does not matter
    then, and they stay whole.
    """
    operators = list(space.operators)
    for block, names in blocks.items():
        operators = [_without(op, _DROP + block) if op.name in names else op for op in operators]
    return Space(
        levels={**space.levels, **{_DROP + block: (0, 1) for block in blocks}},
        loss={**space.loss, **{_DROP + block: {0: losses[block], 1: 0.0} for block in blocks}},
        operators=tuple(operators),
    )


def _without(operator: Operator, group: str) -> Operator:
    times: dict[tuple[int, ...], float] = {}
    for counts, ms in operator.ms.items():
        times[*counts, 1] = ms
        times[*counts, 0] = 0.0
    return Operator(name=operator.name, groups=(*operator.groups, group), ms=times)


@dataclass(slots=True, kw_only=True)
class _Draft:
    """One operator with the keys to be timed, by the counts of its groups."""

    name: str
    groups: tuple[str, ...]
    whole: tuple[int, ...]
    keys: dict[tuple[int, ...], OperatorKey] = field(default_factory=dict)
    #: For operators that are timed whole only: how much of their elements each combination moves.
    shares: dict[tuple[int, ...], float] = field(default_factory=dict)

    def finished(self, levels: Mapping[str, Sequence[int]], ms: Mapping[OperatorKey, float]) -> Operator:
        times: dict[tuple[int, ...], float] = {}
        for counts in itertools.product(*(levels[group] for group in self.groups)):
            times[counts] = self._time(counts, ms)
        return Operator(name=self.name, groups=self.groups, ms=times)

    def _time(self, counts: tuple[int, ...], ms: Mapping[OperatorKey, float]) -> float:
        if counts in self.keys:
            return ms[self.keys[counts]]
        whole = ms[self.keys[self.whole]]
        if counts in self.shares:
            return whole * self.shares[counts]
        # Many groups meet here: what each saves alone is taken to multiply.
        factor = 1.0
        for place, count in enumerate(counts):
            alone = (*self.whole[:place], count, *self.whole[place + 1 :])
            factor *= self._time(alone, ms) / whole if alone != counts else 1.0
        return whole * factor


#: Operators whose groups have more combinations than this are timed one group at a time.
_MOST_COMBINATIONS = 256


def _drafts(prospect: Prospect, levels: Mapping[str, Sequence[int]]) -> list[_Draft]:
    graph, widths = prospect.channels.graph, Widths(prospect.channels)
    nodes = {node.name: node for node in graph.nodes if node.name}
    whole = tables.keys_of(graph.model)
    drafts: list[_Draft] = []
    for name, _ in whole:
        node = nodes.get(name)
        groups = widths.groups(*node.input, *node.output) if node is not None else ()
        groups = tuple(group for group in groups if len(levels[group]) > 1)
        drafts.append(_Draft(name=name, groups=groups, whole=tuple(levels[g][-1] for g in groups)))
    for counts in _variants(drafts, levels):
        narrow = dict(tables.keys_of(graph.model, widths.shapes(counts)))
        for draft, (name, key) in zip(drafts, whole, strict=True):
            mine = tuple(counts[group] for group in draft.groups)
            if mine == draft.whole:
                draft.keys[mine] = key
            elif key.op_type in _BY_ELEMENTS:
                moved, before = narrow[name], key
                draft.shares[mine] = _moved(moved) / max(_moved(before), 1)
            elif _is_timed(draft.groups, mine, levels):
                draft.keys[mine] = narrow[name]
    return drafts


def _is_timed(groups: Sequence[str], counts: Sequence[int], levels: Mapping[str, Sequence[int]]) -> bool:
    """Whether a combination is timed itself, and not put together of those in which one group alone changes."""
    changed = sum(count != levels[group][-1] for group, count in zip(groups, counts, strict=True))
    return changed <= 1 or math.prod(len(levels[group]) for group in groups) <= _MOST_COMBINATIONS


def _moved(key: OperatorKey) -> int:
    return math.prod(key.in_shape) + math.prod(output_shape(key))


def _variants(drafts: Sequence[_Draft], levels: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Few widths of the whole net in which every operator that needs it meets every combination of its groups.

    Operators that share no group are varied at the same time.
    """
    wanted: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    for groups in dict.fromkeys(draft.groups for draft in drafts):
        for counts in itertools.product(*(levels[group] for group in groups)):
            if _is_timed(groups, counts, levels):
                wanted.append((groups, counts))
    whole = {name: counts[-1] for name, counts in levels.items()}
    variants: list[dict[str, int]] = [{}]
    for groups, counts in wanted:
        pairs = dict(zip(groups, counts, strict=True))
        for variant in variants:
            if all(variant.get(group, count) == count for group, count in pairs.items()):
                variant.update(pairs)
                break
        else:
            variants.append(pairs)
    return [whole, *({**whole, **variant} for variant in variants)]


# ------------------------------------------------------------------------------------------ what to try next


@dataclass(slots=True, kw_only=True)
class Aim:
    """One way to run the model: what smaller ones would take, set right by what was observed, the whole net first."""

    space: Space
    observed: list[tuple[float, float]] = field(default_factory=list)
    tried: list[dict[str, int]] = field(default_factory=list)

    def note(self, counts: Mapping[str, int], observed_ms: float) -> None:
        """What a whole model took."""
        self.tried.append(dict(counts))
        self.observed.append((self.space.ms(counts), observed_ms))

    def predict(self, counts: Mapping[str, int]) -> float:
        """The milliseconds expected of a whole model."""
        slope, fixed = self._line()
        return fixed + slope * self.space.ms(counts)

    @property
    def whole_ms(self) -> float:
        """What the whole net took."""
        return self.observed[0][1]

    def next(self, budget_ms: float) -> dict[str, int] | None:
        """The counts to try next for a budget, or ``None`` when nothing new is left to try."""
        slope, fixed = self._line()
        counts = allocation.solve(self.space, max(0.0, (AIM * budget_ms - fixed) / slope))
        return counts if counts is not None and counts not in self.tried else None

    def reachable_ms(self) -> float:
        """The least that any choice is expected to take."""
        slope, fixed = self._line()
        return fixed + slope * self.space.least_ms()

    def _line(self) -> tuple[float, float]:
        """Observed milliseconds as a line over the table's sums: its slope, and what is fixed.

        One point gives a line through zero; of several, the latest two that are apart count.
        """
        if not self.observed:
            return 1.0, 0.0
        last_sum, last_ms = self.observed[-1]
        for other_sum, other_ms in reversed(self.observed[:-1]):
            if abs(other_sum - last_sum) > 0.02 * max(other_sum, last_sum):
                slope = (other_ms - last_ms) / (other_sum - last_sum)
                fixed = last_ms - slope * last_sum
                if slope > 0 and -0.5 * last_ms < fixed < last_ms:
                    return slope, fixed
                break
        return last_ms / max(last_sum, 1e-9), 0.0


def steps(prospect: Prospect, counts: Mapping[str, int]) -> tuple[Step, ...]:
    """The plan's steps that make the model with these counts."""
    sizes = {group.name: group.size for group in prospect.channels.groups}
    narrower = {name: count for name, count in counts.items() if count < sizes.get(name, 0)}
    gone = [name.removeprefix(_DROP) for name, count in counts.items() if name.startswith(_DROP) and not count]
    made: list[Step] = []
    if narrower:
        made.append(pruning.step(narrower, samples=prospect.samples, method=prospect.method, seed=prospect.seed))
    if gone:
        made.append(blocks.step(gone, samples=prospect.samples, seed=prospect.seed))
    return tuple(made)


#: Takes the name of a way to run the model and counts; gives the whole model's milliseconds, ``None`` without a file.
Attempt: TypeAlias = Callable[[str, Mapping[str, int]], float | None]

#: Whole models tried for one budget.
MOST_ATTEMPTS = 4
#: A model this close under its budget is not worth another attempt at a wider one.
_CLOSE = 0.9


def search(aims: dict[str, Aim], budget_ms: float, attempt: Attempt, *, most: int = MOST_ATTEMPTS) -> bool:
    """Try smaller models until one meets the budget closely; whether any met it.

    Each time that is tried which promises the least loss, and its table set right by what is observed. A way to run the
    model of which no file can be made is taken out of ``aims``.
    """
    least_loss = math.inf
    for _ in range(most):
        choices = [(name, counts) for name, aim in aims.items() if (counts := aim.next(budget_ms)) is not None]
        losses = [(aims[name].space.total_loss(counts), name, counts) for name, counts in choices]
        promising = [choice for choice in losses if choice[0] < least_loss]
        if not promising:
            break
        loss, name, counts = min(promising, key=lambda item: item[:2])
        observed = attempt(name, counts)
        if observed is None:
            del aims[name]
            continue
        aims[name].note(counts, observed)
        if observed <= budget_ms:
            least_loss = min(least_loss, loss)
            if observed >= _CLOSE * budget_ms:
                break
    return least_loss < math.inf
