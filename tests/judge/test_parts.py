"""Parts of outputs, what an arithmetic can tell of them, and faults planted beside larger numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from photo_files import folder, photos
from torch import nn

import repedge
from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.errors import CheckFailed
from repedge.graph.analysis.parts import mixed_nodes, parts_of
from repedge.graph.analysis.resolution import ROUNDINGS, resolution, roundings
from repedge.graph.export import export_module
from repedge.graph.run import Session
from repedge.graph.values import const
from repedge.tasks.base import Part


def stem(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())


class Detector(nn.Module):
    """Boxes of up to 640 pixels beside probabilities, [1, N, 4 + 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.cls = stem(), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)
        nn.init.normal_(self.cls.weight, std=2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = self.stem(x)
        n = f.shape[2] * f.shape[3]
        boxes = (self.box(f).sigmoid() * 640).reshape(1, 4, n)
        return torch.cat([boxes, self.cls(f).sigmoid().reshape(1, 5, n)], 1).transpose(1, 2)


class Pyramid(nn.Module):
    """Raw boxes, objectness and scores of two scales, in the order of YOLOX: kinds first, places last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = stem(), nn.Conv2d(16, 16, 3, 2, 1)
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(16, k, 1) for k in (4, 1, 3)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.stem(x)
        maps = (first, self.down(first))
        both = []
        for heads, features in zip(self.heads, maps, strict=True):
            assert isinstance(heads, nn.ModuleList)
            both.append(torch.cat([head(features) for head in heads], 1).flatten(2))
        y = torch.cat(both, 2).transpose(1, 2)
        return torch.cat([y[..., :4] * 8, y[..., 4:]], -1)


class Faint(nn.Module):
    """A map of probabilities of about 1e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = stem(), nn.BatchNorm2d(16), nn.Conv2d(16, 1, 1)
        self.norm.running_mean.copy_(torch.rand(16))  # type: ignore[union-attr]
        nn.init.constant_(self.head.bias, -14.0)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x)).relu()).sigmoid()


class Cancelling(nn.Module):
    """Scores that are small differences of large numbers: float16 rounds them to some 20 dB."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.cls = stem(), nn.BatchNorm2d(16), nn.Conv2d(16, 5, 1)
        nn.init.constant_(self.stem[2].bias, 100.0)  # type: ignore[arg-type]
        x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            y = self.stem(x)
            self.norm.running_mean.copy_(y.mean((0, 2, 3)))  # type: ignore[union-attr]
            self.norm.running_var.copy_(y.var((0, 2, 3)))  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cls(self.norm(self.stem(x)))


def test_parts_are_found_through_transposes_and_places_are_none() -> None:
    assert parts_of(export_module(Detector().eval(), (1, 3, 64, 64))) == ((Part(2, 0, 4), Part(2, 4, 9)),)
    kinds = (Part(2, 0, 4), Part(2, 4, 5), Part(2, 5, 8))
    assert parts_of(export_module(Pyramid().eval(), (1, 3, 64, 64))) == (kinds,)
    assert parts_of(export_module(Faint().eval(), (1, 3, 64, 64))) == ((),)
    assert str(kinds[1]) == "[:, :, 4:5]"


def test_nodes_that_mix_kinds_are_those_behind_the_concatenation() -> None:
    mixed = mixed_nodes(export_module(Detector().eval(), (1, 3, 64, 64)))
    assert [n.op_type for n in mixed] == ["Concat", "Transpose"]


@pytest.mark.parametrize("net", [Detector, Pyramid, Faint])
def test_resolution_foretells_what_float32_makes_of_a_network(net: Callable[[], nn.Module]) -> None:
    """Against the module in float64: float32's error is of the size that noise foretells, a fault is not."""
    module = net().eval()
    graph = export_module(module, (1, 3, 64, 64))
    x = np.random.default_rng(1).normal(size=(4, 3, 64, 64)).astype(np.float32)
    exact = torch.cat([net().eval().double()(v[None]) for v in torch.from_numpy(x).double()]).detach().numpy()
    found, parts = resolution(graph, x), parts_of(graph)
    actual = Session(graph).run(x)
    assert 0.01 < roundings(actual, [exact], found, parts) < ROUNDINGS / 2
    wrong = actual[0].copy()
    wrong[..., -1] *= 1.01 if net is not Faint else 5.0
    assert roundings([wrong], [exact], found, parts) > ROUNDINGS


# --- through the pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("own"), photos(32, 80, 80))


def build(
    module: nn.Module, out: Path, target: str, precision: str, own: Path, **given: Any
) -> repedge.bundle.manifest.Verification:
    """Compile for one target; its verification."""
    if precision == "w8a8":
        given |= {"calib": own, "calib_count": 16, "recipe": "fast"}
    report = repedge.compile(
        module, input_size=64, targets=[target], precisions=[precision], out=out, force=True, **given
    )
    return report.bundles[0].verify


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a8"])
@pytest.mark.parametrize("target", ["coreml", "tflite", "openvino", "gpu"])
def test_a_faint_map_and_a_decoded_output_are_right_everywhere(
    target: str, precision: str, own: Path, tmp_path: Path
) -> None:
    if precision not in targets.get(target).precisions:
        pytest.skip(f"{target} does not offer {precision}")
    faint = build(Faint(), tmp_path, target, precision, own)
    assert faint.passed
    assert all("so near 0" in r or "under one step" in r for r in faint.remarks)
    assert bool(faint.remarks) == (precision != "w8a8")  # its last layer gives floats
    found = build(Detector(), tmp_path, target, precision, own)
    assert found.passed
    assert not found.remarks
    floor = {"fp32": 100, "fp16": 45, "w8a8": 20}[precision]
    assert [(p.axis, p.start, p.stop) for p in found.parts] == [(2, 0, 4), (2, 4, 9)]
    assert all(p.sqnr_db > floor for p in found.parts)
    assert found.sqnr_db == min(p.sqnr_db for p in found.parts)
    path = next(p for p in tmp_path.iterdir() if p.name.startswith("Detector"))
    again = repedge.verify(path)
    assert again.passed
    assert len(again.parts) == 2
    assert Bundle.open(path).manifest.verification.parts == found.parts  # type: ignore[union-attr]


def parameters(graph: ir.Graph) -> list[list[ir.Value]]:
    """Weight and bias of the layer that scores classes: initializers with one entry for each class."""
    layer = next(n for n in graph if n.op_type == "Conv" and n.outputs[0].shape[1] == 5)  # type: ignore[index]
    found = []
    for value in layer.inputs[1:]:
        assert value is not None
        integers = value.producer()
        found.append([value] if integers is None else [v for v in integers.inputs[:2] if v is not None])
    return found


def change(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=value.name)  # type: ignore[union-attr]


def shift(graph: ir.Graph, by: float) -> None:
    """Adds to the bias, in its own integers."""
    _, (bias, *scale) = parameters(graph)
    change(bias, const(bias) + np.round(by / const(scale[0])) if scale else const(bias) + by)


def dead(graph: ir.Graph) -> None:
    """Every probability is 0."""
    shift(graph, -1000)


def biased(graph: ir.Graph) -> None:
    """Wrong biases of the scores."""
    shift(graph, 1.5)


def swapped(graph: ir.Graph) -> None:
    """The first class stands last."""
    for values in parameters(graph):
        for value in values:
            change(value, np.roll(const(value), -1, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [dead, swapped, biased])
@pytest.mark.parametrize(
    ("target", "precision"), [("gpu", "fp16"), ("openvino", "fp16"), ("openvino", "w8a8"), ("tflite", "w8a8")]
)
def test_faults_of_scores_are_seen_beside_boxes(
    fault: Callable[[ir.Graph], None], target: str, precision: str, own: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Planted into the graph that the target compiles, after all checks of graphs."""
    kind = type(targets.get(target))
    compiled = kind.compile

    def wrong(self: Any, graph: ir.Model, *more: Any) -> Any:
        graph = graph.clone()
        fault(graph.graph)
        return compiled(self, graph, *more)

    monkeypatch.setattr(kind, "compile", wrong)
    found = build(Detector(), tmp_path, target, precision, own)
    assert not found.passed
    assert "[:, :, 4:9]: SQNR" in found.failures[0]
    boxes, probabilities = found.parts
    assert boxes.sqnr_db > 30
    assert probabilities.sqnr_db < 8


@pytest.mark.slow
@pytest.mark.parametrize("target", ["coreml", "tflite", "gpu"])  # OpenVINO keeps this one in float32
def test_what_half_precision_rounds_is_excused_and_no_more(
    target: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a segmenter it is refused: what is rounded away are decisions there.
    right = build(Cancelling().eval(), tmp_path, target, "fp16", own, task="raw")
    assert right.passed
    assert 12 < right.sqnr_db < 40  # under the floor of fp16
    assert "small a difference of large numbers" in right.remarks[0]

    kind = type(targets.get(target))
    compiled = kind.compile

    def wrong(self: Any, graph: ir.Model, *more: Any) -> Any:
        graph = graph.clone()
        swapped(graph.graph)
        return compiled(self, graph, *more)

    monkeypatch.setattr(kind, "compile", wrong)
    found = build(Cancelling().eval(), tmp_path, target, "fp16", own, task="raw")
    assert not found.passed
    assert not found.remarks


@pytest.mark.slow
def test_a_wrong_fusion_of_a_faint_map_is_still_seen(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repedge.passes.fusion import fuse

    original = fuse.fuse

    def wrong(model: ir.Model) -> Any:
        found = original(model)
        bias = next(v for v in model.graph.initializers.values() if v.shape == ir.Shape([1]))
        array = bias.const_value.numpy() + np.float32(3)  # type: ignore[union-attr]
        bias.const_value = ir.tensor(array, name=bias.name)
        return found

    monkeypatch.setattr("repedge.passes.fuse", wrong)
    with pytest.raises(CheckFailed, match="the fused graph differs"):
        build(Faint(), tmp_path, "gpu", "fp16", own)
