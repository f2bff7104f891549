from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecompile import search
from edgecompile.types import Accuracy, Artifact, Budget, BuildRequest, Candidate, Measurement, Metric, Plan, Precision

REQUEST = BuildRequest(model="m.onnx", target="x86", out=Path("out"))
X86 = (("tflite", "int8"), ("tflite", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))


def candidate(
    name: Precision,
    ms: float,
    *,
    high: float | None = None,
    drop: float | None = 0.0,
    metric: Metric = "top-1",
    value: float = 90.0,
    size: int = 1000,
    provenance: str = "measured",
    seed: int = 0,
) -> Candidate:
    return Candidate(
        plan=Plan(runtime="tflite", precision=name, seed=seed),
        artifact=Artifact(
            runtime="tflite", precision=name, file=Path("x.tflite"), inputs=(), outputs=(), path_taken="direct",
            size_bytes=size, sha256=f"{name}{ms}",
        ),
        measurement=Measurement(
            provenance=provenance,  # type: ignore[arg-type]
            device="here", runtime="tflite", runtime_version="1", threads=1, percentile=50, value_ms=ms,
            ci_low_ms=ms * 0.98, ci_high_ms=high or ms * 1.02, median_ms=ms, p90_ms=ms, p95_ms=ms, p99_ms=ms,
        ),
        accuracy=Accuracy(metric=metric, value=value, ci_low=0, ci_high=100, samples=100, drop=drop),
    )  # fmt: skip


def propose(request: BuildRequest = REQUEST, *, has_data: bool = True, saturates: bool = False) -> list[str]:
    plans = search.propose(request, X86, has_data=has_data, saturates=lambda r: saturates and r == "onnxruntime")
    return [plan.label for plan in plans]


def test_float_plans_come_first_in_the_profiles_order() -> None:
    assert propose() == ["tflite-fp32", "onnxruntime-fp32", "tflite-int8", "onnxruntime-int8"]


def test_int8_needs_data() -> None:
    assert propose(has_data=False) == ["tflite-fp32", "onnxruntime-fp32"]


def test_a_saturating_cpu_gets_a_seven_bit_variant() -> None:
    assert propose(saturates=True)[-2:] == ["onnxruntime-int8", "onnxruntime-int8-rr"]


def test_restrictions_hold() -> None:
    request = BuildRequest(
        model="m", target="x86", out=Path("o"), runtimes=("tflite",), precisions=("int8",), io_dtype="int8"
    )
    plans = search.propose(request, X86, has_data=True, saturates=lambda _: True)
    assert [(p.label, p.io_dtype) for p in plans] == [("tflite-int8", "int8"), ("tflite-int8-rr", "int8")]


def test_the_layout_of_inputs_is_that_of_the_tflite_file_only() -> None:
    request = BuildRequest(model="m", target="x86", out=Path("o"), input_layout="nchw")
    plans = search.propose(request, X86, has_data=True, saturates=lambda _: False)
    assert {(p.runtime, p.input_layout) for p in plans} == {("tflite", "nchw"), ("onnxruntime", "nhwc")}


def test_the_least_loss_within_the_budget_wins() -> None:
    slow, good, fast = candidate("fp32", 12), candidate("fp16", 9, drop=0.3), candidate("int8", 3, drop=1.0)
    choice = search.choose([slow, good, fast], Budget(latency_ms=10))
    assert choice.candidate is good
    assert choice.status == "met"
    assert choice.verdicts == ("20 % too slow", "met (measured)", "met (measured)")
    assert "measured on here" in choice.text


def test_a_measurement_of_a_slowed_device_counts_only_where_that_is_accepted() -> None:
    one = candidate("fp32", 5)
    assert one.measurement is not None
    slowed = replace(one, measurement=replace(one.measurement, trusted=False, warnings=("it was hot",)))
    choice = search.choose([slowed], Budget(latency_ms=10))
    assert choice.status == "not met"
    assert choice.verdicts == ("not trusted",)
    assert "the device was not itself (it was hot)" in choice.text
    assert not any("fast enough but" in hint for hint in search.choose([slowed, slowed], Budget(latency_ms=10)).help)
    assert any("--accept-throttled" in hint for hint in choice.help)
    assert search.violations(slowed, Budget(latency_ms=10)) == (), "nothing is pruned because of it"
    accepted = search.choose([slowed], Budget(latency_ms=10, accept_throttled=True))
    assert accepted.status == "met"
    assert accepted.verdicts == ("met (measured, not trusted)",)
    assert "--accept-throttled" in accepted.text
    trusted = candidate("int8", 9, drop=0.5)
    assert search.choose([slowed, trusted], Budget(latency_ms=10)).candidate is trusted


def test_what_was_imported_is_not_met() -> None:
    choice = search.choose([candidate("fp32", 5, provenance="imported")], Budget(latency_ms=10))
    assert choice.status == "predicted"


def test_ties_go_to_the_faster_and_a_gain_is_no_gain() -> None:
    a, b = candidate("fp32", 5, drop=0.0), candidate("int8", 4, drop=0.0)
    assert search.choose([a, b], Budget(latency_ms=10)).candidate is b
    c = candidate("fp16", 8, drop=-0.5)
    small = candidate("fp16", 4, drop=0.0, size=500)
    assert search.choose([b, small], Budget(latency_ms=10)).candidate is small
    assert search.choose([c, b], Budget(latency_ms=10)).candidate is b


def test_the_interval_must_lie_under_the_budget() -> None:
    noisy = candidate("fp32", 9.9, high=10.4)
    choice = search.choose([noisy], Budget(latency_ms=10))
    assert choice.status == "not met"
    assert "not proven" in choice.verdicts[0]


def test_an_estimate_never_meets_a_budget() -> None:
    choice = search.choose([candidate("fp32", 5, provenance="estimated")], Budget(latency_ms=10))
    assert choice.status == "predicted"
    assert choice.verdicts == ("predicted to meet",)
    assert "not measured" in choice.text
    assert "meets the budget" not in choice.text


@pytest.mark.parametrize(
    ("budget", "word"),
    [
        (Budget(latency_ms=10, max_drop=0.5), "top-1 drop 1.00 > 0.5"),
        (Budget(latency_ms=10, max_size_bytes=500), "0.00 MB > 0.0005 MB"),
    ],
)
def test_the_other_limits(budget: Budget, word: str) -> None:
    choice = search.choose([candidate("int8", 5, drop=1.0)], budget)
    assert choice.status == "not met"
    assert choice.verdicts == (word,)


def test_sqnr_beyond_sixty_decibels_counts_the_same() -> None:
    a = candidate("fp32", 9, metric="SQNR", value=130, drop=None)
    b = candidate("fp16", 4, metric="SQNR", value=66, drop=None)
    c = candidate("int8", 2, metric="SQNR", value=30, drop=None)
    assert search.choose([a, b, c], Budget(latency_ms=10)).candidate is b
    assert search.choose([c], Budget(latency_ms=10, min_sqnr_db=35)).verdicts == ("SQNR 30.0 dB < 35 dB",)


def test_nothing_meets_the_budget() -> None:
    slow = candidate("fp32", 30)
    faster = candidate("int8", 20, high=20.04)
    choice = search.choose([slow, faster], Budget(latency_ms=10))
    assert choice.candidate is faster
    assert choice.status == "not met"
    assert "100 % too slow" in choice.text
    assert any("20.1 ms" in hint for hint in choice.help)


def test_failed_candidates_are_passed_over_and_told() -> None:
    failed = Candidate(plan=Plan(runtime="tflite", precision="fp32"), failure="no such operator")
    good = candidate("int8", 5)
    choice = search.choose([failed, good], Budget(latency_ms=10))
    assert choice.candidate is good
    assert choice.verdicts[0] == "failed: no such operator"
    with pytest.raises(ValueError, match="no candidate"):
        search.choose([failed], Budget(latency_ms=10))


def test_a_frontier_is_what_no_other_beats_in_both() -> None:
    points = [(3.0, 0.0), (1.0, 2.0), (2.0, 2.0), (2.0, 1.0), (4.0, 0.0), (1.0, 2.5)]
    assert search.pareto(points) == (1, 3, 0)
    assert search.pareto([]) == ()
