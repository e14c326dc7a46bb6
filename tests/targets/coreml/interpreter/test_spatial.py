"""Spatial ops of the MIL interpreter against plain numpy definitions, in fp32 and fp16, iOS 16 to 18."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from mil_programs import Build, Definition, W, X, check_ops, mb, per_channel

# --- Plain definitions. ---


def padded(x, pads, value=0.0):
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def windows(x, kernel, strides, dilations=(1, 1)):
    """Yields (row, column, window [N, C, kh, kw])."""
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    rows = range(0, x.shape[2] - span[0] + 1, strides[0])
    columns = range(0, x.shape[3] - span[1] + 1, strides[1])
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        yield i, j, x[:, :, r : r + span[0] : dilations[0], c : c + span[1] : dilations[1]]


def gathered(x, kernel, strides, dilations, f):
    cells = {(i, j): f(w) for i, j, w in windows(x, kernel, strides, dilations)}
    rows, columns = (max(k[a] for k in cells) + 1 for a in (0, 1))
    return np.stack([np.stack([cells[i, j] for j in range(columns)], -1) for i in range(rows)], -2)


def conv(x, w, b=0.0, strides=(1, 1), pads=((0, 0), (0, 0)), dilations=(1, 1), groups=1):
    outs = []
    for g in range(groups):
        part = np.split(padded(x, pads), groups, 1)[g]
        kernels = np.split(w, groups, 0)[g]
        outs.append(
            gathered(
                part, w.shape[2:], strides, dilations, lambda v, k=kernels: np.einsum("ncij,ocij->no", v, k)
            )
        )
    return np.concatenate(outs, 1) + np.reshape(b, (-1, 1, 1))


def conv_transpose(x, w, strides, groups=1):
    """The full result: every input element adds its kernel."""
    n, c, h, v = x.shape
    kh, kw = w.shape[2:]
    out = np.zeros((n, w.shape[1] * groups, (h - 1) * strides[0] + kh, (v - 1) * strides[1] + kw))
    o = w.shape[1]
    for i, j, k in itertools.product(range(h), range(v), range(c)):
        g = k // (c // groups)
        r, s = i * strides[0], j * strides[1]
        out[:, g * o : (g + 1) * o, r : r + kh, s : s + kw] += x[:, k, i, j, None, None, None] * w[k]
    return out


def average(x, kernel, strides, pads, include, beyond=0):
    """Mean of each window; ``beyond`` rows and columns at the end never count."""
    ends = [(b, a + beyond) for b, a in pads]
    total = gathered(padded(x, ends), kernel, strides, (1, 1), lambda v: v.sum((2, 3)))
    ones = padded(padded(np.ones_like(x), pads, float(include)), [(0, beyond)] * 2)
    return total / gathered(ones, kernel, strides, (1, 1), lambda v: v.sum((2, 3)))


def maximum(x, kernel, strides, pads):
    return gathered(padded(x, pads, -math.inf), kernel, strides, (1, 1), lambda v: v.max((2, 3)))


def linear_at(x, axis, points):
    """Linear interpolation of an axis at fractional positions."""
    moved = np.moveaxis(x, axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])
    at = np.clip(points, 0, moved.shape[-1] - 1)
    out = np.stack([np.interp(at, np.arange(moved.shape[-1]), row) for row in flat])
    return np.moveaxis(out.reshape(*moved.shape[:-1], len(points)), -1, axis)


def bilinear(x, height, width, grid):
    return linear_at(linear_at(x, 2, grid(x.shape[2], height)), 3, grid(x.shape[3], width))


GRIDS = {  # coremltools' notes of resize_bilinear
    "STRICT_ALIGN_CORNERS": lambda n, m: np.arange(m) * (n - 1) / max(m - 1, 1),
    "ALIGN_CORNERS": lambda n, m: np.arange(m) * (n - 1) / (m - 1) if m > 1 else np.array([(n - 1) / 2]),
    "DEFAULT": lambda n, m: np.arange(m) * (n - n / m) / max(m - 1, 1),
    "OFFSET_CORNERS": lambda n, m: (0.5 + np.arange(m)) * max(1, n - 1) / m,
    "UNALIGN_CORNERS": lambda n, m: np.arange(m) * n / m + 0.5 * n / m - 0.5,
}

# --- Cases: name -> (how coremltools builds it, what it is). ---

SPATIAL: dict[str, tuple[Build, Definition]] = {
    "conv_valid": (
        lambda x, t: mb.conv(x=x, weight=W["dense"].astype(t), bias=W["bias"].astype(t), strides=[2, 1]),
        lambda x: conv(x, W["dense"], W["bias"], (2, 1)),
    ),
    "conv_custom": (
        lambda x, t: mb.conv(
            x=x, weight=W["grouped"].astype(t), pad_type="custom", pad=[0, 1, 2, 1], groups=2, strides=[2, 2]
        ),
        lambda x: conv(x, W["grouped"], 0, (2, 2), ((0, 1), (2, 1)), groups=2),
    ),
    "conv_same": (  # kernel 3x2: a column at the end; 9 rows at stride 2 need 2
        lambda x, t: mb.conv(x=x, weight=W["dense"].astype(t), pad_type="same", strides=[2, 2]),
        lambda x: conv(x, W["dense"], 0, (2, 2), ((1, 1), (0, 1))),
    ),
    "conv_same_lower": (
        lambda x, t: mb.conv(x=x, weight=W["dense"].astype(t), pad_type="same_lower", strides=[1, 1]),
        lambda x: conv(x, W["dense"], 0, (1, 1), ((1, 1), (1, 0))),
    ),
    "conv_dilated": (
        lambda x, t: mb.conv(x=x, weight=W["dense"].astype(t), pad_type="same", dilations=[2, 3]),
        lambda x: conv(x, W["dense"], 0, (1, 1), ((2, 2), (1, 2)), (2, 3)),
    ),
    "conv_depthwise": (
        lambda x, t: mb.conv(
            x=x, weight=W["depthwise"].astype(t), pad_type="custom", pad=[2, 2, 2, 2], groups=6
        ),
        lambda x: conv(x, W["depthwise"], 0, (1, 1), ((2, 2), (2, 2)), groups=6),
    ),
    "conv_transpose": (
        lambda x, t: mb.conv_transpose(x=x, weight=W["up"].astype(t), strides=[2, 2]),
        lambda x: conv_transpose(x, W["up"], (2, 2)),
    ),
    "conv_transpose_custom": (
        lambda x, t: mb.conv_transpose(
            x=x,
            weight=W["up"].astype(t),
            bias=W["bias"].astype(t),
            strides=[2, 2],
            groups=2,
            pad_type="custom",
            pad=[1, 0, 1, 1],
        ),
        lambda x: conv_transpose(x, W["up"], (2, 2), 2)[:, :, 1:, 1:-1] + per_channel(W["bias"]),
    ),
    "conv_transpose_output": (  # torch's output_padding: the last row is bias alone
        lambda x, t: mb.conv_transpose(
            x=x,
            weight=W["up"][:, :, :1, :1].astype(t),
            bias=W["bias"][:2].astype(t),
            strides=[2, 2],
            output_shape=[2, 2, 18, 14],
        ),
        lambda x: (
            padded(conv_transpose(x, W["up"][:, :, :1, :1], (2, 2)), ((0, 1), (0, 1)))
            + per_channel(W["bias"][:2])
        ),
    ),
    "conv_transpose_same": (  # undoes a SAME convolution of 18x14: 1 of 3 - 2 = 1 is cut at the end
        lambda x, t: mb.conv_transpose(x=x, weight=W["up"].astype(t), strides=[2, 2], pad_type="same"),
        lambda x: conv_transpose(x, W["up"], (2, 2))[:, :, :-1, :-1],
    ),
    "max_pool": (
        lambda x, t: mb.max_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        lambda x: maximum(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    ),
    "max_pool_asymmetric": (
        lambda x, t: mb.max_pool(
            x=x, kernel_sizes=[2, 3], strides=[2, 2], pad_type="custom", pad=[0, 1, 2, 0]
        ),
        lambda x: maximum(x, (2, 3), (2, 2), ((0, 1), (2, 0))),
    ),
    "max_pool_ceil": (
        lambda x, t: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid", ceil_mode=True),
        lambda x: maximum(x, (2, 2), (2, 2), ((0, 1), (0, 1))),
    ),
    "max_pool_ceil_dropped": (  # a last window that would start in the right padding does not exist
        lambda x, t: mb.max_pool(
            x=x, kernel_sizes=[2, 2], strides=[2, 3], pad_type="custom", pad=[1, 1, 1, 1], ceil_mode=True
        ),
        lambda x: maximum(x, (2, 2), (2, 3), ((1, 0), (1, 0)))[:, :, :5, :3],
    ),
    "avg_pool_same": (
        lambda x, t: mb.avg_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same"),
        lambda x: average(x, (3, 3), (2, 2), ((1, 1), (1, 1)), True),
    ),
    "avg_pool_same_lower": (
        lambda x, t: mb.avg_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[1, 1],
            pad_type="same_lower",
            exclude_padding_from_average=True,
        ),
        lambda x: average(x, (2, 2), (1, 1), ((1, 0), (1, 0)), False),
    ),
    "avg_pool_exclude": (
        lambda x, t: mb.avg_pool(
            x=x,
            kernel_sizes=[3, 3],
            strides=[1, 1],
            pad_type="custom",
            pad=[1, 0, 0, 2],
            exclude_padding_from_average=True,
        ),
        lambda x: average(x, (3, 3), (1, 1), ((1, 0), (0, 2)), False),
    ),
    "avg_pool_ceil": (
        lambda x, t: mb.avg_pool(
            x=x,
            kernel_sizes=[2, 2],
            strides=[2, 2],
            pad_type="valid",
            ceil_mode=True,
        ),
        lambda x: average(x, (2, 2), (2, 2), ((0, 0), (0, 0)), True, beyond=1),
    ),
    "upsample_nearest": (
        lambda x, t: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: x.repeat(2, 2).repeat(3, 3),
    ),
    "resize_nearest": (
        lambda x, t: mb.resize_nearest_neighbor(x=x, target_size_height=4, target_size_width=11),
        lambda x: x[:, :, [0, 2, 4, 6]][..., [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6]],
    ),
    "upsample_bilinear": (
        lambda x, t: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2),
        lambda x: bilinear(x, 18, 14, GRIDS["STRICT_ALIGN_CORNERS"]),
    ),
    "upsample_bilinear_half": (
        lambda x, t: mb.upsample_bilinear(
            x=x, scale_factor_height=1.5, scale_factor_width=2.0, align_corners=False
        ),
        lambda x: bilinear(x, 13, 14, GRIDS["UNALIGN_CORNERS"]),
    ),
    "upsample_bilinear_asymmetric": (
        lambda x, t: mb.upsample_bilinear(
            x=x,
            scale_factor_height=2,
            scale_factor_width=2,
            align_corners=False,
            half_pixel_centers=False,
        ),
        lambda x: bilinear(x, 18, 14, GRIDS["DEFAULT"]),
    ),
    "crop": (
        lambda x, t: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        lambda x: x[:, :, 1:-2, :-3],
    ),
    "pad": (
        lambda x, t: mb.pad(x=x, pad=[1, 0, 0, 2], constant_val=t(0.5)),
        lambda x: padded(x, ((1, 0), (0, 2)), 0.5),
    ),
    "pad_reflect": (
        lambda x, t: mb.pad(x=x, pad=[2, 1, 3, 0], mode="reflect"),
        lambda x: np.pad(x, [(0, 0), (0, 0), (2, 1), (3, 0)], mode="reflect"),
    ),
    "pad_replicate": (
        lambda x, t: mb.pad(x=x, pad=[2, 1, 3, 0], mode="replicate"),
        lambda x: np.pad(x, [(0, 0), (0, 0), (2, 1), (3, 0)], mode="edge"),
    ),
    "pad_channels": (
        lambda x, t: mb.pad(x=x, pad=[0, 2, 0, 0, 0, 0]),
        lambda x: np.pad(x, [(0, 0), (0, 2), (0, 0), (0, 0)]),
    ),
}


def resized(mode: str, height: int, width: int) -> tuple[Build, Definition]:
    """The op and its definition for one grid and size."""
    return (
        lambda x, t: mb.resize_bilinear(
            x=x, target_size_height=height, target_size_width=width, sampling_mode=mode
        ),
        lambda x: bilinear(x, height, width, GRIDS[mode]),
    )


for _mode, (_h, _w) in itertools.product(GRIDS, [(13, 4), (1, 7)]):
    SPATIAL[f"resize_{_mode.lower()}_{_h}"] = resized(_mode, _h, _w)

SPATIAL_IOS17: dict[str, tuple[Build, Definition]] = {
    "resize_linear": (
        lambda x, t: mb.resize(x=x, shape=[5, 0], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
        lambda x: bilinear(x, 5, 7, GRIDS["UNALIGN_CORNERS"]),
    ),
    "resize_nearest_17": (
        lambda x, t: mb.resize(
            x=x, shape=[18, 14], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"
        ),
        lambda x: x.repeat(2, 2).repeat(2, 3),
    ),
    "resize_nearest_half": (
        lambda x, t: mb.resize(
            x=x,
            shape=[3, 7],
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="UNALIGN_CORNERS",
        ),
        lambda x: x[:, :, 1::3],
    ),
    "fake_quant": (
        lambda x, t: mb.dequantize(
            input=mb.quantize(input=x, scale=t(0.03125), zero_point=np.int8(3), output_dtype="int8"),
            scale=t(0.03125),
            zero_point=np.int8(3),
        ),
        lambda x: (np.clip(np.rint(x / 0.03125) + 3, -128, 127) - 3) * 0.03125,
    ),
    "fake_quant_channels": (
        lambda x, t: mb.dequantize(
            input=mb.quantize(input=x, scale=W["var"].astype(t), output_dtype="uint8", axis=1),
            scale=W["var"].astype(t),
            axis=1,
        ),
        lambda x: np.clip(np.rint(x / per_channel(W["var"])), 0, 255) * per_channel(W["var"]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), [("fp16", "iOS16"), ("fp16", "iOS17"), ("fp32", "iOS18")])
def test_op(precision, opset, tmp_path):
    check_ops(SPATIAL, X, precision, opset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), [("fp32", "iOS17"), ("fp16", "iOS18")])
def test_op_of_ios17(precision, opset, tmp_path):
    check_ops(SPATIAL_IOS17, X, precision, opset, tmp_path)
