"""Measures files on a machine, interleaved, and turns latencies into figures with intervals."""

from edgecompile.bench.files import bare_file
from edgecompile.bench.instructions import instructions
from edgecompile.bench.intervals import interval_of_rounds, median
from edgecompile.bench.measure import doubts_by_file, from_document, is_document, measure, unsteady
from edgecompile.bench.options import BenchOptions, BenchResult, require_program
from edgecompile.bench.plot import sustained_svg
from edgecompile.bench.runner import run_inputs
from edgecompile.bench.state import Doubt
from edgecompile.bench.sustained import Sustained, seconds_of, sustained

__all__ = [
    "BenchOptions",
    "BenchResult",
    "Doubt",
    "Sustained",
    "bare_file",
    "doubts_by_file",
    "from_document",
    "instructions",
    "interval_of_rounds",
    "is_document",
    "measure",
    "median",
    "require_program",
    "run_inputs",
    "seconds_of",
    "sustained",
    "sustained_svg",
    "unsteady",
]
