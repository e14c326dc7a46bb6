"""ATen -> ONNX for windows, normalization, padding, resizing and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.aten_build import Builder, Operand, Unlowerable, dims

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
    """``rest`` is [training,] momentum, eps [, cudnn]; the statistics must be the stored ones."""
    import torch

    training = rest[0] if isinstance(rest[0], bool) else False
    eps = next(r for r in rest[::-1] if not isinstance(r, bool))
    if training or mean is None or var is None:
        raise Unlowerable("statistics of the batch itself (track_running_stats=False or instance norm)")
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
    if divisor_override is not None:
        raise Unlowerable("divisor_override")
    pads = _per_axis(padding, 2) * 2
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
) -> dict[str, tuple[int, ...]]:
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
    kernel = _adaptive_kernel(x, g.shape())
    return g.node(
        "AveragePool", [x], kernel_shape=kernel, strides=kernel, pads=(0, 0, 0, 0), count_include_pad=0
    )


def adaptive_max_pool(g: Builder, x: ir.Value, size: Sequence[int]) -> list[ir.Value | None]:
    out = g.shape(0)
    kernel = _adaptive_kernel(x, out)
    return [g.node("MaxPool", [x], out, kernel_shape=kernel, strides=kernel, pads=(0, 0, 0, 0)), None]


def _adaptive_kernel(x: ir.Value, out: Sequence[int]) -> tuple[int, ...]:
    space = dims(x)[2:]
    if len(dims(x)) != 4 or any(size % cells for size, cells in zip(space, out[2:], strict=True)):
        raise Unlowerable(f"pooling {list(space)} to {list(out[2:])}: windows of different sizes")
    return tuple(size // cells for size, cells in zip(space, out[2:], strict=True))


def pad(mode: str) -> Callable[..., ir.Value]:
    def lower(g: Builder, x: ir.Value, amounts: Sequence[int], value: float = 0.0) -> ir.Value:
        """``amounts``: begin and end of the last axis first; ONNX wants all begins, then all ends."""
        if not any(amounts):
            return x
        missing = [0] * (len(dims(x)) - len(amounts) // 2)
        pads = g.ints(*missing, *amounts[-2::-2], *missing, *amounts[::-2])
        return g.node("Pad", [x, pads, float(value) if mode == "constant" else None], mode=mode)

    return lower


def resize(mode: str) -> Callable[..., ir.Value]:
    def lower(g: Builder, x: ir.Value, size: Sequence[int], *rest: Any, **named: Any) -> ir.Value:
        """``rest`` is [align_corners,] scales_h, scales_w; the nearest mode has no align_corners."""
        align = bool(rest[0]) if mode != "nearest" else False
        scales = (*rest[mode != "nearest" :], *named.values(), None, None)[:2]
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":
            attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif align:
            attributes["coordinate_transformation_mode"] = "align_corners"
        if mode == "cubic":
            attributes["cubic_coeff_a"] = -0.75  # torch's (aten/native/UpSample.h)
        factors = [
            _factor(mode, old, new, None if align else scale)
            for old, new, scale in zip(dims(x)[2:], g.shape()[2:], scales, strict=True)
        ]
        if None in factors:
            return g.node("Resize", [x, None, None, g.ints(*g.shape())], **attributes)
        return g.node("Resize", [x, None, g.array(np.array([1, 1, *factors], np.float32))], **attributes)

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


def addmm(
    g: Builder, bias: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1
) -> ir.Value:
    if beta != 1 or alpha != 1:
        raise Unlowerable("alpha or beta other than 1")
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
    "upsample_nearest2d": resize("nearest"),
    "upsample_bilinear2d": resize("linear"),
    "upsample_bicubic2d": resize("cubic"),
    "addmm": addmm,
    "mm": mm,
    "bmm": bmm,
}
