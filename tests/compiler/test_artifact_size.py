"""int8 artifacts are little more than a quarter of the float32 ones, even of a small network.

The bundled RepViT has 2.1 million weights in 70 layers and 97 rounded tensors, so that what stands beside
the weights counts: names, shapes, scales and zero points.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from calib_nets import schemes
from graph_helpers import run
from qdq_helpers import planes

from repedge import passes, targets
from repedge.calib.qdq import to_qdq
from repedge.calib.recipe import calibrate
from repedge.compiler.quantization import Calibration, quantize
from repedge.graph.serde import read_onnx, save_onnx
from repedge.models.source import resolve
from repedge.passes.preprocess import fold_preprocess
from repedge.photos.photos import demo_photos, stacked
from repedge.targets.base import Job

QUARTER = 0.27
SIZES = {
    "tflite": ("tflite-w8a8", QUARTER),
    "gpu": ("tensorrt-w8a8", QUARTER),
    "openvino": ("openvino-w8a8", 0.285),
}
"""Target -> scheme and the most that int8 may take of float32.

An IR states every edge and every constant in 70 to 170 bytes of text. Of this network's 850 nodes, what
OpenVINO's reader demands is 2.5 % of the float32 size.
"""  # fmt: skip


@lru_cache(maxsize=1)
def network():
    """The clean graph, its preprocessing, labels, and 16 photos, uint8 [16, H, W, 3]."""
    source = resolve(None)
    graph = source.graph()
    passes.clean(graph)
    pixels = stacked(demo_photos(), source.preprocess, 16)
    return graph, source.preprocess, source.labels, pixels


def size(artifact: Path) -> int:
    """Bytes of an artifact."""
    target = targets.of_file(artifact)
    assert target is not None
    return targets.size_of(target.name, artifact)


def compiled(name, precision, kind, model, out):
    _, preprocess, labels, _ = network()
    out.mkdir()
    artifact = targets.get(name).compile(
        model, Job("demo", precision, preprocess, input_kind=kind, labels=labels), out
    )
    return out / artifact.main


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_int8_takes_little_more_than_a_quarter(name, tmp_path):
    graph, preprocess, _, pixels = network()
    scheme, most = SIZES[name]
    calibration = Calibration(pixels, count=16, recipe="minmax")
    quantized = quantize(graph, schemes()[scheme], preprocess, "uint8", calibration).graph
    floats = compiled(name, "fp32", "float32", graph, tmp_path / "floats")
    integers = compiled(name, "w8a8", "uint8", quantized, tmp_path / "integers")
    assert size(integers) <= most * size(floats)


@lru_cache(maxsize=1)
def u8():
    """The QDQ graph with uint8 activations, its first convolution reading exact pixels, and the photos."""
    graph, preprocess, _, pixels = network()
    folded = fold_preprocess(graph, preprocess, border=True)
    return to_qdq(*calibrate(folded, [planes(pixels)], schemes()["openvino-w8a8"], "minmax")), planes(
        pixels[:2]
    )


@pytest.mark.slow
def test_a_qdq_file_takes_little_more_than_a_quarter(tmp_path):
    floats = compiled("gpu", "fp32", "float32", network()[0], tmp_path / "floats")
    save_onnx(u8()[0], tmp_path / "u8.onnx")
    assert size(tmp_path / "u8.onnx") <= QUARTER * size(floats)


@pytest.mark.slow
def test_a_qdq_file_says_what_its_graph_says(tmp_path):
    """What is left out of the file is known all the same."""
    model, x = u8()
    save_onnx(model, tmp_path / "u8.onnx")
    proto = onnx.load(tmp_path / "u8.onnx")
    onnx.checker.check_model(proto, full_check=True)
    again = read_onnx(tmp_path / "u8.onnx")
    for batch in np.split(x, len(x)):
        want, found = (run(m, {m.graph.inputs[0].name: batch})[0] for m in (model, again))
        np.testing.assert_array_equal(found, want)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    made = {v.name: v for node in model.graph for v in node.outputs if not v.is_graph_output()}
    assert shapes == {name: list(v.shape) for name, v in made.items()}


@pytest.mark.slow
def test_zero_points_and_scales_are_not_repeated():
    model, _ = u8()
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values()]
    params = [(a.dtype, a.shape, a.tobytes()) for a in arrays if a.ndim < 2]
    assert len(params) == len(set(params))


@pytest.mark.slow
def test_openvino_profiles_layers_by_name(tmp_path):
    """Not by a number: the plugin calls what it fuses by the name of the convolution."""
    import openvino

    path: Path = compiled("openvino", "fp32", "uint8", network()[0], tmp_path / "floats")
    runtime = openvino.Core().compile_model(path, "CPU").get_runtime_model()
    kinds = {op.get_friendly_name(): op.get_rt_info()["layerType"].astype(str) for op in runtime.get_ops()}
    convolutions = [name for name, kind in kinds.items() if kind in ("Convolution", "GroupConvolution")]
    layers = {node.name for node in network()[0].graph if node.op_type == "Conv"}
    assert len(convolutions) == len(layers)
    assert {re.sub(r"_original$", "", name) for name in convolutions} <= layers
