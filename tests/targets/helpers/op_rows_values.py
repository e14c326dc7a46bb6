"""Rows of the table of operators that normalize, reduce, compare, choose and index; see op_table.py."""

from __future__ import annotations

import numpy as np
from operators import case

TRUTHS = np.array([True, False, True, True, False, True, False])

NORMS = {
    "layer_norm_width": case("y = LayerNormalization(x, w, b)", w=(7,), b=(7,)),
    "layer_norm_no_bias": case("y = LayerNormalization<epsilon=0.001>(x, w)", w=(7,)),
    "layer_norm_map": case("y = LayerNormalization<axis=1>(x, w, b)", w=(6, 5, 7), b=(6, 5, 7)),
    "layer_norm_rows": case("y = LayerNormalization<axis=-2>(x, w, b)", w=(5, 7), b=(5, 7)),
    "layer_norm_pooled": case(
        "p = GlobalAveragePool(x) f = Flatten(p) y = LayerNormalization(f, w, b)", w=(6,), b=(6,)
    ),
    "layer_norm_tokens": case(
        "a = Reshape(x, s) t = Transpose<perm=[0,2,1]>(a) y = LayerNormalization(t, w, b)",
        s=[0, 6, 35],
        w=(6,),
        b=(6,),
    ),
    "layer_norm_channels": case(  # torch's LayerNorm2d
        "t = Transpose<perm=[0,2,3,1]>(x) n = LayerNormalization(t, w, b) y = Transpose<perm=[0,3,1,2]>(n)",
        w=(6,),
        b=(6,),
    ),
    "layer_norm_relu": case(
        "t = Transpose<perm=[0,2,3,1]>(x) n = LayerNormalization(t, w, b) y = Relu(n)", w=(6,), b=(6,)
    ),
    "layer_norm_spelled_out": case(
        "m = ReduceMean(x, a) d = Sub(x, m) q = Pow(d, p) v = ReduceMean(q, a) e = Add(v, k) s = Sqrt(e)"
        "n = Div(d, s) g = Mul(n, w) y = Add(g, b)",
        a=[1],
        p=2.0,
        k=1e-6,
        w=(6, 1, 1),
        b=(6, 1, 1),
    ),
    "rms_norm": case(
        "q = Mul(x, x) v = ReduceMean(q, a) e = Add(v, k) s = Sqrt(e) r = Reciprocal(s) n = Mul(x, r)"
        "y = Mul(n, w)",
        a=[-1],
        k=1e-6,
        w=(7,),
    ),
    "instance_norm": case("y = InstanceNormalization(x, w, b)", w=(6,), b=(6,)),
    "instance_norm_rank3": case(
        "a = Reshape(x, s) y = InstanceNormalization<epsilon=0.01>(a, w, b)", s=[0, 6, 35], w=(6,), b=(6,)
    ),
    "group_norm": case(  # as torch's exporter writes it
        "a = Reshape(x, s) n = InstanceNormalization(a, one, zero) r = Reshape(n, t) m = Mul(r, w)"
        "y = Add(m, b)",
        s=[0, 2, -1],
        t=[0, 6, 5, 7],
        one=np.ones(2),
        zero=np.zeros(2),
        w=(6, 1, 1),
        b=(6, 1, 1),
    ),
}

REDUCTIONS = {
    "reduce_min": case("y = ReduceMin(x, a)", a=[2, 3]),
    "reduce_min_flat": case("y = ReduceMin<keepdims=0>(x, a)", a=[1]),
    "reduce_max_apart": case("y = ReduceMax<keepdims=0>(x, a)", a=[1, 3]),
    "reduce_prod": case("y = ReduceProd(x, a)", a=[3]),
    "reduce_prod_flat": case("y = ReduceProd<keepdims=0>(x, a)", a=[1]),
    "reduce_l1": case("y = ReduceL1(x, a)", a=[1]),
    "reduce_l1_flat": case("y = ReduceL1<keepdims=0>(x, a)", a=[2, 3]),
    "reduce_l2": case("y = ReduceL2(x, a)", a=[1]),
    "reduce_l2_flat": case("y = ReduceL2<keepdims=0>(x, a)", a=[-1]),
    "reduce_sum_square": case("y = ReduceSumSquare(x, a)", a=[1, 2]),
    "reduce_log_sum": case("e = Exp(x) y = ReduceLogSum(e, a)", a=[1]),
    "reduce_log_sum_exp": case("y = ReduceLogSumExp<keepdims=0>(x, a)", a=[1]),
    "reduce_log_sum_exp_kept": case("y = ReduceLogSumExp(x, a)", a=[3]),
    "unit_length": case(
        "p = GlobalAveragePool(x) f = Flatten(p) n = ReduceL2(f, a) c = Clip(n, e) y = Div(f, c)",
        a=[1],
        e=1e-12,
    ),
    "arg_max": case("y = ArgMax<axis=1, keepdims=0>(x)", jumps=True),
    "arg_max_kept": case("y = ArgMax<axis=3>(x)", jumps=True),
    "arg_min": case("y = ArgMin<axis=2, keepdims=0>(x)", jumps=True),
    "arg_max_of_equal": case(
        "z = Mul(x, k) r = Round(z) y = ArgMax<axis=1, keepdims=0>(r)", k=0.3, jumps=True
    ),
    "arg_max_rows": case("f = Flatten(x) y = ArgMax<axis=1>(f)", (1, 20, 1, 1), jumps=True),
    "topk": case("f = Flatten(x) y, z = TopK(f, k)", (1, 20, 1, 1), outputs="y, z", k=[5], jumps=True),
    "topk_channels": case("y, z = TopK<axis=1>(x, k)", outputs="y, z", k=[3], jumps=True),
    "topk_smallest": case("y, z = TopK<axis=2, largest=0>(x, k)", outputs="y, z", k=[2], jumps=True),
    "topk_values": case("y, z = TopK<axis=3>(x, k)", k=[4]),
    "cumsum": case("y = CumSum(x, a)", a=np.array(3)),
    "cumsum_exclusive": case("y = CumSum<exclusive=1, reverse=1>(x, a)", a=np.array(1)),
}

FUNCTIONS = {
    "reciprocal": case("e = Exp(x) y = Reciprocal(e)"),
    "rsqrt": case("e = Exp(x) s = Sqrt(e) y = Reciprocal(s)"),
    "log": case("e = Exp(x) a = Add(e, k) y = Log(a)", k=0.5),
    "sin": case("y = Sin(x)"),
    "cos": case("y = Cos(x)"),
    "abs": case("y = Abs(x)"),
    "sign": case("r = Relu(x) y = Sign(r)", jumps=True),
    "floor": case("y = Floor(x)", jumps=True),
    "ceil": case("y = Ceil(x)", jumps=True),
    "round_half_to_even": case(
        "d = Mul(x, k) r = Floor(d) h = Mul(r, i) y = Round(h)", k=2.0, i=0.5, jumps=True
    ),
    "pow_general": case("a = Abs(x) y = Pow(a, p)", p=1.7),
    "pow_channels": case("a = Abs(x) y = Pow(a, p)", p=np.array([0.5, 1, 1.5, 2, 3, 0.3]).reshape(6, 1, 1)),
    "pow_inverse_root": case("e = Exp(x) y = Pow(e, p)", p=-0.5),
    "mod_floor": case("f = Floor(x) c = Cast<to=7>(f) m = Mod(c, k) y = Cast<to=1>(m)", k=[3], jumps=True),
    "mod_sign_of_dividend": case("y = Mod<fmod=1>(x, k)", k=0.7, jumps=True),
}

LOGIC = {
    "greater": case("c = Greater(x, w) y = Cast<to=1>(c)", w=(6, 1, 1), jumps=True),
    "less": case("c = Less(x, w) y = Cast<to=1>(c)", w=0.25, jumps=True),
    "greater_or_equal": case("r = Relu(x) c = GreaterOrEqual(r, w) y = Cast<to=1>(c)", w=0.0, jumps=True),
    "less_or_equal": case("r = Relu(x) c = LessOrEqual(r, w) y = Cast<to=1>(c)", w=0.0, jumps=True),
    "equal": case("r = Round(x) c = Equal(r, w) y = Cast<to=1>(c)", w=1.0, jumps=True),
    "equal_ints": case("f = Floor(x) i = Cast<to=7>(f) c = Equal(i, w) y = Cast<to=1>(c)", w=[0], jumps=True),
    "and_or_not": case(
        "p = Greater(x, a) q = Less(x, b) r = And(p, q) n = Not(r) s = Or(n, k) y = Cast<to=1>(s)",
        a=-0.5,
        b=1.0,
        k=TRUTHS,
        jumps=True,
    ),
    "xor": case(
        "p = Greater(x, a) q = Less(x, b) r = Xor(p, q) y = Cast<to=1>(r)", a=-0.5, b=0.7, jumps=True
    ),
    "where": case("c = Greater(x, k) t = Tanh(x) y = Where(c, x, t)", k=0.1, jumps=True),
    "where_scalar": case("c = Less(x, k) y = Where(c, w, x)", k=-0.3, w=0.5, jumps=True),
    "where_constant_mask": case("y = Where(c, x, w)", c=TRUTHS, w=0.0),
    "cast_truncates": case("i = Cast<to=6>(x) y = Cast<to=1>(i)", jumps=True),
    "cast_to_bool": case("r = Relu(x) c = Cast<to=9>(r) f = Cast<to=1>(c) y = Mul(f, x)", jumps=True),
    "output_bool": case("y = Greater(x, w)", w=0.0, jumps=True),
    "output_int32": case("f = Round(x) y = Cast<to=6>(f)", jumps=True),
    "output_int64_sum": case(
        "f = Round(x) i = Cast<to=7>(f) y = ReduceSum<keepdims=0>(i, a)", a=[1], jumps=True
    ),
}

INDICES = {
    "gather": case("y = Gather<axis=1>(x, i)", i=[4, 0, 5, 5]),
    "gather_negative": case("y = Gather<axis=3>(x, i)", i=[-1, 2, -7]),
    "gather_matrix": case("y = Gather<axis=2>(x, i)", i=np.array([[0, 4], [3, 3], [1, 2]])),
    "gather_scalar": case("y = Gather<axis=1>(x, i)", i=np.array(3)),
    "gather_computed": case(
        "g = GlobalAveragePool(x) f = Flatten(g) v, j = TopK(f, k) q = Reshape(j, s)y = Gather<axis=0>(t, q)",
        k=[2],
        s=[2],
        t=(6, 4),
    ),
    "gather_elements": case("a = ArgMax<axis=1>(x) y = GatherElements<axis=1>(x, a)", jumps=True),
    "gather_elements_rows": case(
        "a = Reshape(x, s) m = ReduceMax<keepdims=0>(a, one) v, j = TopK(m, k) u = Reshape(j, z)"
        "w = Tile(u, r) y = GatherElements<axis=2>(a, w)",
        s=[0, 6, 35],
        one=[1],
        k=[5],
        z=[0, 1, 5],
        r=[1, 6, 1],
        jumps=True,
    ),
    "gather_elements_constant": case(
        "y = GatherElements<axis=3>(x, i)",
        i=np.random.default_rng(1).integers(-7, 7, (1, 6, 5, 3)),
    ),
    "gather_nd": case(
        "y = GatherND(x, i)",
        i=np.array([[0, 1, 2], [0, 5, -1]]),
    ),
    "gather_nd_batched": case(
        "f = Flatten(x) v, j = TopK(f, k) q = Reshape(j, s) y = GatherND<batch_dims=1>(x, q)",
        (1, 6, 1, 1),
        k=[3],
        s=[0, 3, 1],
        jumps=True,
    ),
    "expand": case("p = GlobalAveragePool(x) y = Expand(p, s)", s=[1, 6, 5, 7]),
    "expand_rank": case(
        "m = ReduceMean<keepdims=0>(x, a) y = Expand(m, s)",
        a=[0, 1, 2],
        s=[1, 6, 5, 7],
    ),
    "tile": case("y = Tile(x, r)", r=[1, 2, 1, 3]),
}

CASES = {**NORMS, **REDUCTIONS, **FUNCTIONS, **LOGIC, **INDICES}
