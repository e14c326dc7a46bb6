"""Every row of the table: the file computes what onnxruntime computes, with the operators expected."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_cases import B12, CASES, W3, i64, window
from tflite_helpers import (
    TOLERANCE,
    build,
    clean,
    job,
    op_names,
    reference,
    relative_error,
    run,
    weights,
)

from repedge.errors import UnsupportedModel
from repedge.targets.tflite.ops import LOWERINGS
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.target import TFLite


@pytest.mark.parametrize("name", CASES)
def test_lowering_agrees_with_onnxruntime(name, tmp_path):
    text, arrays, ops = CASES[name]
    model = clean(text, **arrays)
    x = weights(*model.graph.inputs[0].shape.numpy(), seed=9)
    path, _ = build(model, tmp_path)
    if ops is not None:
        assert op_names(path) == ops.split()
    assert relative_error(run(model, path, x), reference(model, x)) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_notes_name_what_the_delegate_leaves(name, tmp_path):
    text, arrays, _ = CASES[name]
    path, artifact = build(clean(text, **arrays), tmp_path)
    left = sorted(set(partitions(path).outside))
    notes = [f"{', '.join(left)} runs outside the XNNPACK delegate, which splits the graph"] if left else []
    assert list(artifact.notes) == notes


def test_every_row_of_the_table_has_a_case():
    lowered = {node.op_type for text, arrays, _ in CASES.values() for node in clean(text, **arrays).graph}
    assert lowered == set(LOWERINGS) - {"QuantizeLinear", "DequantizeLinear"}  # test_int8.py


@pytest.mark.parametrize(
    ("clamp", "bounds"), [("Relu (c)", {}), ("Clip (c, l, h)", {"l": np.float32(0), "h": np.float32(6)})]
)
def test_activations_fuse_into_the_operator_before(clamp, bounds, tmp_path):
    model = clean(
        f"g (float[1,6,9,9] x) => (float[1,12,9,9] y) {{ c = Conv<pads=[1,1,1,1]> (x, w, b) y = {clamp} }}",
        w=W3, b=B12, **bounds,
    )  # fmt: skip
    path, _ = build(model, tmp_path)
    x = 3 * weights(1, 6, 9, 9)
    assert op_names(path) == ["CONV_2D"]
    assert relative_error(run(model, path, x), reference(model, x)) < TOLERANCE


def test_activation_with_a_second_reader_stays_apart(tmp_path):
    model = clean(
        "g (float[1,6,9,9] x) => (float[1,12,9,9] y)"
        "{ c = Conv<pads=[1,1,1,1]> (x, w) r = Relu (c) y = Add (r, c) }",
        w=W3,
    )
    path, _ = build(model, tmp_path)
    x = weights(1, 6, 9, 9)
    assert op_names(path) == ["CONV_2D", "RELU", "ADD"]
    assert relative_error(run(model, path, x), reference(model, x)) < TOLERANCE


REFUSALS = {
    "no lowering": (window("Erf", "1,6,5,7", "1,6,5,7"), {}),
    "computed, not constant": (window("Conv", "1,6,3,3", "1,1,1,1", "x, x"), {}),
    "no dilated pooling": (window("MaxPool<kernel_shape=[2,2],dilations=[2,2]>", "1,6,5,7", "1,6,3,5"), {}),
    "last window that covers no cell": (
        window("MaxPool<kernel_shape=[1,1],strides=[3,3],ceil_mode=1>", "1,6,5,5", "1,6,3,3"),
        {},
    ),
    "only 2-D is supported": (window("Conv", "1,6,9", "1,4,7", "x, w"), {"w": weights(4, 6, 3)}),
    "no padding mode 'edge'": (
        window('Pad<mode="edge">', "1,6,5,7", "1,6,5,8", "x, p"),
        {"p": np.array([0, 0, 0, 0, 0, 0, 0, 1], i64)},
    ),
    "negative pads": (
        window("Pad", "1,6,5,7", "1,6,5,6", "x, p"),
        {"p": np.array([0, 0, 0, 0, 0, 0, 0, -1], i64)},
    ),
    "negative step": (
        window("Slice", "1,6,5,7", "1,6,5,7", "x, s, e, a, t"),
        {k: np.array([v], i64) for k, v in {"s": -1, "e": -99, "a": 3, "t": -1}.items()},
    ),
    "no cubic resize": (
        window('Resize<mode="cubic">', "1,6,5,7", "1,6,10,14", "x, , , s"),
        {"s": np.array([1, 6, 10, 14], i64)},
    ),
    "its alpha is 0.7; ELU has 1": (window("Elu<alpha=0.7>", "1,6,5,7", "1,6,5,7"), {}),
    "broadcast against each other": (
        "g (float[1,6,1,7] x) => (float[1,6,5,7] y) { y = Max (x, v, w) }",
        {"v": weights(5, 1), "w": weights(1, 6, 5, 7)},
    ),
    "transA is set": (
        "g (float[6,1] x) => (float[1,4] y) { y = Gemm<transA=1> (x, w) }",
        {"w": weights(6, 4)},
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_refusals_say_why(why, tmp_path):
    text, arrays = REFUSALS[why]
    model = clean(text, **arrays)
    (found,) = TFLite().unsupported(model)
    assert why in found.why
    with pytest.raises(UnsupportedModel, match=found.op):
        build(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_names_every_node(tmp_path):
    model = clean(
        "g (float[1,6] x) => (float[1,6] y) { [first] a = Erf (x) [fine] b = Tanh (a) [second] y = Sin (b) }"
    )
    model.graph[0].metadata_props["source"] = "stem.act"
    found = TFLite().unsupported(model)
    assert [(u.op, u.node, u.source) for u in found] == [("Erf", "first", "stem.act"), ("Sin", "second", "")]
    with pytest.raises(
        UnsupportedModel, match=r"2 of the model's operators: Erf node 'first' \(from stem\.act\)"
    ):
        TFLite().compile(model, job(), tmp_path)
