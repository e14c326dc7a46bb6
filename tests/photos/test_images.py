"""Images to pixels to network input."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_files import demo_files
from PIL import Image

import repedge
from repedge import cli
from repedge.config import Letterbox, Preprocess
from repedge.errors import UserError
from repedge.models.source import resolve
from repedge.photos import images
from repedge.photos.photos import batches, demo_photos, open_photos, spread, stacked
from repedge.tasks.labels import class_indices

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


@pytest.mark.parametrize(
    ("shape", "size", "inside"),  # rows and columns; top, left, bottom, right
    [
        ((480, 640), (416, 416), (52, 0, 364, 416)),
        ((640, 480), (416, 416), (0, 52, 416, 364)),
        ((100, 100), (30, 45), (0, 7, 30, 37)),  # 7.5 pixels beside it: the odd one is on the right
        ((3, 1000), (20, 20), (9, 0, 10, 20)),  # never less than a row
        ((20, 20), (40, 40), (0, 0, 40, 40)),
    ],
)
def test_letterbox_puts_the_whole_image_between_bars(
    shape: tuple[int, int], size: tuple[int, int], inside: tuple[int, int, int, int]
) -> None:
    image = Image.new("RGB", shape[::-1], (200, 100, 50))
    top, left, bottom, right = inside
    want = np.full((*size, 3), 114, np.uint8)
    want[top:bottom, left:right] = (200, 100, 50)
    pre = Preprocess(size=size, resize=None, letterbox=Letterbox())
    np.testing.assert_array_equal(images.pixels(image, pre), want)
    want = np.zeros((*size, 3), np.uint8)
    want[: bottom - top, : right - left] = (200, 100, 50)
    pre = Preprocess(size=size, resize=None, letterbox=Letterbox(value=0, corner=True))
    np.testing.assert_array_equal(images.pixels(image, pre), want)


@pytest.mark.parametrize(
    "pre",
    [
        Preprocess(size=(60, 90), resize=None, letterbox=Letterbox()),
        Preprocess(size=(60, 90), resize=None, letterbox=Letterbox(corner=True)),
        Preprocess(size=(60, 90), resize=None),
        Preprocess(size=(60, 90), resize=100),
        Preprocess(size=(60, 90), resize=50),
    ],
)
def test_a_placement_leads_back_to_the_photo(pre: Preprocess) -> None:
    """A bright square's middle, found in the input, is the square's middle in the photo."""
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[160:180, 210:230] = 255
    found = images.pixels(Image.fromarray(photo), pre)[..., 0].astype(float)
    found[found == 114] = 0
    ys, xs = np.mgrid[0.5 : pre.size[0], 0.5 : pre.size[1]]
    x, y = (xs * found).sum() / found.sum(), (ys * found).sum() / found.sum()
    place = images.placement(400, 300, pre)
    assert (x - place.left) * 400 / place.width == pytest.approx(220, abs=1)
    assert (y - place.top) * 300 / place.height == pytest.approx(170, abs=1)


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


def classes(given: Any, labels: Sequence[str] = ()) -> list[int | None]:
    """The class of each photo as evaluation sees it."""
    photos = open_photos(given, PRE)
    (batch,) = batches(photos, spread(photos.total), (PRE,), 99)
    return batch.truths(class_indices(photos, labels))


def zip_of(path: Path, folder: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return path


def test_labels_from_folders_names_and_json(tmp_path: Path) -> None:
    for name in ("a/dog/1.png", "a/cat/1.png", "n/7/1.png", "n/12/1.png", "j/x.png", "j/y.png"):
        save(tmp_path / name)
    (tmp_path / "j" / "labels.json").write_text(json.dumps({"x.png": 3}))
    for top in (None, "", "photos/"):

        def given(folder: str, top: str | None = top) -> Path:
            if top is None:
                return tmp_path / folder
            return zip_of(tmp_path / f"{folder}.zip", tmp_path / folder, top)

        assert classes(given("a")) == [0, 1]
        assert classes(given("a"), ("dog", "bird", "cat")) == [2, 0]
        assert classes(given("a"), ("Hund", "Katze")) == [0, 1]
        assert classes(given("n")) == [12, 7]
        assert classes(given("j")) == [3, None]


def test_a_zip_of_one_class_is_no_packed_folder(tmp_path: Path) -> None:
    save(tmp_path / "p" / "1.png")
    assert classes(zip_of(tmp_path / "dog.zip", tmp_path / "p", "dog/"), ("cat", "dog")) == [1]
    assert classes(zip_of(tmp_path / "7.zip", tmp_path / "p", "7/")) == [7]
    assert classes(zip_of(tmp_path / "p.zip", tmp_path / "p", "holiday/"), ("cat", "dog")) == [None]


def test_labels_of_arrays_and_pairs(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", photos=arrays, targets=np.array([2, 0, 1], np.uint8), size=np.arange(2))
    assert classes(tmp_path / "a.npz") == [2, 0, 1]
    np.savez(tmp_path / "s.npz", *arrays, y=np.array([2, 0, 1]))
    assert classes(tmp_path / "s.npz") == [2, 0, 1]
    np.savez(tmp_path / "n.npz", photos=arrays, size=np.arange(3), labels=np.ones((3, 2), int))
    assert classes(tmp_path / "n.npz") == [None] * 3
    pairs = [(Image.fromarray(arrays[0]), 5), (arrays[1], np.int64(6)), arrays[2]]
    assert classes(pairs) == [5, 6, None]
    assert classes(arrays) == [None] * 3
    np.savez(tmp_path / "bad.npz", photos=arrays, labels=np.array([0, -1, 1]))
    with pytest.raises(UserError, match="array 'labels' of .*bad.npz has -1, which no model has as a class"):
        classes(tmp_path / "bad.npz")
    for wrong in ("cat", -1, True, 1.0):
        with pytest.raises(UserError, match="photo 1 comes with .*, not the index of a class"):
            classes([(arrays[0], 1), (arrays[1], wrong)])


def test_bundled_photos_have_classes_for_their_own_labels_only() -> None:
    photos = demo_photos()
    names = sorted({n.split("/")[0] for n in photos.names or ()})
    told = next(batches(photos, [1], (PRE,), 1)).truths(class_indices(photos, names))
    assert told == [names.index("automobile")]
    assert class_indices(photos, [*names[:-1], "lorry"]) is None
    assert class_indices(photos) is None


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is nothing at .*absent; --images takes a folder"):
        open_photos(tmp_path / "absent", option="--images")
    with pytest.raises(UserError, match="there is nothing at random; eval takes a folder"):
        open_photos("random", PRE, option="eval")
    with pytest.raises(UserError, match="holds no images"):
        open_photos(tmp_path)
    for folder in ("dog", "cart"):
        save(tmp_path / "classes" / folder / "1.png")
    for given in (tmp_path / "classes", zip_of(tmp_path / "classes.zip", tmp_path / "classes", "photos/")):
        for labels in (("cat", "dog"), ("Hund", "Katze", "Maus")):
            with pytest.raises(UserError, match="'cart' in .*classes.* is none of the model's"):
                classes(given, labels)
    shutil.rmtree(tmp_path / "classes")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8 not a jpeg")
    with pytest.raises(UserError, match="none of the 1 photos of .* can be read"):
        stacked(open_photos(tmp_path), PRE)
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(UserError, match="labels.json must be a JSON object"):
        classes(tmp_path)
    (tmp_path / "labels.json").write_text('{"z.jpg": 1}')
    with pytest.raises(UserError, match="labels.json names none of the 1 images"):
        classes(zip_of(tmp_path / "z.zip", tmp_path))
    stream = (Image.new("RGB", (9, 9)) for _ in range(3))
    with pytest.raises(UserError, match="how many photos a stream has is not known"):
        repedge.evaluate(None, stream)
    inputs = np.zeros((3, 3, 4, 6), np.float32)
    with pytest.raises(UserError, match=r"float32 \[3, 3, 4, 6\]; wanted are photos uint8 \[N, H, W, 3\]$"):
        open_photos(inputs)


def test_companions_are_bounded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "p" / "a.png")
    (tmp_path / "p" / "labels.json").write_text(json.dumps({"a.png": 1}) + " " * 3_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "p").iterdir():
            archive.write(file, file.name)
    with pytest.raises(UserError, match="'labels.json' in .* like a zip bomb"):
        classes(tmp_path / "bomb.zip")
    monkeypatch.setattr("repedge.photos.sources.LARGEST_COMPANION", 1 << 20)
    with pytest.raises(UserError, match="labels.json can't be read: it is larger than 1 MiB"):
        classes(tmp_path / "p")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "photos.zip")
    os.mkfifo(tmp_path / "a.png")
    fifo = str(tmp_path / "photos.zip")
    for words in (
        ["eval", "demo", fifo],
        ["compile", "-t", "gpu", "-p", "w8a8", "--calib", fifo, "-o", str(tmp_path / "out")],
        ["compile", "-t", "gpu", "--images", fifo, "-o", str(tmp_path / "out")],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        assert "photos.zip is neither a regular file nor a folder" in capsys.readouterr().err
    found = repedge.evaluate(None, [tmp_path / "a.png", Image.new("RGB", (9, 9))])
    assert (found.n, found.skipped) == (1, 1)
    save(tmp_path / "b.png")
    os.mkfifo(tmp_path / "labels.json")
    assert classes(tmp_path) == [None]


def test_batches_keep_order_and_serve_several_networks(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    small = Preprocess(size=(2, 2), resize=None)
    photos = open_photos(tmp_path)
    first, second, last = batches(photos, [4, 0, 2, 3, 3], (PRE, small, PRE), 2)
    assert (first.names, first.indices, first.skipped) == (("4.png", "0.png"), (4, 0), {})
    assert [a.shape for a in first.pixels.values()] == [(2, 4, 6, 3), (2, 2, 2, 3)]
    assert first.pixels[small][:, 0, 0, 0].tolist() == [4, 0]
    assert (second.names, list(second.skipped), second.tried) == (("2.png",), ["3.png"], 2)
    assert (last.names, last.tried, last.pixels[PRE].shape) == ((), 1, (0, 4, 6, 3))


def test_exif_is_followed_when_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png", exif=exif.tobytes())
    for given in (tmp_path, [tmp_path / "a.png"], [Image.open(tmp_path / "a.png")]):
        for upright, size in ((False, (9, 5)), (True, (5, 9))):
            ((_, item),) = open_photos(given).read([0], upright)
            assert item.content.size == size


def test_network_inputs_are_the_pixels_they_stand_for() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    for pre in (PRE, PRE.model_copy(update={"color": "BGR"})):
        inputs = images.normalise(array, pre)
        assert np.array_equal(stacked(open_photos(inputs, pre), pre), array)
        with pytest.raises(UserError, match="not what this model's normalisation gives"):
            stacked(open_photos(inputs * 100, pre), pre)


def test_spread_covers_the_set() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(10, 99) == spread(10) == list(range(10))
    assert spread(None, 3) == [0, 1, 2]


# --- the four uses -------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_form_of_the_same_photos_is_evaluated_alike(tmp_path: Path) -> None:
    folder = demo_files(tmp_path / "photos", 12)
    labels = resolve(None).labels
    files = sorted(folder.rglob("*.png"))
    truths = [labels.index(f.parent.name) for f in files]
    flat = {f.relative_to(folder).as_posix(): t for f, t in zip(files, truths, strict=True)}
    (tmp_path / "flat").mkdir()
    for name, file in zip(flat, files, strict=True):
        shutil.copyfile(file, tmp_path / "flat" / name.replace("/", "_"))
    (tmp_path / "flat" / "labels.json").write_text(
        json.dumps({k.replace("/", "_"): v for k, v in flat.items()})
    )
    arrays = np.stack([np.asarray(Image.open(f)) for f in files])
    np.savez_compressed(tmp_path / "a.npz", images=arrays, labels=np.array(truths))
    pre = resolve(None).preprocess
    np.savez(tmp_path / "x.npz", x=images.normalise(stacked(open_photos(folder), pre), pre), y=truths)
    want = repedge.evaluate(None, folder)
    assert want.n == 12
    assert want.top1 is not None
    for given in (
        str(folder),
        tmp_path / "flat",
        zip_of(tmp_path / "classes.zip", folder),
        zip_of(tmp_path / "packed.zip", folder, "photos/"),
        zip_of(tmp_path / "flat.zip", tmp_path / "flat", "photos/"),
        tmp_path / "a.npz",
        tmp_path / "x.npz",
        list(zip(files, truths, strict=True)),
        [(Image.open(f), t) for f, t in zip(files, truths, strict=True)],
        list(zip(arrays, truths, strict=True)),
    ):
        assert repedge.evaluate(None, given) == want
    assert repedge.evaluate(None, tmp_path / "a.npz", limit=4) == repedge.evaluate(None, folder, limit=4)
    pairs = zip(files, truths, strict=True)
    assert repedge.evaluate(None, pairs, limit=99) == want
    wrong = [(a, (t + 1) % 10) for a, t in zip(arrays, truths, strict=True)]
    assert repedge.evaluate(None, wrong).top1 != want.top1


@pytest.mark.slow
def test_a_damaged_photo_is_left_out_and_counted_once_by_every_use(tmp_path: Path) -> None:
    folder = demo_files(tmp_path / "photos", 40)
    first = min(folder.rglob("*.png"))
    data = bytearray(first.read_bytes())
    first.write_bytes(data[: len(data) // 2])
    packed = zip_of(tmp_path / "photos.zip", folder)
    found = repedge.evaluate(None, packed)
    assert (found.n, found.skipped) == (39, 1)
    with pytest.warns(UserWarning, match="unreadable images left out: 1"):
        report = repedge.compile(
            targets=["openvino"], precisions=["w8a8"], out=tmp_path / "out", recipe="minmax",
            calib=packed, calib_count=40, images=packed, count=4, min_sqnr=0, max_drop=100, eval_data=packed,
        )  # fmt: skip
    manifest = repedge.Bundle.open(report.bundles[0].path).manifest
    calibrated, judged = (manifest.quantization[k] for k in ("calibration", "budget"))
    assert (calibrated["count"], list(calibrated["skipped"])) == (39, [first.relative_to(folder).as_posix()])
    assert (judged["photos"], judged["score"]["n"]) == ("photos.zip (1 unreadable left out)", 39)
    verified = manifest.verification
    assert (verified.n, verified.images) == (3, "photos.zip (1 unreadable left out)")
    again = repedge.verify(report.bundles[0].path, images=packed, count=40)
    assert (again.n, again.images) == (39, "photos.zip (1 unreadable left out)")
    with pytest.raises(UserError, match=r"none of the 1 photos of list can be read: .*of no known format"):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no image")
        repedge.verify(report.bundles[0].path, images=[broken])


@pytest.mark.slow
def test_bundles_are_compared_on_a_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = zip_of(tmp_path / "photos.zip", demo_files(tmp_path / "photos", 12))
    made = repedge.compile(targets=["openvino", "gpu"], precisions=["fp32"], out=tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", "--compare", *(str(b.path) for b in made.bundles), str(packed), "--json"])
    assert stop.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["n"], answer["images"]) == (12, "photos.zip")
    assert answer["members"][1]["top1"] == repedge.evaluate(None, packed).top1
