"""The second opinion on graphs for TensorRT: a hint where `tensorrt-rtx` is installed, and nothing where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from edgecompile import lower
from edgecompile.lower import trt_lint
from edgecompile.types import Plan
from tests.lowering import Net, samples, small_net

needs_it = pytest.mark.skipif(not trt_lint.installed(), reason="tensorrt-rtx is not installed: the tensorrt-lint extra")
INT8 = Plan(runtime="tensorrt", precision="int8")


def test_nothing_is_said_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert trt_lint.ask(tmp_path / "no.onnx") is None
    fp16 = Plan(runtime="tensorrt", precision="fp16")
    made = lower.RUNTIMES["tensorrt"].lower(small_net(tmp_path), fp16, [], tmp_path)
    assert not any("tensorrt-rtx" in note for note in made.notes)


@pytest.mark.parametrize(
    ("opinion", "words"),
    [
        (trt_lint.Opinion(version="1.7", accepted=True), "a hint: the parser of tensorrt-rtx 1.7 takes this graph"),
        (
            trt_lint.Opinion(
                version="1.7", accepted=False, refusals=(trt_lint.Refusal(op_type="Det", node="d", reason="no plugin"),)
            ),
            "a hint: the parser of tensorrt-rtx 1.7 refuses this graph at Det (d): no plugin",
        ),
    ],
)
def test_an_opinion_is_a_hint(
    opinion: trt_lint.Opinion, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(trt_lint, "ask", lambda path: asked.append(path) or opinion)
    model = small_net(tmp_path)
    made = lower.RUNTIMES["tensorrt"].lower(model, INT8, samples(model), tmp_path)
    assert words in made.notes
    # It takes strongly typed graphs only, so that it is shown the one with types.
    assert asked == [made.typed_file]


@needs_it
def test_it_takes_what_we_write_and_builds_it(tmp_path: Path) -> None:
    model = small_net(tmp_path)
    made = lower.RUNTIMES["tensorrt"].lower(model, INT8, samples(model), tmp_path)
    for file in (made.file, made.typed_file):
        assert file is not None
        opinion = trt_lint.ask(file, build_for="SM86")
        assert opinion is not None
        assert opinion.accepted
        assert (opinion.engine_bytes or 0) > 1000


@needs_it
def test_it_names_the_node_that_it_refuses(tmp_path: Path) -> None:
    net = Net()
    model = net.save(tmp_path / "det.onnx", net.add("Det", net.input("x", 1, 3, 3), name="the det"))
    opinion = trt_lint.ask(model.path)
    assert opinion is not None
    assert not opinion.accepted
    assert [(r.op_type, r.node) for r in opinion.refusals] == [("Det", "the det")]


@needs_it
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07nonsense")
    opinion = trt_lint.ask(tmp_path / "bad.onnx")
    assert opinion is not None
    assert not opinion.accepted
    assert opinion.refusals
