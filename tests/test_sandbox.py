"""Real crashes, hangs and hoarding in real child processes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from edgecompile import sandbox
from edgecompile.errors import EdgecompileError, InputError, UnsupportedModelError


def call(name: str, argument: Any = None, *, memory_bytes: int = 1 << 30, timeout_s: float = 20) -> Any:
    return sandbox.call(
        f"tests.sandbox_probe:{name}", argument, memory_bytes=memory_bytes, timeout_s=timeout_s, what="the file f.onnx"
    )


def test_json_values_go_there_and_back() -> None:
    value = {"a": [1, 2.5, None, "ä"], "b": {"c": True}}
    assert call("echo", value) == value


def test_what_the_child_prints_disturbs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("noisy", 7) == 7
    assert capfd.readouterr() == ("", "")


def test_an_error_keeps_its_class_words_and_operators() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        call("unsupported")
    assert (caught.value.message, caught.value.remedy) == ("no such operators", "export again")
    assert caught.value.operators == (("Foo", "node_1"), ("a.Bar", ""))
    assert caught.value.exit_code == 5


def test_a_crash_is_told_with_the_signal() -> None:
    with pytest.raises(InputError, match=r"the file f\.onnx.*Segmentation fault"):
        call("crash")


def test_an_inner_fault_is_told_by_its_last_line() -> None:
    with pytest.raises(InputError, match="an inner fault"):
        call("fault")


def test_a_child_that_ends_without_an_answer() -> None:
    with pytest.raises(InputError, match="about to stop without an answer"):
        call("abrupt")


def test_memory_is_limited() -> None:
    with pytest.raises(InputError, match=r"needs more than 0\.5 GiB of memory"):
        call("hoard", 1 << 30, memory_bytes=512 << 20)
    assert call("hoard", 1 << 20, memory_bytes=512 << 20) == 1 << 20


def test_time_is_limited_and_the_whole_group_ends(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answer within 2 s"):
        call("hang", str(tmp_path / "pids"), timeout_s=2)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process of the child's group lives on"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_modules_in_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("json", "resource", "onnx", "edgecompile"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    assert os.path.realpath(tmp_path) not in call("module_path")
    assert not (tmp_path / "ran").exists()


def test_no_folder_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    call("echo", 1)
    with pytest.raises(EdgecompileError):
        call("crash")
    assert list(tmp_path.iterdir()) == []
