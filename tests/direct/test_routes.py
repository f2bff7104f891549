"""Shuffles of channels between convolutions: what goes into the weights, and what must be left alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from edgecompile.lower import direct, flatbuffer
from tests.direct.graphs import compare, graph, node, normal, operators

_MOVING = {"TRANSPOSE", "RESHAPE", "SPLIT", "GATHER"}


class _Net:
    """A net under construction, of images of ``size``; each method returns the name of its result."""

    def __init__(self, *, batch: int = 1, channels: int = 4, size: int = 4) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.batch, self.size = batch, size
        self.channels = {"x": channels}
        self.input = (batch, channels, size, size)

    def add(self, op_type: str, inputs: str, outputs: dict[str, int], **attributes: object) -> None:
        self.nodes.append(node(op_type, inputs, " ".join(outputs), **attributes))
        self.channels |= outputs

    def constant(self, value: np.ndarray) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def fresh(self) -> str:
        return f"v{len(self.channels)}"

    def one(self, op_type: str, inputs: str, channels: int, **attributes: object) -> str:
        name = self.fresh()
        self.add(op_type, inputs, {name: channels}, **attributes)
        return name

    def conv(
        self, x: str, channels: int, *, kernel: int = 1, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        seed = len(self.constants)
        w = self.constant(normal(channels, self.channels[x] // group, kernel, kernel, seed=seed) / 2)
        b = self.constant(normal(channels, seed=seed + 1))
        y = self.one(
            "Conv", f"{x} {w} {b}", channels, group=group, strides=[stride] * 2, pads=[kernel // 2] * 4
        )  # fmt: skip
        return self.one("Relu", y, channels) if relu else y

    def depthwise(self, x: str, *, stride: int = 1) -> str:
        count = self.channels[x]
        return self.conv(x, count, kernel=3, stride=stride, group=count, relu=False)

    def concat(self, *names: str) -> str:
        return self.one("Concat", " ".join(names), sum(self.channels[n] for n in names), axis=1)

    def split(self, x: str, *sizes: int) -> list[str]:
        first = len(self.channels)
        names = {f"v{first + i}": size for i, size in enumerate(sizes)}
        self.add("Split", f"{x} {self.constant(np.array(sizes, np.int64))}", names, axis=1)
        return list(names)

    def slice(self, x: str, begin: int, end: int, step: int) -> str:
        count = len(range(self.channels[x])[begin:end:step])
        ends = [self.constant(np.array([v], np.int64)) for v in (begin, end, 1, step)]
        return self.one("Slice", " ".join([x, *ends]), count)

    def shuffle(self, x: str, groups: int) -> str:
        count = self.channels[x]
        five = self.constant(np.array([self.batch, groups, count // groups, self.size, self.size], np.int64))
        four = self.constant(np.array([self.batch, count, self.size, self.size], np.int64))
        parted = self.one("Reshape", f"{x} {five}", count)
        turned = self.one("Transpose", parted, count, perm=[0, 2, 1, 3, 4])
        return self.one("Reshape", f"{turned} {four}", count)

    def unit(self, x: str) -> str:
        """ShuffleNetV2's: half of the channels pass by."""
        half = self.channels[x] // 2
        left, right = self.split(x, half, half)
        return self.shuffle(self.concat(left, self.branch(right, half)), 2)

    def branch(self, x: str, channels: int, *, stride: int = 1) -> str:
        return self.conv(self.depthwise(self.conv(x, channels), stride=stride), channels)

    def down(self, x: str, channels: int) -> str:
        """ShuffleNetV2's first unit of a stage: half as large, ``2 * channels`` of them."""
        first = self.conv(self.depthwise(x, stride=2), channels)
        second = self.branch(x, channels, stride=2)
        self.size //= 2
        return self.shuffle(self.concat(first, second), 2)

    def compare(self, *outputs: str) -> direct.DirectResult:
        return compare(graph(self.nodes, {"x": self.input}, list(outputs), self.constants))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_shuffle_between_two_convolutions_costs_nothing(batch: int, groups: int) -> None:
    net = _Net(batch=batch, size=4)
    y = net.conv(net.shuffle(net.conv("x", 8), groups), 5, kernel=3)
    # What pads the second convolution is no move.
    assert not _MOVING & set(operators(net.compare(y)))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("half", [4, 6, 7])
def test_the_stages_of_shufflenet(batch: int, half: int) -> None:
    net = _Net(batch=batch, size=8)
    y = net.down("x", half)
    for _ in range(3):
        y = net.unit(y)
    y = net.down(y, 2 * half)
    result = net.compare(net.conv(net.unit(y), 5))
    count = Counter(operators(result))
    assert not _MOVING & set(count)
    assert count["CONCATENATION"] == 6


def test_no_join_is_wider_than_the_delegate_takes() -> None:
    net = _Net(size=2)
    y = net.concat(net.conv("x", 64), net.conv("x", 64))
    y = net.shuffle(y, 2)
    for _ in range(7):
        y = net.unit(y)
    result = net.compare(net.conv(y, 3))
    model = flatbuffer.unpack(result.data)
    joins = [op for op in model.subgraphs[0].operators if flatbuffer.operator_name(model, op) == "CONCATENATION"]
    assert max(len(op.inputs) for op in joins) <= 5
    assert "SPLIT" not in operators(result)


def test_an_order_passes_through_what_works_by_channel() -> None:
    """A target that a pool, an activation and a padded depthwise convolution read before a full one does."""
    net = _Net(size=6)
    y = net.shuffle(net.concat(net.conv("x", 4), net.conv("x", 4)), 2)
    pooled = net.one("MaxPool", y, 8, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    tanh = net.one("Tanh", net.depthwise(y), 8)
    result = net.compare(net.conv(pooled, 3), net.conv(tanh, 3))
    assert not _MOVING & set(operators(result))


@pytest.mark.parametrize(
    "case",
    ["shuffled", "source", "grouped", "twice", "added", "input", "activation", "depthwise result", "multiplier"],
)
def test_what_is_not_free_is_left_alone(case: str) -> None:
    """Each has one reader or maker that cannot take another order; all results are right."""
    net = _Net(channels=8, size=3)
    a, b = net.conv("x", 4), net.conv("x", 4)
    if case == "input":
        a = net.slice("x", 0, 4, 1)
    y = net.shuffle(net.concat(a, b), 2)
    outputs = [net.conv(y, 3)]
    if case == "twice":
        outputs.append(net.conv(net.concat(y, net.slice(y, 0, 2, 1)), 3))
    elif case == "grouped":
        outputs.append(net.conv(y, 4, group=2))
    elif case == "multiplier":
        outputs.append(net.conv(net.conv(y, 16, kernel=3, group=8), 3))
    elif case == "added":
        outputs.append(net.one("Add", f"{y} x", 8))
    elif case == "depthwise result":
        outputs.append(net.depthwise(y))
    else:
        outputs += {"shuffled": [y], "source": [a], "activation": [net.one("Tanh", b, 4)]}.get(case, [])
    assert "TRANSPOSE" in operators(net.compare(*outputs))


def test_many_small_parts_are_left_alone() -> None:
    """Each of many readers would have to join a run of each source: more work than one shuffle and one split."""
    net = _Net()
    y = net.shuffle(net.concat(net.conv("x", 16), net.conv("x", 16)), 2)
    result = net.compare(*(net.conv(part, 2) for part in net.split(y, *[2] * 16)))
    assert operators(result).count("CONCATENATION") == 1


def test_joins_without_a_shuffle_stay_as_they_are() -> None:
    net = _Net()
    left, right = net.split(net.conv("x", 8), 4, 4)
    result = net.compare(net.conv(net.concat(right, net.conv(left, 4)), 3))
    assert "SPLIT" in operators(result)


@pytest.mark.parametrize("seed", range(24))
def test_random_moves_between_convolutions(seed: int) -> None:
    """Splits, joins, slices with strides of both signs and shuffles, in any order, on any of the values so far."""
    rng = np.random.default_rng(seed)
    net = _Net(batch=1 + seed % 2, size=4)
    values = [net.conv("x", 4, relu=bool(rng.integers(2))) for _ in range(2)]
    for _ in range(8):
        x = values[rng.integers(len(values))]
        count = net.channels[x]
        kind = rng.choice(["split", "concat", "slice", "shuffle", "conv"])
        if kind == "split" and count % 2 == 0:
            values += net.split(x, count // 2, count // 2)
        elif kind == "concat":
            values.append(net.concat(x, values[rng.integers(len(values))]))
        elif kind == "slice" and count > 2:
            values.append(net.slice(x, *((1, count, 1), (count, -99, -1), (0, count, 2))[rng.integers(3)]))
        elif kind == "shuffle" and count % 2 == 0:
            values.append(net.shuffle(x, 2))
        else:
            values.append(net.conv(x, 4))
    net.compare(*(net.conv(x, 3, kernel=3) for x in dict.fromkeys(values[-3:])))
