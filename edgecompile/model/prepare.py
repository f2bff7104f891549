"""Turns an ONNX file from outside into the two files the compiler works on; runs in limited child processes.

``read_in_child`` parses, fixes shapes and checks: ``original.onnx`` (what the model means), ``plain.onnx`` (the same
at a newer operator set). ``finish_in_child`` simplifies and runs: ``model.onnx`` is the simplest form that computes
what the original does. They are two processes, since simplifying may crash or hang on a model that is good.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from edgecompile.errors import EdgecompileError, InputError, UnsupportedModelError
from edgecompile.model import onnx_file, shapes
from edgecompile.store import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import onnx

ORIGINAL, PLAIN, PREPARED = "original.onnx", "plain.onnx", "model.onnx"
#: From here on axes are inputs and not attributes, and quantization is per channel.
_OPSET = 13
#: Constants beyond this are not computed ahead: the file would grow, and nothing be won.
_FOLD_LIMIT = "64MB"
#: The same operators in another order of summing: a wrong graph differs by far more.
_TOLERANCE = 1e-3
_SEED = 20260101


class ReadRequest(TypedDict):
    """What `read_in_child` takes."""

    file: str
    name: str
    workdir: str
    shapes: Any


class FinishRequest(TypedDict):
    """What `finish_in_child` takes."""

    name: str
    workdir: str
    simplify: bool


def read_in_child(argument: ReadRequest) -> dict[str, Any]:
    """Parse, fix, check; writes ``original.onnx`` and ``plain.onnx`` and returns notes."""
    name, workdir = argument["name"], Path(argument["workdir"])
    model = onnx_file.read(Path(argument["file"]), name)
    onnx_file.clean(model)
    onnx_file.refuse_unknown(model, name)
    notes = shapes.fix_inputs(model, name, argument["shapes"])
    known = shapes.inferred(model, name)
    _check(known, name)
    shapes.refuse_huge(known, name)
    plain, more = _upgraded(model)
    write_atomically(workdir / ORIGINAL, _bytes(model, name))
    write_atomically(workdir / PLAIN, _bytes(plain, name))
    return {"notes": notes + more}


def external_in_child(argument: Mapping[str, str]) -> list[str]:
    """The files beside an ONNX file that hold its weights, as it names them."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx_file.external_files(onnx.load(argument["file"], load_external_data=False))
    except (DecodeError, ValueError, OSError) as exc:
        raise onnx_file.damaged(argument["name"], exc) from exc


def _check(model: onnx.ModelProto, name: str) -> None:
    import onnx

    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version > onnx.defs.onnx_opset_version():
        raise InputError(
            f"{name} uses version {version} of the ONNX operators; up to {onnx.defs.onnx_opset_version()} is known",
            remedy="export it with opset 18",
        )
    for value in model.graph.output:
        # The checker wants a shape; files without one are good, and what it is was inferred where it can be.
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as exc:
        raise onnx_file.damaged(name, exc) from exc


def _bytes(model: onnx.ModelProto, name: str) -> bytes:
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except ValueError as exc:
        raise UnsupportedModelError(
            f"{name} is larger than 2 GiB", remedy="no edge device takes it: use a smaller model"
        ) from exc
    return data


def _upgraded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model with newer operators; unchanged where the converter cannot (the lowering reads old ones, too)."""
    import onnx.version_converter

    version = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if version >= _OPSET:
        return model, []
    try:
        upgraded = onnx.version_converter.convert_version(model, _OPSET)
    except (RuntimeError, ValueError) as exc:
        return model, [f"left at operator set {version}: {_first_line(exc)}"]
    if _ports(upgraded) != _ports(model):
        return model, [f"left at operator set {version}: the converter lost inputs or outputs"]
    onnx_file.clean(upgraded)
    return upgraded, []


def _first_line(exc: BaseException) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)


def _ports(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [v.name for v in model.graph.input], [v.name for v in model.graph.output]


# --------------------------------------------------------------------------------------------------- finishing


def finish_in_child(argument: FinishRequest) -> dict[str, Any]:
    """Choose the simplest form that computes what the original does; writes ``model.onnx`` and describes it."""
    import onnx

    name, workdir = argument["name"], Path(argument["workdir"])
    original, plain = (onnx.load(str(workdir / file)) for file in (ORIGINAL, PLAIN))
    sample = _sample(original)
    expected = _run(original, sample, name)
    notes: list[str] = []
    for label, make in (("simplified", _simplified), ("upgraded", shapes.inferred), ("original", shapes.inferred)):
        if label == "simplified" and not argument["simplify"]:
            continue
        try:
            made = make(original if label == "original" else plain, name)
            if label != "original":
                _same(made, original, sample, expected, name)
        except Exception as exc:  # onnxsim and ONNX Runtime raise their own kinds, derived from Exception only
            if label == "original":
                raise
            notes.append(f"not {label}: {_first_line(exc)}")
            continue
        return _finished(made, original, workdir, name, notes)
    raise EdgecompileError(f"{name}: no form of the model was tried")


def _simplified(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    import onnxsim

    # Inferred first: onnxsim wants the shapes of outputs, which some good files leave out.
    with contextlib.redirect_stdout(io.StringIO()):
        simplified, _ = onnxsim.simplify(shapes.inferred(model, name), tensor_size_threshold=_FOLD_LIMIT)
    onnx_file.clean(simplified)
    return shapes.inferred(simplified, name)


def _finished(
    model: onnx.ModelProto, original: onnx.ModelProto, workdir: Path, name: str, notes: list[str]
) -> dict[str, Any]:
    shapes.refuse_huge(model, name)
    shapes.refuse_open(model, name)
    write_atomically(workdir / PREPARED, _bytes(model, name))
    (workdir / PLAIN).unlink(missing_ok=True)
    return {
        "inputs": [_describe(v) for v in model.graph.input],
        "outputs": [_describe(v) for v in model.graph.output],
        "parameters": _parameters(original),
        "notes": notes,
    }


def _parameters(model: onnx.ModelProto) -> int:
    import onnx

    floats = (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.BFLOAT16,
    )
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in floats)


def _describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
    sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return {"name": value.name, "shape": sizes, "dtype": shapes.dtype(value)}


# ----------------------------------------------------------------------------------------------------- running


def _sample(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded numbers for every input; whole numbers are zero, since they are often indices."""
    import numpy as np

    generator = np.random.default_rng(_SEED)
    sample = {}
    for value in model.graph.input:
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        kind = np.dtype(shapes.dtype(value))
        sample[value.name] = (generator.random(sizes) if kind.kind == "f" else np.zeros(sizes)).astype(kind)
    return sample


def _run(model: onnx.ModelProto, sample: Mapping[str, Any], name: str) -> Sequence[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(_bytes(model, name), options, providers=["CPUExecutionProvider"])
        values: Sequence[Any] = session.run(None, dict(sample))
    except EdgecompileError:
        raise
    except Exception as exc:  # ONNX Runtime's errors derive from Exception only
        raise InputError(
            f"{name} cannot be run by ONNX Runtime: {_first_line(exc)}", remedy="export it again, with opset 13 to 18"
        ) from exc
    return values


def _same(model: onnx.ModelProto, original: onnx.ModelProto, sample: Any, expected: Sequence[Any], name: str) -> None:
    """Raise `InputError` unless ``model`` has the original's inputs and outputs and computes the same."""
    import numpy as np

    if _ports(model) != _ports(original):
        raise InputError("it lost inputs or outputs, or changed their order")
    for output, before, after in zip(_ports(model)[1], expected, _run(model, sample, name), strict=True):
        if not isinstance(before, np.ndarray) or before.shape != after.shape or before.dtype != after.dtype:
            raise InputError(f"it changed the shape or type of output {output!r}")
        finite = before[np.isfinite(before)] if before.dtype.kind == "f" else before
        scale = float(np.max(np.abs(finite))) if finite.size else 1.0
        if not np.allclose(before, after, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True):
            raise InputError(f"it changed the values of output {output!r}")
