"""Reading a QDQ graph: quantized weights, parameters of activations, and what no target takes of them.

In a QDQ graph an integer layer is DequantizeLinear -> operator -> QuantizeLinear: weights are int8
initializers behind a DequantizeLinear, biases int32 ones or plain float32, activations pass through a
QuantizeLinear and a DequantizeLinear of the same scale and zero point. Operators without such neighbours
compute in floating point. Source: QuantizeLinear and DequantizeLinear of the ONNX specification, opset 21.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr
from repedge.graph.values import add_initializer, const
from repedge.operators import LAYERS

NAMES = frozenset({"QuantizeLinear", "DequantizeLinear"})

LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
"""Least and greatest integer of the types that activations may have."""

HALF_TINY = np.float16(2.0**-24)
"""The least positive float16 number."""


@dataclass(frozen=True)
class Quantized:
    """A constant as integers: ``values * scale``, symmetric.

    Attributes:
        values: int8.
        scale: float32; [size of ``axis``], or a scalar for one scale in all.
        axis: Axis of ``values`` along which the scale varies; None for a scalar.
    """

    values: np.ndarray
    scale: np.ndarray
    axis: int | None

    def along(self) -> np.ndarray:
        """The scale in a shape that broadcasts against ``values``."""
        if self.axis is None:
            return self.scale
        return self.scale.reshape([-1 if i == self.axis else 1 for i in range(self.values.ndim)])

    def real(self) -> np.ndarray:
        """The float32 numbers that the integers stand for."""
        return (self.values.astype(np.float32) * self.along()).astype(np.float32)

    def transposed(self) -> Quantized:
        """The matrix transposed."""
        axis = None if self.axis is None else 1 - self.axis
        return Quantized(np.ascontiguousarray(self.values.T), self.scale, axis)

    def half(self) -> Quantized:
        """The same with a scale that float16 holds.

        Where float16 is too coarse for the scale (denormal, below 6e-5) and a weight would be off by
        more than half a unit, the next greater scale is taken and the integers are rounded again.
        """
        nearest = np.maximum(self.scale.astype(np.float16), HALF_TINY)
        error = np.abs(nearest.astype(np.float64) / self.scale - 1) * 127
        coarse = error > 0.5
        if not coarse.any():
            return replace(self, scale=nearest.astype(np.float32))
        above = np.where(nearest < self.scale, np.nextafter(nearest, np.float16(np.inf)), nearest)
        scale = np.where(coarse, above, nearest).astype(np.float32)
        ratio = replace(self, scale=np.where(coarse, self.scale / scale, np.float32(1))).along()
        values = np.rint(self.values * ratio).astype(self.values.dtype)
        return Quantized(values, scale, self.axis)


@dataclass(frozen=True)
class Params:
    """Scale, zero point and type of an activation's integers."""

    scale: np.float32
    zero_point: int
    dtype: str

    def range(self) -> tuple[float, float]:
        """The real values of the least and the greatest integer."""
        low, high = LIMITS[self.dtype]
        return (low - self.zero_point) * float(self.scale), (high - self.zero_point) * float(self.scale)


def is_quantized(model: ir.Model) -> bool:
    """Whether the graph has QuantizeLinear or DequantizeLinear nodes."""
    return any(node.op_type in NAMES for node in model.graph)


def check_precision(model: ir.Model, precision: str) -> None:
    """Refuse ``w8a8`` of a graph without quantized activations, and a quantized one in float.

    Raises:
        UserError: Graph and precision don't fit each other.
    """
    activations = any(node.op_type == "QuantizeLinear" for node in model.graph)
    if precision == "w8a8" and not activations:
        raise UserError(
            "precision w8a8 needs a calibrated graph, and this one has no QuantizeLinear; give --calib FOLDER"
        )
    if precision != "w8a8" and activations:
        raise UserError(
            f"the graph has quantized activations, which precision {precision} would keep; compile the float "
            "graph, or choose w8a8"
        )


def weight(value: ir.Value | None) -> Quantized | None:
    """The quantized constant that ``value`` is, or None if it is none (or not symmetric)."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or attr(node, "block_size", 0):
        return None
    values, scale, zero = (_input(node, i) for i in range(3))
    if values is None or scale is None or (zero is not None and zero.any()):
        return None
    if scale.size == 1:
        return Quantized(values, scale.reshape(()).astype(np.float32), None)
    return Quantized(values, scale.astype(np.float32), attr(node, "axis", 1) % values.ndim)


def params(node: ir.Node) -> Params:
    """Parameters of an activation's QuantizeLinear or DequantizeLinear.

    Raises:
        UserError: They are computed, or there is more than one scale.
    """
    scale, zero = _input(node, 1), _input(node, 2)
    if scale is None or scale.size != 1 or (zero is None and len(node.inputs) > 2 and node.inputs[2]):
        raise UserError(
            f"{node.op_type} node {node.name!r} has no single constant scale and zero point; activations "
            "are quantized per tensor"
        )
    point = 0 if zero is None else int(zero.reshape(()))
    return Params(np.float32(scale.reshape(())), point, _integer_type(node, zero))


def prepare(model: ir.Model, *, integer_constants: bool = False) -> ir.Model:
    """The graph with quantized constants left as weights of layers only; a copy if that changes it.

    Integer biases, and quantized operands of an Add and the like, become the float32 numbers that they
    stand for, unless ``integer_constants`` keeps them.
    """
    if not is_quantized(model):
        return model
    copy = model.clone()
    graph = copy.graph
    for node in [n for n in graph if n.op_type in NAMES]:
        _infer(node)
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and not integer_constants]:
        others = [use for use in node.outputs[0].uses() if not _as_weight(node, use.node, use.idx)]
        if others and (array := _constant(node)) is not None:
            plain = add_initializer(graph, f"{node.outputs[0].name}/real", array)
            for use in others:
                use.node.replace_input_with(use.idx, plain)
    drop_unread(graph)
    return copy


def _infer(node: ir.Node) -> None:
    """Types and shapes of what a QuantizeLinear or DequantizeLinear gives, where the file does not say."""
    for value in node.outputs:
        if value.dtype is None:
            value.type = ir.TensorType(_result(node))
        if value.shape is None and node.inputs[0] is not None:
            value.shape = node.inputs[0].shape


MIN_SIZE = 2048
"""Weights of fewer elements stay float where only the weights are quantized: it buys nothing."""


def quantize_weights(model: ir.Model) -> ir.Model:
    """The graph with float32 weights of layers as int8, nearest, one scale per output channel.

    Weights that are quantized already stay as they are.

    Returns:
        A copy.
    """
    copy = model.clone()
    graph = copy.graph
    for node in list(graph):
        array = const(node.inputs[1]) if node.op_type in LAYERS else None
        if array is None or array.dtype != np.float32 or array.ndim < 2 or array.size < MIN_SIZE:
            continue
        axis = 0 if node.op_type == "Conv" or attr(node, "transB", 0) else 1
        if node.op_type == "MatMul":
            axis = array.ndim - 1
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(axis=others).astype(np.float32) / np.float32(127)
        scale[scale == 0] = 1
        along = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        values = np.clip(np.rint(array / along), -127, 127).astype(np.int8)
        name = str(node.inputs[1].name)  # type: ignore[union-attr]
        inputs = [
            add_initializer(graph, f"{name}/q", values),
            add_initializer(graph, f"{name}/scale", scale),
        ]
        out = ir.Value(name=f"{name}/{node.name}/dq", shape=ir.Shape(array.shape))
        out.type = ir.TensorType(ir.DataType.FLOAT)
        dequantize = ir.node("DequantizeLinear", inputs, {"axis": axis}, outputs=[out], name=f"{out.name}")
        node.replace_input_with(1, out)
        graph.insert_before(node, dequantize)
    drop_unread(graph)
    return copy


def refuse_quantize(node: ir.Node) -> str | None:
    """Why no target takes this QuantizeLinear, or None."""
    try:
        p = params(node)
    except UserError as error:
        return str(error)
    if p.dtype not in LIMITS:
        return f"it gives {p.dtype}; 8-bit integers only"
    if not float(p.scale) > 0:
        return f"its scale is {float(p.scale):g}; it must be positive"
    value = node.outputs[0]
    if value.is_graph_output():
        return "its integers are an output of the graph; dequantize them"
    for use in value.uses():
        if use.node.op_type != "DequantizeLinear":
            return f"its integers go into {use.node.op_type} node {use.node.name!r}; dequantize them first"
    return None


def refuse_dequantize(node: ir.Node) -> str | None:
    """Why no target takes this DequantizeLinear, or None."""
    source = node.inputs[0]
    if const(source) is not None:
        return _refuse_weight(node)
    before = None if source is None else source.producer()
    if before is None or before.op_type != "QuantizeLinear":
        return "what it reads is neither a constant nor made by a QuantizeLinear"
    try:
        if params(node) != params(before):
            return f"its scale or zero point is not that of {before.name!r}, which it reads"
    except UserError as error:
        return str(error)
    return None


def _refuse_weight(node: ir.Node) -> str | None:
    if attr(node, "block_size", 0):
        return "it has scales per block; one per channel or one in all"
    if (zero := _input(node, 2)) is not None and zero.any():
        return "its weight has a zero point; weights are symmetric"
    found = weight(node.outputs[0])
    if found is None:
        return "its scale is not a constant"
    if found.values.dtype not in (np.int8, np.int32):
        return f"its constant is {found.values.dtype}; weights are int8 and biases int32"
    return None


def _as_weight(dequantize: ir.Node, reader: ir.Node, index: int) -> bool:
    values = _input(dequantize, 0)
    is_weight = reader.op_type in LAYERS and index == 1  # where all of them have it
    return is_weight and values is not None and values.dtype == np.int8 and values.ndim >= 2


def _constant(node: ir.Node) -> np.ndarray | None:
    """What a DequantizeLinear of a constant gives, also of one that a QuantizeLinear rounds first."""
    values, scale, zero = (_input(node, i) for i in range(3))
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if scale is None or attr(node, "block_size", 0):
        return None
    if values is None and before is not None and before.op_type == "QuantizeLinear":
        real = _input(before, 0)
        if real is None or refuse_quantize(before) or refuse_dequantize(node):
            return None
        p = params(before)
        values = np.clip(np.rint(real / p.scale) + p.zero_point, *LIMITS[p.dtype])
    if values is None:
        return None
    shape = [-1 if i == attr(node, "axis", 1) % values.ndim else 1 for i in range(values.ndim)]
    if scale.size > 1:
        scale = scale.reshape(shape)
    real = values.astype(np.float32)
    if zero is not None:
        real -= zero if zero.size == 1 else zero.reshape(shape)
    return np.asarray(real * scale, np.float32).reshape(values.shape)


def _result(node: ir.Node) -> ir.DataType:
    if node.op_type == "QuantizeLinear":
        return ir.DataType[_integer_type(node, _input(node, 2)).upper()]
    scale = node.inputs[1]
    return scale.dtype if scale is not None and scale.dtype is not None else ir.DataType.FLOAT


def _integer_type(node: ir.Node, zero: np.ndarray | None) -> str:
    if zero is not None:
        return str(zero.dtype)
    if node.op_type == "QuantizeLinear":
        wanted = attr(node, "output_dtype", 0)
        return ir.DataType(wanted).name.lower() if wanted else "uint8"
    source = node.inputs[0]
    return source.dtype.name.lower() if source is not None and source.dtype is not None else "uint8"


def _input(node: ir.Node, i: int) -> np.ndarray | None:
    return const(node.inputs[i]) if i < len(node.inputs) else None


def drop_unread(graph: ir.Graph) -> None:
    """Take out QuantizeLinear and DequantizeLinear nodes that nothing reads, and then initializers."""
    for node in list(graph):
        if node.op_type in NAMES and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
