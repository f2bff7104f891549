"""Training, where `--train` asks for it: the best smaller model is distilled, and a student may be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompile import evaluate, search, shrink, students, tables
from edgecompile.errors import DivergedError, UnsupportedModelError
from edgecompile.pipeline.attempts import attempt, fastest
from edgecompile.pipeline.changing import changed, trained
from edgecompile.pipeline.job import ANY, Job, fitting, versions
from edgecompile.pipeline.latency import operator_times, tile_of
from edgecompile.techniques import distill, student, training
from edgecompile.types import Arrays, Candidate, Plan, Step, digest

#: The share of the time limit that is for training steps; looking at held-back samples takes some, too.
_SHARE = 0.9
#: Students that are trained, each for its part of the time limit.
_STUDENTS = 2
_TRAINS = frozenset({"distill", "student"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """How many training steps fit in the time limit, as they were counted once: a plan holds counts, never seconds."""

    count: int
    each_s: float


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
    chosen: dict[str, Any] = {"samples": count, "seed": job.request.seed, **dict(job.request.training)}
    labelled = _labelled(job, samples)
    pools = labelled and distill.pools(job.model, mine.model)
    one = distill.step(**{**distill.recipe(labelled=labelled, features=pools, steps=1), **chosen, "steps": 1})
    try:
        # With labels the original is trained first, for as many steps.
        steps = _count(
            job, lambda: distill.seconds_a_step(job.model, mine.model, samples, one), mine.model.sha256, one,
            2 if labelled else 1,
        )  # fmt: skip
        if steps is None:
            return []
        steps = min(steps, chosen.get("steps", steps))
        made = distill.step(**{**distill.recipe(labelled=labelled, features=pools, steps=steps), **chosen})
        longer = trained(job, replace(plan, steps=(*plan.steps, made)), 60 * job.request.time_limit_min)
    except (UnsupportedModelError, DivergedError) as exc:
        job.progress.warn(f"{plan.label} was not trained: {exc.message}")
        return []
    return [attempt(job, longer, reference)]


def _labelled(job: Job, samples: Sequence[Arrays]) -> bool:
    """Whether a classifier's samples all have labels."""
    labels, shape = getattr(samples, "labels", None), job.model.outputs[0].shape
    if labels is None or len(job.model.outputs) != 1 or len(shape) != 2 or shape[1] < 2:
        return False
    return bool(len(labels) and labels.min() >= 0 and labels.max() < shape[1])


def _count(job: Job, seconds: Callable[[], float], model: str, one: Step, parts: float = 1) -> int | None:
    """The steps that fit in a part of the time limit; counted once, so that a resumed build trains the same.

    ``None``, and a warning, where not even one fits.
    """
    limit_s = 60 * job.request.time_limit_min / parts
    key = digest("training", job.model.sha256, model, one, limit_s, versions())

    def make(_: Path) -> _Steps:
        with job.progress.stage("Time a training step"):
            each_s = seconds()
        return _Steps(count=math.floor(_SHARE * limit_s / each_s), each_s=each_s)

    found = job.store.cached("training", key, _Steps, make)
    if found.count:
        return found.count
    job.progress.warn(
        f"nothing is trained: one training step takes {found.each_s:.2g} s, which --time-limit "
        f"{job.request.time_limit_min:g} (minutes) does not leave room for"
    )
    return None


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
        plan = _trained_student(job, one.architecture, count, len(chosen))
        if plan is None:
            break
        for base in fastest(candidates):
            candidate = attempt(job, replace(base.plan, steps=plan.steps), reference)
            found.append(replace(candidate, predicted_ms=one.predicted_ms))
    return found


def _trained_student(job: Job, architecture: student.Architecture, count: int, parts: int) -> Plan | None:
    """The plan of one student, trained for its part of the time limit; ``None``, and a warning, where it is not."""
    samples = fitting(job)
    labelled, chosen = _labelled(job, samples), {"samples": count, "seed": job.request.seed}
    step = student.step(architecture, **{**student.recipe(labelled=labelled, steps=1), **chosen})
    # With labels the original is trained first, which takes a third of the time.
    share = parts * 3 / 2 if labelled else parts
    steps = _count(job, lambda: student.seconds_a_step(job.model, samples, step), "", step, share)
    if steps is None:
        return None
    made = student.step(architecture, **{**student.recipe(labelled=labelled, steps=steps), **chosen})
    try:
        return trained(job, replace(ANY, steps=(made,)), 60 * job.request.time_limit_min / parts)
    except DivergedError as exc:
        job.progress.warn(f"the student {architecture.code} was not trained: {exc.message}")
        return None


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
