"""``detect``: boxes of objects, each with a class and a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from repedge.errors import UserError
from repedge.tasks import drawing
from repedge.tasks.annotations import Marked, mapping
from repedge.tasks.average_precision import LEAST, RANKED, SUPPRESSION, MeanAveragePrecision, apart, sure
from repedge.tasks.base import Figure, Limit, Network, Scorer, Task, Truths
from repedge.tasks.boxes import MOST, OVERLAP, SCORE, Detections, Objects
from repedge.tasks.comparison import Answers
from repedge.tasks.heads import app, consumers, decode
from repedge.tasks.heads.agreement import Found
from repedge.tasks.heads.head import CODINGS, Head, parts
from repedge.tasks.heads.recognize import SAYABLE, recognize
from repedge.tasks.view import View
from repedge.templates import Templates

if TYPE_CHECKING:
    import torch

SHIP = Path(__file__).parent / "ship" / "detect"

UNITS = {"pixels": ", pixels", "relative": ", shares of the input's size", "cells": ", strides"}

ABSENT = "none found"
"""Where the float network finds nothing on the photos."""


class Detect(Task):
    """Objects in an image: box, class and score of each; `repedge.tasks.heads.recognize` says which heads."""

    name: ClassVar[str] = "detect"
    title: ClassVar[str] = "boxes of objects"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("matched.f1", "matched", phrase="detections matched (F1)", absent=ABSENT),
        Figure("matched.recall", "recall", phrase="of float's detections found", absent=ABSENT),
        Figure("matched.precision", "precision", phrase="of its detections float's", absent=ABSENT),
        Figure("matched.mean_iou", "IoU", "", phrase="mean IoU with float's boxes", absent=ABSENT),
        Figure("matched.score_err", "score error", "", "less", phrase="mean error of a score", absent=ABSENT),
        Figure("matched.n", "detections", "", phrase="detections of float", absent=ABSENT),
    )
    metrics: ClassVar[tuple[Figure, ...]] = (
        Figure("map50_95", "mAP50-95", absent="no boxes"),
        Figure("map50", "mAP50", absent="no boxes"),
    )
    drop: ClassVar[Limit | None] = Limit("map50_95_drop", "mAP50-95 drop", "points", "map50_95")
    disagreement: ClassVar[Limit | None] = Limit(
        "map50_95_disagreement", "mAP50-95 lacking to float's boxes", "points", "agree_map50_95"
    )
    divergence: ClassVar[Limit | None] = Limit("kl", "divergence from float, an object", "nats", "kl")
    annotated: ClassVar[str | None] = "boxes"
    apart_phrase: ClassVar[str] = "{:.1%} apart from float's boxes"
    ship: ClassVar[Mapping[str, Templates]] = {
        "ios": Templates(SHIP / "ios", {"Boxes.swift": "Sources/{name}/Boxes.swift"}, SHIP),
        "android": Templates(
            SHIP / "android", {"Boxes.kt": "{lower}/src/main/kotlin/repedge/{lower}/Boxes.kt"}, SHIP
        ),
        "cpp": Templates(SHIP / "cpp", {"boxes.cpp": "src/boxes.cpp"}, SHIP),
        "python": Templates(SHIP / "python", {"boxes.py": "{name}/boxes.py"}, SHIP),
    }

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        found = recognize(network)
        if isinstance(found, str):
            raise UserError(f"it is no detector that is known here: {found}")
        self.head: Head = found
        self.outputs = parts(found, network.outputs)
        self.aligned = not found.suppressed

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether its head is known."""
        return isinstance(recognize(network), Head)

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """Its head must be known, or said."""
        found = recognize(network)
        if isinstance(found, Head):
            return None
        if network.graph is None:
            return found
        return f"{found}. --task detect:FILE.json says what can't be seen, of {SAYABLE}"

    def settings(self) -> dict[str, Any]:
        """The head, see `repedge.tasks.heads.head.Head`."""
        return self.head.settings()

    def describe(self) -> str:
        """What was recognized, in a line."""
        head = self.head
        strides = [f"{level.stride:g}" for level in head.levels if level.stride]
        unit = "" if head.coding in ("grid", "anchors") else UNITS[head.unit]
        extras = [
            "objectness" if head.sources[0].objectness else "",
            f"{head.bins} bins a distance" if head.bins > 1 else "",
            f"{head.activation} to be applied" if head.activation != "none" else "",
            "" if head.background is None else f"score {head.background} is the background",
            "y before x" if head.transposed else "",
            "already suppressed" if head.suppressed else "",
        ]
        what = f"boxes of {head.classes} classes" if head.classes else "boxes of objects"
        at = f" at strides {', '.join(strides)}" if strides else ""
        kind = f"{CODINGS[head.coding]}{unit}"
        more = "".join(f"; {e}" for e in extras if e)
        return f"{what}{', named' if self.labels else ''}; {head.candidates} candidates{at}; {kind}{more}"

    def check_labels(self) -> None:
        """There must be a label for each class."""
        if self.labels and self.head.classes and len(self.labels) != self.head.classes:
            raise UserError(
                f"there are {len(self.labels)} labels, but the network detects {self.head.classes} classes"
            )

    def answers(self) -> Answers:
        """See `Task.answers`."""
        return Found(self.head)

    def nearness(self, got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """See `repedge.tasks.heads.nearness`; None where the network sorts what it finds."""
        from repedge.tasks.heads.nearness import nearness

        return nearness(got, want, self.head) if self.aligned else None

    def curvature(
        self, outputs: Sequence[torch.Tensor], signs: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """See `Task.curvature`."""
        from repedge.tasks.heads.nearness import curvature

        return curvature(outputs, signs, self.head) if self.aligned else [None] * len(outputs)

    def truths(self, photos: Any) -> Truths | None:
        """The objects of each photo; see `repedge.tasks.annotations`."""
        return mapping.box_truths(photos, self.labels, self.head.classes)

    def placed(self, truth: Marked, view: View) -> Objects:
        """Boxes in pixels of the network's input."""
        return mapping.placed_boxes(truth, view)

    def as_truths(self, outputs: Sequence[np.ndarray]) -> list[Objects]:
        """The boxes that an app would show."""
        return sure(self._ranked(outputs))

    def scorer(self) -> Scorer:
        """mAP; see `repedge.tasks.average_precision`."""
        return MeanAveragePrecision(self._ranked)

    def _ranked(self, outputs: Sequence[np.ndarray]) -> list[Detections]:
        return self.decode(outputs, LEAST, SUPPRESSION, RANKED)

    def apart(self, outputs: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> np.ndarray:
        """See `repedge.tasks.average_precision.apart`."""
        return np.array([apart(a, b) for a, b in zip(self.decode(outputs), self.decode(exact), strict=True)])

    def results(self, outputs: Sequence[np.ndarray]) -> list[Detections]:
        """See `Task.results`: what an app would show."""
        return self.decode(outputs)

    def draw(self, result: Detections | Objects, size: tuple[int, int]) -> str:
        """See `Task.draw`."""
        return drawing.boxes(result, self.labels, size)

    def decode(
        self,
        outputs: Sequence[np.ndarray],
        score: float = SCORE,
        iou: float = OVERLAP,
        most: int = MOST,
    ) -> list[Detections]:
        """What the outputs find, image by image.

        Args:
            outputs: Every output as the graph has it, [n, ...] each.
            score: Least score.
            iou: Intersection over union over which a box is the same object.
            most: Detections in an image, at most.

        Raises:
            UserError: A threshold outside 0 to 1, or no number to keep.
        """
        if not 0 <= score <= 1 or not 0 <= iou <= 1 or most < 1:
            raise UserError(
                f"score {score:g} and IoU {iou:g} must be from 0 to 1, and the number to keep, {most}, "
                "1 or more"
            )
        return decode.decode(outputs, self.head, score, iou, most)

    def metadata(self, consumer: str) -> dict[str, Any]:
        """See `Task.metadata`."""
        if consumer != "model_api":
            return {}
        known = consumers.model_api(self.head, len(self.outputs))
        return {**known, "labels": self.labels} if known and self.labels else known

    def golden(self, outputs: Sequence[np.ndarray], views: Sequence[View]) -> Mapping[str, bytes]:
        """See `Task.golden`: ``detections.f32``, of `repedge.tasks.heads.app.golden`."""
        return {"detections.f32": app.golden(self.head, outputs, views)}

    def context(self, samples: Sequence[np.ndarray]) -> dict[str, Any]:
        """See `Task.context`.

        Keys: those of `repedge.tasks.heads.app.context`, ``classes``, their number, and ``labels``, their
        names; empty if they have none.
        """
        labels = list(self.labels)
        return {
            **app.context(self.head, self.outputs),
            "classes": self.head.classes or len(labels),
            "labels": labels,
        }
