"""The technique ``drop``: whole residual blocks go, and the layers before and behind make up for them.

A block adds what it computes to its own input, so that it can be left out without changing any shape; deep residual
networks bear that ("Residual Networks Behave Like Ensembles of Relatively Shallow Networks", Veit et al., NeurIPS
2016). It removes operators, where pruning only narrows them: on devices whose fixed cost of an operator is high,
nothing else helps. The layer before a dropped block is fitted to give what came out behind it, so nothing is added.

Options: ``drop:BLOCK`` (always true) for each block, by the name of the addition's result; ``samples`` that layers are
fitted on; ``seed``; ``reconstruct`` whether to fit at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgecompile.errors import InputError
from edgecompile.progress import Progress
from edgecompile.techniques import channels as analysis
from edgecompile.techniques import sensitivity
from edgecompile.techniques.channels import Channels, GraphView
from edgecompile.techniques.pruning import written
from edgecompile.techniques.reconstruct import reconstruct
from edgecompile.types import Arrays, Model, Step

if TYPE_CHECKING:
    import onnx

_DROP = "drop:"
_KNOWN = ("reconstruct", "samples", "seed")
#: Activations that may stand behind an addition and, alike, behind what feeds the block.
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A residual block, ``name = source + branch(source)``.

    ``name`` is the result of its addition, ``nodes`` are the first outputs of the branch's nodes and of the addition.
    """

    name: str
    source: str
    nodes: frozenset[str]


def find(model: onnx.ModelProto) -> tuple[Block, ...]:
    """The blocks of a prepared graph that can be left out, in its order. A larger one may contain smaller ones."""
    view = GraphView(model)
    maker = {name: node for node in view.nodes for name in node.output}
    readers = _readers(view)
    found = []
    for node in view.nodes:
        if node.op_type != "Add" or node.output[0] in view.outputs:
            continue
        for source, end in (node.input, tuple(reversed(node.input))):
            shapes = {view.shapes.get(name) for name in (source, end, node.output[0])}
            if source in view.constants or end in view.constants or len(shapes) != 1:
                continue
            branch = _branch(source, end, node, view, maker, readers)
            if branch:
                found.append(Block(name=node.output[0], source=source, nodes=branch | {node.output[0]}))
                break
    return tuple(found)


def _readers(view: GraphView) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in view.nodes:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _branch(
    source: str,
    end: str,
    addition: onnx.NodeProto,
    view: GraphView,
    maker: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, Sequence[onnx.NodeProto]],
) -> frozenset[str] | None:
    """The nodes between a block's source and its addition, where they depend on nothing else and feed nothing else."""
    inside: dict[str, onnx.NodeProto] = {}
    waiting = [end]
    while waiting:
        name = waiting.pop()
        if name == source or name in view.constants or not name:
            continue
        node = maker.get(name)
        if node is None:
            return None  # another input of the graph
        if node.output[0] not in inside:
            inside[node.output[0]] = node
            waiting.extend(node.input)
    allowed = {*inside, addition.output[0]}
    for node in inside.values():
        for name in node.output:
            if name in view.outputs or any(reader.output[0] not in allowed for reader in readers.get(name, ())):
                return None
    feeds = any(source in node.input for node in inside.values())
    weighted = any(node.op_type in ("Conv", "Gemm", "MatMul") for node in inside.values())
    return frozenset(inside) if feeds and weighted else None


# ------------------------------------------------------------------------------------------------ leaving out


def remove(model: onnx.ModelProto, names: Collection[str]) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The graph without these blocks, and the tensors that now stand for something else.

    Where what feeds a block ends as the block does (both in an activation, or both bare) and feeds nothing else, its
    last operator takes the name of the block's sum: what comes out there is then compared with what came out behind the
    block. Raises `InputError` for a block that is not there.
    """
    import onnx

    blocks = {block.name: block for block in find(model)}
    unknown = sorted(set(names) - set(blocks))
    if unknown:
        raise InputError(
            f"the plan drops a block {unknown[0]!r}, which this model does not have",
            remedy="replay a plan on the model that it was made for",
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    standing: set[str] = set()
    for name, block in blocks.items():
        # A block within a larger one that goes, goes with it.
        if name in names and any(node.output[:1] == [name] for node in result.graph.node):
            standing.add(_drop(result, block))
    made = {name for node in result.graph.node for name in node.output}
    _drop_unread(result)
    onnx.checker.check_model(result)
    return result, frozenset(standing & made)


def _drop(model: onnx.ModelProto, block: Block) -> str:
    """Leave out one block in place; the tensor that stands for its sum from now on."""
    graph = model.graph
    source = _source(model, block)
    kept = [node for node in graph.node if node.output[0] not in block.nodes]
    readers = [node for node in kept if source in node.input]
    behind = [node for node in kept if block.name in node.input]
    maker = next((node for node in kept if source in node.output), None)
    outputs = {value.name for value in graph.output}
    before = maker if maker is not None and maker.op_type in _ACTIVATIONS else None
    after = behind[0] if len(behind) == 1 and behind[0].op_type in _ACTIVATIONS else None
    alone = maker is not None and not readers and source not in outputs
    standing = source
    if alone and before is not None and after is not None and _alike(before, after):
        inner = before.input[0]
        others = [node for node in kept if inner in node.input and node is not before]
        producer = next((node for node in kept if inner in node.output), None)
        if not others and producer is not None and inner not in outputs and len(producer.output) == 1:
            kept = [node for node in kept if node is not before]
            producer.output[0] = standing = block.name
    elif alone and before is None and maker is not None and len(maker.output) == 1:
        maker.output[0] = standing = block.name
    if standing == source:
        for node in behind:
            for place, name in enumerate(node.input):
                if name == block.name:
                    node.input[place] = source
    nodes = [_copy(node) for node in kept]
    del graph.node[:]
    graph.node.extend(nodes)
    return standing


def _drop_unread(model: onnx.ModelProto) -> None:
    """Take out constants that nothing reads any more, and the shapes of tensors that are gone."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [_copy(node) for node in graph.node if node.op_type != "Constant" or node.output[0] in read]
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    tensors = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    made = {name for node in nodes for name in node.output}
    shapes = [type(v).FromString(v.SerializeToString()) for v in graph.value_info if v.name in made]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    graph.value_info.extend(shapes)


def _source(model: onnx.ModelProto, block: Block) -> str:
    """What feeds a block now: blocks before it may have gone, and their names moved."""
    addition = next(node for node in model.graph.node if node.output[0] == block.name)
    inside = {name for node in model.graph.node if node.output[0] in block.nodes for name in node.output}
    return str(next(name for name in addition.input if name not in inside))


def _alike(left: onnx.NodeProto, right: onnx.NodeProto) -> bool:
    return bool(
        left.op_type == right.op_type
        and list(left.input[1:]) == list(right.input[1:])
        and sorted(a.SerializeToString() for a in left.attribute)
        == sorted(a.SerializeToString() for a in right.attribute)
    )


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    import onnx

    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


# ------------------------------------------------------------------------------------------------- the technique


def step(names: Collection[str], *, samples: int, fit: bool = True, seed: int = 0) -> Step:
    """The step that leaves out these blocks."""
    options: list[tuple[str, str | int | float | bool]] = [("reconstruct", fit), ("samples", samples), ("seed", seed)]
    return Step(technique="drop", options=(*options, *((f"{_DROP}{name}", True) for name in sorted(names))))


def names_of(drop: Step) -> tuple[str, ...]:
    """The blocks of a step. Raises `InputError` for an option that it does not have."""
    names = [name.removeprefix(_DROP) for name, value in drop.options if name.startswith(_DROP) and value is True]
    unknown = [name for name, _ in drop.options if name not in _KNOWN and name.removeprefix(_DROP) not in names]
    if unknown or not names:
        raise InputError(
            f"a dropping step has no option {unknown[0]!r}" if unknown else "a dropping step names no block",
            remedy=f"known: {', '.join(_KNOWN)}, drop:BLOCK",
        )
    return tuple(names)


def apply(
    original: Model, model: Model, drop: Step, samples: Sequence[Arrays], workdir: Path, progress: Progress
) -> Model:
    """Leave out the blocks of ``drop`` and fit what is left. Raises `InputError` for blocks that are not there."""
    import onnx

    options = dict(drop.options)
    names = names_of(drop)
    proto = onnx.load(str(model.path))
    some = [samples[i] for i in range(min(len(samples), int(options.get("samples", len(samples)))))]
    dropped, standing = remove(proto, names)
    if options.get("reconstruct", True):
        with progress.stage("Fit around dropped blocks"):
            dropped, _ = reconstruct(
                analysis.analyze(proto), dropped, np.array([], np.int64), some, seed=int(options.get("seed", 0)),
                moved=standing,
            )  # fmt: skip
    return written(model, dropped, workdir, note=f"{len(names)} blocks left out")


def losses(
    channels: Channels,
    blocks: Sequence[Block],
    samples: Sequence[Arrays],
    *,
    seed: int = 0,
    near: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """What the network's outputs lose when one block alone is left out and what is left is fitted.

    With ``near`` only the layers right around it are: a large net has no time for more, and what later layers could
    make up for is then counted as lost. The unit is that of `sensitivity.Curve.loss`; fitted on three quarters of
    the samples, compared on the others.
    """
    kind = sensitivity.kind_of(channels)
    fitting = samples[: max(1, len(samples) * 3 // 4)]
    held = samples[len(fitting) :] or fitting
    wanted = sensitivity.outputs(channels.graph, held)
    found: dict[str, float] = {}
    for number, block in enumerate(blocks):
        dropped, standing = remove(channels.graph.model, [block.name])
        mended, _ = reconstruct(
            channels, dropped, np.array([], np.int64), fitting, seed=seed, moved=standing, near=near
        )
        found[block.name] = sensitivity.mean_distance(kind, wanted, sensitivity.outputs(GraphView(mended), held))
        if progress is not None:
            progress(number + 1, len(blocks))
    return found
