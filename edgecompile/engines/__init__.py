"""TensorRT engines on a board: built there, measured there, brought home. Reached by a `edgecompile.transport`.

`find` asks the machine what it is; `session` gives a `Bench` on which `build` builds, `measure` measures and
`run_inputs` computes. Nothing here has run on a real board yet: docs/jetson.md says what it was tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgecompile.engines.board import Board, find, require
from edgecompile.engines.build import Bench, ModelFault, fits
from edgecompile.engines.build import engine as build
from edgecompile.engines.facts import report
from edgecompile.engines.measure import layers_json, measure
from edgecompile.engines.measure import rounds_of as rounds
from edgecompile.engines.outputs import TOLERANCE, run_inputs
from edgecompile.engines.power import mode
from edgecompile.transport import Transport


@contextmanager
def session(
    transport: Transport, board: Board, *, power_mode: str | None = None, timing_cache: Path | None = None
) -> Iterator[Bench]:
    """A board to build and measure on, in the power mode asked for, which is put back at the end.

    ``timing_cache`` is read where it exists, and written: what one build timed, the next need not time again.
    """
    with mode(transport, board, power_mode):
        yield Bench(transport=transport, board=board, timing_cache=timing_cache)


__all__ = [
    "TOLERANCE",
    "Bench",
    "Board",
    "ModelFault",
    "build",
    "find",
    "fits",
    "layers_json",
    "measure",
    "report",
    "require",
    "rounds",
    "run_inputs",
    "session",
]
