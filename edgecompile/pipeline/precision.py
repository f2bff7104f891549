"""Mixed precision: where INT8 is fast enough but loses too much, the operators that hurt most return to float.

Operators are ordered by what their quantization alone adds to the outputs' noise for each millisecond that it saves;
how many of them must return is found by trying files: doubling, then halving the gap. What casts between float and
integers cost is in the measured latency of those files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import evaluate, search, tables
from edgecompile.errors import UnsupportedModelError
from edgecompile.lower.qdq import noise
from edgecompile.pipeline.attempts import attempt
from edgecompile.pipeline.changing import changed
from edgecompile.pipeline.conversion import is_far
from edgecompile.pipeline.job import Job, some, versions
from edgecompile.pipeline.latency import operator_times
from edgecompile.types import Candidate, Plan, digest

#: Samples that noise is measured on, and files tried at most.
_SAMPLES, _MOST = 16, 6
#: What an operator saves at least, so that one that saves nothing returns to float among the first.
_LEAST_MS = 1e-6


def mixed_precision(job: Job, candidates: Sequence[Candidate], reference: evaluate.Reference) -> list[Candidate]:
    """INT8 files with some operators in float, where no candidate keeps every limit, but an INT8 one is fast enough.

    An INT8 file that was too far from float to be a candidate at all was not timed: it is where the search begins if
    no other is left.
    """
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    if job.request.plan is not None or any(not search.violations(c, job.budget) for c in usable):
        return []
    done = {replace(c.plan, float_operators=()) for c in candidates if c.plan.float_operators}
    plans = [c for c in candidates if c.plan.precision == "int8" and not c.plan.float_operators and c.plan not in done]
    close = [c for c in plans if c in usable and _only_inaccurate(job, c)]
    far = [c for c in plans if is_far(c)]
    if close:
        best = min(close, key=lambda c: search.loss(c.accuracy))
    elif far:
        best = max(far, key=_sqnr_db)
    else:
        return []
    try:
        return _tried(job, best.plan, reference)
    except UnsupportedModelError as exc:
        job.progress.note(f"{best.plan.label}: no operator returns to float: {exc.message}")
        return []


def _sqnr_db(candidate: Candidate) -> float:
    assert candidate.parity is not None
    assert candidate.parity.sqnr_db is not None
    return candidate.parity.sqnr_db


def _only_inaccurate(job: Job, candidate: Candidate) -> bool:
    broken = search.violations(candidate, job.budget)
    return bool(broken) and len(broken) == len(search.accuracy_violations(candidate.accuracy, job.budget))


def _tried(job: Job, plan: Plan, reference: evaluate.Reference) -> list[Candidate]:
    """Files with more and more operators in float, until the fewest that keep the accuracy are found."""
    order = _order(job, plan)
    found: list[Candidate] = []
    low, high, count = 0, len(order), 1
    while low + 1 < high and len(found) < _MOST:
        candidate = attempt(job, replace(plan, float_operators=tuple(sorted(order[:count]))), reference)
        found.append(candidate)
        accurate = candidate.failure is None and not search.accuracy_violations(candidate.accuracy, job.budget)
        low, high = (low, count) if accurate else (count, high)
        slow = candidate.measurement is not None and not candidate.measurement.meets(job.budget.latency_ms)
        if slow and not accurate:
            break  # more operators in float are slower still
        count = (low + high) // 2 if high < len(order) else min(2 * count, len(order) - 1)
        if count in (low, high):
            break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """Outputs of weighted operators, the one to return to float first at the front."""

    outputs: tuple[str, ...]


def _order(job: Job, plan: Plan) -> tuple[str, ...]:
    mine = changed(job, plan) if plan.steps else job
    key = digest("order", mine.model.sha256, plan.runtime, job.data.digest, job.machine, job.threads, versions())

    def make(_: Path) -> _Order:
        import onnx

        proto = onnx.load(str(mine.model.path))
        with job.progress.stage("Measure the noise of each operator in INT8") as advance:
            noises = noise.operators(
                proto, some(mine.data.calibration, _SAMPLES), progress=lambda done, total: advance(1)
            )
        saved = _saved_ms(job, plan, proto)
        rank = {name: value / max(saved.get(name, 0.0), _LEAST_MS) for name, value in noises.items()}
        return _Order(outputs=tuple(sorted(rank, key=lambda name: (-rank[name], name))))

    return job.store.cached("order", key, _Order, make).outputs


def _saved_ms(job: Job, plan: Plan, proto: object) -> dict[str, float]:
    """What INT8 saves on each operator, by the name of its output."""
    outputs = {node.name: node.output[0] for node in proto.graph.node}  # type: ignore[attr-defined]
    keys = dict(tables.keys_of(proto))
    wanted = list(dict.fromkeys(keys.values()))
    with job.progress.stage("Time the operators in both precisions"):
        fast = operator_times(job, plan, wanted)
        slow = operator_times(job, replace(plan, precision="fp32"), wanted)
    return {outputs[name]: slow[key] - fast[key] for name, key in keys.items() if name in outputs}
