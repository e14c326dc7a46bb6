"""Learned levels: factors per channel and ranges by gradient at the output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from calib_nets import images, mixed, mobile

from repedge.calib.distance import Distance
from repedge.calib.levels.learned import _Descent, learn_levels
from repedge.calib.levels.ranges import ranges
from repedge.calib.plan import QuantPlan
from repedge.calib.recipe import calibrate
from repedge.calib.simulation.observe import input_shape, observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.steps import STEPS, CalibrationState
from repedge.calib.structure import layers, own_parameters
from repedge.calib.weights.equalize import replay
from repedge.photos.feed import Feed
from repedge.targets.tflite.scheme import TFLITE_W8A8


def prepared(model, x):
    model = model.clone()
    own_parameters(model)
    stats = observe(model, [x], moments=len(x))
    return model, stats, ranges(model, stats, TFLITE_W8A8)


def learn(model, stats, plan, x, **options):
    half = len(x) // 2
    feed = Feed([x], input_shape(model))
    return learn_levels(
        model, stats, plan, feed.chosen, range(half), range(half, len(x)), images_per_step=8, **options
    )


def cost(model, plan, x) -> float:
    simulator = Simulator(model, plan, weights=False)
    return Distance.of(model).cost(Simulator(model).answers([x]), simulator.answers([x]))


@pytest.mark.slow
def test_the_float_function_stays_and_the_integers_get_nearer() -> None:
    x = images(64)
    model, stats, plan = prepared(mobile(spread=1.2), x)
    changed, factors, learned, costs = learn(model, stats, plan, x)
    assert costs["after"] < costs["before"]
    assert {"r0", "r1", "r2", "r3"} <= set(factors)
    want = Simulator(model).run(x)[0].numpy()
    np.testing.assert_allclose(Simulator(changed).run(x)[0].numpy(), want, atol=1e-4 * np.abs(want).max())
    assert cost(changed, learned, x[32:]) < 0.9 * cost(model, plan, x[32:])


@pytest.mark.slow
def test_a_bad_range_is_mended_and_tied_ranges_stay_tied() -> None:
    x = images(48)
    model, stats, plan = prepared(mixed(), x)
    narrow = plan.tensors["r"].high * 0.4
    ties = {n: plan.tensors[n].tied_to for n in ("r", "m", "n", "c2", "t")}
    plan.set_range(ties, plan.tensors["r"].low * 0.4, narrow, "too narrow")
    _, factors, learned, costs = learn(model, stats, plan, x, rate=0.1)
    assert not factors  # a GELU and sums leave no pair
    assert costs["after"] < costs["before"]
    assert learned.tensors["r"].high > 1.2 * narrow
    assert len({(learned.tensors[n].scale, learned.tensors[n].zero_point) for n in ties}) == 1
    assert "learned x" in learned.tensors["r"].why
    assert plan.tensors["r"].why == "too narrow"
    fixed = [n for n, t in plan.tensors.items() if "laid down" in t.why]
    assert fixed
    assert all(learned.tensors[n] == plan.tensors[n] for n in ("x", "y", *fixed))


@pytest.mark.slow
def test_what_does_not_hold_for_other_images_is_given_up() -> None:
    x = images(32)
    model, stats, plan = prepared(mobile(), x)
    kept, factors, same, costs = learn(model, stats, plan, x, rate=4.0, steps=4)
    assert costs["after"] >= costs["before"]
    assert kept is model
    assert same is plan
    assert factors == {}


@pytest.mark.slow
def test_same_images_same_factors() -> None:
    x = images(32)
    model, stats, plan = prepared(mobile(), x)
    first, second = (learn(model, stats, plan, x, steps=5)[1] for _ in range(2))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
def test_the_plan_has_the_factors_of_all_steps() -> None:
    model, x = mobile(spread=1.2), images(64)
    reference = model.clone()
    own_parameters(reference)
    feed = Feed([x], input_shape(model))
    c = CalibrationState(reference, QuantPlan(scheme=TFLITE_W8A8), feed, Distance.of(model))
    for step in ("observe", "equalize", "ranges", "learn_levels"):
        STEPS[step](c)
    assert any("levels learned" in note and "given up" not in note for note in c.plan.notes)
    for again, mine in zip(layers(replay(model, c.plan.equalization)), layers(c.reference), strict=True):
        np.testing.assert_allclose(again.array, mine.array, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_too_few_images_to_hold_some_out() -> None:
    _, plan = calibrate(mobile(), [images(16)], TFLITE_W8A8)
    assert not any("levels" in note for note in plan.notes)


def test_one_images_gradient_does_not_move_a_channel_for_good() -> None:
    log = torch.zeros(256, requires_grad=True)
    descent = _Descent({"t": log})
    for step in range(40):
        log.grad = torch.ones(256)
        if step == 20:
            log.grad[7] = 1e4
        descent.step(0.03)
    assert abs(float((log[7] - log[8]).detach())) < 0.25
