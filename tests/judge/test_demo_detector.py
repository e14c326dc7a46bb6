"""The bundled detector: trained, compiled and judged without a download; photos where nobody names some."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from places import SHARED
from torch import nn

import repedge
from repedge import cli
from repedge.api import CompileReport
from repedge.errors import UserError

pytest.importorskip("hotcoco")


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> CompileReport:
    out = tmp_path_factory.mktemp("detector")
    return repedge.compile("demo-detect", targets=["openvino"], precisions=["fp32"], out=out)


@pytest.mark.slow
def test_the_detector_is_verified_on_photos_of_what_it_finds(bundle: CompileReport) -> None:
    (made,) = bundle.bundles
    assert bundle.passed
    assert made.path.name == "demo_detect-openvino-fp32"
    assert (made.verify.n, made.verify.images) == (16, "bundled photos of blood cells")
    again = repedge.verify(made.path)
    assert (again.passed, again.images) == (True, "bundled photos of blood cells")
    manifest = (made.path / "manifest.json").read_text()
    assert '"license": "MIT"' in manifest


@pytest.mark.slow
def test_eval_without_photos_takes_the_bundled_ones(bundle: CompileReport) -> None:
    found = repedge.evaluate(bundle.bundles[0].path)
    assert (found.n, found.labelled) == (16, 16)
    assert found.metrics["map50"] is not None
    assert found.metrics["map50"] > 0.9
    assert found.lost is not None
    assert abs(found.lost.value) < 0.005


@pytest.mark.slow
def test_the_page_of_bundled_photos_says_so(bundle: CompileReport, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["eval", str(bundle.bundles[0].path), "--limit", "4", "--html", str(tmp_path / "page.html")])
    assert not done.value.code
    assert "bundled photos" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "bccd.zip").exists(), reason="needs shared/data")
def test_the_detector_keeps_what_was_promised_on_all_of_val() -> None:
    found = repedge.evaluate("demo-detect", SHARED / "data" / "bccd.zip")
    assert found.n == 87
    assert found.metrics["map50"] is not None
    assert found.metrics["map50"] >= 0.85


def test_bundled_photos_say_nothing_to_a_network_of_other_classes() -> None:
    with pytest.raises(UserError, match="eval needs photos: .*name a folder"):
        repedge.evaluate(Classes(), input_size=96)
