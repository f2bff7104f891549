"""`edgecompile device learn` against whole nets that it did not learn from, on this machine.

    python -m benchmarks.device_learn --work FOLDER              # writes benchmarks/results/device_learn.json
    python -m benchmarks.device_learn --work FOLDER --stage fit  # again from what was measured

The device is learned as a user does it (single operators and small nets of its own, within the time limit). Then every
architecture of ``tests/zoo`` at its real size is exported, lowered to each runtime and precision as a build lowers it,
and measured: no figure of the zoo takes part in the fit, so that every architecture is left out. The estimate is that
of a build's ``--target PROFILE.toml``. ``FOLDER`` keeps all that was made and measured; the same command goes on there.
Weights are random: latency does not depend on them. Run it on a machine that does nothing else; where that cannot be,
in a real-time class (``chrt -f 50 python -m ...``), so that other programs do not interrupt the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edgecompile import bench, learn, lower, model, profiles, report
from edgecompile.errors import EdgecompileError
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Plan, Precision, RuntimeName, file_sha256, to_builtins

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "device_learn.json"
RUNTIMES: tuple[RuntimeName, ...] = ("tflite", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SAMPLES = 4
STAGES = ("learn", "make", "measure", "fit")
#: nn-Meter, Zhang et al. 2021 (https://doi.org/10.1145/3458864.3467882): the share of 26,000 models predicted within
#: 10 % on a mobile CPU.
NN_METER_WITHIN_10 = 0.99


# ------------------------------------------------------------------------------------------------ making the files


def make(net: str, folder: Path) -> None:
    """The prepared ONNX file of a net, and its files for each runtime and precision."""
    from tests import zoo

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = zoo.export_onnx(zoo.build(net), zoo.input_shapes(net), folder / "exported.onnx")
    loaded = model.load(str(source), folder / "model")
    rng = np.random.default_rng(0)
    samples = [{s.name: rng.normal(0, 1, s.shape).astype(np.float32) for s in loaded.inputs} for _ in range(SAMPLES)]
    shutil.copy(loaded.path, folder / "prepared.onnx")
    for runtime in RUNTIMES:
        made: Artifact | None = None
        for precision in PRECISIONS:
            plan = Plan(runtime=runtime, precision=precision, calibration_samples=SAMPLES * (precision == "int8"))
            try:
                made = lower.RUNTIMES[runtime].lower(
                    loaded, plan, samples, folder / f"{runtime}-{precision}", path=lower.RUNTIMES[runtime].paths[0],
                    float_artifact=made,
                )  # fmt: skip
            except EdgecompileError as exc:
                print(f"{net} {runtime} {precision}: {exc.message}", flush=True)
                break
            (folder / f"{runtime}-{precision}.json").write_text(json.dumps({"file": str(made.file)}))
    source.unlink()
    shutil.rmtree(folder / "model", ignore_errors=True)
    (folder / "done").touch()


def files_of(folder: Path) -> Iterator[tuple[str, Artifact]]:
    """The files of a net by ``runtime-precision``."""
    for entry in sorted(folder.glob("*-*.json")):
        runtime, precision = entry.stem.split("-")
        file = Path(json.loads(entry.read_text())["file"])
        yield entry.stem, Artifact(
            runtime=runtime, precision=precision, file=file, inputs=(), outputs=(), path_taken="",  # type: ignore[arg-type]
            size_bytes=file.stat().st_size, sha256=file_sha256(file),
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- measuring


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """All files of a net, interleaved, by `bench`: the median over rounds of each round's median."""
    named = list(files_of(folder))
    options = bench.BenchOptions(threads=1, warmup_s=0.2, min_runs=12, min_seconds=seconds, rounds=4, passes=1)
    with LocalTransport() as transport:
        result = bench.measure([artifact for _, artifact in named], transport, options)
    return {
        label: {
            "ms": statistics.median(statistics.median(one) for one in rounds),
            "rounds_ms": [statistics.median(one) for one in rounds],
            "delegated": [m.delegated_operators, m.total_operators],
            "warnings": list(m.warnings),
        }
        for (label, _), rounds, m in zip(named, result.rounds, result.measurements, strict=True)
    }


def measured(work: Path, seconds: float) -> dict[str, Any]:
    """What every net takes; kept in a file a net."""
    found = {}
    for done in sorted((work / "zoo").glob("*/done")):
        folder = done.parent
        file = folder / "measured.json"
        if not file.exists():
            file.write_text(json.dumps(measure(folder, seconds)))
            print(f"measured {folder.name}", flush=True)
        found[folder.name] = json.loads(file.read_text())
    return found


# ------------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One net in one runtime and precision."""

    net: str
    label: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def compare(profile: profiles.DeviceProfile, work: Path, found: Mapping[str, Any]) -> list[Row]:
    """Estimates beside measurements."""
    rows = []
    for net, by_label in found.items():
        for label, entry in by_label.items():
            runtime, precision = label.split("-")
            estimate = learn.latency(
                work / "zoo" / net / "prepared.onnx", profile, runtime=runtime, precision=precision, threads=1,
                percentile=50.0,
            )  # fmt: skip
            if estimate is not None:
                rows.append(Row(net=net, label=label, measured_ms=entry["ms"], predicted_ms=estimate.value_ms))
    return rows


def totals(rows: Sequence[Row], profile: profiles.DeviceProfile) -> dict[str, Any]:
    """By runtime and precision: the errors, and how many estimates the interval holds."""
    found = {}
    for table in profile.learned:
        label = f"{table.runtime}-{table.precision}"
        errors = np.array([row.error for row in rows if row.label == label])
        if not len(errors):
            continue
        size = np.abs(errors)
        found[label] = {
            "nets": len(errors), "median_error": float(np.median(size)), "within_10": float((size <= 0.1).mean()),
            "within_20": float((size <= 0.2).mean()), "largest_error": float(size.max()),
            "median_signed_error": float(np.median(errors)), "own_median_error": table.fit.median_error,
            "interval_factor": table.fit.interval_factor,
            "in_interval": float((np.abs(np.log1p(errors)) <= np.log(table.fit.interval_factor)).mean()),
            "points": table.points, "tile": table.tile,
        }  # fmt: skip
    return found


def shown(found: Mapping[str, Any]) -> Table:
    """For people."""
    made = Table(title="estimates of a learned profile / whole nets it did not learn from, one thread")
    for heading in ("runtime and precision", "nets", "median |error|", "within 10 %", "within 20 %", "in the interval"):
        made.add_column(heading, justify="left" if heading.startswith("runtime") else "right")
    for label, total in found.items():
        shares = [f"{100 * total[key]:.0f} %" for key in ("within_10", "within_20", "in_interval")]
        made.add_row(label, str(total["nets"]), f"{100 * total['median_error']:.1f} %", *shares)
    return made


def main() -> None:
    """Learn, make, measure and compare; print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, help="only this; else all")
    parser.add_argument("--nets", nargs="+")
    parser.add_argument("--time-limit", type=float, default=5.0, help="minutes for learning (5)")
    parser.add_argument("--min-seconds", type=float, default=0.9, help="for each file of the zoo (0.9)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["EDGECOMPILE_CACHE"] = str(work / "cache")
    stages = (arguments.stage,) if arguments.stage else STAGES
    profile_file = work / "profile.toml"
    if "learn" in stages:
        request = learn.LearnRequest(out=profile_file, force=True, time_limit_s=60 * arguments.time_limit)
        start = time.monotonic()
        learn.learn(request, report.Face())
        (work / "seconds.json").write_text(json.dumps(time.monotonic() - start))
    if "make" in stages:
        from tests import zoo

        for net in arguments.nets or zoo.NAMES:
            if not (work / "zoo" / net / "done").exists():
                make(net, work / "zoo" / net)
                print(f"made {net}", flush=True)
    if "measure" in stages or "fit" in stages:
        found = measured(work, arguments.min_seconds)
    if "fit" in stages:
        profile = profiles.load(str(profile_file))
        rows = compare(profile, work, found)
        total = totals(rows, profile)
        Console(width=120).print(shown(total))
        document = {
            "command": "python -m benchmarks.device_learn --work FOLDER",
            "learn_seconds": json.loads((work / "seconds.json").read_text()),
            "device": {"description": profile.description, "cores": profile.cores},
            "nn_meter_within_10": NN_METER_WITHIN_10,
            "totals": total,
            "rows": [{**to_builtins(row), "error": row.error, **found[row.net][row.label]} for row in rows],
            "small_nets": {f"{t.runtime}-{t.precision}": [list(net) for net in t.nets] for t in profile.learned},
            "staircases": {f"{t.runtime}-{t.precision}": [list(s) for s in t.staircase] for t in profile.learned},
        }
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
