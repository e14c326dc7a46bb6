"""What errors of weights cost at the output, foretold from slopes, and levels where there is no slope."""

from __future__ import annotations

import numpy as np
import pytest
from calib_nets import images, mobile

from repedge.calib.distance import Distance
from repedge.calib.levels import learned
from repedge.calib.levels.ranges import ranges
from repedge.calib.simulation.observe import input_shape, observe
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.simulation.torch_ops import OPS, in_onnxruntime
from repedge.calib.structure import layers, own_parameters, set_array
from repedge.calib.weights.influence import weight_influence
from repedge.graph.values import const
from repedge.photos.feed import Feed
from repedge.targets.tflite.scheme import TFLITE_W8A8


@pytest.mark.slow
@pytest.mark.parametrize("index", [2, 4, 5])
def test_random_errors_cost_what_was_foretold(index: int) -> None:
    x = images(200)
    model = mobile()
    own_parameters(model)
    layer = layers(model)[index]
    moments = observe(model, [x], moments=len(x)).moments
    want, distance = Simulator(model).run(x), Distance.of(model)
    batches = [x[i : i + 2] for i in range(0, 200, 2)]
    influence = weight_influence(model, {"w": layer}, moments, batches, distance)["w"].numpy()
    rng, costs, size = np.random.default_rng(0), [], 1e-3 * float(np.abs(layer.array).max())
    for _ in range(40):
        changed = model.clone()
        other = layers(changed)[index]
        error = rng.standard_normal(layer.array.shape).astype(np.float32) * size
        set_array(other.weight, layer.array + error)
        rows = (error if layer.axis == 0 else error.T).reshape(*influence.shape)
        shift = np.einsum("gok,gk->go", rows, moments[layer.name].mean).reshape(-1)
        assert layer.bias is not None
        assert other.bias is not None
        set_array(other.bias, const(layer.bias) - shift)
        costs.append(float(distance.error(Simulator(changed).run(x), want)) / len(x))
    assert float(influence.sum()) * size**2 == pytest.approx(np.mean(costs), rel=0.35)


@pytest.mark.slow
def test_no_slope_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that only ONNX Runtime runs ends every slope: nothing is learned, and nothing fails."""
    x = images(48)
    model = mobile()
    own_parameters(model)
    stats = observe(model, [x], moments=48)
    plan = ranges(model, stats, TFLITE_W8A8)
    monkeypatch.setitem(OPS, "Gemm", in_onnxruntime)
    feed = Feed([x], input_shape(model))
    kept, factors, same, costs = learned.learn_levels(
        model, stats, plan, feed.chosen, range(24), range(24, 48), steps=2
    )
    assert kept is model
    assert same is plan
    assert not factors
    assert not costs
