"""Lowerings of the ops that look at neighbouring pixels: convolutions, pools, resizing.

A resize is accepted when MIL has a sampling mode whose grid equals ONNX's for the sizes at hand; the
two grids are computed and compared rather than matched by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import Window, attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.targets.coreml.nodes import is_constant

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer


def interleaved(pads: tuple[int, int, int, int]) -> list[int]:
    """(top, left, bottom, right) -> MIL's [top, bottom, left, right]."""
    top, left, bottom, right = pads
    return [top, bottom, left, right]


def window_args(w: Window) -> dict[str, Any]:
    padded = any(w.pads)
    return {
        "strides": list(w.strides),
        "pad_type": "custom" if padded else "valid",
        **({"pad": interleaved(w.pads)} if padded else {}),
    }


# ---- convolutions --------------------------------------------------------------------------------


def conv(c: Lowerer, n: ir.Node) -> Any:
    a = conv_attrs(n)
    bias = c.var(n, 2) if len(n.inputs) > 2 and n.inputs[2] is not None else None
    return c.mb.conv(
        x=c.var(n, 0),
        weight=c.var(n, 1),
        bias=bias,
        dilations=list(a.dilations),
        groups=a.group,
        name=c.name(n),
        **window_args(a),
    )


def refuse_conv(n: ir.Node) -> str | None:
    conv_attrs(n)  # raises for 1-D and 3-D
    for i, value in enumerate(n.inputs[1:], start=1):
        if value is not None and not is_constant(value):
            return f"its input {i} ({value.name!r}) is computed, not a constant"
    return None


def conv_transpose(c: Lowerer, n: ir.Node) -> Any:
    """ONNX's output padding is a smaller end padding, as long as that stays positive."""
    a = conv_attrs(n)
    top, left, bottom, right = a.pads
    pads = (top, left, bottom - a.output_padding[0], right - a.output_padding[1])
    bias = c.var(n, 2) if len(n.inputs) > 2 and n.inputs[2] is not None else None
    return c.mb.conv_transpose(
        x=c.var(n, 0),
        weight=c.var(n, 1),
        bias=bias,
        pad_type="custom",
        pad=interleaved(pads),
        output_shape=list(shape_of(n.outputs[0])),
        strides=list(a.strides),
        dilations=list(a.dilations),
        groups=a.group,
        name=c.name(n),
    )


def refuse_conv_transpose(n: ir.Node) -> str | None:
    a = conv_attrs(n)
    if attr(n, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attr(n, "output_shape"):
        return "its padding is given as auto_pad or output_shape instead of pads"
    if a.output_padding[0] > a.pads[2] or a.output_padding[1] > a.pads[3]:
        return f"its output padding {a.output_padding} exceeds its end padding {a.pads[2:]}"
    return refuse_conv(n)


# ---- pools ---------------------------------------------------------------------------------------


def max_pool(c: Lowerer, n: ir.Node) -> Any:
    a = explicit_window(n)
    return c.mb.max_pool(x=c.var(n, 0), kernel_sizes=list(a.kernel), name=c.name(n), **window_args(a))


def average_pool(c: Lowerer, n: ir.Node) -> Any:
    a = explicit_window(n)
    exclude = any(a.pads) and not pool_attrs(n).count_include_pad
    return c.mb.avg_pool(
        x=c.var(n, 0),
        kernel_sizes=list(a.kernel),
        exclude_padding_from_average=exclude,
        name=c.name(n),
        **window_args(a),
    )


def explicit_window(n: ir.Node) -> Window:
    """The pool's window with ceil_mode written out as end padding, which MIL then floors exactly."""
    a = pool_attrs(n)
    if not a.ceil_mode:
        return a
    top, left, _, _ = a.pads
    (height, width), (out_height, out_width) = shape_of(n.inputs[0])[2:], shape_of(n.outputs[0])[2:]
    bottom = max((out_height - 1) * a.strides[0] + a.kernel[0] - height - top, 0)
    right = max((out_width - 1) * a.strides[1] + a.kernel[1] - width - left, 0)
    return Window(a.kernel, a.strides, a.dilations, (top, left, bottom, right))


def refuse_pool(n: ir.Node) -> str | None:
    a = pool_attrs(n)
    if a.dilations != (1, 1):
        return f"it is dilated by {a.dilations}; Core ML's pools have no dilation"
    if len(n.outputs) > 1 and n.outputs[1].uses():
        return "it also returns the indices of the maxima"
    window = explicit_window(n)
    for out, size, step, begin in zip(
        shape_of(n.outputs[0])[2:], shape_of(n.inputs[0])[2:], a.strides, a.pads[:2], strict=True
    ):
        if (out - 1) * step - begin >= size:  # runtimes disagree on whether such a window exists
            return "its last windows lie outside the image (ceil_mode)"
    overhangs = window.pads[2] > a.pads[2] or window.pads[3] > a.pads[3]
    if n.op_type == "AveragePool" and a.count_include_pad and overhangs:
        return "its last windows reach beyond the padding (ceil_mode with count_include_pad)"
    return None


# ---- resize --------------------------------------------------------------------------------------

Grid = Callable[[int, int, float], np.ndarray]
"""(input size, output size, scale) -> source coordinate of every output pixel"""


def _half_pixel(size: int, out: int, scale: float) -> np.ndarray:
    return (np.arange(out) + 0.5) / scale - 0.5


def _corners(size: int, out: int, scale: float) -> np.ndarray:
    return np.arange(out) * ((size - 1) / (out - 1)) if out > 1 else np.zeros(1)


def _symmetric(size: int, out: int, scale: float) -> np.ndarray:
    return _half_pixel(size, out, scale) + size / 2 * (1 - out / (scale * size))


ONNX_GRIDS: dict[str, Grid] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda size, out, s: _half_pixel(size, out, s) if out > 1 else np.zeros(1),
    "align_corners": _corners,
    "asymmetric": lambda size, out, s: np.arange(out) / s,
}

ONNX_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

MIL_GRIDS: dict[str, Grid] = {  # sampling modes of resize_bilinear; the scale is always out / size
    "UNALIGN_CORNERS": lambda size, out, s: _half_pixel(size, out, out / size),
    "STRICT_ALIGN_CORNERS": _corners,
    "DEFAULT": lambda size, out, s: np.arange(out) * (size / out),
}


def resize_scales(n: ir.Node) -> tuple[float, ...]:
    """Scale of every axis as ONNX uses it: the one given, else output size over input size."""
    shape, out = shape_of(n.inputs[0]), shape_of(n.outputs[0])
    scales = [o / i for o, i in zip(out, shape, strict=True)]
    given = const(n.inputs[2]) if len(n.inputs) > 2 else None
    if given is not None and given.size:
        for a, s in zip(attr(n, "axes") or range(len(shape)), given, strict=True):
            scales[a] = float(s)
    return tuple(scales)


def sampling(n: ir.Node) -> str | None:
    """The MIL sampling that equals this Resize node: a mode of `MIL_GRIDS`, ``NEAREST``, or None."""
    grid = ONNX_GRIDS.get(attr(n, "coordinate_transformation_mode", "half_pixel"))
    if grid is None:
        return None
    scales = resize_scales(n)[2:]
    axes = list(zip(shape_of(n.inputs[0])[2:], shape_of(n.outputs[0])[2:], scales, strict=True))
    if attr(n, "mode", "nearest") == "nearest":
        rounding = ONNX_ROUNDINGS[attr(n, "nearest_mode", "round_prefer_floor")]
        repeats = all(_repeats(rounding(grid(size, out, s)), size, out) for size, out, s in axes)
        return "NEAREST" if repeats else None
    for mode, mil in MIL_GRIDS.items():
        if all(_same(grid(size, out, s), mil(size, out, s), size) for size, out, s in axes):
            return mode
    return None


def _repeats(index: np.ndarray, size: int, out: int) -> bool:
    """Whether every source pixel is repeated a whole number of times, which is all MIL promises."""
    return out % size == 0 and np.array_equal(np.clip(index, 0, size - 1), np.arange(out) // (out // size))


def _same(a: np.ndarray, b: np.ndarray, size: int) -> bool:
    """Whether two grids sample the same points once clamped to the image, as both sides do."""
    return np.allclose(np.clip(a, 0, size - 1), np.clip(b, 0, size - 1), rtol=0, atol=1e-6 * size)


def resize(c: Lowerer, n: ir.Node) -> Any:
    (h, w), (out_h, out_w) = shape_of(n.inputs[0])[2:], shape_of(n.outputs[0])[2:]
    x, name, mode = c.var(n, 0), c.name(n), sampling(n)
    whole = out_h % h == 0 and out_w % w == 0
    factors = {"scale_factor_height": out_h // h, "scale_factor_width": out_w // w}
    if mode == "NEAREST":
        return c.mb.upsample_nearest_neighbor(x=x, name=name, **factors)
    if whole and mode in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        align = mode == "STRICT_ALIGN_CORNERS"
        return c.mb.upsample_bilinear(x=x, align_corners=align, name=name, **factors)
    return c.mb.resize_bilinear(
        x=x, target_size_height=out_h, target_size_width=out_w, sampling_mode=mode, name=name
    )


def refuse_resize(n: ir.Node) -> str | None:
    shape, out = shape_of(n.inputs[0]), shape_of(n.outputs[0])
    mode = attr(n, "mode", "nearest")
    transform = attr(n, "coordinate_transformation_mode", "half_pixel")
    if len(shape) != 4 or shape[:2] != out[:2]:
        return f"it resizes {shape} to {out}; only height and width of a 4-D tensor can be"
    if mode not in ("nearest", "linear"):
        return f"its mode is {mode!r}; Core ML has nearest and linear"
    if attr(n, "antialias", 0) and (out[2] < shape[2] or out[3] < shape[3]):
        return "it shrinks with antialiasing"
    if sampling(n) is None:
        detail = f", {attr(n, 'nearest_mode', 'round_prefer_floor')}" if mode == "nearest" else ""
        return f"{mode} {shape[2:]} to {out[2:]} with {transform}{detail} has no equal in Core ML"
    return None
