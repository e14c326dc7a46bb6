"""Data sets of every layout say the same; what can't be true, or leaves its folder, is one clear sentence."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import data_sets
import numpy as np
import pytest
from data_sets import HEIGHT, NAMES, OBJECTS, WIDTH
from PIL import Image
from places import SHARED

from repedge.config import Letterbox, Preprocess
from repedge.errors import UserError
from repedge.photos import images
from repedge.photos.photos import Photos, batches, open_photos
from repedge.tasks.annotations import Mask, mapping
from repedge.tasks.boxes import Objects

SQUASHED = Preprocess(size=(40, 80), resize=None)
"""Twice the photos' size."""


def opened(path: Path, kind: str = "boxes", split: str | None = None) -> Photos:
    return open_photos(path, truth=kind, split=split)


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"top/{path.relative_to(folder)}")
    return file


def mask_of(photos: Photos) -> Mask:
    """That of the first photo."""
    found = photos.annotations.of(photos.names[0])
    assert isinstance(found, Mask)
    return found


def truths(photos: Photos, pre: Preprocess = SQUASHED, labels: tuple[str, ...] = NAMES) -> dict[str, Objects]:
    """Stem of a photo -> what is to be found in the network's input."""
    of = mapping.box_truths(photos, labels, len(labels))
    found = {}
    for batch in batches(photos, range(photos.total), (pre,), 2):
        for name, truth, view in zip(batch.names, batch.truths(of), batch.views(pre), strict=True):
            found[Path(name).stem] = None if truth is None else mapping.placed_boxes(truth, view)
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", ["yolo", "coco", "voc"])
def test_every_layout_says_the_same(tmp_path: Path, layout: str, packed: bool) -> None:
    root = tmp_path / "set"
    given = getattr(data_sets, layout)(root)
    if packed:
        given = zipped(root, tmp_path / "set.zip")
    found = truths(opened(given))
    assert sorted(found) == ["a", "b", "c"]  # nothing of the part to train on
    for stem, objects in OBJECTS.items():
        order = np.lexsort(found[stem].boxes.T)
        wanted = sorted((tuple(2 * v for v in box), c) for c, box in objects)
        got = sorted(
            (tuple(b.tolist()), int(c))
            for b, c in zip(found[stem].boxes[order], found[stem].classes[order], strict=True)
        )
        assert [c for _, c in got] == [c for _, c in wanted]
        assert np.allclose([b for b, _ in got], [b for b, _ in wanted]) or not wanted
        assert not found[stem].ignored.any()


@pytest.mark.parametrize("layout", ["yolo", "coco", "voc"])
def test_the_folder_is_enough(tmp_path: Path, layout: str) -> None:
    getattr(data_sets, layout)(tmp_path)
    assert len(truths(opened(tmp_path))["a"]) == 2


def test_a_part_is_chosen_as_ultralytics_does(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    assert opened(file).names == ("images/val/a.png", "images/val/b.png", "images/val/c.png")
    assert opened(file, split="train").names == ("images/train/x.png",)
    with pytest.raises(UserError, match="has no part 'test'; it has train, val"):
        opened(file, split="test")
    text = file.read_text()
    file.write_text(text.replace("val: images/val", "test: ../images/val"))  # as Roboflow writes it
    assert len(opened(file).names) == 3
    (tmp_path / "val.txt").write_text("./images/val/a.png\nimages/val/c.png\n")
    file.write_text(text.replace("val: images/val", "val: [val.txt, images/train]"))
    assert opened(file).names == ("images/train/x.png", "images/val/a.png", "images/val/c.png")
    file.write_text(text.replace("images/val", str(tmp_path / "images/val")))  # within the folder, after all
    assert len(opened(file).names) == 3
    file.write_text(f"path: ../elsewhere\n{text}")  # the data set was moved
    assert len(opened(file).names) == 3


def test_outlines_are_boxes_and_a_photo_without_labels_has_no_objects(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    (tmp_path / "labels/val/a.txt").write_text("1 0.5 0.25 1 0.5 0.75 0.75\n")
    (tmp_path / "labels/val/b.txt").unlink()
    found = truths(opened(file))
    assert found["a"].boxes.tolist() == [[40, 10, 80, 30]]
    assert len(found["b"]) == len(found["c"]) == 0


def test_crowds_and_difficult_ones_are_ignored_and_boxes_of_no_area_left_out(tmp_path: Path) -> None:
    file = data_sets.coco(tmp_path / "coco")
    table = json.loads(file.read_text())
    table["annotations"][0]["iscrowd"] = 1
    table["annotations"][1]["bbox"] = [3, 3, 0, 5]
    file.write_text(json.dumps(table))
    found = truths(opened(file))["a"]
    assert found.ignored.tolist() == [True]
    root = data_sets.voc(tmp_path / "voc")
    (root / "Annotations/a.xml").write_text(data_sets.voc_xml(OBJECTS["a"], difficult=True))
    assert truths(opened(root))["a"].ignored.all()


@pytest.mark.parametrize(
    ("pre", "boxes"),
    [
        # 40x20 into 40x40: at its size, 10 rows of bars above
        (Preprocess(size=(40, 40), resize=None, letterbox=Letterbox()), [[0, 10, 10, 20], [20, 15, 40, 25]]),
        (
            Preprocess(size=(40, 40), resize=None, letterbox=Letterbox(corner=True)),
            [[0, 0, 10, 10], [20, 5, 40, 15]],
        ),
        # the middle 20x20: of the first box nothing is left, of the second a half
        (Preprocess(size=(20, 20), resize=20), [[10, 5, 20, 15]]),
        # at twice the size the middle 20x20 of 80x40, columns 30 to 50: a quarter of the second is left
        (Preprocess(size=(20, 20), resize=40), [[10, 0, 20, 20]]),
        (Preprocess(size=(20, 18), resize=40), []),
    ],
)
def test_boxes_come_to_lie_where_the_photo_does(tmp_path: Path, pre: Preprocess, boxes: list) -> None:
    found = truths(opened(data_sets.yolo(tmp_path)), pre)["a"]
    assert found.boxes.tolist() == boxes


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    photos = opened(file)
    found = truths(photos, labels=("Plate", "dog", "cell"))
    assert found["a"].classes.tolist() == [2, 0]
    with pytest.raises(UserError, match="class 'cell' of .*data.yaml is none of the model's 2, dog, plate"):
        mapping.box_truths(photos, ("dog", "plate"), 2)
    with pytest.raises(UserError, match="has 2 classes, and the model 80, and names don't say"):
        mapping.box_truths(photos, (), 80)
    assert mapping.box_truths(photos, (), 2)("images/val/a.png", None).classes.tolist() == [0, 1]


def edited(edit: Callable[[Path], None], layout: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        given = getattr(data_sets, layout)(root)
        edit(root)
        return given

    return make


def written(name: str, text: str | bytes) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return edit


def put_all(key: str, **entries: object) -> Callable[[Path], None]:
    return in_coco(lambda table: [row.update(entries) for row in table[key]])


def in_coco(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        table = data_sets.coco_table()
        change(table)
        (root / "annotations/instances_val2017.json").write_text(json.dumps(table))

    return edit


def put(key: str, index: int, **entries: object) -> Callable[[Path], None]:
    return in_coco(lambda table: table[key][index].update(entries))


BOMB = "<!DOCTYPE a [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><annotation>&b;</annotation>"
LABELS, XML, JSON = "labels/val/a.txt", "Annotations/a.xml", "annotations/instances_val2017.json"


@pytest.mark.parametrize(
    ("layout", "edit", "says"),
    [
        ("yolo", written(LABELS, "2 .5 .5 .1 .1"), "a.txt line 1 has the class 2, but there are 2"),
        ("yolo", written(LABELS, "0.5 .5 .5 .1 .1"), "line 1 has the class 0.5"),
        ("yolo", written(LABELS, "-1 .5 .5 .1 .1"), "line 1 has the class -1"),
        ("yolo", written(LABELS, "\n0 .5 .5 .1 nan"), r"a.txt: box 1 is \(.*nan\), which is no box"),
        ("yolo", written(LABELS, "0 .9 .5 .5 .1"), "box 1, .* is outside the photo, whose sides are 1"),
        ("yolo", written(LABELS, "0 9 9 3 3"), "outside the photo"),
        ("yolo", written(LABELS, "0 .5 .5 -.2 .1"), "box 1 ends before it begins"),
        ("yolo", written(LABELS, "0 .5 .5 .1"), "line 1 has 4 numbers"),
        ("yolo", written(LABELS, "cell .5 .5 .1 .1"), "is no row of numbers"),
        ("yolo", written(LABELS, b"\xff\xfe\x00"), "is no row of numbers"),
        ("yolo", lambda r: shutil.rmtree(r / "labels"), "none of the 3 photos of val has labels"),
        ("yolo", written("data.yaml", "val: ../../x\nnames: [a]"), "leaves the file's folder"),
        ("yolo", written("data.yaml", "val: /etc\nnames: [a]"), "leaves the file's folder"),
        ("yolo", written("data.yaml", "val: C:\\x\nnames: [a]"), "leaves the file's folder"),
        (
            "yolo",
            written("data.yaml", "val: images/none\nnames: [a]"),
            "there are no photos in 'images/none'",
        ),
        ("yolo", written("data.yaml", "names: [a]"), "names no photos to judge on"),
        ("yolo", written("data.yaml", "val: images/val"), "wants names"),
        ("yolo", written("data.yaml", "val: images/val\nnames: [a, b]\nnc: 3"), "2 names, but nc says 3"),
        ("yolo", written("data.yaml", "val: images/val\nnames: {1: a}"), "numbered from 0 on"),
        ("yolo", written("data.yaml", "val: 3\nnames: [a]"), "val must be a folder"),
        ("yolo", written("data.yaml", "{" * 5000), "is no YAML that can be read"),
        ("yolo", written("data.yaml", "!!python/object/apply:os.system ['true']"), "is no YAML"),
        ("yolo", written("data.yaml", "- a"), "is no data.yaml"),
        ("voc", written(XML, BOMB), "a.xml declares a document type"),
        ("voc", written(XML, BOMB.encode("utf-16")), "declares a document type"),
        ("voc", written(XML, "<a>" * 5000), "deep"),
        ("voc", written(XML, "<annotation>"), "is no XML that can be read"),
        ("voc", written(XML, "<html></html>"), "is no annotation of VOC"),
        ("voc", written(XML, data_sets.voc_xml([(0, (5, 5, 60, 9))])), "outside the photo of 40x20"),
        ("voc", written(XML, data_sets.voc_xml([(0, (5, 5, 3, 9))])), "ends before it begins"),
        ("voc", written(XML, data_sets.voc_xml([(0, ("NaN", 5, 3, 9))])), "which is no box"),
        (
            "voc",
            written(XML, data_sets.voc_xml([(0, ("", 5, 3, 9))])),
            "bndbox/xmin is '', which is no number",
        ),
        ("voc", written(XML, data_sets.voc_xml(OBJECTS["a"]).replace("plate", "")), "an object has no name"),
        ("coco", written(JSON, "[" * 200_000), "no JSON that can be read"),
        ("coco", written(JSON, "[]"), "is no COCO file"),
        ("coco", put("images", 0, file_name="../../a.png"), "leaves the data set's folder"),
        ("coco", put("images", 0, file_name="/etc/a.png"), "leaves the data set's folder"),
        ("coco", put("images", 0, id=11), "the image id 11 is given twice"),
        ("coco", put("categories", 0, id=3), "the category id 3 is given twice"),
        ("coco", put("annotations", 0, id=1), "the annotation id 1 is given twice"),
        ("coco", put("images", 0, file_name="b.png"), "images 10 and 11 are the same photo"),
        (
            "coco",
            put("annotations", 0, category_id=5),
            "annotation 0 is of a category that is not in its list",
        ),
        ("coco", put("annotations", 0, image_id=[1]), "annotation 0 is of a image that is not in its list"),
        ("coco", put("annotations", 0, bbox=[float("nan"), 0, 1, 1]), "which is no box"),
        ("coco", put("annotations", 0, bbox=[30, 0, 20, 1]), "outside the photo"),
        ("coco", put("annotations", 0, bbox=[1, 2, 3]), "annotation 0 has no bbox of 4 numbers"),
        ("coco", put("images", 0, width=0), "no width and height above 0"),
        ("coco", put("images", 0, width=400), "of 400x20 pixels, and the photo has 40x20"),
        (
            "coco",
            put_all("images", file_name="q.png"),
            "none of the 3 photos",
        ),
    ],
)
def test_bad_labels_are_one_clear_sentence(
    tmp_path: Path, layout: str, edit: Callable[[Path], None], says: str
) -> None:
    given = edited(edit, layout)(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        truths(opened(given))
    assert "\n" not in str(caught.value)


def test_labels_that_are_out_by_a_rounding_are_cut(tmp_path: Path) -> None:
    file = data_sets.yolo(tmp_path)
    (tmp_path / "labels/val/a.txt").write_text("0 0.25 0.5 0.51 1.004\n")
    assert truths(opened(file))["a"].boxes.tolist() == [[0, 0, np.float32(0.505 * 80), 40]]


def test_a_yaml_of_aliases_takes_no_time(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    file = data_sets.yolo(tmp_path)
    for key in ("nc: *a29\nnames: [a, b]", "names: *a29", "names: [a]\nval: *a29"):
        file.write_text("\n".join([*lines, "val: images/val", key]))
        with pytest.raises(UserError):
            opened(file)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "folders",
    [
        ("val", "valannot"),
        ("images/val", "masks/val"),
        ("JPEGImages", "SegmentationClass"),
        ("images", "labels"),
    ],
)
def test_masks_are_found_and_are_no_photos(tmp_path: Path, folders: tuple[str, str], packed: bool) -> None:
    given = data_sets.masks(tmp_path / "set", folders)
    photos = opened(zipped(given, tmp_path / "set.zip") if packed else given, "masks")
    assert [Path(n).name for n in photos.names] == ["a.png", "b.png", "c.png"]
    assert all(f"{folders[0]}/" in n for n in photos.names)
    assert mask_of(photos).ids[0].tolist() == [0] * 10 + [1] * 20 + [2] * 10


def test_a_mask_beside_its_photo_and_a_part_of_a_list(tmp_path: Path) -> None:
    data_sets.masks(tmp_path / "one", ("x", "y"))
    for stem in "ab":
        shutil.copy(tmp_path / f"one/y/{stem}.png", tmp_path / f"one/x/{stem}_mask.png")
    assert opened(tmp_path / "one/x", "masks").names == ("a.png", "b.png")
    root = data_sets.masks(tmp_path / "voc", ("JPEGImages", "SegmentationClass"))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("b\n")
    assert opened(root, "masks").names == ("JPEGImages/b.png",)


def test_a_mask_comes_to_lie_where_its_photo_does(tmp_path: Path) -> None:
    """The bars of a letterbox are void; what is resized is of the nearest pixel."""
    photos = opened(data_sets.masks(tmp_path), "masks")
    mask = mask_of(photos)
    pre = Preprocess(size=(20, 20), resize=None, letterbox=Letterbox())
    got = mapping.placed_mask(mask, images.view((WIDTH, HEIGHT), pre), 2)
    assert (got.dtype, got.shape) == (np.uint8, (20, 20))
    assert (got[:5] == 255).all()
    assert (got[15:] == 255).all()
    assert got[5].tolist() == [0] * 5 + [1] * 10 + [255] * 5
    crop = mapping.placed_mask(mask, images.view((WIDTH, HEIGHT), Preprocess(size=(10, 10), resize=20)), 2)
    assert (crop == 1).all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.new("L", (20, 20)), "has 20x20 pixels, and its photo 40x20"),
        (Image.new("L", (40, 20), 7), "has the ids 7, and the model 2 classes"),
        (Image.new("RGB", (40, 20)), "has colours"),
        (None, "can't be read as a mask"),
    ],
)
def test_bad_masks_are_one_clear_sentence(tmp_path: Path, image: Image.Image | None, says: str) -> None:
    data_sets.masks(tmp_path)
    file = tmp_path / "valannot/a.png"
    if image is None:
        file.write_bytes(file.read_bytes()[:60])
    else:
        image.save(file)
    photos = opened(tmp_path, "masks")
    with pytest.raises(UserError, match=says):
        mapping.placed_mask(mask_of(photos), images.view((WIDTH, HEIGHT), SQUASHED), 2)


@pytest.mark.parametrize("packed", [False, True])
def test_masks_are_no_photos_to_calibrate_on_either(tmp_path: Path, packed: bool) -> None:
    given = data_sets.masks(tmp_path / "set")
    photos = open_photos(zipped(given, tmp_path / "set.zip") if packed else given)
    assert [Path(n).parent.name for n in photos.names] == ["val"] * 3
    assert photos.found == "3 image files, 3 masks left out"


def test_what_is_no_data_set_is_photos_still(tmp_path: Path) -> None:
    data_sets.photos(tmp_path / "p")
    assert opened(tmp_path / "p").annotations is None
    with pytest.raises(UserError, match="is no data set with parts; leave --split val out"):
        opened(tmp_path / "p", split="val")
    with pytest.raises(UserError, match="speaks of boxes, which say nothing here"):
        open_photos(data_sets.yolo(tmp_path / "y"))


@pytest.mark.skipif(not (SHARED / "data" / "bccd.zip").exists(), reason="needs shared/data")
def test_bccd_and_camvid_are_understood() -> None:
    cells = opened(SHARED / "data" / "bccd.zip")
    assert (cells.total, cells.annotations.classes) == (87, ("Platelets", "RBC", "WBC"))
    streets = opened(SHARED / "data" / "camvid.zip", "masks")
    assert streets.total == 101
    assert mask_of(streets).ids.max() == 11
