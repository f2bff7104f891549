"""Small nets of the kinds that people build, on which a learned cost table is tested and set right.

Single operators do not tell what the runtime makes of them together: layouts that are changed between them, operators
that are fused, tensors that are still in the caches. None of these nets is a published one; they have the blocks of
published ones at widths and sizes of their own, and most take a small board some milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx

_OPSET = 17


@dataclass(slots=True, kw_only=True)
class _Net:
    """A graph in the making; methods take and give names of tensors."""

    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def node(self, op_type: str, inputs: Sequence[str], shape: Sequence[int], **attributes: Any) -> str:
        from onnx import helper

        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"{op_type}_{name}", **attributes))
        self.shapes[name] = tuple(shape)
        return name

    def constant(self, values: Any) -> str:
        import numpy as np
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        array = np.asarray(values)
        self.constants.append(numpy_helper.from_array(array, name))
        self.shapes[name] = tuple(array.shape)
        return name

    def weights(self, *shape: int, fan_in: int) -> str:
        import numpy as np

        return self.constant(self.rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32))

    def vector(self, size: int, *shape: int) -> str:
        import numpy as np

        return self.constant(self.rng.normal(0.5, 0.1, shape or (size,)).astype(np.float32))

    # ------------------------------------------------------------------------------------------------- feature maps

    def conv(
        self,
        x: str,
        out: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        groups: int = 1,
        act: str = "Relu",
    ) -> str:
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        _, channels, height, width = self.shapes[x]
        pads = [s // 2 for s in size]
        shape = (1, out, -(-height // stride), -(-width // stride))
        inputs = [x, self.weights(out, channels // groups, *size, fan_in=channels // groups * math.prod(size))]
        made = self.node("Conv", [*inputs, self.vector(out)], shape, kernel_shape=size, strides=[stride, stride],
                         pads=[*pads, *pads], group=groups)  # fmt: skip
        return self.act(made, act)

    def depthwise(self, x: str, kernel: int = 3, stride: int = 1, act: str = "Relu") -> str:
        channels = self.shapes[x][1]
        return self.conv(x, channels, kernel, stride, channels, act)

    def act(self, x: str, kind: str) -> str:
        import numpy as np

        shape = self.shapes[x]
        if kind == "Clip":
            return self.node("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))], shape)
        if kind == "SiLU":
            return self.node("Mul", [x, self.node("Sigmoid", [x], shape)], shape)
        if kind == "HardSigmoid":
            return self.node("HardSigmoid", [x], shape, alpha=1 / 6, beta=0.5)
        return self.node(kind, [x], shape) if kind else x

    def two(self, op_type: str, x: str, y: str) -> str:
        import numpy as np

        return self.node(op_type, [x, y], np.broadcast_shapes(self.shapes[x], self.shapes[y]))

    def pool(self, x: str, kind: str = "MaxPool", kernel: int = 2, stride: int = 2) -> str:
        _, channels, height, width = self.shapes[x]
        shape = (1, channels, -(-height // stride), -(-width // stride))
        pads = [kernel // 2 if kernel % 2 else 0] * 4
        return self.node(kind, [x], shape, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def average(self, x: str) -> str:
        return self.node("GlobalAveragePool", [x], (1, self.shapes[x][1], 1, 1))

    def concat(self, *parts: str) -> str:
        channels = sum(self.shapes[part][1] for part in parts)
        shape = self.shapes[parts[0]]
        return self.node("Concat", parts, (1, channels, *shape[2:]), axis=1)

    def slice(self, x: str, start: int, end: int) -> str:
        import numpy as np

        numbers = [self.constant(np.array([value], np.int64)) for value in (start, end, 1)]
        shape = self.shapes[x]
        return self.node("Slice", [x, *numbers], (1, end - start, *shape[2:]))

    def reshape(self, x: str, *shape: int) -> str:
        import numpy as np

        return self.node("Reshape", [x, self.constant(np.array(shape, np.int64))], shape)

    def transpose(self, x: str, *order: int) -> str:
        return self.node("Transpose", [x], [self.shapes[x][i] for i in order], perm=list(order))

    def resize(self, x: str, mode: str = "nearest") -> str:
        import numpy as np

        _, channels, height, width = self.shapes[x]
        shape = (1, channels, 2 * height, 2 * width)
        how = ("asymmetric", "floor") if mode == "nearest" else ("half_pixel", "round_prefer_floor")
        return self.node("Resize", [x, "", "", self.constant(np.array(shape, np.int64))], shape, mode=mode,
                         coordinate_transformation_mode=how[0], nearest_mode=how[1])  # fmt: skip

    def up(self, x: str, out: int) -> str:
        _, channels, height, width = self.shapes[x]
        inputs = [x, self.weights(channels, out, 2, 2, fan_in=channels), self.vector(out)]
        shape = (1, out, 2 * height, 2 * width)
        return self.node("ConvTranspose", inputs, shape, kernel_shape=[2, 2], strides=[2, 2])

    def gate(self, x: str, squeezed: int, gate: str = "Sigmoid", act: str = "Relu") -> str:
        """Squeeze and excitation (Hu et al. 2018)."""
        squeeze = self.conv(self.average(x), squeezed, 1, act=act)
        return self.two("Mul", x, self.conv(squeeze, self.shapes[x][1], 1, act=gate))

    def classes(self, x: str, count: int) -> str:
        channels = self.shapes[x][1]
        return self.dense(self.reshape(self.average(x), 1, channels), count, act="")

    # --------------------------------------------------------------------------------------------------------- rows

    def dense(self, x: str, out: int, act: str = "Relu") -> str:
        shape = self.shapes[x]
        if len(shape) == 2:
            inputs = [x, self.weights(shape[-1], out, fan_in=shape[-1]), self.vector(out)]
            return self.act(self.node("Gemm", inputs, (*shape[:-1], out)), act)
        product = self.node("MatMul", [x, self.weights(shape[-1], out, fan_in=shape[-1])], (*shape[:-1], out))
        return self.act(self.node("Add", [product, self.vector(out)], (*shape[:-1], out)), act)

    def norm(self, x: str) -> str:
        width = self.shapes[x][-1]
        inputs = [x, self.vector(width), self.vector(width)]
        return self.node("LayerNormalization", inputs, self.shapes[x], axis=-1)

    def gelu(self, x: str) -> str:
        import numpy as np

        shape = self.shapes[x]
        scaled = self.node("Div", [x, self.constant(np.float32(2**0.5))], shape)
        grown = self.node("Add", [self.node("Erf", [scaled], shape), self.constant(np.float32(1))], shape)
        return self.node("Mul", [self.node("Mul", [x, grown], shape), self.constant(np.float32(0.5))], shape)

    def attention(self, x: str, heads: int) -> str:
        """Vaswani et al. 2017."""
        import numpy as np

        _, rows, width = self.shapes[x]
        depth = width // heads
        query, key, value = (self.reshape(self.dense(x, width, act=""), 1, rows, heads, depth) for _ in range(3))
        scores = self.node("MatMul", [self.transpose(query, 0, 2, 1, 3), self.transpose(key, 0, 2, 3, 1)],
                           (1, heads, rows, rows))  # fmt: skip
        scores = self.node("Mul", [scores, self.constant(np.float32(depth**-0.5))], self.shapes[scores])
        shares = self.node("Softmax", [scores], self.shapes[scores], axis=-1)
        mixed = self.node("MatMul", [shares, self.transpose(value, 0, 2, 1, 3)], (1, heads, rows, depth))
        return self.dense(self.reshape(self.transpose(mixed, 0, 2, 1, 3), 1, rows, width), width, act="")


# ------------------------------------------------------------------------------------------------------- the nets


def _plain(net: _Net, x: str) -> str:
    for out in (24, 48, 96, 160):
        x = net.pool(net.conv(net.conv(x, out), out))
    return net.classes(x, 10)


def _residual(net: _Net, x: str, width: int = 40) -> str:
    x = net.pool(net.conv(x, width, 7, 2), kernel=3)
    for stage, out in enumerate((width, 2 * width, 4 * width)):
        stride = 1 if stage == 0 else 2
        short = x if stage == 0 else net.conv(x, out, 1, 2, act="")
        y = net.conv(net.conv(x, out, 3, stride), out, act="")
        x = net.act(net.two("Add", y, short), "Relu")
        x = net.act(net.two("Add", net.conv(net.conv(x, out), out, act=""), x), "Relu")
    return net.classes(x, 100)


def _narrow(net: _Net, x: str) -> str:
    x = net.conv(x, 12)
    for out in (12, 24, 48):
        if out != net.shapes[x][1]:
            x = net.conv(x, out, 3, 2)
        for _ in range(3):
            x = net.act(net.two("Add", net.conv(net.conv(x, out), out, act=""), x), "Relu")
    return net.classes(x, 10)


def _bottleneck(net: _Net, x: str, groups: int = 1, gated: bool = False) -> str:
    x = net.pool(net.conv(x, 32, 7, 2), kernel=3)
    for stage, (inner, out) in enumerate(((32, 112), (64, 224), (128, 448))):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.conv(net.conv(x, inner, 1), inner, 3, stride, groups)
            y = net.conv(net.gate(y, inner // 4) if gated else y, out, 1, act="")
            x = net.act(net.two("Add", y, x if block else net.conv(x, out, 1, stride, act="")), "Relu")
    return net.classes(x, 100)


def _separable(net: _Net, x: str, act: str = "Relu", wide: float = 1.0) -> str:
    x = net.conv(x, 24, 3, 2, act=act)
    for narrow, stride in ((40, 1), (88, 2), (88, 1), (176, 2), (176, 1), (176, 1), (352, 2), (352, 1)):
        x = net.conv(net.depthwise(x, 3, stride, act), round(narrow * wide), 1, act=act)
    return net.classes(x, 1000)


def _inverted(net: _Net, x: str, act: str = "Clip", kernel: int = 3, gate: str = "", wide: int = 6) -> str:
    x = net.conv(x, 16, 3, 2, act=act)
    for out, stride in ((20, 2), (20, 1), (36, 2), (36, 1), (72, 2), (72, 1), (72, 1), (112, 1), (144, 2), (144, 1)):
        channels = net.shapes[x][1]
        y = net.depthwise(net.conv(x, wide * channels, 1, act=act), kernel if out > 30 else 3, stride, act)
        y = net.gate(y, max(8, channels // 2), gate, "Relu" if gate == "HardSigmoid" else act) if gate else y
        y = net.conv(y, out, 1, act="")
        x = net.two("Add", y, x) if (stride, out) == (1, channels) else y
    return net.classes(net.conv(x, 640, 1, act=act), 1000)


def _fire(net: _Net, x: str) -> str:
    x = net.pool(net.conv(x, 48, 3, 2), kernel=3)
    for stage, out in enumerate((56, 112, 160)):
        for _ in range(2):
            squeezed = net.conv(x, out // 4, 1)
            x = net.concat(net.conv(squeezed, out, 1), net.conv(squeezed, out, 3))
        x = net.pool(x, kernel=3) if stage < 2 else x
    return net.average(net.conv(x, 200, 1))


def _branches(net: _Net, x: str) -> str:
    x = net.pool(net.conv(net.conv(x, 24, 3, 2), 64), kernel=3)
    for stage, width in enumerate((32, 48, 64)):
        first = net.conv(x, 2 * width, 1)
        second = net.conv(net.conv(x, width, 1), 2 * width, 3)
        third = net.conv(net.conv(net.conv(x, width, 1), width, (1, 7)), width, (7, 1))
        pooled = net.conv(net.pool(x, "AveragePool", 3, 1), width, 1)
        x = net.concat(first, second, third, pooled)
        x = net.pool(x, kernel=3) if stage < 2 else x
    return net.classes(x, 100)


def _dense_blocks(net: _Net, x: str) -> str:
    x = net.pool(net.conv(x, 48, 7, 2), kernel=3)
    for stage in range(3):
        for _ in range(4):
            shape = net.shapes[x]
            scaled = net.two("Mul", x, net.vector(0, shape[1], 1, 1))
            y = net.act(net.two("Add", scaled, net.vector(0, shape[1], 1, 1)), "Relu")
            x = net.concat(x, net.conv(net.conv(y, 96, 1), 24, act=""))
        if stage < 2:
            x = net.pool(net.conv(x, net.shapes[x][1] // 2, 1), "AveragePool")
    return net.classes(x, 100)


def _shuffled(net: _Net, x: str) -> str:
    x = net.pool(net.conv(x, 24, 3, 2), kernel=3)
    for out in (104, 208, 416):
        half = out // 2
        left = net.conv(net.depthwise(x, 3, 2, ""), half, 1)
        right = net.conv(net.depthwise(net.conv(x, half, 1), 3, 2, ""), half, 1)
        x = _mixed(net, net.concat(left, right))
        for _ in range(2):
            left, right = net.slice(x, 0, half), net.slice(x, half, out)
            right = net.conv(net.depthwise(net.conv(right, half, 1), 3, 1, ""), half, 1)
            x = _mixed(net, net.concat(left, right))
    return net.classes(x, 100)


def _mixed(net: _Net, x: str) -> str:
    _, channels, height, width = net.shapes[x]
    parted = net.reshape(x, 1, 2, channels // 2, height, width)
    return net.reshape(net.transpose(parted, 0, 2, 1, 3, 4), 1, channels, height, width)


def _pyramid(net: _Net, x: str, transposed: bool = True) -> str:
    kept = []
    for out in (16, 32, 64):
        x = net.conv(net.conv(x, out), out)
        kept.append(x)
        x = net.pool(x)
    x = net.conv(x, 128)
    for before in reversed(kept):
        out = net.shapes[before][1]
        larger = net.up(x, out) if transposed else net.conv(net.resize(x, "linear"), out, 1)
        x = net.conv(net.concat(before, larger), out)
    return net.conv(x, 5, 1, act="Sigmoid")


def _heads(net: _Net, x: str) -> str:
    maps = []
    x = net.conv(x, 16, 3, 2, act="SiLU")
    for out in (32, 64, 128):
        x = net.conv(x, out, 3, 2, act="SiLU")
        y = net.conv(net.conv(x, out // 2, 1, act="SiLU"), out // 2, act="SiLU")
        x = net.conv(net.concat(y, net.conv(x, out // 2, 1, act="SiLU")), out, 1, act="SiLU")
        maps.append(x)
    merged = net.concat(net.resize(net.conv(maps[2], 64, 1, act="SiLU")), maps[1])
    flat = []
    for source in (net.conv(merged, 64, act="SiLU"), maps[2]):
        found = net.conv(source, 24, 1, act="Sigmoid")
        _, channels, height, width = net.shapes[found]
        flat.append(net.transpose(net.reshape(found, 1, channels, height * width), 0, 2, 1))
    rows = sum(net.shapes[part][1] for part in flat)
    return net.node("Concat", flat, (1, rows, 24), axis=1)


def _encoder(net: _Net, x: str, width: int = 96, heads: int = 3) -> str:
    x = _patches(net, x, width)
    for _ in range(3):
        x = net.two("Add", x, net.attention(net.norm(x), heads))
        x = net.two("Add", x, net.dense(net.gelu(net.dense(net.norm(x), 4 * width, act="")), width, act=""))
    x = net.norm(x)
    pooled = net.node("ReduceMean", [x], (1, width), axes=[1], keepdims=0)
    return net.dense(pooled, 100, act="")


def _patches(net: _Net, x: str, width: int, size: int = 8) -> str:
    _, channels, side, _ = net.shapes[x]
    places = side // size
    inputs = [x, net.weights(width, channels, size, size, fan_in=channels * size * size), net.vector(width)]
    made = net.node("Conv", inputs, (1, width, places, places), kernel_shape=[size] * 2, strides=[size] * 2)
    return net.transpose(net.reshape(made, 1, width, places * places), 0, 2, 1)


def _modern(net: _Net, x: str) -> str:
    x = net.conv(net.conv(x, 48, 3, 2, act=""), 48, 3, 2, act="")
    for stage, width in enumerate((48, 96, 192)):
        if stage:
            x = net.conv(x, width, 3, 2, act="")
        for _ in range(2):
            y = net.norm(net.transpose(net.depthwise(x, 7, act=""), 0, 2, 3, 1))
            y = net.dense(net.gelu(net.dense(y, 4 * width, act="")), width, act="")
            x = net.two("Add", x, net.transpose(y, 0, 3, 1, 2))
    return net.classes(x, 100)


def _rows(net: _Net, x: str) -> str:
    for out in (256, 256, 192, 32, 192, 256, 512):
        x = net.dense(x, out)
    return x


_Make = Callable[["_Net", str], str]
_NETS: Mapping[str, tuple[tuple[int, ...], _Make]] = {
    "plain": ((1, 3, 64, 64), _plain),
    "residual": ((1, 3, 112, 112), _residual),
    "narrow": ((1, 3, 32, 32), _narrow),
    "bottleneck": ((1, 3, 112, 112), _bottleneck),
    "grouped": ((1, 3, 128, 128), lambda net, x: _bottleneck(net, x, 8, gated=True)),
    "separable": ((1, 3, 128, 128), _separable),
    "inverted": ((1, 3, 144, 144), _inverted),
    "gated": ((1, 3, 160, 160), lambda net, x: _inverted(net, x, "HardSwish", 5, "HardSigmoid", 4)),
    "smooth": ((1, 3, 128, 128), lambda net, x: _inverted(net, x, "SiLU", 5, "Sigmoid")),
    "fire": ((1, 3, 128, 128), _fire),
    "branches": ((1, 3, 96, 96), _branches),
    "dense": ((1, 3, 112, 112), _dense_blocks),
    "shuffled": ((1, 3, 160, 160), _shuffled),
    "upward": ((1, 3, 64, 64), _pyramid),
    "resized": ((1, 3, 64, 64), lambda net, x: _pyramid(net, x, transposed=False)),
    "heads": ((1, 3, 160, 160), _heads),
    "encoder": ((1, 3, 64, 64), _encoder),
    "modern": ((1, 3, 96, 96), _modern),
    "rows": ((1, 512), _rows),
    # Two whose weights are more than caches hold.
    "large": ((1, 3, 112, 112), lambda net, x: _residual(net, x, 96)),
    "wide": ((1, 3, 128, 128), lambda net, x: _separable(net, x, "Clip", 3.0)),
}  # fmt: skip
NAMES = tuple(_NETS)


def build(name: str, seed: int = 0) -> onnx.ModelProto:
    """One of the nets, its shapes inferred, with seeded weights."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    shape, make = _NETS[name]
    net = _Net(rng=np.random.default_rng(seed), shapes={"x": shape})
    last = make(net, "x")
    graph = helper.make_graph(
        net.nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, net.shapes[last])],
        net.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
