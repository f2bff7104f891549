"""A student three times as fast as ResNet-32: trained by distillation, beside the same net trained from labels.

    python -m benchmarks.student --data ../shared/data --work WORK --minutes 60 [--stage choose|train|measure|all]

``choose`` (this machine, float32, one thread) times the single operators of the family, measures the most promising
nets interleaved with the original, and keeps the first that is three times as fast as the original's fastest file on
any runtime. It also writes down the training images. ``train`` needs torch, numpy and msgspec only and may run on
another machine, with WORK and the data folder copied there; it uses CUDA where there is any. Both nets get the same
steps, as many as fit in ``--minutes`` each. ``measure`` writes the ONNX files, measures them and evaluates the files
that ship on the 5,000 test images, on which nothing is chosen. What is in WORK is not made again, and a killed training
goes on. With ``--hold-out`` training leaves the last tenth of the (shuffled) training images out and tells the accuracy
on them: settings are to be compared on those, never on the test images. Writes ``benchmarks/results/student.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.techniques import student_family, student_net, student_training
from edgecompile.techniques.student_family import Interface

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgecompile.types import Artifact, Model

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "student.json"
CHECKPOINT = Path("models") / "resnet-cifar10" / "resnet32-d509ac18.th"
FACE = Interface(input="x", channels=3, height=32, width=32, output="logits", classes=10)
FASTER = 3.0
#: Nets that are measured whole before one is chosen, and what the table's sum has to promise.
TRIED, MARGIN = 6, 1.1
TEACHERS = ("distilled", "labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what the stages hand on")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, for each of the two nets")
    parser.add_argument("--stage", choices=["choose", "train", "measure", "all"], default="all")
    parser.add_argument("--architecture", help="train this one instead of choosing")
    parser.add_argument(
        "--hold-out", action="store_true", help="train on nine tenths and tell the accuracy on the rest"
    )
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--mix", type=float, default=0.5)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage in ("choose", "all"):
        choose(arguments)
    if arguments.stage in ("train", "all"):
        train(arguments)
    if arguments.stage in ("measure", "all"):
        measure(arguments)


# ------------------------------------------------------------------------------------------------ choose


def choose(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not (arguments.work / "train.npz").is_file():
            _write_images(arguments, folder)
        if not (arguments.work / "choice.json").is_file():
            found = _chosen(_original(arguments.data, folder), arguments, folder)
            (arguments.work / "choice.json").write_text(json.dumps(found, indent=1) + "\n")
    print((arguments.work / "choice.json").read_text())


def _write_images(arguments: argparse.Namespace, folder: Path) -> None:
    """The training images as the net takes them, in half precision, shuffled, and their labels."""
    import numpy as np

    data = _data(arguments.data, folder, training=None)
    parts = (data.calibration, data.training)
    images = np.concatenate([np.stack([part[i]["x"][0] for i in range(len(part))]) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.random.default_rng(0).permutation(len(labels))
    np.savez(arguments.work / "train.npz", images=images[order].astype(np.float16), labels=labels[order])


def _chosen(original: Model, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from edgecompile import students, tables
    from edgecompile.techniques import student

    def timed(keys: Any) -> Any:
        return tables.measure(
            keys, runtime="onnxruntime", precision="fp32", threads=1, workdir=folder / "operators",
            cache=arguments.work / "cache",
        )  # fmt: skip

    import onnx

    whole = [key for _, key in tables.keys_of(onnx.load(str(original.path)))]
    times = timed(list(dict.fromkeys(whole)))
    budget_ms = sum(times[key] for key in whole) / (FASTER * MARGIN)
    ranked = students.rank(student.candidates(original, 8), budget_ms, timed, model=original)
    if arguments.architecture:
        architecture = student_family.parse(arguments.architecture)
        return {"architecture": architecture.code, "tried": []}
    models: list[tuple[str, Model]] = []
    for number, found in enumerate(ranked[:TRIED]):
        module = student.net(found.architecture, original)
        models.append((found.architecture.code, _saved(original, module, folder / f"student{number}.onnx")))
    rows = _measured(original, models, folder)
    tried = [{**row, "predicted_ms": r.predicted_ms} for row, r in zip(rows, ranked, strict=False)]
    fast = [row for row in tried if row["speed_up"]["ci_low"] >= FASTER]
    if not fast:
        raise SystemExit(f"none of {TRIED} nets is {FASTER:g} times as fast: {json.dumps(tried)}")
    return {"architecture": fast[0]["name"], "budget_ms": budget_ms, "in_budget": len(ranked), "tried": tried}


# ------------------------------------------------------------------------------------------------- train


def train(arguments: argparse.Namespace) -> None:
    """Both nets; the one taught by the original first, which is slower a step: its number of steps holds for both."""
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kept = np.load(arguments.work / "train.npz")
    images, labels = torch.from_numpy(kept["images"]).float(), torch.from_numpy(kept["labels"]).long()
    held = len(images) // 10 if arguments.hold_out else 0
    architecture = student_family.parse(json.loads((arguments.work / "choice.json").read_text())["architecture"])
    teacher = _teacher(arguments.data, device)
    part = len(images) - held
    options = student_training.Options(
        steps=1, rate=arguments.rate, temperature=arguments.temperature, mix=arguments.mix
    )

    def trainer(teaches: str, steps: int, checkpoint: Path | None) -> student_training.Trainer:
        return student_training.Trainer(
            student=student_net.build(architecture, FACE, student_net.Header(opset=17, ir_version=8), seed=0),
            images=images[:part], labels=labels[:part] if teaches == "labels" else None,
            teacher=teacher if teaches == "distilled" else None, options=replace(options, steps=steps),
            device=device, checkpoint=checkpoint,
        )  # fmt: skip

    plan = _steps(arguments, device, part, lambda steps: trainer("distilled", steps, None))
    for teaches in TEACHERS:
        done = arguments.work / f"{teaches}.pt"
        made = trainer(teaches, plan["steps"], arguments.work / f"{teaches}.checkpoint")
        if done.is_file():
            made.student.load_state_dict(torch.load(done, weights_only=True))
        else:
            start = time.perf_counter()
            loss = made.run(lambda count: None)
            print(f"{teaches}: {plan['steps']} steps on {device}, {time.perf_counter() - start:.0f} s, loss {loss:.3f}")
            torch.save(made.student.state_dict(), done)
        if held:
            print(
                f"{teaches}: {_right(made.student.eval(), images[part:], labels[part:]):.2%} of {held} held-out images"
            )


def _steps(
    arguments: argparse.Namespace, device: str, images: int, trainer: Callable[[int], student_training.Trainer]
) -> dict[str, Any]:
    """How many steps fit in the time, counted once: a training that goes on later has the same schedule."""
    path = arguments.work / "steps.json"
    if not path.is_file():
        times: list[float] = []
        trainer(15).run(lambda count: times.append(time.perf_counter()))
        seconds = statistics.median(b - a for a, b in itertools.pairwise(times[5:]))
        steps = max(1, round(60 * arguments.minutes / seconds))
        plan = {"steps": steps, "device": device, "minutes": arguments.minutes, "images": images,
                "rate": arguments.rate, "temperature": arguments.temperature, "mix": arguments.mix}  # fmt: skip
        path.write_text(json.dumps(plan) + "\n")
    found: dict[str, Any] = json.loads(path.read_text())
    given = {"images": images, "rate": arguments.rate, "temperature": arguments.temperature, "mix": arguments.mix}
    if any(found[name] != value for name, value in given.items()):
        raise SystemExit(f"{path} was made with other settings: {found}; give another --work")
    return found


def _teacher(data: Path, device: str) -> Callable[[Any], dict[str, Tensor]]:
    module = _resnet(data).to(device)
    return lambda inputs: {FACE.output: module(inputs[FACE.input])}


def _resnet(data: Path) -> nn.Module:
    import torch

    from tests import zoo

    module = zoo.build("resnet32")
    kept = torch.load(data / CHECKPOINT, map_location="cpu", weights_only=True)
    state = kept.get("state_dict", kept)
    module.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return module.eval()


def _right(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    import torch

    with torch.no_grad():
        found = torch.cat([module({FACE.input: part})[FACE.output].argmax(1) for part in images.split(500)])
    return float((found == labels).double().mean())


# ----------------------------------------------------------------------------------------------- measure


def measure(arguments: argparse.Namespace) -> None:
    import torch

    from edgecompile import evaluate, execute
    from edgecompile.types import to_builtins

    choice = json.loads((arguments.work / "choice.json").read_text())
    architecture = student_family.parse(choice["architecture"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        original = _original(arguments.data, folder)
        models: list[tuple[str, Model]] = []
        for teaches in TEACHERS:
            module = student_net.net(architecture, original)
            module.load_state_dict(torch.load(arguments.work / f"{teaches}.pt", weights_only=True))
            models.append((teaches, _saved(original, module.eval(), arguments.work / f"{teaches}.onnx")))
        rows = _measured(original, models, folder, files := {})
        data = _data(arguments.data, folder, training=0)
        reference = evaluate.reference(execute.original(original), data.evaluation)
        for row in rows:
            found = evaluate.accuracy(execute.artifact(files[row["name"]]), reference, data.evaluation)
            row["accuracy"] = to_builtins(found)
            interval = f"{found.value:.2f} % ({found.ci_low:.2f}-{found.ci_high:.2f})"
            print(f"{row['name']}: {row['speed_up']['value']:.2f} times as fast, {interval}")
    result = {"choice": choice, "training": json.loads((arguments.work / "steps.json").read_text()), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def _measured(
    original: Model, models: list[tuple[str, Model]], folder: Path, files: dict[str, Artifact] | None = None
) -> list[dict[str, Any]]:
    """Each model's fastest float file beside the original's, measured in one go; ``files`` is given the fastest."""
    from edgecompile import bench, lower
    from edgecompile.transport.local import LocalTransport
    from edgecompile.types import Plan, to_builtins

    artifacts: list[Artifact] = []
    for number, model in enumerate([original, *(model for _, model in models)]):
        for runtime in ("tflite", "onnxruntime"):
            target = folder / f"files{number}-{runtime}"
            target.mkdir()
            artifacts.append(lower.RUNTIMES[runtime].lower(model, Plan(runtime=runtime, precision="fp32"), [], target))
    with LocalTransport() as transport:
        options = bench.BenchOptions(threads=1, percentile=50.0, warmup_s=0.3, min_runs=50, min_seconds=1.0, seed=0)
        measured = bench.measure(artifacts, transport, options)

    def fastest(number: int) -> int:
        return min((2 * number, 2 * number + 1), key=lambda place: measured.measurements[place].value_ms)

    rows = []
    for number, (name, _) in enumerate(models, start=1):
        mine = fastest(number)
        if files is not None:
            files[name] = artifacts[mine]
        rows.append(
            {
                "name": name, "runtime": artifacts[mine].runtime, "ms": measured.measurements[mine].value_ms,
                "original_runtime": artifacts[fastest(0)].runtime,
                "original_ms": measured.measurements[fastest(0)].value_ms,
                "speed_up": to_builtins(measured.ratio(fastest(0), mine)),
            }
        )  # fmt: skip
    return rows


def _saved(original: Model, module: student_net.StudentNet, path: Path) -> Model:
    from edgecompile.types import file_sha256

    path.write_bytes(student_net.to_onnx(module).SerializeToString(deterministic=True))
    return replace(original, path=path, original_path=path, sha256=file_sha256(path), module=None)


def _original(data: Path, folder: Path) -> Model:
    from edgecompile import model

    return model.load(
        "tests.zoo:resnet32", folder / "model", trust=True, input_shapes=(1, 3, 32, 32), weights=data / CHECKPOINT
    )


def _data(data: Path, folder: Path, *, training: int | None) -> Any:
    from edgecompile import calibration
    from edgecompile.types import TensorSpec

    if not (folder / "cifar10").is_dir():
        with tarfile.open(data / "cifar10.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return calibration.load(
        calibration.load_preset("cifar10-imagenet-stats"),
        (TensorSpec(name=FACE.input, shape=(1, 3, 32, 32), dtype="float32"),),
        data=folder / "cifar10" / "train", evaluation=folder / "cifar10" / "test", training_samples=training,
        validation_samples=1, calibration_samples=200,
    )  # fmt: skip


if __name__ == "__main__":
    main()
