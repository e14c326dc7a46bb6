"""The steps of calibration, each on its own."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import onnx_ir as ir
import pytest
from calib_nets import clean, images, mixed, mobile
from graph_helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st

from repedge.calib.levels.ranges import RULES, choose_ranges, ranges
from repedge.calib.simulation.observe import RESERVOIR, observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers, place, set_array
from repedge.calib.weights.bias import correct_bias, correct_bias_at_once
from repedge.calib.weights.rounding import centred_error, enumerate_choices, gptq, round_weights, weight_scale
from repedge.errors import UserError
from repedge.graph.values import const
from repedge.photos.feed import Feed
from repedge.scheme import W8A32
from repedge.targets.coreml.scheme import COREML_W8A8
from repedge.targets.gpu.scheme import TENSORRT_W8A8
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8


def batches(x: np.ndarray, size: int = 5):
    return [x[i : i + size] for i in range(0, len(x), size)]


# --- simulate --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [mobile, mixed])
def test_simulator_is_the_float_graph(net) -> None:
    model, x = net(), images(3)
    want = np.concatenate([run(model, {"x": x[i : i + 1]})[0] for i in range(3)])
    np.testing.assert_allclose(Simulator(model).run(x)[0].numpy(), want, rtol=1e-4, atol=1e-5)


def test_simulator_runs_what_torch_has_no_row_for() -> None:
    text = """net (float[1,2,6,6] x) => (float[1,2,12,12] y) {
        r = Relu(x)
        y = Resize <mode="linear", coordinate_transformation_mode="half_pixel"> (r, , scales)
    }"""
    model = clean(text, {"scales": np.array([1, 1, 2, 2], np.float32)})
    x = images(3, 6, 2)
    want = np.concatenate([run(model, {"x": x[i : i + 1]})[0] for i in range(3)])
    np.testing.assert_allclose(Simulator(model).run(x)[0].numpy(), want, atol=1e-6)


# --- observe ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_observe_sees_extremes_and_moments_whatever_the_batch_size() -> None:
    model, x = mobile(), images(11)
    one, many = (observe(model, batches(x, n), moments=11, histograms=True) for n in (1, 4))
    assert one.images == many.images == 11
    np.testing.assert_allclose(one.tensors["x"].highs, x.max((2, 3)), rtol=0)
    assert one.tensors["x"].low == x.min()
    for name in one.tensors:
        np.testing.assert_allclose(one.tensors[name].lows, many.tensors[name].lows, rtol=1e-4, atol=1e-5)
    for name, m in one.moments.items():
        np.testing.assert_allclose(m.mean, many.moments[name].mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(m.cov[0], many.moments[name].cov[0], rtol=2e-2, atol=1e-3)
    assert one.tensors["x"].histogram.sum() == x.size


def test_moments_are_those_of_the_columns() -> None:
    model, x = mobile(), images(6)
    found = observe(model, batches(x), moments=6).moments
    first = next(la for la in layers(model))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    columns = np.stack([padded[:, :, i : i + 12 : 2, j : j + 12 : 2] for i in range(3) for j in range(3)], 2)
    flat = columns.reshape(6, 27, -1).transpose(1, 0, 2).reshape(27, -1)
    np.testing.assert_allclose(found[first.name].mean[0], flat.mean(1), atol=1e-5)
    np.testing.assert_allclose(found[first.name].cov[0][0], np.cov(flat, bias=True), atol=1e-4)


def test_observe_keeps_a_bounded_choice_of_images() -> None:
    model = clean("n (float[1,1,2,2] x) => (float[1,1,2,2] y) { y = Relu(x) }", {})
    x = np.arange(4 * 600, dtype=np.float32).reshape(600, 1, 2, 2)
    stats = observe(model, batches(x, 50))
    kept = stats.tensors["x"].image_highs
    assert stats.images == 600
    assert len(kept) == RESERVOIR
    assert stats.tensors["x"].high == x.max()
    assert len(set(kept.tolist())) == RESERVOIR
    assert 0.35 < kept.mean() / x.max() < 0.65


def test_observe_names_the_node_that_gives_nan() -> None:
    model = clean("n (float[1,1,2,2] x) => (float[1,1,2,2] y) { r = Sqrt(x) \n y = Relu(r) }", {})
    with pytest.raises(UserError, match=r"Sqrt node .* gives NaN"):
        observe(model, [-np.ones((1, 1, 2, 2), np.float32)])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3, 4, 4), np.float32), "no calibration images"),
        (np.ones((2, 3, 4, 4), np.float32), "of one colour"),
        (np.ones((2, 1, 4, 4), np.float32), r"takes \[N, 3, 4, 4\]"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "NaN"),
    ],
)
def test_feed_refuses(x: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Feed([x], (3, 4, 4))


def test_feed_gives_the_images_again_and_again() -> None:
    x = images(10)
    feed = Feed((b for b in batches(x, 3)), (3, 12, 12))
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(feed.batches())), x)
    np.testing.assert_array_equal(np.concatenate(list(feed.batches(5))), x[::2])


# --- ranges ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", list(RULES))
def test_every_rule_gives_a_range_inside_the_extremes(rule: str) -> None:
    model, x = mobile(), images(16)
    stats = observe(model, [x], histograms=True)
    plan = ranges(model, stats, TFLITE_W8A8, rule=rule)
    for name, t in plan.tensors.items():
        step = t.scale
        assert t.low >= min(stats.tensors[name].low, 0) - step
        assert t.high <= stats.tensors[name].high + step
        assert t.low <= 0 <= t.high
    assert plan.tensors["r0"].zero_point == -128


def test_ranges_without_histograms_say_so() -> None:
    model, x = mobile(), images(4)
    with pytest.raises(UserError, match="histograms=True"):
        ranges(model, observe(model, [x]), TFLITE_W8A8, rule="mse")
    with pytest.raises(UserError, match="no range rule 'best'"):
        ranges(model, observe(model, [x]), TFLITE_W8A8, rule="best")


def test_tied_tensors_share_and_fixed_ones_are_fixed() -> None:
    model, x = mixed(), images(16)
    plan = ranges(model, observe(model, [x]), TFLITE_W8A8)
    group = [plan.tensors[n] for n in ("r", "m", "n", "c2", "t")]
    assert len({(t.scale, t.zero_point) for t in group}) == 1
    assert {t.tied_to for t in group if t.tied_to is not None} == {"r"}
    assert (plan.tensors["s"].scale, plan.tensors["s"].zero_point) == (1 / 256, -128)
    assert plan.tensors["k"].why == "values of a constant"
    assert "a" not in plan.tensors  # between an addition and its Relu
    assert "c0" in plan.tensors  # TensorFlow Lite has no convolution with GELU
    assert "y" in plan.tensors


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [OPENVINO_W8A8, TENSORRT_W8A8, COREML_W8A8])
def test_schemes_place_integers_where_they_are_read(scheme) -> None:
    model, x = mixed(), images(8)
    plan = ranges(model, observe(model, [x]), scheme)
    assert "y" not in plan.tensors
    assert "s" not in plan.tensors  # only a float Mul reads it
    assert {"x", "g0", "r", "t"} <= set(plan.tensors)
    if scheme.symmetric:
        assert {t.zero_point for t in plan.tensors.values()} == {0}
    if scheme is OPENVINO_W8A8:
        assert "c0" not in plan.tensors  # GELU goes with the convolution
        plain = mobile()
        assert ranges(plain, observe(plain, [x]), scheme).tensors["r2"].zero_point == 0


def test_weight_only_schemes_round_no_activation() -> None:
    placement = place(mixed(), W8A32)
    assert not placement.values
    assert len(placement.layers) == 5


def test_unknown_float_node() -> None:
    with pytest.raises(UserError, match="no node 'nope'"):
        place(mobile(), TFLITE_W8A8, ["nope"])


@pytest.mark.slow
def test_the_rule_is_chosen_on_the_output() -> None:
    model, x = mobile(), images(24)
    stats = observe(model, [x], histograms=True)
    plan, costs = choose_ranges(
        model, stats, TFLITE_W8A8, lambda: [x], candidates=(("mean", 1.0), ("mean", 0.05), ("minmax", 1.0))
    )
    assert costs["mean x 0.05"] == max(costs.values())
    best = min(costs, key=costs.__getitem__)
    rule, factor = best.split(" x ")
    assert plan.tensors == ranges(model, stats, TFLITE_W8A8, rule=rule, factor=float(factor)).tensors


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [TFLITE_W8A8, OPENVINO_W8A8, TENSORRT_W8A8], ids=lambda s: s.name)
@given(st.floats(-1e3, 0), st.floats(0, 1e3))
def test_params_hold_the_range_and_zero_exactly(scheme, low: float, high: float) -> None:
    scale, zero_point = scheme.params(low, high)
    qmin, qmax = scheme.limits()
    assert qmin <= zero_point <= qmax
    assert np.float32(scale) == scale
    real = scheme.range_of(scale, zero_point)
    slack = 0.51 * scale + 1e-6
    if not (scheme.symmetric and qmin == 0):
        assert real[0] <= low + slack
    assert real[1] >= high - slack


# --- rounding --------------------------------------------------------------------------------------------


def _problem(seed: int, groups: int, rows: int, k: int):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((groups, rows, k))
    mix = rng.standard_normal((groups, k, k)) * rng.uniform(0.1, 2, (groups, 1, k))
    cov = mix @ mix.transpose(0, 2, 1) / k
    scale = np.abs(w).max(2, keepdims=True) / 7  # coarse, so that choices matter
    return w, scale, cov.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 5), st.integers(2, 40))
def test_gptq_is_never_worse_than_nearest(seed: int, groups: int, rows: int, k: int) -> None:
    w, scale, cov = _problem(seed, groups, rows, k)
    q = gptq(w, scale, cov, 7)
    plain = np.clip(np.round(w / scale), -7, 7)
    assert (q == np.round(q)).all()
    assert np.abs(q).max() <= 7
    exact = w / scale
    mine, theirs = (centred_error(v - exact, cov.astype(np.float64)) for v in (q, plain))
    assert (mine <= theirs * (1 + 1e-6) + 1e-9).all()


def test_gptq_is_much_better_where_inputs_are_correlated() -> None:
    w, scale, cov = _problem(1, 1, 32, 64)
    exact = w / scale
    mine = centred_error(gptq(w, scale, cov, 7) - exact, cov.astype(np.float64)).sum()
    theirs = centred_error(np.clip(np.round(exact), -7, 7) - exact, cov.astype(np.float64)).sum()
    assert mine < 0.5 * theirs


def test_enumeration_is_brute_force() -> None:
    w, scale, cov = _problem(3, 3, 1, 4)
    got = enumerate_choices(w, scale, cov, 7)
    for g in range(3):
        exact = w[g, 0] / scale[g, 0]
        best = min(
            itertools.product(*[(np.floor(v), np.floor(v) + 1) for v in exact]),
            key=lambda q: (
                (np.clip(q, -7, 7) - exact) @ cov[g].astype(np.float64) @ (np.clip(q, -7, 7) - exact)
            ),
        )
        np.testing.assert_array_equal(got[g, 0], np.clip(best, -7, 7))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nearest", "closed-form"])
def test_rounded_weights_are_on_their_grid(method: Literal["nearest", "closed-form"]) -> None:
    model, x = mobile(), images(8)
    stats = observe(model, [x], moments=8)
    plan = ranges(model, stats, TFLITE_W8A8)
    rounded = round_weights(model, plan, TFLITE_W8A8, stats, method=method)
    for layer in layers(rounded):
        found = plan.weights[layer.weight.name]
        q = layer.array / np.array(found.scale, np.float32).reshape(-1, *[1] * (layer.array.ndim - 1))
        np.testing.assert_allclose(q, np.round(q), atol=1e-4)
        assert np.abs(np.round(q)).max() <= 127
    how = {w.rounding for w in plan.weights.values()}
    assert how == ({"nearest"} if method == "nearest" else {"gptq", "enumeration"})


def test_per_tensor_weights_and_seven_bits() -> None:
    model, x = mobile(), images(8)
    scheme = TFLITE_W8A8.model_copy(update={"per_channel": False, "first_layer_bits": 7})
    plan = ranges(model, observe(model, [x]), scheme)
    round_weights(model, plan, scheme, method="nearest")
    assert all(len(w.scale) == 1 and w.axis is None for w in plan.weights.values())
    assert [w.limit for w in plan.weights.values()] == [63, 127, 127, 127, 127, 127]


def test_dead_channels_do_not_overflow_the_bias() -> None:
    model, x = mobile(), images(8)
    layer = layers(model)[2]
    w, b = layer.array.copy(), const(layer.bias).copy()
    w[3], b[3] = 1e-12, 50.0
    w[4] = 0.0
    set_array(layer.weight, w)
    set_array(layer.bias, b)
    plan = ranges(model, observe(model, [x]), TFLITE_W8A8)
    scale, raised = weight_scale(layer, plan, TFLITE_W8A8, 127)
    integers = b.astype(np.float64) / (scale.astype(np.float64) * plan.tensors[layer.x.name].scale)
    assert raised == 1
    assert np.abs(integers).max() <= 2**30
    assert abs(integers[3]) == pytest.approx(2**29, rel=1e-3)
    assert scale[4] > 0


# --- bias ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bias_correction_takes_out_the_mean_error_of_every_layer() -> None:
    model, x = mobile(), images(24)
    stats = observe(model, [x], moments=24)
    plan = ranges(model, stats, TFLITE_W8A8)
    coarse = TFLITE_W8A8.model_copy(update={"weight_bits": 4})
    rounded = round_weights(model, plan, coarse, method="nearest")
    corrected = correct_bias(rounded, model, plan, lambda: batches(x))
    at_once = correct_bias_at_once(rounded, model, plan, stats)
    want, before, after, once = (_means(m, x) for m in (model, rounded, corrected, at_once))
    for name in want:
        np.testing.assert_allclose(after[name], want[name], atol=1e-5 * max(1, np.abs(want[name]).max()))
    assert np.abs(once["y"] - want["y"]).max() < 0.5 * np.abs(before["y"] - want["y"]).max()
    assert set(plan.biases) == {la.name for la in layers(model)}


@pytest.mark.slow
def test_bias_correction_of_exact_weights_changes_nothing() -> None:
    model, x = mobile(), images(8)
    plan = ranges(model, observe(model, [x]), TFLITE_W8A8)
    rounded = round_weights(model, plan, TFLITE_W8A8, method="nearest")
    again = correct_bias(rounded, rounded, plan, lambda: [x])
    for a, b in zip(layers(rounded), layers(again), strict=True):
        np.testing.assert_array_equal(const(a.bias), const(b.bias))


def _means(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    taps = {la.out.name: (lambda y, n=la.out.name: found.__setitem__(n, _mean(y))) for la in layers(model)}
    Simulator(model, keep=taps).run(x, taps)
    return found


def _mean(y) -> np.ndarray:
    return y.double().mean((0, 2, 3) if y.ndim == 4 else 0).numpy()


# --- search ----------------------------------------------------------------------------------------------
