"""`edgecompile bench` and `edgecompile verify`: measure and check files that are there already."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgecompile import bench, bundle
from edgecompile.progress import Progress
from edgecompile.transport import open_transport
from edgecompile.types import Artifact, Measurement, Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Files measured interleaved; ``ratios[i]`` is file ``i``'s latency over the first's (``None`` for the first)."""

    names: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A bundle that is what its manifest says; ``largest_error`` is relative to each output's range."""

    files: int
    samples: int
    comparison: Literal["exact", "relative"]
    largest_error: float


def measure(
    paths: Sequence[Path], options: bench.BenchOptions, progress: Progress, *, on: str = "local"
) -> BenchReport:
    """Measure bundles and bare files, interleaved, on this machine or the one at ``on`` (``ssh://user@host``)."""
    artifacts = [_artifact(path) for path in paths]
    way = open_transport(on, waiting=progress.note)
    with progress.stage(f"Measure {len(artifacts)} files, interleaved"), way as transport:
        result = bench.measure(artifacts, transport, options)
    for warning in dict.fromkeys(w for m in result.measurements for w in m.warnings):
        progress.warn(warning)
    ratios = [None if i == 0 else result.ratio(i, 0) for i in range(len(artifacts))]
    return BenchReport(names=tuple(str(path) for path in paths), measurements=result.measurements, ratios=tuple(ratios))


def _artifact(path: Path) -> Artifact:
    if not path.is_dir():
        return bench.bare_file(path)
    opened = bundle.read(path)
    manifest = opened.manifest
    return Artifact(
        runtime=manifest.runtime,
        precision=manifest.precision,
        file=opened.file("model"),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        path_taken=manifest.path_taken,
        size_bytes=manifest.model_file.size_bytes,
        sha256=manifest.model_file.sha256,
    )


def verify(path: Path, *, on: str = "local") -> VerifyReport:
    """Check a bundle's hashes, then its golden vectors through the shipped file, here or on the machine at ``on``.

    The file runs in a process of its own, by our runner and never by the one in the bundle, which is as untrusted as
    the rest. Raises `LimitNotMet` for a difference, `InputError` for what is not a bundle.
    """
    import numpy as np

    opened = bundle.read(path)
    files = bundle.check_hashes(opened)
    with tempfile.TemporaryDirectory() as folder, open_transport(on) as transport:
        found = Path(folder) / "outputs.npz"
        bench.run_inputs(_artifact(path), transport, inputs=opened.file("golden inputs"), outputs=found)
        with np.load(opened.file("golden outputs"), allow_pickle=False) as expected, np.load(found) as have:
            worst = bundle.compare_golden(opened.manifest.golden, dict(expected), dict(have))
    golden = opened.manifest.golden
    return VerifyReport(files=files, samples=golden.samples, comparison=golden.comparison, largest_error=worst)
