"""Measures files on a machine, interleaved, and turns latencies into figures with intervals."""

from edgecompile.bench.files import bare_file
from edgecompile.bench.measure import BenchOptions, BenchResult, measure
from edgecompile.bench.plot import sustained_svg
from edgecompile.bench.runner import run_inputs
from edgecompile.bench.sustained import Sustained, seconds_of, sustained

__all__ = [
    "BenchOptions",
    "BenchResult",
    "Sustained",
    "bare_file",
    "measure",
    "run_inputs",
    "seconds_of",
    "sustained",
    "sustained_svg",
]
