"""What a detector's outputs hold, as a value that JSON keeps: enough to decode them without the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from repedge.tasks.base import Output, Part

Coding = Literal["corners", "center", "grid", "anchors", "distances"]
"""What the four numbers of a box are; `CODINGS` says it in words."""

CODINGS: dict[Coding, str] = {
    "corners": "left, top, right, bottom",
    "center": "center and size",
    "grid": "(xy + cell) * stride, exp(wh) * stride",
    "anchors": "(2 sigmoid(xy) - 0.5 + cell) * stride, (2 sigmoid(wh))^2 * anchor",
    "distances": "distances of the sides from the point of a cell",
}

Unit = Literal["pixels", "relative", "cells"]
"""Of corners, centers and distances: pixels of the input, shares of its width and height, or strides."""

Activation = Literal["none", "sigmoid", "softmax"]
"""What scores and objectness still lack."""

Count = Annotated[int, Field(ge=0, le=1 << 24)]
Positive = Annotated[int, Field(ge=1, le=1 << 24)]
Length = Annotated[float, Field(ge=0, le=1 << 24, allow_inf_nan=False)]

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Place:
    """A stretch of one output, along the axis of a candidate's numbers.

    Attributes:
        output: Index of the output.
        axis: As the graph has the output, the batch being axis 0; the other axes are the candidates, in
            their order.
        start, stop: Where the stretch begins and ends.
        repeats: The axis holds the numbers of so many boxes of a cell, one after the other; the stretch is
            within the numbers of one.
    """

    __pydantic_config__ = STRICT

    output: Count
    axis: Positive
    start: Count
    stop: Positive
    repeats: Positive = 1


@dataclass(frozen=True)
class Source:
    """Where the numbers of some of the candidates stand.

    Attributes:
        box: Their boxes.
        scores: Their class scores; of heads that chose the class already, the one score.
        objectness: What the scores are to be multiplied by.
        label: The class where it was chosen already.
    """

    __pydantic_config__ = STRICT

    box: Place
    scores: Place
    objectness: Place | None = None
    label: Place | None = None

    @property
    def places(self) -> dict[str, Place]:
        """Kind of number -> where it stands."""
        known = {"box": self.box, "objectness": self.objectness, "class": self.scores, "label": self.label}
        return {kind: place for kind, place in known.items() if place is not None}


@dataclass(frozen=True)
class Level:
    """Candidates that are the cells of one map, row by row; with anchors, all cells for each in turn.

    Attributes:
        rows: How many candidates.
        stride: Pixels from one cell to the next; 0 where nobody knows.
        columns: Cells side by side; 0 likewise.
        anchors: Width and height of each box that a cell may have, pixels.
    """

    __pydantic_config__ = STRICT

    rows: Positive
    stride: Length = 0.0
    columns: Count = 0
    anchors: tuple[tuple[Length, Length], ...] = ()


@dataclass(frozen=True)
class Head:
    """What a detector's outputs hold.

    Attributes:
        size: Height and width of the network's input, pixels.
        classes: How many there are, background left out; 0 where nobody knows.
        sources: Where candidates stand, in their order.
        levels: Their maps, in the same order.
        coding: Of the boxes.
        unit: Of the boxes.
        transposed: Whether y stands before x.
        offset: From the corner of a cell to the point that distances are from, in cells.
        bins: Numbers that a distance is the softmax-weighted mean index of; 1 where it is one number.
        activation: What the scores and the objectness lack.
        background: Index among the scores of what is no class; None where there is none.
        suppressed: Whether no object is found twice, so that non-maximum suppression is not needed.
    """

    __pydantic_config__ = STRICT

    size: tuple[Positive, Positive]
    classes: Count
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)]
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=64)]
    coding: Coding
    unit: Unit = "pixels"
    transposed: bool = False
    offset: Annotated[float, Field(ge=0, le=1)] = 0.5
    bins: Annotated[int, Field(ge=1, le=256)] = 1
    activation: Activation = "none"
    background: Count | None = None
    suppressed: bool = False

    @property
    def candidates(self) -> int:
        """How many boxes there are for each image."""
        return sum(level.rows for level in self.levels)

    def settings(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = TypeAdapter(Head).dump_python(self, mode="json")
        return found


def of_settings(settings: Mapping[str, Any], outputs: Sequence[Output]) -> Head | str:
    """A head as `Head.settings` wrote it, if the outputs can be of one; else why not, in a sentence."""
    try:
        head = TypeAdapter(Head).validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"what is said of its head is wrong: {where}: {first['msg']}"
    return mismatch(head, outputs) or head


def mismatch(head: Head, outputs: Sequence[Output]) -> str:
    """Why outputs can't be of a head; empty if they can."""
    rows = 0
    for source in head.sources:
        counts = set()
        for kind, place in source.places.items():
            if place.output >= len(outputs):
                return f"its {kind} is said to be in output {place.output}, and there are {len(outputs)}"
            output = outputs[place.output]
            if not _within(place, output.shape):
                shape = list(output.shape)
                return f"its {kind} is said to be where output {output.name!r} {shape} has nothing"
            counts.add(math.prod(output.shape) // output.shape[place.axis - 1] * place.repeats)
        if len(counts) > 1:
            return "its boxes and scores are of different numbers of candidates"
        rows += counts.pop()
    if rows != head.candidates:
        return f"it has {rows} candidates, and its maps have {head.candidates} cells"
    return _numbers(head) or _cells(head)


def _within(place: Place, shape: Sequence[int]) -> bool:
    if place.axis > len(shape) or place.stop <= place.start or min(shape) < 1:
        return False
    whole, rest = divmod(shape[place.axis - 1], place.repeats)
    return not rest and place.stop <= whole


def _numbers(head: Head) -> str:
    """Whether the stretches are as long as what they hold."""
    for s in head.sources:
        box, scores = s.box.stop - s.box.start, s.scores.stop - s.scores.start
        if box != 4 * head.bins:
            return f"its boxes have {box} numbers, not {4 * head.bins}"
        if any(p is not None and p.stop - p.start != 1 for p in (s.objectness, s.label)):
            return "its objectness or label has more than one number"
        want = 1 if s.label is not None else head.classes + (head.background is not None)
        if scores != want or want == 0:
            return f"there are {scores} scores for {head.classes} classes"
    if head.background is not None and head.background > head.classes:
        return "its background is none of the scores"
    return ""


def _cells(head: Head) -> str:
    """Whether what the coding needs of the maps is there."""
    if head.coding not in ("grid", "anchors", "distances"):
        return ""
    for level in head.levels:
        boxes = max(1, len(level.anchors))
        if not level.stride or not level.columns or level.rows % (level.columns * boxes):
            return f"a map of {level.rows} candidates does not fit its {level.columns} columns"
        if head.coding == "anchors" and not level.anchors:
            return "its boxes are relative to anchors, and there are none"
    return ""


def parts(head: Head, outputs: Sequence[Output]) -> tuple[Output, ...]:
    """The outputs with the parts that hold a head's numbers, in the order in which they stand there."""
    found: dict[int, list[Part]] = {}
    for source in head.sources:
        for kind, place in source.places.items():
            width = outputs[place.output].shape[place.axis - 1] // place.repeats
            for start in range(0, width * place.repeats, width):
                part = Part(place.axis, start + place.start, start + place.stop, kind, _unit(head, kind))
                if part not in found.setdefault(place.output, []):
                    found[place.output].append(part)
    return tuple(
        replace(output, parts=tuple(sorted(found.get(i, ()), key=lambda p: p.start)))
        for i, output in enumerate(outputs)
    )


def _unit(head: Head, kind: str) -> str:
    if kind == "label":
        return "index"
    if kind != "box":
        return "probability" if head.activation == "none" else "logit"
    if head.bins > 1:
        return "distance bins"
    return "offsets" if head.coding in ("grid", "anchors") else head.unit
