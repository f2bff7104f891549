"""The words that modules speak to each other in: frozen dataclasses, with units in the field names.

Nothing here computes anything but the small facts about itself. Conversion from and to JSON is `encode`/`decode`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")

#: One sample or batch for a model: input name -> array. What a model returns: output name -> array.
Arrays: TypeAlias = "Mapping[str, npt.NDArray[np.generic]]"
#: A function that runs a model on one sample: inputs by name -> outputs by name, in the *original model's* layout.
RunFunction: TypeAlias = "Callable[[Arrays], Arrays]"

Precision: TypeAlias = Literal["fp32", "fp16", "int8"]
#: How a .tflite file takes inputs of rank 4: channels last, or (``nchw``) as the model has them.
InputLayout: TypeAlias = Literal["nhwc", "nchw"]
#: What of a GPU ONNX Runtime computes with; ``None``: the CPU.
Provider: TypeAlias = Literal["cuda", "tensorrt"]
RuntimeName: TypeAlias = Literal["tflite", "onnxruntime", "tensorrt"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# --------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Affine quantization, ``real = scale * (quantized - zero_point)``; one entry, or one a slice of ``axis``."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A named, shaped, typed tensor. ``dtype`` is NumPy's name (``float32``, ``int8``, ``int64``, ...)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of a shipped file, and how it relates to the original model's tensor.

    ``spec`` is what the file has; ``model_name`` is the original's tensor; ``permutation`` maps the original's axes
    to the file's (``file = transpose(original, permutation)``; ``None`` where they are the same, ``(0, 2, 3, 1)`` for
    an NCHW original whose file takes NHWC).
    """

    spec: TensorSpec
    model_name: str
    permutation: tuple[int, ...] | None = None


# ---------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A trained network as the compiler works on it: a static, checked, shape-inferred ONNX file.

    ``path`` is the prepared (simplified) ONNX file, ``original_path`` the ONNX before simplification (the reference
    of the parity gate when there is no ``module``), ``module`` the ``torch.nn.Module`` it came from, in eval mode on
    the CPU. ``sha256`` is that of the prepared file's bytes. ``notes`` are things done to it that the user should read.
    """

    name: str
    path: Path
    original_path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source: str
    kind: Literal["onnx", "pt2", "factory", "torchscript"]
    sha256: str
    parameters: int
    notes: tuple[str, ...] = ()
    module: Any = field(default=None, compare=False, repr=False)


OperatorClass: TypeAlias = Literal[
    "conv", "pointwise", "depthwise", "dense", "pool", "elementwise", "activation", "data", "other"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """What one fused operator (a Conv with its BatchNorm, bias and activation counts once) asks of a device.

    ``macs`` are multiply-accumulates; ``*_elements`` are tensor elements, so that bytes follow from the precision.
    ``in_channels``/``out_channels`` are 0 where the notion does not apply; ``groups`` is that of a convolution.
    """

    name: str
    op_type: str
    op_class: OperatorClass
    macs: int
    weight_elements: int
    input_elements: int
    output_elements: int
    in_channels: int = 0
    out_channels: int = 0
    kernel: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    groups: int = 1


# -------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The promise: latency at a percentile, the largest accuracy drop (points of the metric), the largest file.

    ``min_sqnr_db`` takes the place of ``max_drop`` for models whose metric is SQNR, which has no drop.
    ``accept_throttled`` lets measurements count that were taken while the machine was not itself.
    """

    latency_ms: float
    percentile: float = 50.0
    max_drop: float | None = None
    min_sqnr_db: float | None = None
    max_size_bytes: int | None = None
    accept_throttled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a build as it was in force, and where its value came from."""

    name: str
    value: str
    origin: Literal["command line", "edgecompile.toml", "profile", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """All that one build for one target was asked for. ``None`` means: the profile or the data decide."""

    model: str
    target: str
    out: Path
    weights: Path | None = None
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    trust: bool = False
    budget_ms: float | None = None
    use_case: str | None = None
    percentile: float = 50.0
    max_drop: float | None = None
    min_sqnr_db: float | None = None
    max_size_mb: float | None = None
    data: Path | None = None
    evaluation: Path | None = None
    preset: str | None = None
    labels: Path | None = None
    calibration_samples: int = 200
    validation_samples: int = 1000
    evaluation_samples: int | None = None
    runtimes: tuple[RuntimeName, ...] = ()
    precisions: tuple[Precision, ...] = ()
    io_dtype: Literal["float32", "int8"] = "float32"
    input_layout: InputLayout = "nhwc"
    threads: int | None = None
    warmup_s: float = 1.0
    min_runs: int = 50
    min_seconds: float = 3.0
    seed: int = 0
    on: str | None = None
    power_mode: str | None = None
    eval_on_device: int | None = None
    accept_throttled: bool = False
    benchmark_model: str | None = None
    prune: bool = True
    importance: str = "reconstruction"
    resolutions: tuple[int, ...] = ()
    frontier: bool = False
    train: bool = False
    student: bool = False
    time_limit_min: float = 30.0
    training: tuple[tuple[str, str | int | float | bool], ...] = ()
    plan: str | None = None
    model_license: str | None = None
    model_source: str | None = None
    force: bool = False
    fresh: bool = False
    content_dir: Path | None = None
    options: tuple[Option, ...] = ()
    command_line: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One technique with its choices, replayable: counts and choices only, never seconds."""

    technique: str
    options: tuple[tuple[str, str | int | float | bool], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Ordered technique steps, then one runtime and precision: the same plan on the same inputs, the same bytes."""

    runtime: RuntimeName
    precision: Precision
    steps: tuple[Step, ...] = ()
    io_dtype: Literal["float32", "int8"] = "float32"
    #: Of a .tflite file; other runtimes take inputs as the model has them.
    input_layout: InputLayout = "nhwc"
    reduce_range: bool = False
    #: A graph for TensorRT that ONNX Runtime runs on the device's GPU, by this provider.
    provider: Provider | None = None
    #: Of an INT8 plan, the outputs (in the ONNX graph) of weighted operators that stay in float.
    float_operators: tuple[str, ...] = ()
    calibration_samples: int = 0
    seed: int = 0

    @property
    def label(self) -> str:
        """The short name people read, ``tflite-int8``; four digits stand for the steps that change the model, and
        ``f3`` for three operators of an INT8 file that stay in float."""
        mark = f"-{digest(self.steps)[:4]}" if self.steps else ""
        mixed = f"-f{len(self.float_operators)}" if self.float_operators else ""
        runtime = self.runtime if self.provider is None else f"onnxruntime-{self.provider}"
        return f"{runtime}-{self.precision}" + ("-rr" if self.reduce_range else "") + mixed + mark


# --------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """The file a runtime made of a model. ``path_taken`` names the lowering (``direct``, ``onnx2tf``, ``onnx``).

    ``float_islands`` counts operators left in float inside an INT8 file (``None`` where the notion does not apply);
    ``typed_file`` is an INT8 graph for TensorRT once more, with float16 as the type of what is not quantized.
    ``provider`` is what of the device's GPU ONNX Runtime computes with.
    """

    runtime: RuntimeName
    precision: Precision
    file: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    path_taken: str
    size_bytes: int
    sha256: str
    float_islands: int | None = None
    notes: tuple[str, ...] = ()
    typed_file: Path | None = None
    provider: Provider | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """What one layer of an engine costs: its mean time a run, and its share of the whole."""

    name: str
    average_ms: float
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What TensorRT built of an ONNX file on one board; it works with that ``tensorrt`` on that ``gpu`` only.

    ``key`` names the two in file names. ``source_sha256`` is that of the ONNX file. ``options`` are those of
    ``trtexec``, without file names. ``timing_cache`` makes the next build on such a board quicker; ``layers`` are the
    costliest first, and empty where the board did not tell.
    """

    key: str
    tensorrt: str
    gpu: str
    source_sha256: str
    file: Path
    log: Path
    timing_cache: Path | None
    layer_info: Path | None
    options: tuple[str, ...]
    build_s: float
    layers: tuple[EngineLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """CPUs that share a clock: what they are, their clock's limits in MHz, the governor; ``None`` where not told.

    ``capacity`` is the kernel's measure of a core's speed, 1024 for the fastest.
    """

    cpus: tuple[int, ...]
    core: str | None = None
    capacity: int | None = None
    governor: str | None = None
    min_mhz: float | None = None
    max_mhz: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A board whose GPU did the work: what it is, how it was set, and what happened while measuring.

    ``clocks_locked`` tells whether the GPU's clock was held (``None``: the board did not tell); ``over_current`` counts
    the events of its supply's protection meanwhile. ``jetpack`` is ``None`` where the system is unknown.
    """

    gpu: str
    tensorrt: str
    jetpack: str | None = None
    l4t: str | None = None
    power_mode: str | None = None
    clocks_locked: bool | None = None
    gpu_mhz_before: float | None = None
    gpu_mhz_after: float | None = None
    junction_c_highest: float | None = None
    over_current: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine a measurement was taken on, and its state before, during and after.

    ``clusters`` stand with the biggest cores first. ``throttled_*`` are the Raspberry Pi's bits; ``_during`` and
    ``frequency_mhz_*`` of the run are of samples taken twice a second: the median, and the lowest. ``passes`` counts
    the repetitions that were made until two agreed, ``cooled_s`` the seconds waited between them.
    """

    device: str
    machine: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cores: int
    affinity: tuple[int, ...]
    kernel: str
    load_before: float
    load_after: float
    governor: str | None = None
    frequency_mhz_before: float | None = None
    frequency_mhz_after: float | None = None
    temperature_c_before: float | None = None
    temperature_c_after: float | None = None
    clusters: tuple[Cluster, ...] = ()
    frequency_mhz_during: float | None = None
    frequency_mhz_lowest: float | None = None
    temperature_c_highest: float | None = None
    throttled_before: int | None = None
    throttled_during: int | None = None
    throttled_after: int | None = None
    memory_available_bytes_before: int | None = None
    memory_available_bytes_after: int | None = None
    passes: int = 1
    cooled_s: float = 0.0
    board: GpuState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Latency with its provenance, all in milliseconds; ``value_ms`` is the chosen percentile with a 95 % interval.

    An estimate has ``runs == 0``, an interval that reflects the profile's own error, and no environment. Percentiles
    that whatever measured does not tell are ``None``.
    ``warnings`` say why the figure should be doubted (noise, throttling, a loaded machine). ``trusted`` is false where
    they say that the machine was not itself: slowed, overloaded, or never twice the same. ``speed_up`` is the latency
    of the yardstick, the whole model's float file for the same runtime, over this one's, measured in turns with it.
    """

    provenance: Literal["measured", "estimated", "imported"]
    device: str
    runtime: str
    runtime_version: str
    threads: int
    percentile: float
    value_ms: float
    ci_low_ms: float
    ci_high_ms: float
    median_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    runs: int = 0
    cold_ms: float | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    delegated_operators: int | None = None
    total_operators: int | None = None
    environment: Environment | None = None
    warnings: tuple[str, ...] = ()
    trusted: bool = True
    speed_up: Ratio | None = None

    def meets(self, latency_ms: float) -> bool:
        """Whether the upper end of the interval lies under ``latency_ms``. Says nothing about provenance."""
        return self.ci_high_ms <= latency_ms

    def counts(self, latency_ms: float) -> bool:
        """Whether the figure keeps the budget and can be trusted: what a verdict may be built on."""
        return self.trusted and self.meets(latency_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The ratio of two interleaved measurements' percentiles (``numerator / denominator``), with a 95 % interval."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCount:
    """Instructions of one inference with one thread on an emulated core: no time, and equal run after run.

    ``per_inference`` is the median of ``runs`` inferences, ``spread`` the largest less the smallest, over the median.
    ``image`` names the file system of the emulated board: counts of others may differ by other libraries.
    """

    core: str
    per_inference: int
    spread: float
    runs: int
    runtime: str
    image: str

    @property
    def label(self) -> str:
        """What the figure is called wherever it is shown."""
        return f"instructions (emulated {self.core})"


Metric: TypeAlias = Literal["top-1", "agreement", "SQNR", "mAP", "mIoU"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """A metric of one file on the evaluation data; ``value`` in percent (dB for SQNR) with a 95 % interval.

    ``drop`` is in points against the original on the same samples (positive is worse) with its paired interval;
    for ``agreement`` it is ``100 - value``; for SQNR there is no drop.
    """

    metric: Metric
    value: float
    ci_low: float
    ci_high: float
    samples: int
    drop: float | None = None
    drop_ci_low: float | None = None
    drop_ci_high: float | None = None

    @property
    def unit(self) -> str:
        return "dB" if self.metric == "SQNR" else "%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The parity gate's finding for one file.

    ``kind`` is ``float`` (file against original: ``max_error`` is the largest absolute difference over the output's
    range, and must not exceed ``tolerance``) or ``quantized`` (file against float: ``sqnr_db``, at least ``tolerance``,
    and, for classifiers, top-1 ``agreement`` in percent with its 95 % interval). ``fault`` says why ``worst_output``
    cannot be compared at all, such as another shape.
    """

    kind: Literal["float", "quantized"]
    passed: bool
    samples: int
    max_error: float
    tolerance: float
    worst_output: str
    sqnr_db: float | None = None
    agreement: float | None = None
    agreement_ci_low: float | None = None
    agreement_ci_high: float | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One plan that was tried: what it made, how fast, how good. ``failure`` tells why there is nothing to choose.

    ``predicted_ms`` is what the table of operators promised of a smaller model before it was timed. ``engine`` is what
    the device built of the file; ``instructions`` were counted where the build was given an emulated board.
    """

    plan: Plan
    artifact: Artifact | None = None
    engine: Engine | None = None
    measurement: Measurement | None = None
    accuracy: Accuracy | None = None
    parity: Parity | None = None
    failure: str | None = None
    predicted_ms: float | None = None
    instructions: InstructionCount | None = None


# ------------------------------------------------------------------------------------------------------ JSON


def _encode_foreign(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"cannot write a {type(value).__name__} as JSON")


def _decode_foreign(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"cannot read a {kind.__name__} from JSON")


def to_builtins(value: object) -> Any:
    """A dataclass as plain dictionaries, lists, strings and numbers, ready for JSON."""
    return msgspec.to_builtins(value, enc_hook=_encode_foreign)


def encode(value: object) -> bytes:
    """A dataclass as canonical JSON: keys sorted, no spaces; equal values give equal bytes."""
    data: bytes = msgspec.json.encode(value, enc_hook=_encode_foreign, order="sorted")
    return data


def decode(data: bytes, kind: type[T]) -> T:
    """The inverse of `encode`. Raises ``msgspec.ValidationError`` when the data does not fit ``kind``."""
    value: T = msgspec.json.decode(data, type=kind, dec_hook=_decode_foreign)
    return value


def digest(*parts: object) -> str:
    """A SHA-256 over the canonical JSON of ``parts``: the key of a work-folder entry."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(encode(part))
        hasher.update(b"\0")
    return hasher.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as lower-case hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
