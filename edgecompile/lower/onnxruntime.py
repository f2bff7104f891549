"""The ONNX Runtime runtime: the prepared ONNX as it is, or its QDQ INT8 form with u8 activations and s8 weights.

Unsigned activations are what ONNX Runtime's kernels are fast with on x86 (``vpmaddubsw`` takes u8 x s8). Without VNNI
that instruction adds pairs in 16 bits and can saturate: ``Plan.reduce_range`` keeps weights in 7 bits where it hurts.

The float file is the prepared graph: ONNX Runtime's own optimizations fit the machine they run on (its blocked
layouts do), so they are left to the device, where they take milliseconds when the file is loaded. Only what these do
not recognize, or what has slow kernels, is written as something else that means the same (`ort_patterns`).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import EdgecompileError, InputError, UnsupportedModelError
from edgecompile.lower import base, ort_patterns
from edgecompile.types import Arrays, Artifact, Model, Plan, Port, Precision, RuntimeName

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

#: QDQ with per-channel weights needs opset 13.
_MIN_QDQ_OPSET = 13
_PATH = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntime:
    """Lowers to ``.onnx`` for ONNX Runtime on a CPU."""

    name: RuntimeName = "onnxruntime"
    paths: tuple[str, ...] = (_PATH,)

    def check(self, model: Model, precision: Precision) -> tuple[str, ...]:
        """See `base.Runtime.check`."""
        _refuse_fp16(precision)
        base.open_onnx_session(base.load_onnx(model).SerializeToString(), model.name)
        return ()

    def lower(
        self,
        model: Model,
        plan: Plan,
        samples: Sequence[Arrays],
        workdir: Path,
        *,
        path: str | None = None,
        float_artifact: Artifact | None = None,
    ) -> Artifact:
        """See `base.Runtime.lower`."""
        base.choose_path(self.paths, path)
        _refuse_fp16(plan.precision)
        if plan.io_dtype != "float32":
            raise InputError("ONNX Runtime files keep float inputs and outputs", remedy="leave --io-dtype at float32")
        proto = base.load_onnx(model)
        ort_patterns.arrange(proto, plan.precision)
        data = proto.SerializeToString(deterministic=True)
        base.open_onnx_session(data, model.name)
        notes: tuple[str, ...] = ()
        if plan.precision == "int8":
            base.require_samples(samples, "INT8 quantization")
            base.require_fit(model, samples)
            floating, data = data, _quantized(data, samples, plan, model.name)
            notes = kernel_faults(floating, data, samples)
        return base.write_artifact(
            data,
            workdir / base.file_name(plan, ".onnx"),
            plan=plan,
            inputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.inputs),
            outputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.outputs),
            path_taken=_PATH,
            notes=notes,
        )


def _quantized(data: bytes, samples: Sequence[Arrays], plan: Plan, name: str) -> bytes:
    import onnx

    proto = quantize(
        onnx.load_from_string(data), samples, reduce_range=plan.reduce_range, keep_float=plan.float_operators
    )
    made: bytes = proto.SerializeToString(deterministic=True)
    base.open_onnx_session(made, name)
    return made


def _refuse_fp16(precision: Precision) -> None:
    if precision == "fp16":
        raise InputError(
            "ONNX Runtime has no fast float16 kernels on CPUs", remedy="use fp32 or int8 for the runtime onnxruntime"
        )


# ------------------------------------------------------------------------------------------------- quantization


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class _Reader:
    """Calibration samples in the form `onnxruntime.quantization` reads them."""

    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._samples = samples
        self._next = 0

    def __len__(self) -> int:
        return len(self._samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._samples = self._samples[start_index:end_index]
        self._next = 0

    def get_next(self) -> dict[str, Any] | None:
        if self._next >= len(self._samples):
            return None
        sample = self._samples[self._next]
        self._next += 1
        return dict(sample)


def quantize(
    proto: onnx.ModelProto, samples: Sequence[Arrays], *, reduce_range: bool = False, keep_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph in QDQ form: u8 activations, s8 per-channel weights, ranges by min-max over the samples.

    ``keep_float`` names outputs of operators that stay in float.
    Raises `UnsupportedModelError` when ONNX Runtime's quantizer does not take the graph.
    """
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory(prefix="edgecompile-") as name, _mapped_errors():
        folder = Path(name)
        prepared = _prepared(proto, folder)
        quantization.quantize_static(
            str(prepared),
            str(folder / "int8.onnx"),
            _Reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_exclude=_makers(proto, keep_float, prepared),
        )
        return _loaded(folder / "int8.onnx")


def _prepared(proto: onnx.ModelProto, folder: Path) -> Path:
    """The graph at an opset with per-channel QDQ, shapes inferred, and fused as far as the ONNX standard goes."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if version < _MIN_QDQ_OPSET:
        proto = onnx.version_converter.convert_version(proto, _MIN_QDQ_OPSET)
    onnx.save(proto, str(folder / "float.onnx"))
    quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    return folder / "prepared.onnx"


def _makers(proto: onnx.ModelProto, outputs: Sequence[str], prepared: Path) -> list[str]:
    """The names, in the prepared graph, of the nodes that make these outputs."""
    if not outputs:
        return []
    nodes = list(_loaded(prepared).graph.node)
    made = {name: node.name for node in nodes for name in node.output}
    kept = [made[name] for name in base.followed(proto, outputs, frozenset(made))]
    sources = {node.name: {made[name] for name in node.input if name in made} for node in nodes}
    weighted = {node.name for node in nodes if node.op_type in _WEIGHTED and not ort_patterns.is_average(node)}
    return base.connected(sources, kept, weighted)


def _loaded(path: Path) -> onnx.ModelProto:
    import onnx

    return onnx.load(str(path))


@contextlib.contextmanager
def _mapped_errors() -> Iterator[None]:
    """Map what ONNX Runtime's quantizer raises, and keep its advice off the terminal."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (EdgecompileError, MemoryError):
        raise
    except Exception as exc:  # ValueError, RuntimeError, onnx's ConvertError, ... according to what it trips on
        raise UnsupportedModelError(
            f"ONNX Runtime cannot quantize the model: {type(exc).__name__}: {exc}",
            remedy="leave int8 out with --precision, or use tflite",
        ) from exc
    finally:
        root.setLevel(before)


# ----------------------------------------------------------------------------------------------- this machine's kernels

_KERNEL_SAMPLES = 4
#: Integer kernels round differently from the file's definition, which moves the SQNR by fractions of a decibel.
_KERNEL_LOSS_DB = 3.0


def kernel_faults(floating: bytes, quantized: bytes, samples: Sequence[Arrays]) -> tuple[str, ...]:
    """A note where this machine's integer kernels compute something else than the INT8 file says.

    ONNX Runtime runs the file as it is defined (DequantizeLinear, float operator, QuantizeLinear) without its fusions,
    and on integer kernels with them. Seen to differ: 16-bit saturation of u8 x s8 products on CPUs without VNNI, and
    wrong AMX products up to release 1.23 (microsoft/onnxruntime issue 26324).
    """
    used = [samples[i] for i in range(min(_KERNEL_SAMPLES, len(samples)))]
    expected = _outputs(floating, used, fused=True)
    defined = _sqnr_db(expected, _outputs(quantized, used, fused=False))
    computed = _sqnr_db(expected, _outputs(quantized, used, fused=True))
    if computed > defined - _KERNEL_LOSS_DB:
        return ()
    import onnxruntime

    lost = f"lose {defined - computed:.0f} dB on this file ({computed:.0f} instead of {defined:.0f} dB against float)"
    return (
        f"the integer kernels of ONNX Runtime {onnxruntime.__version__} on this CPU {lost}: "
        "its accuracy and outputs measured here hold for this machine only",
    )


def _outputs(data: bytes, samples: Sequence[Arrays], *, fused: bool) -> list[npt.NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [value for sample in samples for value in session.run(None, dict(sample))]


def _sqnr_db(reference: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> float:
    """Signal over noise power of all outputs together, each relative to its own power."""
    import numpy as np

    ratios = [
        float(np.square(b.astype(np.float64) - a).sum() / max(float(np.square(a.astype(np.float64)).sum()), 1e-30))
        for a, b in zip(reference, found, strict=True)
    ]
    return float(-10 * np.log10(max(float(np.mean(ratios)), 1e-20)))
