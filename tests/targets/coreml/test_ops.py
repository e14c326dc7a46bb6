"""What operators become in MIL, in float16 too, and what is refused; float32: test_operators.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import operators
import pytest
from coreml_helpers import graph, job, mil_ops, reference, sample
from op_table import CASES

from repedge.targets import qdq
from repedge.targets.coreml.ops import LOWERINGS
from repedge.targets.coreml.target import CoreML

EMITTED = {
    "conv_same": "conv",
    "conv_1x1": "conv",
    "conv_all_different": "conv",
    "conv_same_upper": "conv",
    "conv_grouped": "conv",
    "conv_depthwise_5x5": "conv",
    "deconv_2x2": "conv_transpose",
    "deconv_output_padding_grouped": "conv_transpose",
    "gemm_scaled_transposed": "reshape linear",
    "gemm_scalar_bias": "reshape linear",
    "matmul_constant": "reshape linear",
    "matmul_computed": "transpose matmul",
    "batch_norm_wide": "mul add",
    "relu": "relu",
    "clip6": "relu6",
    "clip_low_0": "relu",
    "clip_odd": "clip",
    "clip_high": "clip",
    "leaky": "leaky_relu",
    "prelu": "prelu",
    "prelu_scalar": "prelu",
    "elu_alpha": "elu",
    "gelu": "gelu",
    "gelu_tanh": "gelu",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "sigmoid_hard",
    "hard_swish": "sigmoid_hard mul",
    "silu": "silu",
    "silu_shared_sigmoid": "sigmoid silu add",
    "tanh": "tanh",
    "erf": "erf",
    "softmax_width": "softmax",
    "softmax_channels": "softmax",
    "add_channel": "add",
    "sub_from_scalar": "sub",
    "mul_gate": "reduce_mean mul",
    "div_scalar": "real_div",
    "max_scalar": "maximum",
    "max_of_three_scalars": "maximum maximum",
    "min_scalar": "minimum",
    "exp_after_powers": "abs sqrt pow mul exp add",
    "maxpool_padded": "max_pool",
    "maxpool_ceil": "max_pool",
    "maxpool_ceil_padded": "max_pool",
    "avgpool_asymmetric": "avg_pool",
    "avgpool_including": "avg_pool",
    "avgpool_ceil_3x3": "avg_pool",
    "global_max": "reduce_max",
    "reduce_mean_apart": "reduce_mean",
    "reduce_sum_all": "reduce_sum",
    "reduce_max_channels": "reduce_max",
    "concat": "relu concat",
    "split_uneven_swapped": "split concat",
    "split_width": "split sub",
    "slice_channels": "slice_by_index",
    "channel_shuffle": "reshape transpose reshape",
    "flatten_map": "reshape",
    "squeeze_unsqueeze": "reduce_mean squeeze expand_dims",
    "depth_to_space": "depth_to_space",
    "space_to_depth": "space_to_depth",
    "pixel_shuffle_node": "pixel_shuffle",
    "pad_value_channels": "pad",
    "pad_reflect_uneven": "pad",
    "pad_edge_axes": "pad",
    "nearest_2x_3x": "upsample_nearest_neighbor",
    "nearest_half_pixel": "upsample_nearest_neighbor",
    "bilinear_half": "upsample_bilinear",
    "bilinear_torch_up": "resize_bilinear",
    "bilinear_corners_3x": "upsample_bilinear",
    "bilinear_corners_down": "resize_bilinear",
    "bilinear_asymmetric": "resize_bilinear",
}
"""Row of the table of operators -> the MIL ops of its program."""


@pytest.mark.parametrize("name", EMITTED)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_a_lowering_emits(precision, name, tmp_path):
    artifact = CoreML().compile(CASES[name].model(), job(precision), tmp_path)
    assert mil_ops(tmp_path / artifact.main) == EMITTED[name].split()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in CASES.items() if "coreml" not in row.refused])
def test_float16_keeps_the_function(name, tmp_path):
    row, model, x = CASES[name], CASES[name].model(), CASES[name].input()
    artifact = CoreML().compile(model, job("fp16"), tmp_path)
    names = [str(value.name) for value in model.graph.outputs]
    found = CoreML().open(tmp_path / artifact.main, job("fp16"), names).run(x)
    wanted = operators.reference(model, x)
    assert operators.same_kinds(found, wanted)
    assert operators.in_half(row, found, wanted, 4e-3)


def test_every_row_has_a_case():
    # those of integers have tests of their own
    assert set(LOWERINGS) - operators.operators_of(CASES, "coreml") <= qdq.NAMES


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
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
    "max_of_one": ("y = Max(x)", {}, "a single input"),
    "resize_crop": (
        'y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, , size)',
        {"constants": "int64[4] size = {1, 4, 9, 12}, float[8] roi = {0, 0, 0, 0, 1, 1, 1, 1}"},
        "'tf_crop_and_resize' is not supported",
    ),
    "no_lowering": ("y = Acosh(x)", {}, "no lowering for it yet"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_says_why(case):
    body, arguments, reason = REFUSALS[case]
    (found,) = CoreML().unsupported(ir.from_proto(graph(body, **arguments)))
    assert found.node == "node0"
    assert reason in found.why


def random_window(rng: np.random.Generator) -> tuple[str, dict]:
    """A convolution or pool with any kernel, stride, dilation, padding and ceil_mode that has an output."""
    op = rng.choice(["Conv", "ConvTranspose", "MaxPool", "AveragePool"])
    kernel, strides = rng.integers(1, 5, 2), rng.integers(1, 4, 2)
    dilations = rng.integers(1, 3, 2) if op.startswith("Conv") else np.array([1, 1])
    pads = rng.integers(0, kernel[[0, 1, 0, 1]])
    size = rng.integers(9, 14, 2)
    attributes: dict[str, Any] = {"strides": strides, "pads": pads}
    weights: dict[str, Any] = {}
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_random_windows(seed, tmp_path):
    """Whatever is not refused equals onnxruntime."""
    body, arguments = random_window(np.random.default_rng(seed))
    model = graph(body, **arguments)
    clean = ir.from_proto(model)
    if refused := CoreML().unsupported(clean):
        reasons = ("beyond the padding", "outside the image")
        assert any(reason in refused[0].why for reason in reasons)
        return
    x = sample(model)
    artifact = CoreML().compile(clean, job(), tmp_path)
    (actual,) = CoreML().open(tmp_path / artifact.main, job(), ["y"]).run(x)
    (expected,) = reference(model, x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * np.abs(expected).max(), err_msg=body)
