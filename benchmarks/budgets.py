"""Are budgets met, and how well is latency predicted? Ten budgets, drawn between 30 % and 90 % of the whole net's time.

    python -m benchmarks.budgets --data ../shared/data [--net resnet20] [--runtime onnxruntime] [--count 10]

``edgecompile build`` on this machine, float32, one thread, without training. Budgets are seeded draws as shares of the
whole net's latency, measured just before. All builds share a work folder, so the table of operators is measured once,
and every build's smaller models anew. For each: whether a file met the budget (the upper end of its interval), how many
whole models were measured, and the first one's predicted over its measured latency. Writes
``benchmarks/results/budgets.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tarfile
import tempfile
from pathlib import Path

from rich.console import Console

import edgecompile
from benchmarks.accuracy import CHECKPOINTS
from edgecompile import bundle, report
from edgecompile.api import BuildOptions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "budgets.json"
LOW, HIGH, SEED = 0.3, 0.9, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), default="resnet20")
    parser.add_argument("--runtime", choices=["tflite", "onnxruntime"], default="onnxruntime")
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = _rows(arguments, Path(temporary))
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    mine = (arguments.net, arguments.runtime)
    RESULTS.write_text(json.dumps([r for r in known if (r["net"], r["runtime"]) != mine] + rows, indent=1) + "\n")
    _show(rows)


def _show(rows: list[dict[str, object]]) -> None:
    made = report.table(
        "budget ms", "share", "p50 ms", "upper end", "met", "whole models", "predicted / measured", right=()
    )
    for row in rows:
        made.add_row(
            f"{row['budget_ms']:.4f}", f"{row['share']:.2f}", f"{row['p50_ms']:.4f}", f"{row['upper_ms']:.4f}",
            "yes" if row["met"] else "no", str(row["attempts"]),
            f"{row['first_predicted_over_measured']:.3f}" if row["first_predicted_over_measured"] else "-",
        )  # fmt: skip
    console = Console()
    console.print(made)
    errors = [abs(r["first_predicted_over_measured"] - 1) for r in rows if r["first_predicted_over_measured"]]
    met = sum(bool(row["met"]) for row in rows)
    console.print(f"met: {met} of {len(rows)}; whole models a budget: at most {max(r['attempts'] for r in rows)}")
    if errors:
        console.print(f"median absolute error of the first prediction: {100 * statistics.median(errors):.1f} %")


def _rows(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    with tarfile.open(arguments.data / "cifar10.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    options: BuildOptions = {
        "target": "x86", "on": "local", "trust": True, "force": True, "out": folder / "out", "threads": 1,
        "weights": arguments.data / "models" / "resnet-cifar10" / CHECKPOINTS[arguments.net],
        "input_shape": (1, 3, 32, 32), "preset": "cifar10-imagenet-stats", "data": folder / "cifar10" / "train",
        "eval": folder / "cifar10" / "test", "eval_samples": 1000, "precision": ["fp32"],
        "runtime": [arguments.runtime],
    }  # fmt: skip
    name = f"tests.zoo:{arguments.net}"
    whole = _whole_ms(edgecompile.build(name, budget_ms=1000.0, **options).bundle.manifest)
    draws = random.Random(SEED)
    return [_row(arguments, name, draws.uniform(LOW, HIGH), whole, options) for _ in range(arguments.count)]


def _whole_ms(manifest: bundle.Manifest) -> float:
    (whole,) = (c.measurement for c in manifest.candidates if not c.plan.steps)
    assert whole is not None
    return whole.value_ms


def _row(
    arguments: argparse.Namespace, name: str, share: float, whole_ms: float, options: BuildOptions
) -> dict[str, object]:
    budget_ms = share * whole_ms
    manifest = edgecompile.build(name, budget_ms=budget_ms, **options).bundle.manifest
    tried = [c for c in manifest.candidates if c.plan.steps and c.measurement is not None]
    first = tried[0] if tried else None
    return {
        "net": arguments.net, "runtime": arguments.runtime, "seed": SEED, "share": share, "budget_ms": budget_ms,
        "p50_ms": manifest.measurement.value_ms, "upper_ms": manifest.measurement.ci_high_ms,
        "met": manifest.verdict.status == "met", "attempts": len(tried),
        # The aim is the upper end of the interval, so that is what was predicted.
        "first_predicted_over_measured": first.predicted_ms / first.measurement.ci_high_ms
        if first is not None and first.predicted_ms and first.measurement is not None else None,
        "drop": manifest.accuracy.drop if manifest.accuracy is not None else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
