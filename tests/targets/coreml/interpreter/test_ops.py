"""Ops of the MIL interpreter against plain numpy definitions, in fp32 and fp16, iOS 16 to 18."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mil_programs import (
    RNG,
    SHAPE,
    Build,
    Definition,
    W,
    X,
    assert_rounded,
    check_ops,
    mb,
    per_channel,
    program_of,
)

erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def normalized(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


def q(value: float) -> float:
    """A constant as the running test's precision stores it (set by `test_elementwise_op`)."""
    return float(_PRECISION[0](value))


_PRECISION: list[type] = [np.float32]


# --- Cases: name -> (how coremltools builds it, what it is). ---

ELEMENTWISE: dict[str, tuple[Build, Definition]] = {
    "relu": (lambda x, t: mb.relu(x=x), lambda x: np.maximum(x, 0)),
    "relu6": (lambda x, t: mb.relu6(x=x), lambda x: np.clip(x, 0, 6)),
    "clip": (lambda x, t: mb.clip(x=x, alpha=t(-0.3), beta=t(1.7)), lambda x: np.clip(x, q(-0.3), q(1.7))),
    "leaky_relu": (lambda x, t: mb.leaky_relu(x=x, alpha=t(0.1)), lambda x: np.where(x < 0, q(0.1) * x, x)),
    "prelu": (
        lambda x, t: mb.prelu(x=x, alpha=W["channel"].astype(t)),
        lambda x: np.where(x < 0, per_channel(W["channel"]) * x, x),
    ),
    "elu": (lambda x, t: mb.elu(x=x, alpha=t(0.5)), lambda x: np.where(x < 0, 0.5 * np.expm1(x), x)),
    "gelu": (lambda x, t: mb.gelu(x=x, mode="EXACT"), lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))),
    "gelu_tanh": (
        lambda x, t: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "gelu_sigmoid": (
        lambda x, t: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x * sigmoid(1.702 * x),
    ),
    "sigmoid": (lambda x, t: mb.sigmoid(x=x), sigmoid),
    "sigmoid_hard": (
        lambda x, t: mb.sigmoid_hard(x=x, alpha=t(0.2), beta=t(0.5)),
        lambda x: np.clip(q(0.2) * x + 0.5, 0, 1),
    ),
    "silu": (lambda x, t: mb.silu(x=x), lambda x: x * sigmoid(x)),
    "tanh": (lambda x, t: mb.tanh(x=x), np.tanh),
    "scaled_tanh": (
        lambda x, t: mb.scaled_tanh(x=x, alpha=t(2), beta=t(0.5)),
        lambda x: 2 * np.tanh(0.5 * x),
    ),
    "softplus": (lambda x, t: mb.softplus(x=x), lambda x: np.log1p(np.exp(x))),
    "softsign": (lambda x, t: mb.softsign(x=x), lambda x: x / (1 + np.abs(x))),
    "linear_activation": (
        lambda x, t: mb.linear_activation(x=x, alpha=t(0.75), beta=t(2)),
        lambda x: 0.75 * x + 2,
    ),
    "clamped_relu": (
        lambda x, t: mb.clamped_relu(x=x, alpha=t(0.5), beta=t(1)),
        lambda x: np.minimum(np.where(x < 0, 0.5 * x, x), 1),
    ),
    "thresholded_relu": (
        lambda x, t: mb.thresholded_relu(x=x, alpha=t(0.5)),
        lambda x: np.where(x >= 0.5, x, 0),
    ),
    "softmax": (lambda x, t: mb.softmax(x=x, axis=1), lambda x: softmax(x, 1)),
    "add": (lambda x, t: mb.add(x=x, y=W["full"].astype(t)), lambda x: x + W["full"]),
    "sub": (lambda x, t: mb.sub(x=t(1), y=x), lambda x: 1 - x),
    "mul": (
        lambda x, t: mb.mul(x=x, y=W["channel"].reshape(1, 6, 1, 1).astype(t)),
        lambda x: x * per_channel(W["channel"]),
    ),
    "real_div": (lambda x, t: mb.real_div(x=x, y=t(3)), lambda x: x / 3),
    "floor_div": (lambda x, t: mb.floor_div(x=x, y=t(0.5)), lambda x: np.floor(x / 0.5)),
    "mod": (lambda x, t: mb.mod(x=x, y=t(0.5)), lambda x: np.mod(x, 0.5)),
    "maximum": (lambda x, t: mb.maximum(x=x, y=W["full"].astype(t)), lambda x: np.maximum(x, W["full"])),
    "minimum": (lambda x, t: mb.minimum(x=x, y=t(0.25)), lambda x: np.minimum(x, 0.25)),
    "abs": (lambda x, t: mb.abs(x=x), np.abs),
    "erf": (lambda x, t: mb.erf(x=x), erf),
    "exp": (lambda x, t: mb.exp(x=x), np.exp),
    "square": (lambda x, t: mb.square(x=x), np.square),
    "sign": (lambda x, t: mb.sign(x=x), np.sign),
    "round": (lambda x, t: mb.round(x=x), np.rint),
    "floor": (lambda x, t: mb.floor(x=x), np.floor),
    "ceil": (lambda x, t: mb.ceil(x=x), np.ceil),
    "sin": (lambda x, t: mb.sin(x=x), np.sin),
    "cos": (lambda x, t: mb.cos(x=x), np.cos),
    "log": (lambda x, t: mb.log(x=mb.abs(x=x), epsilon=t(0.125)), lambda x: np.log(np.abs(x) + 0.125)),
    "sqrt": (lambda x, t: mb.sqrt(x=mb.abs(x=x)), lambda x: np.sqrt(np.abs(x))),
    "rsqrt": (
        lambda x, t: mb.rsqrt(x=mb.abs(x=x), epsilon=t(0.125)),
        lambda x: 1 / np.sqrt(np.abs(x) + 0.125),
    ),
    "inverse": (
        lambda x, t: mb.inverse(x=mb.abs(x=x), epsilon=t(0.125)),
        lambda x: 1 / (np.abs(x) + 0.125),
    ),
    "pow": (lambda x, t: mb.pow(x=mb.abs(x=x), y=t(1.5)), lambda x: np.abs(x) ** 1.5),
    "select": (
        lambda x, t: mb.select(cond=mb.greater(x=x, y=t(0.25)), a=x, b=W["full"].astype(t)),
        lambda x: np.where(x > 0.25, x, W["full"]),
    ),
    "less": (lambda x, t: mb.cast(x=mb.less(x=x, y=t(0)), dtype="int32"), lambda x: (x < 0).astype(np.int32)),
    "logic": (
        lambda x, t: mb.cast(
            x=mb.logical_and(x=mb.greater_equal(x=x, y=t(0)), y=mb.logical_not(x=mb.less_equal(x=x, y=t(1)))),
            dtype="int32",
        ),
        lambda x: ((x >= 0) & ~(x <= 1)).astype(np.int32),
    ),
    "cast_int": (lambda x, t: mb.cast(x=x, dtype="int32"), lambda x: np.trunc(x).astype(np.int32)),
}

SHAPES: dict[str, tuple[Build, Definition]] = {
    "linear": (
        lambda x, t: mb.linear(
            x=mb.reshape(x=x, shape=[12, 9, 7]),
            weight=W["fc"].astype(t),
            bias=W["full"][0, 0, 0, :5].astype(t),
        ),
        lambda x: x.reshape(12, 9, 7) @ W["fc"].T + W["full"][0, 0, 0, :5],
    ),
    "matmul": (
        lambda x, t: mb.matmul(x=x, y=W["full"].astype(t), transpose_x=True),
        lambda x: x.swapaxes(-1, -2) @ W["full"],
    ),
    "matmul_y": (
        lambda x, t: mb.matmul(x=x, y=W["fc"].astype(t), transpose_y=True),
        lambda x: x @ W["fc"].T,
    ),
    "batch_norm": (
        lambda x, t: mb.batch_norm(
            x=x,
            mean=W["channel"].astype(t),
            variance=W["var"].astype(t),
            gamma=W["channel"].astype(t),
            beta=W["var"].astype(t),
            epsilon=t(0.0625),
        ),
        lambda x: (
            (x - per_channel(W["channel"]))
            / np.sqrt(per_channel(W["var"]) + 0.0625)
            * per_channel(W["channel"])
            + per_channel(W["var"])
        ),
    ),
    "instance_norm": (
        lambda x, t: mb.instance_norm(x=x, gamma=W["channel"].astype(t), epsilon=t(0.0625)),
        lambda x: normalized(x, (2, 3), 0.0625) * per_channel(W["channel"]),
    ),
    "layer_norm": (
        lambda x, t: mb.layer_norm(
            x=x, axes=[1], gamma=W["var"].astype(t), beta=W["channel"].astype(t), epsilon=t(0.0625)
        ),
        lambda x: normalized(x, (1,), 0.0625) * per_channel(W["var"]) + per_channel(W["channel"]),
    ),
    "l2_norm": (
        lambda x, t: mb.l2_norm(x=x, epsilon=t(0.0625)),
        lambda x: x / np.sqrt((x * x).sum((1, 2, 3), keepdims=True) + 0.0625),
    ),
    "reduce_mean": (
        lambda x, t: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True),
        lambda x: x.mean((2, 3), keepdims=True),
    ),
    "reduce_mean_flat": (
        lambda x, t: mb.reduce_mean(x=x, axes=[-1, -2], keep_dims=False),
        lambda x: x.mean((2, 3)),
    ),
    "reduce_sum": (lambda x, t: mb.reduce_sum(x=x, axes=[1]), lambda x: x.sum(1)),
    "reduce_max": (lambda x, t: mb.reduce_max(x=x, axes=[1, 3]), lambda x: x.max((1, 3))),
    "reduce_min": (lambda x, t: mb.reduce_min(x=x, axes=[2]), lambda x: x.min(2)),
    "reduce_l2_norm": (
        lambda x, t: mb.reduce_l2_norm(x=x, axes=[1], keep_dims=True),
        lambda x: np.sqrt((x * x).sum(1, keepdims=True)),
    ),
    "reduce_argmax": (
        lambda x, t: mb.reduce_argmax(x=x, axis=1),
        lambda x: x.argmax(1).astype(np.int32),
    ),
    "concat": (
        lambda x, t: mb.concat(values=[x, W["full"].astype(t), x], axis=1),
        lambda x: np.concatenate([x, W["full"], x], 1),
    ),
    "concat_interleave": (
        lambda x, t: mb.concat(values=[x, W["full"].astype(t)], axis=-3, interleave=True),
        lambda x: np.stack([x, W["full"]], 2).reshape(2, 12, 9, 7),
    ),
    "split": (
        lambda x, t: mb.split(x=x, num_splits=3, axis=1)[1],
        lambda x: x[:, 2:4],
    ),
    "split_sizes": (
        lambda x, t: mb.split(x=x, split_sizes=[1, 2, 3], axis=1)[2],
        lambda x: x[:, 3:],
    ),
    "stack": (lambda x, t: mb.stack(values=[x, x], axis=1), lambda x: np.stack([x, x], 1)),
    "slice_by_index": (
        lambda x, t: mb.slice_by_index(
            x=x,
            begin=[0, 1, -6, 4],
            end=[2, 6, -1, 0],
            stride=[1, 2, 1, -2],
            end_mask=[False, True, False, False],
        ),
        lambda x: x[0:2, 1::2, -6:-1, 4:0:-2],
    ),
    "slice_squeeze": (
        lambda x, t: mb.slice_by_index(
            x=x,
            begin=[0, -1, 2, 3],
            end=[0, 0, 5, 0],
            begin_mask=[True, False, False, True],
            end_mask=[True, False, False, True],
            squeeze_mask=[False, True, False, False],
        ),
        lambda x: x[:, -1, 2:5, :],
    ),
    "slice_by_size": (
        lambda x, t: mb.slice_by_size(x=x, begin=[0, 2, 1, -4], size=[2, 3, -1, 2]),
        lambda x: x[:, 2:5, 1:, -4:-2],
    ),
    "reshape": (lambda x, t: mb.reshape(x=x, shape=[0, 3, 2, -1]), lambda x: x.reshape(2, 3, 2, 63)),
    "transpose": (lambda x, t: mb.transpose(x=x, perm=[0, 2, 3, 1]), lambda x: x.transpose(0, 2, 3, 1)),
    "shuffle": (  # channel shuffle as ShuffleNet writes it
        lambda x, t: mb.reshape(
            x=mb.transpose(x=mb.reshape(x=x, shape=[2, 2, 3, 9, 7]), perm=[0, 2, 1, 3, 4]), shape=[2, 6, 9, 7]
        ),
        lambda x: x[:, [0, 3, 1, 4, 2, 5]],
    ),
    "expand_squeeze": (
        lambda x, t: mb.squeeze(x=mb.expand_dims(x=mb.reduce_max(x=x, axes=[0]), axes=[0, -1]), axes=[-1]),
        lambda x: x.max(0)[None],
    ),
    "gather": (
        lambda x, t: mb.gather(x=x, indices=np.array([[3, -1], [0, 0]], np.int32), axis=1),
        lambda x: x[:, [[3, -1], [0, 0]]],
    ),
    "pixel_shuffle": (
        lambda x, t: mb.pixel_shuffle(x=mb.concat(values=[x, x], axis=1), upscale_factor=2),
        lambda x: (
            np.concatenate([x, x], 1)
            .reshape(2, 3, 2, 2, 9, 7)
            .transpose(0, 1, 4, 2, 5, 3)
            .reshape(2, 3, 18, 14)
        ),
    ),
    "depth_to_space": (
        lambda x, t: mb.depth_to_space(x=mb.concat(values=[x, x], axis=1), block_size=2),
        lambda x: (
            np.concatenate([x, x], 1)
            .reshape(2, 2, 2, 3, 9, 7)
            .transpose(0, 3, 4, 1, 5, 2)
            .reshape(2, 3, 18, 14)
        ),
    ),
    "space_to_depth": (
        lambda x, t: mb.space_to_depth(x=mb.crop(x=x, crop_height=[0, 1], crop_width=[0, 1]), block_size=2),
        lambda x: np.concatenate([x[:, :, i:8:2, j:6:2] for i in (0, 1) for j in (0, 1)], 1),
    ),
    "tile": (lambda x, t: mb.tile(x=x, reps=[1, 2, 1, 1]), lambda x: np.tile(x, (1, 2, 1, 1))),
    "reverse": (lambda x, t: mb.reverse(x=x, axes=[1]), lambda x: x[:, ::-1]),
    "flatten2d": (lambda x, t: mb.flatten2d(x=x, axis=2), lambda x: x.reshape(12, 63)),
}

OPSETS = [("fp16", "iOS16"), ("fp16", "iOS17"), ("fp32", "iOS18")]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), OPSETS)
def test_elementwise_op(precision, opset, tmp_path):
    _PRECISION[0] = np.float16 if precision == "fp16" else np.float32
    check_ops(ELEMENTWISE, X, precision, opset, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "opset"), OPSETS)
def test_shape_op(precision, opset, tmp_path):
    check_ops(SHAPES, X, precision, opset, tmp_path)


@pytest.mark.slow
def test_einsum(tmp_path):
    """MIL's einsum takes batched matrix products only."""
    y = RNG.standard_normal((2, 7, 9, 4)).astype(np.float16)
    program = program_of(
        {"out": lambda x, t: mb.einsum(values=(x, y.astype(t)), equation="nchw,nwhu->nchu")},
        SHAPE,
        "fp32",
        "iOS16",
        tmp_path,
    )
    want = np.einsum("nchw,nwhu->nchu", X, y.astype(np.float64))
    assert_rounded(program.run({"x": X})["out"], want)


@pytest.mark.slow
def test_fp16_overflows_to_infinity_and_rounds_to_even(tmp_path):
    program = program_of(
        {
            "square": lambda x, t: mb.square(x=x),
            "even": lambda x, t: mb.add(x=x, y=t(1)),  # 2049 lies between 2048 and 2050
            "sum": lambda x, t: mb.reduce_sum(x=x, axes=[1]),  # 300 + 2048 + 2050 in one rounding
        },
        (1, 3),
        "fp16",
        "iOS16",
        tmp_path,
    )
    got = program.run({"x": np.array([[300, 2048, 2050]])})
    assert got["square"].tolist() == [[np.inf, np.inf, np.inf]]
    assert got["even"].tolist() == [[301, 2048, 2052]]
    assert got["sum"].tolist() == [4400]


@pytest.mark.slow
def test_fp16_rounds_after_every_op(tmp_path):
    """x * 3 / 3 is not x where x * 3 is no fp16 number."""
    program = program_of(
        {"out": lambda x, t: mb.real_div(x=mb.mul(x=x, y=t(3)), y=t(3))}, (1000,), "fp16", "iOS16", tmp_path
    )
    x = np.linspace(1, 2, 1000).astype(np.float16)
    want = ((x.astype(np.float32) * 3).astype(np.float16).astype(np.float32) / 3).astype(np.float16)
    got = program.run({"x": x})["out"]
    np.testing.assert_array_equal(got, want)
    assert (got != x).any()
