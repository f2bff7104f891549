"""Latency tables: files of single operators, what is measured and kept, and which operators a graph has."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgecompile import content, model, store, tables
from edgecompile.errors import DeviceError, InputError, UnsupportedModelError
from edgecompile.tables import files, timing
from edgecompile.tables.key import OperatorKey
from edgecompile.transport.local import LocalTransport
from edgecompile.types import Precision, RuntimeName
from tests import zoo
from tests.lowering import Net

QUICK = tables.MeasureOptions(passes=2, blocks=3, block_runs=2, footprint_bytes=1 << 16)


def conv(channels: int = 16, size: int = 16, out: int | None = None, **options: Any) -> OperatorKey:
    window = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), **options}
    return OperatorKey(op_type="Conv", in_shape=(1, channels, size, size), out_channels=out or channels, **window)


KEYS = {
    "conv": conv(activation="Relu"),
    "strided": conv(out=24, strides=(2, 2), activation="Clip"),
    "depthwise": conv(groups=16, activation="HardSwish"),
    "pointwise": conv(kernel=(1, 1), pads=(0, 0, 0, 0), activation="SiLU"),
    "dense": OperatorKey(op_type="Gemm", in_shape=(1, 32), out_channels=10),
    "product": OperatorKey(op_type="MatMul", in_shape=(1, 8, 32), out_channels=10),
    "add": OperatorKey(op_type="Add", in_shape=(1, 16, 8, 8), other_shapes=((1, 16, 8, 8),), activation="Relu"),
    "scale": OperatorKey(op_type="Mul", in_shape=(1, 16, 8, 8), other_shapes=((1, 16, 1, 1),), constant_operands=True),
    "concat": OperatorKey(
        op_type="Concat", in_shape=(1, 16, 8, 8), other_shapes=((1, 8, 8, 8),), attributes=(("axis", "1"),)
    ),
    "max pool": OperatorKey(
        op_type="MaxPool", in_shape=(1, 16, 8, 8), kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1)
    ),
    "average pool": OperatorKey(op_type="AveragePool", in_shape=(1, 16, 8, 8), kernel=(2, 2), strides=(2, 2),
        pads=(0, 0, 0, 0),
    ),
    "global pool": OperatorKey(op_type="GlobalAveragePool", in_shape=(1, 16, 8, 8)),
    "softmax": OperatorKey(op_type="Softmax", in_shape=(1, 10), attributes=(("axis", "-1"),)),
    "resize": OperatorKey(
        op_type="Resize", in_shape=(1, 16, 8, 8), out_shape=(1, 16, 16, 16),
        attributes=(("#3", '["int64", [4], [1, 16, 16, 16]]'), ("mode", '"nearest"'),
                    ("coordinate_transformation_mode", '"asymmetric"'), ("nearest_mode", '"floor"')),
    ),
}  # fmt: skip
FORMATS: tuple[tuple[RuntimeName, Precision], ...] = (
    ("tflite", "fp32"), ("tflite", "fp16"), ("tflite", "int8"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"),
)  # fmt: skip


def measured(keys: list[OperatorKey], folder: Path, **options: Any) -> dict[OperatorKey, float]:
    arguments: dict[str, Any] = {"runtime": "tflite", "precision": "fp32", "threads": 1, "options": QUICK, **options}
    return tables.measure(keys, workdir=folder / "work", **{"cache": folder / "cache", **arguments})


# ------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(("runtime", "precision"), FORMATS)
def test_every_operator_becomes_a_file_that_the_runtime_times(
    runtime: RuntimeName, precision: Precision, tmp_path: Path
) -> None:
    graphs = [files.onnx_model(key) for key in KEYS.values()]
    made = files.lowered(graphs, runtime=runtime, precision=precision, workdir=tmp_path)
    assert not [name for name, file in zip(KEYS, made, strict=True) if file is None]
    table = measured(list(KEYS.values()), tmp_path, runtime=runtime, precision=precision)
    assert all(0 < ms < 100 and math.isfinite(ms) for ms in table.values())
    kept = (tmp_path / "cache").rglob("*.json")
    assert [file for file in kept if json.loads(file.read_text())["ms"] is None] == []


@pytest.mark.parametrize("name", list(KEYS))
def test_a_key_is_read_back_from_its_own_graph(name: str) -> None:
    proto = files.onnx_model(KEYS[name])
    ((_, found),) = tables.keys_of(proto)
    assert files.onnx_model(found).SerializeToString() == proto.SerializeToString()


def test_weights_are_seeded_and_scaled_after_he() -> None:
    key = conv(channels=64)
    same, other = (files.onnx_model(key, seed=seed).graph.initializer[0] for seed in (0, 1))
    weights = onnx.numpy_helper.to_array(same)
    assert weights.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert same == files.onnx_model(key, seed=0).graph.initializer[0] != other


def test_an_impossible_key_names_its_operator() -> None:
    key = OperatorKey(op_type="Add", in_shape=(1, 3, 8, 8), other_shapes=((1, 5, 8, 8),))
    with pytest.raises(UnsupportedModelError, match="Add alone"):
        files.onnx_model(key)


def test_int8_files_of_onnx_runtime_take_and_give_bytes(tmp_path: Path) -> None:
    made = files.lowered([files.onnx_model(KEYS["add"])], runtime="onnxruntime", precision="int8", workdir=tmp_path)
    assert made[0] is not None
    proto = onnx.load(str(made[0]))
    types = {v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)}
    assert types == {onnx.TensorProto.UINT8}


# --------------------------------------------------------------------------------------------------- the measurement


@pytest.mark.parametrize(("runtime", "precision"), FORMATS[:1] + FORMATS[-1:])
def test_a_larger_convolution_costs_more(runtime: RuntimeName, precision: Precision, tmp_path: Path) -> None:
    small, large = conv(channels=32, size=28), conv(channels=128, size=28)
    table = measured([small, large], tmp_path, runtime=runtime, precision=precision)
    assert table[large] > 3 * table[small]  # 16 times the multiplications


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = conv(), conv(out=24)
    table = measured([first, first, second], tmp_path)
    assert list(table) == [first, second]

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(timing, "_timed", fail)
    assert measured([second, first], tmp_path) == table
    for change in ({"fingerprint": "another"}, {"precision": "int8"}, {"threads": 2}):
        with pytest.raises(AssertionError, match="measured again"):
            measured([first], tmp_path, **change)


def test_times_that_builds_share_can_be_cleaned(tmp_path: Path) -> None:
    measured([conv()], tmp_path, cache=store.cache_root())
    assert store.clean_times(older_than_days=1) == 0
    assert store.clean_times() == 1
    assert store.clean_times() == 0


def test_what_cannot_be_a_file_is_estimated_by_its_bytes(tmp_path: Path) -> None:
    def foreign(*shape: int) -> OperatorKey:
        return OperatorKey(op_type="NoSuchOperator", in_shape=shape, out_shape=shape)

    add = OperatorKey(op_type="Add", in_shape=(1, 64, 32, 32), other_shapes=((1, 64, 32, 32),))
    table = measured([add, foreign(1, 64, 32, 32), foreign(1, 32, 32, 32)], tmp_path)
    assert table[foreign(1, 64, 32, 32)] == pytest.approx(2 * table[foreign(1, 32, 32, 32)])
    assert table[foreign(1, 64, 32, 32)] < 2 * table[add]


def test_a_machine_without_the_runtime_is_named(tmp_path: Path) -> None:
    class Bare(LocalTransport):
        @property
        def python(self) -> str:  # type: ignore[override]
            return "/bin/false"

    with Bare() as transport, pytest.raises(DeviceError, match="exit code 1"):
        measured([conv()], tmp_path, transport=transport)


def test_the_program_says_which_file_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    job = {
        "runtime": "tflite", "threads": 1, "seed": 0, "passes": 1, "blocks": 1, "block_runs": 1,
        "footprint_bytes": 0, "files": [{"file": "bad.tflite"}],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    program = content.builtin_root("targets") / "operators.py"
    command = [sys.executable, str(program), "job.json", "times.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (time,) = json.loads((tmp_path / "times.json").read_text())["times"]
    assert list(time) == ["error"]
    assert time["error"]


def test_a_file_that_ends_the_process_does_not_take_the_others_along(tmp_path: Path) -> None:
    targets = shutil.copytree(content.builtin_root("targets"), tmp_path / "targets")
    (targets / "tflite" / "backend.py").write_text(
        textwrap.dedent("""
        import collections, os

        def import_runtime(package=None):
            return collections.namedtuple("Runtime", "version")("1")

        class Session:
            inputs = {}

            def __init__(self, path, threads=1, package=None):
                if path == "bad":
                    os.abort()

            def set(self, feed): pass
            def get(self): pass
            def invoke(self): pass
        """)
    )
    job = {
        "runtime": "tflite", "threads": 1, "seed": 0, "passes": 1, "blocks": 2, "block_runs": 2,
        "footprint_bytes": 0, "files": [{"file": name} for name in ("good", "bad", "fine")],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(targets / "operators.py"), "job.json", "times.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    found = json.loads((tmp_path / "times.json").read_text())
    assert [set(time) for time in found["times"]] == [{"ms", "share"}, {"error"}, {"ms", "share"}]
    assert "signal 6" in found["times"][1]["error"]


def test_the_profile_leaves_changes_of_layout_out() -> None:
    def kernel(op_type: str, spent: int) -> dict[str, Any]:
        return {"cat": "Node", "name": "n_kernel_time", "dur": spent, "args": {"op_name": op_type}}

    spec = importlib.util.spec_from_file_location("operators", content.builtin_root("targets") / "operators.py")
    assert spec is not None
    assert spec.loader is not None
    operators = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(operators)
    run = [kernel("ReorderInput", 10), kernel("Conv", 29), kernel("Transpose", 9), {"name": "model_run"}]
    assert operators.share_of(run * 3, []) == pytest.approx(29.5 / 49.5)
    assert operators.share_of(run * 3, ["Transpose"]) == pytest.approx(39.0 / 49.5)
    assert operators.share_of([], []) == 1.0


# ----------------------------------------------------------------------------------------------------- keys of a graph


def zoo_keys(name: str, folder: Path) -> tuple[tuple[str, OperatorKey], ...]:
    net, shapes = zoo.small(name)
    loaded = model.load(str(zoo.export_onnx(net, shapes, folder / "net.onnx")), folder / "model")
    return tables.keys_of(onnx.load(str(loaded.path)))


def test_keys_of_a_residual_net(tmp_path: Path) -> None:
    keys = [key for _, key in zoo_keys("resnet20", tmp_path)]
    counts = Counter((key.op_type, key.activation) for key in keys)
    assert counts["Relu", ""] == 0
    assert counts["Add", "Relu"] == counts["Conv", ""] > 0  # every block ends in one
    assert counts["Conv", "Relu"] == counts["Conv", ""] + 1
    assert all(key.kernel == (3, 3) and key.pads == (1,) * 4 for key in keys if key.op_type == "Conv")


def test_keys_of_a_mobile_net(tmp_path: Path) -> None:
    named = zoo_keys("mobilenet_v2", tmp_path)
    keys = [key for _, key in named]
    depthwise = [key for key in keys if key.op_type == "Conv" and key.groups > 1]
    assert depthwise
    assert all(k.groups == k.in_shape[1] == k.out_channels and k.activation == "Clip" for k in depthwise)
    assert any(key.op_type == "Conv" and key.kernel == (1, 1) and not key.activation for key in keys)
    assert [key.op_type for key in keys].count("Clip") == 0
    assert len({name for name, _ in named}) == len(named)
    table = measured(keys, tmp_path)
    assert set(table) == set(keys)


def test_activations_and_biases_belong_to_the_operator_before_them(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", 1, 8, 6, 6)
    y = net.conv(x, 8, 8)
    silu = net.add("Mul", y, net.add("Sigmoid", y))
    biased = net.add("Add", net.conv(silu, 8, 8), net.constant(np.ones((1, 8, 1, 1), np.float32)))
    swish = net.add("Mul", biased, net.add("HardSigmoid", biased, alpha=1 / 6))
    both = net.conv(swish, 8, 8)  # read twice: its Relu stays an operator of its own
    end = net.add("Add", both, net.add("Relu", both))
    loaded = net.save(tmp_path / "net.onnx", end)
    found = [(key.op_type, key.activation) for _, key in tables.keys_of(onnx.load(str(loaded.path)))]
    assert found == [("Conv", "SiLU"), ("Conv", "HardSwish"), ("Conv", ""), ("Relu", ""), ("Add", "")]


def test_open_shapes_are_refused() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("n", 4))
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("n", 4))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], name="first")], "g", [x], [y])
    with pytest.raises(InputError, match="'x' of Relu 'first' has no static shape"):
        tables.keys_of(onnx.helper.make_model(graph))


def test_the_footprint_counts_weights_and_inputs() -> None:
    keys = [conv(), conv(out=32)]
    assert tables.footprint_bytes(keys, "int8") == 9 * 16 * 16 + 9 * 16 * 32 + 2 * 16 * 16 * 16
    assert tables.footprint_bytes(keys, "fp32") == 4 * tables.footprint_bytes(keys, "int8")
