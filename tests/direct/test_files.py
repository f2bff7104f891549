"""The file: the same bytes each time, aligned weights, the model's names, permutations that are true."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

from edgecompile.errors import UnsupportedModelError
from edgecompile.lower import direct, flatbuffer
from tests.direct.graphs import compare, graph, node, normal, operators


def _net(channels: int = 8) -> onnx.ModelProto:
    nodes = [
        node("Conv", "image w b", "features", pads=[1, 1, 1, 1]),
        node("Relu", "features", "positive"),
        node("GlobalAveragePool", "positive", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat g", "logits", transB=1),
    ]
    constants = {"w": normal(channels, 3, 3, 3), "b": normal(channels, seed=1), "g": normal(10, channels, seed=2)}
    return graph(nodes, {"image": (1, 3, 8, 8)}, ["logits", "positive"], constants)


def test_the_same_model_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import sys, hashlib, onnx; from edgecompile.lower import direct; "
        "print(hashlib.sha256(direct.lower(onnx.load_from_string(sys.stdin.buffer.read())).data).hexdigest())"
    )
    model = _net().SerializeToString()
    runs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            input=model,
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_tensorflow_is_not_imported() -> None:
    code = (
        "import sys, onnx; from edgecompile.lower import direct; "
        "direct.lower(onnx.load_from_string(sys.stdin.buffer.read())); "
        "print([m for m in ('tensorflow', 'tf_keras', 'onnx2tf', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], input=_net().SerializeToString(), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"[]"


def test_a_number_that_the_file_cannot_hold_is_refused_by_name() -> None:
    nodes = [node("Conv", "image w", "y", strides=[2**62, 1], pads=[1, 1, 1, 1])]
    model = graph(nodes, {"image": (1, 3, 8, 8)}, ["y"], {"w": normal(4, 3, 3, 3)})
    with pytest.raises(UnsupportedModelError, match=r"Conv 'the_Conv_y': .*strideH 4611686018427387904") as caught:
        direct.lower(model)
    assert caught.value.operators == (("Conv", "the_Conv_y"),)


def test_names_and_permutations_of_ports() -> None:
    result = compare(_net())
    (image,) = result.inputs
    assert (image.model_name, image.spec.name, image.spec.shape) == ("image", "image", (1, 8, 8, 3))
    assert image.permutation == (0, 2, 3, 1)
    logits, positive = result.outputs
    assert (logits.spec.name, logits.spec.shape, logits.permutation) == ("logits", (1, 10), None)
    assert (positive.spec.name, positive.permutation) == ("positive", (0, 2, 3, 1))
    model = flatbuffer.unpack(result.data)
    by_input, by_output = flatbuffer.signature_indices(model)
    assert list(by_input) == ["image"]
    assert list(by_output) == ["logits", "positive"]
    tensors = model.subgraphs[0].tensors
    assert [flatbuffer.tensor_name(tensors[i]) for i in (*by_input.values(), *by_output.values())] == [
        "image", "logits", "positive",
    ]  # fmt: skip


def test_nchw_on_request() -> None:
    result = direct.lower(_net(), input_layout="nchw")
    assert [port.permutation for port in (*result.inputs, *result.outputs)] == [None, None, None]
    assert result.inputs[0].spec.shape == (1, 3, 8, 8)


def test_tensors_inside_keep_the_model_s_names_and_values() -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    result = direct.lower(_net())
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_content=result.data, experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain
    )
    names = {detail["name"] for detail in interpreter.get_tensor_details()}
    assert {"image", "positive", "flat", "logits", "w"} <= names
    assert len(names) == len(interpreter.get_tensor_details())


def test_weights_are_aligned() -> None:
    data = direct.lower(_net(64)).data
    model = flatbuffer.unpack(data)
    weights = [b.data for b in model.buffers if b.data is not None and len(b.data) > 100]
    assert weights
    for array in weights:
        assert data.find(array.tobytes()) % 16 == 0


def test_operators_and_transposes_are_counted() -> None:
    result = direct.lower(_net(), input_layout="nchw")
    assert result.operators == 5
    assert result.transposes == 2


def test_two_outputs_under_one_name_of_an_input() -> None:
    """ONNX lets an input be an output; the file has a tensor for each."""
    model = graph([node("Relu", "x", "y")], {"x": (1, 2)}, ["y", "x"])
    result = compare(model)
    assert [port.model_name for port in result.outputs] == ["y", "x"]
    assert result.outputs[1].spec.name != result.inputs[0].spec.name


def test_everything_that_is_refused_is_named_at_once() -> None:
    nodes = [
        node("NonMaxSuppression", "boxes scores", "picked"),
        node("Relu", "scores", "fine"),
        node("Cast", "picked", "floats", to=1),
        node("Det", "scores", "d"),
    ]
    model = graph(nodes, {"boxes": (1, 4, 4), "scores": (1, 4, 4)}, ["floats", "d", "fine"])
    refused = direct.check(model)
    assert [(r.op_type, r.name) for r in refused] == [
        ("NonMaxSuppression", "the_NonMaxSuppression_picked"), ("Det", "the_Det_d"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedModelError) as caught:
        direct.lower(model)
    assert caught.value.operators == tuple((r.op_type, r.name) for r in refused)
    assert all(r.name in caught.value.message and r.reason in caught.value.message for r in refused)
    assert direct.check(_net()) == ()


def test_foreign_domains_and_unknown_operators_are_refused() -> None:
    custom = onnx.helper.make_node("Magic", ["x"], ["y"], name="magic", domain="com.example")
    model = graph([node("Relu", "x", "r")], {"x": (1, 2)}, ["r"])
    model.graph.node.append(custom)
    with pytest.raises(UnsupportedModelError) as caught:
        direct.lower(model)
    assert caught.value.operators == (("com.example.Magic", "magic"),)


@pytest.mark.parametrize(
    ("dims", "dtype", "said"),
    [(("N", 3), 1, "variable size"), ((0, 3), 1, "variable size"), ((1, 3), 11, "float64"), ((1, 3), 10, "float16")],
)
def test_inputs_that_are_refused(dims: tuple[object, ...], dtype: int, said: str) -> None:
    model = graph([node("Relu", "x", "y")], {"x": (1, 3)}, ["y"])
    model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", dtype, dims))
    with pytest.raises(UnsupportedModelError, match=said) as caught:
        direct.lower(model)
    assert caught.value.operators == (("Input", "x"),)


def test_initializers_that_are_inputs_too_are_constants() -> None:
    model = graph([node("Add", "x k", "y")], {"x": (1, 3), "k": (3,)}, ["y"], {"k": normal(3)})
    assert [port.model_name for port in compare(model, {"x": normal(1, 3)}).inputs] == ["x"]


def test_a_value_without_a_maker_is_refused() -> None:
    model = graph([node("Add", "x k", "y")], {"x": (1, 3), "k": (3,)}, ["y"])
    del model.graph.input[1]
    with pytest.raises(UnsupportedModelError, match="nothing makes its operand 'k'"):
        direct.lower(model)


def test_damaged_models_give_one_error() -> None:
    """Bytes of a model changed at random: lowered, or refused, and never anything else."""
    data = _net().SerializeToString()
    rng = np.random.default_rng(0)
    outcomes = {"lowered": 0, "refused": 0}
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            model = onnx.load_from_string(bytes(damaged))
        except Exception:  # protobuf's own errors differ by its version; reading is not this module's part
            continue
        try:
            direct.lower(model)
            outcomes["lowered"] += 1
        except UnsupportedModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize("op_type", ["Div", "Mod"])
def test_a_division_by_zero_among_constants_is_refused(op_type: str) -> None:
    """ONNX Runtime, which computes constants, would end the process."""
    constants = {"a": np.array([1, 2]), "b": np.array([1, 0])}
    nodes = [node(op_type, "a b", "q"), node("Cast", "q", "f", to=1), node("Add", "x f", "y")]
    with pytest.raises(UnsupportedModelError, match="divides integers by 0"):
        direct.lower(graph(nodes, {"x": (2,)}, ["y"], constants))


@pytest.mark.parametrize("taken", [True, False])
def test_a_choice_that_is_known_is_made(taken: bool) -> None:
    branches = {}
    for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
        out = onnx.helper.make_empty_tensor_value_info(f"{name}_out")
        branches[name] = onnx.helper.make_graph([node(op_type, "x", f"{name}_out")], name, [], [out])
    nodes = [node("If", "which", "c", **branches), node("Abs", "c", "y")]
    result = compare(graph(nodes, {"x": (2, 3)}, ["y"], {"which": np.array(taken)}))
    assert operators(result) == (["RELU", "ABS"] if taken else ["MUL", "ABS"]), "a factor of -1 is what eight bits take"
    with pytest.raises(UnsupportedModelError, match="which branch"):
        direct.lower(graph(nodes, {"x": (2, 3), "which": ((), "bool")}, ["y"]))


def test_functions_of_the_model_s_own_are_written_out() -> None:
    helper = onnx.helper
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "b"], ["c"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "ReluAdd", ["a", "b"], ["c"], body, opsets[:1])
    model = graph([node("Relu", "x", "y")], {"x": (2, 3)}, ["y"])
    model.graph.node[0].CopyFrom(helper.make_node("ReluAdd", ["x", "x"], ["y"], domain="mine"))
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    assert operators(compare(model)) == ["RELU", "ADD"]


def test_the_table_of_operators_in_the_documentation_is_complete() -> None:
    import re
    from pathlib import Path

    from edgecompile.lower.direct import fold
    from edgecompile.lower.direct.ops import HANDLERS

    text = (Path(__file__).parents[2] / "docs" / "lowering.md").read_text()
    rows = re.findall(r"^\| ([A-Z][A-Za-z0-9, ]+) \|", text.split("## Operators")[1].split("\n## ")[0], re.MULTILINE)
    listed = {name for row in rows for name in row.split(", ")}
    assert listed == set(HANDLERS)
    beforehand = text.split("refused otherwise:")[1].split(".")[0]
    assert set(re.findall(r"[A-Z][A-Za-z]+", beforehand)) == fold.FOLD_ONLY - set(HANDLERS)
