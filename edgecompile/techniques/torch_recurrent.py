"""LSTM and GRU in torch, step by step, as ONNX defines them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from edgecompile.techniques.torch_call import Call, Operator, Refused, torch

#: From the input's part of the gates, the states, and the direction's recurrent weight and bias to the new states.
Cell: TypeAlias = Callable[[Any, tuple[Any, ...], Any, Any], tuple[Any, ...]]

_ACTIVATIONS = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}


def _check(call: Call, kind: str) -> None:
    directions = call[1].shape[0]
    given = [name.title() for name in call.attribute("activations", [])]
    if given and given != _ACTIVATIONS[kind] * directions:
        raise Refused("other activations than its own")
    if call.attribute("layout", 0) or call.attribute("clip") is not None or call.attribute("input_forget", 0):
        raise Refused("layout, clip or input_forget")
    if any(length != call[0].shape[0] for length in call.values(4) or []):
        raise Refused("sequences that end early")
    if call.get(7) is not None:
        raise Refused("peepholes")


def _run(call: Call, gates: int, states: int, cell: Cell) -> Any:
    """All directions; the outputs are the sequence (T, D, B, H) and the last states, each (D, B, H)."""
    x, weight, recurrent, bias = call[0], call[1], call[2], call.get(3)
    hidden = recurrent.shape[-1]
    names = ["reverse"] if call.attribute("direction", "forward") == "reverse" else ["forward", "reverse"]
    sequences, last = [], []
    for d in range(weight.shape[0]):
        own = weight.new_zeros(2 * gates * hidden) if bias is None else bias[d]
        state = tuple(_start(call, 5 + i, d, hidden) for i in range(states))
        parts = torch.nn.functional.linear(x, weight[d], own[: gates * hidden])
        made: list[Any] = [None] * x.shape[0]
        for t in range(x.shape[0]) if names[d] == "forward" else reversed(range(x.shape[0])):
            state = cell(parts[t], state, recurrent[d], own[gates * hidden :])
            made[t] = state[0]
        sequences.append(torch.stack(made))
        last.append(state)
    ends = [torch.stack([state[i] for state in last]) for i in range(states)]
    return (torch.stack(sequences, dim=1), *ends)[: len(call.static_outputs)]


def _start(call: Call, index: int, direction: int, hidden: int) -> Any:
    batch = call[0].shape[1]
    given = call.get(index)
    return call[0].new_zeros(batch, hidden) if given is None else given[direction].expand(batch, hidden)


def _lstm(call: Call) -> Any:
    _check(call, "LSTM")

    def cell(part: Any, state: tuple[Any, ...], recurrent: Any, bias: Any) -> tuple[Any, ...]:
        i, o, f, c = (part + torch.nn.functional.linear(state[0], recurrent, bias)).chunk(4, dim=-1)
        memory = f.sigmoid() * state[1] + i.sigmoid() * c.tanh()
        return o.sigmoid() * memory.tanh(), memory

    return _run(call, 4, 2, cell)


def _gru(call: Call) -> Any:
    _check(call, "GRU")
    before = bool(call.attribute("linear_before_reset", 0))

    def cell(part: Any, state: tuple[Any, ...], recurrent: Any, bias: Any) -> tuple[Any, ...]:
        size, linear = recurrent.shape[-1], torch.nn.functional.linear
        both = part[..., : 2 * size] + linear(state[0], recurrent[: 2 * size], bias[: 2 * size])
        update, reset = both.sigmoid().chunk(2, dim=-1)
        weight, shift = recurrent[2 * size :], bias[2 * size :]
        inner = reset * linear(state[0], weight, shift) if before else linear(reset * state[0], weight, shift)
        new = (part[..., 2 * size :] + inner).tanh()
        return ((1 - update) * new + update * state[0],)

    return _run(call, 3, 1, cell)


OPERATORS: dict[str, Operator] = {"GRU": _gru, "LSTM": _lstm}
