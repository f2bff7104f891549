"""Training a small model, by what a teacher makes of each batch, by labels, or by both.

Each batch is changed at random, and the teacher says what it makes of the very same batch ("Knowledge distillation: A
good teacher is patient and consistent", Beyer et al., CVPR 2022). AdamW or SGD, a short warm-up, half a cosine to zero.
Of some points on the way, the best on held-back samples is taken. Losses are in `losses`, batches in `training_data`.

A training that is stopped is cut, never rescaled: ``TrainingOptions(cut=Outcome.steps)`` gives the same weights again.
A checkpoint makes a killed training go on, on the CPU to the very same weights.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompile.errors import DivergedError, InputError
from edgecompile.progress import Progress, Silent
from edgecompile.store import write_atomically
from edgecompile.techniques import losses, training_data
from edgecompile.types import Step

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

LOSSES = ("kl", "dist", "labels")
OPTIMIZERS = ("adamw", "sgd")
#: Samples that the best point is chosen on, and how often it is looked at.
_HELD, _MOST_HELD, _CHECKS = 0.1, 500, 12
#: Steps between two checkpoints.
_EVERY = 200
_WARM_UP = 0.05
_CLIP = 5.0
#: How often a training that diverges is begun again at half its rate.
_HALVINGS = 2

_CHECKPOINTS: ContextVar[Path | None] = ContextVar("checkpoints", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """Counts and choices of a training, all that its result depends on beside models and data.

    ``optimizer`` is ``adamw`` or ``sgd`` (Nesterov's momentum, 0.9), ``rate`` its highest rate and ``decay`` the
    decay of its weights, not of factors and shifts. ``loss`` compares with the teacher (``kl``, ``dist``) or with
    labels only (``labels``). Labels have ``label_weight`` of the loss and the teacher the rest; ``feature_weight``
    times the error of the features is added. ``augment`` joins ``flip``, ``mix`` and ``shift`` by ``+``, or is
    ``none``. ``batch_norm`` puts batch normalization behind convolutions while they are trained, and
    ``teacher_steps`` are those in which the teacher is first trained itself, by labels alone: both are for whoever
    makes the modules to see to. ``patience`` checks without a gain end the training (0: never); ``cut`` steps end
    it as well (0: never), the schedule being that of ``steps``.
    """

    steps: int
    samples: int
    batch: int = 64
    optimizer: str = "adamw"
    rate: float = 5e-4
    decay: float = 1e-4
    loss: str = "kl"
    temperature: float = 2.0
    label_weight: float = 0.0
    feature_weight: float = 0.0
    augment: str = "flip+mix"
    batch_norm: bool = False
    teacher_steps: int = 0
    patience: int = 0
    cut: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = self.ways - set(training_data.AUGMENTATIONS)
        counts = self.steps >= 1 and self.batch >= 2 and self.samples >= 4
        counts = counts and min(self.patience, self.cut, self.teacher_steps) >= 0
        numbers = self.rate > 0 and self.temperature > 0 and 0 <= self.label_weight <= 1 and self.feature_weight >= 0
        named = self.loss in LOSSES and self.optimizer in OPTIMIZERS
        if unknown or not counts or not numbers or not named:
            raise InputError(
                f"a training with {self} cannot be run",
                remedy="give steps >= 1, batch >= 2, samples >= 4, loss kl, dist or labels, label_weight from 0 to 1, "
                "optimizer adamw or sgd, and augment none or flip, mix and shift joined by +",
            )

    @property
    def ways(self) -> frozenset[str]:
        """The ways that images are changed."""
        return frozenset() if self.augment == "none" else frozenset(self.augment.split("+"))


#: What a training is told by others: how far it came, its random numbers, and how many samples there are.
_NOT_CHOSEN = ("cut", "samples", "seed")


def choices(given: Mapping[str, str | int | float | bool]) -> tuple[tuple[str, str | int | float | bool], ...]:
    """Fields of `TrainingOptions` by name, in order, text turned into what the field is. Raises `InputError`."""
    known = {f.name: str(f.type) for f in fields(TrainingOptions) if f.name not in _NOT_CHOSEN}
    found: dict[str, str | int | float | bool] = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"a training has no choice {name!r}", remedy=f"known: {', '.join(known)}")
        try:
            found[name] = _typed(value, known[name])
        except ValueError as exc:
            raise InputError(f"{name} = {value!r} of a training is no {known[name]}", remedy="give another") from exc
    TrainingOptions(**({"steps": 1, "samples": 4} | found))  # type: ignore[arg-type]
    return tuple(sorted(found.items()))


def _typed(value: str | int | float | bool, kind: str) -> str | int | float | bool:
    if kind == "bool":
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in words:
            raise ValueError
        return words[str(value).lower()]
    if kind == "str":
        return str(value)
    return float(value) if kind == "float" else int(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Losses on held-back samples before and after, the steps done, and what the user should know."""

    before: float
    after: float
    steps: int
    notes: tuple[str, ...] = ()


def train(
    teacher: Module | None,
    student: Module,
    stacks: Mapping[str, Tensor],
    options: TrainingOptions,
    *,
    labels: Tensor | None = None,
    checkpoint: Path | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    features: tuple[str, str] | None = None,
    stop: Callable[[], bool] | None = None,
    identity: str = "",
) -> Outcome:
    """Train ``student`` in place; it ends on the CPU in eval mode with its best weights.

    Both modules map input tensors by name to output tensors by name. ``stacks`` are inputs by name with the N samples
    on axis 0, ``labels`` N class numbers. ``features`` names a tensor of the teacher and one of the student, which both
    modules then give when called with ``collect=(name,)``. ``stop`` is asked before every step but the first. A
    ``checkpoint`` of another training (by options, weights, data and ``identity``) is ignored; the last one stays, for
    the caller to remove when what was trained is safe. ``device`` is CUDA where there is one, then in bfloat16 or
    float16.

    Raises `InputError` where the loss needs a teacher or labels that are not there, and `DivergedError` where
    training diverges at half and at a quarter of the rate too.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        trainer = _trainer(teacher, student, stacks, options, labels, device, features)
        if checkpoint is not None:
            trainer.keep_in(checkpoint, identity)
        with (progress or Silent()).stage("Train", options.cut or options.steps) as advance:
            return trainer.run(advance, stop or (lambda: False))


def seconds(
    teacher: Module | None,
    student: Module,
    stacks: Mapping[str, Tensor],
    options: TrainingOptions,
    *,
    clock: Callable[[], float],
    count: int,
    labels: Tensor | None = None,
    device: str | None = None,
    features: tuple[str, str] | None = None,
) -> list[float]:
    """The seconds of so many steps by ``clock``; the student is of no use afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        trainer = _trainer(teacher, student, stacks, options, labels, device, features)
        times = []
        for _ in range(count):
            start = clock()
            trainer.step(1e-9)
            times.append(clock() - start)
    return times


@contextmanager
def checkpoints_in(folder: Path) -> Iterator[None]:
    """Within this, techniques that train keep their checkpoints in ``folder``, which should outlast a killed build."""
    token = _CHECKPOINTS.set(folder)
    try:
        yield
    finally:
        _CHECKPOINTS.reset(token)


@dataclass(slots=True, kw_only=True)
class Watch:
    """Who ends a technique's training early, and how far it came: ``steps`` is 0 until it has ended.

    ``stopped`` says whether it ended because ``stop`` asked for it, and not at its last step.
    """

    stop: Callable[[], bool]
    steps: int = 0
    stopped: bool = False

    def asked(self) -> bool:
        """What ``stop`` says, noted down."""
        self.stopped = self.stop()
        return self.stopped


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(stop: Callable[[], bool]) -> Iterator[Watch]:
    """Within this, the training of a technique asks ``stop`` before every step but its first."""
    watch = Watch(stop=stop)
    token = _WATCH.set(watch)
    try:
        yield watch
    finally:
        _WATCH.reset(token)


def watch() -> Watch:
    """What watches over the training that a technique is about to begin; nobody stops it outside of `watched`."""
    return _WATCH.get() or Watch(stop=lambda: False)


def cut(step: Step, steps: int) -> Step:
    """The step of a training that ends after so many of its steps, as one that was stopped there did."""
    return replace(step, options=tuple(sorted([*(o for o in step.options if o[0] != "cut"), ("cut", steps)])))


def checkpoint_file(key: str) -> Path | None:
    """Where a technique keeps the checkpoint of the training ``key`` (a hash); None outside of `checkpoints_in`."""
    folder = _CHECKPOINTS.get()
    return None if folder is None else folder / f"{key[:32]}.pt"


def file_key(options: TrainingOptions, identity: str) -> str:
    """A hash to name a checkpoint's file by; whether the checkpoint fits is found in the file."""
    return hashlib.sha256(f"{options} {identity}".encode()).hexdigest()


def check_teacher(scores: Tensor, labels: Tensor, classes: int) -> tuple[str, ...]:
    """Notes on labels (N class numbers) that training would use, given the teacher's N x C ``scores``.

    Raises `InputError` for labels that are no classes, and for a teacher that knows no more than chance: its accuracy
    is not above one in ``classes`` by three standard errors, which is what classes in another order look like.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < min(classes, scores.shape[1]):
        raise InputError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, and the model has {scores.shape[1]} classes",
            remedy="give the model's classes in order with --labels",
        )
    right = float((scores.argmax(1) == labels).double().mean()) if len(labels) else 0.0
    chance = 1 / classes
    if len(labels) and right <= chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)) and right < 1:
        raise InputError(
            f"the model is right on {100 * right:.1f} % of {len(labels)} samples, and chance is {100 * chance:.1f} %",
            remedy="give the model's classes in order with --labels, and check the preset's preprocessing",
        )
    note = missing_classes(labels, classes)
    return (note,) if note else ()


def missing_classes(labels: Tensor, classes: int) -> str | None:
    """A warning that names classes without a sample, or ``None``."""
    there = set(labels.tolist())
    missing = [number for number in range(classes) if number not in there]
    if not missing:
        return None
    named = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
    return f"the training samples have no example of {len(missing)} of {classes} classes: {named}"


# ------------------------------------------------------------------------------------------------------ the training


def _trainer(
    teacher: Module | None,
    student: Module,
    stacks: Mapping[str, Tensor],
    options: TrainingOptions,
    labels: Tensor | None,
    device: str | None,
    features: tuple[str, str] | None,
) -> _Trainer:
    import torch

    _check(teacher, options, labels, features)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for module in (student, teacher):
        if module is not None:
            _placed(module, place)
    if teacher is not None:
        teacher.eval()
    stacks = {name: stack.to(place) if _fits(stack, place) else stack for name, stack in stacks.items()}
    count = len(next(iter(stacks.values())))
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(count, generator=generator)
    held = min(_MOST_HELD, max(2, round(_HELD * count)))
    half = torch.bfloat16 if place.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16
    trainer = _Trainer(
        teacher=teacher, student=student, stacks=stacks, options=options, labels=labels, place=place,
        features=features if options.feature_weight else None, generator=generator, held=order[:held],
        drawn=order[held:], half=half,
        scaler=torch.amp.GradScaler(place.type, enabled=place.type == "cuda" and half == torch.float16),
    )  # fmt: skip
    trainer.prepare()
    return trainer


def _placed(module: Module, place: Any) -> None:
    """Move a module; on CUDA the weights of its convolutions get the order of axes that is fastest there."""
    import torch

    module.to(place)
    if place.type == "cuda":
        for weight in module.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _fits(stack: Tensor, place: Any) -> bool:
    """Whether samples go to the device as a whole: where they fill no more than a quarter of what is free there."""
    import torch

    return bool(place.type == "cuda" and 4 * stack.nbytes < torch.cuda.mem_get_info(place)[0])


def _check(
    teacher: Module | None, options: TrainingOptions, labels: Tensor | None, features: tuple[str, str] | None
) -> None:
    if teacher is None and options.loss != "labels":
        raise InputError(f"the loss {options.loss!r} needs a teacher", remedy="give one, or the loss 'labels'")
    if labels is None and (options.loss == "labels" or options.label_weight):
        raise InputError("this training needs labels, and the samples have none", remedy="set label_weight to 0")
    if options.feature_weight and (features is None or teacher is None):
        raise InputError("features need a teacher and their names", remedy="set feature_weight to 0")


@dataclass(slots=True, kw_only=True)
class _Trainer:
    """One training. All that changes is in `_snapshot`, so going back and going on later are the same thing."""

    teacher: Module | None
    student: Module
    stacks: Mapping[str, Tensor]
    options: TrainingOptions
    labels: Tensor | None
    place: Any
    features: tuple[str, str] | None
    generator: Any
    held: Tensor
    drawn: Tensor
    half: Any
    scaler: Any
    projection: Any = None
    optimizer: Any = None
    file: Path | None = None
    key: str = ""
    done: int = 0
    factor: float = 1.0
    before: float = math.inf
    best: float = math.inf
    in_vain: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    good: dict[str, Any] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the projection of the features and the optimizer."""
        import torch

        options = self.options
        trained = [p for p in self.student.parameters() if p.requires_grad]
        if self.features is not None:
            self.projection = self._projection().to(self.place)
            trained += self.projection.parameters()
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if options.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=options.rate, momentum=0.9, nesterov=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=options.rate)

    def keep_in(self, file: Path, identity: str) -> None:
        """Write checkpoints to ``file``."""
        self.file = file
        place = f"{self.place.type} {self.half}"
        self.key = _key(self.options, self.stacks, self.labels, [self.teacher, self.student], f"{identity} {place}")

    def run(self, advance: Callable[[int], None], stop: Callable[[], bool]) -> Outcome:
        """Train to the end, or till a reason to stop."""
        options = self.options
        if self._resumed():
            advance(self.done)
        else:
            self.before = self.best = self._held_loss()
            self.kept = _copied(self.student.state_dict())
            self._keep()
        last = min(options.steps, options.cut or options.steps)
        every = max(1, options.steps // _CHECKS)
        while self.done < last and not self._gave_up():
            stopped = self.done > 0 and stop()
            healthy = stopped or self._advance_one()
            if healthy and not stopped:
                advance(1)
            due = stopped or self.done % every == 0 or self.done == last
            if not healthy or (due and not self._checked()):
                self._go_back()
            elif due or self.done % _EVERY == 0:
                self._keep()
            if stopped:
                break
        return self._finished()

    def _advance_one(self) -> bool:
        rate = self.options.rate * self.factor * schedule(self.done, self.options.steps)
        if not self.step(rate):
            return False
        self.done += 1
        return True

    def step(self, rate: float) -> bool:
        """Train on one batch; whether its loss is finite."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        options = self.options
        some = self.drawn[torch.randint(len(self.drawn), (options.batch,), generator=self.generator)]
        batch = training_data.draw(
            self.stacks, self.labels, some, augment=options.ways, generator=self.generator, device=self.place
        )
        self.student.train()
        self.optimizer.zero_grad()
        loss = self._loss(batch, self.features)
        if not bool(torch.isfinite(loss)):
            return False
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return True

    # ------------------------------------------------------------------------------------------------ losses

    def _loss(self, batch: training_data.Batch, features: tuple[str, str] | None) -> Tensor:
        options = self.options
        found = self._computed(self.student, batch, features and features[1])
        if options.loss == "labels":
            return self._label_loss(found, batch)
        assert self.teacher is not None
        wanted = self._taught(batch, features and features[0])
        names = [name for name in wanted if not features or name != features[0]]
        parts = [
            losses.difference(wanted[n], found[n], loss=options.loss, temperature=options.temperature) for n in names
        ]
        loss = sum(parts[1:], start=parts[0]) / len(parts)
        if options.label_weight:
            loss = (1 - options.label_weight) * loss + options.label_weight * self._label_loss(found, batch)
        if features is not None:
            mine = self.projection(found[features[1]])
            loss = loss + options.feature_weight * losses.feature_error(wanted[features[0]], mine)
        return loss

    def _label_loss(self, found: Mapping[str, Tensor], batch: training_data.Batch) -> Tensor:
        assert batch.labels is not None
        assert batch.others is not None
        scores = next((y for y in found.values() if y.ndim == 2 and y.shape[1] > 1), None)
        if scores is None:
            raise InputError("labels need a model whose output is one score a class", remedy="train without labels")
        return losses.label_entropy(scores, batch.labels, batch.others, batch.share)

    def _computed(self, module: Module, batch: training_data.Batch, feature: str | None) -> dict[str, Tensor]:
        """The outputs, and the feature, as float32."""
        import torch

        inputs, cuda = batch.inputs, self.place.type == "cuda"
        if cuda:
            inputs = {
                name: x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
                for name, x in inputs.items()
            }
        with torch.autocast(self.place.type, dtype=self.half, enabled=cuda):
            found = module(inputs, collect=(feature,)) if feature else module(inputs)
        return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}

    def _taught(self, batch: training_data.Batch, feature: str | None) -> dict[str, Tensor]:
        import torch

        assert self.teacher is not None
        with torch.inference_mode():
            wanted = self._computed(self.teacher, batch, feature)
        # What inference mode made cannot be part of a gradient, but a copy can.
        return {name: value.clone() for name, value in wanted.items()}

    def _held_loss(self) -> float:
        """The loss on the held-back samples as they are, features left out."""
        import torch

        self.student.eval()
        total = 0.0
        with torch.no_grad():
            for some in self.held.split(self.options.batch):
                batch = training_data.plain(self.stacks, self.labels, some, device=self.place)
                total += len(some) * float(self._loss(batch, None))
        return total / len(self.held)

    def _projection(self) -> Any:
        """A 1x1 convolution from the student's feature to the teacher's."""
        import torch

        assert self.features is not None
        assert self.teacher is not None
        batch = training_data.plain(self.stacks, None, self.drawn[:2], device=self.place)
        self.student.eval()
        with torch.no_grad():
            mine = self._computed(self.student, batch, self.features[1])[self.features[1]]
            wanted = self._computed(self.teacher, batch, self.features[0])[self.features[0]]
        return torch.nn.Conv2d(mine.shape[1], wanted.shape[1], 1)

    # ------------------------------------------------------------------------------------------------ points on the way

    def _checked(self) -> bool:
        """Look at the held-back samples; whether all is finite."""
        found = self._held_loss()
        if not math.isfinite(found):
            return False
        self.in_vain += 1
        if found < self.best:
            self.best, self.kept, self.in_vain = found, _copied(self.student.state_dict()), 0
        return True

    def _gave_up(self) -> bool:
        return 0 < self.options.patience <= self.in_vain

    def _go_back(self) -> None:
        """To the last good point, with half the rate. Raises `DivergedError` when that was done twice."""
        rate = self.options.rate * self.factor
        step = self.done + 1
        if len(self.notes) >= _HALVINGS or not self.good or not math.isfinite(self.before):
            raise DivergedError(
                f"training diverged at step {step} with a rate of {rate:g}",
                remedy="give a lower learning rate, look for values that are not numbers in the data, or leave it out",
            )
        notes = [*self.notes, f"training diverged at step {step} and went on with half its rate, {rate / 2:g}"]
        factor = self.factor / 2
        self._restore(self.good)
        self.factor, self.notes = factor, notes

    def _finished(self) -> Outcome:
        self.student.load_state_dict(self.kept)
        self.student.to("cpu").eval()
        return Outcome(before=self.before, after=self.best, steps=self.done, notes=tuple(self.notes))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _snapshot(self) -> dict[str, Any]:
        import torch

        return {
            "key": self.key, "done": self.done, "factor": self.factor, "before": self.before, "best": self.best,
            "in_vain": self.in_vain, "notes": list(self.notes), "kept": self.kept,
            "weights": _copied(self.student.state_dict()), "optimizer": _copied(self.optimizer.state_dict()),
            "projection": None if self.projection is None else _copied(self.projection.state_dict()),
            "scaler": self.scaler.state_dict(), "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
        }  # fmt: skip

    def _keep(self) -> None:
        """Take a snapshot, and write it down where a checkpoint is wanted; not of weights that are not finite."""
        import torch

        if not all(bool(torch.isfinite(p).all()) for p in self.student.parameters()):
            return
        self.good = self._snapshot()
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Through memory, since torch itself tells of a full disk by an internal fault.
            written = io.BytesIO()
            torch.save(self.good, written)
            write_atomically(self.file, written.getbuffer())

    def _restore(self, snapshot: Mapping[str, Any]) -> None:
        import torch

        self.student.load_state_dict(snapshot["weights"])
        self.optimizer.load_state_dict(_copied(snapshot["optimizer"]))
        if self.projection is not None:
            self.projection.load_state_dict(snapshot["projection"])
        self.scaler.load_state_dict(snapshot["scaler"])
        self.generator.set_state(snapshot["generator"])
        torch.set_rng_state(snapshot["random"])
        self.done, self.factor, self.in_vain = snapshot["done"], snapshot["factor"], snapshot["in_vain"]
        self.before, self.best = snapshot["before"], snapshot["best"]
        self.kept, self.notes = snapshot["kept"], list(snapshot["notes"])

    def _resumed(self) -> bool:
        from pickle import UnpicklingError

        import torch

        if self.file is None or not self.file.is_file():
            return False
        try:
            snapshot = torch.load(self.file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, UnpicklingError):  # not a whole file, or not ours
            return False
        if not isinstance(snapshot, dict) or snapshot.get("key") != self.key:
            return False
        self._restore(snapshot)
        self.good = snapshot
        return True


def schedule(number: int, steps: int) -> float:
    """The share of the rate at a step: a short linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(_WARM_UP * steps))
    if number < warm:
        return (number + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, steps - warm)))


def _copied(state: Any) -> Any:
    """A copy of a state that training does not change."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _key(
    options: TrainingOptions,
    stacks: Mapping[str, Tensor],
    labels: Tensor | None,
    modules: Sequence[Module | None],
    identity: str,
) -> str:
    """A hash of all that a training depends on."""
    import torch

    made = hashlib.sha256(f"{options} {identity} {torch.__version__}".encode())
    states = [dict(stacks), {} if labels is None else {"labels": labels}]
    states += [{} if module is None else module.state_dict() for module in modules]
    for state in states:
        made.update(b"|")
        for name, value in state.items():
            made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            made.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


__all__ = [
    "LOSSES", "OPTIMIZERS", "Outcome", "TrainingOptions", "Watch", "check_teacher", "checkpoint_file", "checkpoints_in",
    "choices", "cut", "file_key", "missing_classes", "schedule", "seconds", "train", "watch", "watched",
]  # fmt: skip
