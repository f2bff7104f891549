"""The TensorRT runtime as far as this machine goes: a checked ONNX from which the device builds its engine.

FP16 is in the graph. INT8 is explicit quantization (`edgecompile.lower.qdq`) on a float32 graph, whose other layers the
device builds in FP16. From 10.12 on TensorRT wants its types from the graph, so that the same INT8 graph is written
once more with these layers in float16, at opset 19, the first whose quantizers take it. What is compared with the
original is the first: ONNX Runtime's quantizer from float16 cuts off instead of rounding (seen with 1.23).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import base, float16_onnx, onnxruntime, qdq, trt_lint, trt_opset, trt_rules
from edgecompile.store import write_atomically
from edgecompile.types import Arrays, Artifact, Model, Plan, Port, Precision, RuntimeName

if TYPE_CHECKING:
    import onnx

_PATH = "onnx"
#: The first opset whose quantizers take float16.
_TYPED_OPSET = 19
#: More findings than this are counted, not shown.
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """Lowers to the ``.onnx`` file that TensorRT builds its engine from on the device."""

    name: RuntimeName = "tensorrt"
    paths: tuple[str, ...] = (_PATH,)

    def check(self, model: Model, precision: Precision) -> tuple[str, ...]:
        """See `base.Runtime.check`."""
        hints = _checked(trt_opset.lowered(base.load_onnx(model)), model.name)
        return ("the TensorRT engine is built on the device: this file is checked here, but not built", *hints)

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
        if plan.io_dtype != "float32":
            raise InputError("TensorRT files keep float inputs and outputs", remedy="leave --io at float32")
        proto, notes = _at_precision(trt_opset.lowered(base.load_onnx(model)), model, plan, samples)
        _checked(proto, model.name)
        data = proto.SerializeToString(deterministic=True)
        file = workdir / base.file_name(plan, ".onnx")
        made = base.write_artifact(
            data,
            file,
            plan=plan,
            inputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.inputs),
            outputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.outputs),
            path_taken=_PATH,
            notes=(*notes, *_how_it_runs_here(data, model.name)),
        )
        if plan.precision == "int8":
            twin = file.with_suffix(".typed.onnx")
            write_atomically(twin, typed(proto, model.name).SerializeToString(deterministic=True))
            made = replace(made, typed_file=twin)
        if plan.provider is not None:
            return replace(made, runtime="onnxruntime", provider=plan.provider, typed_file=None)
        return replace(made, notes=(*made.notes, *_second_opinion(made.typed_file or made.file)))


def typed(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """An INT8 graph with what is not quantized in float16, inputs and outputs apart: for TensorRT 10.12 and later."""
    made = float16_onnx.convert(trt_opset.raised(proto, _TYPED_OPSET), name)
    _checked(made, name)
    return made


def _second_opinion(file: Path) -> tuple[str, ...]:
    """What `trt_lint` says, where it is installed."""
    opinion = trt_lint.ask(file)
    if opinion is None:
        return ()
    if opinion.accepted:
        return (f"a hint: the parser of tensorrt-rtx {opinion.version} takes this graph",)
    shown = ", ".join(f"{r.op_type} ({r.node}): {r.reason}" for r in opinion.refusals[:_LISTED])
    return (f"a hint: the parser of tensorrt-rtx {opinion.version} refuses this graph at {shown}",)


def require(artifact: Artifact, version: str) -> None:
    """Raise `UnsupportedModelError` where a TensorRT would not take a file: its opset is too new, say."""
    import onnx

    _checked(onnx.load(str(artifact.file)), artifact.file.name, version)


def _at_precision(
    proto: onnx.ModelProto, model: Model, plan: Plan, samples: Sequence[Arrays]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The graph at the plan's precision, and what the user should know of it."""
    if plan.precision == "fp16":
        return float16_onnx.convert(proto, model.name), ()
    if plan.precision == "int8":
        base.require_samples(samples, "INT8 quantization")
        base.require_fit(model, samples)
        makers = {name: node.name for node in qdq.prepared(proto).graph.node for name in node.output}
        kept = [makers[name] for name in base.followed(proto, plan.float_operators, frozenset(makers))]
        made = qdq.quantize(proto, samples, name=model.name, exclude=kept)
        # The outputs are compared with the float model's on this machine, whose integer kernels may be at fault.
        faults = onnxruntime.kernel_faults(proto.SerializeToString(), made.model.SerializeToString(), samples)
        return made.model, (*_said_of(made), *faults)
    return proto, ()


def _said_of(made: qdq.Quantized) -> tuple[str, ...]:
    figures = ", ".join(f"{method} {value:.1f} dB" for method, value in made.sqnr_db)
    notes = [
        f"INT8 ranges by {made.method}, the closest to float on the calibration data ({figures})",
        "the weights in the ONNX stay float32, as TensorRT 8 takes them: the engine holds them as int8",
    ]
    if made.left_in_float:
        notes.append(f"{len(made.left_in_float)} operators with weights stay in float: {', '.join(made.left_in_float)}")
    return tuple(notes)


def _checked(proto: onnx.ModelProto, name: str, version: str | None = None) -> tuple[str, ...]:
    """The hints of `trt_rules` as sentences. Raises `UnsupportedModelError` for its errors and for invalid ONNX."""
    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as exc:
        raise UnsupportedModelError(f"the ONNX of {name} is not valid: {exc}") from exc
    findings = trt_rules.check(proto, version)
    errors = trt_rules.errors(findings)
    if errors:
        shown = "\n".join(f"  {finding}" for finding in errors[:_LISTED])
        more = f"\n  and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
        who = f"TensorRT {version}" if version else "TensorRT"
        raise UnsupportedModelError(
            f"{who} would not build an engine of {name} as it is meant:\n{shown}{more}",
            remedy="change the model, or use another runtime",
            operators=_operators(proto, errors),
        )
    return tuple(f"for TensorRT: {finding}" for finding in findings)


def _operators(proto: onnx.ModelProto, errors: tuple[trt_rules.Finding, ...]) -> tuple[tuple[str, str], ...]:
    """Those of the findings that are about a named operator, as ``(type, name)``."""
    types = {node.name: node.op_type for node in base.nodes_of(proto.graph) if node.name}
    return tuple((types[finding.node], finding.node) for finding in errors if finding.node in types)


def _how_it_runs_here(data: bytes, name: str) -> tuple[str, ...]:
    """A note where ONNX Runtime cannot open the file, so that its outputs cannot be compared on this machine."""
    try:
        base.open_onnx_session(data, name)
    except UnsupportedModelError as exc:
        return (f"the ONNX for TensorRT is valid, but was not run here: {exc.message}",)
    return ()
