"""The passes, in their order, each with the reason for its place. The IR is checked after every one."""

from __future__ import annotations

from collections.abc import Callable

from edgecompile.lower.direct.infer import verify
from edgecompile.lower.direct.ir import Graph
from edgecompile.lower.direct.passes import (
    activations,
    affine,
    channels,
    erf,
    flatten,
    pads,
    quirks,
    recognize,
    routes,
    shuffle,
    tidy,
)
from edgecompile.lower.direct.passes.place import place

LOGICAL: tuple[Callable[[Graph], None], ...] = (
    tidy.run,  # first: the others look for neighbours, and reshapes of nothing stand between them
    recognize.run,  # before factors are folded away: an activation is found by its numbers
    erf.run,  # what was not recognized is written out
    affine.run,  # before activations are fused, behind which nothing folds
    channels.run,  # after affine.run, which leaves the factors that no weights take
    routes.run,  # takes the shuffles between convolutions, and leaves the others to shuffle.run
    shuffle.run,  # looks for reshapes and transposes as tidy.run leaves them
    pads.run,  # after affine.run: a term can go into a convolution only while its padding is a Pad, or none
    activations.run,
    tidy.run,  # folding brings new neighbours together
    quirks.run,  # last: what it writes looks odd, and tidy.run would undo it
)


def run(graph: Graph, *, channels_last: bool) -> None:
    """Run all passes and decide the layouts. Raises `ir.IRError` when a pass breaks the graph: a fault of ours."""
    _settle(graph)
    for one in LOGICAL:
        one(graph)
        _settle(graph)
    place(graph, channels_last=channels_last)
    _settle(graph)
    # Knows where data would be moved only once layouts are placed, and changes what is best.
    if flatten.run(graph):
        flatten.unplace(graph)
        graph.sort()
        graph.sweep()
        tidy.run(graph)
        quirks.run(graph)
        _settle(graph)
        place(graph, channels_last=channels_last)
        _settle(graph)


def _settle(graph: Graph) -> None:
    graph.sort()
    graph.sweep()
    verify(graph)


__all__ = ["LOGICAL", "run"]
