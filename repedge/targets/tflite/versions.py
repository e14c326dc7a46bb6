"""Every operator that is written: its options, and which TensorFlow Lite release runs which version.

Source: tensorflow/lite/tools/versioning/{op_version,runtime_version}.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """An operator's options table, the release that first ran each version, and the integer versions.

    Attributes:
        options: Name of the options table; empty if there is none.
        since: Version -> TensorFlow Lite release.
        int8, int16: The version for data of that type; 0 where there is no such kernel.
        data: Index of the input whose type counts.
        dynamic: The version for float32 data and int8 weights of one and of several scales.
    """

    options: str
    since: Mapping[int, str]
    int8: int = 0
    int16: int = 0
    data: int = 0
    dynamic: tuple[int, int] | None = None


OPS = {
    "ABS": Op("AbsOptions", {1: "1.13.0"}),
    "ADD": Op("AddOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.4.0"}, 2, 3),
    "ARG_MAX": Op("ArgMaxOptions", {1: "1.9.0"}),
    "ARG_MIN": Op("ArgMinOptions", {1: "1.9.0"}),
    "AVERAGE_POOL_2D": Op("Pool2DOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "BATCH_MATMUL": Op("BatchMatMulOptions", {1: "2.3.0"}),
    "CAST": Op("CastOptions", {1: "1.5.0"}),
    "CEIL": Op("", {1: "1.14.0"}),
    "CONCATENATION": Op("ConcatenationOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "CONV_2D": Op(
        "Conv2DOptions",
        {1: "1.5.0", 2: "1.14.0", 3: "1.14.0", 4: "2.3.0", 5: "2.4.0", 6: "2.9.0"},
        3,
        4,
        dynamic=(2, 5),
    ),
    "COS": Op("CosOptions", {1: "1.14.0"}),
    "CUMSUM": Op("CumsumOptions", {1: "2.4.0"}),
    "DEPTHWISE_CONV_2D": Op(
        "DepthwiseConv2DOptions", {1: "1.5.0", 2: "1.12.0", 3: "1.14.0", 5: "2.3.0"}, 3, 5
    ),
    "DEPTH_TO_SPACE": Op("DepthToSpaceOptions", {1: "2.1.0", 2: "2.5.0"}, 2),
    "DEQUANTIZE": Op("", {1: "1.13.1", 2: "1.14.0", 3: "1.15.0", 5: "2.7.0"}, 2, 3),
    "DIV": Op("DivOptions", {1: "1.6.0"}),
    "ELU": Op("", {1: "1.14.0"}, 1),
    "EQUAL": Op("EqualOptions", {1: "1.14.0"}),
    "EXP": Op("ExpOptions", {1: "1.7.0"}),
    "FLOOR": Op("", {1: "1.5.0"}),
    "FLOOR_MOD": Op("FloorModOptions", {1: "1.13.1"}),
    "FULLY_CONNECTED": Op(
        "FullyConnectedOptions",
        {1: "1.5.0", 3: "1.14.0", 4: "1.14.0", 5: "2.0.0", 7: "2.3.0", 12: "2.17.0"},
        4,
        7,
        dynamic=(3, 12),
    ),
    "GATHER": Op("GatherOptions", {1: "1.6.0", 2: "1.14.0", 4: "2.4.0"}, 2, 4),
    "GATHER_ND": Op("GatherNdOptions", {1: "1.14.0"}),
    "GELU": Op("GeluOptions", {1: "2.9.0", 2: "2.9.0"}, 2),
    "GREATER": Op("GreaterOptions", {1: "1.14.0"}),
    "GREATER_EQUAL": Op("GreaterEqualOptions", {1: "1.14.0"}),
    "HARD_SWISH": Op("HardSwishOptions", {1: "1.15.0"}, 1),
    "LEAKY_RELU": Op("LeakyReluOptions", {1: "1.13.1", 2: "2.3.0"}, 1, 2),
    "LESS": Op("LessOptions", {1: "1.14.0"}),
    "LESS_EQUAL": Op("LessEqualOptions", {1: "1.14.0"}),
    "LOG": Op("", {1: "1.14.0"}),
    "LOGICAL_AND": Op("LogicalAndOptions", {1: "1.11.0"}),
    "LOGICAL_NOT": Op("LogicalNotOptions", {1: "1.11.0"}),
    "LOGICAL_OR": Op("LogicalOrOptions", {1: "1.11.0"}),
    "LOGISTIC": Op("", {1: "1.14.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "LOG_SOFTMAX": Op("LogSoftmaxOptions", {1: "1.14.0"}),
    "MAXIMUM": Op("MaximumMinimumOptions", {1: "1.14.0", 2: "1.14.0", 4: "2.3.0"}, 2, 4),
    "MAX_POOL_2D": Op("Pool2DOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "MEAN": Op("ReducerOptions", {1: "1.6.0", 2: "1.14.0", 3: "2.4.0"}, 2, 3),
    "MINIMUM": Op("MaximumMinimumOptions", {1: "1.14.0", 2: "1.14.0", 4: "2.3.0"}, 2, 4),
    "MIRROR_PAD": Op("MirrorPadOptions", {1: "1.13.1", 2: "2.3.0"}, 2),
    "MUL": Op("MulOptions", {1: "1.5.0", 2: "1.14.0", 3: "1.15.0", 4: "2.3.0"}, 3, 4),
    "NEG": Op("NegOptions", {1: "1.9.0"}),
    "NOT_EQUAL": Op("NotEqualOptions", {1: "1.14.0"}),
    "PAD": Op("PadOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.4.0"}, 2, 3),
    "PADV2": Op("PadV2Options", {1: "1.9.0", 2: "1.14.0", 3: "2.4.0"}, 2, 3),
    "POW": Op("PowOptions", {1: "1.10.0"}),
    "PRELU": Op("", {1: "1.8.0"}),
    "QUANTIZE": Op("", {1: "1.14.0", 2: "1.15.0"}, 1, 2),
    "REDUCE_MAX": Op("ReducerOptions", {1: "1.11.0", 2: "1.14.0"}, 2),
    "REDUCE_MIN": Op("ReducerOptions", {1: "1.11.0"}),
    "REDUCE_PROD": Op("ReducerOptions", {1: "1.11.0"}),
    "RELU": Op("", {1: "1.5.0", 2: "2.1.0", 3: "2.5.0"}, 2, 3),
    "RELU6": Op("", {1: "1.5.0", 2: "1.14.0", 3: "2.5.0"}, 2, 3),
    "RELU_N1_TO_1": Op("", {1: "1.5.0"}),
    "RESHAPE": Op("ReshapeOptions", {1: "1.5.0"}, 1, 1),
    "RESIZE_BILINEAR": Op("ResizeBilinearOptions", {1: "1.7.0", 2: "1.14.0", 3: "2.2.0", 4: "2.5.0"}, 2, 4),
    "RESIZE_NEAREST_NEIGHBOR": Op(
        "ResizeNearestNeighborOptions", {1: "1.13.1", 2: "1.14.0", 3: "2.3.0", 4: "2.4.0"}, 2, 4
    ),
    "ROUND": Op("", {1: "1.14.0"}),
    "RSQRT": Op("", {1: "1.10.0"}),
    "SELECT_V2": Op("SelectV2Options", {1: "2.2.0"}),
    "SIGN": Op("SignOptions", {1: "2.12.0"}),
    "SIN": Op("", {1: "1.9.0"}),
    "SLICE": Op("SliceOptions", {1: "1.14.0", 2: "1.14.0", 4: "2.4.0"}, 2, 4),
    "SOFTMAX": Op("SoftmaxOptions", {1: "1.5.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "SPACE_TO_DEPTH": Op("SpaceToDepthOptions", {1: "1.5.0", 2: "1.14.0"}, 2),
    "SPLIT": Op("SplitOptions", {1: "1.5.0", 2: "1.14.0", 4: "2.3.0"}, 2, 4, data=1),
    "SQRT": Op("", {1: "1.10.0"}),
    "SQUARE": Op("SquareOptions", {1: "1.12.0"}),
    "STRIDED_SLICE": Op("StridedSliceOptions", {1: "1.6.0", 2: "1.14.0"}, 2, 1),
    "SUB": Op("SubOptions", {1: "1.6.0", 2: "1.14.0", 5: "2.4.0"}, 2, 5),
    "SUM": Op("ReducerOptions", {1: "1.10.0"}),
    "TANH": Op("", {1: "1.14.0", 2: "1.14.0", 3: "2.3.0"}, 2, 3),
    "TILE": Op("TileOptions", {1: "1.10.1"}),
    "TOPK_V2": Op("TopKV2Options", {1: "1.7.0"}),
    "TRANSPOSE": Op("TransposeOptions", {1: "1.6.0", 2: "1.14.0", 5: "2.4.0"}, 2, 5),
    "TRANSPOSE_CONV": Op("TransposeConvOptions", {1: "1.9.0", 3: "2.3.0"}, 3, 3, data=2),
}
"""Versions as op_version.cc gives them; int8 MUL always has the one that takes any scales."""

CHANNELWISE_DENSE = "2.14.0"
"""FULLY_CONNECTED has one version for integer weights with one and with several scales; several were
tried in no older release than this."""
