"""`load`: from ``--data``, ``--eval``, ``--labels`` and a preset to disjoint parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgecompile import types
from edgecompile.calibration import arrays, folders, images, split
from edgecompile.calibration.pool import Pool
from edgecompile.calibration.preset import Layout, Preprocessing, Preset, preset_names, resolve
from edgecompile.calibration.samples import Samples, random_inputs
from edgecompile.errors import InputError
from edgecompile.types import TensorSpec

#: Above this share of unreadable samples the data itself is in doubt.
MAX_UNREADABLE = 0.05
_SYNTHETIC_SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationSet:
    """Declared preprocessing and disjoint parts of the data.

    Ranges come from ``calibration``, choices from ``validation``, reported figures from ``evaluation``; ``training`` is
    what is left of ``--data``, as far as it was asked for, and may be empty. ``skipped`` counts unreadable samples;
    ``notes`` are for the user; ``digest`` is a hash of all content, labels and the seed.
    """

    calibration: Samples
    validation: Samples
    evaluation: Samples
    training: Samples
    preset: Preset | None
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...] | None
    skipped: int
    notes: tuple[str, ...]
    digest: str
    synthetic: bool = False


def load(
    preset: Preset | None,
    inputs: tuple[TensorSpec, ...],
    *,
    data: Path | None,
    evaluation: Path | None = None,
    labels: Path | None = None,
    seed: int = 0,
    calibration_samples: int = 200,
    validation_samples: int = 1000,
    evaluation_samples: int | None = None,
    training_samples: int | None = 0,
    input_layout: Layout | None = None,
) -> CalibrationSet:
    """Read the data and split it. Without data all parts are seeded random inputs, marked ``synthetic``.

    ``training_samples`` are taken from what no other part needs (``None``: all of it).

    Raises `InputError` for data that is missing, empty, does not fit the inputs, or is unreadable to more than 5 %.
    """
    class_names = folders.read_labels(labels) if labels is not None else None
    prep = _preprocessing(preset, inputs, input_layout, required=data is not None)
    if data is None:
        if evaluation is not None:
            raise InputError("evaluation data is given, but no --data", remedy="give --data as well, or --data alone")
        return _synthetic(preset, prep, inputs, class_names, seed)
    notes: list[str] = []
    if class_names is None and (class_names := _shared_class_names(data, evaluation)) is not None:
        notes.append(f"class order: the folder names of {data} and {evaluation}, sorted")
    main = _pool(data, inputs, preset, prep, class_names)
    held = _pool(evaluation, inputs, preset, prep, class_names) if evaluation is not None else None
    notes += [*main.notes, *(held.notes if held else ())]
    if held is not None:
        _refuse_other_order(main, held)
        if (main.labels is None) != (held.labels is None):
            notes.append(f"only one of {main.origin} and {held.origin} has labels: their metrics differ")
        main, overlap = _without_overlap(main, held)
        notes += overlap
    counts = (calibration_samples, validation_samples, evaluation_samples, training_samples)
    chosen = _split(main, held, counts, seed)
    parts, skipped, skip_notes = _readable(chosen)
    fallback = next((pool.class_names for pool, _ in chosen if pool.class_names), class_names)
    samples = tuple(_samples(pool, indices, preset, prep) for pool, indices in parts)
    return CalibrationSet(
        calibration=samples[0],
        validation=samples[1],
        evaluation=samples[2],
        training=samples[3],
        preset=preset,
        preprocessing=prep,
        class_names=fallback,
        skipped=skipped,
        notes=tuple(dict.fromkeys([*notes, *skip_notes])),
        digest=_digest(preset, prep, parts, seed),
    )


def _preprocessing(
    preset: Preset | None, inputs: tuple[TensorSpec, ...], layout: Layout | None, *, required: bool
) -> Preprocessing | None:
    if preset is None:
        return None
    if len(inputs) == 1:
        return resolve(preset, inputs[0], input_layout=layout)
    if not required:
        return None
    raise InputError(
        f"preset {preset.name!r} fills one input, but the model has {len(inputs)}",
        remedy="give .npz data without a preset: one preprocessed array an input, under the input's name",
    )


def _synthetic(
    preset: Preset | None,
    prep: Preprocessing | None,
    inputs: tuple[TensorSpec, ...],
    class_names: tuple[str, ...] | None,
    seed: int,
) -> CalibrationSet:
    samples = random_inputs(inputs, 3 * _SYNTHETIC_SAMPLES, seed)
    return CalibrationSet(
        calibration=samples[:_SYNTHETIC_SAMPLES],
        validation=samples[_SYNTHETIC_SAMPLES : 2 * _SYNTHETIC_SAMPLES],
        evaluation=samples[2 * _SYNTHETIC_SAMPLES :],
        training=samples[:0],
        preset=preset,
        preprocessing=prep,
        class_names=class_names,
        skipped=0,
        notes=("no --data: outputs are compared on random inputs, and nothing can be said about accuracy",),
        digest=types.digest("synthetic", inputs, seed),
        synthetic=True,
    )


# ---------------------------------------------------------------------------------------------------- reading


def _pool(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    preset: Preset | None,
    prep: Preprocessing | None,
    class_names: tuple[str, ...] | None,
) -> Pool:
    if path.is_dir():
        if len(inputs) != 1:
            raise InputError(
                f"{path} is an image folder, but the model has {len(inputs)} inputs",
                remedy="give .npz data with one array an input, under the input's name",
            )
        if preset is None or prep is None:
            raise InputError(
                f"{path} is an image folder, and how its images become inputs is not declared",
                remedy=f"choose a --preset: {', '.join(preset_names())}",
            )
        return folders.scan(path, preset, prep, class_names)
    if not path.exists():
        raise InputError(f"no such data: {path}", remedy="give an image folder, a .npy or a .npz file")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise InputError(f"{path} is not data", remedy="give an image folder, a .npy or a .npz file")
    return arrays.load(path, inputs, prep, class_names)


def _shared_class_names(data: Path, evaluation: Path | None) -> tuple[str, ...] | None:
    """One class order for both folders; ``None`` where a single folder decides by itself."""
    folders_given = [path for path in (data, evaluation) if path is not None and path.is_dir()]
    found = [names for path in folders_given if (names := folders.class_folder_names(path))]
    if len(found) < 2:
        return None
    larger, smaller = sorted(found, key=len, reverse=True)
    if strange := sorted(set(smaller) - set(larger)):
        raise InputError(
            f"{data} and {evaluation} have different class folders: only one has {', '.join(map(repr, strange[:5]))}",
            remedy="give --labels FILE with every class, one a line, in the model's output order",
        )
    return tuple(sorted(larger))


def _refuse_other_order(main: Pool, held: Pool) -> None:
    if main.class_names and held.class_names and main.class_names != held.class_names:
        raise InputError(
            f"{main.origin} and {held.origin} have different classes, or the same in another order",
            remedy="give --labels FILE with every class, one a line, in the model's output order",
        )


def _without_overlap(main: Pool, held: Pool) -> tuple[Pool, list[str]]:
    """``main`` without what is also in ``held``: nothing may be chosen on what is evaluated."""
    evaluated = set(held.hashes)
    shared = frozenset(i for i, content in enumerate(main.hashes) if content in evaluated)
    if not shared:
        return main, []
    if len(shared) == len(main):
        raise InputError(
            f"every sample of {main.origin} is also in {held.origin}",
            remedy="leave --eval out: half of --data is then held back for evaluation",
        )
    note = f"{len(shared)} samples of {main.origin} are also in {held.origin} (same content): not used for calibration"
    return replace(main, exclude=shared), [note]


# ---------------------------------------------------------------------------------------------------- splitting


def _split(
    main: Pool, held: Pool | None, counts: tuple[int, int, int | None, int | None], seed: int
) -> list[tuple[Pool, tuple[int, ...]]]:
    calibration, validation, evaluation, training = counts
    rest = split.ordered_groups(main, seed)
    if held is None:
        held_back, rest = split.take(rest, len(split.flat(rest)) // 2)
    else:
        held_back = split.ordered_groups(held, seed)
    if evaluation is not None:
        held_back, _ = split.take(held_back, evaluation)
    first, rest = split.take(rest, min(calibration, len(split.flat(rest)) // 2))
    second, rest = split.take(rest, validation)
    parts = [(main, split.flat(first)), (main, split.flat(second)), (held or main, split.flat(held_back))]
    _refuse_too_few(main, held, tuple(indices for _, indices in parts))
    return [*parts, (main, split.flat(rest)[:training])]


def _refuse_too_few(main: Pool, held: Pool | None, parts: tuple[tuple[int, ...], ...]) -> None:
    if all(parts):
        return
    raise InputError(
        f"{main.origin} has {len(main) - len(main.exclude)} usable samples ({len(set(main.hashes))} different): too few"
        f" for {'two' if held else 'three'} parts that share none",
        remedy="give at least 4 different samples; a hundred or more make a useful calibration",
    )


def _readable(
    chosen: list[tuple[Pool, tuple[int, ...]]],
) -> tuple[list[tuple[Pool, tuple[int, ...]]], int, list[str]]:
    """The parts without unreadable samples. Raises `InputError` when they are more than 5 %, or leave a part empty."""
    bad: list[str] = []
    kept: list[tuple[Pool, tuple[int, ...]]] = []
    for pool, indices in chosen:
        with images.no_pillow_warnings():
            reasons = folders.in_parallel(pool.source.check, indices)
        bad += [f"{pool.names[i]} ({reason})" for i, reason in zip(indices, reasons, strict=True) if reason]
        kept.append((pool, tuple(i for i, reason in zip(indices, reasons, strict=True) if not reason)))
    total = sum(len(indices) for _, indices in chosen)
    shown = "; ".join(bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
    if len(bad) > MAX_UNREADABLE * total or not all(indices for _, indices in kept[:3]):
        raise InputError(
            f"{len(bad)} of {total} samples cannot be used: {shown}",
            remedy=f"repair or remove them; up to {100 * MAX_UNREADABLE:.0f} % would be skipped",
        )
    return kept, len(bad), [f"{len(bad)} of {total} samples skipped: {shown}"] if bad else []


def _samples(pool: Pool, indices: tuple[int, ...], preset: Preset | None, prep: Preprocessing | None) -> Samples:
    labels = None if pool.labels is None else np.array([pool.labels[i] for i in indices], dtype=np.int64)
    return Samples(
        source=pool.source,
        indices=indices,
        names=tuple(pool.names[i] for i in indices),
        labels=labels,
        class_names=pool.class_names,
        truths=pool.truths,
        preset=preset,
        preprocessing=prep,
    )


def _digest(
    preset: Preset | None, prep: Preprocessing | None, parts: list[tuple[Pool, tuple[int, ...]]], seed: int
) -> str:
    truths = [pool.truth_sha256 for pool, _ in parts]
    content = [
        [(pool.names[i], pool.hashes[i], pool.labels[i] if pool.labels is not None else None) for i in indices]
        for pool, indices in parts
    ]
    return types.digest(preset, prep, content, truths, seed)
