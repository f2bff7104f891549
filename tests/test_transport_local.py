"""This machine as a transport: one fresh folder, always removed, and nothing that outlives a call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from edgecompile.errors import DeviceError
from edgecompile.transport import Completed, Transport
from edgecompile.transport.local import LocalTransport


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "local.txt"
    path.write_text("content")
    return path


def test_it_is_a_transport() -> None:
    transport: Transport = LocalTransport()
    assert transport.is_this_machine
    assert transport.description == "this machine"
    assert transport.python == sys.executable


def test_files_go_there_and_come_back(file: Path, tmp_path: Path) -> None:
    with LocalTransport() as transport:
        transport.put(file, "a/b/there.txt")
        done = transport.run(["cp", "a/b/there.txt", "copy.txt"], timeout_s=10)
        assert done.code == 0
        transport.get("copy.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "content"


def test_a_file_may_be_put_again(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("other")
    with LocalTransport() as transport:
        transport.put(file, "there.txt")
        transport.put(other, "there.txt")
        assert transport.run(["cat", "there.txt"], timeout_s=10).out == "other"
    assert file.read_text() == "content"


def test_output_and_exit_code_are_told() -> None:
    with LocalTransport() as transport:
        done = transport.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=10)
    assert done == Completed(code=7, out="out\n", err="err\n")
    assert done.ended_by is None


def test_output_that_is_no_text_does_not_hurt() -> None:
    with LocalTransport() as transport:
        assert "\ufffd" in transport.run(["printf", r"\377"], timeout_s=10).out


@pytest.mark.parametrize("code", [-9, 137])
def test_a_signal_has_its_name(code: int) -> None:
    assert Completed(code=code, out="", err="").ended_by == "SIGKILL"


def test_the_folder_is_fresh_private_and_removed() -> None:
    with LocalTransport() as first, LocalTransport() as second:
        assert first.folder != second.folder
        assert first.folder.stat().st_mode & 0o077 == 0
        folders = [first.folder, second.folder]
    assert not any(folder.exists() for folder in folders)


def test_the_folder_is_removed_when_something_fails(file: Path) -> None:
    transport = LocalTransport()
    with pytest.raises(ZeroDivisionError), transport:
        transport.put(file, "there.txt")
        folder = transport.folder
        raise ZeroDivisionError
    assert not folder.exists()
    assert file.exists()


def test_outside_of_the_with_block_there_is_no_folder(file: Path) -> None:
    with pytest.raises(RuntimeError, match="with statement"):
        LocalTransport().put(file, "there.txt")


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", ""])
def test_names_stay_inside_the_folder(name: str, file: Path) -> None:
    with LocalTransport() as transport:
        with pytest.raises(ValueError, match="inside"):
            transport.put(file, name)
        with pytest.raises(ValueError, match="inside"):
            transport.get(name, file)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with LocalTransport() as transport:
        with pytest.raises(DeviceError, match=r"absent\.txt"):
            transport.put(tmp_path / "absent.txt", "there.txt")
        with pytest.raises(DeviceError, match=r"never\.txt"):
            transport.get("never.txt", tmp_path / "back.txt")
        with pytest.raises(DeviceError, match="cannot start no-such-program") as found:
            transport.run(["no-such-program"], timeout_s=10)
    assert found.value.exit_code == 4
    assert found.value.remedy


def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_time_out_ends_everything_that_was_started() -> None:
    with LocalTransport() as transport:
        with pytest.raises(DeviceError, match="did not end within 1 s"):
            transport.run(["sh", "-c", "sleep 60 & echo $! > pid; wait"], timeout_s=1)
        pid = int((transport.folder / "pid").read_text())
        assert gone(pid)


def test_ctrl_c_ends_everything_and_removes_the_folder(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from edgecompile.transport.local import LocalTransport
        with LocalTransport() as transport:
            Path({str(tmp_path / "folder")!r}).write_text(str(transport.folder))
            transport.run(["sh", "-c", "sleep 60 & echo $! > {tmp_path}/pid; wait"], timeout_s=50)
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert gone(int((tmp_path / "pid").read_text()))
    assert not Path((tmp_path / "folder").read_text()).exists()
