"""Operators on many axes, merged: the same numbers in ONNX Runtime, and no tensor of more axes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from repedge.graph.check import first_problem
from repedge.passes.rank import fit_rank

WINDOW = "a = Reshape(x, six) b = Transpose<perm=[0,1,3,2,4,5]>(a) "
BODIES = {
    "windows": WINDOW + "y = Reshape(b, flat)",
    "window attention": WINDOW
    + "c = Reshape(b, heads) d = Transpose<perm=[0,2,3,1,4]>(c) e = Reshape(d, flat) "
    "y = Relu(e)",
    "every axis moved": "a = Reshape(x, six) b = Transpose<perm=[5,3,1,4,2,0]>(a) y = Reshape(b, flat)",
    "seven axes": "a = Reshape(x, seven) b = Transpose<perm=[6,2,4,1,5,3,0]>(a) y = Reshape(b, flat)",
    "elementwise": WINDOW
    + "c = Relu(b) d = Mul(c, per_channel) e = Add(d, b) f = Clip(e, low) y = Reshape(f, flat)",
    "broadcast": WINDOW + "m = ReduceMean<keepdims=1>(b, inner) c = Sub(b, m) y = Reshape(c, flat)",
    "reduced": WINDOW + "y = ReduceMax<keepdims=0>(b, inner)",
    "softmax": WINDOW + "c = Softmax<axis=3>(b) y = Reshape(c, flat)",
    "split": WINDOW + "p, q = Split<axis=3, num_outputs=2>(b) c = Concat<axis=3>(q, p) y = Reshape(c, flat)",
    "slice": WINDOW + "c = Slice(b, one, end, inner_axis) y = Reshape(c, flat)",
    "gather": WINDOW + "c = Gather<axis=4>(b, second) y = Reshape(c, flat)",
    "matmul": WINDOW
    + "c = MatMul(b, square) d = Transpose<perm=[0,1,2,3,5,4]>(c) e = MatMul(d, c) y = Reshape(e, flat)",
    "one of two outputs": WINDOW + "c = Tanh(b) y = Reshape(c, flat)",
}
CONSTANTS = {
    "six": np.array([1, 2, 4, 3, 2, 6]),
    "seven": np.array([1, 2, 2, 2, 3, 2, 6]),
    "heads": np.array([6, 4, 2, 3, 2]),
    "flat": np.array([1, -1]),
    "inner": np.array([3, 4]),
    "one": np.array([1]),
    "end": np.array([4]),
    "inner_axis": np.array([3]),
    "second": np.array(1),
    "low": np.float32(-0.5),
    "per_channel": np.random.default_rng(1).normal(size=6).astype(np.float32),
    "square": np.random.default_rng(2).normal(size=(6, 6)).astype(np.float32),
}


def model(body: str) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[1,8,6,6] x) => (float y) {{ {body} }}'
    )
    for name, array in CONSTANTS.items():
        if name in body:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"n{i}"
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def run(graph: ir.Model) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 6)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(graph).SerializeToString(), options)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("limit", [4, 5])
@pytest.mark.parametrize("name", BODIES)
def test_same_numbers_on_fewer_axes(name, limit):
    before = model(BODIES[name])
    wanted = run(before)
    after = fit_rank(before, limit)
    assert max(len(v.shape) for n in before.graph for v in n.outputs) > 5  # it was not changed
    assert max(len(v.shape) for n in after.graph for v in n.outputs) <= limit
    assert first_problem(after) is None
    assert [v.name for v in after.graph.outputs] == ["y"]
    np.testing.assert_allclose(run(after), wanted, rtol=1e-5, atol=1e-6)


def test_a_window_partition_is_one_transpose():
    after = fit_rank(model(BODIES["windows"]), 5)
    assert [n.op_type for n in after.graph][:2] == ["Reshape", "Transpose"]
    assert len(list(after.graph)) == 3


def test_what_fits_is_left_alone():
    before = model("y = Relu(x)")
    assert fit_rank(before, 5) is before


def test_an_output_of_many_axes_stays():
    after = fit_rank(model(WINDOW + "y = Relu(b)"), 5)
    assert len(after.graph.outputs[0].shape or ()) == 6
