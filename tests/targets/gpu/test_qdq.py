"""w8a8 for GPU servers: int8 around 0, float32 elsewhere, the plan's own numbers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper
from qdq_helpers import (
    BODIES,
    calibrated,
    end_to_end,
    quantized,
    quantized_proto,
    quantum,
    simulated,
    units_apart,
)
from target_graphs import CLASSIFIER, IMAGE, batch, clean, graph, pixels, sqnr_db

from repedge.config import Preprocess
from repedge.errors import UnsupportedModel, UserError
from repedge.targets import qdq
from repedge.targets.base import Job
from repedge.targets.gpu.target import GPU

TARGET = GPU()
PREPROCESS = Preprocess(size=IMAGE[2:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def job(input_kind="float32", precision="w8a8"):
    return Job("net", precision, PREPROCESS, input_kind)


def compiled(model, out, the_job=None):
    """The artifact's file as a proto, and a runner."""
    the_job = the_job or job()
    artifact = TARGET.compile(model, the_job, out)
    names = [o.name for o in artifact.outputs]
    return onnx.load(out / artifact.main), TARGET.open(out / artifact.main, the_job, names, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_the_numbers_are_those_of_the_qdq_graph(name, tmp_path):
    """At batch 3.

    Each float16 scale is off by up to 2^-11, that is 0.06 of 127 units, and the results with it: some fall on
    the other side of a rounding boundary, by one unit.
    """
    body, floats = BODIES[name]
    proto = quantized(body, floats, symmetric=True)
    x = batch(3)
    written, runner = compiled(clean(proto), tmp_path)
    found, expected = runner.run(x)[0], simulated(proto, x)
    assert units_apart(found, expected, quantum(proto)).max() <= 1
    assert sqnr_db(found, expected) > 38
    onnx.checker.check_model(written, full_check=True)


def test_types(tmp_path):
    """float32 scales (products of two are denormal in float16), int8 zero points of 0, int8 weights."""
    body, floats = BODIES["residual"]
    written, _ = compiled(clean(quantized(body, floats, symmetric=True)), tmp_path)
    constants = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    assert {a.dtype.name for a in constants.values()} == {"float32", "int8"}
    bare = onnx.ModelProto()
    bare.CopyFrom(written)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    assert {v.type.tensor_type.elem_type for v in inferred.value_info} == {
        TensorProto.FLOAT,
        TensorProto.INT8,
    }
    nodes = [n for n in written.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes
    for node in nodes:
        assert constants[node.input[1]].dtype == np.float32
        assert not constants[node.input[2]].any()


def test_integer_biases_become_float(tmp_path):
    """TensorRT dequantizes no int32."""
    body, floats = BODIES["conv"]
    proto = quantized(body, floats, symmetric=True, integer_bias=True)
    written, runner = compiled(clean(proto), tmp_path)
    assert TensorProto.INT32 not in {t.data_type for t in written.graph.initializer}
    apart = units_apart(runner.run(batch(2))[0], simulated(proto, batch(2)), quantum(proto))
    assert apart.max() <= 1


def test_scales_that_float16_holds_badly():
    """Where float16 is too coarse the integers are rounded again for the scale that it can hold."""
    rng = np.random.default_rng(0)
    scale = np.array([0.011, 6.2e-5, 3.1e-6, 1.07e-7, 4e-8], np.float32)
    values = rng.integers(-127, 128, (5, 40)).astype(np.int8)
    before = qdq.Quantized(values, scale, 0)
    after = before.half()
    assert np.array_equal(after.scale, after.scale.astype(np.float16))
    assert (after.scale > 0).all()
    error = np.abs(after.real().astype(np.float64) - before.real()).max(axis=1)
    assert (error <= 0.51 * after.scale).all()
    assert np.array_equal(after.values[0], values[0])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_zero_points_are_refused(dtype, tmp_path):
    model = clean(quantized(BODIES["conv"][0], dtype=dtype))
    refused = TARGET.unsupported(model)
    assert {r.op for r in refused} == {"QuantizeLinear", "DequantizeLinear"}
    with pytest.raises(UnsupportedModel, match="zero point 0 only"):
        TARGET.compile(model, job(), tmp_path)


def test_graph_and_precision_have_to_fit(tmp_path):
    with pytest.raises(UserError, match="needs a calibrated graph"):
        TARGET.compile(clean(graph("y = Conv<pads=[1,1,1,1]>(x, w6, b6)")), job(), tmp_path)
    model = clean(quantized(BODIES["conv"][0], symmetric=True))
    with pytest.raises(UserError, match="precision fp16"):
        TARGET.compile(model, job(precision="fp16"), tmp_path)


def test_pixels_that_were_folded_before(tmp_path):
    """Preprocessing is folded once: by the pipeline before it calibrates, or else by the target."""
    from repedge.passes.preprocess import INPUT_KEY, fold_preprocess

    images = pixels(3)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    folded = ir.to_proto(fold_preprocess(clean(graph(CLASSIFIER, IMAGE)), PREPROCESS))
    proto = quantized_proto(folded, planes, floats={"image"}, symmetric=True)
    model = clean(proto)
    model.metadata_props[INPUT_KEY] = "pixels"
    _, runner = compiled(model, tmp_path, job("uint8"))
    assert sqnr_db(runner.run(images)[0], simulated(proto, planes)) > 35


@pytest.mark.slow
def test_a_calibrated_network(tmp_path):
    """Rounding amplifies the least difference from layer to layer.

    So deep results are compared by what they lose against the float network, which is the same within 3 dB;
    more is a different network.
    """
    model = calibrated("tensorrt-w8a8")
    _, artifact, simulation = end_to_end(TARGET, model, tmp_path, 16)
    assert artifact > 15
    assert abs(artifact - simulation) < 3
