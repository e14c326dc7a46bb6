"""Networks that take more than an image, or an image in another layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from repedge import passes
from repedge.errors import UserError
from repedge.graph.inputs import Declared, Given, constant, samples, settle
from repedge.graph.run import Session
from repedge.models.source import resolve
from repedge.photos.tensors import Tensors, as_tensor, read_arrays

RNG = np.random.default_rng(3)
W = (RNG.standard_normal((5, 3, 3, 3)) * 0.3).astype(np.float32)


class Scaled(nn.Module):
    """An image and a vector, and an offset with a default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: float = 0.5) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) * scale + shift


class Looked(nn.Module):
    """A row of a table, chosen by an integer, beside the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.table = nn.Conv2d(3, 5, 3), nn.Embedding(7, 5)

    def forward(self, image: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mean((2, 3)) + self.table(row)


def pixels(count: int = 3, size: int = 12) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def graph_of(model, **options):
    source = resolve(model, input_size=12, **options)
    return source, source.graph()


# --- what is said of them ------------------------------------------------------------------------------


def test_a_stated_value_becomes_part_of_the_network() -> None:
    scale, x = np.linspace(0.5, 2, 5).astype(np.float32), pixels()
    module = Scaled().eval()
    _, graph = graph_of(module, input_value={"scale": scale, "shift": -1.0})
    assert [v.name for v in graph.graph.inputs] == ["input"]
    want = module(torch.from_numpy(x), torch.from_numpy(scale), -1.0).detach().numpy()
    np.testing.assert_allclose(Session(graph).run(x)[0], want, rtol=1e-5, atol=1e-6)


def test_sampled_inputs_stay_inputs_with_their_own_shapes_and_types() -> None:
    scales, x = RNG.standard_normal((2, 5)).astype(np.float32), pixels()
    module = Scaled().eval()
    source, graph = graph_of(module, inputs={"scale": scales})
    passes.clean(graph)
    found = [(v.name, v.dtype.name, list(v.shape)) for v in graph.graph.inputs]
    assert found == [("input", "FLOAT", [1, 3, 12, 12]), ("scale", "FLOAT", [5])]
    got = source.tensors.from_first(Session(graph).run)(x)[0]
    for i in range(3):  # photo 2 goes with the first sample again
        want = module(torch.from_numpy(x[i : i + 1]), torch.from_numpy(scales[i % 2])).detach().numpy()
        np.testing.assert_allclose(got[i : i + 1], want, rtol=1e-5, atol=1e-6)


def test_an_integer_input_is_exported_as_one() -> None:
    module, x = Looked().eval(), pixels()
    source, graph = graph_of(module, inputs={"row": np.array([[3], [6], [0]])})
    assert [v.dtype.name for v in graph.graph.inputs] == ["FLOAT", "INT64"]
    got = source.tensors.from_first(Session(graph).run)(x)[0]
    want = module(torch.from_numpy(x), torch.tensor([3, 6, 0])).detach().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_image_may_be_another_parameter() -> None:
    class Turned(Scaled):
        def forward(self, scale: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(photo, scale)

    x, module = pixels(1), Turned().eval()
    _, graph = graph_of(module, image_input="photo", input_value=["scale=2"])
    want = module(torch.tensor(2), torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(Session(graph).run(x)[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "takes 'scale' beside the image 'x'.*--input-value scale=VALUE"),
        ({"input_value": {"scal": 1}}, "no input 'scal'; did you mean 'scale'"),
        ({"input_value": ["scale"]}, "write NAME=VALUE"),
        ({"input_value": ["scale=many"]}, "write NAME=VALUE"),
        ({"input_value": {"scale": "many"}}, "not numbers"),
        ({"input_value": {"scale": [1.0, np.nan]}}, "NaN"),
        ({"input_value": {"scale": 1}, "inputs": {"scale": np.ones((2, 5))}}, "given twice"),
        ({"inputs": {"scale": np.ones((2, 5)), "shift": np.ones((3, 1))}}, "'scale' has 2 and another one 3"),
        ({"inputs": {"scale": np.ones((2, 4))}}, r"scale \[4\].*"),
        ({"inputs": {"scale": np.ones((0, 5))}}, "holds nothing"),
        ({"inputs": "absent.npz"}, "there is no file absent.npz"),
        ({"image_input": "picture"}, "no input 'picture'"),
    ],
)
def test_what_is_wrong_with_them_is_said_in_a_sentence(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        graph_of(Scaled(), **options)


def test_samples_come_from_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.arange(6.0).reshape(2, 3), b=np.array([True, False]))
    found = read_arrays(tmp_path / "two.npz")
    assert [found[k].dtype.name for k in ("a", "b")] == ["float32", "bool"]
    (tmp_path / "no.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:40])
    np.save(tmp_path / "one.npy", np.ones(3))
    np.savez(tmp_path / "pickle.npz", a=np.array([object()]))
    for name, words in (
        ("no.npz", "can't be read"),
        ("one.npy", "one array"),
        ("pickle.npz", "can't be read"),
    ):
        with pytest.raises(UserError, match=words):
            read_arrays(tmp_path / name)


def test_samples_go_with_the_photos_in_turn() -> None:
    tensors = Tensors({"a": np.arange(3)[:, None], "b": np.array([[7]])})
    assert tensors.at(2, 3)["a"].ravel().tolist() == [2, 0, 1]
    seen: list = []

    def note(x: np.ndarray, t: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen.append((len(x), t["a"].ravel().tolist()))
        return []

    run = tensors.along(note)
    for _ in range(2):
        run(np.zeros(2))
    assert seen == [(2, [0, 1]), (2, [2, 0])]
    assert Tensors().along(np.sum) is np.sum


@pytest.mark.parametrize(
    ("dims", "shape", "want"),
    [
        ((1, 16), (5, 16), (5, 1, 16)),  # the batch axis counts samples
        ((0, 16), (5, 16), (5, 1, 16)),
        ((1, 16), (5, 1, 16), (5, 1, 16)),
        ((1, 16), (1, 16), (1, 1, 16)),
        ((3, 3), (3, 3), (1, 3, 3)),  # one matrix
        ((3, 3), (5, 3, 3), (5, 3, 3)),
        ((), (), (1,)),
        ((), (4,), (4,)),
        (None, (4, 2), (4, 2)),
    ],
)
def test_which_axis_counts_samples(dims, shape, want) -> None:
    assert samples(Declared("a", "float32", dims), np.zeros(shape, np.float32)).shape == want


def test_values_in_the_shape_and_type_of_their_input() -> None:
    assert constant(Declared("a", "float32", (1, 3)), as_tensor(2, "a")).tolist() == [[2, 2, 2]]
    assert constant(Declared("a", "int32", (3,)), as_tensor([1.0, 2.0, 3.0], "a")).dtype == np.int32
    for dtype, value, words in (("float32", [1, 2], "does not fit"), ("int64", 0.5, "not whole")):
        with pytest.raises(UserError, match=words):
            constant(Declared("a", dtype, (1, 3)), as_tensor(value, "a"))


@pytest.mark.parametrize(
    ("inputs", "image"),
    [
        ([("k", "float32", (1, 3, 3)), ("photo", "float32", (0, 3, 0, 0))], "photo"),
        ([("mask", "float32", (1, 7, 9, 9)), ("photo", "uint8", (1, 9, 9, 3))], "photo"),
        ([("ids", "int64", (1, 3, 9, 9)), ("photo", "float16", (1, 1, 9, 9))], "photo"),
    ],
)
def test_the_image_is_told_by_what_it_is(inputs: list, image: str) -> None:
    other = next(name for name, *_ in inputs if name != image)
    dims = next(d for name, _, d in inputs if name == other)
    given = Given(samples={other: np.zeros((2, *dims), np.float32)})
    every = [Declared(*i) for i in inputs]
    assert settle(every, given, "net").image == image
    with pytest.raises(UserError, match=f"takes '{other}' beside the image '{image}'"):
        settle(every, Given(), "net")


# --- files ---------------------------------------------------------------------------------------------


def file(
    path: Path, dims, dtype=TensorProto.FLOAT, last: bool = True, beside: bool = False, opset: int = 13
) -> Path:
    """A convolution of an image, the first thing in the file its Transpose; ``beside`` it, another reader."""
    nodes, image = [], "x"
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["x"], ["x_float"], to=TensorProto.FLOAT))
        image = "x_float"
    if last:
        nodes.append(helper.make_node("Transpose", [image], ["t"], perm=[0, 3, 1, 2]))
    nodes.append(helper.make_node("Conv", ["t" if last else image, "w"], ["c"], strides=[2, 2]))
    outputs = [helper.make_tensor_value_info("c", TensorProto.FLOAT, list("abcd"))]
    if beside:
        nodes.append(helper.make_node("Softmax", [image], ["s"], axis=3))
        outputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, list("efgh")))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, dims)],
        outputs,
        [numpy_helper.from_array(W, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), path)
    return path


DIMS = {"fixed": (1, 12, 16, 3), "open": ("N", "H", "W", 3), "negative": (-1, -1, -1, 3)}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_channels_last_is_taken_and_its_transpose_goes(tmp_path: Path, dims: str, beside: bool) -> None:
    path = file(tmp_path / "net.onnx", DIMS[dims], beside=beside)
    source = resolve(str(path), input_size=None if dims == "fixed" else "12x16")
    assert source.input_shape == (1, 3, 12, 16)
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 16)).astype(np.float32)
    session = ort.InferenceSession(str(path))
    rows = [session.run(None, {"x": x[i : i + 1].transpose(0, 2, 3, 1)}) for i in range(2)]
    want = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
    for got in (
        Session(source.graph()).run(x),
        Session(path, form=source.form).run(x),
    ):
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)
    graph = source.graph()
    passes.clean(graph)
    assert [n.op_type for n in graph.graph].count("Transpose") == beside
    if dims != "fixed":
        with pytest.raises(UserError, match="--input-size"):
            resolve(str(path))


@pytest.mark.parametrize("last", [False, True])
def test_a_file_of_pixels_takes_them_as_they_are(tmp_path: Path, last: bool) -> None:
    path = file(tmp_path / "net.onnx", (1, 12, 16, 3) if last else (1, 3, 12, 16), TensorProto.UINT8, last)
    source = resolve(str(path))
    assert source.preprocess.mean == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(source.preprocess.std, 1 / 255)
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 12, 16), np.uint8)
    want = ort.InferenceSession(str(path)).run(None, {"x": x.transpose(0, 2, 3, 1) if last else x})[0]
    for session in (Session(source.graph()), Session(path, form=source.form)):
        np.testing.assert_allclose(session.run(x.astype(np.float32))[0], want, rtol=1e-5, atol=1e-3)


def test_open_channels_are_those_of_the_first_filters(tmp_path: Path) -> None:
    path = file(tmp_path / "net.onnx", ("N", "C", "H", "W"), last=False)
    source = resolve(str(path), input_size=12)
    assert source.input_shape == (1, 3, 12, 12)
    assert Session(source.graph()).run(pixels())[0].shape == (3, 5, 5, 5)


def test_a_file_of_several_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["photo", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node("Gather", ["m", "pick"], ["y"], axis=1),
    ]
    inputs = [
        helper.make_tensor_value_info("pick", TensorProto.INT64, (2,)),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, ("batch", 5)),
        helper.make_tensor_value_info("photo", TensorProto.FLOAT, ("batch", 3, 12, 12)),
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("ab"))],
        [numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    scales, x = RNG.standard_normal((3, 5)).astype(np.float32), pixels()
    source = resolve(str(path), inputs={"scale": scales}, input_value={"pick": [4, 1]})
    model = source.graph()
    assert [v.name for v in model.graph.inputs] == ["photo", "scale"]
    session = ort.InferenceSession(str(path))
    feeds = [{"photo": x[i : i + 1], "scale": scales[i : i + 1]} for i in range(3)]
    want = np.concatenate([session.run(None, {**f, "pick": np.array([4, 1])})[0] for f in feeds])
    for run in (Session(model).run, Session(path, form=source.form).run):
        np.testing.assert_allclose(source.tensors.from_first(run)(x)[0], want, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="takes 'scale' beside the image"):
        Session(model).run(x)
