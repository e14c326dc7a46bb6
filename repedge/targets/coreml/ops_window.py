"""Lowerings of the ops that look at neighbouring pixels: convolutions, pools, resizing.

A resize is MIL's sampling mode where its grid equals ONNX's for the sizes at hand (the two are computed and
compared rather than matched by their names), else pixels that are gathered or weighed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import Window, attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.targets import resampling
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
    """ONNX's output padding is a smaller end padding; what goes beyond that is zeros and the bias."""
    a, name, out = conv_attrs(n), c.name(n), shape_of(n.outputs[0])
    top, left, bottom, right = a.pads
    ends = (bottom - a.output_padding[0], right - a.output_padding[1])
    beyond = (max(0, -ends[0]), max(0, -ends[1]))
    bias = c.var(n, 2) if len(n.inputs) > 2 and n.inputs[2] is not None else None
    full = (*out[:2], out[2] - beyond[0], out[3] - beyond[1])
    y = c.mb.conv_transpose(
        x=c.var(n, 0),
        weight=c.var(n, 1),
        bias=None if any(beyond) else bias,
        pad_type="custom",
        pad=interleaved((top, left, max(0, ends[0]), max(0, ends[1]))),
        output_shape=list(full),
        strides=list(a.strides),
        dilations=list(a.dilations),
        groups=a.group,
        name=c.unique(f"{name}_reached") if any(beyond) else name,
    )
    if not any(beyond):
        return y
    amounts = np.array([0, beyond[0], 0, beyond[1]], np.int32)
    padded = c.unique(f"{name}_padded") if bias is not None else name
    y = c.mb.pad(x=y, pad=amounts, mode="constant", constant_val=c.scalar(0.0), name=padded)
    if bias is None:
        return y
    column = c.weight(np.asarray(const(n.inputs[2])).reshape(-1, 1, 1), str(n.inputs[2].name))  # type: ignore[union-attr]
    return c.mb.add(x=y, y=column, name=name)


def refuse_conv_transpose(n: ir.Node) -> str | None:
    if attr(n, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attr(n, "output_shape"):
        return "its padding is given as auto_pad or output_shape instead of pads"
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

Grid = Callable[[int, int], np.ndarray]
"""(input size, output size) -> source coordinate of every output pixel"""

MIL_GRIDS: dict[str, Grid] = {  # sampling modes of resize_bilinear; the scale is always out / size
    "UNALIGN_CORNERS": lambda size, out: (np.arange(out) + 0.5) * size / out - 0.5,
    "STRICT_ALIGN_CORNERS": lambda size, out: np.arange(out) * (size - 1) / max(out - 1, 1),
    "DEFAULT": lambda size, out: np.arange(out) * (size / out),
}


def sampling(n: ir.Node) -> str | None:
    """The MIL sampling that equals this Resize node: a mode of `MIL_GRIDS`, ``NEAREST``, or None."""
    sizes = [(axis, shape_of(n.inputs[0])[axis], shape_of(n.outputs[0])[axis]) for axis in (2, 3)]
    kind = attr(n, "mode", "nearest")
    if kind == "nearest":
        repeats = all(_repeats(resampling.nearest(n, axis), size, out) for axis, size, out in sizes)
        return "NEAREST" if repeats else None
    if kind == "cubic" or attr(n, "antialias", 0):
        return None
    for mode, mil in MIL_GRIDS.items():
        if all(_same(resampling.positions(n, axis), mil(size, out), size) for axis, size, out in sizes):
            return mode
    return None


def _repeats(index: np.ndarray, size: int, out: int) -> bool:
    """Whether every source pixel is repeated a whole number of times, which is all MIL promises."""
    return out % size == 0 and np.array_equal(index, np.arange(out) // (out // size))


def _same(a: np.ndarray, b: np.ndarray, size: int) -> bool:
    """Whether two grids sample the same points once clamped to the image, as both sides do."""
    return np.allclose(np.clip(a, 0, size - 1), np.clip(b, 0, size - 1), rtol=0, atol=1e-6 * size)


def resize(c: Lowerer, n: ir.Node) -> Any:
    """The mode that samples alike; else pixels by their numbers (nearest) or a matrix on either side."""
    (h, w), (out_h, out_w) = shape_of(n.inputs[0])[2:], shape_of(n.outputs[0])[2:]
    mode = sampling(n)
    if mode is None:
        return _gather(c, n) if attr(n, "mode", "nearest") == "nearest" else _weigh(c, n)
    x, name = c.var(n, 0), c.name(n)
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


def _gather(c: Lowerer, n: ir.Node) -> Any:
    name = c.name(n)
    rows, columns = (resampling.nearest(n, axis).astype(np.int32) for axis in (2, 3))
    picked = c.mb.gather(x=c.var(n, 0), indices=rows, axis=2, name=c.unique(f"{name}_rows"))
    return c.mb.gather(x=picked, indices=columns, axis=3, name=name)


def _weigh(c: Lowerer, n: ir.Node) -> Any:
    """[H', H] x [N, C, H, W] x [W, W']."""
    name = c.name(n)
    rows = c.weight(resampling.matrix(n, 2)[None, None], f"{name}_row_weights")
    columns = c.weight(resampling.matrix(n, 3).T[None, None], f"{name}_column_weights")
    weighed = c.mb.matmul(x=rows, y=c.var(n, 0), name=c.unique(f"{name}_rows"))
    return c.mb.matmul(x=weighed, y=columns, name=name)
