"""What a file holds for each operator, and what is refused; numbers: tests/targets/test_operators.py."""

from __future__ import annotations

import numpy as np
import pytest
from op_table import CASES
from operators import operators_of, reference, relative_error, weights
from tflite_emitted import EMITTED, WHOLE
from tflite_helpers import TOLERANCE, W3, build, clean, job, op_names, run, window

from repedge.errors import UnsupportedModel
from repedge.targets.tflite.ops import LOWERINGS
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.target import TFLite


@pytest.mark.parametrize("name", [*EMITTED, *WHOLE])
def test_what_a_lowering_emits(name, tmp_path):
    """The operators, and a note that names those which the delegate leaves."""
    path, artifact = build(CASES[name].model(), tmp_path)
    if (ops := {**EMITTED, **WHOLE}[name]) is not None:
        assert op_names(path) == ops.split()
    left = sorted(set(partitions(path).outside))
    notes = [f"{', '.join(left)} runs outside the XNNPACK delegate, which splits the graph"] if left else []
    assert list(artifact.notes) == notes


def test_every_row_of_the_table_has_a_case():
    assert LOWERINGS.keys() - operators_of(CASES, "tflite") == {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize(
    ("clamp", "bounds"), [("Relu (c)", {}), ("Clip (c, l, h)", {"l": np.float32(0), "h": np.float32(6)})]
)
def test_activations_fuse_into_the_operator_before(clamp, bounds, tmp_path):
    model = clean(
        f"g (float[1,6,9,9] x) => (float[1,12,9,9] y) {{ c = Conv<pads=[1,1,1,1]> (x, w, b) y = {clamp} }}",
        w=W3, b=weights(12), **bounds,
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
    "no lowering": (window("Acosh", "1,6,5,7", "1,6,5,7"), {}),
    "computed, not constant": (window("Conv", "1,6,3,3", "1,1,1,1", "x, x"), {}),
    "no dilated pooling": (window("MaxPool<kernel_shape=[2,2],dilations=[2,2]>", "1,6,5,7", "1,6,3,5"), {}),
    "last window that covers no cell": (
        window("MaxPool<kernel_shape=[1,1],strides=[3,3],ceil_mode=1>", "1,6,5,5", "1,6,3,3"),
        {},
    ),
    "only 2-D is supported": (window("Conv", "1,6,9", "1,4,7", "x, w"), {"w": weights(4, 6, 3)}),
    "no padding mode 'edge'": (
        window('Pad<mode="edge">', "1,6,5,7", "1,6,5,8", "x, p"),
        {"p": np.array([0, 0, 0, 0, 0, 0, 0, 1])},
    ),
    "negative pads": (
        window("Pad", "1,6,5,7", "1,6,5,6", "x, p"),
        {"p": np.array([0, 0, 0, 0, 0, 0, 0, -1])},
    ),
    "negative step": (
        window("Slice", "1,6,5,7", "1,6,5,7", "x, s, e, a, t"),
        {k: np.array([v]) for k, v in {"s": -1, "e": -99, "a": 3, "t": -1}.items()},
    ),
    "only height and width of a map": (
        window('Resize<mode="cubic">', "1,6,5,7", "1,3,10,14", "x, , , s"),
        {"s": np.array([1, 3, 10, 14])},
    ),
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
        "g (float[1,6] x) => (float[1,6] y)"
        "{ [first] a = Acosh (x) [fine] b = Tanh (a) [second] y = Sinh (b) }"
    )
    model.graph[0].metadata_props["source"] = "stem.act"
    found = TFLite().unsupported(model)
    assert [(u.op, u.node, u.source) for u in found] == [
        ("Acosh", "first", "stem.act"),
        ("Sinh", "second", ""),
    ]
    with pytest.raises(
        UnsupportedModel, match=r"2 of the model's operators: Acosh node 'first' \(from stem\.act\)"
    ):
        TFLite().compile(model, job(), tmp_path)
