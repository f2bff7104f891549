"""The Python API: the command line's words."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import edgecompile
from edgecompile import api
from edgecompile.cli import build as command
from edgecompile.errors import InputError
from tests.net import Project, make_project

#: Options of the command line that are about the terminal or the project file, not about a build.
ABOUT_THE_TERMINAL = {"dry_run", "as_json", "config_path", "quiet", "verbose", "debug", "model"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


def test_every_option_of_the_command_line_has_the_same_name_here() -> None:
    names = {param.name for param in command.params if isinstance(param, click.Option)} - ABOUT_THE_TERMINAL
    assert names == set(api.BuildOptions.__annotations__) - {"options", "command_line"}


def test_defaults_are_those_of_the_command_line(tmp_path: Path) -> None:
    defaults = {p.name: p.default for p in command.params if isinstance(p, click.Option)}
    given = {
        name: defaults[name] for name in api.BuildOptions.__annotations__
        if name in defaults and isinstance(defaults[name], bool | int | float | str)
    }  # fmt: skip
    assert api.request("m.onnx", target="x86", **{k: v for k, v in given.items() if k != "target"}) == api.request(  # type: ignore[typeddict-item]
        "m.onnx", target="x86"
    )


def test_a_model_is_built(project: Project, tmp_path: Path) -> None:
    result = edgecompile.build(
        str(project.model), target="pi3", budget_ms=1000, data=project.train, precision=["fp32"], runtime=["tflite"],
        out=tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 6
    assert result.bundle.manifest.verdict.status == "predicted"
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        ((1, 3, 32, 32), (("", (1, 3, 32, 32)),)),
        ({"x": [1, 3, 32, 32]}, (("x", (1, 3, 32, 32)),)),
        ([("x", (1, 2)), ("y", (1, 3))], (("x", (1, 2)), ("y", (1, 3)))),
        ((), ()),
    ],
)
def test_shapes_are_taken_with_and_without_names(given: api.Shapes, shapes: object) -> None:
    assert api.request("m.onnx", target="x86", input_shape=given).input_shapes == shapes


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="budget_mss") as caught:
        edgecompile.build("m.onnx", target="pi4", budget_mss=3)  # type: ignore[call-arg]
    assert "budget_ms" in str(caught.value.remedy)
    with pytest.raises(InputError, match="no target"):
        edgecompile.build("m.onnx")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="both set the budget"):
        edgecompile.build("m.onnx", target="pi4", budget_ms=3, use_case="video")
