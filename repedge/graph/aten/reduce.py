"""ATen -> ONNX for what runs along axes: softmax, sums, norms, normalization, arguments of extremes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.aten.builder import BOOL, FLOAT, INT64, Builder, Unlowerable, dims

if TYPE_CHECKING:
    import torch

Lowering = Callable[..., Any]

LONGEST_SCAN = 1024
"""A running sum over more elements is no product with a triangle of ones any more."""


def axes_of(x: ir.Value, dim: Any) -> list[int]:
    """Sorted non-negative axes; None and an empty list mean all."""
    rank = len(dims(x))
    given = [dim] if isinstance(dim, int) else list(dim if dim is not None else ())
    return sorted(d % rank for d in given or range(rank)) if rank else []


def kept(x: ir.Value, axes: Sequence[int]) -> tuple[int, ...]:
    """Shape of ``x`` with the axes reduced to 1."""
    return tuple(1 if i in axes else n for i, n in enumerate(dims(x)))


def reduced(
    g: Builder, op: str, x: ir.Value, axes: Sequence[int], shape: Sequence[int] | None = None
) -> ir.Value:
    """A reduction to ``shape`` (torch's own result if None), its axes kept or not as that says."""
    target = g.shape() if shape is None else tuple(shape)
    return g.node(op, [x, g.ints(*axes)], target, keepdims=int(len(target) == len(dims(x))))


def softmax(op: str) -> Lowering:
    def lower(g: Builder, x: ir.Value, dim: int, *_: Any) -> ir.Value:
        return g.node(op, [x], axis=dim % max(1, len(g.shape())))

    return lower


def reduce(op: str) -> Lowering:
    def lower(
        g: Builder, x: ir.Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> ir.Value:
        axes = axes_of(x, dim)
        if op == "ReduceMean" and len(dims(x)) == 4 and axes == [2, 3]:
            return g.reshape(g.node("GlobalAveragePool", [x], (*dims(x)[:2], 1, 1)))
        if x.dtype == BOOL:  # a count: exact in float32 up to 2^24
            return g.cast(reduced(g, op, g.cast(x, FLOAT), axes), g.dtype)
        return reduced(g, op, g.cast(x, g.dtype), axes)

    return lower


def extreme(op: str) -> Lowering:
    """max.dim and min.dim: values and where they are."""

    def lower(g: Builder, x: ir.Value, dim: int, keepdim: bool = False) -> list[ir.Value]:
        axis = dim % max(1, len(dims(x)))
        place = g.node(f"Arg{op}", [x], g.shape(1), INT64, axis=axis, keepdims=int(keepdim))
        return [reduced(g, f"Reduce{op}", x, [axis], g.shape(0)), place]

    return lower


def arg_extreme(op: str) -> Lowering:
    def lower(g: Builder, x: ir.Value, dim: int | None = None, keepdim: bool = False) -> ir.Value:
        if dim is None:
            x, dim = g.reshape(x, (math.prod(dims(x)),)), 0
        return g.node(op, [x], dtype=INT64, axis=dim % max(1, len(dims(x))), keepdims=int(keepdim))

    return lower


def quantifier(op: str) -> Lowering:
    """any and all: the largest and the smallest truth value."""

    def lower(g: Builder, x: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
        numbers = g.cast(g.cast(x, BOOL), FLOAT)
        return g.cast(reduced(g, op, numbers, axes_of(x, dim)), BOOL)

    return lower


def top_k(
    g: Builder, x: ir.Value, k: int, dim: int = -1, largest: bool = True, sort: bool = True
) -> list[ir.Value]:
    axis = dim % len(dims(x))
    shapes = [g.shape(0), g.shape(1)]
    options: dict[str, Any] = {"axis": axis, "largest": int(largest), "sorted": 1}
    values, places = g.nodes_out("TopK", [x, g.ints(k)], shapes, **options)
    places.dtype = INT64
    return [values, places]


def sort(g: Builder, x: ir.Value, dim: int = -1, descending: bool = False) -> list[ir.Value]:
    return top_k(g, x, dims(x)[dim], dim, descending)


def stable_sort(
    g: Builder, x: ir.Value, *, stable: Any, dim: int = -1, descending: bool = False
) -> list[ir.Value]:
    return sort(g, x, dim, descending)


def cumsum(g: Builder, x: ir.Value, dim: int, *, dtype: Any = None) -> ir.Value:
    """A product with a triangle of ones along the axis, which every target can do."""
    axis, size = dim % len(dims(x)), dims(x)[dim]
    if size > LONGEST_SCAN or x.dtype != FLOAT:
        raise Unlowerable(f"{size} elements of {x.dtype}")
    triangle = g.array(np.triu(np.ones((size, size), np.float32)))
    perm = list(range(len(dims(x))))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    last = g.transpose(x, perm)
    return g.transpose(g.node("MatMul", [last, triangle], dims(last)), perm)


def logsumexp(g: Builder, x: ir.Value, dim: Any, keepdim: bool = False) -> ir.Value:
    axes = axes_of(x, dim)
    most = reduced(g, "ReduceMax", x, axes, kept(x, axes))
    parts = g.node("Exp", [g.node("Sub", [x, most], dims(x))], dims(x))
    total = g.node("Log", [reduced(g, "ReduceSum", parts, axes, kept(x, axes))], kept(x, axes))
    return g.reshape(g.node("Add", [total, most], kept(x, axes)))


def product(g: Builder, x: ir.Value, dim: int, keepdim: bool = False, *, dtype: Any = None) -> ir.Value:
    return reduced(g, "ReduceProd", x, axes_of(x, dim))


# --- norms and moments -----------------------------------------------------------------------------


def vector_norm(
    g: Builder, x: ir.Value, order: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> ir.Value:
    axes = axes_of(x, dim)
    if order in (1, 2):
        return reduced(g, f"ReduceL{int(order)}", x, axes)
    size = g.node("Abs", [x], dims(x))
    if math.isinf(order):
        return reduced(g, "ReduceMax" if order > 0 else "ReduceMin", size, axes)
    if order == 0:
        return reduced(g, "ReduceSum", g.node("Sign", [size], dims(x)), axes)
    powers = reduced(g, "ReduceSum", g.node("Pow", [size, float(order)], dims(x)), axes)
    return g.node("Pow", [powers, 1 / order])


def _variance(
    g: Builder, x: ir.Value, dim: Any, correction: Any, shape: Sequence[int]
) -> tuple[ir.Value, ir.Value]:
    """Variance in ``shape``, and the mean with its axes kept."""
    axes = axes_of(x, dim)
    mean = reduced(g, "ReduceMean", x, axes, kept(x, axes))
    apart = g.node("Sub", [x, mean], dims(x))
    square = g.node("Mul", [apart, apart], dims(x))
    var = reduced(g, "ReduceMean", square, axes, shape)
    n = math.prod(dims(x)[a] for a in axes)
    less = 1 if correction is None else correction
    return (g.node("Mul", [var, n / max(n - less, 0)], shape) if less else var), mean


def variance(
    g: Builder, x: ir.Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> ir.Value:
    return _variance(g, x, dim, correction, g.shape())[0]


def deviation(
    g: Builder, x: ir.Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> ir.Value:
    return g.node("Sqrt", [_variance(g, x, dim, correction, g.shape())[0]])


def variance_mean(
    g: Builder, x: ir.Value, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> list[ir.Value]:
    var, mean = _variance(g, x, dim, correction, g.shape(0))
    return [var, g.reshape(mean, g.shape(1))]


def layer_norm(
    g: Builder,
    x: ir.Value,
    normalized: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> list[ir.Value | None]:
    import torch

    scale = torch.ones(tuple(normalized)) if weight is None else weight
    y = g.node("LayerNormalization", [x, scale, bias], g.shape(0), axis=-len(normalized), epsilon=eps)
    return [y, None, None]


def group_norm(
    g: Builder,
    x: ir.Value,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> list[ir.Value | None]:
    """One instance per group, then a scale and a shift per channel."""
    shape = g.shape(0)
    if groups == channels and weight is not None and bias is not None:
        return [g.node("InstanceNormalization", [x, weight, bias], shape, epsilon=eps), None, None]
    rows = g.reshape(x, (shape[0], groups, math.prod(shape[1:]) // groups))
    ones, zeros = g.array(np.ones(groups, np.float32)), g.array(np.zeros(groups, np.float32))
    plain = g.node("InstanceNormalization", [rows, ones, zeros], dims(rows), epsilon=eps)
    y = g.node("Reshape", [plain, g.ints(0, *shape[1:])], shape)
    for op, array in (("Mul", weight), ("Add", bias)):
        if array is not None:
            y = g.node(op, [y, array.reshape(-1, *[1] * (len(shape) - 2))], shape)
    return [y, None, None]


TABLE: dict[str, Lowering] = {
    "_softmax": softmax("Softmax"),
    "_safe_softmax": softmax("Softmax"),
    "_log_softmax": softmax("LogSoftmax"),
    "mean": reduce("ReduceMean"),
    "mean.dim": reduce("ReduceMean"),
    "sum": reduce("ReduceSum"),
    "sum.dim_IntList": reduce("ReduceSum"),
    "amax": reduce("ReduceMax"),
    "amin": reduce("ReduceMin"),
    "max": reduce("ReduceMax"),
    "min": reduce("ReduceMin"),
    "max.dim": extreme("Max"),
    "min.dim": extreme("Min"),
    "argmax": arg_extreme("ArgMax"),
    "argmin": arg_extreme("ArgMin"),
    "any": quantifier("ReduceMax"),
    "any.dim": quantifier("ReduceMax"),
    "all": quantifier("ReduceMin"),
    "all.dim": quantifier("ReduceMin"),
    "topk": top_k,
    "sort": sort,
    "sort.stable": stable_sort,
    "cumsum": cumsum,
    "logsumexp": logsumexp,
    "prod.dim_int": product,
    "linalg_vector_norm": vector_norm,
    "var.correction": variance,
    "std.correction": deviation,
    "var_mean.correction": variance_mean,
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
}
