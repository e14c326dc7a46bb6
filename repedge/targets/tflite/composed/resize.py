"""Resize: by the mode that reads what ONNX asks for, else by repeated, gathered or weighted pixels.

A mode of TensorFlow Lite is taken only if it reads the same positions as ONNX does at the sizes at hand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import shape_of
from repedge.targets import resampling
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import NHWC

_MAX_REPEAT = 8  # factors of nearest upsampling that are spelled out for XNNPACK

LITE_MODES: tuple[dict[str, bool], ...] = ({}, {"halfPixelCenters": True}, {"alignCorners": True})


def _lite_scale(i: int, o: int, mode: dict[str, bool]) -> float:
    return (i - 1) / (o - 1) if mode.get("alignCorners") and o > 1 else i / o


def _lite_linear(i: int, o: int, mode: dict[str, bool]) -> np.ndarray:
    """Source: resize_bilinear in tensorflow/lite/kernels/internal/reference."""
    half = 0.5 if mode.get("halfPixelCenters") else 0.0
    return np.clip((np.arange(o) + half) * _lite_scale(i, o, mode) - half, 0, i - 1)


def _lite_nearest(i: int, o: int, mode: dict[str, bool]) -> np.ndarray:
    """Source: GetNearestNeighbor in tensorflow/lite/kernels/internal/reference."""
    half = 0.5 if mode.get("halfPixelCenters") else 0.0
    position = (np.arange(o) + half) * _lite_scale(i, o, mode)
    rounded = np.floor(position + 0.5) if mode.get("alignCorners") else np.floor(position)
    return np.clip(rounded, 0, i - 1)


def _lite_mode(node: ir.Node) -> dict[str, bool] | None:
    """The options under which TensorFlow Lite reads the positions that ONNX asks for."""
    before, after = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    kind = attr(node, "mode", "nearest")
    if kind == "cubic" or attr(node, "antialias", 0):
        return None
    lite = _lite_nearest if kind == "nearest" else _lite_linear
    sources = [
        resampling.nearest(node, axis)
        if kind == "nearest"
        else np.clip(resampling.positions(node, axis), 0, before[axis - 2] - 1)
        for axis in (2, 3)
    ]
    for mode in LITE_MODES:
        reads = [lite(i, o, mode) for i, o in zip(before, after, strict=True)]
        if all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(reads, sources, strict=True)):
            return mode
    return None


def moves_or_blends(node: ir.Node) -> bool:
    """Whether the result lies among the pixels, by operators that have integer kernels."""
    return attr(node, "mode", "nearest") == "nearest" or _lite_mode(node) is not None


def resize(c: Emitter, node: ir.Node) -> None:
    """Resize -> RESIZE_BILINEAR; nearest -> repetition, RESIZE_NEAREST_NEIGHBOR or GATHER; else matrices."""
    lite, x, out = _lite_mode(node), c.read(node.inputs[0], NHWC), node.outputs[0]
    size = c.ints(shape_of(out)[2:])
    version = 3 if lite and lite.get("halfPixelCenters") else 1
    if attr(node, "mode", "nearest") == "nearest":
        _nearest(c, node, x, size, lite, version)
    elif lite is not None:
        c.op("RESIZE_BILINEAR", [x, size], [c.write(out)], version, **lite)
    else:
        _weigh(c, node, x)


def _nearest(
    c: Emitter, node: ir.Node, x: int, size: int, lite: dict[str, bool] | None, version: int
) -> None:
    out = node.outputs[0]
    before, after = shape_of(node.inputs[0])[2:], shape_of(out)[2:]
    rows, columns = (resampling.nearest(node, axis) for axis in (2, 3))
    factors = [o // i for i, o in zip(before, after, strict=True)]
    if all(
        1 <= f <= _MAX_REPEAT and np.array_equal(source, np.repeat(np.arange(i), f))
        for f, i, source in zip(factors, before, (rows, columns), strict=True)
    ):
        _repeat(c, x, out, factors)
        return
    if lite is not None:
        c.op("RESIZE_NEAREST_NEIGHBOR", [x, size], [c.write(out)], version, **lite)
        return
    n, channels = shape_of(out)[:2]
    picked = c.scratch(f"{out.name}/rows", (n, after[0], before[1], channels), c.quant(x))
    c.op("GATHER", [x, c.ints(rows)], [picked], axis=1)
    c.op("GATHER", [picked, c.ints(columns)], [c.write(out)], axis=2)


def _weigh(c: Emitter, node: ir.Node, x: int) -> None:
    """Rows of a map ``[1, H, W * C]``, then columns of ``[H, W, C]``, as matrix products: nothing moves."""
    out = node.outputs[0]
    (height, width), (high, wide) = shape_of(node.inputs[0])[2:], shape_of(out)[2:]
    channels = shape_of(out)[1]
    for axis, lead, before, after, rest in (
        (2, 1, height, high, width * channels),
        (3, high, width, wide, channels),
    ):
        if before == after and np.array_equal(resampling.matrix(node, axis), np.eye(before)):
            continue
        flat = c.scratch(f"{out.name}/in{axis}", (lead, before, rest))
        c.reshape(x, flat)
        weights = c.floats(f"{node.name}/weights{axis}", resampling.matrix(node, axis)[None])
        x = c.scratch(f"{out.name}/out{axis}", (lead, after, rest))
        c.op("BATCH_MATMUL", [weights, flat], [x])
    c.reshape(x, c.write(out))


def _repeat(c: Emitter, x: int, out: ir.Value, factors: list[int]) -> None:
    """Nearest upsampling by whole factors: pixels, then rows, laid side by side.

    ``[1, H, W, C]`` concatenated with itself along C is ``[1, H, 2W, C]`` with every pixel doubled.
    XNNPACK takes CONCATENATION but not RESIZE_NEAREST_NEIGHBOR, so the graph stays in one partition.
    """
    n, height, width, channels = c.writer.tensors[x].shape
    high, wide = factors
    if wide > 1:
        beside = c.scratch(f"{out.name}/columns", (n, height, width, channels * wide), c.quant(x))
        c.op("CONCATENATION", [x] * wide, [beside], axis=3)
        x = beside
    if high > 1:
        rows = c.scratch(f"{out.name}/rows", (n, height, 1, width * channels * wide), c.quant(x))
        c.reshape(x, rows)
        x = c.scratch(f"{out.name}/doubled", (n, height, high, width * channels * wide), c.quant(x))
        c.op("CONCATENATION", [rows] * high, [x], axis=2)
    c.reshape(x, c.write(out))
