"""The latency tables against whole models: the sum of a net's operators, each measured alone, over the measured net.

    python -m benchmarks.operator_tables                    # writes benchmarks/results/operator_tables.json
    python -m benchmarks.operator_tables --nets resnet20

For each net, runtime and precision: the operators of the prepared ONNX graph are measured one by one with one thread,
the net's file in rounds of its own before and after that, and the sum is divided by the median of the net. Nothing is
rescaled. Weights are random: latency does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from edgecompile import bench, lower, model, tables
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Arrays, Artifact, Model, Plan, Precision, RuntimeName, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "operator_tables.json"
NETS = ("resnet20", "mobilenet_v2", "resnet18")
RUNTIMES: tuple[RuntimeName, ...] = ("tflite", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SAMPLES = 4


def prepared(net: str, folder: Path) -> tuple[Model, list[Arrays]]:
    """The net as a prepared ONNX file, and samples for calibration."""
    from tests import zoo

    source = zoo.export_onnx(zoo.build(net), zoo.input_shapes(net), folder / "exported.onnx")
    loaded = model.load(str(source), folder / "model")
    rng = np.random.default_rng(0)
    samples: list[Arrays] = [
        {spec.name: rng.normal(0, 1, spec.shape).astype(np.float32) for spec in loaded.inputs} for _ in range(SAMPLES)
    ]
    return loaded, samples


def whole(artifact: Artifact, options: bench.BenchOptions) -> bench.BenchResult:
    """The net's file, measured."""
    with LocalTransport() as transport:
        return bench.measure([artifact], transport, options)


def compare(net: str, runtime: RuntimeName, precision: Precision, made: Any, folder: Path, seconds: float) -> Any:
    """One row: the sum of the operators and the measured net."""
    loaded, samples = made
    artifact = lower.RUNTIMES[runtime].lower(loaded, Plan(runtime=runtime, precision=precision), samples, folder)
    keys = tables.keys_of(onnx.load(str(loaded.path)))
    options = bench.BenchOptions(threads=1, min_seconds=seconds, rounds=5)
    before = whole(artifact, options)
    start = time.perf_counter()
    table = tables.measure(
        [key for _, key in keys],
        runtime=runtime,
        precision=precision,
        threads=1,
        workdir=folder / "operators",
        cache=folder / f"cache-{runtime}-{precision}",
        options=tables.MeasureOptions(footprint_bytes=tables.footprint_bytes([k for _, k in keys], precision)),
    )
    spent = time.perf_counter() - start
    after = whole(artifact, options)
    rounds = [ms for result in (before, after) for ms in result.rounds[0]]
    observed = float(np.median([np.median(one) for one in rounds]))
    predicted = sum(table[key] for _, key in keys)
    return {
        "net": net, "runtime": runtime, "precision": precision, "operators": len(keys), "distinct": len(table),
        "predicted_ms": predicted, "observed_ms": observed, "ratio": predicted / observed,
        "seconds_per_key": spent / len(table), "by_type_ms": by_type(keys, table),
        "round_medians_ms": [float(np.median(one)) for one in rounds],
        "warnings": [*before.measurements[0].warnings, *after.measurements[0].warnings],
        "environment": to_builtins(before.measurements[0].environment),
    }  # fmt: skip


def by_type(
    keys: Sequence[tuple[str, tables.OperatorKey]], table: Mapping[tables.OperatorKey, float]
) -> dict[str, float]:
    """Predicted milliseconds by the operator's type."""
    totals: dict[str, float] = defaultdict(float)
    for _, key in keys:
        totals[key.op_type] += table[key]
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def shown(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For people."""
    found = Table(title="sum of operators measured alone / the net measured whole, one thread")
    for heading in ("net", "file", "operators", "predicted ms", "measured ms", "ratio", "s a key"):
        found.add_column(heading, justify="left" if heading in ("net", "file") else "right")
    for row in rows:
        found.add_row(
            row["net"], f"{row['runtime']}-{row['precision']}", f"{row['distinct']} of {row['operators']}",
            f"{row['predicted_ms']:.3f}", f"{row['observed_ms']:.3f}", f"{row['ratio']:.3f}",
            f"{row['seconds_per_key']:.2f}",
        )  # fmt: skip
    return found


def main() -> None:
    """Prepare and compare net by net; print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--min-seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for net in arguments.nets:
        with tempfile.TemporaryDirectory(prefix="edgecompile-tables-") as name:
            made = prepared(net, Path(name))
            for runtime in arguments.runtimes:
                for precision in PRECISIONS:
                    rows.append(compare(net, runtime, precision, made, Path(name), arguments.min_seconds))
                    row = rows[-1]
                    print(f"{net} {runtime} {precision}: {row['ratio']:.3f} {row['by_type_ms']}", flush=True)
    Console(width=120).print(shown(rows))
    document = {"command": "python -m benchmarks.operator_tables", "rows": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
