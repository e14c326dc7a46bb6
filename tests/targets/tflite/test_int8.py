"""Integer TensorFlow Lite: QDQ graphs as the files' integers compute them, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from old_runtime import check, needed, nhwc
from op_table import CASES
from operators import relative_error, weights
from tflite_emitted import EMITTED
from tflite_helpers import W3, build, clean, fused_network, op_names, run, window
from tflite_qdq import batch, mixed, output_scales, quantize, reference, units

from repedge.config import Preprocess
from repedge.passes.preprocess import fold_preprocess
from repedge.targets.tflite.integers.rules import RULES
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.target import TFLite
from repedge.targets.tflite.writer import schema

W8 = {"int8": "w8a8", "int16": "w8a16"}
CHAINS = {
    "erf",
    "squeeze_excite",
    "add_lower_rank",
    "concat_height",
    "flatten_pooled_gemm",
    "flatten_map_gemm",
}
"""Cases of several roundings, each within one unit."""

ROUNDED_OTHERWISE = {
    "leaky",
    "bilinear_half",
    "bilinear_torch_down",
    "bilinear_corners",
    "bilinear_asymmetric",
}
"""XNNPACK computes these with fewer fractional bits: one unit off here and there. All others are exact."""


def inside(path) -> list[str]:
    """The operators between the first QUANTIZE and the last DEQUANTIZE."""
    names = op_names(path)
    assert (names[0], names[-1]) == ("QUANTIZE", "DEQUANTIZE")
    return names[1:-1]


# Every operator


@pytest.mark.parametrize("name", EMITTED)
def test_int8_equals_the_qdq_graph(name, tmp_path):
    model = CASES[name].model()
    qdq = quantize(model, batch(model))
    assert TFLite().unsupported(qdq) == []
    path, artifact = build(qdq, tmp_path, precision="w8a8")
    limit = 1.01 if name in ROUNDED_OTHERWISE else 0.01
    assert units(qdq, path, batch(model)) < limit
    left = sorted(set(partitions(path).outside))
    notes = [f"{', '.join(left)} runs outside the XNNPACK delegate, which splits the graph"] if left else []
    assert list(artifact.notes) == notes


@pytest.mark.slow
@pytest.mark.parametrize("name", EMITTED)
def test_int16_is_within_one_unit_of_the_qdq_graph(name, tmp_path):
    model = CASES[name].model()
    qdq = quantize(model, batch(model), "int16")
    path, artifact = build(qdq, tmp_path, precision="w8a16")
    assert units(qdq, path, batch(model)) < (2.01 if name in CHAINS else 1.01)
    assert (
        "XNNPACK has no 16-bit integers: those operators run in TensorFlow Lite's own kernels"
        in artifact.notes
    )


@pytest.mark.slow
def test_every_rule_has_a_case_that_stays_integer(tmp_path):
    """An operator of the table whose case has a float DEQUANTIZE in the middle would be no integer one."""
    seen = set()
    for name in EMITTED:
        model = CASES[name].model()
        qdq = quantize(model, batch(model, 1))
        path, _ = build(qdq, tmp_path, precision="w8a8")
        if op_names(path).count("DEQUANTIZE") == len(model.graph.outputs):
            seen |= {node.op_type for node in model.graph}
    assert RULES.keys() <= seen


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("relu", "MUL"),  # by 1, with the activation: RELU itself is not delegated
        ("avgpool_including", "PAD DEPTHWISE_CONV_2D"),
        ("squeeze_excite", "MEAN LOGISTIC MUL"),
        ("add_channel", "ADD"),
        ("concat", "MUL CONCATENATION"),  # Relu; operands of one scale
        ("flatten_map_gemm", "TANH FULLY_CONNECTED"),
        ("channel_shuffle", "RESHAPE TRANSPOSE RESHAPE"),
        ("gelu", "DEQUANTIZE GELU QUANTIZE"),
        ("softmax_rows", "RESHAPE DEQUANTIZE SOFTMAX QUANTIZE"),
    ],
)
def test_integer_operators(name, ops, tmp_path):
    model = CASES[name].model()
    given = {"x": (0.05, 3), "r": (0.05, 3), "y": (0.05, 3), "w": (0.05, 3)} if name == "concat" else {}
    path, _ = build(quantize(model, batch(model), given=given), tmp_path, precision="w8a8")
    assert inside(path) == ops.split()
    assert partitions(path).whole


@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize(
    "name", ["maxpool", "pad_zero", "concat_height", "slice", "bilinear_half", "sigmoid"]
)
def test_operators_with_tied_scales_are_converted_where_the_graph_unties_them(name, dtype, tmp_path):
    model = CASES[name].model()
    given = {"y": (0.043, -7 if dtype == "int8" else 0)}
    qdq = quantize(model, batch(model), dtype, tie=False, given=given)
    path, _ = build(qdq, tmp_path, precision=W8[dtype])
    assert units(qdq, path, batch(model)) < 1.01


def test_unsigned_integers_become_signed_ones(tmp_path):
    model = CASES["squeeze_excite"].model()
    qdq = quantize(model, batch(model), "uint8")
    path, _ = build(qdq, tmp_path, precision="w8a8")
    assert inside(path) == ["MEAN", "LOGISTIC", "MUL"]
    assert units(qdq, path, batch(model)) < 0.01


# Activations


CLAMPS = {
    "saturation does it": ("Relu (c)", {}, (0.02, -128), ["CONV_2D"], "NONE"),
    "fused": ("Relu (c)", {}, (0.02, -100), ["CONV_2D"], "RELU"),
    "fused 6": ("Clip (c, l, h)", {"l": 0.0, "h": 6.0}, (0.06, -128), ["CONV_2D"], "RELU6"),
    "no integer beyond": ("Clip (c, l, h)", {"l": 0.0, "h": 6.0}, (0.01, -128), ["CONV_2D"], "NONE"),
    "other bounds": (
        "Clip (c, l, h)",
        {"l": -0.3, "h": 0.8},
        (0.02, 0),
        ["CONV_2D", "MAXIMUM", "MINIMUM"],
        "NONE",
    ),
}


@pytest.mark.parametrize("case", CLAMPS)
def test_activations_behind_a_convolution(case, tmp_path):
    clamp, bounds, params, ops, fused = CLAMPS[case]
    model = clean(
        f"g (float[1,6,9,9] x) => (float[1,12,9,9] y) {{ c = Conv<pads=[1,1,1,1]> (x, w) y = {clamp} }}",
        w=W3, **{k: np.float32(v) for k, v in bounds.items()},
    )  # fmt: skip
    qdq = quantize(model, batch(model), given={"y": params})
    path, _ = build(qdq, tmp_path, precision="w8a8")
    assert inside(path) == ops
    assert units(qdq, path, batch(model)) < 0.01
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    options = file.subgraphs[0].operators[1].builtinOptions
    assert options.fusedActivationFunction == getattr(schema.ActivationFunctionType, fused)


# What the file says


def test_weights_are_per_channel_and_biases_have_the_product_of_scales(tmp_path):
    model = CASES["conv_depthwise_multiplier"].model()
    path, artifact = build(quantize(model, batch(model)), tmp_path, precision="w8a8")
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (conv,) = (o for o in file.subgraphs[0].operators if len(o.inputs) == 3)
    x, w, b = (file.subgraphs[0].tensors[i] for i in conv.inputs)
    assert (w.type, b.type) == (schema.TensorType.INT8, schema.TensorType.INT32)
    assert w.quantization.quantizedDimension == 3
    assert len(w.quantization.scale) == len(w.quantization.zeroPoint) == 12
    assert not w.quantization.zeroPoint.any()
    np.testing.assert_allclose(b.quantization.scale, x.quantization.scale * w.quantization.scale, rtol=1e-6)
    data = np.frombuffer(bytes(file.buffers[w.buffer].data), np.int8)
    assert (data.min(), data.max()) == (-127, 127)
    assert artifact.requires == {"TensorFlow Lite": ">=1.14.0"}
    assert (artifact.inputs[0].dtype, artifact.outputs[0].dtype) == ("float32", "float32")


def test_int16_has_64_bit_biases(tmp_path):
    model = CASES["conv_same"].model()
    path, artifact = build(quantize(model, batch(model), "int16"), tmp_path, precision="w8a16")
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    types = [t.type for t in file.subgraphs[0].tensors]
    assert schema.TensorType.INT64 in types
    assert schema.TensorType.INT32 not in types
    assert artifact.requires == {"TensorFlow Lite": ">=2.3.0"}


@pytest.mark.parametrize("per_channel", [True, False])
def test_float_biases_are_rounded_to_the_products_scale(per_channel, tmp_path):
    """Graphs of other makers keep biases in floats; integer and float bias give the same file."""
    model = CASES["conv_same"].model()
    qdq = quantize(model, batch(model), per_channel=per_channel)
    plain = qdq.clone()
    conv = next(n for n in plain.graph if n.op_type == "Conv")
    array = CASES["conv_same"].arrays()["b"]
    bias = ir.Value(name="bias", shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    bias.const_value = ir.tensor(array, name="bias")
    plain.graph.register_initializer(bias)
    conv.replace_input_with(2, bias)
    first, _ = build(qdq, tmp_path / "a", precision="w8a8")
    second, _ = build(plain, tmp_path / "b", precision="w8a8")
    assert first.read_bytes() == second.read_bytes()


def test_same_graph_gives_same_bytes_and_is_not_changed(tmp_path):
    model = CASES["squeeze_excite"].model()
    qdq = quantize(model, batch(model))
    before = ir.to_proto(qdq).SerializeToString()
    first, _ = build(qdq, tmp_path / "a", precision="w8a8")
    second, _ = build(qdq, tmp_path / "b", precision="w8a8")
    assert first.read_bytes() == second.read_bytes()
    assert ir.to_proto(qdq).SerializeToString() == before


# Mixed plans


@pytest.mark.parametrize("left", [["three"], ["one", "two"], ["seven"], ["five", "six", "seven"]])
def test_layers_that_stay_float_stand_between_borders(left, tmp_path):
    qdq = quantize(mixed(), batch(mixed()), float_nodes=left)
    path, _ = build(qdq, tmp_path, precision="w8a8")
    if "seven" in left:
        assert relative_error(run(qdq, path, batch(mixed())), reference(qdq, batch(mixed()))) < 1e-5
    else:
        assert units(qdq, path, batch(mixed())) < 0.01
    assert partitions(path).whole


def test_sixteen_bit_layers_among_eight_bit_ones(tmp_path):
    qdq = quantize(mixed(), batch(mixed()), types={"r": "int16", "c": "int16"})
    path, _ = build(qdq, tmp_path, precision="w8a8")
    assert units(qdq, path, batch(mixed())) < 1.01
    assert op_names(path).count("DEQUANTIZE") == 1  # nothing is computed in floats


# The input


PRE = Preprocess(size=(12, 10), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("pads", ["", "<pads=[1,1,1,1]>"])
def test_pixels_are_the_first_integers(pads, tmp_path):
    size = "12,10" if pads else "10,8"
    model = clean(
        f"g (float[1,3,12,10] x) => (float[1,8,{size}] y) {{ y = Conv{pads} (x, w) }}", w=weights(8, 3, 3, 3)
    )
    folded = fold_preprocess(model, PRE)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = 0, 255
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    qdq = quantize(folded, x, given={"image": (1.0, -128)})
    settings = {"precision": "w8a8", "input_kind": "uint8", "preprocess": PRE}
    path, artifact = build(qdq, tmp_path, **settings)
    names = ["DEQUANTIZE", "QUANTIZE", *(["SUB"] if pads else []), "CONV_2D", "DEQUANTIZE"]
    assert op_names(path) == names
    assert partitions(path).whole
    (spec,) = artifact.inputs
    assert (spec.name, spec.dtype, spec.shape) == ("image", "uint8", (1, 12, 10, 3))
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    first = file.subgraphs[0].operators[1]
    quant = file.subgraphs[0].tensors[first.outputs[0]].quantization
    assert (quant.scale.tolist(), quant.zeroPoint.tolist()) == ([1.0], [-128])
    assert units(qdq, path, pixels, reference(qdq, x), input_kind="uint8") < (1.01 if pads else 0.01)


def test_normalised_input_of_a_quantized_graph_is_normalised_in_floats(tmp_path):
    """The graph was calibrated without folding: exact, but the first operators are float."""
    model = clean("g (float[1,3,12,10] x) => (float[1,8,10,8] y) { y = Conv (x, w) }", w=weights(8, 3, 3, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    x = ((pixels / 255 - PRE.mean) / PRE.std).astype(np.float32).transpose(0, 3, 1, 2)
    qdq = quantize(model, x)
    path, _ = build(qdq, tmp_path, precision="w8a8", input_kind="uint8", preprocess=PRE)
    assert op_names(path) == ["DEQUANTIZE", "SUB", "MUL", "QUANTIZE", "CONV_2D", "DEQUANTIZE"]
    assert units(qdq, path, pixels, reference(qdq, x), input_kind="uint8") < 1.01


def test_pixels_of_sixteen_bit_graphs(tmp_path):
    model = clean("g (float[1,3,12,10] x) => (float[1,8,10,8] y) { y = Conv (x, w) }", w=weights(8, 3, 3, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    qdq = quantize(fold_preprocess(model, PRE), x, "int16", given={"image": (1 / 128, 0)})
    path, _ = build(qdq, tmp_path, precision="w8a16", input_kind="uint8", preprocess=PRE)
    assert units(qdq, path, pixels, reference(qdq, x), input_kind="uint8") < 1.01


# What the delegate leaves


RATIOS = {
    "add_tiny": (
        window("Add", "1,6,5,7", "1,6,5,7", "x, w"),
        {"x": (1e-5, 0), "w": (0.02, 0), "y": (0.02, 0)},
        "ADD",
    ),
    "mul_large": (
        window("Mul", "1,6,5,7", "1,6,5,7", "x, w"),
        {"x": (0.1, 0), "w": (8.0, 0), "y": (1e-3, 0)},
        "MUL",
    ),
    "leaky_small": (
        window("LeakyRelu<alpha=0.5>", "1,6,5,7", "1,6,5,7"),
        {"x": (1e-3, 0), "y": (1.0, 0)},
        "LEAKY_RELU",
    ),
}


@pytest.mark.parametrize("case", RATIOS)
def test_scales_too_far_apart_for_the_delegate_are_told(case, tmp_path):
    text, given, op = RATIOS[case]
    model = clean(text, **({"w": weights(1, 6, 5, 7)} if "w" in given else {}))
    qdq = quantize(model, batch(model), given=given)
    path, artifact = build(qdq, tmp_path, precision="w8a8")
    assert partitions(path).outside == (op,)
    (note,) = artifact.notes
    assert note.startswith(f"{op} 'y_raw' runs outside the XNNPACK delegate: its scales have a ratio of ")
    assert units(qdq, path, batch(model)) < 1.01


# Real networks


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ops"), [("repvgg_demo", 33), ("repvit_demo", 173)])
def test_real_networks_are_one_partition_and_agree(name, ops, tmp_path):
    _, model = fused_network(name, (32, 32))
    pre = Preprocess(size=(32, 32))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    qdq = quantize(fold_preprocess(model, pre), x, given={"image": (1.0, -128)})
    path, artifact = build(qdq, tmp_path, precision="w8a8", input_kind="uint8", preprocess=pre)
    assert partitions(path).whole
    assert artifact.notes == ()
    names = op_names(path)
    assert len(names) == ops
    floats = {"repvgg_demo": set(), "repvit_demo": {"GELU"}}[name]
    assert names.count("DEQUANTIZE") == 2 + sum(names.count(op) for op in floats)
    # Rounding is chaotic over dozens of layers: a sum that onnxruntime's floats put on the other side of
    # a half moves others. No output is off by more than the few units that this makes.
    assert units(qdq, path, pixels, reference(qdq, x), input_kind="uint8") < 4.01
    whole, _ = build(model, tmp_path / "float")
    assert path.stat().st_size < 0.271 * whole.stat().st_size


# The old runtime, whose own kernels run instead of XNNPACK's


@pytest.mark.slow
@needed
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_old_runtime_is_within_one_unit(dtype, tmp_path):
    unit = {}
    for name in EMITTED:
        model = CASES[name].model()
        x = batch(model, 1)
        qdq = quantize(model, x, dtype)
        build(qdq, tmp_path, name=name, precision=W8[dtype])
        want = dict(zip([v.name for v in qdq.graph.outputs], reference(qdq, x), strict=True))
        unit[name] = max(s / np.abs(y).max() for s, y in zip(output_scales(qdq), want.values(), strict=True))
        arrays: dict[str, Any] = {str(k): nhwc(y) for k, y in want.items()}
        np.savez(tmp_path / f"{name}.npz", x=nhwc(x), **arrays)
    found = check(tmp_path)
    assert found.keys() == EMITTED.keys()
    errors = {name: max(case["errors"].values()) / unit[name] for name, case in found.items()}
    limits = {name: 2.01 if name in CHAINS else 1.01 for name in errors}
    assert {name: e for name, e in errors.items() if not e < limits[name]} == {}
