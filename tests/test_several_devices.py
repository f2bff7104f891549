"""One build for several devices: side by side, each with a bundle of its own, and one that fails stops nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile import bundle
from tests.net import Project
from tests.sshd import Server, serve
from tests.test_cli import QUICK, edgecompile

MODEST = ("--data", "{train}", "--runtime", "tflite", "--precision", "fp32", "--budget-ms", "1000", "--no-prune",
          "--validation-samples", "20", "--calibration-samples", "20")  # fmt: skip


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """Two hosts that let the same key in."""
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with serve(tmp_path / "a", environment=environment) as a, serve(tmp_path / "b", environment=environment) as b:
        ssh = tmp_path / "home" / ".ssh"
        ssh.mkdir(parents=True)
        shutil.copy(a.identity, ssh / "id_ed25519")
        shutil.copy(tmp_path / "a" / "authorized_keys", tmp_path / "b" / "authorized_keys")
        (ssh / "known_hosts").write_text(a.known_hosts.read_text() + b.known_hosts.read_text())
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield a, b
        assert (a.left(), b.left()) == ([], [])


def command(project: Project, out: Path, *more: str) -> list[str]:
    words = [word.format(train=project.train) for word in MODEST]
    return ["build", str(project.model), *more, *words, *QUICK, "--out", str(out)]


def test_one_that_fails_stops_nobody(boards: tuple[Server, Server], project: Project, tmp_path: Path) -> None:
    a, b = boards
    out = tmp_path / "out"
    places = [a.where, b.where, "ssh://nobody@127.0.0.1:1"]
    done = edgecompile(*command(project, out, "--target", "pi4", *(w for on in places for w in ("--on", on)), "--json"))
    assert done.code == 4, done.err
    documents = json.loads(done.out)
    assert [d.get("exit_code", d.get("verdict", {}).get("exit_code")) for d in documents] == [0, 0, 4]
    assert "cannot reach nobody@127.0.0.1:1" in documents[2]["error"]
    folders = sorted(path.name for path in out.iterdir() if not path.name.endswith(".work"))
    assert folders == sorted(f"pi4@{s.user}-127.0.0.1-{s.port}" for s in boards)
    devices = [bundle.read(out / name).manifest.golden.devices[0].device for name in folders]
    assert sorted(devices) == sorted(s.where.removeprefix("ssh://") for s in boards)
    assert f"pi4 on {a.where}: " in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_each_target_has_its_device_and_ctrl_c_reaches_all(
    boards: tuple[Server, Server], project: Project, tmp_path: Path
) -> None:
    a, b = boards
    pairs = ("--target", "pi4", "--on", a.where, "--target", "pi5", "--on", b.where)
    words = [*command(project, tmp_path / "out", *pairs), "--min-seconds", "60"]  # the last one counts
    child = subprocess.Popen(
        [sys.executable, "-m", "edgecompile", *words], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not all(list(s.tmp.glob("edgecompile-*/models/0/model.tflite")) for s in boards) and time.monotonic() < end:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=90)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert not list((tmp_path / "out").glob("pi?"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "pi4", "--target", "pi5", "--target", "pi3", "--on", "ssh://a", "--on", "ssh://b"), "3 targets"),
        (("--target", "pi4", "--on", "ssh://a", "--on", "ssh://a"), "given twice"),
        (("--target", "pi4", "--on", "ssh://me:hunter2@a", "--on", "ssh://b", "--json"), "holds a password"),
        (("--target", "pi4", "--on", "ssh://me:hunter2@a", "--on", "ssh://b"), "holds a password"),
        (("--target", "pi4", "--on", "ssh://me:hunter2@a", "--on", "ssh://me:hunter2@a"), "holds a password"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], said: str, project: Project, tmp_path: Path
) -> None:
    done = edgecompile(*command(project, tmp_path / "out", *words))
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert "hunter2" not in done.err + done.out
