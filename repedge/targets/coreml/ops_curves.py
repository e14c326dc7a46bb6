"""Lowerings of activations and normalizations that MIL has no op for, or one of fewer forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr
from repedge.graph.values import const, shape_of
from repedge.targets.coreml.nodes import axis_of
from repedge.targets.windows import channel_band

if TYPE_CHECKING:
    from repedge.targets.coreml.lowerer import Lowerer


def prelu(c: Lowerer, n: ir.Node) -> Any:
    """MIL has one constant slope per channel of [N, C, ...]; any other is relu(x) + slope * min(x, 0)."""
    shape, slope, name = shape_of(n.inputs[0]), const(n.inputs[1]), c.name(n)
    ones = [1] * (len(shape) - 2)
    if (
        slope is not None
        and len(shape) > 2
        and (slope.size == 1 or slope.shape in ((shape[1], *ones), (1, shape[1], *ones)))
    ):
        alpha = np.broadcast_to(slope.reshape(-1), (shape[1],))
        return c.mb.prelu(x=c.var(n, 0), alpha=c.weight(alpha, str(n.inputs[1].name)), name=name)  # type: ignore[union-attr]
    below = c.mb.minimum(x=c.var(n, 0), y=c.scalar(0.0), name=c.unique(f"{name}_below"))
    below = c.mb.mul(x=below, y=c.var(n, 1), name=c.unique(f"{name}_sloped"))
    above = c.mb.relu(x=c.var(n, 0), name=c.unique(f"{name}_above"))
    return c.mb.add(x=above, y=below, name=name)


def celu(c: Lowerer, n: ir.Node) -> Any:
    """alpha * elu(x / alpha)."""
    name, alpha = c.name(n), attr(n, "alpha", 1.0)
    scaled = c.mb.mul(x=c.var(n, 0), y=c.scalar(1 / alpha), name=c.unique(f"{name}_scaled"))
    curve = c.mb.elu(x=scaled, alpha=c.scalar(1.0), name=c.unique(f"{name}_elu"))
    return c.mb.mul(x=curve, y=c.scalar(alpha), name=name)


def selu(c: Lowerer, n: ir.Node) -> Any:
    """gamma * elu(x, alpha)."""
    name = c.name(n)
    alpha, gamma = attr(n, "alpha", 1.6732632), attr(n, "gamma", 1.050701)
    curve = c.mb.elu(x=c.var(n, 0), alpha=c.scalar(alpha), name=c.unique(f"{name}_elu"))
    return c.mb.mul(x=curve, y=c.scalar(gamma), name=name)


def mish(c: Lowerer, n: ir.Node) -> Any:
    """x * tanh(softplus(x))."""
    name = c.name(n)
    gate = c.mb.softplus(x=c.var(n, 0), name=c.unique(f"{name}_softplus"))
    gate = c.mb.tanh(x=gate, name=c.unique(f"{name}_gate"))
    return c.mb.mul(x=c.var(n, 0), y=gate, name=name)


def thresholded_relu(c: Lowerer, n: ir.Node) -> Any:
    """x where it is above alpha, else 0; MIL's thresholded_relu keeps alpha itself, too."""
    name = c.name(n)
    above = c.mb.greater(x=c.var(n, 0), y=c.scalar(attr(n, "alpha", 1.0)), name=c.unique(f"{name}_above"))
    zeros = c.mb.mul(x=c.var(n, 0), y=c.scalar(0.0), name=c.unique(f"{name}_zeros"))
    return c.mb.select(cond=above, a=c.var(n, 0), b=zeros, name=name)


def log_softmax(c: Lowerer, n: ir.Node) -> Any:
    """x - log(sum(exp(x))), the largest x taken off before."""
    name, axis = c.name(n), axis_of(n, -1)
    largest = c.mb.reduce_max(x=c.var(n, 0), axes=[axis], keep_dims=True, name=c.unique(f"{name}_max"))
    x = c.mb.sub(x=c.var(n, 0), y=largest, name=c.unique(f"{name}_below"))
    total = c.mb.reduce_sum(
        x=c.mb.exp(x=x, name=c.unique(f"{name}_exp")),
        axes=[axis],
        keep_dims=True,
        name=c.unique(f"{name}_sum"),
    )
    return c.mb.sub(x=x, y=c.mb.log(x=total, name=c.unique(f"{name}_log")), name=name)


def lrn(c: Lowerer, n: ir.Node) -> Any:
    """x * (bias + alpha / size * (squares over nearby channels)) ** -beta, the sum as a convolution."""
    name, x = c.name(n), c.var(n, 0)
    band = c.weight(channel_band(n)[..., None, None], f"{name}_band")
    bias = c.weight(np.full(band.shape[0], attr(n, "bias", 1.0)), f"{name}_bias")
    squares = c.mb.mul(x=x, y=x, name=c.unique(f"{name}_squares"))
    total = c.mb.conv(x=squares, weight=band, bias=bias, pad_type="valid", name=c.unique(f"{name}_sum"))
    factor = c.mb.pow(x=total, y=c.scalar(-attr(n, "beta", 0.75)), name=c.unique(f"{name}_factor"))
    return c.mb.mul(x=x, y=factor, name=name)
