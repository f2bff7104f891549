"""What meeting a tighter budget costs without any training: the search's choices against plainer ones.

    python -m benchmarks.budget --data FOLDER --work WORK [--net resnet20] [--stage table|make|measure|evaluate|all]

CIFAR ResNets on this machine, TFLite (the fastest here), one thread; 500 unlabelled training images. Budgets are
shares of what the float32 file takes, one for float32 and two for INT8. For each, channels and blocks are chosen by
the search, by a greedy rule (one step at a time, where a millisecond costs least) and uniformly (every group of
channels keeps the same share), all in the same measured table of operators, set right by the whole net; the layers are
then fitted. ``not fitted`` is the uniform choice by magnitude, with nothing fitted. ``make`` measures the table and
makes the files; ``measure`` times all of them interleaved with the original's float files of both runtimes, and
evaluates them on the 5,000 test images, on which nothing is chosen. It starts from what ``benchmarks.budgets --stage
explore`` keeps in WORK. Writes ``benchmarks/results/budget.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.accuracy import CHECKPOINTS
from benchmarks.budgets import Explored, latencies, measured, plans
from edgecompile import allocation, evaluate, execute, report, shrink
from edgecompile.types import Artifact, Plan, Step, digest, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "budget.json"
SHARES = {"fp32": (0.65,), "int8": (0.25, 0.2)}
METHODS = {"search": allocation.solve, "greedy": allocation.greedy, "uniform": allocation.uniform}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is kept")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), default="resnet20")
    parser.add_argument("--stage", choices=["table", "make", "measure", "evaluate", "all"], default="all")
    arguments = parser.parse_args()
    found = Explored(arguments.data, arguments.work, arguments.net, evaluation=True)
    chosen = choices(found)
    if arguments.stage == "table":
        return
    files = _files(found, chosen)
    if arguments.stage == "make":
        return
    floats = [name for name in files if name.startswith("whole") and name.endswith("fp32")]
    times = latencies(files, floats, found.work / "budget-latencies.json")
    if arguments.stage == "measure":
        return
    rows = _rows(arguments.net, found, files, chosen, times)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    RESULTS.write_text(json.dumps([r for r in known if r["net"] != arguments.net] + rows, indent=1) + "\n")
    _show(rows)


def choices(found: Explored) -> dict[str, tuple[Plan, tuple[Step, ...], bool]]:
    """What is compared, by name: how it runs, its steps, and whether it is fitted. Chosen once for a work folder."""
    kept = found.work / "choices.json"
    if not kept.is_file():
        kept.write_text(json.dumps(_chosen(found), indent=1) + "\n")
    ways = plans("all", "tflite")
    made: dict[str, tuple[Plan, tuple[Step, ...], bool]] = {}
    for row in json.loads(kept.read_text()):
        steps = shrink.steps(found.prospect, row["counts"])
        made[row["name"]] = (ways[row["way"]], steps, True)
        if row["method"] == "uniform":
            bare = tuple(
                replace(s, options=tuple({**dict(s.options), "importance": "magnitude"}.items())) for s in steps
            )
            made[row["name"] + ", not fitted"] = (ways[row["way"]], bare, False)
    return made


def _by_magnitude(step: Step) -> Step:
    return replace(step, options=tuple({**dict(step.options), "importance": "magnitude"}.items()))


def _chosen(found: Explored) -> list[dict[str, Any]]:
    ways = plans("all", "tflite")
    files = [found.file(found.model, plan, "whole") for plan in ways.values()]
    whole = dict(zip(ways, measured(files).measurements, strict=True))
    rows = []
    for way, plan in ways.items():
        space = found.space(plan)
        scale = whole[way].value_ms / space.ms(space.whole())
        for share in SHARES[way]:
            for method, choose in METHODS.items():
                counts = choose(space, share * whole["fp32"].value_ms / scale)
                if counts is not None:
                    rows.append({"name": f"{way} {share:g} {method}", "way": way, "method": method, "counts": counts})
    return rows


def _files(found: Explored, chosen: dict[str, tuple[Plan, tuple[Step, ...], bool]]) -> dict[str, Artifact]:
    files = {
        f"whole {runtime} {precision}": found.file(
            found.model, Plan(runtime=runtime, precision=precision), f"whole-{runtime}"  # type: ignore[arg-type]
        )
        for runtime in ("onnxruntime", "tflite")
        for precision in ("fp32", "int8")
    }  # fmt: skip
    for name, (plan, steps, fit) in chosen.items():
        # The same net may be asked for twice.
        key = digest(found.model.sha256, steps, fit)[:16]
        path = found.work / "made" / key / str(len(steps) - 1) / "model.onnx"
        made = found.at(path) if path.is_file() else found.made(steps, key, fit=fit)
        files[name] = found.file(made, plan, key)
        print(f"made {name}", flush=True)
    return files


def _rows(
    net: str,
    found: Explored,
    files: dict[str, Artifact],
    chosen: dict[str, tuple[Plan, tuple[Step, ...], bool]],
    times: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    reference = evaluate.reference(execute.original(found.model), found.data.evaluation)
    return [
        {
            "net": net, "choice": name, "samples": len(found.samples), "seed": 0, **times[name],
            "steps": to_builtins(chosen[name][1]) if name in chosen else [],
            "accuracy": to_builtins(
                evaluate.accuracy(execute.artifact(artifact), reference, found.data.evaluation)
            ),
        }
        for name, artifact in files.items()
    ]  # fmt: skip


def _show(rows: list[dict[str, Any]]) -> None:
    made = report.table("choice", "ms", "speed-up", "95 %", "top-1 %", "drop", "95 % ", right=("ms", "speed-up"))
    for row in rows:
        ratio, found = row["speed_up"], row["accuracy"]
        made.add_row(
            row["choice"], f"{row['ms']:.3f}", f"{ratio['value']:.2f}", f"{ratio['ci_low']:.2f}-{ratio['ci_high']:.2f}",
            f"{found['value']:.2f}", f"{found['drop']:.2f}", f"{found['drop_ci_low']:.2f}-{found['drop_ci_high']:.2f}",
        )  # fmt: skip
    Console().print(made)


if __name__ == "__main__":
    main()
