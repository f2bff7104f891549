"""The entry point: runs the command line and turns every failure into one clear message and its exit code."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from edgecompile.cli import cli, show_error
from edgecompile.errors import EXIT_INTERRUPTED, EdgecompileError, InputError

_DISK = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; never returns. Exit codes are listed in the README."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. With ``--debug`` unexpected failures keep their traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    interrupts = _Interrupts()
    previous = {number: signal.signal(number, interrupts) for number in interrupts.numbers()}
    try:
        result = cli.main(args=arguments, prog_name="edgecompile", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except Exception as exc:
        if interrupts.seen:
            return _interrupted()
        if debug:
            raise
        return _report(exc)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    click.echo("interrupted: finished steps are kept; the same command goes on from there", err=True)
    return EXIT_INTERRUPTED


class _Interrupts:
    """Turns Ctrl-C and SIGTERM into ``KeyboardInterrupt``, and remembers them.

    A native module that is being imported makes an ``ImportError`` of it, which is no fault of the installation.
    """

    def __init__(self) -> None:
        self.seen = False

    def numbers(self) -> list[signal.Signals]:
        """The signals to handle: what a script starts behind ``&`` goes on ignoring Ctrl-C."""
        heeded = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
        return [signal.SIGTERM, *([signal.SIGINT] if heeded else [])]

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _report(exc: Exception) -> int:
    """Print one message for an exception and return its exit code."""
    if isinstance(exc, OSError) and exc.errno in _DISK:
        name = exc.filename2 or exc.filename  # of a copy, the second is where it was going
        where = f": {name}" if name else ""
        exc = InputError(f"{_DISK[exc.errno]}{where}", remedy="make room or give another --out, then run it again")
    if isinstance(exc, EdgecompileError):
        show_error(exc)
        return exc.exit_code
    click.echo(f"internal fault: {type(exc).__name__}: {exc}", err=True)
    click.echo("  what to do: run it again with --debug and report what it prints", err=True)
    return 1


if __name__ == "__main__":
    main()
