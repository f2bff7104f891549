"""`edgecompile init`: write a project file."""

from __future__ import annotations

from pathlib import Path

import click

from edgecompile.cli.common import common, face
from edgecompile.errors import InputError


@click.command(short_help="Write edgecompile.toml for the daily build.")
@click.option("--model", help="The trained model.  [default: the only .onnx file here]")
@click.option("--weights", help="A state dict for MODULE:FACTORY.")
@click.option("--input-shape", help="Like 1,3,224,224.")
@click.option("--data", help="A folder with images, or an .npz file.")
@click.option("--eval", "evaluation", help="Evaluation data.")
@click.option("--preset", help="How images become inputs.")
@click.option("--target", multiple=True, default=("x86",), show_default=True, help="Repeatable.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@common
def init(
    model: str | None,
    weights: str | None,
    input_shape: str | None,
    data: str | None,
    evaluation: str | None,
    preset: str | None,
    target: tuple[str, ...],
    force: bool,
    quiet: bool,
    verbose: int,
    debug: bool,
) -> int:
    """Write edgecompile.toml, so that `edgecompile build` alone is the daily command."""
    from edgecompile import config, profiles
    from edgecompile.store import write_atomically

    terminal = face(quiet, verbose, debug)
    path = Path(config.NAME)
    if path.exists() and not force:
        raise InputError(f"{path} exists", remedy="edit it, or give --force to replace it")
    if model is None:
        here = sorted(Path().glob("*.onnx"))
        model = here[0].name if len(here) == 1 else None
    text = config.template(
        model=model,
        weights=weights,
        input_shape=input_shape,
        data=data,
        evaluation=evaluation,
        preset=preset,
        targets={name: profiles.load(name).default_budget_ms for name in target},
    )
    write_atomically(path, text.encode())
    terminal.note("edit what stands behind a # and fits your project, then run: edgecompile build")
    click.echo(f"wrote {path}")
    return 0
