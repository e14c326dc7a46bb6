"""Activation functions spelled out in arithmetic become the one operator that means them.

Exporters write GELU as five nodes in many orders. Instead of listing the orders, the arithmetic
around an Erf, Tanh, Clip or HardSigmoid ``t`` is expanded into a polynomial in ``x`` and ``t`` and
its coefficients are compared:

    Gelu(x)               = 0.5 x + 0.5 x t,   t = Erf(x / sqrt 2)
    Gelu(x, tanh)         = 0.5 x + 0.5 x t,   t = Tanh(sqrt(2/pi) (x + 0.044715 x^3))
    HardSigmoid(x)        = p t + q,           t = Clip(a x + b, lo, hi) of slope 1/6, from 0 to 1
    HardSwish(x)          = x (p t + q),       the same t, or HardSigmoid(x, 1/6, 0.5)

Sources: ONNX operator specification, Gelu-20, HardSigmoid-6, HardSwish-14. ``x * Sigmoid(x)`` stays:
opset 20 has no operator for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import only_reader
from repedge.passes.base import bypass, close, floats, input_at, nodes_of, rewrite, same_shape, scalar

Polynomial = dict[tuple[int, int], float]
"""Coefficients by (power of x, power of t)."""

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Pow", "Identity"})
MAX_DEPTH = 8
"""Nodes between x and t, or t and the result, that are looked through."""

ERF_ARGUMENT: Polynomial = {(1, 0): math.sqrt(0.5)}
TANH_ARGUMENT: Polynomial = {(1, 0): math.sqrt(2 / math.pi), (3, 0): math.sqrt(2 / math.pi) * 0.044715}
GELU: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
HARD_SIGMOID_SLOPE, HARD_SIGMOID_OFFSET = 1 / 6, 0.5


def fuse_activations(model: ir.Model) -> int:
    """Arithmetic around Erf, Tanh, Clip, HardSigmoid -> Gelu, HardSigmoid, HardSwish."""
    count = 0
    for node in nodes_of(model, "Erf", "Tanh", "Clip", "HardSigmoid"):
        for x in _sources(node):
            argument = _expand(node.inputs[0], x, None)
            if argument is not None and _fuse(node, x, argument):
                count += 1
                break
    return count


def _fuse(node: ir.Node, x: ir.Value, argument: Polynomial) -> bool:
    t = node.outputs[0]
    if node.op_type in ("Erf", "Tanh"):
        if not _equal(argument, ERF_ARGUMENT if node.op_type == "Erf" else TANH_ARGUMENT):
            return False
        attributes = {"approximate": "none" if node.op_type == "Erf" else "tanh"}
        for y in _results(t):
            if same_shape(x, y) and _equal(_expand(y, x, t), GELU):
                rewrite(y, "Gelu", [x], attributes)
                return True
        return False
    for y in _results(t):
        result = _expand(y, x, t) if same_shape(x, y) else None
        if result is None:
            continue
        if _is_hard_sigmoid(node, argument, _divided_by_x(result)):
            rewrite(y, "HardSwish", [x])
            return True
        if node.op_type == "Clip" and _is_hard_sigmoid(node, argument, result):
            rewrite(y, "HardSigmoid", [x], {"alpha": HARD_SIGMOID_SLOPE, "beta": HARD_SIGMOID_OFFSET})
            return True
    return False


def _is_hard_sigmoid(node: ir.Node, argument: Polynomial, result: Polynomial | None) -> bool:
    """Whether ``p t + q`` is clip(x / 6 + 0.5, 0, 1), given what t is a function of."""
    if result is None or not result.keys() <= {(0, 1), (0, 0)} or not argument.keys() <= {(1, 0), (0, 0)}:
        return False
    p, q = result.get((0, 1), 0.0), result.get((0, 0), 0.0)
    a, b = argument.get((1, 0), 0.0), argument.get((0, 0), 0.0)
    if node.op_type == "HardSigmoid":
        a, b = _hard_sigmoid_of(node, a, b)
        lo, hi = 0.0, 1.0
    else:
        lo, hi = _bounds(node)
    return (
        p > 0
        and math.isfinite(lo + hi)
        and abs(p * lo + q) <= 1e-6
        and close(p * hi + q, 1)
        and close(p * a, HARD_SIGMOID_SLOPE)
        and close(p * b + q, HARD_SIGMOID_OFFSET)
    )


def _hard_sigmoid_of(node: ir.Node, a: float, b: float) -> tuple[float, float]:
    alpha, beta = attr(node, "alpha", 0.2), attr(node, "beta", 0.5)
    return alpha * a, alpha * b + beta


# --- expanding arithmetic ----------------------------------------------------------------------


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """What t may be a function of: its argument and the tensors of the same shape that this comes from."""
    seen: list[ir.Value] = []
    frontier = [(node.inputs[0], 0)]
    while frontier:
        value, depth = frontier.pop(0)
        if (
            value is None
            or value in seen
            or scalar(value) is not None
            or not same_shape(value, node.outputs[0])
        ):
            continue
        seen.append(value)
        yield value
        producer = value.producer()
        if producer is not None and producer.op_type in ARITHMETIC and depth < MAX_DEPTH:
            frontier.extend((v, depth + 1) for v in producer.inputs)


def _results(t: ir.Value) -> Iterator[ir.Value]:
    """t itself and what arithmetic makes of it, nearest first, each a candidate for the whole function."""
    seen: list[ir.Value] = []
    frontier = [(t, 0)]
    while frontier:
        value, depth = frontier.pop(0)
        if value in seen:
            continue
        seen.append(value)
        yield value
        if depth < MAX_DEPTH // 2:
            readers = [use.node for use in value.uses() if use.node.op_type in ARITHMETIC]
            frontier.extend((n.outputs[0], depth + 1) for n in readers)


def _expand(value: ir.Value | None, x: ir.Value, t: ir.Value | None, depth: int = 0) -> Polynomial | None:
    """``value`` as a polynomial in x and t, or None if it is none (or not of the shape of x)."""
    if value is x:
        return {(1, 0): 1.0}
    if value is t and t is not None:
        return {(0, 1): 1.0}
    number = scalar(value)
    if number is not None:
        return {(0, 0): number}
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in ARITHMETIC or depth > MAX_DEPTH or not same_shape(value, x):
        return None
    a = _expand(node.inputs[0], x, t, depth + 1)
    if a is None:
        return None
    b = _expand(node.inputs[1], x, t, depth + 1) if len(node.inputs) > 1 else {}
    return None if b is None else _combine(node.op_type, a, b)


def _combine(op: str, a: Polynomial, b: Polynomial) -> Polynomial | None:
    number = b.get((0, 0), 0.0) if b.keys() <= {(0, 0)} else None
    match op:
        case "Add":
            return _sum(a, b, 1.0)
        case "Sub":
            return _sum(a, b, -1.0)
        case "Mul":
            return _product(a, b)
        case "Div":
            return _product(a, {(0, 0): 1 / number}) if number else None
        case "Neg":
            return _product(a, {(0, 0): -1.0})
        case "Pow" if number in (2.0, 3.0):
            square = _product(a, a)
            return square if number == 2.0 or square is None else _product(square, a)
        case "Identity":
            return a
    return None


def _sum(a: Polynomial, b: Polynomial, sign: float) -> Polynomial:
    total = dict(a)
    for powers, c in b.items():
        total[powers] = total.get(powers, 0.0) + sign * c
    return total


def _product(a: Polynomial, b: Polynomial) -> Polynomial | None:
    product: Polynomial = {}
    for (i, j), c in a.items():
        for (k, m), d in b.items():
            if i + k > 4 or j + m > 1:
                return None
            product[i + k, j + m] = product.get((i + k, j + m), 0.0) + c * d
    return product


def _divided_by_x(p: Polynomial) -> Polynomial | None:
    return {(i - 1, j): c for (i, j), c in p.items()} if all(i > 0 for i, _ in p) else None


def _equal(p: Polynomial | None, q: Polynomial) -> bool:
    return p is not None and p.keys() == q.keys() and all(close(p[k], q[k]) for k in q)


# --- clipping ----------------------------------------------------------------------------------

UNBOUNDED = float(np.finfo(np.float32).max)
"""A bound at or beyond this is no bound; exporters write it for an open side."""


def unify_clips(model: ir.Model) -> int:
    """Max(x, c), Min(x, c) -> Clip; Clip(x, 0, inf) -> Relu; Clip and Relu in a row -> one of them."""
    count = 0
    for node in nodes_of(model, "Max", "Min", "Clip", "Relu"):
        if node.op_type in ("Max", "Min"):
            count += _clip_from_extremum(node)
        else:
            count += _merge_clip(node)
    return count


def _clip_from_extremum(node: ir.Node) -> bool:
    if len(node.inputs) != 2 or not _is_float(node):
        return False
    for x, bound in (node.inputs, tuple(reversed(node.inputs))):
        number = scalar(bound)
        if number is None or scalar(x) is not None or not same_shape(x, node.outputs[0]):
            continue
        lo, hi = (number, math.inf) if node.op_type == "Max" else (-math.inf, number)
        return _write_clip(node, x, lo, hi)
    return False


def _merge_clip(node: ir.Node) -> bool:
    x = node.inputs[0]
    if node.op_type == "Clip" and not _has_constant_bounds(node):
        return False
    lo, hi = _bounds(node)
    inner = x.producer() if x is not None else None
    if (
        x is not None
        and inner is not None
        and inner.op_type in ("Clip", "Relu")
        and _has_constant_bounds(inner)
    ):
        inner_lo, inner_hi = _bounds(inner)
        # clip(clip(x, a, b), c, d) is clip(x, clip(a, c, d), clip(b, c, d)).
        lo, hi = min(max(inner_lo, lo), hi), min(max(inner_hi, lo), hi)
        if (lo, hi) == (inner_lo, inner_hi):
            return bypass(node, x)
        if only_reader(x) is node:
            return _write_clip(node, inner.inputs[0], lo, hi)
        return False
    if node.op_type == "Clip" and (lo, hi) == (-math.inf, math.inf):
        return bypass(node, x)
    if node.op_type == "Clip" and lo == 0 and hi == math.inf:
        return _write_clip(node, x, lo, hi)
    return False


def _write_clip(node: ir.Node, x: ir.Value | None, lo: float, hi: float) -> bool:
    if lo == 0 and hi == math.inf:
        rewrite(node.outputs[0], "Relu", [x])
        return True
    low = None if lo == -math.inf else floats(node, "min", lo)
    high = None if hi == math.inf else floats(node, "max", hi)
    rewrite(node.outputs[0], "Clip", [x, low] if high is None else [x, low, high])
    return True


def _has_constant_bounds(node: ir.Node) -> bool:
    return _is_float(node) and all(v is None or scalar(v) is not None for v in node.inputs[1:])


def _is_float(node: ir.Node) -> bool:
    return node.outputs[0].dtype == ir.DataType.FLOAT


def _bounds(node: ir.Node) -> tuple[float, float]:
    """The constant bounds of a Clip or Relu; infinite where open or not constant.

    Where the lower one is above the upper one, Clip-13 gives the upper one everywhere.
    """
    if node.op_type == "Relu":
        return 0.0, math.inf
    lo, hi = scalar(input_at(node, 1)), scalar(input_at(node, 2))
    lo = -math.inf if lo is None or lo <= -UNBOUNDED else lo
    hi = math.inf if hi is None or hi >= UNBOUNDED else hi
    return min(lo, hi), hi
