"""Ways to a machine: put files into one fresh folder there, run a command in it, get files back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from edgecompile.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A finished command: its exit code (negative: the signal that ended it) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def ended_by(self) -> str | None:
        """The name of the signal that ended the command (a shell reports it as 128 and its number), if one did."""
        number = -self.code if self.code < 0 else self.code - 128
        return signal.Signals(number).name if number in set(signal.Signals) else None


class Transport(Protocol):
    """A way to a machine. Entering makes a fresh folder there, leaving removes it, whatever happened in between.

    Names of files are relative to that folder, with forward slashes; commands run in it. Every method raises
    `DeviceError` when the machine cannot be reached or does not do what was asked.
    """

    @property
    def description(self) -> str:
        """What a person calls the machine."""
        ...

    @property
    def address(self) -> str:
        """What ``--on`` takes to come here again."""
        ...

    @property
    def is_this_machine(self) -> bool:
        """Whether what is measured there was measured here."""
        ...

    @property
    def python(self) -> str:
        """The Python interpreter to run there."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def put(self, local: Path, name: str) -> None:
        """Make the file ``local`` available as ``name``, in folders that are made as needed."""
        ...

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command to its end. A time-out and Ctrl-C end it with everything it started."""
        ...

    def get(self, name: str, local: Path) -> None:
        """Copy the file ``name`` to ``local``."""
        ...


def open_transport(where: str, *, waiting: Callable[[str], None] | None = None) -> Transport:
    """The way to ``where``: ``local``, ``ssh://user@host:port``, ``adb:SERIAL``, ``lab:pi4``; not connected yet.

    ``waiting`` is told once when another build has the machine. Raises `InputError` when ``where`` is none of them.
    """
    if where == "local":
        from edgecompile.transport.local import LocalTransport

        return LocalTransport()
    if where.startswith("ssh://"):
        from edgecompile.transport.ssh import SSHTransport

        return SSHTransport(where, waiting=waiting)
    if where.startswith("adb:"):
        from edgecompile.transport.adb import AdbTransport

        return AdbTransport(where, waiting=waiting)
    if where.startswith("lab:"):
        from edgecompile.transport.lab import LabTransport

        return LabTransport(where, waiting=waiting)
    place = where.rpartition("@")[2]  # what stands before it may hold a password
    raise InputError(
        f"{place!r} is no way to a machine",
        remedy="write local, ssh://user@host[:port], adb:SERIAL for a phone, or lab:pi4 for an emulated board",
    )


def checked_name(name: str) -> PurePosixPath:
    """``name`` as a path that stays inside the folder. Raises ``ValueError`` for any other: that is a fault of ours."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"not a name inside the folder: {name!r}")
    return path


__all__ = ["Completed", "Transport", "checked_name", "open_transport"]
