"""The command lines of ``trtexec`` and what it prints and exports: the right figures, or none."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompile.errors import DeviceError
from edgecompile.jetson.trtexec import (
    Layer,
    LayerTensor,
    LayerTime,
    Stats,
    build_command,
    infer_command,
    lines,
    parse_layers,
    parse_log,
    parse_outputs,
    parse_profile,
    parse_times,
    run_command,
)
from edgecompile.jetson.versions import Capabilities, Version, capabilities
from edgecompile.types import Precision
from tests.jetson import logs

V82, V85, V86 = (capabilities(Version(8, minor)) for minor in (2, 5, 6))
V103, V1013, V11 = (capabilities(Version(*at)) for at in ((10, 3), (10, 13), (11, 0)))
LOGS = (logs.XAVIER_NX, logs.AGX_XAVIER, logs.AGX_ORIN)


# ------------------------------------------------------------------------------------------------ command lines


def built(caps: Capabilities, precision: Precision = "fp16", **more: Any) -> list[str]:
    values: dict[str, Any] = {
        "trtexec": "/usr/src/tensorrt/bin/trtexec",
        "onnx": "/tmp/m x.onnx",
        "engine": "e",
        "timing_cache": None,
    }
    return build_command(caps, precision=precision, **(values | more))


def test_a_build_on_jetpack_4() -> None:
    assert built(V82, "int8", timing_cache=PurePosixPath("/t/cache"), workspace_mib=256, layer_info="/t/l.json") == [
        "/usr/src/tensorrt/bin/trtexec", "--onnx=/tmp/m x.onnx", "--saveEngine=e", "--buildOnly",
        "--timingCacheFile=/t/cache", "--fp16", "--int8", "--workspace=256", "--exportLayerInfo=/t/l.json",
        "--profilingVerbosity=detailed",
    ]  # fmt: skip


def test_workspaces_by_version() -> None:
    assert "--workspace=1024" in built(V82), "its default of 16 MiB would leave out many kernels"
    assert not any("workspace" in word for word in built(V85))
    assert "--memPoolSize=workspace:512" in built(V85, workspace_mib=512)
    with pytest.raises(DeviceError, match="workspace of 0 MiB"):
        built(V85, workspace_mib=0)


def test_precisions_by_version() -> None:
    flags = {"--fp16", "--int8", "--stronglyTyped"}

    def precision(caps: Capabilities, precision: Precision, **more: Any) -> set[str]:
        return set(built(caps, precision, **more)) & flags

    assert [precision(V86, p) for p in ("fp32", "fp16", "int8")] == [set(), {"--fp16"}, {"--fp16", "--int8"}]
    assert precision(V103, "int8") == {"--fp16", "--int8"}
    assert precision(V103, "int8", strongly_typed=True) == {"--stronglyTyped"}
    assert precision(V1013, "fp16") == {"--stronglyTyped"}
    assert precision(V1013, "fp16", strongly_typed=False) == {"--fp16"}
    assert [precision(V11, p) for p in ("fp32", "fp16", "int8")] == [set(), set(), set()]
    assert precision(V11, "fp32", strongly_typed=False) == set()


def test_what_a_version_cannot_do_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"8\.6\.0 cannot take the types"):
        built(V86, strongly_typed=True)
    with pytest.raises(DeviceError, match=r"11\.0\.0 computes in the types of the graph"):
        built(V11, strongly_typed=False)


def test_layer_info_is_left_out_where_it_is_an_unknown_option() -> None:
    assert built(capabilities(Version(8, 0, 1)), layer_info="l") == built(capabilities(Version(8, 0, 1)))


def ran(caps: Capabilities, percentiles: Sequence[float] = (99, 90), **more: Any) -> list[str]:
    files: dict[str, Any] = {"times": "t", "profile": "p", "layer_info": None} | more
    return run_command(
        caps,
        trtexec="trtexec",
        engine="e",
        warmup_ms=500,
        duration_s=3,
        iterations=50,
        percentiles=percentiles,
        **files,
    )


def test_a_run_up_to_10_names_what_11_does_by_itself() -> None:
    common = [
        "--warmUp=500",
        "--duration=3",
        "--iterations=50",
        "--percentile=90,99",
        "--exportTimes=t",
        "--exportProfile=p",
    ]
    assert ran(V103) == [
        "trtexec", "--loadEngine=e", "--useSpinWait", "--useCudaGraph", "--noDataTransfers", "--separateProfileRun",
        *common,
    ]  # fmt: skip
    assert ran(V11) == ["trtexec", "--loadEngine=e", "--separateProfileRun", *common]


def test_a_run_without_profile_or_with_one_percentile() -> None:
    assert "--separateProfileRun" not in ran(V103, profile=None)
    assert "--percentile=99" in ran(V82)
    assert "--percentile=90,99.9" in ran(V85, percentiles=(99.9, 90, 90))
    assert not any("percentile" in word for word in ran(V85, percentiles=()))


# --------------------------------------------------------------------------------------------------------- logs


def test_a_log_of_8_2() -> None:
    log = parse_log(logs.XAVIER_NX)
    assert (log.version, log.outcome, log.throughput_qps) == (Version(8, 2, 1), None, 27207)
    assert log.gpu_compute == Stats(
        min_ms=0.554932, max_ms=0.58374, mean_ms=0.564682, median_ms=0.564087, percentiles=((99, 0.578552),)
    )
    assert log.latency is not None
    assert log.latency.median_ms == 0.572998
    assert log.enqueue_bound
    assert log.warnings == (
        "Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.",
    )


def test_a_log_of_8_4() -> None:
    log = parse_log(logs.AGX_XAVIER)
    assert (log.version, log.outcome, log.throughput_qps) == (Version(8, 4, 0), "passed", 41087.7)
    assert log.gpu_compute is not None
    assert log.gpu_compute.median_ms == 0.388443
    assert not log.enqueue_bound
    assert log.unstable_percent is None


def test_a_log_of_jetpack_6() -> None:
    log = parse_log(logs.AGX_ORIN)
    assert log.latency is not None
    assert [log.latency.percentile(p) for p in (50, 90, 95, 99, 80)] == [4.83752, 4.84772, 4.85034, 4.85547, None]
    assert log.gpu_compute is None
    assert log.unstable_percent == 5.25


def test_failed_outweighs_passed() -> None:
    assert parse_log(logs.CUDA_NOT_READY).outcome == "failed"
    assert parse_log(logs.AGX_XAVIER + logs.CUDA_NOT_READY).outcome == "failed"


def test_two_runs_in_one_log_give_no_figures() -> None:
    both = parse_log(logs.XAVIER_NX + logs.AGX_XAVIER)
    assert (both.version, both.throughput_qps, both.latency, both.gpu_compute) == (None, None, None, None)
    assert parse_log(logs.XAVIER_NX * 2) == parse_log(logs.XAVIER_NX)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("median = 4.83752 ms", "median = 4.8"),
        ("median = 4.83752 ms", "median = inf ms"),
        ("median = 4.83752 ms", "median = nan ms"),
        ("median = 4.83752 ms", "median = -4.83752 ms"),
        ("median = 4.83752 ms", "median = 9.83752 ms"),
        ("percentile(99%) = 4.85547 ms", "percentile(99%) = 4.85"),
        ("percentile(99%) = 4.85547 ms", "percentile(99%) = 48.5547 ms"),
        ("[I] Latency:", "[I] Host Latency:"),
        ("[I] Latency:", "[W] Latency:"),
    ],
)
def test_a_broken_line_gives_none(old: str, new: str) -> None:
    assert logs.AGX_ORIN.count(old) == 1
    assert parse_log(logs.AGX_ORIN.replace(old, new)).latency is None


def test_figures_may_have_an_exponent() -> None:
    log = parse_log("[I] Throughput: 1.2e+06 qps\n")
    assert log.throughput_qps == 1.2e6


def test_explanations_of_the_metrics_are_no_figures() -> None:
    text = "[02/27/2024-18:35:51] [V] GPU Compute Time: the GPU latency to execute the kernels for a query.\n"
    assert parse_log(text + logs.XAVIER_NX) == parse_log(logs.XAVIER_NX)


def right_or_none(text: str, whole: str) -> None:
    """Every figure that is read from ``text`` is the one of ``whole``."""
    found, expected = parse_log(text), parse_log(whole)
    for name in ("version", "outcome", "throughput_qps", "unstable_percent"):
        assert getattr(found, name) in (None, getattr(expected, name)), name
    for name in ("latency", "gpu_compute"):
        stats, right = getattr(found, name), getattr(expected, name)
        if stats is not None:
            assert (stats.min_ms, stats.max_ms, stats.mean_ms) == (right.min_ms, right.max_ms, right.mean_ms)
            assert stats.median_ms == right.median_ms
            assert set(stats.percentiles) <= set(right.percentiles)


@pytest.mark.parametrize("log", LOGS)
def test_a_log_cut_anywhere(log: str) -> None:
    for at in range(len(log)):
        right_or_none(log[:at], log)
        right_or_none(log[at:], log)


NOISE = st.text(st.characters(codec="ascii", exclude_characters="\x1b"), max_size=12) | st.sampled_from(
    ["7", "\n", "[E] x\n", "ms", "1e9", "\r", "[I] Throughput: ", " qps\n", "0.1 ms, max = "]
)


@settings(max_examples=300)
@given(st.sampled_from(LOGS), st.data(), NOISE)
def test_lines_of_others_within_a_log(log: str, data: st.DataObject, noise: str) -> None:
    at = data.draw(st.integers(0, len(log)))
    right_or_none(log[:at] + "\n" + noise + "\n" + log[at:], log)


@settings(max_examples=100)
@given(
    st.sampled_from(LOGS), st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["\x1b[32m", "\x1b[0m", "\x1b[1;31m"])))
)
def test_colours_and_line_ends_change_nothing(log: str, colours: list[tuple[float, str]]) -> None:
    text = log
    for where, code in sorted(colours, reverse=True):
        at = int(where * len(log))
        text = text[:at] + code + text[at:]
    assert parse_log(text) == parse_log(log)
    assert parse_log(text.replace("\n", "\r\n")) == parse_log(log)


@settings(max_examples=300)
@given(st.text())
def test_any_text_is_a_log(text: str) -> None:
    log = parse_log(text)
    assert log.latency is None
    assert log.throughput_qps is None


def test_lines() -> None:
    assert lines("a\x1b[1mb\r\nc\r\r\nd\re  \n") == ["ab", "c", "d", "e", ""]


# -------------------------------------------------------------------------------------------------------- times

ROW = (
    '{{ "startEnqMs" : {0}, "endEnqMs" : {0}, "startH2dMs" : {0}, "endH2dMs" : {0}, "startComputeMs" : {0}, '
    '"endComputeMs" : {0}, "startD2hMs" : {0}, "endD2hMs" : {0}, "h2dMs" : 0, "computeMs" : {1}, "d2hMs" : 0, '
    '"latencyMs" : {1} }}'
)


def exported(rows: list[tuple[float, float]]) -> str:
    return "[\n  " + "\n, ".join(ROW.format(start, ms) for start, ms in rows) + "\n]\n"


def test_times_are_the_gpus() -> None:
    assert parse_times(exported([(1, 1.5), (2.5, 1.25)])) == [1.5, 1.25]


def test_a_time_may_be_too_short_to_show() -> None:
    assert parse_times(exported([(1, 0)])) == [0.0]


def test_rows_of_the_warm_up_are_dropped() -> None:
    rows = [(0.5, 9.0), (199.9, 8.0), (200.0, 1.5), (201.6, 1.25)]
    assert parse_times(exported(rows), warmup_ms=200) == [1.5, 1.25]
    assert parse_times(exported(rows)) == [9.0, 8.0, 1.5, 1.25]
    with pytest.raises(DeviceError, match="2 runs, none of them after the warm-up of 200 ms"):
        parse_times(exported(rows[:2]), warmup_ms=200)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[1]", "[[]]", exported([(1, 1)])[:-4],
        exported([(1, 1)]).replace('"computeMs" : 1', '"x" : 1'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : 1' + "0" * 400),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : -1'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : NaN'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : inf'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : "1"'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : true'),
        exported([(1, 1)]).replace('"computeMs" : 1', '"computeMs" : 1e999'),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_broken_times_are_refused(text: str) -> None:
    with pytest.raises(DeviceError):
        parse_times(text)


def test_times_cut_anywhere_are_refused() -> None:
    text = exported([(1, 1.5), (2.5, 1.25)]).strip()
    for at in range(len(text)):
        with pytest.raises(DeviceError):
            parse_times(text[:at])


# ------------------------------------------------------------------------------------------------------ profiles


def profile(rows: list[tuple[str, float, float, float | None, float]], line: str = "\n") -> str:
    text = f'[{line} {{ "count" : 162 }}'
    for name, total, average, median, percent in rows:
        middle = "" if median is None else f', "medianMs" : {median:g}'
        text += f'{line}, {{ "name" : "{name}", "timeMs" : {total:g}, "averageMs" : {average:g}{middle}'
        text += f', "percentage" : {percent:g} }}'
    return text + line + "]" + line


def test_a_profile() -> None:
    text = '[ { "count" : 162 }, { "name" : "conv0", "timeMs" : 1.4, "averageMs" : 0.009, "medianMs" : 0.009, '
    text += '"percentage" : 1.2 } ]'
    expected = LayerTime(name="conv0", total_ms=1.4, average_ms=0.009, median_ms=0.009, percent=1.2)
    assert parse_profile(text) == (expected,)


def test_a_profile_before_8_5_has_no_medians() -> None:
    layers = parse_profile(profile([("a", 1, 0.1, None, 40), ("b", 2, 0.2, None, 60)]))
    assert [(layer.name, layer.median_ms, layer.percent) for layer in layers] == [("a", None, 40), ("b", None, 60)]


# (A name that looks like a figure's key is refused: a broken entry looks the same.)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\x1b"), max_size=30).filter(
    lambda name: '"timeMs"' not in name and '"percentage"' not in name
) | st.sampled_from(['say "hi"', "{ForeignNode[/1/a.../1/b]}", "a\\nb", '", "', '" }', "} ]", '\\"', 'x", "y" : 3 }'])
FIGURES = st.floats(0, 1e6).map(lambda f: float(f"{f:g}"))


@settings(max_examples=200)
@given(
    st.lists(st.tuples(NAMES, FIGURES, FIGURES, FIGURES | st.none(), FIGURES), max_size=6),
    st.sampled_from(["\n", " ", "\r\n"]),
)
def test_names_may_hold_anything(rows: list[tuple[str, float, float, float | None, float]], line: str) -> None:
    found = parse_profile(profile(rows, line))
    assert [(f.name, f.total_ms, f.average_ms, f.median_ms, f.percent) for f in found] == rows


def test_a_profile_cut_anywhere_is_refused() -> None:
    text = profile([('a "b" c', 1.25, 0.125, 0.12, 40), ("d", 2, 0.2, 0.25, 60)]).strip()
    for at in range(len(text)):
        with pytest.raises(DeviceError):
            parse_profile(text[:at])


@pytest.mark.parametrize("word", ["timeMs", "averageMs", "percentage"])
@pytest.mark.parametrize("figure", ["nan", "inf", "-1", "", "1.2.3", '"1"'])
def test_a_broken_figure_does_not_lend_its_layers_name_to_the_next(word: str, figure: str) -> None:
    text = profile([("a", 7, 7, 7, 7), ("b", 2, 0.2, 0.25, 60)]).replace(f'"{word}" : 7', f'"{word}" : {figure}', 1)
    with pytest.raises(DeviceError, match="cannot be read"):
        parse_profile(text)


def test_a_long_broken_profile_is_refused_in_time() -> None:
    rows = [(f"layer {i}", 1.0, 0.1, 0.1, 0.1) for i in range(3000)]
    with pytest.raises(DeviceError):
        parse_profile(profile(rows)[:-20])
    with pytest.raises(DeviceError):
        parse_profile(profile(rows).replace('"timeMs"', '"time"'))


# -------------------------------------------------------------------------------------------------------- layers


def test_layers_by_name() -> None:
    text = '{"Layers": ["Conv__25 + Relu","MaxPool2d"],"Bindings": ["x:0","z:0"]}'
    assert parse_layers(text) == (Layer(name="Conv__25 + Relu"), Layer(name="MaxPool2d"))


def test_layers_in_detail() -> None:
    tensor = {"Name": "x", "Location": "Device", "Dimensions": [1, 3, 32, 32], "Format/Datatype": "Half NCHW"}
    layer = {
        "Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": ["y"], "TacticValue": "0x1f",
        "Metadata": "[ONNX Layer: conv1]", "Weights": {"Type": "Half", "Count": 9},
    }  # fmt: skip
    assert parse_layers(json.dumps({"Layers": [layer], "Bindings": []})) == (
        Layer(
            name="conv",
            layer_type="CaskConvolution",
            inputs=(LayerTensor(name="x", shape=(1, 3, 32, 32), format="Half NCHW"),),
            outputs=(LayerTensor(name="y"),),
            tactic="0x1f",
            metadata="[ONNX Layer: conv1]",
        ),
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"Format/DataType": "Int8 NC/4HW4"}, "Int8 NC/4HW4"),
        ({"DataType": "Float", "Format": "Row major linear FP32 format (kLINEAR)"},
         "Float Row major linear FP32 format (kLINEAR)"),
        ({"Dimensions": "?"}, None),
    ],
)  # fmt: skip
def test_formats_by_version(entry: dict[str, str], expected: str | None) -> None:
    layer = {"Name": "l", "Outputs": [{"Name": "y"} | entry]}
    (found,) = parse_layers(json.dumps({"Layers": [layer], "I/O Tensors": []}))
    assert found.outputs == (LayerTensor(name="y", format=expected),)


def test_a_mean_that_was_summed_in_32_bits() -> None:
    text = "[I] Latency: min = 0.5 ms, max = 0.501 ms, mean = 0.499 ms, median = 0.5 ms\n"
    assert parse_log(text).latency is not None
    assert parse_log(text.replace("0.499", "0.0499")).latency is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": {}}', '{"Layers": [{}]}', '{"Layers": [3]}', '{"Layers": ["a"']
)
def test_broken_layers_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="layer information"):
        parse_layers(text)


# ------------------------------------------------------------------------------------------------------ outputs


def written(tensors: list[tuple[str, tuple[int, ...], list[float]]], line: str = "\n") -> str:
    """As ``trtexec`` writes ``--exportOutput``: six digits, names as they are."""
    parts = [
        f'{{ "name" : "{name}"\n  , "dimensions" : "{"x".join(map(str, shape))}"\n'
        f'  , "values" : [ {", ".join(f"{value:g}" for value in values)} ]\n  }}\n'
        for name, shape, values in tensors
    ]
    return ("[\n  " + ", ".join(parts) + "]\n").replace("\n", line)


def test_outputs_by_name() -> None:
    found = parse_outputs(written([("logits", (1, 3), [0.5, -1e-7, 12.25]), ('a "b"', (2,), [1, 2])]))
    assert found["logits"].shape == (1, 3)
    assert found["logits"].values == (0.5, -1e-7, 12.25)
    assert found['a "b"'].values == (1.0, 2.0)


def test_values_that_are_not_finite() -> None:
    text = written([("x", (3,), [1, 1, 1])]).replace("[ 1, 1, 1 ]", "[ nan, -inf, -nan ]")
    values = parse_outputs(text)["x"].values
    assert str(values) == "(nan, -inf, nan)"


@given(
    st.lists(
        st.tuples(
            NAMES.filter(lambda name: "\n" not in name and "\r" not in name and '" ' not in name),
            st.lists(st.integers(1, 3), max_size=3).map(tuple),
        ),
        min_size=1, max_size=4, unique_by=lambda pair: pair[0],
    ),
    st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_any_outputs_come_back(tensors: list[tuple[str, tuple[int, ...]]], line: str) -> None:
    given_ = [(name, shape, [i / 8 for i in range(math.prod(shape))]) for name, shape in tensors]
    found = parse_outputs(written(given_, line))
    assert [(name, f.shape, list(f.values)) for name, f in found.items()] == given_


def test_outputs_cut_anywhere_are_refused() -> None:
    text = written([("a", (2,), [0.125, 0.25]), ("b", (1, 2), [1, 2])]).strip()
    for at in range(len(text)):
        with pytest.raises(DeviceError):
            parse_outputs(text[:at])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '[ { "name" : "x" } ]', written([("x", (2,), [1])]), written([("x", (1,), [1])] * 2)]
)
def test_broken_outputs_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="outputs that trtexec wrote"):
        parse_outputs(text)


def test_the_command_that_runs_once_on_inputs() -> None:
    command = infer_command(trtexec="t", engine="e", inputs=[("input:0", "a/0.bin"), ("b", "a/1.bin")], output="o.json")
    assert "--loadInputs='input:0':a/0.bin,'b':a/1.bin" in command
    with pytest.raises(DeviceError, match="cannot be told of an input named"):
        infer_command(trtexec="t", engine="e", inputs=[("it's", "a")], output="o")
