"""A LayerNormalization spelled out becomes one, what only looks like it does not; means of values."""

from __future__ import annotations

import numpy as np
import pytest
from operators import case, reference, relative_error, weights

from repedge.passes import clean

BODY = "m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, a) e = Add(v, k) s = Sqrt(e)"
TOKENS = (1, 3, 5, 7)

WRITTEN = {
    "div": (BODY + "y = Div(d, s)", {"a": [-1]}, "LayerNormalization"),
    "mul, scale and bias": (
        BODY + "r = Reciprocal(s) n = Mul(r, d) g = Mul(n, w) y = Add(b, g)",
        {"a": [3], "w": (7,), "b": (7,)},
        "LayerNormalization",
    ),
    "difference computed twice": (
        "m = ReduceMean(x, a) d = Sub(x, m) f = Sub(x, m) q = Pow(f, two) v = ReduceMean(q, a) e = Add(k, v)"
        "s = Pow(e, half) y = Div(d, s)",
        {"a": [2, 3], "two": 2.0, "half": 0.5},
        "LayerNormalization",
    ),
    "channels first": (
        BODY + "n = Div(d, s) g = Mul(w, n) y = Add(g, b)",
        {"a": [1], "w": (3, 1, 1), "b": (1, 3, 1, 1)},
        "Transpose LayerNormalization Transpose",
    ),
    "a scale of another axis": (
        BODY + "n = Div(d, s) y = Mul(n, w)",
        {"a": [-1], "w": (3, 1, 1)},
        "LayerNormalization Mul",
    ),
}

LEFT = {
    "means over other axes": (
        "m = ReduceMean(x, a) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, c) e = Add(v, k) s = Sqrt(e)"
        "y = Div(d, s)",
        {"a": [-1], "c": [2]},
    ),
    "no mean taken off": (
        "q = Mul(x, x) v = ReduceMean(q, a) e = Add(v, k) s = Sqrt(e) y = Div(x, s)",
        {"a": [-1]},
    ),
    "another numerator": (BODY + "y = Div(x, s)", {"a": [-1]}),
    "sums": (BODY.replace("ReduceMean(q", "ReduceSum(q") + "y = Div(d, s)", {"a": [-1]}),
    "rows": (BODY + "y = Div(d, s)", {"a": [2]}),
}


def cleaned(body, constants):
    row = case(body, TOKENS, k=1e-5, **constants)
    model, x = row.model(), row.input()
    wanted = reference(model, x)
    clean(model)
    assert relative_error(reference(model, x), wanted) < 2e-6
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_normalization_is_one_operator(name):
    body, constants, wanted = WRITTEN[name]
    assert cleaned(body, constants) == wanted.split()


@pytest.mark.parametrize("name", LEFT)
def test_what_only_looks_like_one_stays(name):
    body, constants = LEFT[name]
    assert "LayerNormalization" not in cleaned(body, constants)


def test_a_mean_of_values_is_a_sum():
    assert cleaned("t = Tanh(x) y = Mean(x, t, w)", {"w": weights(3, 1, 1)}) == ["Tanh", "Add", "Add", "Mul"]
    assert cleaned("t = Tanh(x) y = Sum(x, t, w)", {"w": np.array(0.5)}) == ["Tanh", "Add", "Add"]
