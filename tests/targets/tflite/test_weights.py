"""8-bit weights with float activations, and QDQ graphs that TensorFlow Lite can't hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from op_table import CASES
from operators import reference as float_reference
from operators import relative_error, weights
from tflite_emitted import EMITTED
from tflite_helpers import W3, build, clean, op_names, run, window
from tflite_qdq import batch, mixed, quantize, reference

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.targets.tflite.model import Quant
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.target import TFLite

LAYERS = ("conv_", "deconv_", "gemm", "matmul_c")
PRE = Preprocess(size=(12, 10), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


# 8-bit weights, float activations


def weight_graph(name: str) -> ir.Model:
    return CASES[name].model()


@pytest.mark.parametrize("name", [n for n in EMITTED if n.startswith(LAYERS)])
def test_8_bit_weights_behind_dequantize_are_float_arithmetic(name, tmp_path):
    model = weight_graph(name)
    qdq = quantize(model, batch(model), weights_only=True)
    path, _ = build(qdq, tmp_path, precision="w8a32")
    assert relative_error(run(qdq, path, batch(model)), reference(qdq, batch(model))) < 5e-6
    assert partitions(path).whole
    if name not in ("gemm_scaled", "matmul_computed"):
        assert op_names(path).count("DEQUANTIZE") == 1


def test_float_graph_gets_its_weights_rounded(tmp_path):
    """No images are needed: the same file as the quantizer's nearest rounding gives."""
    model = mixed()
    first, _ = build(model, tmp_path / "a", precision="w8a32")
    qdq = quantize(model, batch(model), weights_only=True)
    assert relative_error(run(model, first, batch(model)), reference(qdq, batch(model))) < 5e-6
    whole, _ = build(model, tmp_path / "b")
    assert first.stat().st_size < 0.5 * whole.stat().st_size
    assert partitions(first).whole


def test_dynamic_range_rounds_inputs_of_dense_layers_only(tmp_path):
    model = clean(
        "g (float[1,6,9,9] x) => (float[1,6,9,9] y)"
        "{ a = Conv<pads=[1,1,1,1]> (x, w) y = Conv<pads=[1,1,1,1],group=6> (a, v) }",
        w=weights(6, 6, 3, 3), v=weights(6, 1, 3, 3),
    )  # fmt: skip
    path, artifact = build(model, tmp_path, precision="w8a32", options={"dynamic": True})
    assert Counter(op_names(path)) == {"CONV_2D": 1, "DEQUANTIZE": 1, "DEPTHWISE_CONV_2D": 1}
    assert partitions(path).whole
    assert artifact.requires == {"TensorFlow Lite": ">=2.7.0"}
    error = relative_error(run(model, path, batch(model)), float_reference_of(model))
    assert 1e-4 < error < 3e-2


def float_reference_of(model: ir.Model) -> list[np.ndarray]:
    x = batch(model)
    rows = [float_reference(model, x[i : i + 1]) for i in range(len(x))]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


# Refusals


def test_graphs_of_other_precisions_are_refused(tmp_path):
    qdq = quantize(mixed(), batch(mixed()))
    cases = {
        "w8a16": "tflite w8a16 needs a QDQ graph with int16 activations",
        "fp32": "tflite fp32 has float activations, but the graph quantizes",
        "w8a32": "tflite w8a32 has float activations, but the graph quantizes",
    }
    for precision, message in cases.items():
        with pytest.raises(UserError, match=message):
            build(qdq, tmp_path, precision=precision)
    with pytest.raises(UserError, match="tflite has no option dynamic at w8a8"):
        build(qdq, tmp_path, precision="w8a8", options={"dynamic": True})
    assert list(tmp_path.iterdir()) == []


def test_quantized_input_that_holds_no_pixels_is_refused(tmp_path):
    model = clean(
        "g (float[1,3,12,10] image) => (float[1,8,10,8] y) { y = Conv (image, w) }", w=weights(8, 3, 3, 3)
    )
    qdq = quantize(model, batch(model))
    with pytest.raises(
        UserError, match=r"the input 'image' is quantized up to .*, which holds no pixels of 0 to 255"
    ):
        build(qdq, tmp_path, precision="w8a8", input_kind="uint8", preprocess=PRE)


def test_bias_that_overflows_is_refused(tmp_path):
    w = W3.copy()
    w[5] *= 1e-12  # a dead channel
    model = clean(window("Conv", "1,6,9,9", "1,12,7,7", "x, w, b"), w=w, b=weights(12))
    qdq = quantize(model, batch(model))
    conv = next(n for n in qdq.graph if n.op_type == "Conv")
    dequantize = conv.inputs[2].producer()
    bias = ir.Value(name="bias", shape=ir.Shape((12,)), type=ir.TensorType(ir.DataType.FLOAT))
    bias.const_value = ir.tensor(weights(12), name="bias")
    qdq.graph.register_initializer(bias)
    conv.replace_input_with(2, bias)
    qdq.graph.remove(dequantize, safe=True)
    with pytest.raises(UserError, match=r"the bias .* of channel 5 of Conv node 'n0' does not fit int32"):
        build(qdq, tmp_path, precision="w8a8")


def broken(what: str) -> ir.Model:
    model = CASES["conv_same"].model()
    proto = onnx.ModelProto()
    proto.CopyFrom(ir.to_proto(quantize(model, batch(model))))
    tensors = {t.name: t for t in proto.graph.initializer}
    if what == "scale":
        tensors["x_scale"].CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.float32), "x_scale"))
    elif what == "other":
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(9, np.float32), "other"))
        next(n for n in proto.graph.node if n.name == "x_dq").input[1] = "other"
    else:
        zero = onnx.numpy_helper.from_array(np.array(3, np.int16), "x_zero")
        tensors["x_zero"].CopyFrom(zero)
        for value in proto.graph.value_info:
            if value.name == "x_q":
                value.type.tensor_type.elem_type = onnx.TensorProto.INT16
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("scale", "'x_q' has a scale that is not a positive number"),
        ("other", "'x_dq' undoes another scale than was applied"),
        ("zero", "'x_q': 16-bit integers need zero point 0"),
    ],
)
def test_scales_that_the_format_lacks_are_refused(what, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TFLite().unsupported(broken(what))


def test_quant_rounds_half_to_even_and_saturates():
    quant = Quant("int8", (0.5,), -128)
    assert quant.reals == (0.0, 127.5)
    assert quant.integers(np.array([-3, 0, 0.25, 0.75, 1000])).tolist() == [-128, -128, -128, -126, 127]
