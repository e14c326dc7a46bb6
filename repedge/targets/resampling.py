"""What an ONNX Resize reads: per axis, positions in the input, the pixels taken, or a matrix of weights.

Every mode is linear in the image and separable, so a resize is a matrix on each axis: exact, whatever a
runtime calls its own modes. Sources: the ONNX specification of Resize (versions 11 to 19) and its reference
evaluator (``onnx/reference/ops/op_resize.py``). Positions of the nearest mode are computed in float32, as
ONNX Runtime does; they decide which pixel is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of

Positions = Callable[[np.ndarray, int, int, np.floating], np.ndarray]
"""(output index, input size, output size, scale) -> position in the input, before clamping."""


def _half_pixel(x: np.ndarray, size: int, out: int, scale: np.floating) -> np.ndarray:
    half = x.dtype.type(0.5)
    return (x + half) / scale - half


def _symmetric(x: np.ndarray, size: int, out: int, scale: np.floating) -> np.ndarray:
    real = x.dtype.type
    offset = real(size) / real(2) * (real(1) - real(out) / (scale * real(size)))
    return offset + (x + real(0.5)) / scale - real(0.5)


def _corners(x: np.ndarray, size: int, out: int, scale: np.floating) -> np.ndarray:
    return x * x.dtype.type(size - 1) / x.dtype.type(out - 1) if out > 1 else x * 0


POSITIONS: dict[str, Positions] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda x, i, o, s: _half_pixel(x, i, o, s) if o > 1 else x * 0,
    "align_corners": _corners,
    "asymmetric": lambda x, i, o, s: x / s,
    "tf_half_pixel_for_nn": lambda x, i, o, s: (x + x.dtype.type(0.5)) / s,
}
"""By ``coordinate_transformation_mode``."""

HALF = 1e-6
"""What is this near to the middle of two pixels is in the middle, to ONNX Runtime as well (measured)."""

ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5 - HALF),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5 + HALF),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""By ``nearest_mode``; of float64 numbers, where 0.5 can be added exactly."""


def refuse(node: ir.Node) -> str | None:
    """Why the matrices of a Resize can't be made, or None: what it resizes and by how much must be known."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2]:
        return f"it resizes {list(before)} to {list(after)}; only height and width of a map can be"
    if any(const(v) is None for v in node.inputs[2:] if v is not None):
        return "its scales or sizes are computed, not constant"
    transform = attr(node, "coordinate_transformation_mode", "half_pixel")
    if transform not in POSITIONS:
        return f"its coordinate_transformation_mode {transform!r} is not supported"
    if attr(node, "mode", "nearest") not in ("nearest", "linear", "cubic"):
        return f"its mode is {attr(node, 'mode')!r}, not nearest, linear or cubic"
    return None


def scales(node: ir.Node) -> list[float]:
    """Scale of every axis as ONNX uses it: a float32 number that is given, or what the sizes come to."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    found = [float(np.float32(o) / np.float32(i)) for i, o in zip(before, after, strict=True)]
    axes = [a % len(before) for a in attr(node, "axes", tuple(range(len(before))))]
    given = const(node.inputs[2]) if len(node.inputs) > 2 else None
    if given is not None and given.size:
        for axis, scale in zip(axes, given, strict=True):
            found[axis] = float(scale)
        return found
    policy, sizes = attr(node, "keep_aspect_ratio_policy", "stretch"), const(node.inputs[3])
    if policy != "stretch" and sizes is not None:
        ratios = [np.float32(s) / np.float32(before[a]) for a, s in zip(axes, sizes, strict=True)]
        one = float(min(ratios) if policy == "not_larger" else max(ratios))
        for axis in axes:
            found[axis] = one
    return found


def positions(node: ir.Node, axis: int, dtype: type = np.float64, scale: float | None = None) -> np.ndarray:
    """Where on an axis each output pixel lies in the input, not clamped; ``scale`` replaces the node's."""
    size, out = shape_of(node.inputs[0])[axis], shape_of(node.outputs[0])[axis]
    transform = POSITIONS[attr(node, "coordinate_transformation_mode", "half_pixel")]
    return transform(np.arange(out, dtype=dtype), size, out, dtype(scale or scales(node)[axis]))


def nearest(node: ir.Node, axis: int, scale: float | None = None) -> np.ndarray:
    """The input pixel that each output pixel of the nearest mode is, int64; ``scale`` replaces the node's."""
    size = shape_of(node.inputs[0])[axis]
    rounding = ROUNDING[attr(node, "nearest_mode", "round_prefer_floor")]
    at = positions(node, axis, np.float32, scale).astype(np.float64)
    return np.clip(rounding(at), 0, size - 1).astype(np.int64)


def matrix(node: ir.Node, axis: int) -> np.ndarray:
    """Weights of the input pixels in each output pixel along an axis, float64 [out, in].

    Raises:
        UserError: See `refuse`.
    """
    why = refuse(node)
    if why is not None:
        raise UserError(f"Resize node {node.name!r}: {why}")
    size, out = shape_of(node.inputs[0])[axis], shape_of(node.outputs[0])[axis]
    if attr(node, "mode", "nearest") == "nearest":
        return np.eye(size)[nearest(node, axis)]
    at = positions(node, axis)
    shrink = min(scales(node)[axis], 1.0) if attr(node, "antialias", 0) else 1.0
    reach = int(np.ceil(2 / shrink)) + 1
    taps = np.floor(at).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    if attr(node, "mode", "nearest") == "linear":
        weights = _triangle((taps - at[:, None]) * shrink)
    else:
        weights = _cubic((taps - at[:, None]) * shrink, attr(node, "cubic_coeff_a", -0.75))
    if attr(node, "exclude_outside", 0):
        weights = np.where((taps >= 0) & (taps < size), weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    found = np.zeros((out, size))
    np.add.at(found, (np.arange(out)[:, None], np.clip(taps, 0, size - 1)), weights)
    return found


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Source: R. Keys, Cubic convolution interpolation for digital image processing, 1981."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
