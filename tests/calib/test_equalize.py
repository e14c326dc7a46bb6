"""Cross-layer equalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from calib_nets import images, mixed, mobile
from hypothesis import given, settings
from hypothesis import strategies as st

from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import own_parameters
from repedge.calib.weights.equalize import equalize, pairs


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000), st.floats(0.1, 1.0), st.floats(0.0, 1.0),
    st.none() | st.floats(0.1, 1.0), st.none() | st.floats(0.5, 1.0),
)  # fmt: skip
def test_equalize_leaves_the_function_in_float64(seed, alpha, weights, depthwise, quantile) -> None:
    model, x = mobile(seed, spread=1.5), images(3, seed=seed)
    stats = observe(model, [x])
    changed, factors = equalize(
        model, stats, alpha=alpha, weights=weights, depthwise=depthwise, quantile=quantile
    )
    assert factors
    want, got = (_in_float64(m, x) for m in (model, changed))
    # What is left is the rounding of the new weights to float32.
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def _in_float64(model: ir.Model, x: np.ndarray) -> np.ndarray:
    simulator = Simulator(model)
    simulator.constants = {
        n: c.double() if c.is_floating_point() else c for n, c in simulator.constants.items()
    }
    return simulator.run(x.astype(np.float64))[0].numpy()


def test_equalized_statistics_are_those_of_the_equalized_graph() -> None:
    model, x = mobile(), images(8)
    stats = observe(model, [x], moments=8)
    changed, factors = equalize(model, stats)
    want, got = observe(changed, [x], moments=8), stats.divided(changed, factors)
    for name in want.tensors:
        np.testing.assert_allclose(got.tensors[name].highs, want.tensors[name].highs, rtol=1e-4, atol=1e-5)
        assert got.tensors[name].high == pytest.approx(want.tensors[name].high, rel=1e-4)
    for name in want.moments:
        scale = np.abs(want.moments[name].cov[0]).max()
        np.testing.assert_allclose(got.moments[name].cov[0], want.moments[name].cov[0], atol=1e-3 * scale)


@pytest.mark.slow
def test_equalize_evens_out_ranges() -> None:
    model, x = mobile(spread=0.7), images(16)
    stats = observe(model, [x])
    changed, _ = equalize(model, stats, alpha=1.0, weights=0.0)
    after = observe(changed, [x]).tensors["r2"].channel_magnitude
    before = stats.tensors["r2"].channel_magnitude
    alive = before > 1e-6
    assert after[alive].max() / after[alive].min() < 1.001
    assert before[alive].max() / before[alive].min() > 3
    behind_pointwise = [str(p.between[-1].name) for p in pairs(model) if p.consumer.depthwise]
    only_there, factors = equalize(model, stats, alpha=0.0, weights=0.0, depthwise=1.0, quantile=0.9)
    assert {n for n, f in factors.items() if (f != 1).any()} >= set(behind_pointwise)
    after = observe(only_there, [x]).tensors[behind_pointwise[0]].channel_quantile(0.9)
    assert after[after > 1e-6].max() / after[after > 1e-6].min() < 1.001


def test_only_homogeneous_functions_are_crossed() -> None:
    found = {(p.producer.out.name, p.consumer.out.name) for p in pairs(_with_biases(mixed()))}
    assert not any(a == "c0" for a, _ in found)  # GELU
    assert ("s0", "u") not in found  # Sigmoid
    relu6 = mobile()
    assert len(pairs(_with_biases(relu6))) == 5


def _with_biases(model: ir.Model) -> ir.Model:
    own_parameters(model)
    return model
