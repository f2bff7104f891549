"""LiteRT and ONNX Runtime, FP32 and INT8, one and two threads: the same nets, measured interleaved on this machine.

    python -m benchmarks.runtimes                     # prints a table a net, writes benchmarks/results/runtimes.json
    python -m benchmarks.runtimes --nets resnet8 --threads 1 --min-seconds 1

The nets are those of ``tests/zoo`` with seeded random weights: latency does not depend on them. All four files of a net
take turns in one process, and that in ten fresh processes (``targets/README.md``), once for each number of threads.
Ratios are against LiteRT FP32 with the same number of threads, with their 95 % intervals over the processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgecompile import bench, lower, model
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Measurement, Plan, Precision, Ratio, RuntimeName, to_builtins

RESULTS = Path(__file__).resolve().parent / "results" / "runtimes.json"
NETS = ("resnet8", "mobilenet_v2", "resnet18")
CASES: tuple[tuple[RuntimeName, Precision], ...] = (
    ("tflite", "fp32"),
    ("tflite", "int8"),
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
)
SAMPLES = 8


def files(net: str, folder: Path, cases: Sequence[tuple[RuntimeName, Precision]] = CASES) -> list[Artifact]:
    """A net of the zoo as the files of the cases, in their order."""
    from tests import zoo

    folder.mkdir(parents=True)
    source = zoo.export_onnx(zoo.build(net), zoo.input_shapes(net), folder / "exported.onnx")
    loaded = model.load(str(source), folder / "model")
    generator = np.random.default_rng(0)
    samples = [
        {s.name: generator.normal(size=s.shape).astype(np.float32) for s in loaded.inputs} for _ in range(SAMPLES)
    ]
    made: dict[tuple[RuntimeName, Precision], Artifact] = {}
    for runtime, precision in cases:
        plan = Plan(runtime=runtime, precision=precision, calibration_samples=SAMPLES if precision == "int8" else 0)
        floating = made.get((runtime, "fp32"))
        made[runtime, precision] = lower.RUNTIMES[runtime].lower(
            loaded, plan, samples, folder / plan.label, float_artifact=floating
        )
    return list(made.values())


def measure(artifacts: Sequence[Artifact], options: bench.BenchOptions) -> tuple[list[Measurement], list[Ratio]]:
    """The measurements, and the ratios against the first."""
    with LocalTransport() as transport:
        result = bench.measure(artifacts, transport, options)
    return list(result.measurements), [result.ratio(i, 0) for i in range(len(artifacts))]


def table(net: str, rows: Sequence[dict[str, Any]]) -> Table:
    """A net's rows for people."""
    found = Table(title=f"{net}: latency in ms")
    for heading in ("threads", "file", "median [95 %]", "p90", "first run", "memory, MB", "delegated", "ratio [95 %]"):
        found.add_column(heading, justify="left" if heading == "file" else "right", no_wrap=True)
    for row in rows:
        m, ratio = row["measurement"], row["ratio"]
        operators = f"{m['delegated_operators']}/{m['total_operators']}" if m["total_operators"] else "-"
        found.add_row(
            str(m["threads"]),
            row["file"],
            f"{m['median_ms']:.3g} [{m['ci_low_ms']:.3g}, {m['ci_high_ms']:.3g}]",
            f"{m['p90_ms']:.3g}",
            f"{m['cold_ms']:.3g}",
            f"{m['peak_memory_bytes'] / 1e6:.1f}",
            operators,
            "1"
            if row["file"] == "tflite-fp32"
            else f"{ratio['value']:.2f} [{ratio['ci_low']:.2f}, {ratio['ci_high']:.2f}]",
        )
    return found


def main() -> None:
    """Measure net by net; print a table each and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--min-seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    # Eight columns of figures do not fit the 80 characters that a pipe is taken for, nor 120.
    console, document = Console(width=None if sys.stdout.isatty() else 132, highlight=False), []
    with tempfile.TemporaryDirectory(prefix="edgecompile-runtimes-") as folder:
        for net in arguments.nets:
            artifacts, rows = files(net, Path(folder) / net), []
            for threads in arguments.threads:
                options = bench.BenchOptions(threads=threads, min_seconds=arguments.min_seconds, seed=arguments.seed)
                for artifact, m, ratio in zip(artifacts, *measure(artifacts, options), strict=True):
                    label = f"{artifact.runtime}-{artifact.precision}"
                    facts = {"net": net, "file": label, "size_bytes": artifact.size_bytes}
                    rows.append({**facts, "measurement": to_builtins(m), "ratio": to_builtins(ratio)})
            console.print(table(net, rows))
            for row in rows:
                for warning in row["measurement"]["warnings"]:
                    console.print(
                        f"{row['file']}, {row['measurement']['threads']} thread(s): {warning}", style="yellow"
                    )
            document += rows
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({"command": "python -m benchmarks.runtimes", "rows": document}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
