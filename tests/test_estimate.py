"""Estimates against the published rows they were fitted to, and what an estimate says of itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import fit_profiles, published_models
from benchmarks import latency_model as lm
from edgecompile import estimate, profiles
from edgecompile.errors import InputError
from edgecompile.types import OperatorCost, Precision, RuntimeName

MOBILENET = published_models.operators("mobilenet_v2", 224)

#: Profile, runtime we ship, precision -> device and runtime of the rows that its table was fitted to.
FITTED: dict[tuple[str, RuntimeName, Precision], tuple[str, str]] = {
    ("raspberry-pi-3", "tflite", "fp32"): ("Pi 3+", "xnnpack"),
    ("raspberry-pi-3", "tflite", "int8"): ("Pi 3+", "xnnpack"),
    ("raspberry-pi-4", "tflite", "fp32"): ("Pi 4", "xnnpack"),
    ("raspberry-pi-4", "tflite", "int8"): ("Pi 4", "xnnpack"),
    ("pixel", "tflite", "fp32"): ("Pixel", "xnnpack"),
    ("pixel-2", "tflite", "fp32"): ("Pixel 2", "xnnpack"),
    ("pixel-3", "tflite", "fp32"): ("Pixel 3", "tflite"),
    ("pixel-3", "tflite", "int8"): ("Pixel 3", "tflite"),
    ("pixel-3a", "tflite", "fp32"): ("Pixel 3a", "xnnpack"),
    ("pixel-4", "tflite", "fp32"): ("Pixel 4", "tflite"),
    ("pixel-4", "tflite", "int8"): ("Pixel 4", "tflite"),
    ("jetson-nano", "tensorrt", "fp16"): ("Jetson Nano", "tensorrt"),
    ("jetson-orin-nano", "tensorrt", "fp16"): ("Jetson Orin Nano Super", "tensorrt"),
    ("jetson-orin-nano", "tensorrt", "fp32"): ("Jetson Orin Nano Super", "tensorrt"),
    ("jetson-orin-nano", "tensorrt", "int8"): ("Jetson Orin Nano Super", "tensorrt"),
}


@pytest.mark.parametrize("key", FITTED, ids=lambda key: "-".join(key))
def test_estimates_come_near_the_published_rows(key: tuple[str, RuntimeName, Precision]) -> None:
    name, runtime, precision = key
    device, source = FITTED[key]
    rows = [r for r in lm.read_all() if (r.device, r.runtime, r.precision) == (device, source, precision)]
    profile = profiles.load(name)
    table = profile.costs(runtime, precision)
    assert table is not None
    assert (table.fit.rows, table.fit.runtime) == (len(rows), source)
    for row in rows:
        costs = published_models.operators(row.model, row.resolution)
        found = estimate.latency(costs, profile, runtime=runtime, precision=precision, threads=row.threads)
        assert found.value_ms == pytest.approx(row.latency_ms, rel=0.25)
        assert found.ci_low_ms <= row.latency_ms <= found.ci_high_ms


@pytest.fixture(scope="module")
def groups() -> fit_profiles.Groups:
    """All fits, made once."""
    return fit_profiles.Groups(lm.read_all())


def test_the_profiles_are_what_the_fit_gives(groups: fit_profiles.Groups) -> None:
    assert fit_profiles.stale_profiles(groups) == []
    assert set(fit_profiles.RECIPES) == set(PROFILES)


def test_a_stale_profile_is_found(tmp_path: Path, groups: fit_profiles.Groups) -> None:
    tables = fit_profiles.tables_of("raspberry-pi-4", groups)
    path = tmp_path / "raspberry-pi-4.toml"
    path.write_text((fit_profiles.PROFILES / path.name).read_text())
    assert fit_profiles.is_current(path, tables)
    path.write_text(path.read_text().replace("rows = 4", "rows = 5", 1))
    assert not fit_profiles.is_current(path, tables)
    fit_profiles.write_profile(path, tables)
    assert fit_profiles.is_current(path, tables)
    path.write_text(path.read_text().replace("conv_gmacs = 2.", "conv_gmacs = 3.", 1))
    assert not fit_profiles.is_current(path, tables)


def test_runtimes_are_never_mixed_in_one_fit(groups: fit_profiles.Groups) -> None:
    fit_profiles.stale_profiles(groups)
    for group in groups.made():
        assert {(row.runtime, row.precision) for row in group.rows} == {(group.runtime, group.precision)}
        assert all(len(factors) == 2 for factors in group.model.factors.values())


def test_every_profile_estimates_every_precision_it_names() -> None:
    for profile in profiles.all_profiles():
        for runtime in profile.runtimes:
            for precision in runtime.precisions:
                assert estimate.supported(profile, runtime.name, precision)
                found = estimate.latency(MOBILENET, profile, runtime=runtime.name, precision=precision)
                assert 0 < found.ci_low_ms < found.value_ms < found.ci_high_ms < math.inf


# ------------------------------------------------------------------------------------- what an estimate says of itself


def test_an_estimate_is_marked_as_one() -> None:
    pi4 = profiles.load("pi4")
    found = estimate.latency(MOBILENET, pi4, runtime="tflite", precision="fp32")
    assert (found.provenance, found.runs, found.environment) == ("estimated", 0, None)
    assert (found.device, found.runtime, found.threads, found.percentile) == ("raspberry-pi-4", "tflite", 4, 50.0)
    table = pi4.costs("tflite", "fp32")
    assert table is not None
    factor = table.fit.interval_factor
    assert (found.value_ms / found.ci_low_ms, found.ci_high_ms / found.value_ms) == pytest.approx((factor, factor))
    assert any("extrapolated: 4 rows of xnnpack fp32" in warning for warning in found.warnings)


def test_a_percentile_beyond_the_median_is_not_invented() -> None:
    found = estimate.latency(MOBILENET, profiles.load("pi4"), runtime="tflite", precision="int8", percentile=95)
    assert found.percentile == 95
    assert found.value_ms == found.median_ms
    assert any("p95 is estimated like the median" in warning for warning in found.warnings)


def test_more_threads_than_cores_count_as_all_cores() -> None:
    pi4 = profiles.load("pi4")
    one, four, eight = (
        estimate.latency(MOBILENET, pi4, runtime="tflite", precision="fp32", threads=n) for n in (1, 4, 8)
    )
    assert one.value_ms > 1.5 * four.value_ms
    assert eight.value_ms == four.value_ms
    assert eight.threads == 4
    assert any("8 threads were asked for" in warning for warning in eight.warnings)


def test_what_the_profile_does_not_know_is_refused() -> None:
    pi4 = profiles.load("pi4")
    assert not estimate.supported(pi4, "tensorrt", "fp16")
    with pytest.raises(InputError, match=r"no cost table for tensorrt fp16\n.*tflite int8"):
        estimate.latency(MOBILENET, pi4, runtime="tensorrt", precision="fp16")
    with pytest.raises(InputError, match="onnxruntime fp16"):
        estimate.latency(MOBILENET, profiles.load("x86-avx2"), runtime="onnxruntime", precision="fp16")


# --------------------------------------------------------------------------------------------------- the roofline


def operator(channels: int = 64, *, macs: int = 10**7, elements: int = 10**4, kind: str = "conv") -> OperatorCost:
    return OperatorCost(
        name="o", op_type="Conv", op_class=kind, macs=macs, weight_elements=elements,  # type: ignore[arg-type]
        input_elements=elements, output_elements=elements, in_channels=64, out_channels=channels,
    )  # fmt: skip


def one_ms(cost: OperatorCost) -> float:
    table = profiles.load("pi4").costs("tflite", "fp32")
    assert table is not None
    return estimate.operator_ms(cost, table, threads=1, tile=8)


def test_the_longer_of_computing_and_moving_counts() -> None:
    table = profiles.load("pi4").costs("tflite", "fp32")
    assert table is not None
    computing = one_ms(operator(macs=10**8, elements=1))
    assert computing == pytest.approx(100 / table.conv_gmacs + table.operator_us / 1e3)
    moving = one_ms(operator(macs=1, elements=10**6))
    assert moving == pytest.approx(3 * 4 / table.bandwidth_gb_s + table.operator_us / 1e3)
    assert one_ms(operator(macs=10**8, elements=10**6)) == pytest.approx(max(computing, moving))


def test_latency_is_a_staircase_in_channels() -> None:
    per_channel = 10**6
    steps = [one_ms(operator(n, macs=n * per_channel, elements=1)) for n in range(57, 66)]
    assert steps[:8] == pytest.approx([steps[0]] * 8)
    assert steps[8] > 1.05 * steps[7]


def test_grouped_convolutions_are_rounded_up_in_each_group() -> None:
    plain, grouped = operator(24, elements=1), replace(operator(24, elements=1), groups=4)
    assert estimate.padding(plain, 8) == 1
    assert estimate.padding(grouped, 8) == pytest.approx(8 / 6)
    depthwise = replace(operator(20, kind="depthwise"), groups=20)
    assert estimate.padding(depthwise, 8) == pytest.approx(24 / 20)


def test_classes_have_rates_of_their_own() -> None:
    assert one_ms(operator(kind="depthwise", elements=1)) > 2 * one_ms(operator(kind="pointwise", elements=1))


def test_what_the_runtime_fuses_costs_nothing() -> None:
    orin = profiles.load("jetson").costs("tensorrt", "fp16")
    assert orin is not None
    add = operator(kind="elementwise", macs=0)
    assert estimate.operator_ms(add, orin, threads=1, tile=8) == 0
    assert one_ms(add) > 0


@given(
    macs=st.integers(0, 10**9), more=st.integers(0, 10**9), elements=st.integers(0, 10**7),
    threads=st.integers(1, 8), name=st.sampled_from([p.name for p in profiles.all_profiles()]),
)  # fmt: skip
def test_more_work_never_takes_less_time(macs: int, more: int, elements: int, threads: int, name: str) -> None:
    profile = PROFILES[name]
    runtime = profile.runtimes[0]

    def ms(*costs: OperatorCost) -> float:
        return estimate.latency(
            costs, profile, runtime=runtime.name, precision=runtime.precisions[0], threads=threads
        ).value_ms

    less = operator(macs=macs, elements=elements)
    assert ms(less) <= ms(operator(macs=macs + more, elements=elements))
    assert ms(less) <= ms(operator(macs=macs, elements=2 * elements))
    assert ms(less) < ms(less, less)


PROFILES = {profile.name: profile for profile in profiles.all_profiles()}
