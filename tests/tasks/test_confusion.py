"""mIoU and pixel accuracy by hand, and by sums over single pixels."""

from __future__ import annotations

import numpy as np
import pytest

from repedge.tasks.confusion import Confusion
from repedge.tasks.resampling import bootstrap, change


def scored(found: list, wanted: list, classes: int) -> Confusion:
    scorer = Confusion(lambda outputs: [np.array(f) for f in found], classes)
    scorer.update([], [np.array(w, np.uint8) for w in wanted])
    return scorer


def test_by_hand() -> None:
    """Class 0: 2 of 3 or 4 right; class 1: 1 of 2; class 2 is nowhere; 255 is not counted."""
    result = scored([[[0, 0, 1, 1]], [[0, 2, 0, 0]]], [[[0, 0, 0, 1]], [[255, 255, 255, 255]]], 3).score()
    assert result == {"miou": pytest.approx((2 / 3 + 1 / 2) / 2), "pixel_acc": 0.75}


def test_a_class_that_was_found_and_is_not_there_counts_as_wrong() -> None:
    assert scored([[[0, 0, 0, 2]]], [[[0, 0, 0, 0]]], 3).score()["miou"] == pytest.approx(0.75 / 2)


def test_as_sums_over_pixels_and_paired_over_photos() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 4, (12, 9, 7))
    wanted[rng.uniform(size=wanted.shape) < 0.1] = 255
    maps = [
        np.where(rng.uniform(size=wanted.shape) < r, rng.integers(0, 4, wanted.shape), np.minimum(wanted, 3))
        for r in (0.1, 0.3)
    ]
    exact, mine = (scored(list(m), list(wanted), 4) for m in maps)
    known = wanted != 255
    shares = []
    for c in range(4):
        a, b = (maps[0] == c) & known, (wanted == c) & known
        shares.append((a & b).sum() / (a | b).sum())
    assert exact.score()["miou"] == pytest.approx(np.mean(shares))
    assert exact.score()["pixel_acc"] == pytest.approx((maps[0] == wanted)[known].mean())
    assert exact.hits()[3] == pytest.approx((maps[0][3] == wanted[3])[known[3]].mean())
    lost = change(exact, mine)
    assert lost.value == pytest.approx(exact.score()["miou"] - mine.score()["miou"])
    assert 0 < lost.low < lost.value < lost.high
    assert change(exact, exact).error == 0


def test_nothing_known_gives_no_metric() -> None:
    assert scored([[[0, 1]]], [[[255, 255]]], 2).score() == {}
    assert scored([[[0, 1]]], [[[255, 255]]], 2).hits().tolist() == [1]
    assert change(scored([[[0, 1]]], [[[255, 255]]], 2), scored([[[0, 1]]], [[[255, 255]]], 2)) is None


def test_the_bootstrap_of_a_mean_is_the_textbooks() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = bootstrap(lambda counts: counts @ values / 400, 400, 4000)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(error, rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.02
    )
