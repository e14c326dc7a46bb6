"""Calibration steps, continued: see test_steps."""

from __future__ import annotations

import numpy as np
import pytest
from calib_nets import clean, he, images, mixed, mobile

from repedge.calib.levels.ranges import ranges
from repedge.calib.levels.search import tune_ranges
from repedge.calib.plan import QuantPlan
from repedge.calib.simulation.observe import observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers, own_parameters
from repedge.calib.weights.rounding import round_weights
from repedge.errors import UserError
from repedge.targets.tflite.scheme import TFLITE_W8A8


def batches(x: np.ndarray, size: int = 5):
    return [x[i : i + size] for i in range(0, len(x), size)]


@pytest.mark.slow
def test_tuning_mends_a_bad_range() -> None:
    model, x = mobile(), images(12)
    plan = ranges(model, observe(model, [x]), TFLITE_W8A8)
    good = plan.tensors["r2"].high
    plan.set_range({"r2": None}, 0, good * 0.25, "too narrow")
    taken = tune_ranges(model, model, plan, lambda: batches(x), factors=(0.5, 2.0, 4.0))
    assert taken["r2"] >= 2.0
    assert plan.tensors["r2"].high > good * 0.4


def test_plan_survives_json(tmp_path) -> None:
    model, x = mixed(), images(8)
    plan = ranges(model, observe(model, [x]), TFLITE_W8A8)
    round_weights(model, plan, TFLITE_W8A8, method="nearest")
    plan.save(tmp_path / "plan.json")
    assert QuantPlan.load(tmp_path / "plan.json") == plan
    (tmp_path / "broken.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="no quantization plan: scheme"):
        QuantPlan.load(tmp_path / "broken.json")
    with pytest.raises(UserError, match="can't be read"):
        QuantPlan.load(tmp_path / "absent.json")


def test_shared_weights_get_copies_of_their_own() -> None:
    rng = np.random.default_rng(0)
    text = """net (float[1,4,6,6] x) => (float[1,4,6,6] y) {
        c0 = Conv <kernel_shape=[1,1]> (x, w)
        r0 = Relu(c0)
        y = Conv <kernel_shape=[1,1]> (r0, w)
    }"""
    model = clean(text, {"w": he(rng, 4, 4, 1, 1)})
    x = images(4, 6, 4)
    want = Simulator(model).run(x)[0]
    own_parameters(model)
    first, second = layers(model)
    assert first.weight is not second.weight
    assert first.bias is not None
    np.testing.assert_array_equal(Simulator(model).run(x)[0], want)
