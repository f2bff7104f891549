"""ONNX Runtime's files with and without what `edgecompile.lower.ort_patterns` writes in another way.

    python -m benchmarks.onnxruntime_files          # prints a table, writes benchmarks/results/onnxruntime_files.json

The nets are those of ``tests/zoo`` with seeded random weights: latency does not depend on them. The four files of a net
(FP32 and INT8, each as its exporter wrote the graph and as we do) take turns in fresh processes, one thread. A ratio is
ours over the exporter's, with its 95 % interval; under 1 ours is faster. The signal-to-noise ratio of each INT8 file is
against the FP32 file on inputs that it was not calibrated on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.runtimes import files
from edgecompile import bench, execute
from edgecompile.lower import ort_patterns
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Precision, Ratio, to_builtins

RESULTS = Path(__file__).resolve().parent / "results" / "onnxruntime_files.json"
NETS = (
    "se_resnet50", "efficientnet_b0", "mobilenet_v3_large", "inception_v3_blocks", "shufflenet_v1_g3", "densenet121",
    "convnext_tiny", "swin_blocks", "vit_tiny", "resnet18",
)  # fmt: skip
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
_CHECKED = 8


@contextlib.contextmanager
def as_exported() -> Iterator[None]:
    """Files are made of the graph as the exporter wrote it."""
    with mock.patch.object(ort_patterns, "arrange", return_value=0):
        yield


def made(net: str, folder: Path) -> dict[tuple[str, Precision], Artifact]:
    """The files by who wrote the graph and by precision."""
    cases = [("onnxruntime", precision) for precision in PRECISIONS]
    ours = files(net, folder / "ours", cases)  # type: ignore[arg-type]
    with as_exported():
        theirs = files(net, folder / "exported", cases)  # type: ignore[arg-type]
    return {
        **dict(zip([("exported", p) for p in PRECISIONS], theirs, strict=True)),
        **dict(zip([("ours", p) for p in PRECISIONS], ours, strict=True)),
    }


def sqnr_db(found: Artifact, reference: Artifact) -> float:
    """Of all outputs on inputs of the same distribution as the calibration's."""
    rng = np.random.default_rng(1)
    run, expected = execute.artifact(found), execute.artifact(reference)
    signal, noise = 0.0, 0.0
    for _ in range(_CHECKED):
        sample = {p.spec.name: rng.normal(size=p.spec.shape).astype(np.float32) for p in reference.inputs}
        wanted, have = expected(sample), run(sample)
        signal += sum(float(np.square(wanted[name].astype(np.float64)).sum()) for name in wanted)
        noise += sum(float(np.square(wanted[name].astype(np.float64) - have[name]).sum()) for name in wanted)
    return float(10 * np.log10(signal / max(noise, 1e-30)))


def rows_of(net: str, folder: Path, options: bench.BenchOptions) -> list[dict[str, Any]]:
    """A row a precision."""
    artifacts = made(net, folder)
    order = list(artifacts)
    with LocalTransport() as transport:
        result = bench.measure(list(artifacts.values()), transport, options)
    rows = []
    for precision in PRECISIONS:
        before, after = order.index(("exported", precision)), order.index(("ours", precision))
        noise = {who: sqnr_db(artifacts[who, precision], artifacts["exported", "fp32"]) for who in ("exported", "ours")}
        rows.append(
            {
                "net": net,
                "precision": precision,
                "exported_ms": result.measurements[before].median_ms,
                "ours_ms": result.measurements[after].median_ms,
                "ratio": to_builtins(result.ratio(after, before)),
                "sqnr_db": noise if precision == "int8" else None,
                "warnings": list(result.measurements[after].warnings),
            }
        )
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    """For people."""
    table = Table(title="ONNX Runtime, one thread: our file / the graph as exported")
    for heading in ("net", "precision", "exported, ms", "ours, ms", "ratio [95 %]", "SQNR exported / ours, dB"):
        table.add_column(heading, justify="left" if heading in ("net", "precision") else "right", no_wrap=True)
    for row in rows:
        ratio, noise = Ratio(**row["ratio"]), row["sqnr_db"]
        table.add_row(
            row["net"], row["precision"], f"{row['exported_ms']:.3g}", f"{row['ours_ms']:.3g}",
            f"{ratio.value:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]",
            f"{noise['exported']:.1f} / {noise['ours']:.1f}" if noise else "",
        )  # fmt: skip
    return table


def main() -> None:
    """Measure net by net; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--min-seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    options = bench.BenchOptions(threads=1, min_seconds=arguments.min_seconds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgecompile-onnxruntime-") as folder:
        for net in arguments.nets:
            rows += rows_of(net, Path(folder) / net, options)
            print(f"measured {net}", flush=True)
    Console(width=120).print(shown(rows))
    arguments.out.write_text(
        json.dumps({"command": "python -m benchmarks.onnxruntime_files", "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
