"""TensorRT's integers: explicit quantization."""

from __future__ import annotations

from repedge.operators import ACTIVATIONS, LAYERS, MOVES, POOLS
from repedge.scheme import QuantScheme

TENSORRT_W8A8 = QuantScheme(
    name="tensorrt-w8a8",
    symmetric=True,
    integer_ops=LAYERS | MOVES | POOLS | {"Add"},
    fused=ACTIVATIONS,
    bias="float32",
    weights_alone=False,
)
"""TensorRT, explicit Q/DQ: signed symmetric int8, float32 biases."""
