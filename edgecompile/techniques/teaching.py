"""What a smaller net is trained by: the original as a module, or the original after some training of its own.

A model that was trained on other images than those at hand (other cameras, other compression) is a poor teacher for
them: what it says is further from the labels than what the student could learn from them. Where there are labels,
``teacher_steps`` train it on them first. The graph that comes out is kept beside the checkpoints, so that several
smaller nets have the same teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgecompile.progress import Progress
from edgecompile.store import write_atomically
from edgecompile.techniques import training
from edgecompile.techniques.training import TrainingOptions
from edgecompile.types import Model

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from edgecompile.techniques.torch_graph import TorchGraph

#: Samples that the statistics of added batch normalizations come from.
_STATISTICS = 512
#: The teacher's rate for one sample of a batch, and its weight decay.
_RATE, _DECAY = 1.2e-4, 5e-4


def of(
    original: Model,
    options: TrainingOptions,
    stacks: Callable[[], Mapping[str, Tensor]],
    labels: Tensor | None,
    progress: Progress,
) -> TorchGraph:
    """The teacher in evaluation mode; ``stacks`` gives its inputs by name, N samples on axis 0, and is asked only where
    it is trained. Raises `UnsupportedModelError` for operators that cannot be differentiated, `InputError` where labels
    are missing."""
    import onnx

    from edgecompile.techniques.torch_graph import from_onnx

    proto = onnx.load(str(original.path))
    if not options.teacher_steps:
        return from_onnx(proto)
    own = _own(options)
    key = training.file_key(own, f"teacher {original.sha256}")
    file = training.checkpoint_file(key)
    kept = None if file is None else file.with_suffix(".onnx")
    if kept is not None and kept.is_file():
        return from_onnx(onnx.load(str(kept)))
    images = stacks()
    module = trainable(proto, images, own)
    outcome = training.train(
        None, module, images, own, labels=labels, checkpoint=file, progress=progress, identity=original.sha256
    )
    progress.note(f"the original was trained on the labels first: its loss fell to {outcome.after:.3g}")
    tuned = module.to_onnx()
    if kept is not None:
        write_atomically(kept, tuned.SerializeToString(deterministic=True))
    return from_onnx(tuned)


def _own(options: TrainingOptions) -> TrainingOptions:
    """How the teacher itself is trained: gently, since it has less to learn than a student."""
    return TrainingOptions(
        steps=options.teacher_steps, samples=options.samples, batch=options.batch, optimizer="sgd",
        rate=_RATE * options.batch, decay=_DECAY, loss="labels", augment=options.augment, batch_norm=True,
        seed=options.seed,
    )  # fmt: skip


def trainable(proto: onnx.ModelProto, stacks: Mapping[str, Tensor], options: TrainingOptions) -> Any:
    """A graph as a module to be trained, with batch normalization where the options want it."""
    from edgecompile.techniques.torch_graph import from_onnx

    module = from_onnx(proto, batch_norm=options.batch_norm)
    if options.batch_norm:
        some = {name: stack[:_STATISTICS] for name, stack in stacks.items()}
        count = len(next(iter(some.values())))
        module.calibrate(
            {name: stack[start : start + options.batch] for name, stack in some.items()}
            for start in range(0, count, options.batch)
        )
    return module
