"""Heads whose candidates are rows: one output, or boxes and scores apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repedge.tasks.heads.head import Head, Level, Place, Source
from repedge.tasks.heads.seen import TINY, Seen, Unknown
from repedge.tasks.heads.tail import CHOOSING


def one_output(seen: Seen) -> Head:
    """Boxes beside scores in the rows (or columns) of one output."""
    shape = seen.network.outputs[0].shape
    if shape[1] == 6 and seen.tail.operators & CHOOSING:
        return _chosen(seen)
    rows = seen.rows_axis(0)
    axis = 2 - rows  # of a candidate's numbers; the batch comes first
    levels = seen.levels(0, rows)
    rest = seen.rest[0] if rows == 0 else seen.rest[0].T
    logits = _raw_distances(seen, rest, axis, levels)
    if logits is not None:
        return logits
    if shape[axis - 1] < 5:
        raise Unknown(f"{seen.named(0)} has {shape[axis - 1]} numbers for a candidate, 5 would be the least")
    apart = has_objectness(seen, 0, axis)
    start = 5 if apart else 4
    source = Source(
        Place(0, axis, 0, 4),
        Place(0, axis, start, shape[axis - 1]),
        Place(0, axis, 4, 5) if apart else None,
    )
    pick = (slice(None), slice(4, None)) if axis == 2 else (slice(4, None), slice(None))
    activation = seen.activation([(0, pick)])
    head: dict[str, Any] = {
        "size": seen.size, "classes": shape[axis - 1] - start, "sources": (source,), "levels": levels,
        "activation": activation,
    }  # fmt: skip
    return Head(**head, **_boxes(seen, rest[:, :4], rows, levels, apart))


def _boxes(
    seen: Seen, rest: np.ndarray, rows: int, levels: Sequence[Level], objectness: bool
) -> dict[str, Any]:
    """How boxes [candidates, 4] are coded, from what they are for maps of 0."""
    if not _same(rest, levels):
        return decoded(seen, rest)
    if "coding" in seen.said:
        return {k: seen.said[k] for k in ("coding", "unit", "offset") if k in seen.said}
    if objectness and np.abs(rest).max() < TINY and seen.in_order(0, rows, 0, levels):
        return {"coding": "grid"}
    raise Unknown(
        "its boxes lack the places of their cells, and how they are coded is not to be seen; say it "
        "(coding, unit)"
    )


def _same(rest: np.ndarray, levels: Sequence[Level]) -> bool:
    """Whether boxes don't say in which cell of a map they are."""
    start = 0
    for level in levels:
        if np.ptp(rest[start : start + level.rows], axis=0).max() > TINY:
            return False
        start += level.rows
    return True


def decoded(seen: Seen, rest: np.ndarray) -> dict[str, Any]:
    """Coding, unit and order of boxes [candidates, 4] that stand where they belong, for maps of 0."""
    said = {k: seen.said[k] for k in ("coding", "unit", "transposed") if k in seen.said}
    unit = said.get("unit", "pixels" if np.abs(rest).max() > 2 else "relative")
    ends, sides = _distinct(rest[:, 2]), _distinct(rest[:, 2] - rest[:, 0])
    coding = said.get("coding", "corners" if sides < ends else "center")
    center = (rest[:, :2] + rest[:, 2:]) / 2 if coding == "corners" else rest[:, :2]
    transposed = said.get("transposed", _changes(center[:, 1]) > _changes(center[:, 0]))
    height, width = seen.size if unit == "pixels" else (1, 1)
    far = center / np.array([height, width] if transposed else [width, height])
    if not (far.min() > -0.05 and 0.4 < far.max() < 1.05):
        least, most = center.min(), center.max()
        raise Unknown(
            f"the centers of its boxes go from {least:.3g} to {most:.3g}, which is no grid over an input of "
            f"{seen.size[1]}x{seen.size[0]} pixels"
        )
    return {"coding": coding, "unit": unit, "transposed": bool(transposed)}


def _distinct(x: np.ndarray) -> int:
    scale = max(float(np.abs(x).max()), 1e-12)
    return len(np.unique(np.round(x / scale * 1e4)))


def _changes(x: np.ndarray) -> int:
    """How often it changes from one candidate to the next: columns do more often than rows."""
    scale = max(float(np.abs(x).max()), 1e-12)
    return int((np.abs(np.diff(x)) > TINY * scale).sum())


def has_objectness(seen: Seen, output: int, axis: int) -> bool:
    """Whether the number behind the box is an objectness rather than the first class.

    It is where it comes from a map of its own (YOLOX), from none (YOLOv6: always 1), or from the one that
    gives boxes and classes, too (YOLOv5, v7).
    """
    count = seen.network.outputs[output].shape[axis - 1]
    if "objectness" in seen.said:
        return bool(seen.said["objectness"])
    labels = len(seen.network.labels)
    if count == 5 or labels in (count - 4, count - 5):
        return count > 5 and labels != count - 4
    touched = [set(t.tolist()) for t in seen.touched(output, axis - 1)]
    if not any(4 in t for t in touched):
        return True
    return any(4 in t and (5 not in t or 0 in t) for t in touched)


def _raw_distances(seen: Seen, rest: np.ndarray, axis: int, levels: tuple[Level, ...]) -> Head | None:
    """Class scores beside distance bins (NanoDet), or bins beside scores; None where there are no bins."""
    count = rest.shape[1]
    classes = seen.said.get("classes", len(seen.network.labels))
    likely: np.ndarray = np.abs(rest - 0.5).max(0) < TINY
    if likely.any():
        classes = int(likely.sum())
        if not (likely[:classes].all() or likely[-classes:].all()):
            return None
        first = bool(likely[0])
    else:
        first = seen.said.get("bins") is None
    numbers = count - classes
    bins, rest_of = divmod(numbers, 4)
    if not classes or rest_of or bins < 2 or not _plain(seen, rest, axis, classes, first):
        return None
    start = classes if first else 0
    if not seen.in_order(0, 2 - axis, start, levels):
        return None
    box = Place(0, axis, start, start + numbers)
    scores = Place(0, axis, 0, classes) if first else Place(0, axis, numbers, count)
    pick: tuple[Any, ...] = (slice(None), slice(scores.start, scores.stop))
    offset = seen.said.get("offset", 0.0 if first else 0.5)
    return Head(
        seen.size, classes, (Source(box, scores),), levels, "distances", "cells", offset=offset, bins=bins,
        activation=seen.activation([(0, pick if axis == 2 else pick[::-1])]),
    )  # fmt: skip


def _plain(seen: Seen, rest: np.ndarray, axis: int, classes: int, first: bool) -> bool:
    """Whether the numbers beside the scores are those of the maps, unchanged."""
    one = seen.one[0] if axis == 2 else seen.one[0].T
    index = slice(classes, None) if first else slice(0, rest.shape[1] - classes)
    return bool(np.abs(rest[:, index]).max() < TINY and np.abs(one[:, index] - 1).max() < TINY)


def two_outputs(seen: Seen, box: int, scores: int) -> Head:
    """Boxes [candidates, 4] in one output, scores of classes in another (SSD, PP-YOLOE)."""
    shape = seen.network.outputs[scores].shape
    rows = 0 if shape[0] == seen.network.outputs[box].shape[0] else 1
    count = shape[1 - rows]
    levels = seen.levels(box, 0)
    rest = seen.rest[box]
    if _same(rest, levels):
        raise Unknown(
            f"the boxes in {seen.named(box)} lack the places of their cells or prior boxes; export the "
            "network with its boxes decoded"
        )
    shared = count > 1 and seen.distributed(scores, 1 - rows)
    background = seen.said.get("background", _background(seen, count, shared))
    activation = "none" if shared else seen.activation([(scores, ...)])
    if activation == "sigmoid" and background is not None and "activation" not in seen.said:
        activation = "softmax"
    return Head(
        seen.size, count - (background is not None),
        (Source(Place(box, 2, 0, 4), Place(scores, 2 - rows, 0, count)),),
        levels, **decoded(seen, rest), activation=activation, background=background,
    )  # fmt: skip


def _background(seen: Seen, count: int, shared: bool) -> int | None:
    """The first score is that of the background where scores are shares of 1, or there is a label less."""
    labels = len(seen.network.labels)
    return 0 if labels == count - 1 or (shared and labels != count) else None


def _chosen(seen: Seen) -> Head:
    """The best candidates, chosen by the network: box, score, class (YOLOv10, YOLO26)."""
    sample = seen.tail.run(seen.tail.random())[0]
    if np.abs(sample[:, 5] - np.rint(sample[:, 5])).max() > TINY or sample[:, 5].min() < 0:
        raise Unknown(f"the sixth numbers of {seen.named(0)} are no indices of classes")
    touched = seen.touched(0, 1)
    channels = {
        shape[1] for shape, t in zip(seen.tail.shapes, touched, strict=True) if {4, 5} & set(t.tolist())
    }
    classes = len(seen.network.labels) or (channels.pop() if len(channels) == 1 else 0)
    unit = "pixels" if np.abs(sample[:, :4]).max() > 2 else "relative"
    return Head(
        seen.size, seen.said.get("classes", classes),
        (Source(Place(0, 2, 0, 4), Place(0, 2, 4, 5), label=Place(0, 2, 5, 6)),),
        (Level(len(sample)),), "corners", seen.said.get("unit", unit),
        activation="none" if sample[:, 4].min() >= 0 and sample[:, 4].max() <= 1 else "sigmoid",
        suppressed=True,
    )  # fmt: skip
