"""What every runtime's lowering offers, and what they share: writing a file and describing it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.store import write_atomically
from edgecompile.types import Arrays, Artifact, Model, Plan, Port, Precision, RuntimeName

if TYPE_CHECKING:
    import onnx

#: More operators than this are counted, not listed, in a message.
_LISTED = 8


class Runtime(Protocol):
    """Lowers a model to the file that one runtime executes."""

    @property
    def name(self) -> RuntimeName:
        """The runtime's name, as plans carry it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The ways to a float file in the order of trust: a path whose file fails the gate gives way to the next."""

    def check(self, model: Model, precision: Precision) -> tuple[str, ...]:
        """What the user should know before any work, as sentences.

        Raises `UnsupportedModelError` naming the operators that no path takes, and `InputError` for a precision that
        the runtime does not offer.
        """

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
        """Write the file that ``plan`` asks for into ``workdir``: the same plan on the same inputs, the same bytes.

        ``samples`` are calibration samples in the model's layout (batch axis included). ``path`` forces one of
        ``paths``; without it the first that works is taken. ``float_artifact`` is the FP32 file of the same model and
        runtime: a smaller precision is made from it (and without it, it is made first). Raises
        `UnsupportedModelError` naming operators, and `InputError` for bad samples.
        """


def write_artifact(
    data: bytes,
    file: Path,
    *,
    plan: Plan,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    path_taken: str,
    float_islands: int | None = None,
    notes: tuple[str, ...] = (),
) -> Artifact:
    """Write ``data`` under a temporary name, rename it to ``file``, and describe it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, data)
    return Artifact(
        runtime=plan.runtime,
        precision=plan.precision,
        file=file,
        inputs=inputs,
        outputs=outputs,
        path_taken=path_taken,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        float_islands=float_islands,
        notes=notes,
    )


def file_name(plan: Plan, suffix: str) -> str:
    """The name of a plan's file; plans that differ in what they make have different names."""
    io = "-io8" if plan.io_dtype == "int8" else ""
    layout = "-nchw" if plan.input_layout == "nchw" else ""
    return f"{plan.label}{io}{layout}{suffix}"


def choose_path(paths: tuple[str, ...], path: str | None) -> tuple[str, ...]:
    """The paths to try: all in order, or the one that was forced."""
    if path is None:
        return paths
    if path not in paths:
        raise InputError(f"there is no lowering path {path!r}", remedy=f"known: {', '.join(paths)}")
    return (path,)


def require_samples(samples: Sequence[Arrays], purpose: str) -> None:
    """Raise `InputError` when there is no sample to calibrate on."""
    if not samples:
        raise InputError(f"{purpose} needs calibration samples", remedy="give a folder of real inputs with --data")


def require_fit(model: Model, samples: Iterable[Arrays]) -> None:
    """Raise `InputError` when a sample lacks an input, or has another shape than the model's."""
    for number, sample in enumerate(samples):
        for spec in model.inputs:
            if spec.name not in sample:
                raise InputError(f"sample {number} has no input {spec.name!r}; it has: {', '.join(sample)}")
            if tuple(sample[spec.name].shape) != spec.shape:
                raise InputError(
                    f"sample {number} does not fit input {spec.name!r}: expected shape {spec.shape}, "
                    f"found {tuple(sample[spec.name].shape)}"
                )


def load_onnx(model: Model) -> onnx.ModelProto:
    """The prepared ONNX graph of a model, with external weights. Raises `InputError` when it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(str(model.path))
    except (DecodeError, OSError, ValueError) as exc:
        raise InputError(f"{model.path} is not a readable ONNX file: {exc}") from exc


def open_onnx_session(data: bytes, name: str) -> None:
    """Open the graph once, so that an operator that ONNX Runtime lacks is found before it is shipped."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions have no common base
        raise UnsupportedModelError(
            f"ONNX Runtime does not take {name}: {exc}", remedy="export it again with a lower opset, or use tflite"
        ) from exc


def nodes_of(graph: Any) -> list[Any]:
    """All nodes of an ONNX graph, those of subgraphs (If, Loop, Scan) included."""
    found: list[Any] = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            for subgraph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
                found.extend(nodes_of(subgraph))
    return found


def integers(node: onnx.NodeProto, name: str, default: Sequence[int] = ()) -> list[int]:
    """An attribute of one integer or of several; ``default`` where the node does not have it."""
    for attribute in node.attribute:
        if attribute.name == name:
            return list(attribute.ints) or [attribute.i]
    return list(default)


def unsupported(what: str, operators: Iterable[tuple[str, str]], *, remedy: str | None = None) -> UnsupportedModelError:
    """The error that names operators as ``type (node, node)``."""
    pairs = tuple(operators)
    by_type: dict[str, list[str]] = {}
    for op_type, name in pairs:
        by_type.setdefault(op_type, []).append(name or "unnamed")
    listed = [
        f"{op_type} ({', '.join(names[:_LISTED])}{f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''})"
        for op_type, names in sorted(by_type.items())
    ]
    return UnsupportedModelError(
        f"{what}: {', '.join(listed)}",
        remedy=remedy or "replace these operators in the model, or try another runtime",
        operators=pairs,
    )


#: How many operators a runtime may have fused behind a weighted one.
_FUSED = 4


def followed(proto: onnx.ModelProto, outputs: Sequence[str], known: Collection[str]) -> list[str]:
    """For each operator's output in a graph, the tensor of a lowered file that stands for it.

    A runtime fuses what follows an operator (a bias, an activation, a residual addition) into it, so that the file may
    hold only the result of these. Raises `InputError` for a name the graph does not have, `UnsupportedModelError` where
    the file has no such tensor.
    """
    made = {name for node in proto.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for output in outputs:
        if output not in made:
            raise InputError(
                f"the plan keeps the operator of {output!r} in float, which this model does not have",
                remedy="replay a plan on the model that it was made for",
            )
        name = output
        for _ in range(_FUSED):
            if name in known or len(readers.get(name, ())) != 1:
                break
            name = readers[name][0].output[0]
        if name not in known:
            raise UnsupportedModelError(
                f"the operator of {output!r} cannot stay in float: the lowered file has no such operator",
                remedy="build without mixed precision",
            )
        found.append(name)
    return found


def connected(sources: Mapping[str, Collection[str]], kept: Iterable[str], weighted: Collection[str]) -> list[str]:
    """Operators that stay in float, with those without weights that lie between such operators only.

    ``sources`` are the operators that each one reads from.
    """
    readers: dict[str, set[str]] = {name: set() for name in sources}
    for name, read in sources.items():
        for source in read:
            readers[source].add(name)
    staying = set(kept)
    between = {name for name in sources if name not in weighted and readers[name] and sources[name]}
    while True:
        floats = staying | between
        left = {name for name in between if readers[name] <= floats and set(sources[name]) <= floats}
        if left == between:
            return sorted(floats)
        between = left
