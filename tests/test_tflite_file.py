"""Describing TFLite files: what is told is right, and a damaged file is one clear error."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecompile import bench, execute, graph, lower, tflite_file
from edgecompile.errors import InputError
from edgecompile.lower import flatbuffer
from edgecompile.types import Artifact, Model, Plan
from tests.lowering import Net, samples

FP32 = Plan(runtime="tflite", precision="fp32")
FP16 = Plan(runtime="tflite", precision="fp16")
INT8 = Plan(runtime="tflite", precision="int8", io_dtype="int8")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One of each weighted operator, strided, grouped and transposed, on sizes that differ on every axis."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 12, 16), 3, 8, stride=2))
    x = net.add("Relu", net.conv(x, 8, 8, groups=8))
    x = net.add("Relu", net.conv(x, 8, 4, k=1))
    weights = net.constant(net.rng.normal(0, 0.3, (4, 6, 2, 2)).astype("float32"))
    x = net.add("ConvTranspose", x, weights, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.save(tmp_path_factory.mktemp("net") / "net.onnx", net.dense(x, 6, 5, out="scores"))


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("files")
    runtime = lower.RUNTIMES["tflite"]
    return {plan.precision: runtime.lower(model, plan, samples(model), folder) for plan in (FP32, FP16, INT8)}


def changed(artifact: Artifact, path: Path, change: Callable[[Any], None]) -> Path:
    """The file with its flatbuffer changed."""
    unpacked = flatbuffer.unpack(artifact.file.read_bytes())
    change(unpacked)
    path.write_bytes(flatbuffer.pack(unpacked))
    return path


# --------------------------------------------------------------------------------------------------- what is told


def test_inputs_and_outputs_are_those_of_the_file(files: dict[str, Artifact]) -> None:
    for artifact in files.values():
        found = tflite_file.describe(artifact.file)
        assert found.inputs == tuple(port.spec for port in artifact.inputs)
        assert found.outputs == tuple(port.spec for port in artifact.outputs)
        assert found.size_bytes == artifact.size_bytes
        assert found.schema_version == 3


def test_multiplications_and_parameters_are_those_of_the_model(model: Model, files: dict[str, Artifact]) -> None:
    expected = sum(cost.macs for cost in graph.operators(model.path))
    assert expected > 0
    # Counted by hand: output elements times what is summed for each.
    conv, depthwise, pointwise = 6 * 8 * 8 * 27, 6 * 8 * 8 * 9, 6 * 8 * 4 * 8
    transposed, dense = 6 * 8 * 4 * 6 * 4, 6 * 5
    assert expected == conv + depthwise + pointwise + transposed + dense
    for artifact in files.values():
        assert tflite_file.describe(artifact.file).macs == expected
    weights = 8 * 27 + 8 + 8 * 9 + 8 + 4 * 8 + 4 + 4 * 6 * 4 + 6 * 5 + 5
    for precision in ("fp32", "int8"):
        # TRANSPOSE_CONV may carry a bias of zeros that the model has not.
        assert tflite_file.describe(files[precision].file).parameters - weights in (0, 6)


def test_the_precision_is_seen(files: dict[str, Artifact]) -> None:
    for precision, artifact in files.items():
        assert tflite_file.describe(artifact.file).precision == precision


def test_operators_have_their_tensors(files: dict[str, Artifact]) -> None:
    found = tflite_file.describe(files["fp32"].file)
    assert [op.index for op in found.operators] == list(range(len(found.operators)))
    conv = next(op for op in found.operators if op.op_type == "CONV_2D")
    assert conv.name == conv.outputs[0].name
    assert conv.outputs[0].shape == (1, 6, 8, 8)
    assert [tensor.constant for tensor in conv.inputs] == [False, True, True]
    assert conv.inputs[1].shape == (8, 3, 3, 3)
    assert {tensor.dtype for tensor in conv.inputs} == {"float32"}
    assert {"DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"} <= {op.op_type for op in found.operators}


def test_the_delegate_takes_a_plain_net_whole(files: dict[str, Artifact]) -> None:
    for artifact in files.values():
        found = tflite_file.describe(artifact.file)
        assert found.delegated == len(found.operators)
        assert found.partitions == 1
        assert found.runtime.startswith("ai_edge_litert ")


def test_operators_that_the_delegate_leaves_are_told(tmp_path: Path) -> None:
    """ArgMax has no kernel in XNNPACK, and parts the net in two here."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 8, 8), 3, 4))
    best = net.add("ArgMax", x, axis=1, keepdims=1)
    y = net.conv(net.add("Cast", best, to=1), 1, 2)
    model = net.save(tmp_path / "net.onnx", y)
    artifact = lower.RUNTIMES["tflite"].lower(model, FP32, samples(model), tmp_path)
    found = tflite_file.describe(artifact.file)
    left = [op.op_type for op in found.operators if not op.delegated]
    assert "ARG_MAX" in left
    assert [op.delegated for op in found.operators if op.op_type == "CONV_2D"] == [True, True]
    assert found.partitions == 2
    assert found.delegated == len(found.operators) - len(left)


def test_what_is_taken_agrees_with_a_delegate_that_takes_operators_one_by_one(shared_data: Path) -> None:
    """With all tensors kept, each delegated operator is a part of its own, told by the tensors that it makes."""
    paths = sorted((shared_data / "models" / "mlperf-tiny").glob("*.tflite"))
    assert len(paths) == 8
    for path in paths:
        found = tflite_file.describe(path)
        details = execute.open_session("tflite", path, keep_all=True).interpreter._get_ops_details()
        parts = {tuple(op["outputs"]) for op in details if op["op_name"] == "DELEGATE"}
        taken = {op["index"] for op in details if op["op_name"] != "DELEGATE" and tuple(op["outputs"]) in parts}
        assert len(taken) > 5
        assert {op.index for op in found.operators if op.delegated} == taken


def test_names_are_those_that_the_backend_gives(files: dict[str, Artifact], tmp_path: Path) -> None:
    """With one signature, without any, with several, and with tensors that have no or the same names."""

    def nameless(unpacked: Any) -> None:
        unpacked.signatureDefs = None
        graph = unpacked.subgraphs[0]
        for index in [*graph.inputs, *graph.outputs]:
            graph.tensors[index].name = None

    def unsigned(unpacked: Any) -> None:
        unpacked.signatureDefs = None

    def renamed(unpacked: Any) -> None:
        unpacked.signatureDefs[0].inputs[0].name = b"as signed"

    for number, change in enumerate((lambda unpacked: None, unsigned, nameless, renamed)):
        path = changed(files["fp32"], tmp_path / f"{number}.tflite", change)
        found = tflite_file.describe(path)
        session = execute.open_session("tflite", path)
        assert [spec.name for spec in found.inputs] == list(session.inputs)
        assert [spec.name for spec in found.outputs] == list(session.outputs)
        assert [list(spec.shape) for spec in found.inputs] == [s["shape"] for s in session.inputs.values()]
        assert [spec.dtype for spec in found.inputs] == [s["dtype"] for s in session.inputs.values()]
    assert found.inputs[0].name == "as signed"


def test_a_file_that_cannot_be_run_here_is_described_all_the_same(files: dict[str, Artifact], tmp_path: Path) -> None:
    def custom(unpacked: Any) -> None:
        code = unpacked.operatorCodes[unpacked.subgraphs[0].operators[0].opcodeIndex]
        code.customCode, code.builtinCode, code.deprecatedBuiltinCode = b"MyOwn", 32, 32
        unpacked.subgraphs[0].operators[0].builtinOptionsType = 0
        unpacked.subgraphs[0].operators[0].builtinOptions = None

    found = tflite_file.describe(changed(files["fp32"], tmp_path / "custom.tflite", custom))
    assert found.operators[0].op_type == "MyOwn"
    assert found.not_loaded is not None
    assert "MyOwn" in found.not_loaded
    assert found.delegated is None
    assert found.operators[0].delegated is None


# --------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a TFLite file"),
        (b"PK\x03\x04 something else altogether", "not a TFLite file"),
        (b"\x00\x00\x00\x00TFL3", "no graph in it"),
        (b"\xff\xff\xff\x7fTFL3" + bytes(64), "damaged"),
    ],
)
def test_what_is_no_tflite_file_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(InputError, match=words) as found:
        tflite_file.describe(tmp_path / "a.tflite")
    assert str(tmp_path / "a.tflite") in found.value.message
    assert found.value.remedy


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        tflite_file.describe(tmp_path / "absent.tflite")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_one_clear_error(share: float, files: dict[str, Artifact], tmp_path: Path) -> None:
    data = files["fp32"].file.read_bytes()
    path = tmp_path / "short.tflite"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"short\.tflite"):
        tflite_file.describe(path)
    with pytest.raises(InputError, match=r"short\.tflite"):
        bench.bare_file(path)


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Some bytes changed, often in the first part, where the structure lies; sometimes cut off."""
    found = bytearray(data)
    for _ in range(generator.choice([1, 2, 4, 16])):
        end = len(found) if generator.random() < 0.5 else min(len(found), 2000)
        found[generator.randrange(end)] = generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)])
    return bytes(found[: generator.randrange(len(found))]) if generator.random() < 0.2 else bytes(found)


def test_mutated_files_are_described_or_refused(files: dict[str, Artifact], tmp_path: Path) -> None:
    generator = random.Random(0)
    described, refused = 0, []
    for number in range(16):
        data = files[generator.choice(list(files))].file.read_bytes()
        path = tmp_path / f"{number}.tflite"
        path.write_bytes(mutate(data, generator))
        try:
            assert tflite_file.describe(path).operators is not None
            described += 1
        except InputError as error:
            refused.append((path.name, error.message))
    assert described > 0
    assert refused
    assert all(name in message for name, message in refused)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutated_files_give_no_other_error(files: dict[str, Artifact], tmp_path: Path) -> None:
    """What the limited child does with them, forked from one process: answer, `InputError`, or its own end."""
    script = textwrap.dedent("""
        import collections, os, pathlib, random, resource, signal, sys, traceback
        from ai_edge_litert import interpreter, schema_py_generated
        from edgecompile import tflite_file
        from edgecompile.errors import InputError
        from tests.test_tflite_file import mutate
        generator, outcomes = random.Random(1), collections.Counter()
        files = [pathlib.Path(name).read_bytes() for name in sys.argv[2:]]
        path = pathlib.Path(sys.argv[1])
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for number in range(10_000):
            path.write_bytes(mutate(generator.choice(files), generator))
            pid = os.fork()
            if pid == 0:
                resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.alarm(60)
                try:
                    tflite_file.describe_in_child({"path": str(path), "what": "the file"})
                except InputError:
                    os._exit(10)
                except BaseException:
                    print(traceback.format_exc(), flush=True)
                    os._exit(11)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            outcomes[status] += 1
            if status in (11, -signal.SIGALRM):
                path.with_suffix(f".{number}").write_bytes(path.read_bytes())
        print(dict(outcomes))
    """)
    command = [sys.executable, "-c", script, str(tmp_path / "m.tflite"), *(str(a.file) for a in files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3000)
    outcomes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == 10_000
    assert 11 not in outcomes, done.stdout[:5000]
    assert -14 not in outcomes, outcomes
    assert outcomes[0] > 1000
    assert outcomes[10] > 1000
