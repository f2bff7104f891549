"""Runs given inputs through an engine on a board."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.engines.build import Bench, ModelFault, place, raise_fault
from edgecompile.errors import DeviceError, InputError
from edgecompile.jetson import failures, trtexec
from edgecompile.types import Artifact, Engine, Precision, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_TIMEOUT_S = 300.0
#: How far an engine's outputs may lie from those that ONNX Runtime computed of the same graph, relative to their range.
#: TensorRT computes float32 with ten bits of mantissa where the GPU has such units (Ampere and later), float16 as the
#: graph says, and rounds between INT8 layers in other places than the graph does.
TOLERANCE: dict[Precision, float] = {"fp32": 0.01, "fp16": 0.03, "int8": 0.1}


def run_inputs(bench: Bench, made: Engine, artifact: Artifact, *, inputs: Path, outputs: Path) -> None:
    """Run an engine on stacked inputs (``.npz``, by the file's own names) and write its outputs, stacked the same way.

    Raises `DeviceError` where the engine does not run, or gives something else than the file has.
    """
    import numpy as np

    at = place(bench, made)
    with np.load(inputs, allow_pickle=False) as stacked:
        arrays = {name: stacked[name] for name in stacked.files}
    missing = [port.spec.name for port in artifact.inputs if port.spec.name not in arrays]
    if missing:
        raise InputError(f"the inputs lack {missing[0]!r}; they have: {', '.join(arrays)}")
    count = len(next(iter(arrays.values())))
    results = [_one(bench, at, artifact, {name: array[i] for name, array in arrays.items()}) for i in range(count)]
    with outputs.open("wb") as stream:
        np.savez(stream, **{name: np.stack([r[name] for r in results]) for name in results[0]})


def _one(
    bench: Bench, at: str, artifact: Artifact, sample: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.generic]]:
    import numpy as np

    names = []
    with tempfile.TemporaryDirectory() as folder:
        for number, port in enumerate(artifact.inputs):
            local = Path(folder) / f"{number}.bin"
            kind = _taken_as(port.spec.dtype, bench)
            local.write_bytes(np.ascontiguousarray(sample[port.spec.name], dtype=kind).tobytes())
            bench.transport.put(local, f"{at}/inputs/{number}.bin")
            names.append((port.spec.name, f"{at}/inputs/{number}.bin"))
        command = trtexec.infer_command(
            trtexec="trtexec", engine=f"{at}/model.engine", inputs=names, output=f"{at}/outputs.json"
        )
        done = bench.run(command, timeout_s=_TIMEOUT_S)
        if done.code != 0:
            failure = failures.explain(
                done.out + done.err, returncode=done.code, step="run", version=bench.board.version
            )
            try:
                raise_fault(failure)
            except ModelFault as exc:
                raise exc.error from exc
        local = Path(folder) / "outputs.json"
        bench.transport.get(f"{at}/outputs.json", local)
        found = trtexec.parse_outputs(local.read_text(errors="replace"))
    return {port.spec.name: _array(port.spec, found) for port in artifact.outputs}


def _taken_as(dtype: str, bench: Bench) -> str:
    """Before TensorRT 10, an input of 64-bit integers is one of 32-bit integers."""
    return "int32" if dtype == "int64" and bench.board.version.major < 10 else dtype


def _array(spec: TensorSpec, found: dict[str, trtexec.Output]) -> npt.NDArray[np.generic]:
    import numpy as np

    if spec.name not in found:
        raise DeviceError(
            f"the engine gave no output {spec.name!r}; it gave: {', '.join(found)[:200]}",
            remedy="build the bundle again: the engine is not one of this model",
        )
    output = found[spec.name]
    if np.prod(output.shape, dtype=int) != np.prod(spec.shape, dtype=int):
        raise DeviceError(
            f"the engine's output {spec.name!r} has the shape {output.shape}, the model's has {spec.shape}",
            remedy="build the bundle again: the engine is not one of this model",
        )
    return np.asarray(output.values, dtype=np.float64).astype(spec.dtype).reshape(spec.shape)
