"""LiteRT's own ``benchmark_model`` as the runner: for machines without Python, such as a phone reached by adb.

It prints statistics of its runs and not the runs themselves, so an interval comes from several runs of the program,
each a fresh process. Formats: ``tflite/tools/benchmark/benchmark_model.cc`` and
``litert/tools/benchmark_litert_model.h`` of google-ai-edge/LiteRT, and ``OutputToStream`` of XLA's
``stats_calculator.h``.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile.bench import document, intervals, snapshot, state
from edgecompile.bench.options import BenchOptions, BenchResult, environment_of
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import Transport
from edgecompile.types import Artifact, Measurement

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: What it can tell of a run's latencies, by percentile.
PERCENTILES = {5.0: "p5", 50.0: "median", 95.0: "p95"}
_AGREE = 0.05
_NEAR_C = 5.0
_BINARY = "benchmark_model"
_INPUTS_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What one run of the program printed; times in milliseconds, ``None`` where the version does not tell.

    ``percentiles_ms`` are by percentile; ``size_mb`` is the size of the file it ran, in millions of bytes.
    """

    runs: int
    mean_ms: float
    percentiles_ms: Mapping[float, float] = field(default_factory=dict)
    std_ms: float | None = None
    init_ms: float | None = None
    first_ms: float | None = None
    peak_memory_bytes: int | None = None
    size_mb: float | None = None
    file: str | None = None
    threads: int | None = None

    def at(self, percentile: float) -> float:
        """A percentile of the run. Raises `InputError` where the program did not tell it."""
        if percentile not in self.percentiles_ms:
            told = ", ".join(f"{one:g}" for one in self.percentiles_ms) or "the mean only"
            raise InputError(
                f"benchmark_model does not tell the {percentile:g}th percentile; it tells: {told}",
                remedy="ask for --percentile 50 or 95, with a benchmark_model of 2023 or later",
            )
        return self.percentiles_ms[percentile]


def parse(text: str) -> Log:
    """Read what the program printed. Raises `InputError` when it holds no result, or one that cannot be."""
    try:
        found = _parsed(text)
    except ValueError as exc:
        raise InputError(f"a figure in this log is none: {exc}", remedy="give all that it printed") from exc
    if min(found.mean_ms, *found.percentiles_ms.values(), found.std_ms or 0.0) < 0 or not math.isfinite(found.mean_ms):
        raise InputError("this log tells a latency below zero, or without end", remedy="run benchmark_model again")
    return found


def _parsed(text: str) -> Log:
    # The warm-up prints such a line, too: the last one counts.
    series = re.findall(r"count=(\d+) (.*)", text)
    if not series:
        raise InputError("there is no result of benchmark_model in this log", remedy="give all that it printed")
    count, rest = series[-1]
    fields = {key: float(value) for key, value in re.findall(r"(\w+)=(-?[\d.]+(?:e[+-]?\d+)?)", rest)}
    mean = fields.get("avg", fields.get("curr"))  # all runs alike: only the last is printed
    if mean is None or int(count) == 0:
        raise InputError("benchmark_model measured no run", remedy="see what else it printed")
    timings = re.search(r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+)", text)
    return Log(
        runs=int(count),
        mean_ms=mean / 1e3,
        percentiles_ms={q: fields[name] / 1e3 for q, name in PERCENTILES.items() if name in fields},
        std_ms=fields["std"] / 1e3 if "std" in fields else None,
        init_ms=float(timings[1]) / 1e3 if timings else _number(text, r"Model initialization: ([\d.]+) ms"),
        first_ms=float(timings[2]) / 1e3 if timings else _number(text, r"Warmup \(first\):\s+([\d.]+) ms"),
        peak_memory_bytes=_memory(text),
        size_mb=_number(text, r"The input model file size \(MB\): ([\d.e+-]+)"),
        file=_text(text, r"Graph: \[(.+)\]"),
        threads=_threads(text),
    )


def _number(text: str, pattern: str) -> float | None:
    found = re.search(pattern, text)
    return float(found[1]) if found else None


def _text(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None


def _threads(text: str) -> int | None:
    found = re.search(r"(?:Num threads|#threads used for CPU inference): \[(\d+)\]", text)
    return int(found[1]) if found else None


def _memory(text: str) -> int | None:
    """What the file added to the process, at most: mebibytes in every version."""
    patterns = (
        r"Overall peak memory footprint \(MB\) via periodic monitoring: ([\d.]+)",
        r"(?:Memory footprint delta|Peak memory footprint).* \(MB\): init=\S+ overall=([\d.]+)",
        r"Overall footprint:\s+([\d.]+) MB",
    )
    found = next((mb for pattern in patterns if (mb := _number(text, pattern)) is not None), None)
    return round(found * 1024 * 1024) if found else None


# ------------------------------------------------------------------------------------------------- the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Some rounds: ``logs[i][k]`` is file ``i`` in round ``k``."""

    logs: tuple[tuple[Log, ...], ...]
    before: snapshot.Snapshot
    cooled_s: float

    def medians(self, percentile: float) -> list[float]:
        return [intervals.median([log.at(percentile) for log in one]) for one in self.logs]


def measure(artifacts: Sequence[Artifact], transport: Transport, options: BenchOptions) -> BenchResult:
    """Measure TFLite files by ``benchmark_model``, taking turns, in passes until two agree.

    Raises `DeviceError` when the machine or the program fails, `InputError` for files of other runtimes.
    """
    first = snapshot.take(transport, options.threads)
    tool = _Tool(artifacts, transport, options, first.affinity if options.pin else ())
    passes: list[_Pass] = []
    count = -(-options.round_count // 2)
    while len(passes) < max(1, options.passes) and _agreeing(passes, options.percentile) is None:
        cooled_s = _cool_down(transport, first, options) if passes else 0.0
        before = snapshot.take(transport, options.threads) if passes else first
        logs = [[tool.run(i, count) for i in range(len(artifacts))] for _ in range(count)]
        passes.append(_Pass(logs=tuple(zip(*logs, strict=True)), before=before, cooled_s=cooled_s))
    last = snapshot.take(transport, options.threads)
    kept = _agreeing(passes, options.percentile)
    used = list(kept) if kept else passes
    machine = _machine(first, last, passes, used, options)
    rounds = [tuple(log for one in used for log in one.logs[i]) for i in range(len(artifacts))]
    grave = [state.Doubt(words="no two passes agreed within 5 %", grave=True)] if len(passes) > 1 and not kept else []
    doubts = [*state.doubts(machine, options.threads), *snapshot.doubts(first, last), *grave]
    return BenchResult(
        measurements=tuple(_measurement(logs, machine, doubts, options) for logs in rounds),
        rounds=tuple(tuple((log.at(options.percentile),) for log in logs) for logs in rounds),
        percentile=50.0,  # of one value a round
    )


def _agreeing(passes: Sequence[_Pass], percentile: float) -> tuple[_Pass, _Pass] | None:
    for k, later in enumerate(passes):
        for earlier in passes[:k]:
            pairs = zip(earlier.medians(percentile), later.medians(percentile), strict=True)
            if all(max(a, b) <= (1 + _AGREE) * min(a, b) for a, b in pairs):
                return earlier, later
    return None


def _cool_down(transport: Transport, first: snapshot.Snapshot, options: BenchOptions) -> float:
    """Wait until the machine is nearly as cool as at first; the seconds waited."""
    begin, start_c = time.monotonic(), first.state.temperature_c
    while start_c is not None and time.monotonic() - begin < options.cool_down_s:
        celsius = snapshot.take(transport, options.threads).state.temperature_c
        if celsius is None or celsius <= start_c + _NEAR_C:
            break
        time.sleep(min(2.0, options.cool_down_s))
    return time.monotonic() - begin


class _Tool:
    """The program with the files, put on a machine."""

    def __init__(
        self, artifacts: Sequence[Artifact], transport: Transport, options: BenchOptions, cpus: Sequence[int]
    ) -> None:
        self._transport = transport
        self._options = options
        self.program = place(transport, options.benchmark_model or "")
        self._files = [_put(transport, artifact, i) for i, artifact in enumerate(artifacts)]
        self._names = [artifact.file for artifact in artifacts]
        self._pinned = pinned(transport, cpus)

    def run(self, index: int, rounds: int) -> Log:
        """One run of a file; its share of all runs that are wanted."""
        options = self._options
        arguments = [
            f"--graph={self._files[index]}",
            f"--num_threads={options.threads}",
            f"--num_runs={max(2, -(-options.min_runs // (2 * rounds)))}",
            f"--min_secs={options.min_seconds / (2 * rounds):.3f}",
            f"--max_secs={options.timeout_s:.0f}",
            "--warmup_runs=1",
            f"--warmup_min_secs={options.warmup_s / 5:.3f}",
        ]
        text = execute(self._transport, [*self._pinned, self.program, *arguments], options.timeout_s)
        try:
            return parse(text)
        except InputError as exc:
            raise DeviceError(
                f"benchmark_model on {self._transport.description} gave no result for {self._names[index]}",
                remedy="see what it said with -vv; the file may need a newer one",
            ) from exc


def place(transport: Transport, program: str) -> str:
    """The program as it is called there: a file of this machine is put there where the machine takes no other."""
    if not getattr(transport, "brings_programs", False):
        if transport.run(["sh", "-c", 'command -v "$1"', "sh", program], timeout_s=60).code:
            raise DeviceError(
                f"cannot start {program} on {transport.description}: there is no such program",
                remedy="give its path there with --benchmark-model, or leave that out for our own runner",
            )
        return program
    file = Path(program)
    if not file.is_file():
        raise InputError(
            f"--benchmark-model {program}: no such file",
            remedy="give LiteRT's benchmark_model for Android (its documentation says where to download it)",
        )
    transport.put(file, _BINARY)
    done = transport.run(["chmod", "700", _BINARY], timeout_s=60)
    if done.code:
        raise DeviceError(f"cannot make {program} executable on {transport.description}: {done.err.strip()}")
    return f"./{_BINARY}"


def _put(transport: Transport, artifact: Artifact, index: int) -> str:
    if artifact.runtime != "tflite":
        raise InputError(
            f"benchmark_model runs .tflite files, and {artifact.file} is for {artifact.runtime}",
            remedy="give a .tflite file, or --runtime tflite to build",
        )
    name = f"models/{index}/model.tflite"
    transport.put(artifact.file, name)
    return name


def pinned(transport: Transport, cpus: Sequence[int]) -> list[str]:
    """The words before a command that keep it to some CPUs; none where the machine has no ``taskset``."""
    if not cpus:
        return []
    mask = f"{sum(1 << cpu for cpu in cpus):x}"
    try:
        return ["taskset", mask] if transport.run(["taskset", mask, "true"], timeout_s=60).code == 0 else []
    except DeviceError:
        return []


def execute(transport: Transport, command: Sequence[str], timeout_s: float) -> str:
    """Run the program; what it printed. Raises `DeviceError` when it fails."""
    done = transport.run(command, timeout_s=timeout_s)
    if done.ended_by is not None:
        memory = " (often: not enough memory)" if done.ended_by == "SIGKILL" else ""
        raise DeviceError(
            f"benchmark_model on {transport.description} was ended by {done.ended_by}{memory}",
            remedy="try a smaller model, or a benchmark_model made for this machine",
        )
    if done.code:
        said = (done.err.strip() or done.out.strip()).splitlines()
        raise DeviceError(
            f"benchmark_model on {transport.description} ended with exit code {done.code}: "
            f"{said[-1] if said else 'it said nothing'}",
            remedy="see that it is made for this machine, and newer than the file's operators",
        )
    return f"{done.out}\n{done.err}"


def _machine(
    first: snapshot.Snapshot,
    last: snapshot.Snapshot,
    passes: Sequence[_Pass],
    used: Sequence[_Pass],
    options: BenchOptions,
) -> document.Machine:
    told = tuple(
        document.Pass(
            medians_ms=tuple(one.medians(options.percentile)),
            cooled_s=one.cooled_s,
            temperature_c=one.before.state.temperature_c,
            kept=one in used,
        )
        for one in passes
    )
    return document.Machine(
        device=first.device,
        machine=first.machine,
        cpu_model=first.cpu_model,
        cpu_flags=first.cpu_flags,
        cores=first.cores,
        kernel=first.kernel,
        affinity=first.affinity if options.pin else (),
        before=first.state,
        after=last.state,
        own_cpus=None,
        other_cpus=None,
        stolen_cpus=None,
        passes=told,
    )


def _measurement(
    logs: Sequence[Log], machine: document.Machine, doubts: Sequence[state.Doubt], options: BenchOptions
) -> Measurement:
    value = intervals.over_rounds([log.at(options.percentile) for log in logs])
    p95 = [log.percentiles_ms[95.0] for log in logs if 95.0 in log.percentiles_ms]
    return Measurement(
        provenance="measured",
        device=machine.device,
        runtime="benchmark_model",
        runtime_version="unknown",
        threads=options.threads,
        percentile=options.percentile,
        value_ms=value.value,
        ci_low_ms=value.low,
        ci_high_ms=value.high,
        median_ms=intervals.median([log.at(50.0) for log in logs]),
        p90_ms=None,
        p95_ms=intervals.median(p95) if p95 else None,
        p99_ms=None,
        runs=sum(log.runs for log in logs),
        cold_ms=logs[0].first_ms,
        load_ms=logs[0].init_ms,
        peak_memory_bytes=logs[0].peak_memory_bytes,
        environment=environment_of(machine),
        warnings=tuple(doubt.words for doubt in doubts),
        trusted=not any(doubt.grave for doubt in doubts),
    )


# ---------------------------------------------------------------------------------------------------- given inputs


def run_inputs(artifact: Artifact, transport: Transport, *, program: str, inputs: Path, outputs: Path) -> str:
    """Run a file on stacked inputs, one sample a run of the program; see `edgecompile.bench.runner.run_inputs`.

    Needs a ``benchmark_model`` with ``--input_layer_value_files`` and ``--output_filepath`` (TensorFlow's of 2024).
    """
    import numpy as np

    called = place(transport, program)
    graph = _put(transport, artifact, 0)
    with np.load(inputs, allow_pickle=False) as stored:
        samples = {port.spec.name: stored[port.spec.name] for port in artifact.inputs}
    results = [
        _run_sample(artifact, transport, [called, f"--graph={graph}"], {name: a[k] for name, a in samples.items()})
        for k in range(len(next(iter(samples.values()))))
    ]
    with outputs.open("wb") as stream:
        np.savez(stream, **{name: np.stack([one[name] for one in results]) for name in results[0]})
    return "benchmark_model"


def _run_sample(
    artifact: Artifact, transport: Transport, command: Sequence[str], sample: Mapping[str, npt.NDArray[np.generic]]
) -> dict[str, npt.NDArray[np.generic]]:
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        for k, port in enumerate(artifact.inputs):
            file = Path(name) / f"input{k}"
            file.write_bytes(np.ascontiguousarray(sample[port.spec.name]).tobytes())
            transport.put(file, f"input{k}")
        execute(transport, [*command, *_sample_arguments(artifact)], _INPUTS_S)
        found = Path(name) / "outputs"
        transport.get("outputs", found)
        return dict(_split(artifact, found.read_bytes(), transport))


def _sample_arguments(artifact: Artifact) -> list[str]:
    # Names hold ':' and ',', which separate there; they only serve for a warning, so ours will do.
    names = [f"input{k}" for k in range(len(artifact.inputs))]
    shapes = [",".join(map(str, port.spec.shape)) for port in artifact.inputs]
    return [
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--input_layer_value_files={','.join(f'{name}:{name}' for name in names)}",
        "--output_filepath=outputs",
        "--num_runs=1",
        "--min_secs=0",
        "--warmup_runs=0",
        "--warmup_min_secs=0",
    ]


def _split(artifact: Artifact, data: bytes, transport: Transport) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """The outputs, which lie one behind the other in the file's order."""
    import numpy as np

    specs = [port.spec for port in artifact.outputs]
    sizes = [int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize for spec in specs]
    if sum(sizes) != len(data):
        raise DeviceError(
            f"benchmark_model on {transport.description} wrote {len(data)} bytes of outputs, expected {sum(sizes)}",
            remedy="it must know --output_filepath: use one of 2024 or later",
        )
    at = 0
    for spec, size in zip(specs, sizes, strict=True):
        yield spec.name, np.frombuffer(data[at : at + size], dtype=spec.dtype).reshape(spec.shape)
        at += size
