"""Measures files on a machine, interleaved, and turns latencies into figures with intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompile import content, stats
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Artifact, Environment, Measurement, Ratio, RuntimeName, file_sha256

SENTINEL = "EDGECOMPILE-RESULT "


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to measure; times in seconds."""

    threads: int = 1
    percentile: float = 50.0
    warmup_s: float = 1.0
    min_runs: int = 50
    min_seconds: float = 3.0
    rounds: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured; ``rounds[i][k]`` holds file ``i``'s latencies (ms) in round ``k``."""

    measurements: tuple[Measurement, ...]
    rounds: tuple[tuple[tuple[float, ...], ...], ...]
    percentile: float

    def ratio(self, i: int, j: int) -> Ratio:
        """The ratio of file ``i``'s percentile to file ``j``'s."""
        found = stats.percentile_ratio(self.rounds[i], self.rounds[j], self.percentile)
        return Ratio(value=found.value, ci_low=found.low, ci_high=found.high)


def measure(artifacts: Sequence[Artifact], transport: LocalTransport, options: BenchOptions) -> BenchResult:
    """Measure files interleaved in one process. Raises `DeviceError` when the runner fails."""
    root = content.builtin_root("targets")
    transport.put(root / "runner.py", "runner.py")
    argv = [sys.executable, "runner.py"]
    for index, artifact in enumerate(artifacts):
        runtime = "onnxruntime" if artifact.runtime == "tensorrt" else artifact.runtime
        name = f"models/{index}{artifact.file.suffix}"
        transport.put(artifact.file, name)
        if not (transport.folder / runtime).exists():
            transport.put(root / runtime / "backend.py", f"{runtime}/backend.py")
        argv += ["--model", f"{runtime}:{name}"]
    for key in ("threads", "warmup_s", "min_runs", "min_seconds", "rounds", "seed"):
        argv += ["--" + key.replace("_", "-"), str(getattr(options, key))]
    done = transport.run(argv, timeout_s=3600)
    document = _document(done.code, done.out, done.err)
    environment = document["environment"]
    measurements = tuple(
        _measurement(a, m, environment, options) for a, m in zip(artifacts, document["models"], strict=True)
    )
    rounds = tuple(tuple(tuple(r) for r in m["latencies_ms"]) for m in document["models"])
    return BenchResult(measurements=measurements, rounds=rounds, percentile=options.percentile)


def _document(code: int, out: str, err: str) -> Any:
    line = next((line for line in out.splitlines() if line.startswith(SENTINEL)), None)
    if code != 0 or line is None:
        last = err.strip().splitlines()[-1] if err.strip() else "no output"
        raise DeviceError(f"the runner failed with exit code {code}: {last}", remedy="see -v for its output")
    return json.loads(line.removeprefix(SENTINEL))


def _measurement(artifact: Artifact, m: Any, environment: Any, options: BenchOptions) -> Measurement:
    import numpy as np

    series = np.concatenate([np.asarray(r) for r in m["latencies_ms"]])
    value = stats.percentile(series, options.percentile)
    return Measurement(
        provenance="measured",
        device=environment["device"],
        runtime=m["package"],
        runtime_version=m["version"],
        threads=options.threads,
        percentile=options.percentile,
        value_ms=value.value,
        ci_low_ms=value.low,
        ci_high_ms=value.high,
        median_ms=float(np.median(series)),
        p90_ms=float(np.percentile(series, 90)),
        p95_ms=float(np.percentile(series, 95)),
        p99_ms=float(np.percentile(series, 99)),
        runs=series.size,
        cold_ms=m["cold_ms"],
        load_ms=m["load_ms"],
        peak_memory_bytes=m["peak_memory_bytes"],
        environment=Environment(
            device=environment["device"],
            machine=environment["machine"],
            cpu_model=environment["cpu_model"],
            cpu_flags=tuple(environment["cpu_flags"]),
            cores=environment["cores"],
            affinity=tuple(environment["affinity"]),
            kernel=environment["kernel"],
            load_before=environment["load_before"],
            load_after=environment["load_after"],
        ),
    )


def bare_file(path: Path) -> Artifact:
    """A ``.tflite`` or ``.onnx`` file as something to measure. Raises `InputError` for anything else."""
    runtimes: dict[str, RuntimeName] = {".tflite": "tflite", ".onnx": "onnxruntime"}
    if not path.is_file():
        raise InputError(f"no such file: {path}", remedy="give a bundle, a .tflite or an .onnx file")
    if path.suffix not in runtimes:
        raise InputError(f"cannot measure {path}", remedy="give a bundle, a .tflite or an .onnx file")
    return Artifact(
        runtime=runtimes[path.suffix],
        precision="fp32",
        file=path,
        inputs=(),
        outputs=(),
        path_taken="given",
        size_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def run_inputs(artifact: Artifact, transport: LocalTransport, *, inputs: Path, outputs: Path) -> None:
    """Run a file on stacked inputs (``.npz``) in a process of its own and write its stacked outputs."""
    root = content.builtin_root("targets")
    runtime = "onnxruntime" if artifact.runtime == "tensorrt" else artifact.runtime
    name = f"model{artifact.file.suffix}"
    transport.put(root / "runner.py", "runner.py")
    transport.put(root / runtime / "backend.py", f"{runtime}/backend.py")
    transport.put(artifact.file, name)
    transport.put(inputs, "inputs.npz")
    argv = [sys.executable, "runner.py", "--model", f"{runtime}:{name}", "--run-inputs", "inputs.npz"]
    done = transport.run([*argv, "--write-outputs", "outputs.npz"], timeout_s=600)
    _document(done.code, done.out, done.err)
    transport.get("outputs.npz", outputs)
