"""How many instructions of an Arm core one inference takes: the same figure, run after run.

A plugin of QEMU's (``targets/lab/insn_count.c``) counts what the emulated program executes. It is a figure to compare
two files by, or two versions of one; it is no time: caches, memory and the core's width are not emulated.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path

from edgecompile import content
from edgecompile.bench import runner
from edgecompile.errors import DeviceError, InputError
from edgecompile.transport import Transport, lab
from edgecompile.types import Artifact, InstructionCount

_PLUGIN = "/opt/edgecompile/insn_count.so"
#: What else may differ between two runs is taken away: the environment, the places in memory, the hash seed.
_FIXED = ("HOME=/home/pi", "PATH=/usr/bin", "PYTHONHASHSEED=0", "OPENBLAS_NUM_THREADS=1", "PYTHONDONTWRITEBYTECODE=1")
#: The transport's folder has another name each time, whose hash and length would change the count by some instructions.
_HERE = "/tmp/count"
_IN_ONE_PLACE = """
here=$1 backend=$2 back=$PWD; shift 2
rm -rf "$here" && mkdir "$here" && cp -rl ./*.py "./$backend" ./models "$here" && cd "$here" || exit
"$@"; code=$?
[ "$code" != 0 ] || mv counts.txt "$back/counts.txt" || exit
rm -rf "$here"
exit "$code"
"""
#: Markers with nothing in between that ``count.py`` makes before the runs.
_MARKERS = 20


def instructions(
    artifact: Artifact, transport: Transport, *, runs: int = 5, package: str | None = None, timeout_s: float = 900.0
) -> InstructionCount:
    """Count the instructions of an inference with one thread on an emulated board, entered with ``with``.

    The inputs are random, by a fixed seed; ``package`` is that of the runtime, where a board has several. Raises
    `InputError` for other machines, `DeviceError` when the file cannot be run there or there is no C compiler.
    """
    lab.require(transport)
    assert isinstance(transport, lab.LabTransport)
    if runs < 1:
        raise InputError(f"{runs} runs are too few", remedy="count 1 run at least")
    (_, model) = runner.put([artifact], transport)
    transport.put(content.builtin_root("targets") / "lab" / "count.py", "count.py")
    program = ["/usr/bin/qemu-aarch64", "-seed", "1", "-plugin", f"{_PLUGIN},out=counts.txt", "/usr/bin/python3"]
    program += ["count.py", "--model", model, "--runs", str(runs)]
    program += ["--runtime-module", package] if package else []
    fixed = [*_FIXED, f"QEMU_CPU={transport.core.qemu}"]
    argv = ["/usr/bin/env", "-i", *fixed, "/usr/bin/setarch", "aarch64", "-R", *program]
    argv = ["/bin/sh", "-c", _IN_ONE_PLACE, "edgecompile", _HERE, model.partition(":")[0], *argv]
    done = transport.run(argv, timeout_s=timeout_s)
    if done.code:
        raise _fault(transport, artifact, done.err or done.out)
    return _read(transport, done.out, runs)


def _fault(transport: lab.LabTransport, artifact: Artifact, said: str) -> DeviceError:
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
        remedy="see that it runs there at all, with edgecompile verify",
    )


def _read(transport: lab.LabTransport, out: str, runs: int) -> InstructionCount:
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
    return InstructionCount(
        core=transport.core.name,
        per_inference=median,
        spread=(max(counts) - min(counts)) / median,
        runs=runs,
        runtime=out.strip().splitlines()[-1] if out.strip() else "unknown",
        image=transport.image,
    )


__all__ = ["instructions"]
