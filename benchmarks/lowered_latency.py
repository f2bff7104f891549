"""The quality of the lowered file: edgecompile's float and INT8 files against those of TensorFlow's converter.

    python -m benchmarks.lowered_latency                          # writes benchmarks/results/lowered_latency.json
    python -m benchmarks.lowered_latency --work DIR --only-make   # in pieces: TensorFlow's files, which take minutes,
    python -m benchmarks.lowered_latency --work DIR --only resnet50 vit_tiny     # some nets, then the others;
    python -m benchmarks.lowered_latency --work DIR               # what is measured is kept, and not measured again

The same prepared ONNX file stands behind all four files of a net: edgecompile's own lowering and its INT8 file, and
what TensorFlow's converter makes of onnx2tf's graph, float and full-integer INT8, on the same calibration samples. All
four take turns in one process with one thread, and that in fresh processes, round by round. A ratio is edgecompile's
median over TensorFlow's, with its 95 % interval; under 1 the lowered file is faster. Before that, each file's outputs
are held against the ONNX file's, since a wrong file may well be fast. Weights are random: latency does not depend on
them, accuracy does, so the INT8 files' signal-to-noise ratios only show that both compute the same net.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgecompile import bench, execute, lower, model, tflite_file
from edgecompile.errors import InputError
from edgecompile.lower import quantize_tflite
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Arrays, Artifact, Model, Plan, Precision, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "lowered_latency.json"
NETS = ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "resnet50", "shufflenet_v2_x1", "vit_tiny")
SIDES = ("edgecompile", "tensorflow")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SAMPLES = 16
_RESAMPLES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a net: who made it, what is in it, and how far its outputs are from the ONNX file's.

    ``error`` is the largest difference over the output's range, ``sqnr_db`` the signal over the noise.
    """

    side: str
    precision: Precision
    artifact: Artifact
    operators: int
    transposes: int
    delegated: int | None
    float_islands: int | None
    error: float
    sqnr_db: float


# ----------------------------------------------------------------------------------------------- making the files


def prepared(net: str, folder: Path) -> tuple[Model, list[Arrays]]:
    """The net as one ONNX file for all sides, and samples for calibration."""
    from tests import zoo

    source = zoo.export_onnx(zoo.build(net), zoo.input_shapes(net), folder / "exported.onnx")
    loaded = model.load(str(source), folder / "model")
    rng = np.random.default_rng(0)
    samples: list[Arrays] = [
        {spec.name: rng.normal(0, 1, spec.shape).astype(np.float32) for spec in loaded.inputs} for _ in range(SAMPLES)
    ]
    return loaded, samples


def own_files(loaded: Model, samples: Sequence[Arrays], folder: Path) -> dict[Precision, Artifact]:
    """edgecompile's files, by its own lowering."""
    made: dict[Precision, Artifact] = {}
    for precision in PRECISIONS:
        plan = Plan(runtime="tflite", precision=precision, calibration_samples=SAMPLES if precision == "int8" else 0)
        made[precision] = lower.RUNTIMES["tflite"].lower(
            loaded, plan, samples, folder, path="direct", float_artifact=made.get("fp32")
        )
    return made


def tensorflow_files(loaded: Model, samples: Sequence[Arrays], folder: Path) -> dict[Precision, Artifact]:
    """TensorFlow's files, made in a process of their own.

    Where LiteRT cannot run its INT8 file, its float file is quantized as edgecompile's is.
    """
    folder.mkdir(exist_ok=True)
    if not (folder / "made").is_file():
        _convert_in_child(loaded, samples, folder)
        (folder / "made").touch()
    made = {precision: bench.bare_file(folder / f"{precision}.tflite") for precision in PRECISIONS}
    try:
        execute.artifact(made["int8"])
    except InputError:
        # TensorFlow calibrates on the infinities that onnx2tf pads max pools with, and LiteRT refuses such scales.
        plan = Plan(runtime="tflite", precision="int8", calibration_samples=SAMPLES)
        made["int8"] = lower.RUNTIMES["tflite"].lower(loaded, plan, samples, folder / "again", path="onnx2tf")
    return made


def _convert_in_child(loaded: Model, samples: Sequence[Arrays], folder: Path) -> None:
    (spec,) = loaded.inputs
    np.save(folder / "samples.npy", np.concatenate([sample[spec.name] for sample in samples]))
    command = [sys.executable, "-m", "benchmarks.lowered_latency", "--convert", str(loaded.path), str(folder)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"onnx2tf or TensorFlow failed on {loaded.name}: {done.stderr[-2000:]}")


def convert_by_tensorflow(onnx_file: Path, folder: Path) -> None:
    """In the child: onnx2tf's graph through TensorFlow's converter, float and full-integer with float interface."""
    import onnx

    samples = np.load(folder / "samples.npy")
    last = np.ascontiguousarray(np.moveaxis(samples, 1, -1))
    (name,) = (value.name for value in onnx.load(onnx_file).graph.input)
    os.chdir(folder)
    np.save("input.npy", last[:1])
    # onnx2tf looks for this file before it downloads one; the name is its own.
    np.save("calibration_image_sample_data_20x128x128x3_float32.npy", last[:1])
    import onnx2tf
    import tensorflow as tf

    keras = onnx2tf.convert(
        input_onnx_file_path=str(onnx_file), output_folder_path="unused", verbosity="error", disable_model_save=True,
        custom_input_op_name_np_data_path=[[name, "input.npy"]], not_use_onnxsim=True,
        not_use_opname_auto_generate=True, replace_to_pseudo_operators=["erf"],
    )  # fmt: skip
    inputs = [tf.TensorSpec(tensor.shape, tensor.dtype, "input") for tensor in keras.inputs]
    holder = tf.Module()
    function = tf.function(lambda x: keras(x), input_signature=inputs).get_concrete_function()
    holder.function, holder.tracked = function, list(function.graph.variables)

    def converter() -> Any:
        return tf.lite.TFLiteConverter.from_concrete_functions([function], holder)

    Path("fp32.tflite").write_bytes(converter().convert())
    quantizing = converter()
    quantizing.optimizations = [tf.lite.Optimize.DEFAULT]
    quantizing.representative_dataset = lambda: ([sample[None]] for sample in last)
    quantizing.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    Path("int8.tflite").write_bytes(quantizing.convert())


# ------------------------------------------------------------------------------------------------ looking at them


def examined(side: str, artifact: Artifact, loaded: Model, samples: Sequence[Arrays]) -> File:
    """What is in a file, and how its outputs compare with the ONNX file's on two samples."""
    summary = tflite_file.describe(artifact.file)
    run, original = execute.artifact(artifact), execute.original(loaded)
    pairs = [_pair(run, original, sample, artifact, loaded) for sample in samples[:2]]
    noise = sum(float(np.square(found - expected).sum()) for found, expected in pairs)
    signal = sum(float(np.square(expected).sum()) for _, expected in pairs)
    return File(
        side=side,
        precision=artifact.precision,
        artifact=artifact,
        operators=len(summary.operators),
        transposes=sum(op.op_type == "TRANSPOSE" for op in summary.operators),
        delegated=summary.delegated,
        float_islands=quantize_tflite.float_islands(artifact.file.read_bytes())
        if artifact.precision == "int8"
        else None,
        error=max(float(np.abs(found - expected).max() / np.ptp(expected)) for found, expected in pairs),
        sqnr_db=float(10 * np.log10(signal / (noise or 1e-30))),
    )


def _pair(
    run: Callable[[Arrays], Arrays],
    original: Callable[[Arrays], Arrays],
    sample: Arrays,
    artifact: Artifact,
    loaded: Model,
) -> tuple[np.ndarray, np.ndarray]:
    """The one output by both; TensorFlow's file is channels-last and has names of its own."""
    (spec,), (port,) = loaded.inputs, artifact.inputs
    value = np.asarray(sample[spec.name])
    if artifact.path_taken == "given":
        value = np.ascontiguousarray(np.moveaxis(value, 1, -1))
    (found,) = run({port.model_name: value}).values()
    (expected,) = original(sample).values()
    return np.asarray(found, np.float64), np.asarray(expected, np.float64)


# ------------------------------------------------------------------------------------------------------ measuring


def measure(files: Sequence[File], options: bench.BenchOptions) -> bench.BenchResult:
    """All files of a net, interleaved."""
    with LocalTransport() as transport:
        return bench.measure([file.artifact for file in files], transport, options)


def pairs_of(files: Sequence[File]) -> Iterator[tuple[Precision, int, int]]:
    """For each precision that both sides made: our file's place, and TensorFlow's."""
    places = {(file.side, file.precision): place for place, file in enumerate(files)}
    for precision in PRECISIONS:
        if all((side, precision) in places for side in SIDES):
            yield precision, places["edgecompile", precision], places["tensorflow", precision]


def geometric_mean(medians: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> dict[str, float]:
    """The geometric mean of the nets' ratios, with a 95 % interval by resampling each net's rounds in pairs."""
    rng = np.random.default_rng(seed)
    logs = [np.log(ours / theirs) for ours, theirs in medians]
    draws = np.mean(
        [[log[rng.integers(0, len(log), len(log))].mean() for _ in range(_RESAMPLES)] for log in logs], axis=0
    )
    value = np.mean([log.mean() for log in logs])
    # The spread of n rounds, drawn from themselves, is too small by this factor.
    wider = float(np.mean([(len(log) / (len(log) - 1)) ** 0.5 for log in logs]))
    low, high = value + wider * (np.percentile(draws, [2.5, 97.5]) - value)
    return {"value": float(np.exp(value)), "ci_low": float(np.exp(low)), "ci_high": float(np.exp(high))}


def row(
    net: str, precision: Precision, ours: File, theirs: File, result: bench.BenchResult, at: tuple[int, int]
) -> Any:
    """One net at one precision, for the JSON file."""
    ratio = result.ratio(*at)
    row: dict[str, Any] = {"net": net, "precision": precision, "ratio": to_builtins(ratio)}
    for file, place in ((ours, at[0]), (theirs, at[1])):
        measured = result.measurements[place]
        row[file.side] = {
            "median_ms": measured.median_ms, "ci_ms": [measured.ci_low_ms, measured.ci_high_ms],
            "operators": file.operators, "transposes": file.transposes, "delegated": file.delegated,
            "float_islands": file.float_islands, "size_bytes": file.artifact.size_bytes, "error": file.error,
            "sqnr_db": file.sqnr_db, "path": file.artifact.path_taken, "warnings": measured.warnings,
        }  # fmt: skip
    return row


def table(rows: Sequence[Mapping[str, Any]], means: Mapping[str, Mapping[str, float]]) -> Table:
    """For people; each cell is ours / theirs."""
    found = Table(title="edgecompile / TensorFlow's converter, LiteRT, one thread")
    for heading in ("net", "precision", "ms", "ratio [95 %]", "operators", "transposes", "delegated", "islands", "dB"):
        found.add_column(heading, justify="right" if heading not in ("net", "precision") else "left", no_wrap=True)
    for row in rows:
        ours, theirs, ratio = row["edgecompile"], row["tensorflow"], row["ratio"]
        mark = "*" if row["precision"] == "int8" and theirs["path"] != "given" else ""
        cells = [f"{ours['median_ms']:.2f} / {theirs['median_ms']:.2f}{mark}", _interval(ratio)]
        cells += [f"{ours[key]} / {theirs[key]}" for key in ("operators", "transposes", "delegated", "float_islands")]
        found.add_row(row["net"], row["precision"], *cells, f"{ours['sqnr_db']:.0f} / {theirs['sqnr_db']:.0f}")
    for precision, mean in means.items():
        found.add_row("geometric mean", precision, "", _interval(mean), style="bold")
    return found


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.3f} [{ratio['ci_low']:.3f}, {ratio['ci_high']:.3f}]"


def made_files(net: str, folder: Path) -> list[File]:
    """All files of a net, examined. TensorFlow's are kept in ``folder``; ours are made anew, which takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded, samples = prepared(net, folder)
    made = [("edgecompile", a) for a in own_files(loaded, samples, folder / "own").values()]
    made += [("tensorflow", a) for a in tensorflow_files(loaded, samples, folder / "tensorflow").values()]
    return [examined(side, artifact, loaded, samples) for side, artifact in made]


def measured(net: str, files: Sequence[File], options: bench.BenchOptions) -> dict[str, Any]:
    """One net: its rows, each round's medians of both sides by precision, and the machine."""
    result = measure(files, options)
    rows, medians = [], {}
    for precision, ours, theirs in pairs_of(files):
        rows.append(row(net, precision, files[ours], files[theirs], result, (ours, theirs)))
        medians[precision] = [[float(np.median(one)) for one in result.rounds[place]] for place in (ours, theirs)]
        print(f"{net} {precision}: {_interval(rows[-1]['ratio'])}", flush=True)
    return {"rows": rows, "medians": medians, "environment": to_builtins(result.measurements[0].environment)}


def document(parts: Sequence[Mapping[str, Any]], rounds: int) -> dict[str, Any]:
    """What is written: the means over the nets, and every net."""
    medians: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in parts:
        for precision, (ours, theirs) in part["medians"].items():
            medians.setdefault(precision, []).append((np.array(ours), np.array(theirs)))
    return {
        "command": "python -m benchmarks.lowered_latency",
        "rounds": rounds,
        "environment": parts[-1]["environment"],
        "geometric_means": {precision: geometric_mean(pairs) for precision, pairs in medians.items()},
        "rows": [row for part in parts for row in part["rows"]],
    }


def main() -> None:
    """Convert, examine and measure net by net; print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS), help="the nets of the table")
    parser.add_argument("--only", nargs="+", help="work on these now, and leave the table for later")
    parser.add_argument("--only-make", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--work", type=Path, help="keep files and measurements there, and go on from them")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--min-seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        convert_by_tensorflow(*arguments.convert)
        return
    options = bench.BenchOptions(threads=1, rounds=arguments.rounds, min_seconds=arguments.min_seconds)
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgecompile-latency-")))
        for net in arguments.only or arguments.nets:
            kept = work / net / "measured.json"
            if arguments.only_make:
                made_files(net, work / net)
            elif not kept.is_file():
                found = measured(net, made_files(net, work / net), options)
                kept.write_text(json.dumps(found, indent=1) + "\n")
        if arguments.only or arguments.only_make:
            return
        parts = [json.loads((work / net / "measured.json").read_text()) for net in arguments.nets]
    report = document(parts, arguments.rounds)
    Console(width=160).print(table(report["rows"], report["geometric_means"]))
    print("* LiteRT cannot run TensorFlow's INT8 file: its float file, quantized as edgecompile's")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
