"""FP16 and full-integer INT8 files, made from a float ``.tflite`` file with ai-edge-quantizer.

FP16 keeps float arithmetic and stores weights as float16. INT8 is static: per-channel symmetric int8 weights and
per-tensor asymmetric int8 activations with ranges from calibration samples (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from edgecompile.errors import EdgecompileError, UnsupportedModelError
from edgecompile.lower import flatbuffer
from edgecompile.types import Arrays, Port

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: ai-edge-quantizer *searches* its expressions in the operator's output names, so they are anchored.
_EVERY_OPERATOR = "^.*$"
_CONVERSIONS = frozenset({"QUANTIZE", "DEQUANTIZE"})


def float16(data: bytes) -> bytes:
    """The file with its weights stored as float16; inputs, outputs and arithmetic stay float32."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_weight_only_config(
        regex=_EVERY_OPERATOR,
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
    )
    with _mapped_errors("to float16"):
        tool = quantizer.Quantizer(bytearray(data), recipe.get_quantization_recipe())
        return _repacked(bytes(tool.quantize().quantized_model))


def int8(
    data: bytes, inputs: Sequence[Port], samples: Sequence[Arrays], *, io_dtype: Literal["float32", "int8"] = "float32"
) -> bytes:
    """The full-integer file; ``io_dtype`` says whether its inputs and outputs are float32 or int8 themselves.

    ``samples`` are in the model's layout. Raises `UnsupportedModelError` when the quantizer does not take the graph.
    """
    from ai_edge_quantizer import quantizer

    feeds = [to_file_inputs(inputs, sample) for sample in samples]
    with _mapped_errors("to int8"):
        tool = quantizer.Quantizer(bytearray(data), _static_recipe(io_dtype))
        ranges = tool.calibrate({flatbuffer.SIGNATURE_KEY: feeds}, num_threads=1)
        return _repacked(bytes(tool.quantize(ranges).quantized_model))


def _static_recipe(io_dtype: Literal["float32", "int8"]) -> Any:
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        regex=_EVERY_OPERATOR,
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        algorithm_key=quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    )
    if io_dtype == "float32":
        for place in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            recipe.add_quantization_config(
                regex=_EVERY_OPERATOR, operation_name=place, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE
            )
    return recipe.get_quantization_recipe()


def to_file_inputs(inputs: Sequence[Port], sample: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """A sample in the model's layout as the file takes it, by the file's input names."""
    import numpy as np

    feed = {}
    for port in inputs:
        array = np.asarray(sample[port.model_name])
        moved = array if port.permutation is None else array.transpose(port.permutation)
        feed[port.spec.name] = np.ascontiguousarray(moved)
    return feed


def float_islands(data: bytes) -> int:
    """How many operators of an INT8 file compute in float; conversions at the inputs and outputs are none of them."""
    graph = flatbuffer.unpack(data)
    subgraph = graph.subgraphs[0]
    return sum(
        any(subgraph.tensors[i].type == 0 for i in [*operator.inputs, *operator.outputs] if i >= 0)
        for operator in subgraph.operators
        if flatbuffer.operator_name(graph, operator) not in _CONVERSIONS
    )


def _repacked(data: bytes) -> bytes:
    """The quantizer's file with aligned buffers, and with inputs and outputs that carry their names again.

    The quantizer names the tensor behind a conversion at an output anew; only the signature keeps the name.
    """
    graph = flatbuffer.unpack(data)
    by_input, by_output = flatbuffer.signature_indices(graph)
    inputs = [(index, name) for name, index in by_input.items()]
    outputs = [(index, name) for name, index in by_output.items()]
    flatbuffer.set_interface(graph, inputs, outputs)
    return flatbuffer.pack(graph)


@contextlib.contextmanager
def _mapped_errors(goal: str) -> Iterator[None]:
    """Map what ai-edge-quantizer raises, and keep its chatter off the terminal."""
    root = logging.getLogger()
    level = root.level
    try:
        with warnings.catch_warnings():
            # It preserves all tensors on purpose, to read ranges from them.
            warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors.*", category=UserWarning)
            yield
    except (EdgecompileError, MemoryError):
        raise
    except Exception as exc:  # a graph that it does not take shows as ValueError, KeyError, RuntimeError, ...
        raise UnsupportedModelError(
            f"ai-edge-quantizer cannot convert the file {goal}: {type(exc).__name__}: {exc}",
            remedy="leave this precision out with --precision",
        ) from exc
    finally:
        root.setLevel(level)
