"""ATen -> ONNX for windows, normalization, padding, resizing and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.aten.builder import Builder, Operand, Unlowerable, dims

if TYPE_CHECKING:
    import torch


def convolution(
    g: Builder,
    x: ir.Value,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> ir.Value:
    kernel = (dims(weight) if isinstance(weight, ir.Value) else tuple(weight.shape))[2:]  # type: ignore[union-attr]
    n = len(kernel)
    pads = _per_axis(padding, n) * 2
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": _per_axis(stride, n),
        "dilations": _per_axis(dilation, n),
        "group": groups,
    }
    if transposed:
        extra = _per_axis(output_padding, n)
        return g.node("ConvTranspose", [x, weight, bias], pads=pads, output_padding=extra, **attributes)
    source, before = _without_zero_pad(x)
    pads = tuple(a + b for a, b in zip(pads, before, strict=True)) if before else pads
    return g.node("Conv", [source, weight, bias], pads=pads, **attributes)


def _without_zero_pad(x: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
    """Conv(Pad(x)) -> Conv(x) with the pads of both, where Pad writes zeros around the image."""
    node = x.producer()
    if node is None or node.op_type != "Pad" or node.attributes["mode"].value != "constant":
        return x, ()
    source, pads, value = node.inputs
    assert source is not None, "Pad always has an input"
    amounts = [int(p) for p in pads.const_value.numpy()]  # type: ignore[union-attr]
    rank = len(amounts) // 2
    outside = amounts[:2] + amounts[rank : rank + 2]
    if any(outside) or min(amounts) < 0 or value.const_value.numpy() != 0:  # type: ignore[union-attr]
        return x, ()
    return source, (*amounts[2:rank], *amounts[rank + 2 :])


def batch_norm(
    g: Builder,
    x: ir.Value,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor | None,
    var: torch.Tensor | None,
    *rest: Any,
) -> list[ir.Value | None]:
    """``rest`` is [training,] momentum, eps [, cudnn]; statistics are the stored ones, or the image's own.

    torch's instance_norm is a batch_norm of the batch's statistics, whose batch is one image.
    """
    import torch

    training = rest[0] if isinstance(rest[0], bool) else False
    eps = next(r for r in rest[::-1] if not isinstance(r, bool))
    if g.normalizes_instances and (training or mean is None) and dims(x)[0] == 1:
        channels = dims(x)[1]
        weight = torch.ones(channels) if weight is None else weight
        bias = torch.zeros(channels) if bias is None else bias
        y = g.node("InstanceNormalization", [x, weight, bias], g.shape(0), epsilon=eps)
        return [y, *[None] * (len(g.result) - 1)]
    if training or mean is None or var is None:
        raise Unlowerable("statistics of the batch itself (track_running_stats=False)")
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    y = g.node("BatchNormalization", [x, weight, bias, mean, var], g.shape(0), epsilon=eps)
    return [y, *[None] * (len(g.result) - 1)]


def max_pool(
    g: Builder,
    x: ir.Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> list[ir.Value | None]:
    out = g.shape(0)
    attributes = _window(x, out, kernel, stride, padding, dilation)
    if any(d != 1 for d in _per_axis(dilation, 2)):
        attributes["dilations"] = _per_axis(dilation, 2)
    return [g.node("MaxPool", [x], out, **attributes), None]


def max_pool_values(g: Builder, x: ir.Value, *args: Any, **options: Any) -> ir.Value | None:
    result, g.result = g.result, [g.result]
    y = max_pool(g, x, *args, **options)[0]
    g.result = result
    return y


def avg_pool(
    g: Builder,
    x: ir.Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> ir.Value:
    pads = _per_axis(padding, 2) * 2
    if divisor_override is not None:
        if ceil_mode:
            raise Unlowerable("divisor_override and ceil_mode")
        mean = avg_pool(g, x, kernel, stride, padding)
        return g.node("Mul", [mean, math.prod(_per_axis(kernel, 2)) / divisor_override])
    attributes = _window(x, g.shape(), kernel, stride, padding, (1, 1))
    if not any(pads) or not count_include_pad:
        return g.node("AveragePool", [x], count_include_pad=0, **attributes)
    if attributes["pads"] == pads:
        return g.node("AveragePool", [x], count_include_pad=1, **attributes)
    # ceil_mode: padding counts, but the cells that only the last window reaches do not.
    n, c, h, w = dims(x)
    padded = (n, c, h + pads[0] + pads[2], w + pads[1] + pads[3])
    x = g.node("Pad", [x, g.ints(0, 0, *pads[:2], 0, 0, *pads[2:]), 0.0], padded, mode="constant")
    rest = (0, 0, *(a - b for a, b in zip(attributes["pads"][2:], pads[2:], strict=True)))
    return g.node("AveragePool", [x], count_include_pad=0, **{**attributes, "pads": rest})


def _window(
    x: ir.Value, out: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any
) -> dict[str, Any]:
    """Attributes of a pool; ``ceil_mode`` becomes end padding, which every target knows."""
    if len(dims(x)) != 4:
        raise Unlowerable(f"a pool over rank {len(dims(x))}")
    kernel, padding, dilation = (_per_axis(v, 2) for v in (kernel, padding, dilation))
    strides = _per_axis(stride, 2) if stride else kernel
    ends = tuple(
        max(p, (o - 1) * s + (k - 1) * d + 1 - size - p)
        for size, o, k, s, p, d in zip(dims(x)[2:], out[2:], kernel, strides, padding, dilation, strict=True)
    )
    return {"kernel_shape": kernel, "strides": strides, "pads": (*padding, *ends)}


def adaptive_avg_pool(g: Builder, x: ir.Value, size: Sequence[int]) -> ir.Value:
    if tuple(g.shape()[2:]) == (1, 1):
        return g.node("GlobalAveragePool", [x])
    kernel = _even_windows(x, g.shape())
    if kernel is None:
        return _averaged(g, x, g.shape())
    return g.node(
        "AveragePool", [x], kernel_shape=kernel, strides=kernel, pads=(0, 0, 0, 0), count_include_pad=0
    )


def adaptive_max_pool(g: Builder, x: ir.Value, size: Sequence[int]) -> list[ir.Value | None]:
    out = g.shape(0)
    kernel = _even_windows(x, out)
    if kernel is None:
        return [_largest(g, x, out), None]
    return [g.node("MaxPool", [x], out, kernel_shape=kernel, strides=kernel, pads=(0, 0, 0, 0)), None]


def _even_windows(x: ir.Value, out: Sequence[int]) -> tuple[int, ...] | None:
    """Height and width of windows that are all alike, or None."""
    space = dims(x)[2:]
    if len(dims(x)) != 4:
        raise Unlowerable(f"rank {len(dims(x))}")
    if any(size % cells for size, cells in zip(space, out[2:], strict=True)):
        return None
    return tuple(size // cells for size, cells in zip(space, out[2:], strict=True))


def _windows(size: int, cells: int) -> list[tuple[int, int]]:
    """Begin and end of each window of an adaptive pool (aten/native/AdaptivePooling.h)."""
    return [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]


def _averaged(g: Builder, x: ir.Value, out: Sequence[int]) -> ir.Value:
    """Means of windows of different sizes."""
    matrices = []
    for size, cells in zip(dims(x)[2:], out[2:], strict=True):
        matrix = np.zeros((size, cells), np.float32)
        for i, (start, end) in enumerate(_windows(size, cells)):
            matrix[start:end, i] = 1 / (end - start)
        matrices.append(matrix)
    return _products(g, x, matrices)


def _products(g: Builder, x: ir.Value, matrices: Sequence[np.ndarray]) -> ir.Value:
    """A map times a constant matrix [old, new] along its rows and one along its columns."""
    for perm, matrix in zip(((0, 1, 3, 2), (0, 1, 2, 3)), matrices, strict=True):
        if len(matrix) == matrix.shape[1] and (matrix == np.eye(len(matrix))).all():
            continue
        rows = g.transpose(x, perm)
        x = g.transpose(g.node("MatMul", [rows, g.array(matrix)], (*dims(rows)[:3], matrix.shape[1])), perm)
    return x


def _largest(g: Builder, x: ir.Value, out: Sequence[int]) -> ir.Value:
    """Maxima of windows of different sizes, one by one along each axis."""
    for axis, cells in ((3, out[3]), (2, out[2])):
        size = dims(x)[axis]
        if size == cells:
            continue
        one = tuple(1 if a == axis else n for a, n in enumerate(dims(x)))
        parts = [
            g.node("ReduceMax", [g.slice(x, axis, start, end), g.ints(axis)], one, keepdims=1)
            for start, end in _windows(size, cells)
        ]
        shape = tuple(cells if a == axis else n for a, n in enumerate(dims(x)))
        x = g.node("Concat", parts, shape, axis=axis)
    return x


def avg_pool3d(
    g: Builder,
    x: ir.Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> ir.Value:
    """Over the first axis alone, as torch's local response normalization has it."""
    k, p = _per_axis(kernel, 3), _per_axis(padding, 3)
    s = _per_axis(stride, 3) if stride else k
    if len(dims(x)) != 5 or k[1:] != (1, 1) or s[1:] != (1, 1) or any(p) or ceil_mode or divisor_override:
        raise Unlowerable("windows over more than one axis")
    n, c, depth, *space = dims(x)
    flat = g.reshape(x, (n, c, depth, math.prod(space)))
    attributes: dict[str, Any] = {"kernel_shape": (k[0], 1), "strides": (s[0], 1), "pads": (0, 0, 0, 0)}
    shape = (n, c, g.shape()[2], math.prod(space))
    return g.reshape(g.node("AveragePool", [flat], shape, count_include_pad=0, **attributes))


def pad(mode: str) -> Callable[..., ir.Value]:
    def lower(g: Builder, x: ir.Value, amounts: Sequence[int], value: float = 0.0) -> ir.Value:
        """``amounts``: begin and end of the last axis first; ONNX wants all begins, then all ends."""
        if not any(amounts):
            return x
        missing = [0] * (len(dims(x)) - len(amounts) // 2)
        pads = g.ints(*missing, *amounts[-2::-2], *missing, *amounts[::-2])
        return g.node("Pad", [x, pads, float(value) if mode == "constant" else None], mode=mode)

    return lower


def smooth_resize(mode: str) -> Callable[..., ir.Value]:
    """With antialias: a product with a constant matrix along each axis, which torch itself works out."""

    def lower(
        g: Builder, x: ir.Value, size: Sequence[int], align: bool, tall: Any = None, wide: Any = None
    ) -> ir.Value:
        import torch

        function = getattr(torch.ops.aten, f"_upsample_{mode}2d_aa")
        matrices = []
        for old, new, scale in zip(dims(x)[2:], g.shape()[2:], (tall, wide), strict=True):
            unit = torch.eye(old)[None, None]
            matrices.append(function(unit, [old, new], align, None, scale)[0, 0].numpy())
        return _products(g, x, matrices)

    return lower


def resize(mode: str, *, exact: bool = False) -> Callable[..., ir.Value]:
    """torch's upsample_*: of maps, or of rows, which are maps of height 1.

    Args:
        mode: ONNX's word.
        exact: The nearest mode that samples pixel centres.
    """

    def lower(g: Builder, x: ir.Value, size: Sequence[int], *rest: Any, **named: Any) -> ir.Value:
        """``rest`` is [align_corners,] then a scale per axis; the nearest mode has no align_corners."""
        align = bool(rest[0]) if mode != "nearest" else False
        space = len(dims(x)) - 2
        scales = (*rest[mode != "nearest" :], *named.values(), None, None)[:space]
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            attributes["nearest_mode"] = "round_prefer_ceil" if exact else "floor"
            if not exact:
                attributes["coordinate_transformation_mode"] = "asymmetric"
        elif align:
            attributes["coordinate_transformation_mode"] = "align_corners"
        if mode == "cubic":
            attributes["cubic_coeff_a"] = -0.75  # torch's (aten/native/UpSample.h)
        out = g.shape()
        if space == 1:
            n, c, length = dims(x)
            x, out, scales = g.reshape(x, (n, c, 1, length)), (n, c, 1, out[2]), (1.0, *scales)
        factors = [
            _factor(mode, old, new, None if align else scale)
            for old, new, scale in zip(dims(x)[2:], out[2:], scales, strict=True)
        ]
        if None in factors:
            y = g.node("Resize", [x, None, None, g.ints(*out)], out, **attributes)
        else:
            y = g.node(
                "Resize", [x, None, g.array(np.array([1, 1, *factors], np.float32))], out, **attributes
            )
        return g.reshape(y) if space == 1 else y

    return lower


def _factor(mode: str, old: int, new: int, scale: float | None) -> float | None:
    """Factor of an axis from which ONNX finds ``new = floor(old * factor)``; None: give it the size.

    Factors leave the batch free, sizes fix it. A ratio that float32 rounds moves a sample by 1e-7 of
    the image, which interpolation forgives; the nearest mode would pick a wrong pixel.
    """
    factor = np.float32(new / old if scale is None else scale)
    if mode == "nearest" and scale is None and float(factor) != new / old:
        return None
    for candidate in (factor, np.nextafter(factor, np.float32(np.inf))):
        # Shape inference multiplies in double precision, the runtimes in single.
        if np.floor(np.float32(old) * candidate) == np.floor(old * float(candidate)) == new:
            return float(candidate)
    return None


def _per_axis(numbers: Any, n: int) -> tuple[int, ...]:
    """ATen lets one number stand for all axes."""
    numbers = (numbers,) if isinstance(numbers, int) else tuple(numbers)
    return numbers * n if len(numbers) == 1 else numbers


TABLE: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "_batch_norm_no_update": batch_norm,
    "max_pool2d_with_indices": max_pool,
    "max_pool2d": max_pool_values,
    "avg_pool2d": avg_pool,
    "_adaptive_avg_pool2d": adaptive_avg_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "constant_pad_nd": pad("constant"),
    "reflection_pad2d": pad("reflect"),
    "reflection_pad1d": pad("reflect"),
    "replication_pad2d": pad("edge"),
    "reflection_pad3d": pad("reflect"),
    "replication_pad1d": pad("edge"),
    "replication_pad3d": pad("edge"),
    "avg_pool3d": avg_pool3d,
    "upsample_nearest1d": resize("nearest"),
    "upsample_nearest2d": resize("nearest"),
    "_upsample_nearest_exact1d": resize("nearest", exact=True),
    "_upsample_nearest_exact2d": resize("nearest", exact=True),
    "upsample_linear1d": resize("linear"),
    "upsample_bilinear2d": resize("linear"),
    "upsample_bicubic2d": resize("cubic"),
    "_upsample_bilinear2d_aa": smooth_resize("bilinear"),
    "_upsample_bicubic2d_aa": smooth_resize("bicubic"),
}
