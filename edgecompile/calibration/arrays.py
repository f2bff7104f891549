"""Arrays as data: ``.npy`` and ``.npz``, preprocessed already (no preset) or raw (with one)."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgecompile.calibration import images
from edgecompile.calibration.pool import Pool
from edgecompile.calibration.preset import Preprocessing
from edgecompile.errors import InputError
from edgecompile.types import Arrays, TensorSpec

Array: TypeAlias = "npt.NDArray[Any]"

_LABEL_KEYS = ("labels", "y")
_IMAGE_KEYS = ("x", "images")
#: An archive is unpacked into memory: a small file must not be able to ask for all of it.
MAX_UNPACKED_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySource:
    """Samples are slices of arrays, one array an input; ``prep`` is set where they are raw."""

    inputs: tuple[TensorSpec, ...]
    arrays: dict[str, Array]
    prep: Preprocessing | None

    def read(self, index: int) -> Arrays:
        if self.prep is not None:
            return {self.prep.input: _raw_input(self.arrays[self.prep.input][index], self.prep)}
        return {spec.name: _as_input(self.arrays[spec.name][index], spec) for spec in self.inputs}

    def check(self, index: int) -> str | None:
        for name, array in self.arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array[index]).all():
                return f"{name} has values that are not finite"
        return None

    def truth(self, index: int) -> None:
        return None


def _as_input(sample: Array, spec: TensorSpec) -> Array:
    return np.ascontiguousarray(sample, dtype=spec.dtype).reshape(spec.shape)


def _raw_input(sample: Array, prep: Preprocessing) -> Array:
    values = sample.reshape(prep.height, prep.width, 1) if prep.channels == 1 else sample
    if prep.channels == 3 and _is_chw(sample.shape, prep):
        values = sample.transpose(1, 2, 0)
    return images.to_input(values, prep, white=prep.array_white)


def _is_chw(shape: tuple[int, ...], prep: Preprocessing) -> bool:
    """Whether a raw sample is (channels, height, width); where both readings fit, the model's own layout counts."""
    chw, hwc = (prep.channels, prep.height, prep.width), (prep.height, prep.width, prep.channels)
    return shape == chw and (shape != hwc or prep.layout == "nchw")


def load(
    path: Path, inputs: tuple[TensorSpec, ...], prep: Preprocessing | None, class_names: tuple[str, ...] | None
) -> Pool:
    """The samples of an array file. Raises `InputError` naming the expected and the found shape or type."""
    found = _open(path)
    labels = _labels(path, found)
    arrays = _by_input(path, found, inputs)
    count = _count(path, arrays, labels)
    for spec in inputs:
        _check(path, arrays[spec.name], spec, prep)
    notes = tuple(note for spec in inputs if (note := _suspicion(path, arrays[spec.name], spec, prep)))
    return Pool(
        origin=str(path),
        source=ArraySource(inputs=inputs, arrays=arrays, prep=prep),
        names=tuple(f"{path.name}[{i}]" for i in range(count)),
        hashes=tuple(_hash(arrays, i) for i in range(count)),
        labels=None if labels is None else tuple(int(value) for value in labels),
        class_names=class_names or _class_names(found),
        notes=notes,
    )


def _open(path: Path) -> dict[str, Array]:
    try:
        if path.suffix.lower() == ".npy":
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise InputError(
                f"{path} unpacks to {unpacked / 2**30:.1f} GiB, more than {MAX_UNPACKED_BYTES / 2**30:.0f} GiB",
                remedy="give a .npy file, which is read piece by piece, or fewer samples",
            )
        with np.load(path, allow_pickle=False) as archive:
            found = {key: archive[key] for key in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        MemoryError,
    ) as exc:
        remedy = "save plain numeric arrays with numpy.save or numpy.savez (object arrays are never unpickled)"
        raise InputError(f"cannot read {path}: {exc}", remedy=remedy) from exc
    # numpy gives the bytes of whatever else lies in the archive.
    return {key: value for key, value in found.items() if isinstance(value, np.ndarray)}


def _labels(path: Path, found: dict[str, Array]) -> Array | None:
    key = next((key for key in _LABEL_KEYS if key in found), None)
    if key is None:
        return None
    labels = found[key]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels.size and int(labels.min()) < 0):
        raise InputError(
            f"{path}: {key!r} has shape {labels.shape} and type {labels.dtype}",
            remedy="labels are one class index a sample: shape (N,), integers from 0",
        )
    return labels


def _class_names(found: dict[str, Array]) -> tuple[str, ...] | None:
    names = found.get("class_names")
    return tuple(str(name) for name in names) if names is not None and names.ndim == 1 else None


def _by_input(path: Path, found: dict[str, Array], inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    if all(spec.name in found for spec in inputs):
        return {spec.name: found[spec.name] for spec in inputs}
    if len(inputs) == 1:
        others = [key for key in found if key not in (*_LABEL_KEYS, "class_names")]
        key = next((key for key in _IMAGE_KEYS if key in found), others[0] if len(others) == 1 else None)
        if key is not None:
            return {inputs[0].name: found[key]}
    wanted = ", ".join(repr(spec.name) for spec in inputs)
    raise InputError(
        f"{path} has arrays {sorted(found)}, but the model's inputs are {wanted}",
        remedy="save one array an input under the input's name, (N, ...) each, and optionally 'labels'",
    )


def _count(path: Path, arrays: dict[str, Array], labels: Array | None) -> int:
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if labels is not None:
        sizes["labels"] = labels.shape[0]
    if len(set(sizes.values())) != 1:
        raise InputError(f"{path}: the arrays hold different numbers of samples: {sizes}", remedy="the first axis is N")
    count = next(iter(sizes.values()))
    if count == 0:
        raise InputError(f"no samples in {path}", remedy="the first axis of each array is the number of samples")
    return count


def _check(path: Path, array: Array, spec: TensorSpec, prep: Preprocessing | None) -> None:
    if not spec.shape or spec.shape[0] != 1:
        raise InputError(
            f"input {spec.name!r} has shape {spec.shape}: samples are fed one at a time",
            remedy="fix the batch to 1 with --input-shape",
        )
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: {spec.name!r} has type {array.dtype}", remedy=f"the model takes {spec.dtype}")
    accepted = _raw_shapes(prep) if prep is not None else [spec.shape[1:]]
    found = array.shape[1:]
    if found not in accepted and not (prep is None and _squeezed(found) == _squeezed(spec.shape)):
        expected = " or ".join(str(("N", *shape)).replace("'", "") for shape in accepted)
        raise InputError(
            f"{path}: {spec.name!r} has shape {array.shape}, but the model needs {expected}", remedy=_shape_remedy(prep)
        )
    if prep is None and np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f":
        raise InputError(f"{path}: {spec.name!r} has type {array.dtype}", remedy=f"the model takes {spec.dtype}")


def _shape_remedy(prep: Preprocessing | None) -> str:
    if prep is None:
        return "without a preset, arrays are fed as they are: save them preprocessed, in the model's layout"
    return "with a preset, arrays are raw images of the input's height and width"


def _raw_shapes(prep: Preprocessing) -> list[tuple[int, ...]]:
    chw, hwc = (prep.channels, prep.height, prep.width), (prep.height, prep.width, prep.channels)
    shapes: list[tuple[int, ...]] = [chw, hwc] if prep.layout == "nchw" else [hwc, chw]
    if prep.channels == 1:
        shapes.append((prep.height, prep.width))
    if prep.layout == "flat":
        shapes = [(prep.width,)]
    return shapes


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _suspicion(path: Path, array: Array, spec: TensorSpec, prep: Preprocessing | None) -> str | None:
    if prep is None and array.dtype == np.uint8 and np.dtype(spec.dtype).kind == "f":
        return f"{path}: {spec.name!r} is fed as it is, 0-255; if the model expects other values, give a --preset"
    return None


def _hash(arrays: dict[str, Array], index: int) -> str:
    hasher = hashlib.sha256()
    for name in sorted(arrays):
        hasher.update(np.ascontiguousarray(arrays[name][index]).tobytes())
    return hasher.hexdigest()
