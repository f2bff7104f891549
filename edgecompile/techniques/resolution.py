"""The technique ``resolution``: the same weights on a smaller image, the cheapest lever there is.

The graph is static, so sizes are written into it in places: the target of a Reshape, the window of a global pooling,
the end of a Slice. They are worked out anew from the old and the new shape of what the operator reads; where that is
not clear, or where a weight fits one size only (a dense layer on a flattened map, a positional embedding), the model is
refused by name. Networks lose accuracy at another size than they were trained at ("Fixing the train-test resolution
discrepancy", Touvron et al., NeurIPS 2019): what it costs is measured like everything else.

Options: ``height``, ``width``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.progress import Progress
from edgecompile.techniques.pruning import written
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
_FLATTENING = ("Flatten", "Gemm", "MatMul", "ReduceMean", "Reshape", "Squeeze")


def step(height: int, width: int) -> Step:
    """The step to an input of so many pixels."""
    return Step(technique="resolution", options=(("height", height), ("width", width)))


def size_of(resolution: Step) -> tuple[int, int]:
    """The height and width of a step. Raises `InputError` for anything else in it."""
    options = dict(resolution.options)
    sizes = (options.pop("height", None), options.pop("width", None))
    if options or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(
            f"a resolution step with {dict(resolution.options)} cannot be run", remedy="give height and width in pixels"
        )
    return sizes[0], sizes[1]  # type: ignore[return-value]


def spatial_size(model: Model) -> tuple[int, int]:
    """The height and width that a model takes. Raises `UnsupportedModelError` where it takes no single image."""
    import onnx

    row, column = _axes(onnx.load(str(model.path)), model)
    shape = model.inputs[0].shape
    return shape[row], shape[column]


def apply(
    original: Model, model: Model, resolution: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """The model at another input size. Raises `UnsupportedModelError` naming the operator that fits one size only."""
    import onnx

    proto = onnx.load(str(model.path))
    height, width = size_of(resolution)
    row, column = _axes(proto, model)
    shape = list(model.inputs[0].shape)
    shape[row], shape[column] = height, width
    changed = resized(proto, {model.inputs[0].name: tuple(shape)})
    made = written(model, changed, workdir, note=f"the input is {height}x{width} pixels")
    return replace(made, inputs=(replace(model.inputs[0], shape=tuple(shape)),))


def _axes(proto: onnx.ModelProto, model: Model) -> tuple[int, int]:
    """The axes of height and width in the only input."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4:
        shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in model.inputs)
        raise UnsupportedModelError(
            f"{model.name} does not take one image ({shapes}): its resolution cannot change",
            remedy="build without --resolutions",
        )
    readers = [node for node in proto.graph.node if model.inputs[0].name in node.input]
    if len(readers) == 1 and readers[0].op_type == "Transpose":
        order = next((list(a.ints) for a in readers[0].attribute if a.name == "perm"), [])
        if order == [0, 3, 1, 2]:
            return 1, 2
    return 2, 3


def resized(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> onnx.ModelProto:
    """The graph with inputs of other shapes; its outputs keep theirs. Raises `UnsupportedModelError`."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for value in result.graph.input:
        if value.name in inputs:
            value.CopyFrom(
                onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, inputs[value.name])
            )
    del result.graph.value_info[:]
    _Walk(result, _types(onnx.shape_inference.infer_shapes(proto))).run()
    _drop_unused(result)
    onnx.checker.check_model(result)
    # With the shapes of what is between: a search for smaller models on smaller images asks for them.
    return onnx.shape_inference.infer_shapes(result)


def _drop_unused(proto: onnx.ModelProto) -> None:
    """Take out the sizes that were replaced: ONNX Runtime warns of constants that nothing reads."""
    read = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    if len(kept) < len(proto.graph.initializer) and not any(a.g.node for n in proto.graph.node for a in n.attribute):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _types(proto: onnx.ModelProto) -> dict[str, Any]:
    import onnx

    found = {v.name: v.type for v in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]}
    for tensor in proto.graph.initializer:
        found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return found


def _shape(kind: Any) -> Shape:
    return tuple(d.dim_value for d in kind.tensor_type.shape.dim)


class _Walk:
    """One walk over the nodes: each one's sizes are set right, then the shape of what it makes is inferred."""

    def __init__(self, proto: onnx.ModelProto, old: Mapping[str, Any]) -> None:
        import onnx

        self.proto = proto
        self.old = old
        self.types = {v.name: v.type for v in proto.graph.input}
        self.constants = {t.name: t for t in proto.graph.initializer}
        for tensor in proto.graph.initializer:
            self.types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))

    def run(self) -> None:
        for number, node in enumerate(self.proto.graph.node):
            if node.op_type == "Constant":
                self._take_constant(node)
                continue
            fix = _FIXES.get(node.op_type)
            if fix is not None and self._changed(node):
                fix(self, node, number)
            self._infer(node)
        for value in self.proto.graph.output:
            if _shape(self.types[value.name]) != _shape(value.type):
                raise UnsupportedModelError(
                    f"at this input size output {value.name!r} is {_shape(self.types[value.name])} instead of "
                    f"{_shape(value.type)}",
                    remedy="build without --resolutions",
                )

    def _changed(self, node: onnx.NodeProto) -> bool:
        return self._new(node) != self._old(node)

    def _new(self, node: onnx.NodeProto) -> Shape:
        return _shape(self.types[node.input[0]])

    def _old(self, node: onnx.NodeProto) -> Shape:
        return _shape(self.old[node.input[0]])

    def _take_constant(self, node: onnx.NodeProto) -> None:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if tensor is None:
            raise _refusal(node, "is a constant that is no tensor")
        import onnx

        self.constants[node.output[0]] = tensor
        self.types[node.output[0]] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))

    def _infer(self, node: onnx.NodeProto) -> None:
        import onnx

        opset = next(o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx"))
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
            known = {name: self.types[name] for name in node.input if name}
            data = {name: self.constants[name] for name in node.input if name in self.constants}
            made = onnx.shape_inference.infer_node_outputs(
                schema, node, known, data, opset_imports=list(self.proto.opset_import)
            )
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, KeyError) as exc:
            raise _refusal(node, f"fits one input size only ({' '.join(str(exc).split())[:120]})") from exc
        for name in node.output:
            if name and name in made:
                self.types[name] = made[name]
            elif name:
                raise _refusal(node, "has an output whose shape is not known")

    # ------------------------------------------------------------------------------------ sizes in the graph

    def _ints(self, node: onnx.NodeProto, place: int) -> list[int] | None:
        import onnx

        if len(node.input) <= place or node.input[place] not in self.constants:
            return None
        return [int(i) for i in onnx.numpy_helper.to_array(self.constants[node.input[place]]).reshape(-1)]

    def _replace(self, node: onnx.NodeProto, place: int, values: Sequence[int], number: int) -> None:
        """Give a node an integer constant of its own: others may read the old one."""
        import onnx

        name = f"{node.input[place]}_resized_{number}"
        tensor = onnx.numpy_helper.from_array(np.array(values, np.int64), name)
        self.proto.graph.initializer.append(tensor)
        self.constants[name] = tensor
        self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        node.input[place] = name

    def reshape(self, node: onnx.NodeProto, number: int) -> None:
        target, old, new = self._ints(node, 1), self._old(node), self._new(node)
        if target is None:
            raise _refusal(node, "computes its target shape")
        full = _filled(target, old)
        moved = _reshaped(full, old, new)
        if moved is None:
            raise _refusal(node, f"turns {list(old)} into {full}, which fits one input size only")
        self._replace(node, 1, moved, number)

    def slice(self, node: onnx.NodeProto, number: int) -> None:
        ends, axes = self._ints(node, 2), self._ints(node, 3)
        old, new = self._old(node), self._new(node)
        if ends is None:
            raise _refusal(node, "computes its ends")
        axes = axes if axes is not None else list(range(len(ends)))
        moved = []
        for end, axis in zip(ends, axes, strict=True):
            if old[axis] != new[axis] and 0 <= end < old[axis]:
                raise _refusal(node, f"cuts at {end} of {old[axis]}, which means another place at another size")
            moved.append(new[axis] if end == old[axis] else end)
        self._replace(node, 2, moved, number)

    def resize(self, node: onnx.NodeProto, number: int) -> None:
        sizes = self._ints(node, 3)
        if sizes:
            old, new = self._old(node), self._new(node)
            scaled = [size * n / o for size, o, n in zip(sizes, old, new, strict=True)]
            if any(value != round(value) for value in scaled):
                raise _refusal(node, f"has sizes {sizes}, which do not scale from {list(old)} to {list(new)}")
            self._replace(node, 3, [round(value) for value in scaled], number)

    def pool(self, node: onnx.NodeProto, number: int) -> None:
        """A window over the whole map, right before the map is flattened, is a global pooling and stays one."""
        old, new = self._old(node)[2:], self._new(node)[2:]
        attributes = {a.name: list(a.ints) for a in node.attribute}
        readers = [reader.op_type for reader in self.proto.graph.node if node.output[0] in reader.input]
        is_global = tuple(attributes["kernel_shape"]) == old and not any(attributes.get("pads", ()))
        if is_global and readers and all(reader in _FLATTENING for reader in readers):
            for attribute in node.attribute:
                if attribute.name == "kernel_shape":
                    attribute.ints[:] = new
                elif attribute.name == "strides":
                    attribute.ints[:] = [1] * len(new)


def _filled(target: Sequence[int], old: Shape) -> list[int]:
    """A Reshape's target with its zeros and its -1 worked out."""
    full = [old[i] if size == 0 else size for i, size in enumerate(target)]
    if -1 in full:
        rest = math.prod(size for size in full if size != -1)
        full[full.index(-1)] = math.prod(old) // max(rest, 1)
    return full


def _reshaped(target: Sequence[int], old: Shape, new: Shape) -> list[int] | None:
    """The target for the new shape: sizes, or runs of sizes multiplied, are followed from one side to the other."""
    moved: list[int] = []
    i = j = 0
    while i < len(old) or j < len(target):
        left, right, first, start = 1, 1, i, j
        while left != right or i == first or j == start:
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            elif j < len(target):
                right, j = right * target[j], j + 1
            elif i < len(old):
                left, i = left * old[i], i + 1
            else:
                break
            if i > first and j > start and left == right:
                break
        part = _part(target[start:j], old[first:i], new[first:i])
        if left != right or part is None:
            return None
        moved += part
    return moved


def _part(target: Sequence[int], old: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """One run of a Reshape: unchanged, merged into one size, or sizes that stand on both sides."""
    if list(old) == list(new):
        return list(target)
    if len(target) == 1:
        return [math.prod(new)]
    if list(target) == list(old):
        return list(new)
    ones = [size for size in old if size != 1]
    if [size for size in target if size != 1] == ones and len(ones) == len([s for s in new if s != 1]):
        rest = iter(size for size in new if size != 1)
        return [1 if size == 1 else next(rest) for size in target]
    return None


def _refusal(node: onnx.NodeProto, why: str) -> UnsupportedModelError:
    name = node.name or node.output[0]
    return UnsupportedModelError(
        f"the input size cannot change: {node.op_type} {name!r} {why}",
        remedy="build without --resolutions",
        operators=((node.op_type, name),),
    )


_FIXES = {
    "Reshape": _Walk.reshape,
    "Slice": _Walk.slice,
    "Resize": _Walk.resize,
    "AveragePool": _Walk.pool,
}
