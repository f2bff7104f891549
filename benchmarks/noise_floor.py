"""A against A: how large a ratio this machine shows between a file and itself, and whether the interval says so.

    python -m benchmarks.noise_floor                  # prints a table, writes benchmarks/results/noise_floor.json
    python -m benchmarks.noise_floor --file my.tflite --repeats 20

Three ways to compare two files, each repeated with the same file on both sides:

- ``fresh processes``: what `edgecompile bench` does. Both take turns in ten processes, one after another; the interval
  is over the processes.
- ``one process``: both take turns in one process (the interval is over its turns). What else is running cancels; where
  each one's data lies in memory does not, and stays as it is while the process lives.
- ``two processes``: A is measured to its end, then B, each in a process of its own.

The ratio of A to A should be 1 and its 95 % interval should hold 1 in 95 of 100 repeats. The noise floor is what the
ratio's interval spans the first way: differences below it are not differences.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.runtimes import files
from edgecompile import bench, stats
from edgecompile.bench import intervals
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, to_builtins

RESULTS = Path(__file__).resolve().parent / "results" / "noise_floor.json"
#: A round of one process is cut into this many parts, to have an interval at all.
PARTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One comparison of A with A."""

    way: str
    ratio: float
    ci_low: float
    ci_high: float

    @property
    def holds_one(self) -> bool:
        return self.ci_low <= 1.0 <= self.ci_high


def measure(artifacts: Sequence[Artifact], options: bench.BenchOptions) -> bench.BenchResult:
    """One measurement on this machine."""
    with LocalTransport() as transport:
        return bench.measure(artifacts, transport, options)


def fresh_processes(artifact: Artifact, seconds: float, seed: int) -> stats.Interval:
    """Both in turns, in ten processes."""
    ratio = measure([artifact] * 2, bench.BenchOptions(min_seconds=seconds, rounds=10, seed=seed)).ratio(0, 1)
    return stats.Interval(value=ratio.value, low=ratio.ci_low, high=ratio.ci_high)


def one_process(artifact: Artifact, seconds: float, seed: int) -> stats.Interval:
    """Both in turns, in one process."""
    result = measure([artifact] * 2, bench.BenchOptions(min_seconds=seconds, rounds=1, seed=seed))
    return _over_parts(*(rounds[0] for rounds in result.rounds))


def two_processes(artifact: Artifact, seconds: float, seed: int) -> stats.Interval:
    """A to its end, then B."""
    options = bench.BenchOptions(min_seconds=seconds, rounds=1, seed=seed)
    return _over_parts(*(measure([artifact], options).rounds[0][0] for _ in range(2)))


def _over_parts(first: Sequence[float], second: Sequence[float]) -> stats.Interval:
    parts = [[list(part) for part in np.array_split(np.asarray(side), PARTS)] for side in (first, second)]
    return intervals.ratio(parts[0], parts[1], 50.0)


WAYS: dict[str, Callable[[Artifact, float, int], stats.Interval]] = {
    "fresh processes": fresh_processes,
    "one process": one_process,
    "two processes": two_processes,
}


def repeat(artifact: Artifact, seconds: float, repeats: int) -> list[Repeat]:
    """All ways by turns, so that none has the quieter machine."""
    found = []
    for seed in track(range(repeats), description="A against A", console=Console(stderr=True)):
        for way, compare in WAYS.items():
            ratio = compare(artifact, seconds, seed)
            found.append(Repeat(way=way, ratio=ratio.value, ci_low=ratio.low, ci_high=ratio.high))
    return found


def summarize(way: str, repeats: Sequence[Repeat]) -> dict[str, Any]:
    """What one way showed, in per cent of the ratio."""
    errors = [100 * abs(r.ratio - 1) for r in repeats]
    return {
        "way": way,
        "repeats": len(repeats),
        "median_error_percent": float(np.median(errors)),
        "largest_error_percent": max(errors),
        "median_interval_width_percent": float(np.median([100 * (r.ci_high - r.ci_low) for r in repeats])),
        "intervals_with_1": sum(r.holds_one for r in repeats),
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The summaries for people."""
    found = Table(title="A against A: the ratio of a file's latency to its own", caption="medians over the repeats")
    for heading in ("", "repeats", "off by", "at most", "interval", "holds 1"):
        found.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        found.add_row(
            row["way"],
            str(row["repeats"]),
            f"{row['median_error_percent']:.2f} %",
            f"{row['largest_error_percent']:.2f} %",
            f"{row['median_interval_width_percent']:.2f} %",
            f"{row['intervals_with_1']} of {row['repeats']}",
        )
    return found


def main() -> None:
    """Compare, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a .tflite or .onnx file; without it the zoo's --net as LiteRT FP32")
    parser.add_argument("--net", default="resnet8")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--min-seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgecompile-noise-") as folder:
        if arguments.file:
            artifact = bench.bare_file(arguments.file)
        else:
            (artifact,) = files(arguments.net, Path(folder) / "net", [("tflite", "fp32")])
        (machine,) = measure([artifact], bench.BenchOptions(min_seconds=1.0)).measurements
        found = repeat(artifact, arguments.min_seconds, arguments.repeats)
    rows = [summarize(way, [r for r in found if r.way == way]) for way in WAYS]
    Console().print(table(rows))
    document = {
        "command": "python -m benchmarks.noise_floor",
        "file": arguments.file.name if arguments.file else f"{arguments.net}, LiteRT FP32",
        "measurement": to_builtins(machine),
        "summary": rows,
        "repeats": [asdict(r) for r in found],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
