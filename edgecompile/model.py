"""Gets a trained model in, safely: from a file or a factory to a static, checked, shape-inferred ONNX file."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edgecompile import __version__, sandbox
from edgecompile.errors import InputError, MissingExtraError, TrustError, UnsupportedModelError
from edgecompile.store import write_atomically
from edgecompile.types import Model, TensorSpec, digest, file_sha256

log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]] | tuple[int, ...] | None
_MEMORY_BYTES = 16 << 30
_TIMEOUT_S = 600.0
_OPSET = 18


def load(
    ref: str, workdir: Path, *, weights: Path | None = None, input_shapes: Shapes = None, trust: bool = False
) -> Model:
    """The model that ``ref`` stands for, prepared in ``workdir``. Raises `InputError` or `UnsupportedModelError`."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = Path(ref)
    if path.suffix == ".onnx":
        source = _existing(path)
        return _prepared(source, workdir, input_shapes, name=path.stem, source=ref, kind="onnx", module=None)
    if ":" in ref and not path.exists():
        module = _factory(ref, trust)
        if weights is not None:
            _load_weights(module, weights)
        name = ref.rpartition(":")[2]
        return _from_module(module, workdir, input_shapes, name=name, source=ref, kind="factory")
    raise InputError(
        f"{ref} is not a model that can be read", remedy="give an .onnx file, a .pt2 file, or MODULE:FACTORY"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no such model file: {path}", remedy="check the path")
    return path


def _prepared(
    file: Path,
    workdir: Path,
    shapes: Shapes,
    *,
    name: str,
    source: str,
    kind: Literal["onnx", "pt2", "factory", "torchscript"],
    module: Any,
) -> Model:
    argument = {
        "file": str(file.resolve()),
        "name": file.name,
        "workdir": str(workdir.resolve()),
        "shapes": list(shapes) if isinstance(shapes, tuple) else {k: list(v) for k, v in (shapes or {}).items()},
    }
    answer = sandbox.call(
        "edgecompile.model:prepare_in_child",
        argument,
        memory_bytes=_MEMORY_BYTES,
        timeout_s=_TIMEOUT_S,
        what=f"the model file {file}",
    )
    path = workdir / "model.onnx"
    return Model(
        name=name,
        path=path,
        original_path=workdir / "original.onnx",
        inputs=tuple(_spec(s) for s in answer["inputs"]),
        outputs=tuple(_spec(s) for s in answer["outputs"]),
        source=source,
        kind=kind,
        sha256=file_sha256(path),
        parameters=answer["parameters"],
        notes=tuple(answer["notes"]),
        module=module,
    )


def _spec(value: dict[str, Any]) -> TensorSpec:
    return TensorSpec(name=value["name"], shape=tuple(value["shape"]), dtype=value["dtype"])


def prepare_in_child(argument: dict[str, Any]) -> dict[str, Any]:
    """Read, fix, simplify, check and write a model; runs in the limited child process."""
    import onnx
    from google.protobuf.message import DecodeError

    file, notes = Path(argument["file"]), []
    try:
        model = onnx.load(str(file))
    except (DecodeError, ValueError, OSError, onnx.checker.ValidationError) as exc:
        raise InputError(
            f"{argument['name']} is not an ONNX model, or is damaged: {exc}", remedy="export it again"
        ) from exc
    if not model.graph.node:
        raise InputError(
            f"{argument['name']} is not an ONNX model, or is damaged: no operators", remedy="export it again"
        )
    _remove_initializer_inputs(model)
    notes += _fix_shapes(model, argument["shapes"])
    _refuse_unknown(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise InputError(
            f"{argument['name']} is not a valid ONNX model: {str(exc).splitlines()[0]}", remedy="export it again"
        ) from exc
    workdir = Path(argument["workdir"])
    write_atomically(workdir / "original.onnx", model.SerializeToString(deterministic=True))
    model, more = _simplify(model)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    write_atomically(workdir / "model.onnx", model.SerializeToString(deterministic=True))
    return {
        "inputs": [_describe(v) for v in model.graph.input],
        "outputs": [_describe(v) for v in model.graph.output],
        "parameters": sum(_size(t.dims) for t in model.graph.initializer if t.data_type in (1, 10, 11, 16)),
        "notes": notes + more,
    }


def _size(dims: Sequence[int]) -> int:
    total = 1
    for dim in dims:
        total *= dim
    return total


def _remove_initializer_inputs(model: Any) -> None:
    constants = {t.name for t in model.graph.initializer}
    real = [v for v in model.graph.input if v.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(real)


def _fix_shapes(model: Any, shapes: Any) -> list[str]:
    notes = []
    named = dict(shapes) if isinstance(shapes, dict) else {model.graph.input[0].name: shapes}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        wanted = named.pop(value.name, None)
        if wanted is not None:
            if len(wanted) != len(dims) or any(d.dim_value not in (0, w) for d, w in zip(dims, wanted, strict=True)):
                found = [d.dim_value or d.dim_param or "?" for d in dims]
                raise InputError(
                    f"input {value.name!r} has shape {found}, --input-shape says {list(wanted)}", remedy="make them fit"
                )
            for dim, size in zip(dims, wanted, strict=True):
                dim.dim_value = size
        elif dims and not dims[0].dim_value:
            dims[0].dim_value = 1
            notes.append(f"the dynamic batch of input {value.name!r} is fixed to 1")
        if any(not d.dim_value for d in dims):
            found = [d.dim_value or d.dim_param or "?" for d in dims]
            raise InputError(
                f"input {value.name!r} has an open shape {found}", remedy=f"give --input-shape {value.name}=1,3,224,224"
            )
    if named:
        raise InputError(
            f"the model has no input {next(iter(named))!r}", remedy=f"it has {[v.name for v in model.graph.input]}"
        )
    del model.graph.value_info[:]
    return notes


def _refuse_unknown(model: Any) -> None:
    import onnx

    versions = {o.domain: o.version for o in model.opset_import}
    unknown = []
    for node in model.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain or not onnx.defs.has(node.op_type, versions.get("", 1), ""):
            unknown.append((f"{domain}.{node.op_type}" if domain else node.op_type, node.name))
    if unknown:
        listed = ", ".join(f"{op} ({name!r})" for op, name in unknown[:8])
        raise UnsupportedModelError(
            f"unknown operators: {listed}", remedy="export with standard ONNX operators", operators=tuple(unknown)
        )


def _simplify(model: Any) -> tuple[Any, list[str]]:
    import onnxsim

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            simplified, ok = onnxsim.simplify(model)
    except Exception as exc:
        return model, [f"not simplified: {str(exc).splitlines()[0]}"]
    return (simplified, []) if ok else (model, ["not simplified: onnxsim changed the outputs"])


def _describe(value: Any) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    return {
        "name": value.name,
        "shape": [d.dim_value for d in kind.shape.dim],
        "dtype": onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
    }


def _factory(ref: str, trust: bool) -> Any:
    if not trust:
        raise TrustError(f"{ref} runs code of that module", remedy="give --trust if you trust it")
    module_name, _, name = ref.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module_name), name)()


def _load_weights(module: Any, path: Path) -> None:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    module.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})


def _from_module(module: Any, workdir: Path, shapes: Shapes, *, name: str, source: str, kind: Any) -> Model:
    import torch

    if not isinstance(shapes, tuple):
        raise InputError("the input shape of a factory's model is not known", remedy="give --input-shape 1,3,224,224")
    module = module.eval()
    raw = workdir / "exported.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(shapes),), raw, dynamo=True, opset_version=_OPSET, external_data=False, verbose=False
        )
    return _prepared(raw, workdir, None, name=name, source=source, kind=kind, module=module)


__all__ = ["MissingExtraError", "__version__", "digest", "load", "prepare_in_child"]
