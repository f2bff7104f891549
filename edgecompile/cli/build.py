"""`edgecompile build`: from the command line and the project file to one request a target."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from edgecompile.cli.common import PATH, TOOL_HELP, Shape, Sizes, common, face, print_json, show_error
from edgecompile.errors import EXIT_PREDICTED, EdgecompileError, InputError

if TYPE_CHECKING:
    from edgecompile.config import ProjectConfig, Value
    from edgecompile.pipeline import DryRun
    from edgecompile.report import Face
    from edgecompile.types import BuildRequest, Option

F = TypeVar("F", bound=Callable[..., Any])


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
        click.option(
            "--layout",
            type=click.Choice(["nhwc", "nchw"]),
            default="nhwc",
            show_default=True,
            help="Images in a .tflite file: channels last, or (nchw) all as the model has it.",
        ),
        click.option(
            "--on",
            multiple=True,
            help="Measure there: local, ssh://user@host[:port], or adb:SERIAL; else estimate for other devices. An "
            "emulated board, lab:pi4, runs the files and counts instructions; latency stays an estimate. Repeatable: "
            "one for each --target, or several for one.",
        ),
        click.option("--power-mode", help="Of a Jetson while it is measured: a name or number. Put back afterwards."),
        click.option(
            "--eval-on-device",
            type=positive,
            help="Run so many evaluation samples on the device, too.",
        ),
        click.option("--benchmark-model", metavar="PATH", help=TOOL_HELP),
        click.option(
            "--accept-throttled",
            is_flag=True,
            help="Let measurements count that were taken while the device was throttled, overloaded or unsteady.",
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
            help="Minutes that training may take at most; students get as many again.",
        ),
        click.option(
            "--training",
            multiple=True,
            metavar="KEY=VALUE",
            help="A choice of the training: loss=dist, label_weight=0.3, steps=5000, ... Repeatable.",
        ),
        click.option("--plan", help="Replay a plan: a bundle, BUNDLE:CANDIDATE, or a plan's .json file."),
        click.option("--model-license", help="The model's licence, for the manifest."),
        click.option("--model-source", help="Where the model comes from, for the manifest."),
        click.option("--out", type=PATH, help="The bundle's folder.  [default: out/TARGET]"),
        click.option("--force", is_flag=True, help="Replace a bundle that is there, with all that lies in its folder."),
        click.option("--content-dir", type=PATH, help="A folder with own device_profiles/ and calibration/."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command(short_help="Make the file that meets the budget, and the proof.")
@click.argument("model", required=False)
@build_options
@click.option("--trust", is_flag=True, help="Let code from the model's file or module run. Command line only.")
@click.option("--fresh", is_flag=True, help="Start anew instead of going on where a stopped build was.")
@click.option("--dry-run", is_flag=True, help="Say what would be tried, with estimates; write nothing.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the manifest or dry run as JSON; of several targets, a list."
)
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
    done = _build_all(requests, terminal, dry_run=dry_run, as_json=as_json, words=_passed_on(quiet, verbose, debug))
    if as_json:
        documents = [document for _, document in done]
        print_json(documents[0] if len(documents) == 1 else documents)
    elif len(requests) > 1 and not dry_run:
        from edgecompile import report

        rows = [(request, code) for request, (code, _) in zip(requests, done, strict=True)]
        terminal.print("", report.several([(r.target, r.on, code, str(r.out)) for r, code in rows]))
    return worst([code for code, _ in done])


def _passed_on(quiet: bool, verbose: int, debug: bool) -> list[str]:
    return [*(["-q"] if quiet else []), *["-v"] * verbose, *(["--debug"] if debug else [])]


def _build_all(
    requests: Sequence[BuildRequest], terminal: Face, *, dry_run: bool, as_json: bool, words: Sequence[str]
) -> list[tuple[int, object]]:
    """Build for every target. Devices elsewhere work at the same time; what is measured here comes after, alone."""
    from edgecompile.cli.parallel import Builds

    elsewhere = [request for request in requests if request.on not in (None, "local")]
    done: dict[int, tuple[int, object]] = {}
    if len(elsewhere) > 1 and not dry_run:
        named = [(f"{request.target} on {request.on}", request) for request in elsewhere]
        for (name, request), (code, said, document) in zip(
            named, Builds(terminal, words, as_json=as_json).run(named), strict=True
        ):
            done[id(request)] = (code, document)
            if not as_json:
                terminal.err.rule(name, align="left")
                click.echo(said, nl=False)
    for request in requests:
        if id(request) not in done:
            alone = len(requests) == 1
            done[id(request)] = _build_one(request, terminal, dry_run=dry_run, as_json=as_json, alone=alone)
    return [done[id(request)] for request in requests]


@click.command("build-request", hidden=True)
@click.option("--json", "as_json", is_flag=True)
@common
def build_request(as_json: bool, quiet: bool, verbose: int, debug: bool) -> int:
    """Build one request that is given as JSON on standard input: what a build for several devices starts."""
    from edgecompile.types import BuildRequest, decode

    terminal = face(quiet, verbose, debug)
    request = decode(sys.stdin.buffer.read(), BuildRequest)
    code, document = _build_one(request, terminal, dry_run=False, as_json=as_json, alone=True)
    if as_json:
        print_json(document)
    return code


def worst(codes: Sequence[int]) -> int:
    """The exit code of several builds: the worst one."""
    order = (1, 5, 2, 4, 3, EXIT_PREDICTED, 0)
    return min(codes, key=order.index)


def _build_one(
    request: BuildRequest, terminal: Face, *, dry_run: bool, as_json: bool, alone: bool
) -> tuple[int, object]:
    """Build for one target; its exit code, and what ``--json`` prints of it."""
    from edgecompile import pipeline, report
    from edgecompile.types import to_builtins

    if not alone:
        terminal.err.rule(request.target, align="left")
    try:
        if dry_run:
            plan = pipeline.dry_run(request, terminal)
            if not as_json:
                _print_dry_run(plan, terminal)
            return 0, to_builtins(plan)
        result = pipeline.build(request, terminal)
    except EdgecompileError as exc:
        if alone:
            raise
        show_error(exc)  # the other targets' builds still count: go on
        return exc.exit_code, {"target": request.target, "error": exc.message, "exit_code": exc.exit_code}
    manifest = result.bundle.manifest
    if not as_json:
        folder = str(request.out)
        terminal.gap()
        terminal.print(report.candidates(manifest), *report.frontier(manifest, folder), *report.counted(manifest))
        terminal.print(*report.closing(manifest, folder))
    return result.exit_code, to_builtins(manifest)


def _print_dry_run(plan: DryRun, terminal: Face) -> None:
    from edgecompile import report

    terminal.print(
        *report.dry_run(
            target=plan.target,
            measured_here=plan.measured_here,
            budget_ms=plan.budget.latency_ms,
            rows=[(c.label, c.estimate, c.size_bytes) for c in plan.candidates],
            time_s=plan.time_s,
            disk_bytes=plan.disk_bytes,
            may_shrink=plan.may_shrink,
        )
    )


# The options that say what to do now rather than what to build: they have no key in a project file.
_NOT_CONFIGURABLE = {"trust", "fresh", "dry_run", "as_json", "config_path", "quiet", "verbose", "debug"}
#: The same as somebody would write them in the file.
_NOT_IN_A_FILE = {"trust", "fresh", "dry_run", "json", "config", "quiet", "verbose", "debug"}


def _config(ctx: click.Context, path: Path | None) -> ProjectConfig | None:
    from edgecompile import config

    if path is None and not Path(config.NAME).is_file():
        return None
    known = {p.name for p in ctx.command.params if p.name} - _NOT_CONFIGURABLE
    return config.load(path or Path(config.NAME), known=known, forbidden=_NOT_IN_A_FILE)


def _requests(ctx: click.Context, config: ProjectConfig | None, *, trust: bool, fresh: bool) -> list[BuildRequest]:
    """One request a target, from the command line, the project file and the defaults, in this order."""
    from edgecompile import api
    from edgecompile.types import digest

    targets = _resolve(ctx, config, None)["target"][0]
    if not targets:
        raise InputError("no target is given", remedy="add --target, like --target pi4; edgecompile devices lists them")
    pairs = _pairs(ctx, config, targets)
    times = Counter(target for target, _ in pairs)
    names = [
        f"{api.folder_name(target)}@{_file_name(on)}"
        if times[target] > 1 and on is not None
        else api.folder_name(target)
        for target, on in pairs
    ]
    taken = Counter(names)
    requests = []
    for name, (target, on) in zip(names, pairs, strict=True):
        # What differs in nothing but what no file's name has is told apart by what it is.
        folder = f"{name}-{digest(target, on)[:6]}" if taken[name] > 1 else name
        several = folder if len(pairs) > 1 else None
        requests.append(_request(ctx, config, target, on, several=several, trust=trust, fresh=fresh))
    return requests


def _pairs(ctx: click.Context, config: ProjectConfig | None, targets: Sequence[str]) -> list[tuple[str, str | None]]:
    """Each target with where it is measured. Raises `InputError` where they do not go together."""
    from edgecompile.transport import open_transport

    given, origin = _resolve(ctx, config, None)["on"]
    if origin == "command line" and len(given) > 1 and len(targets) > 1:
        if len(given) != len(targets):
            raise InputError(
                f"{len(targets)} targets and {len(given)} devices do not go together",
                remedy="give one --on for each --target, in the same order, or several --on for one --target",
            )
        pairs: list[tuple[str, str | None]] = list(zip(targets, given, strict=True))
    else:
        pairs = [(target, on) for target in targets for on in _resolve(ctx, config, target)["on"][0] or (None,)]
    for where in dict.fromkeys(on for _, on in pairs if on is not None):
        open_transport(where)  # an address that is none, or holds a password, is shown nowhere
    twice = [pair for pair, count in Counter(pairs).items() if count > 1]
    if twice:
        target, on = twice[0]
        raise InputError(f"{target} is given twice{f' on {on}' if on else ''}", remedy="give each device once")
    return pairs


def _file_name(on: str) -> str:
    """A device's address as part of a file's name: ``ssh://pi@10.0.0.7`` as ``pi-10.0.0.7``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", re.sub(r"^\w+:/*", "", on)).strip("-") or "local"


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
    given: object = value
    if isinstance(param.type, Shape | Sizes) and isinstance(value, list) and all(isinstance(n, int) for n in value):
        given = ",".join(map(str, value))  # [1, 3, 224, 224], as TOML would have it
    if isinstance(param, click.Option) and param.multiple and not isinstance(given, list):
        given = [str(given)]
    try:
        typed = param.type_cast_value(ctx, given)
    except click.BadParameter as exc:
        raise InputError(f"{path}: {param.name} = {value!r}: {exc.message}", remedy="mend the file") from exc
    if param.name in ("preset", "plan") and isinstance(typed, str) and ("/" in typed or typed.endswith(".toml")):
        return str(path.parent / typed)
    return path.parent / typed if isinstance(typed, Path) else typed


def _request(
    ctx: click.Context,
    config: ProjectConfig | None,
    target: str,
    on: str | None,
    *,
    several: str | None,
    trust: bool,
    fresh: bool,
) -> BuildRequest:
    """The request of one target. ``several`` is the folder within ``--out`` where there are others, too."""
    from edgecompile import api

    resolved = _one_budget(_resolve(ctx, config, target), config, _table(config, target) if config else None)
    value = {name: pair[0] for name, pair in resolved.items()}
    if value["model"] is None:
        raise InputError(
            "no model is given", remedy="name it: edgecompile build MODEL --target ...; or edgecompile init"
        )
    out = value.pop("out") or Path("out")
    if several or resolved["out"][0] is None:
        out /= several or api.folder_name(target)
    model = _model_reference(value.pop("model"), resolved["model"][1], config)
    value["target"], value["on"] = target, on
    return api.request(
        model,
        **value,
        out=out,
        trust=trust,
        fresh=fresh,
        options=_origins({**resolved, "on": (on, resolved["on"][1])}, target),
        command_line=("edgecompile", *sys.argv[1:]),
    )


def _one_budget(resolved: Resolved, config: ProjectConfig | None, table: str | None) -> Resolved:
    """Of ``--budget-ms`` and ``--use-case`` the one that was given nearer to the command line."""
    own = config.targets.get(table, {}) if config is not None and table is not None else {}
    rank = {name: (resolved[name][1] == "command line", name in own) for name in ("budget_ms", "use_case")}
    if None in (resolved["budget_ms"][0], resolved["use_case"][0]) or rank["budget_ms"] == rank["use_case"]:
        return resolved
    return {**resolved, min(rank, key=lambda name: rank[name]): (None, "default")}


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
