"""A second opinion on a graph for TensorRT: the parser of ``tensorrt-rtx``, where it is installed. A hint, no proof.

It needs no GPU, and it is the same parser as TensorRT's, but a newer one than boards have; it takes strongly typed
graphs only, and builds for other GPUs than a Jetson's. What it refuses deserves a look; what it takes may still not
build on the board. (NVIDIA's library is proprietary, so it is an extra: ``pip install 'edgecompile[tensorrt-lint]'``.)
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompile import sandbox
from edgecompile.errors import InputError

_TIMEOUT_S = 300.0
#: The library reserves far more address space than it uses.
_MEMORY_BYTES = 256 << 30
#: Messages about the missing GPU, which say nothing of the graph.
_NOISE = ("CUDA", "cudaGet", "error code 35", "Unable to determine GPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A node that the parser does not take, and why."""

    op_type: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What the parser of ``tensorrt-rtx`` says. ``engine_bytes``: the size of what was built, where that was asked."""

    version: str
    accepted: bool
    refusals: tuple[Refusal, ...] = ()
    engine_bytes: int | None = None


def installed() -> bool:
    """Whether there is a ``tensorrt-rtx`` to ask."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def ask(path: Path, *, build_for: str | None = None) -> Opinion | None:
    """The opinion on an ONNX file; ``None`` where ``tensorrt-rtx`` is not installed.

    ``build_for`` names a GPU generation (``SM86``) to build for as well. The file is opened in a limited child process;
    a crash of the library there counts as a refusal.
    """
    if not installed():
        return None
    argument = {"path": str(path.resolve()), "build_for": build_for}
    try:
        found = sandbox.call(
            "edgecompile.lower.trt_lint:in_child",
            argument,
            memory_bytes=_MEMORY_BYTES,
            timeout_s=_TIMEOUT_S,
            what=f"{path.name} in tensorrt-rtx",
        )
    except InputError as exc:
        refusal = Refusal(op_type="?", node="?", reason=exc.message)
        return Opinion(version="?", accepted=False, refusals=(refusal,))
    refusals = tuple(Refusal(**refusal) for refusal in found["refusals"])
    return Opinion(
        version=found["version"],
        accepted=found["accepted"],
        refusals=refusals,
        engine_bytes=found["engine_bytes"],
    )


def in_child(argument: dict[str, Any]) -> dict[str, Any]:
    """Parse, and build where asked; runs in the limited child."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what is said, off the terminal."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and not any(word in message for word in _NOISE):
                self.errors.append(message)

    log = Log()
    builder = trt.Builder(log)
    data = Path(argument["path"]).read_bytes()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    accepted = bool(parser.parse(data, argument["path"]))
    refusals = [] if accepted else _refusals(parser, log.errors)
    size = None
    if accepted and argument["build_for"]:
        size = _built(trt, builder, network, argument["build_for"])
        if size is None:
            accepted = False
            refusals = [{"op_type": "?", "node": "?", "reason": log.errors[-1] if log.errors else "no engine came out"}]
    return {"version": trt.__version__, "accepted": accepted, "refusals": refusals, "engine_bytes": size}


def _refusals(parser: Any, said: list[str]) -> list[dict[str, str]]:
    found = []
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        found.append({
            "op_type": error.node_operator() or "?", "node": error.node_name() or "?", "reason": error.desc(),
        })  # fmt: skip
    return found or [{"op_type": "?", "node": "?", "reason": said[-1] if said else "it gave no reason"}]


def _built(trt: Any, builder: Any, network: Any, generation: str) -> int | None:
    """The size of an engine for a GPU generation; ``None`` where none comes out."""
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, generation), 0)
    made = builder.build_serialized_network(network, config)
    return None if made is None else int(made.nbytes)
