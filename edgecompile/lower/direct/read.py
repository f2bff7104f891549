"""ONNX -> IR: walks the nodes in order, computes what is known now, and hands the rest to the operators' handlers.

Everything that is not lowered exactly is collected, so that a message can name all of it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edgecompile.lower.direct import fold
from edgecompile.lower.direct.build import MAX_ELEMENTS, Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Array, Graph, IRError, Value, identity

if TYPE_CHECKING:
    import onnx

Handler: TypeAlias = Callable[[Builder, OnnxNode], "Value | Sequence[Value | None]"]

#: Types that a tensor of the file may have.
_IO_TYPES = ("float32", "int32", "int64", "uint8", "int8", "bool")
_STANDARD_DOMAINS = ("", "ai.onnx")


#: What handlers run into when a node's attributes and operands contradict each other.
_MALFORMED = (IRError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A node that is not lowered, and why."""

    op_type: str
    name: str
    reason: str


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    """All names in a graph and in the graphs inside it."""
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            yield from _names(attribute.g)
    for named in (*graph.initializer, *graph.input, *graph.output):
        yield named.name
    for info in graph.input:
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)


class Reader:
    """Reads one ONNX graph into ``graph``; what it does not do stands in ``refusals`` afterwards."""

    def __init__(self, proto: onnx.ModelProto, handlers: dict[str, Handler]) -> None:
        self.proto = proto
        self.handlers = handlers
        self.graph = Graph()
        self.refusals: list[Refusal] = []
        self.builder = Builder(self.graph)
        self._values: dict[str, Value] = {}
        #: Results of refused nodes: what reads them cannot be judged beyond its type.
        self._unknown: set[str] = set()
        #: Results that an operator is not lowered with, by name, and why.
        self._missing: dict[str, str] = {}
        self._opset = 0

    def run(self) -> Graph:
        if not all(isinstance(name, str) for name in _names(self.proto.graph)):
            # What is not UTF-8 is handed over as bytes.
            self._refuse("Model", "", "a name in it is not text")
            return self.graph
        self._opset = self._standard_opset()
        self._read_initializers(self.proto.graph)
        self._read_inputs(self.proto.graph)
        for node in self.proto.graph.node:
            self._read_node(node)
        for output in self.proto.graph.output:
            value = self._values.get(output.name)
            if value is not None and value.elements == 0:
                self._refuse("Output", output.name, f"it has no elements: {value.shape}")
            elif value is not None and value.dtype not in _IO_TYPES:
                self._refuse("Output", output.name, f"its type is {value.dtype}")
            elif value is not None:
                self.graph.outputs.append((output.name, value.name))
            elif output.name in self._missing:
                self._refuse("Output", output.name, self._missing[output.name])
            elif output.name not in self._unknown:
                self._refuse("Output", output.name, "nothing in the graph makes it")
        return self.graph

    def _refuse(self, op_type: str, name: str, reason: str) -> None:
        self.refusals.append(Refusal(op_type=op_type, name=name, reason=reason))

    def _standard_opset(self) -> int:
        versions = [o.version for o in self.proto.opset_import if o.domain in _STANDARD_DOMAINS]
        if len(versions) != 1:
            self._refuse("Model", "", "it does not say which version of the ONNX operators it uses")
            return 0
        return int(versions[0])

    # -- what is there from the start

    def _read_initializers(self, graph: onnx.GraphProto) -> None:
        for initializer in graph.initializer:
            self._guard("Initializer", initializer.name, (initializer.name,), self._read_initializer, initializer)
        if graph.sparse_initializer:
            self._refuse("Initializer", graph.sparse_initializer[0].values.name, "it is sparse")

    def _read_initializer(self, initializer: onnx.TensorProto) -> None:
        self._bind_constant(initializer.name, fold.to_array(initializer))

    def _read_inputs(self, graph: onnx.GraphProto) -> None:
        # Before IR version 4 every initializer was listed as an input too.
        for info in graph.input:
            if info.name not in self._values and info.name not in self._unknown:
                self._guard("Input", info.name, (info.name,), self._read_input, info)

    def _read_input(self, info: onnx.ValueInfoProto) -> None:
        shape, dtype = fold.static_type(info)
        if dtype not in _IO_TYPES:
            raise RefusedError(f"its type is {dtype}; {', '.join(_IO_TYPES)} are lowered")
        value = Value(name=self.graph.fresh(info.name), shape=shape, dtype=dtype, layout=identity(len(shape)))
        self._values[info.name] = self.graph.add_value(value)
        self.graph.inputs.append(value.name)

    # -- nodes

    def _read_node(self, node: onnx.NodeProto) -> None:
        domain = "" if node.domain in _STANDARD_DOMAINS else f"{node.domain}."
        op_type = domain + node.op_type
        self._guard(op_type, node.name, tuple(node.output), self._lower_node, node, op_type)

    def _guard(self, op_type: str, name: str, outputs: tuple[str, ...], read: Callable[..., None], *args: Any) -> None:
        """Run one reading step; a refusal is noted, and what the step would have made becomes unknown."""
        try:
            read(*args)
        except RefusedError as exc:
            if str(exc):
                self._refuse(op_type, name, str(exc))
            self._unknown.update(o for o in outputs if o)
        except _MALFORMED as exc:
            self._refuse(op_type, name, f"it is malformed ({type(exc).__name__}: {exc})")
            self._unknown.update(o for o in outputs if o)

    def _lower_node(self, node: onnx.NodeProto, op_type: str) -> None:
        handler = self.handlers.get(op_type)
        if op_type == "If":
            self._inline_if(node)
            return
        if handler is None and op_type not in fold.FOLD_ONLY:
            raise RefusedError("there is no lowering of this operator")
        refused = [self._missing[name] for name in node.input if name in self._missing]
        if refused:
            raise RefusedError(refused[0])
        missing = [name for name in node.input if name and name not in self._values and name not in self._unknown]
        if missing:
            raise RefusedError(f"nothing makes its operand {missing[0]!r}")
        if any(name in self._unknown for name in node.input):
            raise RefusedError("")
        inputs = [self._values[name] if name else None for name in node.input]
        while inputs and inputs[-1] is None:
            inputs.pop()
        if handler is None or all(v is None or v.data is not None for v in inputs):
            self._fold(node, inputs)
        else:
            self._handle(OnnxNode(node, inputs, self._opset), handler, node)

    def _inline_if(self, node: onnx.NodeProto) -> None:
        """The branch that is taken, where that is known: exporters leave such choices about shapes."""
        condition = self._values.get(node.input[0])
        if condition is None or condition.data is None or condition.elements != 1:
            raise RefusedError("which branch it takes is only known at run time")
        wanted = "then_branch" if condition.data.reshape(-1)[0] else "else_branch"
        branch = next((a.g for a in node.attribute if a.name == wanted), None)
        if branch is None or len(branch.output) != len(node.output):
            raise RefusedError(f"its {wanted} does not fit its results")
        self._read_initializers(branch)
        for inner in branch.node:
            self._read_node(inner)
        for name, output in zip(node.output, branch.output, strict=True):
            if output.name not in self._values:
                raise RefusedError("" if output.name in self._unknown else f"nothing makes its result {output.name!r}")
            self._values[name] = self._values[output.name]

    def _fold(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> None:
        if any(v is not None and v.data is None for v in inputs):
            raise RefusedError("its operands are computed at run time")
        arrays = [None if v is None else v.array for v in inputs]
        results = fold.evaluate(node, arrays, self._opset, self.proto)
        for name, array in zip(node.output, results, strict=True):
            if name:
                self._bind_constant(name, array)

    def _handle(self, onnx_node: OnnxNode, handler: Handler, node: onnx.NodeProto) -> None:
        builder = self.builder
        builder.stem = next((name for name in node.output if name), node.name)
        builder.origin = (node.op_type, node.name)
        builder.made.clear()
        result = handler(builder, onnx_node)
        values = [result] if isinstance(result, Value) else list(result)
        renamed: dict[str, str] = {}
        for i, name in enumerate(node.output):
            if name:
                if i >= len(values) or (value := values[i]) is None:
                    # Most optional results are named by exporters and read by nobody.
                    self._missing[name] = f"result {i} of {node.op_type} {node.name!r} is not lowered"
                    continue
                self._values[name] = self._named(name, renamed.get(value.name, value.name), renamed)

    def _named(self, name: str, current: str, renamed: dict[str, str]) -> Value:
        """The value under its ONNX name, where this node made it and the name is free."""
        if current in self.builder.made and name not in self.graph.values:
            self.graph.rename(current, name)
            renamed[current] = current = name
        return self.graph.values[current]

    def _bind_constant(self, name: str, array: Array) -> None:
        if array.dtype.name not in fold.CONSTANT_TYPES:
            raise RefusedError(f"its type is {array.dtype}")
        if array.size > MAX_ELEMENTS:
            raise RefusedError(f"it has {array.size} elements")
        self._values[name] = self.graph.add_value(
            Value(
                name=self.graph.fresh(name),
                shape=array.shape,
                dtype=array.dtype.name,
                layout=identity(array.ndim),
                data=array,
            )
        )
