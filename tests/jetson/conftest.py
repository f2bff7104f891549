"""Small files to build engines of, made once, and a stand-in for each version of TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from edgecompile import lower
from edgecompile.transport.ssh import Patience, SSHTransport
from edgecompile.types import Artifact, Plan, Precision
from tests.jetson.standin import Standin, environment, make_host, standin
from tests.lowering import samples, small_net

PATIENCE = Patience(
    connect_s=10, silence_s=20, first_retries_s=(0.05,), retries_s=(0.05, 0.1, 0.2), turn_s=20, grace_s=2
)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Artifact]:
    """A small net for TensorRT in each precision."""
    folder = tmp_path_factory.mktemp("files")
    model = small_net(folder)
    plans: dict[Precision, Plan] = {
        precision: Plan(runtime="tensorrt", precision=precision) for precision in ("fp32", "fp16", "int8")
    }
    return {
        precision: lower.RUNTIMES["tensorrt"].lower(model, plan, samples(model), folder / precision)
        for precision, plan in plans.items()
    }


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Callable[[str], Standin]]:
    """Starts a stand-in with a version of TensorRT. Nothing of ours may be left on it."""
    with ExitStack() as stack:
        started: list[Standin] = []

        def start(version: str) -> Standin:
            started.append(stack.enter_context(standin(tmp_path / version, version)))
            return started[-1]

        yield start
        for one in started:
            assert one.server.left() == []


@pytest.fixture
def at_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Standin]:
    """Makes this machine play a board itself: for what does not depend on the way there, which takes longest."""

    def start(version: str) -> Standin:
        root = tmp_path / "here"
        make_host(root, version)
        for name, value in environment(root).items():
            monkeypatch.setenv(name, value)
        return Standin(server=None, root=root)

    return start


def reach(found: Standin, *, port: int | None = None, patience: Patience = PATIENCE) -> SSHTransport:
    """The way to a stand-in."""
    where = f"ssh://{found.server.user}@127.0.0.1:{port or found.server.port}"
    return SSHTransport(where, identity=found.server.identity, known_hosts=found.server.known_hosts, patience=patience)
