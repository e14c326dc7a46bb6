"""Einsum spelled out: the same numbers, by operators that every target has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graph_helpers import ops, simplified

SIZES = {"n": 1, "h": 2, "q": 5, "k": 6, "d": 4, "c": 3, "w": 7}


def sizes(letters: str) -> list[int]:
    return [SIZES[c] for c in letters]


def net(equation: str, left: str, out: str, right: str = "") -> str:
    """An image that is reshaped into the first operand; the second, ``b``, is a weight."""
    shape = ",".join(map(str, sizes(out)))
    image, operands = math.prod(sizes(left)), "a, b" if right else "a"
    weight = f", float[{','.join(map(str, sizes(right)))}] b" if right else ""
    return f"""g (float[1,1,1,{image}] x{weight}) => (float[{shape}] y)
    {{ s = Constant<value_ints={sizes(left)}>() t = Tanh(x) a = Reshape(t, s)
       y = Einsum<equation="{equation}">({operands}) }}"""


@pytest.mark.parametrize(
    ("equation", "left", "right", "out"),
    [
        ("nhqd,nhkd->nhqk", "nhqd", "nhkd", "nhqk"),
        ("nhqk,nhkd->nqhd", "nhqk", "nhkd", "nqhd"),
        ("nchw,cd->ndhw", "nchw", "cd", "ndhw"),
        ("nqhd,hdc->nqc", "nqhd", "hdc", "nqc"),
        ("nqk,nhd->nqd", "nqk", "nhd", "nqd"),
        ("nhq,nhk->nhqk", "nhq", "nhk", "nhqk"),
        ("nhqd,nhqd->nhq", "nhqd", "nhqd", "nhq"),
        ("...qd, ...kd -> ...qk", "nhqd", "nhkd", "nhqk"),
        ("nhqd,nhdk", "nhqd", "nhdk", "kq"),
        ("qd,hk->dhk", "qd", "hk", "dhk"),
    ],
)
def test_two_operands(equation, left, right, out):
    weights = {"b": np.random.default_rng(0).standard_normal(sizes(right)).astype(np.float32)}
    found = set(ops(simplified(net(equation, left, out, right), weights, atol=1e-5)))
    assert found <= {"Tanh", "Reshape", "Flatten", "Transpose", "ReduceSum", "MatMul", "Gemm"}


@pytest.mark.parametrize(
    ("equation", "left", "out"),
    [("nhqd->nqhd", "nhqd", "nqhd"), ("nhqd->nq", "nhqd", "nq"), ("nhqd", "nhqd", "dhnq")],
)
def test_one_operand(equation, left, out):
    assert "Einsum" not in ops(simplified(net(equation, left, out), atol=1e-5))


def test_both_operands_from_the_image():
    text = """g (float[1,2,5,4] x) => (float[1,2,5,5] y)
    { a = Tanh(x) b = Relu(x) y = Einsum<equation="bhqd,bhkd->bhqk">(a, b) }"""
    assert ops(simplified(text, atol=1e-5)) == ["Tanh", "Relu", "Transpose", "MatMul"]


def test_a_diagonal_stays():
    text = """g (float[1,2,5,5] x) => (float[1,2,5] y) { y = Einsum<equation="bhqq->bhq">(x) }"""
    assert ops(simplified(text)) == ["Einsum"]
