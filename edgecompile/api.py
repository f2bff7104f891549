"""The Python API: the same words as the command line's, with underscores.

>>> import edgecompile
>>> result = edgecompile.build("model.onnx", target="pi4", budget_ms=30, data="photos/")  # doctest: +SKIP
>>> result.exit_code, result.bundle.manifest.verdict.text  # doctest: +SKIP
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TypeAlias, TypedDict, Unpack

from edgecompile.errors import InputError

if TYPE_CHECKING:
    from edgecompile.pipeline import BuildResult
    from edgecompile.progress import Progress
    from edgecompile.types import BuildRequest, InputLayout, Option, Precision, RuntimeName

AnyPath: TypeAlias = "str | PathLike[str]"
Shapes: TypeAlias = "Sequence[int] | Mapping[str, Sequence[int]] | Sequence[tuple[str, Sequence[int]]]"
#: Choices of a training by name, or as ``KEY=VALUE``: the fields of `edgecompile.techniques.training.TrainingOptions`.
Choices: TypeAlias = "Mapping[str, str | int | float | bool] | Sequence[str]"


class BuildOptions(TypedDict, total=False):
    """The options of `build`; ``edgecompile build --help`` says what each does and its default."""

    target: Required[str]
    out: AnyPath
    budget_ms: float | None
    use_case: Literal["video", "voice", "search", "recommendation"] | None
    percentile: float
    max_drop: float | None
    min_sqnr: float | None
    max_size_mb: float | None
    data: AnyPath | None
    eval: AnyPath | None
    preset: str | None
    labels: AnyPath | None
    calibration_samples: int
    validation_samples: int
    eval_samples: int | None
    weights: AnyPath | None
    input_shape: Shapes
    runtime: Sequence[RuntimeName]
    precision: Sequence[Precision]
    io: Literal["float32", "int8"]
    layout: InputLayout
    on: str | None
    power_mode: str | None
    eval_on_device: int | None
    accept_throttled: bool
    benchmark_model: str | None
    threads: int | None
    warmup_seconds: float
    min_runs: int
    min_seconds: float
    seed: int
    prune: bool
    resolutions: Sequence[int]
    importance: Literal["reconstruction", "taylor", "magnitude"]
    frontier: bool
    train: bool
    student: bool
    time_limit: float
    training: Choices
    plan: str | None
    model_license: str | None
    model_source: str | None
    force: bool
    fresh: bool
    trust: bool
    content_dir: AnyPath | None
    options: tuple[Option, ...]
    command_line: tuple[str, ...]


#: Where `BuildRequest` says it in other words, with units.
_FIELDS = {
    "eval": "evaluation",
    "eval_samples": "evaluation_samples",
    "input_shape": "input_shapes",
    "io": "io_dtype",
    "layout": "input_layout",
    "min_sqnr": "min_sqnr_db",
    "precision": "precisions",
    "runtime": "runtimes",
    "time_limit": "time_limit_min",
    "warmup_seconds": "warmup_s",
}
_PATHS = frozenset({"content_dir", "data", "eval", "labels", "out", "weights"})


def request(model: str, **options: Unpack[BuildOptions]) -> BuildRequest:
    """All that a build is asked for, by the names of the command line's options. Raises `InputError`."""
    from edgecompile.types import BuildRequest

    given: dict[str, Any] = dict(options)
    unknown = [name for name in given if name not in BuildOptions.__annotations__]
    if unknown:
        near = difflib.get_close_matches(unknown[0], BuildOptions.__annotations__, 1)
        raise InputError(
            f"build has no option {unknown[0]!r}",
            remedy=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(BuildOptions.__annotations__)}",
        )
    if "target" not in given:
        raise InputError("no target is given", remedy="name a device profile: target='pi4'")
    if given.get("budget_ms") is not None and given.get("use_case") is not None:
        raise InputError("--budget-ms and --use-case both set the budget", remedy="give one of them")
    _check_training(given)
    given.setdefault("out", Path("out") / folder_name(given["target"]))
    return BuildRequest(model=model, **{_FIELDS.get(name, name): _as_field(name, v) for name, v in given.items()})


def _check_training(given: Mapping[str, Any]) -> None:
    """Raise `InputError` for options that only make sense beside others which are not there."""
    if given.get("train") and given.get("data") is None:
        raise InputError("--train has nothing to train on", remedy="give a folder of images with --data")
    for name in ("student", "training"):
        if given.get(name) and not given.get("train"):
            raise InputError(f"--{name} is about training, which was not asked for", remedy="add --train")


def folder_name(target: str) -> str:
    """What the bundle's folder is called by default: the target; of a profile's file, its name without the ending."""
    return Path(target).stem if target.endswith(".toml") else Path(target).name


def _as_field(name: str, value: Any) -> Any:
    if name in _PATHS:
        return None if value is None else Path(value)
    if name == "training":
        return _choices(value)
    if name == "input_shape":
        return _shapes(value)
    return tuple(value) if name in ("precision", "resolutions", "runtime") else value


def _choices(given: Choices) -> tuple[tuple[str, str | int | float | bool], ...]:
    """The choices of a training, with the types that they have there. Raises `InputError` for what is none."""
    if not given:
        return ()
    from edgecompile.techniques import training

    if isinstance(given, Mapping):
        return training.choices(given)
    broken = [text for text in given if "=" not in text]
    if broken:
        raise InputError(f"{broken[0]!r} is no choice of a training", remedy="one looks like loss=dist")
    return training.choices(dict(text.split("=", 1) for text in given))


def _shapes(given: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Shapes by input name; one without a name stands under the empty one."""
    if isinstance(given, Mapping):
        return tuple((name, tuple(shape)) for name, shape in given.items())
    plain = [size for size in given if isinstance(size, int)]
    named = [(pair[0], tuple(pair[1])) for pair in given if not isinstance(pair, int)]
    return (("", tuple(plain)),) if plain else tuple(named)


def build(model: str, *, progress: Progress | None = None, **options: Unpack[BuildOptions]) -> BuildResult:
    """Make of ``model`` the file that meets the budget on the target, and the proof: what ``edgecompile build`` does.

    A missed limit is a result (``exit_code`` 3, with the nearest bundle), not an error. Raises `EdgecompileError`.
    """
    from edgecompile import pipeline
    from edgecompile.progress import Silent

    return pipeline.build(request(model, **options), progress or Silent())
