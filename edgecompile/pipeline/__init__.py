"""The main job: a trained model in, a measured and verified bundle out.

`build` reads top to bottom like the list of what is done. Every step's result is kept in the work folder under the hash
of what made it, so the same command goes on where a killed one was.
"""

from __future__ import annotations

from edgecompile import bundle, search
from edgecompile.pipeline.accuracy import add_validation, evaluated, reference_of
from edgecompile.pipeline.conversion import lower_all, require_one
from edgecompile.pipeline.dry import DryRun, dry_run
from edgecompile.pipeline.helping import with_help
from edgecompile.pipeline.instructions import add_instructions
from edgecompile.pipeline.job import prepare, work_folder
from edgecompile.pipeline.latency import add_latency
from edgecompile.pipeline.plans import propose
from edgecompile.pipeline.precision import mixed_precision
from edgecompile.pipeline.resolutions import other_resolutions
from edgecompile.pipeline.smaller import smaller_models
from edgecompile.pipeline.trained import trained_models
from edgecompile.pipeline.writing import BuildResult, write_bundle
from edgecompile.progress import Progress
from edgecompile.transport import lab
from edgecompile.types import BuildRequest


def build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Build one model for one device. Raises `EdgecompileError`; a missed limit is a result, not an error."""
    bundle.check_output(request.out, force=request.force)
    with work_folder(request) as store:
        job = prepare(request, store, progress)
        plans = propose(job)
        lab.ready(request.on, progress)  # before any long work: what it lacks is said at once
        reference = reference_of(job)
        candidates = lower_all(job, plans)
        mendable = reference is not None and request.plan is None
        require_one(job, candidates, mendable=mendable)
        candidates = add_latency(job, candidates, required=True)
        require_one(job, candidates, mendable=mendable)
        if reference is not None:
            candidates = add_validation(job, candidates, reference)
            candidates += mixed_precision(job, candidates, reference)
            candidates += other_resolutions(job, candidates, reference)
            candidates += smaller_models(job, candidates, reference)
            candidates += trained_models(job, candidates, reference)
            candidates += mixed_precision(job, candidates, reference)
        require_one(job, candidates)
        candidates = add_instructions(job, candidates)
        choice = with_help(job, candidates, search.choose(candidates, job.budget))
        return write_bundle(job, candidates, choice, evaluated(job, choice.candidate))


__all__ = ["BuildResult", "DryRun", "build", "dry_run", "prepare", "propose"]
