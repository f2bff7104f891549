"""Measure this x86 machine for the profile that it is, as rows for `fit_profiles.py`.

    python benchmarks/measure_x86.py                        # replaces this device's rows in measured_latencies.csv
    python benchmarks/measure_x86.py --nets mobilenet_v2 --print

Each net of the zoo that the table of published models knows is lowered to LiteRT and ONNX Runtime files in FP32 and
INT8, and its files run in turns, with one thread. What is kept is the 10th percentile of the thread's processor time,
and not of wall-clock time: with one thread they are the same on a machine left alone, and on a machine that others use
too, the first leaves out what they took. Random weights: latency does not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import published_models  # noqa: E402
from edgecompile import lower, model, profiles  # noqa: E402
from edgecompile.types import Arrays, Artifact, Plan, Precision, RuntimeName  # noqa: E402
from tests import zoo  # noqa: E402

TABLE = ROOT / "benchmarks" / "measured_latencies.csv"
FIELDS = ("device", "runtime", "threads", "precision", "model", "resolution", "latency_ms", "source")
#: The profile that a machine is -> the device's name in the table.
DEVICES = {"x86-avx2": "x86 AVX2", "x86-avx512-vnni": "x86 AVX-512 VNNI"}
#: Nets that the zoo knows by another name than the table of published models.
PUBLISHED_AS = {"squeezenet1_1": "squeezenet", "mnasnet_b1": "mnasnet1_0"}
_RESOLUTION = 224
_WARM_UP, _ROUNDS, _RUNS = 5, 20, 3
_PACKAGES = {"tflite": "ai-edge-litert", "onnxruntime": "onnxruntime"}
_SAMPLES = 8


def nets() -> list[str]:
    """Nets of the zoo whose operators the table of published models lists, at 224 x 224."""
    shape = (1, 3, _RESOLUTION, _RESOLUTION)
    known = [name for name in zoo.NAMES if PUBLISHED_AS.get(name, name) in published_models.MODELS]
    return [name for name in known if tuple(zoo.input_shapes(name).values()) == (shape,)]


def artifacts(name: str, folder: Path) -> list[Artifact]:
    """The LiteRT and ONNX Runtime files of a net, FP32 and INT8."""
    (shape,) = zoo.input_shapes(name).values()
    loaded = model.load(f"tests.zoo:{name}", folder / "model", input_shapes=shape, trust=True)
    generator = np.random.default_rng(0)
    samples: list[Arrays] = [
        {s.name: generator.normal(size=s.shape).astype(np.float32) for s in loaded.inputs} for _ in range(_SAMPLES)
    ]
    made: list[Artifact] = []
    for runtime in ("tflite", "onnxruntime"):
        floating = _lower(loaded, runtime, "fp32", samples, folder / runtime, None)
        made += [floating, _lower(loaded, runtime, "int8", samples, folder / f"{runtime}-int8", floating)]
    return made


def _lower(
    loaded: model.Model,
    runtime: RuntimeName,
    precision: Precision,
    samples: Sequence[Arrays],
    folder: Path,
    floating: Artifact | None,
) -> Artifact:
    folder.mkdir()
    plan = Plan(runtime=runtime, precision=precision, calibration_samples=_SAMPLES if precision == "int8" else 0)
    return lower.RUNTIMES[runtime].lower(loaded, plan, samples, folder, float_artifact=floating)


def _litert(file: Path) -> Callable[[], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], np.ones(entry["shape"], entry["dtype"]))
    return interpreter.invoke


def _onnxruntime(file: Path) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: np.ones(entry.shape, np.float32) for entry in session.get_inputs()}
    return partial(session.run, None, feeds)


def processor_ms(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The 10th percentile of each run's processor time in milliseconds, taken in turns."""
    for run in runs:
        for _ in range(_WARM_UP):
            run()
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS):
        for run, times in zip(runs, found, strict=True):
            for _ in range(_RUNS):
                start = time.thread_time_ns()
                run()
                times.append((time.thread_time_ns() - start) / 1e6)
    return [float(np.percentile(times, 10)) for times in found]


def measure(name: str, device: str) -> list[dict[str, str]]:
    """The rows of one net."""
    with tempfile.TemporaryDirectory() as folder:
        files = artifacts(name, Path(folder))
        openers = {"tflite": _litert, "onnxruntime": _onnxruntime}
        latencies = processor_ms([openers[file.runtime](file.file) for file in files])
    return [
        {
            "device": device,
            "runtime": "litert" if file.runtime == "tflite" else file.runtime,
            "threads": "1",
            "precision": file.precision,
            "model": PUBLISHED_AS.get(name, name),
            "resolution": str(_RESOLUTION),
            "latency_ms": f"{latency:.3g}",
            "source": f"benchmarks/measure_x86.py, {_PACKAGES[file.runtime]} {version(_PACKAGES[file.runtime])}",
        }
        for file, latency in zip(files, latencies, strict=True)
    ]


def _replace_rows(device: str, rows: list[dict[str, str]]) -> None:
    with TABLE.open(encoding="utf-8", newline="") as stream:
        kept = [row for row in csv.DictReader(stream) if row["device"] != device]
    with TABLE.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and unless told otherwise replace the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=nets(), default=nets(), help="which nets (default: all)")
    parser.add_argument("--print", action="store_true", help="print the rows and leave the table alone")
    options = parser.parse_args(arguments)
    device = DEVICES[profiles.load("x86").name]
    rows: list[dict[str, str]] = []
    for name in options.nets:
        rows += measure(name, device)
        for row in rows[-4:]:
            print(",".join(row.values()), flush=True)
    if not options.print:
        _replace_rows(device, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
