"""Whole runs on what people bring: files of other exporters, odd networks, noisy code."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import repedge
from repedge import cli
from repedge.errors import CheckFailed, UserError

ALL = ["coreml", "tflite", "openvino", "gpu"]


class Shuffle(nn.Module):
    """ShuffleNet's unit: torch.onnx writes its chunk and its views with computed shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1)
        self.branch = nn.Sequential(nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x).chunk(2, 1)
        y = torch.cat((a, self.branch(b)), 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = F.interpolate(y, size=(h * 2, w * 2), mode="nearest")
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_files_of_the_torchscript_exporter(tmp_path: Path, opset: int, dynamic: bool) -> None:
    torch.manual_seed(0)
    file = tmp_path / "net.onnx"
    axes = {"x": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    torch.onnx.export(
        Shuffle().eval(), (torch.randn(1, 3, 32, 32),), str(file), input_names=["x"], dynamic_axes=axes,
        opset_version=opset, dynamo=False, do_constant_folding=False,
    )  # fmt: skip
    targets = ALL if opset == 13 else ["tflite"]
    size = {"input_size": "32"} if dynamic else {}
    report = repedge.compile(
        str(file), targets=targets, precisions=["fp32"], out=tmp_path / "out", count=2, **size
    )
    assert report.passed
    found = repedge.inspect(file, **size)
    assert found.before is not None
    assert found.before.normalizations == 1


@pytest.mark.parametrize("target", ALL)
def test_weights_beside_an_onnx_file_end_up_in_the_artifact(tmp_path: Path, target: str) -> None:
    """Also those too small to be a weight and too large to be a shape."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in {"w": (16, 3, 3, 3), "b": (16,), "v": (16, 16, 1, 1)}.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flat"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    out = tmp_path / "out"
    report = repedge.compile(str(tmp_path / "net.onnx"), targets=[target], out=out, count=2)
    (tmp_path / "net.data").unlink()
    assert report.passed
    assert repedge.verify(report.bundles[0].path, count=2).passed


def test_a_network_made_for_one_image(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, 2), nn.Linear(4 * 7 * 7, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(1, -1))

    torch.manual_seed(0)
    assert repedge.compile(One(), targets=["tflite"], input_size=16, out=tmp_path, count=3).passed
