"""Every net of the zoo, pruned on the tile grid: it runs, becomes smaller, and its files compute what it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgecompile import allocation, execute, graph, lower, parity
from edgecompile import model as models
from edgecompile.errors import UnsupportedModelError
from edgecompile.progress import Silent
from edgecompile.techniques import pruning
from edgecompile.types import Arrays, Model, Plan, RuntimeName
from tests import zoo
from tests.zoo import exported

#: What cannot be pruned says so: the steps of an LSTM mix all channels with slices of one matrix.
_REFUSED = frozenset({"lstm"})
#: A padded shortcut, grouped convolutions with shuffles, attention: in the default run.
_QUICK = frozenset({"resnet20", "shufflenet_v1_g3", "vit_tiny"})
#: The small nets' groups are small: half a runtime's usual tile of 8.
_TILE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pruned:
    whole: Model
    smaller: Model
    counts: dict[str, int]
    samples: list[Arrays]


def _samples(model: Model, count: int) -> list[Arrays]:
    rng = np.random.default_rng(5)
    return [{s.name: rng.normal(0, 1, s.shape).astype(s.dtype) for s in model.inputs} for _ in range(count)]


def _pruned(name: str, folder: Path) -> _Pruned:
    """The net with about half of each group's channels, on the grid, the layers fitted anew."""
    whole = models.load(str(exported.small(name)), folder / "whole")
    counts = {}
    for group in pruning.open_model(whole).groups:
        levels = allocation.levels(group.size, group.step(_TILE))
        counts[group.name] = min(levels, key=lambda n, size=group.size: (abs(n - size / 2), n))  # type: ignore[misc]
    samples = _samples(whole, 12)
    folder = folder / "smaller"
    folder.mkdir()
    step = pruning.step(counts, samples=len(samples))
    smaller = pruning.apply(whole, whole, step, samples, folder, Silent())
    return _Pruned(whole=whole, smaller=smaller, counts=counts, samples=samples)


def _macs(model: Model) -> int:
    return sum(cost.macs for cost in graph.operators(model.path))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name in zoo.NAMES]
)
def test_a_pruned_net_is_smaller_on_the_grid_and_its_files_are_right(name: str, tmp_path: Path) -> None:
    if name in _REFUSED:
        with pytest.raises(UnsupportedModelError, match="cannot be pruned"):
            _pruned(name, tmp_path)
        return
    made = _pruned(name, tmp_path)
    fewer = [g for g in pruning.open_model(made.whole).groups if made.counts[g.name] < g.size]
    assert fewer
    assert all(made.counts[group.name] * group.width % _TILE == 0 for group in fewer)
    assert made.smaller.parameters < made.whole.parameters
    assert _macs(made.smaller) < _macs(made.whole)
    assert made.smaller.path.stat().st_size < made.whole.path.stat().st_size
    assert made.smaller.inputs == made.whole.inputs
    onnx.checker.check_model(onnx.load(str(made.smaller.path)), full_check=True)
    original = execute.original(made.smaller)
    outputs = original(made.samples[0])
    assert {spec.name: spec.shape for spec in made.whole.outputs} == {k: v.shape for k, v in outputs.items()}
    runtimes: tuple[RuntimeName, ...] = ("tflite", "onnxruntime")
    for runtime in runtimes:
        plan = Plan(runtime=runtime, precision="fp32")
        folder = tmp_path / runtime
        folder.mkdir()
        artifact = lower.RUNTIMES[runtime].lower(made.smaller, plan, made.samples, folder, path=_own(runtime))
        gate = parity.float_gate(execute.artifact(artifact), original, made.samples[:4])
        assert gate.passed, (runtime, parity.describe(gate))


def _own(runtime: RuntimeName) -> str:
    return lower.RUNTIMES[runtime].paths[0]
