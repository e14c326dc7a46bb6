"""The MIL interpreter on whole packages: signatures, images, classifiers, compressed weights, damage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mil_net import converted, fp16_model, logits, relative
from mil_programs import convert, ct, mb, program_of, saved

from repedge.errors import DeviceError, UnsupportedModel, UserError
from repedge.targets.coreml.interpreter import interpreter
from repedge.targets.coreml.interpreter.interpreter import load

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def fp16_package(tmp_path_factory):
    return saved(fp16_model(), tmp_path_factory.mktemp("net"))


@pytest.mark.slow
def test_converted_net_agrees_with_torch(fp16_package, tmp_path):
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    want = logits(x)
    fp32 = load(saved(converted("FLOAT32", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))]), tmp_path))
    assert fp32.opset == "CoreML6"
    assert relative(fp32.run({"x": x})["logits"], want) < 1e-5
    fp16 = load(fp16_package)
    assert fp16.opset == "CoreML8"
    assert fp16.op_counts["conv"] == 6
    error = relative(fp16.run({"x": x})["logits"], want)
    assert 1e-5 < error < 5e-3  # fp16 it is, and no worse than that


@pytest.mark.slow
def test_signature(fp16_package):
    program = load(fp16_package)
    (x,), (y,) = program.inputs, program.outputs
    assert (x.name, x.kind, x.shape) == ("x", "multiarray", (1, 3, 32, 32))
    assert (y.name, y.kind, y.shape) == ("logits", "multiarray", (1, 10))
    assert y.dtype == program.run({"x": np.zeros(x.shape)})["logits"].dtype.name
    assert program.metadata["com.github.apple.coremltools.version"] == ct.__version__


@pytest.mark.slow
def test_running_needs_no_coremltools(fp16_package):
    """Its import takes seconds and writes warnings; only its protobuf definitions are read."""
    code = (
        "import sys, numpy, pathlib\n"
        "from repedge.targets.coreml.interpreter.interpreter import load\n"
        f"out = load(pathlib.Path({str(fp16_package)!r})).run({{'x': numpy.ones((1, 3, 32, 32))}})\n"
        "print(out['logits'].shape, 'coremltools' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("(1, 10) False", "")


# --- Images and classifiers. ---


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_image_input(layout, tmp_path):
    """The program gets scale * pixel + bias of its own channel order; images are fed as RGB."""
    scale, bias = 1 / 64, [-1.5, -2.0, 0.25]
    image = ct.ImageType(
        name="image",
        shape=(1, 3, 32, 32),
        scale=scale,
        bias=bias,
        color_layout=getattr(ct.colorlayout, layout),
    )
    program = load(saved(converted("FLOAT32", inputs=[image]), tmp_path))
    (feature,) = program.inputs
    assert (feature.kind, feature.dtype, feature.shape, feature.color) == (
        "image",
        "uint8",
        (32, 32, 3),
        layout,
    )
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ordered = pixels if layout == "RGB" else pixels[..., ::-1]
    x = (ordered.astype(np.float32) * np.float32(scale) + np.asarray(bias, np.float32)).transpose(2, 0, 1)[
        None
    ]
    want = logits(np.ascontiguousarray(x))
    assert relative(program.run({"image": pixels})["logits"], want) < 1e-5
    assert relative(program.run({"image": pixels.astype(np.float32)})["logits"], want) < 1e-5
    with pytest.raises(
        UserError, match=r"must be fed pixels of shape \(32, 32, 3\), but was fed \(3, 32, 32\)"
    ):
        program.run({"image": pixels.transpose(2, 0, 1)})


@pytest.mark.slow
def test_gray_image(tmp_path):
    image = ct.ImageType(name="x", shape=(1, 1, 4, 5), color_layout=ct.colorlayout.GRAYSCALE)
    model = convert(
        lambda x: mb.add(x=x, y=np.float32(1), name="y"), (1, 1, 4, 5), "fp32", "iOS16", inputs=[image]
    )
    program = load(saved(model, tmp_path))
    assert program.inputs[0].shape == (4, 5)
    pixels = RNG.integers(0, 256, (4, 5), dtype=np.uint8)
    for fed in (pixels, pixels[:, :, None]):
        np.testing.assert_array_equal(program.run({"x": fed})["y"][0, 0], pixels + 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [["ant", "bee", "cat"], [7, 8, 9]])
def test_classifier(labels, tmp_path):
    model = convert(
        lambda x: mb.softmax(x=x, axis=-1, name="probabilities"),
        (1, 3),
        "fp32",
        "iOS16",
        classifier_config=ct.ClassifierConfig(labels),
    )
    program = load(saved(model, tmp_path))
    assert {f.kind for f in program.outputs} == {"string", "dictionary"}
    out = program.run({"x": np.array([[0.0, 2.0, 1.0]])})
    assert out["classLabel"] == labels[1]
    probabilities = out["classLabel_probs"]
    assert list(probabilities) == labels
    want = np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum()
    np.testing.assert_allclose(list(probabilities.values()), want, rtol=1e-6)


# --- What can be wrong. ---


@pytest.mark.slow
def test_unknown_ops_are_all_named(tmp_path):
    def build(x):
        return mb.identity(x=mb.acos(x=mb.tan(x=mb.tan(x=x))), name="y")

    path = saved(convert(build, (1, 3), "fp32", "iOS16"), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"does not know: acos \(1x\), tan \(2x\)"):
        load(path)


@pytest.mark.slow
def test_feeds_are_checked(tmp_path):
    program = program_of({"y": lambda x, t: mb.relu(x=x)}, (1, 3), "fp32", "iOS16", tmp_path)
    with pytest.raises(UserError, match=r"inputs are \['x'\], but was fed \['z'\]"):
        program.run({"z": np.zeros((1, 3))})
    with pytest.raises(UserError, match=r"'x' must have shape \(1, 3\), but was fed \(3,\)"):
        program.run({"x": np.zeros(3)})
    with pytest.raises(UserError, match=r"'x' was fed an array of <U1"):
        program.run({"x": np.array([["a", "b", "c"]])})


def test_a_result_that_contradicts_the_program_is_an_error(fp16_package, tmp_path):
    path = edited(fp16_package, tmp_path, lambda ops: ops["conv"][0].outputs[0].type.tensorType.dimensions[1])
    with pytest.raises(DeviceError, match=r"MIL op conv '.*' gives shape \(1, 16, 16, 16\) where .* \(1, 99"):
        load(path).run({"x": np.zeros((1, 3, 32, 32))})


def edited(package, tmp_path, pick):
    """A copy of the package in which the picked dimension is 99."""
    from coremltools.proto import Model_pb2

    path = tmp_path / "edited.mlpackage"
    shutil.copytree(package, path)
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    ops: dict[str, list] = {}
    for op in block.operations:
        ops.setdefault(op.type, []).append(op)
    pick(ops).constant.size = 99
    file.write_bytes(spec.SerializeToString())
    return path


def no_weights(root: Path) -> None:
    (root / "weights" / "weight.bin").unlink()


def cut_weights(root: Path) -> None:
    file = root / "weights" / "weight.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_weights(root: Path) -> None:
    (root / "weights" / "weight.bin").write_bytes(b"")


def scrambled_weights(root: Path) -> None:
    file = root / "weights" / "weight.bin"
    file.write_bytes(bytes(64) + file.read_bytes()[64:])


def moved_weights(root: Path) -> None:
    file = root / "weights" / "weight.bin"
    data = file.read_bytes()
    file.write_bytes(data[:64] + bytes(8) + data[64:])


def no_spec(root: Path) -> None:
    (root / "model.mlmodel").unlink()


def cut_spec(root: Path) -> None:
    file = root / "model.mlmodel"
    file.write_bytes(file.read_bytes()[:1000])


def other_spec(root: Path) -> None:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model(specificationVersion=4)
    spec.neuralNetwork.layers.add(name="a")
    (root / "model.mlmodel").write_bytes(spec.SerializeToString())


def no_manifest(root: Path) -> None:
    (root.parent.parent / "Manifest.json").unlink()


def manifest_leads_out(root: Path) -> None:
    file = root.parent.parent / "Manifest.json"
    manifest = json.loads(file.read_text())
    for entry in manifest["itemInfoEntries"].values():
        entry["path"] = "../../../secret"
    file.write_text(json.dumps(manifest))


def weights_lead_out(root: Path) -> None:
    file = root / "model.mlmodel"
    file.write_bytes(
        file.read_bytes().replace(b"@model_path/weights/weight.bin", b"@model_path/../../../weight.bi")
    )


def op_removed(root: Path) -> None:
    from coremltools.proto import Model_pb2

    file = root / "model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    at = next(i for i, op in enumerate(block.operations) if op.type == "conv")
    del block.operations[at]
    file.write_bytes(spec.SerializeToString())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_weights, "is incomplete: its weight file weights/weight.bin is missing"),
        (cut_weights, "weight.bin of p.mlpackage is truncated"),
        (empty_weights, "weight.bin of p.mlpackage is truncated"),
        (scrambled_weights, "damaged or of another format"),
        (moved_weights, r"damaged: at byte \d+ there are not \d+ elements of float16"),
        (no_spec, "is incomplete: its specification model.mlmodel is missing"),
        (cut_spec, "is damaged"),
        (other_spec, "of type neuralNetwork, not an ML Program"),
        (no_manifest, "Manifest.json is missing or damaged"),
        (manifest_leads_out, "points outside the package"),
        (weights_lead_out, "outside the package"),
        (op_removed, "nothing makes"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_damaged_package(damage, message, fp16_package, tmp_path):
    path = tmp_path / "p.mlpackage"
    shutil.copytree(fp16_package, path)
    damage(path / "Data" / "com.apple.CoreML")
    with pytest.raises(UserError, match=message) as e:
        load(path)
    assert "\n" not in str(e.value)


def test_missing_package(tmp_path):
    with pytest.raises(UserError, match="there is no Core ML package at"):
        load(tmp_path / "none.mlpackage")


def test_every_op_has_readable_parameters():
    """Each row of the table can be called from a program: all its annotations are known."""
    from repedge.targets.coreml.interpreter.ops import EXACT, OPS

    for function in OPS.values():
        assert interpreter._converters(function)
    assert set(OPS) >= EXACT
