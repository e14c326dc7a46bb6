"""Accuracy budget, refinement, layers in integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calib_nets import images, mixed, mobile
from graph_helpers import run
from integer_simulator import integer_simulator

from repedge.calib.distance import Distance
from repedge.calib.levels.ranges import ranges
from repedge.calib.levels.refine import refine
from repedge.calib.levels.search import layer_costs
from repedge.calib.mixed.choose import choose
from repedge.calib.mixed.raising import keep_float, raises
from repedge.calib.plan import QuantPlan
from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import RECIPES, Recipe, calibrate
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers, own_parameters
from repedge.calib.weights.equalize import equalize
from repedge.calib.weights.rounding import round_weights
from repedge.errors import CheckFailed
from repedge.targets.gpu.scheme import TENSORRT_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8


def bad_layer(x: np.ndarray):
    """A graph in which one layer's input is far too coarse: (rounded graph, float graph, plan)."""
    model = mobile()
    own_parameters(model)
    stats = observe(model, [x], moments=len(x))
    plan = ranges(model, stats, TFLITE_W8A8, rule="minmax")
    plan.set_range({"r2": None}, 0, plan.tensors["r2"].high * 20, "too wide")
    return round_weights(model, plan, TFLITE_W8A8, stats), model, plan


def around_r2(model: ir.Model) -> list[str]:
    """What writes and what reads the coarse tensor."""
    return [str(n.name) for n in model.graph if n.outputs[0].name in ("c2", "r2", "c3")]


def distance(model, reference, plan, x) -> float:
    return Distance.of(model).cost(Simulator(reference).answers([x]), Simulator(model, plan).answers([x]))


@pytest.mark.slow
def test_layer_costs_find_the_bad_layer() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    costs = layer_costs(model, reference, plan, lambda: [x])
    reader = next(la.name for la in layers(model) if la.x.name == "r2")
    assert costs[0].node == reader
    assert costs[0].cost > 5 * costs[1].cost
    assert len(costs) == 6


@pytest.mark.slow
def test_raises_go_by_what_they_give_for_their_price() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    found = raises(model, reference, plan, lambda: [x[:6], x[6:]])
    reader = next(la.name for la in layers(model) if la.x.name == "r2")
    best = max(found, key=lambda r: r.gain)
    assert (best.node, best.weights) == (reader, False)
    assert [r.node for r in found].index(reader) <= 1
    wanted, start = Simulator(reference).run(x)[0], Simulator(model, plan).run(x)[0]
    before = float(((start - wanted) ** 2).mean() / (wanted**2).mean())
    raised, new_plan = keep_float(model, reference, plan, around_r2(model), "", weights=())
    after = float(((Simulator(raised, new_plan).run(x)[0] - wanted) ** 2).mean() / (wanted**2).mean())
    assert best.gain == pytest.approx(before - after, rel=0.3)
    for name in {r.node for r in found}:
        first, second = [r for r in found if r.node == name]
        assert (first.weights, second.weights) == (False, True)
    assert min(r.price for r in found) > 0
    # Where floats and 8-bit weights don't go together, a layer is raised whole.
    symmetric = plan.model_copy(update={"scheme": TENSORRT_W8A8})
    assert all(r.weights for r in raises(model, reference, symmetric, lambda: [x]))


@pytest.mark.slow
def test_choose_raises_what_the_budget_needs() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    start = distance(model, reference, plan, x)
    budget = start / 2
    chosen, new_plan, trials = choose(model, reference, plan, lambda: [x], budget, most=3, lowered=2)
    assert trials[0].raised == 0
    assert trials[0].cost == pytest.approx(start)
    assert trials[-1].raised <= 2
    assert set(new_plan.float_nodes) >= set(around_r2(model))
    assert "r2" not in new_plan.tensors
    assert "r1" in new_plan.tensors
    assert distance(chosen, reference, new_plan, x) <= budget
    assert not plan.float_nodes
    same, same_plan, trials = choose(model, reference, plan, lambda: [x], start)
    assert (same, same_plan, len(trials)) == (model, plan, 1)


@pytest.mark.slow
def test_choose_says_when_it_cannot() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    with pytest.raises(CheckFailed, match=r"not met with up to 1 layers .*0 raised: .*1 raised: "):
        choose(model, reference, plan, lambda: [x], 1e-12, most=1)


@pytest.mark.slow
def test_choose_goes_by_the_measure_it_is_given() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    seen = []

    def measure(m: ir.Model, p: QuantPlan) -> float:
        seen.append(len(p.float_nodes))
        return 0.0 if len(p.float_nodes) >= 6 else 1.0

    _, new_plan, trials = choose(model, reference, plan, lambda: [x], 0.5, measure=measure, most=6)
    assert [t.nodes for t in trials] == seen
    assert len(new_plan.float_nodes) == min(n for n in seen if n >= 6)
    assert [t.raised for t in trials][:3] == [0, 1, 2]


def test_raised_layers_are_float_in_the_qdq_graph() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    name = layers(model)[3].name
    raised, new_plan = keep_float(model, reference, plan, [name], "for the test")
    graph = to_qdq(raised, new_plan)
    onnx.checker.check_model(ir.serde.serialize_model(graph), full_check=True)
    assert "w3" in graph.graph.initializers
    assert "w3/q" not in graph.graph.initializers
    np.testing.assert_array_equal(graph.graph.initializers["w3"].const_value, layers(reference)[3].array)


def test_raised_layers_may_keep_their_integer_weights() -> None:
    x = images(12)
    model, reference, plan = bad_layer(x)
    raised, new_plan = keep_float(model, reference, plan, around_r2(model), "test", weights=())
    assert set(new_plan.weights) == set(plan.weights)
    assert "r2" not in new_plan.tensors
    graph = to_qdq(raised, new_plan)
    onnx.checker.check_model(ir.serde.serialize_model(graph), full_check=True)
    assert {"w2/q", "w3/q"} <= set(graph.graph.initializers)
    got = run(graph, {"x": x[:1]})[0]
    np.testing.assert_allclose(
        got, Simulator(raised, new_plan).run(x[:1])[0].numpy(), atol=1e-3 * np.abs(got).max()
    )


@pytest.mark.slow
def test_refinement_is_nearer_on_held_out_images_or_given_up() -> None:
    x, held = images(32), images(16, seed=5)
    model, reference, plan = bad_layer(x)
    args = (lambda: [x[:16], x[16:]], lambda: [held])
    before = distance(model, reference, plan, held)
    refined, new_plan, costs = refine(model, reference, plan, *args, steps=12, rate=1e-2)
    assert costs["before"] == pytest.approx(before)
    assert costs["after"] < before
    assert distance(refined, reference, new_plan, held) == pytest.approx(costs["after"])
    for layer in layers(refined):  # still integers times scale
        scale = np.array(new_plan.weights[layer.weight.name].scale, np.float32)
        q = layer.array / scale.reshape(-1, *[1] * (layer.array.ndim - 1))
        np.testing.assert_allclose(q, np.round(q), atol=1e-4)
    same, same_plan, costs = refine(model, reference, plan, *args, steps=2, rate=10.0)
    assert costs["after"] >= costs["before"]
    assert same is model
    assert same_plan is plan


# --- integers --------------------------------------------------------------------------------------------


def test_integer_simulation_is_integer_arithmetic() -> None:
    """One pointwise layer with Relu, against int64 arithmetic in numpy."""
    model, x = mobile(), images(16)
    model, _ = equalize(model, observe(model, [x]))
    stats = observe(model, [x], moments=16)
    plan = ranges(model, stats, TFLITE_W8A8)
    model = round_weights(model, plan, TFLITE_W8A8, stats)
    seen: dict[str, Any] = {}
    taps = {n: (lambda y, n=n: seen.__setitem__(n, y.numpy().copy())) for n in ("r1", "r2")}
    integer_simulator(model, plan).run(x[:4], taps)
    t_in, t_out, w = plan.tensors["r1"], plan.tensors["r2"], plan.weights["w2"]
    layer = next(la for la in layers(model) if la.weight.name == "w2")
    s_w = np.array(w.scale, np.float32)
    q_x = np.round(seen["r1"] / t_in.scale).astype(np.int64)
    q_w = np.round(layer.array[:, :, 0, 0] / s_w[:, None]).astype(np.int64)
    bias = layer.bias.const_value.numpy().astype(np.float64) / (s_w.astype(np.float64) * t_in.scale)
    sums = np.einsum("nchw,oc->nohw", q_x, q_w) + np.round(bias).astype(np.int64)[:, None, None]
    multiplier = np.float32(t_in.scale) * s_w / np.float32(t_out.scale)
    units = np.round(sums.astype(np.float32) * multiplier[:, None, None])
    want = np.clip(units, -128 - t_out.zero_point, 127 - t_out.zero_point)
    np.testing.assert_array_equal(np.round(seen["r2"] / np.float32(t_out.scale)), want)


@pytest.mark.slow
def test_integer_simulation_is_within_a_unit_of_the_qdq_graph() -> None:
    static = Recipe(name="static", steps=RECIPES["fast"].steps[:-1])  # its output is an integer
    changed, plan = calibrate(mixed(), [images(16)], TFLITE_W8A8, static)
    qdq, x = to_qdq(changed, plan), images(4, seed=2)
    want = np.concatenate([run(qdq, {"x": x[i : i + 1]})[0] for i in range(4)])
    got = integer_simulator(changed, plan).run(x)[0].numpy()
    assert np.abs(got - want).max() <= 1.01 * plan.tensors["y"].scale
