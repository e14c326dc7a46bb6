"""Which ONNX operators have an integer kernel in TensorFlow Lite, and what it demands. A table.

Sources: the TensorFlow Lite 8-bit quantization specification (int8 and int16x8); the kernels'
``Prepare``; XNNPACK's subgraph operators for `MIN_ADD` and its kin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from repedge.graph.attrs import attr, pool_attrs
from repedge.graph.values import const, shape_of
from repedge.targets.tflite.composed.resize import moves_or_blends
from repedge.targets.tflite.model import Quant
from repedge.targets.tflite.ops_window import averages_whole_windows

Kind = Literal["layer", "binary", "free", "tied", "move", "clamp"]
"""How outputs relate to inputs.

``layer``: constant int8 weights and an integer bias; ``binary``: two operands; ``free``: any scales;
``tied``: the output has the input's scale and zero point; ``move``: tied, and the numbers only change
their places, so that it may run in integers wherever its input is; ``clamp``: Relu and Clip.
"""

BOTH = frozenset({"int8", "int16"})
INT8 = frozenset({"int8"})


@dataclass(frozen=True)
class Rule:
    """One row.

    Attributes:
        kind: See `Kind`.
        dtypes: Types of data that have a kernel.
        fuses: Whether an activation behind it can be part of it.
        fixed: Type -> scale and zero point that the output always has.
        able: Says whether this node can be integer at all.
    """

    kind: Kind
    dtypes: frozenset[str] = BOTH
    fuses: bool = False
    fixed: dict[str, Quant] = field(default_factory=dict)
    able: Callable[[ir.Node], bool] = lambda node: True


def _plain_gemm(node: ir.Node) -> bool:
    third = node.inputs[2] if len(node.inputs) > 2 else None
    return attr(node, "alpha", 1.0) == 1.0 and (third is None or attr(node, "beta", 1.0) == 1.0)


def _matrix(node: ir.Node) -> bool:
    return len(shape_of(node.inputs[1])) == 2


def _constant_mode(node: ir.Node) -> bool:
    return attr(node, "mode", "constant") == "constant"


def _mean_without_parameters(node: ir.Node) -> bool:
    return all(const(v) is not None for v in node.inputs[1:] if v is not None)


def _fixed(scale8: float, zero8: int, scale16: float) -> dict[str, Quant]:
    return {"int8": Quant("int8", (scale8,), zero8), "int16": Quant("int16", (scale16,))}


RULES: dict[str, Rule] = {
    "Conv": Rule("layer", fuses=True),
    "ConvTranspose": Rule("layer"),
    "Gemm": Rule("layer", fuses=True, able=_plain_gemm),
    "MatMul": Rule("layer", INT8, fuses=True, able=_matrix),  # 16 bits, several rows: wrong in 2.14
    "Add": Rule("binary", fuses=True),
    "Sub": Rule("binary", fuses=True),
    "Mul": Rule("binary", fuses=True),
    "Relu": Rule("clamp"),
    "Clip": Rule("clamp"),
    "LeakyRelu": Rule("free"),
    "Elu": Rule("free", INT8, able=lambda n: attr(n, "alpha", 1.0) == 1.0),
    "Sigmoid": Rule("free", fixed=_fixed(1 / 256, -128, 1 / 32768)),
    "Tanh": Rule("free", INT8, fixed=_fixed(1 / 128, 0, 1 / 32768)),  # 16 bits: 3 units off, measured
    "GlobalAveragePool": Rule("free"),
    "ReduceMean": Rule("free", able=_mean_without_parameters),
    "AveragePool": Rule("free", able=lambda n: averages_whole_windows(n, pool_attrs(n))),
    "MaxPool": Rule("tied"),
    "GlobalMaxPool": Rule("tied"),
    "Concat": Rule("tied"),
    "Resize": Rule("tied", INT8, able=moves_or_blends),  # 16-bit bilinear: hundreds of units off, measured
    "Pad": Rule("tied", able=_constant_mode),
    "DepthToSpace": Rule("move", INT8),
    "SpaceToDepth": Rule("move", INT8),
    "Reshape": Rule("move"),
    "Flatten": Rule("move"),
    "Squeeze": Rule("move"),
    "Unsqueeze": Rule("move"),
    "Transpose": Rule("move"),
    "Identity": Rule("move"),
    "Slice": Rule("move"),
    "Split": Rule("move"),
}
"""What is not here runs in float32 between DEQUANTIZE and QUANTIZE. That is where Gelu, HardSwish and
Softmax belong: their int8 kernels are not delegated, while XNNPACK takes the three operators in one
partition with the rest (and rounds only once). From 8 bits to 8 bits, DEQUANTIZE, GELU, QUANTIZE are a
table of 256 entries to it (``xnn_subgraph_fuse_unary_quantized_into_lut``): exact, one pass over the
data, no slower than LOGISTIC and MUL, which become the same table (measured with LiteRT 2.3)."""

MIN_ADD, MAX_ADD = 2.0**-10, 2.0**8
"""Scale of an operand of ADD or SUB over that of the result, as XNNPACK takes them."""

MIN_MUL, MAX_MUL = 2.0**-16, 2.0**8
"""Product of the scales of MUL's operands over that of the result."""

MIN_CONVERT, MAX_CONVERT = 2.0**-8, 2.0**7
"""Scale of the input of QUANTIZE (from integers) or LEAKY_RELU over that of the result."""


def quantize_constant(array: np.ndarray, dtype: str, least_scale: float = 0.0) -> Quant:
    """Scale and zero point of a constant operand: its own range, widened to hold 0.

    A single number is represented exactly.
    """
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    if dtype == "int16":
        scale = max(max(-low, high) / 32767, least_scale) or 1.0
        return Quant(dtype, (float(np.float32(scale)),))
    scale = float(np.float32(max((high - low) / 255, least_scale) or 1.0))
    return Quant(dtype, (scale,), int(np.clip(round(-128 - low / scale), -128, 127)))


def passes_everything(low: float, high: float, quant: Quant) -> bool:
    """Whether clamping to real bounds changes none of the integers."""
    qmin, qmax = quant.limits
    scale, zero = quant.scale[0], quant.zero_point
    below = low == -np.inf or round(low / scale) + zero <= qmin
    above = high == np.inf or round(high / scale) + zero >= qmax
    return below and above
