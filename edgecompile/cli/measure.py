"""`edgecompile bench`, `verify` and `check`: measure and compare files that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecompile.cli.common import ON_HELP, PATH, TOOL_HELP, common, face, print_json

if TYPE_CHECKING:
    from edgecompile.bench import BenchOptions
    from edgecompile.report import Face


@click.command(short_help="Measure files, interleaved, with their ratios.")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--on", default="local", show_default=True, help=ON_HELP)
@click.option(
    "--cost",
    type=click.Choice(["latency", "instructions"]),
    default="latency",
    show_default=True,
    help="What to find out: milliseconds, or the instructions of an inference on an emulated board (--on lab:pi4).",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--percentile", type=click.FloatRange(1, 99.9), default=50.0, show_default=True)
@click.option(
    "--budget-ms", type=click.FloatRange(min=0, min_open=True), help="Exit 3 when the first does not meet it."
)
@click.option("--warmup-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--min-runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--min-seconds", type=click.FloatRange(min=0), default=3.0, show_default=True)
@click.option("--power-mode", help="Of a Jetson while it is measured: a name or number. Put back afterwards.")
@click.option("--benchmark-model", metavar="PATH", help=TOOL_HELP)
@click.option("--accept-throttled", is_flag=True, help="Let --budget-ms count what an unsteady machine measured.")
@click.option("--sustained", metavar="TIME", help="Run one file for 10m (or 90s, 1h) and follow heat and clock.")
@click.option("--plot", type=PATH, help="Where --sustained draws its picture.  [default: FILE.sustained.svg]")
@click.option("--json", "as_json", is_flag=True)
@common
def bench(
    paths: tuple[Path, ...],
    on: str,
    cost: str,
    threads: int,
    percentile: float,
    budget_ms: float | None,
    warmup_seconds: float,
    min_runs: int,
    min_seconds: float,
    power_mode: str | None,
    benchmark_model: str | None,
    accept_throttled: bool,
    sustained: str | None,
    plot: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Measure bundles, .tflite or .onnx files, interleaved; ratios are against the first.

    With --sustained, one file runs without a break; a table and a picture show its latency against time and
    temperature. Ctrl-C ends it and keeps what was measured.
    """
    from edgecompile import measuring, report
    from edgecompile.bench import BenchOptions
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    if cost == "instructions":
        return _count(paths, on, terminal, as_json=as_json)
    options = BenchOptions(
        threads=threads,
        percentile=percentile,
        warmup_s=warmup_seconds,
        min_runs=min_runs,
        min_seconds=min_seconds,
        benchmark_model=benchmark_model,
    )
    if sustained is not None:
        return _sustained(paths, options, terminal, on=on, length=sustained, plot=plot, as_json=as_json)
    result = measuring.measure(paths, options, terminal, on=on, power_mode=power_mode)
    if as_json:
        print_json(to_builtins(result))
    else:
        terminal.print(*report.bench(result.names, result.measurements, result.ratios))
    first = result.measurements[0]
    met = budget_ms is None or (first.meets(budget_ms) if accept_throttled else first.counts(budget_ms))
    if not met and budget_ms is not None and first.meets(budget_ms):
        terminal.warn("the measurement is not trusted, so the budget is not met (--accept-throttled lets it count)")
    return 0 if met else 3


_OF_LATENCY = (
    "threads", "percentile", "budget_ms", "warmup_seconds", "min_runs", "min_seconds", "sustained", "plot",
    "power_mode", "accept_throttled", "benchmark_model",
)  # fmt: skip
#: What a run without a break has no use for: it has no rounds, and gives no verdict.
_OF_ROUNDS = (
    "percentile", "budget_ms", "warmup_seconds", "min_runs", "min_seconds", "power_mode", "accept_throttled",
)  # fmt: skip


def _given(names: Sequence[str]) -> str | None:
    """The first of some options that stands on the command line."""
    source = click.get_current_context().get_parameter_source
    found = (name for name in names if source(name) is click.core.ParameterSource.COMMANDLINE)
    return next((f"--{name.replace('_', '-')}" for name in found), None)


def _count(paths: tuple[Path, ...], on: str, terminal: Face, *, as_json: bool) -> int:
    from edgecompile import measuring, report
    from edgecompile.errors import InputError
    from edgecompile.types import to_builtins

    option = _given(_OF_LATENCY)
    if option is not None:
        raise InputError(
            f"{option} is about latency, and --cost instructions is none",
            remedy="leave one of them out; instructions are always counted with one thread",
        )
    result = measuring.count(paths, terminal, on=on)
    if as_json:
        label = result.counts[0].label
        print_json({"cost": label, **to_builtins(result)})
    else:
        terminal.print(*report.counts(result.names, result.counts, result.ratios))
    return 0


def _sustained(
    paths: Sequence[Path],
    options: BenchOptions,
    terminal: Face,
    *,
    on: str,
    length: str,
    plot: Path | None,
    as_json: bool,
) -> int:
    from edgecompile import measuring, report
    from edgecompile.bench import seconds_of
    from edgecompile.errors import EXIT_INTERRUPTED, InputError
    from edgecompile.types import to_builtins

    option = _given(_OF_ROUNDS)
    if option is not None:
        raise InputError(
            f"{option} does not go with --sustained, which runs one file without a break and gives no verdict",
            remedy="leave one of them out",
        )
    if len(paths) != 1:
        raise InputError(f"--sustained runs one file, {len(paths)} are given", remedy="give one file or bundle")
    picture = plot or Path(f"{str(paths[0]).rstrip('/')}.sustained.svg")
    found = measuring.sustained(paths[0], options, terminal, on=on, seconds=seconds_of(length), picture=picture)
    if as_json:
        print_json(to_builtins(found))
    else:
        terminal.print(*report.sustained(found))
        terminal.note(f"the picture is {picture}")
    return EXIT_INTERRUPTED if found.interrupted else 0


@click.command(short_help="Check a bundle's hashes and golden vectors.")
@click.argument("path", type=PATH)
@click.option("--on", default="local", show_default=True, help=ON_HELP)
@click.option(
    "--benchmark-model",
    metavar="PATH",
    help="Run the file by LiteRT's benchmark_model: its path on the device; for adb, a file here.",
)
@click.option("--json", "as_json", is_flag=True)
@common
def verify(
    path: Path, on: str, benchmark_model: str | None, as_json: bool, quiet: bool, verbose: int, debug: bool
) -> int:
    """Check a bundle: every file's hash, then its golden vectors through the shipped file."""
    from edgecompile import measuring
    from edgecompile.types import to_builtins

    result = measuring.verify(path, on=on, benchmark_model=benchmark_model, progress=face(quiet, verbose, debug))
    if as_json:
        print_json(to_builtins(result))
    else:
        click.echo(
            f"verified {path}: {result.files} files have their hashes, {result.samples} golden vectors through "
            f"{result.through} ({result.comparison}: largest difference {result.largest_error:.1e} of the range)"
        )
    return 0


@click.command(short_help="Has a bundle become worse than another?")
@click.argument("path", type=PATH)
@click.option("--against", type=PATH, required=True, help="The bundle to compare with.")
@click.option(
    "--on",
    default="local",
    show_default=True,
    help="Where: local, ssh://user@host[:port], or lab:pi4 for an emulated board.",
)
@click.option(
    "--latency/--no-latency", default=None, help="Measure both files, interleaved.  [default: on a real device]"
)
@click.option(
    "--max-slower", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Per cent that is allowed."
)
@click.option(
    "--max-instructions",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Per cent more that are allowed on an emulated board.",
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
    latency: bool | None,
    max_slower: float,
    max_instructions: float,
    max_larger: float,
    max_drop: float | None,
    threads: int,
    min_seconds: float,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Exit 3 when a bundle became slower, larger or less accurate than another: a gate for a CI job.

    With --on lab:pi4 the instructions of an inference are compared instead of latency, which an emulated board has not.
    """
    from edgecompile import checking, report
    from edgecompile.bench import BenchOptions
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    options = BenchOptions(threads=threads, min_seconds=min_seconds)
    tolerance = checking.Tolerance(
        latency=1 + max_slower / 100,
        instructions=1 + max_instructions / 100,
        size=1 + max_larger / 100,
        accuracy_points=max_drop,
    )
    result = checking.check(path, against, options, terminal, on=on, tolerance=tolerance, latency=latency)
    if as_json:
        print_json({**to_builtins(result), "passed": result.passed})
    else:
        rows = [(f.quantity, f.baseline, f.now, f.change, f.worse) for f in result.findings]
        terminal.print(*report.check(rows))
    return 0 if result.passed else 3


@click.command("import-result")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--bundle", "path", type=PATH, required=True, help="The bundle whose file was measured.")
@click.option("--device", help="What was measured, like 'Pixel 7': a log of benchmark_model does not tell.")
@click.option("--percentile", type=click.FloatRange(1, 99.9), default=50.0, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@common
def import_result(
    files: tuple[Path, ...],
    path: Path,
    device: str | None,
    percentile: float,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Bring a latency measured elsewhere into a bundle, marked as imported.

    FILES are logs of LiteRT's benchmark_model (of one or several runs), or the JSON document of a bundle's runner. The
    verdict stays: nothing that was imported is ever called met.
    """
    from edgecompile import importing, report
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    found = importing.import_result(files, path, device=device, percentile=percentile)
    for warning in found.measurement.warnings:
        terminal.warn(warning)
    if as_json:
        print_json(to_builtins(found.measurement))
    else:
        terminal.print(*report.imported(found.measurement, found.bundle.manifest))
    return 0
