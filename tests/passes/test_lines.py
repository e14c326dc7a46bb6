"""Windows over one axis, norm pools, products with vectors: the same numbers in forms that targets know."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from repedge import passes

LINE = "l = Reshape(x, line) "
BODIES = {
    "conv": (LINE + "y = Conv<pads=[2,1], strides=[2], dilations=[2]>(l, w3, b8)", "Conv"),
    "same": (LINE + 'y = Conv<auto_pad="SAME_UPPER", strides=[2]>(l, w3, b8)', "Conv"),
    "depthwise": (LINE + "y = Conv<group=4, pads=[1,1]>(l, w1)", "Conv"),
    "transposed": (
        LINE + "y = ConvTranspose<strides=[3], pads=[1,1], output_padding=[1]>(l, v, b8)",
        "ConvTranspose",
    ),
    "block": (
        LINE + "c = Conv<pads=[1,1]>(l, w3) n = BatchNormalization(c, b8, b8, b8, one8) r = Relu(n) "
        "y = MaxPool<kernel_shape=[2], strides=[2]>(r)",
        "Conv Relu MaxPool",
    ),
    "average": (LINE + "y = AveragePool<kernel_shape=[3], strides=[2], pads=[1,1]>(l)", "AveragePool"),
    "global": (LINE + "y = GlobalMaxPool(l)", "GlobalMaxPool"),
    "resize": (LINE + 'y = Resize<mode="linear">(l, , scales)', "Resize"),
    "resize to": (LINE + 'y = Resize<mode="linear">(l, , , sizes)', "Resize"),
    "attention of channels": (  # efficient channel attention
        "p = GlobalAveragePool(x) q = Reshape(p, across) c = Conv<pads=[1,1]>(q, k) s = Sigmoid(c) "
        "g = Reshape(s, gate) y = Mul(x, g)",
        "GlobalAveragePool Conv Sigmoid Mul",
    ),
    "norm pool": (
        "y = LpPool<kernel_shape=[2,3], strides=[2,2], pads=[1,1,0,1]>(x)",
        "Mul AveragePool Mul Sqrt",
    ),
    "norm pool of 1": ("y = LpPool<kernel_shape=[2,2], p=1>(x)", "Abs AveragePool Mul"),
    "norm pool of 3": ("y = LpPool<kernel_shape=[3,3], p=3>(x)", "Abs Pow AveragePool Mul Pow"),
    "norm pool of a line": (
        LINE + "y = LpPool<kernel_shape=[3], strides=[2]>(l)",
        "Mul AveragePool Mul Sqrt",
    ),
    "global norm pool": ("y = GlobalLpPool<p=3>(x)", "Abs Pow ReduceSum Pow"),
    "matrix and vector": (LINE + "y = MatMul(l, column)", "MatMul"),
    "vector and matrix": (LINE + "y = MatMul(row, l)", "MatMul"),
}
RNG = np.random.default_rng(3)
CONSTANTS = {
    "line": np.array([1, 4, 30]),
    "across": np.array([1, 1, 4]),
    "gate": np.array([1, 4, 1, 1]),
    "sizes": np.array([1, 4, 47]),
    "scales": np.array([1, 1, 1.5], np.float32),
    "w3": RNG.normal(size=(8, 4, 3)).astype(np.float32),
    "w1": RNG.normal(size=(4, 1, 3)).astype(np.float32),
    "v": RNG.normal(size=(4, 8, 3)).astype(np.float32),
    "k": RNG.normal(size=(1, 1, 3)).astype(np.float32),
    "b8": RNG.normal(size=8).astype(np.float32),
    "one8": np.ones(8, np.float32),
    "column": RNG.normal(size=30).astype(np.float32),
    "row": RNG.normal(size=4).astype(np.float32),
}


def proto(body: str) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[1,4,5,6] x) => (float y) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    for name, array in CONSTANTS.items():
        if name in body:
            made.graph.initializer.append(numpy_helper.from_array(array, name))
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def run(model: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


@pytest.mark.parametrize("name", BODIES)
def test_same_numbers_in_known_forms(name):
    body, operators = BODIES[name]
    before = proto(body)
    graph = ir.from_proto(before)
    passes.clean(graph)
    found = [n.op_type for n in graph.graph if n.op_type not in ("Reshape", "Flatten")]
    assert found == operators.split()
    for node in graph.graph:
        if node.op_type in ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "Resize"):
            assert len(node.inputs[0].shape) == 4
    np.testing.assert_allclose(run(ir.to_proto(graph)), run(before), rtol=1e-5, atol=1e-5)
