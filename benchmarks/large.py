"""How long does it take to plan and lower a smaller model of a large net? To 60 % of its latency, without training.

    python -m benchmarks.large --work WORK [--net mobilenet_v2|resnet50] [--share 0.6]

``edgecompile build`` on this machine, TFLite in float32 (INT8 alone would meet the budget and leave nothing to search),
one thread, on random images and with random weights: a claim about time and mechanics, none about accuracy. The whole
net's latency comes from a build without a budget; the second build begins anew. Writes
``benchmarks/results/large.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import edgecompile
from edgecompile.api import BuildOptions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "large.json"
SAMPLES = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for data and bundles")
    parser.add_argument("--net", choices=["mobilenet_v2", "resnet50"], default="mobilenet_v2")
    parser.add_argument("--share", type=float, default=0.6)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    options: BuildOptions = {
        "target": "x86", "on": "local", "trust": True, "force": True, "fresh": True, "threads": 1,
        "out": arguments.work / arguments.net, "input_shape": (1, 3, 224, 224), "data": _images(arguments.work),
        "precision": ["fp32"], "runtime": ["tflite"],
    }  # fmt: skip
    name = f"tests.zoo:{arguments.net}"
    whole = edgecompile.build(name, budget_ms=1e6, **options).bundle.manifest.measurement
    start, used = time.perf_counter(), _cpu_s()
    manifest = edgecompile.build(name, budget_ms=arguments.share * whole.value_ms, **options).bundle.manifest
    row = {
        "net": arguments.net, "share": arguments.share, "whole_ms": whole.value_ms,
        "budget_ms": arguments.share * whole.value_ms, "seconds": time.perf_counter() - start,
        "cpu_seconds": _cpu_s() - used,
        "ms": manifest.measurement.value_ms, "verdict": manifest.verdict.status,
        "attempts": sum(bool(c.plan.steps) for c in manifest.candidates),
    }  # fmt: skip
    print(json.dumps(row, indent=1))
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    RESULTS.write_text(json.dumps([r for r in known if r["net"] != arguments.net] + [row], indent=1) + "\n")


def _cpu_s() -> float:
    """Seconds of all cores together, this process and its children."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def _images(work: Path) -> Path:
    import numpy as np

    path = work / "images.npy"
    if not path.is_file():
        made = np.random.default_rng(0).normal(size=(SAMPLES, 3, 224, 224)).astype(np.float32)
        np.save(path, made)
    return path


if __name__ == "__main__":
    main()
