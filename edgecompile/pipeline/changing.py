"""The models that a plan's steps make. Each step's is kept, so that nothing is pruned or trained twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgecompile import graph, techniques
from edgecompile.pipeline.job import Job, fitting, load_data, versions
from edgecompile.store import write_atomically
from edgecompile.techniques import training
from edgecompile.types import Model, Plan, Step, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Changed:
    """What the steps of a plan made, as the work folder keeps it."""

    model: Model


def changed(job: Job, plan: Plan) -> Job:
    """The job with the model that the plan's steps make, and data that fits it. Every step's model is kept."""
    now = job
    for number, step in enumerate(plan.steps):
        now = _at_resolution(now, step) if number == 0 and step.technique == "resolution" else _after(job, now, step)
    return now


def _after(job: Job, now: Job, step: Step) -> Job:
    """The job after one more step; ``job`` has the original, which training imitates."""
    kept = now.store.cached("model", _key(job, now, step), _Changed, lambda folder: _applied(job, now, step, folder))
    _forget_checkpoints(job)
    return replace(now, model=kept.model, costs=graph.operators(kept.model.path))


def _key(job: Job, now: Job, step: Step) -> str:
    return digest("steps", job.model.sha256, now.model.sha256, step, now.data.digest, versions())


def _applied(job: Job, now: Job, step: Step, folder: Path) -> _Changed:
    with training.checkpoints_in(_checkpoints(job)):
        model = techniques.apply(now.model, (step,), fitting(now), folder, job.progress, original=job.model)
    return _Changed(model=model)


def _checkpoints(job: Job) -> Path:
    return job.store.root / "checkpoints"


def _forget_checkpoints(job: Job) -> None:
    """Only here, where what was trained is kept: a build that is killed a moment earlier trains nothing again."""
    for path in _checkpoints(job).glob("*.pt"):
        path.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """The step of a training as it went, cut where its time was up."""

    step: Step


def trained(job: Job, plan: Plan, limit_s: float) -> Plan:
    """The plan whose last step is a training that took ``limit_s`` at most; its model is kept for it.

    A plan holds steps, never seconds: where time was up, the step says after how many, and replayed it ends with the
    same weights.
    """
    now = changed(job, replace(plan, steps=plan.steps[:-1]))
    key = digest(_key(job, now, plan.steps[-1]), limit_s)
    time_up = _Timer(file=job.store.root / "training-time" / key[:32], limit_s=limit_s)

    def make(folder: Path) -> _Trained:
        with training.watched(time_up) as watch:
            made = _applied(job, now, plan.steps[-1], folder)
        step = training.cut(plan.steps[-1], watch.steps) if watch.stopped else plan.steps[-1]
        job.store.cached("model", _key(job, now, step), _Changed, lambda place: _moved(made, place))
        return _Trained(step=step)

    step = job.store.cached("trained", key, _Trained, make).step
    _forget_checkpoints(job)
    return replace(plan, steps=(*plan.steps[:-1], step))


def _moved(made: _Changed, folder: Path) -> _Changed:
    """The model in another folder; what has been trained has nothing but its graph."""
    path = folder / made.model.path.name
    made.model.path.rename(path)
    return _Changed(model=replace(made.model, path=path, original_path=path))


def _at_resolution(job: Job, step: Step) -> Job:
    """The job with an input of other pixels: the model, and the data read anew."""
    kept = job.store.cached(
        "model",
        digest("steps", job.model.sha256, step, versions()),
        _Changed,
        lambda folder: _Changed(model=techniques.apply(job.model, (step,), (), folder)),
    )
    data = load_data(job.request, kept.model)
    return replace(job, model=kept.model, data=data, costs=graph.operators(kept.model.path))


#: Seconds after which a timer's count is written down.
_WRITE_S = 2.0


@dataclass(slots=True, kw_only=True)
class _Timer:
    """Whether a time is up; what earlier runs of the same build spent counts, to within two seconds."""

    file: Path
    limit_s: float
    clock: Callable[[], float] = time.monotonic
    spent_s: float = field(init=False)
    last: float = field(init=False)
    written_s: float = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.spent_s = float(self.file.read_text())
        except (OSError, ValueError):
            self.spent_s = 0.0
        self.last, self.written_s = self.clock(), self.spent_s

    def __call__(self) -> bool:
        now = self.clock()
        self.spent_s, self.last = self.spent_s + now - self.last, now
        if self.spent_s >= self.written_s + _WRITE_S:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, f"{self.spent_s:.1f}".encode())
            self.written_s = self.spent_s
        return self.spent_s >= self.limit_s
