"""Channels are found and removed exactly: what contributes nothing can go, and nothing changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompile.errors import InputError
from edgecompile.techniques import channels, prune
from tests import zoo
from tests.corpora import harness
from tests.lowering import Net
from tests.zoo import exported

_REFUSED = {"lstm"}  # its steps mix all channels with slices of one matrix


def _silenced(found: channels.Channels, kept: dict[str, list[int]]) -> onnx.ModelProto:
    """The original graph in which what will be removed contributes to nothing: its readers' weights are zero."""
    removed = channels.removed_units(found, kept)
    model = onnx.ModelProto()
    model.CopyFrom(found.graph.model)
    arrays = {name: np.array(array) for name, array in found.graph.constants.items()}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        attributes = found.graph.attributes(node)
        left = node.op_type == "MatMul" and node.input[0] in arrays
        name = node.input[0] if left else node.input[1]
        axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": int(bool(attributes.get("transB", 0)))}.get(
            node.op_type, int(left)
        )
        if name in arrays and (keep := found.keep(name, removed)[axis]) is not None:
            index: list[slice | np.ndarray] = [slice(None)] * arrays[name].ndim
            index[axis] = ~keep
            arrays[name][tuple(index)] = 0
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return model


def _halves(found: channels.Channels, seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {
        g.name: sorted(int(i) for i in rng.choice(g.size, max(1, g.size // 2), replace=False)) for g in found.groups
    }


def _error(a: onnx.ModelProto, b: onnx.ModelProto) -> tuple[float, str]:
    inputs = harness.noise(a, seed=3)
    return harness.worst(harness.reference(a, inputs), harness.reference(b, inputs))


#: Statistics over channels, or products of two computed tensors, feel even a channel whose readers are silent.
_ATTENTION = {"vit_tiny", "swin_blocks", "mobilevit_block", "fused_attention"}


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in _ATTENTION | _REFUSED])
def test_channels_that_nothing_reads_can_go(name: str) -> None:
    found = channels.analyze(onnx.load(str(exported.small(name))))
    assert found.groups
    kept = _halves(found, seed=1)
    pruned = prune.remove(found, kept)
    error, output = _error(_silenced(found, kept), pruned)
    assert error <= 1e-4, output
    assert prune.parameters(pruned) < prune.parameters(found.graph.model)


@pytest.mark.parametrize("name", sorted(_ATTENTION))
def test_attention_shrinks(name: str) -> None:
    """Heads and hidden layers go; the pruned graph computes outputs of the same shapes."""
    found = channels.analyze(onnx.load(str(exported.small(name))))
    assert found.groups
    pruned = prune.remove(found, _halves(found, seed=1))
    inputs = harness.noise(pruned, seed=3)
    before, after = harness.reference(found.graph.model, inputs), harness.reference(pruned, inputs)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert prune.parameters(pruned) < prune.parameters(found.graph.model)


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_a_net_without_groups_stays_as_it_is(name: str) -> None:
    found = channels.analyze(onnx.load(str(exported.small(name))))
    assert found.groups == ()
    assert found.notes
    assert _error(found.graph.model, prune.remove(found, {}))[0] == 0


def test_padded_shortcuts_leave_no_dead_channels() -> None:
    """Option A: halving every group halves every stream, with no channel that only zeros reach."""
    found = channels.analyze(onnx.load(str(exported.small("resnet20"))))
    kept = {group.name: list(range(group.size // 2)) for group in found.groups}
    pruned = prune.remove(found, kept)
    before, after = (_widths(model) for model in (found.graph.model, pruned))
    assert [2 * width for width in after] == before


def _widths(model: onnx.ModelProto) -> list[int]:
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    return [weights[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv"]


def _model(net: Net, output: str) -> onnx.ModelProto:
    values = [onnx.ValueInfoProto(name=output)]
    graph = helper.make_graph(net.nodes, "net", net.inputs, values, net.weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def _sizes(net: Net, output: str) -> list[int]:
    return [group.size for group in channels.analyze(_model(net, output)).groups]


def _two_convolutions(net: Net, width: int = 8) -> tuple[str, str]:
    x = net.input("x", 1, 3, 6, 6)
    return net.conv(x, 3, width), net.conv(x, 3, width)


def test_a_sum_couples_what_it_adds() -> None:
    net = Net()
    a, b = _two_convolutions(net)
    assert _sizes(net, net.conv(net.add("Add", a, b), 8, 4)) == [8]


def test_a_concatenation_couples_nothing() -> None:
    net = Net()
    a, b = _two_convolutions(net)
    assert _sizes(net, net.conv(net.add("Concat", a, b, axis=1), 16, 4)) == [8, 8]


def test_a_flattened_map_keeps_its_channels_apart() -> None:
    net = Net()
    a = net.conv(net.input("x", 1, 3, 6, 6), 3, 8)
    out = net.dense(net.add("Flatten", a), 8 * 36, 5)
    found = channels.analyze(_model(net, out))
    pruned = prune.remove(found, {found.groups[0].name: [0, 3]})
    assert {tuple(t.dims) for t in pruned.graph.initializer} >= {(72, 5), (2, 3, 3, 3)}


def test_one_map_that_weighs_all_channels_stays() -> None:
    """Spatial attention: a single channel multiplies all others and couples none of them."""
    net = Net()
    a = net.conv(net.input("x", 1, 3, 6, 6), 3, 8)
    gate = net.add("Sigmoid", net.conv(a, 8, 1))
    assert _sizes(net, net.conv(net.add("Mul", a, gate), 8, 4)) == [8]


def test_what_a_statistic_over_channels_reads_stays() -> None:
    net = Net()
    a = net.conv(net.input("x", 1, 3, 6, 6), 3, 8)
    mean = net.add("ReduceMean", a, axes=[1])
    assert _sizes(net, net.conv(net.add("Sub", a, mean), 8, 4)) == []


def test_an_operator_that_is_not_followed_keeps_its_channels_and_says_so() -> None:
    net = Net()
    a = net.conv(net.input("x", 1, 3, 6, 6), 3, 8)
    out = net.conv(net.add("Einsum", a, equation="ncij->ncij", name="odd"), 8, 4)
    found = channels.analyze(_model(net, out))
    assert all("odd" not in group.nodes for group in found.groups)
    assert any("odd" in note for note in found.notes)


def test_weights_with_two_readers_shrink_for_both() -> None:
    """A head that is shared by two maps: both maps keep the same channels."""
    net = Net()
    a, b = _two_convolutions(net)
    weight = net.constant(net.rng.normal(size=(5, 8, 1, 1)).astype(np.float32))
    heads = [net.add("Conv", source, weight) for source in (a, b)]
    last = [net.conv(head, 5, 2) for head in heads]
    found = channels.analyze(_model(net, net.add("Concat", *last, axis=1)))
    assert [group.size for group in found.groups] == [8, 5]
    kept = {found.groups[0].name: [1, 2], found.groups[1].name: [0]}
    assert _error(_silenced(found, kept), prune.remove(found, kept))[0] <= 1e-5


@pytest.mark.parametrize(
    ("kept", "words"), [({"nobody": [0]}, "nobody"), ({"Conv_0": [9]}, "position 9"), ({"Conv_0": []}, "no channel")]
)
def test_what_cannot_be_kept_is_refused(kept: dict[str, Sequence[int]], words: str) -> None:
    net = Net()
    a = net.conv(net.input("x", 1, 3, 6, 6), 3, 8)
    found = channels.analyze(_model(net, net.conv(a, 8, 4)))
    with pytest.raises(InputError, match=words):
        prune.remove(found, kept)


def test_grouped_convolutions_shrink_alike_in_every_group() -> None:
    net = Net()
    x = net.input("x", 1, 3, 6, 6)
    out = net.conv(net.conv(net.conv(x, 3, 12), 12, 12, groups=3), 12, 4)
    found = channels.analyze(_model(net, out))
    assert [group.size for group in found.groups] == [4, 4]
    kept = _halves(found, seed=0)
    assert _error(_silenced(found, kept), prune.remove(found, kept))[0] <= 1e-5


def test_a_constant_of_another_type_is_left_alone() -> None:
    net = Net()
    x = net.input("x", 1, 3, 6, 6)
    a = net.conv(x, 3, 8)
    shape = net.constant(np.array([1, 2, 4, 36], np.int64))
    shuffled = net.add("Transpose", net.add("Reshape", a, shape), perm=[0, 2, 1, 3])
    back = net.add("Reshape", shuffled, net.constant(np.array([1, 8, 6, 6], np.int64)))
    found = channels.analyze(_model(net, net.conv(back, 8, 4)))
    assert [group.size for group in found.groups] == [4]
    kept = _halves(found, seed=2)
    assert _error(_silenced(found, kept), prune.remove(found, kept))[0] <= 1e-5
    assert found.graph.model.graph.initializer[2].data_type == TensorProto.INT64


@pytest.mark.parametrize(("size", "tile", "grid"), [(16, 8, (8, 16)), (20, 8, (8, 16, 20)), (8, 8, (8,)), (3, 8, (3,))])
def test_counts_lie_on_the_tile_grid(size: int, tile: int, grid: tuple[int, ...]) -> None:
    assert prune.grid(size, tile) == grid
