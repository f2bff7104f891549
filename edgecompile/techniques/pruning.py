"""The technique ``prune``: channels go in the order of their importance, and what is left is fitted to the original.

Options: ``keep:GROUP`` is how many units of a group stay (groups that are not named stay whole); ``importance`` one of
`importance.IMPORTANCES`; ``samples`` how many calibration samples the layers are fitted on; ``seed``;
``reconstruct`` whether to fit at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgecompile.errors import InputError, UnsupportedModelError
from edgecompile.progress import Progress
from edgecompile.store import write_atomically
from edgecompile.techniques import channels as analysis
from edgecompile.techniques import importance, prune
from edgecompile.techniques.reconstruct import reconstruct
from edgecompile.types import Arrays, Model, Step, file_sha256

if TYPE_CHECKING:
    import onnx

_KEEP = "keep:"
#: Samples that the order of removal is worked out on.
ORDER_SAMPLES = 256


def step(
    counts: Mapping[str, int],
    *,
    samples: int,
    method: importance.Importance = "reconstruction",
    fit: bool = True,
    seed: int = 0,
) -> Step:
    """The step that keeps ``counts`` units of the groups named there."""
    options: list[tuple[str, str | int | float | bool]] = [
        ("importance", method),
        ("reconstruct", fit),
        ("samples", samples),
        ("seed", seed),
    ]
    return Step(
        technique="prune", options=(*options, *((f"{_KEEP}{name}", count) for name, count in sorted(counts.items())))
    )


def counts_of(pruning: Step) -> dict[str, int]:
    """How many units of each group a step keeps. Raises `InputError` for a figure that is no count."""
    found: dict[str, int] = {}
    for name, value in pruning.options:
        if name.startswith(_KEEP):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} of a pruning step must be a positive whole number, and is {value!r}")
            found[name.removeprefix(_KEEP)] = value
    return found


def apply(
    original: Model, model: Model, pruning: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """See the module. Raises `UnsupportedModelError` for a model without channels that can go, `InputError` for a step
    that does not fit the model or names an unknown option."""
    options = dict(pruning.options)
    unknown = [name for name in options if not name.startswith(_KEEP) and name not in _KNOWN]
    if unknown:
        raise InputError(
            f"a pruning step has no option {unknown[0]!r}", remedy=f"known: {', '.join(_KNOWN)}, keep:GROUP"
        )
    method = options.get("importance", "reconstruction")
    if method not in get_args(importance.Importance):
        raise InputError(f"unknown importance {method!r}", remedy=f"known: {', '.join(importance.IMPORTANCES)}")
    found = open_model(model)
    some = [samples[i] for i in range(min(len(samples), int(options.get("samples", len(samples)))))]
    seed = int(options.get("seed", 0))
    with progress.stage("Order channels"):
        orders = importance.orders(found, some[:ORDER_SAMPLES], method=method, seed=seed)  # type: ignore[arg-type]
    kept = _positions(found, orders, counts_of(pruning))
    pruned = prune.remove(found, kept)
    if options.get("reconstruct", True):
        with progress.stage("Fit pruned layers"):
            pruned, _ = reconstruct(found, pruned, analysis.removed_units(found, kept), some, seed=seed)
    return written(model, pruned, workdir, note=_note(found, kept, model, pruned))


_KNOWN = ("importance", "reconstruct", "samples", "seed")


def open_model(model: Model) -> analysis.Channels:
    """The channels of a prepared model. Raises `UnsupportedModelError` where none can go."""
    import onnx

    found = analysis.analyze(onnx.load(str(model.path)))
    if not found.groups:
        raise UnsupportedModelError(
            f"{model.name} cannot be pruned: {'; '.join(found.notes)}", remedy="build without pruning (--no-prune)"
        )
    return found


def _positions(
    found: analysis.Channels, orders: Mapping[str, importance.Order], counts: Mapping[str, int]
) -> dict[str, list[int]]:
    sizes = {group.name: group.size for group in found.groups}
    for name, count in counts.items():
        if name not in sizes or count > sizes[name]:
            raise InputError(
                f"the plan keeps {count} channels of {name!r}, which this model does not have",
                remedy="replay a plan on the model that it was made for",
            )
    return {name: orders[name].kept(count) for name, count in counts.items() if count < sizes[name]}


def written(model: Model, proto: onnx.ModelProto, workdir: Path, *, note: str) -> Model:
    """A changed graph as a model of its own, which no longer has the module that the original came from."""
    path = workdir / "model.onnx"
    write_atomically(path, proto.SerializeToString(deterministic=True))
    return replace(
        model,
        path=path,
        original_path=path,
        sha256=file_sha256(path),
        parameters=prune.parameters(proto),
        module=None,
        notes=(*model.notes, note),
    )


def _note(found: analysis.Channels, kept: Mapping[str, Sequence[int]], model: Model, pruned: onnx.ModelProto) -> str:
    before = sum(group.size for group in found.groups)
    gone = sum(group.size - len(kept[group.name]) for group in found.groups if group.name in kept)
    share = prune.parameters(pruned) / max(model.parameters, 1)
    return f"{gone} of {before} channels removed; {share:.0%} of the parameters are left"
