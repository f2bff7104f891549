"""Runs a file, or the original model, on this machine and returns its outputs: what parity and accuracy stand on."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from edgecompile import content
from edgecompile.errors import InputError
from edgecompile.types import Arrays, Artifact, Model, Port, RunFunction, RuntimeName


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what native libraries print (``Created TensorFlow Lite XNNPACK delegate``) off the terminal."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@cache
def _backend(runtime: RuntimeName) -> ModuleType:
    name = "onnxruntime" if runtime == "tensorrt" else runtime
    path = content.builtin_root("targets") / name / "backend.py"
    spec = importlib.util.spec_from_file_location(f"edgecompile_backend_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def original(model: Model, *, threads: int = 1) -> RunFunction:
    """The original model: its torch module, else ONNX Runtime on the unsimplified graph without optimizations."""
    if model.module is not None:
        return _torch(model)
    session = _backend("onnxruntime").Session(str(model.original_path), threads=threads, optimize=False)
    run: RunFunction = session.run
    return run


def _torch(model: Model) -> RunFunction:
    import numpy as np
    import torch

    def run(sample: Arrays) -> Arrays:
        with torch.no_grad():
            found = model.module(*(torch.from_numpy(np.asarray(sample[s.name])) for s in model.inputs))
        values = list(found.values()) if isinstance(found, dict) else found
        values = [values] if isinstance(values, torch.Tensor) else list(values)
        return {s.name: v.numpy() for s, v in zip(model.outputs, values, strict=True)}

    return run


def raw(artifact: Artifact, *, threads: int = 1) -> RunFunction:
    """The file as it is: arrays in its own layout and types, by its own names."""
    try:
        with quiet_stderr():
            session = _backend(artifact.runtime).Session(str(artifact.file), threads=threads)
    except (ValueError, RuntimeError) as exc:
        raise InputError(f"{artifact.file} cannot be run here: {exc}", remedy="build it again") from exc
    run: RunFunction = session.run
    return run


def to_file_inputs(artifact: Artifact, sample: Arrays) -> Arrays:
    """A sample of the original's inputs as the file takes them: permuted and quantized."""
    return {port.spec.name: _to_file(port, sample[port.model_name]) for port in artifact.inputs}


def artifact(artifact: Artifact, *, threads: int = 1) -> RunFunction:
    """The shipped file as a function of the original's inputs, giving the original's outputs, dequantized."""
    run = raw(artifact, threads=threads)

    def call(sample: Arrays) -> Arrays:
        outputs = run(to_file_inputs(artifact, sample))
        return {port.model_name: _from_file(port, outputs[port.spec.name]) for port in artifact.outputs}

    return call


def _to_file(port: Port, value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    if port.permutation is not None:
        array = np.ascontiguousarray(array.transpose(port.permutation))
    q = port.spec.quantization
    if q is not None and np.dtype(port.spec.dtype).kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(port.spec.dtype)
        array = np.clip(np.round(array / q.scale[0]) + q.zero_point[0], limits.min, limits.max)
    return array.astype(port.spec.dtype)


def _from_file(port: Port, value: Any) -> Any:
    import numpy as np

    array = np.asarray(value)
    q = port.spec.quantization
    if q is not None and array.dtype.kind in "iu":
        array = ((array.astype(np.float32) - q.zero_point[0]) * q.scale[0]).astype(np.float32)
    if port.permutation is not None:
        array = array.transpose(np.argsort(port.permutation))
    return array
