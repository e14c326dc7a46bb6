"""mAP: how well boxes, ranked by their scores, find the objects of photos (COCO's protocol, by hotcoco)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from repedge.errors import MissingExtra
from repedge.tasks.boxes import OVERLAP, SCORE, Detections, Objects, iou, match
from repedge.tasks.resampling import Change

if TYPE_CHECKING:
    import hotcoco

LEAST = 0.001
"""Least score of the boxes that are ranked: one that an app would choose leaves the end of the curve out."""

SUPPRESSION = 0.6
"""Overlap from which on one of two boxes goes, as in YOLOv5's own evaluation."""

RANKED = 100
"""Boxes of an image that count, the best ones, as in COCO's protocol."""

DRAWS = 200
"""Sets of photos that are drawn for an interval; each is a whole evaluation."""


def sure(found: Sequence[Detections]) -> list[Objects]:
    """The objects that a network itself sees, at the score that apps take, as if they were the truth."""
    kept = [d[d.scores >= np.float32(SCORE)][:RANKED] for d in found]
    return [Objects(d.boxes, d.classes, np.zeros(len(d), bool)) for d in kept]


class MeanAveragePrecision:
    """A `Scorer` of boxes: mAP over IoU 0.5 to 0.95 and at 0.5, the mean over the classes that occur.

    Args:
        decode: The network's outputs [n, ...] -> what it found in each image, from the score `LEAST` on.

    Raises:
        MissingExtra: hotcoco is not installed.
    """

    def __init__(self, decode: Callable[[Sequence[np.ndarray]], Sequence[Detections]]) -> None:
        try:
            import hotcoco  # noqa: F401
        except ImportError as e:
            raise MissingExtra("hotcoco", "eval", "mAP") from e
        self._decode = decode
        self._found: list[Detections] = []
        self._wanted: list[Objects] = []

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[Objects]) -> None:
        """See `Scorer.update`; truths are in the pixels of the network's input."""
        if len(truths):
            self._found += [d[:RANKED] for d in self._decode(outputs)]
            self._wanted += truths

    def score(self) -> dict[str, float]:
        """``map50_95`` and ``map50``, 0 to 1; empty where there were no photos, or nothing to be found."""
        if not any((~t.ignored).any() for t in self._wanted):
            return {}
        result = self._evaluated().eval
        assert result is not None
        precision = np.asarray(result["precision"])[:, :, :, 0, -1]  # [overlaps, recalls, classes]
        occurring = precision[:, :, (precision > -1).all((0, 1))]
        return {"map50_95": float(occurring.mean()), "map50": float(occurring[0].mean())}

    def hits(self) -> np.ndarray:
        """Of each photo the F1 score at the app's thresholds; 1 where nothing is there and nothing was found.

        mAP is no mean over photos; this is for telling photos apart.
        """
        return np.array([f1(d, t) for d, t in zip(self._found, self._wanted, strict=True)])

    def lost_from(self, exact: MeanAveragePrecision) -> Change | None:
        """What ``exact`` has more of mAP over IoU 0.5 to 0.95, by bootstrap over the photos."""
        import hotcoco

        first, mine = exact.score(), self.score()
        if not first:
            return None
        found = hotcoco.compare(self._evaluated(), exact._evaluated(), n_bootstrap=DRAWS, seed=0)
        interval = found["ci"]["AP"]
        value = first["map50_95"] - mine["map50_95"]
        return Change(value, interval["lower"], interval["upper"], interval["std_err"])

    def _evaluated(self) -> hotcoco.COCOeval:
        import hotcoco

        table = _table(self._wanted)
        known = {c["id"] for c in table["categories"]}  # of others no precision is asked
        truth = hotcoco.COCO(table)
        found = truth.load_res([row for row in _rows(self._found) if row["category_id"] in known])
        result = hotcoco.COCOeval(truth, found, "bbox")
        result.evaluate()
        result.accumulate()
        return result


def f1(found: Detections, wanted: Objects) -> float:
    """Twice the matches over boxes found and objects there; what matches an ignored one does not count."""
    found = found[found.scores >= np.float32(SCORE)]
    _, theirs = match(found, wanted, OVERLAP)
    idle = wanted.ignored[theirs]
    boxes, there = len(found) - int(idle.sum()), int((~wanted.ignored).sum())
    return 2 * int((~idle).sum()) / (boxes + there) if boxes + there else 1.0


def apart(found: Detections, exact: Detections) -> float:
    """1 minus an F1 score in which a match counts by its overlap and by how near its score is."""
    mine, theirs = match(found, exact, OVERLAP)
    if not len(found) + len(exact):
        return 0.0
    overlaps = np.array(
        [iou(found.boxes[[i]], exact.boxes[[j]])[0, 0] for i, j in zip(mine, theirs, strict=True)]
    )
    near = overlaps * (1 - np.abs(found.scores[mine] - exact.scores[theirs]))
    return 1 - 2 * float(near.sum()) / (len(found) + len(exact))


def _table(wanted: Sequence[Objects]) -> dict[str, Any]:
    """Truths as a COCO file has them. Ignored objects are crowds there; their size class is not asked."""
    rows: list[dict[str, Any]] = []
    for i, truth in enumerate(wanted):
        for box, c, ignored in zip(truth.boxes.tolist(), truth.classes.tolist(), truth.ignored, strict=True):
            x0, y0, x1, y1 = box
            w, h = x1 - x0, y1 - y0
            rows.append(
                {"id": len(rows) + 1, "image_id": i + 1, "category_id": c + 1, "bbox": [x0, y0, w, h],
                 "area": w * h, "iscrowd": int(ignored)}
            )  # fmt: skip
    classes = sorted({r["category_id"] for r in rows})
    return {
        "images": [{"id": i + 1, "width": 1 << 16, "height": 1 << 16} for i in range(len(wanted))],
        "categories": [{"id": c, "name": str(c)} for c in classes],
        "annotations": rows,
    }


def _rows(found: Sequence[Detections]) -> list[dict[str, Any]]:
    return [
        {"image_id": i + 1, "category_id": c + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": s}
        for i, d in enumerate(found)
        for (x0, y0, x1, y1), s, c in zip(
            d.boxes.astype(np.float64).tolist(), d.scores.tolist(), d.classes.tolist(), strict=True
        )
    ]  # fmt: skip
