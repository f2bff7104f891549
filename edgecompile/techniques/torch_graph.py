"""An ONNX graph that torch can differentiate: techniques edit the graph, torch trains its weights.

`from_onnx` makes a ``torch.nn.Module`` of a graph, `TorchGraph.to_onnx` writes the trained weights back into the same
graph. Nodes and names stay what they were, so what is known of the graph's tensors holds for the module.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.errors import InputError
from edgecompile.techniques.torch_call import BatchLost, Call, NotDifferentiable, Operator, Refused, Shape, torch
from edgecompile.techniques.torch_ops import OPERATORS

if TYPE_CHECKING:
    import onnx
    from torch import Tensor
    from torch.nn import Module as _Base
else:
    _Base = object

Array = npt.NDArray[Any]

#: Inputs that hold weights, by operator.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Add": (0, 1), "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "GRU": (1, 2, 3),
    "Gather": (0,), "Gemm": (0, 1, 2), "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3), "LayerNormalization": (1, 2), "MatMul": (0, 1), "Mul": (0, 1), "PRelu": (1,),
    "RMSNormalization": (1,),
}  # fmt: skip
#: Where a constant may as well be part of the formula: a factor, a mask, a grid of anchors.
_AMBIGUOUS = frozenset({"Add", "Mul", "Gather"})
_EPSILON = 1e-5
_NO_GATES: Mapping[str, Any] = MappingProxyType({})
#: Largest difference between a batch and its samples one by one that is rounding, over the output's range.
_SAME = 1e-3
#: What torch raises on shapes or types that do not fit.
_FAULTS = (RuntimeError, ValueError, IndexError, TypeError, KeyError, NotImplementedError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One node: its function, the tensors it reads and makes, and those that nobody reads after it."""

    node: onnx.NodeProto
    function: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    known: tuple[Array | None, ...]
    static_inputs: tuple[Shape | None, ...]
    static_outputs: tuple[Shape | None, ...]
    done_with: tuple[str, ...]


@dataclass(slots=True)
class _Moments:
    """Count, mean and sum of squared deviations of each channel, updated batch by batch (Chan et al., 1983)."""

    count: int
    mean: Any
    squares: Any

    def add(self, y: Tensor) -> None:
        rows = y.detach().double().movedim(1, 0).flatten(1)
        count, mean = rows.shape[1], rows.mean(dim=1)
        squares = (rows - mean[:, None]).square().sum(dim=1)
        total, delta = self.count + count, mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


class TorchGraph(_Base):  # type: ignore[misc]
    """A graph as a ``torch.nn.Module``; made by `from_onnx` only, in eval mode.

    ``batched`` tells whether a batch is computed at once; a graph that mixes samples up (one that merges the batch with
    what cannot be told apart from it) computes them one by one, and its batch normalizations keep their statistics.
    """

    batched: bool

    def _build(self, model: onnx.ModelProto, batch_norm: bool) -> None:
        self._model = model
        arrays = _constants(model)
        shapes = _shapes(model)
        self._opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._inputs = {i.name: shapes[i.name] for i in model.graph.input if i.name not in arrays}
        self._types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        self._outputs = tuple(output.name for output in model.graph.output)
        self._shapes = shapes
        self._slots: dict[str, str] = {}
        self._moments: dict[str, _Moments] | None = None
        trained = _trained(model, arrays)
        for name, array in arrays.items():
            self._hold(name, array, name in trained)
        self._trained = tuple(name for name in arrays if name in trained)
        fixed = {name: array for name, array in arrays.items() if name not in trained}
        self._steps = _steps(model, fixed, shapes)
        self._norms: dict[str, Any] = {}
        self.virtual_norms = torch.nn.ModuleDict()
        for step in self._steps if batch_norm else ():
            self._add_norm(step, arrays)
        self.batched = True

    def _hold(self, name: str, array: Array, trained: bool) -> None:
        """Keep a constant under an attribute name that torch accepts."""
        base = "".join(c if c.isalnum() else "_" for c in name) or "constant"
        slot, number = f"t_{base}", 1
        while slot in self._slots.values():
            slot, number = f"t_{base}_{number}", number + 1
        tensor = torch.from_numpy(np.array(array))
        self._slots[name] = slot
        if trained:
            self.register_parameter(slot, torch.nn.Parameter(tensor))
        else:
            self.register_buffer(slot, tensor)

    def _add_norm(self, step: _Step, arrays: Mapping[str, Array]) -> None:
        readers = [s for s in self._steps if step.outputs[0] in s.inputs]
        if step.node.op_type != "Conv" or any(name not in arrays for name in step.inputs[1:] if name):
            return
        if len(readers) == 1 and readers[0].node.op_type == "BatchNormalization":
            return
        channels, rank = arrays[step.inputs[1]].shape[0], arrays[step.inputs[1]].ndim - 2
        norm = getattr(torch.nn, f"BatchNorm{rank}d")(channels, eps=_EPSILON)
        with torch.no_grad():
            norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
        key = self._slots[step.inputs[1]] + f"_{len(self._norms)}"
        self._norms[step.outputs[0]] = key
        self.virtual_norms[key] = norm

    # ------------------------------------------------------------------------------------------------ what it holds

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of an initializer (or of a constant's output) of the graph. Raises `InputError`."""
        if name not in self._slots:
            raise InputError(f"the graph has no constant {name!r}")
        return getattr(self, self._slots[name])

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by the names that their initializers have in the graph."""
        return {name: self.tensor(name) for name in self._trained}

    def norm_of(self, conv_output: str) -> Any:
        """The virtual batch normalization behind the convolution with that output; None where there is none."""
        key = self._norms.get(conv_output)
        return None if key is None else self.virtual_norms[key]

    # ------------------------------------------------------------------------------------------------ computing

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        collect: Collection[str] = (),
        gates: Mapping[str, Tensor] = _NO_GATES,
    ) -> dict[str, Tensor]:
        """The outputs by name, and the tensors named in ``collect``.

        ``inputs`` by name, any batch on axis 0. A tensor with a gate is multiplied by it where it is made. Raises
        `InputError` for inputs that do not fit, and for unknown names in ``collect`` or ``gates``.
        """
        times = self._times(inputs)
        unknown = {*collect, *gates} - self._made() - (set(self._slots) - set(gates))
        if unknown:
            raise InputError(f"the graph has no tensor {', '.join(sorted(unknown))}")
        wanted = dict.fromkeys([*self._outputs, *collect])
        if self.batched or times == 1:
            return self._run(inputs, wanted, gates)
        parts = [self._run(self._part(inputs, i, times), wanted, self._part(gates, i, times)) for i in range(times)]
        return {name: _joined([part[name] for part in parts]) for name in wanted}

    def _made(self) -> set[str]:
        """The names of all tensors but the constants."""
        return {*self._inputs, *(name for step in self._steps for name in step.outputs)}

    def _times(self, inputs: Mapping[str, Tensor]) -> int:
        """How many times the batch of the file there is."""
        found = set()
        for name, shape in self._inputs.items():
            if name not in inputs:
                raise InputError(f"there is no input {name!r}; there are: {', '.join(inputs)}")
            actual = tuple(inputs[name].shape)
            fits = len(actual) == len(shape) and actual[1:] == shape[1:] and (not shape or actual[0] % shape[0] == 0)
            if not fits:
                raise InputError(f"input {name!r} has the shape {actual}, and the graph takes {shape}, or a batch")
            found.add(actual[0] // shape[0] if shape else 1)
        if len(found) > 1:
            raise InputError(f"the inputs have batches of {', '.join(map(str, sorted(found)))}")
        return found.pop() if found else 1

    def _part(self, tensors: Mapping[str, Tensor], index: int, times: int) -> dict[str, Tensor]:
        """Sample ``index`` of those tensors that have a batch axis."""
        found = {}
        for name, tensor in tensors.items():
            shape = self._shapes.get(name)
            batch = shape[0] if shape else 0
            split = shape is not None and tensor.dim() == len(shape) and batch and tensor.shape[0] == batch * times
            found[name] = tensor[index * batch : (index + 1) * batch] if split else tensor
        return found

    def _run(
        self, inputs: Mapping[str, Tensor], wanted: Collection[str], gates: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        values: dict[str, Any] = {name: getattr(self, slot) for name, slot in self._slots.items()}
        values.update({name: inputs[name] * gates[name] if name in gates else inputs[name] for name in self._inputs})
        for step in self._steps:
            made = self._made_by(step, values)
            for name, value in zip(step.outputs, made, strict=False):
                values[name] = value * gates[name] if name in gates else value
            for name in step.done_with:
                if name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _made_by(self, step: _Step, values: Mapping[str, Any]) -> Sequence[Any]:
        call = Call(
            inputs=[values[name] if name else None for name in step.inputs],
            known=step.known,
            attributes=step.attributes,
            static_inputs=step.static_inputs,
            static_outputs=step.static_outputs,
            opset=self._opset,
            training=self.training and self.batched,
        )
        try:
            made = step.function(call)
        except Refused as exc:
            raise NotDifferentiable([(step.node.op_type, step.node.name)], reason=str(exc)) from exc
        outputs = made if isinstance(made, tuple) else (made,)
        if step.outputs[0] in self._norms:
            outputs = (self._normalized(step.outputs[0], outputs[0]),)
        return outputs

    def _normalized(self, name: str, y: Tensor) -> Tensor:
        norm = self.virtual_norms[self._norms[name]]
        if self._moments is not None:
            self._moments.setdefault(name, _Moments(0, 0.0, 0.0)).add(y)
        # One value has no variance: with it the statistics stay as they are.
        training = norm.training and self.batched and y.numel() > y.shape[1]
        return torch.nn.functional.batch_norm(
            y, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, norm.momentum, norm.eps
        )

    # ------------------------------------------------------------------------------------------------ virtual norms

    def calibrate(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Give the virtual batch normalizations the statistics of ``batches`` without changing what is computed.

        To be called before training: each norm's factor and shift become those that undo it.
        """
        with self._evaluating():
            self._moments = {}
            try:
                for batch in batches:
                    self(batch)
                for name, moments in self._moments.items():
                    _set_statistics(self.virtual_norms[self._norms[name]], moments)
            finally:
                self._moments = None

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    # ------------------------------------------------------------------------------------------------ batches

    def _try(self) -> None:
        """Compute two samples, alone and together: this finds operators that fail, and decides on ``batched``."""
        generator = torch.Generator().manual_seed(0)
        samples = [
            {name: _noise(self._types[name], shape, generator) for name, shape in self._inputs.items()}
            for _ in range(2)
        ]
        with self._evaluating():
            alone = [self._tried(sample) for sample in samples]
            if not all(self._inputs.values()):
                self.batched = False
                return
            both = {name: torch.cat([sample[name] for sample in samples]) for name in self._inputs}
            try:
                together = self._run(both, self._outputs, {})
                self.batched = all(_same(together[name], [a[name] for a in alone]) for name in self._outputs)
            except (BatchLost, *_FAULTS):
                self.batched = False

    def _tried(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One sample's outputs; whatever goes wrong is told by the name of the operator."""
        values: dict[str, Any] = {name: getattr(self, slot) for name, slot in self._slots.items()} | dict(sample)
        for step in self._steps:
            try:
                made = self._made_by(step, values)
            except (BatchLost, *_FAULTS) as exc:
                raise NotDifferentiable([(step.node.op_type, step.node.name)], reason=str(exc)) from exc
            for name, value, shape in zip(step.outputs, made, step.static_outputs, strict=False):
                if shape is not None and tuple(value.shape) != shape:
                    reason = f"{name} became {tuple(value.shape)}, and is {shape} in the file"
                    raise NotDifferentiable([(step.node.op_type, step.node.name)], reason=reason)
                values[name] = value
        return {name: values[name] for name in self._outputs}

    # ------------------------------------------------------------------------------------------------ back to a file

    def to_onnx(self) -> onnx.ModelProto:
        """The same graph with the weights as they are now; virtual batch normalizations are folded into their Conv."""
        import onnx
        from onnx import numpy_helper

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        tensors = _tensors(model)
        changed = [*self._trained, *_statistics(model, tensors)]
        for name in dict.fromkeys(changed):
            tensors[name].CopyFrom(numpy_helper.from_array(_array(self.tensor(name)), tensors[name].name))
        used = Counter(name for node in model.graph.node for name in node.input)
        for node in model.graph.node:
            if node.op_type == "Conv" and node.output[0] in self._norms:
                self._fold(model, node, used)
        _drop_unread(model)
        return model

    def _fold(self, model: onnx.ModelProto, node: onnx.NodeProto, used: Mapping[str, int]) -> None:
        norm = self.virtual_norms[self._norms[node.output[0]]]
        weight = _array(self.tensor(node.input[1]))
        bias = _array(self.tensor(node.input[2])) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        mean, variance = _array(norm.running_mean).astype(float), _array(norm.running_var).astype(float)
        factor = _array(norm.weight) / np.sqrt(variance + norm.eps)
        new_weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        new_bias = (bias - mean) * factor + _array(norm.bias)
        _write(model, node, 1, new_weight.astype(weight.dtype), used)
        _write(model, node, 2, new_bias.astype(weight.dtype), used)


# ---------------------------------------------------------------------------------------------------- making one


def from_onnx(model: onnx.ModelProto, *, batch_norm: bool = False) -> TorchGraph:
    """The graph as a module in eval mode that takes any batch size; ``model`` is copied.

    Float constants that are weights become parameters, the statistics of batch normalizations and all other constants
    become buffers. ``batch_norm`` puts a virtual batch normalization behind every Conv with constant weights that has
    none: it starts as the identity, `TorchGraph.calibrate` gives it statistics, and `TorchGraph.to_onnx` folds it.

    Raises `NotDifferentiable` naming operators that torch does not compute here, and `InputError` for a graph whose
    inputs have no fixed shape.
    """
    import onnx

    refused = [
        (node.op_type, node.name)
        for node in model.graph.node
        if node.op_type != "Constant" and (node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"))
    ]
    if refused:
        raise NotDifferentiable(refused)
    own = onnx.ModelProto()
    own.CopyFrom(model)
    graph: TorchGraph = _module_class()()
    graph._build(own, batch_norm)
    graph.eval()
    graph._try()
    return graph


@cache
def _module_class() -> Any:
    """`TorchGraph` as a ``torch.nn.Module``: made here so that importing this file does not import torch."""
    import torch

    return type("TorchGraph", (TorchGraph, torch.nn.Module), {"__module__": __name__, "__doc__": TorchGraph.__doc__})


def _steps(model: onnx.ModelProto, fixed: Mapping[str, Array], shapes: Mapping[str, Shape]) -> list[_Step]:
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    last = {name: index for index, node in enumerate(nodes) for name in (*node.input, *node.output)}
    return [
        _Step(
            node=node,
            function=OPERATORS[node.op_type],
            inputs=tuple(node.input),
            outputs=_outputs(node),
            attributes={a.name: _attribute(a) for a in node.attribute},
            known=tuple(fixed.get(name) for name in node.input),
            static_inputs=tuple(shapes.get(name) for name in node.input),
            static_outputs=tuple(shapes.get(name) for name in _outputs(node)),
            done_with=tuple({n for n in (*node.input, *node.output) if n and last[n] == index}),
        )
        for index, node in enumerate(nodes)
    ]


def _outputs(node: onnx.NodeProto) -> tuple[str, ...]:
    """The outputs, without those at the end that are left out."""
    names = list(node.output)
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    import onnx
    from onnx import numpy_helper

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, int | float) else list(value)


def _tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constants that are tensors in the file, by the name that nodes read them by: they can be written to."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    from onnx import numpy_helper

    found = {name: numpy_helper.to_array(tensor) for name, tensor in _tensors(model).items()}
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] not in found:
            attribute = node.attribute[0]
            if attribute.name not in types:
                raise NotDifferentiable([("Constant", node.name)], reason=attribute.name)
            found[node.output[0]] = np.asarray(_attribute(attribute), types[attribute.name])
    unknown = [name for name, array in found.items() if array.dtype.kind not in "fiub" or array.dtype.name == "uint64"]
    if unknown:
        raise NotDifferentiable([("Constant", name) for name in unknown], reason="its element type")
    return found


def _trained(model: onnx.ModelProto, arrays: Mapping[str, Array]) -> set[str]:
    """The constants that are weights."""
    tensors = _tensors(model)
    found = set()
    for node in model.graph.node:
        for index in _WEIGHTS.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name in tensors and arrays[name].dtype.kind == "f":
                if node.op_type in _AMBIGUOUS and not _learned(arrays[name]):
                    continue
                found.add(name)
    return found - set(_statistics(model, tensors))


def _learned(array: Array) -> bool:
    """Whether a constant looks like a weight: not one number, not a mask, not a grid of round numbers."""
    if array.size < 2 or not np.isfinite(array).all():
        return False
    eighths = array.astype(np.float64) * 8
    return bool((array == array.flat[0]).all() or (eighths != np.round(eighths)).any())


def _statistics(model: onnx.ModelProto, tensors: Mapping[str, Any]) -> list[str]:
    """Means and variances of the graph's own batch normalizations, which training updates."""
    return [
        name
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        for name in node.input[3:5]
        if name in tensors
    ]


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shapes of all tensors that shape inference finds. Raises `InputError` for inputs without a fixed one."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        kind = info.type.tensor_type
        known = info.type.HasField("tensor_type") and kind.HasField("shape")
        if known and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[info.name] = tuple(d.dim_value for d in kind.shape.dim)
    missing = [i.name for i in model.graph.input if i.name not in found]
    if missing:
        raise InputError(f"inputs have no fixed shape: {', '.join(missing)}", remedy="give one with --input-shape")
    return found


# ---------------------------------------------------------------------------------------------------- small helpers


def _set_statistics(norm: Any, moments: _Moments) -> None:
    """Statistics of the data, and the factor and shift that undo them."""
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(moments.squares / moments.count)
    norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
    norm.bias.copy_(norm.running_mean)


def _noise(element_type: int, shape: Shape, generator: Any) -> Tensor:
    from onnx import helper

    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(element_type))
    values = torch.rand(shape, generator=generator)
    return torch.from_numpy((values * 2).numpy().astype(dtype) if dtype.kind != "f" else values.numpy().astype(dtype))


def _joined(samples: Sequence[Tensor]) -> Tensor:
    """One behind the other; numbers without an axis get one."""
    return torch.cat(list(samples)) if samples[0].dim() else torch.stack(list(samples))


def _same(together: Tensor, alone: Sequence[Tensor]) -> bool:
    """Whether a batch's output holds the outputs of its samples."""
    expected = _joined(alone)
    if together.shape != expected.shape:
        return False
    if not expected.is_floating_point():  # a choice between equals may fall either way
        return bool((together == expected).double().mean() > 0.9)
    bound = _SAME * max(float(expected.max() - expected.min()), 1e-6)
    return bool(torch.allclose(together, expected, rtol=0, atol=bound, equal_nan=True))


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found


def _write(model: onnx.ModelProto, node: onnx.NodeProto, index: int, array: Array, used: Mapping[str, int]) -> None:
    """Set a constant that ``node`` reads; one that others read too gets a copy, one that is not there is added."""
    from onnx import numpy_helper

    tensors = _tensors(model)
    while len(node.input) <= index:
        node.input.append("")
    name = node.input[index]
    if name and used[name] == 1:
        tensors[name].CopyFrom(numpy_helper.from_array(array, tensors[name].name))
        return
    base = name or f"{node.input[1]}_bias"
    new, number = base, 1
    taken = {*tensors, *(output for other in model.graph.node for output in other.output)}
    taken |= {i.name for i in model.graph.input}
    while new in taken:
        new, number = f"{base}_{number}", number + 1
    model.graph.initializer.append(numpy_helper.from_array(array, new))
    node.input[index] = new


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove constants that only nodes with copies of them read."""
    read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)


__all__ = ["NotDifferentiable", "TorchGraph", "from_onnx"]
