"""The bundle: a folder an app can ship, with a manifest that says what is in it and how it was proven.

A bundle is written to a temporary folder beside its final name and renamed, so a half-written one is never found. The
manifest of a bundle from elsewhere is untrusted: its paths must stay inside the folder, and no code in it is run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgecompile import __version__, content
from edgecompile.errors import InputError, LimitNotMet
from edgecompile.types import (
    Accuracy,
    Arrays,
    Artifact,
    Budget,
    Engine,
    EngineLayer,
    InstructionCount,
    Measurement,
    Option,
    Parity,
    Plan,
    Port,
    Precision,
    RuntimeName,
    file_sha256,
    to_builtins,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEMA_VERSION: Literal[1] = 1
MANIFEST = "manifest.json"
#: Full-integer files are exact; float kernels differ in the last bits between CPUs.
GOLDEN_FLOAT_TOLERANCE = 1e-5

Role = Literal[
    "model", "typed model", "labels", "golden inputs", "golden outputs", "runner", "page", "engine", "timing cache",
    "layer times", "layers", "build log", "build script", "frontier",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFile:
    """One file of a bundle; ``path`` is relative to the bundle, with forward slashes."""

    path: str
    role: Role
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Where the model came from. ``license`` and ``source_url`` are what the user said with the build."""

    name: str
    source: str
    kind: str
    sha256: str
    parameters: int
    macs: int
    notes: tuple[str, ...] = ()
    license: str | None = None
    source_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedCandidate:
    """One candidate as it was tried; ``validation`` is its accuracy on the part of the data that the choice used.

    ``predicted_ms`` is what the table of operators promised of a smaller model before it was timed; ``instructions``
    were counted on an emulated board.
    """

    label: str
    plan: Plan
    verdict: str
    size_bytes: int | None = None
    path_taken: str | None = None
    float_islands: int | None = None
    measurement: Measurement | None = None
    validation: Accuracy | None = None
    parity: Parity | None = None
    failure: str | None = None
    predicted_ms: float | None = None
    instructions: InstructionCount | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """An engine in the bundle, under ``engines/KEY/``: it works with that ``tensorrt`` on that ``gpu`` only.

    ``options`` are those that ``trtexec`` built it with; ``layers`` its costliest layers.
    """

    key: str
    tensorrt: str
    gpu: str
    path: str
    options: tuple[str, ...]
    build_s: float
    layers: tuple[EngineLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of the limits; ``status`` never says ``met`` of an estimate."""

    status: Literal["met", "predicted", "not met"]
    text: str
    exit_code: int
    help: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenOnDevice:
    """The golden vectors through the shipped file on a device; ``fault`` says what differs, if anything does.

    ``largest_error`` is relative to each output's range.
    """

    device: str
    runtime: str
    largest_error: float | None
    fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """How the golden vectors are compared: ``exact``, or within ``tolerance`` of each output's range.

    ``runtime`` made them, like ``ai_edge_litert 2.1.0``. Of another version an exact file may differ by one
    quantization step, which ``steps`` gives for each output in the output's own unit. ``devices`` are the machines on
    which the build itself compared them.
    """

    samples: int
    comparison: Literal["exact", "relative"]
    tolerance: float
    runtime: str = ""
    steps: dict[str, float] = field(default_factory=dict)
    devices: tuple[GoldenOnDevice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """How many samples each part of the data held; the parts do not overlap."""

    calibration: int
    validation: int
    evaluation: int
    evaluation_from: Literal["--eval", "held back from --data"]
    skipped: int
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known of a bundle. Written as ``manifest.json``; the JSON schema is ``manifest.schema.json``.

    ``emulated`` names the core of the emulated board that stood in for the device: what ran on it gave outputs and
    instruction counts, and no latency.
    ``imported`` are latencies measured elsewhere and brought in afterwards, on which no verdict stands.
    """

    schema_version: Literal[1]
    edgecompile_version: str
    created: str
    command_line: tuple[str, ...]
    seed: int
    options: tuple[Option, ...]
    model: ModelFacts
    target: str
    architecture: str
    budget: Budget
    verdict: Verdict
    plan: Plan
    runtime: RuntimeName
    precision: Precision
    path_taken: str
    full_integer: bool
    float_islands: int | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    preprocessing: dict[str, Any] | None
    measurement: Measurement
    imported: tuple[Measurement, ...] = ()
    accuracy: Accuracy | None
    original_accuracy: Accuracy | None
    device_accuracy: Accuracy | None = None
    emulated: str | None = None
    parity: tuple[Parity, ...]
    candidates: tuple[TriedCandidate, ...]
    data: DataFacts | None
    golden: Golden
    versions: dict[str, str]
    engines: tuple[EngineFacts, ...] = ()
    files: tuple[BundleFile, ...]

    @property
    def model_file(self) -> BundleFile:
        """The file that ships."""
        return next(file for file in self.files if file.role == "model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    def file(self, role: Role) -> Path:
        """The file with a role. Raises `InputError` when the bundle has none."""
        for entry in self.manifest.files:
            if entry.role == role:
                return self.path / entry.path
        raise InputError(f"the bundle {self.path} has no {role} file", remedy="build it again")


def engines_of(bundle: Bundle) -> tuple[Engine, ...]:
    """The engines in a bundle, with their files where they lie."""
    listed = {file.path for file in bundle.manifest.files}

    def file(facts: EngineFacts, name: str) -> Path | None:
        inside = f"engines/{facts.key}/{name}"
        return bundle.path / inside if inside in listed else None

    return tuple(
        Engine(
            key=facts.key,
            tensorrt=facts.tensorrt,
            gpu=facts.gpu,
            source_sha256=bundle.manifest.model_file.sha256,
            file=made,
            log=file(facts, "build.log") or made,
            timing_cache=file(facts, "timing.cache"),
            layer_info=file(facts, "layers.json"),
            options=facts.options,
            build_s=facts.build_s,
            layers=facts.layers,
        )
        for facts in bundle.manifest.engines
        if (made := file(facts, "model.engine")) is not None
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the manifest, made from the dataclasses; the shipped file must equal it."""
    return msgspec.json.schema(Manifest)


# ------------------------------------------------------------------------------------------------------ write


def check_output(out: Path, *, force: bool) -> None:
    """Fail before any work when the bundle could not be written in the end. Raises `InputError`."""
    if out.exists() and not force:
        raise InputError(f"the output folder {out} exists", remedy="give another --out, or --force to replace it")
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} exists and is not a bundle, so --force does not replace it",
            remedy="remove it yourself, or give another --out",
        )
    parent = out.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as exc:
        raise InputError(
            f"cannot write to the folder {parent}: {exc.strerror}", remedy="give an --out that can be written"
        ) from exc


class BundleWriter:
    """Collects a bundle's files in a temporary folder beside ``out``; `finish` renames it. Use as a context manager."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._files: list[BundleFile] = []

    def __enter__(self) -> BundleWriter:
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self._out.name}.", dir=self._out.resolve().parent))
        self._folder.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, role: Role, source: Path, name: str) -> Path:
        """Copy a file into the bundle as ``name`` and list it with its hash."""
        destination = self._folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
        return self._list(role, destination, name)

    def add_bytes(self, role: Role, data: bytes, name: str) -> Path:
        """Write a file into the bundle as ``name`` and list it with its hash."""
        destination = self._folder / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(data)
        return self._list(role, destination, name)

    def _list(self, role: Role, path: Path, name: str) -> Path:
        self._files.append(BundleFile(path=name, role=role, size_bytes=path.stat().st_size, sha256=file_sha256(path)))
        return path

    def path(self, name: str) -> Path:
        """Where a file that was added lies meanwhile."""
        return self._folder / name

    @property
    def files(self) -> tuple[BundleFile, ...]:
        return tuple(self._files)

    def finish(self, manifest: Manifest) -> Bundle:
        """Write the manifest and give the folder its final name, replacing a bundle that was there."""
        data = msgspec.json.format(msgspec.json.encode(to_builtins(manifest)), indent=2)
        (self._folder / MANIFEST).write_bytes(data + b"\n")
        if self._out.exists():
            # Two renames, so that at every moment one whole bundle lies under a name the user can find.
            old = self._folder.with_name(self._folder.name + ".old")
            self._out.rename(old)
            self._folder.rename(self._out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            self._folder.rename(self._out)
        return Bundle(path=self._out, manifest=manifest)


def add_runner(writer: BundleWriter, runtime: RuntimeName) -> None:
    """Put the device-side runner of a runtime into the bundle."""
    root = content.builtin_root("targets")
    backend = "onnxruntime" if runtime == "tensorrt" else runtime
    for name in ("runner.py", "probes.py", f"{backend}/backend.py"):
        writer.add("runner", root / name, f"runner/{name}")


#: The costliest layers that the manifest shows; all of them are in a file.
_LAYERS_SHOWN = 20


def add_engine(writer: BundleWriter, engine: Engine, layer_times: bytes) -> EngineFacts:
    """Put an engine with its timing cache, log and layers into the bundle, under a folder that names what it is for."""
    folder = f"engines/{engine.key}"
    writer.add("engine", engine.file, f"{folder}/model.engine")
    writer.add("build log", engine.log, f"{folder}/build.log")
    if engine.timing_cache is not None:
        writer.add("timing cache", engine.timing_cache, f"{folder}/timing.cache")
    if engine.layer_info is not None:
        writer.add("layers", engine.layer_info, f"{folder}/layers.json")
    writer.add_bytes("layer times", layer_times, f"{folder}/layer_times.json")
    return EngineFacts(
        key=engine.key,
        tensorrt=engine.tensorrt,
        gpu=engine.gpu,
        path=f"{folder}/model.engine",
        options=engine.options,
        build_s=engine.build_s,
        layers=engine.layers[:_LAYERS_SHOWN],
    )


def add_build_script(writer: BundleWriter, artifact: Artifact) -> None:
    """Put what builds an engine on any board into the bundle: a script, and the graph that newer versions take."""
    if artifact.typed_file is not None:
        writer.add("typed model", artifact.typed_file, "model-typed.onnx")
    text = (content.builtin_root("targets") / "tensorrt" / "build_engine.sh").read_text()
    writer.add("runner", content.builtin_root("targets") / "tensorrt" / "trtexec.py", "runner/trtexec.py")
    # The precision is one of three words of ours: no text of a user's goes into the script.
    path = writer.add_bytes("build script", text.replace("@PRECISION@", artifact.precision).encode(), "build_engine.sh")
    path.chmod(0o755)


def write_arrays(path: Path, samples: Sequence[Arrays]) -> None:
    """Samples as one ``.npz``: for each tensor name an array ``(samples, *shape)``."""
    import numpy as np

    stacked = {name: np.stack([np.asarray(s[name]) for s in samples]) for name in samples[0]}
    with path.open("wb") as stream:
        np.savez(stream, **stacked)


# ------------------------------------------------------------------------------------------------------- read


def read(path: Path) -> Bundle:
    """Open a bundle's manifest. Raises `InputError` when it is absent, damaged, newer, or points outside the folder."""
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise InputError(f"{path} is not a bundle: it has no {MANIFEST}", remedy="give the folder that build wrote")
    raw = manifest_path.read_bytes()
    try:
        version = msgspec.json.decode(raw).get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{manifest_path} has schema version {version}, this is edgecompile {__version__} for version "
                f"{SCHEMA_VERSION}",
                remedy="use the edgecompile that wrote it, or a newer one",
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, AttributeError) as exc:
        raise InputError(f"{manifest_path} is damaged: {exc}", remedy="build the bundle again") from exc
    for file in manifest.files:
        _check_inside(path, file.path)
    return Bundle(path=path, manifest=manifest)


def _check_inside(root: Path, name: str) -> None:
    relative = PurePosixPath(name)
    inside = not relative.is_absolute() and ".." not in relative.parts
    if not inside or not (root / relative).resolve().is_relative_to(root.resolve()):
        raise InputError(f"the manifest names a file outside the bundle: {name!r}", remedy="do not use this bundle")


def check_hashes(bundle: Bundle, *, roles: Collection[str] = ()) -> int:
    """Compare each listed file, or those of some roles, with its hash; returns how many were compared.

    Raises `LimitNotMet` naming those that differ.
    """
    wrong: list[str] = []
    files = [file for file in bundle.manifest.files if not roles or file.role in roles]
    for file in files:
        path = bundle.path / file.path
        if not path.is_file():
            wrong.append(f"{file.path} is missing")
        elif file_sha256(path) != file.sha256:
            wrong.append(f"{file.path} has another SHA-256 than the manifest says")
    if wrong:
        raise LimitNotMet(f"the bundle {bundle.path} was changed: {'; '.join(wrong)}", remedy="build it again")
    return len(files)


def compare_golden(
    golden: Golden,
    expected: dict[str, npt.NDArray[np.generic]],
    found: dict[str, npt.NDArray[np.generic]],
    *,
    runtime: str | None = None,
) -> float:
    """The largest difference of the outputs relative to their range. Raises `LimitNotMet` beyond what is allowed.

    ``runtime`` is what gave ``found``: by another one than the golden vectors', a full-integer file may differ by one
    quantization step.
    """
    import numpy as np

    other = golden.comparison == "exact" and runtime is not None and golden.runtime not in ("", runtime)

    if expected.keys() != found.keys():
        raise LimitNotMet(f"the file has outputs {sorted(found)}, the golden vectors {sorted(expected)}")
    worst = 0.0
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape:
            raise LimitNotMet(f"output {name!r} has shape {have.shape}, the golden vector {want.shape}")
        difference = np.abs(have.astype(np.float64) - want.astype(np.float64))
        if not np.isfinite(difference).all():
            raise LimitNotMet(f"output {name!r} is not finite where the golden vector is")
        span = float(np.ptp(want.astype(np.float64))) or 1.0
        error = float(difference.max(initial=0.0)) / span
        step = golden.steps.get(name, 0.0) if other else 0.0
        # A step in float32 is not quite the same everywhere on its scale.
        limit = 1.001 * step / span if golden.comparison == "exact" else golden.tolerance
        if error > limit:
            allowed = f"one step of {runtime}, {limit:.2e}" if step else f"{limit:g}"
            raise LimitNotMet(
                f"output {name!r} differs from the golden vector by {error:.2e} of its range (allowed: {allowed})",
                remedy="the runtime or the CPU computes this file differently: measure its accuracy there",
            )
        worst = max(worst, error)
    return worst
