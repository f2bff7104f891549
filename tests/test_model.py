"""Models as users have them: good, old, odd, damaged and hostile."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgecompile import execute, model
from edgecompile.errors import EdgecompileError, InputError, TrustError, UnsupportedModelError
from edgecompile.model import weights
from tests.net import Project

# ------------------------------------------------------------------------------------------------- small files


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = ("y",),
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
    change: Callable[[onnx.ModelProto], None] | None = None,
    **options: Any,
) -> Path:
    """An ONNX file; outputs have no declared shape."""
    ports = {"x": [1, 3, 8, 8]} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in ports.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    for value in graph.output:
        value.type.tensor_type.shape.SetInParent()
        value.type.tensor_type.ClearField("shape")
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **options)
    if change is not None:
        change(made)
    path.write_bytes(made.SerializeToString())
    return path


RELU = helper.make_node("Relu", ["x"], ["y"], "relu")


def fails(kind: type[EdgecompileError], match: str, ref: Path | str, work: Path, **options: Any) -> EdgecompileError:
    with pytest.raises(kind, match=match) as caught:
        model.load(str(ref), work, **options)
    assert type(caught.value) is kind
    return caught.value


# ------------------------------------------------------------------------------------------------------- ONNX


def test_a_real_detector_keeps_its_names_order_and_shapes(shared_data: Path, tmp_path: Path) -> None:
    """Operator set 9, with initializers listed as inputs."""
    source = shared_data / "models/face-slim320/version-slim-320.onnx"
    made = model.load(str(source), tmp_path)
    assert [(t.name, t.shape, t.dtype) for t in made.inputs] == [("input", (1, 3, 240, 320), "float32")]
    assert [(t.name, t.shape) for t in made.outputs] == [("scores", (1, 4420, 2)), ("boxes", (1, 4420, 4))]
    prepared = onnx.load(made.path)
    assert prepared.opset_import[0].version == 13
    assert len(prepared.graph.node) < len(onnx.load(made.original_path).graph.node)
    sample = {"input": np.random.default_rng(0).normal(size=(1, 3, 240, 320)).astype(np.float32)}
    expected = execute.original(made)(sample)
    session = execute.open_session("onnxruntime", made.path)
    found = session.run(sample)
    for name in ("scores", "boxes"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_equal_input_gives_equal_bytes(project: Project, tmp_path: Path) -> None:
    first = model.load(str(project.model), tmp_path / "a")
    second = model.load(str(project.model), tmp_path / "b")
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.original_path.read_bytes() == second.original_path.read_bytes()
    assert not any(n.metadata_props or n.doc_string for n in onnx.load(first.path).graph.node)


def test_a_second_load_prepares_nothing_and_a_changed_file_all(tmp_path: Path) -> None:
    source, work = write(tmp_path / "m.onnx", [RELU]), tmp_path / "w"
    first = model.load(str(source), work)
    when = first.path.stat().st_mtime_ns
    assert model.load(str(source), work) == first
    assert first.path.stat().st_mtime_ns == when
    first.path.write_bytes(b"damaged")
    assert model.load(str(source), work) == first
    write(source, [helper.make_node("Tanh", ["x"], ["y"], "tanh")])
    assert model.load(str(source), work).sha256 != first.sha256


@pytest.mark.parametrize("number", [2**31, 2**62, -1])
@pytest.mark.parametrize("what", ["format", "operators"])
def test_a_version_that_cannot_be_is_refused(tmp_path: Path, what: str, number: int) -> None:
    def change(made: onnx.ModelProto) -> None:
        if what == "format":
            made.ir_version = number
        else:
            made.opset_import[0].version = number

    with pytest.raises(InputError, match=f"version {number} of the ONNX {what}"):
        model.load(str(write(tmp_path / "m.onnx", [RELU], change=change)), tmp_path / "w")


@pytest.mark.parametrize(("ir_version", "opset"), [(3, 7), (3, 9), (8, 11), (12, 23)])
def test_old_and_new_file_formats(tmp_path: Path, ir_version: int, opset: int) -> None:
    def change(made: onnx.ModelProto) -> None:
        made.ir_version = ir_version
        made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8]))

    add = helper.make_node("Add", ["x", "w"], ["y"])
    constants = {"w": np.ones(8, np.float32)}
    made = model.load(
        str(write(tmp_path / "m.onnx", [add], constants=constants, opset=opset, change=change)), tmp_path / "w"
    )
    assert [t.name for t in made.inputs] == ["x"]
    assert made.notes == ()
    assert onnx.load(made.path).opset_import[0].version == max(13, opset)


def test_a_dynamic_batch_becomes_one(tmp_path: Path) -> None:
    made = model.load(str(write(tmp_path / "m.onnx", [RELU], inputs={"x": ["n", 3, 8, 8]})), tmp_path / "w")
    assert made.inputs[0].shape == made.outputs[0].shape == (1, 3, 8, 8)
    assert made.notes == ("the dynamic batch of input 'x' is fixed to 1",)


def test_open_sizes_need_an_input_shape(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", [RELU], inputs={"x": ["n", 3, "h", "w"]})
    error = fails(InputError, r"'x' is open: \[1, 3, h, w\]", source, tmp_path / "w")
    assert "--input-shape 1,3,224,224" in str(error)
    made = model.load(str(source), tmp_path / "w", input_shapes=(1, 3, 32, 48))
    assert made.outputs[0].shape == (1, 3, 32, 48)
    assert model.load(str(source), tmp_path / "w", input_shapes={"x": (2, 3, 4, 4)}).inputs[0].shape == (2, 3, 4, 4)


def test_an_input_of_unknown_rank(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", [RELU], inputs={"x": None})
    fails(InputError, "'x' is open: unknown", source, tmp_path / "w")
    assert model.load(str(source), tmp_path / "w", input_shapes=(1, 5)).inputs[0].shape == (1, 5)


def test_two_open_inputs_are_named(tmp_path: Path) -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"], "add")
    source = write(tmp_path / "m.onnx", [add], inputs={"a": [1, "h"], "b": [1, "h"]})
    assert "--input-shape a=1,224" in str(fails(InputError, "'a' is open", source, tmp_path / "w"))
    fails(InputError, "has the inputs a, b", source, tmp_path / "w", input_shapes=(1, 4))
    made = model.load(str(source), tmp_path / "w", input_shapes={"a": (1, 4), "b": (1, 4)})
    assert [t.shape for t in made.inputs] == [(1, 4), (1, 4)]


@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 3, 8), (1, 3, 8, 8, 1), (0, 3, 8, 8)])
def test_a_shape_that_does_not_fit_is_refused_with_both(tmp_path: Path, shape: tuple[int, ...]) -> None:
    error = fails(InputError, "input 'x'", write(tmp_path / "m.onnx", [RELU]), tmp_path / "w", input_shapes=shape)
    assert "[1, 3, 8, 8]" in str(error)
    assert str(list(shape)) in str(error)


def test_an_unknown_input_name(tmp_path: Path) -> None:
    source = write(tmp_path / "m.onnx", [RELU])
    error = fails(InputError, "no input 'image'", source, tmp_path / "w", input_shapes={"image": (1, 3, 8, 8)})
    assert "its inputs are: x" in str(error)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16, TensorProto.STRING])
def test_inputs_of_other_float_types_are_refused(tmp_path: Path, kind: int) -> None:
    error = fails(UnsupportedModelError, "input 'x' is", write(tmp_path / "m.onnx", [RELU], kind=kind), tmp_path / "w")
    assert "float32" in str(error)


def test_unknown_operators_are_all_named(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Wobble", ["x"], ["w"])], "then", [], [helper.make_tensor_value_info("w", 1, [1, 3, 8, 8])]
    )
    nodes = [
        helper.make_node("FooBar", ["x"], ["a"], "foo"),
        helper.make_node("FusedThing", ["a"], ["b"], domain="com.example"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=inner, else_branch=inner),
    ]
    source = write(tmp_path / "m.onnx", nodes, constants={"c": np.array(True)})
    error = fails(UnsupportedModelError, "FooBar", source, tmp_path / "w")
    assert isinstance(error, UnsupportedModelError)
    assert error.operators[:3] == (("FooBar", "foo"), ("com.example.FusedThing", "b"), ("Wobble", "w"))
    assert error.exit_code == 5


def test_model_local_functions_are_looked_into_and_inlined(tmp_path: Path) -> None:
    def local(operator: str) -> Path:
        function = helper.make_function(
            "mine", "Twice", ["p"], ["q"], [helper.make_node(operator, ["p"], ["q"], "inner")],
            [helper.make_opsetid("", 18)],
        )  # fmt: skip

        def change(made: onnx.ModelProto) -> None:
            made.functions.append(function)
            made.opset_import.append(helper.make_opsetid("mine", 1))

        call = helper.make_node("Twice", ["x"], ["y"], "call", domain="mine")
        return write(tmp_path / f"{operator}.onnx", [call], change=change)

    made = model.load(str(local("Relu")), tmp_path / "w")
    assert [n.op_type for n in onnx.load(made.original_path).graph.node] == ["Relu"]
    error = fails(UnsupportedModelError, "Strange", local("Strange"), tmp_path / "w")
    assert isinstance(error, UnsupportedModelError)
    assert error.operators[0][0] == "Strange"


def test_an_output_whose_size_depends_on_the_data_is_named(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], "pick")
    source = write(tmp_path / "m.onnx", [node, helper.make_node("Relu", ["x"], ["z"])], outputs=("z",))
    assert model.load(str(source), tmp_path / "w").outputs[0].name == "z"  # unused: simplified away

    def whole(made: onnx.ModelProto) -> None:
        made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64

    source = write(tmp_path / "n.onnx", [node], change=whole)
    error = fails(UnsupportedModelError, "'y', made by NonZero 'pick', is not static", source, tmp_path / "w")
    assert isinstance(error, UnsupportedModelError)
    assert error.operators == (("NonZero", "pick"),)


def test_a_graph_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    zero = numpy_helper.from_array(np.zeros(1, np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["a"], "blow", value=zero),
        helper.make_node("Tile", ["a", "r"], ["t"], "tile"),
        helper.make_node("ReduceSum", ["t"], ["u"], "sum", keepdims=0),
        helper.make_node("Add", ["x", "u"], ["y"], "add"),
    ]
    sizes = {"s": np.array([50_000, 50_000]), "r": np.array([10, 10])}
    error = fails(UnsupportedModelError, "GiB", write(tmp_path / "m.onnx", nodes, constants=sizes), tmp_path / "w")
    assert "made by ConstantOfShape" in str(error) or "made by Tile" in str(error)


def test_a_size_that_only_running_tells_ends_within_the_limits(tmp_path: Path) -> None:
    """The shape comes out of arithmetic that shape inference does not follow: 39 GB."""
    nodes = [
        helper.make_node("Exp", ["e"], ["f"], "exp"),
        helper.make_node("Cast", ["f"], ["s"], "cast", to=TensorProto.INT64),
        helper.make_node("ConstantOfShape", ["s"], ["a"], "blow"),
        helper.make_node("ReduceSum", ["a"], ["u"], "sum", keepdims=0),
        helper.make_node("Add", ["x", "u"], ["y"], "add"),
    ]
    source = write(tmp_path / "m.onnx", nodes, constants={"e": np.full(2, 11.5, np.float32)})
    error = fails(InputError, r"m\.onnx.*(alloc|memory)", source, tmp_path / "w")
    assert len(error.message) < 400


# ---------------------------------------------------------------------------------------------- external data


def external(folder: Path, **changes: str) -> Path:
    """A model whose weights lie in ``w.bin``; the entries of where they lie may be changed."""
    folder.mkdir(parents=True, exist_ok=True)
    np.arange(3, dtype=np.float32).tofile(folder / "w.bin")

    def change(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "w.bin", "offset": "0", "length": "12", **changes}.items():
            tensor.external_data.add(key=key, value=value)

    add = helper.make_node("Add", ["x", "w"], ["y"], "add")
    constants = {"w": np.zeros(3, np.float32)}
    return write(folder / "m.onnx", [add], inputs={"x": [1, 3]}, constants=constants, change=change)


def test_weights_beside_the_model_are_read_and_belong_to_it(tmp_path: Path) -> None:
    source, work = external(tmp_path / "m"), tmp_path / "w"
    first = model.load(str(source), work)
    assert numpy_helper.to_array(onnx.load(first.path).graph.initializer[0]).ravel().tolist() == [0, 1, 2]
    np.array([5, 6, 7], np.float32).tofile(source.parent / "w.bin")
    second = model.load(str(source), work)
    assert numpy_helper.to_array(onnx.load(second.path).graph.initializer[0]).ravel().tolist() == [5, 6, 7]


def test_weights_outside_the_models_folder_are_refused(tmp_path: Path) -> None:
    np.arange(3, dtype=np.float32).tofile(tmp_path / "secret.bin")
    for location in ("../../../../../../../../etc/passwd", "/etc/passwd", "../secret.bin"):
        source = external(tmp_path / "m", location=location)
        fails(InputError, f"point outside the model's folder, at '{location}'", source, tmp_path / "w")
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "secret.bin")
    fails(InputError, "outside the model's folder", external(tmp_path / "m", location="link.bin"), tmp_path / "w")


def test_weights_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    fails(InputError, "'none.bin', which is missing", external(tmp_path / "m", location="none.bin"), tmp_path / "w")
    fails(InputError, "which has 12", external(tmp_path / "m", length="4000"), tmp_path / "w")
    fails(InputError, "which has 12", external(tmp_path / "m", offset="-4"), tmp_path / "w")
    fails(InputError, "not a valid ONNX model", external(tmp_path / "m", offset="zero"), tmp_path / "w")
    fails(InputError, "cannot be run by ONNX Runtime", external(tmp_path / "m", length="8"), tmp_path / "w")


# ------------------------------------------------------------------------------------------------ damaged files


def test_a_truncated_file_is_refused_wherever_it_ends(project: Project, tmp_path: Path) -> None:
    whole = project.model.read_bytes()
    for end in (1, 20, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.onnx").write_bytes(whole[:end])
        error = fails(InputError, r"cut\.onnx", tmp_path / "cut.onnx", tmp_path / "w")
        assert "damaged" in str(error)


def test_what_is_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(1).bytes(5000))
    fails(InputError, "not a valid ONNX model, or is damaged", tmp_path / "noise.onnx", tmp_path / "w")
    (tmp_path / "empty.onnx").touch()
    fails(InputError, "is empty", tmp_path / "empty.onnx", tmp_path / "w")
    (tmp_path / "folder.onnx").mkdir()
    fails(InputError, "is a folder", tmp_path / "folder.onnx", tmp_path / "w")
    fails(InputError, "no such model file", tmp_path / "none.onnx", tmp_path / "w")
    os.mkfifo(tmp_path / "pipe.onnx")
    fails(InputError, "no such model file", tmp_path / "pipe.onnx", tmp_path / "w")


@pytest.mark.parametrize("suffix", [".h5", ".keras", ".tflite", ".pb", ".engine", ".xyz", ".safetensors", ".pth"])
def test_other_kinds_of_files_are_told_apart(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(b"something")
    error = fails(InputError, f"m{suffix}", tmp_path / f"m{suffix}", tmp_path / "w")
    assert "MODULE:FACTORY" in str(error)


def test_graphs_that_contradict_themselves(tmp_path: Path) -> None:
    bad = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    source = write(tmp_path / "a.onnx", [bad], constants={"w": np.zeros((4, 5, 3, 3), np.float32)})
    fails(InputError, "channels", source, tmp_path / "w")
    fails(InputError, "x.* has no inputs|no inputs", write(tmp_path / "b.onnx", [RELU], inputs={}), tmp_path / "w")
    source = write(tmp_path / "c.onnx", [helper.make_node("Relu", ["nowhere"], ["y"])])
    fails(InputError, "not a valid ONNX model", source, tmp_path / "w")
    fails(InputError, "version 99", write(tmp_path / "d.onnx", [RELU], opset=99), tmp_path / "w")


def test_simplifying_that_crashes_costs_a_note_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for onnxsim that crashes by a signal, found before the real one by the child process."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "onnxsim.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand_in"))
    made = model.load(str(write(tmp_path / "m.onnx", [RELU])), tmp_path / "w")
    assert len(made.notes) == 1
    assert made.notes[0].startswith("not simplified:")
    assert "Segmentation fault" in made.notes[0]
    assert made.outputs[0].shape == (1, 3, 8, 8)


def test_simplifying_that_changes_the_outputs_costs_a_note_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "onnxsim.py").write_text(
        "def simplify(model, **options):\n    model.graph.node[0].op_type = 'Neg'\n    return model, True\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand_in"))
    made = model.load(str(write(tmp_path / "m.onnx", [RELU])), tmp_path / "w")
    assert made.notes == ("not simplified: it changed the values of output 'y'",)
    assert [n.op_type for n in onnx.load(made.path).graph.node] == ["Relu"]


# --------------------------------------------------------------------------------------------------- factories

NETS = """
    import torch
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, image, bias):
            return self.norm(self.conv(image)).mean((2, 3)) + bias, image.flatten(1)

    def small():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    ready = small()
    number = 7

    def raises():
        raise ValueError("no such variant")

    def exits():
        raise SystemExit(3)

    def text():
        return "a model"
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of factories, as the current folder."""
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "some_nets.py").write_text(textwrap.dedent(NETS))
    (folder / "broken_nets.py").write_text("import a_module_that_is_not_there\n")
    (folder / "marks.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(folder)
    path = list(sys.path)
    yield folder
    sys.path[:] = path
    for name in ("some_nets", "broken_nets", "marks"):
        sys.modules.pop(name, None)


SMALL = (1, 3, 8, 8)


def test_code_is_not_run_without_trust(nets: Path, tmp_path: Path) -> None:
    error = fails(TrustError, "marks:make", "marks:make", tmp_path / "w", input_shapes=SMALL)
    assert "--trust" in str(error)
    assert error.exit_code == 2
    assert not (nets / "ran").exists()
    assert "marks" not in sys.modules


def test_a_factory_gives_a_module_and_a_file_that_agree(
    nets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = model.load("some_nets:small", tmp_path / "a", input_shapes=SMALL, trust=True)
    assert capfd.readouterr() == ("", "")
    assert made.kind == "factory"
    assert made.outputs[0].shape == (1, 5)
    assert made.parameters == sum(p.numel() for p in made.module.parameters())
    sample = {made.inputs[0].name: np.random.default_rng(0).normal(size=SMALL).astype(np.float32)}
    expected = execute.original(made)(sample)[made.outputs[0].name]
    found = execute.open_session("onnxruntime", made.path).run(sample)[made.outputs[0].name]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = model.load("some_nets:ready", tmp_path / "b", input_shapes=SMALL, trust=True)
    assert again.path.read_bytes() == made.path.read_bytes()
    assert again.original_path.read_bytes() == made.original_path.read_bytes()


def test_several_inputs_are_named_as_forward_names_them(nets: Path, tmp_path: Path) -> None:
    shapes = {"bias": (1, 4), "image": SMALL}
    made = model.load("some_nets:Two", tmp_path / "w", input_shapes=shapes, trust=True)
    assert [(t.name, t.shape) for t in made.inputs] == [("image", SMALL), ("bias", (1, 4))]
    assert [t.shape for t in made.outputs] == [(1, 4), (1, 192)]
    fails(InputError, "takes image, bias", "some_nets:Two", tmp_path / "w", input_shapes={"photo": SMALL}, trust=True)


@pytest.mark.parametrize(
    ("ref", "match"),
    [
        ("no_nets:small", "no Python module 'no_nets'"),
        ("broken_nets:small", "importing 'broken_nets' raised ModuleNotFoundError"),
        ("some_nets:smal", "has no 'smal'\ndid you mean 'small'"),
        ("some_nets:number", "is a int, not a function"),
        ("some_nets:raises", "raised ValueError: no such variant"),
        ("some_nets:exits", "raised SystemExit: 3"),
        ("some_nets:text", "made a str, not a torch.nn.Module"),
        ("some_nets.py:small", "give some_nets:small"),
    ],
)
def test_factories_that_fail_say_how(nets: Path, tmp_path: Path, ref: str, match: str) -> None:
    fails(InputError, match, ref, tmp_path / "w", input_shapes=SMALL, trust=True)


def test_a_factory_needs_a_shape_that_fits(nets: Path, tmp_path: Path) -> None:
    fails(InputError, "input shape of some_nets:small is not known", "some_nets:small", tmp_path / "w", trust=True)
    wrong = (1, 3, 9, 9)
    fails(InputError, r"\[1, 3, 9, 9\]", "some_nets:small", tmp_path / "w", input_shapes=wrong, trust=True)


def test_a_net_that_branches_on_data_cannot_be_exported(nets: Path, tmp_path: Path) -> None:
    options = {"input_shapes": (1, 4), "trust": True}
    error = fails(UnsupportedModelError, "cannot be exported", "some_nets:Branch", tmp_path / "w", **options)
    assert len(error.message) < 400


# ----------------------------------------------------------------------------------------------------- weights


class OptionA(nn.Module):
    """A residual block of He et al. 2015, with the parameter-free shortcut of their section 4.2."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - into

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return torch.relu(x + y)


class ResNet20(nn.Module):
    """ResNet-20 for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[OptionA(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(OptionA(16, 32, 2), OptionA(32, 32, 1), OptionA(32, 32, 1))
        self.layer3 = nn.Sequential(OptionA(32, 64, 2), OptionA(64, 64, 1), OptionA(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def test_a_real_checkpoint_from_a_gpu(shared_data: Path, tmp_path: Path) -> None:
    """CUDA tensors, ``module.`` before every name, nested under ``state_dict``."""
    made = model.load(
        f"{__name__}:ResNet20",
        tmp_path,
        weights=shared_data / "models/resnet-cifar10/resnet20-12fca82f.th",
        input_shapes=(1, 3, 32, 32),
        trust=True,
    )
    raw = torch.load(shared_data / "models/resnet-cifar10/resnet20-12fca82f.th", map_location="cpu", weights_only=True)
    assert torch.equal(made.module.linear.weight, raw["state_dict"]["module.linear.weight"])
    assert not made.module.training
    sample = {made.inputs[0].name: np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)}
    expected = execute.original(made)(sample)[made.outputs[0].name]
    found = execute.open_session("onnxruntime", made.path).run(sample)[made.outputs[0].name]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_weights_are_found_in_a_checkpoint(key: str | None, prefix: str) -> None:
    state = {prefix + name: value for name, value in net().state_dict().items()}
    content = state if key is None else {"epoch": 3, "best": 0.5, key: state}
    found = weights._without_prefixes(weights._tensors(content), tuple(net().state_dict()))
    assert list(found) == list(net().state_dict())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_in_unchanged(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    wanted, module, path = net().state_dict(), net(), tmp_path / f"w{suffix}"
    save_file(wanted, path) if suffix == ".safetensors" else torch.save({"model": wanted}, path)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    weights.load(module, path, what="net")
    assert all(torch.equal(value, wanted[name]) for name, value in module.state_dict().items())


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = net().state_dict()
    state["1.wrong"] = state.pop("1.bias")
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    state.update({f"extra.{i}": torch.zeros(1) for i in range(9)})
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError) as caught:
        weights.load(net(), tmp_path / "w.pt", what="nets:net")
    text = str(caught.value)
    assert "1 missing: 1.bias;" in text
    assert "10 unexpected: 1.wrong, extra.0, extra.1, extra.2, extra.3 and 5 more" in text
    assert "1 of another shape: 0.weight (file [4, 3, 5, 5], model [4, 3, 3, 3])" in text


def converted(path: Path) -> list[str]:
    """What the child process does, without the second that starting it takes."""
    return weights.convert_in_child({"file": str(path), "name": str(path), "out": str(path.parent / "out.safetensors")})


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    torch.save({"state_dict": Code(tmp_path / "ran")}, tmp_path / "w.pt", pickle_protocol=protocol)
    with pytest.raises(InputError, match="nothing of it was run"):
        weights.read(tmp_path / "w.pt")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Code(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(InputError, match="nothing of it was run"):
        converted(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    def refused(name: str, match: str, read: Callable[[Path], Any] = converted) -> None:
        with pytest.raises(InputError, match=match):
            read(tmp_path / name)

    torch.save(net().state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "noise.safetensors").write_bytes(b"noise" * 99)
    (tmp_path / "w.bin").write_bytes(whole)
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save(net(), tmp_path / "object.pt")
    refused("cut.pt", "damaged")
    refused("empty.pt", "is empty", weights.read)
    refused("none.pt", "no such file", weights.read)
    refused("noise.safetensors", "damaged")
    refused("w.bin", "cannot be read", weights.read)
    refused("epoch.pt", "holds no weights")
    refused("object.pt", "torch.nn.modules.container.Sequential.*not only weights")


def test_a_name_that_safetensors_keeps_for_itself_is_only_unexpected(tmp_path: Path) -> None:
    torch.save({**net().state_dict(), "__metadata__": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="1 unexpected: __metadata__"):
        weights.load(net(), tmp_path / "w.pt", what="nets:net")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_refused_without_a_warning(tmp_path: Path, dtype: torch.dtype) -> None:
    state = net().state_dict()
    state["0.weight"] = torch.zeros(4, 3, 3, 3, dtype=dtype)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match="complex") as caught:
        weights.load(net(), tmp_path / "w.pt", what="nets:net")
    assert "float32" in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["W.PT", "W.SafeTensors"])
def test_weights_with_an_upper_case_ending(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    state = net().state_dict()
    torch.save(state, tmp_path / name) if name == "W.PT" else save_file(state, tmp_path / name)
    assert set(weights.read(tmp_path / name)) == set(state)


def test_a_model_with_an_upper_case_ending(tmp_path: Path) -> None:
    source = write(tmp_path / "MODEL.ONNX", [RELU])
    assert model.load(str(source), tmp_path / "w").name == "MODEL"


# ------------------------------------------------------------------------------------ torch.export, TorchScript


def exported(path: Path) -> Path:
    program = torch.export.export(
        net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_an_exported_program_needs_trust(tmp_path: Path) -> None:
    source = exported(tmp_path / "m.pt2")
    fails(TrustError, "unpickling", source, tmp_path / "w")
    made = model.load(str(source), tmp_path / "w", trust=True)
    assert made.kind == "pt2"
    assert made.inputs[0].shape == SMALL
    assert any("fixed to 1" in note for note in made.notes)
    sample = {made.inputs[0].name: np.random.default_rng(0).normal(size=SMALL).astype(np.float32)}
    expected = net().eval()(torch.from_numpy(next(iter(sample.values())))).detach().numpy()
    np.testing.assert_allclose(execute.original(made)(sample)[made.outputs[0].name], expected, atol=1e-6)
    found = execute.open_session("onnxruntime", made.path).run(sample)[made.outputs[0].name]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_an_exported_program_that_insists_on_larger_batches(tmp_path: Path) -> None:
    """Its own checks refuse batch 1, so its ONNX form stands for the original."""
    batch = torch.export.Dim("batch", min=3, max=8)
    program = torch.export.export(net().eval(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "m.pt2")
    made = model.load(str(tmp_path / "m.pt2"), tmp_path / "w", trust=True)
    assert made.inputs[0].shape == SMALL
    assert made.module is None
    sample = {made.inputs[0].name: np.ones(SMALL, np.float32)}
    expected = net().eval()(torch.ones(SMALL)).detach().numpy()
    np.testing.assert_allclose(execute.original(made)(sample)[made.outputs[0].name], expected, atol=1e-5)


def test_a_hostile_program_is_not_opened(tmp_path: Path) -> None:
    for name in ("plain.pt2", "archive.pt2"):
        torch.save({"x": Code(tmp_path / "ran")}, tmp_path / name, _use_new_zipfile_serialization=name[0] == "a")
        fails(TrustError, "--trust", tmp_path / name, tmp_path / "w")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "noise.pt2").write_bytes(b"noise" * 99)
    fails(InputError, "not a torch.export program", tmp_path / "noise.pt2", tmp_path / "w", trust=True)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("name", ["m.pt", "m.ts"])
def test_torchscript_needs_trust_and_a_shape(tmp_path: Path, name: str) -> None:
    torch.jit.trace(net().eval(), torch.zeros(SMALL)).save(str(tmp_path / name))
    fails(TrustError, "--trust", tmp_path / name, tmp_path / "w")
    fails(InputError, "--input-shape", tmp_path / name, tmp_path / "w", trust=True)
    made = model.load(str(tmp_path / name), tmp_path / "w", input_shapes=SMALL, trust=True)
    assert (made.kind, made.outputs[0].shape) == ("torchscript", (1, 4, 6, 6))


def test_weights_given_as_the_model(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    error = fails(InputError, "holds weights and not a network", tmp_path / "w.pt", tmp_path / "w", trust=True)
    assert f"MODULE:FACTORY, with --weights {tmp_path / 'w.pt'}" in str(error)
    source = write(tmp_path / "m.onnx", [RELU])
    fails(InputError, "holds its own weights", source, tmp_path / "w", weights=tmp_path / "w.pt")
