"""OpenVINO's integers: the FakeQuantize rules of its low-precision passes."""

from __future__ import annotations

from repedge.operators import ACTIVATIONS, LAYERS, MOVES, POOLS
from repedge.scheme import QuantScheme

OPENVINO_W8A8 = QuantScheme(
    name="openvino-w8a8",
    exact_pixels=True,
    activations="uint8",
    integer_ops=LAYERS | MOVES | POOLS | {"Add"},
    fused=ACTIVATIONS,
    bias="float32",
    dynamic=frozenset({"Gemm"}),
    centred=True,
    first_layer_bits=7,
    gaps=False,
)
"""OpenVINO: u8 activations of 256 levels, i8 weights of 255, float32 biases and results where wanted.

A u8 tensor of zero point 128 is an i8 one without zero point to OpenVINO. Any other zero point costs both
the layer that writes the tensor (the shift is a pass of its own after GELU) and the one that reads it; on a
CPU with AMX, a network of 1x1 convolutions and GELU takes 1.2 times as long with them.

CPUs without VNNI add two products in 16 bits, which overflow where pixels of 255 meet weights of 127: the
first layer has 7-bit weights. (With 8 bits the bundled RepViT is at 1 dB on a Haswell, with 7 at 22.)

A transposed convolution with a stride over its kernel was seen to lose 12 to 24 dB on some CPUs, where the
same integers keep 49 to 65 in the other runtimes: it stays float.
"""
