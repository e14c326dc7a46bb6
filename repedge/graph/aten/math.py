"""ATen -> ONNX for functions of numbers: activations, roots and powers, rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from repedge.graph.aten.builder import BOOL, FLOAT, Builder, Operand, Unlowerable, dims

Lowering = Callable[..., Any]


def unary(op: str, **attributes: float) -> Lowering:
    return lambda g, x: g.node(op, [x], **attributes)


def composed(*ops: str) -> Lowering:
    """Functions of one number, the first one first."""

    def lower(g: Builder, x: Operand) -> Operand:
        for op in ops:
            x = g.node(op, [x])
        return x

    return lower


def power(g: Builder, x: Operand, exponent: Operand) -> ir.Value:
    x = g.cast(x, FLOAT)
    if exponent == 2 and isinstance(exponent, (int, float)):
        return g.node("Mul", [x, x])
    if exponent == 0.5 and isinstance(exponent, (int, float)):
        return g.node("Sqrt", [x])
    return g.node("Pow", [x, exponent])


def clamp(g: Builder, x: Operand, low: Operand | None = None, high: Operand | None = None) -> ir.Value:
    if all(b is None or isinstance(b, (int, float)) for b in (low, high)):
        return g.node("Clip", [g.cast(x, g.dtype), low, high])
    value = g.cast(x, g.dtype)
    for op, bound in (("Max", low), ("Min", high)):
        if bound is not None:
            value = g.node(op, [value, g.cast(bound, g.dtype)])
    return value


def hardtanh(g: Builder, x: Operand, low: float = -1, high: float = 1) -> ir.Value:
    return clamp(g, x, low, high)


def threshold(g: Builder, x: ir.Value, bound: float, value: float) -> ir.Value:
    if value == 0:
        return g.node("Relu", [x]) if bound == 0 else g.node("ThresholdedRelu", [x], alpha=float(bound))
    return choose(g, "Greater", x, bound, x, value)


def choose(g: Builder, op: str, x: Operand, bound: float, yes: Operand, no: Operand) -> ir.Value:
    """``yes`` where ``x op bound``, else ``no``."""
    mask = g.node(op, [x, float(bound)], dtype=BOOL)
    return g.node("Where", [mask, g.value(yes), g.value(no)], dtype=FLOAT)


def silu(g: Builder, x: Operand) -> ir.Value:
    return g.node("Mul", [x, g.node("Sigmoid", [x])])


def gelu(g: Builder, x: Operand, *, approximate: str = "none") -> ir.Value:
    return g.node("Gelu", [x], approximate=approximate)


def leaky_relu(g: Builder, x: Operand, slope: float = 0.01) -> ir.Value:
    return g.node("LeakyRelu", [x], alpha=float(slope))


def elu(g: Builder, x: ir.Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> ir.Value:
    if input_scale != 1:
        raise Unlowerable("a scaled input")
    if scale != 1:
        return g.node("Selu", [x], alpha=float(alpha), gamma=float(scale))
    return g.node("Elu", [x], alpha=float(alpha))


def celu(g: Builder, x: ir.Value, alpha: float = 1) -> ir.Value:
    return g.node("Celu", [x], alpha=float(alpha))


def prelu(g: Builder, x: Operand, slope: Operand) -> ir.Value:
    if isinstance(slope, ir.Value):
        raise Unlowerable("a slope that depends on the input")
    # ATen hands over [1, C, 1, 1]; ONNX wants it unidirectionally broadcastable: the same.
    return g.node("PRelu", [x, slope])


def softplus(g: Builder, x: ir.Value, beta: float = 1, bound: float = 20) -> ir.Value:
    scaled = x if beta == 1 else g.node("Mul", [x, float(beta)])
    y = g.node("Softplus", [scaled])
    y = y if beta == 1 else g.node("Mul", [y, 1 / beta])
    # Above the bound torch takes the line itself; above 15 that is the same number in float32.
    return y if bound >= 15 else choose(g, "Greater", scaled, bound, x, y)


def log_sigmoid(g: Builder, x: ir.Value) -> list[ir.Value | None]:
    shape = g.shape(0)
    inside = g.node("Softplus", [g.node("Neg", [x], shape)], shape)
    return [g.node("Neg", [inside], shape), None]


def hardshrink(g: Builder, x: ir.Value, bound: float = 0.5) -> ir.Value:
    return choose(g, "Greater", g.node("Abs", [x]), bound, x, 0.0)


def softshrink(g: Builder, x: ir.Value, bound: float = 0.5) -> ir.Value:
    return g.node("Sub", [x, g.node("Clip", [x, -float(bound), float(bound)])])


def glu(g: Builder, x: ir.Value, dim: int = -1) -> ir.Value:
    axis, half = dim % len(dims(x)), dims(x)[dim] // 2
    a, b = g.nodes_out("Split", [x, g.ints(half, half)], [g.shape()] * 2, axis=axis)
    return g.node("Mul", [a, g.node("Sigmoid", [b])])


# --- roots, powers, rounding -----------------------------------------------------------------------


def plus_one_log(g: Builder, x: Operand) -> ir.Value:
    return g.node("Log", [g.node("Add", [x, 1.0])])


def exp_minus_one(g: Builder, x: Operand) -> ir.Value:
    return g.node("Sub", [g.node("Exp", [x]), 1.0])


def logarithm(base: float) -> Lowering:
    return lambda g, x: g.node("Mul", [g.node("Log", [x]), 1 / math.log(base)])


def scalar_power(g: Builder, base: float, exponent: ir.Value) -> ir.Value:
    if base <= 0:
        return g.node("Pow", [g.value(base), exponent])
    return g.node("Exp", [g.node("Mul", [exponent, math.log(base)])])


def truncate(g: Builder, x: ir.Value) -> ir.Value:
    return g.node("Mul", [g.node("Sign", [x]), g.node("Floor", [g.node("Abs", [x])])])


def round_to(g: Builder, x: ir.Value, *, decimals: int = 0) -> ir.Value:
    if decimals:
        raise Unlowerable("decimals")
    return g.node("Round", [x])  # half to even, as torch does


def floor_divide(g: Builder, x: Operand, y: Operand) -> ir.Value:
    """In float32: whole numbers are exact up to 2^24."""
    quotient = g.node("Div", [g.cast(x, FLOAT), g.cast(y, FLOAT)])
    return g.cast(g.node("Floor", [quotient]), g.dtype)


def divide(g: Builder, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> ir.Value:
    if rounding_mode == "floor":
        return floor_divide(g, x, y)
    quotient = g.node("Div", [g.cast(x, FLOAT), g.cast(y, FLOAT)])
    return quotient if rounding_mode is None else g.cast(truncate(g, quotient), g.dtype)


def remainder(g: Builder, x: Operand, y: Operand) -> ir.Value:
    """With the divisor's sign, as Python has it."""
    if g.dtype != FLOAT:
        return g.node("Mod", [g.cast(x, g.dtype), g.cast(y, g.dtype)])
    whole = g.node("Floor", [g.node("Div", [g.cast(x, FLOAT), g.cast(y, FLOAT)])])
    return g.node("Sub", [g.cast(x, FLOAT), g.node("Mul", [whole, g.cast(y, FLOAT)])])


def fmod(g: Builder, x: Operand, y: Operand) -> ir.Value:
    return g.node("Mod", [g.cast(x, g.dtype), g.cast(y, g.dtype)], fmod=1)


def addcdiv(g: Builder, x: Operand, a: Operand, b: Operand, value: float = 1) -> ir.Value:
    quotient = g.node("Div", [g.cast(a, FLOAT), b])
    return g.node("Add", [x, quotient if value == 1 else g.node("Mul", [quotient, float(value)])])


def erfc(g: Builder, x: ir.Value) -> ir.Value:
    return g.node("Sub", [g.value(1.0), g.node("Erf", [x])])


def hypot(g: Builder, x: Operand, y: Operand) -> ir.Value:
    squares = [g.node("Mul", [v, v]) for v in (g.cast(x, FLOAT), g.cast(y, FLOAT))]
    return g.node("Sqrt", [g.node("Add", squares)])


def logit(g: Builder, x: ir.Value, eps: float | None = None) -> ir.Value:
    inside = x if eps is None else g.node("Clip", [x, float(eps), 1 - float(eps)])
    return g.node("Log", [g.node("Div", [inside, g.node("Sub", [g.value(1.0), inside])])])


TABLE: dict[str, Lowering] = {
    "relu": unary("Relu"),
    "sigmoid": unary("Sigmoid"),
    "tanh": unary("Tanh"),
    "hardswish": unary("HardSwish"),
    "hardsigmoid": unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "mish": unary("Mish"),
    "exp": unary("Exp"),
    "log": unary("Log"),
    "sqrt": unary("Sqrt"),
    "abs": unary("Abs"),
    "neg": unary("Neg"),
    "erf": unary("Erf"),
    "erfc": erfc,
    "reciprocal": unary("Reciprocal"),
    "floor": unary("Floor"),
    "ceil": unary("Ceil"),
    "round": round_to,
    "trunc": truncate,
    "sign": unary("Sign"),
    "sin": unary("Sin"),
    "cos": unary("Cos"),
    "tan": lambda g, x: g.node("Div", [g.node("Sin", [x]), g.node("Cos", [x])]),
    "asin": unary("Asin"),
    "acos": unary("Acos"),
    "atan": unary("Atan"),
    "sinh": unary("Sinh"),
    "cosh": unary("Cosh"),
    "rsqrt": composed("Sqrt", "Reciprocal"),
    "log1p": plus_one_log,
    "expm1": exp_minus_one,
    "log2": logarithm(2),
    "log10": logarithm(10),
    "exp2": lambda g, x: scalar_power(g, 2, x),
    "hypot": hypot,
    "logit": logit,
    "silu": silu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "celu": celu,
    "_prelu_kernel": prelu,
    "softplus": softplus,
    "log_sigmoid_forward": log_sigmoid,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "glu": glu,
    "threshold": threshold,
    "clamp": clamp,
    "clamp.Tensor": clamp,
    "clamp_min": lambda g, x, low: clamp(g, x, low),
    "clamp_max": lambda g, x, high: clamp(g, x, None, high),
    "clamp_min.Tensor": lambda g, x, low: clamp(g, x, low),
    "clamp_max.Tensor": lambda g, x, high: clamp(g, x, None, high),
    "hardtanh": hardtanh,
    "pow.Tensor_Scalar": power,
    "pow.Tensor_Tensor": power,
    "pow.Scalar": scalar_power,
    "remainder.Scalar": remainder,
    "remainder.Tensor": remainder,
    "fmod.Scalar": fmod,
    "fmod.Tensor": fmod,
    "floor_divide": floor_divide,
    "div.Tensor_mode": divide,
    "addcdiv": addcdiv,
}
