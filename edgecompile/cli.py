"""The command line: parse, call, print, exit code. Everything heavy is imported inside the commands."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from edgecompile import __version__
from edgecompile.errors import EXIT_PREDICTED, EdgecompileError, InputError

if TYPE_CHECKING:
    from edgecompile.config import ProjectConfig, Value
    from edgecompile.pipeline import DryRun
    from edgecompile.report import Face
    from edgecompile.types import BuildRequest, Option

F = TypeVar("F", bound=Callable[..., Any])
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
PATH = click.Path(path_type=Path)


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


def show_error(error: EdgecompileError) -> None:
    """Print one error: what is wrong, and what to do about it."""
    click.echo(f"error: {error.message}", err=True)
    if error.remedy:
        click.echo(f"  what to do: {error.remedy}", err=True)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="edgecompile")
def cli() -> None:
    """Give it a trained model, a device and a millisecond budget; get back the file that ships, and the proof."""


# ------------------------------------------------------------------------------------------------------ build


def build_options(command: F) -> F:
    """The options of ``build``; each is also a key of ``edgecompile.toml``, with underscores."""
    positive = click.IntRange(min=1)
    options = [
        click.option("--target", multiple=True, help="A device profile, like pi4, jetson or x86. Repeatable."),
        click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), help="The latency budget."),
        click.option(
            "--use-case",
            type=click.Choice(["video", "voice", "search", "recommendation"]),
            help="A budget by purpose: 33, 100, 50 or 100 ms.",
        ),
        click.option(
            "--percentile",
            type=click.FloatRange(1, 99.9),
            default=50.0,
            show_default=True,
            help="The latency percentile that must meet the budget.",
        ),
        click.option("--max-drop", type=click.FloatRange(min=0), help="Largest accuracy drop, in points."),
        click.option("--min-sqnr", type=float, help="Smallest SQNR in dB, for models without a class output."),
        click.option("--max-size-mb", type=click.FloatRange(min=0, min_open=True), help="Largest model file."),
        click.option("--data", type=PATH, help="Images or arrays like those the model will see."),
        click.option("--eval", "eval", type=PATH, help="Evaluation data; else half of --data is held back."),
        click.option("--preset", help="How images become inputs: imagenet, cifar10, ... or a TOML file."),
        click.option("--labels", type=PATH, help="Class names in the order of the model's outputs, one a line."),
        click.option("--calibration-samples", type=positive, default=200, show_default=True),
        click.option("--validation-samples", type=positive, default=1000, show_default=True),
        click.option("--eval-samples", type=positive, help="Use at most so many evaluation samples."),
        click.option("--weights", type=PATH, help="A state dict for MODULE:FACTORY (.pt, .pth, .th, .safetensors)."),
        click.option("--input-shape", type=Shape(), multiple=True, help="Where the model leaves it open."),
        click.option(
            "--runtime",
            multiple=True,
            type=click.Choice(["tflite", "onnxruntime", "tensorrt"]),
            help="Only this runtime. Repeatable.",
        ),
        click.option(
            "--precision",
            multiple=True,
            type=click.Choice(["fp32", "fp16", "int8"]),
            help="Only this precision. Repeatable.",
        ),
        click.option(
            "--io",
            type=click.Choice(["float32", "int8"]),
            default="float32",
            show_default=True,
            help="Type of the inputs and outputs of an INT8 file.",
        ),
        click.option("--on", help="Measure there: local, or ssh://user@host[:port]; else estimate for other devices."),
        click.option(
            "--eval-on-device",
            type=positive,
            help="Run so many evaluation samples on the device, too.",
        ),
        click.option("--threads", type=positive, help="Threads on the device; else the profile's."),
        click.option("--warmup-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True),
        click.option("--min-runs", type=positive, default=50, show_default=True),
        click.option("--min-seconds", type=click.FloatRange(min=0), default=3.0, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option(
            "--prune/--no-prune",
            default=True,
            show_default=True,
            help="Remove channels where no file of the whole model meets the budget.",
        ),
        click.option(
            "--resolutions",
            type=Sizes(),
            default=(),
            help="Shorter sides in pixels that the input may have instead, like 192,160.",
        ),
        click.option(
            "--importance",
            type=click.Choice(["reconstruction", "taylor", "magnitude"]),
            default="reconstruction",
            show_default=True,
            help="What orders the channels that go.",
        ),
        click.option("--frontier", is_flag=True, help="Try smaller models for tighter budgets, too, and show them."),
        click.option(
            "--train", is_flag=True, help="Distil the smaller model from the original on what is left of --data."
        ),
        click.option(
            "--student", is_flag=True, help="With --train, also train small nets of the MobileNet kind from nothing."
        ),
        click.option(
            "--time-limit",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            help="Minutes that training may take; a student gets as many again.",
        ),
        click.option("--plan", help="Replay a plan: a bundle, BUNDLE:CANDIDATE, or a plan's .json file."),
        click.option("--model-license", help="The model's licence, for the manifest."),
        click.option("--model-source", help="Where the model comes from, for the manifest."),
        click.option("--out", type=PATH, help="The bundle's folder.  [default: out/TARGET]"),
        click.option("--force", is_flag=True, help="Replace a bundle that is there."),
        click.option("--content-dir", type=PATH, help="A folder with own device_profiles/ and calibration/."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(no_args_is_help=False)
@click.argument("model", required=False)
@build_options
@click.option("--trust", is_flag=True, help="Let code from the model's file or module run. Command line only.")
@click.option("--fresh", is_flag=True, help="Start anew instead of going on where a stopped build was.")
@click.option("--dry-run", is_flag=True, help="Say what would be tried, with estimates; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest (or the dry run) as JSON.")
@click.option("--config", "config_path", type=PATH, help="A project file.  [default: edgecompile.toml, if there]")
@common
@click.pass_context
def build(
    ctx: click.Context,
    /,
    *,
    trust: bool,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    config_path: Path | None,
    quiet: bool,
    verbose: int,
    debug: bool,
    **_: Any,
) -> int:
    """Make of MODEL the file that meets the budget on each target, and the proof.

    MODEL is an .onnx file, a torch.export program (.pt2, with --trust), a TorchScript file (with --trust) or
    MODULE:FACTORY (with --trust).
    """
    terminal = face(quiet, verbose, debug)
    config = _config(ctx, config_path)
    requests = _requests(ctx, config, trust=trust, fresh=fresh)
    codes = [
        _build_one(request, terminal, dry_run=dry_run, as_json=as_json, alone=len(requests) == 1)
        for request in requests
    ]
    return worst(codes)


def worst(codes: Sequence[int]) -> int:
    """The exit code of several builds: the worst one."""
    order = (1, 5, 2, 4, 3, EXIT_PREDICTED, 0)
    return min(codes, key=order.index)


def _build_one(request: BuildRequest, terminal: Face, *, dry_run: bool, as_json: bool, alone: bool) -> int:
    from edgecompile import pipeline, report
    from edgecompile.types import to_builtins

    if not alone:
        terminal.err.rule(request.target, align="left")
    try:
        if dry_run:
            _print_dry_run(pipeline.dry_run(request, terminal), terminal, as_json=as_json)
            return 0
        result = pipeline.build(request, terminal)
    except EdgecompileError as exc:
        if alone:
            raise
        show_error(exc)  # the other targets' builds still count: go on
        return exc.exit_code
    manifest = result.bundle.manifest
    if as_json:
        _print_json(to_builtins(manifest))
    else:
        terminal.print(report.candidates(manifest), *report.closing(manifest, str(request.out)))
    return result.exit_code


def _print_dry_run(plan: DryRun, terminal: Face, *, as_json: bool) -> None:
    from edgecompile import report
    from edgecompile.types import to_builtins

    if as_json:
        _print_json(to_builtins(plan))
        return
    terminal.print(
        *report.dry_run(
            target=plan.target,
            measured_here=plan.measured_here,
            budget_ms=plan.budget.latency_ms,
            rows=[(c.label, c.estimate, c.size_bytes) for c in plan.candidates],
            time_s=plan.time_s,
            disk_bytes=plan.disk_bytes,
        )
    )


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, indent=2))


# The options that say what to do now rather than what to build: they have no key in a project file.
_NOT_CONFIGURABLE = {"trust", "fresh", "dry_run", "as_json", "config_path", "quiet", "verbose", "debug"}


def _config(ctx: click.Context, path: Path | None) -> ProjectConfig | None:
    from edgecompile import config

    if path is None and not Path(config.NAME).is_file():
        return None
    known = {p.name for p in ctx.command.params if p.name} - _NOT_CONFIGURABLE
    return config.load(path or Path(config.NAME), known=known, forbidden={"trust"})


def _requests(ctx: click.Context, config: ProjectConfig | None, *, trust: bool, fresh: bool) -> list[BuildRequest]:
    """One request a target, from the command line, the project file and the defaults, in this order."""
    targets = _resolve(ctx, config, None)["target"][0]
    if not targets:
        raise InputError("no target is given", remedy="add --target, like --target pi4; edgecompile devices lists them")
    return [_request(ctx, config, target, several=len(targets) > 1, trust=trust, fresh=fresh) for target in targets]


Resolved = Mapping[str, tuple[Any, Literal["command line", "edgecompile.toml", "profile", "default"]]]


def _resolve(ctx: click.Context, config: ProjectConfig | None, target: str | None) -> Resolved:
    """The value of every option and where it came from."""
    values: dict[str, tuple[Any, Literal["command line", "edgecompile.toml", "profile", "default"]]] = {}
    for param in ctx.command.params:
        if param.name is None or param.name in _NOT_CONFIGURABLE:
            continue
        source = ctx.get_parameter_source(param.name)
        given = source in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
        from_file = None if given or config is None else config.value(param.name, _table(config, target))
        if from_file is not None and config is not None:
            values[param.name] = (_typed(ctx, param, from_file, config.path), "edgecompile.toml")
        else:
            values[param.name] = (ctx.params[param.name], "command line" if given else "default")
    return values


def _table(config: ProjectConfig, target: str | None) -> str | None:
    """The ``[targets.NAME]`` table for a target, whether either is named by its alias or its full name."""
    from edgecompile import profiles

    if target is None or target in config.targets:
        return target
    name = profiles.load(target).name if config.targets else target
    return next((key for key in config.targets if profiles.load(key).name == name), None)


def _typed(ctx: click.Context, param: click.Parameter, value: Value, path: Path) -> Any:
    """A value from the project file, checked like one from the command line; paths are relative to the file."""
    is_flag = isinstance(param, click.Option) and param.is_flag
    if isinstance(value, bool) != is_flag:
        expected = "true or false" if is_flag else f"a value for --{param.name.replace('_', '-')}" if param.name else ""
        raise InputError(f"{path}: {param.name} = {value!r} does not fit", remedy=f"give {expected}")
    if isinstance(param, click.Option) and param.multiple and not isinstance(value, list):
        value = [str(value)]
    try:
        typed = param.type_cast_value(ctx, value)
    except click.BadParameter as exc:
        raise InputError(f"{path}: {param.name} = {value!r}: {exc.message}", remedy="mend the file") from exc
    return path.parent / typed if isinstance(typed, Path) else typed


def _request(
    ctx: click.Context, config: ProjectConfig | None, target: str, *, several: bool, trust: bool, fresh: bool
) -> BuildRequest:
    from edgecompile import api

    resolved = _resolve(ctx, config, target)
    value = {name: pair[0] for name, pair in resolved.items()}
    if value["model"] is None:
        raise InputError(
            "no model is given", remedy="name it: edgecompile build MODEL --target ...; or edgecompile init"
        )
    out = value.pop("out") or Path("out")
    model = _model_reference(value.pop("model"), resolved["model"][1], config)
    value["target"] = target
    return api.request(
        model,
        **value,
        out=out / target if several or resolved["out"][0] is None else out,
        trust=trust,
        fresh=fresh,
        options=_origins(resolved, target),
        command_line=("edgecompile", *sys.argv[1:]),
    )


def _model_reference(ref: str, origin: str, config: ProjectConfig | None) -> str:
    """A model named in the project file is found beside that file; MODULE:FACTORY stays as it is."""
    if origin != "edgecompile.toml" or config is None or ":" in ref:
        return ref
    return str(config.path.parent / ref)


def _origins(resolved: Resolved, target: str) -> tuple[Option, ...]:
    from edgecompile.types import Option

    shown = {**resolved, "target": (target, resolved["target"][1])}
    return tuple(
        Option(name=name, value=str(value), origin=origin)
        for name, (value, origin) in sorted(shown.items())
        if value is not None and value != ()
    )


@cli.command()
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


# ------------------------------------------------------------------------------------------- look and measure


@cli.command()
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
        _print_json([to_builtins(profile) for profile in found])
    else:
        terminal.print(report.devices(found))
    return 0


@cli.command()
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
        _print_json(to_builtins(summary))
    else:
        sheet = inspection.sheet(summary)
        shown = (sheet.title, sheet.facts, sheet.tensors, sheet.rows, sheet.heads, sheet.costliest, sheet.notes)
        terminal.print(*report.inspection(*shown))
    return 0


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--on", default="local", show_default=True, help="Where: local, or ssh://user@host[:port].")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--percentile", type=click.FloatRange(1, 99.9), default=50.0, show_default=True)
@click.option(
    "--budget-ms", type=click.FloatRange(min=0, min_open=True), help="Exit 3 when the first does not meet it."
)
@click.option("--warmup-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True)
@click.option("--min-runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--min-seconds", type=click.FloatRange(min=0), default=3.0, show_default=True)
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
    result = measuring.measure(paths, options, terminal, on=on)
    if as_json:
        _print_json(to_builtins(result))
    else:
        terminal.print(*report.bench(result.names, result.measurements, result.ratios))
    return 0 if budget_ms is None or result.measurements[0].meets(budget_ms) else 3


@cli.command()
@click.argument("path", type=PATH)
@click.option("--on", default="local", show_default=True, help="Where: local, or ssh://user@host[:port].")
@click.option("--json", "as_json", is_flag=True)
@common
def verify(path: Path, on: str, as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Check a bundle: every file's hash, then its golden vectors through the shipped file."""
    from edgecompile import measuring
    from edgecompile.types import to_builtins

    face(quiet, verbose, debug)
    result = measuring.verify(path, on=on)
    if as_json:
        _print_json(to_builtins(result))
    else:
        click.echo(
            f"verified {path}: {result.files} files have their hashes, {result.samples} golden vectors through the "
            f"shipped file ({result.comparison}: largest difference {result.largest_error:.1e} of the range)"
        )
    return 0


@cli.command()
@click.argument("path", type=PATH)
@click.option("--against", type=PATH, required=True, help="The bundle to compare with.")
@click.option("--on", default="local", show_default=True, help="Where: local, or ssh://user@host[:port].")
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
        _print_json({**to_builtins(result), "passed": result.passed})
    else:
        rows = [(f.quantity, f.baseline, f.now, f.change, f.worse) for f in result.findings]
        terminal.print(*report.check(rows))
    return 0 if result.passed else 3


# ------------------------------------------------------------------------------------------------------ cache


@cli.group()
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
        _print_json([to_builtins(folder) for folder in folders])
    else:
        terminal.print(report.work_folders(folders))
    return 0


@cache.command("clean")
@click.option("--older-than-days", type=click.FloatRange(min=0), default=0.0, help="Only those not used since.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common
def cache_clean(older_than_days: float, yes: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Remove work folders. Bundles stay."""
    from edgecompile import report, store

    face(quiet, verbose, debug)
    folders = store.work_folders()
    if folders and not yes:
        click.confirm(f"remove up to {len(folders)} work folders?", abort=True, err=True)
    removed = store.clean(folders, older_than_days=older_than_days)
    freed = report.size(sum(folder.size_bytes for folder in removed))
    click.echo(f"removed {len(removed)} of {len(folders)} work folders, {freed}")
    return 0
