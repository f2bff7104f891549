from __future__ import annotations

from pathlib import Path

import pytest

from edgecompile import content
from edgecompile.errors import InputError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own" / "calibration"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text("x = 1\n")
    (folder / "imagenet.toml").write_text("x = 1\n")
    return tmp_path / "own"


def test_built_ins_are_found() -> None:
    found = content.find("calibration", "imagenet")
    assert found.origin == "built-in"
    assert found.path.is_file()


def test_the_content_folder_comes_before_the_built_ins(own: Path) -> None:
    assert content.find("calibration", "mine", content_dir=own).origin == "--content-dir"
    assert content.find("calibration", "imagenet", content_dir=own).path == own / "calibration" / "imagenet.toml"


def test_the_search_path_of_the_environment(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECOMPILE_PATH", f"/nowhere:{own}")
    assert content.find("calibration", "mine").origin == "$EDGECOMPILE_PATH"


def test_shadowing_a_built_in_is_logged(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="edgecompile"):
        content.names("calibration", content_dir=own)
    assert any("shadows the built-in preset 'imagenet'" in r.message for r in caplog.records)


def test_the_current_folder_is_never_searched(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own / "calibration")
    with pytest.raises(InputError, match="unknown preset 'mine'"):
        content.find("calibration", "mine")
    assert content.find("calibration", "mine.toml").path == Path("mine.toml")
    assert content.find("calibration", "./mine.toml").origin == "file"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        content.find("calibration", "imagnet")
    assert "did you mean 'imagenet'?" in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no such file: /nowhere/x\.toml"):
        content.find("calibration", "/nowhere/x.toml")
