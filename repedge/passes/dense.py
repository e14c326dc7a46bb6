"""Fully connected layers in one form: Gemm(x, weight [out, in], bias [out]) with transB = 1.

MatMul(x, W), Add(MatMul(x, W), b)  ->  Gemm(x, W^T, b)
alpha (x W) + beta c                ->  Gemm(x, alpha W^T, beta c)      in float64, cast once
"""

from __future__ import annotations

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
