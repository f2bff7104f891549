"""The TFLite (LiteRT) runtime: ``.tflite`` files in float32, float16 and full-integer INT8."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.lower import base, flatbuffer, quantize_tflite
from edgecompile.lower.via_onnx2tf import Converted
from edgecompile.types import Arrays, Artifact, InputLayout, Model, Plan, Precision, RuntimeName

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_FloatPath: TypeAlias = Callable[[Model, Sequence[Arrays], InputLayout], Converted]


def _direct(model: Model, samples: Sequence[Arrays], layout: InputLayout) -> Converted:
    """Our own lowering. Raises `UnsupportedModelError` naming the operators it lacks."""
    from edgecompile.lower import direct

    result = direct.lower(base.load_onnx(model), input_layout=layout)
    return Converted(data=result.data, inputs=result.inputs, outputs=result.outputs, notes=result.notes)


def _onnx2tf(model: Model, samples: Sequence[Arrays], layout: InputLayout) -> Converted:
    from edgecompile.lower import via_onnx2tf

    return via_onnx2tf.convert(model, samples, input_layout=layout)


#: How a float file is made, in the order of trust.
FLOAT_PATHS: dict[str, _FloatPath] = {"direct": _direct, "onnx2tf": _onnx2tf}


def float_file(
    model: Model, samples: Sequence[Arrays], *, path: str | None = None, layout: InputLayout = "nhwc"
) -> tuple[Converted, str]:
    """The float32 file of a model by one path, or by the first that takes it; also returns the path's name.

    Raises the first path's `UnsupportedModelError`, which is our own lowering's and names operators.
    """
    first: UnsupportedModelError | None = None
    for name in base.choose_path(tuple(FLOAT_PATHS), path):
        try:
            return FLOAT_PATHS[name](model, samples, layout), name
        except UnsupportedModelError as exc:
            log.info("lowering path %r does not take %s: %s", name, model.name, exc.message)
            first = first or exc
    assert first is not None
    raise first


@dataclass(frozen=True, slots=True, kw_only=True)
class TFLite:
    """Lowers to ``.tflite``: the float file by our own compiler or onnx2tf, smaller precisions from it."""

    name: RuntimeName = "tflite"
    paths: tuple[str, ...] = tuple(FLOAT_PATHS)

    def check(self, model: Model, precision: Precision) -> tuple[str, ...]:
        """See `base.Runtime.check`."""
        from edgecompile.lower import direct

        proto = base.load_onnx(model)
        refusals = direct.check(proto)
        if not refusals:
            return ()
        _refuse_unknown_operators(model, proto)
        listed = ", ".join(sorted({refusal.op_type for refusal in refusals}))
        return (f"edgecompile's own lowering does not take {listed}: the file is made through onnx2tf",)

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
        if plan.precision == "fp32":
            converted, taken = float_file(model, samples, path=path, layout=plan.input_layout)
            data, islands = converted.data, None
        else:
            if float_artifact is None:
                float_plan = Plan(runtime=plan.runtime, precision="fp32", input_layout=plan.input_layout)
                float_artifact = self.lower(model, float_plan, samples, workdir, path=path)
            converted, taken = _reopen(float_artifact), float_artifact.path_taken
            data, islands = _smaller(converted, model, plan, samples)
        # The float file's names and permutations with this file's types and quantization.
        inputs, outputs = flatbuffer.interface(data, converted.inputs, converted.outputs)
        return base.write_artifact(
            data,
            workdir / base.file_name(plan, ".tflite"),
            plan=plan,
            inputs=inputs,
            outputs=outputs,
            path_taken=taken,
            float_islands=islands,
            notes=converted.notes,
        )


def _reopen(artifact: Artifact) -> Converted:
    try:
        data = artifact.file.read_bytes()
    except OSError as exc:
        raise InputError(f"the float file cannot be read: {exc}", remedy="build again with --fresh") from exc
    return Converted(data=data, inputs=artifact.inputs, outputs=artifact.outputs, notes=artifact.notes)


def _smaller(converted: Converted, model: Model, plan: Plan, samples: Sequence[Arrays]) -> tuple[bytes, int | None]:
    if plan.precision == "fp16":
        return quantize_tflite.float16(converted.data), None
    base.require_samples(samples, "INT8 quantization")
    base.require_fit(model, samples)
    kept = base.followed(base.load_onnx(model), plan.float_operators, quantize_tflite.weighted_outputs(converted.data))
    data = quantize_tflite.int8(converted.data, converted.inputs, samples, io_dtype=plan.io_dtype, keep_float=kept)
    return data, quantize_tflite.float_islands(data)


def _refuse_unknown_operators(model: Model, proto: onnx.ModelProto) -> None:
    """Raise `UnsupportedModelError` for operators that onnx2tf does not know by name either."""
    known = _onnx2tf_operators()
    if known is None:
        return
    unknown = [
        (node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}", node.name)
        for node in base.nodes_of(proto.graph)
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    ]
    if unknown:
        raise base.unsupported(f"{model.name} has operators that cannot be lowered to TFLite", unknown)


def _onnx2tf_operators() -> frozenset[str] | None:
    """The operators onnx2tf has a file for; read from its folder, since importing it imports TensorFlow."""
    spec = importlib.util.find_spec("onnx2tf")
    if spec is None or not spec.submodule_search_locations:
        return None
    return frozenset(path.stem for path in (Path(spec.submodule_search_locations[0]) / "ops").glob("[A-Z]*.py"))
