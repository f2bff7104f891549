"""The one error tree: every failure a user can meet, with the exit code it stands for.

An error names the fault and the value (``message``) and what to do about it (``remedy``). Foreign exceptions are
mapped to one of these where they enter, ``from exc``; the command line prints them without a traceback.
"""

from __future__ import annotations

from typing import ClassVar


class EdgecompileError(Exception):
    """The root: an internal fault (exit code 1) unless a subclass says otherwise."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class InputError(EdgecompileError):
    """Bad usage, bad input or bad data (exit code 2)."""

    exit_code = 2


class MissingExtraError(InputError):
    """A part of edgecompile that is not installed is needed (exit code 2)."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the Python package {module!r}, which is not installed",
            remedy=f"install it with: pip install 'edgecompile[{extra}]'",
        )


class TrustError(InputError):
    """Opening the file could run code from it, and the user has not said ``--trust`` (exit code 2)."""


class LimitNotMet(EdgecompileError):
    """A limit is not met: budget, accuracy, size, a regression, or a verification mismatch (exit code 3)."""

    exit_code = 3


class DeviceError(EdgecompileError):
    """The device could not be reached, or failed (exit code 4)."""

    exit_code = 4


class UnsupportedModelError(EdgecompileError):
    """The model cannot be lowered (exit code 5); ``operators`` holds ``(operator type, node name)`` pairs."""

    exit_code = 5

    def __init__(self, message: str, *, remedy: str | None = None, operators: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.operators = operators


class ParityError(UnsupportedModelError):
    """A converted float file computes something else than the original (exit code 5)."""


class DivergedError(EdgecompileError):
    """A training whose loss is no number, also at a lower rate (exit code 1 where nothing else can be done)."""


#: Exit code of a build whose budget is only predicted, since no device was measured.
EXIT_PREDICTED = 6
#: Exit code after Ctrl-C.
EXIT_INTERRUPTED = 130
