"""What a connection to a machine's shell can do, and the two ways in which it fails.

Both faults stay inside this package; `edgecompile.transport.shell` turns them into `DeviceError`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgecompile.transport.remote import Call

#: How long a connection may be silent before it counts as lost, in seconds.
SILENCE_S = 30.0


class Dropped(Exception):
    """The connection is lost, or was never made; another may do."""


class Refused(Exception):
    """The machine is there and did not do what was asked."""


class Connection(Protocol):
    """A connection that is ready to be used. Every method raises `Dropped` or `Refused`, and has a time limit."""

    @property
    def alive(self) -> bool:
        """Whether the connection is known to be up."""
        ...

    def close(self) -> None:
        """Close everything that belongs to it."""
        ...

    def ask(self, question: Call, *, limit_s: float | None = None) -> list[str]:
        """Run a script to its end and return the words of its answer."""
        ...

    def hold(self, question: Call) -> tuple[list[str], object]:
        """Start a script that goes on running after its answer, until the connection ends; return both."""
        ...

    def send(self, local: Path, path: str, offset: int) -> None:
        """Write a file to ``path`` there, from ``offset`` on, which is how much of it is there already."""
        ...

    def fetch(self, path: str, size: int, local: Path) -> None:
        """Copy ``size`` bytes of the file at ``path`` to ``local``, which may hold its beginning already."""
        ...


__all__ = ["SILENCE_S", "Connection", "Dropped", "Refused"]
