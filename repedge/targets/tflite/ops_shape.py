"""Operators that move elements around: Reshape and its kin, Transpose, Concat, Split, Slice."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import NHWC, gathered, regroup, stored

_MAX_SPLIT = 4  # outputs of a SPLIT that XNNPACK takes


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


def identity(c: Emitter, node: ir.Node) -> None:
    """Identity -> nothing: the same tensors under another name."""
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    c.read(value)
    for layout, tensor in c.layouts(value).items():
        c.store(out, layout, tensor)


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
    apart = c.like(f"{out.name}/apart", (n, height, width, depth, block, block), x)
    c.reshape(x, apart)
    woven = c.like(f"{out.name}/woven", (n, height, block, width, block, depth), x)
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
