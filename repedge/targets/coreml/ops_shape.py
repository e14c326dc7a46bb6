"""Lowerings of the ops that move values without computing: views, slices, padding, channel shuffles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of
from repedge.targets.coreml.nodes import axis_of, ints, needs_constant, real

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer


def reshape(c: Lowerer, n: ir.Node) -> Any:
    """Every shape is static, so Reshape, Flatten and their kin are one reshape to the output's shape."""
    shape = np.asarray(shape_of(n.outputs[0]), np.int32)
    return c.mb.reshape(x=c.var(n, 0), shape=shape, name=c.name(n))


def squeeze(c: Lowerer, n: ir.Node) -> Any:
    shape = shape_of(n.inputs[0])
    axes = ints(n, 1) or [i for i, d in enumerate(shape) if d == 1]
    return c.mb.squeeze(x=c.var(n, 0), axes=sorted(a % len(shape) for a in axes), name=c.name(n))


def unsqueeze(c: Lowerer, n: ir.Node) -> Any:
    rank = len(shape_of(n.outputs[0]))
    axes = sorted(a % rank for a in ints(n, 1, ()) or ())
    return c.mb.expand_dims(x=c.var(n, 0), axes=axes, name=c.name(n))


def transpose(c: Lowerer, n: ir.Node) -> Any:
    perm = attr(n, "perm") or tuple(reversed(range(len(shape_of(n.inputs[0])))))
    return c.mb.transpose(x=c.var(n, 0), perm=list(perm), name=c.name(n))


def concat(c: Lowerer, n: ir.Node) -> Any:
    values = [c.var(n, i) for i in range(len(n.inputs))]
    return c.mb.concat(values=values, axis=axis_of(n, 0), name=c.name(n))


def split(c: Lowerer, n: ir.Node) -> Any:
    axis = axis_of(n, 0)
    sizes = [shape_of(v)[axis] for v in n.outputs]
    return c.mb.split(x=c.var(n, 0), split_sizes=sizes, axis=axis, name=c.name(n))


def slice_(c: Lowerer, n: ir.Node) -> Any:
    begin, end, stride = slice_bounds(n)
    return c.mb.slice_by_index(x=c.var(n, 0), begin=begin, end=end, stride=stride, name=c.name(n))


def slice_bounds(n: ir.Node) -> tuple[list[int], list[int], list[int]]:
    """Begin, end and step for every axis, within the shape."""
    shape = shape_of(n.inputs[0])
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    starts, ends = ints(n, 1, ()) or (), ints(n, 2, ()) or ()
    axes = ints(n, 3) or tuple(range(len(starts)))
    steps = ints(n, 4) or (1,) * len(starts)
    for a, s, e, k in zip(axes, starts, ends, steps, strict=True):
        begin[a], end[a], stride[a] = slice(s, e, k).indices(shape[a])
    return begin, end, stride


def refuse_slice(n: ir.Node) -> str | None:
    if min(slice_bounds(n)[2]) < 1:
        return "it steps backwards"
    return "its result is empty" if 0 in shape_of(n.outputs[0]) else None


def pad(c: Lowerer, n: ir.Node) -> Any:
    """ONNX lists all begins, then all ends; MIL wants (begin, end) pairs of the last axes."""
    amounts = np.asarray(pad_amounts(n))
    first = int(np.flatnonzero(amounts.any(axis=1)).min(initial=len(amounts) - 1))
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[attr(n, "mode", "constant")]
    fill = c.scalar(real(n, 2, 0.0))
    pairs = amounts[first:].ravel().astype(np.int32)
    return c.mb.pad(x=c.var(n, 0), pad=pairs, mode=mode, constant_val=fill, name=c.name(n))


def pad_amounts(n: ir.Node) -> list[tuple[int, int]]:
    """(begin, end) for every axis."""
    rank = len(shape_of(n.inputs[0]))
    pads = ints(n, 1, ()) or ()
    axes = ints(n, 3) or tuple(range(rank))
    amounts = [(0, 0)] * rank
    for i, a in enumerate(axes):
        amounts[a] = (pads[i], pads[i + len(axes)])
    return amounts


def refuse_pad(n: ir.Node) -> str | None:
    mode, amounts = attr(n, "mode", "constant"), pad_amounts(n)
    if mode not in ("constant", "reflect", "edge"):
        return f"its mode is {mode!r}; Core ML has constant, reflect and edge"
    if min(min(p) for p in amounts) < 0:
        return "it crops (negative padding)"
    if mode != "constant" and any(p != (0, 0) for p in amounts[:-2]):
        return f"it pads other axes than height and width in mode {mode!r}"
    return needs_constant(2)(n)


def depth_to_space(c: Lowerer, n: ir.Node) -> Any:
    """ONNX's DCR has the block in front of the channels; CRD, torch's PixelShuffle, behind them."""
    x, size, name = c.var(n, 0), int(attr(n, "blocksize")), c.name(n)
    if attr(n, "mode", "DCR") == "CRD":
        return c.mb.pixel_shuffle(x=x, upscale_factor=size, name=name)
    return c.mb.depth_to_space(x=x, block_size=size, name=name)


def space_to_depth(c: Lowerer, n: ir.Node) -> Any:
    return c.mb.space_to_depth(x=c.var(n, 0), block_size=int(attr(n, "blocksize")), name=c.name(n))
