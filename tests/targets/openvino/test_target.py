"""The OpenVINO target: the written IR, at other batch sizes too, its metadata, its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import operators
import pytest
from op_table import CASES
from target_graphs import (
    CLASSIFIER,
    IMAGE,
    SHAPE,
    batch,
    clean,
    graph,
    network,
    normalised,
    pixels,
    reference,
    relative_error,
    sqnr_db,
)

from repedge.config import Preprocess
from repedge.errors import DeviceError, UnsupportedModel, UserError
from repedge.passes import simplify
from repedge.passes.fusion.fuse import fuse
from repedge.targets import qdq
from repedge.targets.base import Job
from repedge.targets.openvino.ops import TABLE
from repedge.targets.openvino.target import OpenVINO

openvino = pytest.importorskip("openvino")

TARGET = OpenVINO()
PREPROCESS = Preprocess(size=IMAGE[2:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
LABELS = ("tench", "great white shark", 'a "quoted" <one>', "käse", "e")
ONE_IMAGE = {"add_lower_rank", "reduce_sum_all", "concat", "flatten_from_rows", "gather_elements_constant"}
ONE_IMAGE |= {"gather_nd", "expand_rank"}
"""Rows that mix images, which `repedge.passes.batch` refuses."""
BATCHES = [name for name, row in CASES.items() if "openvino" not in row.refused and name not in ONE_IMAGE]
F32 = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def job(precision="fp32", input_kind="float32", preprocess=PREPROCESS, **kwargs):
    return Job("net", precision, preprocess, input_kind, **kwargs)


def model_info(model):
    """What Model API looks up: key -> text."""
    keys = ("model_type", "labels", "resize_type", "mean_values", "scale_values", "reverse_input_channels")
    present = [key for key in keys if model.has_rt_info(["model_info", key])]
    return {key: model.get_rt_info(["model_info", key]).astype(str) for key in present}


@pytest.mark.slow
@pytest.mark.parametrize("name", BATCHES)
def test_another_batch_size(name, tmp_path):
    """The file read back by OpenVINO itself and reshaped to three images."""
    row = CASES[name]
    model, x = row.model(), row.input()
    artifact = TARGET.compile(model, job(), tmp_path)
    core = openvino.Core()
    read = core.read_model(tmp_path / artifact.main)
    read.reshape({"x": list(x.shape)})
    results = core.compile_model(read, "CPU", F32)([x])
    found = [results[str(value.name)] for value in model.graph.outputs]
    assert operators.relative_error(found, operators.reference(model, x)) < operators.TOLERANCE


def test_every_row_has_a_case():
    tried = operators.operators_of(CASES, "openvino")
    assert not TABLE.keys() - tried - qdq.NAMES  # those have tests of their own


@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
def test_pixels_in_logits_out(color, tmp_path):
    """The whole image, border pixels too, as the definition of Preprocess has it."""
    channels = 1 if color == "GRAY" else 3
    pre = PREPROCESS.model_copy(update={"color": color, "mean": (0.5, 0.4, 0.3)[:channels]})
    pre = pre.model_copy(update={"std": (0.2, 0.25, 0.3)[:channels]})
    proto = graph(CLASSIFIER.replace("w3", f"w{channels}"), (1, channels, *IMAGE[2:]))
    images = pixels(3, channels)
    artifact = TARGET.compile(clean(proto), job(input_kind="uint8", preprocess=pre), tmp_path)
    assert artifact.inputs[0].dtype == "uint8"
    assert artifact.inputs[0].shape == (1, *IMAGE[2:], channels)
    expected = reference(proto, normalised(images, pre))
    found = TARGET.open(tmp_path / artifact.main, job(), ["y"], threads=1).run(images)[0]
    assert relative_error(found, expected) < 5e-6

    core = openvino.Core()
    model = core.read_model(tmp_path / artifact.main)
    model.reshape({model.inputs[0]: [3, *IMAGE[2:], channels]})
    assert relative_error(core.compile_model(model, "CPU", F32)([images])["y"], expected) < 5e-6


def test_the_border_is_exact(tmp_path):
    """Each output pixel of one padded convolution: a mean folded into it would show at the border."""
    proto = graph("y = Conv<pads=[1,1,1,1]>(x, w3, b6)", IMAGE)
    images = pixels(2)
    artifact = TARGET.compile(clean(proto), job(input_kind="uint8"), tmp_path)
    found = TARGET.open(tmp_path / artifact.main, job(), ["y"], threads=1).run(images)[0]
    assert relative_error(found, reference(proto, normalised(images, PREPROCESS))) < 2e-6


def test_normalisation_without_a_convolution_to_fold_into(tmp_path):
    proto = graph("r = Relu(x)\ny = Add(r, x)", IMAGE)
    artifact = TARGET.compile(clean(proto), job(input_kind="uint8"), tmp_path)
    images = pixels(2)
    found = TARGET.open(tmp_path / artifact.main, job(), ["y"], threads=1).run(images)[0]
    assert relative_error(found, reference(proto, normalised(images, PREPROCESS))) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2)])
def test_files_are_hardly_larger_than_the_weights(precision, width, tmp_path):
    model, images, expected = network("repvit_m0_6")
    fuse(model)
    simplify(model)
    weights = sum(v.const_value.size for v in model.graph.initializers.values())
    artifact = TARGET.compile(model, job(precision, "uint8", Preprocess(size=(64, 64))), tmp_path)
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    assert width * weights < size < width * weights * 1.02 + 64 * 1024
    found = TARGET.open(tmp_path / artifact.main, job(), ["logits"], threads=1).run(images)[0]
    assert sqnr_db(found, expected) > 10 * width


def test_fp16_leaves_small_constants_exact(tmp_path):
    proto = graph(CLASSIFIER, IMAGE)  # no constant of more than 200 numbers
    x = batch(3, IMAGE)
    artifact = TARGET.compile(clean(proto), job("fp16"), tmp_path)
    found = TARGET.open(tmp_path / artifact.main, job(), ["y"], threads=1).run(x)[0]
    assert sqnr_db(found, reference(proto, x)) > 110


def test_metadata_as_model_api_reads_it(tmp_path):
    artifact = TARGET.compile(clean(graph(CLASSIFIER, IMAGE)), job(labels=LABELS, author="A & B"), tmp_path)
    model = openvino.Core().read_model(tmp_path / artifact.main)
    info = model_info(model)
    assert info["model_type"] == "Classification"
    assert info["labels"].split() == ["tench", "great_white_shark", 'a_"quoted"_<one>', "käse", "e"]
    assert [float(v) for v in info["mean_values"].split()] == pytest.approx([127.5, 102, 76.5])
    assert [float(v) for v in info["scale_values"].split()] == pytest.approx([51, 63.75, 76.5])
    assert json.loads(model.get_rt_info(["repedge", "labels"]).astype(str)) == list(LABELS)
    assert model.get_rt_info(["repedge", "author"]).astype(str) == "A & B"
    preprocess = Preprocess.model_validate_json(model.get_rt_info(["repedge", "preprocess"]).astype(str))
    assert preprocess == PREPROCESS
    assert str(openvino.layout_helpers.get_layout(model.input(0))) == "[N,C,H,W]"
    assert str(openvino.layout_helpers.get_layout(model.output(0))) == "[N,C]"


def test_pixels_need_no_normalisation_by_the_app(tmp_path):
    artifact = TARGET.compile(clean(graph(CLASSIFIER, IMAGE)), job(input_kind="uint8"), tmp_path)
    model = openvino.Core().read_model(tmp_path / artifact.main)
    assert str(openvino.layout_helpers.get_layout(model.input(0))) == "[N,H,W,C]"
    assert model.input(0).get_element_type() == openvino.Type.u8
    assert not {"mean_values", "scale_values"} & model_info(model).keys()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_same_job_same_bytes(precision, tmp_path):
    proto = graph(CLASSIFIER, IMAGE)
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        TARGET.compile(clean(proto), job(precision, "uint8", labels=LABELS), tmp_path / folder)
        written.append({f.name: f.read_bytes() for f in sorted((tmp_path / folder).iterdir())})
    assert written[0].keys() == {"net.xml", "net.bin"}
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in written[0]["net.xml"]


def test_shapes_stay_readable_in_the_xml(tmp_path):
    """Sizes are written once: where a value is made."""
    from xml.etree import ElementTree

    TARGET.compile(clean(graph(CLASSIFIER, IMAGE)), job("fp16", "uint8"), tmp_path)
    layers = {layer.get("name"): layer for layer in ElementTree.parse(tmp_path / "net.xml").iter("layer")}
    ports = layers["Gemm_4"].findall("output/port")
    assert [[int(d.text) for d in port.findall("dim")] for port in ports] == [[1, 5]]
    assert all(port.find("dim") is None for layer in layers.values() for port in layer.findall("input/port"))


def test_the_graph_is_not_changed(tmp_path):
    import onnx_ir as ir

    model = clean(graph(CLASSIFIER, IMAGE))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    TARGET.compile(model, job("fp16", "uint8"), tmp_path)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_several_outputs_in_the_order_asked_for(tmp_path):
    proto = graph("r = Relu(x)\ny = Sigmoid(x)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, SHAPE))
    artifact = TARGET.compile(clean(proto), job(), tmp_path)
    assert [o.name for o in artifact.outputs] == ["y", "r"]
    r, y = TARGET.open(tmp_path / artifact.main, job(), ["r", "y"], threads=1).run(x := batch(2))
    np.testing.assert_array_equal(r, np.maximum(x, 0))
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)), rtol=1e-6)


def test_all_unsupported_nodes_are_named_at_once(tmp_path):
    model = clean(
        graph(
            "e = Acosh(x)\nd = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(e)\n"
            'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(d, scales2, scales2)'
        )
    )
    found = TARGET.unsupported(model)
    assert [(u.op, u.node) for u in found] == [
        ("Acosh", "Acosh_0"),
        ("AveragePool", "AveragePool_1"),
        ("Resize", "Resize_2"),
    ]
    with pytest.raises(UnsupportedModel) as error:
        TARGET.compile(model, job(), tmp_path)
    assert str(error.value) == (
        "openvino can't take this model: Acosh node 'Acosh_0': no lowering for this operator; "
        "AveragePool node 'AveragePool_1': a dilated average pool is not supported; "
        "Resize node 'Resize_2': its coordinate_transformation_mode 'tf_crop_and_resize' is not supported"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("r = Relu(x)\ny = Conv(x, r)", "its weight is not a constant"),
        ('y = ConvTranspose<auto_pad="SAME_UPPER">(x, wt)', "auto_pad and output_shape are not supported"),
        (
            "y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1, count_include_pad=1>(x)",
            "ceil_mode together with count_include_pad is not supported",
        ),
        ('y = Pad<mode="wrap">(x, pads4)', "mode 'wrap' is not supported"),
        ("g = GlobalAveragePool(x)\ny = Squeeze(g)", "it has no axes"),
        ("m, i = MaxPool<kernel_shape=[2,2]>(x)\ny = Relu(m)", "the indices, is not supported"),
    ],
)
def test_refusals_say_why(body, why):
    (found,) = TARGET.unsupported(clean(graph(body)))
    assert why in found.why


def test_a_weight_beyond_float16_is_named(tmp_path):
    proto = graph(CLASSIFIER, IMAGE)
    head = next(t for t in proto.graph.initializer if t.name == "head")
    array = onnx.numpy_helper.to_array(head).copy()
    array[0, 0] = -7e4
    head.CopyFrom(onnx.numpy_helper.from_array(array, "head"))
    with pytest.raises(UserError, match=r"the weight 'head' holds 70000, beyond float16"):
        TARGET.compile(clean(proto), job("fp16"), tmp_path)
    TARGET.compile(clean(proto), job("fp32"), tmp_path)


def test_a_broken_file_is_one_clear_error(tmp_path):
    path = Path(tmp_path / "net.xml")
    path.write_text("<net")
    with pytest.raises(DeviceError, match=r"OpenVINO could not load net\.xml"):
        TARGET.open(path, job(), ["y"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvit_m0_6", "repvgg_a0"])
def test_whole_networks(name, tmp_path):
    """From pixels to logits, against PyTorch in float64."""
    model, images, expected = network(name)
    pre = Preprocess(size=(64, 64))
    for precision, floor in (("fp32", 90), ("fp16", 40)):
        what = job(precision, "uint8", pre)
        (tmp_path / precision).mkdir()
        artifact = TARGET.compile(model, what, tmp_path / precision)
        names = [o.name for o in artifact.outputs]
        found = TARGET.open(tmp_path / precision / artifact.main, what, names, threads=1).run(images)[0]
        assert sqnr_db(found, expected) > floor
        if precision == "fp32":
            assert relative_error(found, expected) < 1e-5
        assert artifact.notes == ()


def test_no_telemetry() -> None:
    """Importing openvino sends an event from a forked process, unless its telemetry can't be imported."""
    code = (
        "import sys; from repedge.targets.openvino.importing import import_openvino; import_openvino().Core;"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry') and sys.modules[m]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
