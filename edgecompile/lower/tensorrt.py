"""The TensorRT runtime as far as this machine goes: a checked ONNX, in FP16 or FP32, from which the device builds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import base, float16_onnx
from edgecompile.types import Arrays, Artifact, Model, Plan, Port, Precision, RuntimeName

if TYPE_CHECKING:
    import onnx

_PATH = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """Lowers to the ``.onnx`` file that TensorRT builds its engine from on the device."""

    name: RuntimeName = "tensorrt"
    paths: tuple[str, ...] = (_PATH,)

    def check(self, model: Model, precision: Precision) -> tuple[str, ...]:
        """See `base.Runtime.check`."""
        _refuse_int8(precision)
        _checked(base.load_onnx(model), model.name)
        return ("the TensorRT engine is built on the device: this file is checked here, but not built",)

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
        _refuse_int8(plan.precision)
        if plan.io_dtype != "float32":
            raise InputError("TensorRT files keep float inputs and outputs", remedy="leave --io at float32")
        proto = base.load_onnx(model)
        if plan.precision == "fp16":
            proto = float16_onnx.convert(proto, model.name)
        _checked(proto, model.name)
        data = proto.SerializeToString(deterministic=True)
        return base.write_artifact(
            data,
            workdir / base.file_name(plan, ".onnx"),
            plan=plan,
            inputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.inputs),
            outputs=tuple(Port(spec=spec, model_name=spec.name) for spec in model.outputs),
            path_taken=_PATH,
            notes=_how_it_runs_here(data, model.name),
        )


def _refuse_int8(precision: Precision) -> None:
    if precision == "int8":
        raise InputError("INT8 for TensorRT is not available yet", remedy="use --precision fp16")


def _checked(proto: onnx.ModelProto, name: str) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as exc:
        raise UnsupportedModelError(f"the ONNX of {name} is not valid: {exc}") from exc


def _how_it_runs_here(data: bytes, name: str) -> tuple[str, ...]:
    """A note where ONNX Runtime cannot open the file, so that its outputs cannot be compared on this machine."""
    try:
        base.open_onnx_session(data, name)
    except UnsupportedModelError as exc:
        return (f"the ONNX for TensorRT is valid, but was not run here: {exc.message}",)
    return ()
