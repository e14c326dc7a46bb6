"""The integers of the two runtimes that read the file: TensorRT's explicit quantization, and ONNX Runtime's.

One file can't serve both at full speed. TensorRT takes int8 around 0 and nothing else, so that what stands
behind a Relu has its lower half unused; ONNX Runtime puts a convolution and its Relu into one integer
kernel only where the zero point does the Relu's work, and joins layers only where all tensors are uint8.
"""

from __future__ import annotations

from repedge.operators import ACTIVATIONS, LAYERS, MOVES, POOLS
from repedge.scheme import QuantScheme

TENSORRT_W8A8 = QuantScheme(
    name="tensorrt-w8a8",
    symmetric=True,
    integer_ops=LAYERS | MOVES | POOLS | {"Add"},
    fused=ACTIVATIONS,
    weights_alone=False,
)
"""TensorRT, explicit Q/DQ: signed symmetric int8.

TensorRT dequantizes no int32, so biases are written as the float32 numbers that the int32 ones stand for:
TensorRT adds them as they are, and ONNX Runtime, which rounds a float bias to ``s_x * s_w`` by itself and
minds no overflow, gets them back exactly.
"""

ONNXRUNTIME_W8A8 = QuantScheme(
    name="onnxruntime-w8a8",
    activations="uint8",
    integer_ops=(LAYERS | MOVES | POOLS | {"Add", "Mul", "Sigmoid", "LeakyRelu"})
    - {"ConvTranspose", "ReduceMean"},
    fused=frozenset({"Relu", "Clip"}),
    integer_outputs=True,
    first_layer_bits=7,
    exact_pixels=True,
)
"""ONNX Runtime on a CPU: what it fuses into QLinearConv, QGemm, QLinearAdd and the like.

A Quantize- and a DequantizeLinear stand around every one of its integer operators (the table of
``core/optimizer/qdq_transformer/selectors_actions/qdq_selector_action_transformer.cc``), GELU and the like
compute in float between two of them. Activations are uint8: from int8 ones it makes uint8 on x86 itself,
but only where one operator reads them, and what then mixes both runs in float (on a network of residual
blocks, half of all layers). The first layer has 7 bits for CPUs without VNNI, as OpenVINO's, and reads pixels
as they come: in float they would be cast, centred and rounded first (5 % of RepVGG-A0's time).
"""
