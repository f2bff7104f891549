"""Training, where `--train` asks for it: the best smaller model is distilled, and a student may be trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import evaluate, search, shrink, students, tables
from edgecompile.errors import UnsupportedModelError
from edgecompile.pipeline.attempts import attempt, fastest
from edgecompile.pipeline.conversion import changed
from edgecompile.pipeline.job import Job, fitting, versions
from edgecompile.pipeline.latency import operator_times, tile_of
from edgecompile.techniques import distill, student, training
from edgecompile.types import Candidate, Step, digest

#: The share of the time limit that is for training steps; looking at held-back samples takes some, too.
_SHARE = 0.9
#: Students that are trained, each for its part of the time limit.
_STUDENTS = 2
_TRAINS = frozenset({"distill", "student"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """How many training steps fit in the time limit, as they were counted once: a plan holds counts, never seconds."""

    count: int


def trained_models(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """The best smaller model distilled from the original, and with `--student` new nets trained from nothing."""
    if not job.request.train or job.request.plan is not None:
        return []
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    if not job.request.frontier and any(not search.violations(c, job.budget) for c in usable if not c.plan.steps):
        return []
    _say_missing(job)
    found = _distilled(job, usable, reference)
    if job.request.student:
        found += _students(job, usable, reference)
    return found


def _say_missing(job: Job) -> None:
    import torch

    labels, shape = getattr(fitting(job), "labels", None), job.model.outputs[0].shape
    if labels is None or len(shape) != 2:
        return
    if (text := training.missing_classes(torch.from_numpy(labels), shape[1])) is not None:
        job.progress.warn(text)


def _distilled(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """Latency does not depend on the weights, so of the smaller models only the best is worth training."""
    usable = [c for c in candidates if c.plan.steps and not any(s.technique in _TRAINS for s in c.plan.steps)]
    if not usable:
        return []
    plan = search.choose(usable, job.budget).candidate.plan
    mine = changed(job, plan)
    samples = fitting(mine)
    count = distill.sample_count(mine.model, len(samples))
    one = distill.step(steps=1, samples=count, seed=job.request.seed)

    def seconds() -> float:
        return distill.seconds_a_step(job.model, mine.model, samples, one)

    steps = _count(job, seconds, mine.model.sha256, one, 1)
    made = distill.step(steps=steps, samples=count, seed=job.request.seed)
    return [attempt(job, replace(plan, steps=(*plan.steps, made)), reference)]


def _count(job: Job, seconds: Callable[[], float], model: str, one: Step, parts: int) -> int:
    """The steps that fit in a part of the time limit; counted once, so that a resumed build trains the same."""
    limit_s = 60 * job.request.time_limit_min / parts
    key = digest("training", job.model.sha256, model, one, limit_s, versions())

    def make(_: Path) -> _Steps:
        return _Steps(count=max(1, round(_SHARE * limit_s / seconds())))

    return job.store.cached("training", key, _Steps, make).count


def _students(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """The most promising students that are predicted to meet the budget, each at the fastest ways to run it."""
    samples = fitting(job)
    refused = student.check_samples(len(samples))
    if refused is not None:
        job.progress.warn(refused)
        return []
    try:
        ranked = _ranked(job, candidates)
    except UnsupportedModelError as exc:
        job.progress.warn(exc.message)
        return []
    if not ranked:
        job.progress.note("no student is predicted to meet the budget")
    chosen = ranked[:_STUDENTS]
    count = distill.sample_count(job.model, len(samples))
    found: list[Candidate] = []
    for one in chosen:
        step = student.step(one.architecture, steps=1, samples=count, seed=job.request.seed)
        steps = _count(job, lambda step=step: student.seconds_a_step(job.model, samples, step), "", step, len(chosen))  # type: ignore[misc]
        made = student.step(one.architecture, steps=steps, samples=count, seed=job.request.seed)
        for base in fastest(candidates):
            candidate = attempt(job, replace(base.plan, steps=(made,)), reference)
            found.append(replace(candidate, predicted_ms=one.predicted_ms))
    return found


def _ranked(job: Job, candidates: Sequence[Candidate]) -> tuple[students.Ranked, ...]:
    """Students by what the fastest way to run the model would take for them."""
    import onnx

    base, *_ = fastest(candidates)
    assert base.measurement is not None
    nets = student.candidates(job.model, tile_of(job, base.plan))
    with job.progress.stage(f"Time the operators of {len(nets)} students"):
        keys = [key for _, key in tables.keys_of(onnx.load(str(job.model.path)))]
        times = operator_times(job, base.plan, list(dict.fromkeys(keys)))
        whole = sum(times[key] for key in keys)
        return students.rank(
            nets,
            shrink.AIM * job.budget.latency_ms,
            lambda wanted: operator_times(job, base.plan, list(wanted)),
            model=job.model,
            scale=base.measurement.ci_high_ms / whole,
        )
