"""Fit the cost tables of `device_profiles/` to published latencies, and write them.

    python benchmarks/fit_profiles.py            # fit, write the profiles and docs/device-profiles.md, print the tables
    python benchmarks/fit_profiles.py --check    # fit, and say whether the profiles are current (exit code 1: no)

Rows come from `published_latencies.csv`, and for x86 from `measured_latencies.csv`. Each runtime and precision has one
shared model (`latency_model.py`) and is fitted to its own rows alone. A device that has no rows of the runtime we ship
gets its two factors from elsewhere, by one of the recipes below, and says so.
"""

from __future__ import annotations

import argparse
import math
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import latency_model as lm  # noqa: E402
from benchmarks.latency_model import LatencyModel, Row  # noqa: E402

PROFILES = ROOT / "device_profiles"
PAGE = ROOT / "docs" / "device-profiles.md"
MARKER = "# Fitted by benchmarks/fit_profiles.py: everything below this line is written by it."
PAGE_MARKERS = ("<!-- fitted: begin -->", "<!-- fitted: end -->")
#: Rows that a device's own error counts against the error of all devices of the fit: few rows say little.
_SHRINKAGE = 4
#: The error, in logarithm, of what nothing was measured to test: scaling by specification, a network of a family that
#: no row is of. A judgement, not a finding.
_UNTESTED_SIGMA = 0.3
_MISFIT = "2-3 times slower a MAC than the others; pools in ceil mode, which may be why"
#: Rows left out after they were seen to fit badly: a judgement, which docs/device-profiles.md tells.
_LEFT_OUT = {("executorch-xnnpack", "squeezenet"): _MISFIT, ("executorch-xnnpack", "googlenet"): _MISFIT}
#: Fewer rows than this are called extrapolated.
_ENOUGH_ROWS = 6
_TOLERANCE = 0.02


# ------------------------------------------------------------------------------------------------------------ groups


@dataclass(frozen=True)
class Group:
    """All rows of one runtime and precision, their shared model, and its errors on models that were left out."""

    runtime: str
    precision: str
    rows: tuple[Row, ...]
    #: Whose shared model this group's devices use, where it has too few rows for its own.
    shape: Group | None = None
    #: The runtime's group at another precision, whose error on families stands in where this one has a single family.
    sibling: Group | None = None

    @cached_property
    def settings(self) -> lm.Settings:
        return lm.settings(self.runtime, self.precision)

    @cached_property
    def model(self) -> LatencyModel:
        return lm.fit(self.rows, self.settings, shape=self.shape.model if self.shape else None)

    @cached_property
    def left_out(self) -> dict[tuple[str, str, int], float]:
        return lm.leave_one_model_out(self.rows, self.settings, shape=self.shape.model if self.shape else None)

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"

    def own(self, device: str) -> list[Row]:
        return [row for row in self.rows if row.device == device]

    def left_out_of(self, device: str) -> list[float]:
        return [residual for (name, _, _), residual in self.left_out.items() if name == device]

    @cached_property
    def family_left_out(self) -> dict[tuple[str, str, int], float]:
        """Residuals with all sizes of a network left out together; empty where every row is of one family."""
        shape = self.shape.model if self.shape else None
        return lm.leave_one_model_out(self.rows, self.settings, shape=shape, by_family=True)

    def sigma(self, device: str) -> float:
        """The error to expect on a new network, as a logarithm's standard deviation.

        It is the device's error on models left out, drawn towards that of all devices, and never less than the error
        on families left out: a user's network is rarely another size of one that was published.
        """
        own, everyone = self.left_out_of(device), list(self.left_out.values())
        if self.shape is not None:
            everyone = everyone + list(self.shape.left_out.values())
        total = sum(r * r for r in own) + _SHRINKAGE * _rms(everyone) ** 2
        families = self.family_left_out or (self.sibling.family_left_out if self.sibling else {})
        floor = _rms(list(families.values())) if families else _UNTESTED_SIGMA
        return max(math.sqrt(total / (len(own) + _SHRINKAGE)), floor)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values)) if values else 0.0


def _median_error(residuals: Iterable[float]) -> float | None:
    errors = [abs(math.exp(r) - 1) for r in residuals]
    return float(np.median(errors)) if errors else None


class Groups:
    """Every group, by runtime and precision, made when it is first asked for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._made: dict[tuple[str, str], Group] = {}

    def __call__(self, runtime: str, precision: str) -> Group:
        key = (runtime, precision)
        if key not in self._made:
            shape = _SHAPE_OF.get(runtime)
            rows = [
                row
                for row in self.rows
                if (row.runtime, row.precision) == key and (runtime, row.model) not in _LEFT_OUT
            ]
            counts = {row.device: sum(r.device == row.device for r in rows) for row in rows}
            self._made[key] = Group(
                runtime=runtime,
                precision=precision,
                # A device with a single row says nothing about the shared model, and little about itself.
                rows=tuple(row for row in rows if counts[row.device] > 1 or shape),
                shape=self(shape, precision) if shape else None,
                sibling=self(runtime, "fp16") if runtime == "tensorrt" and precision != "fp16" else None,
            )
        return self._made[key]

    def made(self) -> list[Group]:
        return [self._made[key] for key in sorted(self._made)]


#: Runtimes whose kernels are XNNPACK's: only their device factors are fitted, on its shared model. (On x86 that leaves
#: a smaller error on models left out than a shared model of their own.)
_SHAPE_OF = {"executorch-xnnpack": "xnnpack", "litert": "xnnpack"}


# ----------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a recipe gives: a shared model with factors for one device, and what it stands on."""

    model: LatencyModel
    factors: tuple[float, float]
    rows: tuple[Row, ...]
    runtime: str
    sigma: float
    median_error: float | None
    basis: str
    extrapolated: bool

    def predict(self, row: Row) -> float:
        return self.model.predict_with(row, *self.factors)


Recipe = Callable[[Groups], Found]


def own_rows(runtime: str, precision: str, device: str, *, note: str = "") -> Recipe:
    """The device's own rows of the runtime."""

    def cook(groups: Groups) -> Found:
        group = groups(runtime, precision)
        rows = tuple(group.own(device))
        words = f"{len(rows)} rows of {group.name} on this device"
        if group.shape is not None:
            words += f", two factors on the shared model of {group.shape.name}"
        return Found(
            model=group.model,
            factors=group.model.factors[device],
            rows=rows,
            runtime=runtime,
            sigma=group.sigma(device),
            median_error=_median_error(group.left_out_of(device)),
            basis=words + (f"; {note}" if note else ""),
            extrapolated=len(rows) < _ENOUGH_ROWS,
        )

    return cook


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """One device as two groups know it."""

    there: str
    here: str


def other_rows(target: tuple[str, str], other: tuple[str, str], device: str, anchors: Sequence[Anchor]) -> Recipe:
    """Factors from the device's rows in another group, moved by the mean difference on devices that both groups have.

    ``target`` is the group that anchors are known in (``here``), ``other`` the one with the device's rows (``there``).
    """

    def cook(groups: Groups) -> Found:
        here, there = groups(*target), groups(*other)
        rows = tuple(there.own(device))
        factors = _moved(here, there, device, anchors)
        tested = _held_out_anchors(here, there, anchors)
        worst = max(here.sigma(anchor.here) for anchor in anchors)
        names = " and ".join(dict.fromkeys(anchor.here for anchor in anchors))
        return Found(
            model=here.model,
            factors=factors,
            rows=rows,
            runtime=there.runtime,
            sigma=math.hypot(worst, _rms(tested)) if tested else math.hypot(worst, there.sigma(device)),
            median_error=_median_error(tested),
            basis=f"factors from {len(rows)} rows of {there.name}, moved to {here.name} by {names}",
            extrapolated=True,
        )

    return cook


def _moved(here: Group, there: Group, device: str, anchors: Sequence[Anchor]) -> tuple[float, float]:
    shifts = np.array([np.subtract(here.model.factors[a.here], there.model.factors[a.there]) for a in anchors])
    compute, memory = np.add(there.model.factors[device], shifts.mean(axis=0))
    return float(compute), float(memory)


def _held_out_anchors(here: Group, there: Group, anchors: Sequence[Anchor]) -> list[float]:
    """Residuals of each anchor's rows when the other anchors alone move its factors; none for a single anchor."""
    found: list[float] = []
    for anchor in anchors if len(anchors) > 1 else ():
        others = [a for a in anchors if a != anchor]
        factors = _moved(here, there, anchor.there, others)
        found += [math.log(here.model.predict_with(r, *factors) / r.latency_ms) for r in here.own(anchor.here)]
    return found


def scaled(base: Recipe, *, compute: float, memory: float, why: str) -> Recipe:
    """Another device's factors times ratios of specifications."""

    def cook(groups: Groups) -> Found:
        found = base(groups)
        basis = found.basis.replace("this device", "that one")
        return replace(
            found,
            factors=(found.factors[0] + math.log(compute), found.factors[1] + math.log(memory)),
            rows=(),
            sigma=math.hypot(found.sigma, _UNTESTED_SIGMA),
            median_error=None,
            basis=f"{why}: computing x {compute:g}, memory x {memory:g}; {basis}",
            extrapolated=True,
        )

    return cook


_PIS = (Anchor(there="Pi 3B+", here="Pi 3+"), Anchor(there="Pi 4", here="Pi 4"))
_PI5 = (Anchor(there="Pi 5", here="Pi 5"),)
_NEON = tuple(Anchor(there=name, here=name) for name in ("Pi 2", "Pi 3+", "Pi 4 (32-bit)", "Pi 4"))
_ORIN = (Anchor(there="Jetson Orin Nano Super", here="Jetson Orin Nano Super"),)
_AMX = "measured on a server that has AMX too"
_OLD = "TensorFlow Lite of 2018 to 2020, before XNNPACK was its default"


def _xnnpack_from_ncnn(device: str, fp32_from: str, anchors: Sequence[Anchor]) -> dict[tuple[str, str], Recipe]:
    target = "xnnpack" if anchors is _PIS else "executorch-xnnpack"
    return {
        ("tflite", "fp32"): other_rows((target, "fp32"), ("ncnn", fp32_from), device, anchors),
        ("tflite", "int8"): other_rows((target, "int8"), ("ncnn", "int8"), device, anchors),
    }


def _own_pair(runtime: str, device: str, *, note: str = "", name: str = "tflite") -> dict[tuple[str, str], Recipe]:
    return {(name, precision): own_rows(runtime, precision, device, note=note) for precision in ("fp32", "int8")}


def _xnnpack_pixel(device: str) -> dict[tuple[str, str], Recipe]:
    return {
        ("tflite", "fp32"): own_rows("xnnpack", "fp32", device),
        ("tflite", "int8"): other_rows(("xnnpack", "int8"), ("xnnpack", "fp32"), device, _NEON),
    }


def _jetson(device: str, precisions: Sequence[str]) -> dict[tuple[str, str], Recipe]:
    """FP16 from own rows; other precisions in the ratio that the Orin Nano has."""
    found = {("tensorrt", "fp16"): own_rows("tensorrt", "fp16", device)}
    for precision in precisions:
        found["tensorrt", precision] = other_rows(("tensorrt", precision), ("tensorrt", "fp16"), device, _ORIN)
    return found


def _scaled_all(
    recipes: dict[tuple[str, str], Recipe], *, compute: float, memory: float, why: str
) -> dict[tuple[str, str], Recipe]:
    return {key: scaled(recipe, compute=compute, memory=memory, why=why) for key, recipe in recipes.items()}


_AGX_ORIN = "from Orin Nano Super by specification (2048 cores at 1.30 GHz against 1024 at 1.02; 205 GB/s against 102)"
_XAVIER_NX = "from AGX Xavier by specification (384 cores at 1.10 GHz against 512 at 1.38; 60 GB/s against 137)"

#: For each profile: (runtime we ship, precision) -> where its figures come from.
RECIPES: dict[str, dict[tuple[str, str], Recipe]] = {
    "raspberry-pi-zero-2w": _xnnpack_from_ncnn("Pi Zero 2W", "fp32", _PIS),
    "raspberry-pi-3": _own_pair("xnnpack", "Pi 3+", note="a 32-bit system"),
    "raspberry-pi-4": _own_pair("xnnpack", "Pi 4"),
    "raspberry-pi-5": _own_pair("executorch-xnnpack", "Pi 5", note="taken as 4 threads, which the source does not say"),
    "android-mid-range": _xnnpack_from_ncnn("Snapdragon 765G", "fp16", _PI5),
    "android-high-end": _xnnpack_from_ncnn("Snapdragon 8 Gen 2", "fp16", _PI5),
    "pixel": _xnnpack_pixel("Pixel"),
    "pixel-2": _xnnpack_pixel("Pixel 2"),
    "pixel-3": _own_pair("tflite", "Pixel 3", note=_OLD),
    "pixel-3a": _xnnpack_pixel("Pixel 3a"),
    "pixel-4": _own_pair("tflite", "Pixel 4", note=_OLD),
    "jetson-nano": _jetson("Jetson Nano", ("fp32",)),
    "jetson-xavier-nx": _scaled_all(
        _jetson("Jetson AGX Xavier", ("fp32", "int8")), compute=0.6, memory=0.44, why=_XAVIER_NX
    ),
    "jetson-orin-nano": _own_pair("tensorrt", "Jetson Orin Nano Super", name="tensorrt")
    | {("tensorrt", "fp16"): own_rows("tensorrt", "fp16", "Jetson Orin Nano Super")},
    "jetson-agx-orin": _scaled_all(
        _own_pair("tensorrt", "Jetson Orin Nano Super", name="tensorrt")
        | {("tensorrt", "fp16"): own_rows("tensorrt", "fp16", "Jetson Orin Nano Super")},
        compute=2.55, memory=2.0, why=_AGX_ORIN,
    ),
    "x86-avx2": _own_pair("litert", "x86 AVX2") | _own_pair("onnxruntime", "x86 AVX2", name="onnxruntime"),
    "x86-avx512-vnni": _own_pair("litert", "x86 AVX-512 VNNI", note=_AMX)
    | _own_pair("onnxruntime", "x86 AVX-512 VNNI", note=_AMX, name="onnxruntime"),
}  # fmt: skip
#: LiteRT unpacks FP16 weights to FP32 when it loads the file: a smaller file at the same speed.
_SAME_AS = {("tflite", "fp16"): ("tflite", "fp32")}


# --------------------------------------------------------------------------------------------------- cost tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """One cost table to write, and how it was found."""

    runtime: str
    precision: str
    found: Found
    values: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)


def _table(runtime: str, precision: str, found: Found) -> Table:
    shared, how = found.model.shared, found.model.settings
    compute, memory = found.factors
    fixed = -compute if how.fixed_costs_scale else 0.0
    rates = {c: shared["pointwise"] + (shared[c] if c != "pointwise" else 0.0) + compute for c in lm.CLASSES}
    values = {f"{c}_gmacs": math.exp(rates[c]) for c in ("conv", "pointwise", "depthwise", "dense")} | {
        "bandwidth_gb_s": math.exp(shared["bandwidth"] + memory),
        "operator_us": math.exp(shared["operator"] + fixed),
        "inference_us": math.exp(shared["inference"] + fixed),
        "compute_scaling": min(1.0, max(0.0, shared["compute_scaling"])),
        "memory_scaling": min(1.0, max(0.0, shared["memory_scaling"])),
        "bytes_per_element": how.bytes_per_element,
        "fused_classes": list(how.fused_classes),
    }
    fit = {
        "rows": len(found.rows),
        "runtime": found.runtime,
        "median_error": found.median_error,
        "interval_factor": interval_factor(found.sigma, len(found.rows)),
        "extrapolated": found.extrapolated,
        "basis": found.basis,
    }
    return Table(
        runtime=runtime,
        precision=precision,
        found=found,
        values={key: _rounded(value) for key, value in values.items() if value != []},
        fit={key: _rounded(value) for key, value in fit.items() if value is not None},
    )


def interval_factor(sigma: float, rows: int) -> float:
    """The 95 % interval's factor: Student's quantile, since few rows tell little of their own spread."""
    return math.exp(float(stats.t.ppf(0.975, rows + _SHRINKAGE)) * sigma)


def _rounded(value: Any) -> Any:
    # Below a thousandth it is a zero that the solver did not reach.
    return (0.0 if abs(value) < 1e-3 else float(f"{value:.3g}")) if isinstance(value, float) else value


def tables_of(profile: str, groups: Groups) -> list[Table]:
    """The cost tables of a profile, by runtime and precision."""
    made = {key: _table(*key, recipe(groups)) for key, recipe in RECIPES[profile].items()}
    for copy, original in _SAME_AS.items():
        if original in made:
            source = made[original]
            basis = f"as {original[1]}: weights are unpacked when the file is loaded; {source.fit['basis']}"
            made[copy] = replace(source, precision=copy[1], fit=source.fit | {"basis": basis})
    return [made[key] for key in sorted(made)]


def _toml(tables: Sequence[Table]) -> str:
    lines = [MARKER]
    for table in tables:
        head = f"cost.{table.runtime}.{table.precision}"
        lines += ["", f"[{head}]", *(f"{key} = {_literal(value)}" for key, value in table.values.items())]
        lines += ["", f"[{head}.fit]", *(f"{key} = {_literal(value)}" for key, value in table.fit.items())]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def write_profile(path: Path, tables: Sequence[Table]) -> None:
    """Replace everything from the marker on."""
    head = path.read_text(encoding="utf-8").partition(MARKER)[0].rstrip()
    path.write_text(f"{head}\n\n{_toml(tables)}", encoding="utf-8")


def is_current(path: Path, tables: Sequence[Table]) -> bool:
    """Whether a profile says what the fit gives; numbers may differ by 2 %, as between versions of a solver."""
    return _close(tomllib.loads(path.read_text(encoding="utf-8")).get("cost"), tomllib.loads(_toml(tables))["cost"])


def stale_profiles(groups: Groups) -> list[str]:
    """The names of built-in profiles that do not say what the fit gives."""
    return [name for name in RECIPES if not is_current(PROFILES / f"{name}.toml", tables_of(name, groups))]


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE**2)
    return bool(a == b)


# -------------------------------------------------------------------------------------------------------- tables


def _percent(value: float | None) -> str:
    return "not tested" if value is None else f"{100 * value:.0f} %"


def profile_lines(profile: str, tables: Sequence[Table]) -> list[str]:
    """Rows of the table of profiles: one for each runtime and precision."""
    lines = []
    for table in tables:
        if (table.runtime, table.precision) in _SAME_AS:
            continue
        found = table.found
        inside = _median_error(math.log(found.predict(row) / row.latency_ms) for row in _same_runtime(table))
        cells = (
            profile, f"{table.runtime} {table.precision}", f"{len(found.rows)} {found.runtime if found.rows else ''}",
            _percent(inside), _percent(found.median_error), f"{interval_factor(found.sigma, len(found.rows)):.2f}",
            "yes" if found.extrapolated else "no",
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.strip() for cell in cells) + " |")
    return lines


def _same_runtime(table: Table) -> list[Row]:
    """The rows that the table was fitted to itself: rows of other runtimes are no test of it in this sense."""
    kernels = (
        {table.runtime, "xnnpack", "litert", "executorch-xnnpack"} if table.runtime == "tflite" else {table.runtime}
    )
    return [row for row in table.found.rows if row.runtime in kernels and row.precision == table.precision]


def group_lines(groups: Groups) -> list[str]:
    """Rows of the table of shared models."""
    lines = []
    for group in groups.made():
        inside = _median_error(group.model.residual(row) for row in group.rows)
        cells = (
            group.name, str(len(group.rows)), str(len({row.device for row in group.rows})),
            str(len({row.network for row in group.rows})), _percent(inside),
            _percent(_median_error(group.left_out.values())), _percent(_median_error(group.family_left_out.values())),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def coverage(groups: Groups) -> tuple[int, int]:
    """How many left-out rows of the runtimes that profiles stand on lie within their intervals, and of how many.

    Each row counts twice where it can: with its model left out, and with its family left out.
    """
    inside = total = 0
    for group in groups.made():
        if group.runtime == "ncnn":  # only the factors of its devices are used, never its estimates
            continue
        for (device, _, _), residual in [*group.left_out.items(), *group.family_left_out.items()]:
            inside += abs(residual) <= math.log(interval_factor(group.sigma(device), len(group.own(device))))
            total += 1
    return inside, total


def report(all_tables: dict[str, list[Table]], groups: Groups) -> str:
    """Both tables in Markdown."""
    lines = [
        "| profile | runtime | rows | in-sample | model left out | interval factor | extrapolated |",
        "|---|---|---|---|---|---|---|",
        *(line for profile, tables in all_tables.items() for line in profile_lines(profile, tables)),
        "",
        "| shared model | rows | devices | models | in-sample | model left out | family left out |",
        "|---|---|---|---|---|---|---|",
        *group_lines(groups),
        "",
        "Of {1} left-out rows (ncnn's apart; by model and by family), {0} lie within the interval.".format(
            *coverage(groups)
        ),
    ]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """Put the tables between the page's markers."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(PAGE_MARKERS[0])
    _, _, after = rest.partition(PAGE_MARKERS[1])
    PAGE.write_text(f"{before}{PAGE_MARKERS[0]}\n{text}\n{PAGE_MARKERS[1]}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit and write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say whether the files are current; write nothing")
    options = parser.parse_args(arguments)
    groups = Groups(lm.read_all())
    if options.check:
        stale = stale_profiles(groups)
        print(f"not current: {', '.join(stale)}" if stale else "all profiles are current")
        return 1 if stale else 0
    tables = {profile: tables_of(profile, groups) for profile in RECIPES}
    for name, made in tables.items():
        write_profile(PROFILES / f"{name}.toml", made)
    text = report(tables, groups)
    write_page(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
