"""What meeting a tighter budget costs: channels chosen by the search, against uniform and greedy choices.

    python -m benchmarks.budget --data ../shared/data [--net resnet20] [--runtime onnxruntime]

CIFAR ResNets on this machine, float32, one thread. Three choices of channels have the same budget in the same measured
table of operators: the search's, a greedy one (one step at a time, where a millisecond costs least), and a uniform one
(every group keeps the same share). Each is pruned with 500 unlabelled training images, with the pruned layers fitted
anew and without, measured interleaved with the whole model, and evaluated on the 5,000 test images. Nothing is chosen
on these. Writes ``benchmarks/results/budget.json``.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.accuracy import CHECKPOINTS
from edgecompile import allocation, bench, calibration, evaluate, execute, lower, model, report, shrink, tables
from edgecompile.progress import Silent
from edgecompile.techniques import pruning
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Model, Plan, RuntimeName, Step, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "budget.json"
SHARES = (0.9, 0.8, 0.7)
METHODS = {"search": allocation.solve, "greedy": allocation.greedy, "uniform": allocation.uniform}
SAMPLES = 500


def choices(found: Model, data: calibration.CalibrationSet, runtime: RuntimeName, folder: Path) -> dict[str, Step]:
    """The pruning steps to compare, by name."""
    prospect = shrink.explore(found, data.calibration, macs=1, tile=8, progress=Silent())
    space = shrink.space(
        prospect,
        lambda keys: tables.measure(
            keys, runtime=runtime, precision="fp32", threads=1, workdir=folder / "operators", cache=folder / "cache"
        ),
        tile=8,
    )
    steps: dict[str, Step] = {}
    for share in SHARES:
        for name, method in METHODS.items():
            counts = method(space, share * space.ms(space.whole()))
            if counts is None:
                continue
            (step,) = shrink.steps(prospect, counts)
            steps[f"{share:g} {name}"] = step
            bare: Mapping[str, int] = pruning.counts_of(step)
            steps[f"{share:g} {name}, not fitted"] = pruning.step(bare, samples=SAMPLES, fit=False)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), default="resnet20")
    parser.add_argument("--runtime", choices=["tflite", "onnxruntime"], default="onnxruntime")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = _rows(arguments.net, arguments.runtime, arguments.data, Path(temporary))
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    mine = (arguments.net, arguments.runtime)
    RESULTS.write_text(json.dumps([r for r in known if (r["net"], r["runtime"]) != mine] + rows, indent=1) + "\n")
    made = report.table(
        "budget, choice", "ms", "speed-up", "95 %", "top-1 %", "drop", "95 % ", right=("ms", "speed-up")
    )
    for row in rows:
        ratio, found = row["speed_up"], row["accuracy"]
        made.add_row(
            row["choice"], f"{row['ms']:.3f}", f"{ratio['value']:.2f}", f"{ratio['ci_low']:.2f}-{ratio['ci_high']:.2f}",
            f"{found['value']:.2f}", f"{found['drop']:.2f}", f"{found['drop_ci_low']:.2f}-{found['drop_ci_high']:.2f}",
        )  # fmt: skip
    Console().print(made)


def _rows(net: str, runtime: RuntimeName, data_folder: Path, folder: Path) -> list[dict[str, object]]:
    with tarfile.open(data_folder / "cifar10.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    found = model.load(
        f"tests.zoo:{net}", folder / "model", trust=True, input_shapes=(1, 3, 32, 32),
        weights=data_folder / "models" / "resnet-cifar10" / CHECKPOINTS[net],
    )  # fmt: skip
    data = calibration.load(
        calibration.load_preset("cifar10-imagenet-stats"), found.inputs, data=folder / "cifar10" / "train",
        evaluation=folder / "cifar10" / "test", calibration_samples=SAMPLES,
    )  # fmt: skip
    steps = choices(found, data, runtime, folder)
    plan = Plan(runtime=runtime, precision="fp32")
    files: dict[str, Artifact] = {"whole": _file(found, plan, folder / "whole")}
    for number, (name, step) in enumerate(steps.items()):
        target = folder / f"pruned{number}"
        smaller = pruning.apply(found, found, step, data.calibration, _made(target), Silent())
        files[name] = _file(smaller, replace(plan, steps=(step,)), target)
    with LocalTransport() as transport:
        options = bench.BenchOptions(threads=1, percentile=50.0, warmup_s=0.3, min_runs=50, min_seconds=1.0, seed=0)
        measured = bench.measure([*files.values()], transport, options)
    reference = evaluate.reference(execute.original(found), data.evaluation)
    return [
        {
            "net": net, "runtime": runtime, "choice": name, "ms": measured.measurements[i].value_ms,
            "speed_up": to_builtins(measured.ratio(0, i)), "samples": SAMPLES, "seed": 0,
            "accuracy": to_builtins(evaluate.accuracy(execute.artifact(artifact), reference, data.evaluation)),
        }
        for i, (name, artifact) in enumerate(files.items())
    ]  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file(made: Model, plan: Plan, folder: Path) -> Artifact:
    return lower.RUNTIMES[plan.runtime].lower(made, plan, [], _made(folder))


if __name__ == "__main__":
    main()
