"""Networks that fold the batch away: dynamic where that can be, else one image at a time, and said."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from target_graphs import IMAGE, batch, clean, graph, reference, sqnr_db

from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import calibrate
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.targets.base import Job
from repedge.targets.gpu.target import GPU

TARGET = GPU()
SHUFFLE = (
    "c = Conv<pads=[1,1,1,1]>(x, w3, b6)\na = Constant<value_ints=[3,2,357]>()\nr = Reshape(c, a)\n"
    "t = Transpose<perm=[1,0,2]>(r)\nb = Constant<value_ints=[1,6,17,21]>()\ny = Reshape(t, b)"
)
"""A channel shuffle whose groups are the first axis."""

ATTENTION = (
    "c = Conv<pads=[1,1,1,1], strides=[4,4]>(x, w3, b6)\na = Constant<value_ints=[3,2,30]>()\n"
    "f = Reshape(c, a)\nq, k, v = Split<axis=0, num_outputs=3>(f)\nt = Transpose<perm=[0,2,1]>(q)\n"
    "m = MatMul(t, k)\ns = Softmax<axis=-1>(m)\nu = Transpose<perm=[0,2,1]>(s)\no = MatMul(v, u)\n"
    "b = Constant<value_ints=[1,2,5,6]>()\ny = Reshape(o, b)"
)
GRAM = (
    "p = GlobalAveragePool(x)\nf = Flatten(p)\ng = Gemm<transA=1>(f, f)\n"
    "b = Constant<value_ints=[1,9]>()\ny = Reshape(g, b)"
)
"""A product of the image with itself, in the operator that has no axis of images."""


def compiled(model, out, precision, **options):
    job = Job("net", precision, Preprocess(size=IMAGE[2:]), "float32", options=options)
    artifact = TARGET.compile(model, job, out)
    return artifact, TARGET.open(out / artifact.main, job, ["y"], threads=1)


def constants(proto):
    """Constant nodes as initializers, as the passes leave them."""
    from repedge import passes

    model = clean(proto)
    passes.simplify(model)
    return model


@pytest.mark.parametrize("body", [SHUFFLE, ATTENTION], ids=["shuffle", "attention"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_folded_away(body, precision, tmp_path):
    proto, x = graph(body, IMAGE), batch(5, IMAGE)
    artifact, runner = compiled(constants(proto), tmp_path, precision)
    assert artifact.inputs[0].shape[0] == artifact.outputs[0].shape[0] == -1
    assert artifact.notes == ()
    (found,) = runner.run(x)
    assert sqnr_db(found, reference(proto, x)) > (50 if precision == "fp16" else 110)
    for rounded in runner.others(x).values():
        assert sqnr_db(rounded[0], reference(proto, x)) > 50


@pytest.mark.parametrize("form", ["tensorrt", "ort"])
@pytest.mark.parametrize("body", [SHUFFLE, ATTENTION], ids=["shuffle", "attention"])
def test_folded_away_in_integers(body, form, tmp_path):
    proto, x = graph(body, IMAGE), batch(8, IMAGE)
    model = constants(proto)
    rounded, plan = calibrate(model, [x], TARGET.scheme("w8a8", {"form": form}), "fast")
    artifact, runner = compiled(to_qdq(rounded, plan), tmp_path, "w8a8", form=form)
    assert artifact.inputs[0].shape[0] == -1
    assert sqnr_db(runner.run(x)[0], reference(proto, x)) > 20


def test_one_image_at_a_time(tmp_path):
    proto, x = graph(GRAM, IMAGE), batch(5, IMAGE)
    artifact, runner = compiled(constants(proto), tmp_path, "fp32")
    assert artifact.inputs[0].shape == IMAGE
    (note,) = artifact.notes
    assert note.startswith("the file takes one image at a time: the batch size can't be made dynamic: Gemm")
    written = onnx.load(tmp_path / artifact.main)
    assert [d.dim_value for d in written.graph.input[0].type.tensor_type.shape.dim] == list(IMAGE)
    np.testing.assert_allclose(runner.run(x)[0], reference(proto, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"Gemm node .* without --batch the file takes one image"):
        compiled(constants(proto), tmp_path / "four", "fp32", batch=4)


def test_a_fixed_batch(tmp_path):
    """The last images are fewer: the rest of the batch is filled."""
    proto, x = graph(SHUFFLE, IMAGE), batch(7, IMAGE)
    artifact, runner = compiled(constants(proto), tmp_path, "fp32", batch=4)
    assert artifact.inputs[0].shape == (4, *IMAGE[1:])
    assert artifact.outputs[0].shape[0] == 4
    assert sqnr_db(runner.run(x)[0], reference(proto, x)) > 110
