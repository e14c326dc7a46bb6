"""Every kind of head gives the objects that its convolutions were made to find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import detector_nets as nets
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import repedge
from repedge import passes, tasks
from repedge.errors import UserError
from repedge.graph.export import export_module
from repedge.graph.run import Session
from repedge.tasks.base import Network, Output
from repedge.tasks.detect import Detect
from repedge.tasks.heads.head import Head

LABELS = ("a", "b", "c", "d", "e")


def exported(module: nn.Module) -> ir.Model:
    return export_module(module.eval(), (1, 3, nets.SIZE, nets.SIZE))


def network(graph: ir.Model, labels: tuple[str, ...] = (), said: dict[str, Any] | None = None) -> Network:
    outputs = [Output(str(v.name), tuple(v.shape.numpy())[1:]) for v in graph.graph.outputs]  # type: ignore[union-attr]
    return Network(tuple(outputs), labels, graph, said or {})


def check(task: Detect, graph: ir.Model) -> None:
    """The planned objects, in their order, and nothing else."""
    x = np.zeros((2, 3, nets.SIZE, nets.SIZE), np.float32)
    outputs = Session(graph).run(x)
    for found in task.decode(outputs):
        assert found.classes.tolist() == [t.label for t in nets.PLAN]
        assert found.boxes == pytest.approx(np.array([t.box for t in nets.PLAN]), abs=1e-3)
        assert found.scores == pytest.approx(np.array([t.score for t in nets.PLAN]), abs=1e-3)
        assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == ("float32", "float32", "int32")


FORMS = [
    (nets.Yolo8, "center and size, pixels"),
    (nets.Yolo6, "center and size, pixels; objectness"),
    (nets.Yolo5, "center and size, pixels; objectness"),
    (nets.Yolo5Relative, "center and size, shares of the input's size; objectness"),
    (
        nets.Yolo10,
        "boxes of 5 classes; 20 candidates; left, top, right, bottom, pixels; already suppressed",
    ),
    (nets.Yolox, "84 candidates at strides 8, 16, 32; (xy + cell) * stride, exp(wh) * stride; objectness"),
    (nets.YoloxMaps, "(xy + cell) * stride, exp(wh) * stride; objectness; sigmoid to be applied"),
    (nets.Yolo8Maps, "distances of the sides from the point of a cell, strides; 8 bins a distance; sigmoid"),
    (nets.RTMDet, "distances of the sides from the point of a cell, pixels; sigmoid to be applied"),
    (nets.NanoDet, "distances of the sides from the point of a cell, strides; 8 bins a distance"),
    (nets.PPYoloe, "left, top, right, bottom, pixels"),
    (nets.SSD, "left, top, right, bottom, shares of the input's size; score 0 is the background"),
    (
        nets.TransposedSSD,
        "left, top, right, bottom, shares of the input's size; score 0 is the background; y before x",
    ),
]


@pytest.mark.parametrize(("form", "said"), FORMS)
def test_a_head_is_recognized_and_finds_what_it_was_made_to_find(form: type[nn.Module], said: str) -> None:
    graph = exported(form())
    task = tasks.of_graph(graph)
    assert isinstance(task, Detect)
    assert said in task.describe()
    assert task.describe().startswith("boxes of 5 classes")
    check(task, graph)
    # and again without the graph, from what JSON keeps
    settings = json.loads(json.dumps(task.settings()))
    again = Detect(Network(network(graph).outputs, settings=settings))
    assert again.head == task.head
    check(again, graph)


@pytest.mark.parametrize("form", [nets.Yolo8, nets.Yolo5, nets.Yolox, nets.SSD, nets.PPYoloe])
def test_parts_have_names_and_units(form: type[nn.Module]) -> None:
    task = tasks.of_graph(exported(form()))
    parts = [(p.name, p.unit, p.stop - p.start) for o in task.outputs for p in o.parts]
    assert parts[0][0] == "box"
    assert parts[0][1] == {nets.Yolox: "offsets", nets.SSD: "relative"}.get(form, "pixels")
    assert parts[-1] == ("class", "probability", 6 if form is nets.SSD else 5)
    assert (("objectness", "probability", 1) in parts) == (form in (nets.Yolo5, nets.Yolox))


class LogitSSD(nets.SSD):
    logits = True


def test_labels_tell_the_background_and_a_sigmoid_from_a_softmax() -> None:
    graph = exported(LogitSSD())
    task = Detect(network(graph, LABELS))
    assert (task.head.classes, task.head.background, task.head.activation) == (5, 0, "softmax")
    check(task, graph)
    other = Detect(network(graph, (*LABELS, "f")))
    assert (other.head.classes, other.head.background, other.head.activation) == (6, None, "sigmoid")


def test_what_the_graph_does_not_hold_is_said_in_a_file(tmp_path: Path) -> None:
    graph = exported(nets.Yolo5Maps())
    assert tasks.of_graph(graph).name == "raw"
    with pytest.raises(UserError) as refused:
        tasks.of_graph(graph, told="detect")
    assert "anchors, which the graph does not hold" in str(refused.value) or "anchors" in str(refused.value)
    assert "--task detect:FILE.json" in str(refused.value)
    file = tmp_path / "head.json"
    file.write_text(json.dumps({"anchors": nets.ANCHORS}))
    task = tasks.of_graph(graph, told=f"detect:{file}")
    assert isinstance(task, Detect)
    assert task.head.coding == "anchors"
    check(task, graph)
    for wrong, why in (
        ({"anchors": nets.ANCHORS[:2]}, "there are anchors for 2 strides, and it has 3"),
        ({"anchor": nets.ANCHORS}, "what is said of its head is wrong: anchor"),
        ({"anchors": "big"}, "what is said of its head is wrong: anchors"),
        ([1], "must be a JSON object"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=why):
            tasks.of_graph(graph, told=f"detect:{file}")
    with pytest.raises(UserError, match="can't be read"):
        tasks.of_graph(graph, told=f"detect:{tmp_path}/none.json")


class Features(nn.Module):
    """Maps of several strides that are no detector's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 8, 8), nn.Conv2d(16, 16, 2, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.a(x).relu()
        return first, self.b(first).relu()


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Features(), "say the anchors of each stride"),
        (Tokens(), "no cells of its maps|lack the places of their cells|are no indices"),
        (nn.Conv2d(3, 8, 3), "no boxes and scores are found in its outputs, .* 'output' \\[8, 62, 62\\]"),
    ],
)
def test_what_is_no_detector_is_none_and_says_what_was_seen(module: nn.Module, why: str) -> None:
    graph = exported(module)
    assert tasks.of_graph(graph).name != "detect"
    with pytest.raises(UserError, match=f"can't be detect: .*({why})"):
        tasks.of_graph(graph, told="detect")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"classes": 6}, "there are 5 scores for 6 classes"),
        ({"levels": []}, "levels"),
        ({"coding": "magic"}, "coding"),
        ({"size": [0, 64]}, "size"),
        ({"levels": [{"rows": 84}]}, "does not fit its 0 columns"),
        ({"background": 9}, "scores for 5 classes|background"),
        ({"more": 1}, "more"),
        ({"offset": float("nan")}, "offset"),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused(change: dict[str, Any], why: str) -> None:
    known = network(exported(nets.Yolox()))
    settings = Detect(known).settings() | change
    with pytest.raises(UserError, match=why):
        tasks.recognize(Network(known.outputs, settings=settings), "detect")
    with pytest.raises(UserError, match="only its graph could say"):
        tasks.recognize(Network(known.outputs), "detect")


def test_a_head_as_json_is_small() -> None:
    settings = Detect(network(exported(nets.Yolox()))).settings()
    assert settings["sources"][0]["objectness"] == {
        "output": 0,
        "axis": 2,
        "start": 4,
        "stop": 5,
        "repeats": 1,
    }
    assert len(json.dumps(settings)) < 2000


def outputs_of(boxes: np.ndarray, scores: np.ndarray) -> tuple[Head, list[np.ndarray]]:
    head = tasks.of_graph(exported(nets.PPYoloe())).head  # type: ignore[attr-defined]
    y = [np.zeros((1, nets.CELLS, 4), np.float32), np.zeros((1, nets.CLASSES, nets.CELLS), np.float32)]
    y[0][0, : len(boxes)], y[1][0, :, : len(boxes)] = boxes, scores.T
    return head, y


def test_boxes_and_scores_that_are_no_numbers_are_left_out() -> None:
    task = tasks.of_graph(exported(nets.PPYoloe()))
    assert isinstance(task, Detect)
    boxes = np.array([[0, 0, 9, 9], [0, 0, np.nan, 9], [0, 0, 9, 9], [20, 20, 30, np.inf]], np.float32)
    scores = np.zeros((4, 5), np.float32)
    scores[:, 1] = (0.5, 0.9, np.nan, 0.9)
    _, y = outputs_of(boxes, scores)
    (found,) = task.decode(y)
    assert found.scores.tolist() == [0.5]
    assert [len(d) for d in task.decode([np.zeros_like(a) for a in y])] == [0]
    assert len(task.decode(y, score=0.0, most=3)[0]) <= 3
    for bad in ({"score": 1.5}, {"iou": -0.1}, {"most": 0}, {"score": float("nan")}):
        with pytest.raises(UserError, match="must be from 0 to 1"):
            task.decode(y, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [form for form, _ in FORMS if form is not nets.Yolo10] + [LogitSSD])
def test_the_distance_minds_objects_more_than_background(form: type[nn.Module]) -> None:
    """The same error of the last layers, at a planned object's cell and elsewhere."""
    net = form(vary=0.05).eval()
    graph = exported(net)
    task = Detect(network(graph, LABELS if form is LogitSSD else ()))
    x = torch.rand(2, 3, nets.SIZE, nets.SIZE)
    want = [y.detach() for y in as_list(net(x))]
    assert task.nearness(want, want).abs().max() < 1e-5  # type: ignore[union-attr]
    thing = nets.PLAN[0]
    far = []
    for row, column in ((thing.row, thing.column), (6, 6)):
        worse = form(vary=0.05).eval()
        worse.load_state_dict(net.state_dict())
        cell = row * (nets.SIZE // thing.stride) + column
        layers: list[Any] = [m.layers[0] for m in worse.modules() if isinstance(m, nets.Planned)]
        for layer in layers:
            layer.weight.data[:, 4 + cell] *= 0.9
        near = task.nearness(as_list(worse(x)), want)
        assert near is not None
        assert near.shape == (2,)
        near.sum().backward()
        assert all(bool(layer.weight.grad.isfinite().all()) for layer in layers)
        assert any(float(layer.weight.grad.abs().max()) > 0 for layer in layers)
        far.append(float(near.detach().mean()))
    assert far[0] > 3 * far[1] >= 0


def as_list(y: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [y] if isinstance(y, torch.Tensor) else list(y)


@pytest.mark.parametrize("form", [nets.Yolox, LogitSSD])
def test_curvature_is_what_a_small_error_of_the_scores_costs(form: type[nn.Module]) -> None:
    net = form(vary=0.05).eval()
    task = Detect(network(exported(net), LABELS if form is LogitSSD else ()))
    want = [y.detach().double() for y in as_list(net(torch.rand(1, 3, nets.SIZE, nets.SIZE)))]
    generator = torch.Generator().manual_seed(0)

    def signs(y: torch.Tensor) -> torch.Tensor:
        return torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1

    def draw() -> list[torch.Tensor]:
        return [torch.zeros(()) if v is None else v for v in task.curvature(want, signs)]

    drawn = [draw() for _ in range(400)]
    errors = [
        1e-4 * torch.randn(y.shape, generator=generator) * (v != 0)
        for y, v in zip(want, drawn[0], strict=True)
    ]
    told = [sum(float((v * d).sum()) for v, d in zip(vs, errors, strict=True)) ** 2 for vs in drawn]
    got = [y + d for y, d in zip(want, errors, strict=True)]
    assert np.mean(told) == pytest.approx(float(task.nearness(got, want)), rel=0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [nets.Yolo8, nets.Yolo10])
def test_a_file_that_leaves_shapes_open_is_recognized(form: type[nn.Module], tmp_path: Path) -> None:
    """As other exporters write them: shapes that follow from computed ones."""
    graph = exported(form())
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    ir.save(graph, tmp_path / "open.onnx")
    found = repedge.inspect(tmp_path / "open.onnx", input_size=nets.SIZE)
    assert (found.task, found.outputs[:18]) == ("detect", "boxes of 5 classes")
    task = tasks.of_graph(passes.settled(graph))
    assert isinstance(task, Detect)
