"""The table of operators: one row a use, which every target runs or refuses; see test_operators.py.

A new operator is its rows in the targets' own tables and one here. Where a target can't take a row, the row
has the words of its refusal; where it can't keep `operators.TOLERANCE`, the row has its own and why.
"""

from __future__ import annotations

import numpy as np
import op_rows_values
from op_rows_resize import RESIZES
from op_rows_windows import WINDOWS
from operators import Case, case, lacking, weights

MAX = np.iinfo(np.int64).max

PRODUCTS = {
    "gemm": case("f = Flatten(x) y = Gemm<transB=1>(f, w, b)", (1, 20, 1, 1), w=(12, 20), b=(12,)),
    "gemm_scaled": case(
        "f = Flatten(x) y = Gemm<alpha=0.5, beta=2.0>(f, w, b)",
        (1, 20, 1, 1),
        w=(20, 12),
        b=weights(12)[None],
    ),
    "gemm_scaled_transposed": case(
        "f = Flatten(x) y = Gemm<transB=1, alpha=0.5, beta=2.0>(f, w, b)", (1, 6, 1, 1), w=(3, 6), b=(3,)
    ),
    "gemm_scalar_bias": case("f = Flatten(x) y = Gemm(f, w, b)", (1, 6, 1, 1), w=(6, 3), b=(1,)),
    "gemm_flattened": case("v = Flatten(x) y = Gemm<transB=1>(v, w, b)", (1, 4, 7, 9), w=(5, 252), b=(5,)),
    "matmul_constant": case("a = Reshape(x, s) y = MatMul(a, w)", (1, 1, 9, 20), s=[0, 9, 20], w=(20, 12)),
    "matmul_rank4": case("y = MatMul(x, w)", (1, 4, 7, 9), w=(9, 5)),
    "matmul_tokens": case(  # [1, C, H, W] -> [1, HW, C] costs nothing in NHWC
        "a = Reshape(x, s) b = Transpose<perm=[0,2,1]>(a) y = MatMul(b, w)",
        (1, 8, 3, 4),
        s=[0, 8, 12],
        w=(8, 5),
    ),
    "matmul_from_left": case("y = MatMul(w, x)", (1, 4, 7, 9), w=(3, 7)),
    "matmul_batches": case("y = MatMul(x, w)", (1, 4, 7, 9), w=(4, 9, 5)),
    "matmul_one_batch": case("y = MatMul(x, w)", (1, 4, 7, 9), w=(1, 9, 5)),
    "matmul_of_means": case(  # one matrix for all channels
        "t = Transpose<perm=[0,1,3,2]>(x) m = ReduceMean(t, a) y = MatMul(x, m)", (1, 4, 7, 9), a=[1]
    ),
    "matmul_rank5": case(
        "a = Reshape(x, s) t = Transpose<perm=[0,1,2,4,3]>(a) y = MatMul(t, a)",
        (1, 4, 7, 9),
        s=[0, 2, 2, 7, 9],
    ),
    "attention": case(  # queries, keys and values of two heads, scaled dot product with a bias
        "a = Reshape(x, s) q, k, v = Split<axis=1, num_outputs=3>(a) h = Reshape(q, r) i = Reshape(k, r) "
        "j = Reshape(v, r) t = Transpose<perm=[0,1,3,2]>(h) l = MatMul(t, i) c = Mul(l, scale) "
        "d = Add(c, bias) p = Softmax<axis=-1>(d) u = Transpose<perm=[0,1,3,2]>(p) y = MatMul(j, u)",
        (1, 24, 3, 4),
        s=[0, 3, 8, 12],
        r=[0, 2, 4, 12],
        scale=0.5,
        bias=(2, 12, 12),
    ),
    "matmul_computed": case("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", (1, 2, 7, 5)),
}

ACTIVATIONS = {
    "relu": case("y = Relu(x)"),
    "clip6": case("y = Clip(x, l, h)", l=0.0, h=6.0),
    "clip_odd": case("y = Clip(x, l, h)", l=-0.3, h=0.8),
    "clip_low": case("y = Clip(x, l)", l=-0.3),
    "clip_low_0": case("y = Clip(x, l)", l=0.0),
    "clip_high": case("y = Clip(x, , h)", h=0.5),
    "clip_float32_limit": case("y = Clip(x, l, h)", l=-0.6, h=np.array(np.finfo(np.float32).max)),
    "leaky": case("y = LeakyRelu<alpha=0.1>(x)"),
    "prelu": case("y = PRelu(x, w)", w=(6, 1, 1)),
    "prelu_scalar": case("y = PRelu(x, w)", w=(1,)),
    "elu": case("y = Elu(x)"),
    "elu_alpha": case("y = Elu<alpha=0.7>(x)"),
    "elu_steep": case("y = Elu<alpha=2.5>(x)"),
    "celu": case("y = Celu<alpha=0.4>(x)"),
    "celu_plain": case("y = Celu(x)"),
    "selu": case("y = Selu(x)"),
    "selu_other": case("y = Selu<alpha=1.2, gamma=0.8>(x)"),
    "mish": case("y = Mish(x)"),
    "mish_large": case("t = Mul(x, k) y = Mish(t)", k=60.0),
    "softsign": case("y = Softsign(x)"),
    "thresholded_relu": case("y = ThresholdedRelu<alpha=0.5>(x)"),
    "swish_beta": case("t = Mul(x, k) s = Sigmoid(t) y = Mul(x, s)", k=1.7),
    "hard_sigmoid_steep": case("y = HardSigmoid<alpha=0.7, beta=-0.1>(x)"),
    "prelu_column": case("y = PRelu(x, w)", w=(7,)),
    "prelu_map": case("y = PRelu(x, w)", w=(6, 5, 7)),
    "prelu_tokens": case("t = Reshape(x, s) y = PRelu(t, w)", s=[0, 6, 35], w=(35,)),
    "prelu_computed": case("m = ReduceMean(x, a) y = PRelu(x, m)", a=[2, 3]),
    "lrn": case("y = LRN<size=5, alpha=0.5>(x)"),
    "lrn_other": case("y = LRN<size=3, alpha=0.3, beta=0.6, bias=2.0>(x)"),
    "lrn_wide": case("y = LRN<size=9, alpha=0.9>(x)", (1, 4, 5, 7)),
    "gelu": case("y = Gelu(x)"),
    "gelu_tanh": case('y = Gelu<approximate="tanh">(x)'),
    "sigmoid": case("y = Sigmoid(x)"),
    "hard_sigmoid": case("y = HardSigmoid<alpha=0.16666667>(x)"),
    "hard_sigmoid_onnx": case("y = HardSigmoid(x)"),
    "hard_swish": case("y = HardSwish(x)"),
    "silu": case("s = Sigmoid(x) y = Mul(s, x)"),
    "silu_shared_sigmoid": case("s = Sigmoid(x) t = Mul(x, s) y = Add(t, s)"),
    "tanh": case("y = Tanh(x)"),
    "softplus": case("y = Softplus(x)"),
    "softplus_large": case("t = Mul(x, k) y = Softplus(t)", k=60.0),
    "erf": case("y = Erf(x)"),
    "softmax_rows": case("f = Flatten(x) y = Softmax(f)", (1, 20, 1, 1)),
    "softmax_channels": case("y = Softmax<axis=1>(x)"),
    "softmax_width": case("y = Softmax<axis=-1>(x)"),
    "log_softmax": case("f = Flatten(x) y = LogSoftmax(f)", (1, 20, 1, 1)),
    "log_softmax_channels": case("y = LogSoftmax<axis=1>(x)"),
}

ARITHMETIC = {
    "exp": case("y = Exp(x)"),
    "neg": case("y = Neg(x)"),
    "sqrt_of_abs": case("a = Abs(x) y = Sqrt(a)"),
    "sqrt_of_relu": case("r = Relu(x) y = Sqrt(r)"),
    "square": case("y = Pow(x, w)", w=2.0),
    "square_of_relu": case("r = Relu(x) y = Pow(r, w)", w=2.0),
    "cube": case("y = Pow(x, w)", w=3.0),
    "exp_after_powers": case(
        "a = Abs(x) s = Sqrt(a) p = Pow(s, c) m = Mul(x, k) e = Exp(m) y = Add(p, e)",
        c=3.0,
        k=0.5,
    ),
    "min": case("y = Min(x, w)", w=(6, 1, 1)),
    "min_scalar": case("y = Min(x, w)", w=0.25),
    "max_scalar": case("y = Max(x, w)", w=0.25),
    "max_of_three": case("y = Max(x, v, w)", v=(6, 1, 1), w=(7,)),
    "max_of_three_scalars": case("y = Max(x, v, w)", v=0.25, w=0.5),
    "add_itself": case("y = Add(x, x)"),
    "add_channel": case("y = Add(x, w)", w=(6, 1, 1)),
    "add_lower_rank": case(  # [1, 7] next to [1, 6, 5, 7] is per width
        "m = ReduceMean<keepdims=0>(x, a) v = Tanh(m) y = Add(x, v)",
        a=[1, 2],
    ),
    "sub_from": case("y = Sub(w, x)", w=(1, 6, 5, 7)),
    "sub_from_scalar": case("y = Sub(w, x)", w=1.5),
    "mul_scalar": case("y = Mul(x, w)", w=1.7),
    "mul_gate": case("g = GlobalAveragePool(x) y = Mul(x, g)"),
    "squeeze_excite": case("p = GlobalAveragePool(x) s = Sigmoid(p) y = Mul(x, s)"),
    "div_scalar": case("y = Div(x, w)", w=3.0),
    "div_channel": case("y = Div(x, w)", (1, 4, 7, 9), w=np.array([0.5, 1, 2, 3]).reshape(4, 1, 1)),
    "div_width": case("y = Div(x, w)", w=2 + np.abs(weights(7))),
    "batch_norm": case(
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        s=(6,),
        b=(6,),
        m=(6,),
        v=0.1 + np.abs(weights(6, seed=3)),
    ),
    "batch_norm_wide": case(
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        (1, 4, 6, 8),
        s=(4,),
        b=(4,),
        m=(4,),
        v=[0.1, 1.0, 2.0, 30.0],
    ),
    "reduce_mean_channels": case("y = ReduceMean(x, a)", a=[1]),
    "reduce_mean_width": case("y = ReduceMean(x, a)", a=[-1]),
    "reduce_mean_flat": case("y = ReduceMean<keepdims=0>(x, a)", a=[-1, -2]),
    "reduce_mean_apart": case("y = ReduceMean<keepdims=0>(x, a)", a=[-1, 1]),
    "reduce_sum": case("y = ReduceSum<keepdims=0>(x, a)", a=[2]),
    "reduce_sum_channels": case("y = ReduceSum(x, a)", a=[1]),
    "reduce_sum_all": case("y = ReduceSum(x)"),
    "reduce_max": case("y = ReduceMax(x, a)", a=[2, 3]),
    "reduce_max_channels": case("y = ReduceMax<keepdims=1>(x, a)", a=[1]),
}

SHAPES = {
    "depth_to_space": case("y = DepthToSpace<blocksize=2>(x)", (1, 8, 3, 4)),
    "pixel_shuffle_node": case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', (1, 8, 3, 4)),
    "pixel_shuffle": case(
        "a = Reshape(x, s) b = Transpose<perm=[0,1,4,2,5,3]>(a) y = Reshape(b, t)",
        (1, 8, 3, 4),
        s=[0, 2, 2, 2, 3, 4],
        t=[0, 2, 6, 8],
    ),
    "space_to_depth": case("y = SpaceToDepth<blocksize=2>(x)", (1, 3, 6, 8)),
    "space_to_depth_padded": case(
        "p = Pad(x, s) y = SpaceToDepth<blocksize=2>(p)", (1, 4, 7, 9), s=[0, 0, 1, 1, 0, 0, 0, 0]
    ),
    "one_tensor_twice": case("y = Tanh(x) z = Identity(y)", outputs="y, z"),
    "input_as_output": case("y = Tanh(x) z = Identity(x)", outputs="y, z"),
    "pixel_unshuffle": case(
        "a = Reshape(x, s) b = Transpose<perm=[0,1,3,5,2,4]>(a) y = Reshape(b, t)",
        (1, 3, 6, 8),
        s=[0, 3, 3, 2, 4, 2],
        t=[0, 12, 3, 4],
    ),
    "window_attention": case(  # [N, H, W, C] by windows, attention in each, and back
        "t = Transpose<perm=[0,2,3,1]>(x) a = Reshape(t, s) b = Transpose<perm=[0,1,3,2,4,5]>(a) "
        "w = Reshape(b, v) k = Transpose<perm=[0,1,3,2]>(w) l = MatMul(w, k) p = Softmax<axis=3>(l) "
        "o = MatMul(p, w) c = Reshape(o, u) d = Transpose<perm=[0,1,3,2,4,5]>(c) e = Reshape(d, r) "
        "y = Transpose<perm=[0,3,1,2]>(e)",
        (1, 8, 6, 4),
        s=[0, 3, 2, 2, 2, 8],
        v=[0, 6, 4, 8],
        u=[0, 3, 2, 2, 2, 8],
        r=[0, 6, 4, 8],
    ),
    "six_axes_apart": case(
        "a = Reshape(x, s) b = Transpose<perm=[0,5,3,1,4,2]>(a) c = Relu(b) y = Reshape(c, t)",
        (1, 8, 6, 4),
        s=[0, 2, 4, 3, 2, 4],
        t=[0, 8, 6, 4],
    ),
    "channel_shuffle": case(
        "a = Reshape(x, s) b = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(b, t)",
        s=[0, 2, 3, 5, 7],
        t=[0, 6, 5, 7],
    ),
    "concat": case(
        "r = Relu(x) y = Concat<axis=1>(x, r, w)",
        w=(1, 2, 5, 7),
    ),
    "concat_channels": case("r = Relu(x) y = Concat<axis=1>(x, r)"),
    "concat_height": case("r = Tanh(x) y = Concat<axis=2>(x, r)"),
    "split_even": case("y, z = Split<axis=1, num_outputs=2>(x)", outputs="y, z"),
    "split_uneven": case("y, z = Split<axis=1>(x, s)", outputs="y, z", s=[2, 4]),
    "split_swapped": case("p, q = Split<axis=1, num_outputs=2>(x) y = Concat<axis=1>(q, p)"),
    "split_uneven_swapped": case("p, q = Split<axis=1>(x, s) y = Concat<axis=1>(q, p)", s=[1, 5]),
    "split_width": case("p, q = Split<axis=3, num_outputs=2>(x) y = Sub(p, q)", (1, 4, 6, 8)),
    "slice": case("y = Slice(x, s, e, a)", s=[2, -5], e=[5, -1], a=[1, 3]),
    "slice_steps": case("y = Slice(x, s, e, a, t)", s=[0, 1], e=[2**62, 2**62], a=[2, 3], t=[2, 2]),
    "slice_from_the_end": case(
        "y = Slice(x, s, e, a, t)", (1, 4, 7, 9), s=[1, -8], e=[6, MAX], a=[2, 3], t=[2, 3]
    ),
    "slice_channels": case(
        "y = Slice(x, s, e, a, t)", (1, 4, 6, 8), s=[1, -6], e=[1000, -1], a=[1, -1], t=[2, 1]
    ),
    "slice_backwards": case(
        "y = Slice(x, s, e, a, s)",
        s=[-1],
        e=[-MAX - 1],
        a=[1],
        refused={"coreml": "it steps backwards", "tflite": "a negative step reverses an axis"},
    ),
    "reshape_heads": case("y = Reshape(x, s)", (1, 4, 7, 9), s=[0, 2, -1, 9]),
    "flatten_pooled": case("p = GlobalAveragePool(x) y = Flatten(p)"),
    "flatten_pooled_gemm": case("p = GlobalAveragePool(x) f = Flatten(p) y = Gemm<transB=1>(f, w)", w=(4, 6)),
    "flatten_map": case("y = Flatten(x)"),
    "flatten_map_gemm": case(  # VGG's head: the weight's columns move instead of the map
        "r = Tanh(x) f = Flatten(r) y = Gemm<transB=1>(f, w)", w=(4, 210)
    ),
    "flatten_from_rows": case("y = Flatten<axis=2>(x)"),
    "squeeze": case("p = GlobalAveragePool(x) y = Squeeze(p, a)", a=[2, 3], refused=lacking("gpu")),
    "squeeze_unsqueeze": case(
        "p = GlobalAveragePool(x) s = Squeeze(p, a) y = Unsqueeze(s, b)",
        a=[2, 3],
        b=[-1],
        refused=lacking("gpu"),
    ),
    "unsqueeze": case("f = Flatten(x) y = Unsqueeze(f, a)", (1, 6, 1, 1), a=[2, 3], refused=lacking("gpu")),
    "unsqueeze_rank5": case("y = Unsqueeze(x, a)", a=[1], refused=lacking("gpu")),
    "transpose": case("y = Transpose<perm=[0,2,3,1]>(x)"),
    "transpose_output": case("r = Relu(x) y = Transpose<perm=[0,2,3,1]>(r)"),
    "pad_zero": case("y = Pad(x, p)", p=[0, 0, 1, 2, 0, 0, 2, 1]),
    "pad_zero_axes": case("y = Pad(x, p, , a)", (1, 4, 7, 9), p=[1, 2, 3, 1], a=[2, 3]),
    "pad_value": case("y = Pad(x, p, v)", (1, 4, 7, 9), p=[0, 0, 1, 2, 0, 0, 3, 1], v=-0.6),
    "pad_value_axes": case("y = Pad(x, p, v, a)", p=[1, 1], v=0.7, a=[3]),
    "pad_value_channels": case("y = Pad(x, p, v)", (1, 4, 6, 8), p=[0, 1, 2, 0, 0, 0, 1, 3], v=0.5),
    "pad_reflect": case('y = Pad<mode="reflect">(x, p)', p=[0, 0, 1, 1, 0, 0, 1, 1]),
    "pad_reflect_uneven": case('y = Pad<mode="reflect">(x, p)', (1, 4, 7, 9), p=[0, 0, 1, 2, 0, 0, 3, 1]),
    "pad_edge": case(
        'y = Pad<mode="edge">(x, p)',
        (1, 4, 7, 9),
        p=[0, 0, 1, 2, 0, 0, 3, 1],
        refused={"tflite": "no padding mode 'edge'"},
    ),
    "pad_edge_axes": case(
        'y = Pad<mode="edge">(x, p, , a)',
        (1, 4, 6, 8),
        p=[1, 2, 3, 4],
        a=[2, 3],
        refused={"tflite": "no padding mode 'edge'"},
    ),
}

CASES: dict[str, Case] = {
    **WINDOWS,
    **PRODUCTS,
    **ACTIVATIONS,
    **ARITHMETIC,
    **SHAPES,
    **RESIZES,
    **op_rows_values.CASES,
}
