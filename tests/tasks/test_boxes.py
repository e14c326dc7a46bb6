"""Boxes against values worked out by hand, and suppression against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from repedge.tasks.boxes import Detections, Objects, iou, match, nms


def f32(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def found(boxes: np.ndarray, scores: list[float], classes: list[int]) -> Detections:
    return Detections(boxes, np.array(scores, np.float32), np.array(classes, np.int32))


def test_intersection_over_union_by_hand() -> None:
    a = f32((0, 0, 4, 2), (5, 5, 5, 5), (3, 3, 1, 1))
    b = f32((2, 1, 6, 3), (0, 0, 4, 2), (10, 10, 11, 11), (5, 5, 5, 5))
    want = [[2 / 14, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]  # two of them have no area
    assert iou(a, b) == pytest.approx(np.array(want), abs=1e-7)
    assert iou(a, b).dtype == np.float32
    assert iou(a[:0], b).shape == (0, 4)


def plain(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, overlap: float, most: int) -> list[int]:
    """The definition, candidate by candidate."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if classes[k] == classes[i]]
        if len(kept) < most and all(iou(boxes[k : k + 1], boxes[i : i + 1])[0, 0] <= overlap for k in rivals):
            kept.append(i)
    return kept


def test_suppression_is_by_class_and_ties_go_to_the_lower_index() -> None:
    boxes = f32((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30))
    scores = np.array([0.5, 0.9, 0.9, 0.8, 0.5], np.float32)
    classes = np.array([1, 0, 0, 0, 0], np.int32)
    assert nms(boxes, scores, classes, 0.5).tolist() == [1, 3, 0, 4]  # an overlap of 0.5 is not over 0.5
    assert nms(boxes, scores, classes, 0.49).tolist() == [1, 0, 4]
    assert nms(boxes, scores, classes, 0.49, most=2).tolist() == [1, 0]
    assert nms(boxes[:0], scores[:0], classes[:0]).tolist() == []


def test_suppression_of_many_is_as_defined() -> None:
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 60, (300, 2)), rng.uniform(5, 30, (300, 2))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    scores, classes = rng.integers(0, 40, 300).astype(np.float32) / 40, rng.integers(0, 3, 300)
    for most in (10, 300):
        assert nms(boxes, scores, classes, 0.4, most).tolist() == plain(boxes, scores, classes, 0.4, most)


def test_a_hundred_thousand_candidates_are_no_problem() -> None:
    boxes = np.tile(f32((0, 0, 10, 10)), (100_000, 1))
    boxes += np.arange(100_000, dtype=np.float32)[:, None] % 1000
    kept = nms(boxes, np.linspace(1, 0, 100_000).astype(np.float32), np.zeros(100_000, np.int32))
    assert kept.tolist() == list(range(0, 600, 2))  # shifted by 1 they share 81 of 119, by 2 64 of 136


def test_each_object_is_matched_once_and_the_best_detection_chooses_first() -> None:
    boxes = f32((0, 0, 10, 10), (0, 0, 10, 9), (0, 0, 10, 8), (40, 40, 50, 50))
    mine = found(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    truth = Objects(f32((0, 0, 10, 7), (0, 0, 10, 10), (60, 60, 70, 70)), np.array([0, 0, 0], np.int32),
                    np.zeros(3, bool))  # fmt: skip
    left, right = match(mine, truth)
    assert list(zip(left, right, strict=True)) == [(0, 1), (1, 0)]
    assert [len(side) for side in match(mine, mine)] == [4, 4]
    assert [len(side) for side in match(mine[:0], truth)] == [0, 0]
    assert [len(side) for side in match(mine, mine[:0])] == [0, 0]
