"""Activations and normalizations that TensorFlow Lite has no operator for, put together from those it has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.emit import NO_ACTIVATION, Emitter
from repedge.targets.tflite.layout import NHWC
from repedge.targets.tflite.ops_math import binary, operand
from repedge.targets.tflite.writer import schema
from repedge.targets.windows import channel_band

SELU = 1.67326319217681884765625, 1.05070102214813232421875
"""ONNX's defaults of Selu's alpha and gamma."""


class Steps:
    """Operators one after the other on tensors of the shape of a node's first input."""

    def __init__(self, c: Emitter, node: ir.Node) -> None:
        self.c, self.node = c, node
        self.layout = c.layout(node.inputs[0])  # type: ignore[arg-type]
        self.x = c.read(node.inputs[0])
        self._count = 0

    def number(self, value: float) -> int:
        """A constant."""
        self._count += 1
        return self.c.floats(f"{self.node.name}/number{self._count}", np.array(value))

    def __call__(self, op: str, *inputs: int) -> int:
        """The result of an operator."""
        self._count += 1
        out = self.c.scratch(
            f"{self.node.outputs[0].name}/step{self._count}", self.c.writer.tensors[self.x].shape
        )
        self.c.op(op, list(inputs), [out])
        return out

    def last(self, op: str, *inputs: int) -> None:
        """The operator whose result is the node's."""
        self.c.op(op, list(inputs), [self.c.write(self.node.outputs[0], self.layout)])


def _softplus(s: Steps) -> tuple[int, int]:
    """The two parts of log(1 + exp(x)) as relu(x) + log(1 + exp(-|x|)), which can't overflow."""
    small = s("EXP", s("NEG", s("ABS", s.x)))
    return s("RELU", s.x), s("LOG", s("ADD", small, s.number(1.0)))


def softplus(c: Emitter, node: ir.Node) -> None:
    """Softplus: log(1 + exp(x))."""
    s = Steps(c, node)
    s.last("ADD", *_softplus(s))


def mish(c: Emitter, node: ir.Node) -> None:
    """Mish: x * tanh(softplus(x))."""
    s = Steps(c, node)
    s.last("MUL", s.x, s("TANH", s("ADD", *_softplus(s))))


def softsign(c: Emitter, node: ir.Node) -> None:
    """Softsign: x / (1 + |x|)."""
    s = Steps(c, node)
    s.last("DIV", s.x, s("ADD", s("ABS", s.x), s.number(1.0)))


def thresholded_relu(c: Emitter, node: ir.Node) -> None:
    """ThresholdedRelu: x where it is above alpha, else 0."""
    s = Steps(c, node)
    shape = c.writer.tensors[s.x].shape
    above = c.scratch(f"{node.outputs[0].name}/above", shape, dtype="bool")
    c.op("GREATER", [s.x, s.number(attr(node, "alpha", 1.0))], [above])
    s.last("SELECT_V2", above, s.x, s.number(0.0))


def exponential(of: Callable[[ir.Node], tuple[float, float, float]]) -> Callable[[Emitter, ir.Node], None]:
    """Elu and its kin: gain * (relu(x) + alpha * elu(min(x, 0) / stretch)); ``of`` gives the three."""

    def lower(c: Emitter, node: ir.Node) -> None:
        gain, alpha, stretch = of(node)
        s = Steps(c, node)
        if (gain, alpha, stretch) == (1.0, 1.0, 1.0):
            s.last("ELU", s.x)
            return
        negative = s("MINIMUM", s.x, s.number(0.0))
        if stretch != 1.0:
            negative = s("MUL", negative, s.number(1 / stretch))
        negative = s("MUL", s("ELU", negative), s.number(gain * alpha))
        positive = s("RELU", s.x)
        s.last("ADD", positive if gain == 1.0 else s("MUL", positive, s.number(gain)), negative)

    return lower


elu = exponential(lambda n: (1.0, attr(n, "alpha", 1.0), 1.0))
celu = exponential(lambda n: (1.0, attr(n, "alpha", 1.0), attr(n, "alpha", 1.0)))
selu = exponential(lambda n: (attr(n, "gamma", SELU[1]), attr(n, "alpha", SELU[0]), 1.0))


def prelu(c: Emitter, node: ir.Node) -> None:
    """PRelu -> PRELU by a constant slope, else relu(x) + slope * min(x, 0)."""
    if const(node.inputs[1]) is not None:
        binary("PRELU", fuse=False)(c, node)
        return
    s = Steps(c, node)
    slope = operand(c, node.inputs[1], len(s.layout), s.layout)
    s.last("ADD", s("RELU", s.x), s("MUL", s("MINIMUM", s.x, s.number(0.0)), slope))


def lrn(c: Emitter, node: ir.Node) -> None:
    """LRN: x * (bias + alpha / size * (sum of squares over nearby channels)) ** -beta.

    The sum is a 1x1 convolution of the squares, which XNNPACK takes; LOCAL_RESPONSE_NORMALIZATION
    it leaves.
    """
    s = Steps(c, node)
    c.read(node.inputs[0], NHWC)
    s.x, s.layout = c.read(node.inputs[0], NHWC), NHWC
    channels = shape_of(node.inputs[0])[1]
    band = channel_band(node)[:, None, None, :]
    weight = c.floats(f"{node.name}/band", band)
    bias = c.floats(f"{node.name}/bias", np.full(channels, attr(node, "bias", 1.0)))
    total = c.scratch(f"{node.outputs[0].name}/sum", c.writer.tensors[s.x].shape)
    window = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    window |= {"padding": schema.Padding.VALID, "fusedActivationFunction": NO_ACTIVATION}
    c.op("CONV_2D", [s("SQUARE", s.x), weight, bias], [total], **window)
    s.last("MUL", s.x, s("POW", total, s.number(-attr(node, "beta", 0.75))))


def refuse_lrn(node: ir.Node) -> str | None:
    """Why an LRN can't be lowered."""
    rank = len(shape_of(node.inputs[0]))
    return None if rank == 4 else f"its input has rank {rank}; only maps of rank 4 are supported"
