"""Makes every tensor of an ONNX model static, or says which one is not; child process only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgecompile.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import onnx

#: Larger than any tensor that a phone could hold; what needs more is a mistake or an attack.
MAX_TENSOR_BYTES = 2 << 30
_USUAL_SIDE = 224
#: The compiler chooses the precision itself, and calibration data and kernels come in these.
_INPUT_TYPES = ("float32", "uint8", "int8", "int32", "int64", "bool")


def fix_inputs(model: onnx.ModelProto, name: str, shapes: Sequence[int] | Mapping[str, Sequence[int]]) -> list[str]:
    """Write the shapes that the user gave, and batch 1, into the inputs; returns notes, raises `InputError`."""
    if not model.graph.input:
        raise InputError(f"{name} has no inputs: it computes a constant", remedy="export it with its input")
    wanted = _by_name(model, shapes)
    notes = []
    for value in model.graph.input:
        _check_type(value, name)
        given = wanted.get(value.name)
        if given is not None:
            _write_shape(value, given)
        else:
            notes += _fix_batch(value)
        _refuse_open(value, only=len(model.graph.input) == 1)
    for value in model.graph.output:
        # An exporter's symbol or guess for an open dimension would contradict what is inferred from the fixed inputs.
        for dim in value.type.tensor_type.shape.dim:
            if not _size(dim):
                dim.Clear()
    return notes


def _by_name(model: onnx.ModelProto, shapes: Sequence[int] | Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    names = [value.name for value in model.graph.input]
    if not isinstance(shapes, Mapping):
        if shapes and len(names) > 1:
            raise InputError(
                f"one shape was given, but the model has the inputs {', '.join(names)}",
                remedy=f"give --input-shape {names[0]}={','.join(map(str, shapes))} and so for each that is open",
            )
        return {names[0]: shapes} if shapes else {}
    for name in shapes:
        if name not in names:
            raise InputError(f"the model has no input {name!r}", remedy=f"its inputs are: {', '.join(names)}")
    return dict(shapes)


def _check_type(value: onnx.ValueInfoProto, name: str) -> None:
    import onnx

    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedModelError(
            f"{name}: input {value.name!r} is a {value.type.WhichOneof('value') or 'value of no type'}, not a tensor",
            remedy="export it with tensors as inputs",
        )
    code = value.type.tensor_type.elem_type
    if code not in onnx.helper.get_all_tensor_dtypes():
        raise InputError(f"{name}: input {value.name!r} has no known type", remedy="export it again")
    if (found := dtype(value)) not in _INPUT_TYPES:
        raise UnsupportedModelError(
            f"{name}: input {value.name!r} is {found}; inputs may be {', '.join(_INPUT_TYPES)}",
            remedy="export the model in float32: edgecompile chooses the precision itself",
        )


def dtype(value: onnx.ValueInfoProto) -> str:
    """NumPy's name for a tensor's type; ONNX's own where NumPy has none."""
    import onnx

    code = value.type.tensor_type.elem_type
    if code == onnx.TensorProto.BFLOAT16:  # NumPy would call it float32
        return "bfloat16"
    return str(onnx.helper.tensor_dtype_to_np_dtype(code).name)


def _size(dim: Any) -> int:
    """A dimension's size, 0 where it is open (old exporters write -1)."""
    return max(0, int(dim.dim_value))


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _text(value: onnx.ValueInfoProto) -> str:
    return "[" + ", ".join(str(_size(d) or d.dim_param or "?") for d in _dims(value)) + "]"


def _write_shape(value: onnx.ValueInfoProto, given: Sequence[int]) -> None:
    dims = _dims(value)
    if not value.type.tensor_type.HasField("shape"):
        for _ in given:
            dims.add()
    fits = len(given) == len(dims) and all(_size(d) in (0, size) for d, size in zip(dims, given, strict=True))
    if not fits or any(size < 1 for size in given):
        raise InputError(
            f"input {value.name!r} is {_text(value)}, but --input-shape says {list(given)}",
            remedy="give sizes only where the model's are open, and at least 1",
        )
    for dim, size in zip(dims, given, strict=True):
        dim.dim_value = size


def _fix_batch(value: onnx.ValueInfoProto) -> list[str]:
    dims = _dims(value)
    if not dims or _size(dims[0]):
        return []
    dims[0].dim_value = 1
    return [f"the dynamic batch of input {value.name!r} is fixed to 1"]


def _refuse_open(value: onnx.ValueInfoProto, *, only: bool) -> None:
    dims = _dims(value)
    if value.type.tensor_type.HasField("shape") and all(_size(d) for d in dims):
        return
    sizes = [_size(d) or (1 if axis == 0 else _USUAL_SIDE) for axis, d in enumerate(dims)] or [1, 3, 224, 224]
    example = ("" if only else f"{value.name}=") + ",".join(map(str, sizes))
    found = _text(value) if value.type.tensor_type.HasField("shape") else "unknown"
    raise InputError(
        f"the shape of input {value.name!r} is open: {found}", remedy=f"say it, for example --input-shape {example}"
    )


# -------------------------------------------------------------------------------------------------- inference


def inferred(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with all shapes that follow from its inputs; raises `InputError` where they contradict each other."""
    import onnx

    from edgecompile.model.onnx_file import damaged

    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as exc:
        raise damaged(name, exc) from exc


def refuse_huge(model: onnx.ModelProto, name: str) -> None:
    """Raise `UnsupportedModelError` for a tensor that no machine of ours should even try to compute."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        total = 1
        for dim in _dims(value):
            total *= max(1, _size(dim))
        if total * _item_bytes(value) > MAX_TENSOR_BYTES:
            node = makers.get(value.name)
            made = f", made by {node.op_type}," if node is not None else ""
            raise UnsupportedModelError(
                f"{name}: tensor {value.name!r} {_text(value)}{made} would need "
                f"{total * _item_bytes(value) / 2**30:,.1f} GiB of memory; {MAX_TENSOR_BYTES >> 30} GiB are allowed",
                remedy="give a smaller --input-shape, or export a smaller model",
                operators=((node.op_type, node.name or value.name),) if node is not None else (),
            )


def _item_bytes(value: onnx.ValueInfoProto) -> int:
    import onnx

    code = value.type.tensor_type.elem_type
    if code in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        return 1
    return int(onnx.helper.tensor_dtype_to_np_dtype(code).itemsize)


def first_open(model: onnx.ModelProto) -> tuple[str, str, str] | None:
    """The first tensor without a static shape: (its name, its operator's type, its operator's name)."""
    static = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        kind = value.type.tensor_type
        sizes = [d.HasField("dim_value") for d in kind.shape.dim]
        if value.type.WhichOneof("value") == "tensor_type" and kind.HasField("shape") and all(sizes):
            static.add(value.name)
    for node in model.graph.node:
        for output in node.output:
            if output and output not in static:
                return output, node.op_type, node.name or output
    return None


def refuse_open(model: onnx.ModelProto, name: str) -> None:
    """Raise `UnsupportedModelError` that names the first tensor whose shape is not static."""
    found = first_open(model)
    if found is not None:
        tensor, operator, at = found
        raise UnsupportedModelError(
            f"{name}: the shape of tensor {tensor!r}, made by {operator} {at!r}, is not static",
            remedy="its size depends on the data: export the model without that part, and do it in the app",
            operators=((operator, at),),
        )
