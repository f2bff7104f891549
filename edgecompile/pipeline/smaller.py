"""Smaller models, where no file of the whole model keeps every limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgecompile import evaluate, search, shrink
from edgecompile.errors import (
    UnsupportedModelError,
)
from edgecompile.pipeline.attempts import attempt
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.job import Job, fitting, versions
from edgecompile.pipeline.latency import operator_times, tile_of
from edgecompile.types import Candidate, Step, digest

#: Ways to run the model that smaller ones start from: the fastest few.
_BASES = 3
#: How much more than the least that is expected is aimed at, where that least is over the budget.
_JUST_OVER = 1.02
#: What a frontier aims at, as shares of the fastest file's latency.
_FRONTIER = (0.9, 0.75, 0.6, 0.45)


def smaller_models(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """Smaller models, where no file of the whole model keeps every limit: at its own resolution, then at others."""
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    whole = [c for c in usable if not c.plan.steps]
    if not whole or not job.request.prune or job.request.plan is not None:
        return []
    if not job.request.frontier and any(not search.violations(c, job.budget) for c in whole):
        return []
    found: list[Candidate] = []
    for prefix in dict.fromkeys(c.plan.steps for c in usable if _only_resolution(c)):
        bases = {c.plan.label: c for c in usable if c.plan.steps == prefix and _is_base(c)}
        names = sorted(bases, key=lambda name: _value_ms(bases[name]))[:_BASES]
        shrinking = _Shrinking(job=job, prefix=prefix, bases={name: bases[name] for name in names}, reference=reference)
        try:
            found += shrinking.run()
        except UnsupportedModelError as exc:
            job.progress.warn(exc.message)
            break
    return found


def _only_resolution(candidate: Candidate) -> bool:
    return all(step.technique == "resolution" for step in candidate.plan.steps)


def _is_base(candidate: Candidate) -> bool:
    return not candidate.plan.reduce_range and not candidate.plan.float_operators


def _value_ms(candidate: Candidate) -> float:
    return candidate.measurement.value_ms if candidate.measurement is not None else float("inf")


@dataclass(slots=True, kw_only=True)
class _Shrinking:
    """One search for smaller models: the ways to run them that it starts from, and what came of it."""

    job: Job
    prefix: tuple[Step, ...]
    bases: dict[str, Candidate]
    reference: evaluate.Reference
    found: list[Candidate] = field(default_factory=list)
    prospect: shrink.Prospect | None = None
    aims: dict[str, shrink.Aim] = field(default_factory=dict)

    def run(self) -> list[Candidate]:
        budgets = self._budgets(min(c.measurement.ci_high_ms for c in self.bases.values() if c.measurement is not None))
        if not budgets:
            return []
        job = changed(self.job, replace(_first(self.bases).plan, steps=self.prefix))
        tile = max(tile_of(job, c.plan) for c in self.bases.values())
        key = digest(
            "curves", job.model.sha256, job.data.digest, tile, job.request.importance, job.request.seed, versions()
        )
        prospect = self.prospect = shrink.explore(
            job.model,
            fitting(job),
            macs=sum(cost.macs for cost in job.costs),
            tile=tile,
            method=job.request.importance,  # type: ignore[arg-type]
            seed=job.request.seed,
            progress=job.progress,
            keep=lambda make: job.store.cached("curves", key, shrink.Curves, lambda _: make()),
        )
        aims = self.aims = {name: self._aim(prospect, name, c) for name, c in self.bases.items()}
        least = min(aim.reachable_ms() for aim in aims.values())
        for budget_ms in budgets:
            if not shrink.search(aims, budget_ms, self._attempt):
                job.progress.note(
                    f"no smaller model was found for {budget_ms:.3g} ms: pruning may reach about {least:.3g} ms"
                )
        if not self.found and budgets[0] < least:
            # What comes nearest is worth knowing as a file, too.
            shrink.search(aims, _JUST_OVER * least / shrink.AIM, self._attempt, most=1)
        return self.found

    def _budgets(self, fastest_ms: float) -> list[float]:
        """What to aim at: the budget where it is not met yet, and for a frontier shares of the fastest file."""
        budget_ms = self.job.budget.latency_ms
        aims = [budget_ms] if budget_ms < fastest_ms else []
        if self.job.request.frontier:
            aims += [share * fastest_ms for share in _FRONTIER if share * fastest_ms < 0.95 * budget_ms]
        return aims

    def _aim(self, prospect: shrink.Prospect, name: str, candidate: Candidate) -> shrink.Aim:
        plan, measurement = candidate.plan, candidate.measurement
        assert measurement is not None
        with self.job.progress.stage(f"Time the operators of {name}"):
            space = shrink.space(
                prospect, lambda keys: operator_times(self.job, plan, keys), tile=tile_of(self.job, plan)
            )
        aim = shrink.Aim(space=space)
        aim.note(space.whole(), measurement.ci_high_ms)
        return aim

    def _attempt(self, name: str, counts: Mapping[str, int]) -> float | None:
        """Make, convert and time one smaller model; its milliseconds, or ``None`` where there is no file."""
        assert self.prospect is not None
        plan = replace(self.bases[name].plan, steps=(*self.prefix, *shrink.steps(self.prospect, counts)))
        candidate = attempt(self.job, plan, self.reference)
        candidate = replace(candidate, predicted_ms=self.aims[name].predict(counts))
        self.found.append(candidate)
        return candidate.measurement.ci_high_ms if candidate.measurement is not None else None


def _first(bases: Mapping[str, Candidate]) -> Candidate:
    return next(iter(bases.values()))
