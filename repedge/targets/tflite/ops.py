"""ONNX operator -> how to lower it and when to refuse. A missing row is a missing feature.

`TFLite.unsupported` and `TFLite.compile` read this same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.values import shape_of
from repedge.passes.rank import fit_rank
from repedge.targets import resampling
from repedge.targets.base import Unsupported
from repedge.targets.tflite import ops_math as m
from repedge.targets.tflite import ops_shape as s
from repedge.targets.tflite import ops_window as w
from repedge.targets.tflite.composed import activations as a
from repedge.targets.tflite.composed import index as x
from repedge.targets.tflite.composed import logic as g
from repedge.targets.tflite.composed import norm as n
from repedge.targets.tflite.composed import reduce as red
from repedge.targets.tflite.composed import resize as r
from repedge.targets.tflite.emit import DTYPES, Emitter
from repedge.targets.tflite.integers import ops as i
from repedge.targets.tflite.integers.columns import integer_conv
from repedge.targets.tflite.integers.graph import IntegerGraph, integer_graph, is_quantized
from repedge.targets.tflite.model import Quant


def _never(node: ir.Node) -> str | None:
    return None


@dataclass(frozen=True)
class Lowering:
    """``lower`` emits a node; ``refuse`` gives the sentence why it can't, or None.

    ``refuse`` may also raise UserError, whose text is then the reason. ``integer`` emits a node that
    computes with integers where that is not done as ``lower`` does it.
    """

    lower: Callable[[Emitter, ir.Node], None]
    refuse: Callable[[ir.Node], str | None] = _never
    integer: Callable[[Emitter, ir.Node], None] | None = None

    def emit(self, c: Emitter, node: ir.Node) -> None:
        """Lower a node of floats or of integers."""
        if self.integer is not None and c.integer(node):
            self.integer(c, node)
        else:
            self.lower(c, node)


LOWERINGS: dict[str, Lowering] = {
    # windows
    "Conv": Lowering(w.conv, w.refuse_conv, integer_conv),
    "ConvTranspose": Lowering(w.conv_transpose, w.refuse_conv),
    "MaxPool": Lowering(w.max_pool, w.refuse_pool),
    "AveragePool": Lowering(w.average_pool, w.refuse_pool, i.average_pool),
    "GlobalAveragePool": Lowering(w.global_average_pool, w.refuse_global_pool),
    "GlobalMaxPool": Lowering(w.global_max_pool, w.refuse_global_pool),
    "Pad": Lowering(w.pad, w.refuse_pad),
    # products
    "Gemm": Lowering(m.gemm, m.refuse_gemm),
    "MatMul": Lowering(m.matmul, m.refuse_matmul),
    # reductions
    "ReduceMean": Lowering(red.reduce("MEAN"), red.refuse_reduction),
    "ReduceSum": Lowering(red.reduce("SUM"), red.refuse_reduction),
    "ReduceMax": Lowering(red.reduce("REDUCE_MAX"), red.refuse_reduction),
    "ReduceMin": Lowering(red.reduce("REDUCE_MIN"), red.refuse_reduction),
    "ReduceProd": Lowering(red.reduce("REDUCE_PROD"), red.refuse_reduction),
    "ReduceL1": Lowering(red.reduce("SUM", before="ABS"), red.refuse_reduction),
    "ReduceL2": Lowering(red.reduce("SUM", before="SQUARE", after="SQRT"), red.refuse_reduction),
    "ReduceSumSquare": Lowering(red.reduce("SUM", before="SQUARE"), red.refuse_reduction),
    "ReduceLogSum": Lowering(red.reduce("SUM", after="LOG"), red.refuse_reduction),
    "ReduceLogSumExp": Lowering(red.reduce_log_sum_exp, red.refuse_reduction),
    "ArgMax": Lowering(red.extreme_place("ARG_MAX"), red.refuse_extreme_place),
    "ArgMin": Lowering(red.extreme_place("ARG_MIN"), red.refuse_extreme_place),
    "TopK": Lowering(red.topk, red.refuse_topk),
    "CumSum": Lowering(red.cumsum, red.refuse_cumsum),
    # normalization
    "BatchNormalization": Lowering(m.batch_normalization, m.refuse_computed_parameters),
    "LayerNormalization": Lowering(n.layer_normalization, n.refuse_normalization),
    "InstanceNormalization": Lowering(n.instance_normalization, n.refuse_normalization),
    # activations
    "Relu": Lowering(m.clip, integer=i.clip),
    "Clip": Lowering(m.clip, m.refuse_clip, i.clip),
    "LeakyRelu": Lowering(m.unary("LEAKY_RELU", alpha=("alpha", 0.01))),
    "Gelu": Lowering(m.gelu),
    "Sigmoid": Lowering(m.unary("LOGISTIC")),
    "HardSigmoid": Lowering(m.hard_sigmoid),
    "HardSwish": Lowering(m.unary("HARD_SWISH")),
    "Tanh": Lowering(m.unary("TANH")),
    "Elu": Lowering(a.elu),
    "Celu": Lowering(a.celu),
    "Selu": Lowering(a.selu),
    "Mish": Lowering(a.mish),
    "Softsign": Lowering(a.softsign),
    "ThresholdedRelu": Lowering(a.thresholded_relu),
    "LRN": Lowering(a.lrn, a.refuse_lrn),
    "Softplus": Lowering(a.softplus),
    "PRelu": Lowering(a.prelu),
    "Softmax": Lowering(m.softmax("SOFTMAX", beta=1.0)),
    "LogSoftmax": Lowering(m.softmax("LOG_SOFTMAX")),
    # elementwise
    "Add": Lowering(m.binary("ADD")),
    "Sub": Lowering(m.binary("SUB")),
    "Mul": Lowering(m.binary("MUL")),
    "Div": Lowering(m.binary("DIV")),
    "Max": Lowering(m.binary("MAXIMUM", fuse=False), m.refuse_extremum),
    "Min": Lowering(m.binary("MINIMUM", fuse=False), m.refuse_extremum),
    "Pow": Lowering(m.power),
    "Abs": Lowering(m.unary("ABS")),
    "Neg": Lowering(m.unary("NEG")),
    "Exp": Lowering(m.unary("EXP")),
    "Log": Lowering(m.unary("LOG")),
    "Sqrt": Lowering(g.square_root),
    "Reciprocal": Lowering(g.reciprocal),
    "Sin": Lowering(m.unary("SIN")),
    "Cos": Lowering(m.unary("COS")),
    "Sign": Lowering(m.unary("SIGN")),
    "Floor": Lowering(m.unary("FLOOR")),
    "Ceil": Lowering(m.unary("CEIL")),
    "Round": Lowering(m.unary("ROUND")),
    "Erf": Lowering(g.erf),
    "Mod": Lowering(g.remainder),
    # comparisons, logic, types
    "Equal": Lowering(g.joint("EQUAL")),
    "Greater": Lowering(g.joint("GREATER")),
    "GreaterOrEqual": Lowering(g.joint("GREATER_EQUAL")),
    "Less": Lowering(g.joint("LESS")),
    "LessOrEqual": Lowering(g.joint("LESS_EQUAL")),
    "And": Lowering(g.joint("LOGICAL_AND")),
    "Or": Lowering(g.joint("LOGICAL_OR")),
    "Xor": Lowering(g.joint("NOT_EQUAL")),
    "Not": Lowering(m.unary("LOGICAL_NOT")),
    "Where": Lowering(g.joint("SELECT_V2")),
    "Cast": Lowering(g.cast),
    # moving elements
    "Reshape": Lowering(s.reshape),
    "Flatten": Lowering(s.reshape),
    "Squeeze": Lowering(s.reshape),
    "Unsqueeze": Lowering(s.reshape),
    "Transpose": Lowering(s.transpose),
    "Identity": Lowering(s.identity),
    "Concat": Lowering(s.concat),
    "Split": Lowering(s.split, s.refuse_split),
    "Slice": Lowering(s.slice_, s.refuse_slice),
    "DepthToSpace": Lowering(s.depth_to_space),
    "SpaceToDepth": Lowering(s.space_to_depth),
    "Resize": Lowering(r.resize, resampling.refuse),
    "Gather": Lowering(x.gather),
    "GatherElements": Lowering(x.gather_elements),
    "GatherND": Lowering(x.gather_nd, x.refuse_gather_nd),
    "Expand": Lowering(x.expand, x.refuse_computed_size),
    "Tile": Lowering(x.expand, x.refuse_computed_size),
    # between integers and floats
    "QuantizeLinear": Lowering(i.quantize),
    "DequantizeLinear": Lowering(i.dequantize),
}

MAX_RANK = 6
"""XNNPACK's and the kernels' limit."""


def why_not(node: ir.Node, quants: Mapping[ir.Value, Quant] | None = None) -> str | None:
    """The sentence why a node has no lowering, or None if it has one.

    Args:
        node: A node of a float graph or of an `IntegerGraph`.
        quants: The values that hold integers.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in LOWERINGS:
        return "TensorFlow Lite has no lowering for this operator"
    try:
        for value in (*node.inputs, *node.outputs):
            if value is not None and len(shape_of(value)) > MAX_RANK:
                return f"{value.name!r} has rank {len(shape_of(value))}; the limit is {MAX_RANK}"
        for value in node.outputs:
            if value.dtype is not None and value.dtype not in DTYPES and value not in (quants or {}):
                return f"its output is {value.dtype}, which no kernel here computes"
        return LOWERINGS[node.op_type].refuse(node)
    except UserError as error:
        return str(error)


def unsupported(model: ir.Model) -> Sequence[Unsupported]:
    """Every node of a clean graph, float or QDQ, without a lowering.

    Raises:
        UserError: A QDQ graph has scales that TensorFlow Lite lacks (see `integer_graph`).
    """
    model = fit_rank(model, MAX_RANK)
    graph = integer_graph(model) if is_quantized(model) else IntegerGraph(model)
    return unsupported_nodes(graph)


def unsupported_nodes(graph: IntegerGraph) -> Sequence[Unsupported]:
    """Every node without a lowering."""
    result = []
    for node in graph.model.graph:
        why = why_not(node, graph.quants)
        if why is not None:
            source = node.metadata_props.get("source", "")
            result.append(Unsupported(node.op_type, node.name or "", why, source))
    return result
