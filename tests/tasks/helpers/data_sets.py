"""The same tiny data set in every layout: three photos, two classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("cell", "plate")
WIDTH, HEIGHT = 40, 20

OBJECTS: dict[str, list[tuple[int, tuple[int, int, int, int]]]] = {
    "a": [(0, (0, 0, 10, 10)), (1, (20, 5, 40, 15))],
    "b": [(1, (4, 4, 8, 12))],
    "c": [],
}
"""Photo -> (class, (left, top, right, bottom) in pixels)."""


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.stem.encode())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)


def photos(folder: Path, stems: str = "abc") -> None:
    for stem in stems:
        photo(folder / f"{stem}.png")


def yolo(root: Path) -> Path:
    """``images/val``, ``labels/val`` and a ``data.yaml``; c has an empty file of labels."""
    photos(root / "images" / "val")
    photos(root / "images" / "train", "x")
    for folder, stem in (("train", "x"), *(("val", s) for s in OBJECTS)):
        (root / "labels" / folder).mkdir(parents=True, exist_ok=True)
        rows = [
            f"{c} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} {(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
            for c, (x0, y0, x1, y1) in OBJECTS.get(stem, [])
        ]
        (root / "labels" / folder / f"{stem}.txt").write_text("\n".join(rows))
    file = root / "data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames:\n  0: cell\n  1: plate\n")
    return file


def coco_table() -> dict:
    """Ids with gaps, categories out of order: as COCO's own."""
    stems = list(OBJECTS)
    rows = [
        {"image_id": 10 + stems.index(s), "category_id": (7, 3)[c], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for s, found in OBJECTS.items()
        for c, (x0, y0, x1, y1) in found
    ]
    return {
        "images": [
            {"id": 10 + i, "file_name": f"{s}.png", "width": WIDTH, "height": HEIGHT}
            for i, s in enumerate(stems)
        ],
        "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "plate"}],
        "annotations": [{"id": i, "iscrowd": 0, **row} for i, row in enumerate(rows)],
    }


def coco(root: Path) -> Path:
    """``val2017`` and ``annotations/instances_val2017.json``, and a part to train on beside it."""
    photos(root / "val2017")
    photos(root / "train2017")
    file = root / "annotations" / "instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_table()))
    return file


def voc_xml(objects: list[tuple[int, tuple]], difficult: bool = False) -> str:
    rows = "".join(
        f"<object><name>{NAMES[c]}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for c, (x0, y0, x1, y1) in objects
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{rows}</annotation>"


def voc(root: Path) -> Path:
    """``JPEGImages``, ``Annotations`` and ``ImageSets/Main/val.txt``; x is of another part."""
    photos(root / "JPEGImages", "abcx")
    (root / "Annotations").mkdir(parents=True)
    for stem, objects in {**OBJECTS, "x": OBJECTS["a"]}.items():
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(objects))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("a\nb\nc\n")
    (root / "ImageSets" / "Main" / "train.txt").write_text("x\n")
    return root


def masks(root: Path, folders: tuple[str, str] = ("val", "valannot")) -> Path:
    """Masks of classes 0 and 1 and of 2, which is void: a column each, of 10, 20 and 10 pixels."""
    photos(root / folders[0])
    ids = np.repeat(np.array([0, 1, 1, 2], np.uint8), 10)[None].repeat(HEIGHT, 0)
    (root / folders[1]).mkdir(parents=True, exist_ok=True)
    for stem in OBJECTS:
        Image.fromarray(ids).save(root / folders[1] / f"{stem}.png")
    return root
