"""What goes wrong in a child process: called there by ``tests/test_sandbox.py``."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from edgecompile.errors import UnsupportedModelError


def echo(argument: Any) -> Any:
    return argument


def noisy(argument: Any) -> Any:
    print('{"result": "a lie on standard output"}')
    os.write(2, b"\xff\x00 native noise\n" * 100_000)
    return argument


def module_path(argument: Any) -> Any:
    return [os.path.realpath(p) for p in sys.path]


def unsupported(argument: Any) -> Any:
    raise UnsupportedModelError(
        "no such operators", remedy="export again", operators=(("Foo", "node_1"), ("a.Bar", ""))
    )


def fault(argument: Any) -> Any:
    raise KeyError("an inner fault")


def crash(argument: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(argument: Any) -> Any:
    # The grandchild holds what it inherited open, as a library's helper process might.
    child = os.fork()
    with open(argument, "a") as stream:
        stream.write(f"{os.getpid()}\n")
    time.sleep(60)
    return child


def hoard(argument: Any) -> Any:
    return len(bytearray(int(argument)))


def abrupt(argument: Any) -> Any:
    print("about to stop without an answer")
    sys.stdout.flush()
    os._exit(3)
