"""Instructions of an inference on emulated Arm cores: MobileNetV2 and ResNet-18 in FP32, FP16 and INT8.

    python -m benchmarks.instructions             # prints a table a net, writes benchmarks/results/instructions.json
    python -m benchmarks.instructions --nets resnet8 --boards pi4 --sessions 1

The nets are those of ``tests/zoo`` with seeded random weights, 224 x 224. Every file is counted once in each session,
and the board is started anew for each session. The counts of all sessions must be the same, or the benchmark fails. No
figure here is a time: see docs/lab.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.runtimes import files
from edgecompile import bench
from edgecompile.transport import lab, open_transport
from edgecompile.types import Artifact, InstructionCount, Precision, RuntimeName, to_builtins

RESULTS = Path(__file__).resolve().parent / "results" / "instructions.json"
NETS = ("mobilenet_v2", "resnet18")
CASES: tuple[tuple[RuntimeName, Precision], ...] = (("tflite", "fp32"), ("tflite", "fp16"), ("tflite", "int8"))
Key = tuple[str, str, str]


def count(artifacts: dict[tuple[str, str], Artifact], boards: list[str], runs: int) -> dict[Key, InstructionCount]:
    """One session: all files on all boards, each of which is started anew."""
    found = {}
    for board in boards:
        lab.down(board)
        with open_transport(f"lab:{board}") as transport:
            for (net, label), artifact in artifacts.items():
                found[net, label, board] = one = bench.instructions(artifact, transport, runs=runs)
                print(f"{net} {label} {one.label}: {one.per_inference:,}", file=sys.stderr, flush=True)
    return found


def table(net: str, found: dict[Key, InstructionCount], boards: list[str]) -> str:
    """A net's counts in millions, as Markdown: a row a file, a column a core; below, relative to the first file."""
    mine = {(label, board): one for (name, label, board), one in found.items() if name == net}
    labels = list(dict.fromkeys(label for label, _ in mine))
    heads = [mine[labels[0], board].core for board in boards]
    rows = [f"| {net} | {' | '.join(heads)} |", "|---|" + "---:|" * len(boards)]
    for label in labels:
        cells = []
        for board in boards:
            value, first = mine[label, board].per_inference, mine[labels[0], board].per_inference
            cells.append(f"{value / 1e6:,.2f} ({value / first:.3f})")
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> int:
    """Count in all sessions, compare them, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--boards", nargs="+", default=list(lab.CORES), choices=list(lab.CORES))
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgecompile-instructions-") as folder:
        artifacts = {}
        for net in arguments.nets:
            for artifact in files(net, Path(folder) / net, CASES):
                artifacts[net, f"{artifact.runtime}-{artifact.precision}"] = artifact
        sizes = {key: artifact.size_bytes for key, artifact in artifacts.items()}
        sessions = [count(artifacts, arguments.boards, arguments.runs) for _ in range(arguments.sessions)]
    first, *others = sessions
    differing = [key for other in others for key in first if other[key] != first[key]]
    for net in arguments.nets:
        print(table(net, first, arguments.boards), end="\n\n")
    runtime, image = next(iter(first.values())).runtime, next(iter(first.values())).image
    worst = max(one.spread for one in first.values())
    print(f"{runtime}, millions of instructions (times the first row); largest spread of the inferences {worst:.2%}")
    print(f"{len(sessions)} sessions: {'equal' if not differing else f'DIFFERENT: {differing}'}; image {image[:16]}")
    document = {
        "command": "python -m benchmarks.instructions",
        "sessions": len(sessions),
        "equal": not differing,
        "rows": [
            {"net": net, "file": label, "board": board, "size_bytes": sizes[net, label], "count": to_builtins(one)}
            for (net, label, board), one in first.items()
        ],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
