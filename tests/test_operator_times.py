"""Operators' times: prefixes compute what the file computes, the parts add up, and the report tells what matters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from edgecompile import execute, inspection, lower, operator_times, report, tflite_file
from edgecompile.errors import DeviceError, InputError
from edgecompile.lower import flatbuffer
from edgecompile.operator_times import Part, TimeOptions
from edgecompile.progress import Silent
from edgecompile.types import Plan, TensorSpec
from tests.lowering import Net, samples

QUICK = TimeOptions(min_runs=10, min_seconds=0.1, warmup_s=0.02)


def made(folder: Path, net: Net, *outputs: str, precision: Any = "fp32") -> Path:
    model = net.save(folder / "net.onnx", *outputs)
    return (
        lower.RUNTIMES["tflite"].lower(model, Plan(runtime="tflite", precision=precision), samples(model), folder).file
    )


def branched() -> tuple[Net, list[str]]:
    """A residual block and a second output in the middle."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 24, 24), 3, 16, stride=2))
    y = net.conv(net.add("Relu", net.conv(x, 16, 16)), 16, 16)
    z = net.add("Add", x, y)
    return net, [z, net.dense(net.add("Flatten", net.add("GlobalAveragePool", z)), 16, 5)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net, outputs = branched()
    return made(tmp_path_factory.mktemp("net"), net, *outputs)


def timed(path: Path, options: TimeOptions = QUICK) -> inspection.TfliteReport:
    found = inspection.inspect(path, input_shapes={}, time=options)
    assert isinstance(found, inspection.TfliteReport)
    return found


def printed(found: inspection.TfliteReport) -> str:
    """What is shown on 80 columns."""
    sheet = inspection.sheet(found)
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        shown = (sheet.title, sheet.facts, sheet.tensors, sheet.rows, sheet.heads, sheet.costliest, sheet.notes)
        for one in report.inspection(*shown):
            console.print(one)
    return capture.get()


# -------------------------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prefixes_compute_what_the_file_computes(precision: str, tmp_path: Path) -> None:
    net, outputs = branched()
    path = made(tmp_path, net, *outputs, precision=precision)
    points = operator_times.points_in_child({"path": str(path)})
    cuts = {str(cut): str(tmp_path / f"{cut}.tflite") for cut in points["cuts"]}
    operator_times.cut_in_child({"path": str(path), "files": cuts})
    whole = execute.open_session("tflite", path, keep_all=True)
    feed = {name: np.random.default_rng(0).normal(size=s["shape"]).astype("f4") for name, s in whole.inputs.items()}
    whole.run(feed)
    expected = {name: array for name, array, _, _ in whole.tensors()}
    assert len(cuts) > 5
    several = 0
    for prefix in cuts.values():
        session = execute.open_session("tflite", Path(prefix))
        found = session.run(dict(zip(session.inputs, feed.values(), strict=True)))
        several += len(found) > 1
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4)
    assert several >= 2  # the residual branch is live beside what is computed
    operators = len(flatbuffer.unpack(path.read_bytes()).subgraphs[0].operators)
    assert sorted([*points["cuts"], *points["folded"]]) == list(range(operators))
    assert bool(points["folded"]) == (precision == "fp16")


# ------------------------------------------------------------------------------------------------------ measuring


def test_the_parts_add_up_to_the_whole_and_the_table_shows_each(file: Path) -> None:
    found = timed(file)
    times = found.times
    assert times is not None
    assert 0.5 < times.sum_ms / times.whole_ms < 2
    assert [i for part in times.parts for i in part.operators] == [op.index for op in found.summary.operators]
    assert all(part.noise_ms >= 0 for part in times.parts)
    assert [part.share for part in times.parts] == [part.ms / times.whole_ms for part in times.parts]
    text = printed(found)
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("The costliest:") < text.index("XNNPACK takes every operator, in 1 partition.")
    assert "nothing is scaled to fit" in " ".join(text.split())
    sheet = inspection.sheet(found)
    assert [row[0] for row in sheet.rows] == [str(i) for i in range(len(times.parts))]
    assert len(sheet.costliest) == 5
    busy = replace(found, times=replace(times, other_cpus=1.5))
    assert "Other programs kept 1.5 CPUs busy" in " ".join(printed(busy).split())
    dearest = max(times.parts, key=lambda part: part.ms)
    assert sheet.costliest[0][2] == f"#{dearest.operators[0]}"


def test_an_operator_that_the_delegate_leaves_is_shown_with_its_cost(tmp_path: Path) -> None:
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 8, 8), 3, 4))
    best = net.add("ArgMax", x, axis=1, keepdims=1)
    found = timed(made(tmp_path, net, net.conv(net.add("Cast", best, to=1), 1, 2)))
    rows = {row[1]: row for row in inspection.sheet(found).rows}
    assert rows["ARG_MAX"][3] == "NO"
    assert rows["CONV_2D"][3] == "yes"
    words = " ".join(printed(found).split())
    assert "ARG_MAX" in words
    assert "works in 2 partitions; those left cost " in words


def test_a_long_graph_is_cut_coarsely_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four prefixes: two at first, and then the dearer half more finely."""
    monkeypatch.setattr(operator_times, "MOST_CUTS", 4)
    monkeypatch.setattr(operator_times, "_REFINEMENTS", 1)
    found = timed(file)
    assert found.times is not None
    assert [i for part in found.times.parts for i in part.operators] == [op.index for op in found.summary.operators]
    assert found.times.prefixes == 2
    assert len(found.times.parts) > 2
    assert 0.4 < found.times.sum_ms / found.times.whole_ms < 2.5
    assert "The graph is long" in printed(found)


def test_a_negative_difference_is_zero_within_its_noise_only() -> None:
    assert Part(operators=(0,), ms=-0.1, noise_ms=0.2, share=-0.1).shown_ms == 0
    assert Part(operators=(0,), ms=-0.1, noise_ms=0.05, share=-0.1).shown_ms == -0.1
    assert Part(operators=(0,), ms=0.1, noise_ms=0.2, share=0.1).shown_ms == 0.1


def test_measuring_has_a_time_limit(file: Path) -> None:
    with pytest.raises(DeviceError, match="did not end within"):
        timed(file, TimeOptions(timeout_s=0.1))


def test_what_cannot_be_timed_is_refused(file: Path, tmp_path: Path) -> None:
    unpacked = flatbuffer.unpack(file.read_bytes())
    code = unpacked.operatorCodes[unpacked.subgraphs[0].operators[0].opcodeIndex]
    code.customCode, code.builtinCode, code.deprecatedBuiltinCode = b"MyOwn", 32, 32
    unpacked.subgraphs[0].operators[0].builtinOptionsType = 0
    unpacked.subgraphs[0].operators[0].builtinOptions = None
    custom = tmp_path / "custom.tflite"
    custom.write_bytes(flatbuffer.pack(unpacked))
    with pytest.raises(InputError, match=r"cannot be run here.*MyOwn"):
        operator_times.measure(custom, tflite_file.describe(custom), QUICK, Silent())
    (tmp_path / "a.onnx").touch()
    with pytest.raises(InputError, match=r"--time needs a \.tflite"):
        timed(tmp_path / "a.onnx")


# ---------------------------------------------------------------------------------------------------------- names


def test_an_upper_case_ending_is_known(file: Path, tmp_path: Path) -> None:
    (tmp_path / "NET.TFLITE").write_bytes(file.read_bytes())
    found = inspection.inspect(tmp_path / "NET.TFLITE", input_shapes={})
    assert isinstance(found, inspection.TfliteReport)


def test_names_with_markup_or_control_characters_are_printed_as_they_are() -> None:
    name = "[/bold][red]a:smile:\x1b[2J"
    shown = r"[/bold][red]a:smile:\x1b[2J"
    spec = TensorSpec(name=name, shape=(1, 2), dtype="float32")
    costliest = (("1", "2 %", "#0", name, ""),)
    lines = report.inspection(
        name, ((name, name),), (("input", spec),), ((name, "1"),), (name, "count"), costliest, (name,)
    )
    face = report.Face()
    face.out = Console(width=200, highlight=False, file=None)
    with face.out.capture() as capture:
        face.print(*lines)
    assert capture.get().count(shown) >= 6
    assert "\x1b[2J" not in capture.get()
    with face.err.capture() as errors:
        face.note(name)
        face.warn(name)
        with face.stage(name):
            pass
    assert errors.get().replace("\n", "").count(shown) == 3


def test_tables_take_text_of_others() -> None:
    made_table = report.table("[/b]", title="[/c]", right=("[/b]",))
    made_table.add_row("[/d]")
    made_table.add_row(Text("styled", style="bold"))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(made_table)
    assert all(word in capture.get() for word in ("[/b]", "[/c]", "[/d]", "styled"))
