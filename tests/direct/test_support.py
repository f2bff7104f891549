"""The tables of types and ranks are what LiteRT's kernels do: each entry is run, in a process that may be ended."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from edgecompile.lower.direct import ir, support, write
from edgecompile.lower.direct.emit import Emitter
from edgecompile.lower.direct.infer import infer
from edgecompile.lower.direct.passes.place import place

_TYPES = ("float32", "int32", "int64", "uint8", "int8", "bool")
_SHAPE = (1, 4, 4, 4)


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(1, 5, shape)


def _cases() -> Iterator[tuple[ir.Op, list[tuple[int, ...]]]]:
    """Operators whose kernels differ in what they take, with the shapes of their operands."""
    for kind in ("ABS", "NEG", "RELU", "SIGN", "SQRT", "LOGICAL_NOT", "FLOOR", "EXP"):
        yield ir.Unary(kind=kind), [_SHAPE]
    for kind in support._BINARY:
        yield ir.Binary(kind=kind), [_SHAPE, (1, 4, 1, 4)]  # type: ignore[arg-type]
    for kind in ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL"):
        yield ir.Compare(kind=kind), [_SHAPE, (1, 4, 1, 4)]
    for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"):
        yield ir.Reduce(kind=kind, axes=(1, 2), keepdims=True), [_SHAPE]
    yield ir.ArgReduce(kind="ARG_MAX", axis=1), [_SHAPE]
    yield ir.TopK(axis=3, k=2), [_SHAPE]
    yield ir.CumSum(axis=1), [_SHAPE]
    yield ir.Concat(axis=1), [_SHAPE, _SHAPE]
    yield ir.Split(axis=1, sizes=(2, 2)), [_SHAPE]
    yield ir.Slice(begin=(0, 1, 0, 3), size=(1, 2, 2, 2), strides=(1, 1, 2, -2)), [_SHAPE]
    for value in (0, 3):
        yield ir.Pad(pads=((0, 0), (1, 1), (0, 2), (0, 0)), value=value), [_SHAPE]
    yield ir.Tile(multiples=(1, 2, 1, 3)), [_SHAPE]
    yield ir.BroadcastTo(shape=(3, 4, 4, 4)), [_SHAPE]
    yield ir.DepthToSpace(block=2), [_SHAPE]
    yield ir.SpaceToDepth(block=2), [_SHAPE]


def _ranked() -> Iterator[tuple[ir.Op, list[tuple[int, ...]]]]:
    """Operators at the largest rank they are said to take."""
    for kind in support._BINARY:
        if not kind.startswith("LOGICAL"):
            rank = support._BINARY_RANKS.get(kind, 4)
            yield ir.Binary(kind=kind), [(2,) * (rank - 2) + (1, 3), (2,) * (rank - 2) + (3, 1)]  # type: ignore[arg-type]
    yield ir.Compare(kind="LESS"), [(2, 1, 3, 2), (1, 2, 3, 1)]
    yield ir.MatMul(), [(1, 2, 2, 3, 4), (1, 2, 2, 4, 3)]
    yield ir.PRelu(), [(2, 3, 2, 2), (1, 3, 1, 2)]
    yield ir.Pad(pads=((0, 1),) * 5), [(2,) * 5]
    yield ir.Slice(begin=(0,) * 5, size=(1,) * 5, strides=(1,) * 5), [(2,) * 5]
    yield ir.Split(axis=1, sizes=(1, 1)), [(2,) * 5]
    yield ir.Concat(axis=1), [(2,) * 6] * 2
    yield ir.Reduce(kind="MEAN", axes=(1, 3), keepdims=False), [(2,) * 6]
    yield ir.Softmax(axis=5), [(2,) * 6]


def _file(op: ir.Op, arrays: list[np.ndarray]) -> bytes:
    graph = ir.Graph()
    for i, array in enumerate(arrays):
        layout = ir.identity(array.ndim)
        graph.add_value(ir.Value(name=f"x{i}", shape=array.shape, dtype=array.dtype.name, layout=layout))
        graph.inputs.append(f"x{i}")
    results = infer(op, [graph.values[name] for name in graph.inputs])
    for i, (shape, dtype) in enumerate(results):
        graph.add_value(ir.Value(name=f"y{i}", shape=shape, dtype=dtype, layout=ir.identity(len(shape))))
    outputs = tuple(f"y{i}" for i in range(len(results)))
    graph.add(ir.Node(op=op, inputs=tuple(graph.inputs), outputs=outputs, origin=("Test", "test")))
    graph.outputs = [(name, name) for name in outputs]
    place(graph, channels_last=False)
    graph.sort()
    return write.pack(Emitter(graph).run())


def _run(data: bytes, arrays: list[np.ndarray]) -> list[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_content=data, experimental_op_resolver_type=plain).get_signature_runner()
    found = runner(**{f"x{i}": array for i, array in enumerate(arrays)})
    return [found[name] for name in sorted(found)]


def _in_child(queue: Any, cases: list[tuple[ir.Op, list[np.ndarray]]]) -> None:
    os.close(2)  # the kernels complain there
    for op, arrays in cases:
        try:
            queue.put(_run(_file(op, arrays), arrays))
        except (RuntimeError, ValueError) as exc:
            queue.put(str(exc))


def _results(op: ir.Op, arrays: list[np.ndarray]) -> list[np.ndarray] | str:
    """What the kernel gives, or how it fails."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, [(op, arrays)]))
    child.start()
    child.join()
    return "the process ended" if queue.empty() else queue.get()


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize(("op", "shapes"), list(_cases()), ids=lambda v: str(v))
def test_every_type_that_is_listed_works(op: ir.Op, shapes: list[tuple[int, ...]]) -> None:
    numbers = [_numbers(*shape) for shape in shapes]
    reference: list[np.ndarray] | None = None
    for dtype in (t for t in _TYPES if t in support.types(op)):
        found = _results(op, [(a > 2) if dtype == "bool" else a.astype(dtype) for a in numbers])
        assert not isinstance(found, str), (dtype, found)
        if dtype == "float32":
            reference = found
        elif reference is not None and dtype != "bool":
            for mine, theirs in zip(found, reference, strict=True):
                np.testing.assert_array_equal(mine, np.trunc(theirs).astype(mine.dtype), dtype)


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize(("op", "shapes"), list(_ranked()), ids=lambda v: str(v))
def test_every_rank_that_is_listed_works(op: ir.Op, shapes: list[tuple[int, ...]]) -> None:
    arrays = [_numbers(*shape).astype(np.float32) for shape in shapes]
    found = _results(op, arrays)
    assert not isinstance(found, str), found


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_kernels_do_end_the_process_so_that_the_tables_are_needed() -> None:
    bytes_ = [_numbers(2, 2).astype(np.uint8)] * 2
    assert isinstance(_results(ir.Binary(kind="ADD"), bytes_), str)


def test_all_types_are_considered() -> None:
    assert all(support.types(op) <= set(_TYPES) for (op, _), _ in product(_cases(), [0]))
