"""Runs a file, or the original model, on this machine and returns its outputs: what parity and accuracy stand on.

Files run through the same ``targets/<runtime>/backend.py`` that measures them on a device.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgecompile import content
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.types import Arrays, Artifact, Model, Port, RunFunction, RuntimeName

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

log = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what native libraries print (``Created TensorFlow Lite XNNPACK delegate``) off the terminal, in the log.

    The whole process's standard error is turned away meanwhile, so this belongs around short calls only.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            heard.seek(0)
            for line in heard.read().decode(errors="replace").splitlines():
                log.debug("%s", line)


def _backend_name(runtime: RuntimeName) -> str:
    # The file for TensorRT is an ONNX file: on machines without it, ONNX Runtime runs it.
    return "onnxruntime" if runtime == "tensorrt" else runtime


@cache
def _backend(name: str) -> ModuleType:
    path = content.builtin_root("targets") / name / "backend.py"
    spec = importlib.util.spec_from_file_location(f"edgecompile_backend_{name}", path)
    if spec is None or spec.loader is None:
        raise EdgecompileError(f"this installation of edgecompile lacks {path}", remedy="install it again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_session(runtime: RuntimeName, path: Path, *, threads: int = 1, **options: Any) -> Any:
    """A file loaded by its runtime's backend: an object with ``inputs``, ``outputs`` and ``run``.

    Damaged files can crash the runtimes: files from outside are opened in a child process first. Raises `InputError`.
    """
    backend = _backend(_backend_name(runtime))
    try:
        with quiet_stderr():
            return backend.Session(str(path), threads=threads, **options)
    except ImportError as exc:
        raise EdgecompileError(f"{path.name} cannot be run here: {exc}", remedy="install edgecompile again") from exc
    except Exception as exc:  # ONNX Runtime's errors derive from Exception only
        raise InputError(
            f"{path} cannot be run here: {_first_line(exc)}", remedy="the file is damaged or needs a newer runtime"
        ) from exc


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__


# ----------------------------------------------------------------------------------------------- the original


def original(model: Model, *, threads: int = 1) -> RunFunction:
    """The original model: its torch module, else ONNX Runtime on the unsimplified graph without optimizations."""
    if model.module is not None:
        return _torch(model, threads)
    return _named(open_session("onnxruntime", model.original_path, threads=threads, optimize=False), "the original")


def _torch(model: Model, threads: int) -> RunFunction:
    import torch

    def run(sample: Arrays) -> Arrays:
        inputs = [torch.from_numpy(_contiguous(_pick(sample, spec.name))) for spec in model.inputs]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                values = _flat(model.module(*inputs))
        except (RuntimeError, TypeError, ValueError) as exc:
            raise InputError(
                f"{model.source} cannot be run on this sample: {_first_line(exc)}",
                remedy="check the preprocessing (--preset) and --input-shape",
            ) from exc
        finally:
            torch.set_num_threads(before)
        if len(values) != len(model.outputs):
            raise EdgecompileError(
                f"{model.source} gave {len(values)} tensors, but was exported with {len(model.outputs)} outputs"
            )
        # Copied: an output may be an input passed on, or a buffer of the module.
        return {spec.name: value.numpy().copy() for spec, value in zip(model.outputs, values, strict=True)}

    return run


def _flat(value: Any) -> list[Any]:
    """The tensors of a module's result in the order in which the exporters list them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence):
        return [tensor for item in value for tensor in _flat(item)]
    return [] if value is None else [value]


def _contiguous(value: Any) -> npt.NDArray[np.generic]:
    import numpy as np

    # torch takes neither negative strides nor arrays that must not be written.
    return np.require(value, requirements=["C", "W"])


def _pick(sample: Arrays, name: str) -> npt.NDArray[np.generic]:
    if name not in sample:
        raise InputError(f"the sample has no input {name!r}; it has: {', '.join(sample)}")
    return sample[name]


# ------------------------------------------------------------------------------------------------- the files


def raw(artifact: Artifact, *, threads: int = 1) -> RunFunction:
    """The file as it is: arrays in its own layout and types, by its own names."""
    return _named(open_session(artifact.runtime, artifact.file, threads=threads), str(artifact.file))


def runtime_name(runtime: RuntimeName) -> str:
    """What runs files of a runtime here, and its version: ``ai_edge_litert 2.1.0``."""
    found = _backend(_backend_name(runtime)).import_runtime()
    return f"{found.package} {found.version}"


def output_steps(artifact: Artifact) -> dict[str, float]:
    """One quantization step of each quantized output of a TFLite file, in the output's unit: 1 for integers.

    Where a float output is made from integers, it is their scale. Outputs that are no quantities have none.
    """
    if artifact.runtime != "tflite":
        return {}
    session = open_session("tflite", artifact.file)
    tensors = {detail["index"]: detail for detail in session.interpreter.get_tensor_details()}
    sources = {
        op["outputs"][0]: op["inputs"][0]
        for op in session.interpreter._get_ops_details()
        if op["op_name"] == "DEQUANTIZE"
    }
    steps = {}
    for name, index in session.output_indices.items():
        scales = tensors[sources.get(index, index)]["quantization_parameters"]["scales"]
        if len(scales):
            steps[name] = float(max(scales)) if index in sources else 1.0
    return steps


def _named(session: Any, what: str) -> RunFunction:
    """A backend's session as a function that checks its inputs."""
    import numpy as np

    def run(sample: Arrays) -> Arrays:
        feed = {}
        for name, spec in session.inputs.items():
            array = np.asarray(_pick(sample, name), order="C")
            if array.ndim != len(spec["shape"]) or array.dtype != spec["dtype"]:
                raise InputError(
                    f"input {name!r} of {what} takes {spec['dtype']} {tuple(spec['shape'])}, "
                    f"the sample has {array.dtype} {array.shape}"
                )
            feed[name] = array
        try:
            found: Arrays = session.run(feed)
        except Exception as exc:  # ONNX Runtime's errors derive from Exception only
            raise InputError(f"{what} cannot be run on this sample: {_first_line(exc)}") from exc
        return found

    return run


def to_file_inputs(artifact: Artifact, sample: Arrays) -> Arrays:
    """A sample of the original's inputs as the file takes them: permuted and quantized."""
    return {port.spec.name: _to_file(port, _pick(sample, port.model_name)) for port in artifact.inputs}


def artifact(artifact: Artifact, *, threads: int = 1) -> RunFunction:
    """The shipped file as a function of the original's inputs, giving the original's outputs, dequantized."""
    run = raw(artifact, threads=threads)

    return lambda sample: from_file_outputs(artifact, run(to_file_inputs(artifact, sample)))


def from_file_outputs(artifact: Artifact, outputs: Arrays) -> Arrays:
    """What the file gives as the original's outputs: dequantized and permuted back."""
    return {port.model_name: _from_file(port, _pick(outputs, port.spec.name)) for port in artifact.outputs}


def _to_file(port: Port, value: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    import numpy as np

    array: npt.NDArray[Any] = value if port.permutation is None else value.transpose(port.permutation)
    quantization = port.spec.quantization
    if quantization is not None and array.dtype.kind == "f":
        limits = np.iinfo(port.spec.dtype)
        steps = np.round(array / quantization.scale[0]) + quantization.zero_point[0]
        array = np.clip(steps, limits.min, limits.max)
    return np.asarray(array, dtype=port.spec.dtype, order="C")


def _from_file(port: Port, value: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    import numpy as np

    array: npt.NDArray[Any] = value
    quantization = port.spec.quantization
    if quantization is not None and array.dtype.kind in "iu":
        array = _dequantize(array, quantization.scale, quantization.zero_point)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    return array if port.permutation is None else array.transpose(np.argsort(port.permutation))


def _dequantize(
    array: npt.NDArray[np.generic], scale: Sequence[float], zero_point: Sequence[int]
) -> npt.NDArray[np.float32]:
    """``scale * (array - zero_point)`` for one scale a tensor."""
    import numpy as np

    return ((array.astype(np.int64) - zero_point[0]) * np.float64(scale[0])).astype(np.float32)


def intermediate(artifact: Artifact, sample: Arrays, *, threads: int = 1) -> dict[str, npt.NDArray[np.generic]]:
    """Every tensor that an operator of a TFLite file makes from one sample, by the file's names and in its layout.

    Quantized tensors come dequantized. The delegate takes operators one by one here, so that each result can be read.
    Raises `InputError` for files of other runtimes.
    """
    if artifact.runtime != "tflite":
        raise InputError(f"{artifact.file}: the tensors inside of a file for {artifact.runtime} cannot be read")
    session = open_session("tflite", artifact.file, threads=threads, keep_all=True)
    _named(session, str(artifact.file))(to_file_inputs(artifact, sample))
    found: dict[str, npt.NDArray[np.generic]] = {}
    for name, array, scale, zero_point in session.tensors():
        quantized = scale is not None and len(scale) == 1 and array.dtype.kind in "iu"
        found[name] = _dequantize(array, scale, zero_point) if quantized else array
    return found
