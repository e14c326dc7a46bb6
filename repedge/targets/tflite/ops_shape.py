"""Operators that move elements around: Reshape and its kin, Transpose, Concat, Split, Slice, Resize."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import NHWC, gathered, regroup, stored

_MAX_SPLIT = 4  # outputs of a SPLIT that XNNPACK takes
_MAX_REPEAT = 8  # factors of nearest upsampling that are spelled out for XNNPACK


def reshape(c: Emitter, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze -> RESHAPE; TRANSPOSE only where merged axes stand apart."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    before, after = shape_of(value), shape_of(out)
    if len(after) == 2 and before[0] == after[0] == 1 and _only_gemms_read(out):
        c.read(value)
        layout = c.layout(value)
        if layout[0] == 0:
            c.flat[out] = (c.read(value, layout), layout, before)
            return
    for layout, tensor in _known(c, value):
        result = regroup(before, after, layout)
        if result is not None:
            c.reshape(tensor, c.write(out, result))
            return
    together = gathered(before, after, c.layout(value))
    result = regroup(before, after, together)
    assert result is not None
    c.reshape(c.read(value, together), c.write(out, result))


def _known(c: Emitter, value: ir.Value) -> Iterator[tuple[tuple[int, ...], int]]:
    c.read(value)
    yield from list(c.layouts(value).items())


def _only_gemms_read(value: ir.Value) -> bool:
    """Whether all readers take a value as the data of a Gemm, whose weight can be reordered."""
    uses = list(value.uses())
    return (
        bool(uses)
        and not value.is_graph_output()
        and all(
            use.node.op_type == "Gemm" and use.idx == 0 and const(use.node.inputs[1]) is not None
            for use in uses
        )
    )


def transpose(c: Emitter, node: ir.Node) -> None:
    """Transpose -> nothing: the same tensors, read in another layout."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    rank = len(shape_of(value))
    perm = attr(node, "perm", tuple(reversed(range(rank))))
    c.read(value)
    for layout, tensor in c.layouts(value).items():
        c.store(out, tuple(perm.index(axis) for axis in layout), tensor)


def concat(c: Emitter, node: ir.Node) -> None:
    """Concat -> CONCATENATION in the layout of its first computed input."""
    rank = len(shape_of(node.outputs[0]))
    first = next((v for v in node.inputs if const(v) is None), node.inputs[0])
    layout = c.layout(first)  # type: ignore[arg-type]
    axis = layout.index(attr(node, "axis") % rank)
    c.op(
        "CONCATENATION",
        [c.read(v, layout) for v in node.inputs],
        [c.write(node.outputs[0], layout)],
        axis=axis,
    )


def depth_to_space(c: Emitter, node: ir.Node) -> None:
    """DepthToSpace -> DEPTH_TO_SPACE, which has ONNX's DCR order; CRD (pixel shuffle) by a TRANSPOSE."""
    x, out, block = c.read(node.inputs[0], NHWC), node.outputs[0], attr(node, "blocksize")
    if attr(node, "mode", "DCR") == "DCR":
        c.op("DEPTH_TO_SPACE", [x], [c.write(out)], blockSize=block)
        return
    n, height, width, channels = c.writer.tensors[x].shape
    depth = channels // block**2
    apart = c.scratch(f"{out.name}/apart", (n, height, width, depth, block, block), c.quant(x))
    c.reshape(x, apart)
    woven = c.scratch(f"{out.name}/woven", (n, height, block, width, block, depth), c.quant(x))
    c.op("TRANSPOSE", [apart, c.ints((0, 1, 4, 2, 5, 3))], [woven])
    c.reshape(woven, c.write(out))


def space_to_depth(c: Emitter, node: ir.Node) -> None:
    """SpaceToDepth -> SPACE_TO_DEPTH, which has the same order of channels."""
    x = c.read(node.inputs[0], NHWC)
    c.op("SPACE_TO_DEPTH", [x], [c.write(node.outputs[0])], blockSize=attr(node, "blocksize"))


def refuse_split(node: ir.Node) -> str | None:
    """Why a Split can't be lowered."""
    if len(node.inputs) > 1 and node.inputs[1] is not None and const(node.inputs[1]) is None:
        return "its sizes are computed, not constant"
    return None


def split(c: Emitter, node: ir.Node) -> None:
    """Split -> SPLIT into equal parts, else one SLICE each (XNNPACK has no uneven split)."""
    value = node.inputs[0]
    layout, shape = c.layout(value), shape_of(value)  # type: ignore[arg-type]
    onnx_axis = attr(node, "axis", 0) % len(shape)
    axis, x = layout.index(onnx_axis), c.read(value)
    sizes = [shape_of(out)[onnx_axis] for out in node.outputs]
    if len(set(sizes)) == 1 and 2 <= len(sizes) <= _MAX_SPLIT:
        outs = [c.write(out, layout) for out in node.outputs]
        c.op("SPLIT", [c.ints((axis,)), x], outs, numSplits=len(sizes))
        return
    start = 0
    for out, size in zip(node.outputs, sizes, strict=True):
        begin = [0] * len(shape)
        begin[axis] = start
        start += size
        extent = stored(shape_of(out), layout)
        c.op("SLICE", [x, c.ints(begin), c.ints(extent)], [c.write(out, layout)])


def _slice_ranges(node: ir.Node) -> list[tuple[int, int]]:
    """(first index, step) of each ONNX axis.

    Source: ONNX Slice: negative positions count from the end, then everything is clamped.
    """
    shape = shape_of(node.inputs[0])
    arrays = [None if v is None else const(v) for v in node.inputs[1:]] + [None] * 4
    starts, _, axes, steps = arrays[:4]
    assert starts is not None
    places = range(len(starts)) if axes is None else [int(a) % len(shape) for a in axes]
    ranges = [(0, 1)] * len(shape)
    for i, axis in enumerate(places):
        start = int(starts[i])
        start = start + shape[axis] if start < 0 else start
        step = 1 if steps is None else int(steps[i])
        ranges[axis] = (min(max(start, 0), shape[axis] - 1), step)
    return ranges


def refuse_slice(node: ir.Node) -> str | None:
    """Why a Slice can't be lowered."""
    if any(const(v) is None for v in node.inputs[1:] if v is not None):
        return "its bounds are computed, not constant"
    if any(step < 1 for _, step in _slice_ranges(node)):
        return "a negative step reverses an axis, which TensorFlow Lite's delegates don't do"
    if 0 in shape_of(node.outputs[0]):
        return "its result is empty"
    return None


def slice_(c: Emitter, node: ir.Node) -> None:
    """Slice -> SLICE, or STRIDED_SLICE where a step is larger than 1."""
    value, out = node.inputs[0], node.outputs[0]
    layout = c.layout(value)  # type: ignore[arg-type]
    ranges = [_slice_ranges(node)[axis] for axis in layout]
    sizes = stored(shape_of(out), layout)
    begin, x = c.ints([start for start, _ in ranges]), c.read(value)
    if all(step == 1 for _, step in ranges):
        c.op("SLICE", [x, begin, c.ints(sizes)], [c.write(out, layout)])
        return
    end = c.ints([start + (n - 1) * step + 1 for (start, step), n in zip(ranges, sizes, strict=True)])
    steps = c.ints([step for _, step in ranges])
    c.op("STRIDED_SLICE", [x, begin, end, steps], [c.write(out, layout)])


# Resize. A mode of TensorFlow Lite is taken only if it reads the same source positions as ONNX asks.

Positions = Callable[[np.ndarray, int, int, float], np.ndarray]
"""(output index, input size, output size, ONNX scale) -> position in the input, before clamping."""

ONNX_POSITIONS: dict[str, Positions] = {
    "half_pixel": lambda x, i, o, s: (x + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda x, i, o, s: (x + 0.5) / s - 0.5 if o > 1 else x * 0.0,
    "asymmetric": lambda x, i, o, s: x / s,
    "align_corners": lambda x, i, o, s: x * (i - 1) / (o - 1) if o > 1 else x * 0.0,
}

ONNX_ROUNDING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}

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


def _onnx_sources(node: ir.Node) -> list[np.ndarray]:
    """Source positions of each output row and column, clamped to the map; whole numbers if nearest."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    given = const(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    axes = attr(node, "axes", tuple(range(4)))
    scales = dict(enumerate(np.array(after) / np.array(before)))
    if given is not None and given.size:
        scales |= {axis % 4: float(s) for axis, s in zip(axes, given, strict=True)}
    position = ONNX_POSITIONS[attr(node, "coordinate_transformation_mode", "half_pixel")]
    result = []
    for axis in (2, 3):
        at = position(np.arange(after[axis]), before[axis], after[axis], scales[axis])
        if attr(node, "mode", "nearest") == "nearest":
            at = ONNX_ROUNDING[attr(node, "nearest_mode", "round_prefer_floor")](at)
        result.append(np.clip(at, 0, before[axis] - 1))
    return result


def _lite_mode(node: ir.Node) -> dict[str, bool] | None:
    """The options under which TensorFlow Lite reads the positions that ONNX asks for."""
    before, after = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
    lite = _lite_nearest if attr(node, "mode", "nearest") == "nearest" else _lite_linear
    sources = _onnx_sources(node)
    for mode in LITE_MODES:
        reads = [lite(i, o, mode) for i, o in zip(before, after, strict=True)]
        if all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(reads, sources, strict=True)):
            return mode
    return None


def refuse_resize(node: ir.Node) -> str | None:
    """Why a Resize can't be lowered."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(before) != 4 or before[:2] != after[:2]:
        return "only height and width of a [N, C, H, W] map can be resized"
    if any(const(v) is None for v in node.inputs[2:] if v is not None):
        return "its scales or sizes are computed, not constant"
    mode, transform = (
        attr(node, "mode", "nearest"),
        attr(node, "coordinate_transformation_mode", "half_pixel"),
    )
    if mode not in ("nearest", "linear") or transform not in ONNX_POSITIONS:
        return f"TensorFlow Lite has no {mode} resize with {transform} coordinates"
    if mode == "linear" and attr(node, "antialias", 0):
        return "TensorFlow Lite has no antialiased resize"
    if mode == "linear" and _lite_mode(node) is None:
        return (
            f"no mode of RESIZE_BILINEAR reads the positions of {transform} from {before[2:]} to {after[2:]}"
        )
    return None


def resize(c: Emitter, node: ir.Node) -> None:
    """Resize -> RESIZE_BILINEAR; nearest -> repetition, RESIZE_NEAREST_NEIGHBOR or GATHER."""
    x, out = c.read(node.inputs[0], NHWC), node.outputs[0]
    size = shape_of(out)[2:]
    if attr(node, "mode", "nearest") == "linear":
        mode = _lite_mode(node) or {}
        version = 3 if mode.get("halfPixelCenters") else 1
        c.op("RESIZE_BILINEAR", [x, c.ints(size)], [c.write(out)], version, **mode)
        return
    before, sources = shape_of(node.inputs[0])[2:], _onnx_sources(node)
    factors = [o // i for i, o in zip(before, size, strict=True)]
    repeats = all(
        1 <= f <= _MAX_REPEAT and np.array_equal(source, np.repeat(np.arange(i), f))
        for f, i, source in zip(factors, before, sources, strict=True)
    )
    if repeats:
        _repeat(c, x, out, factors)
        return
    lite = _lite_mode(node)
    if lite is not None:
        version = 3 if lite.get("halfPixelCenters") else 1
        c.op("RESIZE_NEAREST_NEIGHBOR", [x, c.ints(size)], [c.write(out)], version, **lite)
        return
    n, channels = shape_of(out)[:2]
    rows = c.scratch(f"{out.name}/rows", (n, size[0], before[1], channels), c.quant(x))
    c.op("GATHER", [x, c.ints(sources[0].astype(int).tolist())], [rows], axis=1)
    c.op("GATHER", [rows, c.ints(sources[1].astype(int).tolist())], [c.write(out)], axis=2)


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
