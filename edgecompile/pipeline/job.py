"""What all steps of one build share: the request, the device profile, the model, the data, the work folder."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from edgecompile import (
    __version__,
    bench,
    calibration,
    engines,
    graph,
    profiles,
)
from edgecompile import model as models
from edgecompile.errors import EdgecompileError, InputError
from edgecompile.progress import Progress
from edgecompile.store import Store, register
from edgecompile.transport import Transport, identity, lab, open_transport
from edgecompile.types import (
    Arrays,
    Budget,
    BuildRequest,
    Model,
    OperatorCost,
    Plan,
    TensorSpec,
    digest,
    file_sha256,
)

#: For what depends on a plan's steps alone, whichever runtime it is for.
ANY = Plan(runtime="tflite", precision="fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all steps of one build share."""

    request: BuildRequest
    profile: profiles.DeviceProfile
    model: Model
    costs: tuple[OperatorCost, ...]
    data: calibration.CalibrationSet
    budget: Budget
    store: Store
    progress: Progress
    #: What the device is known by; asked when it is first needed: `_device_id`.
    device: Callable[[], str]
    board: engines.Board | None = None

    @property
    def here(self) -> bool:
        """Whether the device can be measured: it is this machine, or the request says where it is.

        An emulated board cannot: it runs the files, but its times mean nothing.
        """
        if self.emulated is not None:
            return False
        return self.request.on is not None or self.profile.matches_this_machine()

    @property
    def emulated(self) -> str | None:
        """The core of the emulated board that stands in for the device, where the request names one."""
        return lab.core_of(self.request.on)

    @property
    def there(self) -> str:
        """What the files run on besides this machine, in words."""
        return "the device" if self.emulated is None else f"the emulated {self.emulated}"

    @property
    def machine(self) -> str:
        """What measurements of the device are known by."""
        if self.board is None:
            return self.device()
        return digest(self.device(), self.board.key, self.request.power_mode)

    def transport(self) -> Transport:
        """The way to the device."""
        if self.here:
            self.device()  # asked before: who is there twice waits for himself
        return open_transport(self.request.on or "local", waiting=self.progress.note)

    @property
    def threads(self) -> int:
        return self.request.threads or self.profile.threads


@contextmanager
def work_folder(request: BuildRequest) -> Iterator[Store]:
    work = request.out.resolve().with_name(request.out.resolve().name + ".work")
    if request.fresh:
        shutil.rmtree(work, ignore_errors=True)
    store = Store(work)
    with store.locked():
        register(work)
        try:
            yield store
        except EdgecompileError:
            store.discard_if_empty()  # a misspelt option leaves nothing behind
            raise


def prepare(request: BuildRequest, store: Store, progress: Progress) -> Job:
    """Load the profile, the model and the data; fail before any long work on what cannot be built."""
    bench.require_program(request.on, request.benchmark_model)
    if request.benchmark_model is not None:
        request = replace(request, runtimes=("tflite",))  # what it runs
    profile = profiles.load(request.target, content_dir=request.content_dir)
    _check_emulation(request, profile, progress)
    board = _board(request, profile, progress)
    with progress.stage("Load the model"):
        model = models.load(
            request.model,
            store.root / "model",
            weights=request.weights,
            input_shapes=_input_shapes(request),
            trust=request.trust,
        )
    for note in model.notes:
        progress.note(note)
    with progress.stage("Read the data"):
        data = load_data(request, model)
    for note in data.notes:
        progress.note(note)
    return Job(
        request=request,
        profile=profile,
        model=model,
        costs=graph.operators(model.path),
        data=data,
        budget=_budget(request, profile),
        store=store,
        progress=progress,
        device=functools.cache(functools.partial(_device_id, request, progress)),
        board=board,
    )


#: TensorRT's libraries and CUDA's context alone take most of this on a board.
_LITTLE_MEMORY_BYTES = 1 << 30


def _device_id(request: BuildRequest, progress: Progress) -> str:
    """What keys measurements to the device: not its address, at which another may answer tomorrow.

    An emulated board is never measured; which one it is, its name says.
    """
    program = request.benchmark_model
    if request.on in (None, "local"):
        return digest(machine_id(), _file_digest(program))
    if lab.core_of(request.on) is not None:
        return digest(request.on)
    with (
        progress.stage("Ask the device what it is"),
        open_transport(request.on or "local", waiting=progress.note) as transport,
    ):
        if getattr(transport, "brings_programs", False):
            return digest(identity.of(transport), _file_digest(program))
        return identity.of(transport, program=program)


def _file_digest(program: str | None) -> str | None:
    """Of a program of this machine; its name alone where it is found by that."""
    return file_sha256(Path(program)) if program is not None and Path(program).is_file() else program


def _board(request: BuildRequest, profile: profiles.DeviceProfile, progress: Progress) -> engines.Board | None:
    """The board that builds and runs engines, where the build has one; asked first, since all the rest takes long."""
    has_tensorrt = profile.runtime("tensorrt") is not None and request.runtimes in ((), ("tensorrt",))
    if not has_tensorrt or (request.on is None and not profile.matches_this_machine()):
        if request.power_mode is not None:
            raise InputError(
                "--power-mode is for a Jetson that is measured", remedy="give --target jetson and --on ssh://user@host"
            )
        return None
    with (
        progress.stage("Ask the board what it is"),
        open_transport(request.on or "local", waiting=progress.note) as transport,
    ):
        board = engines.require(transport)
    progress.note(f"{board.name}: TensorRT {board.version}, {board.gpu}")
    free = board.memory_available_bytes
    if free is not None and free < _LITTLE_MEMORY_BYTES:
        progress.warn(
            f"{board.name} has {free / 2**20:.0f} MiB of memory free: building may take more; close its desktop"
        )
    if profile.match.boards and not board.name.startswith(profile.match.boards):
        progress.warn(f"{board.name} is not the board of the profile {profile.name}: estimates are for another one")
    return board


def _check_emulation(request: BuildRequest, profile: profiles.DeviceProfile, progress: Progress) -> None:
    """An emulated Arm board can only stand in for an Arm device, and best for one of the same core."""
    core = lab.core_of(request.on)
    if core is None:
        return
    if profile.architecture != "aarch64":
        raise InputError(
            f"an emulated {core} says nothing about {profile.name}, which is {profile.architecture}",
            remedy="leave --on out, or build for an Arm device: --target pi4",
        )
    if profile.runtime("tensorrt") is not None and request.runtimes in ((), ("tensorrt",)):
        raise InputError(
            f"an emulated {core} has no GPU, and {profile.name} is to run TensorRT",
            remedy="give the board itself with --on ssh://user@host, or another --runtime",
        )
    if profile.core != core.lower():
        progress.note(f"{profile.name} has another core than the emulated {core}: its kernels may be others")


def _input_shapes(request: BuildRequest) -> dict[str, tuple[int, ...]] | tuple[int, ...] | None:
    shapes = dict(request.input_shapes)
    if not shapes:
        return None
    if set(shapes) == {""}:  # --input-shape 1,3,32,32 without a name
        return shapes[""]
    return shapes


def load_data(request: BuildRequest, model: Model) -> calibration.CalibrationSet:
    """The data of a request as a model takes it; read once for each shape of the inputs. Raises `InputError`."""
    return _read(request, model.inputs)


@functools.lru_cache(maxsize=8)
def _read(request: BuildRequest, inputs: tuple[TensorSpec, ...]) -> calibration.CalibrationSet:
    if request.data is None and request.evaluation is not None:
        raise InputError(
            f"--eval {request.evaluation} was given without --data",
            remedy="give --data as well: INT8 is calibrated on it, and the choice between files is made on it",
        )
    if request.data is None and (request.max_drop is not None or request.min_sqnr_db is not None):
        raise InputError("accuracy was asked for, but there is no data", remedy="give a folder with --data")
    if request.eval_on_device is not None and (request.on is None or request.data is None):
        raise InputError(
            "--eval-on-device needs a device and data", remedy="give --on ssh://user@host (or --on local) and --data"
        )
    preset = None
    if request.preset is not None:
        preset = calibration.load_preset(request.preset, content_dir=request.content_dir)
    return calibration.load(
        preset,
        inputs,
        data=request.data,
        evaluation=request.evaluation,
        labels=request.labels,
        seed=request.seed,
        calibration_samples=request.calibration_samples,
        validation_samples=request.validation_samples,
        evaluation_samples=request.evaluation_samples,
        training_samples=None if request.train else _FIT_SAMPLES if request.prune else 0,
    )


def _budget(request: BuildRequest, profile: profiles.DeviceProfile) -> Budget:
    latency_ms = request.budget_ms
    if latency_ms is None and request.use_case is not None:
        latency_ms = profiles.USE_CASES[request.use_case]
    if latency_ms is None:
        latency_ms = profile.default_budget_ms
    return Budget(
        latency_ms=latency_ms,
        percentile=request.percentile,
        max_drop=request.max_drop,
        min_sqnr_db=request.min_sqnr_db,
        max_size_bytes=round(request.max_size_mb * 1e6) if request.max_size_mb is not None else None,
        accept_throttled=request.accept_throttled,
    )


def some(samples: Sequence[Arrays], count: int) -> list[Arrays]:
    return [samples[i] for i in range(min(count, len(samples)))]


def bench_options(job: Job) -> bench.BenchOptions:
    return bench.BenchOptions(
        threads=job.threads,
        percentile=job.budget.percentile,
        warmup_s=job.request.warmup_s,
        min_runs=job.request.min_runs,
        min_seconds=job.request.min_seconds,
        seed=job.request.seed,
        benchmark_model=job.request.benchmark_model,
    )


def machine_id() -> str:
    """What keys a measurement to this machine, so that a moved work folder does not claim another's figures."""
    import platform

    try:
        unique = Path("/etc/machine-id").read_text().strip()
    except OSError:
        unique = ""
    return digest(platform.node(), platform.machine(), unique)


#: Samples beyond those of the calibration that layers may be fitted on.
_FIT_SAMPLES = 400


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Joined(Sequence[Arrays]):
    """Two parts of the data one behind the other, read when they are asked for."""

    first: Sequence[Arrays]
    second: Sequence[Arrays]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The class numbers of all samples, where both parts have them; training may use them."""
        parts = [getattr(part, "labels", None) for part in (self.first, self.second) if len(part)]
        known = [part for part in parts if part is not None]
        return np.concatenate(known) if known and len(known) == len(parts) else None

    @overload
    def __getitem__(self, index: int) -> Arrays: ...

    @overload
    def __getitem__(self, index: slice) -> list[Arrays]: ...

    def __getitem__(self, index: int | slice) -> Arrays | list[Arrays]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.first[index] if index < len(self.first) else self.second[index - len(self.first)]


def fitting(job: Job) -> Sequence[Arrays]:
    """The samples that smaller models are fitted on: none of those that choices or figures come from."""
    return _Joined(first=job.data.calibration, second=job.data.training)


def each(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    return lambda done, total: advance(1)


_RECORDED = (
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "tensorflow",
    "tensorrt-rtx",
    "torch",
)


@functools.cache
def versions() -> dict[str, str]:
    """The versions that results depend on: they key the work folder and stand in the manifest."""
    found = {"edgecompile": __version__}
    for name in _RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
