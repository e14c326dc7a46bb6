"""MIL ops that reduce, join, cut and rearrange. Definitions: coremltools iOS 15 to 18; see ``ops``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Reductions. ---


def reduction(f: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def op(x: Tensor, axes: list[int] | None = None, keep_dims: bool = False) -> Tensor:
        return f(x, list(range(x.dim())) if axes is None else axes, keep_dims)

    return op


def product(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x if keep_dims else x.squeeze(tuple(axes))


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keepdim=keep_dims)


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keepdim=keep_dims)


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
) -> tuple[Tensor, ...]:
    """The k greatest (or least) along an axis in order; of equal ones the first."""
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    return (values.narrow(axis, 0, k), indices.narrow(axis, 0, k))[: 1 + return_indices]


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    y = x.flip(axis) if reverse else x
    total = y.cumsum(axis)
    total = total - y if exclusive else total
    return total.flip(axis) if reverse else total


# --- Shape and data movement. ---


def concat(values: list[Tensor], axis: int, interleave: bool = False) -> Tensor:
    if not interleave:
        return torch.cat(values, axis)
    at = axis % values[0].dim()
    return torch.stack(values, at + 1).flatten(at, at + 1)


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    return x.split(split_sizes or x.shape[axis] // (num_splits or 1), axis)


def stack(values: list[Tensor], axis: int) -> Tensor:
    return torch.stack(values, axis)


def slice_by_index(
    x: Tensor,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Tensor:
    """x[begin:end:stride] per axis with numpy's rules; masks open an end or index with ``begin``."""
    no = [False] * x.dim()
    squeezed = squeeze_mask or no
    for axis, size in enumerate(x.shape):
        if squeezed[axis]:
            x = x.narrow(axis, begin[axis] % size, 1)
            continue
        first = None if (begin_mask or no)[axis] else begin[axis]
        last = None if (end_mask or no)[axis] else end[axis]
        index = range(*slice(first, last, (stride or [1] * x.dim())[axis]).indices(size))
        if index.step > 0:
            x = x[(slice(None),) * axis + (slice(index.start, index.stop, index.step),)]
        else:  # torch has no negative steps
            x = x.index_select(axis, torch.tensor(list(index), dtype=torch.int64))
    return x.squeeze(tuple(i for i, s in enumerate(squeezed) if s))


def slice_by_size(x: Tensor, begin: list[int], size: list[int]) -> Tensor:
    for axis, (first, n) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if n == -1 else n)
    return x


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    return x.reshape([s or x.shape[i] for i, s in enumerate(shape)])


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def gather(
    x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Slices of x along ``axis``, one for each index; negative indices count from the end."""
    axis %= x.dim()
    if batch_dims:
        parts = [gather(a, i, axis - 1, batch_dims - 1) for a, i in zip(x, indices, strict=True)]
        return torch.stack(parts)
    index = indices.long().flatten()
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index)
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    index = indices.long()
    return torch.take_along_dim(x, torch.where(index < 0, index + x.shape[axis], index), axis)


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Slices of x at the indices' last axis, which holds a place on each of x's first axes."""
    if batch_dims:
        return torch.stack([gather_nd(a, i, batch_dims - 1) for a, i in zip(x, indices, strict=True)])
    return x[tuple(indices.long().unbind(-1))]


def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(perm)


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, upscale_factor)


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return F.pixel_unshuffle(x, downscale_factor)


def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Channels are [block row, block column, C], unlike `pixel_shuffle`'s [C, row, column]."""
    n, c, h, w = x.shape
    b = block_size
    y = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """The inverse of `depth_to_space`."""
    n, c, h, w = x.shape
    b = block_size
    y = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b**2, h // b, w // b)


def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reverse(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else axes)


def tile(x: Tensor, reps: list[int]) -> Tensor:
    return x.tile(reps)


def fill(shape: list[int], value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else value.expand(shape)


def shape_of(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)
