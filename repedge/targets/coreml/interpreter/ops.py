"""MIL op -> function over torch tensors. A missing row is an op that the interpreter does not know.

A function's parameters are the op's own, with the defaults of coremltools' op definitions (iOS 15 to
18). Its annotations say how the interpreter passes them: ``Tensor`` as it is, ``int``, ``float``,
``bool``, ``list[int]`` as Python values. Floating-point tensors arrive as float32 whatever their type in
the program; the interpreter rounds each result to the type that the program declares, so an op is
computed in float32 and rounded once. Functions never write to their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repedge.errors import UnsupportedModel
from repedge.targets.coreml.interpreter import ops_shape as shape
from repedge.targets.coreml.interpreter import ops_window as spatial


def _channels(vector: Tensor, rank: int) -> Tensor:
    """A per-channel vector shaped to broadcast over [N, C, D...]."""
    return vector.reshape(-1, *[1] * (rank - 2))


# --- Linear algebra and normalization. ---


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return torch.matmul(x.mT if transpose_x else x, y.mT if transpose_y else y)


def einsum(values: list[Tensor], equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


def _normalize(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _scale_shift(y: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    y = _normalize(x, list(range(2, x.dim())), epsilon)
    return _scale_shift(y, gamma, beta, [-1, *[1] * (x.dim() - 2)])


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    over = [a % x.dim() for a in (range(x.dim()) if axes is None else axes)]
    kept = [size if i in over else 1 for i, size in enumerate(x.shape)]
    return _scale_shift(_normalize(x, over, epsilon), gamma, beta, kept)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


# --- Activations. ---


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise UnsupportedModel(f"the MIL gelu mode {mode!r} is not known")


def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, alpha * x, x)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x < 0, _channels(alpha, x.dim()) * x, x)


def elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x < 0, alpha * torch.expm1(x), x)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return _channels(alpha, x.dim()) * F.softplus(_channels(beta, x.dim()) * x)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


# --- Element-wise. ---


def unary(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def op(x: Tensor) -> Tensor:
        return f(x)

    return op


def binary(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def op(x: Tensor, y: Tensor) -> Tensor:
        return f(x, y)

    return op


def with_epsilon(f: Callable[[Tensor], Tensor], default: float) -> Callable[[Tensor, float], Tensor]:
    """f(x + epsilon)."""

    def op(x: Tensor, epsilon: float = default) -> Tensor:
        return f(x + epsilon)

    return op


def affine_of(f: Callable[[Tensor, float, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
    def op(x: Tensor, alpha: float, beta: float) -> Tensor:
        return f(x, alpha, beta)

    return op


def cast(x: Tensor, dtype: str) -> Tensor:
    """The interpreter converts to the declared type: towards zero for integers, nearest even for fp16."""
    return x


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


def threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


# --- Activation quantization (iOS 17). ---


def _quant_params(x: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())] if scale.dim() else []
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.float()
    return scale.reshape(shape), zero.reshape(shape)


def quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int = 0
) -> Tensor:
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[output_dtype]
    s, zero = _quant_params(input, scale, zero_point, axis)
    return (torch.round(input / s) + zero).clamp(low, high)


def dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int = 0) -> Tensor:
    s, zero = _quant_params(input, scale, zero_point, axis)
    return (input.float() - zero) * s


# --- Output. ---


def classify(probabilities: Tensor, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """(label of the greatest probability, label -> probability)."""
    labels = [c.item() if isinstance(c, np.ndarray) else c for c in classes]
    values = probabilities.flatten().tolist()
    return labels[int(probabilities.argmax())], dict(zip(labels, values, strict=True))


OPS: dict[str, Callable[..., Any]] = {
    # convolution, pooling, resizing
    "conv": spatial.conv,
    "conv_transpose": spatial.conv_transpose,
    "avg_pool": spatial.avg_pool,
    "max_pool": spatial.max_pool,
    "resize": spatial.resize,
    "resize_bilinear": spatial.resize_bilinear,
    "resize_nearest_neighbor": spatial.resize_nearest_neighbor,
    "upsample_bilinear": spatial.upsample_bilinear,
    "upsample_nearest_neighbor": spatial.upsample_nearest_neighbor,
    "crop": spatial.crop,
    "pad": spatial.pad,
    # linear algebra, normalization
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    # activations
    "clamped_relu": affine_of(lambda x, a, b: torch.where(x < 0, a * x, x).clamp(max=b)),
    "clip": clip,
    "elu": elu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "linear_activation": affine_of(lambda x, a, b: a * x + b),
    "prelu": prelu,
    "relu": unary(torch.relu),
    "relu6": unary(lambda x: x.clamp(0, 6)),
    "scaled_tanh": affine_of(lambda x, a, b: a * torch.tanh(b * x)),
    "sigmoid": unary(torch.sigmoid),
    "sigmoid_hard": affine_of(lambda x, a, b: (a * x + b).clamp(0, 1)),
    "silu": unary(lambda x: x * torch.sigmoid(x)),
    "softmax": softmax,
    "softplus": unary(F.softplus),
    "softplus_parametric": softplus_parametric,
    "softsign": unary(lambda x: x / (1 + x.abs())),
    "tanh": unary(torch.tanh),
    "threshold": threshold,
    "thresholded_relu": thresholded_relu,
    # element-wise
    "abs": unary(torch.abs),
    "add": binary(torch.add),
    "cast": cast,
    "ceil": unary(torch.ceil),
    "cos": unary(torch.cos),
    "equal": binary(torch.eq),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "exp2": unary(torch.exp2),
    "floor": unary(torch.floor),
    "floor_div": binary(torch.floor_divide),
    "greater": binary(torch.gt),
    "greater_equal": binary(torch.ge),
    "identity": unary(lambda x: x),
    "inverse": with_epsilon(torch.reciprocal, 1e-4),
    "less": binary(torch.lt),
    "less_equal": binary(torch.le),
    "log": with_epsilon(torch.log, 1e-45),
    "logical_and": binary(torch.logical_and),
    "logical_not": unary(torch.logical_not),
    "logical_or": binary(torch.logical_or),
    "logical_xor": binary(torch.logical_xor),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "mod": binary(torch.remainder),
    "mul": binary(torch.mul),
    "not_equal": binary(torch.ne),
    "pow": binary(torch.pow),
    "real_div": binary(torch.div),
    "round": unary(torch.round),
    "rsqrt": with_epsilon(torch.rsqrt, 1e-12),
    "select": select,
    "sign": unary(torch.sign),
    "sin": unary(torch.sin),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "sub": binary(torch.sub),
    # activation quantization
    "dequantize": dequantize,
    "quantize": quantize,
    # reductions
    "reduce_argmax": shape.reduce_argmax,
    "reduce_argmin": shape.reduce_argmin,
    "topk": shape.topk,
    "cumsum": shape.cumsum,
    "reduce_l1_norm": shape.reduction(lambda x, a, k: x.abs().sum(a, keepdim=k)),
    "reduce_l2_norm": shape.reduction(lambda x, a, k: x.square().sum(a, keepdim=k).sqrt()),
    "reduce_log_sum_exp": shape.reduction(lambda x, a, k: torch.logsumexp(x, a, keepdim=k)),
    "reduce_max": shape.reduction(lambda x, a, k: x.amax(a, keepdim=k)),
    "reduce_mean": shape.reduction(lambda x, a, k: x.mean(a, keepdim=k)),
    "reduce_min": shape.reduction(lambda x, a, k: x.amin(a, keepdim=k)),
    "reduce_prod": shape.reduction(shape.product),
    "reduce_sum": shape.reduction(lambda x, a, k: x.sum(a, keepdim=k)),
    "reduce_sum_square": shape.reduction(lambda x, a, k: x.square().sum(a, keepdim=k)),
    # shape and data movement
    "concat": shape.concat,
    "depth_to_space": shape.depth_to_space,
    "expand_dims": shape.expand_dims,
    "fill": shape.fill,
    "flatten2d": shape.flatten2d,
    "gather": shape.gather,
    "gather_along_axis": shape.gather_along_axis,
    "gather_nd": shape.gather_nd,
    "pixel_shuffle": shape.pixel_shuffle,
    "pixel_unshuffle": shape.pixel_unshuffle,
    "reshape": shape.reshape,
    "reverse": shape.reverse,
    "shape": shape.shape_of,
    "slice_by_index": shape.slice_by_index,
    "slice_by_size": shape.slice_by_size,
    "space_to_depth": shape.space_to_depth,
    "split": shape.split,
    "squeeze": shape.squeeze,
    "stack": shape.stack,
    "tile": shape.tile,
    "transpose": shape.transpose,
    # output
    "classify": classify,
}

EXACT = frozenset(
    {
        "abs",
        "concat",
        "crop",
        "depth_to_space",
        "expand_dims",
        "flatten2d",
        "gather",
        "gather_along_axis",
        "gather_nd",
        "identity",
        "max_pool",
        "maximum",
        "minimum",
        "pixel_shuffle",
        "pixel_unshuffle",
        "reduce_max",
        "reduce_min",
        "relu",
        "reshape",
        "resize_nearest_neighbor",
        "reverse",
        "slice_by_index",
        "slice_by_size",
        "space_to_depth",
        "split",
        "squeeze",
        "stack",
        "tile",
        "topk",
        "transpose",
        "upsample_nearest_neighbor",
    }
)
"""Ops whose results are among their inputs' values, up to sign and zero: nothing to round."""
