"""The commands that take ``--on``, against a real SSH server on loopback, as a user runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile import api, bench, bundle
from edgecompile.transport import identity
from tests.net import Project, make_project
from tests.sshd import Server, serve_known
from tests.test_cli import QUICK, edgecompile


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A host whose key this user's files know, and which has the runtimes of this environment."""
    with serve_known(tmp_path, monkeypatch) as server:
        yield server
        assert server.left() == []


def test_a_bundle_is_measured_and_verified_over_ssh(project: Project, tmp_path: Path, device: Server) -> None:
    out = tmp_path / "out"
    done = edgecompile(
        "build", project.model, "--target", "x86", "--budget-ms", "1000", *QUICK, "--data", project.train,
        "--runtime", "tflite", "--precision", "int8", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    where = f"ssh://{device.user}@127.0.0.1:{device.port}"
    done = edgecompile("bench", out, "--on", where, *QUICK, "--json")
    assert done.code == 0, done.err
    (measurement,) = json.loads(done.out)["measurements"]
    assert measurement["provenance"] == "measured"
    assert measurement["environment"]["cores"] == os.cpu_count()
    done = edgecompile("verify", out, "--on", where)
    assert done.code == 0, done.err
    assert "golden vectors" in done.out


def test_a_build_measures_where_it_is_told(project: Project, tmp_path: Path, device: Server) -> None:
    """The profile is a Raspberry Pi's, which this machine is not; what is measured over SSH is no estimate."""
    out = tmp_path / "out"
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--on", f"ssh://{device.user}@127.0.0.1:{device.port}",
        "--budget-ms", "1000", *QUICK, "--data", project.train, "--runtime", "tflite", "--precision", "fp32",
        "--out", out, "--eval-on-device", "40",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Check the golden vectors on the device" in done.err
    assert "on the device itself, 40 samples" in " ".join(done.out.split())
    manifest = bundle.read(out).manifest
    assert manifest.device_accuracy is not None
    assert manifest.device_accuracy.samples == 40
    assert manifest.device_accuracy.value > 50
    assert manifest.verdict.status == "met"
    assert manifest.measurement.provenance == "measured"


def test_another_board_at_the_same_address_is_measured_anew(
    project: Project, tmp_path: Path, device: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work folder holds the first one's figures, which are not the second's."""
    boards = ["one"]
    monkeypatch.setattr(identity, "of", lambda *_, **__: boards[-1])
    measured: list[int] = []
    measure = bench.measure
    monkeypatch.setattr(bench, "measure", lambda *rest: (measured.append(1), measure(*rest))[1])

    def build() -> None:
        api.build(
            str(project.model), target="pi4", on=f"ssh://{device.user}@127.0.0.1:{device.port}", budget_ms=1000,
            runtime=("tflite",), precision=("fp32",), out=tmp_path / "out", force=True, warmup_seconds=0.0, min_runs=5,
            min_seconds=0.0, accept_throttled=True,
        )  # fmt: skip

    build()
    build()
    assert len(measured) == 1
    boards.append("another")
    build()
    assert len(measured) == 2


def test_a_dry_run_needs_no_device(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--on", "ssh://127.0.0.1:1", "--budget-ms", "1000", "--out",
        tmp_path / "out", "--dry-run",
    )  # fmt: skip
    assert done.code == 0, done.err


def test_what_is_measured_is_what_was_built(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = edgecompile(
        "build", project.model, "--target", "x86", "--budget-ms", "1000", *QUICK, "--runtime", "tflite", "--precision",
        "fp32", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    file = bundle.read(out).file("model")
    file.write_bytes(file.read_bytes() + b"x")
    done = edgecompile("bench", out, *QUICK)
    assert done.code == 3
    assert f"{file.name} has another SHA-256" in " ".join(done.err.split())


def test_accuracy_on_a_device_needs_one(project: Project, tmp_path: Path) -> None:
    done = edgecompile(
        "build", project.model, "--target", "pi4", "--data", project.train, "--eval-on-device", "40", "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert done.code == 2
    assert "--on" in done.err


def test_a_host_whose_key_is_unknown_is_not_trusted(project: Project, tmp_path: Path, device: Server) -> None:
    (tmp_path / "home" / ".ssh" / "known_hosts").unlink()
    done = edgecompile("bench", project.model, "--on", f"ssh://{device.user}@127.0.0.1:{device.port}", *QUICK)
    assert done.code == 4
    assert "SHA256:" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("where", "code"), [("ssh://127.0.0.1:1", 4), ("moon", 2)])
def test_a_device_that_is_not_there_is_named(project: Project, where: str, code: int) -> None:
    done = edgecompile("bench", project.model, "--on", where, *QUICK)
    assert done.code == code
    assert where.removeprefix("ssh://").partition(":")[0] in done.err
    assert "Traceback" not in done.err
