"""No broken detector is verified: faults planted into what artifacts give, and right ones that pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detector_nets as nets
import numpy as np
import pytest
from photo_files import folder, photos
from torch import nn

import repedge
from repedge import targets
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import Verification, task_of
from repedge.tasks.detect import Detect

Outputs = list[np.ndarray]
Fault = Callable[[Outputs, Detect], None]

BUILDS = [
    (nets.Yolo8, "openvino", "fp16"),
    (nets.Yolo5, "tflite", "fp16"),
    (nets.Yolo8, "openvino", "w8a8"),
    (nets.Yolox, "tflite", "w8a8"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("own"), photos(32, 80, 80))


@pytest.fixture(scope="module")
def bundles(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(form, target, precision) -> a verified bundle, compiled once."""
    made: dict[tuple[Any, ...], Path] = {}

    def get(form: type[nn.Module], target: str, precision: str) -> Path:
        key = (form, target, precision)
        if key not in made:
            out = tmp_path_factory.mktemp("detector")
            made[key] = build(nets.lively(form), out, target, precision, own)
        return made[key]

    return get


def build(net: nn.Module, out: Path, target: str, precision: str, own: Path) -> Path:
    given: dict[str, Any] = {"calib": own, "calib_count": 16, "recipe": "fast"} if precision == "w8a8" else {}
    report = repedge.compile(
        net, input_size=nets.SIZE, targets=[target], precisions=[precision], out=out, images=own, **given
    )
    assert report.bundles[0].verify.failures == ()
    return report.bundles[0].path


def verified(
    path: Path, own: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None = None
) -> Verification:
    """A bundle's verification, with a fault in what its artifact gives."""
    manifest = Bundle.open(path, allow_unverified=True).manifest
    task = task_of(manifest)
    assert isinstance(task, Detect)
    kind = type(targets.get(manifest.target))
    opened = kind.open

    def wrong(self: Any, *args: Any) -> Any:
        runner = opened(self, *args)
        run = runner.run

        def faulty(*given: Any) -> Outputs:
            outputs = [np.array(y, copy=True) for y in run(*given)]
            if fault is not None:
                fault(outputs, task)
            return outputs

        setattr(runner, "run", faulty)  # noqa: B010
        return runner

    monkeypatch.setattr(kind, "open", wrong)
    return repedge.verify(path, images=own)


def columns(outputs: Outputs, task: Detect, kind: str) -> np.ndarray:
    """A view of the numbers of a kind, [n, candidates, numbers]."""
    place = task.head.sources[0].places[kind]
    return np.moveaxis(outputs[place.output], place.axis, 2)[..., place.start : place.stop]


def scores_zeroed(outputs: Outputs, task: Detect) -> None:
    columns(outputs, task, "class")[:] = 0


def classes_reversed(outputs: Outputs, task: Detect) -> None:
    scores = columns(outputs, task, "class")
    scores[:] = scores[..., ::-1].copy()


def one_class_dead(outputs: Outputs, task: Detect) -> None:
    columns(outputs, task, "class")[..., 2] = 0


def scores_of_a_stride_dead(outputs: Outputs, task: Detect) -> None:
    columns(outputs, task, "class")[:, : task.head.levels[0].rows] = 0


def boxes_of_a_stride_dead(outputs: Outputs, task: Detect) -> None:
    first, second, _ = (level.rows for level in task.head.levels)
    boxes = columns(outputs, task, "box")[:, first : first + second]
    boxes[:] = boxes.mean(0)


def boxes_shifted(outputs: Outputs, task: Detect) -> None:
    """By one cell of each map to the right."""
    strides = np.repeat([8.0, 16.0, 32.0], [level.rows for level in task.head.levels])
    columns(outputs, task, "box")[..., 0] += 1 if task.head.coding == "grid" else strides


def cells_exchanged(outputs: Outputs, task: Detect) -> None:
    """Everything stands one cell further."""
    for kind in task.head.sources[0].places:
        numbers = columns(outputs, task, kind)
        numbers[:] = np.roll(numbers, 1, axis=1)


FAULTS = [
    (scores_zeroed, "class scores of stride|objects that the float network finds are found"),
    (classes_reversed, "class scores of stride|classes apart"),
    (one_class_dead, r"scores of 1 of \d+ classes \(2\)|class scores of stride"),
    (scores_of_a_stride_dead, "class scores of stride 8"),
    (boxes_of_a_stride_dead, "boxes of stride 16"),
    (boxes_shifted, "boxes of stride 32 are shifted by 1.* cells"),
    (cells_exchanged, "scores of stride 8"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "target", "precision"), BUILDS)
def test_right_detectors_are_verified(
    form: type[nn.Module], target: str, precision: str, bundles: Callable[..., Path], own: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = verified(bundles(form, target, precision), own, monkeypatch)
    assert found.failures == ()
    matched = found.matched
    assert matched["n"] > 50
    assert matched["recall"] > (0.97 if precision == "fp16" else 0.8)
    assert matched["mean_iou"] > (0.99 if precision == "fp16" else 0.8)
    assert matched["score_err"] < (0.01 if precision == "fp16" else 0.1)
    assert {p.name for p in found.parts} >= {"box", "class"}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "why"), FAULTS)
@pytest.mark.parametrize(("form", "target", "precision"), BUILDS)
def test_no_broken_detector_is_verified(
    fault: Fault, why: str, form: type[nn.Module], target: str, precision: str,
    bundles: Callable[..., Path], own: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found = verified(bundles(form, target, precision), own, monkeypatch, fault)
    assert not found.passed
    assert any(re.search(why, sentence) for sentence in found.failures), found.failures


@pytest.fixture(scope="module")
def untrained(own: Path, tmp_path_factory: pytest.TempPathFactory) -> repedge.api.CompileReport:
    """RepViT-YOLOv5 with random weights, which photos change by next to nothing."""
    return repedge.compile(
        "yolov5n_repvit_m0_6", random_weights=True, input_size=nets.SIZE, targets=["openvino"],
        precisions=["fp16"], out=tmp_path_factory.mktemp("untrained"), images=own,
    )  # fmt: skip


@pytest.mark.slow
def test_a_network_that_nobody_trained_is_verified(untrained: repedge.api.CompileReport) -> None:
    verify = untrained.bundles[0].verify
    assert verify.failures == ()
    assert verify.matched["n"] == 0
    assert any("finds 0 objects with a score of 0.25" in remark for remark in verify.remarks)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "why"), [FAULTS[0], FAULTS[2], FAULTS[3], FAULTS[5]])
def test_its_faults_are_seen_by_its_candidates(
    fault: Fault, why: str, untrained: repedge.api.CompileReport, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verified(untrained.bundles[0].path, own, monkeypatch, fault)
    assert any(re.search(why, sentence) for sentence in found.failures), found.failures
