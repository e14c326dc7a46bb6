"""The Core ML package as a whole: signature, classifier, metadata, precisions, reproducible bytes, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from coreml_helpers import graph, job, mil_ops, reference, sample

from repedge.config import Preprocess
from repedge.errors import DeviceError, UnsupportedModel, UserError
from repedge.targets.coreml.compress import palette
from repedge.targets.coreml.lowerer import identifier
from repedge.targets.coreml.package import distinct
from repedge.targets.coreml.rounding import round_keeping_sums
from repedge.targets.coreml.target import CoreML

LABELS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
PREPROCESS = Preprocess(size=(16, 24), resize=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SMALL = """
    c1 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<strides=[2,2], pads=[1,1,1,1]>(r1, w2)
    r2 = HardSwish(c2)
    p = GlobalAveragePool(r2)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w3, b3)
"""
WEIGHTS = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (48, 16, 3, 3), "w3": (7, 48), "b3": (7,)}


def small():
    return graph(SMALL, "float[1,3,16,24] x", weights=WEIGHTS)


def compiled(tmp_path: Path, model, the_job):
    """(path of the package, artifact)."""
    folder = tmp_path / f"{the_job.precision}-{the_job.options.get('deployment_target', 'default')}"
    folder.mkdir()
    artifact = CoreML().compile(ir.from_proto(model), the_job, folder)
    return folder / artifact.main, artifact


def spec_of(package: Path):
    from coremltools.models.utils import load_spec

    return load_spec(str(package))


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - actual) ** 2)))


def weight_bytes(package: Path) -> int:
    return (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def test_classifier_keeps_the_scores(tmp_path):
    from repedge.targets.coreml.interpreter.interpreter import load

    model = small()
    package, artifact = compiled(tmp_path, model, job("fp16", labels=LABELS))
    x = sample(model)
    (logits,) = reference(model, x)
    result = load(package).run({"x": x})
    assert [o.name for o in artifact.outputs] == ["y"]
    np.testing.assert_allclose(result["y"], logits, rtol=0, atol=4e-3 * np.abs(logits).max())
    assert result["classLabel"] == LABELS[int(logits.argmax())]
    softmax = np.exp(result["y"][0] - result["y"].max())
    softmax /= softmax.sum()
    assert list(result["classLabel_probs"]) == list(LABELS)
    np.testing.assert_allclose(list(result["classLabel_probs"].values()), softmax, rtol=0, atol=1e-6)


def test_graph_that_ends_in_softmax_is_not_squashed_twice(tmp_path):
    from repedge.targets.coreml.interpreter.interpreter import load

    model = graph("y = Softmax(x)", "float[1,7] x")
    package, _ = compiled(tmp_path, model, job("fp32", labels=LABELS))
    result = load(package).run({"x": sample(model)})
    np.testing.assert_allclose(list(result["classLabel_probs"].values()), result["y"][0], rtol=0, atol=1e-7)


def test_wrong_number_of_labels(tmp_path):
    with pytest.raises(UserError, match="there are 2 labels, but output 'y' has 7 classes"):
        CoreML().compile(ir.from_proto(small()), job(labels=("a", "b")), tmp_path)


def test_repeated_labels_get_their_index(tmp_path):
    labels = ("crane", "bee", "cat", "dog", "elk", "fox", "crane")
    assert distinct(labels) == ["crane (0)", "bee", "cat", "dog", "elk", "fox", "crane (6)"]
    package, artifact = compiled(tmp_path, small(), job(labels=labels))
    assert "crane (0), crane (6)" in artifact.notes[0]
    assert json.loads(spec_of(package).description.metadata.userDefined["com.repedge.labels"]) == list(labels)


def test_labels_of_a_map_go_into_the_metadata(tmp_path):
    model = graph("y = Conv(x, w)", weights={"w": (7, 4, 1, 1)})
    package, artifact = compiled(tmp_path, model, job(labels=LABELS))
    description = spec_of(package).description
    assert [o.name for o in description.output] == ["y"]
    assert json.loads(description.metadata.userDefined["com.repedge.labels"]) == list(LABELS)
    assert "output 'y' of shape (1, 7, 6, 8) is no list of class scores" in artifact.notes[0]


def test_description_and_metadata(tmp_path):
    about = {"author": "A. Author", "license": "MIT", "version": "1.2", "description": "Animals"}
    package, artifact = compiled(
        tmp_path, small(), job("fp16", labels=LABELS, preprocess=PREPROCESS, **about)
    )
    description = spec_of(package).description
    meta = description.metadata
    found = (meta.author, meta.license, meta.versionString, meta.shortDescription)
    assert found == ("A. Author", "MIT", "1.2", "Animals")
    assert Preprocess(**json.loads(meta.userDefined["com.repedge.preprocess"])) == PREPROCESS
    assert meta.userDefined["com.repedge.precision"] == "fp16"
    assert meta.userDefined["com.repedge.version"]
    (feature,) = description.input
    assert feature.type.multiArrayType.shape == [1, 3, 16, 24]
    assert all(f.shortDescription for f in (*description.input, *description.output))
    types = {o.name: o.type.WhichOneof("Type") for o in description.output}
    assert types == {"classLabel": "stringType", "classLabel_probs": "dictionaryType", "y": "multiArrayType"}
    assert artifact.requires["iOS"] == ">=16"


@pytest.mark.parametrize(
    ("target", "version", "opset", "macos"),
    [("iOS16", 7, "CoreML6", ">=13"), ("iOS17", 8, "CoreML7", ">=14"), ("iOS18", 9, "CoreML8", ">=15")],
)
def test_deployment_target(tmp_path, target, version, opset, macos):
    model = small()
    x = sample(model)
    (expected,) = reference(model, x)
    options = {"deployment_target": target}
    for precision, least in (("fp16", 55), ("w8a32", 35), ("palette6", 25)):
        the_job = job(precision, options=options)
        package, artifact = compiled(tmp_path, model, the_job)
        spec = spec_of(package)
        assert spec.specificationVersion == version
        assert spec.mlProgram.functions["main"].opset == opset
        assert artifact.requires["macOS"] == macos
        (actual,) = CoreML().open(package, the_job, ["y"]).run(x)
        assert sqnr(expected, actual) > least


def test_unknown_deployment_target(tmp_path):
    with pytest.raises(UserError, match="deployment_target 'iOS15' is not one of iOS16, iOS17, iOS18"):
        CoreML().compile(ir.from_proto(small()), job(options={"deployment_target": "iOS15"}), tmp_path)


@pytest.mark.parametrize(
    ("precision", "constexpr", "bits", "least_sqnr"),
    [
        ("w8a32", "constexpr_affine_dequantize", 8, 35),
        ("palette8", "constexpr_lut_to_dense", 8, 35),
        ("palette6", "constexpr_lut_to_dense", 6, 25),
        ("palette4", "constexpr_lut_to_dense", 4, 12),
    ],
)
def test_compression(tmp_path, precision, constexpr, bits, least_sqnr):
    model = graph(
        "c = Conv(x, w) y = Conv(c, v, b)", weights={"w": (256, 4, 3, 3), "v": (256, 256, 1, 1), "b": (256,)}
    )
    package, _ = compiled(tmp_path, model, job(precision))
    plain, _ = compiled(tmp_path, model, job("fp16"))
    assert mil_ops(package) == [constexpr, "conv", constexpr, "conv"]
    weights = 256 * 4 * 9 + 256 * 256
    saved = weight_bytes(plain) - weight_bytes(package)
    table = 2 * 256 * (2 if precision == "w8a32" else 0) + 2 * 2 * 2**bits
    assert weights * (16 - bits) / 8 - table - 1024 < saved < weights * (16 - bits) / 8
    x = sample(model)
    (actual,) = CoreML().open(package, job(precision), ["y"]).run(x)
    assert sqnr(reference(model, x)[0], actual) > least_sqnr


def test_small_weights_stay_float16(tmp_path):
    model = graph("y = Conv<group=4, pads=[1,1,1,1]>(x, w)", weights={"w": (4, 1, 3, 3)})
    assert mil_ops(compiled(tmp_path, model, job("w8a32"))[0]) == ["conv"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_is_a_local_optimum(bits):
    """Every weight has its nearest entry, and every entry is the mean of its weights (Lloyd's conditions)."""
    weight = np.random.default_rng(0).normal(size=5000).astype(np.float16)
    table, index = palette(weight, bits)
    assert table.shape == (2**bits,)
    assert index.dtype == np.uint8
    assert table.dtype == np.float16
    weight, table = weight.astype(np.float64), table.astype(np.float64)
    distance = np.abs(weight[:, None] - table[None])
    np.testing.assert_allclose(
        distance[np.arange(len(weight)), index], distance.min(axis=1), rtol=0, atol=1e-7
    )
    used = np.unique(index)
    assert len(used) > 0.95 * 2**bits
    means = np.array([weight[index == i].mean() for i in used])
    # rounding the table to float16 lets a few weights change sides afterwards
    np.testing.assert_allclose(table[used], means, rtol=2e-3, atol=1e-3)
    lloyd_max = {2: 0.1175, 4: 0.009497, 8: 4.1e-5}[bits]  # Max (1960): mean square error for a Gaussian
    assert np.mean((weight - table[index]) ** 2) < 1.1 * lloyd_max


def test_palette_of_few_values_is_exact():
    weight = np.array([[0.5, -1, 3], [3, 3, 0.5]], np.float16)
    table, index = palette(weight, 4)
    assert (table[index].reshape(weight.shape) == weight).all()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_same_input_same_bytes(tmp_path):
    """Also in another process: no identifier, counter, hash order or date may get into the files."""
    precisions = ("fp16", "w8a32", "palette4")
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from test_target import *\n"
        "for p in sys.argv[3:]: compiled(pathlib.Path(sys.argv[2]), small(), job(p, labels=LABELS))\n"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(there), *precisions],
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONHASHSEED": "123",
            "OMP_NUM_THREADS": "1",
        },
    )
    for precision in precisions:
        compiled(here, small(), job(precision, labels=LABELS))
    first, second = files_of(here), files_of(there)
    assert len(first) == 3 * len(precisions)
    assert first == second


def test_image_input_takes_pixels(tmp_path):
    model = small()
    the_job = job("fp16", input_kind="uint8", preprocess=PREPROCESS, labels=LABELS)
    package, artifact = compiled(tmp_path, model, the_job)
    (spec,) = artifact.inputs
    assert (spec.kind, spec.dtype, spec.shape, spec.layout) == ("image", "uint8", (1, 16, 24, 3), "NHWC")
    description = spec_of(package).description
    image = description.input[0].type.imageType
    assert (image.height, image.width) == (16, 24)
    assert image.colorSpace == image.ColorSpace.Value("RGB")
    assert description.metadata.userDefined["com.apple.coreml.model.preview.type"] == "imageClassifier"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    (actual,) = CoreML().open(package, the_job, ["y"]).run(pixels)
    normal = (pixels / 255 - PREPROCESS.mean) / PREPROCESS.std
    inputs = normal.transpose(0, 3, 1, 2).astype(np.float32)
    expected = np.concatenate([reference(model, x[None])[0] for x in inputs])
    assert actual.shape == (3, 7)
    assert sqnr(expected, actual) > 50


def test_rounding_keeps_the_sum_of_a_kernel():
    weight = np.random.default_rng(0).normal(0, 3, (8, 3, 3, 3)).astype(np.float32)
    rounded = round_keeping_sums(weight)
    assert rounded.dtype == np.float16
    ulp = np.spacing(np.abs(weight).astype(np.float16)).astype(np.float64)
    assert (np.abs(rounded - weight.astype(np.float64)) <= ulp.max(axis=(2, 3), keepdims=True)).all()
    error = np.abs(np.sum(rounded - weight.astype(np.float64), axis=(2, 3)))
    assert (error <= ulp.min(axis=(2, 3))).all()


def test_edge_detectors_stay_dark_on_flat_images(tmp_path):
    """Kernels whose weights cancel, on an image that is one colour: float16 must not light it up."""
    kernel = np.random.default_rng(0).normal(0, 3, (8, 3, 3, 3))
    kernel -= kernel.mean(axis=(2, 3), keepdims=True)
    model = graph("y = Conv(x, w)", "float[1,3,16,24] x", weights={"w": kernel})
    the_job = job("fp16", input_kind="uint8", preprocess=PREPROCESS)
    package, _ = compiled(tmp_path, model, the_job)
    flat = np.broadcast_to(np.array([250, 240, 230], np.uint8), (1, 16, 24, 3))
    (dark,) = CoreML().open(package, the_job, ["y"]).run(flat)
    assert np.abs(dark).max() < 1e-3  # rounding each to the nearest gives 2.7e-2


def test_grayscale_image(tmp_path):
    model = graph("y = Conv<pads=[1,1,1,1]>(x, w)", "float[1,1,8,8] x", weights={"w": (2, 1, 3, 3)})
    gray = Preprocess(size=(8, 8), color="GRAY", mean=(0.5,), std=(0.5,))
    the_job = job("fp32", input_kind="uint8", preprocess=gray)
    package, artifact = compiled(tmp_path, model, the_job)
    assert artifact.inputs[0].shape == (1, 8, 8, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    (actual,) = CoreML().open(package, the_job, ["y"]).run(pixels)
    (expected,) = reference(model, (pixels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_several_outputs_keep_their_order_and_names(tmp_path):
    model = graph("s, t = Split<axis=1, num_outputs=2>(x) y = Relu(t)")
    for name in ("s", "x"):
        found = next(v for v in (*model.graph.value_info, *model.graph.input) if v.name == name)
        if name == "s":
            model.graph.output.insert(0, found)
    model.graph.output[0].name = model.graph.node[0].output[0] = "1/score map"
    package, artifact = compiled(tmp_path, model, job("fp16"))
    assert [o.name for o in artifact.outputs] == ["_1_score_map", "y"]
    x = sample(model)
    score, y = CoreML().open(package, job("fp16"), ["1/score map", "y"]).run(x)
    np.testing.assert_array_equal(score, x[:, :2].astype(np.float16))
    np.testing.assert_array_equal(y, np.maximum(x[:, 2:], 0).astype(np.float16))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a32"])
def test_apps_read_float32_in_every_precision(tmp_path, precision):
    """And so does the manifest say, which `ship` takes the type in the app from."""
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType

    package, artifact = compiled(tmp_path, small(), job(precision))
    (output,) = spec_of(package).description.output
    assert output.type.multiArrayType.dataType == ArrayFeatureType.FLOAT32
    assert [o.dtype for o in artifact.outputs] == ["float32"]


def test_names_that_collide(tmp_path):
    model = graph("y = Relu(x)")
    model.graph.output[0].name = model.graph.node[0].output[0] = "x!"
    model.graph.input[0].name = model.graph.node[0].input[0] = "x?"
    with pytest.raises(UserError, match="would both be called 'x_' in Core ML"):
        CoreML().compile(ir.from_proto(model), job(), tmp_path)


def test_identifier():
    assert [identifier(n) for n in ("a", "9a", "a/b.c", "ä")] == ["a", "_9a", "a_b_c", "_"]


def test_weight_beyond_float16_is_named(tmp_path):
    model = graph("y = Conv(x, big)", weights={"big": np.full((1, 4, 1, 1), 70000.0)})
    with pytest.raises(UserError, match="tensor 'big' holds 70000, too much for float16"):
        CoreML().compile(ir.from_proto(model), job("fp16"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    CoreML().compile(ir.from_proto(model), job("fp32"), tmp_path)


def test_all_unsupported_nodes_are_named(tmp_path):
    model = graph("a = Acosh(x) b = Relu(a) y = Sinh(b)")
    with pytest.raises(
        UnsupportedModel, match=r"2 of the graph's nodes: Acosh node 'node0': .*; Sinh node 'node2': "
    ):
        CoreML().compile(ir.from_proto(model), job(), tmp_path)


def test_precision_that_is_not_offered(tmp_path):
    with pytest.raises(UserError, match="coreml has no precision w8a16; choose from fp16, fp32"):
        CoreML().compile(ir.from_proto(small()), job("w8a16"), tmp_path)


def test_full_disk(tmp_path):
    resource = pytest.importorskip("resource", reason="file size limits are POSIX")
    model = graph("y = Conv(x, w)", weights={"w": (256, 4, 3, 3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"can't write net\.mlpackage: .*; is the disk full\?"):
            CoreML().compile(ir.from_proto(model), job("fp16"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_runner_names_what_failed(tmp_path):
    package, _ = compiled(tmp_path, small(), job("fp32"))
    runner = CoreML().open(package, job("fp32"), ["y"])
    with pytest.raises((UserError, DeviceError), match="x"):
        runner.run(np.zeros((1, 3, 5, 5), np.float32))


@pytest.mark.slow
def test_asking_what_is_supported_does_not_import_coremltools():
    script = (
        "import sys, repedge.targets.coreml.ops, repedge.targets.coreml.target as c; c.CoreML();"
        "sys.exit('coremltools' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
