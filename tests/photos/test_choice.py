"""Calibration data from Python: every form of photo, seeded choice, and what is refused."""

from __future__ import annotations

import gc
import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from photo_files import PRE, folder, photos, pixels
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.choice import load
from repedge.photos.images import to_pixels
from repedge.photos.photos import open_photos


def png16(array: np.ndarray) -> bytes:
    """An RGB PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned_by_exif(image: Image.Image, orientation: int) -> bytes:
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image.transpose(back[orientation]), "PNG", exif=exif.tobytes())


RGB = Image.fromarray(photos(1)[0])
GREY = RGB.convert("L")
FEW_COLOURS = RGB.quantize(16)
WIDE = np.asarray(GREY).astype(np.uint16) * 257

FORMS: dict[str, tuple[bytes, Image.Image]] = {
    "grey": (saved(GREY, "PNG"), GREY),
    "grey and alpha": (saved(GREY.convert("LA"), "PNG"), GREY),
    "one bit": (saved(GREY.convert("1"), "PNG"), GREY.convert("1")),
    "RGBA": (saved(RGB.convert("RGBA"), "PNG"), RGB),
    "half transparent": (saved(Image.merge("RGBA", (*RGB.split(), GREY)), "PNG"), RGB),
    "palette": (saved(FEW_COLOURS, "PNG"), FEW_COLOURS),
    "16-bit grey PNG": (saved(Image.fromarray(WIDE), "PNG"), GREY),
    "16-bit grey TIFF": (saved(Image.fromarray(WIDE), "TIFF"), GREY),
    "16-bit grey PGM": (saved(Image.fromarray(WIDE), "PPM"), GREY),
    "16-bit RGB": (png16(np.asarray(RGB).astype(np.uint16) * 257), RGB),
    "CMYK": (saved(RGB.convert("CMYK"), "TIFF"), RGB),
    **{f"EXIF {o}": (turned_by_exif(RGB, o), RGB) for o in (3, 6, 8)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_photo_is_its_plain_rgb(form: str, tmp_path: Path) -> None:
    data, plain = FORMS[form]
    folder(tmp_path, photos(8, seed=1))
    (tmp_path / "x.tif").write_bytes(data)  # the content decides, not the suffix
    loaded = load(tmp_path, PRE, count=9)
    place = list(loaded.record.files).index("x.tif")
    want = images.pixels(Image.fromarray(np.asarray(plain.convert("RGB"))), PRE)
    assert np.array_equal(pixels(loaded)[place].transpose(1, 2, 0), want)


def test_cmyk_jpeg_and_broken_exif(tmp_path: Path) -> None:
    folder(tmp_path, photos(8))
    smooth = Image.fromarray(np.full((10, 14, 3), (200, 90, 30), np.uint8))
    smooth.paste((20, 30, 200), (7, 0, 14, 10))
    (tmp_path / "c.jpg").write_bytes(saved(smooth.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    (tmp_path / "e.jpg").write_bytes(
        saved(smooth, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff")
    )
    loaded = load(tmp_path, PRE, count=10)
    want = images.pixels(smooth, PRE).astype(float)
    for name in ("c.jpg", "e.jpg"):
        got = pixels(loaded)[list(loaded.record.files).index(name)].transpose(1, 2, 0)
        assert np.abs(got - want).max() < 4


def test_32_bit_pixels_are_not_guessed_at(tmp_path: Path) -> None:
    folder(tmp_path, photos(9))
    Image.fromarray(np.random.default_rng(0).random((9, 9)).astype(np.float32)).save(tmp_path / "f.tif")
    assert "no known white" in load(tmp_path, PRE).record.skipped["f.tif"]


def test_folder_array_and_iterables_are_the_same_images(tmp_path: Path) -> None:
    arrays = photos(20)
    path = folder(tmp_path / "p", arrays)
    files = sorted(path.iterdir())
    want = load(path, PRE, count=12, seed=3)
    given = {
        "array": arrays,
        "paths": files,
        "text paths": [str(f) for f in files],
        "images": [Image.open(f) for f in files],
        "arrays": list(arrays),
    }
    for source in given.values():
        assert np.array_equal(pixels(load(source, PRE, count=12, seed=3)), pixels(want))
    assert want.record.source == "p"
    assert str(tmp_path) not in str(want.record.as_json())


def test_both_forms_of_the_images_agree(tmp_path: Path) -> None:
    for pre in (PRE, PRE.model_copy(update={"color": "BGR"})):
        loaded = load(photos(9), pre)
        normal = np.concatenate(list(loaded.batches(False)))
        np.testing.assert_allclose(to_pixels(normal, pre), pixels(loaded), atol=1e-3)
        # Network inputs, given as such, are the photos again in both forms.
        again = load(normal, pre)
        assert again.record.kind == "array"
        np.testing.assert_allclose(
            np.sort(pixels(again), axis=0), np.sort(pixels(loaded), axis=0), atol=1e-3
        )  # fmt: skip
    assert loaded.feed(True) is loaded.feed(True)
    assert len(loaded.feed(False)) == len(loaded) == 9


def test_the_choice_is_seeded_and_recorded(tmp_path: Path) -> None:
    path = folder(tmp_path, photos(40))
    one, same, other = (load(path, PRE, count=10, seed=s).record for s in (1, 1, 2))
    assert one.as_json() == same.as_json()
    assert set(one.files) != set(other.files)
    assert one.digest != other.digest
    summary = one.as_json()
    assert (summary["count"], summary["seed"], summary["available"]) == (10, 1, 40)
    assert all(len(h) == 64 for h in summary["sha256"].values())
    many = load(photos(300), PRE, count=300).record
    assert many.as_json()["sha256"]["array[7]"] == many.files["array[7]"][:16]
    order = np.random.default_rng(1).permutation(40)[:10]
    assert list(one.files) == [f"{i:03}.png" for i in order]


def test_a_choice_spans_the_folder(tmp_path: Path) -> None:
    """Sub-folders sorted by class must not leave the first recipe steps with one class only."""
    for k in range(4):
        folder(tmp_path / f"class{k}", photos(16, seed=k))
    names = list(load(tmp_path, PRE, count=64).record.files)
    assert len({n.split("/")[0] for n in names[:16]}) == 4


def test_unreadable_files_are_replaced_up_to_a_limit(tmp_path: Path) -> None:
    path = folder(tmp_path, photos(30))
    order = [f"{i:03}.png" for i in np.random.default_rng(0).permutation(30)]
    good = (path / order[0]).read_bytes()
    (path / order[0]).write_bytes(b"no image")
    (path / order[1]).write_bytes(good[: len(good) // 2])
    record = load(path, PRE, count=20).record
    assert len(record.files) == 20
    assert list(record.files) == order[2:22]
    assert set(record.skipped) == set(order[:2])
    assert "unreadable images left out: 2" in record.warnings[0]
    assert "0x" not in str(record.skipped)  # no addresses: the manifest is the same in every run
    (path / order[2]).write_bytes(b"")
    with pytest.raises(UserError, match=rf"3 of the first 3 images of .* can't be used: '{order[0]}'"):
        load(path, PRE, count=20)


def test_too_few_all_alike_or_of_one_colour(tmp_path: Path) -> None:
    few = folder(tmp_path / "few", photos(5))
    with pytest.raises(UserError, match=r"few has 5 usable images; calibration wants 16 to 200"):
        load(few, PRE)
    scant = load(folder(tmp_path / "scant", photos(9)), PRE).record
    assert scant.warnings == ["calibrated on 9 images only; 16 to 200 are better"]
    same = folder(tmp_path / "same", np.repeat(photos(1), 20, 0))
    with pytest.raises(UserError, match="all 20 images read from same are identical"):
        load(same, PRE)
    black = folder(tmp_path / "black", np.zeros((20, 10, 14, 3), np.uint8))
    with pytest.raises(UserError, match="every image of black .* is of one colour"):
        load(black, PRE)
    colours = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None, None] * 9, (20, 10, 14, 3))
    with pytest.raises(UserError, match="is of one colour"):
        load(np.ascontiguousarray(colours), PRE)
    mixed = np.concatenate([photos(6), np.repeat(photos(1, seed=9), 10, 0), colours])
    with pytest.raises(UserError, match=r"7 usable images \(29 left out"):
        load(mixed, PRE)


def test_repeats_and_black_frames_are_replaced(tmp_path: Path) -> None:
    arrays = photos(20)
    arrays[5] = arrays[11]
    arrays[7] = 0
    record = load(arrays, PRE).record
    assert len(record.files) == 18
    assert sorted(record.skipped.values())[0] == "it is of one colour"
    assert "it is the same as" in sorted(record.skipped.values())[1]


def test_a_stream_is_read_once_and_no_further_than_needed() -> None:
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield photos(1, seed=i)[0] if i != 3 else Path("absent.jpg")

    record = load(endless(), PRE, count=10).record
    assert taken == list(range(11))
    assert record.skipped.keys() == {"3: absent.jpg"}
    assert (record.kind, record.source, record.available) == ("iterable", "generator", None)
    with pytest.raises(UserError, match="all 160 images read from repeat are identical"):
        load(itertools.repeat(photos(1)[0]), PRE, count=16)
    with pytest.raises(UserError, match="3 usable"):
        load(iter(photos(3)), PRE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (iter([3.5] * 9), "item 0 of the calibration images is float; give PIL images"),
        (iter([np.zeros((3, 4, 4), np.float32)] * 9), r"is ndarray float32 \[3, 4, 4\]"),
        (17, "calib is of type int"),
        (b"photos", "calib is of type bytes"),
        (np.zeros((9, 3, 8, 12), np.float64), r"float64 \[9, 3, 8, 12\]; wanted are photos uint8"),
        (np.zeros((9, 8, 12, 3), np.float32), r"network inputs are \[N, 3, 8, 12\]; transpose it"),
        (np.zeros((9, 3, 8, 12), np.uint8), "channels come last"),
        (np.zeros((9, 3, 9, 9), np.float32), r"or network inputs float32 \[N, 3, 8, 12\]"),
        (np.zeros((0, 8, 12, 3), np.uint8), "holds nothing"),
        (np.full((9, 3, 8, 12), 90, np.float32), "not what this model's normalisation gives"),
        (np.full((9, 3, 8, 12), np.nan, np.float32), "NaN or infinite"),
        (Path("nowhere"), "there is nothing at nowhere; --calib takes a folder of photos"),
    ],
)
def test_what_is_no_image_is_refused(given: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(given, PRE)


def test_counts_and_seeds_are_checked() -> None:
    for options, message in (({"count": 3}, "8 images or more"), ({"seed": -1}, "0 or more")):
        with pytest.raises(UserError, match=message):
            load(photos(20), PRE, **options)


def test_a_thread_of_pixels_is_no_photo(tmp_path: Path) -> None:
    folder(tmp_path, photos(9))
    Image.new("RGB", (1, 20_000)).save(tmp_path / "thread.png")
    assert load(tmp_path, Preprocess(size=(8, 8), resize=8)).record.skipped == {
        "thread.png": "1 x 20000 pixels are no photo"
    }


def test_noise_only_when_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, same, other = (load("random", PRE, count=16, seed=s) for s in (0, 0, 1))
    assert np.array_equal(pixels(one), pixels(same))
    assert not np.array_equal(pixels(one), pixels(other))
    assert one.record.kind == "random"
    assert "random noise: accuracy will be poor" in one.record.warnings[0]
    folder(tmp_path / "random", photos(20))
    assert open_photos("random", PRE).kind == "folder"


@pytest.mark.slow
def test_images_are_not_kept_in_memory(tmp_path: Path) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(o, Image.Image) for o in gc.get_objects())

    path = folder(tmp_path, photos(40))
    before = alive()
    loaded = load(path, PRE, count=40)
    assert len(loaded) == 40
    assert alive() - before <= 1
