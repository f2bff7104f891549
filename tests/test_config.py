from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgecompile import config
from edgecompile.errors import InputError

KNOWN = {"model", "target", "budget_ms", "max_drop", "data"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edgecompile.toml"
    path.write_text(text)
    return path


def test_a_targets_own_value_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "budget_ms = 10\nmax_drop = 1.0\n[targets.pi4]\nbudget_ms = 30\n")
    found = config.load(path, known=KNOWN)
    assert found.value("budget_ms", "pi4") == 30
    assert found.value("budget_ms", "jetson") == 10
    assert found.value("max_drop", "pi4") == 1.0
    assert found.value("data", "pi4") is None


@pytest.mark.parametrize("where", ["", "[targets.pi4]\n"])
def test_trust_cannot_come_from_a_file(tmp_path: Path, where: str) -> None:
    with pytest.raises(InputError, match="'trust' cannot be set in a file"):
        config.load(written(tmp_path, f"{where}trust = true\n"), known=KNOWN)


def test_an_unknown_key_names_file_key_and_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "budget = 10\n")
    with pytest.raises(InputError) as caught:
        config.load(path, known=KNOWN)
    assert str(path) in caught.value.message
    assert "'budget'" in caught.value.message
    assert caught.value.remedy == "did you mean 'budget_ms'?"


def test_target_inside_a_targets_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown key"):
        config.load(written(tmp_path, '[targets.pi4]\ntarget = "x"\n'), known=KNOWN)


@pytest.mark.parametrize("text", ["budget_ms = ", "targets = 3\n", "\x00"])
def test_a_broken_file_is_an_input_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        config.load(written(tmp_path, text), known=KNOWN)


def test_the_template_is_valid_and_says_what_is_known() -> None:
    text = config.template(
        model='we"ird.onnx', weights=None, input_shape=None, data="photos", evaluation=None, preset="imagenet",
        targets={"pi4": 33.0, "jetson": 20.5},
    )  # fmt: skip
    document = tomllib.loads(text)
    assert document["model"] == 'we"ird.onnx'
    assert document["target"] == ["pi4", "jetson"]
    assert document["targets"]["jetson"] == {"budget_ms": 20.5}
    assert "weights" not in document
    assert "# weights = " in text
    assert document["max_drop"] == 1.0


def test_a_template_without_data_asks_for_no_accuracy() -> None:
    text = config.template(
        model="m.onnx", weights=None, input_shape=None, data=None, evaluation=None, preset=None, targets={"pi4": 33.0}
    )
    assert "max_drop" not in tomllib.loads(text)
    assert "# max_drop = " in text
