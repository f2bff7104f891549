"""What an operator of a differentiable graph is given, and how it says no."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from edgecompile.errors import MissingExtraError, UnsupportedModelError

Shape: TypeAlias = tuple[int, ...]

#: More operators than this are counted, not listed, in a message.
_LISTED = 8


class _LazyTorch:
    """Torch, imported at its first use: the command line must start without it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(importlib.import_module("torch"), name)
        except ImportError as exc:
            raise MissingExtraError("torch", "build") from exc


if TYPE_CHECKING:
    import torch
else:
    torch = _LazyTorch()


class NotDifferentiable(UnsupportedModelError):
    """The graph holds operators that torch does not compute here; ``operators`` names them (exit code 5)."""

    def __init__(self, operators: Iterable[tuple[str, str]], *, reason: str | None = None) -> None:
        pairs = tuple(operators)
        by_type: dict[str, list[str]] = {}
        for op_type, name in pairs:
            by_type.setdefault(op_type, []).append(name or "unnamed")
        listed = [f"{kind} ({_some(names)})" for kind, names in sorted(by_type.items())]
        super().__init__(
            f"the model cannot be trained, for torch does not compute: {', '.join(listed)}"
            + (f": {reason}" if reason else ""),
            remedy="replace these operators in the model, or leave out the techniques that train",
            operators=pairs,
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


class Refused(Exception):
    """An operator's variant that is not computed here; the graph adds the operator's name."""


class BatchLost(Exception):
    """The batch cannot be followed through an operator: samples must be computed one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One node's inputs. ``static_inputs`` and ``static_outputs`` are the shapes in the file, None where unknown."""

    inputs: Sequence[Any]
    known: Sequence[Any]
    attributes: Mapping[str, Any]
    static_inputs: Sequence[Shape | None]
    static_outputs: Sequence[Shape | None]
    opset: int
    training: bool

    def __getitem__(self, index: int) -> Any:
        """Input ``index``, which must be there."""
        return self.inputs[index]

    def get(self, index: int) -> Any:
        """Input ``index``, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or ``default``."""
        return self.attributes.get(name, default)

    def values(self, index: int) -> list[Any] | None:
        """The numbers of input ``index`` as a flat list, or None where it is left out.

        Constants are read from the host, for a look at the accelerator's memory would wait for all work there.
        """
        tensor = self.get(index)
        if tensor is None:
            return None
        known = self.known[index]
        found: list[Any] = known.reshape(-1).tolist() if known is not None else tensor.detach().reshape(-1).tolist()
        return found

    def value(self, index: int, default: Any = None) -> Any:
        """The only number of input ``index``, or ``default`` where it is left out."""
        found = self.values(index)
        return default if not found else found[0]


Operator: TypeAlias = Callable[[Call], Any]


def together(tensors: Iterable[Any]) -> list[Any]:
    """The tensors on one device: shapes are computed on the host, and may meet what lies on an accelerator."""
    found = list(tensors)
    elsewhere = [t.device for t in found if t.device.type != "cpu"]
    return [t.to(elsewhere[0]) for t in found] if elsewhere else found


def batch_axis(call: Call, index: int = 0) -> tuple[int, int] | None:
    """The axis along which input ``index`` is larger than in the file, and how many times; None where it is not."""
    static, actual = call.static_inputs[index], tuple(call[index].shape)
    if static is None or static == actual:
        return None
    differing = [axis for axis, (a, s) in enumerate(zip(actual, static, strict=False)) if a != s]
    if len(static) != len(actual) or len(differing) != 1 or actual[differing[0]] % max(static[differing[0]], 1):
        raise BatchLost
    return differing[0], actual[differing[0]] // max(static[differing[0]], 1)


def broadcast(call: Call) -> list[Any]:
    """The inputs of an element-wise operator, fit for each other.

    Where the batch is the outer part of a larger axis (windows of an image are), what is the same for all samples is
    repeated along it; an axis of one row broadcasts by itself.
    """
    tensors = together(call.inputs)
    for index, tensor in enumerate(call.inputs):
        static = call.static_inputs[index]
        if static is None or static == tensor.shape:
            continue
        axis, times = batch_axis(call, index) or (0, 1)
        if static[axis] > 1:
            tensors = [_repeated(t, axis - len(static), static[axis], times) for t in tensors]
    return tensors


def _repeated(tensor: Any, axis: int, size: int, times: int) -> Any:
    if tensor.dim() < -axis or tensor.shape[axis] != size:
        return tensor
    return tensor.repeat([times if i - tensor.dim() == axis else 1 for i in range(tensor.dim())])


def reshaped(call: Call, target: Shape | None) -> Shape:
    """``target``, an output shape of the file, for the batch that input 0 has.

    A batch that is the outer part of an axis stays outer when axes are split or merged, so the axis to scale is the
    one that starts where the input's batch starts: where the same number of rows lies in front of it.
    """
    found = batch_axis(call)
    if target is None:
        raise BatchLost
    if found is None:
        return target
    axis, times = found
    static = call.static_inputs[0]
    assert static is not None
    before = _product(static[:axis])
    candidates = [j for j in range(len(target)) if _product(target[:j]) == before]
    if not candidates:
        raise BatchLost
    chosen = axis if axis in candidates else candidates[0]
    return (*target[:chosen], target[chosen] * times, *target[chosen + 1 :])


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


__all__ = [
    "BatchLost", "Call", "NotDifferentiable", "Operator", "Refused", "Shape",
    "batch_axis", "broadcast", "reshaped", "together", "torch",
]  # fmt: skip
