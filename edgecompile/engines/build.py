"""Builds an engine of an ONNX file on a board, and brings home what belongs to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from edgecompile import content
from edgecompile.engines.board import Board
from edgecompile.errors import DeviceError, EdgecompileError
from edgecompile.jetson import failures, trtexec
from edgecompile.jetson.failures import Failure
from edgecompile.store import write_atomically
from edgecompile.transport import Completed, Transport
from edgecompile.types import Artifact, Engine

#: A first build on a small board times every kernel that could do.
BUILD_TIMEOUT_S = 7200.0
#: Left free for the file system and for what the system writes meanwhile.
_SPARE_BYTES = 64 * 2**20
#: Faults of one model or of its size: another precision of it may do. All others are the board's.
_OF_THE_MODEL = ("unsupported", "no kernel", "precision", "memory", "killed", "crash", "timeout", "unknown")


@dataclass(slots=True, kw_only=True)
class Bench:
    """A board with what lies on it during one connection; ``placed`` are folders there by the SHA-256 of engines."""

    transport: Transport
    board: Board
    timing_cache: Path | None = None
    placed: dict[str, str] = field(default_factory=dict)
    has_cache: bool = False
    has_program: bool = False

    def run(self, command: Sequence[str], *, timeout_s: float) -> Completed:
        """Run ``trtexec`` with the arguments that follow the first, or what takes its place."""
        if self.board.trtexec is not None:
            return self.transport.run([self.board.trtexec, *command[1:]], timeout_s=timeout_s)
        if not self.has_program:
            self.transport.put(content.builtin_root("targets") / "tensorrt" / "trtexec.py", "trtexec.py")
            self.has_program = True
        return self.transport.run(["python3", "trtexec.py", *command[1:]], timeout_s=timeout_s)


class ModelFault(Exception):
    """A model, or this precision of it, does not become an engine or does not run; others may."""

    def __init__(self, error: EdgecompileError) -> None:
        super().__init__(error.message)
        self.error = error


def engine(bench: Bench, artifact: Artifact, folder: Path, *, workspace_mib: int | None = None) -> Engine:
    """Build the engine of an ONNX file and copy it into ``folder`` with its log and what is known of its layers.

    Raises `ModelFault` where this file is at fault, `DeviceError` where the board is.
    """
    board, transport = bench.board, bench.transport
    _require_room(bench, artifact)
    at = f"engines/{len(bench.placed)}"
    strong = _strong(board, artifact)
    typed = strong and artifact.precision == "int8" and artifact.typed_file is not None
    transport.put(artifact.typed_file if typed and artifact.typed_file else artifact.file, f"{at}/model.onnx")
    _put_cache(bench)
    command = trtexec.build_command(
        board.capabilities,
        trtexec="trtexec",
        onnx=f"{at}/model.onnx",
        engine=f"{at}/model.engine",
        timing_cache="engines/timing.cache",
        precision=artifact.precision,
        workspace_mib=workspace_mib,
        layer_info=f"{at}/layers.json",
        strongly_typed=strong,
    )
    started = time.monotonic()
    done = bench.run(command, timeout_s=BUILD_TIMEOUT_S)
    seconds = time.monotonic() - started
    log = _kept_log(done, folder / "build.log")
    if done.code != 0 or trtexec.parse_log(log.read_text()).outcome == "failed":
        raise_fault(failures.explain(log.read_text(), returncode=done.code, step="build", version=board.version), log)
    made = _fetched(bench, artifact, at, folder, command, seconds, log)
    bench.placed[made.source_sha256] = at
    return made


def _strong(board: Board, artifact: Artifact) -> bool:
    """Whether the types in the graph are to be kept, rather than chosen by the builder within what options allow."""
    if board.capabilities.typing == "flags":
        return False
    # Without a graph that has its types, INT8 is left to options, and to the error of a version without these.
    return artifact.precision != "int8" or artifact.typed_file is not None


def _require_room(bench: Bench, artifact: Artifact) -> None:
    """The ONNX, the engine (at most about as large) and the exports have to fit."""
    free, needed = bench.board.disk_free_bytes, 3 * artifact.size_bytes + _SPARE_BYTES
    if free is not None and free < needed:
        raise DeviceError(
            f"{bench.transport.description} has {free / 1e6:.0f} MB free in its temporary folder, and building an "
            f"engine of {artifact.size_bytes / 1e6:.0f} MB takes about {needed / 1e6:.0f} MB",
            remedy="make room there, or set TMPDIR for the account to a folder on another disk",
        )


def _put_cache(bench: Bench) -> None:
    if bench.timing_cache is not None and bench.timing_cache.is_file() and not bench.has_cache:
        bench.transport.put(bench.timing_cache, "engines/timing.cache")
    bench.has_cache = True


def _kept_log(done: Completed, path: Path) -> Path:
    path.write_text(done.out + ("\n" if done.out and not done.out.endswith("\n") else "") + done.err)
    return path


def raise_fault(failure: Failure, log: Path | None = None) -> NoReturn:
    """Raise what a failure of ``trtexec`` stands for; the log's place is told where it is the only help."""
    error = failure.error()
    if log is not None and failure.kind in ("unknown", "crash"):
        error.remedy = f"{error.remedy}: {log}"
    if failure.kind in _OF_THE_MODEL:
        raise ModelFault(error)
    raise error


def _fetched(
    bench: Bench, artifact: Artifact, at: str, folder: Path, command: list[str], seconds: float, log: Path
) -> Engine:
    transport, board = bench.transport, bench.board
    try:
        transport.get(f"{at}/model.engine", folder / "model.engine")
    except DeviceError as exc:
        raise ModelFault(
            DeviceError(f"trtexec said that it built the engine, and there is none: {exc.message}", remedy=exc.remedy)
        ) from exc
    layers = _optional(transport, f"{at}/layers.json", folder / "layers.json")
    cache = _optional(transport, "engines/timing.cache", folder / "timing.cache")
    if cache is not None and bench.timing_cache is not None:
        bench.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(bench.timing_cache, cache.read_bytes())  # another build may be reading it
    return Engine(
        key=board.key,
        tensorrt=str(board.version),
        gpu=board.gpu,
        source_sha256=artifact.sha256,
        file=folder / "model.engine",
        log=log,
        timing_cache=cache,
        layer_info=layers,
        options=tuple(option for option in command[1:] if "=engines/" not in option),
        build_s=seconds,
    )


def _optional(transport: Transport, name: str, local: Path) -> Path | None:
    """A file that older versions do not write."""
    with contextlib.suppress(DeviceError):
        transport.get(name, local)
    return local if local.is_file() else None


def place(bench: Bench, made: Engine) -> str:
    """The folder on the board in which an engine lies; it is sent there where it was built before."""
    if made.source_sha256 not in bench.placed:
        at = f"engines/{len(bench.placed)}"
        bench.transport.put(made.file, f"{at}/model.engine")
        bench.placed[made.source_sha256] = at
    return bench.placed[made.source_sha256]


def fits(made: Engine, board: Board, artifact: Artifact) -> bool:
    """Whether an engine is of this file and for this board."""
    same_board = (made.tensorrt, made.gpu) == (str(board.version), board.gpu)
    return same_board and made.source_sha256 == artifact.sha256 and made.file.is_file()


__all__ = ["Bench", "ModelFault", "engine", "fits", "place", "raise_fault"]
