"""Corpus 2: nothing that the ``onnx`` package's node tests ask for is computed wrongly."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest

from tests.corpora.node_tests import cases, outcome

#: What passed when this was last raised; refusing more than before is a step back.
_PASSED = 671


@pytest.mark.parametrize("input_layout", ["nhwc", "nchw"])
def test_node_tests_are_passed_or_refused_by_name(input_layout: Literal["nhwc", "nchw"]) -> None:
    outcomes = {case.name: outcome(case, input_layout) for case in cases()}
    wrong = {name: reason for name, (verdict, reason) in outcomes.items() if verdict == "wrong"}
    assert not wrong
    count = Counter(verdict for verdict, _ in outcomes.values())
    assert count["passed"] >= _PASSED, f"{count['refused']} are refused"
