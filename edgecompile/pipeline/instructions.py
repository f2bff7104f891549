"""What candidates cost on an emulated board: instructions, where there is no device to take latencies from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgecompile import bench
from edgecompile.errors import DeviceError
from edgecompile.pipeline.job import Job
from edgecompile.transport import Transport, lab
from edgecompile.types import Artifact, Candidate, InstructionCount, digest

_RUNS = 3


def add_instructions(job: Job, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the instructions that an inference takes on the emulated board, where there is one."""
    if job.emulated is None:
        return list(candidates)
    # What is meant for a GPU is left out: its instructions on a CPU would say nothing.
    on_cpu = [c for c in candidates if c.plan.runtime != "tensorrt" and c.plan.provider is None]
    wanted = [c for c in on_cpu if c.artifact is not None and c.failure is None]
    counted = {}
    with job.transport() as board, job.progress.stage("Count instructions", total=len(wanted)) as step:
        for candidate in wanted:
            assert candidate.artifact is not None
            try:
                counted[candidate.plan] = _count(job, candidate.artifact, board)
            except DeviceError as exc:
                job.progress.warn(f"{candidate.plan.label}: {exc.message}")
            step(1)
    return [replace(c, instructions=counted.get(c.plan)) for c in candidates]


def _count(job: Job, artifact: Artifact, board: Transport) -> InstructionCount:
    assert isinstance(board, lab.LabTransport)
    key = digest(artifact.sha256, artifact.runtime, board.core.name, board.image, _RUNS)
    return job.store.cached(
        "instructions", key, InstructionCount, lambda _: bench.instructions(artifact, board, runs=_RUNS)
    )
