"""Writes an ONNX graph at an older opset, where nothing in it needs the newer one.

Before: a graph at the opset of its exporter (torch: 18). After: the same graph at 13, else at 17, since TensorRT 8.0 to
8.4 take no more than 13, and 8.5 and 8.6 no more than 17. Most operators only gained types meanwhile; attributes and
inputs that came later are dropped where they have their default, the axes of reductions become an attribute again,
and HardSwish its two operators. Where an operator needs the newer opset, the graph stays as it is. (ONNX's own version
converter lacks most of the ways down.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecompile.errors import UnsupportedModelError

if TYPE_CHECKING:
    import onnx

#: The opsets worth having, the oldest first.
TARGETS = (13, 17)
#: Operators whose meaning, not only their signature, changed between the targets and now.
_REDEFINED = ("GridSample", "QuantizeLinear", "DequantizeLinear", "DFT", "RoiAlign")


class _NeedsNewer(Exception):
    """An operator cannot be written at the older opset."""


def lowered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph at the oldest of `TARGETS` that can hold it, else ``proto`` itself; never at a newer one."""
    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    for target in TARGETS:
        if version > target:
            made = _at(proto, version, target)
            if made is not None:
                return made
    return proto


def raised(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    """The graph at a newer opset, by ONNX's own converter; ``proto`` itself where it is at ``target`` or beyond.

    Raises `UnsupportedModelError` where the converter cannot.
    """
    import onnx

    version = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version >= target:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, target)
    except (RuntimeError, onnx.version_converter.ConvertError) as exc:
        raise UnsupportedModelError(
            f"the graph cannot be brought to opset {target}: {exc}", remedy=f"export the model with opset {target}"
        ) from exc


def _at(proto: onnx.ModelProto, version: int, target: int) -> onnx.ModelProto | None:
    import onnx

    if proto.functions or any(o.domain not in ("", "ai.onnx") for o in proto.opset_import):
        return None
    result = onnx.ModelProto.FromString(proto.SerializeToString())
    writer = _Writer(result, version, target)
    try:
        writer.run()
        onnx.checker.check_model(result, full_check=True)
    except (_NeedsNewer, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return result


class _Writer:
    """One rewrite in place from ``version`` down to ``target``."""

    def __init__(self, proto: onnx.ModelProto, version: int, target: int) -> None:
        import onnx

        self.proto = proto
        self.version = version
        self.target = target
        self.constants = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        self.taken = {name for node in proto.graph.node for name in (*node.input, *node.output)} | set(self.constants)
        self.sizes = _sizes(proto)

    def run(self) -> None:
        import onnx

        nodes = []
        for node in self.proto.graph.node:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise _NeedsNewer  # what is inside would have to be rewritten too
            nodes.extend(self._node(node))
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.proto.graph.node[:]
        self.proto.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input} | {v.name for v in self.proto.graph.output}
        kept = [tensor for tensor in self.proto.graph.initializer if tensor.name in read]
        del self.proto.graph.initializer[:]
        self.proto.graph.initializer.extend(kept)
        for entry in self.proto.opset_import:
            entry.version = self.target

    def _node(self, node: Any) -> list[Any]:
        import onnx

        now = onnx.defs.get_schema(node.op_type, self.version)
        if now.since_version <= self.target:
            return [node]
        if node.op_type in _REDEFINED:
            raise _NeedsNewer
        if node.op_type == "HardSwish":
            return self._hard_swish(node)
        try:
            then = onnx.defs.get_schema(node.op_type, self.target)
        except onnx.defs.SchemaError as exc:
            raise _NeedsNewer from exc
        if node.op_type.startswith("Reduce") and "axes" in then.attributes:
            self._axes_to_attribute(node)
        if node.op_type == "Split":
            self._explicit_split(node)
        if node.op_type == "Reshape":
            self._allow_no_zero(node)
        self._drop_attributes(node, now, then)
        while len(node.input) > then.max_input:
            if node.input[-1]:
                raise _NeedsNewer
            del node.input[-1]
        return [node]

    def _drop_attributes(self, node: Any, now: Any, then: Any) -> None:
        import onnx

        for attribute in [a for a in node.attribute if a.name not in then.attributes]:
            default = now.attributes[attribute.name].default_value
            value = onnx.helper.get_attribute_value(attribute)
            if not default.name or value != onnx.helper.get_attribute_value(default):
                raise _NeedsNewer
            node.attribute.remove(attribute)

    def _axes_to_attribute(self, node: Any) -> None:
        import onnx

        noop = next((a for a in node.attribute if a.name == "noop_with_empty_axes"), None)
        if len(node.input) > 1 and node.input[1]:
            axes = self.constants.get(node.input[1])
            if axes is None or not axes.size:
                raise _NeedsNewer
            node.attribute.append(onnx.helper.make_attribute("axes", [int(axis) for axis in axes]))
            if noop is not None:  # says nothing where there are axes
                node.attribute.remove(noop)
        del node.input[1:]

    def _allow_no_zero(self, node: Any) -> None:
        """``allowzero`` says what a 0 in the shape means: nothing, where there is none."""
        shape = self.constants.get(node.input[1])
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            if shape is not None and shape.all():
                node.attribute.remove(attribute)

    def _explicit_split(self, node: Any) -> None:
        """``num_outputs`` as the sizes of the outputs."""
        import numpy as np
        import onnx

        attribute = next((a for a in node.attribute if a.name == "num_outputs"), None)
        if attribute is None:
            return
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        sizes = [self.sizes.get(name) for name in node.output]
        name = self._new(f"{node.output[0]}_split")
        if any(size is None for size in sizes):
            raise _NeedsNewer
        lengths = np.array([size[axis] for size in sizes if size is not None], np.int64)
        self.proto.graph.initializer.append(onnx.numpy_helper.from_array(lengths, name))
        del node.input[1:]
        node.input.append(name)
        node.attribute.remove(attribute)

    def _hard_swish(self, node: Any) -> list[Any]:
        """``x * HardSigmoid(x)`` with the slope 1/6, as the standard defines it."""
        import onnx

        gate = self._new(f"{node.output[0]}_gate")
        make = onnx.helper.make_node
        return [
            make("HardSigmoid", [node.input[0]], [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5),
            make("Mul", [node.input[0], gate], [node.output[0]], name=node.name),
        ]

    def _new(self, wanted: str) -> str:
        while wanted in self.taken:
            wanted += "_"
        self.taken.add(wanted)
        return wanted


def _sizes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in [*graph.output, *graph.value_info]
        if all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    }
