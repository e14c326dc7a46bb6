"""Detectors' heads of every kind, and noise, ties and bad numbers for them: what decoding must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repedge.bundle.manifest import Tensor
from repedge.config import Letterbox, Preprocess
from repedge.tasks.heads.head import Head, Level, Place, Source

HEIGHT, WIDTH = 24, 40


@dataclass(frozen=True)
class Case:
    """A head, and the outputs that it reads.

    Attributes:
        outputs: Shape as the graph has it and layout in the artifact, of each.
        pre: What is done with a photo.
    """

    head: Head
    outputs: tuple[tuple[tuple[int, ...], str], ...]
    pre: Preprocess

    @property
    def tensors(self) -> list[Tensor]:
        """The outputs as a manifest has them."""
        found = []
        for i, (shape, layout) in enumerate(self.outputs):
            stored = (shape[1], shape[2], shape[0]) if layout == "NHWC" else shape
            found.append(Tensor(name=f"out{i}", dtype="float32", shape=(1, *stored), layout=layout))
        return found

    def values(self, photos: int = 2) -> list[np.ndarray]:
        """Noise, as the graph has it; some candidates twice, some of no number."""
        rng = np.random.default_rng(7)
        high = self.head.activation == "none"
        found = []
        for shape, _ in self.outputs:
            y = rng.normal(0, 1.5, (photos, *shape)).astype(np.float32)
            found.append(y)
        for source in self.head.sources:
            for kind, place in source.places.items():
                y = np.moveaxis(found[place.output], place.axis, -1)
                cells = y.reshape(photos, -1, place.repeats, y.shape[-1] // place.repeats)  # a view or a copy
                part = cells[..., place.start : place.stop]
                if kind in ("class", "objectness") and high:
                    part[...] = rng.uniform(0, 1, part.shape)
                if kind == "label":
                    part[...] = rng.integers(-1, 5, part.shape)
                if kind == "box" and self.head.coding in ("corners", "center"):
                    sizes = (WIDTH, HEIGHT) if self.head.unit == "pixels" else (1, 1)
                    start, side = rng.uniform(-0.1, 1, (2, *part.shape[:-1], 2))
                    second = start + 0.4 * side if self.head.coding == "corners" else 0.4 * np.abs(side)
                    part[...] = np.concatenate([start * sizes, second * sizes], -1)
                part[:, 5] = part[:, 2]  # equal in everything: the first is told
                if kind == "box":
                    part[:, 3, ..., 1] = np.nan
                    part[:, 4, ..., 2] = np.inf
                if kind == "class":
                    part[:, 1, ..., 0] = np.nan
                    part[:, 6] = part[:, 6, ..., :1]  # all classes alike
                y[...] = cells.reshape(y.shape)
        return found


def place(output: int, axis: int, start: int, stop: int, repeats: int = 1) -> Place:
    return Place(output, axis, start, stop, repeats)


def maps(*strides: int, boxes: int = 1) -> tuple[Level, ...]:
    """Levels of a network of HEIGHT x WIDTH."""
    found = []
    for s in strides:
        anchors = [((1.5 + 1.25 * i) * s, (2.3 - 0.5 * i) * s) for i in range(boxes)] if boxes > 1 else []
        found.append(Level(HEIGHT // s * (WIDTH // s) * boxes, float(s), WIDTH // s, tuple(anchors)))
    return tuple(found)


SIZE = (HEIGHT, WIDTH)
FITTED = Preprocess(size=SIZE, resize=None, letterbox=Letterbox())
CORNER = Preprocess(size=SIZE, resize=None, letterbox=Letterbox(corner=True))
SQUASHED = Preprocess(size=SIZE, resize=None)
CROPPED = Preprocess(size=SIZE, resize=30)

CASES = {
    "grid": Case(  # YOLOX
        Head(SIZE, 3, (Source(place(0, 2, 0, 4), place(0, 2, 5, 8), place(0, 2, 4, 5)),), maps(4, 8), "grid"),
        (((75, 8), ""),),
        CORNER,
    ),
    "anchored": Case(  # YOLOv5, its maps
        Head(
            SIZE, 2,
            tuple(
                Source(place(i, 1, 0, 4, 3), place(i, 1, 5, 7, 3), place(i, 1, 4, 5, 3)) for i in range(2)
            ),
            maps(4, 8, boxes=3), "anchors", activation="sigmoid",
        ),
        (((21, 6, 10), "NHWC"), ((21, 3, 5), "NCHW")),
        FITTED,
    ),
    "binned": Case(  # YOLOv8, its maps
        Head(
            SIZE, 4, tuple(Source(place(2 * i, 1, 0, 32), place(2 * i + 1, 1, 0, 4)) for i in range(2)),
            maps(4, 8), "distances", "cells", bins=8, activation="sigmoid",
        ),
        (((32, 6, 10), "NHWC"), ((4, 6, 10), "NCHW"), ((32, 3, 5), "NCHW"), ((4, 3, 5), "NHWC")),
        FITTED,
    ),
    "prior": Case(  # SSD, decoded, y first
        Head(
            SIZE, 3, (Source(place(0, 2, 0, 4), place(1, 2, 0, 4)),), (Level(50),), "center", "relative",
            transposed=True, activation="softmax", background=0,
        ),
        (((50, 4), ""), ((50, 4), "")),
        SQUASHED,
    ),
    "chosen": Case(  # YOLO26, DETR
        Head(
            SIZE, 4, (Source(place(0, 2, 0, 4), place(0, 2, 4, 5), None, place(0, 2, 5, 6)),), (Level(40),),
            "corners", suppressed=True,
        ),
        (((40, 6), ""),),
        CROPPED,
    ),
    "columns": Case(  # YOLOv8, decoded
        Head(SIZE, 5, (Source(place(0, 1, 0, 4), place(0, 1, 4, 9)),), (Level(60),), "center"),
        (((9, 60), ""),),
        CROPPED,
    ),
    "odd": Case(  # boxes in rows of a map, scores in its columns: every axis, in either memory
        Head(
            SIZE, 2, (Source(place(0, 2, 0, 4), place(1, 3, 0, 2)),), (Level(30, 4.0, 10),), "distances",
            offset=0.0, activation="sigmoid",
        ),
        (((3, 4, 10), "NHWC"), ((5, 6, 2), "NHWC")),
        SQUASHED,
    ),
}  # fmt: skip
