"""What lowering steps that run in a child process share: samples on disk, no network, nothing on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile import sandbox
from edgecompile.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy.typing as npt

log = logging.getLogger(__name__)

LOG = "log.txt"
#: Address space, of which TensorFlow reserves several times what it uses.
MEMORY_BYTES = 16 << 30


def call(function: str, argument: dict[str, Any], folder: Path, *, timeout_s: float, what: str) -> dict[str, Any]:
    """Call ``function`` of ours with ``folder`` in its argument, in a limited child process; log what it printed.

    Raises `UnsupportedModelError` when the child crashes, hangs or runs out of memory: another path may do better.
    """
    try:
        answer: dict[str, Any] = sandbox.call(
            function, {**argument, "folder": str(folder)}, memory_bytes=MEMORY_BYTES, timeout_s=timeout_s, what=what
        )
    except InputError as exc:
        raise UnsupportedModelError(exc.message, remedy=exc.remedy) from exc
    finally:
        log.debug("%s:\n%s", what, _read_log(folder))
    return answer


def write_samples(folder: Path, samples: Sequence[Mapping[str, npt.NDArray[Any]]], names: Sequence[str]) -> None:
    """Write each input's samples as one ``.npy`` file, without ever holding more than one sample in memory."""
    import numpy as np

    first = samples[0]
    stacks = [
        np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            folder / f"samples_{i}.npy", mode="w+", dtype=first[name].dtype, shape=(len(samples), *first[name].shape)
        )
        for i, name in enumerate(names)
    ]
    for number in range(len(samples)):
        sample = samples[number]
        for stack, name in zip(stacks, names, strict=True):
            stack[number] = sample[name]
    for stack in stacks:
        stack.flush()


def read_samples(folder: Path) -> Iterator[list[npt.NDArray[Any]]]:
    """What `write_samples` wrote, one sample at a time, its inputs in the order of their names there."""
    import numpy as np

    count = len(list(folder.glob("samples_*.npy")))
    stacks = [np.load(folder / f"samples_{i}.npy", mmap_mode="r") for i in range(count)]
    for number in range(len(stacks[0])):
        yield [np.array(stack[number]) for stack in stacks]


def _read_log(folder: Path) -> str:
    """What the child printed."""
    path = folder / LOG
    return path.read_text(errors="replace") if path.is_file() else ""


@contextlib.contextmanager
def isolated(folder: Path) -> Iterator[None]:
    """Run the body in ``folder``, off the network, with everything printed (native code included) going to a file."""
    _forbid_network()
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)  # TensorFlow leaves generated sources among the temporary files
    try:
        with _captured(folder / LOG), contextlib.chdir(folder):
            yield
    finally:
        tempfile.tempdir = before


def _forbid_network() -> None:
    """No step of a build touches the network: make any attempt in this (child) process fail at once."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise OSError("edgecompile forbids network access during a build")

    for place, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        setattr(place, name, refuse)


@contextlib.contextmanager
def _captured(path: Path) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
