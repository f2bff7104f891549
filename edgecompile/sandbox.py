"""Runs a function of ours in a child process with a memory and a time limit.

Model files come from anywhere and the parsers under us are native code: what opens such a file first does it here. The
child is a process group of its own; the answer comes back in a file, so what native libraries print cannot disturb it.
The child never looks for modules in the current folder: an ``onnx.py`` that lies beside a model is not run.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgecompile import errors
from edgecompile.errors import EdgecompileError, InputError, UnsupportedModelError

log = logging.getLogger(__name__)

#: Enough for the parsers and a model of some gigabytes; address space, so larger than what is really used.
DEFAULT_MEMORY_BYTES = 16 << 30
_GRACE_S = 5
#: Native libraries may print a lot; its end tells why they failed.
_NOISE_BYTES = 64 << 10
_OUT_OF_MEMORY = (
    "MemoryError", "bad_alloc", "Cannot allocate memory", "can't allocate memory", "Failed to allocate",
)  # fmt: skip
#: ``-P`` leaves the current folder out of the module path; the package is found where the parent found it.
_START = "import sys; sys.path.append(sys.argv[1]); from edgecompile.sandbox import main; main(sys.argv[2:])"
_ROOT = str(Path(__file__).resolve().parents[1])


def call(function: str, argument: Any, *, memory_bytes: int, timeout_s: float, what: str) -> Any:
    """Call ``function`` (``"edgecompile.module:name"``) with a JSON value in a limited child; returns its JSON value.

    The function's name stands in our own source and never comes from a user. An `EdgecompileError` raised there is
    raised here again. A crash, a kill or a time-out becomes an `InputError` that names ``what`` was being worked on.
    """
    with tempfile.TemporaryDirectory(prefix="edgecompile-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-c", _START, _ROOT, function, str(memory_bytes), str(timeout_s), str(answer)]
        code, noise = _run(command, json.dumps(argument), timeout_s, what)
        log.debug("the child said: %s", noise)
        if not answer.is_file():
            raise _died(code, noise, memory_bytes, what)
        document = json.loads(answer.read_text())
    if "error" in document:
        raise _rebuilt(document["error"])
    return document["result"]


def _run(command: list[str], text: str, timeout_s: float, what: str) -> tuple[int, str]:
    # What the child prints goes to a file: a pipe would stay open in grandchildren, and fill.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as noise:
        given.write(text.encode())
        given.seek(0)
        child = subprocess.Popen(command, stdin=given, stdout=noise, stderr=noise, start_new_session=True)
        try:
            code = child.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise InputError(
                f"{what}: no answer within {timeout_s:.0f} s, given up",
                remedy="the file may be damaged or made to hang; if it is only large, try a smaller one first",
            ) from exc
        finally:
            # Also after Ctrl-C: nothing of the group may live on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        noise.seek(max(0, noise.seek(0, os.SEEK_END) - _NOISE_BYTES))
        return code, noise.read().decode(errors="replace")


def _died(code: int, noise: str, memory_bytes: int, what: str) -> InputError:
    limit = f"{memory_bytes / 2**30:.3g} GiB"
    if os.strerror(errno.ENOSPC) in noise:
        return InputError(f"{what}: no space is left on the disk", remedy="make room or give another --out")
    if any(words in noise for words in _OUT_OF_MEMORY):
        return InputError(f"{what}: needs more than {limit} of memory", remedy="the file may be damaged or hostile")
    if code < 0:
        name = signal.strsignal(-code) or f"signal {-code}"
        return InputError(
            f"{what}: the program that reads it was ended by a signal: {name} (memory limit {limit})",
            remedy="the file is damaged, hostile, or larger than the limit",
        )
    last = noise.strip().splitlines()[-1] if noise.strip() else "it said nothing"
    return InputError(f"{what}: the program that reads it failed: {last}", remedy="see -vv for all it said")


def _rebuilt(error: dict[str, Any]) -> EdgecompileError:
    kind = getattr(errors, error["class"], EdgecompileError)
    made: EdgecompileError = kind.__new__(kind)
    if isinstance(made, UnsupportedModelError):
        operators = tuple((str(a), str(b)) for a, b in error["operators"])
        UnsupportedModelError.__init__(made, error["message"], remedy=error["remedy"], operators=operators)
    else:
        EdgecompileError.__init__(made, error["message"], remedy=error["remedy"])
    return made


def main(arguments: list[str]) -> None:
    """The child: set the limits, call the function, write the answer."""
    function, memory_bytes, timeout_s, answer = arguments
    module_name, _, name = function.partition(":")
    limit = int(memory_bytes)
    # The parent ends the child in time, unless it was killed itself.
    signal.alarm(math.ceil(float(timeout_s)) + _GRACE_S)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    document: dict[str, Any]
    try:
        document = {"result": getattr(importlib.import_module(module_name), name)(json.load(sys.stdin))}
    except EdgecompileError as exc:
        operators = list(exc.operators) if isinstance(exc, UnsupportedModelError) else []
        document = {
            "error": {
                "class": type(exc).__name__,
                "message": exc.message,
                "remedy": exc.remedy,
                "operators": operators,
            }
        }
    temporary = Path(answer + ".tmp")
    temporary.write_text(json.dumps(document))
    temporary.rename(answer)
    # Native libraries may hang or crash in their destructors; the answer is written.
    sys.stdout.flush()
    os._exit(0)
