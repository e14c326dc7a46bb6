"""Segmenters: recognized, decoded to the pixel, verified with faults planted, calibrated on pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_files import demo_files
from segment_nets import FAULTS, Segmenter, moved, swapped
from torch import nn
from torch.nn.functional import interpolate

import repedge
from repedge import tasks
from repedge.bundle.folder import Bundle
from repedge.bundle.manifest import task_of
from repedge.calib.distance import Distance
from repedge.errors import UserError
from repedge.graph.export import export_module
from repedge.judge import verification
from repedge.tasks.base import Network, Output
from repedge.tasks.masks import maps
from repedge.tasks.masks.comparison import Scores
from repedge.tasks.segment import Segment
from repedge.tasks.view import View

LABELS = tuple("abcde")


def segmenter(classes: int = 5, end: str = "whole", size: int = 64, cells: int = 64) -> Segment:
    """The task of a signature."""
    kept = 1 if end == "argmax" else max(1, classes)
    activation = "none" if end == "whole" else end
    settings = {"activation": activation, "classes": max(classes, 2), "size": [size, size]}
    task = Segment(Network((Output("scores", (kept, cells, cells)),), settings=settings))
    assert isinstance(task, Segment)
    return task


@pytest.mark.parametrize(
    ("classes", "end", "says"),
    [
        (5, "whole", "scores of 5 classes for each pixel"),
        (5, "quarter", "scores of 5 classes for each pixel, of 8x8 cells"),
        (3, "softmax", "probabilities of 3 classes for each pixel"),
        (1, "sigmoid", "a mask (one class and what is none) for each pixel"),
        (7, "argmax", "a map of 7 classes for each pixel"),
        (7, "kept", "a map of 7 classes for each pixel"),
        (3, "whole", ""),  # a picture, for all that the graph says
        (1, "whole", ""),
        (64, "quarter", ""),  # features
    ],
)
def test_the_graph_says_whether_it_is_a_segmenter(classes: int, end: str, says: str) -> None:
    graph = export_module(Segmenter(classes, end).eval(), (1, 3, 32, 32))
    task = tasks.of_graph(graph)
    assert (task.name, task.describe()) == (("segment", says) if says else ("raw", "1 raw output"))


class Maps(nn.Module):
    """Several maps of one convolution each."""

    def __init__(self, *heads: tuple[int, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(3, c, 3, s, 1) for c, s in heads)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [head(x) for head in self.heads]


@pytest.mark.parametrize(
    ("heads", "name"),
    [
        (((21, 8), (21, 8)), "segment"),  # an auxiliary head
        (((18, 8), (18, 16)), "raw"),  # a detector's
        (((20, 4), (2, 4), (2, 4)), "raw"),  # peaks, sizes and offsets
        (((24, 2), (24, 8)), "raw"),
    ],
)
def test_maps_of_different_kinds_or_sizes_are_no_segmenter(heads: Any, name: str) -> None:
    assert tasks.of_graph(export_module(Maps(*heads).eval(), (1, 3, 64, 64))).name == name


def test_the_user_says_what_the_graph_cannot() -> None:
    three = export_module(Segmenter(3).eval(), (1, 3, 32, 32))
    told = tasks.of_graph(three, told="segment")
    assert isinstance(told, Segment)
    assert told.describe() == "scores of 3 classes for each pixel"
    assert tasks.of_graph(three, labels=("sky", "road", "car")).name == "segment"
    mask = tasks.of_graph(export_module(Segmenter(1).eval(), (1, 3, 32, 32)), ("cat",), told="segment")
    assert isinstance(mask, Segment)
    assert (mask.threshold, mask.names) == (0.0, ("background", "cat"))
    with pytest.raises(UserError, match="there are 4 labels, but output '.*' has 3 classes"):
        tasks.of_graph(three, tuple("abcd"), told="segment").check_labels()
    pooled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match=r"can't be segment: no output is a map of scores \[classes, height"):
        tasks.of_graph(export_module(pooled.eval(), (1, 3, 32, 32)), told="segment")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "relu", "classes": 5, "size": [64, 64]},
        {"activation": "none", "classes": True, "size": [64, 64]},
        {"activation": "none", "classes": 5, "size": [64, 1 << 40]},
        {"activation": "none", "classes": 5, "size": "64"},
        {"activation": "none", "classes": 6, "size": [64, 64]},
        {"activation": "none", "classes": 5, "size": [8, 8]},
    ],
)
def test_settings_of_a_bundle_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    network = Network((Output("scores", (5, 16, 16)),), settings=settings)
    with pytest.raises(UserError, match="the task can't be segment"):
        tasks.recognize(network, "segment")


# --- label maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "size"), [((8, 8), (64, 64)), ((13, 9), (97, 66)), ((5, 7), (5, 7))])
def test_scores_are_enlarged_as_torch_does_and_then_compared(
    cells: tuple[int, int], size: tuple[int, int]
) -> None:
    scores = np.random.default_rng(0).normal(size=(6, *cells)).astype(np.float32)
    exact = torch.from_numpy(scores.astype(np.float64))[None]
    want = interpolate(exact, size=size, mode="bilinear", align_corners=False)[0].numpy()
    got = np.stack([maps.enlarged(plane, size) for plane in scores]) / maps.weight_of(cells, size)
    np.testing.assert_allclose(got, want, atol=1e-12)
    found = maps.of_scores(scores, size)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, want.argmax(0))
    np.testing.assert_array_equal(maps.of_mask(scores[0], size, 0.25), want[0] > 0.25)


def test_of_equal_scores_the_first_is_best_and_nan_never_is() -> None:
    scores = np.zeros((3, 2, 2), np.float32)
    scores[1, 0] = 1
    scores[2, 0] = 1
    scores[0, 1, 1] = np.nan
    np.testing.assert_array_equal(maps.of_scores(scores, (2, 2)), [[1, 1], [0, 1]])
    assert maps.of_scores(np.zeros((256, 1, 1)), (1, 1)).dtype == np.uint16


def test_a_map_is_put_back_onto_the_photo() -> None:
    """In the letterbox of a photo of 8x4 in 4x4, the rows in the middle are the photo, twice as large."""
    ids = np.arange(16, dtype=np.uint8).reshape(4, 4)
    found = maps.on_photo(ids, View((8, 4), (4, 2), 0, 1, (4, 4)), 255)
    np.testing.assert_array_equal(found, np.repeat(np.repeat(ids[1:3], 2, 0), 2, 1))
    cut = maps.on_photo(ids, View((8, 4), (8, 4), -2, 0, (4, 4)), 255)  # the middle was cut out
    np.testing.assert_array_equal(cut[:, 2:6], ids)
    assert (cut[:, :2] == 255).all()
    assert (cut[:, 6:] == 255).all()


@pytest.mark.parametrize("end", ["whole", "softmax", "sigmoid", "argmax"])
def test_the_answer_is_a_map_of_the_inputs_size(end: str) -> None:
    classes = 1 if end == "sigmoid" else 5
    graph = export_module(Segmenter(classes, end).eval(), (1, 3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    task = tasks.of_graph(graph)
    assert isinstance(task, Segment)
    with torch.no_grad():
        y = Segmenter(classes, end).eval()(x).numpy()
        scores = Segmenter(classes, "whole").eval()(x).numpy()
    found = np.stack(task.decode([y]))
    np.testing.assert_array_equal(found, scores.argmax(1) if classes > 1 else scores[:, 0] > 0)
    quarter = tasks.of_graph(export_module(Segmenter(5, "quarter").eval(), (1, 3, 32, 32)))
    assert isinstance(quarter, Segment)
    if end == "whole":  # enlarged by the task instead of the network
        with torch.no_grad():
            cells = Segmenter(5, "quarter").eval()(x).numpy()
        assert (np.stack(quarter.decode([cells])) == found).mean() > 0.999


def test_colours_are_those_of_voc() -> None:
    assert maps.colours(22)[:3] == [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    assert maps.colours(22)[15:21:5] == [(192, 128, 128), (0, 64, 128)]  # person, tv monitor


# --- how near ------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    """Of four pixels, one of class 0 becomes 1: IoU 1/2 and 1/2, and 1 of the class that stays."""
    meter = segmenter(3, cells=2, size=2).meter(0)
    want, got = np.zeros((1, 3, 2, 2)), np.zeros((1, 3, 2, 2))
    for (y, x), (a, b) in {(0, 0): (0, 0), (0, 1): (0, 1), (1, 0): (1, 1), (1, 1): (2, 2)}.items():
        want[0, a, y, x] = got[0, b, y, x] = 1
    meter.update(want, got)
    assert meter.figures() == {"pixel_agreement": 0.75, "miou_float": pytest.approx(2 / 3)}


@pytest.mark.parametrize("end", ["whole", "softmax", "sigmoid", "mask"])
def test_nearness_is_the_divergence_of_a_pixel_and_its_curvature_fits(end: str) -> None:
    """Against the sums written out, and the second derivative by differences."""
    channels = 1 if end == "mask" else 4
    told = {"mask": "none", "whole": "none"}.get(end, end)
    settings = {"activation": told, "classes": max(channels, 2), "size": [2, 3]}
    task = Segment(Network((Output("y", (channels, 2, 3)),), settings=settings))
    torch.manual_seed(0)
    logits = torch.randn(2, channels, 2, 3, dtype=torch.float64)
    want = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid()}.get(end, logits)
    step = 1e-3 * torch.randn_like(want)
    if end == "softmax":
        step -= step.mean(1, keepdim=True)
    got = (want + step).requires_grad_()
    near = task.nearness([got], [want])
    assert near is not None
    p, q = (
        {"whole": lambda y: y.softmax(1), "mask": torch.sigmoid}.get(end, lambda y: y)(y) for y in (want, got)
    )
    terms = p * (p / q).log()
    if end in ("mask", "sigmoid"):
        terms = terms + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(near, terms.sum(1).mean((1, 2)), rtol=1e-6, atol=1e-12)
    near.sum().backward()
    assert got.grad is not None
    assert float(got.grad.abs().max()) > 0
    signs = torch.Generator().manual_seed(0)
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(4000):
        (v,) = task.curvature([want], lambda y: torch.randint(0, 2, y.shape, generator=signs) * 2.0 - 1)
        assert v is not None
        total += (v * step).flatten(1).sum(1) ** 2 / 4000
    torch.testing.assert_close(total, near.detach(), rtol=0.1, atol=0)


def test_calibration_counts_pixels_of_other_classes() -> None:
    graph = export_module(Segmenter(5).eval(), (1, 3, 32, 32))
    distance = Distance.of(graph)
    want = np.random.default_rng(0).normal(size=(2, 5, 32, 32)).astype(np.float32)
    up = want + np.float32(0.5)  # all scores: no pixel is of another class
    other = want + 0.5 * np.sign(np.random.default_rng(1).normal(size=want.shape)).astype(np.float32)
    assert distance.cost([want], [other]) > 1.5 * distance.cost([want], [up]) > 0


# --- through the pipeline ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp16", "w8a8"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segment")
    given: dict[str, Any] = {}
    if request.param == "w8a8":
        given = {"calib": demo_files(out / "photos", classes=False), "calib_count": 16, "recipe": "fast"}
    report = repedge.compile(
        Segmenter(), targets=["tflite"], precisions=[request.param], input_size=64, out=out, labels=LABELS,
        **given,
    )  # fmt: skip
    return report.bundles[0].path


def test_a_segmenter_is_compiled_and_verified_as_one(compiled: Path, cli) -> None:
    m = Bundle.open(compiled).manifest
    assert (m.task, m.answer) == ("segment", {"activation": "none", "classes": 5, "size": [64, 64]})
    assert task_of(m).describe() == "scores of 5 classes for each pixel, named"
    verify = m.verification
    assert verify is not None
    assert verify.passed
    assert not verify.failures
    assert verify.pixel_agreement > 0.97
    assert verify.miou_float > 0.85
    assert [(p.name, p.unit, p.start, p.stop) for p in verify.parts] == [("scores", "logit", 0, 5)]
    code, out, _ = cli("verify", compiled)
    assert code == 0
    assert "pixels" in out


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_not_verified(
    compiled: Path, fault: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into what the artifact gives, whose layout has the classes last."""
    opened = verification.open_bundle

    def wrong(*given: Any) -> Any:
        target, runner = opened(*given)
        run = runner.run

        def broken(*more: Any) -> list[np.ndarray]:
            return [fault(y) for y in run(*more)]

        monkeypatch.setattr(runner, "run", broken, raising=False)
        return target, runner

    monkeypatch.setattr(verification, "open_bundle", wrong)
    found = repedge.verify(compiled)
    assert not found.passed
    assert any(FAULTS[fault] in why for why in found.failures), found.failures


def test_faults_are_seen_in_noise_that_hides_them() -> None:
    """Scores at 12 dB, which integers may cost: the right map passes, it moved or mixed does not."""
    rng = np.random.default_rng(0)
    smooth = interpolate(torch.from_numpy(rng.normal(size=(16, 8, 8, 8))), scale_factor=8, mode="bicubic")
    want = smooth.numpy()
    want[:, 6:] *= 0.3  # two classes that are nowhere the best
    want[:, 6:] -= 1.0
    noise = rng.normal(size=want.shape) * np.sqrt((want**2).mean()) * 10 ** (-12 / 20)
    for plant, said in ((lambda y: y, ""), (moved, "moved right"), (swapped, "classes 6 and 7 have changed")):
        meter = Scores(classes=8)
        meter.update(want, plant(want) + noise)
        faults = meter.faults()
        assert 9 < meter.sqnr_db < 13  # of a word whose floor is 8
        assert said in " ".join(faults)
        assert bool(faults) == bool(said)


def test_a_class_that_no_pixel_keeps_is_lost() -> None:
    rng = np.random.default_rng(0)
    want = interpolate(torch.from_numpy(rng.normal(size=(4, 8, 4, 4))), scale_factor=8).numpy()
    got = want + 0.02 * rng.normal(size=want.shape)
    got[:, 3] -= 1.5  # its bias, gone
    meter = Scores(classes=8, labels=tuple("abcdefgh"))
    meter.update(want, got)
    assert meter.sqnr_db > 3
    assert [f[:18] for f in meter.faults()] == ["class 'd' is lost:"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["coreml", "openvino", "gpu"])
@pytest.mark.parametrize(
    ("classes", "end"), [(5, "whole"), (5, "quarter"), (1, "sigmoid"), (5, "softmax"), (5, "argmax")]
)
def test_every_end_is_verified_on_every_target(target: str, classes: int, end: str, tmp_path: Path) -> None:
    photos = demo_files(tmp_path / "photos", classes=False)
    for precision in ("fp16", "w8a8"):
        given: dict[str, Any] = {}
        if precision == "w8a8":
            given = {"calib": photos, "calib_count": 16, "recipe": "fast"}
        report = repedge.compile(
            Segmenter(classes, end), targets=[target], precisions=[precision], input_size=64, out=tmp_path,
            **given,
        )  # fmt: skip
        assert report.task is not None
        assert report.task.name == "segment"
        verify = report.bundles[0].verify
        assert verify.passed
        assert verify.pixel_agreement > 0.97
