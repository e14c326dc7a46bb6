"""Integer convolutions of images over groups of columns instead of single ones.

For every tap of a window, XNNPACK's integer kernels multiply as many input channels as a register or a
tile takes (4 to 64), and they give 16 to 64 output channels at once. An image has 3 channels: a 3x3
window is nine products of length 3, nearly all of it padding. In NHWC, neighbouring columns are
neighbours in memory, so that RESHAPE makes [H, W, C] into [H, W / g, g C] without moving anything. A
window over groups has fewer taps and longer products; where several outputs lie in one group they
become output channels, each with the filter shifted by the stride and zeros elsewhere. Zero weights add
nothing, so the integers stay what they were. Measured with LiteRT 2.3 on a core with AMX: RepViT-M0.9
w8a8 takes 0.93 of the time, RepVGG-A0 0.98; layers of 24 channels gain nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import Window, conv_attrs
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import Emitter
from repedge.targets.tflite.layout import NHWC
from repedge.targets.tflite.model import Tensor
from repedge.targets.tflite.ops_window import VALID, conv, pad_spatial, reached_pads

MAX_CHANNELS = 4
"""Input channels up to which columns are grouped: RGB, with or without a fourth."""

MIN_PIXELS = 64 * 64
"""Pixels from which on it pays: the zeros in the filter make the file a few kilobytes larger."""

TILE = 64
"""Output channels of XNNPACK's widest integer kernel: two columns at once must fit."""


@dataclass(frozen=True)
class Grouping:
    """How columns become channels.

    Attributes:
        outputs: Neighbouring output columns that become channels.
        columns: Input columns of a group: ``outputs`` times the stride.
        taps: Groups in a window.
        before: Zero columns in front of the image.
        after: Zero columns behind it, up to a whole group.
    """

    outputs: int
    columns: int
    taps: int
    before: int
    after: int

    @property
    def whole(self) -> bool:
        """Whether the image and its padding are whole groups."""
        return self.before % self.columns == 0 and self.after % self.columns == 0


def grouping(width: int, found: int, a: Window, outputs: int) -> Grouping | None:
    """The grouping that gives ``outputs`` columns at once; None if there is none that saves taps.

    Args:
        width: Columns of the input.
        found: Columns of the output.
        a: The window, not dilated.
        outputs: See `Grouping`.
    """
    kernel, stride, pad = a.kernel[1], a.strides[1], a.pads[1]
    columns, reach = outputs * stride, (outputs - 1) * stride + kernel
    taps = ceil(reach / columns)
    if found % outputs or taps >= kernel:
        return None
    to_whole = -pad % columns
    before = pad + (to_whole if to_whole <= taps * columns - reach else 0)
    after = (found // outputs - 1 + taps) * columns - before - width
    return Grouping(outputs, columns, taps, before, after) if after >= 0 else None


def integer_conv(c: Emitter, node: ir.Node) -> None:
    """Conv of integers -> CONV_2D over groups of columns where that saves taps, else as `conv` does it."""
    g = _chosen(c, node)
    if g is None:
        conv(c, node)
        return
    a = conv_attrs(node)
    operands = [_grouped(c, node, a, g), _weight(c, node, a, g), _bias(c, node, g)]
    out, activation = c.tail(node)
    n, channels, height, width = shape_of(out)
    shape = (n, height, width // g.outputs, g.outputs * channels)
    together = c.scratch(f"{out.name}/columns", shape, c.quants[out]) if g.outputs > 1 else c.write(out)
    window = {"padding": VALID, "strideH": a.strides[0], "strideW": 1, "fusedActivationFunction": activation}
    c.op("CONV_2D", operands, [together], **window, dilationHFactor=1, dilationWFactor=1)
    if g.outputs > 1:
        c.reshape(together, c.write(out))


def _chosen(c: Emitter, node: ir.Node) -> Grouping | None:
    a, (channels, depth) = conv_attrs(node), shape_of(node.inputs[1])[:2]
    if a.group > 1 or a.dilations != (1, 1) or depth > MAX_CHANNELS:
        return None
    height, width = shape_of(node.inputs[0])[2:]
    if height * width < MIN_PIXELS or c.quants[node.inputs[0]].dtype != "int8":  # type: ignore[index]
        return None  # 16-bit integers are not XNNPACK's
    found = shape_of(node.outputs[0])[3]
    two = grouping(width, found, a, 2) if 2 * channels <= TILE else None
    return two or grouping(width, found, a, 1)


def _grouped(c: Emitter, node: ir.Node, a: Window, g: Grouping) -> int:
    """The input, padded, as [N, H, W / columns, columns * C].

    XNNPACK takes a PAD in front of a convolution into it, so whole groups are padded behind the
    RESHAPE. Single columns are padded as elements of a row: XNNPACK's PAD copies one innermost axis at a
    time, and 3 bytes at a time cost RepViT a tenth of its time.
    """
    x, rows = c.read(node.inputs[0], NHWC), reached_pads(node, a)[0]
    (n, h, w, ch), quant = c.writer.tensors[x].shape, c.quant(x)
    if not g.whole:
        row = c.scratch(f"{node.name}/rows", (n, h, w * ch), quant)
        c.reshape(x, row)
        amounts = np.array([[0, 0], rows, [g.before * ch, g.after * ch]], np.int32)
        pads = c.writer.tensor(Tensor(f"{node.name}/pads", amounts.shape, "int32", lambda: amounts))
        h, w = h + sum(rows), g.before + w + g.after
        x = c.scratch(f"{node.name}/padded", (n, h, w * ch), quant)
        c.op("PAD", [row, pads], [x])
    groups = c.scratch(f"{node.name}/groups", (n, h, w // g.columns, g.columns * ch), quant)
    c.reshape(x, groups)
    if not g.whole:
        return groups
    return pad_spatial(c, groups, (rows, (g.before // g.columns, g.after // g.columns)))


def _weight(c: Emitter, node: ir.Node, a: Window, g: Grouping) -> int:
    """[O, C, kh, kw] -> [outputs * O, kh, taps, columns * C]."""
    value = node.inputs[1]
    assert value is not None
    channels, depth, kh, kw = shape_of(value)
    shape = (g.outputs * channels, kh, g.taps, g.columns * depth)

    def load() -> np.ndarray:
        array = const(value)
        assert array is not None
        wide = np.zeros((g.outputs, channels, kh, g.taps * g.columns, depth), array.dtype)
        for i in range(g.outputs):
            first = g.before - a.pads[1] + i * a.strides[1]
            wide[i, :, :, first : first + kw] = array.transpose(0, 2, 3, 1)
        return wide.reshape(shape)

    name, quant = value.name or f"{node.name}/weight", c.quants[value].along(0)
    if len(quant.scale) > 1:
        quant = replace(quant, scale=quant.scale * g.outputs)
    return c.writer.tensor(Tensor(name, shape, quant.dtype, load, quant))


def _bias(c: Emitter, node: ir.Node, g: Grouping) -> int:
    """The bias, once for every output column."""
    index = c.bias(node, shape_of(node.inputs[1])[0], None)
    tensor = c.writer.tensors[index]
    load, quant = tensor.load, tensor.quant
    assert load is not None
    assert quant is not None
    scale = quant.scale * g.outputs if len(quant.scale) > 1 else quant.scale
    c.writer.tensors[index] = replace(
        tensor,
        shape=(tensor.shape[0] * g.outputs,),
        load=lambda: np.tile(load(), g.outputs),
        quant=replace(quant, scale=scale),
    )
    return index
