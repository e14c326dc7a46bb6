"""Matrices of a Resize against ONNX Runtime, ONNX's reference evaluator and torch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional as F

from repedge.errors import UserError
from repedge.targets.resampling import matrix, nearest, refuse

SIZES = ((11, 9), (3, 4), (10, 14), (5, 13))
TRANSFORMS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


def model(attributes: str, size: tuple[int, int], before: tuple[int, int] = (5, 7)) -> onnx.ModelProto:
    """One channel of ``before`` resized to ``size``."""
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[1,1,{before[0]},{before[1]}] x) => (float[1,1,'
        f"{size[0]},{size[1]}] y) <int64[4] s = {{1,1,{size[0]},{size[1]}}}> "
        f"{{ y = Resize<{attributes}>(x, , , s) }}"
    )
    return onnx.parser.parse_model(text)


def resized(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """By the matrices."""
    node = ir.from_proto(proto).graph[0]
    return matrix(node, 2) @ x.astype(np.float64) @ matrix(node, 3).T


def runtime(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """In ONNX Runtime."""
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def evaluator(proto: onnx.ModelProto, x: np.ndarray) -> Any:
    """In ONNX's reference evaluator."""
    found: Any = ReferenceEvaluator(proto).run(None, {"x": x})
    return found[0]


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(1, 1, 5, 7)).astype(np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("mode", "transform"), [*itertools.product(("linear", "cubic"), TRANSFORMS)])
def test_interpolation(mode, transform, size, x):
    proto = model(f'mode="{mode}", coordinate_transformation_mode="{transform}"', size)
    found = resized(proto, x)
    np.testing.assert_allclose(found, runtime(proto, x), atol=3e-6)
    np.testing.assert_allclose(found, evaluator(proto, x), atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("transform", TRANSFORMS[:4])
def test_nearest(transform, rounding, size, x):
    proto = model(f'coordinate_transformation_mode="{transform}", nearest_mode="{rounding}"', size)
    np.testing.assert_array_equal(resized(proto, x).astype(np.float32), runtime(proto, x))


@pytest.mark.parametrize("rounding", ["floor", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("transform", ["asymmetric", "half_pixel"])
@pytest.mark.parametrize("before", [3, 7, 20, 35, 42, 56])
def test_nearest_of_odd_ratios(before, transform, rounding):
    """Which pixel is taken hangs on the last bit of a float32 quotient, and on what is near to the middle."""
    x = np.arange(before**2, dtype=np.float32).reshape(1, 1, before, before)
    for after in (4, 5, 9, 10, 22, 24, 31, 100):
        attributes = f'coordinate_transformation_mode="{transform}", nearest_mode="{rounding}"'
        proto = model(attributes, (after, after), (before, before))
        wanted = runtime(proto, x)[0, 0, :, 0] // before
        np.testing.assert_array_equal(nearest(ir.from_proto(proto).graph[0], 2), wanted)


@pytest.mark.parametrize("outside", [0, 1])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", [(3, 4), (2, 2), (4, 9)])
def test_antialiasing(mode, outside, size, x):
    proto = model(f'mode="{mode}", antialias=1, exclude_outside={outside}', size)
    found = resized(proto, x)
    np.testing.assert_allclose(found, evaluator(proto, x), atol=3e-6)
    np.testing.assert_allclose(found, runtime(proto, x), atol=3e-6)


@pytest.mark.parametrize(("mode", "coefficient"), [("linear", -0.75), ("cubic", -0.5)])
def test_torch_antialiasing(mode, coefficient, x):
    """torch leaves out what lies outside, and has another cubic coefficient where it antialiases."""
    proto = model(f'mode="{mode}", antialias=1, exclude_outside=1, cubic_coeff_a={coefficient}', (3, 5))
    image = torch.from_numpy(x)
    wanted = F.interpolate(image, (3, 5), mode=f"bi{mode}", align_corners=False, antialias=True)
    np.testing.assert_allclose(resized(proto, x), wanted.numpy(), atol=3e-6)


def test_what_has_no_matrix():
    proto = model('mode="linear", coordinate_transformation_mode="tf_crop_and_resize"', (10, 14))
    node = ir.from_proto(proto).graph[0]
    assert "'tf_crop_and_resize' is not supported" in str(refuse(node))
    with pytest.raises(UserError, match="tf_crop_and_resize"):
        matrix(node, 2)
