"""w8a8 and w8a32 for OpenVINO: the QDQ graph's own integers, in integer kernels, from int8 weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calib_nets import schemes
from operators import case
from qdq_helpers import (
    BODIES,
    calibrated,
    demo,
    end_to_end,
    planes,
    quantized,
    quantized_proto,
    quantum,
    simulated,
    units_apart,
)
from target_graphs import CLASSIFIER, IMAGE, batch, clean, graph, pixels, reference, sqnr_db

from repedge.calib.recipe import calibrate
from repedge.calib.structure import place
from repedge.config import Preprocess
from repedge.errors import UnsupportedModel, UserError
from repedge.passes.preprocess import INPUT_KEY, fold_preprocess
from repedge.targets import qdq
from repedge.targets.base import Job
from repedge.targets.openvino.scheme import OPENVINO_W8A8
from repedge.targets.openvino.target import OpenVINO
from repedge.targets.tflite.scheme import TFLITE_W8A8

openvino = pytest.importorskip("openvino")

TARGET = OpenVINO()
PREPROCESS = Preprocess(size=IMAGE[2:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def job(precision="w8a8", input_kind="float32"):
    return Job("net", precision, PREPROCESS, input_kind)


def compiled(model, out, the_job=None):
    """The file and a runner."""
    the_job = the_job or job()
    artifact = TARGET.compile(model, the_job, out)
    names = [o.name for o in artifact.outputs]
    return out / artifact.main, TARGET.open(out / artifact.main, the_job, names, threads=1)


def executed(path):
    """(layer type, precision) of what the CPU plugin really runs."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    runtime = openvino.Core().compile_model(path, "CPU", config).get_runtime_model()
    infos = [op.get_rt_info() for op in runtime.get_ordered_ops()]
    return [(i["layerType"].astype(str), i["primitiveType"].astype(str)) for i in infos]


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_the_numbers_are_those_of_the_qdq_graph(name, dtype, tmp_path):
    """Integers come out equal but for sums that fall on a rounding boundary, at most one in a hundred."""
    body, floats = BODIES[name]
    proto = quantized(body, floats, dtype)
    _, runner = compiled(clean(proto), tmp_path)
    apart = units_apart(runner.run(batch(3))[0], simulated(proto, batch(3)), quantum(proto))
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("integer_bias", [False, True])
@pytest.mark.parametrize("name", ["conv", "depthwise", "grouped", "residual", "gelu", "float gate", "dense"])
def test_layers_run_in_integers(name, integer_bias, tmp_path):
    body, floats = BODIES[name]
    path, _ = compiled(clean(quantized(body, floats, "uint8", integer_bias=integer_bias)), tmp_path)
    layers = [kind for layer, kind in executed(path) if layer in ("Convolution", "FullyConnected")]
    assert layers
    assert all(kind.endswith("_I8") for kind in layers), layers


def test_layers_without_quantization_stay_float(tmp_path):
    """A mixed plan: the second convolution has neither integer inputs nor weights."""
    proto = quantized(
        "c = Conv<group=4, pads=[1,1,1,1]>(x, wdw, b4)\nr = Relu(c)\ny = Conv(r, w6)", {"c"}, "uint8"
    )
    first = next(n for n in proto.graph.node if n.name == "r_DQ").output[0]
    for node in proto.graph.node:
        node.input[:] = ["r" if n == first else "w6" if n == "w6_dq" else n for n in node.input]
    proto.graph.initializer.append(next(t for t in graph("y = Conv(x, w6)").graph.initializer))
    onnx.checker.check_model(proto)
    path, runner = compiled(clean(proto), tmp_path)
    kinds = sorted(kind.endswith("_I8") for layer, kind in executed(path) if layer == "Convolution")
    assert kinds == [False, True]
    assert sqnr_db(runner.run(batch(2))[0], simulated(proto, batch(2))) > 60


def test_weights_are_stored_in_8_bits(tmp_path):
    """w8a32 needs no calibration; the float graph's weights are rounded per output channel."""
    shape = (1, 64, 5, 5)
    proto = graph("y = Conv<pads=[1,1,1,1]>(x, big)", shape)
    model, x = clean(proto), batch(3, shape)
    sizes, found = {}, {}
    for precision in ("fp32", "w8a32"):
        out = tmp_path / precision
        out.mkdir()
        path, runner = compiled(model, out, job(precision))
        sizes[precision], found[precision] = path.with_suffix(".bin").stat().st_size, runner.run(x)[0]
    assert sizes["w8a32"] < 0.32 * sizes["fp32"]
    assert 38 < sqnr_db(found["w8a32"], reference(proto, x)) < 60
    assert sqnr_db(found["fp32"], reference(proto, x)) > 100


def test_weights_of_a_weight_only_graph_are_kept(tmp_path):
    """A QDQ graph without quantized activations, as calibration writes it for w8a32."""
    names = {"x", "y"}
    proto = quantized(BODIES["conv, signed result"][0], names)
    _, runner = compiled(clean(proto), tmp_path, job("w8a32"))
    assert sqnr_db(runner.run(batch(2))[0], simulated(proto, batch(2))) > 100


def test_the_same_bytes_twice(tmp_path):
    proto = quantized(BODIES["residual"][0], {"a"}, "uint8")
    files = []
    for i in range(2):
        out = tmp_path / str(i)
        out.mkdir()
        path, _ = compiled(clean(proto), out)
        files.append((path.read_bytes(), path.with_suffix(".bin").read_bytes()))
    assert files[0] == files[1]


def test_another_batch_size(tmp_path):
    proto = quantized(BODIES["residual"][0], {"a"}, "uint8")
    path, _ = compiled(clean(proto), tmp_path)
    model = openvino.Core().read_model(path)
    model.reshape({"x": [3, *batch(1).shape[1:]]})
    run = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = next(iter(run([batch(3)]).values()))
    assert units_apart(found, simulated(proto, batch(3)), quantum(proto)).max() <= 1


def test_pixels_that_were_folded_before(tmp_path):
    """Preprocessing is folded once: by the pipeline before it calibrates, or else by the target."""
    images = pixels(3)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    folded = ir.to_proto(fold_preprocess(clean(graph(CLASSIFIER, IMAGE)), PREPROCESS))
    proto = quantized_proto(folded, planes, floats={"image"}, dtype="uint8")
    model = clean(proto)
    model.metadata_props[INPUT_KEY] = "pixels"
    _, runner = compiled(model, tmp_path, job(input_kind="uint8"))
    assert sqnr_db(runner.run(images)[0], simulated(proto, planes)) > 60

    own = quantized_proto(graph(CLASSIFIER, IMAGE), (planes / 255 - 0.4) / 0.25, dtype="uint8")
    (tmp_path / "own").mkdir()
    _, runner = compiled(clean(own), tmp_path / "own", job(input_kind="uint8"))
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    assert sqnr_db(runner.run(images)[0], simulated(own, (planes / 255 - mean) / std)) > 35


@pytest.mark.slow
def test_the_first_convolution_reads_the_pixels_themselves(tmp_path):
    """In a border of the mean pixel: nothing rounds them ahead of it, in any batch size."""
    model, pre, photos = demo(border=True)
    path, _, _ = end_to_end(TARGET, calibrated("openvino-w8a8"), tmp_path, 2)
    layers = [layer for layer, _ in executed(path)]
    first = layers[: layers.index("Convolution")]
    assert not {"FakeQuantize", "Subgraph", "Eltwise"} & set(first), first
    assert executed(path)[len(first)][1].endswith("_I8")
    batched = openvino.Core().read_model(path)
    batched.reshape({batched.input(0).any_name: [2, *photos.shape[1:]]})
    run = openvino.Core().compile_model(batched, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    both = next(iter(run([photos[:2]]).values()))
    alone = TARGET.open(path, Job("demo", "w8a8", pre), [str(model.graph.outputs[0].name)], threads=1)
    assert sqnr_db(both, alone.run(photos[:2])[0]) > 40


def test_pixels_are_read_as_they_are_without_a_border_too(tmp_path):
    """A first convolution that does not pad, as patches are embedded by."""
    images = pixels(3)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    planes[0, 0, 0, 0], planes[0, 0, 0, 1] = 0, 255
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1)).astype(np.uint8)
    patches = CLASSIFIER.replace("pads=[1,1,1,1]", "pads=[0,0,0,0]", 1)
    assert patches != CLASSIFIER
    folded = ir.to_proto(fold_preprocess(clean(graph(patches, IMAGE)), PREPROCESS))
    proto = quantized_proto(folded, planes, dtype="uint8")
    model = clean(proto)
    model.metadata_props[INPUT_KEY] = "pixels"
    path, runner = compiled(model, tmp_path, job(input_kind="uint8"))
    layers = [layer for layer, _ in executed(path)]
    assert "FakeQuantize" not in layers[: layers.index("Convolution")]
    assert sqnr_db(runner.run(images)[0], simulated(proto, planes)) > 35


@pytest.mark.parametrize("range_of_pixels", [255.0, 200.0])
def test_a_border_that_is_no_integers_of_pixels(range_of_pixels, tmp_path):
    """Plans of others may round pixels to other integers, and a border of floats has none."""
    images = pixels(3)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    folded = ir.to_proto(fold_preprocess(clean(graph(CLASSIFIER, IMAGE)), PREPROCESS, border=True))
    proto = quantized_proto(folded, np.minimum(planes, range_of_pixels), dtype="uint8")
    model = clean(proto)
    model.metadata_props[INPUT_KEY] = "pixels"
    _, runner = compiled(model, tmp_path, job(input_kind="uint8"))
    assert sqnr_db(runner.run(images)[0], simulated(proto, planes)) > 35


@pytest.mark.slow
def test_pixels_are_integers_of_scale_1_whatever_the_photos_hold():
    """Dark photos, and brighter ones in the app."""
    model, _, photos = demo(border=True)
    _, plan = calibrate(model, [planes(photos // 2)], schemes()["openvino-w8a8"], "minmax")
    assert (plan.tensors["image"].scale, plan.tensors["image"].zero_point) == (1.0, 0)


@pytest.mark.slow
def test_the_first_layers_weights_have_7_bits():
    """Pairs of products of pixels and 8-bit weights overflow the 16 bits of CPUs without VNNI."""
    convs = [n for n in calibrated("openvino-w8a8").graph if n.op_type == "Conv"]
    largest = [int(np.abs(qdq.weight(n.inputs[1]).values).max()) for n in convs]
    assert largest[0] == 63
    assert set(largest[1:]) == {127}


@pytest.mark.slow
def test_no_zero_point_but_the_least_and_the_middle_integer():
    """Others make OpenVINO's kernels slower; those two are its u8 and i8."""
    quantizers = [n for n in calibrated("openvino-w8a8").graph if n.op_type == "QuantizeLinear"]
    assert {qdq.params(n).zero_point for n in quantizers} == {0, 128}


def test_rounding_takes_a_relu_along(tmp_path):
    proto = quantized(
        "c = Conv<pads=[1,1,1,1]>(x, w6)\nr = Relu(c)\ny = GlobalAveragePool(r)", {"c"}, "uint8"
    )
    path, _ = compiled(clean(proto), tmp_path)
    assert "ReLU" not in {op.get_type_name() for op in openvino.Core().read_model(path).get_ops()}


def test_graphs_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="needs a calibrated graph"):
        TARGET.compile(clean(graph("y = Conv<pads=[1,1,1,1]>(x, w6, b6)")), job(), tmp_path)
    proto = quantized(BODIES["conv"][0], dtype="uint8")
    with pytest.raises(UserError, match="precision fp32"):
        TARGET.compile(clean(proto), job("fp32"), tmp_path)
    other = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.name == "c_DQ")
    other.input[1] = "x_scale"
    with pytest.raises(UnsupportedModel, match="its scale or zero point is not that of 'c_Q'"):
        TARGET.compile(clean(proto), job(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mixed", [False, True])
def test_a_calibrated_network(mixed, tmp_path):
    """Rounding amplifies the least difference from layer to layer.

    So deep results are compared by what they lose against the float network, which is the same within 3 dB;
    more is a different network.
    """
    convs = [n.name for n in demo()[0].graph if n.op_type == "Conv"]
    kept = {convs[0]: "test", convs[9]: "test"} if mixed else {}
    path, artifact, simulation = end_to_end(TARGET, calibrated("openvino-w8a8", kept), tmp_path, 16)
    assert artifact > 20
    assert abs(artifact - simulation) < 3
    kinds = [kind.lower().endswith("_i8") for layer, kind in executed(path) if layer == "Convolution"]
    assert len(kinds) == len(convs)
    assert kinds.count(False) == len(kept)


@pytest.mark.parametrize(("kernel", "stride", "integer"), [(2, 4, False), (2, 2, True), (3, 2, True)])
def test_a_transposed_convolution_with_gaps_stays_float(kernel, stride, integer):
    """Its integers lose 12 to 24 dB in OpenVINO on some CPUs, and nowhere else."""
    row = case(
        f"c = Conv<pads=[1,1,1,1]>(x, w) d = Relu(c) y = ConvTranspose<strides=[{stride},{stride}]>(d, v)",
        (1, 3, 12, 16),
        w=(8, 3, 3, 3),
        v=(8, 4, kernel, kernel),
    )
    model = row.model()
    assert [layer.name for layer in place(model, OPENVINO_W8A8).layers] == ["n0", "n2"][: 1 + integer]
    assert [layer.name for layer in place(model, TFLITE_W8A8).layers] == ["n0", "n2"]
