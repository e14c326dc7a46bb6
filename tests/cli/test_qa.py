"""Whole runs on what people bring: files of other exporters, odd networks, noisy code."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import repedge
from repedge import cli
from repedge.bundle.folder import Bundle
from repedge.errors import UserError

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


@pytest.mark.slow
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
    size: dict[str, Any] = {"input_size": "32"} if dynamic else {}
    report = repedge.compile(
        str(file), targets=targets, precisions=["fp32"], out=tmp_path / "out", count=2, **size
    )
    assert report.passed
    found = repedge.inspect(file, **size)
    assert found.before is not None
    assert found.before.normalizations == 1


@pytest.mark.slow
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


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The program in this process: (exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch):
    """``factory(make)`` gives a MODEL that calls ``make``."""

    def register(make) -> str:
        module: Any = types.ModuleType("qa_nets")
        module.make = make
        monkeypatch.setitem(sys.modules, "qa_nets", module)
        return "qa_nets:make"

    return register


class Small(nn.Module):
    """A convolution and what ``tail`` makes of its output."""

    def __init__(self, tail) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.tail = nn.Conv2d(3, 4, 3), tail

    def forward(self, x: torch.Tensor):
        return self.tail(self.conv(x))


def test_prints_of_a_users_code_do_not_spoil_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factory
) -> None:
    def tail(y: torch.Tensor) -> torch.Tensor:
        print("in forward")
        return y.mean((2, 3))

    model = factory(lambda: print("made") or Small(tail))
    options = ("-t", "tflite", "--input-size", "16", "--count", "2", "-o", str(tmp_path))
    code, out, err = call(capsys, "compile", model, *options, "--json")
    assert code == 0
    assert json.loads(out)["bundles"][0]["verify"]["passed"]
    assert "made" in err
    assert "in forward" in err


@pytest.mark.slow
def test_branches_on_a_tensor_are_named_without_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], factory
) -> None:
    model = factory(lambda: Small(lambda y: y.mean((2, 3)) * (2 if y.mean() > 0 else 3)))
    code, out, err = call(capfd, "compile", model, "-t", "tflite", "--input-size", "16", "-o", str(tmp_path))
    assert code == 2
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("  ")] == [err.splitlines()[-1]]
    assert "reads the value of a tensor that depends on the image" in err


@pytest.mark.slow
def test_stderr_of_a_compile_is_its_stages(tmp_path: Path) -> None:
    """The runtimes' own banners stay away."""
    command = [sys.executable, "-m", "repedge", "compile", "-o", str(tmp_path)]
    command += [word for target in ALL for word in ("-t", target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(line.startswith("  ") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.slow
def test_paths_in_the_table_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    out = tmp_path / "a folder [bold] with a long name"
    code, text, _ = call(capsys, "compile", "-t", "tflite", "--count", "2", "-o", str(out))
    assert code == 0
    bundle = str(out / "repvit_demo-tflite-fp32")
    assert f"  {bundle}\n" in text
    assert f"repedge verify '{bundle}' --count 2\n" in text
    for verb in ("verify", "inspect"):
        code, text, _ = call(capsys, verb, bundle)
        assert code == 0
        assert bundle in text


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["--json", "--debug"])
def test_a_stdout_that_takes_nothing_is_one_line(form: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "repedge", "targets", form]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("tail", [lambda y: y.mean((2, 3)).squeeze(), lambda y: y.mean()])
def test_outputs_without_a_batch_axis_get_one_in_front(tmp_path: Path, tail) -> None:
    with pytest.warns(UserWarning, match="the axis of images comes first"):
        report = repedge.compile(Small(tail), targets=["tflite"], input_size=16, out=tmp_path)
    assert report.passed
    (output,) = Bundle.open(report.bundles[0].path).manifest.outputs
    assert output.shape[0] == 1
    assert len(output.shape) in (1, 2)


def test_python_takes_what_the_command_line_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small(lambda y: y.mean((2, 3)))
    report = repedge.compile(network, targets="tflite", precisions="fp16", input_size=16, out=tmp_path / "b")
    assert [b.precision for b in report.bundles] == ["fp16"]
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 30), (200, 30, 90)).save(photos / "red.png")
    assert repedge.evaluate(network, photos, input_size=16).n == 1
    assert repedge.evaluate(report.bundles[0].path, photos).agree_top1 == 1.0
    assert repedge.inspect(network, input_size=16).before is not None
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert repedge.inspect(tmp_path / "w.pt").kind == "checkpoint"
    for wrong in ({"input_kind": "int8"}, {"min_sqnr": float("nan")}, {"count": 0}, {"precisions": "fp61"}):
        with pytest.raises(UserError):
            repedge.compile(network, targets="tflite", input_size=16, out=tmp_path / "c", **wrong)
    with pytest.raises(UserError, match="not a dict"):
        repedge.compile({}, targets="tflite", out=tmp_path / "c")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="leave out --weights"):
        repedge.evaluate(report.bundles[0].path, photos, weights="w.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.png": 3.7}', "index of a class"),
        ('{"a.png": true}', "index of a class"),
        ('{"a.png": 1e400}', "index of a class"),
        ('{"b.png": 1}', "names none of the 1 images"),
        ('{"a.png": 10}', "10 classes"),
    ],
)
def test_labels_that_make_no_sense(tmp_path: Path, content: str, message: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(UserError, match=message):
        repedge.evaluate(None, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["escape\x1b[31m", "nul\0", "\ud800"])
def test_class_names_are_text(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="characters that are no text"):
        repedge.compile(targets="tflite", labels=[name, *"123456789"], out=tmp_path)


def test_what_one_target_cannot_take_is_said_and_the_other_is_written(tmp_path: Path) -> None:
    network = Small(lambda y: y.mean((2, 3)))
    network.conv.weight.data *= 1e6  # beyond float16
    with pytest.warns(UserWarning, match="coreml fp16 was not built: .* too much for float16"):
        report = repedge.compile(network, targets=["tflite", "coreml"], input_size=16, out=tmp_path)
    assert [(r.target, r.precision) for r in report.refused] == [("coreml", "fp16")]
    assert [p.name for p in tmp_path.iterdir()] == ["Small-tflite-fp32"]
