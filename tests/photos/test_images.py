"""Images to pixels to network input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images

PRE = Preprocess(size=(4, 6), resize=8)


def test_resize_keeps_aspect_and_crops_the_centre() -> None:
    ramp = np.arange(8 * 16, dtype=np.uint8).reshape(8, 16)
    array = images.pixels(Image.fromarray(ramp).convert("RGB"), PRE)
    assert array.shape == (4, 6, 3)
    assert np.array_equal(array[..., 0], ramp[2:6, 5:11])


def test_squash_and_grey() -> None:
    image = Image.new("RGB", (30, 10), (10, 20, 30))
    assert images.pixels(image, Preprocess(size=(5, 7), resize=None)).shape == (5, 7, 3)
    grey = images.pixels(image, Preprocess(size=(5, 7), resize=None, color="GRAY", mean=(0.5,), std=(0.5,)))
    assert grey.shape == (5, 7, 1)


def test_normalise_is_the_formula() -> None:
    x = np.array([[[[10, 20, 30]]]], dtype=np.uint8)
    pre = Preprocess(size=(1, 1), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    want = [(10 / 255 - 0.1) / 0.5, (20 / 255 - 0.2) / 0.25, (30 / 255 - 0.3) / 0.2]
    np.testing.assert_allclose(images.normalise(x, pre)[0, :, 0, 0], want, rtol=1e-6)
    swapped = images.normalise(x, pre.model_copy(update={"color": "BGR"}))
    want = [(30 / 255 - 0.1) / 0.5, (20 / 255 - 0.2) / 0.25, (10 / 255 - 0.3) / 0.2]
    np.testing.assert_allclose(swapped[0, :, 0, 0], want, rtol=1e-6)


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_labels_from_folders_names_and_json(tmp_path: Path) -> None:
    for name in ("a/dog/1.png", "a/cat/1.png", "n/7/1.png", "n/12/1.png", "j/x.png", "j/y.png"):
        save(tmp_path / name)
    assert [s.label for s in images.folder_samples(tmp_path / "a")] == [0, 1]
    assert [s.label for s in images.folder_samples(tmp_path / "a", ("dog", "bird", "cat"))] == [2, 0]
    assert [s.label for s in images.folder_samples(tmp_path / "a", ("Hund", "Katze"))] == [0, 1]
    assert [s.label for s in images.folder_samples(tmp_path / "n")] == [12, 7]
    (tmp_path / "j" / "labels.json").write_text(json.dumps({"x.png": 3}))
    assert [s.label for s in images.folder_samples(tmp_path / "j")] == [3, None]


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of images"):
        images.folder_samples(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no images"):
        images.folder_samples(tmp_path)
    for folder in ("dog", "cart"):
        save(tmp_path / "classes" / folder / "1.png")
    for labels in (("cat", "dog"), ("Hund", "Katze", "Maus")):
        with pytest.raises(UserError, match="'cart' in .* is none of the model's"):
            images.folder_samples(tmp_path / "classes", labels)
    shutil.rmtree(tmp_path / "classes")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    with pytest.raises(UserError, match=r"x\.jpg can't be read as an image"):
        images.folder_samples(tmp_path)[0].load()
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(UserError, match="must be a JSON object"):
        images.folder_samples(tmp_path)


def test_spread_covers_the_set() -> None:
    samples = [images.Sample(str(i), lambda: Image.new("RGB", (1, 1))) for i in range(10)]
    assert [s.name for s in images.spread(samples, 3)] == ["0", "3", "6"]
    assert len(images.spread(samples, 99)) == 10
