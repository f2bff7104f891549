"""`edgecompile device`: prepare a device for measuring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgecompile.cli.common import PATH, common, face, print_json
from edgecompile.errors import InputError

if TYPE_CHECKING:
    from edgecompile.device_setup import Device, Made
    from edgecompile.report import Face


@click.group()
def device() -> None:
    """Prepare a device for measuring, and learn what it can do."""


@device.command()
@click.option("--on", required=True, help="The device: ssh://user@host[:port].")
@click.option(
    "--runtime",
    multiple=True,
    type=click.Choice(["tflite", "onnxruntime"]),
    help="What shall run there. Repeatable.  [default: tflite]",
)
@click.option("--offline", is_flag=True, help="The device has no network: fetch wheels here and carry them there.")
@click.option("--wheels", type=PATH, help="Carry wheels of this folder there; nothing is fetched.")
@click.option("--remove", is_flag=True, help="Remove what an earlier set-up made.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Make a new environment though everything is there.")
@click.option("--json", "as_json", is_flag=True)
@common
def setup(
    on: str,
    runtime: tuple[str, ...],
    offline: bool,
    wheels: Path | None,
    remove: bool,
    yes: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Make a Python environment on a device with what measuring there needs.

    It lies in ~/.edgecompile there, stays, and is found by itself from then on; nothing else of the device changes.
    """
    from edgecompile import device_setup
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    runtimes = device_setup.runtimes_of(runtime)
    if wheels is not None and not wheels.is_dir():
        raise InputError(f"--wheels {wheels}: no such folder", remedy="give a folder with .whl files")
    with device_setup.connected(on, terminal) as there:
        if remove:
            count = there.remove()
            if as_json:
                print_json({"removed": count})
            else:
                click.echo("removed the environment" if count else "there is no environment to remove")
            return 0
        found = there.look()
        missing = [name for name in runtimes if not found.has(name)]
        if not missing and not force:
            _tell(found, terminal)
            if as_json:
                root, there_is = (
                    (None, found.installed) if found.environment is None else (found.root, found.environment)
                )
                print_json({"root": root, "environment": there_is})
            else:
                click.echo(f"nothing to do: {on} runs files of {' and '.join(runtimes)}")
            return 0
        _tell(found, terminal)
        if not yes and not _agreed(found, runtimes, offline or wheels is not None):
            click.echo("nothing was changed")
            return 0
        made = there.make(found, runtimes, offline=offline, wheels=wheels)
    if as_json:
        print_json(to_builtins(made))
    else:
        click.echo(f"{on} is set up: {_packages(made)} in {made.root}")
        click.echo(f"remove it with: edgecompile device setup --on {on} --remove")
    return 0


def _tell(found: Device, terminal: Face) -> None:
    version = ".".join(map(str, found.python))
    libc = f", {found.libc} {found.libc_version}" if found.libc else ""
    there = ", ".join(f"{name} {v}" for name, v in found.installed.items()) or "no packages that could be used"
    terminal.note(f"Python {version} on {found.machine}{libc}, {found.free_bytes / 1e9:.1f} GB free; {there}")
    if found.environment is not None:
        own = ", ".join(f"{name} {v}" for name, v in found.environment.items()) or "nothing usable"
        terminal.note(f"an earlier set-up in {found.root}: {own}")


def _agreed(found: Device, runtimes: tuple[str, ...], carried: bool) -> bool:
    if not sys.stdin.isatty():
        raise InputError("a set-up asks first, and there is no terminal to ask on", remedy="give --yes")
    how = "from wheels carried there" if carried else "by the device's pip, from its package index"
    what = " and ".join(runtimes)
    return click.confirm(f"make an environment in {found.root} there, for {what}, {how} (about 150 MB)?", err=True)


def _packages(made: Made) -> str:
    return ", ".join(f"{name} {version}" for name, version in made.environment.items())


@device.command()
@click.option("--on", required=True, help="The device: local, or ssh://user@host[:port].")
@click.option("--out", type=PATH, help="Write it there.  [default: device-report.txt; - is the terminal]")
@common
def report(on: str, out: Path | None, quiet: bool, verbose: int, debug: bool) -> int:
    """Write down what a board is: its system, TensorRT, clocks, sensors. A text to send to others, without secrets.

    Serial numbers, host and user names, IP and hardware addresses are taken out. Nothing is sent anywhere.
    """
    from edgecompile import engines
    from edgecompile.store import write_atomically
    from edgecompile.transport import open_transport

    terminal = face(quiet, verbose, debug)
    path = out or Path("device-report.txt")
    if out is None and path.exists():
        raise InputError(f"there is a file {path} already", remedy="name the file with --out, which replaces it")
    if str(path) != "-" and not path.resolve().parent.is_dir():
        raise InputError(f"no such folder: {path.resolve().parent}", remedy="give another --out")
    with terminal.stage("Ask the board what it is"), open_transport(on, waiting=terminal.note) as transport:
        text = engines.report(transport)
    if str(path) == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(path, text.encode())
        click.echo(f"wrote {path}: read it, then send it to whom you like (nothing was sent)")
    return 0


@device.command("learn")
@click.option("--on", default="local", show_default=True, help="The device: local, or ssh://user@host[:port].")
@click.option("--out", type=PATH, help="The profile.  [default: NAME-OF-THE-DEVICE.toml]")
@click.option(
    "--runtime",
    multiple=True,
    type=click.Choice(["tflite", "onnxruntime"]),
    help="Only this runtime; else all that the device has. Repeatable.",
)
@click.option(
    "--precision",
    multiple=True,
    type=click.Choice(["fp32", "int8"]),
    default=("fp32", "int8"),
    help="Only this precision; else both. Repeatable.",
)
@click.option(
    "--threads", multiple=True, type=click.IntRange(min=1), default=(1,), show_default=True, help="Repeatable."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Minutes that measuring may take, for all tables together.",
)
@click.option("--force", is_flag=True, help="Replace a profile that is there.")
@click.option("--fresh", is_flag=True, help="Measure all anew instead of going on where a stopped run was.")
@click.option("--json", "as_json", is_flag=True)
@common
def learn(
    on: str,
    out: Path | None,
    runtime: tuple[str, ...],
    precision: tuple[str, ...],
    threads: tuple[int, ...],
    time_limit: float,
    force: bool,
    fresh: bool,
    as_json: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Measure what operators cost on a device, and write it as a profile for --target.

    Some hundred single operators and a few small nets are measured in each runtime and precision. What was measured
    is kept: after Ctrl-C or a lost connection the same command goes on.
    """
    from edgecompile import learn as learning
    from edgecompile import report
    from edgecompile.types import to_builtins

    terminal = face(quiet, verbose, debug)
    request = learning.LearnRequest(
        on=on,
        out=out,
        runtimes=runtime,  # type: ignore[arg-type]
        precisions=precision,  # type: ignore[arg-type]
        threads=tuple(sorted(set(threads))),
        time_limit_s=60 * time_limit,
        force=force,
        fresh=fresh,
    )
    result = learning.learn(request, terminal)
    if as_json:
        print_json({"path": str(result.path), "seconds": result.seconds, "profile": to_builtins(result.profile)})
    else:
        terminal.print(*report.learned(result.profile, str(result.path), result.seconds))
    return 0
