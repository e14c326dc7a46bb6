"""ONNX op -> MIL builder call. A missing row is a missing feature.

A lowering has two halves: ``emit(c, n)`` builds the MIL ops of node ``n`` and returns the variable
(or variables) of its outputs; ``refuse(n)`` says why this use of the op can't be expressed, or None.
Neither imports coremltools, so asking what is supported costs nothing.

Sources: ONNX operator specification (opset 20); MIL ops of coremltools 9 (iOS 15 to 18 op sets).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.passes.rank import fit_rank
from repedge.targets import qdq, resampling
from repedge.targets.base import Unsupported
from repedge.targets.coreml import ops_curves as curves
from repedge.targets.coreml import ops_shape as shapes
from repedge.targets.coreml import ops_values as values
from repedge.targets.coreml import ops_window as spatial
from repedge.targets.coreml.nodes import Refuse, axis_of, is_constant, needs_constant, real

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer

MAX_RANK = 5
"""Core ML tensors have at most 5 axes."""

TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
"""Types of values; the int64 numbers of a graph are indices and sizes, which 32 bits hold."""

Emit = Callable[["Lowerer", ir.Node], Any]


@dataclass(frozen=True)
class Lowering:
    """How to write one op, and when not to."""

    emit: Emit
    refuse: Refuse = lambda n: None


# ---- activations ---------------------------------------------------------------------------------


def unary(op: str) -> Lowering:
    return Lowering(lambda c, n: getattr(c.mb, op)(x=c.var(n, 0), name=c.name(n)))


def clip(c: Lowerer, n: ir.Node) -> Any:
    low, high = real(n, 1, -np.inf), real(n, 2, np.inf)
    x, name = c.var(n, 0), c.name(n)
    if low == 0 and high == 6:
        return c.mb.relu6(x=x, name=name)
    if low == 0 and high >= float(np.finfo(np.float32).max):
        return c.mb.relu(x=x, name=name)
    return c.mb.clip(x=x, alpha=c.scalar(low), beta=c.scalar(high), name=name)


def refuse_clip(n: ir.Node) -> str | None:
    low, high = real(n, 1, -np.inf), real(n, 2, np.inf)
    return f"its bounds are empty: min {low:g}, max {high:g}" if low > high else None


def leaky_relu(c: Lowerer, n: ir.Node) -> Any:
    return c.mb.leaky_relu(x=c.var(n, 0), alpha=c.scalar(attr(n, "alpha", 0.01)), name=c.name(n))


def elu(c: Lowerer, n: ir.Node) -> Any:
    return c.mb.elu(x=c.var(n, 0), alpha=c.scalar(attr(n, "alpha", 1.0)), name=c.name(n))


def gelu(c: Lowerer, n: ir.Node) -> Any:
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[attr(n, "approximate", "none")]
    return c.mb.gelu(x=c.var(n, 0), mode=mode, name=c.name(n))


def hard_sigmoid(c: Lowerer, n: ir.Node) -> Any:
    alpha, beta = c.scalar(attr(n, "alpha", 0.2)), c.scalar(attr(n, "beta", 0.5))
    return c.mb.sigmoid_hard(x=c.var(n, 0), alpha=alpha, beta=beta, name=c.name(n))


def hard_swish(c: Lowerer, n: ir.Node) -> Any:
    """x * max(0, min(1, x / 6 + 1/2)), ONNX's definition."""
    x, name = c.var(n, 0), c.name(n)
    gate = c.mb.sigmoid_hard(x=x, alpha=c.scalar(1 / 6), beta=c.scalar(0.5), name=c.unique(f"{name}_gate"))
    return c.mb.mul(x=x, y=gate, name=name)


def softmax(c: Lowerer, n: ir.Node) -> Any:
    return c.mb.softmax(x=c.var(n, 0), axis=axis_of(n, -1), name=c.name(n))


# ---- arithmetic ----------------------------------------------------------------------------------


def binary(op: str) -> Lowering:
    return Lowering(lambda c, n: getattr(c.mb, op)(x=c.var(n, 0), y=c.var(n, 1), name=c.name(n)))


def extremum(op: str) -> Lowering:
    """Max and Min take any number of inputs; MIL's take two."""

    def emit(c: Lowerer, n: ir.Node) -> Any:
        name, last = c.name(n), len(n.inputs) - 1
        result = c.var(n, 0)
        for i in range(1, last + 1):
            step = name if i == last else c.unique(f"{name}_of_{i + 1}")
            result = getattr(c.mb, op)(x=result, y=c.var(n, i), name=step)
        return result

    return Lowering(emit, lambda n: "it has a single input" if len(n.inputs) < 2 else None)


def mul(c: Lowerer, n: ir.Node) -> Any:
    """x * sigmoid(x) is one silu; the orphaned sigmoid is removed as dead code."""
    for i, j in ((0, 1), (1, 0)):
        gate = n.inputs[i].producer() if n.inputs[i] is not None else None  # type: ignore[union-attr]
        if gate is not None and gate.op_type == "Sigmoid" and gate.inputs[0] is n.inputs[j]:
            return c.mb.silu(x=c.var(n, j), name=c.name(n))
    return c.mb.mul(x=c.var(n, 0), y=c.var(n, 1), name=c.name(n))


def gemm(c: Lowerer, n: ir.Node) -> Any:
    """alpha * x @ B + beta * C -> linear(x, alpha * B', beta * C)."""
    name, transposed, alpha = c.name(n), not attr(n, "transB", 0), attr(n, "alpha", 1.0)
    weight = _matrix(c, n, transposed, alpha)
    bias = None
    if len(n.inputs) > 2 and n.inputs[2] is not None:
        array = np.broadcast_to(np.asarray(const(n.inputs[2])).reshape(-1), weight.shape[:1])
        bias = c.weight(_scaled(array, attr(n, "beta", 1.0)), str(n.inputs[2].name))
    return c.mb.linear(x=c.var(n, 0), weight=weight, bias=bias, name=name)


def _matrix(c: Lowerer, n: ir.Node, transposed: bool, factor: float = 1.0) -> Any:
    """The second input [outputs, inputs] of a linear layer, in integers where it has them."""
    name, integers = str(n.inputs[1].name), qdq.weight(n.inputs[1])  # type: ignore[union-attr]
    if integers is not None and factor == 1.0:
        return c.quantized(integers.transposed() if transposed else integers, name)
    matrix = np.asarray(const(n.inputs[1])) if integers is None else integers.real()
    return c.weight(_scaled(matrix.T if transposed else matrix, factor), name)


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    return array if factor == 1.0 else array * np.asarray(factor, array.dtype)


def refuse_gemm(n: ir.Node) -> str | None:
    if attr(n, "transA", 0):
        return "it transposes its data input (transA)"
    return needs_constant(1, 2)(n)


def matmul(c: Lowerer, n: ir.Node) -> Any:
    """A constant [K, N] on the right is a linear layer, which Core ML compresses and schedules best."""
    ranks = [len(shape_of(v)) for v in n.inputs]
    if is_constant(n.inputs[1]) and ranks[1] == 2 and ranks[0] <= 3:
        return c.mb.linear(x=c.var(n, 0), weight=_matrix(c, n, transposed=True), name=c.name(n))
    return c.mb.matmul(x=c.var(n, 0), y=c.var(n, 1), name=c.name(n))


def refuse_matmul(n: ir.Node) -> str | None:
    ranks = [len(shape_of(v)) for v in n.inputs]
    return (
        None if min(ranks) >= 2 else f"it multiplies ranks {ranks[0]} and {ranks[1]}; both must be 2 or more"
    )


def batch_norm(c: Lowerer, n: ir.Node) -> Any:
    """scale * (x - mean) / sqrt(var + eps) + shift, as x * k + b with k and b made in float64."""
    scale, shift, mean, var = (np.asarray(const(v), np.float64) for v in n.inputs[1:5])
    k = scale / np.sqrt(var + attr(n, "epsilon", 1e-5))
    b = shift - mean * k
    shape = [1, -1] + [1] * (len(shape_of(n.inputs[0])) - 2)
    name = c.name(n)
    scaled = c.mb.mul(
        x=c.var(n, 0), y=c.weight(k.reshape(shape), f"{name}_scale"), name=c.unique(f"{name}_scaled")
    )
    return c.mb.add(x=scaled, y=c.weight(b.reshape(shape), f"{name}_shift"), name=name)


def refuse_batch_norm(n: ir.Node) -> str | None:
    if attr(n, "training_mode", 0):
        return "it is in training mode"
    return needs_constant(1, 2, 3, 4)(n)


# ---- reductions ----------------------------------------------------------------------------------


def reduce(op: str) -> Lowering:
    def emit(c: Lowerer, n: ir.Node) -> Any:
        axes = values.reduced_axes(n)
        keep = bool(attr(n, "keepdims", 1))
        return getattr(c.mb, op)(x=c.var(n, 0), axes=axes, keep_dims=keep, name=c.name(n))

    return Lowering(emit, values.refuse_reduction)


def global_pool(op: str) -> Lowering:
    def emit(c: Lowerer, n: ir.Node) -> Any:
        axes = list(range(2, len(shape_of(n.inputs[0]))))
        return getattr(c.mb, op)(x=c.var(n, 0), axes=axes, keep_dims=True, name=c.name(n))

    return Lowering(emit)


# ---- quantization --------------------------------------------------------------------------------


def quantize(c: Lowerer, n: ir.Node) -> Any:
    p = qdq.params(n)
    arguments = {"scale": _scale(c, n, p), "zero_point": np.dtype(p.dtype).type(p.zero_point)}
    return c.mb.quantize(input=c.var(n, 0), output_dtype=p.dtype, name=c.name(n), **arguments)


def dequantize(c: Lowerer, n: ir.Node) -> Any:
    p = qdq.params(n)
    arguments = {"scale": _scale(c, n, p), "zero_point": np.dtype(p.dtype).type(p.zero_point)}
    return c.mb.dequantize(input=c.var(n, 0), name=c.name(n), **arguments)


def _scale(c: Lowerer, n: ir.Node, p: qdq.Params) -> Any:
    """In the program's precision, and not 0."""
    scale = c.cast(np.asarray(p.scale), str(n.inputs[1].name)).reshape(())[()]  # type: ignore[union-attr]
    return max(scale, qdq.HALF_TINY) if c.dtype == np.float16 else scale


# ---- the table -----------------------------------------------------------------------------------

LOWERINGS: dict[str, Lowering] = {
    # layers with weights
    "Conv": Lowering(spatial.conv, spatial.refuse_conv),
    "ConvTranspose": Lowering(spatial.conv_transpose, spatial.refuse_conv_transpose),
    "Gemm": Lowering(gemm, refuse_gemm),
    "MatMul": Lowering(matmul, refuse_matmul),
    "BatchNormalization": Lowering(batch_norm, refuse_batch_norm),
    # activations
    "Relu": unary("relu"),
    "Clip": Lowering(clip, refuse_clip),
    "LeakyRelu": Lowering(leaky_relu),
    "PRelu": Lowering(curves.prelu),
    "Gelu": Lowering(gelu),
    "Sigmoid": unary("sigmoid"),
    "HardSigmoid": Lowering(hard_sigmoid),
    "HardSwish": Lowering(hard_swish),
    "Tanh": unary("tanh"),
    "Softplus": unary("softplus"),
    "Elu": Lowering(elu),
    "Celu": Lowering(curves.celu),
    "Selu": Lowering(curves.selu),
    "Mish": Lowering(curves.mish),
    "Softsign": unary("softsign"),
    "ThresholdedRelu": Lowering(curves.thresholded_relu),
    "LogSoftmax": Lowering(curves.log_softmax),
    "LRN": Lowering(curves.lrn),
    "Erf": unary("erf"),
    "Softmax": Lowering(softmax),
    # arithmetic
    "Add": binary("add"),
    "Sub": binary("sub"),
    "Mul": Lowering(mul),
    "Div": Lowering(values.divide),
    "Max": extremum("maximum"),
    "Min": extremum("minimum"),
    "Pow": binary("pow"),
    "Abs": unary("abs"),
    "Exp": unary("exp"),
    "Log": unary("log"),
    "Sqrt": unary("sqrt"),
    "Reciprocal": Lowering(values.reciprocal),
    "Neg": Lowering(values.negative),
    "Sin": unary("sin"),
    "Cos": unary("cos"),
    "Sign": unary("sign"),
    "Floor": unary("floor"),
    "Ceil": unary("ceil"),
    "Round": unary("round"),
    "Mod": Lowering(values.remainder),
    # comparisons, logic, types
    "Equal": binary("equal"),
    "Greater": binary("greater"),
    "GreaterOrEqual": binary("greater_equal"),
    "Less": binary("less"),
    "LessOrEqual": binary("less_equal"),
    "And": binary("logical_and"),
    "Or": binary("logical_or"),
    "Xor": binary("logical_xor"),
    "Not": unary("logical_not"),
    "Where": Lowering(values.where),
    "Cast": Lowering(values.cast),
    # normalization
    "LayerNormalization": Lowering(values.layer_norm, values.refuse_layer_norm),
    "InstanceNormalization": Lowering(values.instance_norm, values.refuse_instance_norm),
    # pooling and reductions
    "MaxPool": Lowering(spatial.max_pool, spatial.refuse_pool),
    "AveragePool": Lowering(spatial.average_pool, spatial.refuse_pool),
    "GlobalAveragePool": global_pool("reduce_mean"),
    "GlobalMaxPool": global_pool("reduce_max"),
    "ReduceMean": reduce("reduce_mean"),
    "ReduceMax": reduce("reduce_max"),
    "ReduceSum": reduce("reduce_sum"),
    "ReduceMin": reduce("reduce_min"),
    "ReduceProd": reduce("reduce_prod"),
    "ReduceL1": reduce("reduce_l1_norm"),
    "ReduceL2": reduce("reduce_l2_norm"),
    "ReduceSumSquare": reduce("reduce_sum_square"),
    "ReduceLogSum": Lowering(values.log_sum, values.refuse_reduction),
    "ReduceLogSumExp": reduce("reduce_log_sum_exp"),
    "ArgMax": Lowering(values.extreme_place("reduce_argmax"), values.refuse_last_place),
    "ArgMin": Lowering(values.extreme_place("reduce_argmin"), values.refuse_last_place),
    "TopK": Lowering(values.topk, needs_constant(1)),
    "CumSum": Lowering(values.cumsum, needs_constant(1)),
    # shapes
    "Concat": Lowering(shapes.concat),
    "Split": Lowering(shapes.split),
    "Slice": Lowering(shapes.slice_, shapes.refuse_slice),
    "Reshape": Lowering(shapes.reshape),
    "Flatten": Lowering(shapes.reshape),
    "Squeeze": Lowering(shapes.squeeze),
    "Unsqueeze": Lowering(shapes.unsqueeze),
    "Transpose": Lowering(shapes.transpose),
    "Identity": unary("identity"),
    "DepthToSpace": Lowering(shapes.depth_to_space),
    "SpaceToDepth": Lowering(shapes.space_to_depth),
    "Pad": Lowering(shapes.pad, shapes.refuse_pad),
    "Resize": Lowering(spatial.resize, resampling.refuse),
    "Gather": Lowering(values.gather),
    "GatherElements": Lowering(values.gather_elements),
    "GatherND": Lowering(values.gather_nd),
    "Expand": Lowering(values.expand, needs_constant(1)),
    "Tile": Lowering(values.expand, needs_constant(1)),
    # quantization
    "QuantizeLinear": Lowering(quantize, qdq.refuse_quantize),
    "DequantizeLinear": Lowering(dequantize, qdq.refuse_dequantize),
}


def refusal(n: ir.Node) -> str | None:
    """Why this node can't be lowered, or None if it can."""
    if n.domain not in ("", "ai.onnx"):
        return f"it belongs to the domain {n.domain!r}"
    if n.op_type not in LOWERINGS:
        return "Core ML has no lowering for it yet"
    for value in (*n.inputs, *n.outputs):
        if value is None or const(value) is not None:
            continue
        if value.dtype is not None and value.dtype not in TYPES and n.op_type not in qdq.NAMES:
            return f"it computes with {value.dtype}; Core ML has float, 32-bit integers and truths"
        if len(shape_of(value)) > MAX_RANK:
            return f"{value.name!r} has {len(shape_of(value))} axes; Core ML allows {MAX_RANK}"
    return LOWERINGS[n.op_type].refuse(n)


def prepare(model: ir.Model) -> ir.Model:
    """What is lowered: quantized constants as weights only, few axes; a copy if that changes it."""
    return fit_rank(qdq.prepare(model), MAX_RANK)


def refusals(model: ir.Model) -> list[Unsupported]:
    """Every node without a lowering, with the reason."""
    found = []
    for n in prepare(model).graph:
        try:
            why = refusal(n)
        except UserError as error:
            why = str(error)
        if why is not None:
            found.append(Unsupported(n.op_type, str(n.name), why, n.metadata_props.get("source", "")))
    return found
