"""What merges, and what must stay with its reason; every merge is compared in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from fuse_graphs import bn, bn_inputs, fused, graph, normal, ops

from repedge.errors import CheckFailed
from repedge.graph.attrs import conv_attrs
from repedge.graph.values import const
from repedge.passes.fusion import fuse as fuse_module
from repedge.passes.fusion.fuse import fuse

X = (1, 4, 9, 7)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def reasons(result) -> str:
    return "\n".join(left.reason for left in result.left)


# --- affine maps ---------------------------------------------------------------------------------

AFTER = {
    "BatchNormalization": "y = BatchNormalization(c, n_g, n_b, n_m, n_v)",
    "Mul": "y = Mul(c, k)",
    "Mul, constant first": "y = Mul(k, c)",
    "Div": "y = Div(c, k)",
    "Add": "y = Add(c, k)",
    "Sub": "y = Sub(c, k)",
    "constant - x": "y = Sub(k, c)",
    "scalar": "y = Mul(c, s)",
    "Neg": "y = Neg(c)",
}


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Conv", "grouped Conv", "ConvTranspose", "grouped ConvTranspose"])
@pytest.mark.parametrize("after", AFTER)
def test_affine_after_a_convolution(rng, layer, after):
    weight = normal(rng, 4, 2, 3, 3) if "grouped" in layer else normal(rng, 4, 4, 3, 3)
    group = 2 if "grouped" in layer else 1
    op = layer.split()[-1]
    m = graph(
        f"c = {op}<group={group}, strides=[2,2], pads=[1,1,1,1]>(x, w)\n{AFTER[after]}",
        X, w=weight, k=normal(rng, 4, 1, 1), s=np.float32(-0.3), **bn(rng, "n", 4),
    )  # fmt: skip
    result = fused(m)
    assert ops(m) == [op]
    assert [m.kind for m in result] == ["affine after"]
    assert result.left == []


def test_affine_after_layers_of_other_ranks(rng):
    m = graph(
        f"c = Conv<pads=[1,1]>(x, w, b)\ny = BatchNormalization(c, {bn_inputs('n')})",
        (1, 4, 9), w=normal(rng, 6, 4, 3), b=normal(rng, 6), **bn(rng, "n", 6),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["Conv"]
    m = graph(
        f"h = MatMul(x, w)\nc = Add(h, b)\ny = BatchNormalization(c, {bn_inputs('n')})",
        (1, 4), w=normal(rng, 4, 6), b=normal(rng, 6), **bn(rng, "n", 6),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["Gemm"]


def test_a_constant_that_is_not_per_channel_stays(rng):
    m = graph("c = Conv(x, w)\ny = Mul(c, k)", X, w=normal(rng, 4, 4, 1, 1), k=normal(rng, 9, 7))
    fused(m)
    assert ops(m) == ["Conv", "Mul"]


def test_affine_after_an_output_that_is_read_elsewhere_stays(rng):
    m = graph(
        f"c = Conv(x, w)\ny = BatchNormalization(c, {bn_inputs('n')})\nz = Relu(c)",
        X, "y z", w=normal(rng, 4, 4, 1, 1), **bn(rng, "n", 4),
    )  # fmt: skip
    assert reasons(fused(m)) == "the output of Conv 'c' is read elsewhere"
    assert ops(m) == ["Conv", "BatchNormalization", "Relu"]
    m = graph("y = Conv(x, w)\nz = Neg(y)", X, "y z", w=normal(rng, 4, 4, 1, 1))
    assert reasons(fused(m)) == "the output of Conv 'y' is read elsewhere"


def test_affine_before_folds_only_where_no_padding_reads_the_shift(rng):
    norm = f"n = BatchNormalization(x, {bn_inputs('n')})"
    weights = {"w": normal(rng, 6, 2, 3, 3), **bn(rng, "n", 4)}
    m = graph(f"{norm}\ny = Conv<group=2>(n, w)", X, **weights)
    assert [r.kind for r in fused(m)] == ["affine before"]
    assert ops(m) == ["Conv"]

    m = graph(f"{norm}\ny = Conv<group=2, pads=[0,0,1,0]>(n, w)", X, **weights)
    assert reasons(fused(m)) == "the zero padding of Conv 'y' would make folding the shift before it inexact"
    assert ops(m) == ["BatchNormalization", "Conv"]

    m = graph("n = Mul(x, k)\ny = Conv<pads=[1,1,1,1], group=2>(n, w)", X, k=normal(rng, 4, 1, 1), **weights)
    fused(m)
    assert ops(m) == ["Conv"]  # a scale alone keeps zeros


def test_pads_that_no_window_reads_are_no_padding(rng):
    # Stride 2 on 8 columns: the last padded column is never read.
    m = graph(
        f"n = BatchNormalization(x, {bn_inputs('n')})\ny = Conv<strides=[2,2], pads=[0,0,1,1]>(n, w)",
        (1, 4, 9, 9), w=normal(rng, 4, 4, 2, 2), **bn(rng, "n", 4),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["BatchNormalization", "Conv"]
    m = graph(
        f"n = BatchNormalization(x, {bn_inputs('n')})\ny = Conv<strides=[2,2], pads=[0,0,1,1]>(n, w)",
        (1, 4, 8, 8), w=normal(rng, 4, 4, 2, 2), **bn(rng, "n", 4),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["Conv"]


# --- branches: what must stay ----------------------------------------------------------------------


def test_branches_of_different_stride_stay(rng):
    # Both give 1x1 maps of a 2x2 input.
    m = graph(
        "a = Conv<strides=[2,2]>(x, w)\nb = Conv(x, v)\ny = Add(a, b)",
        (1, 4, 2, 2), w=normal(rng, 4, 4, 1, 1), v=normal(rng, 4, 4, 2, 2),
    )  # fmt: skip
    assert "the branches' strides differ: (2, 2) and (1, 1)" in reasons(fused(m))
    assert ops(m) == ["Conv", "Conv", "Add"]


def test_a_nonlinearity_between_stays(rng):
    m = graph(
        "a = Conv(x, w)\nr = Relu(a)\nb = Conv(r, v)\ny = Add(x, b)",
        X, w=normal(rng, 8, 4, 1, 1), v=normal(rng, 4, 8, 1, 1),
    )  # fmt: skip
    assert reasons(fused(m)) == "the branches start at different tensors: Relu 'r' is not linear"
    assert ops(m) == ["Conv", "Relu", "Conv", "Add"]


@pytest.mark.parametrize("reader", ["z = Relu(a)", "output"])
def test_a_branch_used_elsewhere_stays(rng, reader):
    extra, outputs = ("", "y a") if reader == "output" else (f"\n{reader}", "y z")
    m = graph(
        f"a = Conv<pads=[1,1,1,1]>(x, w)\nb = Conv(x, v)\ny = Add(a, b){extra}",
        X, outputs, w=normal(rng, 4, 4, 3, 3), v=normal(rng, 4, 4, 1, 1),
    )  # fmt: skip
    assert reasons(fused(m)) == "the output of Conv 'a' is read elsewhere"
    assert ops(m)[:3] == ["Conv", "Conv", "Add"]


def test_inexact_padding_inside_a_branch_stays(rng):
    """1x1 + BN, then a zero-padded 3x3: the border of the 3x3 sees zeros, not the BN's shift."""
    m = graph(
        f"""a = Conv(x, w)
        n = BatchNormalization(a, {bn_inputs("n")})
        b = Conv<pads=[1,1,1,1]>(n, v)
        c = Conv<pads=[1,1,1,1]>(x, u)
        y = Add(b, c)""",
        X, w=normal(rng, 4, 4, 1, 1), v=normal(rng, 4, 4, 3, 3), u=normal(rng, 4, 4, 3, 3), **bn(rng, "n", 4),
    )  # fmt: skip
    assert "zero padding of Conv 'b' would make folding the shift before it inexact" in reasons(fused(m))
    assert ops(m) == ["Conv", "Conv", "Conv", "Add"]


def test_a_padded_pool_that_counts_only_cells_stays(rng):
    m = graph(
        """a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)
        b = Conv<pads=[1,1,1,1]>(x, w)
        y = Add(a, b)""",
        X, w=normal(rng, 4, 4, 3, 3),
    )  # fmt: skip
    assert reasons(fused(m)) == "the branches start at different tensors: AveragePool 'a' is not linear"
    assert ops(m) == ["AveragePool", "Conv", "Add"]


def test_a_merge_that_would_cost_more_stays(rng):
    m = graph(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w)\nb = Conv(x, v)\ny = Add(a, b)",
        X, w=normal(rng, 4, 1, 3, 3), v=normal(rng, 4, 4, 1, 1),
    )  # fmt: skip
    assert reasons(fused(m)) == f"would cost more MACs: {(36 + 16) * 63} -> {144 * 63}"
    assert ops(m) == ["Conv", "Conv", "Add"]


def test_what_fits_merges_and_the_rest_stays(rng):
    """Dense 1x1 takes the identity in, the depthwise 3x3 takes its twin in; signs survive."""
    m = graph(
        """a = Conv<group=4, pads=[1,1,1,1]>(x, w)
        b = Conv(x, v)
        s = Sub(b, a)
        c = Conv<group=4, pads=[1,1,1,1]>(x, u)
        r = Relu(x)
        t = Sub(s, c)
        q = Sub(t, r)
        y = Add(q, x)""",
        X, w=normal(rng, 4, 1, 3, 3), v=normal(rng, 4, 4, 1, 1), u=normal(rng, 4, 1, 3, 3),
    )  # fmt: skip
    result = fused(m)
    assert sorted(ops(m)) == ["Add", "Conv", "Conv", "Relu", "Sub"]
    assert {r.kind for r in result} == {"branches"}


def test_pools_alone_stay():
    m = graph("a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)\ny = Sub(a, x)", X)
    assert reasons(fused(m)) == "there is no convolution among the branches"
    assert ops(m) == ["AveragePool", "Sub"]


def test_a_doubled_tensor_stays():
    m = graph("y = Add(x, x)", X)
    assert reasons(fused(m)) == "would cost more MACs: 0 -> 252"


def test_batch_norm_without_a_neighbour_is_told(rng):
    m = graph(f"r = Relu(x)\ny = BatchNormalization(r, {bn_inputs('n')})", X, **bn(rng, "n", 4))
    assert reasons(fused(m)) == "no convolution or fully connected layer is next to it"


# --- chains --------------------------------------------------------------------------------------


def test_a_chain_merges_only_when_it_gets_cheaper(rng):
    wide = {"w": normal(rng, 16, 4, 3, 3), "v": normal(rng, 3, 16, 1, 1), "b": normal(rng, 16)}
    m = graph("a = Conv<pads=[1,1,1,1]>(x, w, b)\ny = Conv(a, v)", X, **wide)
    assert [r.kind for r in fused(m)] == ["chain"]
    assert ops(m) == ["Conv"]

    m = graph(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w)\ny = Conv(a, v)",
        X, w=normal(rng, 4, 1, 3, 3), v=normal(rng, 8, 4, 1, 1),
    )  # fmt: skip
    assert reasons(fused(m)) == f"would cost more MACs: {(36 + 32) * 63} -> {288 * 63}"
    assert ops(m) == ["Conv", "Conv"]


def test_a_padded_kernel_behind_a_kernel_stays(rng):
    m = graph(
        "a = Conv<pads=[1,1,1,1]>(x, w)\ny = Conv<pads=[1,1,1,1]>(a, v)",
        X, w=normal(rng, 64, 4, 3, 3), v=normal(rng, 2, 64, 3, 3),
    )  # fmt: skip
    assert "follows a kernel larger than 1x1" in reasons(fused(m))
    assert ops(m) == ["Conv", "Conv"]


def test_1x1_then_kxk_merges_without_a_bias(rng):
    weights = {"w": normal(rng, 32, 4, 1, 1), "v": normal(rng, 5, 32, 3, 3)}
    m = graph("a = Conv(x, w)\ny = Conv<pads=[1,0,1,2], strides=[2,1], dilations=[2,2]>(a, v)", X, **weights)
    fused(m)
    assert ops(m) == ["Conv"]


def test_pad_joins_the_convolution(rng):
    m = graph(
        "p = Pad(x, n)\ny = Conv<pads=[0,1,1,0]>(p, w)",
        X, n=np.array([0, 0, 1, 2, 0, 0, 3, 0]), w=normal(rng, 4, 4, 3, 3),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["Conv"]
    assert conv_attrs(next(iter(m.graph))).pads == (1, 3, 4, 0)


def test_consecutive_fully_connected_layers(rng):
    m = graph(
        "a = Gemm<transB=1>(x, w, b)\ny = Gemm(a, v)",
        (1, 4),
        w=normal(rng, 64, 4),
        b=normal(rng, 64),
        v=normal(rng, 64, 3),
    )
    fused(m)
    assert ops(m) == ["Gemm"]


# --- heads ---------------------------------------------------------------------------------------


def test_averaged_heads_become_one_gemm(rng):
    m = graph(
        f"""n1 = BatchNormalization(x, {bn_inputs("p")})
        h1 = Gemm<transB=1>(n1, w1, b1)
        n2 = BatchNormalization(x, {bn_inputs("q")})
        m2 = MatMul(n2, w2)
        h2 = Add(m2, b2)
        s = Add(h1, h2)
        y = Div(s, two)""",
        (1, 12), w1=normal(rng, 5, 12), b1=normal(rng, 5), w2=normal(rng, 12, 5), b2=normal(rng, 5),
        two=np.float32(2), **bn(rng, "p", 12), **bn(rng, "q", 12),
    )  # fmt: skip
    result = fused(m)
    assert ops(m) == ["Gemm"]
    assert [set(r.nodes) for r in result] == [{"n1", "h1", "n2", "m2", "h2", "s", "y"}]
    assert result[0].kind == "branches"


# --- the whole -------------------------------------------------------------------------------------


def test_new_values_keep_names_shapes_and_old_constants_go(rng):
    m = graph(
        f"""a = Conv<pads=[1,1,1,1]>(x, w)
        i = Identity(x)
        n = BatchNormalization(i, {bn_inputs("n")})
        s = Add(a, n)
        y = Relu(s)""",
        X, w=normal(rng, 4, 4, 3, 3), **bn(rng, "n", 4),
    )  # fmt: skip
    fused(m)
    conv, relu = m.graph
    assert (conv.op_type, conv.name, relu.op_type) == ("Conv", "a", "Relu")
    assert (conv.outputs[0].name, tuple(conv.outputs[0].shape)) == ("s", X)
    assert set(m.graph.initializers) == {"a.weight", "a.bias"}
    assert all(const(v).dtype == np.float32 for v in conv.inputs[1:])


def test_shared_weights_survive_for_their_other_reader(rng):
    m = graph(
        f"a = Conv(x, w)\nb = BatchNormalization(a, {bn_inputs('n')})\nr = Relu(b)\ny = Conv(r, w)",
        X, w=normal(rng, 4, 4, 1, 1), **bn(rng, "n", 4),
    )  # fmt: skip
    fused(m)
    assert ops(m) == ["Conv", "Relu", "Conv"]
    assert "w" in m.graph.initializers


def test_fusing_twice_changes_nothing(rng):
    m = graph("a = Conv<pads=[1,1,1,1]>(x, w)\ny = Add(a, x)", X, w=normal(rng, 4, 4, 3, 3))
    assert len(fuse(m)) == 1
    before = ir.to_proto(m).SerializeToString()
    assert fuse(m) == []
    assert ir.to_proto(m).SerializeToString() == before


def test_weights_that_are_not_finite_are_an_error(rng):
    m = graph(
        "a = Conv(x, w)\ny = Mul(a, k)", X, w=np.full((4, 4, 1, 1), np.nan, "f"), k=normal(rng, 4, 1, 1)
    )
    with pytest.raises(CheckFailed, match=r"merging a, y into 'a' changes its output by inf in float64"):
        fuse(m)


def test_an_overflow_of_float32_is_an_error(rng):
    m = graph(
        "a = Conv(x, w)\ny = Mul(a, k)", X, w=normal(rng, 4, 4, 1, 1) * np.float32(1e30), k=np.float32(1e30)
    )
    with np.errstate(over="ignore"), pytest.raises(CheckFailed, match="in float32"):
        fuse(m)


def test_a_wrong_merge_is_an_error(rng, monkeypatch):
    """The check is independent of the algebra: spoil the algebra and it must notice."""
    from repedge.passes.fusion.linear import Sum

    right = Sum.collapse

    def wrong(self):
        weight, bias = right(self)
        weight[0, 0, 0, 0] += 1e-6
        return weight, bias

    monkeypatch.setattr(Sum, "collapse", wrong)
    m = graph("a = Conv<pads=[1,1,1,1]>(x, w)\ny = Add(a, x)", X, w=normal(rng, 4, 4, 3, 3))
    with pytest.raises(CheckFailed, match="in float64, more than 1e-09"):
        fuse(m)


@pytest.mark.slow
def test_the_order_of_the_rules_matters(rng, monkeypatch):
    """With affine_before first, the BN between two convolutions would go into the second one."""
    text = f"a = Conv<group=4>(x, w)\nn = BatchNormalization(a, {bn_inputs('n')})\ny = Conv(n, v)"
    weights = {"w": normal(rng, 4, 1, 3, 3), "v": normal(rng, 4, 4, 1, 1), **bn(rng, "n", 4)}
    assert [r.nodes for r in fused(graph(text, X, **weights))] == [("a", "n")]
    monkeypatch.setattr(fuse_module, "RULES", fuse_module.RULES[::-1])
    assert [r.nodes for r in fused(graph(text, X, **weights))] == [("n", "y")]


def test_pad_joins_the_convolution_where_what_is_before_it_can_not(rng):
    m = graph(
        "a = Conv(x, w)\np = Pad(a, n)\ny = Conv(p, v)",
        X, n=np.array([0, 0, 1, 1, 0, 0, 1, 1]), w=normal(rng, 4, 4, 3, 3), v=normal(rng, 4, 4, 3, 3),
    )  # fmt: skip
    assert "follows a kernel larger than 1x1" in reasons(fused(m))
    assert ops(m) == ["Conv", "Conv"]


@pytest.mark.parametrize("fill", [0.5, 0.25])
def test_a_padding_that_continues_the_bias_before_it(rng, fill):
    m = graph(
        "a = Conv(x, w, b)\np = Pad(a, n, f)\ny = Conv<strides=[2,1]>(p, v)",
        X, n=np.array([0, 0, 2, 1, 0, 0, 1, 1]), w=normal(rng, 8, 4, 1, 1), b=np.full(8, 0.5, "f"),
        v=normal(rng, 4, 8, 3, 3), f=np.float32(fill),
    )  # fmt: skip
    result = fused(m)
    assert ops(m) == (["Conv"] if fill == 0.5 else ["Conv", "Pad", "Conv"])
    assert result.left == [] or "the border 'p' is not what the branch makes of zeros" in reasons(result)
