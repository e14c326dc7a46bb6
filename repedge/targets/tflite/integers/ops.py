"""Lowerings of integer operators that differ from the float ones, and of the borders between both."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import pool_attrs
from repedge.graph.values import shape_of
from repedge.targets.tflite.emit import ACTIVATIONS, Emitter, bounds
from repedge.targets.tflite.layout import NHWC
from repedge.targets.tflite.model import Quant
from repedge.targets.tflite.ops_window import VALID, pad_spatial, reached_pads

_ONE = Quant("int8", (1 / 127,))
_CLAMPS_16 = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6"}


def quantize(c: Emitter, node: ir.Node) -> None:
    """QuantizeLinear -> QUANTIZE, from floats or integers of another type.

    Another scale of 8-bit integers -> MUL by 1: XNNPACK's QUANTIZE has a multiplier of 8 fractional
    bits, which puts up to a seventh of the results one unit off (measured); its MUL is exact.
    """
    value, out = node.inputs[0], node.outputs[0]
    assert value is not None
    layout, x = c.layout(value), c.read(value)
    before = c.quant(x)
    if before is not None and before.dtype == c.quants[out].dtype == "int8":
        c.op("MUL", [x, _one(c, node)], [c.write(out, layout)])
    else:
        c.op("QUANTIZE", [x], [c.write(out, layout)])


def dequantize(c: Emitter, node: ir.Node) -> None:
    """DequantizeLinear -> DEQUANTIZE."""
    value = node.inputs[0]
    layout = c.layout(value)  # type: ignore[arg-type]
    c.op("DEQUANTIZE", [c.read(value)], [c.write(node.outputs[0], layout)])


def _one(c: Emitter, node: ir.Node) -> int:
    shape = (1,) * len(shape_of(node.outputs[0]))
    return c.integers(f"{node.name}/one", np.full(shape, 127), _ONE)


def clip(c: Emitter, node: ir.Node) -> None:
    """Relu and Clip by themselves -> MUL by 1 with an activation, which XNNPACK takes in int8.

    In 16 bits -> RELU or RELU6. Other bounds -> QUANTIZE, MAXIMUM, MINIMUM.
    """
    value, out, limits = node.inputs[0], node.outputs[0], bounds(node)
    layout = c.layout(value)  # type: ignore[arg-type]
    x, rank, final = c.read(value), len(shape_of(out)), c.quants[out]
    if limits in ACTIVATIONS and final.dtype == "int8":
        c.op("MUL", [x, _one(c, node)], [c.write(out, layout)], fusedActivationFunction=ACTIVATIONS[limits])
        return
    if limits in _CLAMPS_16 and final.dtype == "int16":
        c.op(_CLAMPS_16[limits], [x], [c.write(out, layout)])
        return
    shape = c.writer.tensors[x].shape
    if c.quant(x) != final:
        converted = c.scratch(f"{out.name}/converted", shape, final)
        c.op("QUANTIZE", [x], [converted])
        x = converted
    steps = [(op, b) for op, b in (("MAXIMUM", limits[0]), ("MINIMUM", limits[1])) if np.isfinite(b)]
    for i, (op, bound) in enumerate(steps):
        last = i == len(steps) - 1
        y = c.write(out, layout) if last else c.scratch(f"{out.name}/low", shape, final)
        c.op(op, [x, c.constant(f"{node.name}/bound{i}", np.full((1,) * rank, bound), x)], [y])
        x = y


def average_pool(c: Emitter, node: ir.Node) -> None:
    """AveragePool -> DEPTHWISE_CONV_2D with equal weights: XNNPACK takes no AVERAGE_POOL_2D in int8.

    The weights are 127 at scale 1 / (127 k), so nothing is lost, and the result may have a scale of
    its own. Padding is with the zero point, that is with zeros that count.
    """
    a, value = pool_attrs(node), node.inputs[0]
    kh, kw = a.kernel
    channels = shape_of(value)[1]
    x = pad_spatial(c, c.read(value, NHWC), reached_pads(node, a))
    quant = c.quant(x)
    assert quant is not None
    weight = Quant("int8", (float(np.float32(1 / (127 * kh * kw))),))
    w = c.integers(f"{node.name}/mean", np.full((1, kh, kw, channels), 127), weight)
    bias_type = "int64" if quant.dtype == "int16" else "int32"
    bias = Quant(bias_type, (float(np.float32(quant.scale[0] * weight.scale[0])),))
    b = c.integers(f"{node.name}/zeros", np.zeros(channels), bias)
    options = {"padding": VALID, "strideH": a.strides[0], "strideW": a.strides[1], "depthMultiplier": 1}
    ones = {"dilationHFactor": 1, "dilationWFactor": 1}
    c.op("DEPTHWISE_CONV_2D", [x, w, b], [c.write(node.outputs[0])], **options, **ones)
