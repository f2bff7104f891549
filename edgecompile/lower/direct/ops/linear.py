"""Gemm, MatMul and Einsum."""

from __future__ import annotations

from math import prod

import numpy as np

from edgecompile.lower.direct import ir
from edgecompile.lower.direct.build import Builder, OnnxNode, RefusedError
from edgecompile.lower.direct.infer import broadcast
from edgecompile.lower.direct.ir import IRError, Value
from edgecompile.lower.direct.read import Handler


def _zeros(b: Builder, count: int) -> Value:
    return b.constant(np.zeros(count), "float32")


def _scaled(b: Builder, x: Value, factor: float) -> Value:
    if factor == 1:
        return x
    if x.data is not None:
        return b.constant(x.data * np.float64(factor), x.dtype)
    return b.binary("MUL", x, b.scalar(factor, x))


def _gemm(b: Builder, node: OnnxNode) -> Value:
    """``alpha * A' @ B' + beta * C``."""
    a, w = node.required(0), node.required(1)
    if a.rank != 2 or w.rank != 2 or a.dtype != "float32":
        raise RefusedError(f"its operands are {a.dtype} of shapes {a.shape} and {w.shape}")
    a = b.transpose(a, (1, 0)) if node.flag("transA") else a
    w = w if node.flag("transB") else b.transpose(w, (1, 0))
    alpha, c = node.number("alpha", 1.0), node.operand(2)
    if w.data is None:
        y = _scaled(b, matmul(b, a, b.transpose(w, (1, 0))), alpha)
        return y if c is None else b.binary("ADD", y, _scaled(b, c, node.number("beta", 1.0)))
    w = _scaled(b, w, alpha)
    outputs = w.shape[0]
    if c is None:
        return b.add(ir.FullyConnected(), a, w, _zeros(b, outputs))
    c = _scaled(b, c, node.number("beta", 1.0))
    if c.data is not None and (c.elements == 1 or (c.elements == outputs and c.shape[-1] == outputs)):
        bias = b.constant(np.broadcast_to(c.data.reshape(-1), outputs), c.dtype)
        return b.add(ir.FullyConnected(), a, w, bias)
    return b.binary("ADD", b.add(ir.FullyConnected(), a, w, _zeros(b, outputs)), c)


def _matmul(b: Builder, node: OnnxNode) -> Value:
    return matmul(b, node.required(0), node.required(1))


def matmul(b: Builder, x: Value, y: Value) -> Value:
    """NumPy's ``x @ y``."""
    if x.dtype != "float32" or y.dtype != "float32":
        raise RefusedError(f"its operands are {x.dtype} and {y.dtype}; float32 is lowered")
    if min(x.rank, y.rank) == 0:
        raise RefusedError("an operand is a scalar")
    if x.rank == 1:
        product = matmul(b, b.reshape(x, (1, *x.shape)), y)
        return b.reshape(product, (*product.shape[:-2], *product.shape[-1:]) if y.rank > 1 else ())
    if y.rank == 1:
        product = matmul(b, x, b.reshape(y, (*y.shape, 1)))
        return b.reshape(product, product.shape[:-1])
    if x.shape[-1] != y.shape[-2]:
        raise RefusedError(f"cannot multiply {x.shape} by {y.shape}")
    if x.data is not None:
        # Then one matrix for all is a fully connected layer, and the quantizer rounds what is constant around 0.
        return _turned(b, matmul(b, _turned(b, y), _turned(b, x)))
    if y.data is not None and prod(y.shape[:-2]) == 1:
        return _by_weights(b, x, y)
    return _batched(b, x, y)


def _turned(b: Builder, x: Value) -> Value:
    """The matrices of ``x`` transposed."""
    return b.transpose(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))


def _by_weights(b: Builder, x: Value, y: Value) -> Value:
    """A product with one constant matrix is a fully connected layer."""
    weights = b.constant(y.array.reshape(y.shape[-2:]).T, y.dtype)
    product = b.add(ir.FullyConnected(), x, weights, _zeros(b, y.shape[-1]))
    return b.with_rank(product, max(x.rank, y.rank))


def _batched(b: Builder, x: Value, y: Value) -> Value:
    try:
        batch = broadcast(x.shape[:-2], y.shape[:-2])
    except IRError as exc:
        raise RefusedError(f"cannot multiply {x.shape} by {y.shape}") from exc
    if prod(y.shape[:-2]) == 1 and prod(batch) > 1:
        # One matrix for all: the rows of all batches in one product.
        rows = b.reshape(x, (1, prod(x.shape[:-1]), x.shape[-1]))
        product = b.add(ir.MatMul(), rows, b.reshape(y, (1, *y.shape[-2:])))
        return b.reshape(product, (*batch, x.shape[-2], y.shape[-1]))
    return b.add(ir.MatMul(), *(b.expand(v, (*batch, *v.shape[-2:])) for v in (x, y)))


# ---------------------------------------------------------------------------------------------------------- Einsum


def _einsum(b: Builder, node: OnnxNode) -> Value:
    """Each pair of operands by one batched product, from left to right, then a sum and a transpose."""
    operands = [node.required(i) for i in range(len(node.inputs))]
    terms, result = _equation(node.text("equation", ""), operands)
    value, labels = _reduced(b, *_diagonal_free(operands[0], terms[0]), "".join(terms[1:]) + result)
    for i in range(1, len(operands)):
        later = "".join(terms[i + 1 :]) + result
        right, right_labels = _reduced(b, *_diagonal_free(operands[i], terms[i]), labels + later)
        value, labels = _contract(b, value, labels, right, right_labels, later)
    value, labels = _reduced(b, value, labels, result)
    if sorted(labels) != sorted(result):
        raise RefusedError("its result has labels that no operand has")
    return b.transpose(value, tuple(labels.index(label) for label in result))


def _equation(equation: str, operands: list[Value]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, ``...`` written out in capital Greek letters."""
    text = equation.replace(" ", "")
    left, arrow, result = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise RefusedError(f"equation {equation!r} has {len(terms)} terms for {len(operands)} operands")
    greek = "ΑΒΓΔΕΖΗΘ"
    hidden = [v.rank - len(t.replace("...", "")) if "..." in t else 0 for t, v in zip(terms, operands, strict=True)]
    if max(hidden) > len(greek) or min(hidden) < 0:
        raise RefusedError(f"equation {equation!r} does not fit its operands")
    names = greek[: max(hidden)]
    terms = [t.replace("...", names[len(names) - h :]) for t, h in zip(terms, hidden, strict=True)]
    if not arrow:
        joined = "".join(terms)
        result = names + "".join(sorted(c for c in set(joined) - set(names) if joined.count(c) == 1))
    result = result.replace("...", names)
    if any(len(t) != v.rank for t, v in zip(terms, operands, strict=True)) or len(set(result)) != len(result):
        raise RefusedError(f"equation {equation!r} does not fit its operands")
    return terms, result


def _diagonal_free(value: Value, labels: str) -> tuple[Value, str]:
    if len(set(labels)) != len(labels):
        raise RefusedError("it takes a diagonal")
    return value, labels


def _reduced(b: Builder, value: Value, labels: str, wanted: str) -> tuple[Value, str]:
    """``value`` summed over the labels that nothing needs any more."""
    axes = tuple(i for i, label in enumerate(labels) if label not in wanted)
    if not axes:
        return value, labels
    return b.add(ir.Reduce(kind="SUM", axes=axes, keepdims=False), value), "".join(c for c in labels if c in wanted)


def _contract(b: Builder, x: Value, xs: str, y: Value, ys: str, later: str) -> tuple[Value, str]:
    sizes: dict[str, int] = {}
    for labels, value in ((xs, x), (ys, y)):
        for label, size in zip(labels, value.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                if 1 not in (sizes[label], size):
                    raise RefusedError(f"label {label!r} stands for {sizes[label]} and {size}")
                raise RefusedError(f"label {label!r} is broadcast")
    both = [label for label in xs if label in ys]
    batch = "".join(label for label in both if label in later)
    inner = "".join(label for label in both if label not in later)
    rows = "".join(label for label in xs if label not in ys)
    columns = "".join(label for label in ys if label not in xs)

    def arranged(value: Value, labels: str, groups: tuple[str, str, str]) -> Value:
        value = b.transpose(value, tuple(labels.index(label) for label in "".join(groups)))
        return b.reshape(value, tuple(prod(sizes[label] for label in group) for group in groups))

    if not inner and not rows and not columns:
        left = b.transpose(x, tuple(xs.index(label) for label in batch))
        return b.binary("MUL", left, b.transpose(y, tuple(ys.index(label) for label in batch))), batch
    left, right = arranged(x, xs, (batch, rows, inner)), arranged(y, ys, (batch, inner, columns))
    labels = batch + rows + columns
    return b.reshape(matmul(b, left, right), tuple(sizes[label] for label in labels)), labels


HANDLERS: dict[str, Handler] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
