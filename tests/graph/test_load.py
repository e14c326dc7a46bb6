"""Reading ONNX files: what is brought into form, and what is refused in one clear sentence."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx.parser
import pytest

from repedge.errors import UnsupportedModel, UserError
from repedge.graph.load import from_proto, load_onnx, save_onnx, to_proto
from repedge.graph.run import Session
from repedge.graph.values import shape_of
from repedge.passes.preprocess import takes_pixels

W = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)


def model(
    body: str,
    inputs: str = "float[N,3,H,W] x",
    outputs: str = "float[N,K] y",
    opset: int | str = 20,
    **weights,
):
    """A model from ONNX text; ``weights`` become initializers."""
    imports = f'"" : {opset}' if isinstance(opset, int) else opset
    text = f"<ir_version: 8, opset_import: [{imports}]> g ({inputs}) => ({outputs}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    return proto


@pytest.fixture
def write(tmp_path):
    def write(proto, name="m.onnx", **options):
        path = tmp_path / name
        onnx.save(proto, str(path), **options)
        return path

    return write


NET = "c = Conv <pads=[1,1,1,1]> (x, w) r = Relu(c) p = GlobalAveragePool(r) y = Flatten(p)"


def net(**options):
    return model(NET, w=W, **options)


def test_dynamic_axes_become_static_and_every_value_gets_a_shape(write):
    loaded = load_onnx(write(net()), (33, 57))
    assert shape_of(loaded.graph.inputs[0]) == (1, 3, 33, 57)
    assert {v.name: shape_of(v) for n in loaded.graph for v in n.outputs} == {
        "c": (1, 16, 33, 57), "r": (1, 16, 33, 57), "p": (1, 16, 1, 1), "y": (1, 16),
    }  # fmt: skip
    assert all(node.name for node in loaded.graph)
    assert loaded.opset_imports == {"": 20}


def test_marks_of_passes_do_not_come_from_files(write):
    """A file that calls its input pixels would be compiled without the preprocessing."""
    proto = net()
    onnx.helper.set_model_props(proto, {"repedge.input": "pixels"})
    assert not takes_pixels(load_onnx(write(proto), input_size=(32, 32)))


def test_the_loaded_graph_computes_what_the_file_does(write):
    path = write(net())
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(
        Session(load_onnx(path, (16, 16)), 1).run(x)[0], np.concatenate([Session(path, 1).run(x)[0]])
    )


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20, 21, 22])
def test_every_opset_becomes_20(write, opset):
    path = write(net(opset=opset))
    loaded = load_onnx(path, (9, 9))
    assert loaded.opset_imports == {"": 20}
    x = np.random.default_rng(1).standard_normal((1, 3, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(Session(loaded, 1).run(x)[0], Session(path, 1).run(x)[0], rtol=1e-6, atol=1e-6)


def test_attributes_that_became_inputs_are_converted(write):
    body = "s = Squeeze <axes=[2,3]> (x) u = Unsqueeze <axes=[1]> (s) y = Clip <min=0.0, max=1.0> (u)"
    proto = model(body, "float[1,3,1,1] x", "float[1,1,3] y", opset=9)
    loaded = load_onnx(write(proto))
    x = np.array([-1, 0.5, 2], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(Session(loaded, 1).run(x)[0], [[[0, 0.5, 1]]])
    assert "Constant" not in {n.op_type for n in loaded.graph}


def test_an_opset_that_cannot_be_converted_is_named(write):
    proto = net()
    proto.opset_import[0].version = 999
    with pytest.raises(UserError, match="999"):
        load_onnx(write(proto), (8, 8))


def test_shape_arithmetic_of_a_dynamic_batch_is_followed(write):
    body = """s = Shape(x) i = Constant <value_int=0> () n = Gather(s, i)
              a = Constant <value_ints=[0]> () nu = Unsqueeze(n, a) m = Constant <value_ints=[-1]> ()
              shape = Concat <axis=0> (nu, m) y = Reshape(x, shape)"""
    loaded = load_onnx(write(model(body)), (4, 5))
    assert shape_of(loaded.graph.outputs[0]) == (1, 60)


def test_half_precision_becomes_float32(write):
    body = "c = Conv(x, w) h = Cast <to=10> (c) y = Relu(h)"
    proto = model(body, "float16[1,3,5,5] x", "float16[1,16,3,3] y", w=W.astype(np.float16))
    loaded = load_onnx(write(proto))
    assert {str(v.dtype) for n in loaded.graph for v in n.outputs} == {"FLOAT"}
    x = np.random.default_rng(1).standard_normal((1, 3, 5, 5)).astype(np.float32)
    y = Session(loaded, 1).run(x)[0]
    assert y.dtype == np.float32
    rounded = W.astype(np.float16).astype(np.float32)
    same = model("c = Conv(x, w) y = Relu(c)", "float[1,3,5,5] x", "float[1,16,3,3] y", w=rounded)
    np.testing.assert_allclose(y, Session(from_proto(same), 1).run(x)[0], rtol=1e-6, atol=1e-6)


def test_weights_declared_as_inputs_are_weights(write):
    proto = net()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, W.shape))
    assert [i.name for i in load_onnx(write(proto), (8, 8)).graph.inputs] == ["x"]


def test_external_data_is_read_from_beside_the_model(write):
    path = write(net(), save_as_external_data=True, location="w.bin", size_threshold=0)
    loaded = load_onnx(path, (8, 8))
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), W)
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(Session(loaded, 1).run(x)[0], Session(path, 1).run(x)[0])


def _external(write, location):
    path = write(net(), save_as_external_data=True, location="w.bin", size_threshold=0)
    proto = onnx.load(str(path), load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    return write(proto)


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "sub/../../w.bin", "..\\w.bin", ""])
def test_external_data_outside_the_folder_is_refused(write, location):
    with pytest.raises(UserError, match="outside its own folder"):
        load_onnx(_external(write, location), (8, 8))


def test_external_data_through_a_link_is_refused(write, tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.bin"
    path = write(net(), save_as_external_data=True, location="w.bin", size_threshold=0)
    os.rename(tmp_path / "w.bin", elsewhere)
    os.symlink(elsewhere, tmp_path / "w.bin")
    with pytest.raises(UserError, match="outside its own folder"):
        load_onnx(path, (8, 8))


def test_external_data_that_is_missing_or_short(write, tmp_path):
    path = write(net(), save_as_external_data=True, location="w.bin", size_threshold=0)
    os.truncate(tmp_path / "w.bin", 100)
    with pytest.raises(UserError, match="cut short"):
        load_onnx(path, (8, 8))
    os.remove(tmp_path / "w.bin")
    with pytest.raises(UserError, match="not beside it"):
        load_onnx(path, (8, 8))


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"not a model", lambda b: b""]
)
def test_damaged_files_give_one_sentence(tmp_path, damage):
    path = tmp_path / "bad.onnx"
    path.write_bytes(damage(net().SerializeToString()))
    with pytest.raises(UserError, match=r"bad\.onnx .*(not an ONNX file|not a valid ONNX model)") as caught:
        load_onnx(path, (8, 8))
    assert "\n" not in str(caught.value)


def test_a_weight_of_the_wrong_size_is_refused(write):
    proto = net()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    with pytest.raises(UserError, match="not an ONNX file, or is cut short: cannot reshape"):
        load_onnx(write(proto), (8, 8))


def test_a_weight_with_more_bytes_than_its_type_wants_is_refused(write):
    """The checker takes it; reading it would fail wherever it is first read."""
    proto = model(NET.replace("(x, w)", "(x, w, b)"), w=W, b=np.zeros(16, np.float32))
    proto.graph.initializer[1].data_type = onnx.TensorProto.UINT8
    with pytest.raises(UserError, match=r"'b' does not hold|not a valid ONNX model|can't be read|cut short"):
        load_onnx(write(proto), (8, 8))


@pytest.mark.parametrize("name", ["kernel_shape", "strides", "dilations"])
def test_windows_that_runtimes_abort_on_are_refused(write, name):
    proto = net()
    conv = proto.graph.node[0]
    conv.attribute.extend([onnx.helper.make_attribute(name, [2**31 - 1, 3])])
    with pytest.raises(UserError, match=rf"{name} of the Conv node .* is \[2147483647, 3\]"):
        load_onnx(write(proto), (8, 8))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_onnx(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="is not a file"):
        load_onnx(tmp_path)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model("y = Add(x, z)", "float[1,3,4,4] x, float[1,3,4,4] z", "float[1,3,4,4] y"), r"image \(x, z\)"),
        (model("y = Relu(x)", "float[1,3,4] x", "float[1,3,4] y"), "rank 3"),
        (model("y = Identity(x)", "int64[1,3,4,4] x", "int64[1,3,4,4] y"), "it must be float32"),
        (model("y = Relu(x)", "float[1,C,4,4] x", "float[1,C,4,4] y"), "channels .* not fixed"),
        (model("y = Relu(x)", "float[8,3,4,4] x", "float[8,3,4,4] y"), "batches of 8"),
        (model("y = Relu(x)", "float[1,3,H,W] x", "float[1,3,H,W] y"), "--input-size"),
        (model("y = Relux(x)", "float[1,3,4,4] x", "float[1,3,4,4] y"), "not a valid ONNX model.*Relux"),
        (model("y = MatMul(x, w)", "float[1,3,4,4] x", "float[1,3,4,2] y", w=W[0, 0]), "do not fit together"),
    ],
)  # fmt: skip
def test_graphs_that_are_no_image_network_are_refused(write, proto, message):
    with pytest.raises(UserError, match=message):
        load_onnx(write(proto))


def test_a_fixed_size_contradicts_another_input_size(write):
    proto = model("y = Relu(x)", "float[1,3,4,6] x", "float[1,3,4,6] y")
    assert shape_of(load_onnx(write(proto), (4, 6)).graph.inputs[0]) == (1, 3, 4, 6)
    with pytest.raises(UserError, match="fixed width of 6"):
        load_onnx(write(proto), (4, 8))


def test_foreign_operators_are_all_named_at_once(write):
    body = "a = my.Foo(x) b = my.Bar(a) y = Relu(b)"
    proto = model(body, "float[1,3,4,4] x", "float[1,3,4,4] y", opset='"" : 20, "my" : 1')
    with pytest.raises(UnsupportedModel, match=r"my\.Bar, my\.Foo"):
        load_onnx(write(proto))


def test_control_flow_is_refused(write):
    body = """c = Constant <value = bool {1}> ()
              y = If (c) <then_branch = t () => (float[1,3,4,4] a) { a = Relu(x) },
                          else_branch = e () => (float[1,3,4,4] b) { b = Abs(x) }>"""
    with pytest.raises(UnsupportedModel, match="If"):
        load_onnx(write(model(body, "float[1,3,4,4] x", "float[1,3,4,4] y")))


def test_the_models_own_functions_are_inlined(write):
    text = """<ir_version: 8, opset_import: ["" : 20, "local" : 1]>
        g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 20]> twice (a) => (b) { b = Add(a, a) }"""
    assert [n.op_type for n in load_onnx(write(onnx.parser.parse_model(text))).graph] == ["Add"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(write, bad):
    w = W.copy()
    w[0, 0, 0, :2] = bad
    with pytest.raises(UserError, match="'w' has 2 NaN or infinite values of 432"):
        load_onnx(write(model(NET, w=w)), (8, 8))


def test_a_mask_of_minus_infinity_is_no_broken_weight(write):
    mask = np.where(np.tri(6), 0, -np.inf).astype(np.float32)
    body = "s = Add(x, m) y = Softmax <axis=-1> (s)"
    path = write(model(body, "float[1,3,6,6] x", "float[1,3,6,6] y", m=mask))
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(Session(load_onnx(path), 1).run(x)[0], Session(path, 1).run(x)[0], atol=1e-7)


def test_saving_is_deterministic_valid_and_lossless(write, tmp_path):
    loaded = load_onnx(write(net()), (8, 8))
    for name in ("a.onnx", "b.onnx"):
        save_onnx(loaded, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)
    back = load_onnx(tmp_path / "a.onnx")
    np.testing.assert_array_equal(back.graph.initializers["w"].const_value.numpy(), W)
    stored = onnx.load(str(tmp_path / "a.onnx"))
    assert (stored.ir_version, stored.producer_name) == (10, "repedge")
    assert to_proto(back) == to_proto(loaded)


def test_a_model_can_replace_the_file_it_is_mapped_from(write):
    path = write(net())
    loaded = load_onnx(path, (8, 8))
    save_onnx(loaded, path)
    save_onnx(load_onnx(path), path)
    np.testing.assert_array_equal(loaded.graph.initializers["w"].const_value.numpy(), W)
    np.testing.assert_array_equal(load_onnx(path).graph.initializers["w"].const_value.numpy(), W)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_bfloat16_weights_survive_reading_and_saving(write, tmp_path):
    """A type that numpy lacks takes the way through protobuf."""
    w = onnx.helper.make_tensor("w", onnx.TensorProto.BFLOAT16, W.shape, W.reshape(-1))
    proto = model("f = Cast <to=1> (w) c = Conv(x, f) y = Relu(c)", "float[1,3,4,4] x", "float[1,16,2,2] y")
    proto.graph.initializer.append(w)
    save_onnx(load_onnx(write(proto)), tmp_path / "again.onnx")
    x = np.ones((1, 3, 4, 4), np.float32)
    y = Session(load_onnx(tmp_path / "again.onnx"), 1).run(x)[0]
    want = np.maximum(W.sum((1, 2, 3)), 0)[None, :, None, None]
    np.testing.assert_allclose(y, np.broadcast_to(want, (1, 16, 2, 2)), rtol=0, atol=0.1)


def test_a_model_too_large_for_one_file_keeps_its_weights_beside_it(write, tmp_path, monkeypatch):
    monkeypatch.setattr("repedge.graph.serde.PROTO_LIMIT", 500)
    loaded = load_onnx(write(net()), (8, 8))
    save_onnx(loaded, tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx.data").stat().st_size == W.nbytes
    assert (tmp_path / "big.onnx").stat().st_size < W.nbytes
    back = load_onnx(tmp_path / "big.onnx")
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(Session(back, 1).run(x)[0], Session(loaded, 1).run(x)[0])


def test_a_session_runs_any_batch_and_returns_any_value(write):
    loaded = load_onnx(write(net()), (8, 8))
    x = np.random.default_rng(2).standard_normal((3, 3, 8, 8)).astype(np.float32)
    session = Session(loaded, 1, optimize=False, outputs=["y", "c"])
    y, c = session.run(x)
    assert (y.shape, c.shape, session.outputs) == ((3, 16), (3, 16, 8, 8), ("y", "c"))
    np.testing.assert_allclose(np.maximum(c, 0).mean((2, 3)), y, rtol=1e-5, atol=1e-6)
    assert [o.name for o in loaded.graph.outputs] == ["y"]
    with pytest.raises(UserError, match="no value 'nope'"):
        Session(loaded, 1, outputs=["nope"])
    with pytest.raises(UserError, match=r"is \[1, 3, 8, 8\], not \[1, 3, 9, 8\]"):
        session.run(np.zeros((1, 3, 9, 8), np.float32))


def test_an_output_without_a_shape(tmp_path):
    """ONNX's checker wants one; ONNX Runtime and the tools that write such files do not."""
    text = (
        '<ir_version: 8, opset_import: ["" : 13]> g (float[1,3,4,6] x) => (float[1,3,4,6] y) { y = Relu(x) }'
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "net.onnx")
    loaded = load_onnx(tmp_path / "net.onnx")
    assert list(loaded.graph.outputs[0].shape or ()) == [1, 3, 4, 6]
