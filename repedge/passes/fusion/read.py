"""Linear ONNX nodes as `Op`s: one reader per operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr, conv_attrs, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.passes.fusion.geometry import Pair
from repedge.passes.fusion.operators import Affine, Conv, Op, Pad, Pool


def feature_map(value: ir.Value | None) -> tuple[int, Pair] | None:
    """Channels and (height, width) of a [N, C, H, W] or [N, C] float value, else None."""
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return None
    dims = tuple(value.shape)[1:]
    if len(dims) not in (1, 3) or not all(isinstance(d, int) and d > 0 for d in dims):
        return None
    channels, *size = (int(d) for d in dims)  # type: ignore[arg-type]
    return channels, (size[0], size[1]) if size else (1, 1)


def per_channel(array: np.ndarray | None, value: ir.Value) -> np.ndarray | None:
    """A constant that broadcasts along the channels (axis 1) of ``value`` as float64 [C], else None."""
    if array is None or array.dtype.kind != "f" or value.shape is None or not isinstance(value.shape[1], int):
        return None
    rank, channels = len(value.shape), int(value.shape[1])
    if array.ndim > rank:
        return None
    full = (1,) * (rank - array.ndim) + array.shape
    if any(d != 1 for axis, d in enumerate(full) if axis != 1) or full[1] not in (1, channels):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def batch_norm(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift of a BatchNormalization in inference form, float64."""
    if attr(node, "training_mode", 0):
        return None
    arrays = [const(v) for v in node.inputs[1:5]]
    if len(arrays) != 4 or any(a is None for a in arrays):
        return None
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    scale = gamma / np.sqrt(var + attr(node, "epsilon", 1e-5))
    return scale, beta - mean * scale


def affine(node: ir.Node) -> tuple[int, np.ndarray, np.ndarray] | None:
    """(index of the data input, scale [C], shift [C]) of a per-channel affine node of any rank, else None."""
    if node.domain not in ("", "ai.onnx"):
        return None
    x = node.inputs[0] if node.inputs else None
    if node.op_type == "BatchNormalization":
        found = batch_norm(node)
        return None if found is None else (0, *found)
    if x is None or x.shape is None or len(x.shape) < 2 or not isinstance(x.shape[1], int):
        return None if node.op_type != "Mul" and node.op_type != "Add" else _binary(node)
    if node.op_type == "Neg":
        return 0, np.full(int(x.shape[1]), -1.0), np.zeros(int(x.shape[1]))
    return _binary(node)


def _binary(node: ir.Node) -> tuple[int, np.ndarray, np.ndarray] | None:
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        x, other = node.inputs[index], node.inputs[1 - index]
        if x is None or x.shape is None or len(x.shape) < 2 or const(x) is not None:
            continue
        c = per_channel(const(other), x)
        if c is None or node.outputs[0].shape != x.shape or (node.op_type == "Div" and index == 1):
            continue
        one, zero = np.ones_like(c), np.zeros_like(c)
        with np.errstate(divide="ignore"):
            scale, shift = {
                "Mul": (c, zero),
                "Div": (1 / c, zero),
                "Add": (one, c),
                "Sub": (one, -c) if index == 0 else (-one, c),
            }[node.op_type]
        return (index, scale, shift) if np.isfinite(scale).all() else None
    return None


def _convolution(node: ir.Node) -> Op | None:
    weight, bias = const(node.inputs[1]), const(node.inputs[2]) if len(node.inputs) > 2 else None
    absent = len(node.inputs) < 3 or node.inputs[2] is None
    if weight is None or weight.ndim != 4 or (bias is None and not absent):
        return None
    a = conv_attrs(node)
    return Conv(str(node.name), "Conv", weight, bias, a.group, a.strides, a.dilations, a.pads)


def _gemm(node: ir.Node) -> Op | None:
    weight, bias = const(node.inputs[1]), const(node.inputs[2]) if len(node.inputs) > 2 else None
    absent = len(node.inputs) < 3 or node.inputs[2] is None
    if weight is None or weight.ndim != 2 or (bias is None and not absent) or attr(node, "transA", 0):
        return None
    weight = weight if attr(node, "transB", 0) else weight.T
    alpha, beta = attr(node, "alpha", 1.0), attr(node, "beta", 1.0)
    if bias is not None:
        if bias.size != 1 and bias.shape not in ((len(weight),), (1, len(weight))):
            return None
        bias = np.broadcast_to(bias.reshape(-1), len(weight))
        bias = bias if beta == 1 else beta * bias.astype(np.float64)
    weight = weight if alpha == 1 else alpha * weight.astype(np.float64)
    return Conv(str(node.name), "Gemm", weight[:, :, None, None], bias)


def _matmul(node: ir.Node) -> Op | None:
    weight, x = const(node.inputs[1]), node.inputs[0]
    if weight is None or weight.ndim != 2 or x is None or x.shape is None or len(x.shape) != 2:
        return None
    return Conv(str(node.name), "MatMul", weight.T[:, :, None, None], None)


def _average(node: ir.Node) -> Op | None:
    a = pool_attrs(node)
    mapped = feature_map(node.inputs[0])
    if mapped is None or (any(a.pads) and not a.count_include_pad):
        return None  # windows at the border divide by fewer cells
    pool = Pool(str(node.name), "AveragePool", a.kernel, a.strides, a.dilations, a.pads)
    # A last window that ceil_mode adds is cut off by the map's end.
    return pool if pool.geometry(*mapped).out == shape_of(node.outputs[0])[2:] else None


def _pad(node: ir.Node) -> Op | None:
    amounts = const(node.inputs[1])
    fill = const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    axes = const(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(4)
    if amounts is None or fill is None or axes is None or attr(node, "mode", "constant") != "constant":
        return None
    if len(shape_of(node.inputs[0])) != 4:
        return None
    widths = np.zeros((2, 4), int)
    widths[:, axes % 4] = amounts.reshape(2, -1)
    if widths[:, :2].any() or (widths < 0).any():
        return None
    top, left, bottom, right = (int(w) for w in widths[:, 2:].reshape(-1))
    return Pad(str(node.name), "Pad", (top, left, bottom, right), float(fill.reshape(())))


READERS = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "AveragePool": _average,
    "Pad": _pad,
}
"""ONNX operator -> `Op`; per-channel affine operators are read by `affine`."""


def read(node: ir.Node) -> tuple[Op, int] | None:
    """The node as a linear operator and the index of its data input, or None if it is none."""
    if feature_map(node.outputs[0]) is None or node.domain not in ("", "ai.onnx"):
        return None
    reader = READERS.get(node.op_type)
    try:
        if reader is not None:
            found = reader(node) if feature_map(node.inputs[0]) else None
            return None if found is None else (found, 0)
        parts = affine(node)
    except UserError:  # a 1-D or 3-D window, an unknown shape
        return None
    if parts is None or feature_map(node.inputs[parts[0]]) is None:
        return None
    return Affine(str(node.name), node.op_type, parts[1], parts[2]), parts[0]
