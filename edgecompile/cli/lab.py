"""`edgecompile lab`: emulated Arm boards on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgecompile.cli.common import common, face, print_json

if TYPE_CHECKING:
    from edgecompile.transport.lab import Box

BOARD = click.Choice(["pi3", "pi4", "pi5"])


@click.group(short_help="Emulated Arm boards: outputs and instruction counts.")
def lab() -> None:
    """Emulated Arm boards on this machine, for --on lab:pi4: they check outputs and count instructions.

    They have no latency: an emulator's times say nothing about a device.
    """


@lab.command("up")
@click.argument("boards", nargs=-1, required=True, type=BOARD)
@click.option("--json", "as_json", is_flag=True)
@common
def lab_up(boards: tuple[str, ...], as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Start emulated boards. The first time fetches about 125 MB.

    They run on until `edgecompile lab down`.
    """
    from edgecompile.transport import lab as boxes

    terminal = face(quiet, verbose, debug)
    started = [boxes.up(board, progress=terminal) for board in dict.fromkeys(boards)]
    if as_json:
        print_json([_facts(box) for box in started])
    else:
        for box in started:
            click.echo(f"{box.name} runs: an emulated {box.core}; use it with --on lab:{box.name}")
    return 0


@lab.command("list")
@click.option("--json", "as_json", is_flag=True)
@common
def lab_list(as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """List the boards that there are, and which of them run."""
    from edgecompile import report
    from edgecompile.transport import lab as boxes

    terminal = face(quiet, verbose, debug)
    running = {box.name: box for box in boxes.boxes()}
    if as_json:
        print_json(
            {
                "folder": str(boxes.root()),
                "size_bytes": boxes.disk_bytes(),
                "boards": [
                    _facts(running[name]) if name in running else {"name": name, "core": core.name, "running": False}
                    for name, core in boxes.CORES.items()
                ],
            }
        )
        return 0
    rows = [
        (name, core.name, f"port {running[name].port}" if name in running else "no")
        for name, core in boxes.CORES.items()
    ]
    terminal.print(*report.lab(rows, str(boxes.root()), boxes.disk_bytes()))
    return 0


def _facts(box: Box) -> dict[str, object]:
    """What a script needs to log in."""
    from edgecompile.transport.lab.box import USER

    return {
        "name": box.name,
        "core": box.core,
        "running": True,
        "host": "127.0.0.1",
        "port": box.port,
        "user": USER,
        "identity": str(box.identity),
        "known_hosts": str(box.known_hosts),
        "pid": box.pid,
    }


@lab.command("down")
@click.argument("boards", nargs=-1, type=BOARD)
@common
def lab_down(boards: tuple[str, ...], quiet: bool, verbose: int, debug: bool) -> int:
    """End emulated boards; all that run, where none is named."""
    from edgecompile.transport import lab as boxes

    face(quiet, verbose, debug)
    if not boards:
        boards = tuple(box.name for box in boxes.boxes())
        if not boards:
            click.echo("no emulated board runs")
    for board in dict.fromkeys(boards):
        click.echo(f"{board} has ended" if boxes.down(board) else f"{board} did not run")
    return 0


@lab.command("clean")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def lab_clean(yes: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """End all boards and remove what was fetched for them."""
    from edgecompile import report
    from edgecompile.transport import lab as boxes

    face(quiet, verbose, debug)
    size = boxes.disk_bytes()
    if size and not yes:
        click.confirm(f"end all boards and remove {report.size(size)} in {boxes.root()}?", abort=True, err=True)
    click.echo(f"removed {report.size(boxes.clean())}")
    return 0
