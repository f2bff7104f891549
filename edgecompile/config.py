"""``edgecompile.toml``: the options of a project's daily build, so that ``edgecompile build`` alone is enough.

It may hold any option of ``build`` by its long name with underscores, and tables ``[targets.NAME]`` that override
them for one target. Keys are strict. ``trust`` is never read from a file: a cloned repository must not be able to
set it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgecompile.errors import InputError

NAME = "edgecompile.toml"
Value = str | int | float | bool | list[str] | list[int] | list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectConfig:
    """What an ``edgecompile.toml`` says; ``targets`` holds the overrides by target name."""

    path: Path
    values: Mapping[str, Value] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)

    def value(self, key: str, target: str | None) -> Value | None:
        """The value in force for a target: its own table's, else the common one, else ``None``."""
        own = self.targets.get(target, {}) if target is not None else {}
        return own.get(key, self.values.get(key))


def load(path: Path, *, known: Collection[str], forbidden: Collection[str] = ("trust",)) -> ProjectConfig:
    """Read an ``edgecompile.toml`` that may have the keys ``known`` and must not have those ``forbidden``.

    Raises `InputError` naming file and key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise InputError(f"no such file: {path}", remedy="edgecompile init writes one") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
        raise InputError(f"cannot read {path}: {exc}", remedy="mend the file") from exc
    tables = document.pop("targets", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise InputError(f"{path}: 'targets' must hold tables, like [targets.pi4]")
    for where, table in (("", document), *((f"[targets.{name}] ", t) for name, t in tables.items())):
        per_target = bool(where)
        allowed = {k for k in known if not (per_target and k == "target")}
        for key in table:
            _check_key(path, where, key, allowed, forbidden)
    return ProjectConfig(path=path, values=document, targets=tables)


def _check_key(path: Path, where: str, key: str, known: Collection[str], forbidden: Collection[str]) -> None:
    if key in forbidden:
        option = f"--{key.replace('_', '-')}"
        raise InputError(
            f"{path}: {where}{key!r} cannot be set in a file", remedy=f"give {option} on the command line, each time"
        )
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        raise InputError(f"{path}: unknown key {where}{key!r}", remedy=remedy)


TEMPLATE = """\
# The options of `edgecompile build` by their long names, with underscores. The command line wins over this file.
{model}
{weights}
{input_shape}

# Images or arrays like those the model will see: for calibration, and to measure accuracy.
{data}
{eval}
{preset}

# Device profiles: `edgecompile devices` lists them.
target = {target}

# The largest accuracy drop, in percentage points against the original. It needs data.
{max_drop}

# Latency budgets, by device. Without one, the device's own default is used.
{budgets}
"""


def template(
    *,
    model: str | None,
    weights: str | None,
    input_shape: str | None,
    data: str | None,
    evaluation: str | None,
    preset: str | None,
    targets: Mapping[str, float],
) -> str:
    """A new ``edgecompile.toml``: what is known is set, the rest stands as a comment with an example."""

    def line(key: str, value: str | None, example: str) -> str:
        return f"{key} = {_quote(value)}" if value is not None else f"# {key} = {_quote(example)}"

    budgets = "\n\n".join(f"[targets.{name}]\nbudget_ms = {budget:g}" for name, budget in targets.items())
    return TEMPLATE.format(
        model=line("model", model, "model.onnx"),
        weights=line("weights", weights, "weights.pth"),
        input_shape=line("input_shape", input_shape, "1,3,224,224"),
        data=line("data", data, "images/"),
        eval=line("eval", evaluation, "test/"),
        preset=line("preset", preset, "imagenet"),
        max_drop="max_drop = 1.0" if data is not None else "# max_drop = 1.0",
        target=f"[{', '.join(_quote(name) for name in targets)}]",
        budgets=budgets,
    )


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
