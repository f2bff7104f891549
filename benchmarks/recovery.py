"""What training recovers: ResNets without some blocks, distilled from the whole net, against the whole net fine-tuned.

    python -m benchmarks.recovery --data ../shared/data --work WORK [--net resnet20] [--steps 18000]
        [--stage prepare|train|measure|all] [--only NAME]

``prepare`` leaves out the blocks that cost the network least (2, 3 and 4 of them), fitted on 500 unlabelled training
images, and writes the graphs down. ``train`` needs torch, onnx, numpy, msgspec and pillow only and may run on another
machine, with WORK and the data folder copied there; it uses CUDA where there is any. Every net gets the same number of
steps on the same images, with the original's outputs and the labels as aims; so does the original itself (``whole``),
which is the baseline: without that, adapting to these images would look like recovery. ``measure`` quantizes every net
for both runtimes, measures all files interleaved with the original's float files, and evaluates each net's fastest INT8
file on the 5,000 test images, on which nothing is chosen. Writes ``benchmarks/results/recovery.json``.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecompile import calibration
from edgecompile.progress import Silent
from edgecompile.types import Model, TensorSpec, file_sha256

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recovery.json"
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
DROPS = {"resnet20": (1, 2, 3), "resnet32": (2, 4, 6)}
#: How each net is trained: options of the technique beside the number of steps and samples.
RECIPES: dict[str, dict[str, Any]] = {"kl": {}, "kl+labels": {"label_weight": 1.0}}
SAMPLES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what the stages hand on")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), default="resnet20")
    parser.add_argument("--steps", type=int, default=18000)
    parser.add_argument("--stage", choices=["prepare", "train", "measure", "all"], default="all")
    parser.add_argument("--only", help="train this net alone: several can be trained side by side")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name, stage in (("prepare", prepare), ("train", train), ("measure", measure)):
        if arguments.stage in (name, "all"):
            stage(arguments)


def _data(arguments: argparse.Namespace, *, training: int | None, evaluation: bool) -> calibration.CalibrationSet:
    folder = arguments.work / "images"
    if not (folder / "cifar10").is_dir():
        with tarfile.open(arguments.data / "cifar10.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return calibration.load(
        calibration.load_preset("cifar10-imagenet-stats"),
        (TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"),),
        data=folder / "cifar10" / "train", evaluation=folder / "cifar10" / "test" if evaluation else None,
        training_samples=training, validation_samples=1000, calibration_samples=SAMPLES,
        evaluation_samples=None if evaluation else 1,
    )  # fmt: skip


def _nets(arguments: argparse.Namespace) -> list[str]:
    return [f"{arguments.net}-whole", *(f"{arguments.net}-without{n}" for n in DROPS[arguments.net])]


def _model(path: Path) -> Model:
    spec = (TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"),)
    outputs = (TensorSpec(name=_output(path), shape=(1, 10), dtype="float32"),)
    return Model(
        name=path.stem, path=path, original_path=path, inputs=spec, outputs=outputs, source=path.name, kind="onnx",
        sha256=file_sha256(path), parameters=0,
    )  # fmt: skip


def _output(path: Path) -> str:
    import onnx

    return str(onnx.load(str(path)).graph.output[0].name)


# ----------------------------------------------------------------------------------------------- prepare


def prepare(arguments: argparse.Namespace) -> None:
    import onnx

    from edgecompile import model
    from edgecompile.techniques import blocks, channels

    whole = arguments.work / f"{arguments.net}-whole.onnx"
    found = model.load(
        f"tests.zoo:{arguments.net}", arguments.work / "model", trust=True, input_shapes=(1, 3, 32, 32),
        weights=arguments.data / "models" / "resnet-cifar10" / CHECKPOINTS[arguments.net],
    )  # fmt: skip
    whole.write_bytes(found.path.read_bytes())
    samples = _data(arguments, training=0, evaluation=False).calibration
    proto = onnx.load(str(whole))
    lost = blocks.losses(channels.analyze(proto), blocks.find(proto), [samples[i] for i in range(SAMPLES)])
    order = sorted(lost, key=lambda name: lost[name])
    for count in DROPS[arguments.net]:
        folder = arguments.work / f"dropped{count}"
        folder.mkdir(exist_ok=True)
        step = blocks.step(order[:count], samples=SAMPLES)
        made = blocks.apply(_model(whole), _model(whole), step, samples, folder, Silent())
        (arguments.work / f"{arguments.net}-without{count}.onnx").write_bytes(made.path.read_bytes())
        print(f"without {count}: {', '.join(order[:count])}", flush=True)


# ------------------------------------------------------------------------------------------------- train


def train(arguments: argparse.Namespace) -> None:
    from edgecompile.techniques import distill, training

    data = None
    for net in _nets(arguments):
        for recipe, options in RECIPES.items():
            name = f"{net}-{recipe}"
            target = arguments.work / f"{name}.onnx"
            # The original imitates itself already: only labels can change it.
            if target.is_file() or (arguments.only not in (None, name)) or (net.endswith("whole") and recipe == "kl"):
                continue
            data = data or _Labelled(_data(arguments, training=None, evaluation=False).training)
            original = _model(arguments.work / f"{arguments.net}-whole.onnx")
            step = distill.step(steps=arguments.steps, samples=len(data), **options)
            folder = arguments.work / f"{name}.work"
            folder.mkdir(exist_ok=True)
            start = time.perf_counter()
            with training.checkpoints_in(arguments.work / "checkpoints"):
                made = distill.apply(original, _model(arguments.work / f"{net}.onnx"), step, data, folder, Silent())
            target.write_bytes(made.path.read_bytes())
            print(f"{name}: {arguments.steps} steps, {time.perf_counter() - start:.0f} s; {made.notes[-1]}", flush=True)


class _Labelled(list[Any]):
    """All samples in memory, with their labels."""

    def __init__(self, samples: Any) -> None:
        super().__init__(samples[i] for i in range(len(samples)))
        self.labels = samples.labels


# ----------------------------------------------------------------------------------------------- measure


def measure(arguments: argparse.Namespace) -> None:
    from edgecompile import bench, evaluate, execute, lower
    from edgecompile.transport.local import LocalTransport
    from edgecompile.types import Artifact, Plan, to_builtins

    data = _data(arguments, training=0, evaluation=True)
    samples = [data.calibration[i] for i in range(200)]
    original = _model(arguments.work / f"{arguments.net}-whole.onnx")
    files: dict[str, Artifact] = {}
    trained = [f"{net}-{recipe}" for net in _nets(arguments) for recipe in RECIPES]
    for name in [*_nets(arguments), *trained]:
        path = arguments.work / f"{name}.onnx"
        if not path.is_file():
            continue
        for runtime in ("onnxruntime", "tflite"):
            folder = arguments.work / "files" / f"{name}-{runtime}"
            folder.mkdir(parents=True, exist_ok=True)
            runs = lower.RUNTIMES[runtime]
            plan = Plan(runtime=runtime, precision="fp32")
            floating = runs.lower(_model(path), plan, samples, folder)
            files[f"{name} {runtime} fp32"] = floating
            int8 = replace(plan, precision="int8", calibration_samples=200)
            files[f"{name} {runtime} int8"] = runs.lower(_model(path), int8, samples, folder, float_artifact=floating)
    names = list(files)
    with LocalTransport() as transport:
        options = bench.BenchOptions(threads=1, percentile=50.0, warmup_s=0.3, min_runs=50, min_seconds=1.0, seed=0)
        measured = bench.measure([*files.values()], transport, options)
    base = min(
        (i for i, n in enumerate(names) if n.startswith(f"{arguments.net}-whole ") and n.endswith("fp32")),
        key=lambda i: measured.measurements[i].value_ms,
    )
    reference = evaluate.reference(execute.original(original), data.evaluation)
    rows = [
        {
            "net": arguments.net, "file": name, "steps": arguments.steps, "seed": 0,
            "ms": measured.measurements[i].value_ms, "speed_up": to_builtins(measured.ratio(base, i)),
            "accuracy": to_builtins(evaluate.accuracy(execute.artifact(files[name]), reference, data.evaluation)),
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    RESULTS.write_text(json.dumps([r for r in known if r["net"] != arguments.net] + rows, indent=1) + "\n")
    for row in rows:
        speed, found = row["speed_up"], row["accuracy"]
        print(f"{row['file']:45s} {row['ms']:.3f} ms  {_range(speed)}  top-1 {_range(found)}")


def _range(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} [{found['ci_low']:.2f}, {found['ci_high']:.2f}]"


if __name__ == "__main__":
    main()
