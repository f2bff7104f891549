"""Puts the runner and the files on a machine, runs it there, and maps what goes wrong to our errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from edgecompile import content
from edgecompile.bench import benchmark_model as by_tool
from edgecompile.bench import document
from edgecompile.errors import DeviceError, EdgecompileError, InputError
from edgecompile.transport import Completed, Transport
from edgecompile.types import Artifact

log = logging.getLogger(__name__)
T = TypeVar("T")

_INSTALL = {"tflite": "ai-edge-litert", "onnxruntime": "onnxruntime"}


def run(
    artifacts: Sequence[Artifact],
    transport: Transport,
    arguments: Sequence[str],
    kind: type[T],
    *,
    timeout_s: float,
    placed: Sequence[str] | None = None,
) -> T:
    """Run the runner on files with ``arguments``; its document. Raises `DeviceError`, or `InputError` for bad files.

    ``placed`` is what `put` gave, where that was done before.
    """
    models = put(artifacts, transport) if placed is None else placed
    done = transport.run([transport.python, "runner.py", *models, *arguments, "--json"], timeout_s=timeout_s)
    log.debug("the runner said: %s", done.err.strip())
    if document.SENTINEL not in done.out:
        raise _no_answer(done, transport)
    found = document.parse(done.out, kind)
    if isinstance(found, document.Failed):
        _raise(found.error, artifacts, transport)
    return found


def put(artifacts: Sequence[Artifact], transport: Transport) -> list[str]:
    """Put the runner, its backends and the files there; the ``--model`` arguments."""
    root = content.builtin_root("targets")
    for program in ("runner.py", "probes.py"):
        transport.put(root / program, program)
    for name in sorted({_backend(artifact) for artifact in artifacts}):
        transport.put(root / name / "backend.py", f"{name}/backend.py")
    arguments = []
    for index, artifact in enumerate(artifacts):
        # The folder and the name are ours: a user's file name never becomes part of a command.
        name = f"models/{index}/model{artifact.file.suffix}"
        transport.put(artifact.file, name)
        for companion in _companions(artifact.file):
            transport.put(companion, f"models/{index}/{companion.name}")
        provider = f"+{artifact.provider}" if artifact.provider is not None else ""
        arguments += ["--model", f"{_backend(artifact)}{provider}:{name}"]
    return arguments


def _backend(artifact: Artifact) -> str:
    # The file for TensorRT is an ONNX file: on machines without it, ONNX Runtime runs it.
    return "onnxruntime" if artifact.runtime == "tensorrt" else artifact.runtime


def _companions(file: Path) -> list[Path]:
    """Files with the weights of an ONNX file, which is found by the names that exporters give them."""
    if file.suffix != ".onnx":
        return []
    return [path for path in (Path(f"{file}.data"), Path(f"{file}_data")) if path.is_file()]


def _no_answer(done: Completed, transport: Transport) -> DeviceError:
    """The error of a runner that ended without a document."""
    where = transport.description
    if done.ended_by is not None:
        memory = " (often: not enough memory)" if done.ended_by == "SIGKILL" else ""
        return DeviceError(
            f"the runner on {where} was ended by {done.ended_by}{memory}", remedy="see -vv for what it said"
        )
    lines = (done.err or done.out).strip().splitlines()
    last = lines[-1].strip() if lines else "it said nothing"
    missing = re.search(r"No module named '([\w.]+)'", last)
    if missing:
        package = missing.group(1)
        return DeviceError(f"Python on {where} has no package {package!r}", remedy=_how_to_install(transport, package))
    return DeviceError(f"the runner on {where} failed with exit code {done.code}: {last}", remedy="see -vv for more")


def _how_to_install(transport: Transport, package: str, runtime: str = "tflite") -> str:
    if transport.is_this_machine:
        return f"install it with: pip install {package}"
    which = f" --runtime {runtime}" if runtime != "tflite" else ""
    return f"run: edgecompile device setup --on {transport.address}{which} (or install it there: pip install {package})"


def _raise(fault: document.Fault, artifacts: Sequence[Artifact], transport: Transport) -> NoReturn:
    where = transport.description
    file = artifacts[fault.model].file if fault.model is not None else None
    runtime = _backend(artifacts[fault.model if fault.model is not None else 0])
    if fault.kind == "no_runtime":
        raise DeviceError(
            f"{where} has no runtime for {file}: {fault.message}",
            remedy=_how_to_install(transport, _INSTALL[runtime], runtime),
        )
    if fault.kind == "crash":
        raise DeviceError(
            f"running {file} on {where}: {fault.message}",
            remedy="the file is damaged, needs a newer runtime, or needs more memory than there is",
        )
    if fault.kind == "no_memory":
        raise DeviceError(f"{where}: {fault.message}", remedy="measure a smaller model")
    if fault.kind == "usage":
        raise EdgecompileError(f"the runner refused its arguments: {fault.message}")
    remedy = "build the file again" if fault.kind == "bad_model" else "give inputs as the file takes them"
    raise InputError(f"{file} on {where}: {fault.message}", remedy=remedy)


def run_inputs(
    artifact: Artifact, transport: Transport, *, inputs: Path, outputs: Path, benchmark_model: str | None = None
) -> str:
    """Run a file on stacked inputs (``.npz``, by the file's own names) and write its outputs, stacked the same way.

    Gives what ran it, like ``ai_edge_litert 2.1.0``. Raises `DeviceError` for the machine, `InputError` for the file
    or the inputs.
    """
    if benchmark_model is not None:
        return by_tool.run_inputs(artifact, transport, program=benchmark_model, inputs=inputs, outputs=outputs)
    transport.put(inputs, "inputs.npz")
    arguments = ["--run-inputs", "inputs.npz", "--write-outputs", "outputs.npz"]
    ran = run([artifact], transport, arguments, document.Ran, timeout_s=600.0)
    transport.get("outputs.npz", outputs)
    return f"{ran.package} {ran.version}"
