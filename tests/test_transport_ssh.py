"""A machine reached by SSH, against a real server on loopback: the way there and back, and every fault on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompile.transport import Transport, open_transport
from edgecompile.transport.local import LocalTransport
from edgecompile.transport.ssh import Patience, SSHTransport
from tests.sshd import Cable, Server, serve

QUICK = Patience(
    connect_s=10, silence_s=10, first_retries_s=(0.05,), retries_s=(0.05, 0.1, 0.2, 0.4), turn_s=20, grace_s=3
)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def server(running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server; afterwards nothing may be left on it. The home folder is an empty one, no agent is there."""
    at_home(tmp_path, monkeypatch)
    yield running
    assert running.left() == []


def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "our-home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


def client(server: Server, *, port: int | None = None, patience: Patience = QUICK) -> SSHTransport:
    where = f"ssh://{server.user}@127.0.0.1:{port or server.port}"
    return SSHTransport(where, identity=server.identity, known_hosts=server.known_hosts, patience=patience)


@pytest.fixture
def cable(server: Server) -> Iterator[Cable]:
    found = Cable(server.port)
    server.knows(found.port)
    yield found
    found.close()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(3_000_000))
    return path


# ------------------------------------------------------------------------------------------------- the way it goes


def test_it_is_a_transport(server: Server) -> None:
    transport: Transport = client(server)
    assert not transport.is_this_machine
    assert transport.description == f"{server.user}@127.0.0.1:{server.port}"


def test_files_go_there_and_come_back(server: Server, big: Path, tmp_path: Path) -> None:
    with client(server) as transport:
        transport.put(big, "a/b/there it's.bin")
        assert transport.run(["cp", "a/b/there it's.bin", "copy.bin"], timeout_s=10).code == 0
        transport.get("copy.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == big.read_bytes()


def test_an_empty_file_and_one_that_is_put_again(server: Server, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"")
    two.write_bytes(b"2")
    with client(server) as transport:
        transport.put(one, "file")
        assert transport.run(["cat", "file"], timeout_s=10).out == ""
        transport.put(two, "file")
        assert transport.run(["cat", "file"], timeout_s=10).out == "2"


def test_output_and_exit_code_are_told(server: Server) -> None:
    with client(server) as transport:
        done = transport.run(["sh", "-c", "echo out; echo err >&2; printf '\\377'; exit 7"], timeout_s=10)
    assert (done.code, done.out, done.err) == (7, "out\n\ufffd", "err\n")


@pytest.mark.parametrize("word", ["a b", "it's", '"', "$HOME", "`id`", "a\nb", "\\", "*", "", "-n", "é", "; exit 3"])
def test_arguments_arrive_as_they_are(word: str, server: Server) -> None:
    with client(server) as transport:
        assert transport.run(["printf", "%s|", word, "end"], timeout_s=10).out == f"{word}|end|"


def test_the_folder_is_fresh_private_and_removed(server: Server) -> None:
    with client(server) as transport:
        folder = Path(transport.folder)
        assert folder.parent == server.tmp
        assert folder.stat().st_mode & 0o077 == 0
        assert transport.run(["pwd"], timeout_s=10).out.strip() == str(folder)
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="with statement"):
        transport.run(["true"], timeout_s=1)


def test_python_is_found(server: Server) -> None:
    with client(server) as transport:
        assert transport.run([transport.python, "-c", "print(6 * 7)"], timeout_s=20).out == "42\n"


def test_the_folder_is_removed_when_something_fails(server: Server) -> None:
    with pytest.raises(ZeroDivisionError), client(server) as transport:
        folder = Path(transport.folder)
        raise ZeroDivisionError
    assert not folder.exists()


def test_an_address_opens_a_transport() -> None:
    assert isinstance(open_transport("local"), LocalTransport)
    found = open_transport("ssh://me@board:2222")
    assert isinstance(found, SSHTransport)
    assert found.description == "me@board:2222"
