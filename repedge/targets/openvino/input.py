"""The input of an OpenVINO artifact: uint8 NHWC pixels, and how the first convolution comes to read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.config import InputKind
from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import const, only_reader, shape_of
from repedge.targets import qdq
from repedge.targets.openvino.build import Builder, needed
from repedge.targets.openvino.importing import import_openvino


def lower_input(b: Builder, value: ir.Value, kind: InputKind) -> tuple[Any, list[ir.Node]]:
    """The parameter: uint8 NHWC pixels turned into float32 NCHW, or the graph's own input.

    Returns:
        The parameter, and the nodes that are lowered with it.
    """
    openvino = import_openvino()

    name, (n, c, h, w) = str(value.name), shape_of(value)
    if kind == "uint8":
        parameter = b.ops.parameter([n, h, w, c], np.uint8, name=name)
        found = _read_as_they_are(value)
        if found is None:
            pixels, value, done = _normalised(b, parameter, value)
        else:
            pixels, value, done = _bordered(b, parameter, found), found.out, found.nodes
        b.values[str(value.name)] = b.ops.transpose(pixels, b.ints(0, 3, 1, 2)).output(0)
    else:
        parameter, done = b.ops.parameter([n, c, h, w], np.float32, name=name), []
        b.values[name] = parameter.output(0)
    parameter.output(0).get_tensor().set_names({name})
    parameter.set_layout(openvino.Layout("NHWC" if kind == "uint8" else "NCHW"))
    return parameter, done


# --- pixels that are the integers of the first convolution, in a border of the mean pixel ------------------

UNIT = 2.0**-8
"""What a pixel is to the first convolution, whose weights are times its inverse.

OpenVINO takes uint8 numbers for a convolution's integers where they are converted and multiplied by a
constant, but drops a factor of 1 and with it the pattern. A power of two changes no number's digits.
"""


@dataclass(frozen=True)
class Pixels:
    """What a convolution reads as it is: the image, and constant pixels around it.

    Attributes:
        nodes: The Concats, and the QuantizeLinear and DequantizeLinear of scale 1 around each.
        parts: Of each Concat its axis in NCHW and its inputs: a constant, or None for the pixels.
        out: What the convolution reads.
        weight: Name of the convolution's weight, and its integers.
    """

    nodes: list[ir.Node]
    parts: list[tuple[int, list[np.ndarray | None]]]
    out: ir.Value
    weight: tuple[str, qdq.Quantized]


def _read_as_they_are(image: ir.Value) -> Pixels | None:
    """The pixels of a graph that `fold_preprocess` gave a border and that was quantized then, or None."""
    nodes: list[ir.Node] = []
    parts: list[tuple[int, list[np.ndarray | None]]] = []
    value = image
    while (rounding := _rounding(value)) is not None:
        if qdq.params(rounding[0]) != qdq.Params(np.float32(1), 0, "uint8"):
            return None
        nodes += rounding
        value = rounding[1].outputs[0]
        node = only_reader(value)
        if node is None or node.op_type != "Concat":
            break
        axis = attr(node, "axis", 1) % 4
        arrays = [None if v is value else const(v) for v in node.inputs]
        if axis < 2 or not all(v is value or _is_pixel(a) for v, a in zip(node.inputs, arrays, strict=True)):
            return None
        parts.append((axis, arrays))
        nodes.append(node)
        value = node.outputs[0]
    weight = _weight_over(value) if nodes else None
    return None if weight is None else Pixels(nodes, parts, value, weight)


def _is_pixel(array: np.ndarray | None) -> bool:
    """Whether all of it is one pixel of integers."""
    return array is not None and bool((array == np.rint(array[:, :, :1, :1]).clip(0, 255)).all())


def _weight_over(value: ir.Value) -> tuple[str, qdq.Quantized] | None:
    """The integer weight, read by no other node, of the convolution that alone reads ``value``."""
    conv = only_reader(value)
    if conv is None or conv.op_type != "Conv" or conv.inputs[0] is not value or conv_attrs(conv).group != 1:
        return None
    weight = conv.inputs[1]
    found = qdq.weight(weight)
    if weight is None or found is None or len(list(weight.uses())) > 1:
        return None
    return str(weight.name), found


def _bordered(b: Builder, pixels: Any, found: Pixels) -> Any:
    """uint8 NHWC pixels -> NHWC pixels with their border, times `UNIT`; the convolution's weights with it."""
    batch = b.ops.gather(b.ops.shape_of(pixels), b.ints(0), b.ints(0))
    for axis, arrays in found.parts:
        parts = [pixels if a is None else _repeated(b, a, batch) for a in arrays]
        pixels = b.ops.concat(parts, axis - 1)
    name, weight = found.weight
    b.values[name] = b.quantized(replace(weight, scale=weight.scale / np.float32(UNIT))).output(0)
    return b.ops.multiply(b.ops.convert(pixels, np.float32), b.number(UNIT))


def _repeated(b: Builder, array: np.ndarray, batch: Any) -> Any:
    """A border's pixel in its size, for any batch; OpenVINO makes a constant of it where the batch is one."""
    _, channels, height, width = array.shape
    pixel = array[:, :, :1, :1].transpose(0, 2, 3, 1).astype(np.uint8)
    return b.ops.broadcast(b.const(pixel), b.ops.concat([batch, b.ints(height, width, channels)], 0))


# --- all other pixels: normalised while they are NHWC ------------------------------------------------------


def _normalised(b: Builder, parameter: Any, value: ir.Value) -> tuple[Any, ir.Value, list[ir.Node]]:
    """uint8 pixels -> float32 NHWC numbers, what of the graph they stand for, and the nodes done."""
    done: list[ir.Node] = []
    while (node := _normalisation(value)) is not None:
        value = node.outputs[0]
        done.append(node)
    rounding = _rounding(value)
    if rounding is not None:
        width = shape_of(value)[3]
        return (
            _round_pixels(b, parameter, done, rounding[0], width),
            rounding[1].outputs[0],
            [*done, *rounding],
        )
    pixels = b.ops.convert(parameter, np.float32)
    for node in done:
        pixels = _normalise(b, node, pixels)
    return pixels, value, done


NORMALISATION = {"Sub": "subtract", "Mul": "multiply"}
"""What the graph may do to each channel of its input, and is done while the pixels are still NHWC.

After the Transpose it would be a pass of its own over the image (0.1 ms at 224x224); before it, the CPU
plugin merges all into the one reordering.
"""


def _normalisation(value: ir.Value) -> ir.Node | None:
    """The node, if it is the only one to read ``value`` and is of that kind."""
    node = only_reader(value)
    if node is None or node.op_type not in NORMALISATION or node.inputs[0] is not value:
        return None
    constant = const(node.inputs[1])
    if constant is None or constant.shape != (1, constant.size, 1, 1):
        return None
    return node if node.op_type == "Sub" or (constant > 0).all() else None


def _normalise(b: Builder, node: ir.Node, pixels: Any) -> Any:
    lowered = getattr(b.ops, NORMALISATION[node.op_type])(pixels, b.const(needed(node, 1).reshape(-1)))
    lowered.set_friendly_name(node.name)
    return lowered


def _rounding(value: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """The QuantizeLinear that alone reads ``value``, and its DequantizeLinear."""
    quantize = only_reader(value)
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    dequantize = only_reader(quantize.outputs[0])
    return None if dequantize is None else (quantize, dequantize)


def _round_pixels(b: Builder, pixels: Any, nodes: list[ir.Node], quantize: ir.Node, width: int) -> Any:
    """NHWC pixels -> what ``quantize`` gives of them after ``nodes``: all of it in one FakeQuantize.

    Its input range, one per channel, is what ``nodes`` turn into the integers' range. It sees rows of width x
    channels: on the CPU, a last axis of 3 takes five times as long as one of 672.
    """
    low, high = qdq.params(quantize).range()
    channels = shape_of(quantize.inputs[0])[1]
    ends = np.broadcast_to(np.array([[low], [high]], np.float64), (2, channels))
    for node in reversed(nodes):
        constant = needed(node, 1).reshape(-1).astype(np.float64)
        ends = ends + constant if node.op_type == "Sub" else ends / constant
    if (ends == ends[:, :1]).all():
        bounds = [b.number(end) for end in ends[:, 0]]
    else:
        ends = ends.astype(np.float32)
        bounds = [b.ops.tile(b.const(end), b.ints(width)) for end in ends]
    rows = b.ops.convert(b.ops.reshape(pixels, b.ints(0, 0, -1), True), np.float32)
    rounded = b.ops.fake_quantize(rows, *bounds, b.number(low), b.number(high), 256)
    rounded.set_friendly_name(quantize.name)
    return b.ops.reshape(rounded, b.ints(0, 0, width, channels), True)
