"""A dynamic batch gives every image the result it has alone, or the node that would not is named."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from repedge import passes
from repedge.errors import UserError
from repedge.passes.batch import dynamic_batch, fixed_batch


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


FOLDED = {
    "shuffle with the batch folded into groups": (
        "a = Constant<value_ints=[3,2,20]>() b = Constant<value_ints=[1,6,4,5]>() r = Reshape(x, a) "
        "t = Transpose<perm=[1,0,2]>(r) y = Reshape(t, b)"
    ),
    "attention without a batch axis": (
        "a = Constant<value_ints=[3,2,20]>() q = Reshape(x, a) t = Transpose<perm=[0,2,1]>(q) "
        "m = MatMul(t, q) s = Softmax<axis=-1>(m) v = MatMul(q, s) b = Constant<value_ints=[1,6,4,5]>() "
        "y = Reshape(v, b)"
    ),
    "windows behind the batch": (
        "a = Constant<value_ints=[6,2,2,5]>() w = Reshape(x, a) p = Transpose<perm=[1,3,0,2]>(w) "
        "c = Constant<value_ints=[10,12]>() f = Reshape(p, c) g = Gemm<transB=1>(f, dense, bias) "
        "d = Constant<value_ints=[2,5,6,2]>() u = Reshape(g, d) o = Transpose<perm=[2,0,3,1]>(u) "
        "e = Constant<value_ints=[1,6,4,5]>() y = Reshape(o, e)"
    ),
    "maps for each group": (
        "a = Constant<value_ints=[3,2,4,5]>() r = Reshape(x, a) c = Conv<pads=[1,1,1,1]>(r, kernel) "
        "m = MaxPool<kernel_shape=[1,1]>(c) z = Add(m, per_group) b = Constant<value_ints=[1,6,4,5]>() "
        "y = Reshape(z, b)"
    ),
    "the batch moved behind": (
        "t = Transpose<perm=[1,0,2,3]>(x) s = Softmax<axis=0>(t) y = Transpose<perm=[1,0,2,3]>(s)"
    ),
    "a lower rank that broadcasts": (
        "z = Constant<value_ints=[0]>() r = ReduceMean<keepdims=0>(x, zero) u = Relu(r) y = Mul(x, u)"
    ),
    "all axes reduced": "r = ReduceMax(x) y = Sub(x, r)",
    "a constant joined to each": "y0 = Concat<axis=1>(x, token) y = Slice(y0, one, seven, one)",
    "parts of a folded axis": (
        "a = Constant<value_ints=[3,2,20]>() r = Reshape(x, a) l, m, k = Split<axis=0, num_outputs=3>(r) "
        "n = Concat<axis=0>(k, l, m) p = Gather<axis=0>(n, order) f = Slice(p, zero, two, zero) "
        "g = Pad(f, pads) b = Constant<value_ints=[1,6,4,5]>() y = Reshape(g, b)"
    ),
    "repeated and expanded": (
        "a = Constant<value_ints=[6,20]>() r = Reshape(x, a) t = Tile(r, twice) e = Expand(t, wide) "
        "q = ReduceSum<keepdims=0>(e, zero) h = ReduceSum(q, zero) v = Div(q, h) "
        "b = Constant<value_ints=[1,12,4,5]>() w = Reshape(v, b) y = Slice(w, zero, six, one)"
    ),
    "normalized without a batch axis": (
        "a = Constant<value_ints=[6,20]>() r = Reshape(x, a) n = LayerNormalization<axis=-1>(r, gain) "
        "t = Transpose(n) f = Flatten<axis=1>(t) b = Constant<value_ints=[1,6,4,5]>() y = Reshape(f, b)"
    ),
}
CONSTANTS = {
    "dense": weight(12, 12), "bias": weight(12), "kernel": weight(2, 2, 3, 3),
    "per_group": weight(3, 1, 1, 1),
    "token": weight(1, 1, 4, 5), "gain": weight(20), "order": np.array([2, 0, 1]), "zero": np.array([0]),
    "one": np.array([1]), "two": np.array([2]), "six": np.array([6]), "seven": np.array([7]),
    "pads": np.array([1, 0, 0, 0, 0, 0]), "twice": np.array([2, 1]), "wide": np.array([3, 12, 20]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_the_batch_axis_may_be_folded_moved_and_lost(name):
    """Each image of a batch gets what it gets alone, whatever becomes of the axis between."""
    body = FOLDED[name]
    read = {k: v for k, v in CONSTANTS.items() if re.search(rf"\b{k}\b", body)}
    kinds = {"f": "float", "i": "int64"}
    declared = ", ".join(f"{kinds[v.dtype.kind]}[{','.join(map(str, v.shape))}] {k}" for k, v in read.items())
    head = f"g (float[1,6,4,5] x{', ' if declared else ''}{declared}) => (float[1,6,4,5] y)"
    assert_batches(clean(f"{head} {{ {body} }}", **read))


@pytest.mark.parametrize(
    ("out", "body", "message"),
    [
        (
            "3,4,5",
            "s = Constant<value_ints=[3,4,5]>() y = Reshape(x, s)",
            "output 'y' is .*first axis",
        ),
        ("2,3,4,5", "y = Concat<axis=0>(x, x)", "output 'y' is .*first axis"),
        ("1,3,4,5", "y = Acosh(x)", "Acosh node '.*' is not known to keep the images"),
    ],
)
def test_what_needs_a_fixed_batch_is_named(out, body, message):
    text = f"g (float[1,3,4,5] x) => (float[{out}] y) {{ {body} }}"
    with pytest.raises(UserError, match=message):
        dynamic_batch(clean(text))


def test_a_fixed_number_of_images():
    model = clean("g (float[1,6,4,5] x) => (float[1,6,4,5] y) { y = Softmax<axis=1>(x) }")
    assert fixed_batch(model, 1).graph.outputs[0].shape == (1, 6, 4, 5)
    four = fixed_batch(model, 4)
    assert four.graph.inputs[0].shape == four.graph.outputs[0].shape == (4, 6, 4, 5)
