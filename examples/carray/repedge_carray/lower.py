"""ONNX operator -> a line of C. The table answers "supported?", too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr, conv_attrs
from repedge.graph.values import const, shape_of
from repedge.targets import qdq


@dataclass
class Program:
    """The C file in the making.

    Attributes:
        constants, buffers, lines: Weights, room for activations, and the calls in order.
        names: Value -> its C array; several values may be one array.
    """

    constants: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    names: dict[ir.Value, str] = field(default_factory=dict)

    def constant(self, array: np.ndarray) -> str:
        """A constant array, float or int8."""
        kind = "int8_t" if array.dtype == np.int8 else "float"
        numbers = ",".join(str(v) if kind == "int8_t" else f"{v:.9g}" for v in array.ravel().tolist())
        name = f"k{len(self.constants)}"
        self.constants.append(f"static const {kind} {name}[] = {{{numbers}}};")
        return name

    def read(self, value: ir.Value | None) -> str:
        """The array of a value."""
        assert value is not None
        if value not in self.names:
            array = const(value)
            assert array is not None, f"nothing computes {value.name}"
            self.names[value] = self.constant(np.asarray(array, np.float32))
        return self.names[value]

    def write(self, value: ir.Value, kind: str = "float") -> str:
        """Room for what a node computes."""
        name = f"v{len(self.buffers)}"
        self.buffers.append(f"static {kind} {name}[{size(value)}];")
        self.names[value] = name
        return name


Lower = Callable[[Program, ir.Node], str]


def size(value: ir.Value | None) -> int:
    """Numbers in a value."""
    assert value is not None
    return int(np.prod(shape_of(value)))


def unary(function: str) -> Lower:
    """A function of every number: (x, y, n)."""
    return lambda p, n: f"{function}({p.read(n.inputs[0])}, {p.write(n.outputs[0])}, {size(n.outputs[0])});"


def conv(p: Program, n: ir.Node) -> str:
    """Integers where the input and the weight are quantized, else floats."""
    a, (_, c, h, w), (_, o, oh, ow) = conv_attrs(n), shape_of(n.inputs[0]), shape_of(n.outputs[0])
    spec = (c, h, w, o, oh, ow, *a.kernel, *a.strides, *a.pads[:2], *a.dilations, a.group)
    return layer(p, n, o, f"(Conv){{{', '.join(map(str, spec))}}}")


def gemm(p: Program, n: ir.Node) -> str:
    """A convolution of one cell."""
    inputs, outputs = shape_of(n.inputs[0])[1], shape_of(n.outputs[0])[1]
    return layer(p, n, outputs, f"(Conv){{{inputs}, 1, 1, {outputs}, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1}}")


def layer(p: Program, n: ir.Node, channels: int, spec: str) -> str:
    """A call of conv_i8 or conv_f32."""
    bias = n.inputs[2] if len(n.inputs) > 2 else None
    b = p.read(bias) if bias is not None else p.constant(np.zeros(channels, np.float32))
    weight, quantize = qdq.weight(n.inputs[1]), quantizer(n.inputs[0])
    if weight is not None and quantize is not None:
        scales = np.broadcast_to(weight.scale, channels).astype(np.float32)
        x, scale = p.read(quantize.outputs[0]), qdq.params(quantize).scale
        w, s = p.constant(weight.values), p.constant(scales)
        return f"conv_i8({x}, {scale:.9g}f, {w}, {s}, {b}, {p.write(n.outputs[0])}, {spec});"
    w = p.constant(weight.real()) if weight is not None else p.read(n.inputs[1])
    return f"conv_f32({p.read(n.inputs[0])}, {w}, {b}, {p.write(n.outputs[0])}, {spec});"


def quantizer(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear whose integers a value stands for."""
    widened = None if value is None else value.producer()
    if widened is None or widened.op_type != "DequantizeLinear" or widened.inputs[0] is None:
        return None
    node = widened.inputs[0].producer()
    return node if node is not None and node.op_type == "QuantizeLinear" else None


def quantize(p: Program, n: ir.Node) -> str:
    """Floats to integers."""
    x, scale = p.read(n.inputs[0]), qdq.params(n).scale
    return f"quantize({x}, {p.write(n.outputs[0], 'int8_t')}, {size(n.outputs[0])}, {scale:.9g}f);"


def dequantize(p: Program, n: ir.Node) -> str:
    """Integers to floats where an operator without integers reads them; of a weight, nothing."""
    if qdq.weight(n.outputs[0]) is not None or const(n.inputs[0]) is not None:
        return ""
    x, scale = p.read(n.inputs[0]), qdq.params(n).scale
    return f"dequantize({x}, {p.write(n.outputs[0])}, {size(n.outputs[0])}, {scale:.9g}f);"


def add(p: Program, n: ir.Node) -> str:
    """Of two maps of one shape."""
    a, b = (p.read(v) for v in n.inputs)
    return f"add({a}, {b}, {p.write(n.outputs[0])}, {size(n.outputs[0])});"


def subtract(p: Program, n: ir.Node) -> str:
    """A number for each channel."""
    _, c, *rest = shape_of(n.outputs[0])
    numbers = np.broadcast_to(np.asarray(const(n.inputs[1])).reshape(-1), c).astype(np.float32)
    y = p.write(n.outputs[0])
    return f"subtract_channels({p.read(n.inputs[0])}, {p.constant(numbers)}, {y}, {c}, {int(np.prod(rest))});"


def average(p: Program, n: ir.Node) -> str:
    """Over each channel."""
    _, c, *rest = shape_of(n.inputs[0])
    return f"average({p.read(n.inputs[0])}, {p.write(n.outputs[0])}, {c}, {int(np.prod(rest))});"


LOWERINGS: dict[str, Lower] = {
    "Conv": conv, "Gemm": gemm, "Relu": unary("relu"), "Add": add, "Sub": subtract,
    "GlobalAveragePool": average, "Flatten": unary("copy"), "Reshape": unary("copy"),
    "QuantizeLinear": quantize, "DequantizeLinear": dequantize,
}  # fmt: skip
"""A missing row is a missing feature."""


def refusal(node: ir.Node) -> str | None:
    """Why a node can't be lowered; None if it can."""
    if node.op_type not in LOWERINGS:
        return "there is no loop for this operator"
    shapes: Sequence[tuple[int, ...]] = [shape_of(v) for v in node.inputs[:2] if v is not None]
    if node.op_type == "Add" and shapes[0] != shapes[1]:
        return "both sides must have one shape"
    if node.op_type == "Sub" and const(node.inputs[1]) is None:
        return "its second input is not a constant"
    if node.op_type == "Gemm" and not attr(node, "transB", 0):
        return "its weight is not transposed"
    if node.op_type == "QuantizeLinear" and const(node.inputs[0]) is None:
        p = qdq.params(node)
        return None if (p.dtype, p.zero_point) == ("int8", 0) else "integers must be int8 around 0"
    return None
