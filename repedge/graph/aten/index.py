"""ATen -> ONNX for picking elements: indices, masks, comparisons, windows taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.aten.builder import BOOL, FLOAT, INT64, Builder, Operand, Unlowerable, common_type, dims

Lowering = Callable[..., Any]


# --- truth -----------------------------------------------------------------------------------------


def compare(op: str, negate: bool = False) -> Lowering:
    def lower(g: Builder, x: Operand, y: Operand) -> ir.Value:
        kind = common_type(x, y)
        kind = INT64 if kind == BOOL else kind
        found = g.node(op, [g.cast(x, kind), g.cast(y, kind)], dtype=BOOL)
        return g.node("Not", [found], dtype=BOOL) if negate else found

    return lower


def logic(op: str) -> Lowering:
    def lower(g: Builder, *operands: Operand) -> ir.Value:
        if g.dtype != BOOL:
            raise Unlowerable("bits of integers")
        return g.node(op, [g.cast(x, BOOL) for x in operands], dtype=BOOL)

    return lower


def where(g: Builder, mask: Operand, x: Operand, y: Operand) -> ir.Value:
    return g.node("Where", [g.cast(mask, BOOL), g.cast(x, g.dtype), g.cast(y, g.dtype)], dtype=g.dtype)


def masked_fill(g: Builder, x: Operand, mask: Operand, value: Operand) -> ir.Value:
    return where(g, mask, value, x)


def triangle(keep: Callable[..., np.ndarray]) -> Lowering:
    def lower(g: Builder, x: ir.Value, diagonal: int = 0) -> ir.Value:
        return g.node("Mul", [x, g.array(keep(np.ones(dims(x)[-2:], np.float32), diagonal))])

    return lower


# --- positions -------------------------------------------------------------------------------------


def _positions(g: Builder, index: Any, size: int) -> ir.Value:
    """An index as int64, counted from the front where it is constant."""
    if isinstance(index, ir.Value):
        return g.cast(index, INT64)
    return g.array(np.asarray(index).astype(np.int64) % size)


def take(g: Builder, x: Operand, axis: int, index: Any, shape: Sequence[int] | None = None) -> ir.Value:
    """``x`` at the positions ``index`` (any rank) along an axis."""
    value = g.value(x, common_type(x))
    return g.node("Gather", [value, _positions(g, index, dims(value)[axis])], shape, value.dtype, axis=axis)


def index_select(g: Builder, x: Operand, dim: int, index: Operand) -> ir.Value:
    return take(g, x, dim % len(g.shape()), index)


def embedding(g: Builder, weight: Operand, index: Operand, *_: Any) -> ir.Value:
    return take(g, weight, 0, index)


def gather(g: Builder, x: Operand, dim: int, index: Operand, *, sparse_grad: bool = False) -> ir.Value:
    value = g.value(x, common_type(x))
    axis = dim % len(dims(value))
    shape = dims(index) if isinstance(index, ir.Value) else tuple(index.shape)  # type: ignore[union-attr]
    same = all(a == axis or n == s for a, (n, s) in enumerate(zip(dims(value), shape, strict=True)))
    if not same:  # GatherElements needs no more either, but some runtimes read past the end
        for a, n in enumerate(shape):
            value = value if a == axis else g.slice(value, a, 0, n)
    places = _positions(g, index, dims(value)[axis])
    return g.node("GatherElements", [value, places], dtype=value.dtype, axis=axis)


def index(g: Builder, x: Operand, indices: Sequence[Any]) -> ir.Value:
    """``x[:, i, :, j]``: the indexed axes are made one, in which the positions are counted through."""
    value = g.value(x, common_type(x))
    chosen = {a: _unmasked(i) for a, i in enumerate(indices) if i is not None}
    axes = list(chosen)
    if len(axes) == 1:
        return take(g, value, axes[0], chosen[axes[0]])
    if any(isinstance(i, ir.Value) for i in chosen.values()):
        raise Unlowerable("several indices that depend on the input")
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    others = [a for a in range(len(dims(value))) if a not in axes]
    first = axes[0] if adjacent else 0
    perm = [*others[:first], *axes, *others[first:]]
    sizes = [dims(value)[a] for a in axes]
    flat = np.ravel_multi_index([np.asarray(chosen[a]) % n for a, n in zip(axes, sizes, strict=True)], sizes)
    moved = g.transpose(value, perm)
    shape = (*dims(moved)[:first], math.prod(sizes), *dims(moved)[first + len(axes) :])
    return take(g, g.reshape(moved, shape), first, flat)


def _unmasked(index: Any) -> Any:
    """A mask as the positions where it is true; only of one axis."""
    import torch

    if isinstance(index, ir.Value):
        if index.dtype == BOOL:
            raise Unlowerable("a mask that depends on the input")
        return index
    if index.dtype != torch.bool:
        return index
    if index.ndim != 1:
        raise Unlowerable("a mask of several axes")
    return np.flatnonzero(index.numpy())


def flip(g: Builder, x: ir.Value, dim: Sequence[int]) -> ir.Value:
    for axis in (d % len(dims(x)) for d in dim):
        if dims(x)[axis] > 1:
            x = take(g, x, axis, np.arange(dims(x)[axis])[::-1].copy(), dims(x))
    return x


def rot90(g: Builder, x: ir.Value, k: int = 1, dim: Sequence[int] = (0, 1)) -> ir.Value:
    """Quarter turns from the first axis towards the second."""
    rank = len(dims(x))
    a, b = (d % rank for d in dim)
    perm = list(range(rank))
    if k % 4 == 2:
        return flip(g, x, (a, b))
    perm[a], perm[b] = b, a
    if k % 4 == 1:
        return g.transpose(flip(g, x, (b,)), perm)
    return flip(g, g.transpose(x, perm), (b,)) if k % 4 == 3 else x


def roll(g: Builder, x: ir.Value, shifts: Sequence[int], dim: Sequence[int] = ()) -> ir.Value:
    if not dim:
        return g.reshape(roll(g, g.reshape(x, (math.prod(dims(x)),)), shifts, (0,)))
    for shift, axis in zip(shifts, (d % len(dims(x)) for d in dim), strict=True):
        size = dims(x)[axis]
        if shift % size:
            cut = size - shift % size
            parts = [g.slice(x, axis, cut, size), g.slice(x, axis, 0, cut)]
            x = g.node("Concat", parts, dims(x), axis=axis)
    return x


def as_strided(
    g: Builder, x: ir.Value, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> ir.Value:
    """Which elements of ``x`` a view of its memory shows: a Reshape, or a Gather from the flat tensor."""
    import torch

    tensor = g.arguments[0]
    if tensor.numel() != tensor.untyped_storage().nbytes() // tensor.element_size():
        raise Unlowerable("memory beyond the tensor's own")
    where_in_memory = torch.empty(tensor.numel(), dtype=torch.int64)
    where_in_memory.as_strided(tensor.shape, tensor.stride()).copy_(
        torch.arange(tensor.numel()).view(tensor.shape)
    )
    found = where_in_memory.as_strided(g.result.shape, g.result.stride(), g.result.storage_offset())
    if torch.equal(found.reshape(-1), torch.arange(tensor.numel())):
        return g.reshape(x)
    if dims(x)[:1] == (1,) and g.shape()[:1] == (1,):
        return take(g, g.reshape(x, (1, math.prod(dims(x)))), 1, found[0].numpy())
    return take(g, g.reshape(x, (math.prod(dims(x)),)), 0, found.numpy())


def unfold(g: Builder, x: ir.Value, dim: int, size: int, step: int) -> ir.Value:
    """Windows along an axis; what is in a window becomes the last axis."""
    axis, rank = dim % len(dims(x)), len(dims(x))
    starts = np.arange(0, dims(x)[axis] - size + 1, step)
    cells = starts[:, None] + np.arange(size)
    shape = (*dims(x)[:axis], *cells.shape, *dims(x)[axis + 1 :])
    taken = take(g, x, axis, cells, shape)
    perm = [a for a in range(rank + 1) if a != axis + 1]
    return g.transpose(taken, (*perm, axis + 1))


def im2col(
    g: Builder,
    x: ir.Value,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> ir.Value:
    """All windows as columns: a depthwise convolution with one kernel per cell of the window."""
    batch, channels, *size = dims(x)
    weight = _one_hot(channels, kernel)
    space = [
        (n + 2 * p - (k - 1) * d - 1) // s + 1
        for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(kernel),
        "strides": tuple(stride),
        "dilations": tuple(dilation),
    }
    shape = (batch, len(weight), *space)
    return g.reshape(
        g.node("Conv", [x, g.array(weight)], shape, pads=(*padding, *padding), group=channels, **attributes)
    )


def col2im(
    g: Builder,
    x: ir.Value,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> ir.Value:
    """The sum of overlapping windows: a depthwise transposed convolution with one kernel per cell."""
    batch, channels = dims(x)[0], dims(x)[1] // math.prod(kernel)
    space = [
        (n + 2 * p - (k - 1) * d - 1) // s + 1
        for n, k, d, p, s in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    rest = [
        n - ((o - 1) * s - 2 * p + (k - 1) * d + 1)
        for n, o, k, d, p, s in zip(size, space, kernel, dilation, padding, stride, strict=True)
    ]
    # What no window reaches lies in the padding first; beyond that it is zeros at the end.
    ends = [max(p - r, 0) for p, r in zip(padding, rest, strict=True)]
    extra = [max(r - p, 0) for p, r in zip(padding, rest, strict=True)]
    if any(e >= s for e, s in zip(extra, stride, strict=True)):
        raise Unlowerable("cells that no window reaches")
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(kernel),
        "strides": tuple(stride),
        "dilations": tuple(dilation),
    }
    maps = g.node("Reshape", [x, g.ints(0, dims(x)[1], *space)], (batch, dims(x)[1], *space))
    weight = g.array(_one_hot(channels, kernel))
    return g.node(
        "ConvTranspose",
        [maps, weight],
        pads=(*padding, *ends),
        output_padding=tuple(extra),
        group=channels,
        **attributes,
    )


def _one_hot(channels: int, kernel: Sequence[int]) -> np.ndarray:
    """Weight [channels * kh * kw, 1, kh, kw]: each filter is one cell of the window."""
    cells = math.prod(kernel)
    return np.tile(np.eye(cells, dtype=np.float32).reshape(cells, 1, *kernel), (channels, 1, 1, 1))


SAMPLING = (("linear", "nearest", "cubic"), ("zeros", "border", "reflection"))
"""ATen's numbers for interpolation and padding."""


def grid_sample(
    g: Builder, x: ir.Value, grid: Operand, mode: int, padding: int, align_corners: bool
) -> ir.Value:
    words: dict[str, Any] = {"mode": SAMPLING[0][mode], "padding_mode": SAMPLING[1][padding]}
    return g.node("GridSample", [x, g.cast(grid, FLOAT)], align_corners=int(align_corners), **words)


TABLE: dict[str, Lowering] = {
    **{f"{a}.{kind}": compare(op) for a, op in (
        ("gt", "Greater"), ("ge", "GreaterOrEqual"), ("lt", "Less"), ("le", "LessOrEqual"), ("eq", "Equal"),
    ) for kind in ("Scalar", "Tensor")},
    "ne.Scalar": compare("Equal", negate=True),
    "ne.Tensor": compare("Equal", negate=True),
    "bitwise_and.Tensor": logic("And"),
    "bitwise_or.Tensor": logic("Or"),
    "bitwise_xor.Tensor": logic("Xor"),
    "bitwise_not": logic("Not"),
    "logical_and": logic("And"),
    "logical_or": logic("Or"),
    "logical_xor": logic("Xor"),
    "logical_not": logic("Not"),
    "where.self": where,
    "masked_fill.Scalar": masked_fill,
    "masked_fill.Tensor": masked_fill,
    "tril": triangle(np.tril),
    "triu": triangle(np.triu),
    "index.Tensor": index,
    "index_select": index_select,
    "gather": gather,
    "embedding": embedding,
    "flip": flip,
    "rot90": rot90,
    "roll": roll,
    "as_strided": as_strided,
    "unfold": unfold,
    "im2col": im2col,
    "col2im": col2im,
    "grid_sampler_2d": grid_sample,
}  # fmt: skip
