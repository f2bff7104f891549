"""ONNX -> TFLite through onnx2tf, called so that it takes seconds, stays off the network and off the terminal.

onnx2tf as a command spends most of its time in writing a SavedModel. Here its Keras graph goes straight to TensorFlow's
converter as one concrete function, held by a bare ``tf.Module``: an object that carries the Keras model would drag all
of its metadata along. Everything runs in a child process with a memory and a time limit, since TensorFlow is native
code and the model comes from outside.

onnx2tf makes 3-D, 4-D and 5-D inputs channels-last, always; what layout an *output* ends in is not told, and is
established by comparing values (`_output_permutation`). It guesses layouts inside the graph from shapes, so its files
are trusted only after the parity gate.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import base, child, flatbuffer
from edgecompile.types import Arrays, InputLayout, Model, Port, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TIMEOUT_S = 900.0
#: onnx2tf compares layouts on the first of these; output layouts are established on all of them and on noise.
_SAMPLES = 2
_CHANNELS_LAST = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
#: Where onnx2tf looks for images before it downloads some; the name is its own.
_LOCAL_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
_LAYOUT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A float ``.tflite`` file's bytes, and how its inputs and outputs relate to the model's."""

    data: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    notes: tuple[str, ...] = ()


def convert(model: Model, samples: Sequence[Arrays], *, input_layout: InputLayout = "nhwc") -> Converted:
    """Lower a model to a float TFLite file through onnx2tf; with ``nchw``, a TRANSPOSE is put at each end that moved.

    Raises `UnsupportedModelError` with the operator that onnx2tf or TensorFlow's converter does not take.
    """
    base.require_samples(samples, "converting through onnx2tf")
    used = [samples[i] for i in range(min(_SAMPLES, len(samples)))]
    base.require_fit(model, used)
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as name:
        folder = Path(name)
        child.write_samples(folder, used, [spec.name for spec in model.inputs])
        answer = child.call(
            "edgecompile.lower.via_onnx2tf:convert_in_child",
            {"onnx": str(model.path.resolve())},
            folder,
            timeout_s=TIMEOUT_S,
            what=f"the conversion of {model.path.name} through onnx2tf",
        )
        if "failure" in answer:
            raise _failure(answer["failure"], model)
        return _finish((folder / "model.tflite").read_bytes(), model, answer["permutations"], input_layout)


def _failure(failure: dict[str, Any], model: Model) -> UnsupportedModelError:
    operators = tuple((str(op), str(name)) for op, name in failure["operators"])
    named = "".join(f" at {op} ({name})" for op, name in operators[:1])
    return UnsupportedModelError(
        f"onnx2tf cannot convert {model.name}{named}: {failure['message']}",
        remedy="replace that operator in the model, or try another runtime",
        operators=operators,
    )


def _finish(data: bytes, model: Model, permutations: Sequence[Sequence[int]], input_layout: InputLayout) -> Converted:
    """Give the file the model's own names, in the model's order, and on request the model's layouts."""
    graph = flatbuffer.unpack(data)
    by_input, by_output = flatbuffer.signature_indices(graph)
    inputs = [(by_input[_input_name(i)], spec.name) for i, spec in enumerate(model.inputs)]
    outputs = [(by_output[_output_name(i)], spec.name) for i, spec in enumerate(model.outputs)]
    ins = [_CHANNELS_LAST.get(len(spec.shape)) for spec in model.inputs]
    outs: list[tuple[int, ...] | None] = [tuple(permutation) for permutation in permutations]
    if input_layout == "nchw":
        inputs = [(_moved_back(graph, i, p, "input"), name) for (i, name), p in zip(inputs, ins, strict=True)]
        outputs = [(_moved_back(graph, i, p, "output"), name) for (i, name), p in zip(outputs, outs, strict=True)]
        ins, outs = [None] * len(ins), [None] * len(outs)
    flatbuffer.set_interface(graph, inputs, outputs)
    tensors = graph.subgraphs[0].tensors
    return Converted(
        data=flatbuffer.pack(graph),
        inputs=tuple(
            _port(tensors[index], spec, permutation)
            for (index, _), spec, permutation in zip(inputs, model.inputs, ins, strict=True)
        ),
        outputs=tuple(
            _port(tensors[index], spec, permutation)
            for (index, _), spec, permutation in zip(outputs, model.outputs, outs, strict=True)
        ),
    )


def _moved_back(graph: Any, index: int, permutation: tuple[int, ...] | None, side: Literal["input", "output"]) -> int:
    """The tensor that stands for an input or output in the model's layout, with a TRANSPOSE between the two."""
    import copy

    import numpy as np

    if permutation is None or permutation == tuple(range(len(permutation))):
        return index
    subgraph = graph.subgraphs[0]
    outside = copy.copy(subgraph.tensors[index])
    back = np.argsort(permutation)
    outside.shape, outside.shapeSignature, outside.buffer = np.asarray(outside.shape)[back], None, 0
    made = flatbuffer.add_tensor(graph, outside, f"{side}_{index}")
    order = copy.copy(outside)
    order.shape, order.quantization = np.array([len(permutation)], np.int32), None
    axes = np.array(permutation if side == "input" else back, np.int32)
    constant = flatbuffer.add_constant(graph, axes, order, suffix="_axes", dtype=flatbuffer.INT32)
    if side == "input":
        subgraph.operators.insert(0, flatbuffer.make_operator(graph, "TRANSPOSE", [made, constant], [index]))
    else:
        subgraph.operators.append(flatbuffer.make_operator(graph, "TRANSPOSE", [index, constant], [made]))
    return made


def _port(tensor: Any, spec: TensorSpec, permutation: tuple[int, ...] | None) -> Port:
    same = permutation is None or permutation == tuple(range(len(permutation)))
    return Port(
        spec=flatbuffer.tensor_spec(tensor, spec.name),
        model_name=spec.name,
        permutation=None if same else permutation,
    )


# ------------------------------------------------------------------------------------------- in the child process


def _input_name(index: int) -> str:
    return f"edgecompile_input_{index}"


def _output_name(index: int) -> str:
    return f"edgecompile_output_{index}"


class ConversionFailure(Exception):
    """A conversion that failed, with the node names it is known to have failed at."""

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


def convert_in_child(argument: dict[str, Any]) -> dict[str, Any]:
    """Convert ``argument["onnx"]``, leaving ``model.tflite`` and ``log.txt`` in ``argument["folder"]``.

    Returns ``{"permutations": [...]}``, one for each output, or ``{"failure": {"message", "operators"}}``.
    """
    folder = Path(argument["folder"])
    with child.isolated(folder):  # onnx2tf leaves files in the current folder
        import onnx

        samples = list(child.read_samples(folder))
        proto, originals = _canonical(onnx.load(argument["onnx"]))
        try:
            keras_model = _keras(proto, samples[0])
            data = _tflite(keras_model, proto)
            permutations = _output_permutations(data, proto, samples)
        except ConversionFailure as exc:
            pairs = [originals[node] for node in exc.nodes if node in originals]
            return {"failure": {"message": str(exc), "operators": pairs}}
        (folder / "model.tflite").write_bytes(data)
        return {"permutations": permutations}


def _canonical(proto: Any) -> tuple[Any, dict[str, tuple[str, str]]]:
    """Rename inputs, outputs and nodes to names that TensorFlow takes; also returns ``node name -> (type, old name)``.

    Names with ``:`` or a leading ``/`` are rewritten by onnx2tf on its own, and unnamed nodes cannot be found again.
    """
    graph = proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    _separate_outputs(graph, {value.name for value in inputs} | constants)
    names = {value.name: _input_name(i) for i, value in enumerate(inputs)}
    names |= {value.name: _output_name(i) for i, value in enumerate(graph.output)}
    originals: dict[str, tuple[str, str]] = {}
    for number, node in enumerate(base.nodes_of(graph)):
        originals[f"node_{number}"] = (node.op_type, node.name or f"number {number}")
        node.name = f"node_{number}"
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    del graph.input[:]
    graph.input.extend(inputs)
    return proto, originals


def _separate_outputs(graph: Any, taken: set[str]) -> None:
    """Put an Identity before each output that is also an input, a constant or another output."""
    import onnx

    for i, value in enumerate(graph.output):
        if value.name in taken:
            copy = f"{_output_name(i)}_copy"
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [copy]))
            value.name = copy
        taken.add(value.name)


def _keras(proto: Any, sample: list[npt.NDArray[Any]]) -> Any:
    """onnx2tf's Keras model of the graph, made in memory, and on our own data so that it downloads none."""
    import numpy as np
    import onnx

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
    import onnx2tf

    onnx.save(proto, "graph.onnx")
    custom = []
    for i, array in enumerate(sample):
        np.save(f"input_{i}.npy", _channels_last_sample(array))
        custom.append([_input_name(i), f"input_{i}.npy"])
        if array.ndim == 4 and array.shape[1] == 3:
            np.save(_LOCAL_IMAGES, array.transpose(0, 2, 3, 1).astype(np.float32))
    try:
        return onnx2tf.convert(
            input_onnx_file_path="graph.onnx",
            output_folder_path="unused",
            custom_input_op_name_np_data_path=custom,
            not_use_onnxsim=True,
            not_use_opname_auto_generate=True,
            # TFLite has no erf: as a polynomial that is exact to 1e-7 instead.
            replace_to_pseudo_operators=["erf"],
            disable_model_save=True,
            verbosity="error",
        )
    except SystemExit as exc:
        raise ConversionFailure("it gave up; see the log with -vv") from exc
    except MemoryError:
        raise
    except Exception as exc:  # whatever a converter of foreign graphs raises, the model does not fit it
        node = getattr(exc, "onnx_op_name", None)
        raise ConversionFailure(_telling_line(exc), [node] if node else []) from exc


def _channels_last_sample(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A sample as onnx2tf wants it. It tells layouts apart by shape, so where that cannot be told, one constant."""
    import numpy as np

    permutation = _CHANNELS_LAST.get(array.ndim)
    if permutation is None:
        return array
    moved = np.ascontiguousarray(array.transpose(permutation))
    return np.ones_like(array) if moved.shape == array.shape else moved


def _tflite(keras_model: Any, proto: Any) -> bytes:
    """The float ``.tflite`` bytes of a Keras model, whose signature names inputs and outputs by their place."""
    import tensorflow as tf

    expected = len(proto.graph.output)
    if len(keras_model.outputs) != expected:
        raise ConversionFailure(f"it kept {len(keras_model.outputs)} of {expected} outputs")
    order = [tensor.name.split(":")[0] for tensor in keras_model.inputs]
    specs = [tf.TensorSpec(t.shape, t.dtype, name) for t, name in zip(keras_model.inputs, order, strict=True)]

    def run(*arguments: Any) -> dict[str, Any]:
        results = keras_model(list(arguments))
        listed = results if isinstance(results, list | tuple) else [results]
        return {_output_name(i): result for i, result in enumerate(listed)}

    function = tf.function(run, input_signature=specs).get_concrete_function()
    holder = tf.Module()
    holder.function = function
    # Grouped convolutions are Keras layers with variables; an untracked one costs the file its signature.
    holder.tracked = list(function.graph.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    try:
        return bytes(converter.convert())
    except MemoryError:
        raise
    except Exception as exc:  # ConverterError is private, and MLIR's bindings raise others too
        raise ConversionFailure(_telling_line(exc)) from exc


def _telling_line(exc: BaseException) -> str:
    """The line of a message that tells; Keras wraps the cause between two that do not, MLIR prefixes source places."""
    lacking = sorted(set(re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", str(exc))))
    if lacking:
        return f"TFLite has no operator for TensorFlow's {', '.join(lacking)}"
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception encountered", "Call arguments", "•"))] or lines
    return f"{type(exc).__name__}: {telling[0][:300]}" if telling else type(exc).__name__


# ----------------------------------------------------------------------------------------------- output layouts


def _output_permutations(data: bytes, proto: Any, samples: Sequence[Sequence[npt.NDArray[Any]]]) -> list[list[int]]:
    """For each output, how its axes in the file follow from the model's, established on values, never on sizes."""
    import numpy as np

    rng = np.random.default_rng(0)
    noise = [_noise_like(array, rng) for array in samples[0]]
    runs = [*samples, noise]
    ours = [_run_tflite(data, sample) for sample in runs]
    theirs = [_run_onnx(proto, sample) for sample in runs]
    found = []
    for i, value in enumerate(proto.graph.output):
        pairs = [(mine[i], reference[i]) for mine, reference in zip(ours, theirs, strict=True)]
        found.append(list(output_permutation(pairs, value.name)))
    return found


def _noise_like(array: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Another sample with the same range, in which no two values are likely to be the same."""
    import numpy as np

    if array.dtype.kind != "f":
        return array
    low, high = float(array.min()), float(array.max())
    noise: npt.NDArray[Any] = rng.uniform(low, high if high > low else low + 1, array.shape).astype(array.dtype)
    return np.ascontiguousarray(noise)


def output_permutation(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]], name: str) -> tuple[int, ...]:
    """The permutation with ``file = transpose(original, permutation)`` that fits best over ``(file, original)`` pairs.

    Axes of size 1 hold no values, so permutations that differ only there are one. When two that do differ fit
    equally well, the values cannot tell them apart and `ConversionFailure` is raised rather than one be picked.
    """
    mine, reference = pairs[0]
    if mine.ndim != reference.ndim:
        raise ConversionFailure(f"output {name!r} has shape {mine.shape}; the model's is {reference.shape}")
    errors: dict[tuple[int, ...], tuple[float, tuple[int, ...]]] = {}
    for permutation in itertools.permutations(range(reference.ndim)):
        moving = tuple(axis for axis in permutation if reference.shape[axis] > 1)
        if moving in errors or tuple(reference.shape[a] for a in permutation) != mine.shape:
            continue
        error = max(_distance(a, b.transpose(permutation)) for a, b in pairs)
        errors[moving] = (error, permutation)
    if not errors:
        raise ConversionFailure(f"output {name!r} has shape {mine.shape}; the model's is {reference.shape}")
    ranked = sorted(errors.values())
    # Float noise between two runtimes is below 1e-3 of the range; a wrong layout of distinct values is far above.
    tied = [permutation for error, permutation in ranked if error <= _LAYOUT_TOLERANCE]
    if len(tied) <= 1 or _all_constant(pairs):
        return ranked[0][1]
    # Values that do not vary over an axis (a broadcast) leave several; onnx2tf itself makes only these two.
    known = [p for p in (tuple(range(reference.ndim)), _CHANNELS_LAST.get(reference.ndim)) if p in tied]
    if len(known) != 1 or known[0] is None:
        raise ConversionFailure(
            f"the layout of output {name!r} cannot be established: its values do not tell axes apart"
        )
    return known[0]


def _all_constant(pairs: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> bool:
    return all(reference.size == 0 or bool((reference == reference.flat[0]).all()) for _, reference in pairs)


def _distance(mine: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """The largest absolute difference over the reference's range; infinite where a value is not finite."""
    import numpy as np

    a, b = mine.astype(np.float64), reference.astype(np.float64)
    if a.size == 0:
        return 0.0
    spread = float(b.max() - b.min())
    error = float(np.abs(a - b).max()) / (spread if spread > 0 else max(1.0, abs(float(b.flat[0]))))
    return error if np.isfinite(error) else float("inf")


def _run_tflite(data: bytes, sample: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    runner_of = Interpreter(model_content=data, num_threads=1)
    runner = runner_of.get_signature_runner()
    inputs = {}
    for i, array in enumerate(sample):
        permutation = _CHANNELS_LAST.get(array.ndim)
        inputs[_input_name(i)] = array if permutation is None else array.transpose(permutation)
    outputs = runner(**inputs)
    return [outputs[_output_name(i)] for i in range(len(outputs))]


def _run_onnx(proto: Any, sample: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: list[npt.NDArray[Any]] = session.run(None, {_input_name(i): array for i, array in enumerate(sample)})
    return result


__all__ = ["ConversionFailure", "Converted", "convert", "convert_in_child", "output_permutation"]
