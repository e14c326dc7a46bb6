"""Lowerings of what moves and resizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of
from repedge.targets import resampling
from repedge.targets.openvino.build import Builder, Lowering, arg, given, needed


def concat(b: Builder, node: ir.Node) -> Any:
    return b.ops.concat([b.x(node, i) for i in range(len(node.inputs))], attr(node, "axis"))


def split(b: Builder, node: ir.Node) -> Any:
    axis = attr(node, "axis", 0) % len(shape_of(node.inputs[0]))
    lengths = [shape_of(out)[axis] for out in node.outputs]
    if len(set(lengths)) == 1:
        return b.ops.split(b.x(node, 0), b.const(np.array(axis)), len(lengths))
    return b.ops.variadic_split(b.x(node, 0), b.const(np.array(axis)), b.ints(*lengths))


def slice_(b: Builder, node: ir.Node) -> Any:
    starts, ends, axes, steps = needed(node, 1), needed(node, 2), arg(node, 3), arg(node, 4)
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones(len(starts)) if steps is None else steps
    vectors = (np.atleast_1d(v).astype(np.int64) for v in (starts, ends, steps, axes))
    return b.ops.slice(b.x(node, 0), *(b.const(v) for v in vectors))


def reshape(b: Builder, node: ir.Node) -> Any:
    shape = needed(node, 1).tolist()
    return b.ops.reshape(b.x(node, 0), b.ints(*shape), special_zero=not attr(node, "allowzero", 0))


def identity(b: Builder, node: ir.Node) -> Any:
    """The same tensor as another output: one port has one set of names, so there is a Reshape to itself."""
    return b.ops.reshape(b.x(node, 0), b.ints(*[0] * len(shape_of(node.inputs[0]))), special_zero=True)


def flatten(b: Builder, node: ir.Node) -> Any:
    shape = shape_of(node.inputs[0])
    axis = attr(node, "axis", 1)
    axis += len(shape) if axis < 0 else 0
    if axis == 0:
        return b.ops.reshape(b.x(node, 0), b.ints(1, -1), False)
    if axis == 1:
        return b.ops.reshape(b.x(node, 0), b.ints(0, -1), True)
    return b.ops.reshape(b.x(node, 0), b.ints(-1, math.prod(shape[axis:])), False)


def transpose(b: Builder, node: ir.Node) -> Any:
    rank = len(shape_of(node.inputs[0]))
    return b.ops.transpose(b.x(node, 0), b.ints(*attr(node, "perm", tuple(reversed(range(rank))))))


def axes_op(name: str) -> Lowering:
    return lambda b, node: getattr(b.ops, name)(b.x(node, 0), b.ints(*needed(node, 1).reshape(-1).tolist()))


def with_axes(node: ir.Node) -> str | None:
    return None if given(node, 1) else "it has no axes, so that it would also remove a batch of one"


def pad(b: Builder, node: ir.Node) -> Any:
    rank = len(shape_of(node.inputs[0]))
    pads, fill, axes = needed(node, 1), arg(node, 2), arg(node, 3)
    begin, end = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    where = np.arange(rank) if axes is None else axes % rank
    begin[where], end[where] = pads[: len(where)], pads[len(where) :]
    value = b.number(0.0 if fill is None else fill.reshape(-1)[0])
    return b.ops.pad(b.x(node, 0), b.const(begin), b.const(end), attr(node, "mode", "constant"), value)


def known_pad_mode(node: ir.Node) -> str | None:
    mode = attr(node, "mode", "constant")
    return None if mode in ("constant", "reflect", "edge") else f"mode {mode!r} is not supported"


RESIZE_MODES = {"nearest": "nearest", "linear": "linear_onnx", "cubic": "cubic"}


RESIZE_COORDINATES = (
    "half_pixel",
    "pytorch_half_pixel",
    "asymmetric",
    "tf_half_pixel_for_nn",
    "align_corners",
)


PLAIN = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
"""Attributes of a Resize that Interpolate has for these values only."""


def resize(b: Builder, node: ir.Node) -> Any:
    """Resize -> Interpolate; what that has no attributes for, as a matrix on either side of the map."""
    transform = attr(node, "coordinate_transformation_mode", "half_pixel")
    plain = all(attr(node, name, value) == value for name, value in PLAIN.items())
    if not plain or transform not in RESIZE_COORDINATES:
        weighed = b.ops.matmul(
            b.const(resampling.matrix(node, 2).astype(np.float32)), b.x(node, 0), False, False
        )
        return b.ops.matmul(weighed, b.const(resampling.matrix(node, 3).astype(np.float32)), False, True)
    sizes, rank = arg(node, 3), len(shape_of(node.inputs[0]))
    by_size = sizes is not None and sizes.size > 0
    numbers = needed(node, 3 if by_size else 2)
    axes = np.array(attr(node, "axes", tuple(range(rank)))) % rank
    keep = [i for i, axis in enumerate(axes) if axis >= 2]  # the batch stays free
    wanted = numbers[keep].astype(np.int64 if by_size else np.float32)
    return b.ops.interpolate(
        b.x(node, 0),
        b.const(wanted),
        RESIZE_MODES[attr(node, "mode", "nearest")],
        "sizes" if by_size else "scales",
        coordinate_transformation_mode=transform,
        nearest_mode=attr(node, "nearest_mode", "round_prefer_floor"),
        cube_coeff=attr(node, "cubic_coeff_a", -0.75),
        axes=b.const(axes[keep].astype(np.int64)),
    )


def block(name: str) -> Lowering:
    def lower(b: Builder, node: ir.Node) -> Any:
        depth_first = name == "depth_to_space" and attr(node, "mode", "DCR") == "CRD"
        mode = "depth_first" if depth_first else "blocks_first"
        return getattr(b.ops, name)(b.x(node, 0), mode, attr(node, "blocksize"))

    return lower
