"""Files of opset 7 to 24: the loaded graph against ONNX Runtime on the untouched file, by operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from repedge.errors import UnsupportedModel
from repedge.graph.load import load_onnx
from repedge.graph.run import Session

RNG = np.random.default_rng(0)
SHAPE = (1, 4, 6, 8)
NEWEST = 23


def f(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def i(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int64)


def s(*factors: float) -> np.ndarray:
    return np.array([1, 1, *factors], np.float32)


Row = tuple[str, int, int, str, tuple, int, dict]
ROWS: list[Row] = []


def row(lowest: int, highest: int, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> None:
    """An operator on ``x`` and constants, to be tried from opset ``lowest`` to ``highest``."""
    words = [op, *(f"{k}={v}" for k, v in attributes.items()), str(len(ROWS))]
    ROWS.append((" ".join(words), lowest, highest, op, inputs or ("x",), outputs, attributes))


def resizes() -> None:
    for mode in ("nearest", "linear"):
        for up in ((2, 2), (1.25, 1.25), (1.5, 3), (1, 2), (1.3, 2.6)):
            row(7, 8, "Upsample", mode=mode, scales=[1.0, 1.0, *map(float, up)])
            row(9, 9, "Upsample", "x", s(*up), mode=mode)
        for both in ((2, 2), (1.25, 1.5), (0.5, 0.5), (0.6, 0.7), (2, 0.5), (0.4, 1.6), (1, 0.7)):
            row(10, 10, "Resize", "x", s(*both), mode=mode)
    no_roi = np.zeros(0, np.float32)
    for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        for rounding in ("round_prefer_floor", "floor", "ceil"):
            options: dict[str, Any] = {"coordinate_transformation_mode": place, "nearest_mode": rounding}
            row(11, NEWEST, "Resize", "x", no_roi, s(0.6, 1.7), mode="nearest", **options)
        row(
            11, NEWEST, "Resize", "x", no_roi, s(1.7, 0.6), mode="cubic", coordinate_transformation_mode=place
        )
    crop = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 0.9], np.float32)
    row(11, NEWEST, "Resize", "x", crop, s(2, 2), coordinate_transformation_mode="tf_crop_and_resize")
    row(11, 12, "Resize", "x", no_roi, s(2, 2), coordinate_transformation_mode="tf_half_pixel_for_nn")
    row(13, NEWEST, "Resize", "x", "", "", i(1, 4, 9, 11), mode="linear")
    row(18, NEWEST, "Resize", "x", "", np.array([2, 1.5], np.float32), mode="linear", axes=[2, 3])
    row(18, NEWEST, "Resize", "x", "", s(0.5, 0.5), mode="linear", antialias=1)


def windows() -> None:
    for k, stride, pads in (
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((4, 4), (3, 3), (1, 1, 1, 1)),
        ((2, 2), (5, 4), (1,) * 4),
    ):
        window: dict[str, Any] = {"kernel_shape": k, "strides": stride, "pads": pads}
        for counted in (0, 1):
            row(7, NEWEST, "AveragePool", count_include_pad=counted, **window)
            row(10, NEWEST, "AveragePool", count_include_pad=counted, ceil_mode=1, **window)
        row(7, NEWEST, "MaxPool", **window)
        row(10, NEWEST, "MaxPool", ceil_mode=1, **window)
    for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        auto_pad: dict[str, Any] = {"auto_pad": auto, "strides": (3, 2)}
        row(7, NEWEST, "AveragePool", kernel_shape=(3, 4), count_include_pad=1, **auto_pad)
        row(7, NEWEST, "MaxPool", kernel_shape=(3, 4), **auto_pad)
        row(7, NEWEST, "Conv", "x", f(3, 4, 3, 2), **auto_pad)
        row(7, NEWEST, "ConvTranspose", "x", f(4, 3, 3, 3), **auto_pad)
    row(7, NEWEST, "ConvTranspose", "x", f(4, 3, 3, 3), strides=(2, 2), output_padding=(1, 1))
    row(7, NEWEST, "ConvTranspose", "x", f(4, 2, 3, 3), group=2, strides=(2, 3), dilations=[2, 1])
    row(7, NEWEST, "LpPool", kernel_shape=(2, 2), p=2)
    row(7, NEWEST, "GlobalAveragePool")
    row(7, NEWEST, "GlobalMaxPool")


def axes() -> None:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        row(7, NEWEST, op)
        for axis in (0, 1, 2, 3, -1, -2):
            row(11 if axis < 0 else 7, NEWEST, op, axis=axis)
    for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp"):
        moved = 13 if op == "ReduceSum" else 18
        row(7, moved - 1, op, axes=[1, 2], keepdims=0)
        row(11, moved - 1, op, axes=[-1])
        row(7, NEWEST, op)
        row(moved, NEWEST, op, "x", i(1, 2), keepdims=0)
        row(moved, NEWEST, op, "x", i(), noop_with_empty_axes=1)
    row(7, 9, "Slice", axes=[2, 3], starts=[1, -5], ends=[100, -1])
    row(10, NEWEST, "Slice", "x", i(-2, 5), i(-1000, 1), i(3, 2), i(-2, -2))
    row(7, 12, "Squeeze", axes=[0])
    row(13, NEWEST, "Squeeze", "x", i(0))
    row(7, 12, "Unsqueeze", axes=[0, 3])
    row(13, NEWEST, "Unsqueeze", "x", i(-1, 1))
    row(7, 12, "Split", outputs=2, axis=1, split=[1, 3])
    row(13, 17, "Split", outputs=2, axis=1)
    row(18, NEWEST, "Split", outputs=3, axis=3, num_outputs=3)
    row(7, NEWEST, "Flatten", axis=2)
    row(11, NEWEST, "Flatten", axis=-1)
    row(7, NEWEST, "Reshape", "x", i(1, 0, -1))
    row(14, NEWEST, "Reshape", "x", i(1, 4, -1), allowzero=1)
    row(7, 9, "TopK", outputs=2, k=3)
    row(10, 10, "TopK", "x", i(3), outputs=2)
    row(11, NEWEST, "TopK", "x", i(3), outputs=2, largest=0)
    row(7, NEWEST, "ArgMax", axis=1, keepdims=0)
    row(12, NEWEST, "ArgMin", axis=1, select_last_index=1)
    row(11, NEWEST, "Gather", "x", i(-1, 0), axis=-1)
    row(9, 10, "Scatter", "x", np.zeros((1, 1, 1, 2), np.int64) + i(0, 1), f(1, 1, 1, 2), axis=3)


def arithmetic() -> None:
    per_channel = [f(4), f(4), f(4), np.abs(f(4)) + 0.3]
    row(7, NEWEST, "BatchNormalization", "x", *per_channel, epsilon=0.01)
    per_element = [f(4, 6, 8), f(4, 6, 8), f(4, 6, 8), np.abs(f(4, 6, 8)) + 0.3]
    row(7, 8, "BatchNormalization", "x", *per_element, spatial=0)
    row(7, NEWEST, "InstanceNormalization", "x", f(4), f(4), epsilon=0.02)
    row(17, NEWEST, "LayerNormalization", "x", f(8), f(8))
    row(18, 20, "GroupNormalization", "x", f(2), f(2), num_groups=2)
    row(21, NEWEST, "GroupNormalization", "x", f(4), f(4), num_groups=2)
    row(23, 24, "RMSNormalization", "x", f(8))
    row(23, 24, "RMSNormalization", "x", f(4, 6, 8), axis=1, epsilon=0.1)
    row(23, 24, "Attention", "x", "x", "x")
    row(23, 24, "Attention", "x", "x", "x", is_causal=1, scale=0.3)
    row(23, 24, "Attention", "x", f(1, 2, 7, 8), f(1, 2, 7, 5))
    row(23, 24, "Attention", "x", "x", "x", f(6, 6) > -0.5)
    row(23, 24, "Attention", "x", "x", "x", f(6, 6))
    row(24, 24, "Swish", alpha=0.7)
    row(7, 10, "Clip", min=-0.3, max=0.4)
    row(7, 10, "Clip", min=-0.3)
    row(11, NEWEST, "Clip", "x", "", np.float32(0.4))
    row(7, 11, "Dropout", ratio=0.4)
    row(12, NEWEST, "Dropout", "x", np.float32(0.3), np.bool_(False))
    row(7, 10, "Pad", pads=[0, 0, 1, 2, 0, 0, 2, 1], mode="reflect")
    row(7, 10, "Pad", pads=[0, 0, -1, 2, 0, 0, -2, 1], value=0.5)
    row(11, NEWEST, "Pad", "x", i(0, 0, -1, 2, 0, 0, 2, -1), np.float32(0.5))
    row(18, NEWEST, "Pad", "x", i(1, 2, 2, 1), np.float32(0.5), i(-2, -1))
    for slope in ((4, 1, 1), (1,), (8,), (4, 6, 8)):
        row(7, NEWEST, "PRelu", "x", f(*slope))
    for op in ("LeakyRelu", "Elu", "Selu", "HardSigmoid", "Softplus", "LpNormalization", "Sin"):
        row(7, NEWEST, op)
    row(14, NEWEST, "HardSwish")
    row(18, NEWEST, "Mish")
    row(20, NEWEST, "Gelu", approximate="tanh")
    row(7, NEWEST, "LRN", size=3, alpha=0.1)
    for op in ("Add", "Sub", "Mul", "Div"):
        row(7, NEWEST, op, "x", np.abs(f(4, 1, 1)) + 0.5)
    for op in ("Sum", "Mean", "Max"):
        row(8, NEWEST, op, "x", f(4, 1, 1), f(8))
    row(7, NEWEST, "Cast", to=7)
    row(11, NEWEST, "DepthToSpace", blocksize=2, mode="CRD")
    row(16, 19, "GridSample", "x", f(1, 3, 3, 2), mode="bilinear")
    row(20, NEWEST, "GridSample", "x", f(1, 3, 3, 2), mode="cubic")


for fill in (resizes, windows, axes, arithmetic):
    fill()


def versions(op: str, lowest: int, highest: int) -> list[int]:
    """The ends, and each opset between them where the operator's definition changed."""
    changes = {
        d.since_version for d in onnx.defs.get_all_schemas_with_history() if d.name == op and not d.domain
    }
    return sorted({lowest, highest, *(v for v in changes if lowest < v < highest)})


def file_of(case: Row, opset: int, x: np.ndarray) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The file, its outputs declared, and what ONNX Runtime makes of it."""
    _, _, _, op, inputs, outputs, attributes = case
    constants = {f"c{k}": v for k, v in enumerate(inputs) if not isinstance(v, str)}
    names = [v if isinstance(v, str) else f"c{k}" for k, v in enumerate(inputs)]
    results = [f"y{k}" for k in range(outputs)]
    inside = [f"r{k}" for k in range(outputs)]  # converters treat a graph's outputs with care
    after = [helper.make_node("Identity", [a], [b]) for a, b in zip(inside, results, strict=True)]
    graph = helper.make_graph(
        [helper.make_node(op, names, inside, **attributes), *after],
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})
    for output, array in zip(model.graph.output, wanted, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, array.shape))
    return model, wanted


def compared(case: Row, opset: int, path: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    model, wanted = file_of(case, opset, x)
    onnx.save(model, path)
    loaded = load_onnx(path)
    assert loaded.opset_imports == {"": 20}
    yield from zip(Session(loaded, 1).run(x), wanted, strict=True)


OLD_RESIZES = [r for r in ROWS if r[3] in ("Upsample", "Resize") and r[2] < 11]
OTHERS = [r for r in ROWS if r not in OLD_RESIZES]


@pytest.mark.parametrize("case", OLD_RESIZES, ids=lambda r: r[0])
def test_resizes_before_opset_11_are_asymmetric(case, tmp_path):
    for opset in {case[1], case[2]}:
        for got, wanted in compared(case, opset, tmp_path / "m.onnx"):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS, ids=lambda r: r[0])
def test_every_version_of_an_operator_computes_what_the_file_does(case, tmp_path):
    for opset in versions(case[3], case[1], case[2]):
        for got, wanted in compared(case, opset, tmp_path / "m.onnx"):
            assert got.shape == wanted.shape, opset
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5, err_msg=f"opset {opset}")


def test_what_opset_20_cannot_say_is_refused(tmp_path):
    x = np.zeros(SHAPE, np.float32)
    model, _ = file_of(("", 23, 23, "Attention", ("x", "x", "x"), 1, {"softcap": 2.0}), 23, x)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match=r"opset 23 .*Attention.*export it with opset 20"):
        load_onnx(tmp_path / "m.onnx")
