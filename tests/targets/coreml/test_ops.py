"""Every row of the Core ML lowering table: what it becomes in MIL, its numbers, and what it refuses.

A case is one graph in ONNX text; weights are drawn from their shapes. The saved package is read back and
run, and compared with onnxruntime.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from coreml_helpers import graph, job, mil_ops, reference, sample

from repedge.targets import qdq
from repedge.targets.coreml.ops import LOWERINGS
from repedge.targets.coreml.target import CoreML

W34 = {"w": (4, 4, 3, 3), "b": (4,)}

# name: (body, MIL ops, keyword arguments of `graph`)
CASES = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(x, w, b)", ["conv"], {"weights": W34}),
    "conv_without_bias": ("y = Conv(x, w)", ["conv"], {"weights": {"w": (5, 4, 1, 1)}}),
    "conv_asymmetric": (
        "y = Conv<pads=[0,1,2,3], strides=[2,1], dilations=[1,2]>(x, w, b)",
        ["conv"],
        {"weights": W34},
    ),
    "conv_same_upper": (
        'y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w, b)',
        ["conv"],
        {"weights": W34},
    ),
    "conv_grouped": ("y = Conv<group=2, pads=[1,1,1,1]>(x, w)", ["conv"], {"weights": {"w": (6, 2, 3, 3)}}),
    "conv_depthwise": ("y = Conv<group=4, pads=[2,2,2,2]>(x, w)", ["conv"], {"weights": {"w": (4, 1, 5, 5)}}),
    "conv_transpose": (
        "y = ConvTranspose<strides=[2,2]>(x, w, b)",
        ["conv_transpose"],
        {"weights": {"w": (4, 3, 2, 2), "b": (3,)}},
    ),
    "conv_transpose_output_padding": (
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1], group=2>(x, w)",
        ["conv_transpose"],
        {"weights": {"w": (4, 3, 3, 3)}},
    ),
    "gemm": (
        "y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)",
        ["linear"],
        {"given": "float[1,6] x", "weights": {"w": (3, 6), "b": (3,)}},
    ),
    "gemm_scalar_bias": (
        "y = Gemm(x, w, b)",
        ["linear"],
        {"given": "float[1,6] x", "weights": {"w": (6, 3), "b": (1,)}},
    ),
    "matmul_constant": (
        "y = MatMul(x, w)",
        ["linear"],
        {"given": "float[1,5,6] x", "weights": {"w": (6, 3)}},
    ),
    "matmul": ("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", ["transpose", "matmul"], {}),
    "batch_norm": (
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        ["mul", "add"],
        {"weights": {"s": (4,), "b": (4,), "m": (4,), "v": np.array([0.1, 1, 2, 30])}},
    ),
    "relu": ("y = Relu(x)", ["relu"], {}),
    "relu6": ("y = Clip(x, lo, hi)", ["relu6"], {"constants": "float lo = {0}, float hi = {6}"}),
    "clip_min_0": ("y = Clip(x, lo)", ["relu"], {"constants": "float lo = {0}"}),
    "clip": ("y = Clip(x, lo, hi)", ["clip"], {"constants": "float lo = {-1.5}, float hi = {0.5}"}),
    "clip_max": ("y = Clip(x, , hi)", ["clip"], {"constants": "float hi = {0.5}"}),
    "leaky_relu": ("y = LeakyRelu<alpha=0.1>(x)", ["leaky_relu"], {}),
    "prelu": ("y = PRelu(x, s)", ["prelu"], {"weights": {"s": (4, 1, 1)}}),
    "prelu_scalar": ("y = PRelu(x, s)", ["prelu"], {"weights": {"s": (1,)}}),
    "elu": ("y = Elu<alpha=0.5>(x)", ["elu"], {}),
    "gelu": ("y = Gelu(x)", ["gelu"], {}),
    "gelu_tanh": ('y = Gelu<approximate="tanh">(x)', ["gelu"], {}),
    "sigmoid": ("y = Sigmoid(x)", ["sigmoid"], {}),
    "hard_sigmoid": ("y = HardSigmoid<alpha=0.16666667>(x)", ["sigmoid_hard"], {}),
    "hard_swish": ("y = HardSwish(x)", ["sigmoid_hard", "mul"], {}),
    "silu": ("s = Sigmoid(x) y = Mul(s, x)", ["silu"], {}),
    "silu_shared_sigmoid": ("s = Sigmoid(x) t = Mul(x, s) y = Add(t, s)", ["sigmoid", "silu", "add"], {}),
    "tanh": ("y = Tanh(x)", ["tanh"], {}),
    "erf": ("y = Erf(x)", ["erf"], {}),
    "softmax": ("y = Softmax(x)", ["softmax"], {}),
    "softmax_channels": ("y = Softmax<axis=1>(x)", ["softmax"], {}),
    "add_channel": ("y = Add(x, b)", ["add"], {"weights": {"b": (4, 1, 1)}}),
    "sub_scalar": ("y = Sub(c, x)", ["sub"], {"constants": "float c = {1.5}"}),
    "mul_gate": ("g = GlobalAveragePool(x) y = Mul(x, g)", ["reduce_mean", "mul"], {}),
    "div": ("y = Div(x, c)", ["real_div"], {"constants": "float c = {3.0}"}),
    "max": ("y = Max(x, c)", ["maximum"], {"constants": "float c = {0.25}"}),
    "max_of_three": (
        "y = Max(x, c, d)",
        ["maximum", "maximum"],
        {"constants": "float c = {0.25}, float d = {0.5}"},
    ),
    "min": ("y = Min(x, c)", ["minimum"], {"constants": "float c = {0.25}"}),
    "pow_abs_exp_sqrt": (
        "a = Abs(x) s = Sqrt(a) p = Pow(s, c) m = Mul(x, k) e = Exp(m) y = Add(p, e)",
        ["abs", "sqrt", "pow", "mul", "exp", "add"],
        {"constants": "float c = {3.0}, float k = {0.5}"},
    ),
    "max_pool": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", ["max_pool"], {}),
    "max_pool_ceil": ("y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)", ["max_pool"], {}),
    "max_pool_ceil_padded": (
        "y = MaxPool<kernel_shape=[2,3], strides=[2,2], pads=[0,1,1,0], ceil_mode=1>(x)",
        ["max_pool"],
        {"given": "float[1,4,7,8] x"},
    ),
    "average_pool": ("y = AveragePool<kernel_shape=[3,3], pads=[1,0,1,2]>(x)", ["avg_pool"], {}),
    "average_pool_counting": (
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        ["avg_pool"],
        {},
    ),
    "average_pool_ceil": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x)",
        ["avg_pool"],
        {},
    ),
    "global_max_pool": ("y = GlobalMaxPool(x)", ["reduce_max"], {}),
    "reduce_mean": (
        "y = ReduceMean<keepdims=0>(x, a)",
        ["reduce_mean"],
        {"constants": "int64[2] a = {-1, 1}"},
    ),
    "reduce_all": ("y = ReduceSum(x)", ["reduce_sum"], {}),
    "reduce_max": ("y = ReduceMax<keepdims=1>(x, a)", ["reduce_max"], {"constants": "int64[1] a = {1}"}),
    "concat": (
        "r = Relu(x) y = Concat<axis=-3>(x, r, c)",
        ["relu", "concat"],
        {"weights": {"c": (1, 2, 6, 8)}},
    ),
    "split": (
        "a, b = Split<axis=1>(x, s) y = Concat<axis=1>(b, a)",
        ["split", "concat"],
        {"constants": "int64[2] s = {1, 3}"},
    ),
    "split_equal": ("a, b = Split<axis=3, num_outputs=2>(x) y = Sub(a, b)", ["split", "sub"], {}),
    "slice": (
        "y = Slice(x, s, e, a, k)",
        ["slice_by_index"],
        {"constants": "int64[2] s={1,-6}, int64[2] e={1000,-1}, int64[2] a={1,-1}, int64[2] k={2,1}"},
    ),
    "channel_shuffle": (
        "a = Reshape(x, s) t = Transpose<perm=[0,2,1,3,4]>(a) y = Reshape(t, r)",
        ["reshape", "transpose", "reshape"],
        {"constants": "int64[5] s = {0, 2, 2, 6, 8}, int64[4] r = {0, 4, 6, 8}"},
    ),
    "flatten": ("y = Flatten(x)", ["reshape"], {}),
    "squeeze": (
        "g = GlobalAveragePool(x) s = Squeeze(g, a) y = Unsqueeze(s, b)",
        ["reduce_mean", "squeeze", "expand_dims"],
        {"constants": "int64[2] a = {2, 3}, int64[1] b = {-1}"},
    ),
    "depth_to_space": ("y = DepthToSpace<blocksize=2>(x)", ["depth_to_space"], {}),
    "space_to_depth": ("y = SpaceToDepth<blocksize=2>(x)", ["space_to_depth"], {}),
    "pixel_shuffle": ('y = DepthToSpace<blocksize=2, mode="CRD">(x)', ["pixel_shuffle"], {}),
    "pad": ("y = Pad(x, p, v)", ["pad"], {"constants": "int64[8] p = {0,1,2,0,0,0,1,3}, float v = {0.5}"}),
    "pad_reflect": (
        'y = Pad<mode="reflect">(x, p)',
        ["pad"],
        {"constants": "int64[8] p = {0,0,2,1,0,0,1,3}"},
    ),
    "pad_edge": (
        'y = Pad<mode="edge">(x, p, , a)',
        ["pad"],
        {"constants": "int64[4] p = {1,2,3,4}, int64[2] a = {2,3}"},
    ),
}

LINEAR = 'mode="linear", coordinate_transformation_mode='
RESIZES = {
    "nearest_torch": (
        'coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        (12, 24),
        "upsample_nearest_neighbor",
    ),
    "nearest_half_pixel": ('mode="nearest"', (12, 16), "upsample_nearest_neighbor"),
    "linear_half_pixel": ('mode="linear"', (12, 16), "upsample_bilinear"),
    "linear_pytorch": (f'{LINEAR}"pytorch_half_pixel"', (9, 13), "resize_bilinear"),
    "linear_align": (f'{LINEAR}"align_corners"', (18, 24), "upsample_bilinear"),
    "linear_align_down": (f'{LINEAR}"align_corners"', (4, 5), "resize_bilinear"),
    "linear_asymmetric": (f'{LINEAR}"asymmetric"', (9, 16), "resize_bilinear"),
}
for key, (attributes, (h, w), op) in RESIZES.items():
    sizes = f"int64[4] size = {{1, 4, {h}, {w}}}"
    CASES[f"resize_{key}"] = (f"y = Resize<{attributes}>(x, , , size)", [op], {"constants": sizes})


@pytest.mark.parametrize("case", CASES)
def test_lowering_keeps_the_function(case, tmp_path):
    body, expected_ops, arguments = CASES[case]
    model = graph(body, **arguments)
    clean = ir.from_proto(model)
    x = sample(model)
    (expected,) = reference(model, x)
    scale = float(np.abs(expected).max())
    for precision, tolerance in (("fp32", 2e-6), ("fp16", 4e-3)):
        out = tmp_path / precision
        out.mkdir()
        artifact = CoreML().compile(clean, job(precision), out)
        package = out / artifact.main
        assert mil_ops(package) == expected_ops
        (actual,) = CoreML().open(package, job(precision), ["y"]).run(x)
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def test_every_row_has_a_case():
    used = {node.op_type for body, _, kwargs in CASES.values() for node in graph(body, **kwargs).graph.node}
    assert set(LOWERINGS) == used | qdq.NAMES  # those have tests of their own


REFUSALS = {
    "conv_computed_weight": ("y = Conv(x, x)", {"given": "float[1,1,6,6] x"}, "is computed, not a constant"),
    "conv_1d": (
        "y = Conv(x, w)",
        {"given": "float[1,4,8] x", "weights": {"w": (4, 4, 3)}},
        "only 2-D is supported",
    ),
    "gemm_trans_a": (
        "y = Gemm<transA=1>(x, w)",
        {"given": "float[1,6] x", "weights": {"w": (1, 3)}},
        "transA",
    ),
    "clip_empty": ("y = Clip(x, lo, hi)", {"constants": "float lo = {1}, float hi = {0}"}, "min 1, max 0"),
    "pool_dilated": ("y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)", {}, "dilated by (2, 2)"),
    "pool_window_without_a_cell": (
        "y = MaxPool<kernel_shape=[1,1], strides=[3,3], ceil_mode=1>(x)",
        {"given": "float[1,1,5,5] x"},
        "last windows lie outside the image",
    ),
    "pool_overhang": (
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1>(x)",
        {},
        "reach beyond the padding",
    ),
    "slice_backwards": (
        "y = Slice(x, s, e, a, k)",
        {"constants": "int64[1] s = {5}, int64[1] e = {0}, int64[1] a = {2}, int64[1] k = {-1}"},
        "steps backwards",
    ),
    "rank_6": (
        "y = Reshape(x, s)",
        {"constants": "int64[6] s = {0, 2, 2, 2, 3, 8}"},
        "6 axes; Core ML allows 5",
    ),
    "pad_wrap": ('y = Pad<mode="wrap">(x, p)', {"constants": "int64[8] p = {0,0,1,1,0,0,1,1}"}, "'wrap'"),
    "pad_crop": ("y = Pad(x, p)", {"constants": "int64[8] p = {0,0,-1,0,0,0,0,0}"}, "negative padding"),
    "prelu_per_column": (
        "y = PRelu(x, s)",
        {"weights": {"s": (8,)}},
        "slope of shape (8,) is not one per channel",
    ),
    "max_of_one": ("y = Max(x)", {}, "a single input"),
    "output_padding": (
        "y = ConvTranspose<strides=[2,2], output_padding=[1,1]>(x, w)",
        {"weights": {"w": (4, 3, 3, 3)}},
        "exceeds its end padding (0, 0)",
    ),
    "resize_cubic": (
        'y = Resize<mode="cubic">(x, , , size)',
        {"constants": "int64[4] size = {1, 4, 12, 16}"},
        "mode is 'cubic'",
    ),
    "resize_nearest_fraction": (
        "y = Resize(x, , , size)",
        {"constants": "int64[4] size = {1, 4, 9, 12}"},
        "nearest (6, 8) to (9, 12) with half_pixel, round_prefer_floor has no equal",
    ),
    "resize_antialias": (
        'y = Resize<mode="linear", antialias=1>(x, , , size)',
        {"constants": "int64[4] size = {1, 4, 3, 4}"},
        "antialiasing",
    ),
    "no_lowering": ("y = Sin(x)", {}, "no lowering for it yet"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_says_why(case):
    body, arguments, reason = REFUSALS[case]
    (found,) = CoreML().unsupported(ir.from_proto(graph(body, **arguments)))
    assert found.node == "node0"
    assert reason in found.why


def test_resize_scale_that_is_not_the_ratio_of_sizes_is_refused():
    body = 'y = Resize<mode="linear">(x, , scales)'
    model = graph(body, constants="float[4] scales = {1, 1, 1.6, 1.6}")
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 4, 9, 12]
    (found,) = CoreML().unsupported(ir.from_proto(model))
    assert "has no equal in Core ML" in found.why


def random_window(rng: np.random.Generator) -> tuple[str, dict]:
    """A convolution or pool with any kernel, stride, dilation, padding and ceil_mode that has an output."""
    op = rng.choice(["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
    kernel, strides = rng.integers(1, 5, 2), rng.integers(1, 4, 2)
    dilations = rng.integers(1, 3, 2) if op.startswith("Conv") else np.array([1, 1])
    pads = rng.integers(0, kernel[[0, 1, 0, 1]])
    size = rng.integers(9, 14, 2)
    attributes = {"strides": strides, "pads": pads}
    weights = {}
    if op.startswith("Conv"):
        group = int(rng.choice([1, 2, 4]))
        attributes |= {"dilations": dilations, "group": group}
        weights = {"w": (4, 4 // group, *kernel), "b": (4,)}
    else:
        attributes |= {"kernel_shape": kernel, "ceil_mode": int(rng.integers(2))}
    if op == "ConvTranspose":
        attributes["output_padding"] = rng.integers(0, np.minimum(strides, dilations + 1))
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    text = ", ".join(f"{k}={v if isinstance(v, int) else list(map(int, v))}" for k, v in attributes.items())
    body = f"y = {op}<{text}>(x{', w, b' if weights else ''})"
    return body, {"given": f"float[1,4,{size[0]},{size[1]}] x", "weights": weights}


@pytest.mark.parametrize("seed", range(40))
def test_random_windows(seed, tmp_path):
    """Whatever is not refused equals onnxruntime."""
    body, arguments = random_window(np.random.default_rng(seed))
    model = graph(body, **arguments)
    clean = ir.from_proto(model)
    if refused := CoreML().unsupported(clean):
        reasons = ("output padding", "beyond the padding", "outside the image")
        assert any(reason in refused[0].why for reason in reasons)
        return
    x = sample(model)
    artifact = CoreML().compile(clean, job(), tmp_path)
    (actual,) = CoreML().open(tmp_path / artifact.main, job(), ["y"]).run(x)
    (expected,) = reference(model, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=body)
