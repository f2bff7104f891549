"""Are budgets met, and how well is latency predicted? Ten budgets, drawn between 30 % and 90 % of the whole net's time.

    python -m benchmarks.budgets --data FOLDER --work WORK [--net resnet20] [--runtime tflite]
        [--precision fp32|int8|all] [--stage explore|measure|all] [--count 10]

CIFAR ResNets on this machine, one thread. ``explore`` finds what every group of channels and every residual block is
worth, on 500 unlabelled training images. ``measure`` times the single operators, then runs the search of ``edgecompile
build`` (`shrink.search`: channels, blocks and, with ``--precision all``, INT8 beside float32) for each budget: whole
models are lowered and measured, four at most, until one's interval lies under it. Budgets are seeded draws as shares
of the whole net's latency (in float32, if that is among the ways). The weights of these models are not fitted, since
that takes minutes and changes no latency; what accuracy is left is the subject of ``benchmarks.budget``. All budgets
start from the same table and from the whole net's latency alone: none learns from another. Writes
``benchmarks/results/budgets.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.accuracy import CHECKPOINTS
from edgecompile import bench, calibration, lower, model, report, shrink, tables
from edgecompile.progress import Silent
from edgecompile.store import Store
from edgecompile.techniques import blocks, pruning
from edgecompile.transport.local import LocalTransport
from edgecompile.types import (
    Arrays,
    Artifact,
    Measurement,
    Model,
    Plan,
    RuntimeName,
    Step,
    decode,
    encode,
    file_sha256,
    to_builtins,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "budgets.json"
LOW, HIGH, SEED, SAMPLES = 0.3, 0.9, 0, 500
PRECISIONS = {"fp32": ("fp32",), "int8": ("int8",), "all": ("fp32", "int8")}
OPTIONS = bench.BenchOptions(threads=1, percentile=50.0, warmup_s=0.2, min_runs=50, min_seconds=0.5, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is kept")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), default="resnet20")
    parser.add_argument("--runtime", choices=["tflite", "onnxruntime"], default="tflite")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--stage", choices=["explore", "measure", "all"], default="all")
    parser.add_argument("--count", type=int, default=10)
    arguments = parser.parse_args()
    found = Explored(arguments.data, arguments.work, arguments.net)
    if arguments.stage in ("measure", "all"):
        rows = _rows(found, arguments)
        known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        mine = (arguments.net, arguments.runtime, arguments.precision)
        kept = [r for r in known if (r["net"], r["runtime"], r.get("precision", "fp32")) != mine]
        RESULTS.write_text(json.dumps(kept + rows, indent=1) + "\n")
        _show(rows)


class Explored:
    """A net, its data, and what its channels and blocks are worth; made once for a work folder."""

    def __init__(self, data: Path, work: Path, net: str, *, evaluation: bool = False) -> None:
        self.work, self.store = work / net, Store(work / net)
        images = work / "images"
        if not (images / "cifar10").is_dir():
            with tarfile.open(data / "cifar10.tar.gz") as archive:
                archive.extractall(images, filter="data")
        self.model = model.load(
            f"tests.zoo:{net}", self.work / "model", trust=True, input_shapes=(1, 3, 32, 32),
            weights=data / "models" / "resnet-cifar10" / CHECKPOINTS[net],
        )  # fmt: skip
        self.data = calibration.load(
            calibration.load_preset("cifar10-imagenet-stats"), self.model.inputs, data=images / "cifar10" / "train",
            evaluation=images / "cifar10" / "test" if evaluation else None, calibration_samples=SAMPLES,
            training_samples=0, evaluation_samples=None if evaluation else 1, validation_samples=500,
        )  # fmt: skip
        self.samples: list[Arrays] = [self.data.calibration[i] for i in range(SAMPLES)]
        self.prospect = shrink.explore(
            self.model, self.samples, macs=1, tile=8, progress=Silent(),
            keep=lambda make: self.store.cached("curves", self.model.sha256, shrink.Curves, lambda _: make()),
        )  # fmt: skip

    def space(self, plan: Plan, tile: int = 8) -> shrink.Space:
        """What there is to choose from, with measured operators."""
        return shrink.space(
            self.prospect,
            lambda keys: tables.measure(
                keys, runtime=plan.runtime, precision=plan.precision, threads=1, workdir=self.work / "operators",
                cache=self.store,
            ),
            tile=tile,
        )  # fmt: skip

    def made(self, steps: Sequence[Step], name: str, *, fit: bool = True) -> Model:
        """The net after pruning and dropping."""
        folder = self.work / "made" / name
        made = self.model
        for number, step in enumerate(steps):
            technique = {"prune": pruning.apply, "drop": blocks.apply}[step.technique]
            options = {**dict(step.options), "reconstruct": fit}
            if not fit:  # the order of channels decides on accuracy only
                options |= {"importance": "magnitude"} if step.technique == "prune" else {}
            target = folder / str(number)
            target.mkdir(parents=True, exist_ok=True)
            made = technique(self.model, made, replace(step, options=tuple(options.items())), self.samples, target,
                             Silent())  # fmt: skip
        return made

    def at(self, path: Path) -> Model:
        """The net with another file."""
        return replace(self.model, path=path, original_path=path, sha256=file_sha256(path), module=None)

    def file(self, made: Model, plan: Plan, name: str) -> Artifact:
        """The model's file at a plan's runtime and precision; made once for a name."""
        folder = self.work / "files" / name
        kept = folder / f"{plan.runtime}-{plan.precision}.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(encode(self._lowered(made, plan, folder)))
        return decode(kept.read_bytes(), Artifact)

    def _lowered(self, made: Model, plan: Plan, folder: Path) -> Artifact:
        runs = lower.RUNTIMES[plan.runtime]
        floating = runs.lower(made, replace(plan, precision="fp32"), [], folder)
        if plan.precision == "fp32":
            return floating
        some = self.samples[:200]
        plan = replace(plan, calibration_samples=len(some))
        return runs.lower(made, plan, some, folder, float_artifact=floating)


def measured(artifacts: Sequence[Artifact]) -> bench.BenchResult:
    """All files, interleaved."""
    with LocalTransport() as transport:
        return bench.measure(artifacts, transport, OPTIONS)


def latencies(files: Mapping[str, Artifact], bases: Sequence[str], kept: Path) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-up of every file over the fastest of ``bases``, all interleaved; ``kept`` remembers."""
    if not kept.is_file():
        result, names = measured([*files.values()]), list(files)
        base = min((names.index(name) for name in bases), key=lambda i: result.measurements[i].value_ms)
        rows = {
            name: {"ms": result.measurements[i].value_ms, "speed_up": to_builtins(result.ratio(base, i)),
                   "over": names[base]}
            for i, name in enumerate(names)
        }  # fmt: skip
        kept.write_text(json.dumps(rows, indent=1) + "\n")
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text())
    return found


def plans(precision: str, runtime: RuntimeName) -> dict[str, Plan]:
    """The ways to run a model, by name."""
    return {name: Plan(runtime=runtime, precision=name) for name in PRECISIONS[precision]}  # type: ignore[arg-type]


def _rows(found: Explored, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    ways = plans(arguments.precision, arguments.runtime)
    files = {name: found.file(found.model, plan, "whole") for name, plan in ways.items()}
    spaces = {name: found.space(plan) for name, plan in ways.items()}
    whole = dict(zip(files, measured([*files.values()]).measurements, strict=True))
    for name, one in whole.items():
        print(f"whole net, {name}: {one.value_ms:.4f} ms", flush=True)
    draws = random.Random(SEED)
    shares = [draws.uniform(LOW, HIGH) for _ in range(arguments.count)]
    rows = []
    for number, share in enumerate(shares):
        name = f"{arguments.runtime}-{arguments.precision}{number}"
        search = _Search(found=found, ways=ways, spaces=spaces, whole=whole, name=name)
        row = search.run(share * whole[next(iter(ways))].value_ms)
        about = {"net": arguments.net, "runtime": arguments.runtime, "precision": arguments.precision, "seed": SEED}
        rows.append({**about, "share": share, **row})
        print(json.dumps(rows[-1]), flush=True)
    return rows


class _Search:
    """The search for one budget; remembers what it measured and what was predicted."""

    def __init__(
        self, *, found: Explored, ways: Mapping[str, Plan], spaces: Mapping[str, shrink.Space],
        whole: Mapping[str, Measurement], name: str,
    ) -> None:  # fmt: skip
        self.found, self.ways, self.name, self.whole = found, ways, name, whole
        self.aims = {way: shrink.Aim(space=spaces[way]) for way in ways}
        for way, aim in self.aims.items():
            aim.note(aim.space.whole(), whole[way].ci_high_ms)
        self.tried: list[tuple[str, float, Measurement]] = []

    def run(self, budget_ms: float) -> dict[str, Any]:
        fastest = min(self.whole[way].ci_high_ms for way in self.ways)
        if fastest > budget_ms:
            shrink.search(self.aims, budget_ms, self._attempt)
        uppers = [one.ci_high_ms for _, _, one in self.tried] + [self.whole[way].ci_high_ms for way in self.ways]
        met = [upper for upper in uppers if upper <= budget_ms]
        first = self.tried[0] if self.tried else None
        return {
            "budget_ms": budget_ms, "met": bool(met), "upper_ms": max(met) if met else min(uppers),
            "attempts": len(self.tried), "ways": [way for way, _, _ in self.tried],
            # The aim is the upper end of the interval, so that is what was predicted.
            "first_predicted_over_measured": first[1] / first[2].ci_high_ms if first else None,
        }  # fmt: skip

    def _attempt(self, way: str, counts: Mapping[str, int]) -> float | None:
        number = len(self.tried)
        predicted = self.aims[way].predict(counts)
        made = self.found.made(shrink.steps(self.found.prospect, counts), f"{self.name}-{number}", fit=False)
        artifact = self.found.file(made, self.ways[way], f"{self.name}-{made.sha256[:16]}")
        (one,) = measured([artifact]).measurements
        self.tried.append((way, predicted, one))
        return one.ci_high_ms


def _show(rows: list[dict[str, Any]]) -> None:
    made = report.table("share", "budget ms", "upper end", "met", "whole models", "predicted / measured", right=())
    for row in rows:
        first = row["first_predicted_over_measured"]
        made.add_row(
            f"{row['share']:.2f}", f"{row['budget_ms']:.4f}", f"{row['upper_ms']:.4f}", "yes" if row["met"] else "no",
            str(row["attempts"]), f"{first:.3f}" if first else "-",
        )  # fmt: skip
    console = Console()
    console.print(made)
    errors = [abs(r["first_predicted_over_measured"] - 1) for r in rows if r["first_predicted_over_measured"]]
    met = sum(bool(row["met"]) for row in rows)
    console.print(f"met: {met} of {len(rows)}; whole models a budget: at most {max(r['attempts'] for r in rows)}")
    if errors:
        console.print(f"median absolute error of the first prediction: {100 * statistics.median(errors):.1f} %")


if __name__ == "__main__":
    main()
