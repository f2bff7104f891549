"""Words and figures on the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from edgecompile import bench, profiles, report
from edgecompile.types import InstructionCount, Measurement, Ratio


def shown(table: Table, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"), (0.00407, "0.00407"), (0.0000004, "0.000000"), (0.0999, "0.0999"), (0.1234, "0.123"),
        (1.0, "1.00"), (4.555, "4.55"), (33.0, "33.0"), (99.96, "100.0"), (123.4, "123"), (98765.4, "98765"),
    ],
)  # fmt: skip
def test_milliseconds_have_three_significant_digits(value: float, words: str) -> None:
    assert report.milliseconds(value) == words


def test_devices_show_their_short_names_in_80_columns() -> None:
    aliases = profiles.aliases_here(profiles.Machine(architecture="x86_64", cpu_flags=frozenset(), board=""))
    lines = shown(report.devices(profiles.all_profiles(), aliases))
    assert max(map(len, lines)) <= 80
    row = {line.split()[0]: line.split() for line in lines if not line.startswith(" ")}
    assert row["raspberry-pi-4"][1:] == ["pi4", "tflite", "int8", "fp32", "fp16", "33", "ms", "built-in"]
    assert row["x86-avx2"][1] == "x86", "by the flags of the CPU"
    assert row["pixel-4"][1] == "tflite", "no short name"
    assert sum("onnxruntime" in line for line in lines) == 2


def test_bench_fits_80_columns_and_says_how_it_was_measured() -> None:
    made = Measurement(
        provenance="measured", device="vm", runtime="ai_edge_litert", runtime_version="2.1.0", threads=2,
        percentile=50.0, value_ms=0.0041, ci_low_ms=0.00403, ci_high_ms=0.00416, median_ms=0.0041, p90_ms=0.00416,
        p95_ms=0.00418, p99_ms=0.005, runs=900, load_ms=3.2, cold_ms=0.0485, peak_memory_bytes=9_880_000,
        delegated_operators=7, total_operators=8,
    )  # fmt: skip
    ratio = Ratio(value=2.6241, ci_low=2.597, ci_high=2.651)
    grid, first, _ = report.bench(["out", "model.onnx"], [made, made], [None, ratio])
    assert isinstance(grid, Table)
    lines = shown(grid)
    assert max(map(len, lines)) <= 80
    assert len(lines) == 3, "nothing is folded"
    assert lines[2] == "model.onnx  0.00410  0.00403-0.00416  0.00416  0.00418    2.624  2.597-2.651"
    assert str(first) == (
        "out: 900 runs on vm with ai_edge_litert 2.1.0, 2 threads, 7 of 8 operators in the delegate; "
        "loading 3.20 ms, first run 0.0485 ms, peak memory 9.88 MB"
    )


def test_several_targets_end_in_a_line_each() -> None:
    rows = [("pi4", None, 6, "out/pi4"), ("x86", "local", 0, "out/x86"), ("pi5", "ssh://pi@ten", 4, "out/pi5")]
    assert [line.split() for line in shown(report.several(rows))[1:]] == [
        ["pi4", "predicted", "(not", "measured)", "6", "out/pi4"],
        ["x86", "met", "(measured)", "0", "out/x86"],
        ["pi5", "on", "ssh://pi@ten", "the", "device", "failed", "4", "-"],
    ]


def test_a_warning_about_one_file_names_it() -> None:
    def measured(*warnings: str) -> Measurement:
        return Measurement(
            provenance="measured", device="vm", runtime="r", runtime_version="1", threads=1, percentile=50.0,
            value_ms=1, ci_low_ms=1, ci_high_ms=1, median_ms=1, p90_ms=1, p95_ms=1, p99_ms=1, runs=9,
            warnings=warnings,
        )  # fmt: skip

    found = bench.doubts_by_file(
        ["a", "b", "c"], [measured("busy", "noisy"), measured("busy"), measured("busy", "noisy")]
    )
    assert found == ["busy", "a, c: noisy"]


@pytest.mark.parametrize(
    ("options", "files", "least_s"),
    [
        (bench.BenchOptions(), 5, 5 * (1 + 9 * 0.2 + 3) + 5),
        (bench.BenchOptions(warmup_s=0.1, min_seconds=0.2), 1, 0.1 * 1.4 + 0.2 + 1.5),
    ],
)
def test_the_stage_that_measures_says_how_long_it_takes(
    options: bench.BenchOptions, files: int, least_s: float
) -> None:
    assert options.least_s(files) == pytest.approx(least_s)
    assert options.title(files) == f"Measure {files} file{'s' if files > 1 else ''}, {least_s:.0f} s or more"


def test_instructions_stand_under_the_emulated_core_and_are_no_times() -> None:
    found = [
        InstructionCount(
            core="Cortex-A53", per_inference=n, spread=0.0, runs=5, runtime="ai_edge_litert 2.1.0", image=""
        )
        for n in (997_323_320, 695_121_699)
    ]
    table, words = report.counts(["a/very/long/path/to/a/bundle", "b.tflite"], found, [1.0, 0.697])
    assert isinstance(table, Table)
    lines = shown(table)
    assert max(map(len, lines)) <= 80
    assert lines[0] == "instructions (emulated Cortex-A53)"
    assert lines[2].split() == ["a/very/long/path/to/a/bundle", "997,323,320", "1.0000", "ai_edge_litert", "2.1.0"]
    assert "No times" in str(words)
    assert " ms" not in "\n".join(lines)
