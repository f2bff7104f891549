"""This machine, in one fresh temporary folder that is always removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from edgecompile.errors import DeviceError
from edgecompile.transport import Completed, checked_name


class LocalTransport:
    """Runs on this machine, with this Python interpreter. See `edgecompile.transport.Transport`."""

    description = "this machine"
    address = "local"
    is_this_machine = True
    python = sys.executable

    def __init__(self) -> None:
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The temporary folder. Raises ``RuntimeError`` outside the ``with`` block."""
        if self._folder is None:
            raise RuntimeError("use the transport in a with statement")
        return self._folder

    def __enter__(self) -> LocalTransport:
        self._folder = Path(tempfile.mkdtemp(prefix="edgecompile-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._folder = None

    def put(self, local: Path, name: str) -> None:
        """Link to ``local`` as ``name``: nothing is copied."""
        destination = self.folder / checked_name(name)
        if not local.is_file():
            raise DeviceError(f"there is no file {local} to put on {self.description}")
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.unlink(missing_ok=True)
        destination.symlink_to(local.resolve())

    def get(self, name: str, local: Path) -> None:
        """Copy a file of the folder to ``local``."""
        source = self.folder / checked_name(name)
        try:
            shutil.copyfile(source, local)
        except OSError as exc:
            raise DeviceError(f"cannot copy {name} from {self.description}: {exc.strerror}") from exc

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        """Run a command in the folder, as a process group of its own that does not outlive the call."""
        try:
            child = subprocess.Popen(
                argv,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as exc:
            raise DeviceError(
                f"cannot start {argv[0]} on {self.description}: {exc.strerror}", remedy="install it, or give its path"
            ) from exc
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise DeviceError(
                f"{Path(argv[0]).name} on {self.description} did not end within {timeout_s:.0f} s",
                remedy="measure a smaller model or fewer runs, or see what else the machine is doing",
            ) from exc
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for stream in (child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        return Completed(code=child.returncode, out=out, err=err)
