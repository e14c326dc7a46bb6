"""w8a8 for Core ML: quantize and dequantize between the layers, int8 weights, iOS 17 and later."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from qdq_helpers import (
    BODIES,
    calibrated,
    end_to_end,
    quantized,
    quantized_proto,
    quantum,
    simulated,
    snapped,
    units_apart,
)
from target_graphs import CLASSIFIER, IMAGE, batch, clean, graph, pixels, sqnr_db

from repedge.config import Preprocess
from repedge.errors import UnsupportedModel, UserError
from repedge.passes.preprocess import INPUT_KEY, fold_preprocess
from repedge.targets.base import Job
from repedge.targets.coreml.target import CoreML

pytest.importorskip("coremltools")

TARGET = CoreML()
PREPROCESS = Preprocess(size=IMAGE[2:], mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def job(precision="w8a8", input_kind="float32", **options):
    return Job("net", precision, PREPROCESS, input_kind, options=options)


def compiled(model, out, the_job=None):
    """The package and a runner."""
    the_job = the_job or job()
    artifact = TARGET.compile(model, the_job, out)
    names = [o.name for o in artifact.outputs]
    return out / artifact.main, TARGET.open(out / artifact.main, the_job, names, threads=1)


def operations(package):
    """A saved program's ops."""
    from coremltools.models.utils import load_spec

    main = load_spec(str(package)).mlProgram.functions["main"]
    (block,) = main.block_specializations.values()
    return block.operations


def mil_ops(package):
    """Types of a saved program's ops without constants and identities."""
    return [op.type for op in operations(package) if op.type not in ("const", "identity")]


def weight_bytes(package):
    return sum(f.stat().st_size for f in package.rglob("weight.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_numbers_are_those_of_the_qdq_graph(name, dtype, tmp_path):
    """The program computes in float16, scales too.

    A sum near a rounding boundary may fall on the other side, by one unit, here and in the branch of a
    residual. The output's own scale is off by up to 2^-11,
    which makes 0.06 of its 127 units.
    """
    body, floats = BODIES[name]
    proto = quantized(body, floats, dtype)
    x = snapped(proto, batch(2))
    _, runner = compiled(clean(proto), tmp_path)
    found, expected = runner.run(x)[0], simulated(proto, x)
    allowed = 1.07 * quantum(proto) + (quantum(proto, "d") if name == "residual" else 0)
    assert np.abs(found - expected).max() <= allowed
    assert sqnr_db(found, expected) > 38


@pytest.mark.parametrize(
    ("deployment", "widening"),
    [("iOS17", "constexpr_affine_dequantize"), ("iOS18", "constexpr_blockwise_shift_scale")],
)
@pytest.mark.parametrize("name", ["conv", "transposed grouped", "dense"])
def test_the_program(name, deployment, widening, tmp_path):
    """Every layer reads a dequantize and an int8 constant that stays one in the file."""
    body, floats = BODIES[name]
    proto = quantized(body, floats, integer_bias=True)
    the_job = job(deployment_target=deployment)
    package, runner = compiled(clean(proto), tmp_path, the_job)
    ops = mil_ops(package)
    layer = {"conv": "conv", "transposed grouped": "conv_transpose", "dense": "linear"}[name]
    before = ["cast", "quantize", "dequantize"] + ["reshape", "quantize", "dequantize"] * (name == "dense")
    after = ["relu"] * (name == "conv") + ["quantize", "dequantize", "cast"]
    assert ops == [*before, widening, layer, *after]
    x = snapped(proto, batch(2))
    assert units_apart(runner.run(x)[0], simulated(proto, x), quantum(proto)).max() <= 1


def test_weights_take_a_byte_each(tmp_path):
    shape = (1, 64, 5, 5)
    proto = quantized_proto(graph("y = Conv<pads=[1,1,1,1]>(x, big)", shape), batch(2, shape))
    package, _ = compiled(clean(proto), tmp_path)
    assert 64 * 64 * 9 <= weight_bytes(package) < 1.05 * 64 * 64 * 9


def test_w8a32_keeps_the_weights_of_a_calibrated_graph(tmp_path):
    proto = quantized(BODIES["conv, signed result"][0], {"x", "y"})
    package, runner = compiled(clean(proto), tmp_path, job("w8a32"))
    assert mil_ops(package) == ["cast", "constexpr_affine_dequantize", "conv", "cast"]
    assert sqnr_db(runner.run(batch(2))[0], simulated(proto, batch(2))) > 55


def test_older_systems_are_refused(tmp_path):
    model = clean(quantized(BODIES["conv"][0]))
    with pytest.raises(UserError, match="w8a8 needs deployment_target iOS17 or later, not iOS16"):
        TARGET.compile(model, job(deployment_target="iOS16"), tmp_path)
    assert TARGET.compile(model, job(), tmp_path).requires["iOS"] == ">=17"


def test_graphs_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="needs a calibrated graph"):
        TARGET.compile(clean(graph("y = Conv<pads=[1,1,1,1]>(x, w6, b6)")), job(), tmp_path)
    proto = quantized(BODIES["conv"][0])
    with pytest.raises(UserError, match="precision fp16"):
        TARGET.compile(clean(proto), job("fp16"), tmp_path)
    proto = quantized(BODIES["conv"][0])
    end = onnx.helper.make_tensor_value_info("y_q", onnx.TensorProto.INT8, (1, 6, 7, 9))
    proto.graph.output.append(end)
    with pytest.raises(UnsupportedModel, match="its integers are an output of the graph"):
        TARGET.compile(clean(proto), job(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pixels_that_were_folded_before(tmp_path):
    """Preprocessing is folded once: by the pipeline before it calibrates, or else by the target."""
    images = pixels(2)
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    folded = ir.to_proto(fold_preprocess(clean(graph(CLASSIFIER, IMAGE)), PREPROCESS))
    proto = quantized_proto(folded, planes, floats={"image"})
    model = clean(proto)
    model.metadata_props[INPUT_KEY] = "pixels"
    package, runner = compiled(model, tmp_path, job(input_kind="uint8"))
    assert mil_ops(package).count("sub") == 1
    assert sqnr_db(runner.run(images)[0], simulated(proto, planes)) > 35


def test_the_same_bytes_twice(tmp_path):
    proto = quantized(BODIES["residual"][0], {"a"})
    files = []
    for i in range(2):
        out = tmp_path / str(i)
        out.mkdir()
        package, _ = compiled(clean(proto), out)
        files.append([f.read_bytes() for f in sorted(package.rglob("*")) if f.is_file()])
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_calibrated_network(tmp_path):
    """Rounding amplifies the least difference from layer to layer.

    So deep results are compared by what they lose against the float network, which is the same within 3 dB;
    more is a different network.
    """
    model = calibrated("coreml-w8a8")
    package, artifact, simulation = end_to_end(TARGET, model, tmp_path, 8)
    assert artifact > 20
    assert abs(artifact - simulation) < 3
    assert mil_ops(package).count("quantize") == sum(n.op_type == "QuantizeLinear" for n in model.graph)


@pytest.mark.slow
def test_operators_keep_their_names_and_roundings_are_numbered(tmp_path):
    """Which is what makes an integer program's text smaller than a 15th of its weights."""
    package, _, _ = end_to_end(TARGET, calibrated("coreml-w8a8"), tmp_path, 1)
    names = {op.outputs[0].name: op.type for op in operations(package)}
    roundings = [n for n, kind in names.items() if kind in ("quantize", "dequantize")]
    assert roundings
    assert max(map(len, roundings)) <= 5
    convs = [n for n, kind in names.items() if kind == "conv"]
    assert all(n.startswith(("features_", "classifier_")) for n in convs)
    program = next(package.rglob("model.mlmodel")).stat().st_size
    assert program < weight_bytes(package) / 15
