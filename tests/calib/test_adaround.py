"""AdaRound, the slower choice of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calib_nets import images, mixed, mobile
from hypothesis import given, settings
from hypothesis import strategies as st

from repedge.calib.levels.ranges import ranges
from repedge.calib.recipe import Recipe, StepSpec, calibrate
from repedge.calib.simulation.observe import Moments, observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers
from repedge.calib.weights.rounding import adaround, centred_error, gptq, round_weights
from repedge.errors import UserError
from repedge.scheme import W8A32
from repedge.targets.gpu.scheme import TENSORRT_W8A8
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8
from repedge.tasks.comparison import Comparison


def problem(seed: int, groups: int, rows: int, k: int, limit: int):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((groups, rows, k))
    mix = rng.standard_normal((groups, k, k)) * rng.uniform(0.1, 2, (groups, 1, k))
    cov = mix @ mix.transpose(0, 2, 1) / k
    return w, np.abs(w).max(2, keepdims=True) / limit, cov.astype(np.float32)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 40),
    st.sampled_from([3, 7, 63, 127]),
)
def test_never_worse_than_nearest_or_the_closed_form(
    seed: int, groups: int, rows: int, k: int, limit: int
) -> None:
    w, scale, cov = problem(seed, groups, rows, k, limit)
    start = gptq(w, scale, cov, limit)
    q = adaround(w, scale, cov, limit, start, 40)
    assert (q == np.round(q)).all()
    assert np.abs(q).max() <= limit
    exact, h = w / scale, cov.astype(np.float64)
    mine = centred_error(q - exact, h)
    for other in (start, np.clip(np.round(exact), -limit, limit)):
        assert (mine <= centred_error(other - exact, h) * (1 + 1e-6) + 1e-9).all()


@pytest.mark.slow
def test_finds_what_gptq_does_not() -> None:
    w, scale, cov = problem(1, 1, 32, 64, 7)
    start = gptq(w, scale, cov, 7)
    errors = [
        centred_error(q - w / scale, cov.astype(np.float64)).sum()
        for q in (start, adaround(w, scale, cov, 7, start, 300))
    ]
    assert errors[1] < 0.97 * errors[0]


@pytest.mark.slow
def test_same_weights_same_integers() -> None:
    w, scale, cov = problem(2, 2, 6, 20, 7)
    start = gptq(w, scale, cov, 7)
    first, second = (adaround(w, scale, cov, 7, start, 60) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [TFLITE_W8A8, OPENVINO_W8A8, TENSORRT_W8A8, W8A32], ids=lambda s: s.name)
@pytest.mark.parametrize("net", [mobile, mixed])
def test_every_layer_of_a_network(net, scheme) -> None:
    model, x = net(), images(16)
    stats = observe(model, [x], moments=16)
    errors = {}
    for method in ("nearest", "closed-form", "adaround"):
        plan = ranges(model, stats, scheme)
        rounded = round_weights(model, plan, scheme, stats, method=method, steps=60)
        errors[method] = {la.name: error(la, stats.moments[la.name], model) for la in layers(rounded)}
        for i, layer in enumerate(layers(rounded)):
            found = plan.weights[layer.weight.name]
            shape = [1] * layer.array.ndim
            shape[layer.axis] = -1
            q = layer.array / np.array(found.scale, np.float32).reshape(shape)
            np.testing.assert_allclose(q, np.round(q), atol=1e-4)
            assert np.abs(np.round(q)).max() <= found.limit == scheme.weight_limit(first=i == 0) <= 127
            if method == "adaround":
                wide = stats.moments[layer.name].mean.shape[1] > 9
                assert found.rounding == ("adaround" if wide else "enumeration")
    for name, mine in errors["adaround"].items():
        for other in ("nearest", "closed-form"):
            assert mine <= errors[other][name] * (1 + 1e-4) + 1e-9, name
    assert sum(errors["adaround"].values()) < sum(errors["closed-form"].values())


def error(layer, moments: Moments, model) -> float:
    """What rounding adds to the variance of a layer's outputs, summed over them."""
    exact = next(la for la in layers(model) if la.name == layer.name).array
    d = layer.array.astype(np.float64) - exact
    groups, k = moments.mean.shape
    rows = (d if layer.axis == 0 else d.T).reshape(groups, -1, k)
    return float(centred_error(rows, moments.cov[0].astype(np.float64)).sum())


@pytest.mark.slow
def test_a_recipe_takes_it() -> None:
    model, x = mobile(), images(32)
    steps: list[tuple[str, dict[str, Any]]] = [("observe", {"moments": 32}), ("ranges", {"rule": "minmax"})]
    steps += [("round", {"method": "adaround", "steps": 50}), ("correct_bias", {})]
    recipe = Recipe(name="mine", steps=tuple(StepSpec(step=s, options=o) for s, o in steps))
    assert "round(method=adaround, steps=50)" in str(recipe)
    rounded, plan = calibrate(model, [x], TFLITE_W8A8, recipe)
    assert "adaround" in {w.rounding for w in plan.weights.values()}
    score = Comparison()
    score.update(Simulator(model).run(x)[0].numpy(), Simulator(rounded, plan).run(x)[0].numpy())
    assert score.sqnr_db > 20
    wrong = Recipe(name="mine", steps=(*recipe.steps[:2], StepSpec(step="round", options={"method": "up"})))
    with pytest.raises(UserError, match="no rounding 'up'; choose from nearest, closed-form, adaround"):
        calibrate(model, [x], TFLITE_W8A8, wrong)
