"""What a network's own BatchNorms say of the preprocessing, and where its values are from."""

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
from repedge.bundle.folder import Bundle
from repedge.config import Preprocess
from repedge.graph.analysis.batchnorms import first_batchnorms, impression
from repedge.graph.export import export_module
from repedge.judge.statistics import oddities
from repedge.models.source import resolve
from repedge.photos import images
from repedge.photos.photos import bundled_photos, demo_photos, stacked

IMAGENET = Preprocess(size=(96, 96), resize=110)
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
BYTES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}


class First(nn.Module):
    """A first layer whose BatchNorm has seen images."""

    def __init__(self, x: np.ndarray, stride: int) -> None:
        super().__init__()
        torch.manual_seed(stride)
        self.conv, self.norm = nn.Conv2d(3, 24, 5, stride, 2), nn.BatchNorm2d(24, momentum=None)
        with torch.no_grad():
            self.train()(torch.from_numpy(x))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)).relu().mean((2, 3))


def photos_for(pre: Preprocess, which: slice) -> np.ndarray:
    return images.normalise(stacked(bundled_photos(pre), pre)[which], pre)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("trained", [{}, PLAIN, BYTES])
@pytest.mark.parametrize("given", [{}, PLAIN, BYTES])
def test_another_scale_of_pixels_than_in_training_is_seen(
    trained: dict[str, Any], given: dict[str, Any], stride: int
) -> None:
    """Trained on one half of the photos, asked of the other."""
    module = First(photos_for(IMAGENET.model_copy(update=trained), slice(0, 8)), stride)
    pre = IMAGENET.model_copy(update=given)
    found = oddities(export_module(module, (1, 3, 96, 96)), pre, photos_for(pre, slice(8, 16)))
    assert bool(found) == (trained != given)
    assert all("the preprocessing looks wrong" in sentence for sentence in found)


def test_the_average_training_image_is_what_it_was() -> None:
    x = photos_for(IMAGENET, slice(0, 16))
    graph = export_module(First(x, 2), (1, 3, 96, 96))
    found = impression(graph, x)
    assert found is not None
    assert found.mean == pytest.approx(x.mean((0, 2, 3)), abs=0.1)
    assert found.contrast == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["repvit_demo", "repvgg_demo"])
def test_trained_networks_find_their_own_preprocessing_right(name: str) -> None:
    source = resolve(name)
    graph = source.graph()
    assert first_batchnorms(graph)
    for photos in (demo_photos(), bundled_photos(IMAGENET)):
        for update, odd in (({}, False), (PLAIN, True), (BYTES, True)):
            pre = source.preprocess.model_copy(update=update)
            x = images.normalise(stacked(photos, pre, 16), pre)
            assert bool(oddities(graph, pre, x)) == odd


def test_networks_without_learned_statistics_say_nothing() -> None:
    x = np.full((4, 3, 96, 96), 100, np.float32)
    for module in (nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))):
        assert oddities(export_module(module.eval(), (1, 3, 96, 96)), IMAGENET, x) == []


@pytest.mark.slow
def test_compile_says_where_the_preprocessing_is_from_and_what_is_odd(tmp_path: Path, cli: Any) -> None:
    code, out, err = cli("compile", "-t", "tflite", "-o", tmp_path, "--mean", "0", "--std", "1")
    assert code == 0
    assert "repvit_demo's own" in out
    assert "mean 0,0,0 (--mean)" in out
    assert "the preprocessing looks wrong" in err
    code, out, err = cli("compile", "-t", "tflite", "-o", tmp_path, "--force", "--json")
    answer = json.loads(out)
    assert answer["warnings"] == []
    assert set(answer["preprocess_from"].values()) == {"repvit_demo's own"}
    manifest = Bundle.open(answer["bundles"][0]["path"]).manifest
    assert manifest.preprocess_from == answer["preprocess_from"]
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(UserWarning, match="initial values"):
        report = repedge.compile(module, targets=["tflite"], input_size=32, out=tmp_path, resize="squash")
    said = {"size": "--input-size", "resize": "--resize"}
    assert dict(report.preprocess_from) == {
        **dict.fromkeys(("size", "color", "resize", "interpolation", "mean", "std"), "assumed"), **said
    }  # fmt: skip


@pytest.mark.slow
def test_with_labels_at_hand_the_table_has_top1_of_both(tmp_path: Path, cli: Any) -> None:
    photos = demo_files(tmp_path / "photos")
    command = ("compile", "-t", "tflite", "-o", tmp_path / "out", "--images", photos, "--count", "64")
    code, out, _ = cli(*command)
    assert code == 0
    assert "float top-1" in out
    found = repedge.verify(next((tmp_path / "out").iterdir()), images=photos, count=64)
    want = repedge.evaluate(None, photos).top1
    assert found.truth == {"top1": want, "float_top1": want, "labelled": 64}
