"""Core ML's integers: iOS 17's quantize and dequantize operators."""

from __future__ import annotations

from repedge.operators import LAYERS, MOVES, POOLS
from repedge.scheme import QuantScheme

COREML_W8A8 = QuantScheme(
    name="coreml-w8a8",
    exact_pixels=True,
    integer_ops=LAYERS | MOVES | POOLS | {"Add"},
    fused=frozenset({"Relu", "Clip", "LeakyRelu"}),
    bias="float32",
)
"""Core ML, iOS 17 and later: quantize/dequantize with zero point, biases float."""
