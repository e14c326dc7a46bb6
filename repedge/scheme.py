"""What a target's integer arithmetic demands of a quantized network, as data.

A scheme is the only thing that calibration knows of a target. The rules of each are those of the
format's own specification: TensorFlow Lite's 8-bit quantization specification (int8 and int16x8),
OpenVINO's FakeQuantize low-precision rules, TensorRT's explicit quantization, Core ML's iOS 17
``quantize``/``dequantize`` operators.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_serializer

from repedge.operators import LAYERS, MOVES

ActivationType = Literal["int8", "uint8", "int16", "uint16", "float32"]

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}
"""Least and greatest integer of each activation type."""


class FixedParams(BaseModel):
    """Scale and zero point that an operator's output always has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float
    zero_point: int


class QuantScheme(BaseModel):
    """The rules of one target at one precision.

    Attributes:
        name: Unique name, recorded in plans.
        activations: Integer type of activations; ``float32`` for weight-only schemes.
        symmetric: Whether zero points of activations must be 0 (of signed types; an unsigned type
            may still be used for non-negative tensors with zero point 0).
        narrow: Whether a signed activation leaves out its least integer (-127 .. 127).
        weight_bits: Bits of weights, symmetric and narrow: 8 gives -127 .. 127.
        per_channel: Whether a weight has one scale per output channel; else one in all.
        first_layer_bits: Bits of the first layer's weights (7 where int8 products are added in
            16 bits, that is on x86 without VNNI).
        bias: Type of integer biases, of scale ``s_x * s_w``; ``float32`` leaves them as they are.
        bias_limit: Greatest magnitude of an integer bias; weight scales are raised to keep to it.
        integer_ops: Operators that run in integers; all others run in float32.
        fused: Activations that a layer or an addition before them takes along, so that the tensor
            between has no integers of its own.
        tied: Operators whose outputs must have the scale and zero point of their inputs.
        fixed: Operators whose output has scale and zero point laid down.
        integer_outputs: Whether an integer operator can only give integers; else it gives float32
            where the reader wants that.
        quantize_outputs: Whether the graph's outputs are integers, too, before they are returned.
        weights_alone: Whether a layer that reads floats may have 8-bit weights. TensorRT wants none or both
            in integers.
        dynamic: Layers with 8-bit weights that read floats about as fast as integers where they end the
            network: they round them to 8 bits themselves, in the range of each image (TensorFlow Lite), or
            take them as they are, for reading the weights is nearly all their time (OpenVINO).
        centred: Whether a tensor with negative numbers has the middle integer as zero point; one without
            has the least integer.
        gaps: Whether a transposed convolution may be integers where its stride is larger than its kernel, so
            that cells between the windows hold the bias alone.
        exact_pixels: Whether the first convolution reads pixels themselves, in a border of the mean pixel;
            symmetric integers want pixels centred.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    activations: ActivationType = "int8"
    symmetric: bool = False
    narrow: bool = False
    weight_bits: int = 8
    per_channel: bool = True
    first_layer_bits: int = 8
    bias: Literal["int32", "int64", "float32"] = "int32"
    bias_limit: float = 2.0**30
    integer_ops: frozenset[str] = LAYERS
    fused: frozenset[str] = frozenset({"Relu", "Clip"})
    tied: frozenset[str] = MOVES
    fixed: dict[str, FixedParams] = {}
    integer_outputs: bool = False
    quantize_outputs: bool = False
    weights_alone: bool = True
    dynamic: frozenset[str] = frozenset()
    centred: bool = False
    gaps: bool = True
    exact_pixels: bool = False

    @field_serializer("integer_ops", "fused", "tied", "dynamic", when_used="json")
    def _in_order(self, names: frozenset[str]) -> list[str]:
        """Sets have another order in each process; JSON must not."""
        return sorted(names)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def weights_only(self) -> bool:
        """Whether activations stay float32."""
        return self.activations == "float32"

    def limits(self) -> tuple[int, int]:
        """Least and greatest integer of an activation."""
        low, high = LIMITS[self.activations]
        return (low + 1 if self.narrow and low < 0 else low), high

    def params(self, low: float, high: float) -> tuple[float, int]:
        """Scale (a float32 number) and zero point for real values from ``low`` to ``high``.

        The range is widened to hold 0, which becomes an integer exactly. A range of no width gets
        scale 1 (or that of its magnitude).
        """
        qmin, qmax = self.limits()
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if self.centred and low < 0:
            low, high = self._around_zero(low, high)
        if self.symmetric:
            scale = max(-low / -qmin if qmin < 0 else 0.0, high / qmax)
            return (float(np.float32(scale)) if scale > _TINY else 1.0), 0
        scale = float(np.float32((high - low) / (qmax - qmin)))
        if scale <= _TINY:
            return 1.0, max(qmin, 0) if low >= 0 and qmin >= 0 else 0
        return scale, int(np.clip(round(qmin - low / scale), qmin, qmax))

    def _around_zero(self, low: float, high: float) -> tuple[float, float]:
        """The range that holds ``low`` to ``high`` and has 0 at the middle integer."""
        qmin, qmax = self.limits()
        middle = (qmin + qmax + 1) // 2
        scale = max(-low / (middle - qmin), high / (qmax - middle))
        return (qmin - middle) * scale, (qmax - middle) * scale

    def range_of(self, scale: float, zero_point: int) -> tuple[float, float]:
        """The least and greatest real value that scale and zero point can hold."""
        qmin, qmax = self.limits()
        return (qmin - zero_point) * scale, (qmax - zero_point) * scale

    def weight_limit(self, first: bool = False) -> int:
        """Greatest magnitude of an integer weight: 127, or 63 for 7 bits."""
        bits = self.first_layer_bits if first else self.weight_bits
        return int(2 ** (bits - 1)) - 1


_TINY = 1e-30


W8A32 = QuantScheme(name="w8a32", activations="float32", integer_ops=LAYERS, bias="float32")
"""int8 weights that are widened before use; activations and biases float32."""
