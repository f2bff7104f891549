"""Rewrites an ONNX graph to compute in float16, with float32 inputs and outputs.

Before: every float tensor is float32. After: every operator whose ONNX schema allows it computes in float16 on float16
weights; a Cast stands after each float input, before each float output, and around each operator (or each input, such
as the scales of Resize) that the schema keeps in float32. Written here because the converter of onnxconverter-common
makes an invalid graph when an output of the model is also read inside it, and moves small weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import base

if TYPE_CHECKING:
    import onnx

_FLOAT = 1
_FLOAT16 = 10
_LARGEST = 65504.0
#: Operators whose output type is an attribute, not a type variable of the schema.
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype"}


def convert(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph in float16. Raises `UnsupportedModelError` for control flow, and for weights beyond float16's range."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    with_subgraphs = [(n.op_type, n.name) for n in inferred.graph.node if any(a.type in (5, 10) for a in n.attribute)]
    if with_subgraphs:
        raise base.unsupported(f"{name} cannot be converted to float16", with_subgraphs)
    result = onnx.ModelProto()
    result.CopyFrom(inferred)
    _Rewriter(result, name).run()
    onnx.checker.check_model(result)
    return result


class _Rewriter:
    """One rewrite in place: which float tensor is float16 by now, and the casts made between the two."""

    def __init__(self, proto: onnx.ModelProto, name: str) -> None:
        self.graph = proto.graph
        self.name = name
        self.opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        self.weights = {t.name: t for t in self.graph.initializer if t.data_type == _FLOAT}
        self.floats = self._float_tensors()
        #: Float tensors of the original that are held in float16 now.
        self.halves: set[str] = set()
        self.nodes: list[Any] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.outputs = {value.name for value in self.graph.output if value.name in self.floats}
        self.inner: dict[str, str] = {}

    def _float_tensors(self) -> set[str]:
        values = [*self.graph.input, *self.graph.output, *self.graph.value_info]
        found = {v.name for v in values if v.type.tensor_type.elem_type == _FLOAT}
        return found | set(self.weights)

    def run(self) -> None:
        """Rewrite the nodes in order, then the outputs, weights and recorded types."""
        original = list(self.graph.node)
        del self.graph.node[:]
        for node in original:
            self._node(node)
        for value in self.graph.output:
            if value.name in self.inner:
                self.nodes.append(_cast(self.inner[value.name], value.name, _FLOAT))
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in self.graph.initializer if tensor.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        # The recorded types are stale now; shape inference in any runtime makes them anew.
        del self.graph.value_info[:]

    def _node(self, node: Any) -> None:
        half_inputs, half_outputs = self._types(node)
        for i, name in enumerate(node.input):
            if name in self.floats:
                node.input[i] = self._as(name, _FLOAT16 if i in half_inputs else _FLOAT)
        if half_outputs:
            self._halve_attributes(node)
        for i, name in enumerate(node.output):
            if name not in self.floats or i not in half_outputs:
                continue
            self.halves.add(name)
            if name in self.outputs:
                self.inner[name] = f"{name}_float16"
                node.output[i] = self.inner[name]
        self.nodes.append(node)

    def _types(self, node: Any) -> tuple[set[int], set[int]]:
        """The inputs and outputs of a node that its schema lets be float16; all of a type variable, or none."""
        import onnx

        domain = node.domain or "ai.onnx"
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets[domain], "" if domain == "ai.onnx" else domain)
        except (onnx.defs.SchemaError, KeyError) as exc:
            raise base.unsupported(f"{self.name} cannot be converted to float16", [(node.op_type, node.name)]) from exc
        allowed = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if "tensor(float16)" in constraint.allowed_type_strs
        }
        attribute = _TYPE_ATTRIBUTES.get(node.op_type)
        outputs = {i for i in range(len(node.output)) if _variable(schema.outputs, i) in allowed}
        if attribute is not None and not any(a.name == attribute and a.i == _FLOAT for a in node.attribute):
            outputs = set()
        return {i for i in range(len(node.input)) if _variable(schema.inputs, i) in allowed}, outputs

    def _as(self, name: str, wanted: int) -> str:
        """The name under which ``name`` can be read as ``wanted``; adds a Cast or a float16 weight where needed."""
        if name in self.weights:
            return name if wanted == _FLOAT else self._half_weight(name)
        held = _FLOAT16 if name in self.halves else _FLOAT
        source = self.inner.get(name, name)
        if held == wanted:
            return source
        if (name, wanted) not in self.casts:
            target = f"{name}_as_float{16 if wanted == _FLOAT16 else 32}"
            self.nodes.append(_cast(source, target, wanted))
            self.casts[name, wanted] = target
        return self.casts[name, wanted]

    def _half_weight(self, name: str) -> str:
        if (name, _FLOAT16) not in self.casts:
            half = f"{name}_float16"
            self.graph.initializer.append(_half_tensor(self.weights[name], half, self.name))
            self.casts[name, _FLOAT16] = half
        return self.casts[name, _FLOAT16]

    def _halve_attributes(self, node: Any) -> None:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name, self.name))
            elif attribute.name == _TYPE_ATTRIBUTES.get(node.op_type) and attribute.i == _FLOAT:
                attribute.i = _FLOAT16
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                _constant_as_tensor(attribute)


def _variable(parameters: Iterable[Any], index: int) -> str:
    """The type string of the ``index``-th parameter; the last one may be variadic."""
    listed = list(parameters)
    return str(listed[min(index, len(listed) - 1)].type_str)


def _cast(source: str, target: str, to: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=to)


def _half_tensor(tensor: Any, name: str, model_name: str) -> Any:
    import numpy as np
    import onnx

    values = onnx.numpy_helper.to_array(tensor)
    finite = values[np.isfinite(values)]
    if finite.size and float(np.abs(finite).max()) > _LARGEST:
        # The lowest float32 stands for minus infinity in attention masks: there the largest float16 means the same.
        if float(np.abs(finite).max()) < 1e30:
            raise UnsupportedModelError(
                f"{model_name} cannot be converted to float16: the constant {tensor.name!r} holds "
                f"{float(finite[np.abs(finite).argmax()]):g}, and float16 ends at {_LARGEST:g}",
                remedy="use --precision fp32",
            )
        values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    return onnx.numpy_helper.from_array(values.astype(np.float16), name)


def _constant_as_tensor(attribute: Any) -> None:
    """``value_float`` and ``value_floats`` are float32 by definition; a tensor may be float16."""
    import numpy as np
    import onnx

    values = np.float16(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, np.float16)
    attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.asarray(values))))
