"""Constants of a QDQ graph: scales and zero points, weights, biases, operands, as integers or reals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from repedge.errors import UserError
from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import add_initializer, const, shape_of
from repedge.targets.tflite.integers.rules import quantize_constant
from repedge.targets.tflite.model import Quant

_CLOSE = 1e-5  # relative difference of a bias's scale from s_x * s_w that still counts as equal


def quant_of(node: ir.Node) -> tuple[Quant, int]:
    """Parameters of a QuantizeLinear or DequantizeLinear in signed integers.

    With them comes what to subtract from unsigned ones.

    Raises:
        UserError: See `integer_graph`.
    """
    scale = const(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = const(given) if given is not None else np.zeros(1, _type_without_zero_point(node))
    if scale is None or zero is None:
        raise UserError(f"{node.op_type} node {node.name!r} has a computed scale or zero point")
    shift = {"uint8": 128, "uint16": 32768}.get(str(zero.dtype), 0)
    dtype = {"uint8": "int8", "uint16": "int16"}.get(str(zero.dtype), str(zero.dtype))
    zeros = zero.reshape(-1).astype(np.int64) - shift
    if dtype not in ("int8", "int16", "int32") or (zeros != zeros[0]).any():
        raise UserError(
            f"{node.op_type} node {node.name!r} has {zero.dtype} integers with zero points "
            f"{zero.reshape(-1)[:4].tolist()}; TensorFlow Lite takes 8 and 16 bits and one zero point"
        )
    if dtype == "int16" and zeros[0] != 0:
        raise UserError(f"{node.op_type} node {node.name!r}: 16-bit integers need zero point 0")
    scales = tuple(float(s) for s in np.float32(scale).reshape(-1))
    if not all(np.isfinite(s) and s > 0 for s in scales):
        raise UserError(f"{node.op_type} node {node.name!r} has a scale that is not a positive number")
    axis = attr(node, "axis", 1) % max(1, len(shape_of(node.inputs[0]))) if len(scales) > 1 else 0
    return Quant(dtype, scales, int(zeros[0]), axis), shift


def _type_without_zero_point(node: ir.Node) -> str:
    source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
    if source is not None and source.dtype is not None:
        return str(source.dtype.numpy())
    wanted = attr(node, "output_dtype", 0)
    return str(ir.DataType(wanted).numpy()) if wanted else "uint8"


def channel_axis(node: ir.Node) -> int | None:
    """The axis of output channels of a layer's weight; None if there is no such axis."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if conv_attrs(node).group == 1 else None
    if node.op_type == "Gemm":
        return 0 if attr(node, "transB", 0) else 1
    return 1


def column(quant: Quant, rank: int) -> np.ndarray:
    """The scales, to be multiplied with an array."""
    scale = np.array(quant.scale)
    if len(quant.scale) == 1:
        return scale.reshape(())
    return scale.reshape([-1 if axis == quant.axis else 1 for axis in range(rank)])


class Constants:
    """The constants of a graph that is being rewritten.

    Attributes:
        quants: Value -> what its integers stand for; shared with the graph's other integers.
        integers: Output of a constant's DequantizeLinear -> the constant.
    """

    def __init__(self, graph: ir.Graph, quants: dict[ir.Value, Quant]) -> None:
        self.graph = graph
        self.quants = quants
        self.integers: dict[ir.Value, ir.Value] = {}

    def __contains__(self, value: ir.Value | None) -> bool:
        return value in self.integers

    def dequantized(self, node: ir.Node, quant: Quant, shift: int) -> None:
        """Take note of a DequantizeLinear of a constant; unsigned integers become signed ones."""
        source, out = node.inputs[0], node.outputs[0]
        array = const(source)
        assert source is not None
        assert array is not None
        if source in self.quants:
            self.integers[out] = source
        elif shift:
            signed = (array.astype(np.int64) - shift).astype(quant.dtype)
            self.integers[out] = self.add(f"{source.name}/{quant.dtype}", signed, quant)
        else:
            self.quants[source] = quant
            self.integers[out] = source

    def quantized(self, node: ir.Node, quant: Quant) -> ir.Value:
        """The result of a QuantizeLinear of a constant."""
        array = np.asarray(const(node.inputs[0]), np.float64)
        integers = np.rint(array / column(quant, array.ndim)) + quant.zero_point
        name = f"{node.inputs[0].name}/{quant.dtype}"  # type: ignore[union-attr]
        return self.add(name, np.clip(integers, *quant.limits).astype(quant.dtype), quant)

    def operand(
        self, value: ir.Value | None, dtype: str, quant: Quant | None, least: float = 0.0
    ) -> ir.Value:
        """A constant operand as integers: those that the graph has, if they fit."""
        assert value is not None
        given = self.integers.get(value)
        if given is not None:
            found = self.quants[given]
            if found.dtype == dtype and len(found.scale) == 1 and quant in (None, found):
                return given
        real = self.real(value)
        quant = quant or quantize_constant(real, dtype, least)
        return self.add(f"{value.name}/{dtype}", quant.integers(real), quant)

    def bias(self, node: ir.Node, given: ir.Value, quant: Quant) -> np.ndarray:
        """Integers of a layer's bias, one for each output channel.

        Raises:
            UserError: One does not fit.
        """
        count = shape_of(node.outputs[0])[1 if node.op_type.startswith("Conv") else -1]
        scale = np.array(quant.scale)
        ints = self.integers.get(given)
        found = self.quants[ints] if ints is not None else None
        if found is not None and found.zero_point == 0 and len(found.scale) in (1, len(scale)):
            array = const(ints)
            if array is not None and np.allclose(found.scale, scale, rtol=_CLOSE, atol=0):
                return np.broadcast_to(array.reshape(-1), count).astype(quant.dtype)
        real = np.broadcast_to(self.real(given).reshape(-1), count)
        integers = np.rint(real / scale)
        limits = quant.limits
        if (np.abs(integers) > limits[1]).any():
            worst = int(np.abs(integers).argmax())
            raise UserError(
                f"the bias {real[worst]:.3g} of channel {worst} of {node.op_type} node {node.name!r} does "
                f"not fit {quant.dtype} at scale {scale[worst % len(scale)]:.3g}; raise that weight scale to "
                "at least |bias| / (s_x * 2**30)"
            )
        return integers.astype(quant.dtype)

    def real(self, value: ir.Value) -> np.ndarray:
        """The real numbers of a constant, float64."""
        ints = self.integers.get(value)
        if ints is None:
            return np.asarray(const(value), np.float64)
        quant, array = self.quants[ints], const(ints)
        assert array is not None
        return (array.astype(np.float64) - quant.zero_point) * column(quant, array.ndim)

    def add(self, name: str, array: np.ndarray, quant: Quant) -> ir.Value:
        """A new constant of integers."""
        value = add_initializer(self.graph, name, array)
        self.quants[value] = quant
        return value
