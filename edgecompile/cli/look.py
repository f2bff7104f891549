"""`edgecompile devices` and `edgecompile inspect`: look at what is there."""

from __future__ import annotations

from pathlib import Path

import click

from edgecompile.cli.common import PATH, Shape, common, face, print_json


@click.command(short_help="List the device profiles.")
@click.option("--content-dir", type=PATH, help="A folder with own device_profiles/.")
@click.option("--json", "as_json", is_flag=True)
@common
def devices(content_dir: Path | None, as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """List the device profiles: name, runtimes, precisions, budget, and where each was found."""
    from edgecompile import profiles, report
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    found = profiles.all_profiles(content_dir=content_dir)
    if as_json:
        print_json([to_builtins(profile) for profile in found])
    else:
        terminal.print(report.devices(found, profiles.aliases_here()))
    return 0


@click.command(short_help="Show what is in a model file or a bundle.")
@click.argument("path")
@click.option("--input-shape", type=Shape(), multiple=True, help="Where an ONNX file leaves it open.")
@click.option("--time", "timed", is_flag=True, help="Measure what each operator of a .tflite costs on this machine.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads for --time.")
@click.option("--json", "as_json", is_flag=True)
@common
def inspect(
    path: str,
    input_shape: tuple[tuple[str, tuple[int, ...]], ...],
    timed: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Show what is in an .onnx, a .tflite or a bundle: inputs, outputs, parameters, MACs, operators, sizes.

    --time adds the milliseconds of each operator of a .tflite, by the differences of its prefixes.
    """
    from edgecompile import inspection, report
    from edgecompile.operator_times import TimeOptions
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    time = TimeOptions(threads=threads) if timed else None
    summary = inspection.inspect(Path(path), input_shapes=dict(input_shape), time=time, progress=terminal)
    if as_json:
        print_json(to_builtins(summary))
    else:
        sheet = inspection.sheet(summary)
        shown = (sheet.title, sheet.facts, sheet.tensors, sheet.rows, sheet.heads, sheet.costliest, sheet.notes)
        terminal.print(*report.inspection(*shown))
    return 0
