"""Activations spelled out in arithmetic: every order is found, every near miss stays."""

from __future__ import annotations

import pytest
from graph_helpers import IO, conv_weight, floats, ops, parse, simplified

from repedge import passes
from repedge.graph.check import check_clean

GELU = {
    "div, half last": "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "mul, half first": "a = Mul(x, ir2) b = Erf(a) c = Add(one, b) d = Mul(half, x) y = Mul(d, c)",
    "half on the erf": "a = Mul(ir2, x) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(d, x)",
    "half, distributed": "a = Mul(ir2, x) b = Erf(a) c = Mul(b, half) d = Add(half, c) y = Mul(x, d)",
    "div by two": "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Div(d, two)",
    "sum of products": "a = Div(x, r2) b = Erf(a) c = Mul(x, half) d = Mul(c, b) y = Add(d, c)",
}
GELU_CONSTANTS = floats(r2=2**0.5, ir2=2**-0.5, one=1.0, half=0.5, two=2.0, near=1.4, k=0.3)


@pytest.mark.parametrize("body", GELU.values(), ids=GELU)
def test_gelu_in_every_order_is_one_gelu(body):
    model = simplified(f"{IO} {GELU_CONSTANTS} {{ {body} }}", atol=3e-6)
    assert ops(model) == ["Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, near) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, k)",
        "a = Div(x, r2) b = Erf(a) c = Sub(one, b) d = Mul(x, c) y = Mul(d, half)",
        "z = Relu(x) a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(z, c) y = Mul(d, half)",
    ],
    ids=["1.4 instead of sqrt 2", "0.3 instead of 0.5", "1 - erf", "times another tensor"],
)
def test_near_misses_of_gelu_stay(body):
    model = simplified(f"{IO} {GELU_CONSTANTS} {{ {body} }}")
    assert "Erf" in ops(model)
    assert "Gelu" not in ops(model)


TANH_GELU = {
    "pow": "p = Pow(x, three) q = Mul(p, c3) s = Add(x, q) u = Mul(s, k) t = Tanh(u) "
    "w = Add(t, one) h = Mul(x, half) y = Mul(h, w)",
    "products": "p = Mul(x, x) q = Mul(x, p) s0 = Mul(c3, q) s = Add(s0, x) u = Mul(k, s) t = Tanh(u) "
    "w = Add(one, t) h = Mul(w, half) y = Mul(h, x)",
    "factored": "p = Mul(x, x) q = Mul(p, c3) s = Add(q, one) v = Mul(s, x) u = Mul(v, k) t = Tanh(u) "
    "w = Add(one, t) h = Mul(w, x) y = Mul(half, h)",
}


@pytest.mark.parametrize("body", TANH_GELU.values(), ids=TANH_GELU)
def test_tanh_gelu_is_one_gelu(body):
    constants = floats(three=3.0, c3=0.044715, k=0.7978845608028654, one=1.0, half=0.5)
    model = simplified(f"{IO} {constants} {{ {body} }}", atol=3e-6)
    assert ops(model) == ["Gelu"]
    assert model.graph[0].attributes.get_string("approximate") == "tanh"


def test_tanh_gelu_with_another_cubic_stays():
    constants = floats(three=3.0, c3=0.0447, k=0.7978845608028654, one=1.0, half=0.5)
    assert "Tanh" in ops(simplified(f"{IO} {constants} {{ {TANH_GELU['pow']} }}"))


HARD_SWISH = {
    "relu6, divided last": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
    "relu6 divided": "a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)",
    "multiplied": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, sixth) y = Mul(x, c)",
    "x divided": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, sixth) y = Mul(c, b)",
    "HardSigmoid": "a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, a)",
    "0 to 1": "a = Div(x, six) b = Add(a, half) c = Clip(b, zero, one) y = Mul(c, x)",
    "Min of Relu": "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(x, b) y = Mul(c, sixth)",
}
HARD = floats(three=3.0, zero=0.0, six=6.0, sixth=1 / 6, half=0.5, one=1.0, five=5.0, two=2.0)


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
def test_hard_swish_in_every_order_is_one_hard_swish(body):
    assert ops(simplified(f"{IO} {HARD} {{ {body} }}")) == ["HardSwish"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, two) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, five) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, five)",
        "a = HardSigmoid(x) y = Mul(x, a)",
        "z = Tanh(x) a = HardSigmoid<alpha=0.16666667>(z) y = Mul(x, a)",
    ],
    ids=["x + 2", "clipped at 5", "over 5", "alpha 0.2", "of another tensor"],
)
def test_near_misses_of_hard_swish_stay(body):
    assert not {"HardSwish"} & set(ops(simplified(f"{IO} {HARD} {{ {body} }}")))


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)",
        "a = Mul(x, sixth) b = Add(a, half) y = Clip(b, zero, one)",
    ],
)
def test_hard_sigmoid(body):
    model = simplified(f"{IO} {HARD} {{ {body} }}")
    assert ops(model) == ["HardSigmoid"]
    assert model.graph[0].attributes.get_float("alpha") == pytest.approx(1 / 6, rel=1e-6)


def test_squeeze_excite_gate_by_hard_swish_keeps_the_gate():
    body = (
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) d = Div(c, six) g = Sigmoid(x) y = Mul(d, g)"
    )
    assert sorted(ops(simplified(f"{IO} {HARD} {{ {body} }}"))) == ["HardSwish", "Mul", "Sigmoid"]


def test_silu_stays_as_it_is():
    assert ops(simplified(f"{IO} {{ a = Sigmoid(x) y = Mul(a, x) }}")) == ["Sigmoid", "Mul"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Clip(x, zero)", ["Relu"]),
        ("y = Clip(x, zero, big)", ["Relu"]),
        ("y = Clip(x, zero, six)", ["Clip"]),
        ("a = Relu(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Clip(a, low, six)", ["Clip"]),
        ("a = Clip(x, low, six) y = Relu(a)", ["Clip"]),
        ("a = Max(x, zero) y = Min(six, a)", ["Clip"]),
        ("y = Max(x, zero)", ["Relu"]),
        ("a = Clip(x, low, big) b = Clip(a, nbig) y = Sigmoid(b)", ["Clip", "Sigmoid"]),
        ("a = Clip(x, nbig, big) y = Sigmoid(a)", ["Sigmoid"]),
    ],
)
def test_clips_are_unified(body, expected):
    constants = floats(zero=0.0, six=6.0, low=-1.0, big=3.4028235e38, nbig=-3.4028235e38)
    assert ops(simplified(f"{IO} {constants} {{ {body} }}")) == expected


def test_clip_bounds_that_are_computed_stay():
    body = "m = ReduceMax<keepdims=0>(x) y = Clip(x, zero, m)"
    assert "Clip" in ops(simplified(f"{IO} {floats(zero=0.0)} {{ {body} }}"))


def test_activations_are_found_before_fusing_could_take_them_apart():
    """The 0.5 that ends a GELU must not be folded into the next convolution: the order in CANONICALIZE."""
    text = f"""g (float[1,3,4,6] x, float[3,3,1,1] w) => (float[1,3,4,6] y) {GELU_CONSTANTS}
    {{ {GELU["div, half last"].replace("y =", "g =")} y = Conv(g, w) }}"""
    model = parse(text, {"w": conv_weight(1)})
    passes.canonicalize(model)
    assert ops(model) == ["Gelu", "Conv"]
    passes.simplify(model)
    check_clean(model)
