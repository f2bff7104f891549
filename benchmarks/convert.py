"""How long a model takes to become TFLite files: edgecompile against the onnx2tf command.

    python -m benchmarks.convert                 # prints a table, writes benchmarks/results/convert.json
    python -m benchmarks.convert --nets resnet8 --rounds 3

Two jobs: ``float`` (float32 and float16 files) and ``all`` (int8 too, on 20 calibration samples). Every conversion runs
in a fresh process on the same prepared ONNX file and the same samples, the sides taking turns within each round. Sides:

- ``command``: ``onnx2tf`` as its users call it, for ``all`` with ``-oiqt`` (it also writes a SavedModel and, with that
  option, integer files with int16 activations and float fallback);
- ``onnx2tf``: edgecompile through onnx2tf's graph conversion, without the SavedModel;
- ``direct``: edgecompile's own lowering.

``wall`` is the whole process with its imports and child processes, as a build runs it. ``work`` is the same conversion
in one process that has imported everything before the clock starts (the command cannot be asked for that). Memory is
the largest resident set of any process of the first kind. A net may also be the path of an ONNX file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NETS = ("resnet8", "mobilenet_v2", "resnet18")
Side = Literal["command", "onnx2tf", "direct"]
Kind = Literal["float", "all"]
KINDS: tuple[Kind, ...] = ("float", "all")
SIDES: tuple[Side, ...] = ("command", "onnx2tf", "direct")
SAMPLES = 20
#: onnx2tf looks for this file in the current folder before it downloads it: there is no network here.
IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One net as all sides get it: the ONNX file and the samples, in the model's layout."""

    net: str
    folder: Path
    input_name: str
    shape: tuple[int, ...]

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One conversion: seconds of wall clock, seconds after imports, and megabytes of the largest process."""

    net: str
    kind: Kind
    side: Side
    round: int
    wall_s: float
    work_s: float | None
    peak_mb: float
    files: int


def main() -> None:
    """Convert every net by every side, round by round; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "convert.json")
    parser.add_argument("--prepare", nargs=2, metavar=("NET", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=4, metavar=("SIDE", "KIND", "FOLDER", "HOW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        write_job(arguments.prepare[0], Path(arguments.prepare[1]))
        return
    if arguments.child:
        side, kind, folder, how = arguments.child
        convert_here(side, kind, Path(folder), warm=how == "warm")
        return
    with tempfile.TemporaryDirectory(prefix="edgecompile-convert-") as folder:
        jobs = [prepare(net, Path(folder) / Path(net).stem) for net in arguments.nets]
        runs = [
            run(job, kind, side, number)
            for number in range(arguments.rounds)
            for job in jobs
            for kind in arguments.kinds
            for side in arguments.sides
        ]  # fmt: skip
    show(runs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document(runs), indent=1) + "\n")


def prepare(net: str, folder: Path) -> Job:
    """Have a net prepared by a process of its own: a child's peak memory counts from its parent's size at the fork."""
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "benchmarks.convert", "--prepare", net, str(folder)], cwd=ROOT, check=True)
    facts = json.loads((folder / "job.json").read_text())
    return Job(net=Path(net).stem, folder=folder, input_name=facts["input"], shape=tuple(facts["shape"]))


def write_job(net: str, folder: Path) -> None:
    """Export a net of the zoo with random weights, prepare it as `edgecompile build` does, and draw the samples."""
    from edgecompile import model as models
    from edgecompile.types import encode

    source = Path(net)
    if source.suffix != ".onnx":
        from tests import zoo

        source = zoo.export_onnx(zoo.build(net), zoo.input_shapes(net), folder / "exported.onnx")
    model = models.load(str(source), folder)
    (port,) = model.inputs
    (folder / "prepared_model.json").write_bytes(encode(model))
    rng = np.random.default_rng(0)
    np.save(folder / "samples.npy", rng.uniform(0, 1, (SAMPLES, *port.shape[1:])).astype(np.float32))
    (folder / "job.json").write_text(json.dumps({"input": port.name, "shape": port.shape}))


def run(job: Job, kind: Kind, side: Side, number: int) -> Run:
    """One conversion in a fresh process and an empty folder; for our sides once more with the imports made before."""
    wall, peak, files, _ = _timed(job, kind, side, "cold")
    work = _timed(job, kind, side, "warm")[3] if side != "command" else None
    print(f"round {number}: {job.net} {kind} {side}: {wall:.1f} s", file=sys.stderr)
    return Run(net=job.net, kind=kind, side=side, round=number, wall_s=wall, work_s=work, peak_mb=peak, files=files)


def _timed(job: Job, kind: Kind, side: Side, how: str) -> tuple[float, float, int, float | None]:
    """Seconds of wall clock, megabytes of the largest process, files made, and the seconds the process itself told."""
    folder = job.folder / "run"
    folder.mkdir()
    shutil.copy(job.model, folder / "model.onnx")
    np.save(folder / IMAGES, np.zeros((20, 128, 128, 3), np.float32))
    command = _command(job, kind, side, folder, how)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with (folder / "log.txt").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    process.returncode = status
    if status != 0:
        raise SystemExit(f"{job.net} by {side} failed:\n{(folder / 'log.txt').read_text(errors='replace')[-3000:]}")
    files = _require_files(folder, kind, side)
    told = folder / "work.json"
    work = json.loads(told.read_text())["work_s"] if told.is_file() else None
    shutil.rmtree(folder)
    return wall, usage.ru_maxrss / 1024, files, work


def _command(job: Job, kind: Kind, side: Side, folder: Path, how: str) -> list[str]:
    if side != "command":
        return [sys.executable, "-m", "benchmarks.convert", "--child", side, kind, str(job.folder), how]
    plain = [str(Path(sys.executable).with_name("onnx2tf")), "-i", "model.onnx", "-o", "out"]
    if kind == "float":
        return plain
    np.save(folder / "calibration.npy", np.load(job.samples).transpose(0, 2, 3, 1))
    neutral = [f"[[[[{','.join([value] * job.shape[1])}]]]]" for value in ("0", "1")]
    return [*plain, "-oiqt", "-cind", job.input_name, "calibration.npy", *neutral]


def _require_files(folder: Path, kind: Kind, side: Side) -> int:
    """Count the files, and make sure that those that are compared are there."""
    found = sorted(path.name for path in folder.rglob("*.tflite"))
    endings = ("float32", "float16", "integer_quant") if side == "command" else ("fp32", "fp16", "int8")
    for ending in endings if kind == "all" else endings[:2]:
        if not any(ending in name for name in found):
            raise SystemExit(f"{side} made no {ending} file, only {found}")
    return len(found)


def convert_here(side: str, kind: str, folder: Path, *, warm: bool) -> None:
    """What the measured process of our sides does: two or three files into the current folder."""
    if warm:
        _import_everything(side)
    from edgecompile import lower
    from edgecompile.types import Artifact, Plan, Precision

    started = time.perf_counter()
    model = _model(folder)
    needed = kind == "all" or side == "onnx2tf"  # which looks at real inputs to choose layouts
    samples = [{model.inputs[0].name: a[None]} for a in np.load(folder / "samples.npy")] if needed else []
    floating: Artifact | None = None
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    for precision in precisions if kind == "all" else precisions[:2]:
        plan = Plan(runtime="tflite", precision=precision)
        made = lower.RUNTIMES["tflite"].lower(model, plan, samples, Path.cwd(), path=side, float_artifact=floating)
        floating = floating or made
    if warm:
        Path("work.json").write_text(json.dumps({"work_s": time.perf_counter() - started}))


def _import_everything(side: str) -> None:
    """Import what the conversion uses, and have it done in this process instead of a child that would import again."""
    from edgecompile.lower import child

    used = ["onnx", "ai_edge_litert.interpreter", "ai_edge_quantizer.quantizer", "edgecompile.lower.direct"]
    for name in [*used, *(["onnx2tf", "onnxruntime"] if side == "onnx2tf" else [])]:
        importlib.import_module(name)

    def call(function: str, argument: dict[str, Any], folder: Path, **_: object) -> dict[str, Any]:
        module, _, name = function.partition(":")
        answer: dict[str, Any] = getattr(importlib.import_module(module), name)({**argument, "folder": str(folder)})
        return answer

    child.call = call


def _model(folder: Path) -> Any:
    """The prepared model as the loader described it: a build has that description at hand too."""
    from edgecompile.types import Model, decode

    return decode((folder / "prepared_model.json").read_bytes(), Model)


# ---------------------------------------------------------------------------------------------------------- results


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """All runs and the machine they were made on."""
    return {
        "command": "python -m benchmarks.convert",
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "runs": [asdict(item) for item in runs],
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def show(runs: Sequence[Run]) -> None:
    """Medians with the smallest and largest run; the command's wall clock over ours, with and without our imports."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="model -> float {float32, float16} and all {float32, float16, int8} files")
    for heading in ("net", "files", "side", "wall, s", "work, s", "peak, MB", "faster, wall", "faster, work"):
        table.add_column(heading, justify="left" if heading in ("net", "files", "side") else "right")
    for net, kind in dict.fromkeys((item.net, item.kind) for item in runs):
        sides = {side: [r for r in runs if (r.net, r.kind, r.side) == (net, kind, side)] for side in SIDES}
        for side, made in sides.items():
            if not made:
                continue
            works = [r.work_s for r in made if r.work_s is not None]
            peak = f"{statistics.median(r.peak_mb for r in made):.0f}"
            walls = [r.wall_s for r in made]
            against = [r.wall_s for r in sides["command"]] if side != "command" else []
            ratios = [_times_faster(against, walls), _times_faster(against, works)]
            table.add_row(net, kind, side, _spread(walls), _spread(works), peak, *ratios)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _times_faster(command: Sequence[float], ours: Sequence[float]) -> str:
    """The ratio of medians with a bootstrap interval over rounds."""
    from edgecompile.stats import percentile_ratio

    if not command or not ours:
        return ""
    ratio = percentile_ratio([[value] for value in command], [[value] for value in ours], 50.0)
    return f"{ratio.value:.0f}x [{ratio.low:.0f}, {ratio.high:.0f}]"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
