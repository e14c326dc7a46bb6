"""MIL ops over spatial axes: convolution, pooling, resizing, padding. Definitions: coremltools iOS 15-18.

Tensors are torch float32 (see ``ops``); layouts are [N, C, D...] with one to three spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repedge.errors import UnsupportedModel

Pads = list[tuple[int, int]]
"""Elements before and after, one pair per spatial axis."""


def spatial_pads(
    pad_type: str,
    pad: Sequence[int] | None,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    """What a ``pad_type`` amounts to for an input of ``sizes`` and a (dilated) ``kernel``.

    ``same`` puts the odd element at the end, ``same_lower`` at the start.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        flat = list(pad or [0] * 2 * len(sizes))
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(len(sizes))]
    if pad_type not in ("same", "same_lower"):
        raise UnsupportedModel(f"the MIL pad_type {pad_type!r} is not known")
    pads: Pads = []
    for n, k, s in zip(sizes, kernel, strides, strict=True):
        total = max(0, (-(-n // s) - 1) * s + k - n)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if pad_type == "same" else (large, small))
    return pads


def pad_spatial(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """Constant padding of the last axes."""
    flat = [p for pair in reversed(pads) for p in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of x [N, C, D...] with weight [O, C/groups, K...]."""
    n = x.dim() - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = spatial_pads(pad_type, pad, x.shape[2:], kernel, strides)
    padding = [0] * n
    if all(before == after for before, after in pads):
        padding = [before for before, _ in pads]  # the kernel pads faster than a copy does
    else:
        x = pad_spatial(x, pads)
    return _CONV[n](x, weight, bias, strides, padding, dilations, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution with weight [C, O/groups, K...]: the full result, cropped by the padding.

    ``output_shape`` decides where several sizes are possible; what no input reaches is the bias alone.
    """
    n = x.dim() - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    full = _CONV_TRANSPOSE[n](x, weight, None, strides, 0, 0, groups, dilations)
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    if output_shape is not None:
        sizes = list(output_shape[-n:])
    elif pad_type.startswith("same"):
        sizes = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
    else:
        pads = spatial_pads(pad_type, pad, x.shape[2:], kernel, strides)
        sizes = [f - before - after for f, (before, after) in zip(full.shape[2:], pads, strict=True)]
    # The padding is that of the convolution whose input has the sizes of this result.
    pads = spatial_pads(pad_type, pad, sizes, kernel, strides)
    crops = [
        (-before, size - (f - before))
        for (before, _), size, f in zip(pads, sizes, full.shape[2:], strict=True)
    ]
    out = pad_spatial(full, crops)  # a negative amount crops
    return out if bias is None else out + bias.reshape(-1, *[1] * n)


def _pool_pads(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    pad_type: str,
    pad: Sequence[int] | None,
    ceil_mode: bool,
) -> tuple[Pads, Pads]:
    """The op's own padding, and the elements at the end that ``ceil_mode`` reads beyond it."""
    pads = spatial_pads(pad_type, pad, x.shape[2:], kernel, strides)
    beyond: Pads = []
    for n, k, s, (before, after) in zip(x.shape[2:], kernel, strides, pads, strict=True):
        span = n + before + after - k
        extra = 0
        if ceil_mode and span % s:
            out = -(-span // s) + 1
            if (out - 1) * s < n + before:  # a window must start inside the input or its left padding
                extra = (out - 1) * s - span
        beyond.append((0, extra))
    return pads, beyond


def max_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Maximum of each window; padding never wins."""
    n = x.dim() - 2
    strides = strides or [1] * n
    pads, beyond = _pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    both = [(b, a + more) for (b, a), (_, more) in zip(pads, beyond, strict=True)]
    return _MAX_POOL[n](pad_spatial(x, both, -math.inf), kernel_sizes, strides)


def avg_pool(
    x: Tensor,
    kernel_sizes: list[int],
    pad_type: str,
    strides: list[int] | None = None,
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window, over all its elements or over those inside the input."""
    n = x.dim() - 2
    strides = strides or [1] * n
    pads, beyond = _pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    mean = _AVG_POOL[n](pad_spatial(pad_spatial(x, pads), beyond), kernel_sizes, strides)
    padded = any(p != (0, 0) for p in pads)
    if not any(p != (0, 0) for p in beyond) and not (padded and exclude_padding_from_average):
        return mean
    counted = torch.ones(1, 1, *x.shape[2:])
    counted = pad_spatial(counted, pads, 0.0 if exclude_padding_from_average else 1.0)
    return mean / _AVG_POOL[n](pad_spatial(counted, beyond), kernel_sizes, strides)


# --- Resizing. ---


def grid_points(mode: str, size: int, out: int) -> Tensor:
    """Where on an axis of ``size`` the ``out`` samples lie: float64 [out] in [0, size - 1].

    Source: notes of coremltools' ``resize_bilinear`` (iOS 15).
    """
    i = torch.arange(out, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if out == 1:
            points = i + ((size - 1) / 2 if mode == "ALIGN_CORNERS" else 0)
        else:
            points = i * (size - 1) / (out - 1)
    elif mode == "DEFAULT":
        points = i * size / out
    elif mode == "OFFSET_CORNERS":
        points = (i + 0.5) * max(1, size - 1) / out
    elif mode == "UNALIGN_CORNERS":
        points = (i + 0.5) * size / out - 0.5
    else:
        raise UnsupportedModel(f"the MIL sampling_mode {mode!r} is not known")
    return points.clamp(0, size - 1)


def _linear(x: Tensor, axis: int, out: int, mode: str) -> Tensor:
    size = x.shape[axis]
    if size == out and mode != "OFFSET_CORNERS":  # every other grid is the identity
        return x
    points = grid_points(mode, size, out)
    low = points.floor().long()
    fraction = (points - low).float().reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
    return below + (above - below) * fraction


def _nearest(x: Tensor, axis: int, out: int, mode: str = "DEFAULT") -> Tensor:
    size = x.shape[axis]
    if mode == "DEFAULT":
        index = torch.arange(out) * size // out
    elif mode == "UNALIGN_CORNERS":  # centre of the output pixel, in integers: (2i + 1) size / (2 out)
        index = (2 * torch.arange(out) + 1) * size // (2 * out)
    else:
        raise UnsupportedModel(f"nearest resizing with sampling_mode {mode!r} is not known")
    return x.index_select(axis, index)


def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Linear in both spatial axes."""
    return _linear(_linear(x, -2, target_size_height, sampling_mode), -1, target_size_width, sampling_mode)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Element floor(i * size / out)."""
    return _nearest(_nearest(x, -2, target_size_height), -1, target_size_width)


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1
) -> Tensor:
    """`resize_nearest_neighbor` to floor(size * factor)."""
    height = math.floor(x.shape[-2] * scale_factor_height)
    return resize_nearest_neighbor(x, height, math.floor(x.shape[-1] * scale_factor_width))


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """`resize_bilinear` to floor(size * factor); the factor itself plays no part in the grid."""
    half = not align_corners if half_pixel_centers is None else half_pixel_centers
    if align_corners and half:
        raise UnsupportedModel("upsample_bilinear can't have both align_corners and half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "DEFAULT"
    height = math.floor(x.shape[-2] * scale_factor_height)
    return resize_bilinear(x, height, math.floor(x.shape[-1] * scale_factor_width), mode)


def resize(
    x: Tensor,
    shape: list[int],
    resized_dims: int,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """The last ``resized_dims`` axes to the last entries of ``shape``; 0 keeps an axis (iOS 17)."""
    step = {"LINEAR": _linear, "NEAREST_NEIGHBOR": _nearest}.get(interpolation_mode)
    if step is None:
        raise UnsupportedModel(f"the MIL interpolation_mode {interpolation_mode!r} is not known")
    for axis in range(-resized_dims, 0):
        x = step(x, axis, shape[axis] or x.shape[axis], sampling_mode)
    return x


def crop(x: Tensor, crop_height: list[int], crop_width: list[int]) -> Tensor:
    """Drop rows and columns at the borders."""
    return pad_spatial(x, [(-crop_height[0], -crop_height[1]), (-crop_width[0], -crop_width[1])])


def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pad the last len(pad) / 2 axes; ``reflect`` leaves the border element out, ``replicate`` repeats it."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    if mode == "constant":
        return pad_spatial(x, pairs, constant_val)
    for axis, (before, after) in zip(range(-len(pairs), 0), pairs, strict=True):
        size = x.shape[axis]
        index = torch.arange(-before, size + after)
        if mode == "reflect":
            index = size - 1 - (size - 1 - index.abs()).abs()
        elif mode == "replicate":
            index = index.clamp(0, size - 1)
        else:
            raise UnsupportedModel(f"the MIL pad mode {mode!r} is not known")
        x = x.index_select(axis, index)
    return x
