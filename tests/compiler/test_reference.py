"""The reference of an .onnx is the file as ONNX Runtime runs it, whatever repedge made of it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import repedge
from repedge.errors import CheckFailed
from repedge.graph import opsets


def upsampling(path, opset=10, dtype=np.float32, batch=1):
    """Conv, then a linear Resize by 2, in an old opset."""
    w = (np.random.default_rng(3).standard_normal((4, 3, 3, 3)) * 0.3).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(w.dtype)
    scales = np.array([1, 1, 2, 2], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[4, 4]),
            helper.make_node("Resize", ["c", "s"], ["y"], mode="linear"),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, (batch, 3, 24, 32))],
        [helper.make_tensor_value_info("y", kind, (batch, 4, 12, 16))],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(scales, "s")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


def compiled(path, tmp_path):
    return repedge.compile(path, targets=["openvino"], precisions=["fp32"], out=tmp_path / "out").bundles[0]


def test_an_old_resize_is_compiled_as_the_file_says(tmp_path):
    path = upsampling(tmp_path / "old.onnx")
    bundle = compiled(path, tmp_path)
    assert bundle.verify.passed
    golden = np.load(bundle.path / "golden" / "golden.npz")
    pixels = golden["pixels"].astype(np.float32)
    mean, std = (255 * np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((pixels - mean) / std).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(path)
    wanted = np.concatenate([session.run(None, {"x": image[None]})[0] for image in x])
    np.testing.assert_allclose(golden["output:y"], wanted, rtol=0, atol=1e-4)


def test_a_conversion_that_differs_from_the_file_is_caught(tmp_path, monkeypatch):
    """ONNX's own converter makes such a Resize half-pixel."""
    monkeypatch.setattr(opsets, "_make_asymmetric", lambda node: None)
    with pytest.raises(CheckFailed, match="differs from the file as ONNX Runtime runs it"):
        compiled(upsampling(tmp_path / "old.onnx"), tmp_path)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("batch", ["N", 1])
def test_files_in_half_precision_are_held_against_what_they_can_say(tmp_path, batch):
    assert compiled(upsampling(tmp_path / "half.onnx", dtype=np.float16, batch=batch), tmp_path).verify.passed
