"""One latency model shared by all devices of one runtime and precision, with two factors a device.

An operator takes the longer of computing and moving its tensors, plus a fixed cost; the device's first factor divides
the computing and the fixed costs, the second the moving. All parameters are logarithms, so that they stay positive;
normal priors (in `PRIORS`) hold those that few rows say little about. Residuals are logarithms of ratios.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from benchmarks.published_models import operators
from edgecompile.estimate import padding
from edgecompile.types import OperatorClass

Vector = npt.NDArray[np.float64]

CLASSES: tuple[OperatorClass, ...] = ("pointwise", "conv", "depthwise", "dense")
BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
#: Standard deviation of a published latency, in logarithm: rounding, clocks, versions.
_NOISE = 0.1
#: By device, where the source does not give it: all cores. GPUs have no threads.
_THREADS = {"Pi 5": 4}
_FAMILY = re.compile(r"mobilenet_v2|mobilenet_v3|efficientnet_lite|yolo11|(wide_)?resnet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published or measured latency."""

    device: str
    runtime: str
    threads: int
    precision: str
    model: str
    resolution: int
    latency_ms: float
    source: str

    @property
    def network(self) -> str:
        """The model as it is left out: widths and sizes of one family count as models of their own."""
        return f"{self.model.removesuffix('_1.0')}@{self.resolution}"

    @property
    def family(self) -> str:
        """The model's family: all widths, depths and resolutions."""
        found = _FAMILY.match(self.model)
        return found.group().removeprefix("wide_") if found else self.model


def read_all() -> tuple[Row, ...]:
    """All published and measured rows."""
    folder = Path(__file__).resolve().parent
    return read_rows(folder / "published_latencies.csv") + read_rows(folder / "measured_latencies.csv")


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a CSV file. Where the number of threads is not given, it is taken to be `_THREADS`."""
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(
            Row(
                device=line["device"],
                runtime=line["runtime"],
                threads=int(line["threads"] or _THREADS.get(line["device"], 1)),
                precision=line["precision"],
                model=line["model"],
                resolution=int(line["resolution"]),
                latency_ms=float(line["latency_ms"]),
                source=line["source"],
            )
            for line in csv.DictReader(stream)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is known of a runtime before any row: bytes an element, channel tile, what it fuses, and priors."""

    bytes_per_element: float
    tile: int
    fused_classes: tuple[OperatorClass, ...]
    #: Whether a faster device also has smaller fixed costs; on a GPU they are the host's and stay.
    fixed_costs_scale: bool
    priors: dict[str, tuple[float, float]]


#: Mean and standard deviation of each logarithm. Classes are relative to pointwise; ``memory`` is a device's second
#: factor relative to the square root of its first (memory gains less from one generation to the next).
_CPU_PRIORS = {
    "pointwise": (math.log(10.0), 3.0),  # giga-MACs per second: free
    "conv": (0.0, 0.3),  # the same matrix kernels through an indirection buffer
    "depthwise": (math.log(0.4), 0.5),
    "dense": (0.0, 0.3),
    "bandwidth": (math.log(4.0), 1.0),  # gigabytes per second
    "operator": (math.log(5.0), 1.0),  # microseconds
    "inference": (math.log(20.0), 1.0),  # microseconds
    "compute_scaling": (0.85, 0.1),  # exponents, not logarithms
    "memory_scaling": (0.4, 0.2),
    "factor": (0.0, 3.0),
    "memory": (0.0, 0.3),
}
#: About 30 us for launching a kernel; depthwise convolutions leave most of a GPU idle.
_GPU_PRIORS = _CPU_PRIORS | {
    "pointwise": (math.log(1000.0), 3.0),
    "depthwise": (math.log(0.1), 0.7),
    "bandwidth": (math.log(50.0), 0.7),
    "operator": (math.log(30.0), 0.3),
    "inference": (math.log(100.0), 0.7),
    "compute_scaling": (0.0, 0.001),
    "memory_scaling": (0.0, 0.001),
}


def settings(runtime: str, precision: str) -> Settings:
    """The settings of a runtime and precision."""
    if runtime == "tensorrt":
        return Settings(
            bytes_per_element=BYTES[precision],
            tile=32 if precision == "int8" else 8,
            fused_classes=("activation", "elementwise", "data"),
            fixed_costs_scale=False,
            priors=_GPU_PRIORS,
        )
    return Settings(
        bytes_per_element=BYTES[precision], tile=8, fused_classes=(), fixed_costs_scale=True, priors=_CPU_PRIORS
    )


@dataclass(frozen=True, slots=True)
class _Arrays:
    """A model's operators as arrays: index into `CLASSES`, mega-MACs with padding, megabytes."""

    kind: npt.NDArray[np.int64]
    mmacs: Vector
    mbytes: Vector


@functools.cache
def _arrays(model: str, resolution: int, bytes_per_element: float, tile: int, fused: tuple[str, ...]) -> _Arrays:
    costs = [c for c in operators(model, resolution) if c.op_class not in fused]
    elements = np.array([c.weight_elements + c.input_elements + c.output_elements for c in costs], dtype=np.float64)
    return _Arrays(
        kind=np.array([CLASSES.index(c.op_class) if c.op_class in CLASSES else 0 for c in costs]),
        mmacs=np.array([c.macs * padding(c, tile) / 1e6 for c in costs]),
        mbytes=elements * bytes_per_element / 1e6,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyModel:
    """Fitted parameters: the shared ones by the names of the priors, and (compute, memory) factors by device."""

    settings: Settings
    shared: dict[str, float]
    factors: dict[str, tuple[float, float]]

    def predict(self, row: Row) -> float:
        """Milliseconds of a row on a device that has factors."""
        return self.predict_with(row, *self.factors[row.device])

    def predict_with(self, row: Row, compute: float, memory: float) -> float:
        """Milliseconds with the given logarithms of the device's factors."""
        s, known = self.settings, self.shared
        a = _arrays(row.model, row.resolution, s.bytes_per_element, s.tile, s.fused_classes)
        threads = math.log(row.threads)
        log_rates = np.array([known["pointwise"] + (known[c] if c != "pointwise" else 0.0) for c in CLASSES])
        rates = np.exp(log_rates + compute + known["compute_scaling"] * threads)
        bandwidth = math.exp(known["bandwidth"] + memory + known["memory_scaling"] * threads)
        work = np.maximum(a.mmacs / rates[a.kind], a.mbytes / bandwidth).sum()
        fixed = a.kind.size * math.exp(known["operator"]) + math.exp(known["inference"])
        return float(work + fixed / 1e3 * (math.exp(-compute) if s.fixed_costs_scale else 1.0))

    def residual(self, row: Row) -> float:
        """The logarithm of estimate over published."""
        return math.log(self.predict(row) / row.latency_ms)


def fit(rows: Sequence[Row], how: Settings, *, shape: LatencyModel | None = None) -> LatencyModel:
    """Fit shared parameters and device factors to rows of one runtime and precision.

    With ``shape`` the shared parameters are that model's, and only the factors are fitted.
    """
    devices = sorted({row.device for row in rows})
    names = [] if shape is not None else [n for n in how.priors if n not in ("factor", "memory")]
    base = LatencyModel(settings=how, shared={n: how.priors[n][0] for n in names}, factors={})
    base = base if shape is None else replace(shape, settings=how)

    def unpack(x: Vector) -> LatencyModel:
        shared = {**base.shared, **dict(zip(names, x[: len(names)].tolist(), strict=True))}
        pairs = x[len(names) :].reshape(-1, 2).tolist()
        factors = {d: (c, c / 2 + m) for d, (c, m) in zip(devices, pairs, strict=True)}
        return LatencyModel(settings=how, shared=shared, factors=factors)

    prior = [how.priors[n] for n in names] + [how.priors[n] for _ in devices for n in ("factor", "memory")]
    means, widths = np.array([p[0] for p in prior]), np.array([p[1] for p in prior])

    def residuals(x: Vector) -> Vector:
        model = unpack(x)
        data = np.array([model.residual(row) for row in rows]) / _NOISE
        # Published figures have outliers: beyond about two deviations a row counts less and less (soft L1).
        data = np.sign(data) * np.sqrt(2 * 4 * (np.sqrt(1 + data**2 / 4) - 1))
        return np.concatenate([data, (x - means) / widths])

    found = least_squares(residuals, means, method="trf", x_scale=np.minimum(widths, 1.0), max_nfev=300)
    return unpack(found.x)


def leave_one_model_out(
    rows: Sequence[Row], how: Settings, *, shape: LatencyModel | None = None, by_family: bool = False
) -> dict[tuple[str, str, int], float]:
    """Residuals of each row by (device, network, threads) with all rows of its network left out of the fit.

    With ``by_family`` all widths and sizes of a network are left out together. Rows of devices that have no other
    network are not tested.
    """
    found: dict[tuple[str, str, int], float] = {}

    def unit(row: Row) -> str:
        return row.family if by_family else row.network

    for name in sorted({unit(row) for row in rows}):
        kept = [row for row in rows if unit(row) != name]
        known = {row.device for row in kept}
        tested = [row for row in rows if unit(row) == name and row.device in known]
        if not tested:
            continue
        model = fit(kept, how, shape=shape)
        found |= {(row.device, row.network, row.threads): model.residual(row) for row in tested}
    return found
