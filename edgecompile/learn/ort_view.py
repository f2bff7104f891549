"""What ONNX Runtime makes of a graph: its fusions and changes of layout, as far as they change what is moved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from edgecompile.learn import blocked
from edgecompile.learn.features import CLAMP, Moving, Part, parts
from edgecompile.lower import ort_patterns
from edgecompile.tables import OperatorKey, keys_of
from edgecompile.tables.costs import output_shape
from edgecompile.types import Precision

if TYPE_CHECKING:
    import onnx

_Makers: TypeAlias = "dict[str, onnx.NodeProto]"
_Readers: TypeAlias = "dict[str, list[onnx.NodeProto]]"
#: An addition that ONNX Runtime makes along with the convolution before it reads one tensor, and writes none anew.
_FUSED_ADD = 1 / 3
#: Constants of so few elements may say what an operator does.
_NUMBERS = 64


def view(model: onnx.ModelProto, precision: Precision, *, block: int, clamps: bool) -> tuple[Part, ...]:
    """The parts of a prepared graph; changes of layout, where there are blocks, are the last.

    With ``clamps`` a convolution's Clip is a part of its own: it is fused, but another loop over what was made.
    """
    model = _outline(model)
    ort_patterns.arrange(model, precision)
    keys = keys_of(model)  # refuses what has no static shapes
    layouts = blocked.layouts(model, block) if block else None
    fuses = precision != "int8"  # between the operators of an INT8 file stand changes of type
    added = _added(model, layouts) if fuses else frozenset()
    found: list[Part] = []
    for name, key in _fused(model, keys, layouts) if fuses else keys:
        share = _FUSED_ADD if name in added else 1.0
        found += _shared(parts(key), share)
        if clamps and key.op_type == "Conv" and key.activation == "Clip":
            found.append(Moving(kind=CLAMP, plain=CLAMP, elements=float(math.prod(output_shape(key)))))
    return (*found, *(_reorders(layouts) if layouts is not None else ()))


def _outline(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to be changed, without the values of the weights, and all of its nodes with names."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for name in ("node", "input", "output", "value_info"):
        getattr(made.graph, name).extend(getattr(model.graph, name))
    for index, node in enumerate(made.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    made.graph.initializer.extend(
        tensor
        if math.prod(tensor.dims) <= _NUMBERS
        else onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        for tensor in model.graph.initializer
    )
    return made


def _reorders(layouts: blocked.Layouts) -> list[Part]:
    keys = [OperatorKey(op_type="ReorderInput", in_shape=shape) for shape in layouts.into]
    keys += [OperatorKey(op_type="ReorderOutput", in_shape=shape) for shape in layouts.out_of]
    return [part for key in keys for part in parts(key)]


def _shared(found: Sequence[Part], share: float) -> list[Part]:
    """Parts that move only a share of their elements."""
    if share == 1.0:
        return list(found)
    return [
        Moving(kind=part.kind, plain=part.plain, elements=max(1.0, share * part.elements))
        for part in found
        if isinstance(part, Moving)
    ]


def _fused(
    model: onnx.ModelProto, keys: Sequence[tuple[str, OperatorKey]], layouts: blocked.Layouts | None
) -> list[tuple[str, OperatorKey]]:
    """The operators that are left, with the names of their nodes."""
    edges = _edges(model)
    gelus = _gelus(model, *edges)
    gone = {name for names in gelus.values() for name in names} | _scales(model, *edges)
    resized: Set[str] = frozenset()
    if layouts is not None:
        gone, resized = gone | layouts.transposed, layouts.resized
    found = []
    for name, key in keys:
        if name in gelus:
            found.append((name, OperatorKey(op_type="Gelu", in_shape=key.in_shape, out_shape=key.in_shape)))
        elif name not in gone:
            found.append((name, replace(key, op_type="BlockedUpsample") if name in resized else key))
    return found


def _edges(model: onnx.ModelProto) -> tuple[_Makers, _Readers]:
    """Who makes each tensor, and who reads it."""
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: _Readers = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return makers, readers


def _gelus(model: onnx.ModelProto, makers: _Makers, readers: _Readers) -> dict[str, tuple[str, ...]]:
    """``x * (1 + erf(x / sqrt(2))) / 2``: the name of each error function, with those of the operators around it."""
    found = {}
    for node in model.graph.node:
        if node.op_type != "Erf" or node.input[0] not in makers:
            continue
        chain, at = [makers[node.input[0]]], node
        while len(chain) < 4:
            after = readers.get(at.output[0], [])
            if len(after) != 1 or after[0].op_type not in ("Add", "Mul"):
                break
            at = after[0]
            chain.append(at)
        if len(chain) == 4:
            found[node.name] = tuple(one.name for one in chain)
    return found


def _scales(model: onnx.ModelProto, makers: _Makers, readers: _Readers) -> set[str]:
    """Products by one constant directly behind or before a product of matrices, which makes them along with it."""
    single = {tensor.name for tensor in model.graph.initializer if math.prod(tensor.dims) == 1}
    found = set()
    for node in model.graph.node:
        if node.op_type not in ("Mul", "Div") or not single & set(node.input):
            continue
        before = [makers[name] for name in node.input if name in makers and len(readers[name]) == 1]
        after = readers.get(node.output[0], [])
        if any(one.op_type == "MatMul" for one in (*before, *(after if len(after) == 1 else ()))):
            found.add(node.name)
    return found


def _added(model: onnx.ModelProto, layouts: blocked.Layouts | None) -> Set[str]:
    """Additions that a convolution makes along with it: without blocks, of what it makes for the addition alone."""
    if layouts is not None:
        return layouts.added
    uses = Counter(name for node in model.graph.node for name in node.input)
    made = {n.output[0] for n in model.graph.node if n.op_type == "Conv" and uses[n.output[0]] == 1}
    return {n.name for n in model.graph.node if n.op_type == "Add" and made & set(n.input)}
