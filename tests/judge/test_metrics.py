"""Comparison figures against their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from repedge import targets, tasks
from repedge.bundle.manifest import Verification
from repedge.graph.analysis.resolution import Resolution
from repedge.judge.verdict import Bar, judge
from repedge.judge.verification import summarize
from repedge.precision import THRESHOLDS
from repedge.targets.base import TensorSpec
from repedge.tasks.base import wilson
from repedge.tasks.comparison import Agreement


def compared(*outputs: tuple[np.ndarray, np.ndarray]) -> Agreement:
    """Reference and actual of each output, called a, b, ...; image by image, as they stream in."""
    named = zip("abc", outputs, strict=False)
    task = tasks.of_outputs([TensorSpec(name, "float32", ref.shape) for name, (ref, _) in named])
    found = Agreement(task)
    for i in range(len(outputs[0][0])):
        found.update([ref[i : i + 1] for ref, _ in outputs], [act[i : i + 1] for _, act in outputs])
    return found


def test_figures_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    ref = rng.normal(size=(20, 7))
    act = ref + 0.1 * rng.normal(size=ref.shape)
    c = compared((ref, act))
    assert c.sqnr_db == pytest.approx(10 * math.log10((ref**2).sum() / ((act - ref) ** 2).sum()))
    assert c.max_abs_err == pytest.approx(np.abs(act - ref).max())
    assert c.figures()["agree_top1"] == (ref.argmax(1) == act.argmax(1)).mean()
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (ref, act))
    assert c.figures()["kl"] == pytest.approx((p * np.log(p / q)).sum(1).mean())


def test_equal_outputs_are_capped_and_maps_have_no_classes() -> None:
    maps = np.ones((2, 3, 4, 4))
    c = compared((maps, maps))
    assert (c.sqnr_db, c.figures()) == (200.0, {})


def verdict(precision: str, ref: np.ndarray, act: np.ndarray) -> list[str]:
    return judge(Bar(precision, THRESHOLDS[precision]), compared((ref, act))).failures


@pytest.mark.slow
def test_thresholds_catch_errors_nan_and_flips() -> None:
    ref = np.array([[1.0, 2.0, 5.0]])
    assert verdict("fp32", ref, ref * (1 + 1e-7)) == []
    assert "relative error" in " ".join(verdict("fp32", ref, ref * (1 + 1e-3)))
    assert "NaN" in " ".join(verdict("fp16", ref, ref * np.nan))
    flipped = np.array([[1.0, 2.0, 5.0]] * 40000)
    wrong = flipped.copy()
    wrong[0] = [1, 5, 2]
    assert verdict("fp16", flipped[:2000], wrong[:2000]) != []


def test_a_flip_between_equal_classes_is_a_tie() -> None:
    ref = np.array([[5.0, 4.9999, 0.0]])
    act = np.array([[4.9999, 5.0, 0.0]])
    assert verdict("fp16", ref, act) == []
    assert verdict("fp16", np.array([[5.0, 4.5, 0.0]]), np.array([[4.5, 5.0, 0.0]])) != []


def test_summary_takes_the_worst_output() -> None:
    ones = np.ones((1, 2))
    bar = Bar("fp16", THRESHOLDS["fp16"])
    result = summarize(targets.get("gpu"), bar, compared((ones, ones), (ones, np.zeros((1, 2)))), source="y")
    assert isinstance(result, Verification)
    assert not result.passed
    assert result.sqnr_db == 0
    assert all("'b'" in f for f in result.failures)


def test_every_precision_word_has_a_threshold_with_a_reason() -> None:
    offered = {(t, p) for t in targets.installed() for p in t.precisions}
    assert {p for _, p in offered} == set(THRESHOLDS)
    assert all(t.threshold(p).why for t, p in offered)


def test_intervals_of_shares_are_wilsons() -> None:
    """Against the roots of |p - x/n| = z sqrt(p (1 - p) / n), which define them."""
    for hits, n in ((401, 418), (16, 16), (0, 5), (8, 16)):
        low, high = wilson(hits / n, n)
        roots = np.roots([1 + 1.959964**2 / n, -2 * hits / n - 1.959964**2 / n, (hits / n) ** 2])
        assert (low, high) == pytest.approx(sorted(roots.real), abs=1e-9)


def test_shares_say_how_many_images_are_behind_them() -> None:
    top1 = tasks.figure("agree_top1")
    assert top1.text(0.959, 418) == "95.90% of 418 (93.5% to 97.4%)"
    assert top1.text(0.5, 4) == "2 of 4"
    assert top1.text(0.5) == "50.00%"
    assert tasks.figure("kl").text(0.5, 4) == "5.00e-01 nats"
    assert tasks.figure("cosine").interval(0.5, 100) is None


def test_verification_keeps_its_intervals_in_json_and_follows_them_from_its_figures() -> None:
    ref = np.eye(20)
    act = ref.copy()
    act[3] = ref[4]
    bar = Bar("fp16", THRESHOLDS["fp16"])
    found = summarize(targets.get("gpu"), bar, compared((ref, act)), source="y")
    written = json.loads(found.model_dump_json())
    assert written["agree_top1"] == 0.95
    assert written["intervals"] == {"agree_top1": pytest.approx([0.7639, 0.9911], abs=1e-4)}
    assert Verification.model_validate(written) == found


def test_a_rejection_names_what_to_try_and_a_floor_that_was_set_has_no_exception() -> None:
    ref = np.array([[1.0, 2.0, 5.0]])
    found = compared((ref, ref * 1.3))
    bar = Bar("fp16", THRESHOLDS["fp16"])
    (why,) = judge(bar, found).failures
    assert why.endswith("--images, or take a precision with more bits")
    (why,) = judge(Bar("w8a8", THRESHOLDS["w8a8"], 60.0), found).failures
    assert "lower --min-sqnr" in why
    integers = Bar("w8a8", THRESHOLDS["w8a8"], simulated=compared((ref, ref * 2)))
    (why,) = judge(integers, compared((ref, ref * 2))).failures
    assert "--keep-float" in why
    exact = [Resolution(np.full_like(ref, 1e9), ref * 0)]
    assert judge(Bar("fp16", THRESHOLDS["fp16"], resolve=lambda: exact), found).failures == []
    assert judge(Bar("fp16", THRESHOLDS["fp16"], 20.0, resolve=lambda: exact), found).failures
