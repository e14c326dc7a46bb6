"""From ONNX text to the clean graph: constants, no-ops, duplicates, names, and the runner's checks."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from graph_helpers import IO, conv_weight, feeds_of, ops, parse, run, simplified

from repedge import passes
from repedge.errors import RepedgeError, UserError
from repedge.graph.check import first_problem
from repedge.passes.base import run_passes, sweep
from repedge.passes.simplifier import run_onnxsim

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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert len(ops(simplified(f"{IO} {{ {body} }}"))) >= 2


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
    image = "float[1,3,4,6] x"
    with pytest.raises(UserError, match="'x' is FLOAT"):
        passes.simplify(parse("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }"))
    with pytest.raises(UserError, match="'z' is UINT16"):
        passes.simplify(
            parse(f"g ({image}, uint16[6] z) => (float[1,3,4,6] y) {{ f = CastLike(z, x)\n y = Add(x, f) }}")
        )
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


def test_what_onnxsim_prints_of_its_own_failures_is_not_passed_on(capfd):
    """It writes a traceback where a node of constants can't be computed, and leaves the node."""
    model = parse(
        IO + "<float[2,8] q = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}>{ p = GlobalAveragePool(q) y = Add(x, p) }"
    )
    run_onnxsim(model)
    assert capfd.readouterr().err == ""
