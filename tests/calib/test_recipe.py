"""Recipes from end to end, and the QDQ graph against the simulator."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calib_nets import clean, images, mixed, mobile, schemes
from graph_helpers import run

from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import RECIPES, Recipe, StepSpec, calibrate, find_recipe
from repedge.calib.simulation.simulator import Simulator
from repedge.errors import UserError
from repedge.graph.check import check
from repedge.scheme import W8A32
from repedge.targets.gpu.scheme import TENSORRT_W8A8
from repedge.targets.tflite.scheme import TFLITE_W8A8, TFLITE_W8A16
from repedge.tasks.comparison import Comparison


def compare(model, plan, reference, x) -> Comparison:
    result = Comparison()
    result.update(Simulator(reference).run(x)[0].numpy(), Simulator(model, plan).run(x)[0].numpy())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(schemes().values()), ids=lambda s: s.name)
@pytest.mark.parametrize("net", [mobile, mixed])
def test_qdq_graph_is_the_simulator(net, scheme) -> None:
    model, x = net(), images(16)
    changed, plan = calibrate(model, [x], scheme, "fast")
    qdq = to_qdq(changed, plan)
    check(qdq)
    onnx.checker.check_model(ir.serde.serialize_model(qdq), full_check=True)
    assert [v.name for v in qdq.graph.outputs] == ["y"]
    want = Simulator(changed, plan).run(x[:4])[0].numpy()
    got = np.concatenate([run(qdq, {"x": x[i : i + 1]})[0] for i in range(4)])
    unit = plan.tensors["y"].scale if "y" in plan.tensors else 0.02 * np.abs(want).max()
    assert np.abs(got - want).max() <= 1.01 * unit


@pytest.mark.slow
def test_qdq_holds_integers_of_the_scheme() -> None:
    changed, plan = calibrate(mobile(), [images(16)], TFLITE_W8A8, "fast")
    graph = to_qdq(changed, plan).graph
    kinds = {n: v.dtype for n, v in graph.initializers.items()}
    assert kinds["w0/q"] == ir.DataType.INT8
    assert kinds["b0/q"] == ir.DataType.INT32
    assert "w0" not in kinds
    made = {v.name: n for n in graph for v in n.outputs}
    bias = made["b1"].inputs[1].const_value.numpy()
    np.testing.assert_allclose(bias, np.array(plan.weights["w1"].scale) * plan.tensors["r0"].scale, rtol=1e-6)
    wide = to_qdq(*calibrate(mobile(), [images(16)], TFLITE_W8A16, "fast"))
    assert wide.graph.opset_imports[""] == 21
    assert next(iter(wide.graph.inputs[0].consumers())).inputs[2].dtype == ir.DataType.INT16
    floats = to_qdq(*calibrate(mobile(), [images(16)], TENSORRT_W8A8, "fast"), integer_bias=False)
    assert "b0" in floats.graph.initializers
    only = to_qdq(*calibrate(mobile(), [images(16)], W8A32, "fast"))
    assert "QuantizeLinear" not in {n.op_type for n in only.graph}


@pytest.mark.slow
def test_tied_tensors_share_parameters_in_the_graph() -> None:
    changed, plan = calibrate(mixed(), [images(16)], TFLITE_W8A8, "fast")
    graph = to_qdq(changed, plan).graph
    scales = {n.name: n.inputs[1].name for n in graph if n.op_type == "QuantizeLinear"}
    assert len({scales[f"{n}/q"] for n in ("r", "m", "n", "c2", "t")}) == 1
    assert len(set(scales.values())) > 1


@pytest.mark.slow
def test_same_input_same_bytes() -> None:
    made = [to_qdq(*calibrate(mixed(), [images(16)], TFLITE_W8A8)) for _ in range(2)]
    first, second = (ir.serde.serialize_model(m).SerializeToString(deterministic=True) for m in made)
    assert first == second


@pytest.mark.slow
def test_better_recipes_are_better_than_stock() -> None:
    model, x = mobile(spread=1.2), images(64)
    scores = {}
    for name in ("minmax", "fast", "default"):
        changed, plan = calibrate(model, [x], TFLITE_W8A8, name)
        scores[name] = compare(changed, plan, model, x).sqnr_db
    assert scores["fast"] > scores["minmax"] + 3
    assert scores["default"] > scores["minmax"] + 3


@pytest.mark.slow
def test_wide_activations_and_float_nodes_are_closer() -> None:
    model, x = mobile(), images(32)
    base, wide = (
        compare(*calibrate(model, [x], s, "fast"), model, x).sqnr_db for s in (TFLITE_W8A8, TFLITE_W8A16)
    )
    assert wide > base + 3
    names = {n.name: "for the test" for n in model.graph if n.op_type in ("Conv", "Relu")}
    changed, plan = calibrate(model, [x], TFLITE_W8A8, "fast", float_nodes=names)
    assert names.items() <= plan.float_nodes.items()
    assert set(plan.weights) == {"w5"}
    assert compare(changed, plan, model, x).sqnr_db > base


@pytest.mark.slow
def test_calibrate_leaves_the_model_alone() -> None:
    model, x = mobile(), images(16)
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    calibrate(model, [x], TFLITE_W8A8, "fast")
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


def test_nothing_to_quantize() -> None:
    model = clean("n (float[1,3,12,12] x) => (float[1,3,12,12] y) { y = Relu(x) }", {})
    with pytest.raises(UserError, match="no layer that tflite-w8a8 could quantize"):
        calibrate(model, [images(4)], TFLITE_W8A8)


def test_recipes_are_printed_saved_and_loaded(tmp_path) -> None:
    recipe = RECIPES["default"]
    assert "1. observe(" in str(recipe)
    recipe.save(tmp_path / "mine.json")
    assert find_recipe(str(tmp_path / "mine.json")) == recipe
    with pytest.raises(UserError, match="no recipe 'fastest'"):
        find_recipe("fastest")
    wrong = Recipe(name="mine", steps=(StepSpec(step="dance"),))
    with pytest.raises(UserError, match="'dance'"):
        calibrate(mobile(), [images(4)], TFLITE_W8A8, wrong)
    late = Recipe(name="mine", steps=(StepSpec(step="correct_bias"),))
    with pytest.raises(UserError, match="no round step"):
        calibrate(mobile(), [images(4)], TFLITE_W8A8, late)
    odd = Recipe(name="mine", steps=(StepSpec(step="observe", options={"nope": 1}),))
    with pytest.raises(UserError, match="nope"):
        calibrate(mobile(), [images(4)], TFLITE_W8A8, odd)
