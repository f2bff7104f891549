"""Mends a pruned network from unlabelled samples: each layer is fitted anew to what the original computes.

Layer by layer, in the order of the graph, the weights of the pruned network are set to the ridge least-squares solution
that maps its own inputs (those of the layers already mended) onto the original's outputs. Where a layer's output is
added to a shortcut, what the shortcut lost is made up for, too. After "Channel Pruning for Accelerating Very Deep
Neural Networks" (He et al., ICCV 2017); the penalty here pulls towards the original weights, and is chosen on held-back
rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgecompile.techniques.channels import Channels, GraphView
from edgecompile.techniques.flow import Flow
from edgecompile.techniques.rows import Linear, linear

if TYPE_CHECKING:
    import onnx

    from edgecompile.types import Arrays

Array = npt.NDArray[Any]

#: Penalties tried, as shares of the mean diagonal of the Gram matrix.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
#: Rows for each unknown of a layer that are enough, and the bounds of rows that a sample gives.
_ROWS_PER_UNKNOWN = 12
_MOST_ROWS = 60_000
_MOST_ENTRIES = 80_000_000
_CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What became of one layer: the relative squared error of its outputs before and after, on held-back rows."""

    node: str
    before: float
    after: float
    penalty: float


def reconstruct(
    channels: Channels,
    pruned: onnx.ModelProto,
    removed: npt.NDArray[np.int64],
    samples: Sequence[Arrays],
    *,
    seed: int = 0,
    only: Collection[str] | None = None,
    moved: Collection[str] = (),
    near: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[onnx.ModelProto, tuple[Fitted, ...]]:
    """The pruned graph with weights fitted to the original's outputs on ``samples``, and how well each layer fits.

    ``pruned`` must come from ``prune.remove`` on ``channels`` with the units ``removed``. ``only`` names the nodes to
    fit (by their first output); without it all that feel the pruning are fitted. ``moved`` are tensors that another
    operator makes than in the original, so that it is fitted to what they held; with ``near``, only the layers right
    before and right behind these are. The same arguments give the same weights.
    """
    view = GraphView(pruned)
    original, own = Flow(channels.graph, samples), Flow(view, samples)
    places = {node.output[0]: i for i, node in enumerate(channels.graph.nodes)}
    affected = _affected(channels, view, moved)
    if near:
        only = _beside(view, moved)
    jobs = [
        (index, job)
        for index, node in enumerate(view.nodes)
        if (node.output[0] in affected or _sum(node.output[0], view)[0] in moved)
        and (only is None or node.output[0] in only)
        if (job := linear(view, node)) is not None
    ]
    readers = Counter(name for node in view.nodes for name in node.input)
    fitted: list[Fitted] = []
    for number, (index, job) in enumerate(jobs):
        if readers[job.weight] > 1 or (job.bias and readers[job.bias] > 1):
            continue
        own.advance(index)
        goal = _goal(job.node.output[0], own, original, view)
        original.advance(places[goal.tensor] + 1)
        if goal.tensor not in original.values[0]:
            continue  # the original is past it: branches stand in another order there
        keep = channels.keep(goal.tensor, removed)
        fitted.append(_fit(job, own, original, goal, keep, view, seed + number))
        if progress is not None:
            progress(number + 1, len(jobs))
    return _with_constants(pruned, own.constants), tuple(fitted)


def _affected(channels: Channels, view: GraphView, moved: Collection[str]) -> set[str]:
    """The first outputs of all nodes whose operands differ from the original's."""
    changed = {name for name, array in view.constants.items() if _differs(channels.graph.constants.get(name), array)}
    changed.update(moved)
    found: set[str] = set()
    for node in view.nodes:
        fed = [name for name in node.input if name in changed and name not in view.constants]
        weights = [name for name in node.input if name in changed and name in view.constants]
        if fed:
            found.add(node.output[0])
        if fed or weights:
            changed.update(node.output)
    return found


def _beside(view: GraphView, moved: Collection[str]) -> frozenset[str]:
    """The layers that make tensors, bare or by a sum, and those that read them, directly or behind what has no weights.

    Sums behind end the search: what is added there comes from further away.
    """
    reached = set(moved)
    found = {node.output[0] for node in view.nodes if {node.output[0], _sum(node.output[0], view)[0]} & reached}
    for node in view.nodes:
        if not reached & set(node.input):
            continue
        if linear(view, node) is not None:
            found.add(node.output[0])
        elif node.op_type != "Add":
            reached.update(node.output)
    return frozenset(found)


def _differs(before: Array | None, after: Array) -> bool:
    return before is None or before.shape != after.shape or not np.array_equal(before, after)


# --------------------------------------------------------------------------------------------- one layer


def _fit(
    job: Linear,
    own: Flow,
    original: Flow,
    goal: _Goal,
    keep: Sequence[npt.NDArray[np.bool_] | None],
    view: GraphView,
    seed: int,
) -> Fitted:
    weight = own.constants[job.weight].astype(np.float64)
    bias = own.constants[job.bias].astype(np.float64) if job.bias else None
    rows = _gather(job, own, original, goal, keep, view, seed)
    solver = _Solver(job.matrix(weight), bias, rows)
    penalty, before, after, matrix, new_bias = solver.best()
    own.constants[job.weight] = job.weights(matrix, own.constants[job.weight])
    if new_bias is not None:
        own.constants[job.bias] = new_bias.astype(own.constants[job.bias].dtype)
    return Fitted(node=job.node.output[0], before=before, after=after, penalty=penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Inputs (groups, rows, inputs a group) and wanted outputs (rows, outputs); the last rows are held back."""

    inputs: Array
    wanted: Array
    fitting: int


def _gather(
    job: Linear,
    own: Flow,
    original: Flow,
    goal: _Goal,
    keep: Sequence[npt.NDArray[np.bool_] | None],
    view: GraphView,
    seed: int,
) -> _Rows:
    output = view.shapes[job.node.output[0]]
    unknowns = int(np.prod(view.constants[job.weight].shape)) // output[1 if job.is_convolution else -1]
    inputs_in_all = unknowns * job.groups
    wanted_rows = int(min(max(_ROWS_PER_UNKNOWN * unknowns, 4000), _MOST_ROWS, _MOST_ENTRIES // inputs_in_all))
    places = job.places(output)
    each = min(places, max(1, -(-wanted_rows // len(own.values))))
    rng = np.random.default_rng(seed)
    inputs, wanted = [], []
    for mine, theirs in zip(own.values, original.values, strict=True):
        at = np.sort(rng.choice(places, each, replace=False))
        target = _cut(theirs[goal.tensor], keep)
        if goal.shortcut:
            target = target - mine[goal.shortcut]
        inputs.append(job.inputs(mine[job.node.input[0]], at, output))
        wanted.append(job.outputs(target, at))
    held = max(1, len(inputs) // 5)
    return _Rows(
        inputs=np.concatenate(inputs, axis=1),
        wanted=np.concatenate(wanted),
        fitting=sum(part.shape[1] for part in inputs[:-held]) if len(inputs) > 1 else inputs[0].shape[1] * 4 // 5,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Goal:
    """What a layer is fitted to: a tensor of the original, less the pruned net's own ``shortcut`` where it is a sum."""

    tensor: str
    shortcut: str = ""


def _goal(output: str, own: Flow, original: Flow, view: GraphView) -> _Goal:
    """A sum that the output is part of, where the other part is known by now; else the output itself."""
    total, other = _sum(output, view)
    if total and other in own.values[0] and any(total in node.output for node in original.view.nodes):
        return _Goal(tensor=total, shortcut=other)
    return _Goal(tensor=output)


def _sum(output: str, view: GraphView) -> tuple[str, str]:
    """The sum that alone reads an output, and its other part; empty where there is none."""
    readers = [node for node in view.nodes if output in node.input]
    if len(readers) != 1 or readers[0].op_type != "Add" or output in view.outputs:
        return "", ""
    other = next((name for name in readers[0].input if name != output), None)
    if other is None or other in view.constants or view.shapes[other] != view.shapes[output]:
        return "", ""
    return readers[0].output[0], other


def _cut(array: Array, keep: Sequence[npt.NDArray[np.bool_] | None]) -> Array:
    for axis, mask in enumerate(keep):
        if mask is not None and not mask.all():
            array = np.compress(mask, array, axis)
    return array


class _Solver:
    """Ridge regression towards the weights at hand, group by group; the bias is not penalised."""

    def __init__(self, matrix: Array, bias: Array | None, rows: _Rows) -> None:
        self.start = matrix
        self.bias = bias
        self.rows = rows
        self.outputs = matrix.shape[2]

    def best(self) -> tuple[float, float, float, Array, Array | None]:
        """The penalty, the relative error before and after on held-back rows, the new matrix and bias."""
        start_error = self._error(self.start, self.bias)
        best = (0.0, start_error, start_error, self.start, self.bias)
        grams = [self._normal_equations(group) for group in range(self.start.shape[0])]
        for penalty in _PENALTIES:
            matrix, bias = self._solve(grams, penalty)
            error = self._error(matrix, bias)
            if error < best[2]:
                best = (penalty, start_error, error, matrix, bias)
        return best

    def _design(self, group: int, start: int, stop: int) -> Array:
        rows: Array = self.rows.inputs[group, start:stop].astype(np.float64)
        return rows if self.bias is None else np.concatenate([rows, np.ones((len(rows), 1))], axis=1)

    def _columns(self, group: int) -> slice:
        return slice(group * self.outputs, (group + 1) * self.outputs)

    def _coefficients(self, group: int, matrix: Array, bias: Array | None) -> Array:
        if bias is None:
            found: Array = matrix[group]
            return found
        return np.concatenate([matrix[group], bias[None, self._columns(group)]])

    def _normal_equations(self, group: int) -> tuple[Array, Array]:
        size = self.start.shape[1] + (self.bias is not None)
        gram, right = np.zeros((size, size)), np.zeros((size, self.outputs))
        for start in range(0, self.rows.fitting, _CHUNK):
            stop = min(start + _CHUNK, self.rows.fitting)
            design = self._design(group, start, stop)
            wanted = self.rows.wanted[start:stop, self._columns(group)].astype(np.float64)
            gram += design.T @ design
            right += design.T @ (wanted - design @ self._coefficients(group, self.start, self.bias))
        return gram, right

    def _solve(self, grams: Sequence[tuple[Array, Array]], penalty: float) -> tuple[Array, Array | None]:
        matrix = np.array(self.start)
        bias = None if self.bias is None else np.array(self.bias)
        inputs = matrix.shape[1]
        for group, (gram, right) in enumerate(grams):
            scale = penalty * max(float(np.trace(gram[:inputs, :inputs])) / inputs, 1e-12)
            ridge = np.full(len(gram), scale)
            ridge[inputs:] = 1e-9 * scale
            change = np.linalg.solve(gram + np.diag(ridge), right)
            matrix[group] += change[:inputs]
            if bias is not None:
                bias[self._columns(group)] += change[inputs]
        return matrix, bias

    def _error(self, matrix: Array, bias: Array | None) -> float:
        """The squared error over the outputs' energy, on the rows that were held back."""
        wrong = energy = 0.0
        for group in range(matrix.shape[0]):
            wanted = self.rows.wanted[self.rows.fitting :, self._columns(group)].astype(np.float64)
            design = self._design(group, self.rows.fitting, self.rows.inputs.shape[1])
            wrong += float(((design @ self._coefficients(group, matrix, bias) - wanted) ** 2).sum())
            energy += float((wanted**2).sum())
        return wrong / max(energy, 1e-30)


def _with_constants(model: onnx.ModelProto, constants: dict[str, Array]) -> onnx.ModelProto:
    import onnx

    new = onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(constants[tensor.name], tensor.name))
    return new
