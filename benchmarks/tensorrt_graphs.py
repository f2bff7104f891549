"""Every architecture of the test zoo as FP16 and INT8 graphs for TensorRT: do they keep the rules, do they still
compute the net, and does TensorRT's parser take them?

    python -m benchmarks.tensorrt_graphs [--net resnet20] [--build]

The nets are small and have random weights, for which eight bits are hardest; what real weights lose is in
``benchmarks/accuracy.py``. The parser is that of ``tensorrt-rtx``, where it is installed: the same as a board's but
newer, so that "accepted" is a hint. ``--build`` has it build each graph for GPUs of compute capability 8.6 as well.
Writes ``benchmarks/results/tensorrt_graphs.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console

from edgecompile import execute, lower, parity, report
from edgecompile.errors import EdgecompileError
from edgecompile.lower import trt_lint, trt_rules
from edgecompile.types import Artifact, Model, Plan
from tests import zoo
from tests.lowering import samples, save_model
from tests.zoo import exported

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt_graphs.json"
_GENERATION = "SM86"
_CALIBRATION, _COMPARED = 8, 16


def graphs_of(name: str, folder: Path, *, build: bool) -> list[dict[str, Any]]:
    """The rows of one net: its FP16 graph, its INT8 graph, and the INT8 graph with types."""
    model = save_model(onnx.load(exported.small(name)), folder / "model.onnx")
    rows = []
    for precision in ("fp16", "int8"):
        plan = Plan(runtime="tensorrt", precision=precision)
        try:
            made = lower.RUNTIMES["tensorrt"].lower(model, plan, samples(model, _CALIBRATION), folder / precision)
        except EdgecompileError as exc:
            rows.append({"net": name, "graph": precision, "lowered": False, "why": exc.message})
            continue
        rows.append({**_facts(name, precision, made.file, build=build), **_compared(model, made)})
        if made.typed_file is not None:
            rows.append(_facts(name, "int8, typed", made.typed_file, build=build))
    return rows


def _facts(name: str, graph: str, file: Path, *, build: bool) -> dict[str, Any]:
    proto = onnx.load(str(file))
    findings = trt_rules.check(proto)
    opinion = trt_lint.ask(file, build_for=_GENERATION if build else None)
    row: dict[str, Any] = {
        "net": name,
        "graph": graph,
        "lowered": True,
        "opset": next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        "rule_errors": [str(finding) for finding in trt_rules.errors(findings)],
        "hints": len(findings) - len(trt_rules.errors(findings)),
    }
    if opinion is not None:
        row |= {
            "tensorrt_rtx": opinion.version,
            "accepted": opinion.accepted,
            "refusals": [f"{r.op_type} ({r.node}): {r.reason}" for r in opinion.refusals],
            "engine_bytes": opinion.engine_bytes,
        }
    return row


def _compared(model: Model, made: Artifact) -> dict[str, Any]:
    """Against the float net, by ONNX Runtime."""
    run, original = execute.artifact(made), execute.original(model)
    found = parity.quantized(run, original, samples(model, _CALIBRATION + _COMPARED)[_CALIBRATION:])
    return {"sqnr_db": found.sqnr_db, "agreement": found.agreement, "samples": found.samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=zoo.NAMES, help="default: all")
    parser.add_argument("--build", action="store_true", help="build with tensorrt-rtx, too")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.net or zoo.NAMES:
        with tempfile.TemporaryDirectory() as folder:
            rows += graphs_of(name, Path(folder), build=arguments.build)
        print(json.dumps(rows[-1]), flush=True)
    made = report.table("net", "graph", "rules", "tensorrt-rtx", "SQNR", "agreement", right=("SQNR", "agreement"))
    for row in rows:
        if not row["lowered"]:
            made.add_row(row["net"], row["graph"], f"not lowered: {row['why']}", "", "", "")
            continue
        taken = {True: "accepted", False: "refused", None: "-"}[row.get("accepted")]
        sqnr, agreement = row.get("sqnr_db"), row.get("agreement")
        made.add_row(
            row["net"],
            row["graph"],
            "kept" if not row["rule_errors"] else "broken",
            taken,
            "" if sqnr is None else f"{sqnr:.1f} dB",
            "" if agreement is None else f"{agreement:.0f} %",
        )
    Console().print(made)
    if not arguments.net:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
