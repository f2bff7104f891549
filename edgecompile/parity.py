"""The parity gate: no converted file leaves without its outputs having been compared on real inputs.

Float against the original first: a difference is a *converter's fault*, and stops the build. Then quantized against
float: a difference is the *precision's cost*, which is reported, and stops the build only where the file is plainly
broken. `first_divergence` names the operator at which a faulty file first differs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgecompile.errors import InputError, ParityError, UnsupportedModelError
from edgecompile.stats import wilson
from edgecompile.types import Arrays, Model, Parity, RunFunction, TensorSpec, file_sha256

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

#: Two float32 runtimes that compute the same net differ by the order of their sums: 1e-7 to 4e-5 of the output's range
#: over the 45 nets of the zoo. The faults of converters (a wrong axis, padding, layout or coordinate rule) are above
#: 1e-2; the tolerance lies between, nearer to the rounding.
FP32_TOLERANCE = 1e-3
#: Rounding weights to float16 (11 bits) leaves 50 dB and more; far below, something has overflown or vanished.
FP16_SQNR_FLOOR_DB = 20.0
#: At 0 dB the quantization noise has as much power as the signal, which an output of nothing but zeros has, too: below
#: this the file is broken, not merely less exact.
SQNR_FLOOR_DB = 0.5
#: Written for "no difference at all", since JSON has no infinity.
SQNR_CEILING_DB = 200.0
#: Where the float output is 0 everywhere.
_NOTHING = 1e-8
#: ``Parity.max_error`` of outputs that cannot be compared, since JSON has no infinity.
INCOMPARABLE = sys.float_info.max

#: Lowers a (cut) model with a folder to work in, and gives back the function that runs the file.
Convert: TypeAlias = Callable[[Model, Path], RunFunction]


# ------------------------------------------------------------------------------------------------ float to float


def float_gate(
    run: RunFunction, original: RunFunction, samples: Sequence[Arrays], *, tolerance: float = FP32_TOLERANCE
) -> Parity:
    """Compare a float file with the original on ``samples``, output by output.

    The error of an output is its largest absolute difference over the range (largest minus smallest value) that the
    original's output has on all samples; a constant output is measured by its own magnitude. A missing output, another
    shape and a value that is not finite fail. Raises `InputError` when the original itself gives no finite numbers.
    """
    if not samples:
        raise InputError("the parity gate needs at least one sample")
    trackers: dict[str, _Output] = {}
    for number, sample in enumerate(samples):
        expected, found = original(sample), run(sample)
        for name, reference in expected.items():
            _require_finite(reference, name, number)
            trackers.setdefault(name, _Output()).add(reference, found.get(name))
    worst = max(trackers, key=lambda name: trackers[name].error)
    error = trackers[worst].error
    return Parity(
        kind="float",
        passed=error <= tolerance,
        samples=len(samples),
        max_error=error,
        tolerance=tolerance,
        worst_output=worst,
        fault=trackers[worst].fault,
    )


class _Output:
    """What is known of one output over the samples seen so far."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.difference = 0.0
        self.signal = 0.0
        self.noise = 0.0
        self.fault: str | None = None

    def add(self, reference: npt.NDArray[Any], found: npt.NDArray[Any] | None) -> None:
        """Take one sample's reference and what was found in its place."""
        import numpy as np

        self.fault = self.fault or _fault(reference, found)
        if self.fault is not None or found is None or reference.size == 0:
            return
        a, b = reference.astype(np.float64), found.astype(np.float64)
        self.low, self.high = min(self.low, float(a.min())), max(self.high, float(a.max()))
        self.difference = max(self.difference, float(np.abs(a - b).max()))
        self.signal += float(np.square(a).sum())
        self.noise += float(np.square(a - b).sum())

    @property
    def error(self) -> float:
        """The largest absolute difference over the output's range."""
        if self.fault is not None:
            return INCOMPARABLE
        if self.difference == 0.0:
            return 0.0
        spread = self.high - self.low
        scale = spread if spread > 0.0 else abs(self.high)
        return min(INCOMPARABLE, self.difference / scale) if scale > 0.0 else self.difference

    @property
    def sqnr_db(self) -> float:
        """Signal power over noise power, in decibels."""
        if self.fault is not None:
            return -SQNR_CEILING_DB
        if self.noise == 0.0:
            return SQNR_CEILING_DB
        if self.signal == 0.0:  # the integers nearest to 0 stand for numbers as small as this
            return SQNR_CEILING_DB if self.difference < _NOTHING else -SQNR_CEILING_DB
        value = 10.0 * math.log10(self.signal / self.noise)
        return max(-SQNR_CEILING_DB, min(SQNR_CEILING_DB, value))


def _fault(reference: npt.NDArray[Any], found: npt.NDArray[Any] | None) -> str | None:
    """Why two outputs cannot be compared, if so."""
    import numpy as np

    if found is None:
        return "it is missing"
    if found.shape != reference.shape:
        return f"its shape is {tuple(found.shape)}, expected {tuple(reference.shape)}"
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        return "it has values that are not finite"
    return None


def _require_finite(reference: npt.NDArray[Any], name: str, number: int) -> None:
    import numpy as np

    if reference.dtype.kind == "f" and not np.isfinite(reference).all():
        raise InputError(
            f"the original itself gives values that are not finite in output {name!r} on sample {number}",
            remedy="check the weights and the preprocessing (--preset)",
        )


# -------------------------------------------------------------------------------------------- quantized to float


def quantized(
    run: RunFunction,
    float_run: RunFunction,
    samples: Sequence[Arrays],
    *,
    classifier: bool | None = None,
    floor_db: float = SQNR_FLOOR_DB,
) -> Parity:
    """Compare a quantized file with its float file: SQNR in dB over all samples, top-1 agreement for classifiers.

    The worst output counts. Passes unless the file is plainly broken (an SQNR below ``floor_db``, a missing output, a
    wrong shape, a value that is not finite): what precision costs is for the accuracy limits to judge. ``classifier``
    says whether the first output holds one score a class; by default that is told from the shapes.
    """
    if not samples:
        raise InputError("comparing a quantized file needs at least one sample")
    trackers: dict[str, _Output] = {}
    votes: list[bool] = []
    for number, sample in enumerate(samples):
        expected, found = float_run(sample), run(sample)
        for name, reference in expected.items():
            _require_finite(reference, name, number)
            trackers.setdefault(name, _Output()).add(reference, found.get(name))
        scores = next(iter(expected))
        if classifier if classifier is not None else _looks_like_classifier(expected):
            votes.append(_same_top1(expected[scores], found.get(scores)))
    worst = min(trackers, key=lambda name: trackers[name].sqnr_db)
    sqnr = trackers[worst].sqnr_db
    interval = wilson(sum(votes), len(votes)) if votes else None
    return Parity(
        kind="quantized",
        passed=sqnr >= floor_db,
        samples=len(samples),
        max_error=max(tracker.error for tracker in trackers.values()),
        tolerance=floor_db,
        worst_output=worst,
        sqnr_db=sqnr,
        agreement=100.0 * interval.value if interval else None,
        agreement_ci_low=100.0 * interval.low if interval else None,
        agreement_ci_high=100.0 * interval.high if interval else None,
        fault=trackers[worst].fault,
    )


def _looks_like_classifier(outputs: Arrays) -> bool:
    """One output whose only axis longer than 1 is the last of two, or the channel axis of a 1 x C x 1 x 1 map."""
    if len(outputs) != 1:
        return False
    (scores,) = outputs.values()
    return scores.dtype.kind == "f" and scores.ndim >= 2 and scores.shape[1] == scores.size > 1


def _same_top1(reference: npt.NDArray[Any], found: npt.NDArray[Any] | None) -> bool:
    return found is not None and found.size == reference.size and int(found.argmax()) == int(reference.argmax())


def describe(parity: Parity) -> str:
    """The finding in one clause, such as ``output 'logits' differs by 0.3 of its range (allowed 0.001)``."""
    name = repr(parity.worst_output)
    if parity.fault is not None:
        return f"output {name} cannot be compared: {parity.fault}"
    if parity.kind == "float":
        return f"output {name} differs by {parity.max_error:.2g} of its range (allowed {parity.tolerance:g})"
    return f"output {name} has an SQNR of {parity.sqnr_db:.1f} dB against float (at least {parity.tolerance:g} dB)"


def require(parity: Parity, what: str, divergence: Divergence | None = None) -> None:
    """Raise `ParityError` (exit code 5) unless the comparison passed; ``what`` names the file."""
    if parity.passed:
        return
    where = f"; the first operator whose output differs is {divergence.describe()}" if divergence else ""
    remedy = "rewrite that operator in the model, or try another runtime with --runtime"
    if parity.kind == "quantized":
        remedy = "leave this precision out with --precision"
    raise ParityError(
        f"{what} does not compute what the model does: {describe(parity)}{where}",
        remedy=remedy,
        operators=((divergence.op_type, divergence.node_name),) if divergence else (),
    )


# ------------------------------------------------------------------------------------------- the first divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first operator, in topological order, whose output differs although its inputs do not.

    ``max_error`` is over the tensor's range; ``fault`` says so when the tensor cannot be compared at all, or cannot
    even be lowered. ``conversions`` counts the conversions that finding it took.
    """

    node_name: str
    op_type: str
    tensor: str
    max_error: float
    conversions: int
    fault: str | None = None

    def describe(self) -> str:
        """Such as ``Slice 'layer2/slice' (tensor 'x.12', off by 0.9 of its range)``."""
        difference = self.fault or f"off by {self.max_error:.2g} of its range"
        return f"{self.op_type} {self.node_name!r} (tensor {self.tensor!r}, {difference})"


def first_divergence(
    model: Model, convert: Convert, samples: Sequence[Arrays], *, workdir: Path, tolerance: float = FP32_TOLERANCE
) -> Divergence | None:
    """Find the first operator of ``model.path`` whose output in the converted file differs from ONNX Runtime's.

    One conversion with every intermediate tensor as an output usually tells; where the converter does not take that
    graph, or the fault hides in it, the graph is cut at topological prefixes and bisected (log2 of the number of
    operators conversions). ``None`` when no tensor differs: then the fault is not in the conversion of this ONNX.
    """
    search = _Search(model, convert, samples, workdir, tolerance)
    found = search.all_at_once()
    return found if found is not None else search.bisect()


class _Search:
    """The state of one search: the graph, the reference values and the number of conversions made."""

    def __init__(
        self, model: Model, convert: Convert, samples: Sequence[Arrays], workdir: Path, tolerance: float
    ) -> None:
        import onnx

        self.model = model
        self.convert = convert
        self.samples = samples
        self.workdir = workdir
        self.tolerance = tolerance
        self.conversions = 0
        self.proto = onnx.load(str(model.path))
        self.reference = _intermediate_values(self.proto, samples)
        #: The nodes that depend on an input, in topological order, with the float tensors that each makes.
        self.nodes = [
            (index, node, tensors)
            for index, node in enumerate(self.proto.graph.node)
            if (tensors := [name for name in node.output if name in self.reference[0]])
        ]

    def all_at_once(self) -> Divergence | None:
        """One conversion with every intermediate tensor as an output."""
        tensors = [name for _, _, names in self.nodes for name in names]
        errors = self._errors(len(self.proto.graph.node) - 1, tensors)
        return None if isinstance(errors, str) else self._first(errors)

    def bisect(self) -> Divergence | None:
        """The shortest prefix of the nodes whose live tensors differ; its last node is the first to differ."""
        low, high = 0, len(self.nodes) - 1
        if high < 0 or self._prefix(high) is None:
            return None
        found = None
        while low <= high:
            middle = (low + high) // 2
            outcome = self._prefix(middle)
            if outcome is None:
                low = middle + 1
            else:
                found, high = outcome, middle - 1
        return replace(found, conversions=self.conversions) if found else None

    def _prefix(self, last: int) -> Divergence | None:
        """What differs in the graph cut after the ``last``-th node, if anything."""
        index, node, names = self.nodes[last]
        errors = self._errors(index, self._live(last))
        if isinstance(errors, str):
            return self._divergence(node, names[0], INCOMPARABLE, f"cannot be lowered: {errors}")
        return self._first(errors)

    def _live(self, last: int) -> list[str]:
        """The tensors made up to the ``last``-th node that a later node or the outside reads."""
        index = self.nodes[last][0]
        made = [name for _, _, names in self.nodes[: last + 1] for name in names]
        needed = {name for node in self.proto.graph.node[index + 1 :] for name in node.input}
        needed |= {value.name for value in self.proto.graph.output}
        return [name for name in made if name in needed]

    def _errors(self, last_index: int, tensors: Sequence[str]) -> dict[str, tuple[float, str | None]] | str:
        """The error of each tensor in the converted cut, or why the converter does not take it."""
        self.conversions += 1
        folder = self.workdir / f"cut-{self.conversions}"
        folder.mkdir(parents=True, exist_ok=True)
        part = _cut(self.proto, self.model, last_index, tensors, self.reference[0], folder / "cut.onnx")
        wanted = [spec.name for spec in part.inputs]
        try:
            run = self.convert(part, folder)
            found = [run({name: sample[name] for name in wanted}) for sample in self.samples]
        except UnsupportedModelError as exc:
            return exc.message
        errors = {}
        for name in tensors:
            tracker = _Output()
            for values, reference in zip(found, self.reference, strict=True):
                tracker.add(reference[name], values.get(name))
            errors[name] = (tracker.error, tracker.fault)
        return errors

    def _first(self, errors: dict[str, tuple[float, str | None]]) -> Divergence | None:
        for _, node, names in self.nodes:
            for name in names:
                error, fault = errors.get(name, (0.0, None))
                if error > self.tolerance:
                    return self._divergence(node, name, error, fault)
        return None

    def _divergence(self, node: onnx.NodeProto, tensor: str, error: float, fault: str | None) -> Divergence:
        return Divergence(
            node_name=node.name or tensor,
            op_type=node.op_type,
            tensor=tensor,
            max_error=error,
            conversions=self.conversions,
            fault=fault,
        )


def _intermediate_values(proto: onnx.ModelProto, samples: Sequence[Arrays]) -> list[dict[str, npt.NDArray[Any]]]:
    """ONNX Runtime's value of every float tensor that depends on an input, for each sample."""
    import onnx
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    names = _dependent_tensors(probe.graph)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Fused operators would not have the tensors between them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name for value in session.get_inputs()}
    results = [
        dict(zip(names, session.run(names, {k: v for k, v in sample.items() if k in feeds}), strict=True))
        for sample in samples
    ]
    usable = [name for name in names if all(_is_finite_float(result[name]) for result in results)]
    return [{name: result[name] for name in usable} for result in results]


def _is_finite_float(value: Any) -> bool:
    import numpy as np

    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isfinite(value).all())


def _dependent_tensors(graph: onnx.GraphProto) -> list[str]:
    """The tensors that depend on an input of the model, in topological order."""
    constants = {tensor.name for tensor in graph.initializer}
    dependent = {value.name for value in graph.input if value.name not in constants}
    found = []
    for node in graph.node:
        if dependent.intersection(node.input) or any(a.type in (5, 10) for a in node.attribute):
            outputs = [name for name in node.output if name]
            dependent.update(outputs)
            found.extend(outputs)
    return found


def _cut(
    proto: onnx.ModelProto,
    model: Model,
    last_index: int,
    outputs: Sequence[str],
    values: dict[str, npt.NDArray[Any]],
    path: Path,
) -> Model:
    """The model up to node ``last_index`` that gives ``outputs``, without the nodes, inputs and weights not needed."""
    import onnx

    needed = set(outputs)
    nodes = []
    for node in reversed(proto.graph.node[: last_index + 1]):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
            needed.update(_captured_names(node))
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    for field in (part.graph.node, part.graph.output):
        del field[:]
    part.graph.node.extend(reversed(nodes))
    for kept in (part.graph.initializer, part.graph.input):
        items = [item for item in kept if item.name in needed]
        del kept[:]
        kept.extend(items)
    specs = tuple(TensorSpec(name=n, shape=tuple(values[n].shape), dtype=str(values[n].dtype)) for n in outputs)
    part.graph.output.extend(
        onnx.helper.make_tensor_value_info(s.name, onnx.helper.np_dtype_to_tensor_dtype(values[s.name].dtype), s.shape)
        for s in specs
    )
    onnx.save(part, str(path))
    return replace(
        model,
        path=path,
        original_path=path,
        inputs=tuple(spec for spec in model.inputs if spec.name in needed),
        outputs=specs,
        sha256=file_sha256(path),
        module=None,
    )


def _captured_names(node: onnx.NodeProto) -> set[str]:
    """The outer tensors that a node's subgraphs (If, Loop, Scan) may read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for subgraph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            for inner in subgraph.node:
                names.update(inner.input)
                names.update(_captured_names(inner))
    return names
