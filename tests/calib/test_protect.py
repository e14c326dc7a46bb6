"""Single tensors that 8 bits would ruin the answer with, gates, flat stretches, and where decoding begins."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from calib_nets import clean, he, images, mobile

from repedge import tasks
from repedge.calib.distance import Distance
from repedge.calib.levels.noise import tensor_influence
from repedge.calib.levels.plateaus import curve, telling
from repedge.calib.mixed.protect import protect
from repedge.calib.plan import QuantPlan
from repedge.calib.recipe import RECIPES, Recipe, calibrate
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import set_array
from repedge.calib.weights.equalize import replay
from repedge.calib.weights.gates import gates, open_gates
from repedge.graph.analysis.decoding import decoding, last_layers
from repedge.graph.analysis.parts import mixed_nodes, parts_of
from repedge.graph.values import const
from repedge.scheme import QuantScheme
from repedge.targets.coreml.scheme import COREML_W8A8
from repedge.targets.gpu.scheme import ONNXRUNTIME_W8A8, TENSORRT_W8A8
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8

ALL = (COREML_W8A8, OPENVINO_W8A8, TENSORRT_W8A8, ONNXRUNTIME_W8A8, TFLITE_W8A8)
UNPROTECTED = Recipe(name="bare", steps=tuple(s for s in RECIPES["fast"].steps if s.step != "protect"))


def detector(seed: int = 0, wild: bool = True) -> ir.Model:
    """A stem whose channels differ 1000-fold, a depthwise stage, raw boxes beside probabilities."""
    rng = np.random.default_rng(seed)
    gain = np.geomspace(0.05, 60, 8).astype(np.float32) if wild else np.ones(8, np.float32)
    weights: dict[str, np.ndarray] = {
        "w0": he(rng, 8, 3, 3, 3) * gain.reshape(-1, 1, 1, 1),
        "w1": he(rng, 8, 1, 3, 3) / gain.reshape(-1, 1, 1, 1),
        "w2": he(rng, 24, 8, 1, 1) * 2,
        "w3": he(rng, 24, 24, 3, 3),
        "wb": he(rng, 4, 24, 1, 1),
        "ws": he(rng, 5, 24, 1, 1) * 3,
        "bs": np.full(5, -3, np.float32),
    }
    for name, width in (("b0", 8), ("b1", 8), ("b2", 24), ("b3", 24), ("bb", 4)):
        weights[name] = (0.2 * rng.standard_normal(width)).astype(np.float32)
    body = """
      c0 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w0, b0)
      s0 = Sigmoid(c0)
      y0 = Mul(c0, s0)
      c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (y0, w1, b1)
      s1 = Sigmoid(c1)
      y1 = Mul(c1, s1)
      c2 = Conv <kernel_shape=[1,1]> (y1, w2, b2)
      s2 = Sigmoid(c2)
      y2 = Mul(s2, c2)
      c3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (y2, w3, b3)
      y3 = Relu(c3)
      box = Conv <kernel_shape=[1,1]> (y3, wb, bb)
      raw = Conv <kernel_shape=[1,1]> (y3, ws, bs)
      score = Sigmoid(raw)
      y = Concat <axis=1> (box, score)
    """
    return clean(f"net (float[1,3,12,12] x) => (float[1,9,12,12] y) {{ {body} }}", weights)


def decibels(model: ir.Model, plan: QuantPlan, want: np.ndarray, x: np.ndarray) -> float:
    """Of the worse of the two parts."""
    got = Simulator(model, plan).run(x)[0].numpy()
    return min(
        10 * math.log10((want[:, part] ** 2).sum() / ((got - want)[:, part] ** 2).sum())
        for part in (slice(0, 4), slice(4, 9))
    )


def calibrated(model: ir.Model, scheme: QuantScheme, recipe: Recipe) -> tuple[ir.Model, QuantPlan]:
    floats = {str(n.name): "decoding" for n in (*decoding(model), *mixed_nodes(model))}
    task = tasks.of_graph(model, parts=parts_of(model))
    return calibrate(model, [images(24)], scheme, recipe, task=task, float_nodes=floats)


@pytest.mark.parametrize("scheme", ALL, ids=lambda s: s.name)
def test_a_stem_of_unlike_channels_ruins_no_integer_network(scheme) -> None:
    model, x = detector(), images(16, seed=3)
    want = Simulator(model).run(x)[0].numpy()
    bare = decibels(*calibrated(model, scheme, UNPROTECTED), want, x)
    mended, plan = calibrated(model, scheme, RECIPES["fast"])
    assert decibels(mended, plan, want, x) > max(17, bare + 6)
    if scheme is TFLITE_W8A8:  # evened out: that is cheaper than floats
        assert "c0" in plan.equalization
        assert not any("ruin" in why for why in plan.float_nodes.values())


def test_what_8_bits_hold_is_left_alone() -> None:
    for model in (detector(wild=False), mobile()):
        stats = observe(model, [images(16)], moments=0)
        task = tasks.of_graph(model, parts=parts_of(model))
        found = protect(model, stats, TFLITE_W8A8, [images(8)], Distance(task), enough=0.1)
        assert found.model is model
        assert not found.factors
        assert not found.nodes


def test_influence_is_what_noise_costs() -> None:
    model, x = detector(wild=False), images(12)
    task = tasks.of_graph(model, parts=parts_of(model))
    found = tensor_influence(model, {"y1"}, [x[i : i + 1] for i in range(12)] * 20, Distance(task))["y1"]
    simulator, rng = Simulator(model), np.random.default_rng(0)
    wanted = simulator.run(x)
    noise = 1e-3
    for channel in np.argsort(found)[-2:]:
        costs = []
        for _ in range(20):
            values = simulator.start(x)
            for step in simulator.steps:
                simulator.advance(step, values)
                if "y1" in step.writes:
                    added = noise * rng.standard_normal(values["y1"][:, channel].shape)
                    values["y1"][:, channel] += simulator.start(added.astype(np.float32))["x"]
            costs.append(float(Distance(task).error(simulator.returned(values), wanted)) / len(x))
        assert np.mean(costs) / noise**2 == pytest.approx(found[channel], rel=0.3)


def test_open_gates_leave_the_function_and_are_replayed() -> None:
    model, x = detector(), images(4)
    assert [str(g.x.name) for g in gates(model)] == ["c0", "c1", "c2"]
    factors = {"c0": np.geomspace(1 / 255, 1, 8), "c1": np.linspace(0.2, 1, 8)}
    want = Simulator(model).run(x)[0].numpy()
    for opened in (open_gates(model, factors), replay(model, {n: f.tolist() for n, f in factors.items()})):
        assert sum(n.op_type == "Mul" for n in opened.graph) == 5
        got = Simulator(opened).run(x)[0].numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert not gates(mobile())


def test_flat_stretches_get_no_integers() -> None:
    model = detector()
    c0 = next(v for n in model.graph for v in n.outputs if v.name == "c0")
    assert [n.op_type for n in curve(c0)] == ["Sigmoid", "Mul"]
    low, high = telling(c0, -60.0, 80.0, 255)
    half = (80.0 + 0.28) / 255 / 2
    assert high == 80.0
    assert low / (1 + math.exp(-low)) == pytest.approx(-half, rel=0.05)  # SiLU(low) is half a step under 0
    y0 = next(v for n in model.graph for v in n.outputs if v.name == "y0")
    assert telling(y0, -60.0, 80.0, 255) == (-60.0, 80.0)  # a convolution reads it: all may matter


def test_decoding_is_what_no_layer_reads() -> None:
    model = detector()
    assert {n.outputs[0].name for n in last_layers(model)} == {"box", "raw"}
    assert {n.outputs[0].name for n in decoding(model)} == {"score", "y"}
    assert not decoding(mobile())  # a row of class scores


def test_what_is_clipped_where_nothing_is_told_apart_is_no_bias() -> None:
    """Under a SiLU's flat stretch numbers are clipped on purpose: their mean must not be put back."""
    model, x = detector(wild=False), images(24)
    for n in model.graph:
        if n.outputs[0].name == "c1":  # half of the channels hardly ever on
            bias, name = n.inputs[2], str(n.name)
            set_array(bias, const(bias) - np.float32([30, 0] * 4))  # type: ignore[arg-type, operator]
    recipe = Recipe(
        name="median", steps=tuple(s for s in RECIPES["default"].steps if s.step != "learn_levels")
    )
    want = Simulator(model).run(x)[0].numpy()
    corrected, plan = calibrated(model, TFLITE_W8A8, recipe)
    assert plan.tensors["c1"].low > -12
    assert abs(plan.biases[name].max_abs) < 1
    assert decibels(corrected, plan, want, x) > 17


def test_heads_give_floats_where_integers_give_integers_only() -> None:
    model = detector()
    rounded, plan = calibrated(model, TFLITE_W8A8, RECIPES["fast"])
    assert not {"box", "raw", "score", "y"} & plan.tensors.keys()
    assert {"wb", "ws"} <= plan.weights.keys()  # 8 bits all the same
    assert rounded is not model
