"""The tflite target as a whole: files, signatures, precisions, metadata, runner, real networks."""

from __future__ import annotations

import zipfile
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from operators import reference, relative_error, weights
from tflite_helpers import build, clean, fused_network, job, op_names, run

from repedge.config import Preprocess
from repedge.errors import DeviceError, UserError
from repedge.targets import get
from repedge.targets.tflite import runner
from repedge.targets.tflite.layout import gathered, regroup, transposition
from repedge.targets.tflite.model import Tensor
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.target import TFLite
from repedge.targets.tflite.writer import OPS, Writer, schema

LABELS = ("cat", "dog", "crème brûlée", "bird")
PRE = Preprocess(size=(12, 10), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def classifier():
    """A small network with the operators of RepViT: stem, mixer with SE, head."""
    return clean(
        """g (float[1,3,12,10] image) => (float[1,4] logits) {
            a = Conv<pads=[1,1,1,1],strides=[2,2]> (image, w1, b1)
            g = Gelu (a)
            d = Conv<pads=[1,1,1,1],group=16> (g, w2, b2)
            p = GlobalAveragePool (d)
            r = Conv (p, w3, b3)
            q = Relu (r)
            e = Conv (q, w4, b4)
            s = Sigmoid (e)
            m = Mul (d, s)
            z = Add (m, a)
            h = GlobalAveragePool (z)
            f = Flatten (h)
            logits = Gemm<transB=1> (f, w5, b5)
        }""",
        w1=weights(16, 3, 3, 3), b1=weights(16), w2=weights(16, 1, 3, 3), b2=weights(16, seed=1),
        w3=weights(4, 16, 1, 1), b3=weights(4), w4=weights(16, 4, 1, 1), b4=weights(16, seed=2),
        w5=weights(4, 16), b5=weights(4, seed=1),
    )  # fmt: skip


def two_outputs():
    """A map and a vector."""
    return clean(
        "g (float[1,3,12,10] image) => (float[1,5,12,10] map, float[1,5] vector)"
        "{ map = Conv<pads=[1,1,1,1]> (image, w) p = GlobalAveragePool (map) vector = Flatten (p) }",
        w=weights(5, 3, 3, 3),
    )


# The file


def test_classifier_is_one_partition_without_transpose(tmp_path):
    model, x = classifier(), weights(1, 3, 12, 10)
    path, artifact = build(model, tmp_path)
    assert Counter(op_names(path)) == {
        "CONV_2D": 3, "PAD": 1, "DEPTHWISE_CONV_2D": 1, "GELU": 1, "MEAN": 2, "LOGISTIC": 1, "MUL": 1,
        "ADD": 1, "FULLY_CONNECTED": 1,
    }  # fmt: skip
    assert partitions(path).whole
    assert artifact.notes == ()
    assert artifact.requires == {"TensorFlow Lite": ">=2.9.0"}  # GELU
    assert relative_error(run(model, path, x), reference(model, x)) < 2e-6


def test_same_graph_gives_same_bytes(tmp_path):
    first, _ = build(classifier(), tmp_path / "a", labels=LABELS)
    second, _ = build(classifier(), tmp_path / "b", labels=LABELS)
    assert first.read_bytes() == second.read_bytes()


def test_signature_has_the_names_and_layouts_of_the_artifact(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    path, artifact = build(two_outputs(), tmp_path)
    interpreter = Interpreter(str(path))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["map", "vector"]}
    }
    (image,), (a, b) = artifact.inputs, artifact.outputs
    assert (image.name, image.dtype, image.shape, image.layout) == (
        "image",
        "float32",
        (1, 12, 10, 3),
        "NHWC",
    )
    assert (a.name, a.shape, a.layout, b.name, b.shape, b.layout) == (
        "map", (1, 12, 10, 5), "NHWC", "vector", (1, 5), "NC",
    )  # fmt: skip
    details = {d["name"]: tuple(d["shape"]) for d in interpreter.get_output_details()}
    assert details == {"map": (1, 12, 10, 5), "vector": (1, 5)}


def test_weights_are_aligned_and_take_no_more_room_than_needed(tmp_path):
    model = clean(
        "g (float[1,64,8,8] x) => (float[1,96,8,8] y) { y = Conv<pads=[1,1,1,1]> (x, w) }",
        w=weights(96, 64, 3, 3),
    )
    for precision, size in (("fp32", 4), ("fp16", 2)):
        path, _ = build(model, tmp_path, precision=precision)
        content = path.read_bytes()
        assert len(content) < 96 * 64 * 9 * size + 4096
        file = schema.Model.GetRootAs(content, 0)
        arrays = [file.Buffers(i).DataAsNumpy() for i in range(1, file.BuffersLength())]
        start = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
        assert [(a.__array_interface__["data"][0] - start) % 16 for a in arrays] == [0] * len(arrays)


@pytest.mark.slow
def test_long_weights_are_streamed_whole(tmp_path):
    big = weights(6000, 1000)  # several blocks of the writer
    model = clean("g (float[1,1000] x) => (float[1,6000] y) { y = Gemm<transB=1> (x, w) }", w=big)
    path, _ = build(model, tmp_path)
    assert big.tobytes() in path.read_bytes()


def test_outputs_that_are_no_operators_own_tensor_get_one(tmp_path):
    """The input itself, one value in two layouts, and a value that is read further."""
    model = clean(
        "g (float[1,3,4,5] x) => (float[1,3,4,5] r, float[1,4,5,3] t, float[1,3,4,5] y)"
        "{ r = Relu (x) t = Transpose<perm=[0,2,3,1]> (r) y = Sigmoid (r) }"
    )
    x = weights(1, 3, 4, 5)
    path, _ = build(model, tmp_path)
    assert relative_error(run(model, path, x), reference(model, x)) < 1e-6


# Precisions and input kinds


def test_fp16_stores_filters_as_float16_behind_dequantize(tmp_path):
    model, x = classifier(), weights(1, 3, 12, 10)
    path, artifact = build(model, tmp_path, precision="fp16")
    names = op_names(path)
    assert names.count("DEQUANTIZE") == 5
    assert partitions(path).whole
    assert artifact.notes == ()
    rounded = classifier()
    for name, value in rounded.graph.initializers.items():
        if name.startswith("w"):
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16).astype(np.float32))
    assert relative_error(run(model, path, x), reference(rounded, x)) < 2e-6


def test_fp16_keeps_what_does_not_fit(tmp_path):
    model = clean("g (float[1,4] x) => (float[1,3] y) { y = Gemm<transB=1> (x, w) }", w=1e6 * weights(3, 4))
    x = weights(1, 4)
    path, artifact = build(model, tmp_path, precision="fp16")
    assert artifact.notes == ("w stays float32: it has values beyond float16's 65504",)
    assert relative_error(run(model, path, x), reference(model, x)) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_pixels_go_in_as_uint8(precision, tmp_path):
    model = classifier()
    pixels = np.random.default_rng(3).integers(0, 256, (2, 12, 10, 3), np.uint8)
    changes = {"input_kind": "uint8", "preprocess": PRE, "precision": precision}
    path, artifact = build(model, tmp_path, **changes)
    (spec,) = artifact.inputs
    assert (spec.name, spec.dtype, spec.shape, spec.layout) == ("image", "uint8", (1, 12, 10, 3), "NHWC")
    assert partitions(path).whole
    (got,) = run(model, path, pixels, **changes)
    normalised = (pixels / 255 - PRE.mean) / PRE.std
    batch = normalised.astype(np.float32).transpose(0, 3, 1, 2)
    want = np.concatenate([reference(model, batch[i : i + 1])[0] for i in range(2)])
    assert relative_error([got], [want]) < {"fp32": 5e-6, "fp16": 5e-3}[precision]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "palette8"}, "tflite has no precision palette8; choose from fp32, fp16, w8a32"),
        ({"precision": "w8a8"}, "tflite w8a8 needs a QDQ graph with int8 activations"),
        ({"options": {"deployment_target": "iOS16"}}, "tflite has no option deployment_target"),
        ({"labels": ("a", "b", "c")}, r"there are 3 labels, but no output .*logits \[1, 4\]"),
    ],
)
def test_wrong_jobs_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        build(classifier(), tmp_path, **changes)


# Metadata


def test_labels_lie_behind_the_model_as_a_plain_zip(tmp_path):
    model, x = classifier(), weights(1, 3, 12, 10)
    bare, _ = build(model, tmp_path / "bare")
    path, _ = build(model, tmp_path / "labelled", labels=LABELS)
    with zipfile.ZipFile(path) as archive:
        (info,) = archive.infolist()
        assert (info.filename, info.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert tuple(archive.read(info).decode().splitlines()) == LABELS
    assert not zipfile.is_zipfile(bare)
    broken, _ = build(model, tmp_path / "broken", labels=("a", "two\nlines", "c\r\n", "d\te"))
    with zipfile.ZipFile(broken) as archive:
        assert archive.read("labels.txt").decode() == "a\ntwo lines\nc\nd\te\n"
    assert np.array_equal(run(model, path, x)[0], run(model, bare, x)[0])


def test_metadata_entries(tmp_path):
    """The parts that need no schema; test_old_runtime.py reads all with the official one."""
    path, _ = build(classifier(), tmp_path, description="tells pets apart", labels=LABELS)
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    entries = {m.name.decode(): bytes(file.buffers[m.buffer].data) for m in file.metadata}
    assert entries["min_runtime_version"] == b"2.9.0".ljust(16, b"\0")
    assert entries["TFLITE_METADATA"][4:8] == b"M001"
    for text in (b"tells pets apart", b"labels.txt", b"logits", b"1.0.0"):
        assert text in entries["TFLITE_METADATA"]
    assert np.float32(0.485 * 255).tobytes() in entries["TFLITE_METADATA"]
    assert file.description == b"tells pets apart"


def test_min_runtime_is_the_newest_operators():
    w = Writer()
    assert w.min_runtime() == "1.5.0"
    for op, version in (("CONV_2D", 6), ("RESHAPE", 1), ("TRANSPOSE_CONV", 3)):
        w.op(op, [], [], version)
    assert w.min_runtime() == "2.9.0"
    with pytest.raises(KeyError, match="CONV_2D version 99"):
        w.op("CONV_2D", [], [], 99)


def test_operator_table_fits_the_schema():
    for name, op in OPS.items():
        assert hasattr(schema.BuiltinOperator, name)
        assert not op.options or hasattr(schema.BuiltinOptions, op.options)


def test_files_beyond_the_format_are_refused_before_writing(tmp_path):
    w = Writer()
    x = w.tensor(Tensor("x", (1,), "float32"))
    w.tensor(Tensor("w", (2**30,), "float32", lambda: np.zeros(1)))
    with pytest.raises(UserError, match="the format ends at 2147483647"):
        w.write(tmp_path / "big.tflite", {"x": x}, {"x": x}, {}, "")
    assert list(tmp_path.iterdir()) == []


# Layouts


def test_regroup_keeps_split_and_merged_axes():
    assert regroup((1, 6, 5, 7), (1, 2, 3, 5, 7), (0, 2, 3, 1)) == (0, 3, 4, 1, 2)
    assert regroup((1, 6, 5, 7), (1, 6, 35), (0, 2, 3, 1)) == (0, 2, 1)
    assert regroup((1, 6, 5, 7), (1, 210), (0, 2, 3, 1)) is None
    assert regroup((1, 6, 1, 1), (1, 6), (0, 2, 3, 1)) == (0, 1)
    assert regroup((1, 6), (1, 6, 1, 1), (0, 1)) == (0, 2, 3, 1)
    assert gathered((1, 6, 5, 7), (1, 210), (0, 2, 3, 1)) == (0, 1, 2, 3)
    assert gathered((1, 3, 2, 5, 7), (1, 6, 5, 7), (0, 3, 4, 2, 1)) == (0, 3, 4, 1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_regroup_describes_what_reshape_does(seed):
    """A random array, a random layout and a random Reshape, in numpy."""
    rng = np.random.default_rng(seed)
    factors = [int(f) for f in rng.choice([1, 2, 3, 4], 5)]
    before, after = (
        np.multiply.reduceat(factors, sorted({0, *rng.integers(1, 5, 2)})).tolist() for _ in range(2)
    )
    array = np.arange(np.prod(before)).reshape(before)
    layout = tuple(int(a) for a in rng.permutation(len(before)))
    start = gathered(before, after, layout)
    result = regroup(before, after, start)
    stored = array.transpose(layout).transpose(transposition(layout, start))
    expected = array.reshape(after).transpose(result)
    assert np.array_equal(stored.reshape(expected.shape), expected)


# The runner


def test_runner_takes_batches_and_gives_nchw(tmp_path):
    model, x = two_outputs(), weights(3, 3, 12, 10)
    path, _ = build(model, tmp_path)
    got = run(model, path, x)
    want = [
        np.concatenate(column)
        for column in zip(*(reference(model, x[i : i + 1]) for i in range(3)), strict=True)
    ]
    assert relative_error(got, want) < 2e-6


def test_runner_returns_outputs_in_the_order_asked(tmp_path):
    path, _ = build(two_outputs(), tmp_path)
    runner = TFLite().open(path, job(), ["vector", "map"])
    assert [y.ndim for y in runner.run(weights(1, 3, 12, 10))] == [2, 4]
    runner.close()


def test_runner_errors_say_what_is_wrong(tmp_path):
    path, _ = build(two_outputs(), tmp_path)
    with pytest.raises(DeviceError, match="has no output scores; it has map, vector"):
        TFLite().open(path, job(), ["scores"])
    runner = TFLite().open(path, job(), ["map"])
    with pytest.raises(
        DeviceError, match=r"takes float32 \[1, 12, 10, 3\], but was given float32 \[1, 8, 8, 3\]"
    ):
        runner.run(weights(1, 3, 8, 8))
    with pytest.raises(DeviceError, match="but was given float64"):
        runner.run(weights(1, 3, 12, 10).astype(np.float64))
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DeviceError, match="does not load"):
        TFLite().open(cut, job(), ["map"])


def test_old_runtime_is_the_fallback(tmp_path, monkeypatch):
    path, _ = build(two_outputs(), tmp_path)
    runtime = runner.RUNTIMES[0]
    monkeypatch.setattr(runner, "RUNTIMES", ("no_such_runtime.interpreter", runtime))
    assert runner.open_interpreter(path).get_signature_list()
    monkeypatch.setattr(runner, "RUNTIMES", ("no_such_runtime.interpreter",))
    with pytest.raises(DeviceError, match="pip install ai-edge-litert"):
        runner.open_interpreter(path)


def test_target_is_registered():
    target = get("tflite")
    assert (target.name, target.suffix, target.precisions[:2]) == ("tflite", ".tflite", ("fp32", "fp16"))
    assert target.missing_modules() == []


# Real networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "convolutions"), [("repvgg_a0", (64, 64), 22), ("repvit_m0_6", (33, 57), 70)]
)
def test_real_networks_agree_and_are_one_partition(name, size, convolutions, tmp_path):
    import torch

    net, model = fused_network(name, size)
    x = weights(1, 3, *size)
    path, artifact = build(model, tmp_path)
    names = Counter(op_names(path))
    assert names["CONV_2D"] + names["DEPTHWISE_CONV_2D"] == convolutions
    assert not names.keys() & {"TRANSPOSE", "RESHAPE"}
    assert partitions(path).whole
    assert artifact.notes == ()
    with torch.no_grad():
        want = net(torch.from_numpy(x))
    assert relative_error(run(model, path, x), [want.numpy()]) < 1e-5
