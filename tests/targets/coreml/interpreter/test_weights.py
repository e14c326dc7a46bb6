"""Compressed weights in the MIL interpreter: every form of iOS 16 and iOS 18."""

from __future__ import annotations

import numpy as np
import pytest
from mil_net import fp16_model, logits, relative
from mil_programs import convert, ct, mb, saved, types

from repedge.targets.coreml.interpreter import program as program_room
from repedge.targets.coreml.interpreter.interpreter import load
from repedge.targets.coreml.interpreter.weights import lut_to_dense, unpack_bits

RNG = np.random.default_rng(3)


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


ONLY_IOS18 = {"palette3", "palette4_grouped", "int4_blocks"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "opset"),
    [(k, "iOS18") for k in COMPRESSED] + [(k, "iOS16") for k in COMPRESSED if k not in ONLY_IOS18],
)
def test_compressed_weights(kind, opset, tmp_path):
    """The compressed program gives what coremltools' own decompression of it gives."""
    model = fp16_model(opset)
    small = COMPRESSED[kind](model)
    dense = ct.optimize.coreml.decompress_weights(small)
    packages = {name: saved(m, tmp_path, name) for name, m in (("small", small), ("dense", dense))}
    assert b"constexpr_" in next(packages["small"].rglob("model.mlmodel")).read_bytes()
    assert b"constexpr_" not in next(packages["dense"].rglob("model.mlmodel")).read_bytes()
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    got, want = (load(p).run({"x": x})["logits"] for p in packages.values())
    # coremltools rounds to fp16 where scale * (q - zero) is exact here: at most the weights' last bit
    assert relative(got, want.astype(np.float64)) < (2e-3 if kind.startswith("int") else 1e-6)
    assert relative(got, logits(x)) > 1e-5


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_lut_examples_of_vectors():
    """The same, where an index stands for several numbers."""
    indices = np.array([0, 0, 1, 0, 1, 1, 0, 0], np.uint8).reshape(2, 2, 2)
    lut = np.array([0, 1, 2, 10, 11, 12], np.int8).reshape(1, 1, 1, 2, 3)
    got = lut_to_dense(indices, lut, vector_axis=np.array(1, np.int32))
    want = [
        [[0, 0], [1, 1], [2, 2], [10, 0], [11, 1], [12, 2]],
        [[10, 10], [11, 11], [12, 12], [0, 0], [1, 1], [2, 2]],
    ]
    np.testing.assert_array_equal(got, want)
    got = lut_to_dense(indices, lut, vector_axis=np.array(-1, np.int32))
    assert got[0].tolist() == [[0, 1, 2, 0, 1, 2], [10, 11, 12, 0, 1, 2]]


@pytest.mark.slow
def test_weights_beyond_the_cache_are_converted_each_run(monkeypatch, tmp_path):
    package = saved(fp16_model(), tmp_path)
    x = RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)
    want = load(package).run({"x": x})["logits"]
    monkeypatch.setattr(program_room, "MAX_CACHED_BYTES", 0)
    program = load(package)
    for _ in range(2):
        np.testing.assert_array_equal(program.run({"x": x})["logits"], want)
    assert not program._cache
