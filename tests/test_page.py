"""The page in a bundle: complete, escaped, self-contained, and right in what it draws."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from edgecompile import page, report
from edgecompile.bundle import BundleFile, DataFacts, Golden, Manifest, ModelFacts, TriedCandidate, Verdict
from edgecompile.types import Accuracy, Budget, Measurement, Plan, Port, Precision, TensorSpec

PLANS: dict[Precision, Plan] = {
    precision: Plan(runtime="tflite", precision=precision, calibration_samples=200 if precision == "int8" else 0)
    for precision in ("fp32", "int8")
}


def measurement(value_ms: float, **changes: object) -> Measurement:
    made = Measurement(
        provenance="measured", device="vm", runtime="ai_edge_litert", runtime_version="2.1.0", threads=1,
        percentile=50.0, value_ms=value_ms, ci_low_ms=0.9 * value_ms, ci_high_ms=1.1 * value_ms, median_ms=value_ms,
        p90_ms=value_ms, p95_ms=value_ms, p99_ms=value_ms, runs=100,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def accuracy(value: float, drop: float) -> Accuracy:
    return Accuracy(metric="top-1", value=value, ci_low=value - 2, ci_high=value + 2, samples=500, drop=drop)


def candidate(precision: Precision, value_ms: float, value: float, verdict: str) -> TriedCandidate:
    return TriedCandidate(
        label=PLANS[precision].label,
        plan=PLANS[precision],
        verdict=verdict,
        size_bytes=300_000,
        measurement=measurement(value_ms),
        validation=accuracy(value, 86.2 - value),
    )


@pytest.fixture
def manifest() -> Manifest:
    port = Port(spec=TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"), model_name="x")
    return Manifest(
        schema_version=1,
        edgecompile_version="0.1.0",
        created="2026-11-26T19:29:24+00:00",
        command_line=("edgecompile", "build", "<net>.onnx"),
        seed=0,
        options=(),
        model=ModelFacts(name="a<b>&c", source="<net>.onnx", kind="onnx", sha256="0" * 64, parameters=1000, macs=2000),
        target="x86-avx2",
        architecture="x86_64",
        budget=Budget(latency_ms=5.0, percentile=50.0),
        verdict=Verdict(status="met", text="tflite-int8 meets the budget", exit_code=0),
        plan=PLANS["int8"],
        runtime="tflite",
        precision="int8",
        path_taken="direct",
        full_integer=True,
        float_islands=0,
        inputs=(port,),
        outputs=(port,),
        preprocessing=None,
        measurement=measurement(1.0, warnings=("other <programs> kept 2 of 2 CPUs busy",)),
        accuracy=accuracy(79.0, -0.1),
        original_accuracy=accuracy(78.9, 0.0),
        parity=(),
        candidates=(
            candidate("fp32", 7.0, 86.2, "40 % too slow"),
            candidate("int8", 1.0, 86.6, "met (measured)"),
        ),
        data=DataFacts(
            calibration=200, validation=1000, evaluation=500, evaluation_from="--eval", skipped=0, digest="0"
        ),
        golden=Golden(samples=8, comparison="exact", tolerance=0.0),
        versions={},
        files=(BundleFile(path="model.tflite", role="model", size_bytes=300_000, sha256="0" * 64),),
    )


def picture(text: str) -> ET.Element:
    found = re.search(r"<svg.*</svg>", text, flags=re.DOTALL)
    assert found is not None
    return ET.fromstring(found.group())


def test_every_text_from_outside_is_escaped_and_nothing_is_fetched(manifest: Manifest) -> None:
    text = page.render(manifest)
    assert "a&lt;b&gt;&amp;c" in text
    assert "&lt;net&gt;.onnx" in text
    assert "other &lt;programs&gt; kept" in text
    assert "<b>&c" not in text
    assert not re.search(r"<script|src=|https?://|@import|url\(", text)


def test_the_originals_figure_stands_beside_those_of_the_same_samples(manifest: Manifest) -> None:
    """The table is of the validation part; the original's figure on the evaluation part would look like a loss."""
    assert report.original_on_validation(manifest) == pytest.approx(86.2)
    rows = re.findall(r"<tr.*?</tr>", page.render(manifest))
    original = next(row for row in rows if "original</td>" in row)
    assert "86.20 %" in original
    assert "78.90" not in original
    chosen = next(row for row in rows if 'class="chosen"' in row)
    assert "tflite-int8" in chosen


def test_marks_stand_where_their_figures_are(manifest: Manifest) -> None:
    drawn = picture(page.render(manifest))
    groups = drawn.findall("g")
    assert len(groups) == 2
    dots = [group.findall("circle")[-1] for group in groups]
    places = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in dots]
    (slow_x, slow_y), (fast_x, fast_y) = places
    assert fast_x < slow_x
    assert fast_y < slow_y, "more accurate is higher"
    budget = next(line for line in drawn.findall("line") if line.get("stroke") == "var(--accent)")
    assert fast_x < float(budget.get("x1", "")) < slow_x
    original = next(line for line in drawn.findall("line") if line.get("stroke") == "var(--soft)")
    assert float(original.get("y1", "")) == pytest.approx(slow_y, abs=0.2)
    assert [len(g.findall("circle")) for g in groups] == [1, 2], "the chosen one has a ring"


def test_a_gain_is_called_one(manifest: Manifest) -> None:
    text = page.render(manifest)
    assert "<b>0.10</b><span class=soft>points gained</span>" in text
    lost = page.render(replace(manifest, accuracy=accuracy(78.0, 0.9)))
    assert "<b>0.90</b><span class=soft>points lost</span>" in lost


def test_an_estimate_never_looks_measured(manifest: Manifest) -> None:
    estimated = measurement(1.0, provenance="estimated", device="raspberry-pi-4", runs=0)
    text = page.render(
        replace(
            manifest,
            measurement=estimated,
            verdict=Verdict(status="predicted", text="is predicted to meet the budget", exit_code=6),
            candidates=tuple(
                replace(c, measurement=estimated, verdict="predicted to meet") for c in manifest.candidates
            ),
        )
    )
    assert "Budget predicted, not measured" in text
    assert "~1.00 ms" in text
    assert "It was not: latency is estimated" in text
    assert "met (measured)" not in text


def test_a_page_without_data_has_no_picture(manifest: Manifest) -> None:
    bare = replace(
        manifest,
        accuracy=None,
        original_accuracy=None,
        data=None,
        candidates=tuple(replace(c, validation=None) for c in manifest.candidates),
    )
    text = page.render(bare)
    assert "<svg" not in text
    assert "No data was given" in text


def test_the_closing_table_has_no_column_of_dashes(manifest: Manifest) -> None:
    def heads(of: Manifest) -> list[str]:
        return [str(column.header) for column in report.candidates(of).columns]

    assert heads(manifest) == ["candidate", "size", "p50 ms", "95 %", "top-1 %", "drop", "verdict"]
    bare = tuple(replace(c, validation=None) for c in manifest.candidates)
    assert heads(replace(manifest, candidates=bare)) == ["candidate", "size", "p50 ms", "95 %", "verdict"]
    assert report.candidates(replace(manifest, candidates=bare)).row_count == 2
    by_signal = Accuracy(metric="SQNR", value=31.0, ci_low=30.0, ci_high=32.0, samples=64)
    other = tuple(replace(c, validation=by_signal) for c in manifest.candidates)
    assert heads(replace(manifest, candidates=other)) == ["candidate", "size", "p50 ms", "95 %", "SQNR dB", "verdict"]


def test_why_a_file_could_not_be_made_stands_below_the_table(manifest: Manifest) -> None:
    """Such reasons name operators, many of them: in a column of the table they would fold into a tower."""
    why = "TensorRT would not build it:\n  conv1: a scale is not positive\n  conv2 <b>: the same"
    failed = replace(manifest.candidates[0], failure=why, verdict=f"failed: {why}", measurement=None, validation=None)
    other = replace(manifest, candidates=(failed, manifest.candidates[1]))
    words = "tflite-fp32 failed: TensorRT would not build it: conv1: a scale is not positive conv2 <b>: the same"
    table = report.candidates(other)
    assert str(table.caption) == words
    assert [str(cell) for cell in table.columns[-1].cells][1:] == ["failed", "met (measured)"]
    assert words.replace("<b>", "&lt;b&gt;") in page.render(other)


def test_what_would_help_is_a_list_and_the_budget_is_named_within_the_picture(manifest: Manifest) -> None:
    missed = Verdict(status="not met", text="tflite-int8 comes nearest", exit_code=3, help=("a smaller <net>", "INT8"))
    text = page.render(replace(manifest, verdict=missed, budget=Budget(latency_ms=0.01, percentile=50.0)))
    assert "<ul><li>a smaller &lt;net&gt;</li><li>INT8</li></ul>" in text
    (label,) = (t for t in picture(text).findall("text") if t.text == "budget")
    assert label.get("text-anchor") == "start", "at the left edge its name stands to the right of the line"
