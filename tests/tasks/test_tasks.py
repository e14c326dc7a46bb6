"""What outputs mean: recognized, told, refused; and that all of them count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_files import demo_files
from torch import nn

import repedge
from repedge import tasks
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import task_of
from repedge.calib.distance import Distance, image_errors
from repedge.errors import UserError
from repedge.graph.export import export_module
from repedge.tasks.base import Network
from repedge.tasks.raw import Raw


class Net(nn.Module):
    """Features of 16 channels, and what ``head`` makes of them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return self.head(self.body(x))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.dense(x.mean((2, 3))), dim=1)


class Two(nn.Module):
    """Class scores, and a map beside them."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.dense, self.map = nn.Linear(16, 6), nn.Conv2d(16, 4, 1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dense(x.mean((2, 3))), self.scale * self.map(x)


POOLED = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def classifier(classes: int = 6) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "labels", "name"),
    [
        (classifier(), (), "classify"),
        (POOLED, (), "embed"),
        (Normalised(), (), "embed"),
        (POOLED, tuple("abcdefghijklmnop"), "classify"),  # whoever names classes has classes
        (nn.Sequential(nn.Conv2d(16, 5, 1), POOLED), (), "classify"),  # a map of scores, pooled
        (nn.Conv2d(16, 3, 1), (), "raw"),
        (Two(), (), "classify"),
    ],
)
def test_the_graph_says_what_its_outputs_mean(head: nn.Module, labels: tuple[str, ...], name: str) -> None:
    graph = export_module(Net(head).eval(), (1, 3, 16, 16))
    assert tasks.of_graph(graph, labels).name == name


def test_the_user_says_what_the_graph_cannot() -> None:
    graph = export_module(Net(classifier(128)).eval(), (1, 3, 16, 16))
    assert tasks.of_graph(graph, told="embed").describe() == "128 features"
    with pytest.raises(UserError, match="there is no task 'clasify'; did you mean classify"):
        tasks.of_graph(graph, told="clasify")
    maps = export_module(Net(nn.Conv2d(16, 3, 1)).eval(), (1, 3, 16, 16))
    with pytest.raises(UserError, match="can't be classify: no output is a row of scores"):
        tasks.of_graph(maps, told="classify")
    with pytest.raises(UserError, match="is no row of features"):
        tasks.of_graph(maps, told="embed")


def test_an_embedding_is_compiled_verified_and_evaluated_as_one(tmp_path: Path, cli) -> None:
    report = repedge.compile(Net(POOLED), targets=["tflite"], input_size=16, out=tmp_path)
    bundle = report.bundles[0]
    assert report.as_json()["task"] == "embed"
    assert bundle.verify.passed
    assert bundle.verify.cosine == pytest.approx(1, abs=1e-5)
    assert bundle.verify.model_dump()["agree_top1"] is None  # as programs that read it expect
    assert json.loads((bundle.path / "manifest.json").read_text())["task"] == "embed"
    again = repedge.verify(bundle.path)
    assert (again.passed, again.figures.keys()) == (True, {"cosine"})
    found = repedge.evaluate(bundle.path, demo_files(tmp_path / "photos", classes=False))
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert found.as_json()["top1"] is None
    code, out, _ = cli("verify", bundle.path)
    assert code == 0
    assert "cosine 1.0000" in out
    assert "top-1" not in out


@pytest.mark.slow
def test_the_task_is_said_aloud_and_told(tmp_path: Path, cli) -> None:
    code, out, _ = cli("compile", "-t", "tflite", "--out", tmp_path)
    assert code == 0
    assert "outputs: scores of 10 classes, named (--task classify)" in out
    assert "task" not in json.loads(next(tmp_path.glob("*/manifest.json")).read_text())
    code, _, err = cli("compile", "-t", "tflite", "--out", tmp_path, "--task", "clasify")
    assert code == 2
    assert "there is no task 'clasify'; did you mean classify?" in err


def test_every_output_counts_in_the_distance() -> None:
    graph = export_module(Net(Two()).eval(), (1, 3, 16, 16))
    distance = Distance.of(graph)
    rng = np.random.default_rng(0)
    want = [rng.normal(size=s).astype(np.float32) for s in ((4, 6), (4, 4, 8, 8))]
    wrong = [want[0], want[1] + 0.5]
    assert distance.cost(want, want) == 0
    assert distance.cost(want, wrong) > 0.01
    assert (image_errors(wrong, want) > 0.01).all()
    got = [torch.from_numpy(y).requires_grad_() for y in wrong]
    distance.error(got, [torch.from_numpy(y) for y in want]).backward()
    assert got[1].grad is not None
    assert float(got[1].grad.abs().max()) > 0
    probes = distance.projections([torch.from_numpy(y) for y in want], lambda y: torch.ones_like(y))
    assert [p.shape for p in probes] == [y.shape for y in want]


@pytest.mark.parametrize("scheme", ["tflite"])
def test_calibration_sees_the_second_output(tmp_path: Path, scheme: str) -> None:
    """With the first output alone, what only the second reads would be left to chance."""
    photos = demo_files(tmp_path / "photos", classes=False)
    report = repedge.compile(
        Net(Two(30.0)), targets=[scheme], precisions=["w8a8"], input_size=32, out=tmp_path, calib=photos,
        calib_count=16, recipe="fast",
    )  # fmt: skip
    verify = report.bundles[0].verify
    assert verify.passed
    assert verify.sqnr_db > 25  # of the worse of both


def test_a_budget_for_raw_outputs_says_what_it_lacks(tmp_path: Path) -> None:
    photos = demo_files(tmp_path / "photos", classes=False)
    with pytest.raises(UserError, match="--max-drop bounds nothing for the task 'raw'"):
        repedge.compile(
            Net(nn.Conv2d(16, 3, 1)), targets=["tflite"], precisions=["w8a8"], input_size=32, out=tmp_path,
            calib=photos, calib_count=16, recipe="minmax", max_drop=1,
        )  # fmt: skip
    assert not list(tmp_path.glob("*-tflite-*"))


def test_labels_that_fit_no_output_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 2 labels, but output 'logits' has 6 classes"):
        repedge.compile(Net(classifier()), targets=["tflite"], labels=("a", "b"), input_size=16, out=tmp_path)


class Told(Raw):
    """Reads from the graph what no signature says."""

    name = "told"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        graph = network.graph
        self.operators = network.settings.get("operators") if graph is None else len(list(graph.graph))

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        ok = network.graph is not None or isinstance(network.settings.get("operators"), int)
        return None if ok else "its operators are not counted"

    def settings(self) -> dict[str, Any]:
        return {"operators": self.operators}


def test_what_was_read_from_the_graph_is_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tasks.TASKS, "told", f"{__name__}:Told")
    maps = Net(nn.Conv2d(16, 3, 1))
    report = repedge.compile(maps, targets=["tflite"], input_size=16, out=tmp_path, task="told")
    task, manifest = report.task, Bundle.open(report.bundles[0].path).manifest
    assert isinstance(task, Told)
    assert (manifest.task, manifest.answer) == ("told", {"operators": task.operators})
    again = task_of(manifest)
    assert isinstance(again, Told)
    assert again.operators == task.operators
    with pytest.raises(UserError, match="can't be told: its operators are not counted"):
        task_of(manifest.model_copy(update={"answer": {"operators": "many"}}))
