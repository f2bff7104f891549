"""`edgecompile bench`, `verify` and `check`: measure and compare files that are there already."""

from __future__ import annotations

from pathlib import Path

import click

from edgecompile.cli.common import ON_HELP, PATH, common, face, print_json


@click.command(short_help="Measure files, interleaved, with their ratios.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--on", default="local", show_default=True, help=ON_HELP)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--percentile", type=click.FloatRange(1, 99.9), default=50.0, show_default=True)
@click.option(
    "--budget-ms", type=click.FloatRange(min=0, min_open=True), help="Exit 3 when the first does not meet it."
)
@click.option("--warmup-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--min-runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--min-seconds", type=click.FloatRange(min=0), default=3.0, show_default=True)
@click.option("--power-mode", help="Of a Jetson while it is measured: a name or number. Put back afterwards.")
@click.option("--json", "as_json", is_flag=True)
@common
def bench(
    paths: tuple[Path, ...],
    on: str,
    threads: int,
    percentile: float,
    budget_ms: float | None,
    warmup_seconds: float,
    min_runs: int,
    min_seconds: float,
    power_mode: str | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Measure bundles, .tflite or .onnx files, interleaved; ratios are against the first."""
    from edgecompile import measuring, report
    from edgecompile.bench import BenchOptions
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    options = BenchOptions(
        threads=threads,
        percentile=percentile,
        warmup_s=warmup_seconds,
        min_runs=min_runs,
        min_seconds=min_seconds,
    )
    result = measuring.measure(paths, options, terminal, on=on, power_mode=power_mode)
    if as_json:
        print_json(to_builtins(result))
    else:
        terminal.print(*report.bench(result.names, result.measurements, result.ratios))
    return 0 if budget_ms is None or result.measurements[0].meets(budget_ms) else 3


@click.command(short_help="Check a bundle's hashes and golden vectors.")
@click.argument("path", type=PATH)
@click.option("--on", default="local", show_default=True, help=ON_HELP)
@click.option("--json", "as_json", is_flag=True)
@common
def verify(path: Path, on: str, as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Check a bundle: every file's hash, then its golden vectors through the shipped file."""
    from edgecompile import measuring
    from edgecompile.types import to_builtins

    result = measuring.verify(path, on=on, progress=face(quiet, verbose, debug))
    if as_json:
        print_json(to_builtins(result))
    else:
        click.echo(
            f"verified {path}: {result.files} files have their hashes, {result.samples} golden vectors through the "
            f"shipped file ({result.comparison}: largest difference {result.largest_error:.1e} of the range)"
        )
    return 0


@click.command(short_help="Has a bundle become worse than another?")
@click.argument("path", type=PATH)
@click.option("--against", type=PATH, required=True, help="The bundle to compare with.")
@click.option("--on", default="local", show_default=True, help=ON_HELP)
@click.option("--latency/--no-latency", default=True, show_default=True, help="Measure both files, interleaved.")
@click.option(
    "--max-slower", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Per cent that is allowed."
)
@click.option(
    "--max-larger", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Per cent that is allowed."
)
@click.option(
    "--max-drop", type=click.FloatRange(min=0), help="Points that are allowed.  [default: what chance explains]"
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--min-seconds", type=click.FloatRange(min=0), default=3.0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@common
def check(
    path: Path,
    against: Path,
    on: str,
    latency: bool,
    max_slower: float,
    max_larger: float,
    max_drop: float | None,
    threads: int,
    min_seconds: float,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Exit 3 when a bundle became slower, larger or less accurate than another: a gate for a CI job."""
    from edgecompile import checking, report
    from edgecompile.bench import BenchOptions
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    options = BenchOptions(threads=threads, min_seconds=min_seconds)
    tolerance = checking.Tolerance(latency=1 + max_slower / 100, size=1 + max_larger / 100, accuracy_points=max_drop)
    result = checking.check(path, against, options, terminal, on=on, tolerance=tolerance, latency=latency)
    if as_json:
        print_json({**to_builtins(result), "passed": result.passed})
    else:
        rows = [(f.quantity, f.baseline, f.now, f.change, f.worse) for f in result.findings]
        terminal.print(*report.check(rows))
    return 0 if result.passed else 3
