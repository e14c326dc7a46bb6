"""Quantized ONNX files: the float network inside is taken, or it is said what to do."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import repedge
from repedge.errors import UnsupportedModel, UserError
from repedge.graph.run import Session
from repedge.models.source import resolve

BODY = """g (float[1,3,16,16] x) => (float[1,5] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w2, b1) s = Add(b, r)
  t = Clip(s, low, high) p = GlobalAveragePool(t) f = Flatten(p) y = Gemm<transB=1>(f, w3, b3)
}"""


def float_file(path):
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 17]>\n' + BODY)
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (5, 8), "b3": (5,)}
    values = {k: (rng.normal(size=s) * 0.3).astype(np.float32) for k, s in shapes.items()}
    values |= {"low": np.array(-0.5, np.float32), "high": np.array(1.5, np.float32)}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    onnx.save(proto, path)
    return path


class Reader(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(1)
        self.rest = iter([{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(8)])

    def get_next(self):
        return next(self.rest, None)


def quantized_file(folder, form=QuantFormat.QDQ, kind=QuantType.QInt8, **options):
    path = folder / "quantized.onnx"
    quantize_static(
        str(float_file(folder / "float.onnx")), str(path), Reader(), quant_format=form, per_channel=True,
        activation_type=kind, extra_options=options,
    )  # fmt: skip
    return path


def run(path, x):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image[None]})[0] for image in x])


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_float_network_inside(kind, symmetric, tmp_path):
    """With the Relu and the Clip that the quantizer took out: the ends of the integers do their work."""
    path = quantized_file(tmp_path, kind=kind, ActivationSymmetric=symmetric)
    operators = {n.op_type for n in onnx.load(path).graph.node}
    assert ("Relu" in operators) == symmetric
    x = np.random.default_rng(2).normal(size=(6, 3, 16, 16)).astype(np.float32)
    source = resolve(str(path), input_size=(16, 16))
    graph = source.graph()
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in graph.graph}
    (found,) = Session(graph).run(x)
    exact = run(tmp_path / "float.onnx", x)
    lost = np.square(found - exact).sum() / np.square(exact).sum()
    assert lost < 10 ** (-30 / 10)  # 8-bit weights, and what the calibration cut off
    rounded = run(path, x)
    assert np.square(found - exact).sum() < np.square(rounded - exact).sum()


@pytest.mark.slow
def test_it_is_compiled_and_said(tmp_path):
    path = quantized_file(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report = repedge.compile(
            str(path), targets=["gpu", "tflite"], precisions=["fp32"], out=tmp_path / "o"
        )
    assert report.passed
    (what,) = [str(w.message) for w in said if "quantized already" in str(w.message)]
    assert "the float network inside" in what


def test_operators_on_integers_are_refused_with_what_to_do(tmp_path):
    path = quantized_file(tmp_path, QuantFormat.QOperator)
    with pytest.raises(UnsupportedModel, match=r"QLinearConv.*compile the file that it was made from"):
        resolve(str(path), input_size=(16, 16)).graph()


def test_integers_that_go_elsewhere_are_refused(tmp_path):
    path = quantized_file(tmp_path)
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.op_type == "QuantizeLinear")
    reader = next(n for n in proto.graph.node if node.output[0] in n.input)
    place = list(proto.graph.node).index(node) + 1
    proto.graph.node.insert(place, helper.make_node("Identity", [node.output[0]], ["moved"], name="move"))
    reader.input[0] = "moved"
    onnx.save(proto, path)
    with pytest.raises(UserError, match=r"integers that go into Identity 'move': compile the float network"):
        resolve(str(path), input_size=(16, 16)).graph()
