"""TensorFlow Lite's integers: its 8-bit quantization specification, int8 and int16x8."""

from __future__ import annotations

from repedge.operators import ACTIVATIONS, ELEMENTWISE, LAYERS, MOVES, POOLS
from repedge.scheme import FixedParams, QuantScheme

_COMMON = LAYERS | MOVES | ELEMENTWISE | POOLS | {"Softmax", "Resize"}
_CURVES_16 = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh"})


TFLITE_W8A8 = QuantScheme(
    name="tflite-w8a8",
    exact_pixels=True,
    integer_ops=_COMMON | ACTIVATIONS | {"PRelu"},
    tied=MOVES | {"AveragePool", "Resize"},
    fixed={
        "Sigmoid": FixedParams(scale=1 / 256, zero_point=-128),
        "Softmax": FixedParams(scale=1 / 256, zero_point=-128),
        "Tanh": FixedParams(scale=1 / 128, zero_point=0),
    },
    integer_outputs=True,
    quantize_outputs=True,
    dynamic=frozenset({"Gemm"}),
)
"""TensorFlow Lite, int8: asymmetric activations, int32 biases."""


TFLITE_W8A16 = QuantScheme(
    name="tflite-w8a16",
    activations="int16",
    symmetric=True,
    narrow=True,
    bias="int64",
    bias_limit=2.0**46,
    integer_ops=(_COMMON | _CURVES_16) - {"ReduceMax", "GlobalMaxPool"},
    tied=MOVES | {"AveragePool", "Resize"},
    fixed={
        "Sigmoid": FixedParams(scale=1 / 32768, zero_point=0),
        "Softmax": FixedParams(scale=1 / 32768, zero_point=0),
        "Tanh": FixedParams(scale=1 / 32768, zero_point=0),
    },
    integer_outputs=True,
    quantize_outputs=True,
)
"""TensorFlow Lite, int16 activations and int8 weights: symmetric, int64 biases."""
