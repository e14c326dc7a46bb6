"""ATen -> ONNX for products of matrices, and attention, which is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.aten.builder import Builder, Operand, dims, finite_mask


def addmm(
    g: Builder, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1
) -> ir.Value:
    if beta != 1 or alpha != 1:
        product = g.node("Mul", [g.node("MatMul", [a, b]), alpha])
        return g.node("Add", [product, _scaled(g, bias, beta)])
    wide = _leading_axes(a)
    if wide is not None:
        product = g.node("MatMul", [wide, b], (*dims(wide)[:-1], g.shape()[-1]))
        return g.reshape(g.node("Add", [product, bias], dims(product)))
    return _gemm(g, a, b, bias)


def mm(g: Builder, a: Operand, b: Operand) -> ir.Value:
    wide = _leading_axes(a)
    if wide is not None:
        return g.reshape(g.node("MatMul", [wide, b], (*dims(wide)[:-1], g.shape()[-1])))
    if isinstance(b, ir.Value) or not isinstance(a, ir.Value):
        return g.node("MatMul", [a, b])
    return _gemm(g, a, b, None)


def _gemm(g: Builder, a: Operand, b: Operand, bias: Operand | None) -> ir.Value:
    """A Gemm; a linear layer's weight arrives transposed, and is stored as the layer has it."""
    if not isinstance(b, (ir.Value, float, int)) and b.t().is_contiguous():
        return g.node("Gemm", [a, b.t(), bias], transB=1)
    return g.node("Gemm", [a, b, bias])


def _leading_axes(a: Operand) -> ir.Value | None:
    """The source of a matrix that only flattens leading axes [.., M, K] -> [-1, K]."""
    node = a.producer() if isinstance(a, ir.Value) else None
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    return source if len(dims(source)) > 2 and dims(source)[-1] == dims(a)[-1] else None  # type: ignore[arg-type]


def bmm(g: Builder, a: ir.Value, b: ir.Value) -> ir.Value:
    """[B, M, K] x [B, K, N]; where both only flatten the same leading axes, one MatMul over these."""
    wide = [_batch_axes(v) for v in (a, b)]
    if None in wide or dims(wide[0])[:-2] != dims(wide[1])[:-2]:  # type: ignore[arg-type]
        return g.node("MatMul", [a, b])
    left, right = wide
    return g.reshape(g.node("MatMul", [left, right], (*dims(left)[:-1], dims(right)[-1])))  # type: ignore[arg-type]


def _batch_axes(a: Operand) -> ir.Value | None:
    node = a.producer() if isinstance(a, ir.Value) else None
    if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    return source if len(dims(source)) > 3 and dims(source)[-2:] == dims(a)[-2:] else None  # type: ignore[arg-type]


def baddbmm(
    g: Builder, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1
) -> ir.Value:
    product = g.node("MatMul", [a, b])
    if alpha != 1:
        product = g.node("Mul", [product, alpha])
    return product if beta == 0 else g.node("Add", [product, _scaled(g, bias, beta)])


def _scaled(g: Builder, x: Operand, factor: float) -> Operand:
    if factor == 1 or not isinstance(x, ir.Value):
        return x if factor == 1 else x * factor
    return g.node("Mul", [x, factor], dims(x))


def vector_product(g: Builder, a: Operand, b: Operand) -> ir.Value:
    """mv and dot, as products of matrices."""
    left, right = g.value(a), g.value(b)
    rows = dims(left)[0] if len(dims(left)) == 2 else 1
    matrix, column = g.reshape(left, (rows, dims(right)[0])), g.reshape(right, (*dims(right), 1))
    return g.reshape(g.node("MatMul", [matrix, column], (rows, 1)))


def attention(
    g: Builder,
    query: Operand,
    key: Operand,
    value: Operand,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Operand | None = None,
    scale: float | None = None,
) -> list[ir.Value | None]:
    """softmax(scale Q K^T + mask) V; query [batch, heads, length, width]."""
    shape = g.shape(0)
    q, k, v = (g.value(x) for x in (query, key, value))
    heads, rows, width = dims(q)[1:]
    k, v = (_repeated(g, x, heads // dims(x)[1]) for x in (k, v))
    columns = dims(k)[2]
    scores_shape = (*dims(q)[:3], columns)
    q = g.node("Mul", [q, scale if scale is not None else 1 / math.sqrt(width)], dims(q))
    scores = g.node("MatMul", [q, g.transpose(k, (0, 1, 3, 2))], scores_shape)
    if attn_mask is not None:
        scores = g.node("Add", [scores, finite_mask(attn_mask)], scores_shape)
    if is_causal:
        ahead = np.triu(np.full((rows, columns), np.finfo(np.float32).min, np.float32), 1)
        scores = g.node("Add", [scores, g.array(ahead)], scores_shape)
    weights = g.node("Softmax", [scores], scores_shape, axis=3)
    return [g.node("MatMul", [weights, v], shape), None]


def _repeated(g: Builder, x: ir.Value, times: int) -> ir.Value:
    """Each head ``times`` in a row: queries that share keys and values."""
    if times == 1:
        return x
    batch, heads, *rest = dims(x)
    parts = [g.slice(x, 1, i, i + 1) for i in range(heads) for _ in range(times)]
    return g.node("Concat", parts, (batch, heads * times, *rest), axis=1)


TABLE: dict[str, Callable[..., Any]] = {
    "addmm": addmm,
    "mm": mm,
    "bmm": bmm,
    "baddbmm": baddbmm,
    "mv": vector_product,
    "dot": vector_product,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
}
