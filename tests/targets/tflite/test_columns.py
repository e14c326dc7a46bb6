"""Integer convolutions of images over groups of columns: the same integers, from fewer taps."""

from __future__ import annotations

import numpy as np
import pytest
from operators import weights
from tflite_helpers import build, clean, op_names, run
from tflite_qdq import batch, quantize, reference, units

from repedge.config import Preprocess
from repedge.passes.preprocess import fold_preprocess
from repedge.targets.tflite.integers import columns
from repedge.targets.tflite.runner import partitions
from repedge.targets.tflite.writer import schema

CASES = {
    # name: (attributes, input, weight, filter in the file, paddings in the file)
    "3x3 at stride 2": ("pads=[1,1,1,1],strides=[2,2]", (3, 64, 80), (24, 3, 3, 3), (48, 3, 2, 12), 1),
    "border given": ("strides=[2,2]", (3, 65, 65), (24, 3, 3, 3), (48, 3, 2, 12), 1),
    "nothing to pad": ("strides=[2,2]", (3, 65, 64), (8, 3, 3, 4), (8, 3, 2, 6), 0),
    "too many outputs": ("pads=[1,1,1,1],strides=[2,2]", (3, 64, 64), (40, 3, 3, 3), (40, 3, 2, 6), 1),
    "odd output": ("pads=[1,1,1,1],strides=[2,2]", (3, 66, 66), (8, 3, 3, 3), (8, 3, 2, 6), 1),
    "stride 1": ("pads=[1,1,1,1]", (3, 64, 64), (16, 3, 3, 3), (32, 3, 2, 6), 1),
    "patches": ("strides=[4,4]", (3, 64, 64), (20, 3, 4, 4), (40, 4, 1, 24), 0),
    "7x7 at stride 2": ("pads=[3,3,3,3],strides=[2,2]", (3, 64, 64), (32, 3, 7, 7), (64, 7, 3, 12), 1),
    "one channel, uneven": ("pads=[0,2,1,0],strides=[1,2]", (1, 64, 65), (4, 1, 3, 5), (8, 3, 2, 4), 1),
    "fourth channel": ("pads=[0,0,1,1],strides=[2,2]", (4, 64, 64), (16, 4, 3, 3), (32, 3, 2, 16), 1),
}

LEFT = {
    "small image": ("pads=[1,1,1,1],strides=[2,2]", (3, 32, 32), (24, 3, 3, 3)),
    "many channels": ("pads=[1,1,1,1],strides=[2,2]", (6, 64, 64), (8, 6, 3, 3)),
    "pixels by themselves": ("strides=[2,2]", (3, 64, 64), (8, 3, 1, 1)),
    "columns that no window reaches": ("strides=[2,2]", (3, 65, 65), (8, 3, 2, 2)),
    "dilated": ("pads=[2,2,2,2],dilations=[2,2]", (3, 64, 64), (8, 3, 3, 3)),
    "depthwise": ("pads=[1,1,1,1],group=3", (3, 64, 64), (6, 1, 3, 3)),
    "stride 1, many outputs": ("pads=[1,1,1,1]", (3, 64, 64), (48, 3, 3, 3)),
}


def network(attributes, shape, weight):
    size = ",".join(map(str, shape))
    text = f"g (float[1,{size}] x) => (float[N,M,H,W] y) {{ c = Conv<{attributes}> (x, w, b) y = Relu (c) }}"
    return clean(text, w=weights(*weight), b=weights(weight[0]))


def same_as_single_columns(qdq, path, x, folder, monkeypatch, **settings):
    """Whether the file gives what a file without groups gives, integer by integer."""
    with monkeypatch.context() as patch:
        patch.setattr(columns, "MAX_CHANNELS", 0)
        plain, _ = build(qdq, folder, precision="w8a8", **settings)
    outputs = [run(qdq, file, x, **settings)[0] for file in (path, plain)]
    assert len(np.unique(outputs[0])) > 100
    return np.array_equal(outputs[0], outputs[1])


def the_filter(path):
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = file.subgraphs[0]
    (conv,) = (o for o in graph.operators if len(o.inputs) == 3)
    return [graph.tensors[i] for i in conv.inputs], conv.builtinOptions


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_grouped_columns_give_the_same_integers(case, per_channel, tmp_path, monkeypatch):
    attributes, shape, weight, filters, pads = CASES[case]
    model = network(attributes, shape, weight)
    qdq = quantize(model, batch(model), given={"y": (0.05, -90)}, per_channel=per_channel)
    path, artifact = build(qdq, tmp_path, precision="w8a8")
    assert same_as_single_columns(qdq, path, batch(model), tmp_path / "plain", monkeypatch)
    assert units(qdq, path, batch(model)) < 1.01
    assert partitions(path).whole
    assert artifact.notes == ()
    (_, w, b), options = the_filter(path)
    assert tuple(w.shape) == filters
    assert op_names(path).count("PAD") == pads
    scales = filters[0] if per_channel else 1
    assert len(w.quantization.scale) == len(b.quantization.scale) == scales
    assert options.fusedActivationFunction == schema.ActivationFunctionType.RELU


@pytest.mark.parametrize("case", LEFT)
def test_windows_that_gain_nothing_are_left(case, tmp_path):
    model = network(*LEFT[case])
    path, _ = build(quantize(model, batch(model)), tmp_path, precision="w8a8")
    assert "RESHAPE" not in op_names(path)


@pytest.mark.parametrize("dtype", ["int16", None])
def test_sixteen_bits_and_floats_are_left(dtype, tmp_path):
    model = network(*CASES["3x3 at stride 2"][:3])
    graph = model if dtype is None else quantize(model, batch(model), dtype)
    path, _ = build(graph, tmp_path, precision="fp32" if dtype is None else "w8a16")
    assert "RESHAPE" not in op_names(path)


def test_padding_is_whole_groups_behind_the_reshape_where_it_can_be(tmp_path):
    """XNNPACK takes that PAD into the convolution."""
    model = network(*CASES["3x3 at stride 2"][:3])
    path, _ = build(quantize(model, batch(model)), tmp_path, precision="w8a8")
    assert op_names(path) == ["QUANTIZE", "RESHAPE", "PAD", "CONV_2D", "RESHAPE", "DEQUANTIZE"]


def test_pixels_in_a_border_of_the_mean(tmp_path, monkeypatch):
    pre = Preprocess(size=(64, 80), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    folded = fold_preprocess(network(*CASES["3x3 at stride 2"][:3]), pre, border=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), np.uint8)
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    names = [v.name for n in folded.graph if n.op_type == "Concat" for v in n.outputs]
    qdq = quantize(folded, x, given=dict.fromkeys(["image", *names], (1.0, -128)))
    settings = {"input_kind": "uint8", "preprocess": pre}
    path, _ = build(qdq, tmp_path, precision="w8a8", **settings)
    assert tuple(the_filter(path)[0][1].shape) == (48, 3, 2, 12)
    assert partitions(path).whole
    assert same_as_single_columns(qdq, path, pixels, tmp_path / "plain", monkeypatch, **settings)
    assert units(qdq, path, pixels, reference(qdq, x), input_kind="uint8") < 1.01
