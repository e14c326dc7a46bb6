"""Norms and linear attention in float16 artifacts, of numbers whose sums float16 can't hold, and of zeros."""

from __future__ import annotations

import numpy as np
import pytest
from op_table import CASES
from operators import Case, case, reference

from repedge import targets
from repedge.config import Preprocess
from repedge.targets.base import Job

JOB = Job("net", "fp16", Preprocess(), "float32")
HALF = ("coreml", "gpu")
"""Targets whose activations are float16."""

NORMS = {
    **{
        name: CASES[name]
        for name in ("unit_length", "rms_norm", "layer_norm_spelled_out", "layer_norm_width")
    },
    "over_its_norm": case("n = ReduceL2(x, a) e = Add(n, k) y = Div(x, e)", a=[1], k=1e-9),
    "root_of_sum": case("q = Pow(x, p) s = ReduceSum(q, a) r = Sqrt(s) y = Div(x, r)", a=[1], p=2.0),
    "log_sum_exp": case("y = ReduceLogSumExp(x, a)", a=[1]),
    "group_norm": CASES["group_norm"],
    "linear_attention": case(
        "a = Reshape(x, s) q = Relu(a) t = Transpose<perm=[0,2,1]>(q) v = Pad(a, pads, one) "
        "m = MatMul(t, v) o = MatMul(q, m) n = Slice(o, i, j, last) d = Slice(o, j, k, last) "
        "e = Add(d, least) y = Div(n, e)",
        (1, 1, 64, 8),
        s=[0, 64, 8],
        pads=[0, 0, 0, 0, 0, 1],
        one=1.0,
        i=[0],
        j=[8],
        k=[9],
        last=[-1],
        least=1e-6,
    ),
}


def in_half(row: Case, target: str, x: np.ndarray, folder) -> list[np.ndarray]:
    found = targets.get(target)
    model = row.model()
    artifact = found.compile(model, JOB, folder)
    names = [str(value.name) for value in model.graph.outputs]
    return found.open(folder / artifact.main, JOB, names, threads=1).run(x)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("target", HALF)
def test_large_numbers(target, name, tmp_path):
    """Of 400 and more: their squares overflow. 40 dB is what float16 promises."""
    row = NORMS[name]
    x = (400 * row.input()).astype(np.float16).astype(np.float32)
    (found,), (wanted,) = in_half(row, target, x, tmp_path), reference(row.model(), x)
    assert np.isfinite(found).all()
    noise = max(np.sum((found.astype(np.float64) - wanted) ** 2), 1e-30)
    assert 10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / noise) > 50


@pytest.mark.parametrize("name", ["unit_length", "rms_norm", "over_its_norm", "layer_norm_width"])
@pytest.mark.parametrize("target", HALF)
def test_zeros_over_their_norm(target, name, tmp_path):
    """The bounds that keep the divisor above 0 are below float16's least number."""
    row = NORMS[name]
    x = np.zeros((2, *row.x[1:]), np.float32)
    (found,), (wanted,) = in_half(row, target, x, tmp_path), reference(row.model(), x)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
