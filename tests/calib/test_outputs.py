"""Every output of a network counts, in whatever chooses between two calibrations."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from calib_nets import clean, he, images, schemes

from repedge import tasks
from repedge.calib.distance import Distance, image_errors
from repedge.calib.levels.refine import refine
from repedge.calib.levels.search import layer_costs
from repedge.calib.recipe import calibrate
from repedge.calib.simulation.observe import observe
from repedge.calib.structure import layers, set_array
from repedge.calib.weights.influence import weight_influence
from repedge.graph.values import const
from repedge.judge import verification
from repedge.judge.verdict import Bar
from repedge.targets import get
from repedge.tasks.base import Network, Output, Part
from repedge.tasks.raw import Raw

HEADS = {"scores": "one", "boxes": "two"}
"""Output -> the layer that alone gives it."""


def two_heads(first: str) -> ir.Model:
    """A stem with class scores [1, 7] and boxes [1, 4, 6, 6] behind it, either of them first."""
    rng = np.random.default_rng(2)
    weights = {"w": he(rng, 8, 3, 3, 3), "one": he(rng, 7, 8), "two": he(rng, 4, 8, 1, 1)}
    weights |= {"b1": np.zeros(7, np.float32), "b2": np.zeros(4, np.float32)}
    given = {"scores": "float[1,7] scores", "boxes": "float[1,4,6,6] boxes"}
    order = sorted(given, key=lambda name: name != first)
    text = f"""net (float[1,3,12,12] x) => ({given[order[0]]}, {given[order[1]]}) {{
        c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        scores = Gemm <transB=1> (f, one, b1)
        boxes = Conv <kernel_shape=[1,1]> (r, two, b2)
    }}"""
    return clean(text, weights)


def head(model: ir.Model, output: str) -> str:
    value = next(v for v in model.graph.outputs if v.name == output)
    return str(value.producer().name)


both = pytest.mark.parametrize("output", HEADS)
orders = pytest.mark.parametrize("first", HEADS)


@both
@orders
def test_an_error_of_either_output_costs(first: str, output: str) -> None:
    model = two_heads(first)
    distance = Distance(tasks.of_graph(model))
    rng = np.random.default_rng(0)
    want = [rng.standard_normal((6, *v.shape.numpy()[1:])).astype(np.float32) for v in model.graph.outputs]
    place = [v.name for v in model.graph.outputs].index(output)
    got = [w.copy() for w in want]
    got[place] += 0.3 * rng.standard_normal(got[place].shape).astype(np.float32)
    assert distance.cost(want, got) > 0.01 > distance.cost(want, want)
    assert (image_errors(got, want) > 0.01).all()
    near = distance.nearness(
        [torch.tensor(g, requires_grad=True) for g in got], [torch.from_numpy(w) for w in want]
    )
    assert near.item() > 0.05
    near.backward()  # raises where nothing of the spoiled output is in it


@both
@orders
def test_searches_see_what_a_layer_of_either_output_costs(first: str, output: str) -> None:
    model, x = two_heads(first), images(16)
    scheme = schemes()["openvino-w8a8"]
    rounded, plan = calibrate(model, [x], scheme, "minmax")
    layer = next(la for la in layers(rounded) if la.name == head(model, output))
    before: list[float] = []
    after: list[float] = []
    for costs in (before, after):
        costs += [c.cost for c in layer_costs(rounded, model, plan, lambda: [x]) if c.node == layer.name]
        rough = plan.weights[str(layer.weight.name)]
        rough.scale = [16 * s for s in rough.scale]  # this output's weights with four bits less
    assert after[0] > 10 * before[0]


@both
def test_weights_of_either_output_have_an_influence(output: str) -> None:
    model, x = two_heads("scores"), images(8)
    wanted = {la.name: la for la in layers(model)}
    moments = observe(model, [x], moments=8).moments
    found = weight_influence(model, wanted, moments, [x], Distance(tasks.of_graph(model)))
    assert float(found[head(model, output)].sum()) > 0


@both
@orders
def test_refinement_goes_after_either_output(first: str, output: str) -> None:
    """One head's bias is off; what is learned at the outputs brings it back."""
    model, x = two_heads(first), images(24)
    rounded, plan = calibrate(model, [x], schemes()["tensorrt-w8a8"], "minmax")
    layer = next(la for la in layers(rounded) if la.name == head(model, output))
    wrong = np.array(const(layer.bias)) + 0.2 * np.sign(np.arange(len(const(layer.bias))) % 2 - 0.5)
    set_array(layer.bias, wrong)
    _, _, costs = refine(
        rounded, model, plan, lambda: [x[:12]], lambda: [x[12:]], steps=40, images_per_step=12, rate=1e-2
    )
    assert costs["after"] < 0.9 * costs["before"]


@both
@orders
def test_verification_judges_either_output(first: str, output: str) -> None:
    model = two_heads(first)
    task = tasks.of_graph(model)
    rng = np.random.default_rng(0)
    want = [rng.standard_normal((6, *v.shape.numpy()[1:])).astype(np.float32) for v in model.graph.outputs]
    got = [w.copy() for w in want]
    got[[v.name for v in model.graph.outputs].index(output)] *= 1.5  # 6 dB, under every floor
    target = get("tflite")
    bar = Bar("w8a8", target.threshold("w8a8"))
    found = verification.summarize(target, bar, verification.compare(task, got, want), source="")
    assert not found.passed
    assert output in found.failures[0]


def test_scores_beside_boxes_count_as_much_as_the_boxes() -> None:
    """The cost is that of two outputs, whichever way they are handed out; and so are the projections."""
    rng = np.random.default_rng(0)
    boxes, chances = 300 * rng.random((4, 6, 4)), 0.1 * rng.random((4, 6, 5))
    joined = np.concatenate([boxes, chances], 2).astype(np.float32)
    parts = (Part(2, 0, 4), Part(2, 4, 9))
    one = Distance(Raw(Network((Output("y", (6, 9), parts),))))
    two = Distance(Raw(Network((Output("a", (6, 4)), Output("b", (6, 5))))))
    spoiled = joined.copy()
    spoiled[..., 4:] = 0
    want, got = ([y[..., :4], y[..., 4:]] for y in (joined, spoiled))
    assert one.cost([joined], [spoiled]) == pytest.approx(two.cost(want, got))
    assert one.cost([joined], [spoiled]) == pytest.approx(1)
    tensor = torch.from_numpy(joined)
    (found,) = one.projections([tensor], torch.ones_like)
    a, b = two.projections([tensor[..., :4], tensor[..., 4:]], torch.ones_like)
    assert torch.equal(found, torch.cat([a, b], 2))
