"""The search for a smaller model: what it times, what it tries, and how it learns from what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import shrink, tables
from edgecompile.allocation import Operator, Space
from edgecompile.progress import Silent
from edgecompile.tables import OperatorKey
from edgecompile.tables.costs import cost_of
from edgecompile.techniques import blocks, prune, pruning
from edgecompile.types import Model
from tests.corpora import harness
from tests.lowering import Net
from tests.zoo import exported


def _model(name: str) -> Model:
    path = exported.small(name)
    return Model(
        name=name, path=path, original_path=path, inputs=(), outputs=(), source=name, kind="onnx", sha256=name,
        parameters=prune.parameters(onnx.load(str(path))),
    )  # fmt: skip


def _samples(name: str, count: int = 16) -> list[dict[str, np.ndarray]]:
    model = onnx.load(str(exported.small(name)))
    return [dict(harness.noise(model, seed=i)) for i in range(count)]


def _by_macs(keys: Sequence[OperatorKey]) -> Mapping[OperatorKey, float]:
    """A device that takes a millisecond for a million multiply-accumulates, and one for a million elements."""
    costs = {key: cost_of(key) for key in keys}
    return {key: (c.macs + c.input_elements + c.output_elements) / 1e6 for key, c in costs.items()}


def _prospect(name: str) -> shrink.Prospect:
    return shrink.explore(_model(name), _samples(name), macs=10**6, tile=2, progress=Silent())


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vit_tiny"])
def test_the_table_of_a_net_without_a_block_is_that_of_the_graph_without_it(name: str) -> None:
    prospect = _prospect(name)
    space = shrink.space(prospect, _by_macs, tile=2)
    drops = [group for group in space.levels if group.startswith("drop:")]
    assert drops
    for drop in drops:
        counts = {**space.whole(), drop: 0}
        (step,) = shrink.steps(prospect, counts)
        assert step.technique == "drop"
        rest, _ = blocks.remove(prospect.channels.graph.model, blocks.names_of(step))
        truth = sum(_by_macs([key])[key] for _, key in tables.keys_of(rest))
        assert space.ms(counts) == pytest.approx(truth, rel=0.1)
        assert space.total_loss(counts) == prospect.blocks[drop.removeprefix("drop:")] > 0


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v2_x1", "vit_tiny"])
def test_the_table_of_a_choice_is_that_of_the_pruned_graph(name: str) -> None:
    """What operators would cost is worked out from shapes; pruning for real must give the same operators."""
    prospect = _prospect(name)
    space = shrink.space(prospect, _by_macs, tile=2)
    for place in (0, len(space.levels) // 2):
        counts = {n: levels[min(place, len(levels) - 1) // 2] for n, levels in space.levels.items()}
        counts |= {name: 1 for name in counts if name.startswith("drop:")}
        kept = {g.name: list(range(counts[g.name])) for g in prospect.channels.groups}
        pruned = prune.remove(prospect.channels, kept)
        keys = [key for _, key in tables.keys_of(pruned)]
        truth = sum(_by_macs(keys)[key] for key in keys)
        assert space.ms(counts) == pytest.approx(truth, rel=0.1)


def test_the_loss_of_less_is_more() -> None:
    prospect = _prospect("resnet20")
    space = shrink.space(prospect, _by_macs, tile=2)
    for name, losses in space.loss.items():
        values = [losses[count] for count in space.levels[name]]
        assert values == sorted(values, reverse=True)
        assert values[-1] == 0


def test_few_operators_are_timed_when_there_is_much_to_choose() -> None:
    prospect = _prospect("mobilenet_v2")
    timed: list[int] = []

    def timing(keys: Sequence[OperatorKey]) -> Mapping[OperatorKey, float]:
        timed.append(len(keys))
        return _by_macs(keys)

    shrink.space(prospect, timing, tile=2)
    shrink.space(prospect, timing, tile=2, most_keys=60)
    assert timed[1] <= max(60, timed[0] // 2)


def _space() -> Space:
    """Two groups in a row; the second matters less."""
    counts = (8, 16, 24, 32)
    loss = {"a": {n: 2.0 * (32 - n) for n in counts}, "b": {n: 1.0 * (32 - n) for n in counts}}
    times = {(x, y): x * y / 1024 for x in counts for y in counts}
    return Space(
        levels={"a": counts, "b": counts}, loss=loss, operators=(Operator(name="op", groups=("a", "b"), ms=times),)
    )


def _aims(whole_ms: float) -> dict[str, shrink.Aim]:
    aim = shrink.Aim(space=_space())
    aim.note(_space().whole(), whole_ms)
    return {"tflite-fp32": aim}


def test_the_search_learns_fixed_costs_that_the_table_lacks() -> None:
    """The device takes twice the table's sum and a millisecond more: the first try misses, the next one meets."""
    tried: list[float] = []

    def device(name: str, counts: Mapping[str, int]) -> float:
        tried.append(1.0 + 2.0 * _space().ms(counts))
        return tried[-1]

    assert shrink.search(_aims(3.0), 1.9, device)
    assert tried[0] > 1.9
    assert min(tried) <= 1.9
    assert len(tried) <= 3


def test_nothing_is_tried_for_a_budget_out_of_reach() -> None:
    def device(name: str, counts: Mapping[str, int]) -> float:
        raise AssertionError("nothing to try")

    assert not shrink.search(_aims(1.0), 0.01, device)


def test_a_way_that_gives_no_file_is_left_alone() -> None:
    aims = {**_aims(1.0), "onnxruntime-fp32": _aims(1.1)["tflite-fp32"]}
    seen: list[str] = []

    def device(name: str, counts: Mapping[str, int]) -> float | None:
        seen.append(name)
        return None if len(seen) == 1 else _space().ms(counts)

    assert shrink.search(aims, 0.6, device)
    assert len(aims) == 1
    assert seen[0] not in seen[1:]


def test_at_most_four_whole_models_are_tried() -> None:
    tried: list[Mapping[str, int]] = []

    def device(name: str, counts: Mapping[str, int]) -> float:
        tried.append(counts)
        return 5.0 - 0.01 * len(tried)

    assert not shrink.search(_aims(5.0), 0.7, device)
    assert len(tried) <= shrink.MOST_ATTEMPTS


def test_a_choice_becomes_a_step_that_names_what_stays(tmp_path: Path) -> None:
    prospect = _prospect("resnet20")
    sizes = {group.name: group.size for group in prospect.channels.groups}
    first = next(iter(sizes))
    (step,) = shrink.steps(prospect, {**sizes, first: 2})
    assert pruning.counts_of(step) == {first: 2}
    assert shrink.steps(prospect, sizes) == ()


def test_a_model_without_removable_channels_is_refused_by_name() -> None:
    net = Net()
    x = net.input("x", 1, 3, 8, 8)
    model = net.save(Path(exported.small("resnet20")).parent / "single.onnx", net.conv(x, 3, 4))
    with pytest.raises(shrink.pruning.UnsupportedModelError, match="no channel can be removed"):
        pruning.open_model(model)
