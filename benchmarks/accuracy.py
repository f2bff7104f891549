"""INT8 against float on real data: CIFAR ResNets through every runtime and precision, on all test images.

    python benchmarks/accuracy.py --data FOLDER [--net resnet20] [--runtime tensorrt]

Each file is built as a user would build it (calibrated on 200 training images, chosen on nothing) and evaluated on the
whole test folder; the drop is paired with the original on the same images. TensorRT's files are those that the device
builds from, run by ONNX Runtime. Writes ``benchmarks/results/accuracy.json``, where rows not made again stay.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from pathlib import Path

from rich.console import Console

from edgecompile import pipeline, report
from edgecompile.bundle import Manifest
from edgecompile.errors import UnsupportedModelError
from edgecompile.types import BuildRequest, Precision, RuntimeName, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th"}
CASES: tuple[tuple[RuntimeName, Precision], ...] = (
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("tflite", "fp32"),
    ("tflite", "fp16"),
    ("tflite", "int8"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
)


def build(net: str, data: Path, images: Path, out: Path, runtime: RuntimeName, precision: Precision) -> Manifest:
    """One build of one runtime and precision. The budget is beside the point, so it is a generous one."""
    request = BuildRequest(
        model=f"tests.zoo:{net}",
        weights=data / "models" / "resnet-cifar10" / CHECKPOINTS[net],
        trust=True,
        input_shapes=(("", (1, 3, 32, 32)),),
        target="orin-nano" if runtime == "tensorrt" else "x86",
        out=out,
        budget_ms=1000.0,
        data=images / "train",
        evaluation=images / "test",
        preset="cifar10-imagenet-stats",
        runtimes=(runtime,),
        precisions=(precision,),
        threads=1,
    )
    return pipeline.build(request, report.Face(quiet=True)).bundle.manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with cifar10.tar.gz and models/")
    parser.add_argument("--net", choices=sorted(CHECKPOINTS), action="append", help="default: both")
    parser.add_argument("--runtime", choices=sorted({r for r, _ in CASES}), action="append", help="default: all")
    arguments = parser.parse_args()
    made = report.table("net", "file", "size", "top-1 %", "95 %", "drop", "95 % ", right=("size", "top-1 %", "drop"))
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "cifar10"
        with tarfile.open(arguments.data / "cifar10.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        for net in arguments.net or sorted(CHECKPOINTS):
            for runtime, precision in CASES:
                if arguments.runtime and runtime not in arguments.runtime:
                    continue
                out = Path(folder) / f"{net}-{runtime}-{precision}"
                try:
                    manifest = build(net, arguments.data, images, out, runtime, precision)
                except UnsupportedModelError as exc:
                    made.add_row(net, f"{runtime}-{precision}", "-", "-", exc.message, "-", "")
                    continue
                found, original = manifest.accuracy, manifest.original_accuracy
                assert found is not None
                assert original is not None
                if not any(r["net"] == net for r in results):
                    made.add_row(net, "original", "", f"{original.value:.2f}", _interval(original), "", "")
                made.add_row(
                    net,
                    f"{manifest.plan.label} ({manifest.path_taken})",
                    report.size(manifest.model_file.size_bytes),
                    f"{found.value:.2f}",
                    _interval(found),
                    report.drop(found),
                    f"{found.drop_ci_low:.2f}-{found.drop_ci_high:.2f}",
                )
                results.append(
                    {
                        "net": net,
                        "file": manifest.plan.label,
                        "path": manifest.path_taken,
                        "size_bytes": manifest.model_file.size_bytes,
                        "accuracy": to_builtins(found),
                        "original": to_builtins(original),
                        "seed": manifest.seed,
                        "versions": manifest.versions,
                    }
                )
    Console().print(made)
    RESULTS.write_text(json.dumps(_merged(results), indent=1) + "\n")


def _merged(results: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows just made among those of earlier runs, by net."""
    made = {(row["net"], row["file"]) for row in results}
    before = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    kept = [row for row in before if (row["net"], row["file"]) not in made]
    return sorted([*kept, *results], key=lambda row: str(row["net"]))


def _interval(value: object) -> str:
    return f"{value.ci_low:.2f}-{value.ci_high:.2f}"  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
