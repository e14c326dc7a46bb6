"""Heads whose outputs are the raw maps, one or several for each stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repedge.tasks.heads.head import Head, Level, Place, Source
from repedge.tasks.heads.seen import TINY, Seen, Unknown


def maps(seen: Seen) -> Head:
    """By how many maps there are for each stride, and how many numbers a cell has."""
    groups = _strides(seen)
    count = len(groups[0])
    if count == 1:
        return _joined(seen, [g[0] for g in groups])
    if count == 2:
        return _two(seen, groups)
    if count == 3:
        return _three(seen, groups)
    raise Unknown(f"it has {count} maps for each stride")


def _strides(seen: Seen) -> list[list[int]]:
    """Outputs that are maps of the same size, the largest first; in the outputs' order among themselves."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, o in enumerate(seen.network.outputs):
        sizes.setdefault(o.shape[-2:] if len(o.shape) == 3 else o.shape[1:3], []).append(i)
    groups = [g for _, g in sorted(sizes.items(), key=lambda item: -int(np.prod(item[0])))]
    signatures = [sorted(_channels(seen, i) for i in g) for g in groups]
    if len(groups) < 2 or any(s != signatures[0] for s in signatures):
        raise Unknown(
            f"its maps {[list(o.shape) for o in seen.network.outputs]} are not the same numbers for each of "
            "several strides"
        )
    return groups


def _channels(seen: Seen, output: int) -> int:
    shape = seen.network.outputs[output].shape
    return shape[0] if len(shape) == 3 else shape[0] * shape[-1]


def _levels(seen: Seen, outputs: Sequence[int], anchors: Sequence[Any] = ()) -> tuple[Level, ...]:
    found = []
    for k, i in enumerate(outputs):
        shape = seen.network.outputs[i].shape
        height, width = shape[-2:] if len(shape) == 3 else shape[1:3]
        boxes = tuple((float(w), float(h)) for w, h in anchors[k]) if anchors else ()
        found.append(Level(height * width * max(1, len(boxes)), seen.stride(width), width, boxes))
    return tuple(found)


def _plain(seen: Seen, output: int, channels: slice = slice(None)) -> bool:
    """Whether numbers are those of the maps, unchanged."""
    rest, one = (run[output][channels] for run in (seen.rest, seen.one))
    return bool(np.abs(rest).max() < TINY and np.abs(one - 1).max() < TINY)


def _joined(seen: Seen, outputs: list[int]) -> Head:
    """One map for each stride: with anchors (YOLOv5, v7), or distance bins beside scores (YOLOv8)."""
    first = outputs[0]
    if len(seen.network.outputs[first].shape) == 4 or "anchors" in seen.said:
        return _anchored(seen, outputs)
    stretches = sorted((int(t.min()), int(t.max()) + 1) for t in seen.touched(first, 0) if len(t))
    if len(stretches) == 3:
        return _grid(seen, outputs, stretches)
    if len(stretches) != 2 or stretches[0][1] != stretches[1][0]:
        raise Unknown(
            f"the numbers of a cell of {seen.named(first)} come from one layer, as those of boxes relative "
            "to anchors do; say the anchors of each stride (anchors, pixels)"
        )
    (_, split), (_, count) = stretches
    labels = seen.said.get("classes", len(seen.network.labels))
    numbers = split if labels == count - split or (labels != split and split % 4 == 0) else count - split
    box = slice(0, split) if numbers == split else slice(split, count)
    scores = slice(split, count) if numbers == split else slice(0, split)
    bins, rest_of = divmod(box.stop - box.start, 4)
    if rest_of or bins < 2 or not _plain(seen, first, box):
        raise Unknown(f"the numbers of {seen.named(first)} are no distance bins beside scores")
    sources = tuple(
        Source(Place(i, 1, box.start, box.stop), Place(i, 1, scores.start, scores.stop)) for i in outputs
    )
    return Head(
        seen.size, scores.stop - scores.start, sources, _levels(seen, outputs), "distances", "cells",
        offset=seen.said.get("offset", 0.5), bins=bins,
        activation=seen.activation([(i, scores) for i in outputs]),
    )  # fmt: skip


def _grid(seen: Seen, outputs: list[int], stretches: list[tuple[int, int]]) -> Head:
    """Box, objectness and scores of a cell from three layers (YOLOX)."""
    if [stop - start for start, stop in stretches[:2]] != [4, 1] or not _plain(seen, outputs[0], slice(0, 4)):
        raise Unknown(f"the numbers of {seen.named(outputs[0])} are no box, objectness and scores")
    start, stop = stretches[2]
    sources = tuple(Source(Place(i, 1, 0, 4), Place(i, 1, start, stop), Place(i, 1, 4, 5)) for i in outputs)
    activation = seen.activation([(i, slice(4, None)) for i in outputs])
    return Head(seen.size, stop - start, sources, _levels(seen, outputs), "grid", activation=activation)


def _anchored(seen: Seen, outputs: list[int]) -> Head:
    """Maps of boxes relative to anchors, [anchors * (5 + classes), H, W] or [anchors, H, W, 5 + classes]."""
    anchors = seen.said.get("anchors")
    if not anchors:
        raise Unknown(
            f"the boxes in {seen.named(outputs[0])} are relative to anchors, which the graph does not hold; "
            "say those of each stride (anchors, pixels)"
        )
    if len(anchors) != len(outputs) or len({len(a) for a in anchors}) != 1:
        raise Unknown(f"there are anchors for {len(anchors)} strides, and it has {len(outputs)}")
    boxes = len(anchors[0])
    sources = []
    for i in outputs:
        shape = seen.network.outputs[i].shape
        apart = len(shape) == 4
        count, rest_of = (shape[-1], shape[0] - boxes) if apart else divmod(shape[0], boxes)
        if rest_of or count < 6:
            raise Unknown(f"{seen.named(i)} does not fit {boxes} anchors")
        axis, repeats = (4, 1) if apart else (1, boxes)
        sources.append(
            Source(
                Place(i, axis, 0, 4, repeats), Place(i, axis, 5, count, repeats),
                Place(i, axis, 4, 5, repeats),
            )
        )  # fmt: skip
    if not all(_plain(seen, i) for i in outputs):
        raise Unknown(f"{seen.named(outputs[0])} is not what its layer gives, unchanged")
    return Head(
        seen.size, count - 5, tuple(sources), _levels(seen, outputs, anchors), "anchors",
        activation="sigmoid",
    )  # fmt: skip


def _two(seen: Seen, groups: list[list[int]]) -> Head:
    """Scores and distances of the sides in maps of their own (RTMDet, NanoDet, YOLOv6, v8)."""
    at = _box_among(seen, groups[0])
    boxes, scores = [g[at] for g in groups], [g[1 - at] for g in groups]
    levels = _levels(seen, boxes)
    bins = _channels(seen, boxes[0]) // 4
    unit, offset = "cells", 0.5
    if bins == 1:
        unit = _distance_unit(seen, boxes, levels)
        offset = 0.0 if unit == "pixels" else 0.5
    elif not all(_plain(seen, i) for i in boxes):
        raise Unknown(f"{seen.named(boxes[0])} is neither distances nor their bins")
    classes = _channels(seen, scores[0])
    sources = tuple(
        Source(Place(b, 1, 0, 4 * bins), Place(s, 1, 0, classes)) for b, s in zip(boxes, scores, strict=True)
    )
    return Head(
        seen.size, classes, sources, levels, "distances", unit,  # type: ignore[arg-type]
        offset=seen.said.get("offset", offset), bins=bins,
        activation=seen.activation([(i, ...) for i in scores]),
    )  # fmt: skip


def _box_among(seen: Seen, group: list[int]) -> int:
    """Which of two maps holds the boxes."""
    counts = [_channels(seen, i) for i in group]
    labels = seen.said.get("classes", len(seen.network.labels))
    if labels in counts and counts[0] != counts[1]:
        return 1 - counts.index(labels)
    fours = [k for k, c in enumerate(counts) if c == 4]
    likely = fours or [k for k, c in enumerate(counts) if c % 4 == 0 and c >= 8]
    if len(likely) == 1:
        return likely[0]
    raise Unknown(
        f"which of {seen.named(group[0])} and {seen.named(group[1])} holds the boxes is not to be seen; say "
        "how many classes there are (classes)"
    )


def _distance_unit(seen: Seen, boxes: list[int], levels: Sequence[Level]) -> str:
    """Pixels where maps of 1 give, or differ from maps of 0 by, the stride, times e where it is an exp."""
    if "unit" in seen.said:
        return str(seen.said["unit"])
    found = set()
    for i, level in zip(boxes, levels, strict=True):
        rest, one = float(seen.rest[i].mean()), float(seen.one[i].mean())
        slope = one - rest if abs(rest) < TINY else rest
        if np.ptp(seen.rest[i]) > TINY * max(1.0, abs(rest)) or slope <= 0:
            raise Unknown(f"the boxes in {seen.named(i)} are no distances of the sides")
        found.add("pixels" if abs(slope / level.stride - 1) < 0.01 else "cells")
    if len(found) > 1:
        raise Unknown("its distances are in pixels for some strides only")
    return found.pop()


def _three(seen: Seen, groups: list[list[int]]) -> Head:
    """Scores, box and objectness in maps of their own, as YOLOX codes them."""
    order = []
    for group in groups:
        counts = [_channels(seen, i) for i in group]
        if sorted(counts)[:2] != [1, 4] and not {1, 4} <= set(counts):
            raise Unknown(f"its maps have {counts} numbers for a cell, none of them 4 for a box and 1")
        box = counts.index(4) if counts.count(4) == 1 else 1  # scores, box, objectness is the usual order
        one = len(counts) - 1 - counts[::-1].index(1)
        scores = ({0, 1, 2} - {box, one}).pop()
        order.append((group[scores], group[box], group[one]))
    if not all(_plain(seen, box) for _, box, _ in order):
        raise Unknown(f"the boxes in {seen.named(order[0][1])} are not coded as those of YOLOX")
    classes = _channels(seen, order[0][0])
    sources = tuple(
        Source(Place(b, 1, 0, 4), Place(s, 1, 0, classes), Place(o, 1, 0, 1)) for s, b, o in order
    )
    activation = seen.activation([(i, ...) for s, _, o in order for i in (s, o)])
    levels = _levels(seen, [b for _, b, _ in order])
    return Head(seen.size, classes, sources, levels, "grid", activation=activation)
