"""What preprocessing yields: `Samples`, a lazy sequence of model inputs with what is known about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from edgecompile.calibration.preset import Preprocessing, Preset
from edgecompile.types import Arrays, TensorSpec

#: What the data says about a sample beside a class: boxes for detectors, a mask of class indices for segmentation.
TruthKind: TypeAlias = Literal["none", "boxes", "masks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """True boxes of one image: ``xyxy`` (K, 4) in pixels of the input, ``classes`` (K,), ``crowd`` (K,) booleans."""

    xyxy: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]


Truth: TypeAlias = "Boxes | npt.NDArray[np.int32]"


class Source(Protocol):
    """Where samples come from."""

    def read(self, index: int) -> Arrays:
        """The inputs of one sample, by name, with the model's exact shapes and types."""

    def check(self, index: int) -> str | None:
        """Why a sample cannot be used, or ``None``."""

    def truth(self, index: int) -> Truth | None:
        """The boxes or the mask of a sample, where the data has them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples(Sequence[Arrays]):
    """A sequence of samples: ``samples[i]`` is a dictionary input name -> array, ``samples[:n]`` a shorter `Samples`.

    ``labels`` are class indices, one a sample, or ``None``; ``names`` say where each sample came from. ``truths`` says
    what `truth` yields. ``synthetic`` samples are random numbers: fit for parity and latency, not for accuracy.
    """

    source: Source = field(repr=False)
    indices: tuple[int, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    truths: TruthKind = "none"
    preset: Preset | None = None
    preprocessing: Preprocessing | None = None
    synthetic: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Arrays: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Arrays | Samples:
        if isinstance(index, slice):
            return self._slice(index)
        return self.source.read(self.indices[index])

    def __iter__(self) -> Iterator[Arrays]:
        return (self.source.read(index) for index in self.indices)

    def truth(self, index: int) -> Truth | None:
        """The `Boxes` (in pixels of the input) or the mask (at the input's size) of a sample, or ``None``."""
        return self.source.truth(self.indices[index])

    def _slice(self, part: slice) -> Samples:
        labels = None if self.labels is None else self.labels[part]
        return replace(self, indices=self.indices[part], names=self.names[part], labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSource:
    """Seeded random inputs: standard normal floats, small integers, coin flips."""

    inputs: tuple[TensorSpec, ...]
    seed: int

    def read(self, index: int) -> Arrays:
        generator = np.random.default_rng([self.seed, index])
        return {spec.name: _random(spec, generator) for spec in self.inputs}

    def check(self, index: int) -> str | None:
        return None

    def truth(self, index: int) -> None:
        return None


def _random(spec: TensorSpec, generator: np.random.Generator) -> npt.NDArray[Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(spec.shape)).astype(dtype)
    if dtype.kind == "b":
        return np.asarray(generator.integers(0, 2, spec.shape)).astype(dtype)
    limits = np.iinfo(dtype)
    # Wider integers are mostly indices, of which only 0 and 1 are likely to be valid everywhere.
    low, high = (limits.min, limits.max) if dtype.itemsize == 1 else (0, 1)
    return np.asarray(generator.integers(low, high, spec.shape, endpoint=True)).astype(dtype)


def random_inputs(inputs: tuple[TensorSpec, ...], count: int, seed: int = 0) -> Samples:
    """``count`` random samples for parity and latency where no data is given; marked ``synthetic``."""
    return Samples(
        source=RandomSource(inputs=inputs, seed=seed),
        indices=tuple(range(count)),
        names=tuple(f"random {i}" for i in range(count)),
        synthetic=True,
    )
