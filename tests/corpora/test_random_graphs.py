"""Random valid graphs compute what ONNX Runtime says, or are refused by name; the first that does not is kept.

The smallest failing graph that hypothesis finds lies in the temporary folder as ``edgecompile-failing-graph.onnx``.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import onnx
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from edgecompile.errors import UnsupportedModelError
from tests.corpora.harness import TOLERANCE, Values, conditioned, lowered, reference, worst
from tests.corpora.random_graphs import DoesNotFit, grow

T = TypeVar("T")
#: A net of these operators that is refused is sent to another converter: it must stay an exception.
_LARGEST_SHARE_REFUSED = 0.08


class Drawing:
    """Decisions that hypothesis makes, and can make simpler."""

    def __init__(self, draw: Callable[[st.SearchStrategy[T]], T]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def pick(self, options: Sequence[T]) -> T:
        return self._draw(st.sampled_from(options))


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[T]], T]) -> tuple[onnx.ModelProto, Values]:
    try:
        return grow(Drawing(draw))
    except DoesNotFit:
        assume(False)
        raise AssertionError("not reached") from None


def _fault(model: onnx.ModelProto, inputs: Values, layout: Literal["nhwc", "nchw"]) -> str | None:
    """What is wrong with the lowered file; ``refused`` passes as an answer of its own."""
    expected = reference(model, inputs)
    try:
        found = lowered(model, inputs, input_layout=layout)
    except UnsupportedModelError as refusal:
        return "refused" if refusal.operators else f"refused without naming an operator: {refusal}"
    except Exception as exc:  # whatever else comes out is a fault of the lowering
        return f"{type(exc).__name__}: {exc}"
    difference, output = worst(found, expected)
    if difference < TOLERANCE or not conditioned(model, inputs):
        return None
    return f"output {output} is off by {difference:.1e} of its range"


def _hold_against_onnx_runtime(examples: int) -> None:
    kept = Path(tempfile.gettempdir()) / "edgecompile-failing-graph.onnx"
    verdicts: Counter[str] = Counter()

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, print_blob=True,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(graphs(), st.sampled_from(["nhwc", "nhwc", "nchw"]))
    def check(case: tuple[onnx.ModelProto, Values], layout: Literal["nhwc", "nchw"]) -> None:
        model, inputs = case
        fault = _fault(model, inputs, layout)
        verdicts["refused" if fault == "refused" else "ran"] += 1
        if fault and fault != "refused":
            onnx.save(model, str(kept))
            pytest.fail(f"{fault}; input layout {layout}; the graph is kept as {kept}")

    check()
    assert verdicts.total() >= examples
    assert verdicts["refused"] <= _LARGEST_SHARE_REFUSED * verdicts.total()


def test_random_graphs_are_lowered_right() -> None:
    _hold_against_onnx_runtime(100)


class Seeded:
    """Decisions of a seeded generator: a run of thousands in which a graph's number is all that it depends on.

    Growing looks at values that ONNX Runtime computes; one that differs in its last bit between two runs is enough for
    hypothesis to call the strategy flaky.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


@pytest.mark.slow
def test_many_random_graphs_are_lowered_right() -> None:
    kept = Path(tempfile.gettempdir()) / "edgecompile-failing-graph.onnx"
    verdicts: Counter[str] = Counter()
    for seed in itertools.count():
        if verdicts.total() >= 2000:
            break
        chooser = Seeded(seed)
        try:
            model, inputs = grow(chooser)
        except DoesNotFit:
            continue
        fault = _fault(model, inputs, chooser.pick(["nhwc", "nhwc", "nchw"]))
        verdicts["refused" if fault == "refused" else "ran"] += 1
        if fault and fault != "refused":
            onnx.save(model, str(kept))
            pytest.fail(f"{fault}; seed {seed}; the graph is kept as {kept}")
    assert verdicts["refused"] <= _LARGEST_SHARE_REFUSED * verdicts.total()
    print(dict(verdicts))
