"""ONNX op -> OpenVINO op (opset 13). A missing row is a missing feature.

Shapes of the batch axis are never written into the OpenVINO graph, so that ``Model.reshape`` can
change the batch size of a written IR. Source: the OpenVINO operation-set specification, opset 13.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr, conv_attrs, pool_attrs
from repedge.graph.values import const, only_reader, shape_of
from repedge.targets import qdq, resampling
from repedge.targets.openvino import ops_values as v
from repedge.targets.openvino.build import Builder, Lowering, Row, arg, first, given, needed, require_const
from repedge.targets.openvino.ops_shape import (
    axes_op,
    block,
    concat,
    flatten,
    identity,
    known_pad_mode,
    pad,
    reshape,
    resize,
    slice_,
    split,
    transpose,
    with_axes,
)

FLOAT_MAX = float(np.finfo(np.float32).max)

# --- convolutions and products ---------------------------------------------------------------------------


def two_dimensional(node: ir.Node) -> str | None:
    weight = node.inputs[1]
    if const(weight) is None and qdq.weight(weight) is None:
        return "its weight is not a constant"
    rank = len(shape_of(weight))
    return None if rank == 4 else f"it has {rank - 2} spatial axes; only 2-D is supported"


def plain_transpose(node: ir.Node) -> str | None:
    if attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attr(node, "output_shape") is not None:
        return "auto_pad and output_shape are not supported; give explicit pads"
    return None


def kernel(b: Builder, node: ir.Node, group: int) -> Any:
    """The weight; [G * A, B, h, w] becomes [G, A, B, h, w], the form of OpenVINO's group convolutions."""
    if group == 1:
        return b.x(node, 1)
    first, *rest = shape_of(node.inputs[1])
    shape = (group, first // group, *rest)
    quantized = qdq.weight(node.inputs[1])
    if quantized is not None:
        return b.quantized(quantized, shape)
    return b.const(needed(node, 1).reshape(shape))


def add_channels(b: Builder, node: ir.Node, y: Any) -> Any:
    """``y`` plus the bias at input 2, along axis 1."""
    bias = arg(node, 2)
    return y if bias is None else b.plus(node, y, b.const(bias.reshape(1, -1, 1, 1)))


def conv(b: Builder, node: ir.Node) -> Any:
    a = conv_attrs(node)
    window = (list(a.strides), list(a.pads[:2]), list(a.pads[2:]), list(a.dilations))
    if a.group == 1:
        y = b.ops.convolution(b.x(node, 0), kernel(b, node, 1), *window)
    else:
        y = b.ops.group_convolution(b.x(node, 0), kernel(b, node, a.group), *window)
    return add_channels(b, node, y)


def conv_transpose(b: Builder, node: ir.Node) -> Any:
    a = conv_attrs(node)
    window: dict[str, Any] = {
        "strides": list(a.strides),
        "pads_begin": list(a.pads[:2]),
        "pads_end": list(a.pads[2:]),
        "dilations": list(a.dilations),
        "output_padding": list(a.output_padding),
        "auto_pad": "explicit",
    }
    if a.group == 1:
        y = b.ops.convolution_backprop_data(b.x(node, 0), kernel(b, node, 1), **window)
    else:
        y = b.ops.group_convolution_backprop_data(b.x(node, 0), kernel(b, node, a.group), **window)
    return add_channels(b, node, y)


def gemm(b: Builder, node: ir.Node) -> Any:
    y = b.ops.matmul(b.x(node, 0), b.x(node, 1), bool(attr(node, "transA", 0)), bool(attr(node, "transB", 0)))
    y = scaled(b, y, attr(node, "alpha", 1.0))
    return b.plus(node, y, scaled(b, b.x(node, 2), attr(node, "beta", 1.0))) if given(node, 2) else y


def scaled(b: Builder, x: Any, factor: float) -> Any:
    return x if factor == 1.0 else b.ops.multiply(x, b.number(factor))


def batch_norm(b: Builder, node: ir.Node) -> Any:
    return b.ops.batch_norm_inference(*(b.x(node, i) for i in range(5)), attr(node, "epsilon", 1e-5))


def inference_only(node: ir.Node) -> str | None:
    return "it is in training mode" if attr(node, "training_mode", 0) else None


# --- activations and arithmetic --------------------------------------------------------------------------


def unary(name: str) -> Lowering:
    return lambda b, node: getattr(b.ops, name)(b.x(node, 0))


def binary(name: str) -> Lowering:
    return lambda b, node: getattr(b.ops, name)(b.x(node, 0), b.x(node, 1))


def variadic(name: str) -> Lowering:
    def lower(b: Builder, node: ir.Node) -> Any:
        y = b.x(node, 0)
        for i in range(1, len(node.inputs)):
            y = getattr(b.ops, name)(y, b.x(node, i))
        return y

    return lower


def clip(b: Builder, node: ir.Node) -> Any:
    low, high = arg(node, 1), arg(node, 2)
    if low is not None and float(low) == 0.0 and (high is None or not np.isfinite(high)):
        return b.ops.relu(b.x(node, 0))
    bounds = (-FLOAT_MAX if low is None else float(low), FLOAT_MAX if high is None else float(high))
    return b.ops.clamp(b.x(node, 0), *(max(-FLOAT_MAX, min(FLOAT_MAX, v)) for v in bounds))


def leaky_relu(b: Builder, node: ir.Node) -> Any:
    return b.ops.prelu(b.x(node, 0), b.const(np.array([attr(node, "alpha", 0.01)], np.float32)))


def prelu(b: Builder, node: ir.Node) -> Any:
    """One slope, or one a channel; else relu(x) + slope * min(x, 0)."""
    slope, shape = const(node.inputs[1]), shape_of(node.inputs[0])
    if slope is not None and (
        slope.size == 1 or (slope.shape[-3:] == (*shape[1:2], 1, 1) and len(shape) == 4)
    ):
        return b.ops.prelu(b.x(node, 0), b.const(slope.reshape(-1)))
    below = b.ops.multiply(b.ops.minimum(b.x(node, 0), b.number(0.0)), b.x(node, 1))
    return b.ops.add(b.ops.relu(b.x(node, 0)), below)


def celu(b: Builder, node: ir.Node) -> Any:
    alpha = attr(node, "alpha", 1.0)
    if alpha == 1.0:
        return b.ops.elu(b.x(node, 0), 1.0)
    curve = b.ops.elu(b.ops.multiply(b.x(node, 0), b.number(1 / alpha)), 1.0)
    return b.ops.multiply(curve, b.number(alpha))


def selu(b: Builder, node: ir.Node) -> Any:
    alpha, gamma = attr(node, "alpha", 1.6732632), attr(node, "gamma", 1.050701)
    return b.ops.selu(b.x(node, 0), b.number(alpha), b.number(gamma))


def thresholded_relu(b: Builder, node: ir.Node) -> Any:
    above = b.ops.greater(b.x(node, 0), b.number(attr(node, "alpha", 1.0)))
    return b.ops.select(above, b.x(node, 0), b.number(0.0))


def lrn(b: Builder, node: ir.Node) -> Any:
    alpha, beta, bias = attr(node, "alpha", 1e-4), attr(node, "beta", 0.75), attr(node, "bias", 1.0)
    return b.ops.lrn(b.x(node, 0), b.ints(1), alpha, beta, bias, attr(node, "size"))


def hard_sigmoid(b: Builder, node: ir.Node) -> Any:
    alpha, beta = attr(node, "alpha", 0.2), attr(node, "beta", 0.5)
    if beta == 0.5 and math.isclose(alpha, 1 / 6, rel_tol=1e-6):
        return b.ops.hsigmoid(b.x(node, 0))  # the form that fuses into convolutions
    return b.ops.hard_sigmoid(b.x(node, 0), b.number(alpha), b.number(beta))


def gelu(b: Builder, node: ir.Node) -> Any:
    return b.ops.gelu(b.x(node, 0), "tanh" if attr(node, "approximate", "none") == "tanh" else "erf")


def elu(b: Builder, node: ir.Node) -> Any:
    return b.ops.elu(b.x(node, 0), attr(node, "alpha", 1.0))


def softmax(b: Builder, node: ir.Node) -> Any:
    return b.ops.softmax(b.x(node, 0), attr(node, "axis", -1))


# --- pooling and reductions ------------------------------------------------------------------------------


def ceil_to_floor(node: ir.Node) -> tuple[list[int], list[int]]:
    """Pads (begin, end) with which rounding down gives the node's own output size.

    With ``ceil_mode`` the last window may reach past the padding; the cells it meets there are ignored
    (max pooling, and averages that leave the padding out), so they may as well be padding.
    """
    a = pool_attrs(node)
    begin, end = list(a.pads[:2]), list(a.pads[2:])
    if a.ceil_mode:
        sizes, outs = shape_of(node.inputs[0])[2:], shape_of(node.outputs[0])[2:]
        for i in range(2):
            reach = (outs[i] - 1) * a.strides[i] + (a.kernel[i] - 1) * a.dilations[i] + 1
            end[i] = max(reach - sizes[i] - begin[i], 0)
    return begin, end


def max_pool(b: Builder, node: ir.Node) -> Any:
    a, (begin, end) = pool_attrs(node), ceil_to_floor(node)
    return b.ops.max_pool(b.x(node, 0), list(a.strides), list(a.dilations), begin, end, list(a.kernel))


def average_pool(b: Builder, node: ir.Node) -> Any:
    a, (begin, end) = pool_attrs(node), ceil_to_floor(node)
    return b.ops.avg_pool(
        b.x(node, 0), list(a.strides), begin, end, list(a.kernel), exclude_pad=not a.count_include_pad
    )


def pool_2d(node: ir.Node) -> str | None:
    rank = len(shape_of(node.inputs[0]))
    if rank != 4:
        return f"its input has rank {rank}; only 2-D pooling is supported"
    if len(node.outputs) > 1:
        return "its second output, the indices, is not supported"
    if attr(node, "storage_order", 0):
        return "storage_order 1 is not supported"
    return None


def average_without_surprises(node: ir.Node) -> str | None:
    a = pool_attrs(node)
    if a.dilations != (1, 1):
        return "a dilated average pool is not supported"
    if a.ceil_mode and a.count_include_pad:
        return "ceil_mode together with count_include_pad is not supported"
    return None


def spatial(name: str) -> Lowering:
    """A reduction over all axes after the channel axis, keeping them as ones."""

    def lower(b: Builder, node: ir.Node) -> Any:
        axes = b.ints(*range(2, len(shape_of(node.inputs[0]))))
        return getattr(b.ops, name)(b.x(node, 0), axes, keep_dims=True)

    return lower


# --- layout and shape ------------------------------------------------------------------------------------


# --- quantization ----------------------------------------------------------------------------------------


def fake_quantize(b: Builder, node: ir.Node) -> Any:
    """QuantizeLinear with the DequantizeLinear behind it, which has the same parameters.

    A Relu before it is left out where the range starts at 0, which does the same.
    """
    low, high = qdq.params(node).range()
    x = node.inputs[0]
    relu = None if x is None else x.producer()
    if low == 0 and relu is not None and relu.op_type == "Relu" and only_reader(relu.outputs[0]) is node:
        node = relu
    ends = b.number(low), b.number(high)
    return b.ops.fake_quantize(b.x(node, 0), *ends, *ends, 256)


TABLE: dict[str, Row] = {
    # convolutions and products
    "Conv": Row(conv, first(two_dimensional, require_const(2))),
    "ConvTranspose": Row(conv_transpose, first(two_dimensional, plain_transpose, require_const(2))),
    "Gemm": Row(gemm),
    "MatMul": Row(lambda b, n: b.ops.matmul(b.x(n, 0), b.x(n, 1), False, False)),
    "BatchNormalization": Row(batch_norm, inference_only),
    # activations
    "Relu": Row(unary("relu")),
    "Clip": Row(clip, require_const(1, 2)),
    "LeakyRelu": Row(leaky_relu),
    "PRelu": Row(prelu),
    "Elu": Row(elu),
    "Celu": Row(celu),
    "Selu": Row(selu),
    "Mish": Row(unary("mish")),
    "Softsign": Row(unary("softsign")),
    "ThresholdedRelu": Row(thresholded_relu),
    "LogSoftmax": Row(lambda b, n: b.ops.log_softmax(b.x(n, 0), attr(n, "axis", -1))),
    "LRN": Row(lrn),
    "Gelu": Row(gelu),
    "Sigmoid": Row(unary("sigmoid")),
    "HardSigmoid": Row(hard_sigmoid),
    "HardSwish": Row(unary("hswish")),
    "Tanh": Row(unary("tanh")),
    "Softplus": Row(unary("softplus")),
    "Softmax": Row(softmax),
    # arithmetic
    "Add": Row(binary("add")),
    "Sub": Row(binary("subtract")),
    "Mul": Row(binary("multiply")),
    "Div": Row(binary("divide")),
    "Pow": Row(binary("power")),
    "Max": Row(variadic("maximum")),
    "Min": Row(variadic("minimum")),
    "Exp": Row(unary("exp")),
    "Log": Row(unary("log")),
    "Sqrt": Row(unary("sqrt")),
    "Reciprocal": Row(v.reciprocal),
    "Sin": Row(unary("sin")),
    "Cos": Row(unary("cos")),
    "Abs": Row(unary("abs")),
    "Neg": Row(unary("negative")),
    "Sign": Row(unary("sign")),
    "Floor": Row(unary("floor")),
    "Ceil": Row(unary("ceil")),
    "Round": Row(v.round_half_even),
    "Erf": Row(unary("erf")),
    "Mod": Row(v.remainder),
    # comparisons, logic, types
    "Equal": Row(binary("equal")),
    "Greater": Row(binary("greater")),
    "GreaterOrEqual": Row(binary("greater_equal")),
    "Less": Row(binary("less")),
    "LessOrEqual": Row(binary("less_equal")),
    "And": Row(binary("logical_and")),
    "Or": Row(binary("logical_or")),
    "Xor": Row(binary("logical_xor")),
    "Not": Row(unary("logical_not")),
    "Where": Row(lambda b, n: b.ops.select(b.x(n, 0), b.x(n, 1), b.x(n, 2))),
    "Cast": Row(v.cast),
    # pooling and reductions
    "MaxPool": Row(max_pool, pool_2d),
    "AveragePool": Row(average_pool, first(pool_2d, average_without_surprises)),
    "GlobalAveragePool": Row(spatial("reduce_mean")),
    "GlobalMaxPool": Row(spatial("reduce_max")),
    "ReduceMean": Row(v.reduction("reduce_mean"), require_const(1)),
    "ReduceSum": Row(v.reduction("reduce_sum"), require_const(1)),
    "ReduceMax": Row(v.reduction("reduce_max"), require_const(1)),
    "ReduceMin": Row(v.reduction("reduce_min"), require_const(1)),
    "ReduceProd": Row(v.reduction("reduce_prod"), require_const(1)),
    "ReduceL1": Row(v.reduction("reduce_l1"), first(require_const(1), v.over_some_axis)),
    "ReduceL2": Row(v.reduction("reduce_l2"), first(require_const(1), v.over_some_axis)),
    "ReduceSumSquare": Row(v.reduction("reduce_sum", "square"), first(require_const(1), v.over_some_axis)),
    "ReduceLogSum": Row(v.reduction("reduce_sum", "", "log"), first(require_const(1), v.over_some_axis)),
    "ReduceLogSumExp": Row(v.log_sum_exp, first(require_const(1), v.over_some_axis)),
    "ArgMax": Row(v.extreme_place("max"), v.first_of_equal),
    "ArgMin": Row(v.extreme_place("min"), v.first_of_equal),
    "TopK": Row(v.topk, require_const(1)),
    "CumSum": Row(v.cumsum, require_const(1)),
    # normalization
    "LayerNormalization": Row(v.layer_norm, v.statistics_unread),
    "InstanceNormalization": Row(v.instance_norm, require_const(1, 2)),
    # layout and shape
    "Concat": Row(concat),
    "Split": Row(split),
    "Slice": Row(slice_, require_const(1, 2, 3, 4)),
    "Reshape": Row(reshape, require_const(1)),
    "Flatten": Row(flatten),
    "Transpose": Row(transpose),
    "Identity": Row(identity),
    "Squeeze": Row(axes_op("squeeze"), first(with_axes, require_const(1))),
    "Unsqueeze": Row(axes_op("unsqueeze"), require_const(1)),
    "Pad": Row(pad, first(known_pad_mode, require_const(1, 2, 3))),
    "Resize": Row(resize, resampling.refuse),
    "DepthToSpace": Row(block("depth_to_space")),
    "SpaceToDepth": Row(block("space_to_depth")),
    "Gather": Row(v.gather),
    "GatherElements": Row(v.gather_elements),
    "GatherND": Row(v.gather_nd),
    "Expand": Row(v.expand, require_const(1)),
    "Tile": Row(v.tile, require_const(1)),
    # quantization
    "QuantizeLinear": Row(fake_quantize, qdq.refuse_quantize),
    "DequantizeLinear": Row(lambda b, n: b.x(n, 0).get_node(), qdq.refuse_dequantize),
}
