"""`edgecompile check`: has a bundle become worse than the one before it? For a CI job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecompile import bench, bundle, measuring
from edgecompile.errors import InputError, LimitNotMet
from edgecompile.progress import Progress
from edgecompile.transport import lab, open_transport
from edgecompile.types import Accuracy

Quantity = Literal["outputs", "latency", "instructions", "size", "accuracy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One quantity of two bundles, in words, and whether it became worse than is allowed."""

    quantity: Quantity
    baseline: str
    now: str
    change: str
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What was compared; ``passed`` when nothing became worse."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not any(finding.worse for finding in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What may change: latency, instructions and size by a factor, accuracy by points of its metric.

    ``accuracy_points`` of ``None`` allows what chance explains: the baseline's value within the new one's interval.
    """

    latency: float = 1.0
    instructions: float = 1.01
    size: float = 1.01
    accuracy_points: float | None = None


def check(
    path: Path,
    against: Path,
    options: bench.BenchOptions,
    progress: Progress,
    *,
    on: str = "local",
    tolerance: Tolerance | None = None,
    latency: bool | None = None,
) -> CheckReport:
    """Compare two bundles: hashes, the newer one's outputs at ``on``, size, accuracy, and what an inference costs.

    That is latency, both files measured interleaved, and on an emulated board instructions; ``latency`` of ``False``
    measures none. Latency is worse when the whole 95 % interval of the ratio lies above the tolerance. Raises
    `InputError` for what is no bundle, for a phone reached by adb and for latency on an emulated board, `LimitNotMet`
    for a bundle that was changed, `DeviceError` where the device fails.
    """
    allowed = tolerance or Tolerance()
    if on.startswith("adb:"):
        raise InputError(
            "a phone reached by adb cannot be checked on",
            remedy="use SSH, or bench and verify with --benchmark-model FILE",
        )
    way = open_transport(on)
    emulated = lab.emulated_core(way)
    if latency:
        lab.refuse_latency(way)
    now, baseline = bundle.read(path), bundle.read(against)
    for opened in (now, baseline):
        bundle.check_hashes(opened)
    findings = [_size(baseline.manifest, now.manifest, allowed)]
    if (accuracy := _accuracy(baseline.manifest, now.manifest, allowed)) is not None:
        findings.append(accuracy)
    elif now.manifest.accuracy is not None:
        progress.note("accuracy is not compared: the bundles were evaluated with other metrics or on other data")
    lab.ready(on, progress)
    findings.append(_outputs(now, progress, on))
    if emulated is not None:
        progress.note(f"latency is not compared: an emulated {emulated} has none; instructions are")
        findings.append(_instructions((baseline, now), progress, on, allowed))
    elif latency is not False:
        findings.append(_latency((against, path), baseline.manifest, now.manifest, options, progress, on, allowed))
    return CheckReport(findings=tuple(findings))


def _outputs(now: bundle.Bundle, progress: Progress, on: str) -> Finding:
    """Whether the file computes at ``on`` what it computed when it was built."""
    expected = f"{now.manifest.golden.samples} golden vectors"
    try:
        with progress.stage("Check the golden vectors"):
            found = measuring.compare_golden(now, on=on, progress=progress)
    except LimitNotMet as exc:
        return Finding(quantity="outputs", baseline=expected, now=exc.message, change="differ", worse=True)
    kept = "equal" if found.comparison == "exact" else f"within {found.largest_error:.1e}"
    return Finding(quantity="outputs", baseline=expected, now=kept, change="none", worse=False)


def _instructions(bundles: Sequence[bundle.Bundle], progress: Progress, on: str, allowed: Tolerance) -> Finding:
    before, after = (opened.manifest.model_file.sha256 for opened in bundles)
    if before == after:
        return Finding(quantity="instructions", baseline="-", now="the same file", change="none", worse=False)
    report = measuring.count([opened.path for opened in bundles], progress, on=on)
    first, last = report.counts
    ratio = report.ratios[1]
    return Finding(
        quantity="instructions",
        baseline=f"{first.per_inference:,}",
        now=f"{last.per_inference:,}",
        change=f"{100 * (ratio - 1):+.2f} % (emulated {last.core})",
        worse=ratio > allowed.instructions,
    )


def _size(baseline: bundle.Manifest, now: bundle.Manifest, allowed: Tolerance) -> Finding:
    before, after = baseline.model_file.size_bytes, now.model_file.size_bytes
    return Finding(
        quantity="size",
        baseline=f"{before} bytes",
        now=f"{after} bytes",
        change=f"{100 * (after / before - 1):+.1f} %",
        worse=after > before * allowed.size,
    )


def _accuracy(baseline: bundle.Manifest, now: bundle.Manifest, allowed: Tolerance) -> Finding | None:
    """The files' accuracies, where both bundles hold figures on the same evaluation data."""
    before, after = baseline.accuracy, now.accuracy
    if before is None or after is None or before.metric != after.metric or before.samples != after.samples:
        return None
    if baseline.data is None or now.data is None or baseline.data.digest != now.data.digest:
        return None
    lost = before.value - after.value
    worse = before.value > after.ci_high if allowed.accuracy_points is None else lost > allowed.accuracy_points
    return Finding(
        quantity="accuracy",
        baseline=_figure(before),
        now=_figure(after),
        change=f"{round(-lost, 2) + 0.0:+.2f} {'dB' if before.metric == 'SQNR' else 'points'}",
        worse=worse,
    )


def _figure(accuracy: Accuracy) -> str:
    return f"{accuracy.metric} {accuracy.value:.2f} [{accuracy.ci_low:.2f}, {accuracy.ci_high:.2f}]"


def _latency(
    paths: Sequence[Path],
    baseline: bundle.Manifest,
    now: bundle.Manifest,
    options: bench.BenchOptions,
    progress: Progress,
    on: str,
    allowed: Tolerance,
) -> Finding:
    if baseline.model_file.sha256 == now.model_file.sha256:
        return Finding(quantity="latency", baseline="-", now="the same file", change="none", worse=False)
    report = measuring.measure(paths, options, progress, on=on)
    ratio = report.ratios[1]
    assert ratio is not None
    before, after = report.measurements
    return Finding(
        quantity="latency",
        baseline=f"{before.value_ms:.4g} ms",
        now=f"{after.value_ms:.4g} ms",
        change=f"{ratio.value:.3f} [{ratio.ci_low:.3f}, {ratio.ci_high:.3f}] times, {after.device}",
        worse=ratio.ci_low > allowed.latency,
    )
