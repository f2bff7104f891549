"""What the commands share: option types, the common options, the terminal, errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgecompile.errors import EdgecompileError

if TYPE_CHECKING:
    from edgecompile.report import Face

F = TypeVar("F", bound=Callable[..., Any])
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
PATH = click.Path(path_type=Path)
ON_HELP = "Where: local, ssh://user@host[:port], adb:SERIAL for a phone, or lab:pi4 for an emulated board."
TOOL_HELP = "Measure by LiteRT's benchmark_model: its path on the device; for adb, a file here."


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """``1,3,224,224`` or ``NAME=1,3,224,224``."""

    name = "[NAME=]N,C,H,W"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        name, _, numbers = str(value).rpartition("=")
        try:
            shape = tuple(int(part) for part in numbers.replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is not a shape like 1,3,224,224 or NAME=1,3,224,224", param, ctx)
        if min(shape) < 1:
            self.fail(f"{value!r} has a size below 1", param, ctx)
        return name, shape


class Sizes(click.ParamType[tuple[int, ...]]):
    """``224,192,160``."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(",") if part.strip())
        except ValueError:
            self.fail(f"{value!r} is not a list of sizes like 224,192,160", param, ctx)
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} has no size, or one below 1", param, ctx)
        return sizes


def common(command: F) -> F:
    """The options every command has."""
    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks."),
        click.option("-q", "--quiet", is_flag=True, help="Print results and errors only."),
        click.option("-v", "--verbose", count=True, help="Tell more; twice for details."),
    ):
        command = option(command)
    return command


def face(quiet: bool, verbose: int, debug: bool) -> Face:
    """Set up logging and return the terminal."""
    from edgecompile.report import Face

    level = logging.DEBUG if debug or verbose > 1 else logging.INFO if verbose else logging.ERROR
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("edgecompile").setLevel(level)
    return Face(quiet=quiet)


def terminal_width() -> int:
    """The columns of the terminal, or what ``COLUMNS`` says."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def show_error(error: EdgecompileError) -> None:
    """Print one error: what is wrong, and what to do about it."""
    click.echo(_harmless(f"error: {error.message}"), err=True)
    if error.remedy:
        click.echo(_harmless(f"  what to do: {error.remedy}"), err=True)


def _harmless(text: str) -> str:
    """A text without what would steer the terminal: a part of it may be what a device said."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))
