"""A machine reached by SSH, against a real server on loopback: the way there and back, and every fault on it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgecompile.errors import DeviceError
from edgecompile.transport import Transport, open_transport, remote
from edgecompile.transport.local import LocalTransport
from edgecompile.transport.ssh import Patience, SSHTransport
from edgecompile.transport.ssh_connection import Connection
from edgecompile.types import file_sha256
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


# ------------------------------------------------------------------------------------------------- cut connections


def refused(found: pytest.ExceptionInfo[DeviceError], *words: str) -> None:
    """The error ends the command with exit code 4, says what to do, and names what it should."""
    assert found.value.exit_code == 4
    assert found.value.remedy
    for word in words:
        assert word in found.value.message


@pytest.mark.parametrize("streamed", [False, True], ids=["sftp", "cat"])
def test_an_upload_that_is_cut_goes_on(streamed: bool, server: Server, cable: Cable, big: Path, tmp_path: Path) -> None:
    cable.cut_after(up=1_000_000)
    cable.cut_after(up=1_200_000)
    with client(server, port=cable.port) as transport:
        without_sftp(transport, streamed)
        transport.put(big, "there")
        transport.get("there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert cable.connections == 3


def test_an_upload_that_is_always_cut_ends(server: Server, cable: Cable, big: Path) -> None:
    for _ in range(10):
        cable.cut_after(up=60_000)
    with pytest.raises(DeviceError, match=r"lost while uploading there\.bin") as found:  # noqa: SIM117
        with client(server, port=cable.port) as transport:
            transport.put(big, "there.bin")
    refused(found, "127.0.0.1")


@pytest.mark.parametrize("streamed", [False, True], ids=["sftp", "cat"])
def test_a_download_that_is_cut_goes_on(streamed: bool, server: Server, cable: Cable, tmp_path: Path) -> None:
    cable.cut_after(down=1_000_000)
    cable.cut_after(down=1_200_000)
    with client(server, port=cable.port) as transport:
        without_sftp(transport, streamed)
        assert transport.run(["sh", "-c", "head -c 3000000 /dev/urandom > made"], timeout_s=20).code == 0
        transport.get("made", tmp_path / "back")
        content = (Path(transport.folder) / "made").read_bytes()
    assert (tmp_path / "back").read_bytes() == content
    assert cable.connections == 3
    assert sorted(p.name for p in tmp_path.iterdir() if "part" in p.name) == []


def without_sftp(transport: SSHTransport, wanted: bool) -> None:
    """Let every connection of the transport believe that the machine offers no SFTP."""
    if wanted:
        connect, first = transport._connect, transport._connection
        assert first is not None
        first._without_sftp = True

        def again() -> Connection:
            made = connect()
            made._without_sftp = True
            return made

        transport._connect = again  # type: ignore[method-assign]


def later(seconds: float, action: Callable[[], None]) -> threading.Thread:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_command_survives_a_cut(server: Server, cable: Cable) -> None:
    with client(server, port=cable.port) as transport:
        timer = later(0.6, cable.cut)
        done = transport.run(["sh", "-c", "echo once >> runs; sleep 2; cat runs"], timeout_s=20)
        timer.join()
    assert (done.code, done.out) == (0, "once\n")
    assert cable.connections == 2


def test_a_machine_that_stays_away_ends_in_an_error_and_cleans_up_by_itself(server: Server, cable: Cable) -> None:
    with pytest.raises(DeviceError, match="could not be made again") as found:  # noqa: SIM117
        with client(server, port=cable.port) as transport:
            timer = later(0.6, cable.unplug)
            transport.run(["sleep", "77.125"], timeout_s=60)
    timer.join()
    refused(found)
    assert "is left" in str(found.value)
    assert server.left() == []
    assert processes("sleep 77.125") == []


def processes(text: str) -> list[str]:
    """The processes with ``text`` in their command line, after waiting a moment for those that are just ending."""
    end = time.monotonic() + 5
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in words and path.parent.name != str(os.getpid()):
                    found.append(words)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.05)


def test_a_connection_that_says_nothing_counts_as_lost(server: Server, cable: Cable) -> None:
    impatient = dataclasses.replace(QUICK, silence_s=0.5, connect_s=0.5, retries_s=(0.05,))
    with pytest.raises(DeviceError, match="could not be made again") as found:  # noqa: SIM117
        with client(server, port=cable.port, patience=impatient) as transport:
            cable.stall()
            _ = transport.python
    refused(found)
    cable.close()


def test_a_refused_connection_and_an_unknown_name(server: Server) -> None:
    with pytest.raises(DeviceError, match="cannot reach") as found, client(server, port=1):
        pass
    refused(found, "port 1", "Connection refused")
    with pytest.raises(DeviceError, match="no machine named") as found, SSHTransport("ssh://me@nobody.invalid"):
        pass
    refused(found, "nobody.invalid")


def test_a_server_that_speaks_no_ssh(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        impatient = dataclasses.replace(QUICK, connect_s=0.3)
        with pytest.raises(DeviceError, match="cannot reach") as found:  # noqa: SIM117
            with client(server, port=silent.getsockname()[1], patience=impatient):
                pass
    refused(found)


# --------------------------------------------------------------------------------------------------------- commands


def test_a_time_out_ends_everything_that_was_started(server: Server) -> None:
    with client(server) as transport:
        with pytest.raises(DeviceError, match=r"sh on .* did not end within 1 s") as found:
            transport.run(["sh", "-c", "sleep 78.125 & sleep 78.125"], timeout_s=1)
        assert processes("sleep 78.125") == []
    refused(found)


def test_what_a_command_leaves_running_ends_with_it(server: Server) -> None:
    with client(server) as transport:
        assert transport.run(["sh", "-c", "sleep 79.125 & echo done"], timeout_s=10).out == "done\n"
        assert processes("sleep 79.125") == []


def test_ctrl_c_ends_everything_and_removes_the_folder(server: Server) -> None:
    main = threading.get_ident()
    with pytest.raises(KeyboardInterrupt), client(server) as transport:
        timer = later(0.6, lambda: signal.pthread_kill(main, signal.SIGINT))
        transport.run(["sleep", "80.125"], timeout_s=60)
    timer.join()
    assert processes("sleep 80.125") == []


@pytest.mark.parametrize("name", ["KILL", "SEGV", "TERM"])
def test_a_command_ended_by_a_signal_says_so(name: str, server: Server) -> None:
    with client(server) as transport:
        assert transport.run(["sh", "-c", f"kill -{name} $$"], timeout_s=10).ended_by == f"SIG{name}"


def test_a_command_that_is_ended_with_all_its_group_is_lost(server: Server) -> None:
    with client(server) as transport:
        with pytest.raises(DeviceError, match="was ended by the machine") as found:
            transport.run(["sh", "-c", "kill -KILL 0"], timeout_s=10)
        refused(found)


def test_what_is_missing_is_named(server: Server, tmp_path: Path) -> None:
    with client(server) as transport:
        with pytest.raises(DeviceError, match=r"absent\.txt"):
            transport.put(tmp_path / "absent.txt", "there.txt")
        with pytest.raises(DeviceError, match=r"never\.txt"):
            transport.get("never.txt", tmp_path / "back.txt")
        with pytest.raises(DeviceError, match="cannot start no-such-program") as found:
            transport.run(["no-such-program"], timeout_s=10)
    refused(found)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "", ".run/1/pid"])
def test_names_stay_inside_the_folder(name: str, server: Server, big: Path) -> None:
    with client(server) as transport:
        with pytest.raises(ValueError, match="not a name"):
            transport.put(big, name)
        with pytest.raises(ValueError, match="not a name"):
            transport.get(name, big)


def test_a_folder_that_vanishes_is_told(server: Server) -> None:
    with client(server) as transport:
        shutil.rmtree(transport.folder)
        with pytest.raises(DeviceError, match="is gone") as found:
            transport.run(["true"], timeout_s=10)
    refused(found)


def test_a_broken_upload_that_was_left_there_is_not_trusted(server: Server, big: Path, tmp_path: Path) -> None:
    digest = file_sha256(big)
    with client(server) as transport:
        part = Path(transport.folder) / f"there.part-{digest[:12]}"
        part.write_bytes(b"something else that would be gone on with")
        transport.put(big, "there")
        assert file_sha256(Path(transport.folder) / "there") == digest
        assert sorted(p.name for p in Path(transport.folder).iterdir()) == [".run", "there"]


def test_a_second_ctrl_c_leaves_the_rest_to_the_machine(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str | None:
        raise KeyboardInterrupt

    transport = client(server)
    monkeypatch.setattr(transport, "_remove", interrupted)
    with pytest.raises(KeyboardInterrupt), transport:
        folder = Path(transport.folder)
        transport.run(["true"], timeout_s=5)
    assert folder.exists()
    assert server.left() == [], "the machine removes it when nobody comes back"


def test_ctrl_c_during_an_upload(server: Server, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(stream: object) -> Iterator[bytes]:
        yield b"part"
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecompile.transport.ssh_connection._chunks", interrupted)
    with pytest.raises(KeyboardInterrupt), client(server) as transport:
        transport.put(big, "there")


def test_only_a_folder_of_ours_is_ever_removed(tmp_path: Path) -> None:
    (tmp_path / "edgecompile-a").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "edgecompile.lock").mkdir()
    (tmp_path / "edgecompile.lock/token").write_text("t\n")
    (tmp_path / "edgecompile.lock/folder").write_text(f"{tmp_path}/edgecompile-a/../mine\n")
    question = remote.call(remote.REMOVE, "t", 0)
    command = ["sh", "-c", f"TMPDIR={tmp_path} {question.command}"]
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "mine").is_dir()


def test_what_a_command_said_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="edgecompile"), client(server) as transport:
        transport.run(["sh", "-c", "echo one; echo two >&2; exit 3"], timeout_s=30)
    assert "ended with 3, and said: one" in caplog.text
    assert "two" in caplog.text


def test_one_of_many_that_meet_a_stale_lock_takes_it(tmp_path: Path) -> None:
    lock = tmp_path / "edgecompile.lock"
    lock.mkdir()
    for name, text in (("token", "old"), ("pid", "999999"), ("boot", "another"), ("folder", "none"), ("born", "1")):
        (lock / name).write_text(f"{text}\n")
    children: list[subprocess.Popen[bytes]] = []
    words: list[bytes] = []

    def contend(number: int) -> None:
        for turn in range(4):
            question = remote.call(remote.KEEP, f"{number}-{turn}", 5)
            command = ["sh", "-c", f"TMPDIR={tmp_path} {question.command}"]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            children.append(child)
            assert child.stdout is not None
            child.stdout.readline()
            words.append(child.stdout.readline().split()[0])
            if words[-1] == b"taken":
                return

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for child in children:
        child.kill()
        child.communicate()
    assert words.count(b"taken") == 1
    assert not (tmp_path / "edgecompile.lock.breaking").exists()
