"""What training recovers: ResNets without some blocks, and students, against the original trained on the same images.

    python -m benchmarks.training --data FOLDER --work WORK [--only NAME]
        [--stage images|prepare|train|files|measure|evaluate|write|all]

``images`` decodes the training images. ``prepare`` leaves out the blocks that cost CIFAR ResNet-20 least, fitted on
500 unlabelled training images. ``train`` trains the nets of `NETS`, those that teach first; it needs torch, onnx,
numpy, msgspec and pillow only and may run on another machine, with WORK and the data folder copied there, several nets
side by side (``--only``); it uses CUDA where there is any. The baseline is the original itself, trained for as long on
the same images: without that, adapting to these images would look like recovery. Recipes were compared on a tenth of
the training images that was held back (``held``; its accuracy is printed). ``files`` converts and
quantizes the nets for both runtimes, ``measure`` times all files interleaved, one thread, and ``evaluate``
runs them on the 5,000 test images, on which nothing is chosen. What is in WORK is not made again. Writes
``benchmarks/results/training.json``.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompile import calibration
from edgecompile.progress import Silent
from edgecompile.techniques import student_family, student_net, teaching, training
from edgecompile.techniques.training import TrainingOptions
from edgecompile.types import Artifact, Model, TensorSpec, file_sha256

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "training.json"
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
#: A net of 17 M multiply-accumulates: of those that are three times as fast as ResNet-32, the most promising.
STUDENT = "fused-w0.5-d1.2.3.2-s1.1.2.2.1-e2-k3-relu-t8"
FACE = student_family.Interface(input="x", channels=3, height=32, width=32, output="logits", classes=10)
DROPS, SAMPLES = (1, 2, 3), 500

_SGD: dict[str, Any] = {"batch": 256, "optimizer": "sgd", "decay": 5e-4, "augment": "flip+shift"}
_GENTLE = {**_SGD, "rate": 0.03, "batch_norm": True}
_STRONG = {**_SGD, "rate": 0.1, "batch_norm": True}
_NEW = {**_SGD, "rate": 0.2}
_RELATIONS = {"loss": "dist", "temperature": 1.0, "label_weight": 0.3, "feature_weight": 1.0}
_PATIENT = {"label_weight": 0.1, "temperature": 4.0}
_LABELS = {"loss": "labels"}
_MIX = {"augment": "flip+shift+mix"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """One training: ``start`` is a prepared graph or a student's architecture, ``teacher`` a graph or another net.

    ``held`` is the share of the training images that is not trained on; ``steps`` are those that were done.
    """

    start: str
    steps: int
    options: Mapping[str, Any]
    teacher: str = ""
    held: float = 0.1


#: In an order in which teachers come first.
NETS: dict[str, Net] = {
    "resnet20 tuned": Net(start="resnet20-whole", steps=1636, options={**_GENTLE, **_LABELS}),
    "resnet20 tuned, all images": Net(start="resnet20-whole", steps=2345, options={**_GENTLE, **_LABELS}, held=0.0),
    "resnet20 tuned, strongly": Net(start="resnet20-whole", steps=1628, options={**_STRONG, **_LABELS}),
    "resnet32 tuned": Net(start="resnet32-whole", steps=1534, options={**_STRONG, **_LABELS}),
    "resnet20 without 2, relations": Net(
        start="resnet20-without2", steps=1807, options={**_GENTLE, **_RELATIONS}, teacher="resnet20 tuned", held=0.0
    ),
    "resnet20 without 3, labels": Net(start="resnet20-without3", steps=2338, options={**_STRONG, **_LABELS}),
    "resnet20 without 3, untuned teacher": Net(
        start="resnet20-without3", steps=2467, options={**_STRONG, "label_weight": 0.5, "temperature": 4.0},
        teacher="resnet20-whole",
    ),
    "resnet20 without 3, divergence": Net(
        start="resnet20-without3", steps=2360, options={**_STRONG, "label_weight": 0.5},
        teacher="resnet20 tuned, strongly",
    ),
    "resnet20 without 3, relations": Net(
        start="resnet20-without3", steps=2417, options={**_STRONG, **_RELATIONS}, teacher="resnet20 tuned, strongly"
    ),
    "student, labels": Net(start=STUDENT, steps=1937, options={**_NEW, **_LABELS}),
    "student, labels, mixed": Net(start=STUDENT, steps=1954, options={**_NEW, **_LABELS, **_MIX}),
    "student, labels, AdamW": Net(
        start=STUDENT, steps=1924,
        options={"batch": 256, "rate": 4e-3, "decay": 0.05, "augment": "flip+shift", **_LABELS},
    ),
    "student, distilled": Net(
        start=STUDENT, steps=2077, options={**_NEW, **_PATIENT}, teacher="resnet32 tuned"
    ),
    "student, distilled, mixed": Net(
        start=STUDENT, steps=1727, options={**_NEW, **_PATIENT, **_MIX}, teacher="resnet32 tuned"
    ),
    "student, distilled, features": Net(
        start=STUDENT, steps=1819, options={**_NEW, "label_weight": 0.5, "feature_weight": 1.0},
        teacher="resnet32 tuned",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what the stages hand on")
    parser.add_argument(
        "--stage", choices=["images", "prepare", "train", "files", "measure", "evaluate", "write", "all"], default="all"
    )
    parser.add_argument("--only", choices=sorted(NETS), help="train this net alone")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    stages = (("images", images), ("prepare", prepare), ("train", train), ("files", _files), ("measure", measure),
              ("evaluate", evaluate), ("write", write))  # fmt: skip
    for name, stage in stages:
        if arguments.stage in (name, "all"):
            stage(arguments)


def _data(arguments: argparse.Namespace, *, training_samples: int | None, evaluation: bool) -> Any:
    folder = arguments.work / "images"
    if not (folder / "cifar10").is_dir():
        with tarfile.open(arguments.data / "cifar10.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return calibration.load(
        calibration.load_preset("cifar10-imagenet-stats"),
        (TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"),),
        data=folder / "cifar10" / "train", evaluation=folder / "cifar10" / "test",
        training_samples=training_samples, validation_samples=1, calibration_samples=SAMPLES,
        evaluation_samples=None if evaluation else 1,
    )  # fmt: skip


def _model(path: Path) -> Model:
    import onnx

    name = str(onnx.load(str(path)).graph.output[0].name)
    return Model(
        name=path.stem, path=path, original_path=path,
        inputs=(TensorSpec(name="x", shape=(1, 3, 32, 32), dtype="float32"),),
        outputs=(TensorSpec(name=name, shape=(1, 10), dtype="float32"),), source=path.name, kind="onnx",
        sha256=file_sha256(path), parameters=0,
    )  # fmt: skip


def _file(arguments: argparse.Namespace, name: str) -> Path:
    found: Path = arguments.work / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
    return found


# -------------------------------------------------------------------------------------- images and starting points


def images(arguments: argparse.Namespace) -> None:
    """All training images as the nets take them, shuffled, with their labels."""
    import numpy as np

    if (arguments.work / "labels.npy").is_file():
        return
    data = _data(arguments, training_samples=None, evaluation=False)
    parts = (data.calibration, data.training)
    found = np.concatenate([np.concatenate([part[i]["x"] for i in range(len(part))]) for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    order = np.random.default_rng(0).permutation(len(labels))
    np.save(arguments.work / "images.npy", found[order])
    np.save(arguments.work / "labels.npy", labels[order])


def prepare(arguments: argparse.Namespace) -> None:
    import onnx

    from edgecompile import model
    from edgecompile.techniques import blocks, channels

    for net, checkpoint in CHECKPOINTS.items():
        whole = _file(arguments, f"{net}-whole")
        if not whole.is_file():
            found = model.load(
                f"tests.zoo:{net}", arguments.work / "model", trust=True, input_shapes=(1, 3, 32, 32),
                weights=arguments.data / "models" / "resnet-cifar10" / checkpoint,
            )  # fmt: skip
            whole.write_bytes(found.path.read_bytes())
    whole = _file(arguments, "resnet20-whole")
    if all(_file(arguments, f"resnet20-without{count}").is_file() for count in DROPS):
        return
    samples = _data(arguments, training_samples=0, evaluation=False).calibration
    proto = onnx.load(str(whole))
    lost = blocks.losses(channels.analyze(proto), blocks.find(proto), [samples[i] for i in range(SAMPLES)])
    order = sorted(lost, key=lambda name: lost[name])
    for count in DROPS:
        folder = arguments.work / f"dropped{count}"
        folder.mkdir(exist_ok=True)
        step = blocks.step(order[:count], samples=SAMPLES)
        made = blocks.apply(_model(whole), _model(whole), step, samples, folder, Silent())
        _file(arguments, f"resnet20-without{count}").write_bytes(made.path.read_bytes())
        print(f"without {count}: {', '.join(order[:count])}", flush=True)


# ------------------------------------------------------------------------------------------------- train


def train(arguments: argparse.Namespace) -> None:
    for name, net in NETS.items():
        if not _file(arguments, name).is_file() and arguments.only in (None, name):
            _train(arguments, name, net)


def _train(arguments: argparse.Namespace, name: str, net: Net) -> None:
    import numpy as np
    import onnx
    import torch

    from edgecompile.techniques import features
    from edgecompile.techniques.torch_graph import from_onnx

    kept = torch.from_numpy(np.load(arguments.work / "images.npy"))
    labels = torch.from_numpy(np.load(arguments.work / "labels.npy")).long()
    count = len(kept) - round(net.held * len(kept))
    stacks = {"x": kept[:count]}
    options = TrainingOptions(steps=net.steps, samples=count, **net.options)
    taught = onnx.load(str(_file(arguments, net.teacher))) if net.teacher else None
    if net.start == STUDENT:
        header = student_net.Header(opset=17, ir_version=8)
        face = replace(FACE, output=_model(_file(arguments, "resnet32-whole")).outputs[0].name)
        module: Any = student_net.build(student_family.parse(STUDENT), face, header, options.seed)
        feature = student_net.FEATURES
    else:
        proto = onnx.load(str(_file(arguments, net.start)))
        module, feature = teaching.trainable(proto, stacks, options), features.pooled(proto)
    start = time.perf_counter()
    outcome = training.train(
        from_onnx(taught) if taught is not None else None, module, stacks, options, labels=labels[:count],
        features=(str(features.pooled(taught)), str(feature)) if taught is not None else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    made = student_net.to_onnx(module) if net.start == STUDENT else module.to_onnx()
    onnx.save(made, str(_file(arguments, name)))
    said = {
        "steps": outcome.steps, "images": count, "seconds": round(seconds),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "held_out_top1": 100 * _right(module, kept[count:], labels[count:]) if net.held else None,
    }  # fmt: skip
    _file(arguments, name).with_suffix(".json").write_text(json.dumps(said) + "\n")
    print(f"{name}: {said}", flush=True)


def _right(module: Any, kept: Any, labels: Any) -> float:
    import torch

    with torch.no_grad():
        found = torch.cat([next(iter(module({"x": part}).values())).argmax(1) for part in kept.split(500)])
    return float((found == labels).double().mean())


# ----------------------------------------------------------------------------------------------- measure


def measure(arguments: argparse.Namespace) -> None:
    """The latency of every file; kept, so that it is not measured again."""
    _latencies(arguments, _files(arguments))


def _files(arguments: argparse.Namespace) -> dict[str, Artifact]:
    """The files of all nets that are there, by net and way; made once."""
    from edgecompile.types import decode, encode

    starts = [*(f"{net}-whole" for net in CHECKPOINTS), *(f"resnet20-without{count}" for count in DROPS)]
    files: dict[str, Artifact] = {}
    samples: list[Any] = []
    for name in [*starts, *NETS]:
        if not _file(arguments, name).is_file():
            continue
        kept = arguments.work / "files" / f"{_file(arguments, name).stem}.json"
        if not kept.is_file():
            data = _data(arguments, training_samples=0, evaluation=False).calibration if not samples else None
            samples = samples or [data[i] for i in range(200)]
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(encode(_Files(by_way=_lowered(arguments, name, samples))))
        files |= {f"{name}: {way}": made for way, made in decode(kept.read_bytes(), _Files).by_way.items()}
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """A net's files by runtime and precision."""

    by_way: dict[str, Artifact]


def _latencies(arguments: argparse.Namespace, files: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    from benchmarks.budgets import latencies

    found: dict[str, dict[str, Any]] = {}
    for net in CHECKPOINTS:
        mine = {name: artifact for name, artifact in files.items() if _family(name) == net}
        bases = [name for name in mine if name.startswith(f"{net}-whole") and name.endswith("fp32")]
        found |= latencies(mine, bases, arguments.work / f"{net}-latencies.json")
    return found


def evaluate(arguments: argparse.Namespace) -> None:
    """The accuracy of every file on the test images; kept."""
    from edgecompile import evaluate as judge
    from edgecompile import execute
    from edgecompile.types import to_builtins

    kept = arguments.work / "accuracies.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    missing = {name: artifact for name, artifact in _files(arguments).items() if name not in known}
    data = _data(arguments, training_samples=0, evaluation=True) if missing else None
    references: dict[str, Any] = {}
    for key, artifact in missing.items():
        against = _baseline(key.split(": ")[0])
        if against not in references:
            run = execute.original(_model(_file(arguments, against)))
            references[against] = judge.reference(run, data.evaluation)
        found = judge.accuracy(execute.artifact(artifact), references[against], data.evaluation)
        known[key] = {"baseline": against, "accuracy": to_builtins(found)}
        kept.write_text(json.dumps(known, indent=1) + "\n")


def write(arguments: argparse.Namespace) -> None:
    """The results, and a table of them."""
    files = _files(arguments)
    times, found = _latencies(arguments, files), json.loads((arguments.work / "accuracies.json").read_text())
    rows = []
    for key in files:
        name, way = key.split(": ")
        rows.append({"net": name, "file": way, "training": _told(arguments, name), **times[key], **found[key]})
        print(f"{name:40s} {way:18s} {_range(rows[-1]['speed_up'])} {_range(rows[-1]['accuracy'])}")
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def _lowered(arguments: argparse.Namespace, name: str, samples: list[Any]) -> dict[str, Artifact]:
    from edgecompile import lower
    from edgecompile.types import Plan

    made: dict[str, Artifact] = {}
    source = _model(_file(arguments, name))
    for runtime in ("onnxruntime", "tflite"):
        folder = arguments.work / "files" / f"{source.path.stem}-{runtime}"
        folder.mkdir(parents=True, exist_ok=True)
        plan = Plan(runtime=runtime, precision="fp32")  # type: ignore[arg-type]
        floating = lower.RUNTIMES[plan.runtime].lower(source, plan, samples, folder)
        int8 = replace(plan, precision="int8", calibration_samples=len(samples))
        made[f"{runtime} fp32"] = floating
        made[f"{runtime} int8"] = lower.RUNTIMES[plan.runtime].lower(
            source, int8, samples, folder, float_artifact=floating
        )
    return made


def _told(arguments: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """How a net was trained and what came of it on the images that were held back."""
    path = _file(arguments, name).with_suffix(".json")
    if name not in NETS or not path.is_file():
        return None
    net = NETS[name]
    return {"teacher": net.teacher, "options": dict(net.options), **json.loads(path.read_text())}


def _family(name: str) -> str:
    return "resnet20" if name.startswith("resnet20") else "resnet32"


def _baseline(name: str) -> str:
    """What a net's drop is counted from: what was trained against the original trained as well, all else against the
    original as it came."""
    if name not in NETS:
        return f"{_family(name)}-whole"
    return f"{_family(name)} tuned"


def _range(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['ci_low']:.2f}, {found['ci_high']:.2f}]"


if __name__ == "__main__":
    main()
