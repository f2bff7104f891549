"""An environment on a device: made by its own pip or from wheels carried there, found by itself, removed again."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from edgecompile import device_setup, lower
from edgecompile.device_setup import Device
from edgecompile.errors import DeviceError
from edgecompile.types import Plan
from tests.lowering import samples, small_net
from tests.sshd import Server, serve
from tests.test_cli import QUICK, edgecompile

SCRIPT = Path(device_setup.content.builtin_root("targets")) / "environment.py"
PI = Device(
    python=(3, 11, 2), implementation="CPython", machine="aarch64", system="linux", libc="glibc", libc_version="2.36",
    has_venv=True, has_pip=True, installed={}, root="/home/pi/.edgecompile", environment=None, free_bytes=10**9,
)  # fmt: skip


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel with some files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything = {**files, **metadata}
    record = "".join(f"{path},,\n" for path in (*everything, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in {**everything, f"{info}/RECORD": record}.items():
            archive.writestr(inner, text)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels that stand for those of an index: they lead to the packages of the environment that the tests run in."""
    folder = tmp_path / "wheels"
    wheel(folder, "ai_edge_litert", "2.1.7", {"edgecompile_test.pth": sysconfig.get_paths()["purelib"] + "\n"})
    wheel(folder, "numpy", "1.99", {})
    return folder


@pytest.fixture
def device(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A host with a bare Python; its pip knows the wheels only."""
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to(os.path.realpath(sys.executable))
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": ""}
    with serve(tmp_path / "sshd", environment={"PATH": f"{bare}:/usr/bin:/bin", **pip}) as server:
        at_home(server, tmp_path / "home", monkeypatch)
        yield server
        assert server.left() == []


def at_home(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = home / ".ssh"
    ssh.mkdir(parents=True)
    shutil.copy(server.identity, ssh / "id_ed25519")
    shutil.copy(server.known_hosts, ssh / "known_hosts")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def environments(server: Server) -> list[str]:
    return sorted(path.name for path in server.home.glob(".edgecompile/*"))


# ------------------------------------------------------------------------------------------------ as a user does it


def test_wheels_are_carried_there_and_the_runner_finds_them(device: Server, wheels: Path, tmp_path: Path) -> None:
    bench = ("bench", small_tflite(tmp_path), "--on", device.where, *QUICK)
    done = edgecompile(*bench)
    assert done.code == 4
    assert f"edgecompile device setup --on {device.where}" in " ".join(done.err.split())
    done = edgecompile("device", "setup", "--on", device.where, "--wheels", wheels, "--yes")
    assert done.code == 0, done.err
    assert "is set up: numpy" in done.out
    done = edgecompile(*bench)
    assert done.code == 0, done.err
    assert "ai_edge_litert" in done.out
    done = edgecompile("device", "setup", "--on", device.where, "--yes")
    assert "nothing to do" in done.out
    done = edgecompile("device", "setup", "--on", device.where, "--remove")
    assert (done.code, done.out) == (0, "removed the environment\n"), done.err
    assert list(device.home.iterdir()) == []


def small_tflite(folder: Path) -> Path:
    model = small_net(folder)
    plan = Plan(runtime="tflite", precision="fp32")
    return lower.RUNTIMES["tflite"].lower(model, plan, samples(model), folder / "lowered").file


@pytest.mark.slow
def test_the_devices_own_pip_installs(device: Server) -> None:
    done = edgecompile("device", "setup", "--on", device.where, "--yes")
    assert done.code == 0, done.err
    assert "ai_edge_litert" in done.out
    assert [name.partition("-")[0] for name in environments(device)] == ["current", "env"]


def test_it_asks_first(device: Server) -> None:
    done = edgecompile("device", "setup", "--on", device.where)
    assert done.code == 2
    assert "--yes" in done.err
    assert list(device.home.iterdir()) == []


@pytest.mark.slow
def test_what_does_not_run_there_leaves_what_was_there(device: Server, wheels: Path, tmp_path: Path) -> None:
    done = edgecompile("device", "setup", "--on", device.where, "--wheels", wheels, "--yes")
    assert done.code == 0, done.err
    before = environments(device)
    wheel(tmp_path / "broken", "ai_edge_litert", "2.1.8", {"ai_edge_litert/__init__.py": "raise OSError('bad core')"})
    wheel(tmp_path / "broken", "numpy", "1.99", {"numpy.py": ""})
    done = edgecompile(
        "device", "setup", "--on", device.where, "--wheels", tmp_path / "broken", "--yes", "--force"
    )  # fmt: skip
    assert done.code == 4
    assert "cannot be imported" in done.err
    assert "bad core" in done.err
    assert environments(device) == before


def test_without_wheels_that_fit_nothing_is_left(device: Server, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = edgecompile("device", "setup", "--on", device.where, "--wheels", tmp_path / "none", "--yes")
    assert done.code == 4
    assert "no wheels for Python" in done.err
    assert list(device.home.iterdir()) == []


def test_ctrl_c_while_it_installs_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        path = f"{Path(os.path.realpath(sys.executable)).parent}:/usr/bin:/bin"
        with serve(tmp_path / "sshd", environment={"PATH": path, "PIP_INDEX_URL": index}) as server:
            at_home(server, tmp_path / "home", monkeypatch)
            command = [sys.executable, "-m", "edgecompile", "device", "setup", "--on", server.where, "--yes", "--force"]
            child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            end = time.monotonic() + 60
            while not list(server.home.glob(".edgecompile/edgecompile-env-*/bin/pip")) and time.monotonic() < end:
                time.sleep(0.1)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=60)
            assert child.returncode == 130, err
            assert "Traceback" not in err
            assert list(server.home.iterdir()) == []
            assert server.left() == []


@pytest.mark.parametrize(("where", "word"), [("local", "pip install"), ("adb:1234", "--benchmark-model")])
def test_what_is_not_set_up_this_way_is_told(where: str, word: str) -> None:
    done = edgecompile("device", "setup", "--on", where, "--yes")
    assert done.code == 2
    assert word in done.err


# ---------------------------------------------------------------------------------------------------- the parts


def test_pip_is_told_what_the_device_is() -> None:
    words = device_setup._tags(PI)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    assert ("--python-version", "3.11") in pairs
    assert [value for key, value in pairs if key == "--platform"][:2] == [
        "manylinux_2_36_aarch64",
        "manylinux_2_35_aarch64",
    ]
    assert ("--platform", "manylinux2014_aarch64") in pairs
    assert [value for key, value in pairs if key == "--abi"] == ["cp311", "abi3", "none"]


def test_a_phone_without_wheels_is_told(tmp_path: Path) -> None:
    termux = dataclasses.replace(PI, system="android", libc="", libc_version="")
    with pytest.raises(DeviceError, match="Android") as found:
        device_setup.fetch(termux, ("tflite",), tmp_path)
    assert found.value.exit_code == 4


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgecompile_environment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_the_home_folder_is_read_only_another_is_taken(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "roots", lambda: ["/proc/.edgecompile", str(tmp_path / "var")])
    assert script.writable_root() == str(tmp_path / "var")
    monkeypatch.setattr(script, "roots", lambda: ["/proc/.edgecompile"])
    with pytest.raises(script.Failure, match=r"/proc/\.edgecompile"):
        script.writable_root()


def test_only_what_is_not_in_use_is_tidied(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "roots", lambda: [str(tmp_path)])
    for name in ("edgecompile-env-old", "edgecompile-env-used", "env-mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("edgecompile-env-used")
    assert script.tidy() == {"removed": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "edgecompile-env-used", "env-mine"]
    assert script.remove() == {"removed": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["env-mine"]


def test_a_link_that_somebody_else_made_is_no_place(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert script.is_ours(str(tmp_path / "link"))
    other = os.stat_result((0o120777, 1, 1, 1, os.getuid() + 1, 0, 0, 0, 0, 0))
    monkeypatch.setattr(script.os, "lstat", lambda path: other)
    assert not script.is_ours(str(tmp_path / "link"))
