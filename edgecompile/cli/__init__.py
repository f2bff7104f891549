"""The command line: parse, call, print, exit code. Everything heavy is imported inside the commands."""

from __future__ import annotations

import click

from edgecompile import __version__
from edgecompile.cli.build import build, build_request
from edgecompile.cli.cache import cache
from edgecompile.cli.common import CONTEXT, show_error
from edgecompile.cli.device import device
from edgecompile.cli.init import init
from edgecompile.cli.lab import lab
from edgecompile.cli.look import devices, inspect
from edgecompile.cli.measure import bench, check, import_result, verify


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="edgecompile")
def cli() -> None:
    """Give it a trained model, a device and a millisecond budget; get back the file that ships, and the proof."""


for _command in (build, build_request, init, devices, inspect, bench, verify, check, import_result, device, lab, cache):
    cli.add_command(_command)

__all__ = ["build", "cli", "show_error"]
