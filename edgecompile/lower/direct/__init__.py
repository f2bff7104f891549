"""Our own compiler core: ONNX -> a typed IR with explicit layouts -> a TFLite flatbuffer, without TensorFlow.

It lowers a construct exactly or refuses it by name; it never writes a file that computes something else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower.direct import passes, write
from edgecompile.lower.direct.emit import Emitter
from edgecompile.lower.direct.ir import Graph, Layout, identity
from edgecompile.lower.direct.ops import HANDLERS
from edgecompile.lower.direct.read import Reader, Refusal
from edgecompile.types import InputLayout, Port, TensorSpec

if TYPE_CHECKING:
    import onnx

_LISTED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResult:
    """A float ``.tflite`` file and how its inputs and outputs relate to the model's.

    ``operators`` and ``transposes`` count what is in the file; ``notes`` are things the user should read.
    """

    data: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: int
    transposes: int
    notes: tuple[str, ...] = ()


def check(model: onnx.ModelProto) -> tuple[Refusal, ...]:
    """What of a model is not lowered, with reasons; empty when all of it is. Nothing is written."""
    reader = _read(model)
    return tuple(reader.refusals)


def lower(model: onnx.ModelProto, *, input_layout: InputLayout = "nhwc") -> DirectResult:
    """Lower a model with static shapes to a float ``.tflite`` file; the same model gives the same bytes.

    With ``input_layout="nhwc"``, inputs of rank 4 are taken channels-last, and outputs of rank 4 may be: each port's
    ``permutation`` says so. Raises `UnsupportedModelError` with every construct that is not lowered exactly.
    """
    reader = _read(model)
    if reader.refusals:
        raise _unsupported(reader.refusals)
    graph = reader.graph
    passes.run(graph, channels_last=input_layout == "nhwc")
    emitter = Emitter(graph)
    file = emitter.run()
    if emitter.refusals:
        raise _unsupported(Refusal(op_type=op, name=name, reason=why) for (op, name), why in emitter.refusals)
    if (size := write.content_bytes(file)) > write.MAX_BYTES:
        raise UnsupportedModelError(
            f"the weights take {size / 2**30:.1f} GiB; a .tflite file holds less than 2", remedy="take a smaller model"
        )
    return DirectResult(
        data=write.pack(file),
        inputs=_ports(graph, ((name, name, index) for name, index in file.inputs), file),
        outputs=_ports(
            graph,
            ((name, value, index) for (name, value), (_, index) in zip(graph.outputs, file.outputs, strict=True)),
            file,
        ),
        operators=len(file.operators),
        transposes=sum(op.builtin == "TRANSPOSE" for op in file.operators),
    )


def placed(model: onnx.ModelProto) -> Graph | None:
    """The graph that `lower` writes, after all passes; ``None`` for a model that is not lowered."""
    reader = _read(model)
    if reader.refusals:
        return None
    passes.run(reader.graph, channels_last=True)
    return reader.graph


def _read(model: onnx.ModelProto) -> Reader:
    if model.functions:
        model = _inlined(model)
    reader = Reader(model, HANDLERS)
    reader.run()
    return reader


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out. Raises `UnsupportedModelError` when they cannot be."""
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as exc:
        raise UnsupportedModelError(f"the model's own functions cannot be written out: {exc}") from exc


def _ports(graph: Graph, entries: Iterable[tuple[str, str, int]], file: write.File) -> tuple[Port, ...]:
    ports = []
    for model_name, value_name, index in entries:
        value, tensor = graph.values[value_name], file.tensors[index]
        layout: Layout | None = None if value.layout == identity(value.rank) else value.layout
        spec = TensorSpec(name=tensor.name, shape=tensor.shape, dtype=tensor.dtype)
        ports.append(Port(spec=spec, model_name=model_name, permutation=layout))
    return tuple(ports)


def _unsupported(refusals: Iterable[Refusal]) -> UnsupportedModelError:
    listed = list(refusals)
    lines = [f"{r.op_type} {r.name!r}: {r.reason}" if r.name else f"{r.op_type}: {r.reason}" for r in listed]
    more = f"\n  and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return UnsupportedModelError(
        "the direct lowering does not take this model:\n  " + "\n  ".join(lines[:_LISTED]) + more,
        remedy="replace these operators in the model, or export it with other settings",
        operators=tuple((r.op_type, r.name) for r in listed),
    )


__all__ = ["DirectResult", "Refusal", "check", "lower", "placed"]
