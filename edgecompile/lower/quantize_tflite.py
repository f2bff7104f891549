"""FP16 and full-integer INT8 files, made from a float ``.tflite`` file.

FP16 keeps float arithmetic and stores weights as float16. INT8 is ai-edge-quantizer's static scheme: per-channel
symmetric int8 weights and per-tensor asymmetric int8 activations with ranges from calibration samples (Jacob et al.
2018, https://arxiv.org/abs/1712.05877). It runs the float file on the samples, so it happens in a child process.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgecompile.errors import EdgecompileError, UnsupportedModelError
from edgecompile.lower import base, child, flatbuffer, headroom, islands
from edgecompile.lower.islands import Ranges
from edgecompile.types import Arrays, Port

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TIMEOUT_S = 3600.0

#: ai-edge-quantizer *searches* its expressions in the operator's output names, so they are anchored; a name may hold
#: the end of a line.
_EVERY_OPERATOR = "(?s)^.*$"
#: Beyond this a value stands for infinity: exporters and converters write the largest finite float.
_INFINITY = 1e30
#: exp(-8) is less than half of the last bit of an int8 softmax (1/256).
_HIDDEN = 8.0
_LARGEST_FLOAT16 = 65504.0
#: What rounding to float16 may change of a constant: its last bit is 2 ** -11. Below 6e-5 it has fewer bits.
_LOST_IN_FLOAT16 = 2.0**-10
#: Operators whose weights and bias are stored as float16, both or neither: XNNPACK leaves an operator with one
#: float16 and one float32 constant to the slow reference kernels (measured: the whole file 4 times slower).
_WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"})
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})


def float16(data: bytes) -> bytes:
    """The file with its weights stored as float16; inputs, outputs and arithmetic stay float32.

    Before: ``CONV_2D(x, w: float32)``. After: ``CONV_2D(x, DEQUANTIZE(w: float16))``, which runtimes evaluate once,
    when the file is loaded. Constants beyond float16's range, and those of other operators, stay as they are.
    """
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    chosen = _float16_weights(graph)
    conversions = []
    for index, values in chosen.items():
        tensor = subgraph.tensors[index]
        half = flatbuffer.add_constant(graph, values, tensor, suffix="_float16", dtype=flatbuffer.FLOAT16)
        tensor.buffer = 0  # by TFLite's convention the empty buffer: the tensor is computed now
        conversions.append(flatbuffer.make_operator(graph, "DEQUANTIZE", [half], [index]))
    subgraph.operators = [*conversions, *subgraph.operators]
    flatbuffer.drop_unused_buffers(graph)
    return flatbuffer.pack(graph)


def _float16_weights(graph: Any) -> dict[int, npt.NDArray[np.float16]]:
    """The constants of the main graph worth storing as float16, by tensor index."""
    import numpy as np

    tensors = graph.subgraphs[0].tensors
    chosen: dict[int, npt.NDArray[np.float16]] = {}
    for operator in graph.subgraphs[0].operators:
        if flatbuffer.operator_name(graph, operator) not in _WEIGHTED:
            continue
        constants = {int(i): flatbuffer.constant_floats(graph, tensors[i]) for i in operator.inputs if i >= 0}
        known = {i: values for i, values in constants.items() if values is not None}
        if all(_fits_float16(values) for values in known.values()):
            chosen |= {i: values.astype(np.float16) for i, values in known.items()}
    return dict(sorted(chosen.items()))


def _fits_float16(values: npt.NDArray[np.float32]) -> bool:
    """Whether float16 holds values: none is too large, and not so many are too small that it shows."""
    import numpy as np

    if float(np.abs(values).max(initial=0.0)) > _LARGEST_FLOAT16:
        return False
    lost = float(np.linalg.norm(values.astype(np.float16).astype(np.float32) - values))
    return lost <= _LOST_IN_FLOAT16 * float(np.linalg.norm(values))


def int8(
    data: bytes,
    inputs: Sequence[Port],
    samples: Sequence[Arrays],
    *,
    io_dtype: Literal["float32", "int8"] = "float32",
    keep_float: Sequence[str] = (),
) -> bytes:
    """The full-integer file; ``io_dtype`` says whether its inputs and outputs are float32 or int8 themselves.

    ``samples`` are in the model's layout; operators whose output is named in ``keep_float`` stay in float.
    Raises `UnsupportedModelError` when the quantizer does not take the graph.
    """
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as name:
        folder = Path(name)
        (folder / "float.tflite").write_bytes(data)
        child.write_samples(folder, _InFileLayout(inputs, samples), [port.spec.name for port in inputs])
        answer = child.call(
            "edgecompile.lower.quantize_tflite:int8_in_child",
            {
                "inputs": [port.spec.name for port in inputs],
                "io_dtype": io_dtype,
                "keep_float": list(keep_float),
            },
            folder,
            timeout_s=TIMEOUT_S,
            what="the quantization of the float .tflite file",
        )
        if "failure" in answer:
            raise UnsupportedModelError(answer["failure"], remedy="leave int8 out with --precision")
        return (folder / "int8.tflite").read_bytes()


class _InFileLayout(Sequence[Arrays]):
    """Samples as the file takes them, made one at a time."""

    def __init__(self, inputs: Sequence[Port], samples: Sequence[Arrays]) -> None:
        self._inputs = inputs
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return to_file_inputs(self._inputs, self._samples[index])


def int8_in_child(argument: dict[str, Any]) -> dict[str, Any]:
    """Quantize ``float.tflite`` in ``argument["folder"]`` to ``int8.tflite``; returns ``{"failure": ...}`` if not."""
    folder = Path(argument["folder"])
    with child.isolated(folder):
        feeds = (dict(zip(argument["inputs"], sample, strict=True)) for sample in child.read_samples(folder))
        try:
            made = quantized(
                Path("float.tflite").read_bytes(),
                feeds,
                io_dtype=argument["io_dtype"],
                keep_float=argument.get("keep_float", ()),
            )
        except UnsupportedModelError as exc:
            return {"failure": exc.message}
        Path("int8.tflite").write_bytes(made)
    return {}


def quantized(
    data: bytes,
    feeds: Iterable[dict[str, npt.NDArray[np.generic]]],
    *,
    io_dtype: Literal["float32", "int8"] = "float32",
    keep_float: Sequence[str] = (),
) -> bytes:
    """`int8` in this process, on samples as the file takes them, by the file's input names."""
    from ai_edge_quantizer import quantizer

    with _mapped_errors("to int8"):
        feeds = iter(feeds)
        first = next(feeds)
        observed = observe(data, itertools.chain([first], feeds))
        data, observed = without_infinities(data, observed)
        data, observed = headroom.with_room(data, islands.around_zero(data, observed))
        ranges = islands.carry_ranges(data, observed)
        kept = _with_connections(data, keep_float) + _without_weights(data) + _divisions(data, ranges)
        tool = quantizer.Quantizer(bytearray(_without_inner_outputs(data)), _static_recipe(io_dtype, kept))
        result = bytes(tool.quantize(_as_statistics(data, ranges)).quantized_model)
        # Names first: the pass over the islands looks ranges up by them, and keeps them.
        result = islands.quantize(_with_interface(result, data, io_dtype, ranges), ranges, kept)
        # In the child, where a crash costs nothing, and before anybody relies on it.
        _try(result, first)
    return result


def observe(data: bytes, feeds: Iterable[dict[str, npt.NDArray[np.generic]]]) -> Ranges:
    """Run a float file on samples in its own layout and keep the range of every float tensor that is computed.

    The extremes over all samples are kept, so the result depends neither on the samples' order nor on a decay.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    computed = _computed_floats(data)
    # One thread: how sums are split over threads must not show in the file.
    interpreter = Interpreter(model_content=_with_all_outputs(data, computed.values()), num_threads=1)
    interpreter.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in interpreter.get_input_details()}
    low = dict.fromkeys(computed, np.inf)
    high = dict.fromkeys(computed, -np.inf)
    for feed in feeds:
        for name, array in feed.items():
            interpreter.set_tensor(places[name], array)
        interpreter.invoke()
        for name, index in computed.items():
            values = _finite(interpreter.tensor(index)())  # a view: it must not outlive the loop's body
            if values.size:
                low[name] = min(low[name], float(values.min()))
                high[name] = max(high[name], float(values.max()))
            del values
    return {name: (low[name], high[name]) for name in computed if low[name] <= high[name]}


def _with_all_outputs(data: bytes, tensors: Iterable[int]) -> bytes:
    """The file with these tensors as outputs: so they can be read, and the delegate still computes them fast."""
    graph = flatbuffer.unpack(data)
    inputs = {int(i) for i in graph.subgraphs[0].inputs}
    graph.subgraphs[0].outputs = [index for index in tensors if index not in inputs]
    graph.signatureDefs = []
    return flatbuffer.pack(graph)


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values without those that stand for infinity, such as the padding of a max pool."""
    import numpy as np

    if values.size and (values.min() < -_INFINITY or values.max() > _INFINITY):
        kept: npt.NDArray[Any] = values[np.abs(values) <= _INFINITY]
        return kept
    return values


def without_infinities(data: bytes, ranges: Ranges) -> tuple[bytes, Ranges]:
    """A float file, and its ranges, without constants that stand for minus infinity: no scale holds them beside data.

    Before: ``PADV2(x, -3.4e38) -> MAX_POOL_2D``. After: ``PADV2(x, min x) -> MAX_POOL_2D``, the same maxima, since
    every window holds at least one value of x. Before: ``ADD(x, mask of 0 and -3.4e38) -> SOFTMAX``. After: a mask that
    puts what it hides at least 8 below every x, where a softmax in 8 bits gives 0; ``SELECT_V2(c, x, -3.4e38)`` alike.
    """
    graph = flatbuffer.unpack(data)
    changed = dict(ranges)
    for operator in graph.subgraphs[0].operators:
        name = flatbuffer.operator_name(graph, operator)
        if name in _REPLACEMENTS:
            _replace_infinities(graph, operator, changed, *_REPLACEMENTS[name])
    return flatbuffer.pack(graph), changed


#: By operator: what minus infinity becomes, from the lowest and highest x; and how far it widens the result below.
_REPLACEMENTS: dict[str, tuple[Callable[[float, float], float], float]] = {
    "PADV2": (lambda low, high: low, 0.0),
    "ADD": (lambda low, high: low - high - _HIDDEN, _HIDDEN),
    "SELECT_V2": (lambda low, high: low - _HIDDEN, _HIDDEN),
}


def _replace_infinities(
    graph: Any,
    operator: Any,
    ranges: dict[str, tuple[float, float]],
    value: Callable[[float, float], float],
    below: float,
) -> None:
    """Replace an operator's constant that holds minus infinities, and widen the range of its result."""
    import numpy as np

    tensors = graph.subgraphs[0].tensors
    known = [ranges[n] for i in operator.inputs if (n := flatbuffer.tensor_name(tensors[i])) in ranges]
    for position, index in enumerate(operator.inputs):
        values = flatbuffer.constant_floats(graph, tensors[index])
        if values is None or not known or not (values < -_INFINITY).any():
            continue
        low, high = known[0]
        finite = np.where(values < -_INFINITY, np.float32(value(low, high)), values)
        inputs = [int(i) for i in operator.inputs]
        inputs[position] = flatbuffer.add_constant(graph, finite.astype(np.float32), tensors[index])
        operator.inputs = inputs
        result = flatbuffer.tensor_name(tensors[operator.outputs[0]])
        if result in ranges:
            ranges[result] = (min(ranges[result][0], low - below), ranges[result][1])


def _computed_floats(data: bytes) -> dict[str, int]:
    """The float tensors of the main graph that are inputs or outputs of an operator and not constants."""
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    used = {int(i) for op in subgraph.operators for i in [*op.inputs, *op.outputs] if i >= 0}
    used |= {int(i) for i in [*subgraph.inputs, *subgraph.outputs]}
    return {
        flatbuffer.tensor_name(subgraph.tensors[i]): i
        for i in sorted(used)
        if subgraph.tensors[i].type == flatbuffer.FLOAT32 and not flatbuffer.is_constant(graph, subgraph.tensors[i])
    }


def _as_statistics(data: bytes, ranges: Ranges) -> dict[str, dict[str, Any]]:
    """Ranges as ai-edge-quantizer takes them: one-element arrays of the tensor's rank, by name."""
    import numpy as np

    graph = flatbuffer.unpack(data)
    ranks = {flatbuffer.tensor_name(t): 0 if t.shape is None else len(t.shape) for t in graph.subgraphs[0].tensors}
    return {
        name: {
            "min": np.full((1,) * ranks[name], low, np.float32),
            "max": np.full((1,) * ranks[name], high, np.float32),
        }
        for name, (low, high) in ranges.items()
    }


def weighted_outputs(data: bytes) -> frozenset[str]:
    """The names of the outputs of the file's operators with weights."""
    graph = flatbuffer.unpack(data)
    tensors = graph.subgraphs[0].tensors
    return frozenset(
        flatbuffer.tensor_name(tensors[operator.outputs[0]])
        for operator in graph.subgraphs[0].operators
        if flatbuffer.operator_name(graph, operator) in _WEIGHTED
    )


def _with_connections(data: bytes, keep_float: Sequence[str]) -> list[str]:
    """The outputs of operators that stay in float, with those of operators that lie between them.

    Before: ``CONV_2D (float) -> QUANTIZE -> PAD -> DEQUANTIZE -> CONV_2D (float)``. After: no integers in between.
    """
    graph = flatbuffer.unpack(data)
    operators = graph.subgraphs[0].operators
    names = [flatbuffer.tensor_name(tensor) for tensor in graph.subgraphs[0].tensors]
    made = {names[i]: names[operator.outputs[0]] for operator in operators for i in operator.outputs}
    sources = {
        names[op.outputs[0]]: {made[names[i]] for i in op.inputs if i >= 0 and names[i] in made} for op in operators
    }
    weighted = {names[op.outputs[0]] for op in operators if flatbuffer.operator_name(graph, op) in _WEIGHTED}
    return base.connected(sources, keep_float, weighted)


def _without_weights(data: bytes) -> list[str]:
    """The outputs of convolutions whose weights are computed: int8 kernels take weights around 0 only."""
    graph = flatbuffer.unpack(data)
    tensors = graph.subgraphs[0].tensors
    return [
        flatbuffer.tensor_name(tensors[operator.outputs[0]])
        for operator in graph.subgraphs[0].operators
        if flatbuffer.operator_name(graph, operator) in _WEIGHTED
        and not flatbuffer.is_constant(graph, tensors[operator.inputs[1]])
    ]


def _divisions(data: bytes, ranges: Ranges) -> list[str]:
    """The outputs of divisions by what is computed, and of what makes a divisor that may be 0 in eight bits.

    The int8 kernel ends the run where a divisor's integer is 0, whatever number that stands for (LiteRT 2.1); and of a
    number that was rounded to 0, the float one makes infinities.
    """
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    producers = {int(i): operator for operator in subgraph.operators for i in operator.outputs}

    def makers(index: int) -> Iterator[str]:
        name = flatbuffer.tensor_name(subgraph.tensors[index])
        low, high = ranges.get(name, (1.0, 1.0))
        if index in producers and max(low, -high) < max(abs(low), abs(high)) / _FINEST:
            yield flatbuffer.tensor_name(subgraph.tensors[producers[index].outputs[0]])
            if flatbuffer.operator_name(graph, producers[index]) in _KEEPING_ZERO:
                for source in producers[index].inputs:
                    yield from makers(int(source))

    found = []
    for operator in subgraph.operators:
        divisor = subgraph.tensors[operator.inputs[1]] if flatbuffer.operator_name(graph, operator) == "DIV" else None
        if divisor is not None and not flatbuffer.is_constant(graph, divisor):
            found.append(flatbuffer.tensor_name(subgraph.tensors[operator.outputs[0]]))
            found += makers(int(operator.inputs[1]))
    return found


#: Operators that make 0 of 0; a sum with a small number does not.
_KEEPING_ZERO = frozenset({"ABS", "BROADCAST_TO", "MUL", "POW", "RESHAPE", "SQRT", "SQUARE", "TRANSPOSE"})
#: Steps of a range from 0 on, two of which a divisor keeps away from it.
_FINEST = 128


def _static_recipe(io_dtype: Literal["float32", "int8"], keep_float: Sequence[str]) -> Any:
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        regex=_EVERY_OPERATOR,
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        algorithm_key=quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    )
    # The kernel has one scale for a constant operand, and takes several for 0.
    recipe.add_static_config(
        regex=_EVERY_OPERATOR,
        operation_name=qtyping.TFLOperationName.BATCH_MATMUL,
        activation_num_bits=8,
        weight_num_bits=8,
        weight_granularity=qtyping.QuantGranularity.TENSORWISE,
        algorithm_key=quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    )
    # Its MAXIMUM fails on a constant of lower rank; `islands` does that operator.
    excluded = [qtyping.TFLOperationName.MAXIMUM]
    if io_dtype == "float32":
        excluded += [qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT]
    for operation in excluded:
        recipe.add_quantization_config(
            regex=_EVERY_OPERATOR, operation_name=operation, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE
        )
    for name in keep_float:
        recipe.add_quantization_config(
            regex=f"^{re.escape(name)};?$",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
        )
    return recipe.get_quantization_recipe()


def to_file_inputs(inputs: Sequence[Port], sample: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """A sample in the model's layout as the file takes it, by the file's input names."""
    import numpy as np

    feed = {}
    for port in inputs:
        array = np.asarray(sample[port.model_name])
        moved = array if port.permutation is None else array.transpose(port.permutation)
        feed[port.spec.name] = np.asarray(moved, order="C")
    return feed


def float_islands(data: bytes) -> int:
    """How many operators of an INT8 file compute in float; conversions at the inputs and outputs are none of them."""
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    return sum(
        any(subgraph.tensors[i].type == flatbuffer.FLOAT32 for i in [*operator.inputs, *operator.outputs] if i >= 0)
        for operator in subgraph.operators
        if flatbuffer.operator_name(graph, operator) not in _CONVERSIONS
    )


def _inner_outputs(graph: Any) -> list[int]:
    """The tensors of the main graph that are outputs and are read inside, too."""
    subgraph = graph.subgraphs[0]
    read = {int(i) for operator in subgraph.operators for i in operator.inputs}
    inner = [int(i) for i in subgraph.outputs if int(i) in read]
    return inner if len(inner) < len(subgraph.outputs) else []


def _without_inner_outputs(data: bytes) -> bytes:
    """The float file without the outputs that are read inside, which `_with_interface` brings back.

    ai-edge-quantizer 0.4 loses count of the readers of such a tensor: it let one read the float copy that it makes for
    the outside, and left out a change of scale that another needs. Both make a file that computes something else.
    """
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    inner = _inner_outputs(graph)
    subgraph.outputs = [int(i) for i in subgraph.outputs if int(i) not in inner]
    for signature in graph.signatureDefs or []:
        signature.outputs = [entry for entry in signature.outputs if int(entry.tensorIndex) not in inner]
    return flatbuffer.pack(graph)


def _with_interface(data: bytes, floating: bytes, io_dtype: str, ranges: Ranges) -> bytes:
    """The quantizer's file with the names, the order and all of the inputs and outputs that the float file has.

    The quantizer keeps the order of the main graph's inputs and outputs, but renames tensors behind conversions, and
    leaves a signature pointing at the float tensor before a QUANTIZE at an output.
    """
    graph, before = flatbuffer.unpack(data), flatbuffer.unpack(floating)
    inner = _inner_outputs(before)
    others = iter([int(i) for i in graph.subgraphs[0].outputs])
    outputs = [
        _outward(graph, flatbuffer.tensor_name(before.subgraphs[0].tensors[i]), io_dtype, ranges)
        if int(i) in inner
        else next(others)
        for i in before.subgraphs[0].outputs
    ]
    flatbuffer.set_interface(
        graph,
        list(zip(graph.subgraphs[0].inputs, flatbuffer.interface_names(before, "inputs"), strict=True)),
        list(zip(outputs, flatbuffer.interface_names(before, "outputs"), strict=True)),
    )
    return flatbuffer.pack(graph)


def _outward(graph: Any, name: str, io_dtype: str, ranges: Ranges) -> int:
    """The tensor by which an inner one, found by its name in the float file, leaves the file as ``io_dtype``."""
    subgraph = graph.subgraphs[0]
    (index,) = (i for i, tensor in enumerate(subgraph.tensors) if flatbuffer.tensor_name(tensor) == name)
    tensor = subgraph.tensors[index]
    if tensor.type == flatbuffer.INT8 and io_dtype == "float32":
        made = flatbuffer.like(graph, tensor, flatbuffer.FLOAT32, None, "_outside")
        subgraph.operators.append(flatbuffer.make_operator(graph, "DEQUANTIZE", [index], [made]))
        return made
    if tensor.type == flatbuffer.FLOAT32 and io_dtype == "int8" and name in ranges:
        parameters = flatbuffer.quantization(*islands.affine(*ranges[name]))
        made = flatbuffer.like(graph, tensor, flatbuffer.INT8, parameters, "_outside")
        subgraph.operators.append(flatbuffer.make_operator(graph, "QUANTIZE", [index], [made]))
        return made
    return index


def _try(data: bytes, feed: dict[str, npt.NDArray[np.generic]]) -> None:
    """Run a file once as it will run: with the delegate, which fails to load scales that are far apart."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            value, dtype = feed[detail["name"]], detail["dtype"]
            if value.dtype != dtype:  # an int8 file
                scale, zero = detail["quantization"]
                value = np.clip(np.round(value.astype(np.float32) / scale) + zero, -128, 127)
            interpreter.set_tensor(detail["index"], value.astype(dtype, order="C"))
        interpreter.invoke()
    except RuntimeError as exc:
        raise UnsupportedModelError(
            f"LiteRT cannot run the quantized file: {exc}", remedy="leave int8 out with --precision"
        ) from exc


@contextlib.contextmanager
def _mapped_errors(goal: str) -> Iterator[None]:
    try:
        yield
    except (EdgecompileError, MemoryError):
        raise
    except Exception as exc:  # a graph that it does not take shows as ValueError, KeyError, RuntimeError, ...
        raise UnsupportedModelError(
            f"ai-edge-quantizer cannot convert the file {goal}: {type(exc).__name__}: {exc}",
            remedy="leave this precision out with --precision",
        ) from exc
