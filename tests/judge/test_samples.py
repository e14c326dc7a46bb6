"""The photos that artifacts are judged on: whose they are, and that none was calibrated on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import folder, photos
from PIL import Image
from torch import nn

import repedge
from repedge import tasks
from repedge.config import Preprocess
from repedge.hashing import sha256
from repedge.judge import samples
from repedge.photos.choice import load
from repedge.photos.photos import CELLS, bundled_photos, open_photos
from repedge.tasks.annotations import Marked
from repedge.tasks.base import Network, Output, Task

LARGE = Preprocess(size=(96, 96), resize=110)
SMALL = Preprocess(size=(8, 12), resize=None)


def logits() -> Task:
    return tasks.recognize(Network((Output("y", (10,)),)))


class Net(nn.Module):
    """A classifier of ten classes that has seeded weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def test_bundled_photos_are_real_ones_of_a_fitting_size() -> None:
    large = bundled_photos(LARGE)
    arrays = [np.asarray(item.content) for _, item in large.read(range(large.total or 0))]
    assert [a.shape for a in arrays] == [(256, 256, 3)] * 16
    assert all(a.std() > 20 for a in arrays)
    licences = Path(samples.__file__).parents[1] / "photos" / "bundled" / "LICENSES.md"
    assert all(f"| {name} |" in licences.read_text() for name in large.names or ())
    small = bundled_photos(SMALL)
    assert next(small.read([0]))[1].content.size == (32, 32)  # type: ignore[union-attr]


def test_networks_for_blood_cells_get_photos_of_such_with_their_boxes() -> None:
    cells = bundled_photos(LARGE, CELLS)
    assert (cells.total, bundled_photos(LARGE, CELLS[:2]).name) == (16, "bundled photos")
    for name in cells.names or ():
        content = next(item.content for _, item in cells.read([(cells.names or ()).index(name)]))
        assert isinstance(content, Image.Image)
        assert content.size == (640, 480)
    said = cells.annotations
    assert said is not None
    assert said.classes == CELLS
    first = said.photos["BloodImage_00000.jpg"]
    assert first is not None
    marked = first()
    assert isinstance(marked, Marked)
    assert len(marked.classes) == 20
    assert [260, 177, 491, 376] in marked.boxes.tolist()
    assert said.classes[marked.classes[marked.boxes.tolist().index([260, 177, 491, 376])]] == "WBC"


def test_photos_left_over_by_calibration_are_judged_on_and_stay_out_of_the_bundle(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos", photos(40))
    # The same photo under another name was calibrated on, too.
    for k in range(40):
        Image.open(source / f"{k:03}.png").save(source / f"copy-{k:03}.png")
    used = load(source, SMALL, count=24, seed=3).record.files
    given = samples.Calibrated(open_photos(source, SMALL), set(used.values()), 3)
    found = samples.from_calibration(given, logits(), SMALL, 16)
    assert found is not None
    assert found.judged == 16
    judged = [name for name, _ in found.images[:16]]
    assert not {sha256(source / name) for name in judged} & {sha256(source / name) for name in used}
    bundled = {name for name, _ in samples.from_bundled(logits(), SMALL, 4).images}
    assert {name for name, _ in found.images[found.golden]} == bundled


def test_too_few_left_over_photos_and_streams_give_way_to_bundled_ones(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos", photos(20))
    used = set(load(source, SMALL, count=16).record.files.values())
    opened = open_photos(source, SMALL)
    assert samples.from_calibration(samples.Calibrated(opened, used, 0), logits(), SMALL, 16) is None
    stream = open_photos(iter(photos(20)), SMALL)
    assert samples.from_calibration(samples.Calibrated(stream, set(), 0), logits(), SMALL, 16) is None


@pytest.mark.slow
def test_compile_judges_on_own_photos_then_left_over_ones_then_bundled_ones(tmp_path: Path) -> None:
    source = folder(tmp_path / "photos", photos(40, 120, 130))
    own = folder(tmp_path / "own", photos(10, 120, 130, seed=9))

    def judged(**options: object) -> tuple[int, str]:
        report = repedge.compile(
            Net(), input_size=96, targets=["tflite"], out=tmp_path / "out", force=True, **options  # type: ignore[arg-type]
        )  # fmt: skip
        assert report.passed
        found = report.bundles[0].verify
        again = repedge.verify(report.bundles[0].path)
        assert (again.n, again.images) == (16, "bundled photos")
        return found.n, found.images

    calibrated = {"precisions": ["w8a8"], "calib": source, "calib_count": 20, "recipe": "minmax"}
    assert judged(precisions=["fp32"]) == (16, "bundled photos")
    assert judged(**calibrated) == (16, "photos, those not calibrated on")
    assert judged(**calibrated, images=own) == (10, "own")


def test_folders_that_are_no_classes_are_folders(tmp_path: Path) -> None:
    task = tasks.recognize(Network((Output("y", (2,)),), ("cat", "dog")))
    source = folder(tmp_path / "photos" / "test", photos(10)).parent
    assert samples.from_photos(open_photos(source, SMALL), task, SMALL, 4).truths == (None,) * 4
    named = folder(tmp_path / "named" / "dog", photos(10)).parent
    assert samples.from_photos(open_photos(named, SMALL), task, SMALL, 4).truths == (1,) * 4
