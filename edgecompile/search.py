"""Which plans to try, and which candidate ships.

The rule of choice: of the candidates that keep every limit, the one with the least accuracy loss on the validation
part wins; ties go to the faster, then to the smaller. A gain over the original counts as no loss, since it is noise of
the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgecompile.types import Accuracy, Budget, BuildRequest, Candidate, Plan, Precision, RuntimeName

#: Above this an SQNR difference is arithmetic noise of float32, not a loss (about ten bits).
_SQNR_CEILING_DB = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The candidate that ships, what became of the limits, and one verdict line for each candidate.

    ``status`` is ``met`` (by measurement), ``predicted`` (nothing was measured on the device), or ``not met``.
    """

    candidate: Candidate
    status: Literal["met", "predicted", "not met"]
    verdicts: tuple[str, ...]
    text: str
    help: tuple[str, ...] = ()


def propose(
    request: BuildRequest,
    combinations: Sequence[tuple[RuntimeName, Precision]],
    *,
    has_data: bool,
    saturates: Callable[[RuntimeName], bool],
) -> tuple[Plan, ...]:
    """The plans worth trying, float first.

    ``combinations`` are the profile's runtimes and precisions in order of preference. INT8 needs calibration data.
    Where 8-bit products can saturate in 16 bits (``saturates``: x86 without VNNI), a 7-bit variant is tried too.
    """
    plans: list[Plan] = []
    order: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    wanted = [
        (runtime, precision)
        for runtime, precision in combinations
        if (not request.runtimes or runtime in request.runtimes)
        and (not request.precisions or precision in request.precisions)
        and (precision != "int8" or has_data)
    ]
    for runtime, precision in sorted(wanted, key=lambda pair: order.index(pair[1])):
        for reduce_range in (False, True) if precision == "int8" and saturates(runtime) else (False,):
            plans.append(
                Plan(
                    runtime=runtime,
                    precision=precision,
                    reduce_range=reduce_range,
                    io_dtype=request.io_dtype if precision == "int8" else "float32",
                    input_layout=request.input_layout if runtime == "tflite" else "nhwc",
                    calibration_samples=request.calibration_samples if precision == "int8" else 0,
                    seed=request.seed,
                )
            )
    return tuple(plans)


def loss(accuracy: Accuracy | None) -> float:
    """What a candidate loses against the original, in the metric's points; never negative; 0 where unknown."""
    if accuracy is None:
        return 0.0
    if accuracy.metric == "SQNR":
        return max(0.0, _SQNR_CEILING_DB - accuracy.value)
    return max(0.0, accuracy.drop or 0.0)


def violations(candidate: Candidate, budget: Budget) -> tuple[str, ...]:
    """Each limit the candidate breaks, in words with both figures. Empty: it keeps them all."""
    broken: list[str] = []
    measurement, artifact = candidate.measurement, candidate.artifact
    if measurement is not None and not measurement.meets(budget.latency_ms):
        broken.append(_latency_words(measurement.value_ms, measurement.ci_high_ms, budget.latency_ms))
    if artifact is not None and budget.max_size_bytes is not None and artifact.size_bytes > budget.max_size_bytes:
        broken.append(f"{artifact.size_bytes / 1e6:.2f} MB > {budget.max_size_bytes / 1e6:g} MB")
    return (*broken, *accuracy_violations(candidate.accuracy, budget))


def accuracy_violations(accuracy: Accuracy | None, budget: Budget) -> tuple[str, ...]:
    """The accuracy limits that a figure breaks, in words."""
    if accuracy is None:
        return ()
    broken: list[str] = []
    if budget.max_drop is not None and accuracy.drop is not None and accuracy.drop > budget.max_drop:
        broken.append(f"{accuracy.metric} drop {accuracy.drop:.2f} > {budget.max_drop:g}")
    if budget.min_sqnr_db is not None and accuracy.metric == "SQNR" and accuracy.value < budget.min_sqnr_db:
        broken.append(f"SQNR {accuracy.value:.1f} dB < {budget.min_sqnr_db:g} dB")
    return tuple(broken)


def distrust(candidate: Candidate, budget: Budget) -> tuple[str, ...]:
    """Why a measurement that keeps the latency budget does not count; empty where it does."""
    m = candidate.measurement
    if m is None or budget.accept_throttled or not m.meets(budget.latency_ms) or m.counts(budget.latency_ms):
        return ()
    why = f" ({'; '.join(m.warnings)})" if m.warnings else ""
    return (f"its measurement is not trusted, since the device was not itself{why}",)


def _latency_words(value_ms: float, high_ms: float, budget_ms: float) -> str:
    over = 100 * (value_ms / budget_ms - 1)
    if over > 0:
        return f"{over:.0f} % too slow" if over >= 1 else "just too slow"
    return f"not proven: up to {high_ms:.3g} ms"


def _verdict(candidate: Candidate, budget: Budget) -> str:
    if candidate.failure is not None:
        return f"failed: {candidate.failure}"
    broken = violations(candidate, budget)
    if broken or distrust(candidate, budget):
        return "; ".join(broken) or "not trusted"
    m = candidate.measurement
    if m is None or m.provenance != "measured":
        return "predicted to meet"
    return "met (measured)" if m.trusted else "met (measured, not trusted)"


def _latency_ms(candidate: Candidate) -> float:
    return candidate.measurement.value_ms if candidate.measurement is not None else float("inf")


def _size_bytes(candidate: Candidate) -> int:
    return candidate.artifact.size_bytes if candidate.artifact is not None else 0


def choose(candidates: Sequence[Candidate], budget: Budget) -> Choice:
    """The candidate that ships. At least one must not have failed (``ValueError`` otherwise).

    When none keeps every limit, the best one breaks the fewest, then comes nearest to the latency budget.
    """
    usable = [c for c in candidates if c.failure is None and c.measurement is not None]
    if not usable:
        raise ValueError("no candidate to choose from")
    verdicts = tuple(_verdict(c, budget) for c in candidates)
    keeping = [c for c in usable if not violations(c, budget) and not distrust(c, budget)]
    if not keeping:
        best = min(
            usable, key=lambda c: (len(violations(c, budget)), max(_latency_ms(c), budget.latency_ms), loss(c.accuracy))
        )
        broken = (*violations(best, budget), *distrust(best, budget))
        return Choice(
            candidate=best,
            status="not met",
            verdicts=verdicts,
            text=f"{best.plan.label} comes nearest: " + "; ".join(broken),
            help=_what_would_help(usable, best, budget),
        )
    best = min(keeping, key=lambda c: (loss(c.accuracy), _latency_ms(c), _size_bytes(c)))
    assert best.measurement is not None
    status: Literal["met", "predicted"] = "met" if best.measurement.provenance == "measured" else "predicted"
    return Choice(candidate=best, status=status, verdicts=verdicts, text=_chosen_words(best, budget, status))


def _chosen_words(best: Candidate, budget: Budget, status: str) -> str:
    m = best.measurement
    assert m is not None
    figure = (
        f"p{m.percentile:g} {m.value_ms:.3g} ms, 95 % interval up to {m.ci_high_ms:.3g} ms, "
        f"budget {budget.latency_ms:g} ms"
    )
    if status == "met":
        doubt = "" if m.trusted else ", while it was not itself (accepted by --accept-throttled)"
        return f"{best.plan.label} meets the budget: {figure}, measured on {m.device}{doubt}"
    return f"{best.plan.label} is predicted to meet the budget: {figure}, estimated for {m.device}, not measured"


def _what_would_help(usable: Sequence[Candidate], best: Candidate, budget: Budget) -> tuple[str, ...]:
    hints: list[str] = []
    if distrust(best, budget):
        hints.append("see that the device is cool, idle and well supplied, then build again")
        hints.append("--accept-throttled lets such measurements count")
    fastest = min(usable, key=_latency_ms)
    if fastest is not best and not _breaks_latency(fastest, budget) and violations(fastest, budget):
        hints.append(f"{fastest.plan.label} is fast enough but: {'; '.join(violations(fastest, budget))}")
    if _breaks_latency(best, budget):
        m = fastest.measurement
        assert m is not None
        hints.append(f"the nearest budget that {fastest.plan.label} would meet is {_round_up(m.ci_high_ms)} ms")
        if all(c.plan.precision != "int8" for c in usable):
            hints.append("INT8 was not tried: it needs --data (some hundred images), and a --precision that allows it")
    return tuple(hints)


def _breaks_latency(candidate: Candidate, budget: Budget) -> bool:
    return candidate.measurement is not None and not candidate.measurement.meets(budget.latency_ms)


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Which points (milliseconds, loss) no other beats in both, as places in ``points``, the fastest first."""
    least, kept = math.inf, []
    for place in sorted(range(len(points)), key=lambda i: points[i]):
        if points[place][1] < least:
            least = points[place][1]
            kept.append(place)
    return tuple(kept)


def frontier(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that no other beats in both latency and accuracy, the fastest first."""
    usable = [c for c in candidates if c.failure is None and c.measurement is not None and c.accuracy is not None]
    return tuple(usable[i] for i in pareto([(_latency_ms(c), loss(c.accuracy)) for c in usable]))


def _round_up(value_ms: float) -> str:
    """A figure just above ``value_ms``, with three significant digits."""
    from decimal import ROUND_CEILING, Context, Decimal

    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(Decimal(value_ms)).normalize():f}"
