"""`edgecompile bench` and `edgecompile verify`: measure, count and check files that are there already."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgecompile import bench, bundle, engines
from edgecompile.errors import InputError
from edgecompile.progress import Progress, Silent
from edgecompile.transport import Transport, lab, open_transport
from edgecompile.types import Artifact, Engine, InstructionCount, Measurement, Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Files measured interleaved; ``ratios[i]`` is file ``i``'s latency over the first's (``None`` for the first)."""

    names: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    ratios: tuple[Ratio | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountReport:
    """The instructions of files on one emulated core; ``ratios[i]`` is file ``i``'s count over the first's."""

    names: tuple[str, ...]
    counts: tuple[InstructionCount, ...]
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenReport:
    """Golden vectors that came out as they should; ``largest_error`` is relative to each output's range."""

    samples: int
    comparison: Literal["exact", "relative"]
    largest_error: float
    through: Literal["the shipped file", "the engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """A bundle that is what its manifest says; ``largest_error`` is relative to each output's range."""

    files: int
    samples: int
    comparison: Literal["exact", "relative"]
    largest_error: float
    through: Literal["the shipped file", "the engine"] = "the shipped file"


def measure(
    paths: Sequence[Path],
    options: bench.BenchOptions,
    progress: Progress,
    *,
    on: str = "local",
    power_mode: str | None = None,
) -> BenchReport:
    """Measure bundles and bare files, interleaved, on this machine or the one at ``on`` (``ssh://user@host``).

    Bundles for TensorRT are measured as engines where the machine has TensorRT, and built there first unless they hold
    one for it; ``power_mode`` is that of such a board meanwhile.
    """
    bench.require_program(on, options.benchmark_model)
    artifacts = [_artifact(path) for path in paths]
    if on == "local":
        artifacts = [replace(artifact, provider=None) for artifact in artifacts]
    for_tensorrt = {artifact.runtime == "tensorrt" for artifact in artifacts}
    way = open_transport(on, waiting=progress.note)
    lab.refuse_latency(way)
    with way as transport:
        board = _board(transport, on) if True in for_tensorrt else None
        if board is None and power_mode is not None:
            raise InputError("--power-mode is for a Jetson that runs engines", remedy="give a bundle for one, and --on")
        if board is not None and False in for_tensorrt:
            raise InputError(
                "engines and files of other runtimes cannot take turns", remedy="measure them one after the other"
            )
        if board is None:
            with progress.stage(options.title(len(artifacts))):
                result = bench.measure(artifacts, transport, options)
        else:
            result = _on_board(paths, artifacts, transport, board, options, progress, power_mode)
    for warning in bench.doubts_by_file([str(path) for path in paths], result.measurements):
        progress.warn(warning)
    ratios = [None if i == 0 else result.ratio(i, 0) for i in range(len(artifacts))]
    return BenchReport(names=tuple(str(path) for path in paths), measurements=result.measurements, ratios=tuple(ratios))


def _board(transport: Transport, on: str) -> engines.Board | None:
    """The board behind a transport; this machine need not be one: ONNX Runtime runs the file here."""
    return engines.find(transport) if on == "local" else engines.require(transport)


def _on_board(
    paths: Sequence[Path],
    artifacts: Sequence[Artifact],
    transport: Transport,
    board: engines.Board,
    options: bench.BenchOptions,
    progress: Progress,
    power_mode: str | None,
) -> bench.BenchResult:
    with (
        tempfile.TemporaryDirectory() as folder,
        engines.session(transport, board, power_mode=power_mode) as on_board,
    ):
        made = [
            _engine(path, artifact, on_board, Path(folder) / str(number), progress)
            for number, (path, artifact) in enumerate(zip(paths, artifacts, strict=True))
        ]
        with progress.stage(f"Measure {len(made)} engines in turns", engines.rounds(options) * len(made)) as advance:
            return engines.measure(on_board, made, options, advance=advance)[0]


def _engine(path: Path, artifact: Artifact, on_board: engines.Bench, folder: Path, progress: Progress) -> Engine:
    """The engine in a bundle that is for this board, else one that is built there now."""
    opened = bundle.read(path)
    there = bundle.engines_of(opened)
    for engine in there:
        if engines.fits(engine, on_board.board, artifact):
            return engine
    if there:
        others = ", ".join(f"TensorRT {engine.tensorrt} on {engine.gpu}" for engine in there)
        progress.note(f"the engine in {path} is for another board ({others}): one is built for this one")
    folder.mkdir()
    known = next((e.timing_cache for e in there if e.key == on_board.board.key and e.timing_cache), None)
    # A copy: what is learned is written back, and a bundle stays as it is.
    on_board.timing_cache = None if known is None else Path(shutil.copyfile(known, folder / "known.cache"))
    with progress.stage(f"Build the engine of {path} on {on_board.board.name}"):
        try:
            return engines.build(on_board, artifact, folder)
        except engines.ModelFault as exc:
            raise exc.error from exc


def count(paths: Sequence[Path], progress: Progress, *, on: str, runs: int = 5) -> CountReport:
    """Count the instructions of bundles and bare files on the emulated board at ``on`` (``lab:pi4``).

    Raises `InputError` for any other machine and for what is no model, `DeviceError` where a file cannot be run there.
    """
    artifacts = [_artifact(path) for path in paths]
    way = open_transport(on, waiting=progress.note)
    lab.require(way)
    lab.ready(on, progress)
    with way as transport, progress.stage("Count instructions", total=len(artifacts)) as step:
        counts = []
        for artifact in artifacts:
            counts.append(bench.instructions(artifact, transport, runs=runs))
            step(1)
    first = counts[0].per_inference
    return CountReport(
        names=tuple(str(path) for path in paths),
        counts=tuple(counts),
        ratios=tuple(found.per_inference / first for found in counts),
    )


def sustained(
    path: Path, options: bench.BenchOptions, progress: Progress, *, on: str, seconds: float, picture: Path
) -> bench.Sustained:
    """Run a bundle's file or a bare one for ``seconds`` without a break, and draw latency and temperature.

    Ctrl-C ends it and keeps what was measured. Raises `InputError` before that when the picture cannot be written.
    """
    if options.benchmark_model is not None or on.startswith("adb:"):
        raise InputError("--sustained follows a file by our own runner, not by benchmark_model", remedy="use SSH")
    artifact = _artifact(path)
    way = open_transport(on, waiting=progress.note)
    lab.refuse_latency(way)
    try:
        with picture.open("ab"):
            pass
    except OSError as exc:
        raise InputError(f"cannot write {picture}: {exc.strerror}", remedy="give another --plot") from exc
    try:
        with progress.stage(f"Run {path} for {seconds:g} s"), way as transport:
            found = bench.sustained(artifact, transport, options, seconds)
        picture.write_text(bench.sustained_svg(found), encoding="utf-8")
    finally:
        if picture.stat().st_size == 0:
            picture.unlink()
    for warning in found.warnings:
        progress.warn(warning)
    return found


def _artifact(path: Path) -> Artifact:
    if not path.is_dir():
        return bench.bare_file(path)
    opened = bundle.read(path)
    bundle.check_hashes(opened, roles=("model", "typed model"))  # what is measured is what the manifest tells of
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
        typed_file=opened.file("typed model") if any(f.role == "typed model" for f in manifest.files) else None,
        provider=manifest.plan.provider,
    )


def golden_on(golden: bundle.Golden, artifact: Artifact, *, by_gpu: bool) -> bundle.Golden:
    """How golden vectors are compared with what a device made of them; a GPU rounds in other places than a CPU."""
    if not by_gpu:
        return golden
    return replace(golden, comparison="relative", tolerance=engines.TOLERANCE[artifact.precision])


def verify(
    path: Path, *, on: str = "local", progress: Progress | None = None, benchmark_model: str | None = None
) -> VerifyReport:
    """Check a bundle's hashes, then its golden vectors through the shipped file, here or on the machine at ``on``.

    On a machine with TensorRT, the golden vectors of a bundle for it go through the engine, with a wider tolerance.
    Raises `LimitNotMet` for a difference, `InputError` for what is not a bundle.
    """
    bench.require_program(on, benchmark_model)
    opened = bundle.read(path)
    files = bundle.check_hashes(opened)
    lab.ready(on, progress or Silent())
    found = compare_golden(opened, on=on, progress=progress, benchmark_model=benchmark_model)
    return VerifyReport(
        files=files,
        samples=found.samples,
        comparison=found.comparison,
        largest_error=found.largest_error,
        through=found.through,
    )


def compare_golden(
    opened: bundle.Bundle,
    *,
    on: str = "local",
    progress: Progress | None = None,
    benchmark_model: str | None = None,
) -> GoldenReport:
    """Send a bundle's golden inputs through its file at ``on``, and compare the outputs.

    Raises `LimitNotMet` for a difference that is too large. The file runs in a process of its own, by our runner and
    never by the one in the bundle, which is as untrusted as the rest.
    """
    import numpy as np

    golden = opened.manifest.golden
    artifact, inputs = _artifact(opened.path), opened.file("golden inputs")
    with tempfile.TemporaryDirectory() as folder, open_transport(on) as transport:
        found = Path(folder) / "outputs.npz"
        board = _board(transport, on) if artifact.runtime == "tensorrt" else None
        runtime = None
        if on == "local":
            artifact = replace(artifact, provider=None)
        golden = golden_on(golden, artifact, by_gpu=board is not None or artifact.provider is not None)
        if board is None:
            runtime = bench.run_inputs(
                artifact, transport, inputs=inputs, outputs=found, benchmark_model=benchmark_model
            )
        else:
            with engines.session(transport, board) as on_board:
                engine = _engine(opened.path, artifact, on_board, Path(folder) / "engine", progress or Silent())
                engines.run_inputs(on_board, engine, artifact, inputs=inputs, outputs=found)
        with np.load(opened.file("golden outputs"), allow_pickle=False) as expected, np.load(found) as have:
            worst = bundle.compare_golden(golden, dict(expected), dict(have), runtime=runtime)
    return GoldenReport(
        samples=golden.samples,
        comparison=golden.comparison,
        largest_error=worst,
        through="the shipped file" if board is None else "the engine",
    )
