"""One operator as a file of its own: first as ONNX, then as the file that a runtime executes."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile import lower
from edgecompile.errors import EdgecompileError, UnsupportedModelError
from edgecompile.lower import child, quantize_tflite
from edgecompile.store import write_atomically
from edgecompile.tables.key import WEIGHTED, WINDOWED, OperatorKey
from edgecompile.types import Arrays, Artifact, Model, Plan, Precision, RuntimeName, TensorSpec, file_sha256

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

#: ONNX Runtime's own operators on blocks of channels by their name in a key, and the domain that it has them in.
_ON_BLOCKS = {"ReorderInput": "ReorderInput", "ReorderOutput": "ReorderOutput", "BlockedUpsample": "Upsample"}
_BLOCKS = "com.microsoft.nchwc"

log = logging.getLogger(__name__)

#: One vector of most machines: as little as an operator can have to do.
_TINY = (1, 64, 1, 1)
#: Ranges only have to be plausible: latency does not depend on them.
_SAMPLES = 2
_TIMEOUT_S = 3600.0


def onnx_model(key: OperatorKey, *, seed: int = 0) -> onnx.ModelProto:
    """The operator alone: inputs, the operator with seeded He-normal weights (He et al. 2015), its activation, output.

    Raises `UnsupportedModelError` where the key does not make a valid ONNX graph.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    constants = _constants(key, rng)
    shapes = (key.in_shape,) if key.constant_operands else key.in_shapes
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    operands = [value.name for value in inputs]
    for position, name in sorted((p, f"w{p}") for p in constants):
        operands[position:position] = [*[""] * (position - len(operands)), name]
    nodes = _operator(key, operands) + _activation(key)
    weights = [numpy_helper.from_array(values, f"w{position}") for position, values in constants.items()]
    weights += [numpy_helper.from_array(np.float32(v), n) for n, v in (("low", 0), ("high", 6))] if _clips(key) else []
    output = onnx.ValueInfoProto(name=nodes[-1].output[0])
    if key.op_type in _ON_BLOCKS:  # no inference knows them; how many channels a block holds is the machine's affair
        output = helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [1, None, None, None])
    graph = helper.make_graph(nodes, "operator", inputs, [output], weights)
    return _checked(graph, key.opset)


def tiny_chain(length: int) -> onnx.ModelProto:
    """Operators with next to nothing to do, one behind the other: what is left is the cost of calling them."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Add", [f"x{i}"] * 2, [f"x{i + 1}"], name=f"tiny{i}") for i in range(length)]
    entry = helper.make_tensor_value_info("x0", TensorProto.FLOAT, _TINY)
    return _checked(helper.make_graph(nodes, "tiny", [entry], [onnx.ValueInfoProto(name=f"x{length}")]), 17)


def _checked(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    import onnx
    from onnx import helper

    domains = [helper.make_opsetid("", opset)]
    domains += [helper.make_opsetid(_BLOCKS, 1)] if any(node.domain == _BLOCKS for node in graph.node) else []
    proto = helper.make_model(graph, opset_imports=domains, ir_version=8)
    try:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as exc:
        operator = graph.node[0].op_type
        raise UnsupportedModelError(
            f"no file can be made of {operator} alone: {exc}", remedy="its latency is estimated by the bytes it moves"
        ) from exc
    return proto


def _constants(key: OperatorKey, rng: np.random.Generator) -> dict[int, npt.NDArray[Any]]:
    """The constant operands by position."""
    import numpy as np

    if key.weight_shape and key.op_type in WEIGHTED:
        shape = key.weight_shape
        fan_in = math.prod(shape[1:]) if key.op_type == "Conv" else math.prod(shape) // key.out_channels
        made = {1: rng.normal(0, (2 / max(1, fan_in)) ** 0.5, shape).astype(np.float32)}
        if key.op_type != "MatMul":
            made[2] = rng.normal(0, 0.1, key.out_channels).astype(np.float32)
        return made
    made = {}
    if key.constant_operands:
        made = {i: rng.normal(0, 1, s).astype(np.float32) for i, s in enumerate(key.other_shapes, start=1)}
    for name, text in key.attributes:
        if name.startswith("#"):
            dtype, shape, values = json.loads(text)
            made[int(name[1:])] = np.array(values, dtype).reshape(shape)
    return made


def _attributes(key: OperatorKey) -> dict[str, Any]:
    found: dict[str, Any] = {name: json.loads(text) for name, text in key.attributes if not name.startswith("#")}
    if key.op_type in WINDOWED:
        windows = {"kernel_shape": key.kernel, "strides": key.strides, "pads": key.pads}
        windows |= {"dilations": key.dilations} if set(key.dilations) - {1} else {}
        found |= {name: list(values) for name, values in windows.items() if values}
    if key.op_type in ("Conv", "ConvTranspose"):
        found["group"] = key.groups
    return found


def _operator(key: OperatorKey, operands: list[str]) -> list[Any]:
    from onnx import helper

    if key.op_type == "SiLU":  # no operator of ONNX, but one of a table: an activation by itself
        gate = helper.make_node("Sigmoid", operands, ["gate"], name="gate")
        return [gate, helper.make_node("Mul", [*operands, "gate"], ["made"], name="operator")]
    if key.op_type in _ON_BLOCKS:
        name = _ON_BLOCKS[key.op_type]
        return [helper.make_node(name, operands, ["made"], name="operator", domain=_BLOCKS, **_attributes(key))]
    return [helper.make_node(key.op_type, operands, ["made"], name="operator", **_attributes(key))]


def _clips(key: OperatorKey) -> bool:
    return key.activation == "Clip"


def _activation(key: OperatorKey) -> list[Any]:
    from onnx import helper

    if key.activation == "SiLU":
        gate = helper.make_node("Sigmoid", ["made"], ["gate"], name="gate")
        return [gate, helper.make_node("Mul", ["made", "gate"], ["y"], name="activation")]
    if not key.activation:
        return []
    operands = ["made", "low", "high"] if _clips(key) else ["made"]
    return [helper.make_node(key.activation, operands, ["y"], name="activation")]


# ----------------------------------------------------------------------------------------------- the runtime's files


def lowered(
    graphs: Iterable[onnx.ModelProto | None],
    *,
    runtime: RuntimeName,
    precision: Precision,
    workdir: Path,
    seed: int = 0,
    float_edges: bool = False,
) -> list[Path | None]:
    """A file for each graph, in ``workdir``; ``None`` for what the runtime or the precision does not take alone.

    An INT8 file has INT8 inputs and outputs, as an operator has between two others; with ``float_edges`` it has those
    of a file that ships.
    """
    first: Precision = "fp32" if runtime == "tflite" else precision
    made = [_lower_one(graph, runtime, first, workdir / str(i), seed, float_edges) for i, graph in enumerate(graphs)]
    if runtime == "tflite" and precision == "int8":
        return _quantized(made, workdir, float_edges)
    if runtime == "tflite" and precision == "fp16":
        return [_float16(artifact) for artifact, _ in made]
    return [artifact.file if artifact else None for artifact, _ in made]


def _lower_one(
    graph: onnx.ModelProto | None,
    runtime: RuntimeName,
    precision: Precision,
    folder: Path,
    seed: int,
    float_edges: bool,
) -> tuple[Artifact | None, list[Arrays]]:
    import onnx

    if graph is None:
        return None, []
    try:
        model = _saved(graph, folder)
        samples = _samples(model, seed)
        plan = Plan(runtime=runtime, precision=precision)
        path = lower.RUNTIMES[runtime].paths[0]  # the first is ours: another takes seconds for each file
        artifact = lower.RUNTIMES[runtime].lower(model, plan, samples, folder, path=path)
        if runtime == "onnxruntime" and precision == "int8" and not float_edges:
            write_atomically(artifact.file, without_float_edges(onnx.load(str(artifact.file))).SerializeToString())
        return artifact, samples
    except EdgecompileError as exc:
        log.info("an operator cannot be a file of its own: %s", exc)
        return None, []


def _saved(proto: onnx.ModelProto, folder: Path) -> Model:
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "operator.onnx"
    onnx.save(proto, str(path))
    return Model(
        name="operator",
        path=path,
        original_path=path,
        inputs=tuple(_spec(value) for value in proto.graph.input),
        outputs=tuple(_spec(value) for value in proto.graph.output),
        source=str(path),
        kind="onnx",
        sha256=file_sha256(path),
        parameters=sum(math.prod(tensor.dims) for tensor in proto.graph.initializer),
    )


def _spec(value: Any) -> TensorSpec:
    from onnx import helper

    kind = value.type.tensor_type
    shape = tuple(int(d.dim_value) for d in kind.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=str(helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def _samples(model: Model, seed: int) -> list[Arrays]:
    import numpy as np

    rng = np.random.default_rng(seed)
    return [
        {spec.name: rng.normal(0, 1, spec.shape).astype(spec.dtype) for spec in model.inputs} for _ in range(_SAMPLES)
    ]


def _float16(artifact: Artifact | None) -> Path | None:
    if artifact is None:
        return None
    file = artifact.file.with_name("float16.tflite")
    file.write_bytes(quantize_tflite.float16(artifact.file.read_bytes()))
    return file


def _quantized(
    made: Sequence[tuple[Artifact | None, list[Arrays]]], workdir: Path, float_edges: bool
) -> list[Path | None]:
    """INT8 files by the quantizer that candidates go through, all in one child: importing it takes seconds."""
    edges = "float32" if float_edges else "int8"
    jobs = []
    for artifact, samples in made:
        if artifact is None:
            continue
        folder = artifact.file.parent
        (folder / "float.tflite").write_bytes(artifact.file.read_bytes())
        names = [port.spec.name for port in artifact.inputs]
        child.write_samples(folder, [quantize_tflite.to_file_inputs(artifact.inputs, s) for s in samples], names)
        jobs.append({"folder": str(folder.resolve()), "inputs": names, "io_dtype": edges})
    if jobs:
        child.call(
            "edgecompile.tables.files:quantize_in_child",
            {"jobs": jobs},
            workdir.resolve(),
            timeout_s=_TIMEOUT_S,
            what="the quantization of single operators",
        )
    files = [artifact.file.with_name("int8.tflite") if artifact else None for artifact, _ in made]
    return [file if file is not None and file.is_file() else None for file in files]


def quantize_in_child(argument: dict[str, Any]) -> dict[str, Any]:
    """Quantize each job's ``float.tflite``; one that the quantizer does not take leaves no file."""
    failures = [quantize_tflite.int8_in_child(job).get("failure") for job in argument["jobs"]]
    return {"failures": [failure for failure in failures if failure]}


def without_float_edges(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A QDQ graph that takes and gives 8-bit tensors, as an operator within a whole model does.

    Before: ``x (float) -> QuantizeLinear -> DequantizeLinear -> operator -> QuantizeLinear -> DequantizeLinear -> y``.
    After: the same without the first and the last. Inputs and outputs that are not quantized stay as they are.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in graph.input:
        readers = [node for node in graph.node if value.name in node.input]
        if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
            value.type.tensor_type.elem_type = types[readers[0].input[2]]
            _rename(graph, readers[0].output[0], value.name)
            graph.node.remove(readers[0])
    for value in graph.output:
        maker = next(node for node in graph.node if value.name in node.output)
        if maker.op_type == "DequantizeLinear":
            value.type.tensor_type.elem_type = types[maker.input[2]]
            value.name = maker.input[0]
            graph.node.remove(maker)
    return result


def _rename(graph: onnx.GraphProto, before: str, after: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == before:
                node.input[position] = after
