"""A head as the templates of app packages have it: where numbers stand in memory, with no axes left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repedge.tasks.base import Output
from repedge.tasks.boxes import CANDIDATES, MOST, OVERLAP, SCORE, to_photo
from repedge.tasks.heads import decode
from repedge.tasks.heads.head import Head, Place, Source
from repedge.tasks.view import View

KINDS = {"box": "box", "class": "scores", "objectness": "objectness", "label": "label"}
"""What `Source.places` calls a kind of number -> what templates do."""

GOLDEN = 100
"""Candidates of an image, or more, that the golden tests' least score lets through: networks that are not
trained find nothing at the usual one."""


def golden(head: Head, outputs: Sequence[np.ndarray], views: Sequence[View]) -> bytes:
    """What is found in the golden photos, for the tests of app packages.

    Little-endian float32: least score, overlap and most that they were found with, then for each detection
    the index of the photo, the class, the score, and left, top, right, bottom in pixels of the photo.
    """
    scores, _ = decode.scores_of(decode.gather(outputs, head), head)
    best = np.sort(scores[(scores >= 0) & (scores <= 1)])[::-1][: GOLDEN * len(views)]
    least = min(SCORE, float(best[-1])) if len(best) else SCORE
    numbers = [np.array([least, OVERLAP, MOST])]
    for i, (found, view) in enumerate(zip(decode.decode(outputs, head, least), views, strict=True)):
        one = to_photo(found, view)
        rows = np.column_stack([np.full(len(one), i), one.classes, one.scores, one.boxes])
        numbers.append(rows.ravel())
    return np.concatenate(numbers).astype("<f4").tobytes()


def context(head: Head, outputs: Sequence[Output]) -> dict[str, Any]:
    """What templates are told of a head.

    Keys:
        head: The head itself.
        sources: Of each, ``kinds`` of numbers, ``rows`` (how many candidates), and for each kind of number
            where it stands (`_place`).
        levels: Of each, ``rows``, ``columns``, ``cells``, ``stride`` and ``anchors``.
        candidates: For each image.
        scored: Scores of a candidate, background included.
        uses: Whether ``sigmoid`` and ``softmax`` are needed.
        cells_matter: Whether boxes depend on the cell that a candidate is.
        least, overlap, most: Where nobody says another.
        largest: Candidates that are compared with each other.
    """
    first = head.sources[0]
    return {
        "head": head,
        "sources": [_source(s, outputs) for s in head.sources],
        "levels": [
            {
                "rows": v.rows,
                "columns": max(1, v.columns),
                "cells": v.rows // max(1, len(v.anchors)),
                "stride": _single(v.stride),
                "anchors": [[_single(side) for side in anchor] for anchor in v.anchors],
            }
            for v in head.levels
        ],
        "candidates": head.candidates,
        "scored": first.scores.stop - first.scores.start,
        "uses": {
            "sigmoid": head.activation == "sigmoid" or head.coding == "anchors",
            "softmax": head.activation == "softmax" or head.bins > 1,
        },
        "cells_matter": head.coding in ("grid", "anchors", "distances"),
        "least": SCORE,
        "overlap": OVERLAP,
        "most": MOST,
        "largest": CANDIDATES,
    }


def _single(number: float) -> float:
    """As float32 has it, so that a literal of either width is the same number."""
    return float(np.float32(number))


def _source(source: Source, outputs: Sequence[Output]) -> dict[str, Any]:
    places = {KINDS[kind]: place for kind, place in source.places.items()}
    shape = outputs[source.box.output].shape
    rows = int(np.prod(shape)) // shape[source.box.axis - 1] * source.box.repeats
    found = {kind: _place(place, outputs[place.output].shape) for kind, place in places.items()}
    return {"kinds": list(places), "rows": rows, **found}


def _place(place: Place, shape: Sequence[int]) -> Mapping[str, Any]:
    """A place, and under ``first`` and ``last`` its walk in memory, by where the output has its channels.

    Walks: candidate r has its first number ``at`` numbers from the start, plus the sum of ``r % size * step``
    for each pair (size, step), where r is divided by each size in turn; its numbers are ``next`` apart.
    """
    axes = {"first": range(len(shape)), "last": (1, 2, 0) if len(shape) == 3 else range(len(shape))}
    return {**vars(place), **{order: _walk(place, shape, list(memory)) for order, memory in axes.items()}}


def _walk(place: Place, shape: Sequence[int], memory: Sequence[int]) -> dict[str, Any]:
    """See `_place`; ``memory`` has the axes of ``shape`` from the outermost to the innermost."""
    steps = {axis: int(np.prod([shape[a] for a in memory[i + 1 :]])) for i, axis in enumerate(memory)}
    axis = place.axis - 1
    inner_first = [(shape[a], steps[a]) for a in reversed(range(len(shape))) if a != axis]
    width = shape[axis] // place.repeats
    walk: list[tuple[int, int]] = []
    for size, step in [*inner_first, (place.repeats, width * steps[axis])]:
        if size == 1:
            continue
        if walk and step == walk[-1][0] * walk[-1][1]:
            walk[-1] = (walk[-1][0] * size, walk[-1][1])
        else:
            walk.append((size, step))
    return {
        "output": place.output,
        "at": place.start * steps[axis],
        "next": steps[axis],
        "walk": walk or [(1, 0)],
    }
