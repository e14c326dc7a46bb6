"""From MODEL and its options to a network with weights, preprocessing and labels."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from places import ROOT, SHARED
from safetensors.torch import save_file
from torch import nn
from weights_files import fused_repvit, shaken

from repedge.config import Preprocess
from repedge.errors import MissingExtra, UserError
from repedge.models import registry
from repedge.models.registry import CIFAR10, create
from repedge.models.source import resolve
from repedge.photos import images

MOBILEONE = SHARED / "models" / "mobileone_s0_in1k.safetensors"
PHOTOS = SHARED / "data" / "imagenet-sample"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "mine.safetensors"
    save_file(shaken(create("repvgg_demo", num_classes=4)).state_dict(), path)
    return path


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a module into an empty working directory; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    made: list[str] = []

    def write(code: str, name: str = "") -> str:
        name = name or f"my_nets_{len(made)}"
        made.append(name)
        (tmp_path / f"{name}.py").write_text(code)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def fails(*arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- named models ---------------------------------------------------------------------------------


def test_named_model_with_a_checkpoint(weights: Path) -> None:
    source = resolve("RepVGG-Demo", weights=weights)
    assert (source.name, source.kind, source.input_shape) == ("repvgg_demo", "demo", (1, 3, 64, 64))
    assert source.description == (
        "repvgg_demo from mine.safetensors: training form, 4 classes, official layout"
    )
    assert source.labels == ()  # CIFAR-10's names do not fit four classes
    assert len(source.checkpoint_sha256 or "") == 64
    assert source.module is not None
    assert not source.module.training
    assert not any(p.requires_grad for p in source.module.parameters())


@pytest.mark.slow
def test_a_weights_file_stands_for_the_model_that_it_is_of(weights: Path, tmp_path: Path) -> None:
    found, named = resolve(str(weights)), resolve(None, weights=weights)
    assert (found.name, found.checkpoint_sha256) == (named.name, named.checkpoint_sha256)
    assert found.module is not None
    assert "repvgg" in found.name
    torch.save({"any.weight": torch.zeros(3)}, tmp_path / "any.pth")
    assert "package.module:factory --weights FILE" in fails(str(tmp_path / "any.pth"))


def test_weights_without_a_model_name_their_model(tmp_path: Path) -> None:
    state = fused_repvit(create("repvit_m0_9", num_classes=3).state_dict())
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "w.safetensors")
    source = resolve(None, weights=tmp_path / "w.safetensors")
    assert source.name == "repvit_m0_9"
    assert "deploy form, 3 classes" in source.description
    assert source.preprocess.interpolation == "bicubic"


@pytest.mark.slow
def test_demo_uses_the_bundled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "WEIGHTS", tmp_path)
    assert "bundled weights" in fails(None)
    half = {
        k: v.half() if v.is_floating_point() else v for k, v in create("repvit_demo").state_dict().items()
    }
    save_file(half, tmp_path / "repvit_demo.safetensors")
    for source in (resolve(), resolve("repvit_demo")):
        assert (source.name, source.kind, source.labels) == ("repvit_demo", "demo", CIFAR10)
        assert "bundled weights" in source.description
        assert source.preprocess.resize is None
        assert source.preprocess.mean == (0.4914, 0.4822, 0.4465)
        assert source.module is not None
        assert {p.dtype for p in source.module.parameters()} == {torch.float32}


def test_no_weights_is_an_error_that_lists_the_ways() -> None:
    message = fails("repvgg_a0")
    for way in ("--weights FILE", "--pretrained", "--random-weights"):
        assert way in message
    assert "--pretrained" not in fails("repvgg_b2g2")  # there are none to fetch


def test_random_weights_are_seeded() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = resolve("repvgg_demo", random_weights=True, num_classes=6)
    torch.manual_seed(7)
    two = resolve("repvgg_demo", random_weights=True, num_classes=6)
    assert "random weights" in one.description
    assert torch.equal(*(found.module.get_parameter("linear.weight") for found in (one, two)))
    assert one.module.get_parameter("linear.weight").shape[0] == 6
    torch.manual_seed(5)
    assert torch.equal(before, torch.get_rng_state())


def test_contradictions(weights: Path) -> None:
    assert "--pretrained" in fails("repvgg_demo", weights=weights, pretrained=True)
    assert "--random-weights" in fails("repvgg_demo", weights=weights, random_weights=True)
    assert "4 classes, not 9" in fails("repvgg_demo", weights=weights, num_classes=9)
    assert "at least one class" in fails("repvgg_demo", random_weights=True, num_classes=0)
    assert "other weights are asked for, too" in fails(str(weights), weights=weights)
    assert "other weights are asked for, too" in fails(str(weights), random_weights=True)
    assert "is not in the cache" in fails("hf://timm/repvgg_a0.rvgg_in1k")  # a file, too
    assert "did you mean repvgg_a0" in fails("repvgg_a00")


@pytest.mark.slow
def test_labels_must_fit(weights: Path) -> None:
    source = resolve("repvgg_demo", weights=weights, labels=["a", "b", "c", "d"])
    assert source.labels == ("a", "b", "c", "d")
    assert "2 class names for a network of 4 classes" in fails(
        "repvgg_demo", weights=weights, labels=["a", "b"]
    )


# --- package.module:factory -----------------------------------------------------------------------

NETS = """
import torch
from torch import nn

def small():
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))

class Grey(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, dtype=torch.float16)

class Factory:
    @staticmethod
    def make():
        return small()

ready = small()
number = 3
def fails(): raise RuntimeError("no GPU\\nhere")
def leaves(): raise SystemExit(1)
def wrong(): return [small()]
def needs(size): return small()
def broken():
    net = small()
    nn.init.constant_(net[0].bias, float("nan"))
    return net
def hyper():
    return nn.Conv2d(7, 4, 3)
"""


def test_factories(factories) -> None:
    name = factories(NETS)
    for attribute in ("small", "ready", "Factory.make"):
        source = resolve(f"{name}:{attribute}")
        assert source.kind == "module"
        assert source.name == attribute.replace(".", "_")
        assert source.preprocess == Preprocess()
        assert source.input_shape == (1, 3, 224, 224)
    grey = resolve(f"{name}:Grey", input_size="33x57")
    assert grey.input_shape == (1, 1, 33, 57)
    assert grey.preprocess.color == "GRAY"
    assert grey.preprocess.resize == 65  # the crop keeps its 7/8
    assert grey.module.get_parameter("conv.weight").dtype == torch.float32


def test_factory_with_weights(factories, tmp_path: Path) -> None:
    name = factories(NETS)
    state = {k: torch.full_like(v, 0.5) for k, v in resolve(f"{name}:small").module.state_dict().items()}
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    source = resolve(f"{name}:small", weights=tmp_path / "w.pth")
    assert source.checkpoint_sha256
    assert torch.equal(source.module.get_parameter("0.weight"), torch.full((4, 3, 3, 3), 0.5))
    del state["4.bias"]
    save_file(state, tmp_path / "w.safetensors")
    message = fails(f"{name}:small", weights=tmp_path / "w.safetensors")
    assert "does not fit the module: 1 key missing (4.bias)" in message


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("absent", "has no 'absent'; it has small, Grey"),
        ("number", "is of type int; it should be a function that makes an nn.Module"),
        ("fails", "fails failed: RuntimeError: no GPU"),
        ("leaves", "leaves failed: SystemExit"),
        ("wrong", "returned list, not an nn.Module"),
        ("needs", "TypeError"),
        ("broken", "4 of the 4 values of 0.bias are NaN"),
        ("hyper", "takes 7 channels"),
        ("", "package.module:factory"),
        ("1x", "package.module:factory"),
        ("a b", "package.module:factory"),
    ],
)
def test_factories_that_fail(factories, attribute: str, words: str) -> None:
    assert words in fails(f"{factories(NETS)}:{attribute}")


def test_modules_that_fail(factories) -> None:
    assert "there is no module no_such_module" in fails("no_such_module:make")
    assert "there is no module os.nothing" in fails("os.nothing:make")
    assert "importing" in fails(f"{factories('import no_such_dependency')}:make")
    assert "SyntaxError" in fails(f"{factories('def (')}:make")
    with pytest.raises(UserError) as caught:
        resolve(f"{factories('1 / 0')}:make")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_module_itself() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1)).train()
    source = resolve(net, input_size=(8, 6), mean=0.5, std=0.25)
    assert source.input_shape == (1, 3, 8, 6)
    assert source.preprocess.mean == (0.5, 0.5, 0.5)
    assert source.name == "Sequential"
    assert "--pretrained" in fails(net, pretrained=True)


# --- timm -----------------------------------------------------------------------------------------


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"repedge\[timm\]"):
        resolve("timm:resnet18")


def test_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for timm's create_model, which the test environment does not have."""

    def create_model(name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        if name != "tiny.in1k":
            raise RuntimeError(f"Unknown model ({name})")
        net: Any = nn.Module()
        net.conv, net.fc, net.num_classes = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes), num_classes
        net.pretrained_cfg = {
            "input_size": (3, 160, 160),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "classifier": "fc",
            "license": "mit",
        }
        return net

    fake: Any = types.ModuleType("timm")
    fake.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", fake)
    source = resolve("timm:tiny.in1k", pretrained=True)
    assert (source.name, source.kind, source.license) == ("tiny_in1k", "timm", "mit")
    assert source.preprocess.size == (160, 160)
    assert source.preprocess.resize == 177
    state = create_model("tiny.in1k", False, num_classes=5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    source = resolve("timm:tiny.in1k", weights=tmp_path / "w.safetensors", labels=list("abcde"))
    assert source.module.get_parameter("fc.weight").shape[0] == 5
    assert torch.equal(source.module.get_parameter("fc.weight"), state["fc.weight"])
    assert "Unknown model" in fails("timm:huge", pretrained=True)
    assert "--random-weights" in fails("timm:tiny.in1k")


# --- .onnx ----------------------------------------------------------------------------------------


def onnx_file(path: Path, *shapes: list, op: str = "Relu") -> Path:
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, s) for i, s in enumerate(shapes)]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(op, [i.name for i in inputs] or [""], ["y"])], "g", inputs, [y]
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_onnx(tmp_path: Path) -> None:
    source = resolve(str(onnx_file(tmp_path / "my net v2.onnx", [1, 3, 33, 57])), mean="0.5,0.5,0.5")
    assert (source.kind, source.module, source.name) == ("onnx", None, "my_net_v2")
    assert source.onnx == tmp_path / "my net v2.onnx"
    assert source.input_shape == (1, 3, 33, 57)
    assert source.preprocess.size == (33, 57)
    assert source.checkpoint_sha256


def test_onnx_with_open_axes(tmp_path: Path) -> None:
    path = str(onnx_file(tmp_path / "net.onnx", ["N", 3, "H", "W"]))
    assert "--input-size" in fails(path)
    assert resolve(path, input_size="40x48").input_shape == (1, 3, 40, 48)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([[8, 3, 16, 16]], "batches of 8"),
        ([[1, 3, 8]], "3 axes"),
        ([[1, 3, 8, 8], [1, 3, 8, 8]], "--image-input"),
        ([[1, 3, 8, 8], [1, 16]], "--input-value x1=VALUE"),
        ([[1, 7], [1, 16]], "one input"),
        ([], "one input"),
        ([[1, 4, 8, 8]], "4 channels"),
    ],
)
def test_onnx_inputs_that_are_no_image(tmp_path: Path, shapes: list, words: str) -> None:
    path = onnx_file(tmp_path / "net.onnx", *shapes, op="Sum")
    assert words in fails(str(path))


def test_onnx_that_fails(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx", [1, 3, 8, 8])
    assert "not 16x16" in fails(str(path), input_size=16)
    assert "weights inside" in fails(str(path), pretrained=True)
    assert "there is no file" in fails(str(tmp_path / "absent.onnx"))
    for content in (b"", b"not a graph at all" * 9, path.read_bytes()[:-9]):
        path.write_bytes(content)
        assert "no ONNX file" in fails(str(path))
    (tmp_path / "dir.onnx").mkdir()
    assert "folder" in fails(str(tmp_path / "dir.onnx"))


# --- a real network -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not MOBILEONE.exists(), reason=f"{MOBILEONE} is absent")
@torch.no_grad()
def test_mobileone_with_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    source = resolve("examples.mobileone:mobileone_s0", weights=MOBILEONE)
    monkeypatch.setenv("MOBILEONE_WEIGHTS", str(MOBILEONE))
    same = resolve("examples.mobileone:mobileone_s0").module
    assert source.preprocess == Preprocess()
    assert sum(p.numel() for p in source.module.parameters()) == 2_078_504
    labels = json.loads((PHOTOS / "labels.json").read_text())
    names = sorted(labels)[::26]  # 24 of 618 classes
    pixels = np.stack([images.pixels(images.decode(PHOTOS / n), source.preprocess) for n in names])
    x = torch.from_numpy(images.normalise(pixels, source.preprocess))
    logits = source.module(x)
    assert torch.equal(logits, same(x))
    right = (logits.argmax(1).numpy() == np.array([labels[n] for n in names])).mean()
    assert right >= 0.6  # 82 % over all photos; three standard deviations of 24 photos below
