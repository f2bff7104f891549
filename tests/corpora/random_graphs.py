"""Random valid graphs of the operators that image models use, to hold the lowering against ONNX Runtime.

A graph grows node by node from its inputs; each new node takes one of the tensors that exist. Nodes are run as they are
added, so that every shape is known and every value is sound. Sizes are few and small on purpose: a converter that tells
axes apart by their sizes is caught where several axes have the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.corpora.harness import Values, reference

T = TypeVar("T")
OPSET = 18
MAX_ELEMENTS = 3000
MAX_RANK = 5
_SOUND = 1e4


class Chooser(Protocol):
    """Where decisions come from: hypothesis, which can shrink them, or a seeded generator."""

    def integer(self, low: int, high: int) -> int: ...
    def pick(self, options: Sequence[T]) -> T: ...


class DoesNotFit(Exception):
    """The drawn operator cannot take the drawn tensor, or what it makes is too large or not sound."""


class Growing:
    """A graph under construction, with the values of all its tensors."""

    def __init__(self, choose: Chooser) -> None:
        self.choose = choose
        self.rng = np.random.default_rng(choose.integer(0, 999))
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: Values = {}
        self.weights: Values = {}
        self.values: Values = {}

    def input(self, *shape: int) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs[name] = self.values[name] = self.rng.normal(0, 1, shape).astype(np.float32)
        return name

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype=dtype)
        return name

    def noise(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> str:
        return self.constant(self.rng.normal(mean, std, shape))

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def add(self, op: str, *inputs: str, results: int = 1, **attributes: Any) -> list[str]:
        """Add a node and run it. Raises `DoesNotFit` where it is not valid, or where it makes nothing sound."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(results)]
        node = helper.make_node(op, inputs, names, name=f"{op}_{len(self.nodes)}", **attributes)
        feed = {name: self.values[name] for name in inputs if name in self.values}
        weights = [numpy_helper.from_array(self.weights[name], name) for name in inputs if name in self.weights]
        infos = [_info(name, value) for name, value in feed.items()]
        graph = helper.make_graph([node], "node", infos, [onnx.ValueInfoProto(name=name) for name in names], weights)
        try:
            made = reference(_model(graph), feed)
        except Exception as exc:  # ONNX Runtime raises classes of its own making for what is not valid
            raise DoesNotFit(op) from exc
        inferred = onnx.shape_inference.infer_shapes(_model(graph)).graph.output
        for value, info in zip(made.values(), inferred, strict=True):
            said = tuple(dimension.dim_value for dimension in info.type.tensor_type.shape.dim)
            if said != value.shape and all(said):  # the two disagree on some pools that round their size up
                raise DoesNotFit(op)
            if not (0 < value.size <= MAX_ELEMENTS and value.ndim <= MAX_RANK):
                raise DoesNotFit(op)
            if value.dtype == np.float32 and not (np.abs(value) < _SOUND).all():
                raise DoesNotFit(op)
        self.nodes.append(node)
        self.values.update(made)
        return names

    def one(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self.add(op, *inputs, **attributes)[0]

    def model(self, also: Sequence[str] = ()) -> onnx.ModelProto:
        """The graph with all that nothing takes as outputs, and ``also`` some that something takes."""
        taken = {name for node in self.nodes for name in node.input}
        ends = [name for node in self.nodes for name in node.output if name not in taken or name in also]
        used = [numpy_helper.from_array(value, name) for name, value in self.weights.items() if name in taken]
        return _model(
            helper.make_graph(
                self.nodes,
                "random",
                [_info(name, value) for name, value in self.inputs.items() if name in taken],
                [_info(name, self.values[name]) for name in ends],
                used,
            )
        )


def _info(name: str, value: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def grow(choose: Chooser, nodes: int = 16) -> tuple[onnx.ModelProto, Values]:
    """A random graph of about ``nodes`` nodes, and values for its inputs. Raises `DoesNotFit` if it has no node."""
    g = Growing(choose)
    for _ in range(choose.integer(1, 2)):
        g.input(*_input_shape(choose))
    for _ in range(choose.integer(1, nodes)):
        operator = choose.pick(OPERATORS)
        x = _tensor(g)
        before = len(g.nodes)
        try:
            operator(g, x)
        except DoesNotFit:
            del g.nodes[before:]
            g.values = {name: value for name, value in g.values.items() if _exists(g, name)}
    if not g.nodes:
        raise DoesNotFit("no node")
    model = g.model(also=[_tensor(g)])
    return model, {value.name: g.inputs[value.name] for value in model.graph.input}


def _exists(g: Growing, name: str) -> bool:
    return name in g.inputs or any(name in node.output for node in g.nodes)


def _input_shape(choose: Chooser) -> tuple[int, ...]:
    size = choose.pick([2, 3, 4, 6, 8])
    rank = choose.pick([4, 4, 4, 4, 3, 2])
    sizes = [size if choose.integer(0, 2) else choose.pick([1, 2, 3, 4, 5, 6, 8]) for _ in range(rank)]
    if rank > 2 and choose.integer(0, 3):
        sizes[0] = 1
    return tuple(sizes)


def _tensor(g: Growing) -> str:
    """A float tensor, a recent one more often than an old one."""
    names = [name for name, value in g.values.items() if value.dtype == np.float32]
    return names[-1 - min(g.choose.integer(0, len(names) - 1), g.choose.integer(0, len(names) - 1))]


def _rank(g: Growing, x: str, *ranks: int) -> tuple[int, ...]:
    if len(g.shape(x)) not in ranks:
        raise DoesNotFit(f"rank {len(g.shape(x))}")
    return g.shape(x)


def _axis(g: Growing, x: str) -> int:
    """An axis, half of the time counted from the end."""
    rank = len(g.shape(x))
    if not rank:
        raise DoesNotFit("a scalar")
    axis = g.choose.integer(0, rank - 1)
    return axis - rank if g.choose.integer(0, 1) else axis


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


# ------------------------------------------------------------------------------------------- windows over images


def conv(g: Growing, x: str) -> None:
    _, channels, *sizes = _rank(g, x, 3, 4)
    c, dims = g.choose, len(sizes)
    groups = c.pick([1, 1, channels, *_divisors(channels)])
    cout = groups * c.integer(1, max(1, 8 // groups))
    kernel = [c.integer(1, 3) for _ in sizes]
    w = g.noise(cout, channels // groups, *kernel, std=(2 / (channels // groups * math.prod(kernel))) ** 0.5)
    bias = [g.noise(cout, std=0.3)] if c.integer(0, 1) else []
    y = g.one(
        "Conv", x, w, *bias, group=groups, kernel_shape=kernel, strides=[c.integer(1, 2) for _ in sizes],
        dilations=[c.pick([1, 1, 2]) for _ in sizes], pads=[c.integer(0, 2) for _ in range(2 * dims)],
    )  # fmt: skip
    _then(g, y)


def _then(g: Growing, x: str) -> None:
    """What follows a convolution in real nets: a normalization, an activation, or nothing."""
    if g.choose.integer(0, 2) == 0:
        batch_norm(g, x)
        x = list(g.values)[-1]
    if g.choose.integer(0, 1):
        g.choose.pick([relu, relu6, sigmoid, silu, unary])(g, x)


def conv_transpose(g: Growing, x: str) -> None:
    _, channels, *sizes = _rank(g, x, 4)
    c = g.choose
    groups = c.pick([1, 1, 1, channels])
    strides = [c.integer(1, 3) for _ in sizes]
    kernel = [c.integer(1, 4) for _ in sizes]
    w = g.noise(channels, c.integer(1, 4), *kernel, std=(1 / channels) ** 0.5)
    extra = [c.integer(0, s - 1) for s in strides]
    g.one(
        "ConvTranspose", x, w, *([g.noise(g.weights[w].shape[1] * groups)] if c.integer(0, 1) else []), group=groups,
        kernel_shape=kernel, strides=strides, pads=[c.integer(0, 1) for _ in range(4)], output_padding=extra,
    )  # fmt: skip


def pool(g: Growing, x: str) -> None:
    _, _, *sizes = _rank(g, x, 3, 4)
    c = g.choose
    kernel = [c.integer(1, 3) for _ in sizes]
    pads = [min(c.integer(0, 1), k - 1) for k in kernel * 2]
    options: dict[str, Any] = {
        "kernel_shape": kernel, "strides": [c.integer(1, 3) for _ in sizes], "pads": pads, "ceil_mode": c.integer(0, 1),
    }  # fmt: skip
    if c.integer(0, 1):
        g.one("MaxPool", x, **options)
    else:
        # ONNX Runtime 1.23 counts other pads than the specification (and PyTorch) here, and from opset 19 on elsewhere.
        counted = 0 if options["ceil_mode"] else c.integer(0, 1)
        g.one("AveragePool", x, count_include_pad=counted, **options)


def global_pool(g: Growing, x: str) -> None:
    _rank(g, x, 3, 4)
    g.one(g.choose.pick(["GlobalAveragePool", "GlobalMaxPool"]), x)


def resize(g: Growing, x: str) -> None:
    shape = _rank(g, x, 4)
    c = g.choose
    mode, coordinates = c.pick([("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners"),
                                ("linear", "asymmetric"), ("nearest", "half_pixel")])  # fmt: skip
    sizes = g.ints(*shape[:2], *(n * c.integer(1, 3) for n in shape[2:]))
    nearest = {"nearest_mode": "floor" if coordinates == "asymmetric" else "round_prefer_ceil"}
    g.one("Resize", x, "", "", sizes, mode=mode, coordinate_transformation_mode=coordinates, **nearest)


def depth_space(g: Growing, x: str) -> None:
    _, channels, height, width = _rank(g, x, 4)
    if channels % 4 == 0 and g.choose.integer(0, 1):
        g.one("DepthToSpace", x, blocksize=2, mode=g.choose.pick(["DCR", "CRD"]))
    elif height % 2 == 0 and width % 2 == 0:
        g.one("SpaceToDepth", x, blocksize=2)
    else:
        raise DoesNotFit("sizes")


# ---------------------------------------------------------------------------------------------------- elementwise


def relu(g: Growing, x: str) -> None:
    g.one("Relu", x)


def relu6(g: Growing, x: str) -> None:
    g.one("Clip", x, g.constant(0), g.constant(g.choose.pick([1, 6])))


def sigmoid(g: Growing, x: str) -> None:
    g.one("Sigmoid", x)


def silu(g: Growing, x: str) -> None:
    g.one("Mul", x, g.one("Sigmoid", x))


def hard_swish(g: Growing, x: str) -> None:
    if g.choose.integer(0, 1):
        g.one("HardSwish", x)
    else:
        gate = g.one("Clip", g.one("Add", x, g.constant(3)), g.constant(0), g.constant(6))
        g.one("Div", g.one("Mul", x, gate), g.constant(6))


def gelu(g: Growing, x: str) -> None:
    inner = g.one("Add", g.one("Erf", g.one("Div", x, g.constant(2**0.5))), g.constant(1))
    g.one("Mul", g.one("Mul", x, inner), g.constant(0.5))


def unary(g: Growing, x: str) -> None:
    c = g.choose
    op, attributes = c.pick([
        ("LeakyRelu", {"alpha": 0.2}), ("Tanh", {}), ("HardSigmoid", {"alpha": 0.2}), ("Elu", {}),
        ("Softplus", {}), ("Mish", {}), ("Abs", {}), ("Neg", {}), ("Erf", {}), ("Identity", {}), ("Dropout", {}),
    ])  # fmt: skip
    g.one(op, x, **attributes)


def positive(g: Growing, x: str) -> None:
    """Operators that want positive values: they get ``|x| + 1/2``."""
    y = g.one("Add", g.one("Abs", x), g.constant(0.5))
    op = g.choose.pick(["Sqrt", "Log", "Reciprocal", "Pow", "Div"])
    if op == "Pow":
        g.one(op, y, g.constant(g.choose.pick([0.5, 2.0, 3.0, -1.0])))
    elif op == "Div":
        g.one(op, _tensor(g) if g.choose.integer(0, 1) else x, y)
    else:
        g.one(op, y)


def prelu(g: Growing, x: str) -> None:
    shape = g.shape(x)
    slopes = [(1,), (shape[1], *[1] * (len(shape) - 2))] if len(shape) > 1 else [(1,)]
    g.one("PRelu", x, g.noise(*g.choose.pick(slopes), std=0.2))


def with_constant(g: Growing, x: str) -> None:
    """Broadcasting against a constant: some axes of size one, some leading axes missing, or more of them."""
    c = g.choose
    shape = [1 if c.integer(0, 1) else n for n in g.shape(x)][c.integer(0, len(g.shape(x))) :]
    if c.integer(0, 5) == 0 and len(g.shape(x)) == 3:
        shape = [c.integer(1, 2), *[1] * (3 - len(shape)), *shape]
    op = c.pick(["Add", "Sub", "Mul", "Div", "Min", "Max"])
    w = g.constant(np.abs(g.rng.normal(0, 1, shape)) + 0.5) if op == "Div" else g.noise(*shape)
    g.one(op, *([x, w] if op == "Div" or c.integer(0, 1) else [w, x]))


def with_tensor(g: Growing, x: str) -> None:
    """Broadcasting against another tensor of the graph, as it is or after its axes were made to fit."""
    other = _tensor(g)
    g.one(g.choose.pick(["Add", "Mul", "Sub", "Max", "Min", "Sum", "Mean"]), x, other)


def gate(g: Growing, x: str) -> None:
    """Squeeze and excitation."""
    shape = _rank(g, x, 4)
    w = g.noise(shape[1], shape[1], 1, 1, std=shape[1] ** -0.5)
    g.one("Mul", x, g.one("Sigmoid", g.one("Conv", g.one("GlobalAveragePool", x), w)))


def compare(g: Growing, x: str) -> None:
    c = g.choose
    against = g.constant(0.3) if c.integer(0, 1) else g.noise(*g.shape(x)[1:])
    truth = g.one(c.pick(["Greater", "Less", "GreaterOrEqual", "LessOrEqual"]), x, against)
    if c.integer(0, 3):
        g.one("Where", truth, x, c.pick([g.constant(-0.5), x]) if c.integer(0, 1) else _tensor(g))


# ---------------------------------------------------------------------------------------------- norms and sums


def batch_norm(g: Growing, x: str) -> None:
    shape = _rank(g, x, 2, 3, 4)
    positive = [g.constant(g.rng.uniform(0.5, 1.5, shape[1])) for _ in range(2)]
    g.one("BatchNormalization", x, positive[0], g.noise(shape[1], std=0.3), g.noise(shape[1], std=0.3), positive[1])


def instance_norm(g: Growing, x: str) -> None:
    shape = _rank(g, x, 3, 4)
    g.one("InstanceNormalization", x, g.noise(shape[1], mean=1), g.noise(shape[1]), epsilon=1e-2)


def layer_norm(g: Growing, x: str) -> None:
    axis = _axis(g, x)
    shape = g.shape(x)[axis:]
    g.one("LayerNormalization", x, g.noise(*shape, mean=1, std=0.3), g.noise(*shape), axis=axis, epsilon=1e-2)


def softmax(g: Growing, x: str) -> None:
    g.one(g.choose.pick(["Softmax", "Softmax", "LogSoftmax"]), x, axis=_axis(g, x))


def reduce(g: Growing, x: str) -> None:
    rank = len(g.shape(x))
    op = g.choose.pick(["ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"])
    axes = sorted({_axis(g, x) % rank for _ in range(g.choose.integer(1, 2))})
    if g.choose.integer(0, 1):
        axes = [axis - rank for axis in axes]
    g.one(op, x, g.ints(*axes), keepdims=g.choose.integer(0, 1))


def _distinct(g: Growing, x: str) -> str:
    """Values whose order is sure: whole numbers, with many exact ties, or a sum with noise.

    Values that are equal by the graph's structure alone are equal or not as each runtime happens to round.
    """
    if g.choose.integer(0, 1):
        return g.one("Round", x)
    return g.one("Add", x, g.noise(*g.shape(x)))


def arg_max(g: Growing, x: str) -> None:
    y = _distinct(g, x)
    g.one(g.choose.pick(["ArgMax", "ArgMin"]), y, axis=_axis(g, y), keepdims=g.choose.integer(0, 1))


def top_k(g: Growing, x: str) -> None:
    y = _distinct(g, x)
    axis = _axis(g, y)
    g.add("TopK", y, g.ints(g.choose.integer(1, g.shape(y)[axis])), axis=axis, results=2)


# ------------------------------------------------------------------------------------------------- dense products


def dense(g: Growing, x: str) -> None:
    shape = g.shape(x)
    if len(shape) < 2:
        raise DoesNotFit("rank")
    width = g.choose.integer(1, 6)
    if len(shape) == 2 and g.choose.integer(0, 1):
        flipped = g.choose.integer(0, 1)
        w = g.noise(*((width, shape[1]) if flipped else (shape[1], width)), std=shape[1] ** -0.5)
        g.one("Gemm", x, w, g.noise(width), transB=flipped)
    else:
        y = g.one("MatMul", x, g.noise(shape[-1], width, std=shape[-1] ** -0.5))
        if g.choose.integer(0, 1):
            g.one("Add", y, g.noise(width))


def attention(g: Growing, x: str) -> None:
    """A product of a tensor with its own transpose, a softmax, and the product with the tensor again."""
    shape = g.shape(x)
    if len(shape) < 2:
        raise DoesNotFit("rank")
    order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    scores = g.one("Mul", g.one("MatMul", x, g.one("Transpose", x, perm=order)), g.constant(shape[-1] ** -0.5))
    g.one("MatMul", g.one("Softmax", scores, axis=-1), x)


def heads(g: Growing, x: str) -> None:
    """Split the last axis into heads, move them forward, and back."""
    batch, tokens, width = _rank(g, x, 3)
    count = g.choose.pick(_divisors(width))
    y = g.one("Reshape", x, g.ints(batch, tokens, count, width // count))
    y = g.one("Transpose", y, perm=[0, 2, 1, 3])
    if g.choose.integer(0, 1):
        attention(g, y)
        y = list(g.values)[-1]
    if g.choose.integer(0, 1):
        g.one("Reshape", g.one("Transpose", y, perm=[0, 2, 1, 3]), g.ints(batch, tokens, width))


# ------------------------------------------------------------------------------------------------- moving data


def concat(g: Growing, x: str) -> None:
    axis = _axis(g, x) % len(g.shape(x))
    rest = [n for i, n in enumerate(g.shape(x)) if i != axis]
    fits = [
        name for name, v in g.values.items()
        if v.dtype == np.float32 and v.ndim == len(rest) + 1 and [n for i, n in enumerate(v.shape) if i != axis] == rest
    ]  # fmt: skip
    g.one("Concat", *(g.choose.pick(fits) for _ in range(g.choose.integer(1, 2))), x, axis=axis)


def split(g: Growing, x: str) -> None:
    axis = _axis(g, x)
    n = g.shape(x)[axis]
    if n < 2:
        raise DoesNotFit("nothing to split")
    first = g.choose.integer(1, n - 1)
    g.add("Split", x, g.ints(first, n - first), axis=axis, results=2)


def cut(g: Growing, x: str) -> None:
    axis = _axis(g, x)
    n = g.shape(x)[axis]
    step = g.choose.pick([1, 1, 2, 3, -1, -2])
    start, end = g.choose.integer(-n, n - 1), g.choose.pick([g.choose.integer(-n, n), 2**31 if step > 0 else -(2**31)])
    g.one("Slice", x, g.ints(start), g.ints(end), g.ints(axis), g.ints(step))


def subsample(g: Growing, x: str) -> None:
    """The shortcut of He et al. 2016 without parameters: every second pixel, then zero channels."""
    _rank(g, x, 4)
    y = g.one("Slice", x, g.ints(0, 0), g.ints(2**62, 2**62), g.ints(2, 3), g.ints(2, 2))
    g.one("Pad", y, g.ints(0, g.choose.integer(0, 2), 0, 0, 0, g.choose.integer(0, 2), 0, 0))


def pad(g: Growing, x: str) -> None:
    c = g.choose
    mode = c.pick(["constant", "constant", "reflect", "edge"])
    rank = len(g.shape(x))
    pads = [c.integer(0, 2) for _ in range(2 * rank)]
    value = [g.constant(c.pick([0, 0, 1.5, -1e3]))] if mode == "constant" and c.integer(0, 1) else []
    g.one("Pad", x, g.ints(*pads), *value, mode=mode)


def reshape(g: Growing, x: str) -> None:
    left, shape = g.values[x].size, []
    for _ in range(g.choose.integer(0, 3)):
        shape.append(g.choose.pick(_divisors(left)))
        left //= shape[-1]
    g.one("Reshape", x, g.ints(*shape, left) if g.choose.integer(0, 1) else g.ints(*shape, -1))


def flatten(g: Growing, x: str) -> None:
    g.one("Flatten", x, axis=g.choose.integer(0, len(g.shape(x))))


def squeeze(g: Growing, x: str) -> None:
    g.one("Squeeze", x, g.ints(*(i for i, n in enumerate(g.shape(x)) if n == 1)))


def unsqueeze(g: Growing, x: str) -> None:
    g.one("Unsqueeze", x, g.ints(g.choose.integer(0, len(g.shape(x)))))


def transpose(g: Growing, x: str) -> None:
    order = list(range(len(g.shape(x))))
    if not order:
        raise DoesNotFit("a scalar")
    shuffled = []
    while order:
        shuffled.append(order.pop(g.choose.integer(0, len(order) - 1)))
    g.one("Transpose", x, perm=shuffled)


def channels_last_and_back(g: Growing, x: str) -> None:
    """As ConvNeXt normalizes: NCHW to NHWC, something on the last axis, and back."""
    _rank(g, x, 4)
    y = g.one("Transpose", x, perm=[0, 2, 3, 1])
    g.choose.pick([layer_norm, dense, softmax, with_constant])(g, y)
    made = list(g.values)[-1]
    if len(g.shape(made)) == 4:
        g.one("Transpose", made, perm=[0, 3, 1, 2])


def shuffle(g: Growing, x: str) -> None:
    """The channel shuffle of ShuffleNet."""
    batch, channels, height, width = _rank(g, x, 4)
    groups = g.choose.pick(_divisors(channels))
    y = g.one("Reshape", x, g.ints(batch, groups, channels // groups, height, width))
    g.one("Reshape", g.one("Transpose", y, perm=[0, 2, 1, 3, 4]), g.ints(batch, channels, height, width))


def windows(g: Growing, x: str) -> None:
    """The window partition of Swin: two spatial axes are split, and the parts are put together."""
    batch, height, width, channels = _rank(g, x, 4)
    h, w = g.choose.pick(_divisors(height)), g.choose.pick(_divisors(width))
    y = g.one("Reshape", x, g.ints(batch * (height // h), h, width // w, w * channels))
    y = g.one("Transpose", y, perm=[0, 2, 1, 3])
    g.one("Reshape", y, g.ints(-1, h * w, channels))


def patches(g: Growing, x: str) -> None:
    """Image to tokens: NCHW to N, H*W, C."""
    batch, channels, height, width = _rank(g, x, 4)
    g.one("Transpose", g.one("Reshape", x, g.ints(batch, channels, height * width)), perm=[0, 2, 1])


def expand(g: Growing, x: str) -> None:
    shape = [g.choose.integer(1, 3) if n == 1 else n for n in g.shape(x)]
    g.one(
        "Expand",
        x,
        g.ints(*([g.choose.integer(1, 2)] if len(shape) < 4 and g.choose.integer(0, 3) == 0 else []), *shape),
    )


def tile(g: Growing, x: str) -> None:
    g.one("Tile", x, g.ints(*(g.choose.integer(1, 2) for _ in g.shape(x))))


def gather(g: Growing, x: str) -> None:
    axis = _axis(g, x)
    n = g.shape(x)[axis]
    indices = [g.choose.integer(-n, n - 1) for _ in range(g.choose.integer(1, 4))]
    g.one("Gather", x, g.constant(indices[0], np.int64) if len(indices) == 1 else g.ints(*indices), axis=axis)


def einsum(g: Growing, x: str) -> None:
    shape = _rank(g, x, 3, 4)
    if len(shape) == 3:
        g.one("Einsum", x, g.noise(shape[2], 3, std=shape[2] ** -0.5), equation="bij,jk->bik")
    else:
        g.one("Einsum", x, g.noise(shape[1], 3, std=shape[1] ** -0.5), equation="bchw,cd->bdhw")


def residual(g: Growing, x: str) -> None:
    """Two branches and a sum: what most graphs consist of."""
    _, channels, *_ = _rank(g, x, 4)
    w = [g.noise(channels, channels, 3, 3, std=(9 * channels) ** -0.5) for _ in range(2)]
    y = g.one("Relu", g.one("Conv", x, w[0], pads=[1] * 4))
    g.one("Relu", g.one("Add", g.one("Conv", y, w[1], pads=[1] * 4), x))


Operator = Callable[[Growing, str], None]
OPERATORS: tuple[Operator, ...] = (
    conv, conv, conv, conv, residual, conv_transpose, pool, pool, global_pool, resize, depth_space,
    relu, relu6, sigmoid, silu, hard_swish, gelu, unary, positive, prelu, with_constant, with_constant, with_tensor,
    with_tensor, gate, compare, batch_norm, instance_norm, layer_norm, softmax, reduce, reduce, arg_max, top_k,
    dense, dense, attention, heads, concat, concat, split, split, cut, cut, subsample, pad, reshape, reshape, flatten,
    squeeze, unsqueeze, transpose, transpose, channels_last_and_back, shuffle, shuffle, windows, patches, expand, tile,
    gather, einsum,
)  # fmt: skip
