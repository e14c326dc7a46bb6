"""mAP by hand, by another library, and what its interval covers."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from repedge.errors import MissingExtra
from repedge.tasks.average_precision import MeanAveragePrecision, apart, f1, sure
from repedge.tasks.boxes import Detections, Objects
from repedge.tasks.resampling import change

Rows = Sequence[tuple[tuple[float, float, float, float], float, int]]


def found(rows: Rows) -> Detections:
    ordered = sorted(rows, key=lambda r: -r[1])
    return Detections(
        np.array([b for b, _, _ in ordered], np.float32).reshape(-1, 4),
        np.array([s for _, s, _ in ordered], np.float32),
        np.array([c for _, _, c in ordered], np.int32),
    )


def wanted(
    rows: Sequence[tuple[tuple[float, float, float, float], int]], ignored: Sequence[int] = ()
) -> Objects:
    return Objects(
        np.array([b for b, _ in rows], np.float32).reshape(-1, 4),
        np.array([c for _, c in rows], np.int32),
        np.array([i in ignored for i in range(len(rows))], bool),
    )


def scored(pairs: Sequence[tuple[Detections, Objects]]) -> MeanAveragePrecision:
    scorer = MeanAveragePrecision(lambda outputs: [d for d, _ in pairs])
    scorer.update([], [t for _, t in pairs])
    return scorer


BOX, FAR, TALL = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0), (0.0, 0.0, 10.0, 8.0)


def test_map_by_hand() -> None:
    """Class 0: one object found with an IoU of 0.8, ranked first; the other is missed. Class 1: exact.

    At each IoU up to 0.8, 7 of 10, the curve of class 0 is 1 up to a recall of a half: 51 of 101 points.
    """
    photo = found([(TALL, 0.9, 0), (FAR, 0.8, 1)]), wanted([(BOX, 0), (FAR, 0), (FAR, 1)])
    half = 51 / 101
    result = scored([photo]).score()
    assert result["map50"] == pytest.approx((half + 1) / 2)
    assert result["map50_95"] == pytest.approx((0.7 * half + 1) / 2)


def test_a_wrong_box_ahead_of_the_right_one_halves_it_and_behind_it_costs_nothing() -> None:
    truth = wanted([(BOX, 0)])
    assert scored([(found([(FAR, 0.9, 0), (BOX, 0.8, 0)]), truth)]).score()["map50"] == pytest.approx(0.5)
    assert scored([(found([(FAR, 0.7, 0), (BOX, 0.8, 0)]), truth)]).score()["map50"] == pytest.approx(1)
    # in another photo it is as wrong: scores are ranked over all
    pairs = [(found([(BOX, 0.8, 0)]), truth), (found([(FAR, 0.9, 0)]), wanted([]))]
    assert scored(pairs).score()["map50"] == pytest.approx(0.5)


def test_ignored_objects_are_neither_missed_nor_wrong_and_classes_that_are_not_there_do_not_count() -> None:
    truth = wanted([(BOX, 0), (FAR, 0)], ignored=[1])
    assert scored([(found([(FAR, 0.9, 0), (BOX, 0.8, 0), (BOX, 0.9, 5)]), truth)]).score()[
        "map50"
    ] == pytest.approx(1)
    assert scored([(found([(BOX, 0.8, 0)]), truth)]).score()["map50"] == pytest.approx(1)


def test_nothing_to_be_found_gives_no_metric_and_nothing_found_gives_zero() -> None:
    assert scored([]).score() == {}
    assert scored([(found([(BOX, 0.9, 0)]), wanted([]))]).score() == {}
    assert change(scored([]), scored([])) is None
    assert scored([(found([]), wanted([(BOX, 0)]))]).score() == {"map50_95": 0, "map50": 0}


def random_photos(seed: int, noise: float, count: int = 30) -> list[tuple[Detections, Objects]]:
    truths, rng = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    pairs = []
    for _ in range(count):
        objects, rows = [], []
        for _ in range(truths.integers(0, 6)):
            x, y = truths.uniform(0, 200, 2)
            w, h = truths.uniform(10, 60, 2)
            c = int(truths.integers(0, 4))
            objects.append(((x, y, x + w, y + h), c))
            if rng.uniform() < 0.9:
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, noise, 4)
                rows.append((tuple(moved), float(rng.uniform(0.2, 1)), c))
        for _ in range(5):
            x, y = rng.uniform(0, 200, 2)
            rows.append(((x, y, x + 30, y + 30), float(rng.uniform(0, 0.7)), int(rng.integers(0, 5))))
        pairs.append((found(rows), wanted(objects, ignored=[0] if truths.uniform() < 0.3 else [])))
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_another_library_says_the_same(seed: int) -> None:
    other = pytest.importorskip("faster_coco_eval")
    from repedge.tasks import average_precision as ours

    pairs = random_photos(seed, 2.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = other.COCO(ours._table([t for _, t in pairs]))
        known = set(truth.getCatIds())
        rows = [r for r in ours._rows([d for d, _ in pairs]) if r["category_id"] in known]
        result = other.COCOeval_faster(truth, truth.loadRes(rows), iouType="bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    assert list(scored(pairs).score().values()) == pytest.approx(result.stats[:2], abs=1e-9)


def test_the_interval_of_a_drop_is_paired() -> None:
    """The same errors in both networks cancel; the worse one is surely worse."""
    exact, same, worse = (scored(random_photos(3, noise)) for noise in (1.0, 1.0, 6.0))
    assert change(exact, same).error == 0
    lost = change(exact, worse)
    assert lost.value == pytest.approx(exact.score()["map50_95"] - worse.score()["map50_95"])
    assert 0 < lost.low < lost.value < lost.high
    back = change(worse, exact)
    assert (back.low, back.high) == pytest.approx((-lost.high, -lost.low))
    assert back.error == pytest.approx(lost.error)


def test_a_network_finds_all_that_it_answers() -> None:
    """Its own sure boxes as the truth: what is less sure comes after them, and costs nothing."""
    detections = [d for d, _ in random_photos(5, 2.0)]
    assert scored(list(zip(detections, sure(detections), strict=True))).score() == {
        "map50_95": 1,
        "map50": 1,
    }


def test_f1_of_a_photo() -> None:
    photo = found([(BOX, 0.9, 0), (FAR, 0.8, 0), (FAR, 0.1, 0)])
    assert f1(photo, wanted([(TALL, 0)])) == pytest.approx(2 / 3)
    assert f1(photo, wanted([(TALL, 0), (FAR, 0)], ignored=[1])) == 1
    assert f1(found([]), wanted([])) == 1
    assert f1(found([]), wanted([(BOX, 0)])) == 0


def test_how_far_apart_two_answers_are() -> None:
    a, b = found([(BOX, 0.9, 0), (FAR, 0.8, 1)]), found([(BOX, 0.7, 0)])
    assert apart(a, a) == pytest.approx(0)
    assert apart(a, b) == pytest.approx(1 - 2 * 0.8 / 3)  # one match, of a score that is 0.2 off
    assert apart(a, found([])) == 1
    assert apart(found([]), found([])) == 0


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with pytest.raises(MissingExtra, match=r"mAP needs hotcoco, .*pip install 'repedge\[eval\]'"):
        scored([])
