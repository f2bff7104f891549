"""`edgecompile cache`: the work folders of builds."""

from __future__ import annotations

import click

from edgecompile.cli.common import common, face, print_json


@click.group(short_help="List and remove the work folders of builds.")
def cache() -> None:
    """The work folders that builds leave beside their bundles, to go on from and to be quick the next time."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True)
@common
def cache_list(as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """List the work folders with their sizes."""
    from edgecompile import report, store
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    folders = store.work_folders()
    if as_json:
        print_json([to_builtins(folder) for folder in folders])
    else:
        terminal.print(report.work_folders(folders))
    return 0


@cache.command("clean")
@click.option("--older-than-days", type=click.FloatRange(min=0), default=0.0, help="Only those not used since.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def cache_clean(older_than_days: float, yes: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Remove work folders, and the times of operators that builds share. Bundles stay."""
    from edgecompile import report, store

    terminal = face(quiet, verbose, debug)
    folders = store.work_folders()
    if folders and not yes:
        click.confirm(f"remove up to {len(folders)} work folders?", abort=True, err=True)
    removed, busy = store.clean(folders, older_than_days=older_than_days)
    for folder in busy:
        terminal.note(f"{folder.path} stays: a build is using it")
    times = store.clean_times(older_than_days=older_than_days)
    freed = report.size(sum(folder.size_bytes for folder in removed))
    shared = f", and the times of {times} operators" if times else ""
    click.echo(f"removed {len(removed)} of {len(folders)} work folders, {freed}{shared}")
    return 0
