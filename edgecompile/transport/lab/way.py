"""The way to an emulated board: SSH, with a key and a known host of the board's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgecompile.errors import InputError
from edgecompile.progress import Progress
from edgecompile.transport.lab import box, cores
from edgecompile.transport.ssh import SSHTransport
from edgecompile.transport.ssh_config import Endpoint

SCHEME = "lab:"


class LabTransport(SSHTransport):
    """Runs on an emulated board, ``lab:pi4``, which is started if need be and keeps running afterwards.

    ``emulated`` names the core: times measured there say nothing about any device. ``image`` names the board's file
    system once it was entered. Nothing of the user's SSH configuration is read. Raises `InputError` for a board that
    there is not.
    """

    def __init__(self, where: str, *, waiting: Callable[[str], None] | None = None) -> None:
        self.core = cores.find(where.removeprefix(SCHEME))
        self.emulated: str = self.core.name
        self.image = ""
        super().__init__(Endpoint(name=where, host="", user="", port=0, known_as="", known_hosts=()), waiting=waiting)

    @property
    def description(self) -> str:
        """Its name, and that it is emulated."""
        return f"{SCHEME}{self.core.board} (emulated {self.core.name})"

    @property
    def address(self) -> str:
        """``lab:pi4``."""
        return f"{SCHEME}{self.core.board}"

    def __enter__(self) -> LabTransport:
        found = box.up(self.core.board, progress=_Notes(self._waiting) if self._waiting else None)
        self._endpoint = Endpoint(
            name=self.description,
            host="127.0.0.1",
            user=box.USER,
            port=found.port,
            known_as=f"[127.0.0.1]:{found.port}",
            known_hosts=(found.known_hosts,),
            identities=(found.identity,),
            only_identities=True,
        )
        self.image = found.image
        self._logins.clear()  # a board that was started anew has another key
        super().__enter__()
        return self


class _Notes:
    """Stages told as notes, to somebody who only takes these."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.note = self.warn = tell

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        self.note(title)
        yield lambda steps: None


def emulated_core(transport: object) -> str | None:
    """The core that a transport's machine emulates; ``None`` for real machines."""
    found = getattr(transport, "emulated", None)
    return found if isinstance(found, str) else None


def core_of(where: str | None) -> str | None:
    """The core that an address emulates, ``lab:pi4``; ``None`` for other addresses. Raises `InputError`."""
    return cores.find(where.removeprefix(SCHEME)).name if where is not None and where.startswith(SCHEME) else None


def ready(where: str | None, progress: Progress) -> None:
    """Start the board of an address, ``lab:pi4``, where somebody can watch; other addresses are left alone.

    Raises `InputError` for a board that there is not, `DeviceError` naming what is missing to start it.
    """
    if core_of(where) is not None and where is not None:
        box.up(where.removeprefix(SCHEME), progress=progress)


def refuse_latency(transport: object) -> None:
    """Raise `InputError` when a transport leads to an emulated machine, whose times mean nothing."""
    core = emulated_core(transport)
    if core is not None:
        raise InputError(
            f"an emulated {core} has no latency: its times are the emulator's",
            remedy="count its instructions (--cost instructions), or measure on the board itself: --on ssh://user@host",
        )


def require(transport: object) -> None:
    """Raise `InputError` unless a transport leads to an emulated machine: only there instructions are counted."""
    if emulated_core(transport) is None:
        where = getattr(transport, "description", "this machine")
        raise InputError(
            f"instructions are not counted on {where}", remedy="count on an emulated board, --on lab:pi4 (or pi3, pi5)"
        )


__all__ = ["SCHEME", "LabTransport", "core_of", "emulated_core", "ready", "refuse_latency", "require"]
