"""The MIL interpreter on whole packages: signatures, images, classifiers, compressed weights, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mil_programs import convert, ct, mb, program_of, saved, types
from torch import nn

from repedge.errors import DeviceError, UnsupportedModel, UserError
from repedge.targets import mil, mil_program
from repedge.targets.mil import load
from repedge.targets.mil_weights import lut_to_dense, unpack_bits

RNG = np.random.default_rng(3)


class Net(nn.Module):
    """A depthwise block with squeeze-excite and GELU, strides, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.bn = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.widen, self.narrow = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.bn(self.stem(x)))
        x = self.depthwise(x)
        se = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(se)
        x = x + self.narrow(nn.functional.gelu(self.widen(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def converted(net, precision, target="iOS16", **options):
    exported = torch.export.export(net, (torch.zeros(1, 3, 32, 32),)).run_decompositions({})
    return ct.convert(
        exported,
        outputs=[ct.TensorType(name="logits")] if "classifier_config" not in options else None,
        compute_precision=getattr(ct.precision, precision),
        minimum_deployment_target=getattr(ct.target, target),
        skip_model_load=True,
        **options,
    )


@pytest.fixture(scope="module")
def fp16_model(net):
    return converted(net, "FLOAT16", "iOS18", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))])


@pytest.fixture(scope="module")
def fp16_package(fp16_model, tmp_path_factory):
    return saved(fp16_model, tmp_path_factory.mktemp("net"))


def logits(net, x):
    with torch.no_grad():
        return net(torch.from_numpy(x)).numpy()


def relative(got, want):
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def test_converted_net_agrees_with_torch(net, fp16_package, tmp_path):
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    want = logits(net, x)
    fp32 = load(
        saved(converted(net, "FLOAT32", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))]), tmp_path)
    )
    assert fp32.opset == "CoreML6"
    assert relative(fp32.run({"x": x})["logits"], want) < 1e-5
    fp16 = load(fp16_package)
    assert fp16.opset == "CoreML8"
    assert fp16.op_counts["conv"] == 6
    error = relative(fp16.run({"x": x})["logits"], want)
    assert 1e-5 < error < 5e-3  # fp16 it is, and no worse than that


def test_signature(fp16_package):
    program = load(fp16_package)
    (x,), (y,) = program.inputs, program.outputs
    assert (x.name, x.kind, x.shape) == ("x", "multiarray", (1, 3, 32, 32))
    assert (y.name, y.kind, y.shape) == ("logits", "multiarray", (1, 10))
    assert y.dtype == program.run({"x": np.zeros(x.shape)})["logits"].dtype.name
    assert program.metadata["com.github.apple.coremltools.version"] == ct.__version__


# --- Images and classifiers. ---


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_image_input(net, layout, tmp_path):
    """The program gets scale * pixel + bias of its own channel order; images are fed as RGB."""
    scale, bias = 1 / 64, [-1.5, -2.0, 0.25]
    image = ct.ImageType(
        name="image",
        shape=(1, 3, 32, 32),
        scale=scale,
        bias=bias,
        color_layout=getattr(ct.colorlayout, layout),
    )
    program = load(saved(converted(net, "FLOAT32", inputs=[image]), tmp_path))
    (feature,) = program.inputs
    assert (feature.kind, feature.dtype, feature.shape, feature.color) == (
        "image",
        "uint8",
        (32, 32, 3),
        layout,
    )
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ordered = pixels if layout == "RGB" else pixels[..., ::-1]
    x = (ordered.astype(np.float32) * np.float32(scale) + np.float32(bias)).transpose(2, 0, 1)[None]
    want = logits(net, np.ascontiguousarray(x))
    assert relative(program.run({"image": pixels})["logits"], want) < 1e-5
    assert relative(program.run({"image": pixels.astype(np.float32)})["logits"], want) < 1e-5
    with pytest.raises(
        UserError, match=r"must be fed pixels of shape \(32, 32, 3\), but was fed \(3, 32, 32\)"
    ):
        program.run({"image": pixels.transpose(2, 0, 1)})


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


# --- Compressed weights. ---


def palettized(model, bits, **options):
    config = ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=0, **options)
    return ct.optimize.coreml.palettize_weights(
        model, ct.optimize.coreml.OptimizationConfig(global_config=config)
    )


def quantized(model, **options):
    config = ct.optimize.coreml.OpLinearQuantizerConfig(weight_threshold=0, **options)
    return ct.optimize.coreml.linear_quantize_weights(
        model, ct.optimize.coreml.OptimizationConfig(global_config=config)
    )


COMPRESSED = {
    "palette8": lambda m: palettized(m, 8),
    "palette6": lambda m: palettized(m, 6),
    "palette4": lambda m: palettized(m, 4),
    "palette3": lambda m: palettized(m, 3),
    "palette4_grouped": lambda m: palettized(m, 4, granularity="per_grouped_channel", group_size=4),
    "int8": lambda m: quantized(m, mode="linear_symmetric"),
    "int8_asymmetric": lambda m: quantized(m, mode="linear"),
    "int4_blocks": lambda m: quantized(m, dtype="int4", granularity="per_block", block_size=4),
    "pruned": lambda m: ct.optimize.coreml.prune_weights(
        m,
        ct.optimize.coreml.OptimizationConfig(
            global_config=ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
        ),
    ),
}


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("opset", ["iOS16", "iOS18"])
def test_compressed_weights(kind, opset, fp16_model, net, tmp_path):
    """The compressed program gives bit for bit what coremltools' own decompression of it gives."""
    if opset == "iOS16":
        if kind in ("palette3", "palette4_grouped", "int4_blocks"):
            pytest.skip("needs iOS 18")
        model = converted(net, "FLOAT16", inputs=[ct.TensorType(name="x", shape=(1, 3, 32, 32))])
    else:
        model = fp16_model
    small = COMPRESSED[kind](model)
    dense = ct.optimize.coreml.decompress_weights(small)
    compressed = load(saved(small, tmp_path, "small"))
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    got = compressed.run({"x": x})["logits"]
    want = load(saved(dense, tmp_path, "dense")).run({"x": x})["logits"]
    # coremltools rounds to fp16 where scale * (q - zero) is exact here: at most the weights' last bit
    assert relative(got, want.astype(np.float64)) < (2e-3 if kind.startswith("int") else 1e-6)
    assert relative(got, logits(net, x)) > 1e-5


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_palettes_in_the_weight_file(bits, tmp_path):
    """iOS 18 stores indices of ``bits`` bits packed; sparse weights use one bit each."""

    def stored(array, nbits):
        return array.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{nbits}")))

    indices = RNG.integers(0, 1 << bits, (5, 13)).astype(np.uint8)
    lut = RNG.standard_normal((1, 1, 1 << bits, 1)).astype(np.float16)
    mask = RNG.integers(0, 2, (5, 13)).astype(np.uint8)
    kept = RNG.standard_normal(int(mask.sum())).astype(np.float16)

    def build(x):
        palette = mb.constexpr_lut_to_dense(indices=stored(indices, bits), lut=lut)
        sparse = mb.constexpr_sparse_to_dense(nonzero_data=kept, mask=stored(mask, 1))
        return mb.mul(x=x, y=palette, name="palette"), mb.mul(x=x, y=sparse, name="sparse")

    program = load(saved(convert(build, (5, 13), "fp16", "iOS18"), tmp_path))
    got = program.run({"x": np.ones((5, 13))})
    np.testing.assert_array_equal(got["palette"], lut[0, 0, :, 0][indices])
    dense = np.zeros((5, 13), np.float16)
    dense[mask == 1] = kept
    np.testing.assert_array_equal(got["sparse"], dense)


def test_chained_compression(tmp_path):
    """A palette of int8 entries, scaled per block: scale * (palette - offset)."""
    indices = RNG.integers(0, 16, (4, 6)).astype(np.uint8)
    lut = RNG.integers(-128, 128, (2, 1, 16, 1)).astype(np.int8)
    scale = RNG.random((2, 3)).astype(np.float16)
    offset = RNG.integers(-128, 128, (2, 3)).astype(np.int8)

    def build(x):
        palette = mb.constexpr_lut_to_dense(
            indices=indices.astype(types.nptype_from_builtin(types.string_to_builtin("uint4"))), lut=lut
        )
        weight = mb.constexpr_blockwise_shift_scale(data=palette, scale=scale, offset=offset)
        return mb.mul(x=x, y=weight, name="y")

    program = load(saved(convert(build, (4, 6), "fp16", "iOS18"), tmp_path))
    want = np.empty((4, 6), np.float16)
    for i, j in np.ndindex(4, 6):
        entry = float(lut[i // 2, 0, indices[i, j], 0])
        want[i, j] = float(scale[i // 2, j // 2]) * (entry - float(offset[i // 2, j // 2]))
    np.testing.assert_array_equal(program.run({"x": np.ones((4, 6))})["y"], want)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_unpack_bits(bits):
    values = RNG.integers(0, 1 << bits, 37).astype(np.uint8)
    stream = sum(int(v) << (bits * i) for i, v in enumerate(values))  # one long little-endian number
    packed = np.frombuffer(stream.to_bytes(-(-37 * bits // 8), "little"), np.uint8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, 37), values)


def test_lut_examples_of_the_definition():
    """The worked examples in coremltools' iOS 18 ``constexpr_lut_to_dense``."""
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3], np.uint8).reshape(6, 2)
    lut = np.array([1, 5, 9, 13, 2, 10, 18, 26], np.float16).reshape(2, 1, 4, 1)
    want = [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    np.testing.assert_array_equal(lut_to_dense(indices, lut), want)
    indices = np.array([0, 0, 1, 0, 1, 1, 0, 0], np.uint8).reshape(2, 2, 2)
    lut = np.array([0, 1, 2, 10, 11, 12], np.int8).reshape(1, 1, 1, 2, 3)
    got = lut_to_dense(indices, lut, vector_axis=np.int32(1))
    want = [
        [[0, 0], [1, 1], [2, 2], [10, 0], [11, 1], [12, 2]],
        [[10, 10], [11, 11], [12, 12], [0, 0], [1, 1], [2, 2]],
    ]
    np.testing.assert_array_equal(got, want)
    got = lut_to_dense(indices, lut, vector_axis=np.int32(-1))
    assert got[0].tolist() == [[0, 1, 2, 0, 1, 2], [10, 11, 12, 0, 1, 2]]


def test_weights_beyond_the_cache_are_converted_each_run(fp16_package, monkeypatch):
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    want = load(fp16_package).run({"x": x})["logits"]
    monkeypatch.setattr(mil_program, "MAX_CACHED_BYTES", 0)
    program = load(fp16_package)
    for _ in range(2):
        np.testing.assert_array_equal(program.run({"x": x})["logits"], want)
    assert not program._cache


# --- What can be wrong. ---


def test_unknown_ops_are_all_named(tmp_path):
    def build(x):
        return mb.identity(x=mb.cumsum(x=mb.tan(x=mb.tan(x=x))), name="y")

    path = saved(convert(build, (1, 3), "fp32", "iOS16"), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"does not know: cumsum \(1x\), tan \(2x\)"):
        load(path)


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
    from repedge.targets.mil_ops import EXACT, OPS

    for function in OPS.values():
        assert mil._converters(function)
    assert set(OPS) >= EXACT
