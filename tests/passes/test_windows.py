"""Pads, pools, slices and empty tensors that exporters write in many ways: one form, the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from graph_helpers import feeds_of, ops, parse, run, simplified
from torch import from_numpy
from torch.nn import functional as F

from repedge import passes
from repedge.graph.attrs import attr
from repedge.graph.values import shape_of


def net(out: str, body: str, **constants: list[int]) -> str:
    """A graph over x [1, 4, 6, 8] with int64 vectors."""
    lines = " ".join(f"{name} = Constant<value_ints={numbers}>()" for name, numbers in constants.items())
    return f"g (float[1,4,6,8] x) => (float[{out}] y) {{ {lines} {body} }}"


def test_a_dropout_told_not_to_train_goes():
    flag = "t = Constant<value=bool {0}>() r = Constant<value_float=0.5>()"
    assert ops(simplified(net("1,4,6,8", f"{flag} a, m = Dropout(x, r, t) y = Relu(a)"), atol=0)) == ["Relu"]


@pytest.mark.parametrize(
    ("out", "bounds", "expected"),
    [
        ("1,4,6,8", {"s": [-1], "e": [-100], "a": [3], "t": [-1]}, ["Gather"]),
        ("1,4,3,4", {"s": [-1, 5], "e": [-1000, 0], "a": [3, 2], "t": [-2, -2]}, ["Gather", "Gather"]),
        ("1,4,3,3", {"s": [-1, 1], "e": [-1000, 6], "a": [3, 2], "t": [-3, 2]}, ["Gather", "Slice"]),
        ("1,2,6,8", {"s": [99], "e": [1], "a": [-3], "t": [-1]}, ["Gather"]),
    ],
)
def test_backward_slices_are_gathers(out, bounds, expected):
    assert ops(simplified(net(out, "y = Slice(x, s, e, a, t)", **bounds), atol=0)) == expected


@pytest.mark.parametrize(
    ("channels", "expected"), [([3, 2, 0, 1], ["Conv"]), ([0, 1, 2, 2], ["Gather", "Conv"])]
)
def test_channels_in_another_order_are_weights_in_that_order(channels, expected):
    weight = np.random.default_rng(0).standard_normal((5, 4, 3, 3)).astype(np.float32)
    text = f"""g (float[1,4,6,8] x, float[5,4,3,3] w) => (float[1,5,4,6] y)
    {{ i = Constant<value_ints={channels}>() a = Gather<axis=1>(x, i) y = Conv(a, w) }}"""
    assert ops(simplified(text, {"w": weight}, atol=1e-5)) == expected


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize(
    ("out", "pads", "axes"),
    [
        ("1,4,5,10", [0, 0, -1, 3, 0, 0, 0, -1], [0, 1, 2, 3]),
        ("1,4,9,7", [1, -1, 2, 0], [-2, -1]),
        ("1,4,8,6", [-1, 1, -1, 1], [3, 2]),
    ],
)
def test_negative_pads_are_slices_and_axes_are_all(mode, out, pads, axes):
    body = f'v = Constant<value_float=0.5>() y = Pad<mode="{mode}">(x, p, v, a)'
    model = simplified(net(out, body, p=pads, a=axes), atol=0)
    assert ops(model) == ["Slice", "Pad"]
    pad = model.graph[1]
    assert len(pad.inputs) == 3
    assert shape_of(pad.inputs[1]) == (8,)


def test_wrapping_is_a_concatenation_of_both_ends():
    model = simplified(net("1,4,9,11", 'y = Pad<mode="wrap">(x, p, , a)', p=[1, 2, 2, 1], a=[-2, -1]), atol=0)
    assert set(ops(model)) == {"Slice", "Concat"}


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(3, 2, 1), (4, 3, 1), (2, 5, 1), (1, 5, 0), (2, 3, 0), (3, 4, 1), (5, 4, 2)]
)
def test_ceil_mode_is_end_padding_as_torch_defines_it(kernel, stride, pad, counted):
    """Among them windows that would begin in the padding: they are none, whatever ONNX infers."""
    options = f"kernel_shape={[kernel] * 2}, strides={[stride] * 2}, pads={[pad] * 4}, ceil_mode=1"
    for op in ("AveragePool", "MaxPool"):
        extra = f", count_include_pad={counted}" if op == "AveragePool" else ""
        pool = f"y = {op}<{options}{extra}>(x) z = Relu(y)"
        text = f'g (float[1,4,6,8] x) => (float["N","C","H","W"] z) {{ {pool} }}'
        model = parse(text)
        for value in model.graph.outputs:
            value.shape = None
        x = feeds_of(parse(text))["x"]
        passes.simplify(model)
        assert all(attr(n, "ceil_mode", 0) == 0 for n in model.graph)
        image = from_numpy(x)
        if op == "AveragePool":
            wanted = F.avg_pool2d(image, kernel, stride, pad, True, bool(counted)).relu()
        else:
            wanted = F.max_pool2d(image, kernel, stride, pad, 1, True).relu()
        assert shape_of(model.graph.outputs[0]) == tuple(wanted.shape)
        np.testing.assert_allclose(run(model, {"x": x})[0], wanted.numpy(), rtol=1e-6, atol=1e-6)


def test_weights_behind_dequantize_are_floats():
    q = np.arange(-12, 12, dtype=np.int8).reshape(6, 4, 1, 1)
    text = """g (float[1,4,6,8] x, int8[6,4,1,1] q, float[6] s) => (float[1,6,6,8] y)
    { w = DequantizeLinear<axis=0>(q, s) y = Conv(x, w) }"""
    scale = np.linspace(0.1, 0.2, 6, dtype=np.float32)
    model = parse(text, {"q": q, "s": scale})
    passes.simplify(model)
    assert ops(model) == ["Conv"]
    weight = model.graph[0].inputs[1].const_value.numpy()
    np.testing.assert_allclose(weight, q * scale.reshape(-1, 1, 1, 1), rtol=1e-6)


def test_what_has_no_elements_leaves_no_trace():
    split = "a, b = Split<axis=1>(x, s) c = Relu(a) d = Tanh(b) y = Concat<axis=1>(c, d)"
    assert ops(simplified(net("1,4,6,8", split, s=[0, 4]), atol=0)) == ["Tanh"]
    three = "a, b, c = Split<axis=1>(x, s) d = Relu(a) y = Concat<axis=1>(d, c, b)"
    assert ops(simplified(net("1,4,6,8", three, s=[1, 0, 3]), atol=0)) == ["Split", "Relu", "Concat"]
    cut = "a = Slice(x, s, e, ax) b = Relu(a) y = Concat<axis=1>(b, x)"
    model = simplified(
        net("1,4,6,8", f"{cut.replace('y =', 'c =')} y = Tanh(c)", s=[4], e=[9], ax=[1]), atol=0
    )
    assert ops(model) == ["Tanh"]


@pytest.mark.parametrize(
    ("places", "shape", "expected"),
    [
        ([[1], [2]], (2, 6, 8), {"Slice", "Concat"}),
        ([[0], [3]], (2, 6, 8), {"Slice", "Concat"}),
        ([[i, j] for i in range(4) for j in (0, 2, 4)], (12, 8), {"Gather"}),
        ([[3, 5], [-4, -6]], (2, 8), {"Slice", "Concat"}),
    ],
)
def test_assignments_to_slices_are_cut_and_joined(places, shape, expected):
    """Rows of the map without its batch; then the same with the batch named in every place."""
    updates = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for batch in ([], [0]):
        where = np.array([[*batch, *p] for p in places], np.int64)
        body = (
            "y = ScatterND(t, i, u)"
            if batch
            else "m = Reshape(t, s) z = ScatterND(m, i, u) y = Reshape(z, o)"
        )
        text = f"""g (float[1,4,6,8] x, int64[{where.shape[0]},{where.shape[1]}] i,
        float[{",".join(map(str, shape))}] u) => (float[1,4,6,8] y)
        {{ s = Constant<value_ints=[4,6,8]>() o = Constant<value_ints=[1,4,6,8]>() t = Tanh(x) {body} }}"""
        found = set(ops(simplified(text, {"i": where, "u": updates})))
        assert expected <= found <= {"Tanh", "Slice", "Concat", "Reshape", "Gather"}


def test_a_scatter_of_elements_at_constant_places():
    places = np.array([[[[5, 1, -1]]]], np.int64)
    text = """g (float[1,4,6,8] x, int64[1,1,1,3] i, float[1,1,1,3] u) => (float[1,4,6,8] y)
    { t = Tanh(x) y = ScatterElements<axis=3>(t, i, u) }"""
    updates = np.array([[[[7, 8, 9]]]], np.float32)
    assert "ScatterElements" not in ops(simplified(text, {"i": places, "u": updates}, atol=0))
