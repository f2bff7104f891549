"""`edgecompile import-result`: what was measured elsewhere, brought into a bundle and marked as such.

It never changes a verdict: nobody here saw the machine. It must be about the bundle's own file, though.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompile import bench, bundle, page
from edgecompile.bench import benchmark_model
from edgecompile.errors import InputError
from edgecompile.types import Measurement

_MOST_BYTES = 64 * 1024 * 1024
_Z = 1.96
#: The standard error of a median over that of a mean, for normal values.
_MEDIAN = math.sqrt(math.pi / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was brought in, and the bundle with it."""

    measurement: Measurement
    bundle: bundle.Bundle


def import_result(files: Sequence[Path], path: Path, *, device: str | None, percentile: float = 50.0) -> Imported:
    """Bring a runner's JSON document, or logs of ``benchmark_model`` (one or several runs), into a bundle.

    ``device`` names the machine, which a log does not. Raises `InputError` for what holds no result or is about another
    file, `LimitNotMet` for a bundle that was changed.
    """
    opened = bundle.read(path)
    bundle.check_hashes(opened)
    texts = [_read(file) for file in files]
    if any(bench.is_document(text) for text in texts):
        found = _from_document(files, texts, opened.manifest, percentile)
    else:
        found = _from_logs(files, texts, opened.manifest, device, percentile)
    found = replace(found, provenance="imported", device=device or found.device)
    return Imported(measurement=found, bundle=_add(opened, found))


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise InputError(f"{file} is no result: it has {file.stat().st_size} bytes")
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise InputError(
            f"cannot read {file}: {exc.strerror}", remedy="give a log of benchmark_model or a runner's JSON"
        ) from exc


def _from_document(
    files: Sequence[Path], texts: Sequence[str], manifest: bundle.Manifest, percentile: float
) -> Measurement:
    if len(texts) != 1:
        raise InputError("a runner's document holds all its rounds", remedy="give one document at a time")
    by_hash = bench.from_document(texts[0], percentile)
    found = by_hash.get(manifest.model_file.sha256)
    if found is None:
        raise InputError(
            f"{files[0]} is not about the file of this bundle (SHA-256 {manifest.model_file.sha256[:12]}...)",
            remedy="measure it with the bundle's own runner: python runner/runner.py --model "
            f"{manifest.runtime}:{manifest.model_file.path} --output result.json",
        )
    return found


def _from_logs(
    files: Sequence[Path], texts: Sequence[str], manifest: bundle.Manifest, device: str | None, percentile: float
) -> Measurement:
    logs = []
    for file, text in zip(files, texts, strict=True):
        try:
            logs.append(benchmark_model.parse(text))
        except InputError as exc:
            raise InputError(f"{file}: {exc.message}", remedy=exc.remedy) from exc
        _check_size(file, logs[-1], manifest.model_file.size_bytes)
    if device is None:
        raise InputError("a log of benchmark_model does not tell the device", remedy="name it with --device")
    if len({log.threads for log in logs}) > 1:
        raise InputError("the logs are of different numbers of threads", remedy="import them one by one")
    values = [log.at(percentile) for log in logs]
    warnings = []
    if any(log.size_mb is None for log in logs):
        warnings.append("the log does not tell which file it is about")
    if len(logs) == 1:
        warnings.append("one run of benchmark_model: the interval does not cover what differs from run to run")
        low, high = _alone(logs[0], percentile)
    else:
        low, high = bench.interval_of_rounds(values)
    value = bench.median(values)
    p95 = [log.percentiles_ms[95.0] for log in logs if 95.0 in log.percentiles_ms]
    return Measurement(
        provenance="imported",
        device=device,
        runtime="benchmark_model",
        runtime_version="unknown",
        threads=logs[0].threads or 1,
        percentile=percentile,
        value_ms=value,
        ci_low_ms=low,
        ci_high_ms=high,
        median_ms=bench.median([log.at(50.0) for log in logs]),
        p90_ms=None,
        p95_ms=bench.median(p95) if p95 else None,
        p99_ms=None,
        runs=sum(log.runs for log in logs),
        cold_ms=logs[0].first_ms,
        load_ms=logs[0].init_ms,
        peak_memory_bytes=logs[0].peak_memory_bytes,
        warnings=tuple(warnings),
    )


def _check_size(file: Path, log: benchmark_model.Log, size_bytes: int) -> None:
    # Six digits are printed.
    if log.size_mb is not None and abs(log.size_mb * 1e6 - size_bytes) > 1e-5 * size_bytes + 1:
        raise InputError(
            f"{file} is about a file of {log.size_mb:g} MB, the bundle's has {size_bytes / 1e6:g} MB",
            remedy="run benchmark_model on the bundle's own file",
        )


def _alone(log: benchmark_model.Log, percentile: float) -> tuple[float, float]:
    """The interval of one run's median, from the spread that it tells."""
    value = log.at(percentile)
    if percentile != 50.0 or log.std_ms is None:
        raise InputError(
            f"one log tells no interval for the {percentile:g}th percentile", remedy="give the logs of several runs"
        )
    half = _Z * _MEDIAN * log.std_ms / math.sqrt(log.runs)
    return max(0.0, value - half), value + half


def _add(opened: bundle.Bundle, found: Measurement) -> bundle.Bundle:
    """The bundle written anew with one more imported result, beside the old one until it is whole.

    What else lies in the folder goes along: engines that were built with the bundle's script, the result itself.
    """
    manifest = replace(opened.manifest, imported=(*opened.manifest.imported, found))
    with bundle.BundleWriter(opened.path.resolve()) as writer:
        shutil.copytree(opened.path, writer.path(""), symlinks=True, dirs_exist_ok=True)
        for file in manifest.files:
            if file.role != "page":
                source = opened.path / file.path
                writer.path(file.path).unlink()  # it may be a link, through which nothing is to be written
                shutil.copymode(source, writer.add(file.role, source, file.path))
        writer.add_bytes("page", page.render(manifest).encode(), "report.html")
        return writer.finish(replace(manifest, files=writer.files))
