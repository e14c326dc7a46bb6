"""Accuracy against the truth of data sets, and against float's answers where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import data_sets
import numpy as np
import pytest
from data_sets import NAMES, OBJECTS
from PIL import Image
from segment_nets import Segmenter

import repedge
from repedge import tasks
from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.judge.evaluation import evaluate
from repedge.judge.scoring import FEWEST, ScoringSet, with_truth
from repedge.photos.photos import open_photos
from repedge.tasks.annotations import mapping
from repedge.tasks.average_precision import MeanAveragePrecision, sure
from repedge.tasks.base import Figure, Limit, Network, Output, Task
from repedge.tasks.boxes import Detections

PRE = Preprocess(size=(20, 40), resize=None, mean=(0, 0, 0), std=(1, 1, 1))


class Boxes(Task):
    """Rows of left, top, right, bottom, score, class: [N, rows, 6]."""

    name: ClassVar[str] = "detect"
    metrics: ClassVar[tuple[Figure, ...]] = (Figure("map50_95", "mAP50-95"), Figure("map50", "mAP50"))
    drop: ClassVar[Limit | None] = Limit("map_drop", "mAP drop", "points", "map50_95")
    disagreement: ClassVar[Limit | None] = Limit("map_off", "mAP off", "points", "agree_map50_95")
    annotated: ClassVar[str | None] = "boxes"

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        return False

    def decode(self, outputs: Sequence[np.ndarray]) -> list[Detections]:
        found = []
        for rows in outputs[0]:
            kept = rows[np.argsort(-rows[:, 4], kind="stable")]
            kept = kept[kept[:, 4] > 0]
            found.append(Detections(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int32)))
        return found

    def truths(self, photos: Any) -> Any:
        return mapping.box_truths(photos, self.labels, 2)

    def placed(self, truth: Any, view: Any) -> Any:
        return mapping.placed_boxes(truth, view)

    def as_truths(self, outputs: Sequence[np.ndarray]) -> list[Any]:
        return sure(self.decode(outputs))

    def scorer(self) -> MeanAveragePrecision:
        return MeanAveragePrecision(self.decode)


BOXES = Boxes(Network((Output("y", (4, 6)),), NAMES))


def oracle(folder: Path, off: float = 0.0, missed: str = "") -> Any:
    """Knows the photos by heart: answers with their objects, a number of pixels off, and misses some."""
    known = {}
    for stem, objects in OBJECTS.items():
        rows = np.zeros((4, 6), np.float32)
        for i, (c, box) in enumerate(objects):
            rows[i] = [*(v + off for v in box), 0.9, c]
        for path in folder.rglob(f"{stem}.png"):
            known[np.asarray(Image.open(path)).tobytes()] = rows * (stem not in missed)
    return lambda pixels, inputs: [np.stack([known[p.tobytes()] for p in pixels])]


def test_map_of_a_data_set_and_what_is_lost_of_it(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    found = evaluate(oracle(tmp_path, missed="b"), BOXES, PRE, file, reference=oracle(tmp_path))
    assert found.metrics == pytest.approx({"map50_95": (1 + 51 / 101) / 2, "map50": (1 + 51 / 101) / 2})
    answer = json.loads(json.dumps(found.as_json()))
    assert answer["map50_95_float"] == pytest.approx(1)
    assert answer["drop"] == pytest.approx(100 * 25 / 101)
    low, high = answer["intervals"]["drop"]
    assert low <= answer["drop"] <= high
    assert (answer["n"], answer["labelled"]) == (3, 3)
    assert not any(key.startswith("agree_map") for key in answer)


def test_a_part_of_it_is_asked_for(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    data_sets.photos(tmp_path / "images/train", "ab")
    assert evaluate(oracle(tmp_path), BOXES, PRE, file, split="val").n == 3
    (tmp_path / "images/train/x.png").unlink()
    (tmp_path / "labels/train/a.txt").write_text("")
    assert evaluate(oracle(tmp_path), BOXES, PRE, file, split="train").metrics["map50"] is None  # no objects


def test_without_labels_the_float_models_answers_are_the_truth(tmp_path: Path) -> None:
    data_sets.photos(tmp_path)
    found = evaluate(oracle(tmp_path, off=0.5), BOXES, PRE, tmp_path, reference=oracle(tmp_path))
    assert found.metrics == {"map50_95": None, "map50": None}
    assert found.figures["agree_map50"] == pytest.approx(1)
    assert 0.5 < found.figures["agree_map50_95"] < 1
    assert (found.labelled, found.lost, found.exact) == (0, None, {"map50_95_float": None})
    assert found.as_json()["agree_map50"] == pytest.approx(1)
    assert tasks.figure("agree_top1").title == "top-1 kept"  # which is a figure of its own


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a network with two classes."""
    out = tmp_path_factory.mktemp("segmenter")
    report = repedge.compile(
        Segmenter(2).eval(), targets=["tflite"], precisions=["fp16"], input_size=64, resize="squash", out=out
    )
    return report.bundles[0].path


@pytest.mark.slow
def test_miou_of_a_data_set(segmenter: Path, tmp_path: Path, cli: Any) -> None:
    """Against the truth where there are masks, else against the float network's maps."""
    data_sets.masks(tmp_path)
    code, out, _ = cli("eval", segmenter, "--eval-data", tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["n"], found["labelled"], found["agree_top1"]) == (3, 3, None)
    assert 0 < found["miou"] < 1
    assert found["miou_float"] == pytest.approx(found["miou"], abs=0.02)
    low, high = found["intervals"]["drop"]
    assert low <= found["drop"] <= high
    code, out, _ = cli("eval", segmenter, tmp_path)
    assert "mIoU of float" in out
    data_sets.photos(tmp_path / "photos")
    plain = json.loads(cli("eval", segmenter, tmp_path / "photos", "--json")[1])
    assert (plain["miou"], plain["miou_float"], plain["labelled"]) == (None, None, 0)
    assert plain["agree_miou"] > 0.9
    data_sets.masks(tmp_path, ("val", "valannot"))
    Image.new("L", (40, 20), 9).save(tmp_path / "valannot/b.png")
    code, _, err = cli("eval", segmenter, tmp_path)
    assert code == 2
    assert "b.png has the ids 9, and the model 2 classes" in err


@pytest.mark.slow
def test_bundles_side_by_side(segmenter: Path, tmp_path: Path, cli: Any) -> None:
    data_sets.masks(tmp_path / "set")
    twin = shutil.copytree(segmenter, tmp_path / "twin")
    code, out, _ = cli("eval", "--compare", segmenter, twin, "--data", tmp_path / "set", "--json")
    assert code == 0
    exact, *members = json.loads(out)["members"]
    assert exact["drop"] is None
    for m in members:
        assert m["drop"] == pytest.approx(100 * (exact["miou"] - m["miou"]), abs=1e-9)
    code, out, _ = cli("eval", "--compare", segmenter, twin, "--data", tmp_path / "set/val")
    assert code == 0
    assert "mIoU to float" in out


def test_labels_of_another_data_set_are_refused_before_anything_runs(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    task = Boxes(Network((Output("y", (4, 6)),), ("cat", "dog")))
    with pytest.raises(UserError, match="class 'cell' of .* is none of the model's 2"):
        evaluate(lambda *_: pytest.fail("it ran"), task, PRE, file)


class Session:
    """Stands in for the float graph."""

    def __init__(self, path: Any) -> None:
        self.run = lambda x: oracle(path)((x.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8), x)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_budget_bounds_what_eval_reports(
    tmp_path: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drop of mAP, or what is off of the float model's answers, with its standard error."""
    monkeypatch.setattr("repedge.graph.run.Session", Session)
    monkeypatch.setattr("repedge.judge.scoring.FEWEST", 3)
    assert FEWEST > 3
    file = data_sets.yolo(tmp_path)
    given = with_truth(file if labelled else tmp_path / "images/val", BOXES, PRE, 10)
    scoring = ScoringSet(given, PRE, tmp_path, BOXES)
    score = scoring.score(lambda pixels: oracle(tmp_path, missed="b")(pixels, None), "uint8")
    limit = BOXES.drop if labelled else BOXES.disagreement
    assert score.of(limit) == pytest.approx(100 * 25 / 101)
    assert score.standard_error > 0
    assert score.metrics["float_map50_95"] == (pytest.approx(1) if labelled else None)
    exact = scoring.score(lambda pixels: oracle(tmp_path)(pixels, None), "uint8")
    assert exact.of(limit) == pytest.approx(0)
    other = ScoringSet(with_truth(file, BOXES, PRE, 10), PRE, tmp_path, BOXES)
    (tmp_path / "labels/val/c.txt").write_text("0 .5 .5 .1 .1\n")
    changed = ScoringSet(with_truth(file, BOXES, PRE, 10), PRE, tmp_path, BOXES)
    assert changed.digest != other.digest  # a trial of other labels is not taken from the cache


@pytest.mark.parametrize("labelled", [True, False])
def test_a_budget_on_photos_of_nothing_is_refused(
    tmp_path: Path, labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object in any photo, or none that the float model sees."""
    monkeypatch.setattr("repedge.graph.run.Session", lambda path: type("", (), {"run": nothing}))
    monkeypatch.setattr("repedge.judge.scoring.FEWEST", 3)
    file = data_sets.yolo(tmp_path)
    for labels in tmp_path.glob("labels/val/*.txt"):
        labels.write_text("")
    given = with_truth(file if labelled else tmp_path / "images/val", BOXES, PRE, 10)
    score = ScoringSet(given, PRE, tmp_path, BOXES).score(nothing, "uint8")
    with pytest.raises(UserError, match="on these 3 photos: there is nothing to be found in them"):
        score.of(BOXES.drop if labelled else BOXES.disagreement)


def nothing(x: np.ndarray) -> list[np.ndarray]:
    return [np.zeros((len(x), 4, 6), np.float32)]


def test_yolo_photos_are_turned_as_their_labels_are(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    path = tmp_path / "images/val/a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    photos = open_photos(file, truth="boxes")
    assert photos.annotations.upright
    seen = []

    def forward(pixels: np.ndarray, inputs: np.ndarray) -> list[np.ndarray]:
        seen.append(pixels)
        return [np.zeros((len(pixels), 4, 6), np.float32)]

    evaluate(forward, BOXES, PRE, file)
    turned = np.asarray(
        Image.open(path).transpose(Image.Transpose.ROTATE_270).resize((40, 20), Image.Resampling.BILINEAR)
    )
    assert np.array_equal(seen[0][0], turned)
