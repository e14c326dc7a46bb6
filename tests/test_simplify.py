"""From ONNX text to the clean graph: what is rewritten, what stays, and that the numbers stay too."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from repedge import passes
from repedge.errors import RepedgeError, UserError
from repedge.graph.check import check_clean, first_problem
from repedge.passes.base import run_passes, sweep

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parse(text: str, weights: dict[str, np.ndarray] | None = None, opset: int = 20) -> ir.Model:
    """A model from ONNX text; ``weights`` become initializers (they need no declaration in the text)."""
    model = ir.serde.deserialize_model(onnx.parser.parse_model(HEAD.replace("20", str(opset)) + text))
    graph = model.graph
    for name, array in (weights or {}).items():
        value = next((v for node in graph for v in node.inputs if v is not None and v.name == name), None)
        declared = next((v for v in graph.inputs if v.name == name), None)
        if declared is not None:
            graph.inputs.remove(declared)
            value = declared
        assert value is not None, f"nothing reads {name}"
        value.const_value = ir.tensor(array, name=name)
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)
        graph.register_initializer(value)
    return model


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime without its own optimizations."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.serde.serialize_model(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def feeds_of(model: ir.Model, seed: int = 0, scale: float = 3.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        v.name: (scale * rng.standard_normal(v.shape.numpy())).astype(np.float32) for v in model.graph.inputs
    }


def simplified(text: str, weights: dict[str, np.ndarray] | None = None, atol: float = 2e-6) -> ir.Model:
    """The clean graph of the text, after holding its outputs against the original's."""
    model = parse(text, weights)
    feeds = feeds_of(parse(text, weights))
    before = run(model, feeds)
    passes.simplify(model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    for a, b in zip(before, run(model, feeds), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-6, atol=atol)
    return model


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


IO = "g (float[1,3,4,6] x) => (float[1,3,4,6] y)"


def floats(**constants: float) -> str:
    return "<" + ", ".join(f"float {k} = {{{v!r}}}" for k, v in constants.items()) + ">"


# --- activations -------------------------------------------------------------------------------

GELU = {
    "div, half last": "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "mul, half first": "a = Mul(x, ir2) b = Erf(a) c = Add(one, b) d = Mul(half, x) y = Mul(d, c)",
    "half on the erf": "a = Mul(ir2, x) b = Erf(a) c = Add(b, one) d = Mul(c, half) y = Mul(d, x)",
    "half, distributed": "a = Mul(ir2, x) b = Erf(a) c = Mul(b, half) d = Add(half, c) y = Mul(x, d)",
    "div by two": "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Div(d, two)",
    "sum of products": "a = Div(x, r2) b = Erf(a) c = Mul(x, half) d = Mul(c, b) y = Add(d, c)",
}
GELU_CONSTANTS = floats(r2=2**0.5, ir2=2**-0.5, one=1.0, half=0.5, two=2.0, near=1.4, k=0.3)


@pytest.mark.parametrize("body", GELU.values(), ids=GELU)
def test_gelu_in_every_order_is_one_gelu(body):
    model = simplified(f"{IO} {GELU_CONSTANTS} {{ {body} }}", atol=3e-6)
    assert ops(model) == ["Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, near) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
        "a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, k)",
        "a = Div(x, r2) b = Erf(a) c = Sub(one, b) d = Mul(x, c) y = Mul(d, half)",
        "z = Relu(x) a = Div(x, r2) b = Erf(a) c = Add(b, one) d = Mul(z, c) y = Mul(d, half)",
    ],
    ids=["1.4 instead of sqrt 2", "0.3 instead of 0.5", "1 - erf", "times another tensor"],
)
def test_near_misses_of_gelu_stay(body):
    model = simplified(f"{IO} {GELU_CONSTANTS} {{ {body} }}")
    assert "Erf" in ops(model)
    assert "Gelu" not in ops(model)


TANH_GELU = {
    "pow": "p = Pow(x, three) q = Mul(p, c3) s = Add(x, q) u = Mul(s, k) t = Tanh(u) "
    "w = Add(t, one) h = Mul(x, half) y = Mul(h, w)",
    "products": "p = Mul(x, x) q = Mul(x, p) s0 = Mul(c3, q) s = Add(s0, x) u = Mul(k, s) t = Tanh(u) "
    "w = Add(one, t) h = Mul(w, half) y = Mul(h, x)",
    "factored": "p = Mul(x, x) q = Mul(p, c3) s = Add(q, one) v = Mul(s, x) u = Mul(v, k) t = Tanh(u) "
    "w = Add(one, t) h = Mul(w, x) y = Mul(half, h)",
}


@pytest.mark.parametrize("body", TANH_GELU.values(), ids=TANH_GELU)
def test_tanh_gelu_is_one_gelu(body):
    constants = floats(three=3.0, c3=0.044715, k=0.7978845608028654, one=1.0, half=0.5)
    model = simplified(f"{IO} {constants} {{ {body} }}", atol=3e-6)
    assert ops(model) == ["Gelu"]
    assert model.graph[0].attributes.get_string("approximate") == "tanh"


def test_tanh_gelu_with_another_cubic_stays():
    constants = floats(three=3.0, c3=0.0447, k=0.7978845608028654, one=1.0, half=0.5)
    assert "Tanh" in ops(simplified(f"{IO} {constants} {{ {TANH_GELU['pow']} }}"))


HARD_SWISH = {
    "relu6, divided last": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
    "relu6 divided": "a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)",
    "multiplied": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, sixth) y = Mul(x, c)",
    "x divided": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, sixth) y = Mul(c, b)",
    "HardSigmoid": "a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, a)",
    "0 to 1": "a = Div(x, six) b = Add(a, half) c = Clip(b, zero, one) y = Mul(c, x)",
    "Min of Relu": "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(x, b) y = Mul(c, sixth)",
}
HARD = floats(three=3.0, zero=0.0, six=6.0, sixth=1 / 6, half=0.5, one=1.0, five=5.0, two=2.0)


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
def test_hard_swish_in_every_order_is_one_hard_swish(body):
    assert ops(simplified(f"{IO} {HARD} {{ {body} }}")) == ["HardSwish"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, two) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, five) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, five)",
        "a = HardSigmoid(x) y = Mul(x, a)",
        "z = Tanh(x) a = HardSigmoid<alpha=0.16666667>(z) y = Mul(x, a)",
    ],
    ids=["x + 2", "clipped at 5", "over 5", "alpha 0.2", "of another tensor"],
)
def test_near_misses_of_hard_swish_stay(body):
    assert not {"HardSwish"} & set(ops(simplified(f"{IO} {HARD} {{ {body} }}")))


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)",
        "a = Mul(x, sixth) b = Add(a, half) y = Clip(b, zero, one)",
    ],
)
def test_hard_sigmoid(body):
    model = simplified(f"{IO} {HARD} {{ {body} }}")
    assert ops(model) == ["HardSigmoid"]
    assert model.graph[0].attributes.get_float("alpha") == pytest.approx(1 / 6, rel=1e-6)


def test_squeeze_excite_gate_by_hard_swish_keeps_the_gate():
    body = (
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) d = Div(c, six) g = Sigmoid(x) y = Mul(d, g)"
    )
    assert sorted(ops(simplified(f"{IO} {HARD} {{ {body} }}"))) == ["HardSwish", "Mul", "Sigmoid"]


def test_silu_stays_as_it_is():
    assert ops(simplified(f"{IO} {{ a = Sigmoid(x) y = Mul(a, x) }}")) == ["Sigmoid", "Mul"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Clip(x, zero)", ["Relu"]),
        ("y = Clip(x, zero, big)", ["Relu"]),
        ("y = Clip(x, zero, six)", ["Clip"]),
        ("a = Relu(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Clip(a, low, six)", ["Clip"]),
        ("a = Clip(x, low, six) y = Relu(a)", ["Clip"]),
        ("a = Max(x, zero) y = Min(six, a)", ["Clip"]),
        ("y = Max(x, zero)", ["Relu"]),
        ("a = Clip(x, low, big) b = Clip(a, nbig) y = Sigmoid(b)", ["Clip", "Sigmoid"]),
        ("a = Clip(x, nbig, big) y = Sigmoid(a)", ["Sigmoid"]),
    ],
)
def test_clips_are_unified(body, expected):
    constants = floats(zero=0.0, six=6.0, low=-1.0, big=3.4028235e38, nbig=-3.4028235e38)
    assert ops(simplified(f"{IO} {constants} {{ {body} }}")) == expected


def test_clip_bounds_that_are_computed_stay():
    body = "m = ReduceMax<keepdims=0>(x) y = Clip(x, zero, m)"
    assert "Clip" in ops(simplified(f"{IO} {floats(zero=0.0)} {{ {body} }}"))


# --- constants and shapes ----------------------------------------------------------------------


def test_reshape_by_shape_arithmetic_is_a_flatten_and_needs_no_onnxsim():
    body = """s = Shape(x) i = Constant<value_int=0>() n = Gather<axis=0>(s, i)
    ax = Constant<value_ints=[0]>() u = Unsqueeze(n, ax) m = Constant<value_ints=[-1]>()
    t = Concat<axis=0>(u, m) y = Reshape(x, t)"""
    model = parse(f"g (float[1,3,4,6] x) => (float[1,72] y) {{ {body} }}")
    counts = passes.simplify(model)
    assert counts["fold_constants"] > 0
    assert counts["run_onnxsim"] == 0
    assert ops(model) == ["Flatten"]
    assert not model.graph.initializers


def test_an_if_of_a_constant_is_resolved_by_onnxsim_and_big_weights_survive():
    weight = np.random.default_rng(1).standard_normal((8, 3, 5, 5)).astype(np.float32)
    text = """g (float[1,3,8,8] x, float[8,3,5,5] w) => (float[1,8,4,4] y) <bool c = {1}> {
      a = Conv(x, w)
      y = If(c)<then_branch = t () => (o1) { o1 = Relu(a) }, else_branch = e () => (o2) { o2 = Neg(a) }>
    }"""
    model = parse(text, {"w": weight})
    model.graph[0].metadata_props["source"] = "stem.conv"
    feeds = feeds_of(model)
    before = run(model, feeds)
    counts = passes.simplify(model)
    assert counts["run_onnxsim"] > 0
    assert ops(model) == ["Conv", "Relu"]
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), weight)
    assert model.graph[0].metadata_props["source"] == "stem.conv"
    np.testing.assert_array_equal(run(model, feeds)[0], before[0])


def test_an_if_of_the_input_is_refused_by_name():
    text = """g (float[1,1,2,2] x) => (float[1,1,2,2] y) {
      m = ReduceMax<keepdims=0>(x) z = Constant<value_float=0.0>() c = Greater(m, z)
      y = If(c)<then_branch = t () => (o1) { o1 = Relu(x) }, else_branch = e () => (o2) { o2 = Neg(x) }>
    }"""
    with pytest.raises(UserError, match="If node .* could not be simplified away"):
        passes.simplify(parse(text))


def test_weights_computed_from_constants_are_folded():
    rng = np.random.default_rng(2)
    weights = {"v": rng.standard_normal((3, 3, 40, 1)).astype(np.float32)}
    text = """g (float[1,3,50,6] x, float[3,3,40,1] v) => (float[1,3,11,6] y) {
      sq = Mul(v, v) ax = Constant<value_ints=[1,2,3]>() n = ReduceSum(sq, ax) r = Sqrt(n) w = Div(v, r)
      y = Conv(x, w)
    }"""
    assert ops(simplified(text, weights)) == ["Conv"]


def test_random_nodes_are_not_folded():
    text = f"{IO} {{ r = RandomNormal<shape=[1,3,4,6], seed=1.0>() y = Add(x, r) }}"
    model = parse(text)
    passes.simplify(model)
    assert sorted(ops(model)) == ["Add", "RandomNormal"]


def test_functions_are_inlined():
    text = (
        '<ir_version: 10, opset_import: ["" : 20, "l" : 1]>\n'
        + IO
        + " { y = l.twice(x) }\n"
        + '<domain: "l", opset_import: ["" : 20]> twice (a) => (b) { c = Relu(a) b = Tanh(c) }'
    )
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    passes.simplify(model)
    assert ops(model) == ["Relu", "Tanh"]


def test_weights_declared_as_inputs_are_no_inputs():
    weight = np.ones((3, 3, 1, 1), np.float32)
    model = parse(
        "g (float[1,3,4,6] x, float[3,3,1,1] w) => (float[1,3,4,6] y) { y = Conv(x, w) }", {"w": weight}
    )
    model.graph.inputs.append(model.graph.initializers["w"])
    passes.simplify(model)
    assert [v.name for v in model.graph.inputs] == ["x"]


# --- no-ops ------------------------------------------------------------------------------------

NOOPS = [
    "a = Identity(x) y = Relu(a)",
    "a = Dropout(x) y = Relu(a)",
    "a, mask = Dropout(x) y = Relu(a)",
    "a = Cast<to=1>(x) y = Relu(a)",
    "p = Constant<value_ints=[0,0,0,0,0,0,0,0]>() a = Pad(x, p) y = Relu(a)",
    "s = Constant<value_ints=[1,3,4,6]>() a = Reshape(x, s) y = Relu(a)",
    "a = Transpose<perm=[0,1,2,3]>(x) y = Relu(a)",
    "a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,3,1,2]>(a) y = Relu(b)",
    "z = Constant<value_float=0.0>() a = Add(z, x) y = Relu(a)",
    "z = Constant<value_float=1.0>() a = Div(x, z) y = Relu(a)",
    "s = Constant<value_ints=[0]>() e = Constant<value_ints=[99]>() a = Slice(x, s, e) y = Relu(a)",
    "a = MaxPool<kernel_shape=[1,1]>(x) y = Relu(a)",
    "a = Concat<axis=1>(x) y = Relu(a)",
    "r = Constant<value_floats=[1.0,1.0,1.0,1.0]>() a = Resize(x, , r) y = Relu(a)",
    "s = Constant<value_ints=[1,1,1,1]>() a = Expand(x, s) y = Relu(a)",
    "ax = Constant<value_ints=[1]>() a = Unsqueeze(x, ax) b = Squeeze(a, ax) y = Relu(b)",
]


@pytest.mark.parametrize("body", NOOPS)
def test_noops_go(body):
    model = simplified(f"{IO} {{ {body} }}", atol=0)
    assert ops(model) == ["Relu"]
    assert not model.graph.initializers
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    "body",
    [
        "z = Constant<value_float=1.0>() a = Div(z, x) y = Tanh(a)",
        "z = Constant<value_float=0.0>() a = Sub(z, x) y = Relu(a)",
        "p = Constant<value_ints=[0,0,1,0,0,0,-1,0]>() a = Pad(x, p) y = Relu(a)",
        'r = Constant<value_floats=[1.0,1.0,1.1,1.1]>() a = Resize<mode="linear">(x, , r) y = Relu(a)',
    ],
    ids=["1 / x", "0 - x", "a shift", "a scale that rounds to the same size"],
)
def test_near_noops_stay(body):
    assert len(ops(simplified(f"{IO} {{ {body} }}"))) == 2


def test_adding_a_full_tensor_of_zeros_keeps_the_other_side():
    zeros = np.zeros((1, 3, 4, 6), np.float32)
    model = simplified(
        "g (float[1,3,4,6] x, float[1,3,4,6] z) => (float[1,3,4,6] y) { a = Add(z, x) y = Relu(a) }",
        {"z": zeros},
    )
    assert ops(model) == ["Relu"]


def test_an_identity_between_input_and_output_stays_because_names_do():
    model = simplified(
        "g (float[1,3,4,6] x) => (float[1,3,4,6] y, float[1,3,4,6] z) { y = Identity(x) z = Relu(x) }"
    )
    assert sorted(ops(model)) == ["Identity", "Relu"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]


@pytest.mark.parametrize(
    "body",
    ["t = Constant<value=bool {1}>() r = Constant<value_float=0.5>() y, m = Dropout(x, r, t)", "BN"],
)
def test_training_mode_is_refused(body):
    constants = "<float[3] s = {1.0,1.0,1.0}, float[3] b = {0.0,0.0,0.0}>"
    if body == "BN":
        body = "y, m, v = BatchNormalization<training_mode=1>(x, s, b, b, s)"
    with pytest.raises(UserError, match=r"training mode; call model.eval\(\)"):
        passes.simplify(parse(f"{IO} {constants} {{ {body} }}"))


# --- reshapes, transposes, splits --------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,72", "s = Constant<value_ints=[1,-1]>() y = Reshape(x, s)", ["Flatten"]),
        ("1,72", "y = Flatten<axis=-3>(x)", ["Flatten"]),
        ("1,3,24", "s = Constant<value_ints=[1,3,-1]>() y = Reshape(x, s)", ["Reshape"]),
        ("1,6,12", "s = Constant<value_ints=[1,3,-1]>() a = Reshape(x, s) "
         "t = Constant<value_ints=[0,6,12]>() y = Reshape(a, t)", ["Reshape"]),
        ("1,3,1,24", "s = Constant<value_ints=[0,0,-1]>() a = Reshape(x, s) t = Constant<value_ints=[-2]>() "
         "y = Unsqueeze(a, t)", ["Reshape"]),
        ("1,6,3,4", "a = Transpose<perm=[0,3,2,1]>(x) y = Transpose<perm=[0,1,3,2]>(a)", ["Transpose"]),
        ("6,4,3,1", "y = Transpose(x)", ["Transpose"]),
    ],
)  # fmt: skip
def test_reshapes_and_transposes_are_unified(out, body, expected):
    model = simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}", atol=0)
    assert ops(model) == expected
    if expected == ["Reshape"]:
        assert model.graph[0].inputs[1].const_value.numpy()[0] == 0
    if expected == ["Transpose"]:
        assert "perm" in model.graph[0].attributes


def test_moving_axes_of_length_one_is_a_flatten():
    body = "p = GlobalAveragePool(x) t = Transpose<perm=[0,2,3,1]>(p) "
    body += "s = Constant<value_ints=[1,-1]>() y = Reshape(t, s)"
    model = simplified(f"g (float[1,3,4,6] x) => (float[1,3] y) {{ {body} }}", atol=0)
    assert ops(model) == ["GlobalAveragePool", "Flatten"]


def test_a_channel_shuffle_stays_three_nodes():
    body = """s = Constant<value_ints=[1,2,2,4,6]>() a = Reshape(x, s) b = Transpose<perm=[0,2,1,3,4]>(a)
    t = Constant<value_ints=[1,-1,4,6]>() y = Reshape(b, t)"""
    model = simplified(f"g (float[1,4,4,6] x) => (float[1,4,4,6] y) {{ {body} }}", atol=0)
    assert ops(model) == ["Reshape", "Transpose", "Reshape"]
    for node in (model.graph[0], model.graph[2]):
        assert node.inputs[1].const_value.numpy()[0] == 0


@pytest.mark.parametrize("how", ["<axis=-3, num_outputs=2>(x)", "<axis=1>(x, s)"])
def test_split_sizes_are_an_initializer(how):
    text = "g (float[1,4,4,6] x) => (float[1,2,4,6] y) <int64[2] s = {2,2}>"
    text += f"{{ a, b = Split{how} y = Sub(a, b) }}"
    model = simplified(text, atol=0)
    split = model.graph[0]
    assert split.inputs[1].const_value.numpy().tolist() == [2, 2]
    assert split.attributes.get_int("axis") == 1
    assert "num_outputs" not in split.attributes


def test_slices_are_spelled_out():
    body = """s = Constant<value_ints=[-2]>() e = Constant<value_ints=[9223372036854775807]>()
    ax = Constant<value_ints=[-1]>() y = Slice(x, s, e, ax)"""
    model = simplified(f"g (float[1,3,4,6] x) => (float[1,3,4,2] y) {{ {body} }}", atol=0)
    assert [v.const_value.numpy().tolist() for v in model.graph[0].inputs[1:]] == [[4], [6], [3], [1]]


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,4,6", "i = Constant<value_int=-1>() y = Gather<axis=1>(x, i)", ["Slice", "Reshape"]),
        ("1,2,4,6", "i = Constant<value_ints=[0,2]>() y = Gather<axis=1>(x, i)", ["Slice"]),
        ("1,3,4,6", "i = Constant<value_ints=[2,1,0]>() y = Gather<axis=1>(x, i)", ["Gather"]),
        ("1,3,4,3", "i = Constant<value_ints=[0,1,3]>() y = Gather<axis=3>(x, i)", ["Gather"]),
    ],
)
def test_gathers_at_even_steps_are_slices(out, body, expected):
    assert ops(simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}", atol=0)) == expected


# --- pooling and padding -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "body", "expected"),
    [
        ("1,3,1,1", "ax = Constant<value_ints=[2,3]>() y = ReduceMean(x, ax)", ["GlobalAveragePool"]),
        ("1,3,1,1", "ax = Constant<value_ints=[-1,-2]>() y = ReduceMean(x, ax)", ["GlobalAveragePool"]),
        ("1,3", "ax = Constant<value_ints=[3,2]>() y = ReduceMean<keepdims=0>(x, ax)",
         ["GlobalAveragePool", "Flatten"]),
        ("1,3", "a3 = Constant<value_ints=[3]>() a2 = Constant<value_ints=[2]>() "
         "a = ReduceMean<keepdims=0>(x, a3) y = ReduceMean<keepdims=0>(a, a2)",
         ["GlobalAveragePool", "Flatten"]),
        ("1,3,1,1", "a3 = Constant<value_ints=[3]>() a2 = Constant<value_ints=[2]>() a = ReduceMean(x, a2) "
         "y = ReduceMean(a, a3)", ["GlobalAveragePool"]),
        ("1,3", "s = Constant<value_ints=[1,3,24]>() a = Reshape(x, s) a2 = Constant<value_ints=[2]>() "
         "y = ReduceMean<keepdims=0>(a, a2)", ["GlobalAveragePool", "Flatten"]),
        ("1,3,1,1", "y = AveragePool<kernel_shape=[4,6]>(x)", ["GlobalAveragePool"]),
        ("1,3", "p = GlobalAveragePool(x) ax = Constant<value_ints=[2,3]>() y = Squeeze(p, ax)",
         ["GlobalAveragePool", "Flatten"]),
        # near misses
        ("1,1,1,6", "ax = Constant<value_ints=[1,2]>() y = ReduceMean(x, ax)", ["ReduceMean"]),
        ("1,1,1,1", "y = ReduceMean(x)", ["ReduceMean"]),
        ("1,3,1,2", "y = AveragePool<kernel_shape=[4,5]>(x)", ["AveragePool"]),
        ("1,3,1,1", "y = AveragePool<kernel_shape=[4,6], pads=[1,0,0,0], strides=[2,1]>(x)", ["AveragePool"]),
        ("1,3,1,1", "ax = Constant<value_ints=[2,3]>() y = ReduceMax(x, ax)", ["ReduceMax"]),
    ],
)  # fmt: skip
def test_global_average_pools(out, body, expected):
    assert ops(simplified(f"g (float[1,3,4,6] x) => (float[{out}] y) {{ {body} }}")) == expected


PADDED = (
    "g (float[1,3,5,7] x) => (float[1,3,{h},{w}] y) <int64[8] p = {{0,0,1,2,0,0,0,1}}, float z = {{{fill}}}>"
)


def conv_weight(k: int = 3) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, 3, k, k)).astype(np.float32)


def test_zero_pad_goes_into_the_convolution():
    head = "g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,6,10] y) <int64[8] p = {0,0,1,2,0,0,0,1}>"
    model = simplified(
        f"{head} {{ a = Pad(x, p) y = Conv<pads=[1,1,1,1]>(a, w) }}", {"w": conv_weight()}, atol=1e-5
    )
    assert ops(model) == ["Conv"]
    assert tuple(model.graph[0].attributes.get_ints("pads")) == (2, 3, 1, 2)


@pytest.mark.parametrize(
    ("pad", "conv"),
    [
        ("Pad(x, p, one)", "Conv(a, w)"),
        ('Pad<mode="reflect">(x, p)', "Conv(a, w)"),
        ("Pad(x, q)", "Conv(a, w)"),
    ],
    ids=["ones", "reflect", "crop"],
)
def test_other_pads_stay_ahead_of_a_convolution(pad, conv):
    consts = "<int64[8] p = {0,0,1,2,0,0,0,1}, int64[8] q = {0,0,1,-1,0,0,0,1}, float one = {1.0}>"
    width = 5 if "q" in pad else 8
    head = f"g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,4,{width}] y) {consts}"
    assert ops(simplified(f"{head} {{ a = {pad} y = {conv} }}", {"w": conv_weight()}, atol=1e-5)) == [
        "Pad",
        "Conv",
    ]


def test_a_pad_that_something_else_reads_stays():
    head = "g (float[1,3,5,7] x, float[3,3,3,3] w) => (float[1,3,4,8] y, float[1,3,6,10] z)"
    text = f"{head} <int64[8] p = {{0,0,1,2,0,0,0,1}}> {{ a = Pad(x, p) y = Conv(a, w) z = Relu(a) }}"
    assert "Pad" in ops(simplified(text, {"w": conv_weight()}, atol=1e-5))


@pytest.mark.parametrize(
    ("fill", "pool", "expected"),
    [
        ("0.0", "AveragePool<kernel_shape=[3,3]>(a)", ["AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[3,3], pads=[1,0,1,0], count_include_pad=1>(a)", ["AveragePool"]),
        ("-3.4028235e38", "MaxPool<kernel_shape=[3,3]>(a)", ["MaxPool"]),
        # near misses
        ("0.0", "AveragePool<kernel_shape=[3,3], pads=[1,0,1,0]>(a)", ["Pad", "AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[2,2]>(a)", ["Pad", "AveragePool"]),
        ("0.0", "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(a)", ["Pad", "AveragePool"]),
        ("0.0", "MaxPool<kernel_shape=[3,3]>(a)", ["Pad", "MaxPool"]),
    ],
)
def test_pads_ahead_of_pools(fill, pool, expected):
    text = f"g (float[1,3,5,7] x) => (y) <int64[8] p = {{0,0,1,2,0,0,0,1}}, float z = {{{fill}}}> "
    text += f"{{ a = Pad(x, p, z) y0 = {pool} y = Tanh(y0) }}"
    model = parse(text)
    from repedge.passes.simplifier import infer_shapes

    out = model.graph.outputs[0]
    infer_shapes(model)
    assert out.shape.is_static()
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert ops(model) == [*expected, "Tanh"]
    np.testing.assert_allclose(run(model, feeds)[0], before[0], atol=1e-6)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize("size", [5, 8])
def test_auto_pad_becomes_numbers(mode, size):
    head = f"g (float[1,3,{size},{size}] x, float[3,3,3,3] w) => (y)"
    text = f'{head} {{ c = Conv<auto_pad="{mode}", strides=[2,2]>(x, w) y = Relu(c) }}'
    model = parse(text, {"w": conv_weight()})
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert "auto_pad" not in model.graph[0].attributes
    np.testing.assert_allclose(run(model, feeds)[0], before[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("how", ["output_shape=[10,9]", "output_shape=[9,10], dilations=[2,1]"])
def test_output_shape_of_a_transposed_convolution_becomes_pads(how):
    text = "g (float[1,3,5,5] x, float[3,3,3,3] w) => (y) "
    text += f"{{ c = ConvTranspose<strides=[2,2], {how}>(x, w) y = Relu(c) }}"
    model = parse(text, {"w": conv_weight()})
    feeds = feeds_of(model)
    before = run(model, feeds)
    passes.simplify(model)
    assert "output_shape" not in model.graph[0].attributes
    np.testing.assert_allclose(run(model, feeds)[0], before[0], rtol=1e-6, atol=1e-5)


# --- dense layers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(f, w) y = Add(m, b)",
        "m = MatMul(f, w) y = Add(b, m)",
        "y = Gemm(f, w, b)",
        "y = Gemm<alpha=0.5, beta=2.0>(f, w, b)",
    ],
)
def test_dense_layers_have_one_form(body):
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.standard_normal((12, 5)).astype(np.float32),
        "b": rng.standard_normal(5).astype(np.float32),
    }
    text = f"g (float[1,3,2,2] x, float[12,5] w, float[5] b) => (float[1,5] y) {{ f = Flatten(x) {body} }}"
    model = simplified(text, weights, atol=1e-5)
    assert ops(model) == ["Flatten", "Gemm"]
    gemm = model.graph[1]
    assert {k: a.value for k, a in gemm.attributes.items()} == {"transB": 1}
    assert [v.shape.numpy() for v in gemm.inputs[1:]] == [(5, 12), (5,)]


def test_a_product_of_two_activations_stays_matmul():
    body = "f = Flatten(x) t = Transpose<perm=[1,0]>(f) y = MatMul(f, t)"
    model = simplified(f"g (float[1,3,2,2] x) => (float[1,1] y) {{ {body} }}", atol=1e-4)
    assert "MatMul" in ops(model)


# --- duplicates, dead code, names, the runner --------------------------------------------------


def test_duplicates_are_computed_once():
    weights = {n: conv_weight(1) for n in ("w1", "w2")}
    text = """g (float[1,3,4,6] x, float[3,3,1,1] w1, float[3,3,1,1] w2) => (float[1,3,4,6] y)
    { a = Conv(x, w1) b = Conv(x, w2) c = Relu(a) d = Relu(b) y = Mul(c, d) }"""
    model = simplified(text, weights)
    assert ops(model) == ["Conv", "Relu", "Mul"]
    assert len(model.graph.initializers) == 1


def test_different_weights_and_attributes_are_no_duplicates():
    weights = {
        "w1": conv_weight(1),
        "w2": conv_weight(1) + np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1) * 1e-6,
    }
    text = """g (float[1,3,4,6] x, float[3,3,1,1] w1, float[3,3,1,1] w2) => (float[1,3,4,6] y)
    { a = Conv(x, w1) b = Conv(x, w2) c = LeakyRelu<alpha=0.1>(a) d = LeakyRelu<alpha=0.2>(b)
      y = Mul(c, d) }"""
    assert len(ops(simplified(text, weights))) == 5


def test_dead_nodes_outputs_and_weights_go():
    text = """g (float[1,3,4,6] x) => (float[1,3,2,3] y) <float[3] unused = {1.0,2.0,3.0}>
    { y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) d = Tanh(x) e = Sigmoid(d) }"""
    model = simplified(text, atol=0)
    assert ops(model) == ["MaxPool"]
    assert len(model.graph[0].outputs) == 1
    assert not model.graph.initializers


def test_names_are_unique_and_stable():
    body = "a = Relu(x) b = Tanh(a) c = Tanh(x) y = Add(b, c)"
    names = []
    for _ in range(2):
        model = parse(f"{IO} {{ {body} }}")
        model.graph[1].name = model.graph[2].name = "same"
        passes.simplify(model)
        names.append([n.name for n in model.graph])
    assert names[0] == names[1]
    assert len(set(names[0])) == 4
    assert all(names[0])


def test_simplifying_twice_changes_nothing():
    weights = {"w": conv_weight(), "m": np.ones((3, 2), np.float32)}
    text = """g (float[1,3,5,7] x, float[3,3,3,3] w, float[3,2] m) => (float[1,2] y)
    <int64[8] p = {0,0,1,2,0,0,0,1}>
    { a = Pad(x, p) c = Conv(a, w) ax = Constant<value_ints=[2,3]>() e = ReduceMean<keepdims=0>(c, ax)
      y = MatMul(e, m) }"""
    model = simplified(text, weights, atol=1e-5)
    again = passes.simplify(model)
    assert not any(again.values()), again


def test_a_dynamic_input_is_refused():
    with pytest.raises(UserError, match="--input-size"):
        passes.simplify(parse('g (float["N",3,4,6] x) => (float["N",3,4,6] y) { y = Relu(x) }'))


def test_what_targets_cannot_read_is_named():
    with pytest.raises(UserError, match="2 inputs"):
        passes.simplify(parse("g (float[1,3] x, float[1,3] z) => (float[1,3] y) { y = Add(x, z) }"))
    with pytest.raises(UserError, match="operator set 18"):
        passes.simplify(parse(f"{IO} {{ y = Relu(x) }}", opset=18))


def test_the_runner_names_the_pass_that_breaks_the_graph():
    def forgets_the_shape(model: ir.Model) -> int:
        model.graph[0].outputs[0].shape = None
        return 1

    def renames_the_output(model: ir.Model) -> int:
        model.graph.outputs[0].name = "z"
        return 0

    def never_rests(model: ir.Model) -> int:
        return 1

    for broken, message in [
        (forgets_the_shape, "the pass forgets_the_shape broke the graph: the shape of 'a'"),
        (renames_the_output, "a pass that reported no change broke the graph: inputs and outputs"),
        (never_rests, "never_rests still change the graph after"),
    ]:
        model = parse(f"{IO} {{ a = Relu(x) y = Tanh(a) }}")
        model.graph[0].outputs[0].shape = ir.Shape([1, 3, 4, 6])
        model.graph[0].outputs[0].dtype = ir.DataType.FLOAT
        with pytest.raises(RepedgeError, match=message):
            run_passes(model, [broken])


def test_the_invariants_are_seen():
    model = parse(f"{IO} {{ a = Relu(x) y = Tanh(a) }}")
    sweep(model)
    assert "shape of 'a'" in (first_problem(model) or "") or "element type of 'a'" in (
        first_problem(model) or ""
    )
    assert first_problem(model, static=False) is None
    relu = model.graph[0]
    model.graph.remove(relu)
    model.graph.append(relu)
    assert "reads 'a' before anything computes it" in (first_problem(model, static=False) or "")
    model = parse(f"{IO} <float[1] c = {{1.0}}> {{ y = Tanh(x) }}")
    assert "nothing reads the initializer 'c'" in (first_problem(model, static=False) or "")


def test_activations_are_found_before_fusing_could_take_them_apart():
    """The 0.5 that ends a GELU must not be folded into the next convolution: the order in CANONICALIZE."""
    text = f"""g (float[1,3,4,6] x, float[3,3,1,1] w) => (float[1,3,4,6] y) {GELU_CONSTANTS}
    {{ {GELU["div, half last"].replace("y =", "g =")} y = Conv(g, w) }}"""
    model = parse(text, {"w": conv_weight(1)})
    passes.canonicalize(model)
    assert ops(model) == ["Gelu", "Conv"]
    passes.simplify(model)
    check_clean(model)
