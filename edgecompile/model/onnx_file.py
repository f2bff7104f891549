"""Reads ONNX files that may be damaged or hostile, and takes off what is no part of the network; child only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx

#: The libraries take versions for 32-bit numbers, and there will be no such version.
_ABSURD_VERSION = 10_000
_AGAIN = "export or copy it again"
#: Under 4, every constant must be listed as an input, too; over 10, ONNX Runtime does not open the file. What lies
#: between differs in what it may hold (functions, types, texts), not in what the same content means.
_IR_VERSIONS = (8, 10)
_SHOWN = 8


def read(file: Path, name: str) -> onnx.ModelProto:
    """An ONNX file with its external data, model-local functions inlined; raises `InputError`."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError, OSError) as exc:
        raise damaged(name, exc) from exc
    if not model.graph.node:
        raise InputError(f"{name} is not an ONNX model, or is damaged: it has no operators", remedy=_AGAIN)
    versions = [("operators", opset.version) for opset in model.opset_import]
    for what, number in (("format", model.ir_version), *versions):
        if not 0 <= number < _ABSURD_VERSION:
            raise InputError(f"{name} says that it uses version {number} of the ONNX {what}", remedy=_AGAIN)
    _load_external_data(model, file.parent.resolve(), name)
    return _inlined(model, name)


def damaged(name: str, exc: Exception) -> InputError:
    """The error for a file that the parsers refuse, with the first line of why."""
    why = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
    return InputError(f"{name} is not a valid ONNX model, or is damaged: {why}", remedy=_AGAIN)


def _inlined(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    import onnx.inliner

    if not model.functions:
        return model
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, TypeError) as exc:
        raise damaged(name, exc) from exc


# --------------------------------------------------------------------------------------------------- walking


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside its nodes (If, Loop, Scan)."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from nodes(inner)


def label(node: onnx.NodeProto) -> str:
    """A node's name, or its first output's where it has none."""
    return node.name or next(iter(node.output), "")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph]
    bodies: list[Any] = [*model.graph.node]
    bodies += [n for f in model.functions for n in f.node]
    while bodies or graphs:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            bodies += [] if graph is model.graph else list(graph.node)
            continue
        for attribute in bodies.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            graphs += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


# ---------------------------------------------------------------------------------------------- external data


def external_files(model: onnx.ModelProto) -> list[str]:
    """The locations of the files beside the model that hold its weights, as the model writes them."""
    return sorted({_location(t)["location"] for t in _external(model)})


def _external(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    import onnx

    return [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]


def _location(tensor: onnx.TensorProto) -> dict[str, str]:
    return {"location": "", **{entry.key: entry.value for entry in tensor.external_data}}


def _load_external_data(model: onnx.ModelProto, folder: Path, name: str) -> None:
    """Read weights that lie in files of the model's own folder; never outside of it, also not through a link."""
    import onnx

    for tensor in _external(model):
        entry = _location(tensor)
        path = _inside(folder, entry["location"], tensor.name, name)
        try:
            offset, length = int(entry.get("offset", 0)), int(entry.get("length", -1))
        except ValueError as exc:
            raise damaged(name, exc) from exc
        size = path.stat().st_size
        length = size - offset if length < 0 else length
        if not 0 <= offset <= offset + length <= size:
            raise InputError(
                f"{name}: weights {tensor.name!r} need bytes {offset} to {offset + length} of {entry['location']}, "
                f"which has {size}",
                remedy="copy it again together with the model: it was cut off",
            )
        with path.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _inside(folder: Path, location: str, tensor: str, name: str) -> Path:
    if not location or "\0" in location:
        raise InputError(f"{name}: weights {tensor!r} lie in a file without a name", remedy=_AGAIN)
    path = (folder / location).resolve()
    if not path.is_relative_to(folder):
        raise InputError(
            f"{name}: weights {tensor!r} point outside the model's folder, at {location!r}: refused",
            remedy="put the weights beside the model, or save it as one file",
        )
    if not path.is_file():
        raise InputError(
            f"{name}: weights {tensor!r} lie in {location!r}, which is missing",
            remedy=f"copy {location} into the model's folder",
        )
    return path


# ---------------------------------------------------------------------------------------------------- content


def clean(model: onnx.ModelProto) -> None:
    """Take off texts (they hold paths and stack traces) and constants that are listed as inputs; one file format."""
    import onnx

    if model.ir_version <= onnx.IR_VERSION:  # an unknown one is left for the checker to refuse
        model.ir_version = min(max(model.ir_version, _IR_VERSIONS[0]), _IR_VERSIONS[1])
    constants = {t.name for t in model.graph.initializer}
    real = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(real)
    del model.metadata_props[:]
    model.ClearField("doc_string")
    _clean_graph(model.graph)


def _clean_graph(graph: Any) -> None:
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (graph, *values, *graph.node):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    del graph.value_info[:]  # written by the exporter for its own shapes; inferred anew
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                _clean_graph(inner)


def refuse_unknown(model: onnx.ModelProto, name: str) -> None:
    """Raise `UnsupportedModelError` with all operators that are not standard ONNX ones of the model's version."""
    import onnx

    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not version:
        raise InputError(f"{name} does not say which version of the ONNX operators it uses", remedy=_AGAIN)
    unknown = []
    for node in nodes(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain or not onnx.defs.has(node.op_type, version, ""):
            unknown.append((f"{domain}.{node.op_type}" if domain else node.op_type, label(node)))
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        listed = ", ".join(f"{operator} ({at!r})" for operator, at in unknown[:_SHOWN])
        raise UnsupportedModelError(
            f"{name} has operators that are no standard ONNX operators of version {version}: {listed}{more}",
            remedy="export with standard ONNX operators only",
            operators=tuple(unknown),
        )
