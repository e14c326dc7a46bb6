"""ONNX Runtime as users run it: the file as it ships, at every graph optimization level."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from photo_files import demo_files
from qdq_helpers import demo, planes, simulated
from target_graphs import CLASSIFIER, IMAGE, batch, clean, graph, reference, sqnr_db

import repedge
from repedge.bundle.folder import Bundle
from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import calibrate
from repedge.config import Preprocess
from repedge.passes.preprocess import fold_preprocess
from repedge.targets.base import Job
from repedge.targets.gpu.target import GPU

TARGET = GPU()
LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
FORMS = {"tensorrt": {}, "ort": {"form": "ort"}}


def run(path, x, level, optimized=None):
    """The file in ONNX Runtime at one level; ``optimized`` receives the graph that runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def compiled(model, out, precision, options=None, input_kind="float32", pre=None):
    job = Job("net", precision, pre or Preprocess(size=IMAGE[2:]), input_kind, options=options or {})
    out.mkdir(exist_ok=True)
    return out / TARGET.compile(model, job, out).main


def operators(path):
    return Counter(n.op_type for n in onnx.load(path).graph.node)


def calibrate_for(model, form, inputs, float_nodes=None):
    scheme = TARGET.scheme("w8a8", FORMS[form])
    rounded, plan = calibrate(model, [inputs], scheme, "fast", float_nodes=float_nodes)
    return to_qdq(rounded, plan)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_floats(precision, tmp_path):
    proto, x = graph(CLASSIFIER, IMAGE), batch(3, IMAGE)
    path = compiled(clean(proto), tmp_path, precision)
    for level in LEVELS:
        assert sqnr_db(run(path, x, level), reference(proto, x)) > (60 if precision == "fp16" else 110), level


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_integers_of_a_network(form, tmp_path):
    """The bundled RepViT: at each level as far from the float network as operator by operator.

    Rounding amplifies the least difference from layer to layer, so what is compared is what is lost.
    """
    scheme = TARGET.scheme("w8a8", FORMS[form])
    model, pre, photos = demo(scheme.exact_pixels)
    qdq = calibrate_for(model, form, planes(photos))
    path = compiled(qdq, tmp_path, "w8a8", FORMS[form], "uint8", pre)
    exact, expected = (simulated(ir.to_proto(m), planes(photos)) for m in (model, qdq))
    lost = sqnr_db(expected, exact)
    assert lost > 15
    for level in LEVELS:
        assert abs(sqnr_db(run(path, photos, level), exact) - lost) < 3, level


NET = (
    "a = Conv<pads=[1,1,1,1]>(x, w6, b6)\nr = Relu(a)\nb = Conv(r, k66, b6)\ns = Add(b, r)\n"
    "c = Conv<pads=[1,1,1,1]>(s, k636, b6)\nd = Relu(c)\ne = Add(d, s)\nm = Conv(e, k66, b6)\n"
    "g = GlobalAveragePool(m)\nf = Flatten(g)\ny = Gemm<transB=1>(f, head, fb)"
)
"""Residual blocks and a head."""


@pytest.mark.parametrize("form", FORMS)
def test_integers_of_residual_blocks(form, tmp_path):
    """With a network of few layers, nothing amplifies: every level is at the numbers of the QDQ graph."""
    model, x = clean(graph(NET)), batch(8)
    qdq = calibrate_for(model, form, x)
    path = compiled(qdq, tmp_path, "w8a8", FORMS[form])
    exact, expected = reference(graph(NET), x), simulated(ir.to_proto(qdq), x)
    for level in LEVELS:
        found = run(path, x, level)
        assert sqnr_db(found, expected) > 38, level
        assert sqnr_db(found, exact) > 28, level


@pytest.mark.parametrize("options", [{}, {"batch": 3}])
def test_pixels_are_the_integers_of_the_first_convolution(options, tmp_path):
    """uint8 from the input to its kernel, in a border of the mean pixel: exact to the corners."""
    body = NET.replace("w6", "w3")  # reads three channels
    pre = Preprocess(size=IMAGE[2:], mean=(0.1, 0.45, 0.9), std=(0.2, 0.25, 0.3))
    model = fold_preprocess(clean(graph(body, IMAGE)), pre, border=True)
    photos = np.random.default_rng(0).integers(0, 256, (3, *IMAGE[2:], 3), dtype=np.uint8)
    photos[1] = 0  # a border of zeros would be as dark
    qdq = calibrate_for(model, "ort", planes(photos))
    path = compiled(qdq, tmp_path, "w8a8", {**FORMS["ort"], **options}, "uint8", pre)
    normalised = (planes(photos) / 255 - np.reshape(pre.mean, (1, 3, 1, 1))) / np.reshape(
        pre.std, (1, 3, 1, 1)
    )
    exact = reference(graph(body, IMAGE), normalised.astype(np.float32))
    expected = simulated(ir.to_proto(qdq), planes(photos))
    for level in LEVELS:
        found = run(path, photos, level, tmp_path / "optimized.onnx")
        assert sqnr_db(found, expected) > 38, level
        assert sqnr_db(found, exact) > 28, level
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    first = next(i for i, n in enumerate(nodes) if n.op_type == "QLinearConv")
    before = {n.op_type for n in nodes[:first]}
    assert not before & {"Cast", "Sub", "Mul", "QuantizeLinear", "DequantizeLinear", "Transpose"}, before


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_beyond_the_integers(form, tmp_path):
    """A channel of next to no weights: its bias over ``s_x * s_w`` is more than an int32 holds."""
    proto = graph(NET)
    for tensor in proto.graph.initializer:
        if tensor.name == "k66":
            weights = onnx.numpy_helper.to_array(tensor).copy()
            weights[2] *= 1e-11
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "k66"))
    x = batch(8)
    path = compiled(calibrate_for(clean(proto), form, x), tmp_path, "w8a8", FORMS[form])
    for level in LEVELS:
        assert sqnr_db(run(path, x, level), reference(proto, x)) > 28, level


@pytest.mark.parametrize("kept", ["Conv_2", "Conv_4"])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_stays_float_stays_so(form, kept, tmp_path, monkeypatch):
    """ONNX Runtime quantizes float weights between integers by itself, nearest and with one scale in all."""

    def weights(path):
        """Quantized weights of layers in the graph that runs."""
        run(path, batch(2), "ENABLE_BASIC", tmp_path / "optimized.onnx")
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        made = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
        return sum(n.op_type in ("Conv", "Gemm") and n.input[1] in made for n in nodes)

    qdq = calibrate_for(clean(graph(NET)), form, batch(8), {kept: "as asked"})
    path = compiled(qdq, tmp_path / "a", "w8a8", FORMS[form])
    assert weights(path) == 4
    x = batch(8)
    expected = run(path, x, "DISABLE_ALL")
    for level in LEVELS:
        assert sqnr_db(run(path, x, level), expected) > 38, level

    monkeypatch.setattr("repedge.targets.gpu.target.keep_float", lambda graph: 0)
    assert weights(compiled(qdq, tmp_path / "b", "w8a8", FORMS[form])) == 5


def test_all_runs_in_integers_in_its_own_form(tmp_path):
    """Nothing is left in float between the first QuantizeLinear and the last DequantizeLinear."""
    qdq = calibrate_for(clean(graph(NET)), "ort", batch(8))
    path = compiled(qdq, tmp_path, "w8a8", FORMS["ort"])
    run(path, batch(2), "ENABLE_ALL", tmp_path / "optimized.onnx")
    found = operators(tmp_path / "optimized.onnx")
    assert {k: n for k, n in found.items() if k not in ("Transpose", "Flatten")} == {
        "QuantizeLinear": 1,
        "QLinearConv": 4,
        "QLinearAdd": 2,
        "QLinearGlobalAveragePool": 1,
        "QGemm": 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_bias_is_caught(form, tmp_path, monkeypatch):
    """Planted in the file as it is written: what `verify` runs is that file."""
    from repedge.targets.gpu import target as module

    def wrong(model, path, save=module.save):
        for node in model.graph:
            bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
            while bias is not None and bias.producer() is not None:
                bias = bias.producer().inputs[0]
            if bias is not None:
                array = bias.const_value.numpy()
                bias.const_value = ir.tensor((array * 3 + array.dtype.type(1)), name=bias.name)
        save(model, path)

    photos = demo_files(tmp_path / "photos")

    def build(out):
        report = repedge.compile(
            targets=["gpu"], precisions=["w8a8"], calib=photos, calib_count=16, recipe="fast",
            out=out, options=FORMS[form],
        )  # fmt: skip
        return report.bundles[0]

    right = build(tmp_path / "right")
    assert right.verify.passed
    assert Bundle.open(right.path).manifest.quantization["scheme"] == TARGET.scheme("w8a8", FORMS[form]).name
    monkeypatch.setattr(module, "save", wrong)
    found = build(tmp_path / "wrong")
    assert not found.verify.passed
    assert "SQNR" in found.verify.failures[0]
