from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgecompile import store
from edgecompile.errors import InputError
from edgecompile.store import Store
from edgecompile.types import Ratio

RATIO = Ratio(value=1.0, ci_low=0.9, ci_high=1.1)


def test_a_result_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> Ratio:
        made.append(folder)
        (folder / "data.bin").write_bytes(b"x")
        return RATIO

    for _ in range(2):
        assert Store(tmp_path / "a.work").cached("kind", "k" * 64, Ratio, make) == RATIO
    assert len(made) == 1
    assert (made[0] / "data.bin").read_bytes() == b"x"


def test_an_entry_cut_off_is_made_again_from_nothing(tmp_path: Path) -> None:
    work = Store(tmp_path / "a.work")

    def killed(folder: Path) -> Ratio:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.cached("kind", "k", Ratio, killed)

    def make(folder: Path) -> Ratio:
        assert list(folder.iterdir()) == []
        return RATIO

    assert work.cached("kind", "k", Ratio, make) == RATIO


def test_a_result_of_another_version_is_made_again(tmp_path: Path) -> None:
    work = Store(tmp_path / "a.work")
    folder = tmp_path / "a.work" / "kind" / "k"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"other": 1}')
    assert work.cached("kind", "k", Ratio, lambda _: RATIO) == RATIO


def test_two_builds_cannot_share_a_work_folder(tmp_path: Path) -> None:
    work = Store(tmp_path / "a.work")
    with work.locked(), pytest.raises(InputError, match="another build is using"), Store(tmp_path / "a.work").locked():
        pass
    with work.locked():
        pass


def test_write_atomically_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_work_folders_are_listed_and_removed_but_nothing_else(tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    with Store(work).locked():
        (work / "big").write_bytes(b"0" * 1000)
        store.register(work)
    innocent = tmp_path / "photos"
    innocent.mkdir()
    pointer = store.cache_root() / "work" / "tampered"
    pointer.write_text(str(innocent))
    found = store.work_folders()
    assert [f.path for f in found] == [work]
    assert found[0].size_bytes >= 1000
    assert not found[0].finished
    assert store.clean(found, older_than_days=1) == ([], [])
    assert store.clean(found) == (found, [])
    assert not work.exists()
    assert innocent.is_dir()
    assert store.work_folders() == []


def test_a_work_folder_in_use_is_not_removed(tmp_path: Path) -> None:
    work, idle = tmp_path / "out.work", tmp_path / "idle.work"
    with Store(idle).locked():
        store.register(idle)
    with Store(work).locked():
        store.register(work)
        removed, busy = store.clean(store.work_folders())
    assert ([f.path for f in removed], [f.path for f in busy]) == ([idle], [work])
    assert work.is_dir()
    assert not idle.exists()


def test_a_work_folder_in_which_nothing_was_done_goes_away(tmp_path: Path) -> None:
    used, unused = Store(tmp_path / "used.work"), Store(tmp_path / "unused.work")
    for one in (used, unused):
        with one.locked():
            (one.root / "model").mkdir()
    (used.root / "model" / "model.onnx").write_bytes(b"1")
    used.discard_if_empty()
    unused.discard_if_empty()
    assert used.root.is_dir()
    assert not unused.root.exists()
