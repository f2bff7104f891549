"""This machine, in one fresh temporary folder that is always removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecompile.errors import DeviceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A finished command."""

    code: int
    out: str
    err: str


class LocalTransport:
    """Runs on this machine."""

    is_this_machine = True
    description = "this machine"

    def __enter__(self) -> LocalTransport:
        self.folder = Path(tempfile.mkdtemp(prefix="edgecompile-"))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def put(self, local: Path, name: str) -> None:
        """Make ``local`` available as ``name`` in the folder."""
        destination = self.folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.symlink_to(local.resolve())

    def get(self, name: str, local: Path) -> None:
        """Copy a file of the folder to ``local``."""
        shutil.copyfile(self.folder / name, local)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command in the folder. Raises `DeviceError` on a time-out."""
        child = subprocess.Popen(
            argv, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(f"{argv[0]} gave no answer within {timeout_s:.0f} s") from exc
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return Completed(code=child.returncode, out=out, err=err)
