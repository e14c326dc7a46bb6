"""Fully connected layers in one form: Gemm(x, weight [out, in], bias [out]) with transB = 1.

MatMul(x, W), Add(MatMul(x, W), b)  ->  Gemm(x, W^T, b)
alpha (x W) + beta c                ->  Gemm(x, alpha W^T, beta c)      in float64, cast once
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, only_reader, shape_of
from repedge.passes.base import floats, input_at, insert, ints, nodes_of, rewrite


def unify_dense(model: ir.Model) -> int:
    """MatMul by a constant, and Gemm of any spelling -> Gemm(x, [out, in], [out])."""
    count = 0
    for node in nodes_of(model, "MatMul", "Gemm", "Add"):
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        if node.op_type == "MatMul":
            count += _matmul(node)
        elif node.op_type == "Gemm":
            count += _gemm(node)
        else:
            count += _bias(node)
    return count


def _matmul(node: ir.Node) -> bool:
    x, w = node.inputs
    if x is None or w is None or len(shape_of(x)) != 2 or len(shape_of(w)) != 2 or const(x) is not None:
        return False
    weight = const(w)
    if weight is None:
        return False
    rewrite(node.outputs[0], "Gemm", [x, floats(node, "weight", weight.T)], {"transB": 1})
    return True


def _gemm(node: ir.Node) -> bool:
    x, w, c = node.inputs[0], node.inputs[1], input_at(node, 2)
    weight, bias = const(w), const(c) if c is not None else np.zeros(())
    if weight is None or bias is None or attr(node, "transA", 0):
        return False
    alpha, beta = attr(node, "alpha", 1.0), attr(node, "beta", 1.0)
    rows = bias.shape[0] if bias.ndim == 2 else 1
    width = shape_of(node.outputs[0])[1]
    plain = attr(node, "transB", 0) == 1 and alpha == 1 and beta == 1
    if rows != 1 or (plain and (c is None or bias.shape == (width,))):
        return False
    inputs = [x, w if attr(node, "transB", 0) == 1 and alpha == 1 else None]
    if inputs[1] is None:
        matrix = weight if attr(node, "transB", 0) else weight.T
        inputs[1] = floats(node, "weight", matrix if alpha == 1 else matrix.astype(np.float64) * alpha)
    if c is not None:
        inputs.append(floats(node, "bias", np.broadcast_to(bias.astype(np.float64) * beta, (1, width))[0]))
    rewrite(node.outputs[0], "Gemm", inputs, {"transB": 1})
    return True


def _bias(add: ir.Node) -> bool:
    """Add(Gemm(x, W), b) -> Gemm(x, W, b)."""
    for value, other in (add.inputs, tuple(reversed(add.inputs))):
        gemm = value.producer() if value is not None else None
        if value is None or gemm is None or gemm.op_type != "Gemm" or only_reader(value) is not add:
            continue
        if input_at(gemm, 2) is not None or other is None or len(gemm.inputs) < 2:
            continue
        width = shape_of(value)[1]
        if shape_of(other) not in ((width,), (1, width)) or shape_of(add.outputs[0]) != shape_of(value):
            continue
        bias = const(other)
        if bias is not None and not attr(gemm, "transA", 0):
            attributes = {k: attr(gemm, k) for k in ("alpha", "transB") if k in gemm.attributes}
            rewrite(
                add.outputs[0],
                "Gemm",
                [*gemm.inputs[:2], floats(add, "bias", bias.reshape(width))],
                attributes,
            )
            return True
    return False


def widen_vectors(model: ir.Model) -> int:
    """MatMul by a vector -> MatMul by a matrix of one row or column, and a Reshape."""
    count = 0
    for node in nodes_of(model, "MatMul"):
        a, b = node.inputs
        if a is None or b is None or min(len(shape_of(a)), len(shape_of(b))) != 1:
            continue
        out = node.outputs[0]
        batch = shape_of(a)[:-2] if len(shape_of(b)) == 1 else shape_of(b)[:-2]
        rows = (1,) if len(shape_of(a)) == 1 else shape_of(a)[-2:-1]
        columns = (1,) if len(shape_of(b)) == 1 else shape_of(b)[-1:]
        inputs = [_matrix(node, a, (1, *shape_of(a))), _matrix(node, b, (*shape_of(b), 1))]
        product = insert(node, "MatMul", inputs, shape=(*batch, *rows, *columns))
        rewrite(out, "Reshape", [product, ints(node, "shape", shape_of(out))])
        count += 1
    return count


def _matrix(node: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """A vector as a matrix of this shape; a matrix as it is."""
    if len(shape_of(value)) != 1:
        return value
    array = const(value)
    if array is not None:
        return floats(node, "matrix", array.reshape(shape))
    return insert(node, "Reshape", [value, ints(node, "matrix", shape)], shape=shape)


# --- Einsum ----------------------------------------------------------------------------------------


def spell_einsums(model: ir.Model) -> int:
    """Einsum of one or two operands -> Transpose, ReduceSum, Reshape and MatMul.

    Repeated letters in one operand, and three or more operands, stay.
    """
    count = 0
    for node in nodes_of(model, "Einsum"):
        terms = _terms(node)
        if terms is None or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        *inputs, output = terms
        values = [
            _summed(node, value, term, [*output, *(c for t in inputs if t is not term for c in t)])
            for value, term in zip(node.inputs, inputs, strict=True)
        ]
        if len(values) == 2:
            values = [_product(node, values[0], values[1], output)]
        value, term = values[0]
        rewrite(node.outputs[0], "Transpose", [value], {"perm": [term.index(c) for c in output]})
        count += 1
    return count


_Named = tuple[ir.Value, list[str]]
"""A value and a letter for each of its axes."""


def _terms(node: ir.Node) -> list[list[str]] | None:
    """Letters of each operand and of the result; an ellipsis becomes letters that nobody uses."""
    equation = attr(node, "equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    ranks = [len(shape_of(v)) for v in node.inputs]
    if len(parts) > 2 or len(parts) != len(ranks):
        return None
    free = [n - len(p.replace("...", "")) for p, n in zip(parts, ranks, strict=True) if "..." in p]
    if len(set(free)) > 1:
        return None  # operands that broadcast
    more = "".join(chr(0x3B1 + i) for i in range(free[0] if free else 0))
    if not arrow:
        letters = [c for c in left if c not in ",."]
        right = ("..." if free else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    terms = [list(p.replace("...", more)) for p in (*parts, right)]
    sizes = [dict(zip(t, shape_of(v), strict=True)) for t, v in zip(terms, node.inputs, strict=False)]
    agree = len(sizes) < 2 or all(sizes[0][c] == sizes[1][c] for c in sizes[0] if c in sizes[1])
    return terms if agree and all(len(set(t)) == len(t) for t in terms) else None


def _summed(node: ir.Node, value: ir.Value | None, term: list[str], needed: list[str]) -> _Named:
    """Without the axes that nothing else names."""
    assert value is not None, "Einsum's operands are all there"
    gone = [i for i, c in enumerate(term) if c not in needed]
    if not gone:
        return value, term
    left = [c for c in term if c in needed]
    shape = [n for i, n in enumerate(shape_of(value)) if i not in gone]
    axes = ints(node, "axes", gone)
    return insert(node, "ReduceSum", [value, axes], {"keepdims": 0}, shape=shape), left


def _product(node: ir.Node, a: _Named, b: _Named, output: list[str]) -> _Named:
    """[shared.., rows, inner] x [shared.., inner, columns]; rows stay apart where nothing is shared."""
    shared = [c for c in a[1] if c in b[1] and c in output]
    inner = [c for c in a[1] if c in b[1] and c not in output]
    rows, columns = [c for c in a[1] if c not in b[1]], [c for c in b[1] if c not in a[1]]
    size = {c: n for value, term in (a, b) for c, n in zip(term, shape_of(value), strict=True)}
    merged = [rows] if shared else [[c] for c in rows]
    left = _arranged(node, a, [*([c] for c in shared), *merged, inner])
    right = _arranged(node, b, [*([c] for c in shared), inner, columns])
    shape = [*shape_of(left)[:-1], shape_of(right)[-1]]
    product = insert(node, "MatMul", [left, right], shape=shape)
    term = [*shared, *rows, *columns]
    full = [size[c] for c in term]
    if shape != full:
        product = insert(node, "Reshape", [product, ints(node, "shape", full)], shape=full)
    return product, term


def _arranged(node: ir.Node, named: _Named, groups: list[list[str]]) -> ir.Value:
    """The value with an axis for each group of letters."""
    value, term = named
    perm = [term.index(c) for group in groups for c in group]
    shape = shape_of(value)
    if perm != sorted(perm):
        value = insert(node, "Transpose", [value], {"perm": perm}, shape=[shape[i] for i in perm])
    target = [math.prod(shape[term.index(c)] for c in group) for group in groups]
    if tuple(target) == shape_of(value):
        return value
    return insert(node, "Reshape", [value, ints(node, "shape", target)], shape=target)
