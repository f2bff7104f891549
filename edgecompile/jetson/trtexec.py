"""``trtexec``, TensorRT's own benchmark program: its command lines, what it prints, what it exports.

Everything is read so that a file or log cut anywhere gives the right figures or none: a figure counts only with its
unit and the whole line that it stands in. Times are milliseconds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from edgecompile.errors import DeviceError
from edgecompile.jetson import versions
from edgecompile.jetson.versions import Capabilities, Version
from edgecompile.types import Precision

T = TypeVar("T")

#: Versions whose option is ``--workspace`` take 16 MiB by default, with which many fast kernels are left out. It is a
#: limit, not an allocation.
_OLD_WORKSPACE_MIB = 1024
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_PREFIX = r"(?:\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] )?\[I\] "
_OUTCOME = re.compile(r"&&&& (PASSED|FAILED) TensorRT\.trtexec(?: .*)?")
_THROUGHPUT = re.compile(rf"{_PREFIX}Throughput: ({_NUMBER}) qps")
_PERCENTILE = rf"percentile\(({_NUMBER})%\) = ({_NUMBER}) ms"
_PERCENTILES = re.compile(_PERCENTILE)
_STATS = re.compile(
    rf"{_PREFIX}(Latency|GPU Compute Time): min = ({_NUMBER}) ms, max = ({_NUMBER}) ms, mean = ({_NUMBER}) ms, "
    rf"median = ({_NUMBER}) ms((?:, percentile\({_NUMBER}%\) = {_NUMBER} ms)*)"
)
_WARNING = re.compile(r"(?:\[[^\]]*\] )?\[W\] (?:\[TRT\] )?(.*)")
_UNSTABLE = re.compile(rf"GPU compute time is unstable, with coefficient of variance = ({_NUMBER})%\.?")
#: Beginnings and parts of the warnings that say something about the figures or the results.
_SHOWN_WARNINGS = ("* ", "Using an engine plan file across different models", "were clamped", "out of range",
                   "does not support", "Missing scale and zero-point")  # fmt: skip
#: ``trtexec`` writes six digits, so a median may lie that much outside of the extremes; and it sums in 32 bits for the
#: mean, which tens of thousands of runs move by more.
_ROUNDING = 1e-4
_SUMMING = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One line of the performance summary, in ms; ``percentiles`` are pairs of a percent and its ms."""

    min_ms: float
    max_ms: float
    mean_ms: float
    median_ms: float
    percentiles: tuple[tuple[float, float], ...] = ()

    def percentile(self, percent: float) -> float | None:
        """The time at ``percent``, where ``trtexec`` printed it (50 is the median)."""
        return self.median_ms if percent == 50 else dict(self.percentiles).get(percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrtexecLog:
    """What a log of ``trtexec`` says; ``None`` where it does not say, or not whole.

    ``latency`` is with the transfers to and from the GPU, ``gpu_compute`` without. ``unstable_percent`` is the
    coefficient of variance that ``trtexec`` warns of; ``enqueue_bound``: the host, not the GPU, set the pace.
    """

    version: Version | None
    outcome: Literal["passed", "failed"] | None
    throughput_qps: float | None
    latency: Stats | None
    gpu_compute: Stats | None
    warnings: tuple[str, ...] = ()
    unstable_percent: float | None = None
    enqueue_bound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer of an exported profile: all its runs, their mean and median (TensorRT 8.5 on), its share in percent."""

    name: str
    total_ms: float
    average_ms: float
    median_ms: float | None
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What an engine gave under a name; ``values`` are in the order of rows."""

    shape: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensor:
    """What a layer reads or writes; ``format`` is TensorRT's word for type and layout (``Half NCHW``...)."""

    name: str
    shape: tuple[int, ...] = ()
    format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of the built engine; all but the name only where the engine was built with detailed verbosity."""

    name: str
    layer_type: str | None = None
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str | None = None
    metadata: str | None = None


# ------------------------------------------------------------------------------------------------ command lines


def build_command(
    capabilities: Capabilities,
    *,
    trtexec: str | PurePath,
    onnx: str | PurePath,
    engine: str | PurePath,
    timing_cache: str | PurePath | None,
    precision: Precision,
    workspace_mib: int | None = None,
    layer_info: str | PurePath | None = None,
    strongly_typed: bool | None = None,
) -> list[str]:
    """The arguments that build ``engine`` from ``onnx`` without running it.

    ``strongly_typed`` says that the graph itself has the types of ``precision``; without it, the version decides
    (`Capabilities.typing`). ``layer_info`` is ignored where the version cannot write it. Raises `DeviceError` where the
    version cannot do what is asked.
    """
    command = [str(trtexec), f"--onnx={onnx}", f"--saveEngine={engine}", capabilities.build_only]
    if timing_cache is not None:
        command.append(f"--timingCacheFile={timing_cache}")
    command += _precision(capabilities, precision, strongly_typed)
    command += _workspace(capabilities, workspace_mib)
    if layer_info is not None and capabilities.layer_info:
        command += [f"--exportLayerInfo={layer_info}", "--profilingVerbosity=detailed"]
    return command


def _precision(capabilities: Capabilities, precision: Precision, strongly_typed: bool | None) -> list[str]:
    strong = capabilities.typing != "flags" if strongly_typed is None else strongly_typed
    if strong and capabilities.typing != "graph":
        if not capabilities.strong_option:
            raise DeviceError(
                f"TensorRT {capabilities.version} cannot take the types of the graph as they are",
                remedy="give it a float32 graph, or install JetPack 6.1 or newer on the board",
            )
        return ["--stronglyTyped"]
    if not strong and precision != "fp32" and not capabilities.precision_flags:
        raise DeviceError(
            f"TensorRT {capabilities.version} computes in the types of the graph, and this graph is float32",
            remedy=f"write the model in {precision} before it goes to the board",
        )
    return [] if strong else {"fp32": [], "fp16": ["--fp16"], "int8": ["--fp16", "--int8"]}[precision]


def _workspace(capabilities: Capabilities, mib: int | None) -> list[str]:
    if mib is not None and mib < 1:
        raise DeviceError(f"a workspace of {mib} MiB is none", remedy="give 1 or more, or leave it to TensorRT")
    if capabilities.workspace == "--workspace":
        return [f"--workspace={_OLD_WORKSPACE_MIB if mib is None else mib}"]
    return [] if mib is None else [f"--memPoolSize=workspace:{mib}"]


def run_command(
    capabilities: Capabilities,
    *,
    trtexec: str | PurePath,
    engine: str | PurePath,
    times: str | PurePath | None,
    profile: str | PurePath | None,
    layer_info: str | PurePath | None,
    warmup_ms: int,
    duration_s: int,
    iterations: int,
    percentiles: Sequence[float],
) -> list[str]:
    """The arguments that measure ``engine``: at least ``iterations`` runs, for at least ``duration_s``.

    ``times``, ``profile`` and ``layer_info`` are files to write. A version that prints one percentile gets the highest.
    The profile comes from a run of its own, since profiling slows the layers down.
    """
    command = [str(trtexec), f"--loadEngine={engine}", *_measure_flags(capabilities, profile is not None)]
    command += [f"--warmUp={warmup_ms}", f"--duration={duration_s}", f"--iterations={iterations}"]
    if percentiles:
        wanted = sorted(set(percentiles)) if capabilities.percentile_list else [max(percentiles)]
        command.append("--percentile=" + ",".join(f"{p:g}" for p in wanted))
    files = (("exportTimes", times), ("exportProfile", profile))
    command += [f"--{option}={path}" for option, path in files if path is not None]
    if layer_info is not None and capabilities.layer_info:
        command += [f"--exportLayerInfo={layer_info}", "--profilingVerbosity=detailed"]
    return command


def infer_command(
    *,
    trtexec: str | PurePath,
    engine: str | PurePath,
    inputs: Sequence[tuple[str, str | PurePath]],
    output: str | PurePath,
) -> list[str]:
    """The arguments that run ``engine`` once on raw files, one an input by its name, and write what it gives.

    Raises `DeviceError` for a name that ``trtexec`` cannot take.
    """
    unusable = next((name for name, _ in inputs if "'" in name), None)
    if unusable is not None:
        raise DeviceError(f"trtexec cannot be told of an input named {unusable!r}", remedy="rename it in the model")
    loads = ",".join(f"'{name}':{path}" for name, path in inputs)
    once = ["--warmUp=0", "--duration=0", "--iterations=1", "--avgRuns=1"]
    return [str(trtexec), f"--loadEngine={engine}", f"--loadInputs={loads}", f"--exportOutput={output}", *once]


def _measure_flags(capabilities: Capabilities, profiled: bool) -> list[str]:
    return [flag for flag in capabilities.measure_flags if profiled or flag != "--separateProfileRun"]


# --------------------------------------------------------------------------------------------------------- logs


def lines(log: str) -> list[str]:
    """The lines of a terminal's output, without colours and carriage returns."""
    return [line.rstrip() for line in re.split(r"\r*\n|\r", _ESCAPES.sub("", log))]


def parse_log(text: str) -> TrtexecLog:
    """Reads what ``trtexec`` printed; never raises, and gives ``None`` for what is not there whole.

    Two different figures for the same thing (logs of two runs in one text) count as none.
    """
    rows = lines(text)
    shown = tuple(dict.fromkeys(w for w in map(_warning, rows) if w is not None))
    unstable = {float(m[1]) for w in shown if (m := _UNSTABLE.search(w))}
    return TrtexecLog(
        version=_only({v for row in rows if "TensorRT.trtexec" in row and (v := versions.find(row))}),
        outcome=_outcome(rows),
        throughput_qps=_only({float(m[1]) for row in rows if (m := _THROUGHPUT.fullmatch(row))}),
        latency=_stats(rows, "Latency"),
        gpu_compute=_stats(rows, "GPU Compute Time"),
        warnings=shown,
        unstable_percent=max(unstable, default=None),
        enqueue_bound=any("Throughput may be bound by Enqueue Time" in w for w in shown),
    )


def _only(found: set[T]) -> T | None:
    return next(iter(found)) if len(found) == 1 else None


def _warning(row: str) -> str | None:
    match = _WARNING.fullmatch(row)
    if match is None or not any(part in match[1] for part in _SHOWN_WARNINGS):
        return None
    return match[1].removeprefix("* ").strip()


def _outcome(rows: list[str]) -> Literal["passed", "failed"] | None:
    found = {m[1] for row in rows if (m := _OUTCOME.fullmatch(row))}
    return "failed" if "FAILED" in found else "passed" if found else None


def _stats(rows: list[str], name: str) -> Stats | None:
    found = {_one_stats(m) for row in rows if (m := _STATS.fullmatch(row)) and m[1] == name}
    return _only(found)


def _one_stats(match: re.Match[str]) -> Stats | None:
    least, most, mean, median = (float(match[i]) for i in range(2, 6))
    percentiles = tuple((float(p), float(ms)) for p, ms in _PERCENTILES.findall(match[6]))
    ordered = (median, *(ms for _, ms in percentiles))
    if not all(_between(ms, least, most, _ROUNDING) for ms in ordered) or not _between(mean, least, most, _SUMMING):
        return None
    return Stats(min_ms=least, max_ms=most, mean_ms=mean, median_ms=median, percentiles=percentiles)


def _between(ms: float, least: float, most: float, slack: float) -> bool:
    return least - slack * most <= ms <= most + slack * most


# ---------------------------------------------------------------------------------------------------- exports


def parse_times(text: str, *, warmup_ms: float = 0.0) -> list[float]:
    """The GPU's compute time of every run, in ms and in order, from the file of ``--exportTimes``.

    Versions before 8.5 write the warm-up's runs too: those that began before ``warmup_ms`` are dropped, as ``trtexec``
    does for its summary (newer versions write none of these, so the same value is right for all). Raises `DeviceError`
    for a broken or cut file, and where no run is left.
    """
    rows = _json(text, "run times")
    if not isinstance(rows, list):
        raise _broken("run times", "it is not a list")
    kept = [row for row in rows if warmup_ms <= 0 or _number(row, "startComputeMs", "run times") >= warmup_ms]
    times = [_number(row, "computeMs", "run times") for row in kept]
    if not times:
        raise DeviceError(
            f"trtexec wrote the times of {len(rows)} runs, none of them after the warm-up of {warmup_ms:g} ms",
            remedy="measure for longer",
        )
    return times


def parse_profile(text: str) -> tuple[LayerTime, ...]:
    """The layers' times from the file of ``--exportProfile``, in the order of the engine.

    ``trtexec`` does not escape the layers' names, so the file need not be JSON. Raises `DeviceError` where it is broken
    or cut.
    """
    body = text.strip().replace("\r\n", "\n")
    head = _PROFILE_HEAD.match(body)
    if head is None:
        raise _broken("layer profile", "it does not begin like one")
    layers: list[LayerTime] = []
    at = head.end()
    while entry := _PROFILE_ENTRY.match(body, at):
        layers.append(_layer_time(entry))
        at = entry.end()
    if not _PROFILE_END.fullmatch(body, at):
        raise _broken("layer profile", f"it cannot be read after {len(layers)} layers")
    return tuple(layers)


_PROFILE_HEAD = re.compile(r'\[\s*\{\s*"count"\s*:\s*\d+\s*\}')
# A name may hold anything, so it ends where the figures, and after them another entry or the end of the file, follow.
_PROFILE_ENTRY = re.compile(
    rf'\s*,\s*\{{\s*"name"\s*:\s*"(?P<name>.*?)"\s*,\s*"timeMs"\s*:\s*(?P<total>{_NUMBER})'
    rf'\s*,\s*"averageMs"\s*:\s*(?P<average>{_NUMBER})(?:\s*,\s*"medianMs"\s*:\s*(?P<median>{_NUMBER}))?'
    rf'\s*,\s*"percentage"\s*:\s*(?P<percent>{_NUMBER})\s*\}}(?=\s*,\s*\{{\s*"name"|\s*\]\s*\Z)',
    re.DOTALL,
)
_PROFILE_END = re.compile(r"\s*\]\s*")


def _layer_time(entry: re.Match[str]) -> LayerTime:
    name = entry["name"]
    # A broken entry would be taken for a part of the next one's name, with the wrong figures.
    if '"timeMs"' in name or '"percentage"' in name:
        raise _broken("layer profile", f"the entry at {name[:40]!r} has no figures")
    return LayerTime(
        name=name,
        total_ms=float(entry["total"]),
        average_ms=float(entry["average"]),
        median_ms=None if entry["median"] is None else float(entry["median"]),
        percent=float(entry["percent"]),
    )


_OUTPUTS = re.compile(r"\[(.*)\]", re.DOTALL)
# Names are not escaped: one ends where the dimensions follow.
_OUTPUT = re.compile(
    r'\s*(?:, )?\{ "name" : "(?P<name>[^\n]*)"\s*, "dimensions" : "(?P<shape>[\dx]*)"\s*'
    r', "values" : \[(?P<values>[^\]]*)\]\s*\}'
)
_SPECIAL = {"nan": float("nan"), "-nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


def parse_outputs(text: str) -> dict[str, Output]:
    """The tensors in the file of ``--exportOutput``, by name. ``trtexec`` prints six digits of a value.

    The file is no strict JSON: names are not escaped, and values that are not finite are as C++ prints them. Raises
    `DeviceError` where it is broken or cut.
    """
    body = _OUTPUTS.fullmatch(text.strip().replace("\r\n", "\n"))
    if body is None:
        raise _broken("outputs", "they are cut off")
    found: dict[str, Output] = {}
    at = 0
    while entry := _OUTPUT.match(body[1], at):
        if entry["name"] in found:
            raise _broken("outputs", f"{entry['name'][:40]!r} is there twice")
        found[entry["name"]] = _output(entry)
        at = entry.end()
    if not found or body[1][at:].strip():
        raise _broken("outputs", f"they cannot be read after {len(found)} tensors")
    return found


def _output(entry: re.Match[str]) -> Output:
    try:
        shape = tuple(int(size) for size in entry["shape"].split("x") if entry["shape"])
        values = tuple(_value(word.strip()) for word in entry["values"].split(",") if entry["values"].strip())
    except ValueError as exc:
        raise _broken("outputs", str(exc)) from exc
    if len(values) != math.prod(shape):
        raise _broken("outputs", f"{entry['name'][:40]!r} has {len(values)} values for the shape {entry['shape']}")
    return Output(shape=shape, values=values)


def _value(word: str) -> float:
    return _SPECIAL[word] if word in _SPECIAL else float(word)


def parse_layers(text: str) -> tuple[Layer, ...]:
    """The engine's layers from the file of ``--exportLayerInfo``, plain (names only) or detailed.

    Raises `DeviceError` where it is broken or cut.
    """
    document = _json(text, "layer information")
    layers = document.get("Layers") if isinstance(document, dict) else None
    if not isinstance(layers, list):
        raise _broken("layer information", "it has no list of layers")
    return tuple(_layer(entry) for entry in layers)


def _layer(entry: Any) -> Layer:
    if isinstance(entry, str):
        return Layer(name=entry)
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise _broken("layer information", "a layer has no name")
    return Layer(
        name=entry["Name"],
        layer_type=_text(entry.get("LayerType")),
        inputs=_tensors(entry.get("Inputs")),
        outputs=_tensors(entry.get("Outputs")),
        tactic=_text(entry.get("TacticName")) or _text(entry.get("TacticValue")),
        metadata=_text(entry.get("Metadata")),
    )


def _text(value: Any) -> str | None:
    return None if value is None or isinstance(value, (list, dict)) else str(value)


def _tensors(value: Any) -> tuple[LayerTensor, ...]:
    found = value if isinstance(value, list) else []
    return tuple(_tensor(entry) for entry in found if isinstance(entry, (str, dict)))


def _tensor(entry: str | dict[str, Any]) -> LayerTensor:
    if isinstance(entry, str):
        return LayerTensor(name=entry)
    shape = entry.get("Dimensions")
    sizes = tuple(n for n in shape if isinstance(n, int)) if isinstance(shape, list) else ()
    return LayerTensor(name=str(entry.get("Name", "")), shape=sizes, format=_format(entry))


def _format(entry: dict[str, Any]) -> str | None:
    """Type and layout: one entry up to TensorRT 10, two from 11."""
    joined = _text(entry.get("Format/Datatype")) or _text(entry.get("Format/DataType"))
    parts = [part for part in (_text(entry.get("DataType")), _text(entry.get("Format"))) if part]
    return joined or " ".join(parts) or None


def _json(text: str, what: str) -> Any:
    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a figure")

    try:
        return json.loads(text, strict=False, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise _broken(what, str(exc)) from exc


def _number(row: Any, key: str, what: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    # The comparison goes first: an integer may be too large for a float.
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12
    if not usable or value is None:
        raise _broken(what, f"{key} is {str(value)[:40]}")
    return float(value)


def _broken(what: str, why: str) -> DeviceError:
    return DeviceError(
        f"the {what} that trtexec wrote cannot be read: {why}",
        remedy="is the board's disk full, or was trtexec stopped? Free space there, and measure again",
    )
