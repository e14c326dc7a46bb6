"""The photos that differ most, on a page that nobody's file names can break."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import data_sets
import numpy as np
import pytest
from PIL import Image
from segment_nets import Segmenter

import repedge
from repedge import tasks
from repedge.errors import UserError
from repedge.judge.evaluation import Accuracy
from repedge.judge.gallery import Gallery, page
from repedge.targets.base import TensorSpec
from repedge.tasks import drawing
from repedge.tasks.base import Task
from repedge.tasks.boxes import Detections, Objects

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tags(HTMLParser):
    """Which elements a page has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def classifier(*labels: str) -> Task:
    return tasks.of_outputs([TensorSpec("y", "float32", (1, len(labels)))], labels, "classify")


def test_the_most_different_photos_are_kept_the_most_different_first() -> None:
    task = classifier("cat", "dog", "owl")
    gallery, rng = Gallery(task, 3), np.random.default_rng(0)
    exact = rng.normal(size=(20, 3))
    moved = exact.copy()
    for photo, by in ((4, 3.0), (11, 9.0), (17, 1.0), (2, 0.1)):
        moved[photo, exact[photo].argmin()] += by
    pixels = rng.integers(0, 256, (20, 8, 8, 3), np.uint8)
    for i in range(0, 20, 5):
        names = [str(k) for k in range(i, i + 5)]
        gallery.update(names, pixels[i : i + 5], [moved[i : i + 5]], [exact[i : i + 5]], [None, 1, 2, 0, 1])
    assert [s.name for s in gallery.shown] == ["11", "4", "17"]
    first = gallery.shown[0]
    assert np.array_equal(first.pixels, pixels[11])
    assert [whose for whose, _ in first.panels] == ["truth", "float", "artifact"]
    p = np.exp(exact[11]) / np.exp(exact[11]).sum()
    assert first.panels[1][1] == pytest.approx(p)


def test_a_task_without_pictures_is_refused() -> None:
    raw = tasks.of_outputs([TensorSpec("y", "float32", (1, 2, 3, 4))])
    with pytest.raises(UserError, match="nothing to draw for the task 'raw'"):
        Gallery(raw)


def test_names_of_files_and_classes_are_text() -> None:
    task = classifier("<script>alert(1)</script>", '"><b>')
    gallery = Gallery(task)
    gallery.update(
        ["<img src=x>.png"], np.zeros((1, 8, 8, 3), np.uint8), [3 * np.eye(2)[:1]], [3 * np.eye(2)[1:]], [0]
    )
    found = Accuracy(1, 0, {"top1": 1.0}, {"agree_top1": 0.0}, 3.0, 1, task=task, shown=gallery.shown)
    text = page("<i>net</i>", found, "a & b")
    tags = Tags()
    tags.feed(text)
    assert not tags.seen & {"script", "img", "i"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 95.3%" in text
    assert "&lt;i&gt;net&lt;/i&gt; on a &amp; b" in text


def test_boxes_are_drawn_where_they_are() -> None:
    boxes = np.array([[10, 20, 30, 60], [0, 0, 5, 5]], np.float32)
    found = Detections(boxes, np.array([0.91, 0.4], np.float32), np.array([1, 7], np.int32))
    text = drawing.boxes(found, ("cell", "plate"), (100, 100))
    assert 'x="10.0" y="20.0" width="20.0" height="40.0"' in text
    assert "plate 0.91" in text
    assert "7 0.40" in text  # a class without a name
    edge = Detections(np.array([[95, 0, 99, 9]], np.float32), found.scores[:1], found.classes[:1])
    starts = [
        float(x) for x in re.findall(r'<text x="([^"]+)"', drawing.boxes(edge, ("a", "plate"), (100, 100)))
    ]
    assert 0 < starts[0] < 85  # the name is in the picture, though the box is at its edge
    truth = Objects(boxes, found.classes, np.array([False, True]))
    assert drawing.boxes(truth, (), (100, 100)).count("stroke-dasharray") == 1


def test_classes_have_colours_of_their_own() -> None:
    assert len({drawing.colour(c) for c in range(80)}) == 80


@pytest.mark.slow
def test_a_page_of_a_segmenter_in_a_browser(tmp_path: Path, cli: Any) -> None:
    """The truth's colours are where its classes are, and the void stays bare."""
    data_sets.masks(tmp_path / "set")
    report = repedge.compile(
        Segmenter(2).eval(),
        targets=["tflite"],
        precisions=["fp16"],
        input_size=64,
        resize="squash",
        out=tmp_path,
    )
    file, bundle = tmp_path / "page.html", report.bundles[0].path
    code, out, _ = cli("eval", bundle, tmp_path / "set", "--html", file)
    assert code == 0
    assert "3 photos that differ most are in" in " ".join(out.split())
    text = file.read_text()
    assert text.count('<figure class="photo">') == 3
    assert "mIoU of float" in text
    assert "<script" not in text
    code, _, err = cli("eval", bundle, tmp_path / "set", "--html", file)
    assert (code, "pass --force" in err) == (2, True)
    code, _, err = cli("eval", "demo", tmp_path / "set/val", "--html", tmp_path / "other.html")
    assert (code, "give a bundle that has one" in err) == (2, True)
    if CHROMIUM is None:
        pytest.skip("needs chromium to draw")
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,2200"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", file.as_uri()]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([CHROMIUM, *flags], check=True, capture_output=True, timeout=120, env=home)
    page_seen = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    # noise of mean 127.5 under the veil: the mean colour of each class's columns in the truth's panels
    for c, share in ((0, 0.25), (1, 0.5)):
        want = drawing.VEIL * np.array(drawing.rgb(c)) + (1 - drawing.VEIL) * 127.5
        near = np.abs(page_seen - want).max(2) < (1 - drawing.VEIL) * 127.5 + 4
        assert near.sum() > 0.7 * share * 3 * 400 * 400
