"""Builds for several devices at once: each in a process of its own, so that one that fails takes nothing with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from edgecompile.cli.common import terminal_width

if TYPE_CHECKING:
    from edgecompile.report import Face
    from edgecompile.types import BuildRequest

#: The hidden command that reads one request.
COMMAND = "build-request"
#: A device that has gone silent is waited for some times over before its folder is given up.
_FAREWELL_S = 180.0


class Builds:
    """Requests that are built side by side. What they say goes to the terminal line by line, with whose line it is."""

    def __init__(self, terminal: Face, words: Sequence[str], *, as_json: bool) -> None:
        self._terminal = terminal
        self._words = words
        self._as_json = as_json
        self._children: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, requests: Sequence[tuple[str, BuildRequest]]) -> list[tuple[int, str, object]]:
        """Build them; of each its exit code, what it printed, and its document with ``--json``.

        Ctrl-C is handed on to all; this returns, with ``KeyboardInterrupt``, when they have tidied up.
        """
        most = min(len(requests), max(2, os.cpu_count() or 1))
        with ThreadPoolExecutor(most) as pool:
            futures = [pool.submit(self._one, name, request) for name, request in requests]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise

    def _one(self, name: str, request: BuildRequest) -> tuple[int, str, object]:
        child = self._start()
        if child is None:
            return 130, "", None
        errors: list[str] = []
        reader = threading.Thread(target=self._tell, args=(name, child, errors.append), daemon=True)
        reader.start()
        out = _hand_over(child, request)
        code = child.wait()
        reader.join()
        code = code if code >= 0 else 1
        if not self._as_json:
            return code, out, None
        fault = {"target": request.target, "on": request.on, "error": " ".join(errors), "exit_code": code}
        return code, out, json.loads(out) if out.strip() else fault

    def _start(self) -> subprocess.Popen[str] | None:
        command = [sys.executable, "-m", "edgecompile", COMMAND, *self._words, *(["--json"] if self._as_json else [])]
        with self._lock:
            if self._stopped:
                return None
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # Its own group: Ctrl-C comes from us, once.
                start_new_session=True,
                env={**os.environ, "COLUMNS": str(terminal_width())},
            )
            self._children.append(child)
        return child

    def _tell(self, name: str, child: subprocess.Popen[str], note: Callable[[str], None]) -> None:
        from edgecompile.report import plain

        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("error: "):
                note(line.removeprefix("error: ").strip())
            self._terminal.err.print(plain(f"{name}: {line.rstrip()}"))

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = [child for child in self._children if child.poll() is None]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
        end = time.monotonic() + _FAREWELL_S
        for child in running:
            try:
                child.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:  # it would keep us for ever
                child.kill()
                self._terminal.warn(f"a build did not end within {_FAREWELL_S:.0f} s and was killed")


def _hand_over(child: subprocess.Popen[str], request: BuildRequest) -> str:
    from edgecompile.types import encode

    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError), child.stdin:
        child.stdin.write(encode(request).decode())
    return child.stdout.read()
