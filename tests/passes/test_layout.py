"""Reshapes, transposes, slices, pools, pads and dense layers get their one form, and keep their numbers."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import conv_weight, feeds_of, ops, parse, run, simplified

from repedge import passes
from repedge.passes.simplifier import infer_shapes

# --- reshapes, transposes, splits --------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,72", "s = Constant<value_ints=[1,-1]>() y = Reshape(x, s)", ["Flatten"]),
        ("1,72", "y = Flatten<axis=-3>(x)", ["Flatten"]),
        ("1,3,24", "s = Constant<value_ints=[1,3,-1]>() y = Reshape(x, s)", ["Reshape"]),
        ("1,6,12", "s = Constant<value_ints=[1,3,-1]>() a = Reshape(x, s) "
         "t = Constant<value_ints=[0,6,12]>() y = Reshape(a, t)", ["Reshape"]),
        ("1,3,1,24", "s = Constant<value_ints=[0,0,-1]>() a = Reshape(x, s) t = Constant<value_ints=[-2]>() "
         "y = Unsqueeze(a, t)", ["Reshape"]),
        ("1,6,3,4", "a = Transpose<perm=[0,3,2,1]>(x) y = Transpose<perm=[0,1,3,2]>(a)", ["Transpose"]),
        ("6,4,3,1", "y = Transpose(x)", ["Transpose"]),
    ],
)  # fmt: skip
def test_reshapes_and_transposes_are_unified(out, body, expected):
    model = simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}", atol=0)
    assert ops(model) == expected
    if expected == ["Reshape"]:
        assert model.graph[0].inputs[1].const_value.numpy()[0] == 0
    if expected == ["Transpose"]:
        assert "perm" in model.graph[0].attributes


def test_moving_axes_of_length_one_is_a_flatten():
    body = "p = GlobalAveragePool(x) t = Transpose<perm=[0,2,3,1]>(p) "
    body += "s = Constant<value_ints=[1,-1]>() y = Reshape(t, s)"
    model = simplified(f"g (float[1,3,4,6] x) => (float[1,3] y) {{ {body} }}", atol=0)
    assert ops(model) == ["GlobalAveragePool", "Flatten"]


def test_a_channel_shuffle_stays_three_nodes():
    body = """s = Constant<value_ints=[1,2,2,4,6]>() a = Reshape(x, s) b = Transpose<perm=[0,2,1,3,4]>(a)
    t = Constant<value_ints=[1,-1,4,6]>() y = Reshape(b, t)"""
    model = simplified(f"g (float[1,4,4,6] x) => (float[1,4,4,6] y) {{ {body} }}", atol=0)
    assert ops(model) == ["Reshape", "Transpose", "Reshape"]
    for node in (model.graph[0], model.graph[2]):
        assert node.inputs[1].const_value.numpy()[0] == 0


@pytest.mark.parametrize("how", ["<axis=-3, num_outputs=2>(x)", "<axis=1>(x, s)"])
def test_split_sizes_are_an_initializer(how):
    text = "g (float[1,4,4,6] x) => (float[1,2,4,6] y) <int64[2] s = {2,2}>"
    text += f"{{ a, b = Split{how} y = Sub(a, b) }}"
    model = simplified(text, atol=0)
    split = model.graph[0]
    assert split.inputs[1].const_value.numpy().tolist() == [2, 2]
    assert split.attributes.get_int("axis") == 1
    assert "num_outputs" not in split.attributes


def test_slices_are_spelled_out():
    body = """s = Constant<value_ints=[-2]>() e = Constant<value_ints=[9223372036854775807]>()
    ax = Constant<value_ints=[-1]>() y = Slice(x, s, e, ax)"""
    model = simplified(f"g (float[1,3,4,6] x) => (float[1,3,4,2] y) {{ {body} }}", atol=0)
    assert [v.const_value.numpy().tolist() for v in model.graph[0].inputs[1:]] == [[4], [6], [3], [1]]


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,4,6", "i = Constant<value_int=-1>() y = Gather<axis=1>(x, i)", ["Slice", "Reshape"]),
        ("1,2,4,6", "i = Constant<value_ints=[0,2]>() y = Gather<axis=1>(x, i)", ["Slice"]),
        ("1,3,4,6", "i = Constant<value_ints=[2,1,0]>() y = Gather<axis=1>(x, i)", ["Gather"]),
        ("1,3,4,3", "i = Constant<value_ints=[0,1,3]>() y = Gather<axis=3>(x, i)", ["Gather"]),
    ],
)
def test_gathers_at_even_steps_are_slices(out, body, expected):
    assert ops(simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}", atol=0)) == expected


# --- pooling and padding -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,3,1,1", "ax = Constant<value_ints=[2,3]>() y = ReduceMean(x, ax)", ["GlobalAveragePool"]),
        ("1,3,1,1", "ax = Constant<value_ints=[-1,-2]>() y = ReduceMean(x, ax)", ["GlobalAveragePool"]),
        ("1,3", "ax = Constant<value_ints=[3,2]>() y = ReduceMean<keepdims=0>(x, ax)",
         ["GlobalAveragePool", "Flatten"]),
        ("1,3", "a3 = Constant<value_ints=[3]>() a2 = Constant<value_ints=[2]>() "
         "a = ReduceMean<keepdims=0>(x, a3) y = ReduceMean<keepdims=0>(a, a2)",
         ["GlobalAveragePool", "Flatten"]),
        ("1,3,1,1", "a3 = Constant<value_ints=[3]>() a2 = Constant<value_ints=[2]>() a = ReduceMean(x, a2) "
         "y = ReduceMean(a, a3)", ["GlobalAveragePool"]),
        ("1,3", "s = Constant<value_ints=[1,3,24]>() a = Reshape(x, s) a2 = Constant<value_ints=[2]>() "
         "y = ReduceMean<keepdims=0>(a, a2)", ["GlobalAveragePool", "Flatten"]),
        ("1,3,1,1", "y = AveragePool<kernel_shape=[4,6]>(x)", ["GlobalAveragePool"]),
        ("1,3", "p = GlobalAveragePool(x) ax = Constant<value_ints=[2,3]>() y = Squeeze(p, ax)",
         ["GlobalAveragePool", "Flatten"]),
        # near misses
        ("1,1,1,6", "ax = Constant<value_ints=[1,2]>() y = ReduceMean(x, ax)", ["ReduceMean"]),
        ("1,1,1,1", "y = ReduceMean(x)", ["ReduceMean"]),
        ("1,3,1,2", "y = AveragePool<kernel_shape=[4,5]>(x)", ["AveragePool"]),
        ("1,3,1,1", "y = AveragePool<kernel_shape=[4,6], pads=[1,0,0,0], strides=[2,1]>(x)", ["AveragePool"]),
        ("1,3,1,1", "ax = Constant<value_ints=[2,3]>() y = ReduceMax(x, ax)", ["ReduceMax"]),
    ],
)  # fmt: skip
def test_global_average_pools(out, body, expected):
    assert ops(simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}")) == expected


def test_zero_pad_goes_into_the_convolution():
    head = "g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,6,10] y) <int64[8] p = {0,0,1,2,0,0,0,1}>"
    model = simplified(
        f"{head} {{ a = Pad(x, p) y = Conv<pads=[1,1,1,1]>(a, w) }}", {"w": conv_weight()}, atol=1e-5
    )
    assert ops(model) == ["Conv"]
    assert tuple(model.graph[0].attributes.get_ints("pads")) == (2, 3, 1, 2)


@pytest.mark.parametrize(
    ("pad", "stays"),
    [
        ("Pad(x, p, one)", "Pad"),
        ('Pad<mode="reflect">(x, p)', "Pad"),
        ("Pad(x, q)", "Slice"),
    ],
    ids=["ones", "reflect", "crop"],
)
def test_other_pads_stay_ahead_of_a_convolution(pad, stays):
    consts = "<int64[8] p = {0,0,1,2,0,0,0,1}, int64[8] q = {0,0,1,-1,0,0,0,1}, float one = {1.0}>"
    width = 5 if "q" in pad else 8
    head = f"g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,4,{width}] y) {consts}"
    model = simplified(f"{head} {{ a = {pad} y = Conv(a, w) }}", {"w": conv_weight()}, atol=1e-5)
    assert ops(model) == [stays, "Conv"]


def test_a_pad_that_something_else_reads_stays():
    head = "g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,4,8] y, float[1,3,6,10] z)"
    text = f"{head} <int64[8] p = {{0,0,1,2,0,0,0,1}}> {{ a = Pad(x, p) y = Conv(a, w) z = Relu(a) }}"
    assert "Pad" in ops(simplified(text, {"w": conv_weight()}, atol=1e-5))


@pytest.mark.parametrize(
    ("fill", "pool", "expected"),
    [
        ("0.0", "AveragePool<kernel_shape=[3,3]>(a)", ["AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[3,3], pads=[1,0,1,0], count_include_pad=1>(a)", ["AveragePool"]),
        ("-3.4028235e38", "MaxPool<kernel_shape=[3,3]>(a)", ["MaxPool"]),
        # near misses
        ("0.0", "AveragePool<kernel_shape=[3,3], pads=[1,0,1,0]>(a)", ["Pad", "AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[2,2]>(a)", ["Pad", "AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(a)", ["Pad", "AveragePool"]),
        ("0.0", "MaxPool<kernel_shape=[3,3]>(a)", ["Pad", "MaxPool"]),
    ],
)
def test_pads_ahead_of_pools(fill, pool, expected):
    text = f"g (float[1,3,5,7] x) => (y) <int64[8] p = {{0,0,1,2,0,0,0,1}}, float z = {{{fill}}}> "
    text += f"{{ a = Pad(x, p, z) y0 = {pool} y = Tanh(y0) }}"
    model = parse(text)
    out = model.graph.outputs[0]
    infer_shapes(model)
    assert out.shape.is_static()
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert ops(model) == [*expected, "Tanh"]
    np.testing.assert_allclose(run(model, feeds)[0], before[0], atol=1e-6)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("size", [5, 8])
def test_auto_pad_becomes_numbers(mode, size):
    head = f"g (float[1,3,{size},{size}] x, float[3,3,3,3] w) => (y)"
    text = f'{head} {{ c = Conv<auto_pad="{mode}", strides=[2,2]>(x, w) y = Relu(c) }}'
    model = parse(text, {"w": conv_weight()})
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert "auto_pad" not in model.graph[0].attributes
    np.testing.assert_allclose(run(model, feeds)[0], before[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("how", ["output_shape=[10,9]", "output_shape=[9,10], dilations=[2,1]"])
def test_output_shape_of_a_transposed_convolution_becomes_pads(how):
    text = "g (float[1,3,5,5] x, float[3,3,3,3] w) => (y) "
    text += f"{{ c = ConvTranspose<strides=[2,2], {how}>(x, w) y = Relu(c) }}"
    model = parse(text, {"w": conv_weight()})
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert "output_shape" not in model.graph[0].attributes
    np.testing.assert_allclose(run(model, feeds)[0], before[0], rtol=1e-6, atol=1e-5)


# --- dense layers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(f, w) y = Add(m, b)",
        "m = MatMul(f, w) y = Add(b, m)",
        "y = Gemm(f, w, b)",
        "y = Gemm<alpha=0.5, beta=2.0>(f, w, b)",
    ],
)
def test_dense_layers_have_one_form(body):
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.standard_normal((12, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }
    text = f"g (float[1,3,2,2] x, float[12,5] w, float[5] b) => (float[1,5] y) {{ f = Flatten(x) {body} }}"
    model = simplified(text, weights, atol=1e-5)
    assert ops(model) == ["Flatten", "Gemm"]
    gemm = model.graph[1]
    assert {k: a.value for k, a in gemm.attributes.items()} == {"transB": 1}
    assert [v.shape.numpy() for v in gemm.inputs[1:]] == [(5, 12), (5,)]


def test_a_product_of_two_activations_stays_matmul():
    body = "f = Flatten(x) t = Transpose<perm=[1,0]>(f) y = MatMul(f, t)"
    model = simplified(f"g (float[1,3,2,2] x) => (float[1,1] y) {{ {body} }}", atol=1e-4)
    assert "MatMul" in ops(model)
