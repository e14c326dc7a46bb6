"""From raw pixels to outputs: the folded graph against normalising by hand, border pixels included."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.graph.check import check_clean
from repedge.passes.preprocess import fold_preprocess

SIZE = (7, 9)
IMAGENET = Preprocess(size=SIZE)
BGR = Preprocess(size=SIZE, color="BGR", mean=(0.1, 0.45, 0.7), std=(0.2, 0.3, 0.5))
GRAY = Preprocess(size=SIZE, color="GRAY", mean=(0.1307,), std=(0.3081,))
ZERO_MEAN = Preprocess(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 0.5, 0.25))


def build(text: str, **weights: np.ndarray) -> ir.Model:
    """A clean graph from ONNX text whose inputs other than the first become ``weights``."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.input[1:]
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    for i, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{i}"
    check_clean(model)
    return model


def run(model: ir.Model, image: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {model.graph.inputs[0].name: image})


def normalised(pixels: np.ndarray, pre: Preprocess) -> np.ndarray:
    """By hand in float64: RGB pixels [1, C, H, W] to what the network was trained on."""
    x = pixels[:, ::-1] if pre.color == "BGR" else pixels
    column = (1, -1, 1, 1)
    return (x / 255.0 - np.reshape(pre.mean, column)) / np.reshape(pre.std, column)


def convolved(x: np.ndarray, w: np.ndarray, b: np.ndarray, pad: int, group: int = 1) -> np.ndarray:
    """A float64 convolution, written out."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[0]
    split = np.split(windows, group)
    parts = [
        np.einsum("cyxhw,ochw->oyx", part, kernel)
        for part, kernel in zip(split, np.split(w.astype(np.float64), group), strict=True)
    ]
    return np.concatenate(parts)[None] + b.reshape(1, -1, 1, 1)


def pixels(pre: Preprocess, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, pre.channels, *SIZE)).astype(np.float64)


def conv_model(
    pre: Preprocess, pad: int, group: int = 1, name: str = "x"
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    c = pre.channels
    weights = {
        "w": rng.standard_normal((6, c // group, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(6).astype(np.float32),
    }
    h, w = SIZE[0] + 2 * pad - 2, SIZE[1] + 2 * pad - 2
    text = f"""g (float[1,{c},{SIZE[0]},{SIZE[1]}] {name}, float[6,{c // group},3,3] w, float[6] b)
    => (float[1,6,{h},{w}] y) {{ y = Conv<pads=[{pad},{pad},{pad},{pad}], group={group}>({name}, w, b) }}"""
    return build(text, **weights), weights


def assert_pixels_to_output(model: ir.Model, pre: Preprocess, expected: np.ndarray) -> ir.Model:
    folded = fold_preprocess(model, pre)
    check_clean(folded)
    onnx.checker.check_model(ir.serde.serialize_model(folded), full_check=True)
    assert [v.name for v in folded.graph.inputs] == ["image"]
    result = run(folded, pixels(pre).astype(np.float32))[0]
    # Only float32 rounding of sums of at most 28 products may differ.
    assert np.abs(result - expected).max() <= 3e-6 * np.abs(expected).max()
    return folded


@pytest.mark.parametrize("pre", [IMAGENET, BGR, GRAY, ZERO_MEAN], ids=["RGB", "BGR", "GRAY", "mean 0"])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_normalisation_goes_into_the_first_convolution(pre, pad):
    model, weights = conv_model(pre, pad)
    expected = convolved(normalised(pixels(pre), pre), weights["w"], weights["b"], pad)
    folded = assert_pixels_to_output(model, pre, expected)
    centered = pad > 0 and any(pre.mean)
    assert [n.op_type for n in folded.graph] == (["Sub", "Conv"] if centered else ["Conv"])
    if centered:
        shift = folded.graph[0].inputs[1].const_value.numpy()
        rgb_mean = pre.mean[::-1] if pre.color == "BGR" else pre.mean
        np.testing.assert_allclose(shift.reshape(-1), 255 * np.asarray(rgb_mean), rtol=1e-7)


@pytest.mark.parametrize("pre", [IMAGENET, BGR, ZERO_MEAN], ids=["RGB", "BGR", "mean 0"])
@pytest.mark.parametrize(("pad", "stride"), [(0, 1), (1, 1), (1, 2), (2, 3)])
def test_a_border_of_the_mean_pixel_leaves_the_pixels_as_they_are(pre, pad, stride):
    """What the convolution reads is the image itself and 255 mean, which need 256 integers, not 276."""
    model, _ = conv_model(pre, pad)
    if stride != 1:
        node = model.graph[0]
        node.attributes["strides"] = ir.AttrInt64s("strides", [stride, stride])
        out = node.outputs[0]
        out.shape = ir.Shape([1, 6, *((n + 2 * pad - 3) // stride + 1 for n in SIZE)])
    x = pixels(pre).astype(np.float32)
    expected = run(fold_preprocess(model, pre), x)[0]
    folded = fold_preprocess(model, pre, border=True)
    check_clean(folded)
    onnx.checker.check_model(ir.serde.serialize_model(folded), full_check=True)
    assert "Sub" not in [n.op_type for n in folded.graph]
    assert np.abs(run(folded, x)[0] - expected).max() <= 3e-6 * np.abs(expected).max()


def test_border_pixels_are_why_the_mean_is_not_folded_into_a_padded_convolution():
    model, weights = conv_model(IMAGENET, 1)
    exact = convolved(normalised(pixels(IMAGENET), IMAGENET), weights["w"], weights["b"], 1)
    # Padding with the pixel 0 instead of the mean, as a folded bias would:
    wrong = convolved(normalised(np.pad(pixels(IMAGENET), ((0, 0), (0, 0), (1, 1), (1, 1))), IMAGENET),
                      weights["w"], weights["b"], 0)  # fmt: skip
    result = run(fold_preprocess(model, IMAGENET), pixels(IMAGENET).astype(np.float32))[0]
    corner = np.s_[0, :, 0, 0]
    assert np.abs(wrong[corner] - exact[corner]).max() > 0.5
    assert np.abs(result[corner] - exact[corner]).max() < 2e-5


@pytest.mark.parametrize("pad", [0, 1])
def test_grouped_first_convolution(pad):
    model, weights = conv_model(IMAGENET, pad, group=3)
    expected = convolved(normalised(pixels(IMAGENET), IMAGENET), weights["w"], weights["b"], pad, group=3)
    folded = assert_pixels_to_output(model, IMAGENET, expected)
    assert [n.op_type for n in folded.graph] == (["Sub", "Conv"] if pad else ["Conv"])


def test_grouped_first_convolution_of_a_bgr_network_is_normalised_ahead():
    model, weights = conv_model(BGR, 1, group=3)
    expected = convolved(normalised(pixels(BGR), BGR), weights["w"], weights["b"], 1, group=3)
    folded = assert_pixels_to_output(model, BGR, expected)
    assert [n.op_type for n in folded.graph] == ["Conv", "Conv"]
    assert folded.graph[0].inputs[1].shape.numpy() == (3, 3, 1, 1)


@pytest.mark.parametrize("pre", [IMAGENET, BGR, GRAY, ZERO_MEAN], ids=["RGB", "BGR", "GRAY", "mean 0"])
def test_an_input_that_is_used_twice_is_normalised_ahead(pre):
    c = pre.channels
    weight = np.random.default_rng(8).standard_normal((c, c, 3, 3)).astype(np.float32)
    shape = f"float[1,{c},{SIZE[0]},{SIZE[1]}]"
    text = f"""g ({shape} x, float[{c},{c},3,3] w) => ({shape} y)
    {{ a = Conv<pads=[1,1,1,1]>(x, w) y = Add(a, x) }}"""
    z = normalised(pixels(pre), pre)
    expected = convolved(z, weight, np.zeros(c), 1) + z
    folded = assert_pixels_to_output(build(text, w=weight), pre, expected)
    ahead = {"RGB": ["Sub", "Mul"], "BGR": ["Conv"], "GRAY": ["Sub", "Mul"]}[pre.color]
    if pre is ZERO_MEAN:
        ahead = ["Mul"]
    assert [n.op_type for n in folded.graph] == [*ahead, "Conv", "Add"]


def test_a_network_that_does_not_start_with_a_convolution():
    text = f"g (float[1,3,{SIZE[0]},{SIZE[1]}] x) => (float[1,3,{SIZE[0]},{SIZE[1]}] y) {{ y = Tanh(x) }}"
    assert_pixels_to_output(build(text), IMAGENET, np.tanh(normalised(pixels(IMAGENET), IMAGENET)))


def test_a_convolution_without_bias_gets_one_only_if_there_is_something_to_add():
    weight = np.random.default_rng(9).standard_normal((4, 3, 3, 3)).astype(np.float32)
    text = "g (float[1,3,7,9] x, float[4,3,3,3] w) => (float[1,4,5,7] y) { y = Conv(x, w) }"
    for pre, inputs in [(IMAGENET, 3), (ZERO_MEAN, 2)]:
        expected = convolved(normalised(pixels(pre), pre), weight, np.zeros(4), 0)
        folded = assert_pixels_to_output(build(text, w=weight), pre, expected)
        assert len(folded.graph[0].inputs) == inputs


def test_the_original_is_untouched_and_other_weights_are_shared():
    rng = np.random.default_rng(10)
    w = rng.standard_normal((3, 3, 1, 1)).astype(np.float32)
    text = """g (float[1,3,7,9] x, float[3,3,1,1] w, float[3,3,1,1] v) => (float[1,3,7,9] y)
    { a = Conv(x, w) b = Conv(a, v) y = Conv(b, w) }"""
    model = build(text, w=w, v=w[::-1].copy())
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    folded = fold_preprocess(model, IMAGENET)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    ours, theirs = folded.graph.initializers, model.graph.initializers
    assert ours["v"].const_value is theirs["v"].const_value
    assert ours["w"].const_value is theirs["w"].const_value  # the last convolution still reads it
    assert folded.graph[0].inputs[1].name != "w"


@pytest.mark.parametrize("name", ["image", "pixels"])
def test_the_input_is_called_image_whatever_it_was_called(name):
    text = f"g (float[1,3,7,9] {name}) => (float[1,3,7,9] y) {{ t = Tanh({name}) y = Relu(t) }}"
    model = build(text.replace("t =", "image =").replace("(t)", "(image)") if name == "pixels" else text)
    folded = fold_preprocess(model, IMAGENET)
    names = [v.name for v in folded.graph.inputs] + [v.name for n in folded.graph for v in n.outputs]
    assert names[0] == "image"
    assert len(set(names)) == len(names)
    expected = np.maximum(np.tanh(normalised(pixels(IMAGENET), IMAGENET)), 0)
    np.testing.assert_allclose(run(folded, pixels(IMAGENET).astype(np.float32))[0], expected, atol=1e-6)


def test_what_does_not_fit_is_refused():
    model, _ = conv_model(IMAGENET, 1)
    with pytest.raises(UserError, match=r"\[1, 3, 7, 9\], but preprocessing to GRAY makes \[1, 1, 7, 9\]"):
        fold_preprocess(model, GRAY)
    with pytest.raises(UserError, match=r"makes \[1, 3, 224, 224\]; set --input-size"):
        fold_preprocess(model, Preprocess())
    with pytest.raises(UserError, match="mean has 1 values and std 3"):
        fold_preprocess(model, Preprocess(size=SIZE, mean=(0.5,)))
    named = build("g (float[1,3,7,9] x) => (float[1,3,7,9] image) { image = Relu(x) }")
    with pytest.raises(UserError, match="rename the output"):
        fold_preprocess(named, IMAGENET)


def test_a_graph_that_does_not_read_its_image_is_refused():
    """Such as one that is left where every value that is cut out lies in padding."""
    model = build(
        "g (float[1,3,7,9] x, float[1,4] w) => (float[1,4] y) { y = Softmax(w) }",
        w=np.ones((1, 4), np.float32),
    )
    with pytest.raises(UserError, match="nothing that the model gives depends on its image 'x'"):
        fold_preprocess(model, IMAGENET)
