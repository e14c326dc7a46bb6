"""ONNX operators by kind, for everybody who treats a kind alike: passes, calibration, schemes, targets.

A new operator goes where it belongs; what is said of the kind then holds for it everywhere.
"""

from __future__ import annotations

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""They have weights."""

MOVES = frozenset(
    {
        *(
            "Concat",
            "Reshape",
            "Flatten",
            "Transpose",
            "Slice",
            "Split",
            "Pad",
            "DepthToSpace",
            "SpaceToDepth",
        ),
        *("MaxPool", "GlobalMaxPool", "ReduceMax"),
    }
)
"""Their outputs hold only numbers that their inputs hold (or zero)."""

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
"""They average."""

ELEMENTWISE = frozenset({"Add", "Sub", "Mul"})
"""They join two maps."""

ACTIVATIONS = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "Gelu", "Sigmoid", "HardSwish", "Elu", "Tanh"),
        *("Celu", "Mish", "Selu", "Softsign"),
    }
)
"""Functions of one number that stand behind a layer, and that kernels with integers take along."""

UNARY = ACTIVATIONS | {
    *("Abs", "Ceil", "Cast", "Cos", "Erf", "Exp", "Floor", "HardSigmoid", "Identity", "Log", "Neg"),
    *("Reciprocal", "Round", "Sign", "Sin", "Softplus", "Sqrt", "ThresholdedRelu"),
    *("QuantizeLinear", "DequantizeLinear"),
}
"""Functions of one number, and of constants."""
