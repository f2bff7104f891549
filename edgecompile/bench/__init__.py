"""Measures files on a machine, interleaved, and turns latencies into figures with intervals."""

from edgecompile.bench.files import bare_file
from edgecompile.bench.measure import BenchOptions, BenchResult, measure
from edgecompile.bench.runner import run_inputs

__all__ = ["BenchOptions", "BenchResult", "bare_file", "measure", "run_inputs"]
