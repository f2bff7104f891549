"""How many instructions of an Arm core one inference takes: the same figure, run after run.

A plugin of QEMU's (``targets/lab/insn_count.c``) counts what the emulated program executes. It is a figure to compare
two files by, or two versions of one; it is no time: caches, memory and the core's width are not emulated.
"""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass

from edgecompile import content
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import Transport
from edgecompile.transport.lab.way import LabTransport
from edgecompile.types import Artifact

_PLUGIN = "/opt/edgecompile/insn_count.so"
#: What else may differ between two runs is taken away: the environment, the places in memory, the hash seed.
_FIXED = ("HOME=/home/pi", "PATH=/usr/bin", "PYTHONHASHSEED=0", "OPENBLAS_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1")
#: The transport's folder has another name each time, whose hash and length would change the count by some instructions.
_HERE = "/tmp/count"
_IN_ONE_PLACE = """
here=$1 back=$PWD; shift
rm -rf "$here" && mkdir "$here" && cp -rl ./*.py tflite model.tflite "$here" && cd "$here" || exit
"$@"; code=$?
[ "$code" != 0 ] || mv counts.txt "$back/counts.txt" || exit
rm -rf "$here"
exit "$code"
"""
#: Markers with nothing in between that ``count.py`` makes before the runs.
_MARKERS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionCount:
    """Instructions of one inference with one thread on an emulated core.

    ``per_inference`` is the median of ``runs`` inferences, ``spread`` the largest less the smallest, over the median.
    """

    core: str
    per_inference: int
    spread: float
    runs: int
    runtime: str

    @property
    def label(self) -> str:
        """What the figure is called wherever it is shown."""
        return f"instructions (emulated {self.core})"


def instructions(
    transport: Transport, artifact: Artifact, *, runs: int = 5, package: str | None = None, timeout_s: float = 900.0
) -> InstructionCount:
    """Count the instructions of an inference of a ``.tflite`` file on an emulated board, entered with ``with``.

    The inputs are random, by a fixed seed; ``package`` is ``ai_edge_litert`` or ``tflite_runtime``. Raises `InputError`
    for other machines and other files, `DeviceError` when the file cannot be run there or there is no C compiler.
    """
    if not isinstance(transport, LabTransport):
        raise InputError(f"instructions are not counted on {transport.description}", remedy="use --on lab:pi4")
    if artifact.runtime != "tflite":
        raise InputError(
            f"the emulated board has no runtime for {artifact.file}", remedy="give a .tflite file, or a bundle with one"
        )
    if runs < 1:
        raise InputError(f"{runs} runs are too few", remedy="count 1 run at least")
    _put(transport, artifact)
    program = ["/usr/bin/qemu-aarch64", "-seed", "1", "-plugin", f"{_PLUGIN},out=counts.txt", "/usr/bin/python3"]
    program += ["count.py", "--model", "tflite:model.tflite", "--runs", str(runs)]
    program += ["--runtime-module", package] if package else []
    fixed = [*_FIXED, f"QEMU_CPU={transport.core.qemu}"]
    argv = ["/usr/bin/env", "-i", *fixed, "/usr/bin/setarch", "aarch64", "-R", *program]
    argv = ["/bin/sh", "-c", _IN_ONE_PLACE, "edgecompile", _HERE, *argv]
    done = transport.run(argv, timeout_s=timeout_s)
    if done.code:
        raise _fault(transport, artifact, done.err or done.out)
    return _read(transport, done.out, runs)


def _put(transport: Transport, artifact: Artifact) -> None:
    targets = content.builtin_root("targets")
    for source in sorted(targets.glob("*.py")):  # the runner and what it loads beside itself
        transport.put(source, source.name)
    transport.put(targets / "tflite" / "backend.py", "tflite/backend.py")
    transport.put(targets / "lab" / "count.py", "count.py")
    transport.put(artifact.file, "model.tflite")


def _fault(transport: LabTransport, artifact: Artifact, said: str) -> DeviceError:
    lines = said.strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if "insn_count.so" in said:
        return DeviceError(
            f"{transport.description} has no plugin to count with: {last}",
            remedy="install a C compiler (on Debian and Ubuntu: sudo apt install gcc libc6-dev), "
            f"then start the board anew: edgecompile lab down {transport.core.board}",
        )
    return DeviceError(
        f"{artifact.file} cannot be run on {transport.description}: {last}",
        remedy="see that it runs there at all, with edgecompile verify or edgecompile bench",
    )


def _read(transport: LabTransport, out: str, runs: int) -> InstructionCount:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.txt"
        transport.get("counts.txt", path)
        marks = [int(word) for word in path.read_text().split()]
    if len(marks) != _MARKERS + runs:
        raise DeviceError(
            f"{transport.description} gave {len(marks)} counts, not {_MARKERS + runs}",
            remedy="the runner there is not the one of this edgecompile",
        )
    *_, before_last, last = marks[:_MARKERS]
    own = last - before_last
    counts = [after - before - own for before, after in itertools.pairwise(marks[_MARKERS - 1 :])]
    median = round(statistics.median(counts))
    runtime = out.strip().splitlines()[-1] if out.strip() else "unknown"
    spread = (max(counts) - min(counts)) / median
    return InstructionCount(core=transport.core.name, per_inference=median, spread=spread, runs=runs, runtime=runtime)


__all__ = ["InstructionCount", "instructions"]
