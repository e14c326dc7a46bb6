"""ONNX text -> the operators TensorFlow Lite should get: one row per lowering and variant."""

from __future__ import annotations

import numpy as np
from tflite_helpers import weights

i64 = np.int64


def unary(op: str, shape: str = "1,6,5,7") -> str:
    return f"g (float[{shape}] x) => (float[{shape}] y) {{ y = {op} (x) }}"


def window(op: str, size: str, out: str, operands: str = "x") -> str:
    return f"g (float[{size}] x) => (float[{out}] y) {{ y = {op} ({operands}) }}"


W3 = weights(12, 6, 3, 3)
B12 = weights(12)
CASES = {
    # Conv: padding as SAME where it is the same, else PAD
    "conv_same": (
        window("Conv<pads=[1,1,1,1]>", "1,6,9,9", "1,12,9,9", "x, w, b"),
        {"w": W3, "b": B12},
        "CONV_2D",
    ),
    "conv_no_bias": (window("Conv<pads=[1,1,1,1]>", "1,6,9,9", "1,12,9,9", "x, w"), {"w": W3}, "CONV_2D"),
    "conv_stride2_even": (
        window("Conv<pads=[1,1,1,1],strides=[2,2]>", "1,6,8,10", "1,12,4,5", "x, w, b"),
        {"w": W3, "b": B12},
        "PAD CONV_2D",
    ),
    "conv_stride2_odd": (
        window("Conv<pads=[1,1,1,1],strides=[2,2]>", "1,6,9,11", "1,12,5,6", "x, w, b"),
        {"w": W3, "b": B12},
        "CONV_2D",
    ),
    "conv_stride2_1x1": (
        window("Conv<strides=[2,2]>", "1,6,8,8", "1,4,4,4", "x, w"),
        {"w": weights(4, 6, 1, 1)},
        "CONV_2D",
    ),
    "conv_asymmetric": (
        window("Conv<pads=[0,2,1,0]>", "1,6,9,9", "1,12,8,9", "x, w, b"),
        {"w": W3, "b": B12},
        "PAD CONV_2D",
    ),
    "conv_same_upper": (
        window('Conv<auto_pad="SAME_UPPER",strides=[2,2]>', "1,6,8,8", "1,12,4,4", "x, w, b"),
        {"w": W3, "b": B12},
        "CONV_2D",
    ),
    "conv_dilated": (
        window("Conv<pads=[2,2,2,2],dilations=[2,2]>", "1,6,9,9", "1,12,9,9", "x, w, b"),
        {"w": W3, "b": B12},
        "CONV_2D",
    ),
    "conv_dilated_stride2": (
        window("Conv<pads=[2,2,2,2],dilations=[2,2],strides=[2,2]>", "1,6,10,10", "1,12,5,5", "x, w"),
        {"w": W3},
        "PAD CONV_2D",
    ),
    "conv_1x5": (
        window("Conv<pads=[0,2,0,2]>", "1,6,9,9", "1,4,9,9", "x, w"),
        {"w": weights(4, 6, 1, 5)},
        "CONV_2D",
    ),
    "conv_grouped": (
        window("Conv<pads=[1,1,1,1],group=3>", "1,6,9,9", "1,12,9,9", "x, w, b"),
        {"w": weights(12, 2, 3, 3), "b": B12},
        "CONV_2D",
    ),
    "conv_depthwise": (
        window("Conv<pads=[1,1,1,1],group=6,strides=[2,2]>", "1,6,8,8", "1,6,4,4", "x, w"),
        {"w": weights(6, 1, 3, 3)},
        "PAD DEPTHWISE_CONV_2D",
    ),
    "conv_depthwise_multiplier": (
        window("Conv<pads=[2,2,2,2],group=6,dilations=[2,2]>", "1,6,9,9", "1,12,9,9", "x, w, b"),
        {"w": weights(12, 1, 3, 3), "b": B12},
        "DEPTHWISE_CONV_2D",
    ),
    "conv_gray": (
        window("Conv<pads=[1,1,1,1]>", "1,1,9,9", "1,4,9,9", "x, w"),
        {"w": weights(4, 1, 3, 3)},
        "CONV_2D",
    ),
    # ConvTranspose: SAME, VALID, or VALID and a crop
    "deconv_2x2": (
        window("ConvTranspose<strides=[2,2]>", "1,6,5,4", "1,3,10,8", "x, w, b"),
        {"w": weights(6, 3, 2, 2), "b": weights(3)},
        "TRANSPOSE_CONV",
    ),
    "deconv_4x4_pad1": (
        window("ConvTranspose<strides=[2,2],pads=[1,1,1,1]>", "1,6,5,4", "1,3,10,8", "x, w"),
        {"w": weights(6, 3, 4, 4)},
        "TRANSPOSE_CONV",
    ),
    "deconv_output_padding": (
        window(
            "ConvTranspose<strides=[2,2],pads=[1,1,1,1],output_padding=[1,1]>", "1,6,5,4", "1,3,10,8", "x, w"
        ),
        {"w": weights(6, 3, 3, 3)},
        "TRANSPOSE_CONV SLICE",
    ),
    "deconv_grouped_dilated": (
        window("ConvTranspose<group=2,dilations=[2,2],pads=[1,1,1,1]>", "1,6,5,5", "1,4,7,7", "x, w"),
        {"w": weights(6, 2, 3, 3)},
        "TRANSPOSE_CONV SLICE",
    ),
    # pools
    "maxpool": (window("MaxPool<kernel_shape=[2,2],strides=[2,2]>", "1,6,8,8", "1,6,4,4"), {}, "MAX_POOL_2D"),
    "maxpool_same": (
        window("MaxPool<kernel_shape=[5,5],pads=[2,2,2,2]>", "1,6,9,9", "1,6,9,9"),
        {},
        "MAX_POOL_2D",
    ),
    "maxpool_padded": (
        window("MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>", "1,6,8,8", "1,6,4,4"),
        {},
        "PADV2 MAX_POOL_2D",
    ),
    "maxpool_ceil": (
        window("MaxPool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>", "1,6,8,8", "1,6,4,4"),
        {},
        "MAX_POOL_2D",
    ),
    "maxpool_after_relu": (
        "g (float[1,6,8,8] x) => (float[1,6,4,4] y)"
        "{ r = Relu (x) y = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]> (r) }",
        {},
        "RELU PAD MAX_POOL_2D",
    ),
    "avgpool_excluding": (
        window("AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>", "1,6,9,9", "1,6,9,9"),
        {},
        "AVERAGE_POOL_2D",
    ),
    "avgpool_including": (
        window("AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>", "1,6,9,9", "1,6,9,9"),
        {},
        "PAD AVERAGE_POOL_2D",
    ),
    "avgpool_stride2": (
        window("AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>", "1,6,8,8", "1,6,4,4"),
        {},
        "PAD AVERAGE_POOL_2D MUL",
    ),
    "avgpool_ceil": (
        window("AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>", "1,6,7,7", "1,6,4,4"),
        {},
        "AVERAGE_POOL_2D",
    ),
    "global_average": (window("GlobalAveragePool", "1,6,5,7", "1,6,1,1"), {}, "MEAN"),
    "global_max": (window("GlobalMaxPool", "1,6,5,7", "1,6,1,1"), {}, "MAX_POOL_2D"),
    # products
    "gemm": (
        "g (float[1,20] x) => (float[1,12] y) { y = Gemm<transB=1> (x, w, b) }",
        {"w": weights(12, 20), "b": B12},
        "FULLY_CONNECTED",
    ),
    "gemm_scaled": (
        "g (float[1,20] x) => (float[1,12] y) { y = Gemm<alpha=0.5,beta=2.0> (x, w, b) }",
        {"w": weights(20, 12), "b": B12[None]},
        "FULLY_CONNECTED",
    ),
    "matmul_constant": (
        "g (float[1,9,20] x) => (float[1,9,12] y) { y = MatMul (x, w) }",
        {"w": weights(20, 12)},
        "FULLY_CONNECTED",
    ),
    "matmul_tokens": (  # [1, C, H, W] -> [1, HW, C] costs nothing in NHWC
        "g (float[1,8,3,4] x) => (float[1,12,5] y)"
        "{ a = Reshape (x, s) b = Transpose<perm=[0,2,1]> (a) y = MatMul (b, w) }",
        {"s": np.array([0, 8, 12], i64), "w": weights(8, 5)},
        "RESHAPE FULLY_CONNECTED",
    ),
    "matmul_computed": (
        "g (float[1,2,7,5] x) => (float[1,2,7,7] y) { t = Transpose<perm=[0,1,3,2]> (x) y = MatMul (x, t) }",
        {},
        "TRANSPOSE TRANSPOSE BATCH_MATMUL TRANSPOSE",
    ),
    # activations
    "relu": (unary("Relu"), {}, "RELU"),
    "clip6": (unary("Clip").replace("(x)", "(x, l, h)"), {"l": np.float32(0), "h": np.float32(6)}, "RELU6"),
    "clip_odd": (
        unary("Clip").replace("(x)", "(x, l, h)"),
        {"l": np.float32(-0.3), "h": np.float32(0.8)},
        "MAXIMUM MINIMUM",
    ),
    "clip_low": (unary("Clip").replace("(x)", "(x, l)"), {"l": np.float32(-0.3)}, "MAXIMUM"),
    "leaky": (unary("LeakyRelu<alpha=0.1>"), {}, "LEAKY_RELU"),
    "gelu": (unary("Gelu"), {}, "GELU"),
    "gelu_tanh": (unary('Gelu<approximate="tanh">'), {}, "GELU"),
    "sigmoid": (unary("Sigmoid"), {}, "LOGISTIC"),
    "hard_sigmoid": (unary("HardSigmoid<alpha=0.16666667>"), {}, "ADD MUL"),
    "hard_sigmoid_onnx": (unary("HardSigmoid"), {}, "MUL ADD MUL"),
    "hard_swish": (unary("HardSwish"), {}, "HARD_SWISH"),
    "tanh": (unary("Tanh"), {}, "TANH"),
    "softmax_rows": (unary("Softmax", "1,20"), {}, "SOFTMAX"),
    "softmax_channels": (unary("Softmax<axis=1>"), {}, "SOFTMAX"),
    "softmax_width": (unary("Softmax<axis=-1>"), {}, "TRANSPOSE SOFTMAX TRANSPOSE"),
    "elu": (unary("Elu"), {}, "ELU"),
    "prelu": (window("PRelu", "1,6,5,7", "1,6,5,7", "x, w"), {"w": weights(6, 1, 1)}, "PRELU"),
    "log_softmax": (unary("LogSoftmax", "1,20"), {}, "LOG_SOFTMAX"),
    "exp": (unary("Exp"), {}, "EXP"),
    "sqrt_of_abs": ("g (float[1,20] x) => (float[1,20] y) { a = Abs (x) y = Sqrt (a) }", {}, "ABS SQRT"),
    "neg": (unary("Neg"), {}, "NEG"),
    # elementwise with broadcasting
    "square": (window("Pow", "1,6,5,7", "1,6,5,7", "x, w"), {"w": np.float32(2)}, "SQUARE"),
    "cube": (window("Pow", "1,6,5,7", "1,6,5,7", "x, w"), {"w": np.float32(3)}, "POW"),
    "min": (window("Min", "1,6,5,7", "1,6,5,7", "x, w"), {"w": weights(6, 1, 1)}, "MINIMUM"),
    "max_of_three": (
        window("Max", "1,6,5,7", "1,6,5,7", "x, v, w"),
        {"v": weights(6, 1, 1), "w": weights(7)},
        "MAXIMUM MAXIMUM",
    ),
    "add_channel": (window("Add", "1,6,5,7", "1,6,5,7", "x, w"), {"w": weights(6, 1, 1)}, "ADD"),
    "sub_from": (window("Sub", "1,6,5,7", "1,6,5,7", "w, x"), {"w": weights(1, 6, 5, 7)}, "SUB"),
    "mul_scalar": (window("Mul", "1,6,5,7", "1,6,5,7", "x, w"), {"w": np.float32(1.7)}, "MUL"),
    "div_width": (window("Div", "1,6,5,7", "1,6,5,7", "x, w"), {"w": 2 + np.abs(weights(7))}, "DIV"),
    "squeeze_excite": (
        "g (float[1,6,5,7] x) => (float[1,6,5,7] y)"
        "{ p = GlobalAveragePool (x) s = Sigmoid (p) y = Mul (x, s) }",
        {},
        "MEAN LOGISTIC MUL",
    ),
    "add_lower_rank": (  # [1, 7] next to [1, 6, 5, 7] is per width
        "g (float[1,6,5,7] x) => (float[1,6,5,7] y)"
        "{ m = ReduceMean<keepdims=0> (x, a) v = Tanh (m) y = Add (x, v) }",
        {"a": np.array([1, 2], i64)},
        "MEAN TANH RESHAPE RESHAPE ADD",
    ),
    "batch_norm": (
        window("BatchNormalization<epsilon=0.001>", "1,6,5,7", "1,6,5,7", "x, s, b, m, v"),
        {
            "s": weights(6),
            "b": weights(6, seed=1),
            "m": weights(6, seed=2),
            "v": 0.1 + np.abs(weights(6, seed=3)),
        },
        "MUL ADD",
    ),
    "reduce_mean_channels": (
        "g (float[1,6,5,7] x) => (float[1,1,5,7] y) { y = ReduceMean (x, a) }",
        {"a": np.array([1], i64)},
        "MEAN",
    ),
    "reduce_mean_flat": (
        "g (float[1,6,5,7] x) => (float[1,6] y) { y = ReduceMean<keepdims=0> (x, a) }",
        {"a": np.array([-1, -2], i64)},
        "MEAN",
    ),
    "reduce_sum": (
        "g (float[1,6,5,7] x) => (float[1,6,7] y) { y = ReduceSum<keepdims=0> (x, a) }",
        {"a": np.array([2], i64)},
        "SUM TRANSPOSE",
    ),
    "reduce_max": (
        "g (float[1,6,5,7] x) => (float[1,6,1,1] y) { y = ReduceMax (x, a) }",
        {"a": np.array([2, 3], i64)},
        "REDUCE_MAX",
    ),
    # moving elements
    "depth_to_space": (window("DepthToSpace<blocksize=2>", "1,8,3,4", "1,2,6,8"), {}, "DEPTH_TO_SPACE"),
    "pixel_shuffle_node": (
        window('DepthToSpace<blocksize=2,mode="CRD">', "1,8,3,4", "1,2,6,8"),
        {},
        "RESHAPE TRANSPOSE RESHAPE",
    ),
    "space_to_depth": (window("SpaceToDepth<blocksize=2>", "1,3,6,8", "1,12,3,4"), {}, "SPACE_TO_DEPTH"),
    "concat": (
        "g (float[1,6,5,7] x) => (float[1,14,5,7] y) { r = Relu (x) y = Concat<axis=1> (x, r, w) }",
        {"w": weights(1, 2, 5, 7)},
        "RELU CONCATENATION",
    ),
    "concat_height": (
        "g (float[1,6,5,7] x) => (float[1,6,10,7] y) { r = Tanh (x) y = Concat<axis=2> (x, r) }",
        {},
        "TANH CONCATENATION",
    ),
    "split_even": (
        "g (float[1,6,5,7] x) => (float[1,3,5,7] y, float[1,3,5,7] z)"
        "{ y, z = Split<axis=1,num_outputs=2> (x) }",
        {},
        "SPLIT",
    ),
    "split_uneven": (
        "g (float[1,6,5,7] x) => (float[1,2,5,7] y, float[1,4,5,7] z) { y, z = Split<axis=1> (x, s) }",
        {"s": np.array([2, 4], i64)},
        "SLICE SLICE",
    ),
    "slice": (
        "g (float[1,6,5,7] x) => (float[1,3,5,4] y) { y = Slice (x, s, e, a) }",
        {"s": np.array([2, -5], i64), "e": np.array([5, -1], i64), "a": np.array([1, 3], i64)},
        "SLICE",
    ),
    "slice_steps": (
        "g (float[1,6,5,7] x) => (float[1,6,3,3] y) { y = Slice (x, s, e, a, t) }",
        {
            "s": np.array([0, 1], i64),
            "e": np.array([2**62, 2**62], i64),
            "a": np.array([2, 3], i64),
            "t": np.array([2, 2], i64),
        },
        "STRIDED_SLICE",
    ),
    "flatten_pooled": (
        "g (float[1,6,5,7] x) => (float[1,6] y) { p = GlobalAveragePool (x) y = Flatten (p) }",
        {},
        "MEAN RESHAPE",
    ),
    "flatten_pooled_gemm": (
        "g (float[1,6,5,7] x) => (float[1,4] y)"
        "{ p = GlobalAveragePool (x) f = Flatten (p) y = Gemm<transB=1> (f, w) }",
        {"w": weights(4, 6)},
        "MEAN FULLY_CONNECTED",
    ),
    "flatten_map": (unary("Flatten").replace("float[1,6,5,7] y", "float[1,210] y"), {}, "TRANSPOSE RESHAPE"),
    "flatten_map_gemm": (  # VGG's head: the weight's columns move instead of the map
        "g (float[1,6,5,7] x) => (float[1,4] y) { r = Tanh (x) f = Flatten (r) y = Gemm<transB=1> (f, w) }",
        {"w": weights(4, 210)},
        "TANH FULLY_CONNECTED",
    ),
    "squeeze": (
        "g (float[1,6,5,7] x) => (float[1,6] y) { p = GlobalAveragePool (x) y = Squeeze (p, a) }",
        {"a": np.array([2, 3], i64)},
        "MEAN RESHAPE",
    ),
    "unsqueeze": (
        "g (float[1,6] x) => (float[1,6,1,1] y) { y = Unsqueeze (x, a) }",
        {"a": np.array([2, 3], i64)},
        "RESHAPE",
    ),
    "channel_shuffle": (
        "g (float[1,6,5,7] x) => (float[1,6,5,7] y)"
        "{ a = Reshape (x, s) b = Transpose<perm=[0,2,1,3,4]> (a) y = Reshape (b, t) }",
        {"s": np.array([0, 2, 3, 5, 7], i64), "t": np.array([0, 6, 5, 7], i64)},
        "RESHAPE TRANSPOSE RESHAPE",
    ),
    "pixel_shuffle": (
        "g (float[1,8,3,4] x) => (float[1,2,6,8] y)"
        "{ a = Reshape (x, s) b = Transpose<perm=[0,1,4,2,5,3]> (a) y = Reshape (b, t) }",
        {"s": np.array([0, 2, 2, 2, 3, 4], i64), "t": np.array([0, 2, 6, 8], i64)},
        None,
    ),
    "transpose_output": (
        "g (float[1,6,5,7] x) => (float[1,5,7,6] y) { r = Relu (x) y = Transpose<perm=[0,2,3,1]> (r) }",
        {},
        None,
    ),
    "pad_zero": (
        "g (float[1,6,5,7] x) => (float[1,6,8,10] y) { y = Pad (x, p) }",
        {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1], i64)},
        "PAD",
    ),
    "pad_value_axes": (
        "g (float[1,6,5,7] x) => (float[1,6,5,9] y) { y = Pad (x, p, v, a) }",
        {"p": np.array([1, 1], i64), "v": np.float32(0.7), "a": np.array([3], i64)},
        "PADV2",
    ),
    "pad_reflect": (
        'g (float[1,6,5,7] x) => (float[1,6,7,9] y) { y = Pad<mode="reflect"> (x, p) }',
        {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64)},
        "MIRROR_PAD",
    ),
}

RESIZES = {
    "nearest_2x": ("nearest", "asymmetric", "floor", (10, 14), "CONCATENATION RESHAPE CONCATENATION RESHAPE"),
    "nearest_half_pixel": ("nearest", "half_pixel", "round_prefer_floor", (15, 14), None),
    "nearest_odd": ("nearest", "asymmetric", "floor", (7, 9), "RESIZE_NEAREST_NEIGHBOR"),
    "nearest_ceil": ("nearest", "asymmetric", "ceil", (8, 9), "GATHER GATHER"),
    "nearest_corners": ("nearest", "align_corners", "round_prefer_ceil", (8, 9), "RESIZE_NEAREST_NEIGHBOR"),
    "bilinear_half": ("linear", "half_pixel", "floor", (10, 14), "RESIZE_BILINEAR"),
    "bilinear_torch_down": ("linear", "pytorch_half_pixel", "floor", (3, 4), "RESIZE_BILINEAR"),
    "bilinear_corners": ("linear", "align_corners", "floor", (11, 9), "RESIZE_BILINEAR"),
    "bilinear_asymmetric": ("linear", "asymmetric", "floor", (10, 21), "RESIZE_BILINEAR"),
}
for name, (mode, transform, rounding, (height, width), ops) in RESIZES.items():
    attributes = f'mode="{mode}",coordinate_transformation_mode="{transform}",nearest_mode="{rounding}"'
    text = (
        f"g (float[1,6,5,7] x) => (float[1,6,{height},{width}] y) {{ y = Resize<{attributes}> (x, , , s) }}"
    )
    CASES[name] = (text, {"s": np.array([1, 6, height, width], i64)}, ops)
