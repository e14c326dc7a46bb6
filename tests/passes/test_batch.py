"""A dynamic batch gives every image the result it has alone, or the node that would not is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from repedge import passes
from repedge.errors import UserError
from repedge.passes.batch import dynamic_batch


def clean(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.input[1:]
    model = ir.serde.deserialize_model(proto)
    passes.simplify(model)
    return model


def session(model: ir.Model):
    import onnxruntime as ort

    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def assert_batches(model: ir.Model, n: int = 3) -> ir.Model:
    dynamic = dynamic_batch(model)
    for value in (*dynamic.graph.inputs, *dynamic.graph.outputs):
        assert str(value.shape[0]) == "N"
    x = (
        np.random.default_rng(0)
        .standard_normal((n, *model.graph.inputs[0].shape.numpy()[1:]))
        .astype(np.float32)
    )
    one, many = session(model), session(dynamic)
    name = model.graph.inputs[0].name
    batch = many.run(None, {name: x})
    for i in range(n):
        for alone, together in zip(one.run(None, {name: x[i : i + 1]}), batch, strict=True):
            np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    return dynamic


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_a_classifier_with_squeeze_excite_and_channel_shuffle():
    text = """g (float[1,3,8,8] x, float[8,3,3,3] w, float[8,8,1,1] s, float[8,5] d) => (float[1,5] y) {
      a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) b = Relu(a)
      p = GlobalAveragePool(b) q = Conv(p, s) g1 = Sigmoid(q) e = Mul(b, g1)
      s1 = Constant<value_ints=[1,2,4,4,4]>() r = Reshape(e, s1) t = Transpose<perm=[0,2,1,3,4]>(r)
      s2 = Constant<value_ints=[1,8,4,4]>() u = Reshape(t, s2)
      l, m = Split<axis=1, num_outputs=2>(u) c = Concat<axis=1>(m, l)
      ax = Constant<value_ints=[2,3]>() z = ReduceMean<keepdims=0>(c, ax) y = MatMul(z, d)
    }"""
    model = clean(text, w=weight(8, 3, 3, 3), s=weight(8, 8, 1, 1), d=weight(8, 5))
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    dynamic = assert_batches(model)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    for name, value in dynamic.graph.initializers.items():
        assert value.const_value is model.graph.initializers[name].const_value


@pytest.mark.parametrize(
    "resize",
    [
        'Resize<mode="linear">(x, , , sizes)',
        'Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , scales)',
        'Resize<mode="linear", axes=[2,3]>(x, , , map)',
    ],
)
def test_resize_keeps_its_size_for_any_batch(resize):
    text = f"""g (float[1,2,4,5] x) => (float[1,2,8,10] y)
    <int64[4] sizes = {{1,2,8,10}}, float[4] scales = {{1.0,1.0,2.0,2.0}}, int64[2] map = {{8,10}}>
    {{ a = {resize} y = Tanh(a) }}"""
    assert_batches(clean(text))


@pytest.mark.parametrize(
    "body",
    [
        "p = Constant<value_ints=[0,0,1,0,0,0,0,1]>() a = Pad<mode=\"reflect\">(x, p) "
        "y = AveragePool<kernel_shape=[2,2]>(a)",
        "a = Softmax<axis=-1>(x) y = Sub(a, x)",
        "ax = Constant<value_ints=[1]>() a = ReduceMax(x, ax) y = Div(x, a)",
        "t = Transpose<perm=[0,1,3,2]>(x) a = MatMul(t, x) y = MatMul(x, a)",
        "s = Constant<value_ints=[0]>() e = Constant<value_ints=[1]>() ax = Constant<value_ints=[1]>() "
        "a = Slice(x, s, e, ax) y = Add(a, x)",
    ],
)  # fmt: skip
def test_other_operators_keep_images_apart(body):
    assert_batches(clean(f"g (float[1,3,4,5] x) => (float[1,3,4,5] y) {{ {body} }}"))


@pytest.mark.parametrize(
    ("out", "body", "message"),
    [
        ("3,4,5", "s = Constant<value_ints=[3,4,5]>() y = Reshape(x, s)", "Reshape node '.*' does not keep"),
        ("3,1,4,5", "y = Transpose<perm=[1,0,2,3]>(x)", "Transpose node '.*' moves the batch axis"),
        ("2,3,4,5", "y = Concat<axis=0>(x, x)", "Concat node '.*' works along the batch axis"),
        ("1,3,4,5", "y = Softmax<axis=0>(x)", "Softmax node '.*' works along the batch axis"),
        ("1,1,1,1", "y = ReduceMean(x)", "ReduceMean node '.*' reduces the batch axis"),
        ("1,4,4,5", "c = Constant<value=float[1,1,4,5] {1,2,3,4,5,6,7,8,9,0,1,2,3,4,5,6,7,8,9,0}>() "
         "y = Concat<axis=1>(x, c)", "Concat node '.*' joins a constant made for one image"),
        ("1,3,4,5", "y = Acosh(x)", "Acosh node '.*' is not known to keep the images"),
        ("1,1,4,5", "f = Flatten(x) w = Transpose<perm=[1,0]>(f) m = MatMul(f, w) z = ReduceMax(x, one) "
         "y = Mul(z, m)", "(Transpose|MatMul|Mul) node '.*'"),
    ],
)  # fmt: skip
def test_nodes_that_mix_images_are_named(out, body, message):
    text = f"g (float[1,3,4,5] x) => (float[{out}] y) <int64 axis = {{1}}, int64[1] one = {{1}}> {{ {body} }}"
    with pytest.raises(UserError, match=message):
        dynamic_batch(clean(text))
