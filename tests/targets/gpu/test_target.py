"""The GPU target: strict types, any batch, metadata, refusals."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import operators
import pytest
from onnx import TensorProto
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
from repedge.targets import qdq
from repedge.targets.base import Job
from repedge.targets.gpu.target import GPU, TABLE
from repedge.targets.wide import wide_nodes

TARGET = GPU()
PREPROCESS = Preprocess(size=IMAGE[2:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
KNOWN = [name for name, row in CASES.items() if "gpu" not in row.refused]
LABELS = ("tench", "great white shark", 'a "quoted" one', "käse", "e")


def job(precision="fp32", input_kind="float32", preprocess=PREPROCESS, **kwargs):
    return Job("net", precision, preprocess, input_kind, **kwargs)


def compiled(proto, out, *args, **kwargs):
    """The artifact, its file as a proto, and a runner."""
    artifact = TARGET.compile(clean(proto), job(*args, **kwargs), out)
    names = [o.name for o in artifact.outputs]
    runner = TARGET.open(out / artifact.main, job(*args, **kwargs), names, threads=1)
    return artifact, onnx.load(out / artifact.main), runner


def types(proto):
    """Element type by value name, inferred from nothing but inputs and weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {t.name: t.data_type for t in inferred.initializer}


def test_every_row_has_a_case():
    tried = operators.operators_of(CASES, "gpu")
    assert not TABLE.keys() - tried - qdq.NAMES  # those have tests of their own


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_fp16_keeps_the_function(name, tmp_path):
    """Nearly, and strictly typed: only a Cast mixes float types, and floats are cast at the ends only."""
    row = CASES[name]
    model, x = row.model(), row.input() / 2  # exp makes much of how float16 rounds large inputs
    artifact = TARGET.compile(model, job("fp16"), tmp_path)
    names = [o.name for o in artifact.outputs]
    found = TARGET.open(tmp_path / artifact.main, job("fp16"), names, threads=1).run(x)
    wanted = operators.reference(model, x)
    assert operators.same_kinds(found, wanted)
    assert operators.in_half(row, found, wanted, 2e-3)
    written = onnx.load(tmp_path / artifact.main)
    onnx.checker.check_model(written, full_check=True)
    kinds = types(written)
    wide = {n.name for n in wide_nodes(model.graph)}
    ends = sum(array.dtype == np.float32 for array in wanted)
    first, *inner = written.graph.node[: len(written.graph.node) - ends]
    last = written.graph.node[len(written.graph.node) - ends :]
    assert {n.op_type for n in (first, *last) if n.name not in wide} == {"Cast"}
    for node in inner:
        read = [kinds[n] for i, n in enumerate(node.input) if n and not (node.op_type == "Resize" and i)]
        found_kinds = {*read, *(kinds[n] for n in node.output)} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        if node.op_type != "Cast":
            assert found_kinds <= {TensorProto.FLOAT if node.name in wide else TensorProto.FLOAT16}, (
                node.op_type
            )
        elif len(found_kinds) == 2:  # at the border of a norm
            norms = [n for n in written.graph.node if n.name in wide]
            assert any(node.output[0] in n.input or node.input[0] in n.output for n in norms)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_fp32_is_a_valid_file(name, tmp_path):
    artifact = TARGET.compile(CASES[name].model(), job(), tmp_path)
    onnx.checker.check_model(onnx.load(tmp_path / artifact.main), full_check=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_any_batch(precision, count, tmp_path):
    proto = graph(CLASSIFIER, IMAGE)
    artifact, written, runner = compiled(proto, tmp_path, precision)
    assert artifact.inputs[0].shape == (-1, *IMAGE[1:])
    assert artifact.outputs[0].shape == (-1, 5)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert written.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    x = batch(count, IMAGE)
    assert sqnr_db(runner.run(x)[0], reference(proto, x)) > (60 if precision == "fp16" else 110)


@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pixels_in_logits_out(color, precision, tmp_path):
    channels = 1 if color == "GRAY" else 3
    pre = PREPROCESS.model_copy(
        update={"color": color, "mean": (0.5, 0.4, 0.3)[:channels], "std": (0.2, 0.25, 0.3)[:channels]}
    )
    proto = graph(CLASSIFIER.replace("w3", f"w{channels}"), (1, channels, *IMAGE[2:]))
    artifact, written, runner = compiled(proto, tmp_path, precision, "uint8", pre)
    assert (artifact.inputs[0].dtype, artifact.inputs[0].layout) == ("uint8", "NHWC")
    assert written.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert written.graph.node[0].op_type == "Cast"  # the only reader of uint8 that TensorRT has
    images = pixels(3, channels)
    expected = reference(proto, normalised(images, pre))
    assert sqnr_db(runner.run(images)[0], expected) > (50 if precision == "fp16" else 100)


def test_the_border_is_exact(tmp_path):
    proto = graph("y = Conv<pads=[1,1,1,1]>(x, w3, b6)", IMAGE)
    _, _, runner = compiled(proto, tmp_path, "fp32", "uint8")
    images = pixels(2)
    assert relative_error(runner.run(images)[0], reference(proto, normalised(images, PREPROCESS))) < 2e-6


def test_fp16_halves_the_file(tmp_path):
    proto = graph("y = Conv(x, big)", (1, 64, 5, 5))
    sizes = {}
    for precision in ("fp16", "fp32"):
        (tmp_path / precision).mkdir()
        artifact, _, _ = compiled(proto, tmp_path / precision, precision)
        sizes[precision] = (tmp_path / precision / artifact.main).stat().st_size
    weights = 64 * 64 * 9
    assert 0 < sizes["fp32"] - 4 * weights < 2048
    assert 0 < sizes["fp16"] - 2 * weights < 2048


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_weights_come_back_as_they_were(precision, tmp_path):
    """Small and large ones; protobuf itself reads the file, and writes the same content."""
    proto = graph("a = Conv(x, big)\ny = Add(a, big_bias)", (1, 64, 5, 5))
    artifact, written, runner = compiled(proto, tmp_path, precision)
    onnx.checker.check_model(tmp_path / artifact.main, full_check=True)
    found = {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer}
    dtype = np.float16 if precision == "fp16" else np.float32
    for tensor in proto.graph.initializer:
        np.testing.assert_array_equal(found[tensor.name], onnx.numpy_helper.to_array(tensor).astype(dtype))
    size = (tmp_path / artifact.main).stat().st_size
    assert written.ByteSize() == size
    x = batch(2, (1, 64, 5, 5))
    assert relative_error(runner.run(x)[0], reference(proto, x)) < (2e-3 if precision == "fp16" else 2e-6)


def test_more_than_one_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("repedge.targets.gpu.file.PROTOBUF_LIMIT", 4 * 64 * 64 * 9)
    with pytest.raises(UserError, match=r"the model takes \d+ bytes, more than one ONNX file can hold"):
        compiled(graph("y = Conv(x, big)", (1, 64, 5, 5)), tmp_path, "fp32")


def test_file_versions_and_metadata(tmp_path):
    _, written, _ = compiled(graph(CLASSIFIER, IMAGE), tmp_path, labels=LABELS, license="MIT", version="3")
    assert written.ir_version == 10
    assert [(o.domain, o.version) for o in written.opset_import] == [("", 20)]
    assert written.producer_name == "repedge"
    metadata = {p.key: p.value for p in written.metadata_props}
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert Preprocess.model_validate_json(metadata["preprocess"]) == PREPROCESS
    assert (metadata["license"], metadata["version"]) == ("MIT", "3")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_same_job_same_bytes_and_the_graph_is_not_changed(precision, tmp_path):
    model = clean(graph(CLASSIFIER, IMAGE))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        TARGET.compile(model, job(precision, "uint8", labels=LABELS), folder)
        files = (f for f in sorted(folder.rglob("*")) if f.is_file())
        written.append({str(f.relative_to(folder)): f.read_bytes() for f in files})
    assert written[0] == written[1]
    assert len(written[0]) == 5
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_several_outputs_in_the_order_asked_for(tmp_path):
    """One of them is read by another node too."""
    proto = graph("r = Relu(x)\ny = Sigmoid(r)")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT, SHAPE))
    artifact = TARGET.compile(clean(proto), job("fp16"), tmp_path)
    assert [o.name for o in artifact.outputs] == ["y", "r"]
    r, y = TARGET.open(tmp_path / artifact.main, job("fp16"), ["r", "y"], threads=1).run(x := batch(2))
    np.testing.assert_allclose(r, np.maximum(x, 0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-np.maximum(x, 0))), rtol=1e-3)


def test_all_unsupported_nodes_are_named_at_once(tmp_path):
    model = clean(
        graph(
            "e = Acosh(x)\nd = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(e)\n"
            'y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(d, scales2, scales2)'
        )
    )
    with pytest.raises(UnsupportedModel) as error:
        TARGET.compile(model, job(), tmp_path)
    assert str(error.value) == (
        "gpu can't take this model: Acosh node 'Acosh_0': not among the supported operators; "
        "AveragePool node 'AveragePool_1': TensorRT has no dilated pooling; "
        "Resize node 'Resize_2': its coordinate_transformation_mode 'tf_crop_and_resize' is not supported"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("r = Relu(x)\ny = Conv(x, r)", "its input 1 ('r') is not a constant"),
        ("m, i = MaxPool<kernel_shape=[2,2]>(x)\ny = Relu(m)", "TensorRT has no pooling with indices"),
    ],
)
def test_refusals_say_why(body, why):
    (found,) = TARGET.unsupported(clean(graph(body)))
    assert why in found.why


def replaced(proto, name, array):
    """``proto`` with other values in one of its weights."""
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    return proto


def test_a_weight_beyond_float16_is_named(tmp_path):
    proto = replaced(graph(CLASSIFIER, IMAGE), "fb", np.array([1, 2, 3, 4, -7e4], np.float32))
    with pytest.raises(UserError, match=r"the weight 'fb' holds 70000, beyond float16"):
        TARGET.compile(clean(proto), job("fp16"), tmp_path)
    TARGET.compile(clean(proto), job("fp32"), tmp_path)


def test_a_weight_of_denormals_is_told(tmp_path):
    tiny = np.linspace(1e-7, 2e-6, 30, dtype=np.float32).reshape(5, 6)
    artifact, _, _ = compiled(replaced(graph(CLASSIFIER, IMAGE), "head", tiny), tmp_path, "fp16")
    (note,) = artifact.notes
    assert note.startswith("float16 holds the weight 'head' badly: relative error ")


def test_fp16_is_also_run_with_its_rounding(tmp_path):
    """ONNX Runtime's CPU kernels keep float32 between operators, and hide an overflow."""
    proto = graph("s = Sigmoid(x)\nt = Tanh(s)\ny = Mul(t, big_number)")
    _, _, runner = compiled(proto, tmp_path, "fp16")
    x = batch(2)
    s = (1 / (1 + np.exp(-x.astype(np.float16).astype(np.float32)))).astype(np.float16)
    t = np.tanh(s.astype(np.float32)).astype(np.float16)
    expected = (t.astype(np.float32) * 300).astype(np.float16)
    ((how, (rounded,)),) = runner.others(x).items()
    assert how == "with float16 rounding after every operator, as on a GPU"
    assert (np.abs(rounded - expected) <= np.spacing(np.abs(expected))).all()
    assert (rounded == rounded.astype(np.float16)).all()

    proto = graph("s = Mul(x, big_number)\nt = Mul(s, big_number)\ny = Div(t, big_number)")
    (tmp_path / "infinite").mkdir()
    _, _, runner = compiled(proto, tmp_path / "infinite", "fp16")
    twos = np.full((1, *SHAPE[1:]), 2.0, np.float32)
    ((_, (rounded,)),) = runner.others(twos).items()
    assert np.isinf(rounded).all()
    (tmp_path / "float").mkdir()
    _, _, runner = compiled(proto, tmp_path / "float", "fp32")
    assert runner.others(twos) == {}


def test_an_overflow_on_a_gpu_fails_the_verification(tmp_path):
    from repedge.judge import verification
    from repedge.judge.verdict import Bar
    from repedge.tasks import of_graph

    proto = graph("s = Mul(x, big_number)\nt = Mul(s, big_number)\ny = Div(t, big_number)")
    _, _, runner = compiled(proto, tmp_path, "fp16")
    x = np.full((2, *SHAPE[1:]), 2.0, np.float32)
    task, exact = of_graph(clean(proto), ()), [reference(proto, x)]
    found = verification.compare(task, runner.run(x), exact)
    others = {how: verification.compare(task, y, exact) for how, y in runner.others(x).items()}
    bar = Bar("fp16", TARGET.threshold("fp16"))
    result = verification.summarize(TARGET, bar, found, source="x", others=others)
    assert not result.passed
    (why,) = result.failures
    assert why.startswith("with float16 rounding after every operator, as on a GPU: output 'y' has NaN")


def test_one_constant_in_two_roles(tmp_path):
    """Scales stay float32 where a Resize reads them, and become float16 where a Mul does."""
    proto = graph('r = Resize<mode="nearest">(x, , scales2)\ny = Mul(r, scales2)', (1, 4, 4, 2))
    x = batch(2, (1, 4, 4, 2))
    _, _, runner = compiled(proto, tmp_path, "fp16")
    assert relative_error(runner.run(x)[0], reference(proto, x)) < 1e-3


def test_a_broken_file_is_one_clear_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a garbage")
    with pytest.raises(DeviceError, match=r"ONNX Runtime could not load model\.onnx"):
        TARGET.open(tmp_path / "model.onnx", job(), ["y"])


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
