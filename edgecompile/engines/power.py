"""A board's power mode for the time of a measurement, and back again whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgecompile.engines import script
from edgecompile.engines.board import Board
from edgecompile.errors import DeviceError, EdgecompileError, InputError
from edgecompile.jetson import state
from edgecompile.transport import Transport


@contextmanager
def mode(transport: Transport, board: Board, wanted: str | None) -> Iterator[None]:
    """Set the power mode ``wanted`` (a name or a number; ``None``: leave it), and put the old one back at the end.

    It is put back after a failure and after Ctrl-C; where the connection is lost for good, the board itself does so
    when it removes our folder. Raises `InputError` for a mode that the board does not have, `DeviceError` where it
    cannot be set.
    """
    if wanted is None:
        yield
        return
    number = _number(board, wanted)
    before = _current(transport)
    if before == number:
        yield
        return
    _guard(transport, before)
    try:
        _set(transport, number)
        yield
    except BaseException as error:
        _put_back(transport, before, error)
        raise
    _put_back(transport, before, None)


def _number(board: Board, wanted: str) -> int:
    by_name = {name.lower(): number for name, number in board.modes}
    if wanted.lower() in by_name:
        return by_name[wanted.lower()]
    if wanted.isdecimal() and (not board.modes or int(wanted) in by_name.values()):
        return int(wanted)
    known = ", ".join(f"{number} ({name})" for name, number in board.modes)
    raise InputError(
        f"{board.name} has no power mode {wanted!r}",
        remedy=f"it has: {known}" if known else "give its number (nvpmodel -p --verbose on the board lists them)",
    )


def _current(transport: Transport) -> int:
    found = state.parse_power_mode(script.ask(transport, script.STATE, timeout_s=60.0).get("mode", ""))
    if found is None or found.number is None:
        raise DeviceError(
            f"{transport.description} does not tell its power mode, so it is not changed: it could not be put back",
            remedy="leave --power-mode away, or see what nvpmodel -q says there",
        )
    return found.number


def _guard(transport: Transport, before: int) -> None:
    said = script.ask(transport, script.START_GUARD, script.GUARD, str(before), timeout_s=30.0)
    if not said.get("guard", "").strip().isdigit():
        raise DeviceError(
            f"{transport.description} cannot be made to put its power mode back by itself, so it is not changed",
            remedy="leave --power-mode away, and set the mode there yourself",
        )


def _set(transport: Transport, number: int) -> None:
    said = script.ask(transport, script.SET_MODE, str(number), timeout_s=120.0)
    words = said.get("said", "").strip()
    now = state.parse_power_mode(said.get("now", ""))
    if now is not None and now.number == number:
        return
    if "reboot" in words.lower():
        raise DeviceError(
            f"{transport.description} takes power mode {number} only with a reboot",
            remedy=f"set it there yourself (sudo nvpmodel -m {number}, and yes), then go on without --power-mode",
        )
    last = words.splitlines()[-1].strip()[:200] if words else "nvpmodel said nothing"
    raise DeviceError(
        f"the power mode of {transport.description} cannot be set: {last}",
        remedy="the account needs to run nvpmodel as root without a password (sudo visudo: USER ALL=NOPASSWD: "
        "/usr/sbin/nvpmodel), or set the mode there yourself",
    )


def _put_back(transport: Transport, before: int, error: BaseException | None) -> None:
    """Put the mode back now; where that fails, the guard on the board does it, and the error says so."""
    try:
        _set(transport, before)
        script.ask(transport, script.STOP_GUARD, timeout_s=30.0)
    except DeviceError as exc:
        words = f"the power mode of {transport.description} is put back to {before} by the board itself, within minutes"
        if error is None:
            raise DeviceError(f"{exc.message}; {words}", remedy=exc.remedy) from exc
        if isinstance(error, EdgecompileError):
            error.remedy = f"{error.remedy or ''}\n{words}".strip()
