"""Lowerings of Resize: MIL's sampling mode where its grid equals ONNX's, else gathered or weighted pixels.

The two grids are computed and compared rather than matched by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of
from repedge.targets import resampling

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer

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
