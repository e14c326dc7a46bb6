"""Classifiers that read floats: TensorFlow Lite rounds them image by image, OpenVINO not at all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from calib_nets import clean, he, images, mobile
from operators import relative_error
from tflite_helpers import build, op_names, run

from repedge.calib.plan import QuantPlan
from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import RECIPES, Recipe, StepSpec, calibrate
from repedge.calib.simulation.simulator import Simulator
from repedge.calib.structure import layers
from repedge.config import Preprocess
from repedge.scheme import QuantScheme
from repedge.targets.base import Job
from repedge.targets.gpu.scheme import TENSORRT_W8A8
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.openvino.target import OpenVINO
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.scheme import TFLITE_W8A8

BEFORE = Recipe(name="static", steps=RECIPES["fast"].steps[:-1])
AFTER = Recipe(name="dynamic", steps=(*BEFORE.steps, StepSpec(step="dynamic_outputs")))


def calibrated(
    model: ir.Model, recipe: Recipe = AFTER, scheme: QuantScheme = TFLITE_W8A8
) -> tuple[ir.Model, QuantPlan]:
    return calibrate(model, [images(24)], scheme, recipe)


@pytest.mark.slow
def test_the_artifacts_classifier_rounds_its_own_input(tmp_path) -> None:
    model, x = mobile(), images(16, seed=3)
    wanted = Simulator(model).run(x)[0].numpy()
    errors = {}
    for recipe in (BEFORE, AFTER):
        rounded, plan = calibrated(model, recipe)
        path, artifact = build(to_qdq(rounded, plan), tmp_path / recipe.name, precision="w8a8")
        assert partitions(path).whole
        got = run(model, path, x)
        errors[recipe.name] = relative_error(got, [wanted])
        # The plan's own simulation: the same integers, but for the classifier's, which it leaves out.
        simulated = Simulator(rounded, plan).run(x)[0].numpy()
        assert relative_error(got, [simulated]) < (0.02 if recipe is AFTER else 0.01)
        # It gives floats itself: nothing is rounded behind it. A dense layer of this kind wants 2.17.
        ends = ["CONV_2D", "RESHAPE"] if recipe is AFTER else ["FULLY_CONNECTED", "DEQUANTIZE"]
        assert op_names(path)[-2:] == ends
        assert artifact.requires["TensorFlow Lite"] in (">=2.4.0", ">=2.14.0")
    assert errors["dynamic"] < errors["static"]


@pytest.mark.slow
def test_weights_stay_and_what_the_classifier_reads_is_float() -> None:
    model = mobile()
    static, before = calibrated(model, BEFORE)
    dynamic, after = calibrated(model)
    assert set(after.weights) == set(before.weights)
    last, same = layers(dynamic)[-1], layers(static)[-1]
    np.testing.assert_array_equal(last.array, same.array)
    gone = set(before.tensors) - set(after.tensors)
    assert gone == {"p", "f", "y"}
    assert {"its weights keep 8 bits" in why for why in after.float_nodes.values()} == {True}
    assert len(after.float_nodes) == 3


@pytest.mark.slow
def test_openvino_reads_8_bit_weights_beside_floats(tmp_path) -> None:
    model, x = mobile(), images(16, seed=3)
    wanted = Simulator(model).run(x)[0].numpy()
    errors, sizes = {}, {}
    for recipe in (BEFORE, AFTER):
        rounded, plan = calibrated(model, recipe, OPENVINO_W8A8)
        out = tmp_path / recipe.name
        out.mkdir()
        job = Job("net", "w8a8", Preprocess(size=tuple(x.shape[2:])), "float32")
        artifact = OpenVINO().compile(to_qdq(rounded, plan), job, out)
        runner = OpenVINO().open(out / artifact.main, job, [o.name for o in artifact.outputs], threads=1)
        got = runner.run(x)
        assert relative_error(got, [Simulator(rounded, plan).run(x)[0].numpy()]) < 0.01
        errors[recipe.name] = relative_error(got, [wanted])
        sizes[recipe.name] = (out / artifact.main).with_suffix(".bin").stat().st_size
    assert errors["dynamic"] < errors["static"]
    assert sizes["dynamic"] < sizes["static"] + 100


@pytest.mark.slow
def test_targets_without_such_layers_are_left_alone() -> None:
    """TensorRT wants both in integers, or none."""
    _, plan = calibrated(mobile(), scheme=TENSORRT_W8A8)
    assert not plan.float_nodes


@pytest.mark.slow
def test_no_convolution_becomes_float_for_it() -> None:
    """Where a layer writes what the classifier reads, that layer would have to be float, too."""
    rng = np.random.default_rng(0)
    text = """net (float[1,3,12,12] x) => (float[1,10] y) {
        c = Conv <kernel_shape=[12,12]> (x, w)
        f = Flatten(c)
        y = Gemm <transB=1> (f, v)
    }"""
    model = clean(text, {"w": he(rng, 16, 3, 12, 12), "v": he(rng, 10, 16)})
    _, plan = calibrated(model)
    assert not plan.float_nodes
    assert {"f", "y"} <= set(plan.tensors)
