"""One SSH connection: made, used and closed, with a time limit on every single wait.

Faults are told apart here, once: `Dropped` (the connection is lost; another may do) and `Refused` (the machine
answered and said no).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgecompile.errors import DeviceError
from edgecompile.transport.connection import SILENCE_S, Dropped, Refused
from edgecompile.transport.remote import APPEND, READ, Call, call
from edgecompile.transport.ssh_config import Endpoint, resolve
from edgecompile.transport.ssh_keys import Authenticator, check_host_key, known_keys, prefer_known_types

if TYPE_CHECKING:
    import paramiko

KEEPALIVE_S = 15
CHUNK_BYTES = 256 * 1024
_LONGEST_ANSWER = 64 * 1024
_MOST_JUMPS = 8
_FAREWELL_S = 5.0


class Connection:
    """A connection that is logged in. Use `connect` to make one."""

    def __init__(self, transport: paramiko.Transport, closers: contextlib.ExitStack, silence_s: float) -> None:
        self._transport = transport
        self._closers = closers
        self._silence_s = silence_s
        self._sftp: paramiko.SFTPClient | None = None
        self._without_sftp = False

    @property
    def alive(self) -> bool:
        """Whether the connection is known to be up."""
        return bool(self._transport.is_active())

    def close(self) -> None:
        """Close everything: channels, sockets, threads, jumps and proxies."""
        self._closers.close()

    @contextlib.contextmanager
    def guard(self, limit_s: float | None = None) -> Iterator[None]:
        """Turn every fault of the block into `Dropped` or `Refused`; cut the connection when the block takes too long.

        Some of paramiko's waits have no limit of their own, so the limit is set from outside.
        """
        timer = threading.Timer(limit_s or self._silence_s, self._transport.close)
        timer.daemon = True
        timer.start()
        try:
            with translated(lambda: self.alive, time_out=timer.finished.is_set):
                yield
        finally:
            timer.cancel()

    def ask(self, question: Call, *, limit_s: float | None = None) -> list[str]:
        """Run a script to its end and return the words of its answer."""
        received = b""
        with self.guard(limit_s), self._channel(question.command) as channel:
            while (words := question.answer(received)) is None and len(received) < _LONGEST_ANSWER:
                data = channel.recv(CHUNK_BYTES)
                if not data:
                    break
                received += data
            if words is None:
                self._no_answer(channel, received)
            return words or []

    def hold(self, question: Call) -> tuple[list[str], paramiko.Channel]:
        """Start a script that goes on running after its answer; return both."""
        received = b""
        with self.guard():
            channel = self._transport.open_session(timeout=self._silence_s)
            channel.exec_command(question.command)
            while (words := question.answer(received)) is None:
                data = channel.recv(CHUNK_BYTES)
                if not data or len(received) > _LONGEST_ANSWER:
                    self._no_answer(channel, received)
                received += data
            return words, channel

    @contextlib.contextmanager
    def _channel(self, command: str) -> Iterator[paramiko.Channel]:
        channel = self._transport.open_session(timeout=self._silence_s)
        try:
            channel.exec_command(command)
            yield channel
        finally:
            self._close(channel)

    def _close(self, thing: paramiko.Channel | paramiko.SFTPFile) -> None:
        """Close without a word when the connection is gone: the first fault, or Ctrl-C, is what shall be seen."""
        with contextlib.suppress(Dropped, Refused), self.guard(_FAREWELL_S):
            thing.close()

    def _no_answer(self, channel: paramiko.Channel, received: bytes) -> None:
        if not self.alive or not channel.exit_status_ready():
            time.sleep(0.2)
        if not self.alive:
            raise Dropped("the connection was closed")
        said = (received + channel.recv_stderr(4096)).decode(errors="replace").strip()
        raise Refused(f"its shell answered {said[:200]!r}" if said else "its shell answered nothing")

    # ---------------------------------------------------------------------------------------------------- files

    def _files(self) -> paramiko.SFTPClient | None:
        """SFTP, or ``None`` where the machine does not offer it."""
        import paramiko

        if self._sftp is None and not self._without_sftp:
            try:
                with self.guard():
                    self._sftp = paramiko.SFTPClient.from_transport(self._transport)
            except (Dropped, Refused):
                time.sleep(0.1)
                if not self.alive:
                    raise
                self._without_sftp = True
        return self._sftp

    def send(self, local: Path, path: str, offset: int) -> None:
        """Write a file to ``path`` from ``offset`` on, which is how much of it is there already."""
        with local.open("rb") as stream:
            stream.seek(offset)
            self._append(path, _chunks(stream), offset)

    def fetch(self, path: str, size: int, local: Path) -> None:
        """Copy the file at ``path`` to ``local``, going on where that ends."""
        with local.open("ab") as stream:
            if stream.tell() > size:
                stream.truncate(0)
            if stream.tell() < size:
                self._read(path, stream.tell(), size, stream.write)

    def _append(self, path: str, chunks: Iterator[bytes], offset: int) -> None:
        """Write ``chunks`` to the file at ``path`` from ``offset`` on, which is its size."""
        files = self._files()
        if files is None:
            self._append_by_shell(path, chunks)
            return
        with self.guard():
            stream = files.open(path, "ab" if offset else "wb")
            stream.set_pipelined(True)
        try:
            for chunk in chunks:
                with self.guard():
                    stream.write(chunk)
            with self.guard():
                stream.close()
        finally:
            self._close(stream)

    def _append_by_shell(self, path: str, chunks: Iterator[bytes]) -> None:
        with self.guard():
            channel = self._transport.open_session(timeout=self._silence_s)
            channel.exec_command(call(APPEND, path).command)
        try:
            for chunk in chunks:
                try:
                    with self.guard():
                        channel.sendall(chunk)
                except Refused:
                    break
            with self.guard():
                channel.shutdown_write()
                said = channel.makefile_stderr("rb").read(4096)
                status = channel.recv_exit_status()
        finally:
            self._close(channel)
        if not self.alive:
            raise Dropped("the connection was closed")
        if status:
            raise Refused(
                said.decode(errors="replace").strip().rpartition(":")[2].strip() or f"cat ended with {status}"
            )

    def _read(self, path: str, offset: int, size: int, write: Callable[[bytes], object]) -> None:
        """Hand the file at ``path`` from ``offset`` to ``size`` to ``write``, in pieces."""
        files = self._files()
        if files is None:
            self._read_by_shell(path, offset, size, write)
            return
        with self.guard():
            stream = files.open(path, "rb")
            # No prefetch: its thread would die with a traceback on the terminal when the connection is lost.
            stream.seek(offset)
        try:
            while offset < size:
                with self.guard():
                    data = stream.read(min(CHUNK_BYTES, size - offset))
                if not data:
                    raise Refused(f"the file ended after {offset} of {size} bytes")
                write(data)
                offset += len(data)
        finally:
            self._close(stream)

    def _read_by_shell(self, path: str, offset: int, size: int, write: Callable[[bytes], object]) -> None:
        question = call(READ, path, offset + 1)
        with self.guard():
            channel = self._transport.open_session(timeout=self._silence_s)
            channel.exec_command(question.command)
        try:
            data = b""
            while question.begin not in data:
                with self.guard():
                    data += (more := channel.recv(CHUNK_BYTES))
                if not more or len(data) > _LONGEST_ANSWER + CHUNK_BYTES:
                    self._no_answer(channel, data)
            data = data.partition(question.begin)[2]
            while offset < size:
                write(data)
                offset += len(data)
                if offset < size:
                    with self.guard():
                        data = channel.recv(min(CHUNK_BYTES, size - offset))
                    if not data:
                        self._no_answer(channel, b"")
        finally:
            self._close(channel)


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


@contextlib.contextmanager
def translated(alive: Callable[[], bool], *, time_out: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Paramiko's and the sockets' exceptions as `Dropped` or `Refused`."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError, ConnectionError, TimeoutError) as exc:
        raise Dropped("it did not answer in time" if time_out() else _reason(exc)) from exc
    except (paramiko.SFTPError, OSError) as exc:
        if alive():
            raise Refused(_reason(exc)) from exc
        raise Dropped("it did not answer in time" if time_out() else _reason(exc)) from exc


def _reason(exc: BaseException) -> str:
    text = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
    return text.strip() or "the connection was closed"


# ---------------------------------------------------------------------------------------------------- connecting


def connect(
    endpoint: Endpoint, logins: dict[Endpoint, Authenticator], *, timeout_s: float, silence_s: float = SILENCE_S
) -> Connection:
    """Connect and log in. ``logins`` remembers what worked, for the machine and for those on the way to it.

    Raises `Dropped` where another try may help, `DeviceError` where it will not.
    """
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks go to the terminal
    closers = contextlib.ExitStack()
    try:
        transport = _open(endpoint, logins, closers, timeout_s, depth=0)
        return Connection(transport, closers, silence_s)
    except BaseException:
        closers.close()
        raise


def _open(
    endpoint: Endpoint,
    logins: dict[Endpoint, Authenticator],
    closers: contextlib.ExitStack,
    timeout_s: float,
    *,
    depth: int,
) -> paramiko.Transport:
    import paramiko

    if depth > _MOST_JUMPS:
        raise DeviceError(f"the way to {endpoint.name} jumps in a circle", remedy="see ProxyJump in ~/.ssh/config")
    with translated(lambda: False):
        through = _way(endpoint, logins, closers, timeout_s, depth)
        transport = paramiko.Transport(through)
        closers.callback(transport.close)
        timer = threading.Timer(2 * timeout_s, transport.close)
        timer.daemon = True
        known, _ = known_keys(endpoint)
        prefer_known_types(transport, known)
        transport.banner_timeout = transport.auth_timeout = timeout_s
        timer.start()
        try:
            transport.start_client(timeout=timeout_s)
            check_host_key(endpoint, transport.get_remote_server_key())
        finally:
            timer.cancel()
        logins.setdefault(endpoint, Authenticator(endpoint))(transport)
        transport.set_keepalive(KEEPALIVE_S)
    return transport


def _way(
    endpoint: Endpoint,
    logins: dict[Endpoint, Authenticator],
    closers: contextlib.ExitStack,
    timeout_s: float,
    depth: int,
) -> Any:
    """Something like a socket that leads to the machine: through the last jump, a proxy program, or the network."""
    if endpoint.jumps:
        import dataclasses

        last = resolve(endpoint.jumps[-1])
        if len(endpoint.jumps) > 1:
            last = dataclasses.replace(last, jumps=endpoint.jumps[:-1])
        transport = _open(last, logins, closers, timeout_s, depth=depth + 1)
        place = (endpoint.host, endpoint.port)
        return transport.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=timeout_s)
    if endpoint.proxy:
        return _through_program(endpoint, closers, timeout_s)
    try:
        found = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
    except socket.gaierror as exc:
        raise DeviceError(
            f"there is no machine named {endpoint.host} ({exc.strerror})",
            remedy="check the name and the network, or give its IP address",
        ) from exc
    closers.callback(found.close)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small questions, each waiting for its answer
    return found


def _through_program(endpoint: Endpoint, closers: contextlib.ExitStack, timeout_s: float) -> socket.socket:
    ours, its = socket.socketpair()
    closers.callback(ours.close)
    with its:
        try:
            child = subprocess.Popen(endpoint.proxy, stdin=its.fileno(), stdout=its.fileno(), start_new_session=True)
        except OSError as exc:
            raise DeviceError(
                f"cannot start {endpoint.proxy[0]} of the ProxyCommand: {exc.strerror}", remedy="see ~/.ssh/config"
            ) from exc
    closers.callback(_end, child)
    ours.settimeout(timeout_s)
    return ours


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


__all__ = ["Connection", "Dropped", "Refused", "connect", "translated"]
