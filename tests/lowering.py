"""What the lowering tests share: small ONNX models written by hand, and plain runners for the files made of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecompile.types import Arrays, Artifact, Model, TensorSpec, file_sha256


class Net:
    """An ONNX graph under construction: every call adds one node and gives the name of what it makes."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[str] = []

    def input(self, name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, values: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, out: str | None = None, name: str | None = None, **attributes: Any) -> str:
        made = out or f"t{len(self.nodes)}"
        node_name = f"{op}_{len(self.nodes)}" if name is None else name
        self.nodes.append(helper.make_node(op, list(inputs), [made], name=node_name, **attributes))
        return made

    def conv(self, x: str, cin: int, cout: int, k: int = 3, *, stride: int = 1, groups: int = 1, **extra: Any) -> str:
        fan_in = cin // groups * k * k
        w = self.rng.normal(0, (2 / fan_in) ** 0.5, (cout, cin // groups, k, k)).astype(np.float32)
        b = self.rng.normal(0, 0.1, cout).astype(np.float32)
        return self.add(
            "Conv", x, self.constant(w), self.constant(b),
            kernel_shape=[k, k], strides=[stride, stride], pads=[k // 2] * 4, group=groups, **extra,
        )  # fmt: skip

    def dense(self, x: str, cin: int, cout: int, **extra: Any) -> str:
        w = self.rng.normal(0, cin**-0.5, (cin, cout)).astype(np.float32)
        return self.add("Gemm", x, self.constant(w), self.constant(np.zeros(cout, np.float32)), **extra)

    def save(self, path: Path, *outputs: str) -> Model:
        """Write the graph with inferred shapes and describe it as the model loader does."""
        values = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, values, self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return save_model(onnx.shape_inference.infer_shapes(proto), path)


def save_model(proto: onnx.ModelProto, path: Path) -> Model:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, str(path))
    constants = {tensor.name for tensor in proto.graph.initializer}
    return Model(
        name=path.stem,
        path=path,
        original_path=path,
        inputs=tuple(_spec(value) for value in proto.graph.input if value.name not in constants),
        outputs=tuple(_spec(value) for value in proto.graph.output),
        source=str(path),
        kind="onnx",
        sha256=file_sha256(path),
        parameters=sum(int(np.prod(t.dims)) for t in proto.graph.initializer),
    )


def _spec(value: Any) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        shape=tuple(d.dim_value for d in kind.shape.dim),
        dtype=str(helper.tensor_dtype_to_np_dtype(kind.elem_type)),
    )


def samples(model: Model, count: int = 8, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{s.name: rng.normal(0, 1, s.shape).astype(s.dtype) for s in model.inputs} for _ in range(count)]


def small_net(folder: Path) -> Model:
    """A 10-class net on 1x3x16x16: strided, depthwise and pointwise convolutions, a residual add, a classifier."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 16, 16), 3, 16, stride=2))
    x = net.add("Add", x, net.conv(net.add("Relu", net.conv(x, 16, 16, groups=16)), 16, 16, 1))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.save(folder / "small.onnx", net.dense(pooled, 16, 10, out="logits"))


def option_a_net(folder: Path) -> Model:
    """A residual net with the parameter-free shortcut of He et al. 2016: a strided slice and a channel pad."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("image", 1, 3, 32, 32), 3, 16))
    block = net.conv(net.add("Relu", net.conv(x, 16, 16)), 16, 16)
    x = net.add("Relu", net.add("Add", block, x))
    for width in (16, 32):
        block = net.conv(net.add("Relu", net.conv(x, width, 2 * width, stride=2)), 2 * width, 2 * width)
        last = np.iinfo(np.int64).max  # as exporters write "to the end"
        starts, ends, axes, steps = (
            net.constant(np.array(v, np.int64)) for v in ([0] * 2, [last] * 2, [2, 3], [2] * 2)
        )
        short = net.add("Slice", x, starts, ends, axes, steps, name=f"shortcut{width}/slice")
        pads = net.constant(np.array([0, width // 2, 0, 0, 0, width // 2, 0, 0], np.int64))
        short = net.add("Pad", short, pads, net.constant(np.float32(0)), name=f"shortcut{width}/pad", mode="constant")
        x = net.add("Relu", net.add("Add", block, short))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.save(folder / "option_a.onnx", net.dense(pooled, 64, 10, out="logits"))


def cifar_resnet20(folder: Path, checkpoint: Path, *, simplified: bool) -> Model:
    """The CIFAR ResNet-20 of a checkpoint (`He et al. 2016`, parameter-free shortcuts), exported by torch."""
    import onnxsim
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, cin: int, cout: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(cout)
            self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(cout)
            self.widens = cin != cout

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            quarter = y.shape[1] // 4
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter)) if self.widens else x
            return F.relu(y + short)

    class ResNet20(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
            self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
            self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
            self.linear = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
            return self.linear(F.avg_pool2d(x, 8).flatten(1))

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    net = ResNet20().eval()
    net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    path = folder / "resnet20.onnx"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant folding")
        torch.onnx.export(
            net, (torch.zeros(1, 3, 32, 32),), str(path), input_names=["image"], output_names=["logits"], dynamo=False
        )
    proto = onnx.load(str(path))
    return save_model(onnxsim.simplify(proto)[0] if simplified else proto, path)


def run_onnx(path: Path) -> Callable[[Arrays], dict[str, np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda sample: dict(zip(names, session.run(names, dict(sample)), strict=True))


def run_tflite(artifact: Artifact) -> Callable[[Arrays], dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    # The delegate announces itself on the terminal; the plain kernels do not.
    interpreter = Interpreter(model_path=str(artifact.file), num_threads=1)
    runner = interpreter.get_signature_runner()

    def run(sample: Arrays) -> dict[str, np.ndarray]:
        feed = {}
        for port in artifact.inputs:
            value = np.asarray(sample[port.model_name])
            value = value if port.permutation is None else value.transpose(port.permutation)
            if port.spec.dtype == "int8":
                assert port.spec.quantization is not None
                scale, zero = port.spec.quantization.scale[0], port.spec.quantization.zero_point[0]
                value = np.clip(np.round(value / scale) + zero, -128, 127).astype(np.int8)
            assert value.shape == port.spec.shape
            feed[port.spec.name] = np.ascontiguousarray(value)
        found = runner(**feed)
        results = {}
        for port in artifact.outputs:
            value = found[port.spec.name]
            assert value.shape == port.spec.shape
            assert str(value.dtype) == port.spec.dtype
            if port.spec.dtype == "int8":
                assert port.spec.quantization is not None
                scale, zero = port.spec.quantization.scale[0], port.spec.quantization.zero_point[0]
                value = (value.astype(np.float32) - zero) * np.float32(scale)
            results[port.model_name] = (
                value if port.permutation is None else value.transpose(np.argsort(port.permutation))
            )
        return results

    return run


def run_artifact(artifact: Artifact) -> Callable[[Arrays], dict[str, np.ndarray]]:
    return run_tflite(artifact) if artifact.runtime == "tflite" else run_onnx(artifact.file)


def largest_error(
    run: Callable[[Arrays], Arrays], reference: Callable[[Arrays], Arrays], on: Sequence[Arrays]
) -> float:
    """The largest absolute difference over the range of each output, over all outputs and samples."""
    worst = 0.0
    for sample in on:
        found, expected = run(sample), reference(sample)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].shape == value.shape
            worst = max(worst, float(np.abs(found[name] - value).max() / (np.ptp(value) or 1.0)))
    return worst
