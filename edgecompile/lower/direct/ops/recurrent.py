"""LSTM, GRU and RNN, unrolled over a static number of steps.

TFLite's own sequence operators keep their state from one run of the model to the next, so they would compute something
else from the second run on. Unrolled, each step is a fully connected layer and a few elementwise operators; what does
not depend on the state is computed for all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.ir import Array, Value
from edgecompile.lower.direct.read import Handler

#: Beyond this many steps, all directions together, a file of thousands of operators is no service.
MAX_STEPS = 512

_ACTIVATIONS: dict[str, ir.UnaryKind] = {"relu": "RELU", "sigmoid": "LOGISTIC", "tanh": "TANH"}
#: One step: ``(what the input gives, state) -> state``; the first of the state is what the operator returns.
_Step: TypeAlias = Callable[[Value, tuple[Value | None, ...]], tuple[Value, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One direction's weights: ``w [G*H, I]``, ``r [G*H, H]``, biases ``[G*H]``; and its activations."""

    w: Array
    r: Array
    input_bias: Array
    state_bias: Array
    activations: tuple[ir.UnaryKind, ...]
    peepholes: tuple[Array, ...]

    @property
    def hidden(self) -> int:
        return int(self.r.shape[1])


def _cells(node: OnnxNode, gates: int, defaults: tuple[str, ...]) -> list[_Cell]:
    direction = node.text("direction", "forward")
    count = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if count is None:
        raise RefusedError(f"its direction is {direction!r}")
    if node.has("clip") or node.flag("input_forget"):
        raise RefusedError("it clips, or couples its gates")
    w, r = node.constant(1, "weights"), node.constant(2, "recurrent weights")
    if w is None or r is None or w.ndim != 3 or r.ndim != 3 or w.shape[0] != count or r.shape[0] != count:
        raise RefusedError(f"its weights do not fit {count} directions")
    hidden = r.shape[2]
    if node.integer("hidden_size", hidden) != hidden or w.shape[1] != gates * hidden or r.shape[1] != gates * hidden:
        raise RefusedError(f"weights {w.shape} and {r.shape} do not fit together")
    bias = node.constant(3, "bias")
    bias = np.zeros((count, 2 * gates * hidden), np.float32) if bias is None else bias
    peepholes = node.constant(7, "peepholes")
    names = [n.lower() for n in node.strings("activations") or defaults * count]
    if any(n not in _ACTIVATIONS for n in names) or len(names) != len(defaults) * count:
        raise RefusedError(f"its activations are {names}; {', '.join(_ACTIVATIONS)} are lowered")
    kinds = [_ACTIVATIONS[n] for n in names]
    return [
        _Cell(
            w=w[i],
            r=r[i],
            input_bias=bias[i, : gates * hidden],
            state_bias=bias[i, gates * hidden :],
            activations=tuple(kinds[i * len(defaults) : (i + 1) * len(defaults)]),
            peepholes=() if peepholes is None else tuple(np.split(peepholes[i], 3)),
        )
        for i in range(count)
    ]


def _layer(b: Builder, w: Array, bias: Array | None = None) -> Callable[[Value], Value]:
    """A fully connected layer whose weights stand in the file once, however often it is applied."""
    weights = b.constant(w, "float32")
    term = b.constant(np.zeros(len(w)) if bias is None else bias, "float32")

    def layer(x: Value) -> Value:
        if x.data is not None:  # an initial state
            return b.constant(x.array @ weights.array.T + term.array, "float32")
        return b.add(ir.FullyConnected(), x, weights, term)

    return layer


def _initial(b: Builder, node: OnnxNode, index: int, direction: int, batch_first: bool) -> Value | None:
    """The initial state of one direction, ``[batch, hidden]``; ``None`` where it is zero."""
    value = node.operand(index)
    if value is None or (value.data is not None and not value.data.any()):
        return None
    axis = 1 if batch_first else 0
    part = b.slice(value, axis, direction, direction + 1)
    return b.reshape(part, tuple(d for a, d in enumerate(value.shape) if a != axis))


def _check_lengths(node: OnnxNode, steps: int) -> None:
    lengths = node.constant(4, "sequence lengths")
    if lengths is not None and (lengths != steps).any():
        raise RefusedError(f"its sequences are of lengths {sorted(set(lengths.reshape(-1).tolist()))}, not all {steps}")


def _unroll(
    b: Builder, node: OnnxNode, cells: Sequence[_Cell], bias_of: Callable[[_Cell], Array], states: int,
    step_of: Callable[[_Cell], _Step],
) -> list[Value | None]:  # fmt: skip
    """``[Y, Y_h, ...]`` of all directions."""
    x, batch_first = node.required(0), node.flag("layout")
    if x.rank != 3 or x.dtype != "float32":
        raise RefusedError(f"its operand is {x.dtype} of shape {x.shape}")
    x = b.transpose(x, (1, 0, 2)) if batch_first else x
    steps, batch = x.shape[:2]
    if steps * len(cells) > MAX_STEPS:
        raise RefusedError(f"it has {steps} steps in {len(cells)} directions; {MAX_STEPS} are unrolled at most")
    _check_lengths(node, steps)
    outputs: list[list[Value]] = []
    finals: list[tuple[Value, ...]] = []
    for i, cell in enumerate(cells):
        order = range(steps)
        if node.text("direction", "forward") == "reverse" or i == 1:
            order = range(steps - 1, -1, -1)
        driven = _layer(b, cell.w, bias_of(cell))(x)
        state: tuple[Value | None, ...] = tuple(_initial(b, node, 5 + k, i, batch_first) for k in range(states))
        step, made = step_of(cell), {}
        for t in order:
            drive = b.reshape(b.slice(driven, 0, t, t + 1), (batch, driven.shape[2]))
            state = step(drive, state)
            made[t] = state[0]
        outputs.append([b.reshape(v, (1, 1, batch, cell.hidden)) for t in range(steps) if (v := made[t]) is not None])
        finals.append(tuple(v for v in state if v is not None))
    return _results(b, node, outputs, finals, states, batch_first)


def _joined(b: Builder, axis: int, values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else b.add(ir.Concat(axis=axis), *values)


def _results(
    b: Builder, node: OnnxNode, outputs: Sequence[Sequence[Value]], finals: Sequence[tuple[Value, ...]], states: int,
    batch_first: bool,
) -> list[Value | None]:  # fmt: skip
    results: list[Value | None] = [None] * (1 + states)
    if node.outputs[0]:
        y = _joined(b, 1, [_joined(b, 0, made) for made in outputs])
        results[0] = b.transpose(y, (2, 0, 1, 3)) if batch_first else y
    for k in range(states):
        if k + 1 < len(node.outputs) and node.outputs[k + 1]:
            last = _joined(b, 0, [b.reshape(final[k], (1, *final[k].shape)) for final in finals])
            results[k + 1] = b.transpose(last, (1, 0, 2)) if batch_first else last
    return results


# ---------------------------------------------------------------------------------------------------------- cells


def _lstm(b: Builder, node: OnnxNode) -> list[Value | None]:
    cells = _cells(node, 4, ("Sigmoid", "Tanh", "Tanh"))

    def step_of(cell: _Cell) -> _Step:
        gate, update, output = cell.activations
        recur = _layer(b, cell.r)

        def peep(x: Value, c: Value | None, which: int) -> Value:
            if not cell.peepholes or c is None:
                return x
            return b.binary("ADD", x, b.binary("MUL", c, b.constant(cell.peepholes[which], "float32")))

        def step(drive: Value, state: tuple[Value | None, ...]) -> tuple[Value, ...]:
            h, c = state
            if h is not None:
                drive = b.binary("ADD", recur(h), drive)
            i, o, f, g = b.add_all(ir.Split(axis=1, sizes=(cell.hidden,) * 4), drive)
            new = b.binary("MUL", b.unary(gate, peep(i, c, 0)), b.unary(update, g))
            if c is not None:
                new = b.binary("ADD", b.binary("MUL", b.unary(gate, peep(f, c, 2)), c), new)
            return b.binary("MUL", b.unary(gate, peep(o, new, 1)), b.unary(output, new)), new

        return step

    return _unroll(b, node, cells, lambda cell: cell.input_bias + cell.state_bias, 2, step_of)


def _gru(b: Builder, node: OnnxNode) -> list[Value | None]:
    cells = _cells(node, 3, ("Sigmoid", "Tanh"))
    after = node.flag("linear_before_reset")

    def bias_of(cell: _Cell) -> Array:
        # The state's bias of the new value is inside the reset's product when the reset comes after it.
        inside = np.arange(len(cell.r)) >= 2 * cell.hidden
        return np.asarray(cell.input_bias + np.where(inside & after, 0, cell.state_bias))

    return _unroll(b, node, cells, bias_of, 1, lambda cell: _gru_step(b, cell, after))


def _gru_step(b: Builder, cell: _Cell, after: bool) -> _Step:
    """``h' = n + z * (h - n)``; the reset gate stands before or ``after`` the recurrent product of the new value."""
    (gate, update), n = cell.activations, cell.hidden
    inner_bias = cell.state_bias[2 * n :] if after else np.zeros(n)
    recur_gates, recur_new = _layer(b, cell.r[: 2 * n]), _layer(b, cell.r[2 * n :], inner_bias)

    def step(drive: Value, state: tuple[Value | None, ...]) -> tuple[Value, ...]:
        h = state[0]
        gates, new = b.add_all(ir.Split(axis=1, sizes=(2 * n, n)), drive)
        if h is None and not inner_bias.any():
            new = b.unary(update, new)
            return (b.binary("SUB", new, b.binary("MUL", b.unary(gate, b.slice(gates, 1, 0, n)), new)),)
        if h is None:
            h = b.constant(np.zeros((drive.shape[0], n)), "float32")
        z, r = b.add_all(ir.Split(axis=1, sizes=(n, n)), b.unary(gate, b.binary("ADD", gates, recur_gates(h))))
        inner = b.binary("MUL", r, recur_new(h)) if after else recur_new(b.binary("MUL", r, h))
        new = b.unary(update, b.binary("ADD", new, inner))
        return (b.binary("ADD", new, b.binary("MUL", z, b.binary("SUB", h, new))),)

    return step


def _rnn(b: Builder, node: OnnxNode) -> list[Value | None]:
    cells = _cells(node, 1, ("Tanh",))

    def step_of(cell: _Cell) -> _Step:
        recur = _layer(b, cell.r)

        def step(drive: Value, state: tuple[Value | None, ...]) -> tuple[Value, ...]:
            h = state[0]
            if h is not None:
                drive = b.binary("ADD", recur(h), drive)
            return (b.unary(cell.activations[0], drive),)

        return step

    return _unroll(b, node, cells, lambda cell: cell.input_bias + cell.state_bias, 1, step_of)


HANDLERS: dict[str, Handler] = {"GRU": _gru, "LSTM": _lstm, "RNN": _rnn}
