"""``keypoints``: a heat map for each point, whose peak is where the point is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from repedge.errors import UserError
from repedge.tasks.base import Figure, Limit, Network, Scorer, Task, Truths
from repedge.tasks.comparison import Comparison
from repedge.templates import Templates

REACH = 0.1
"""A point counts as found within this share of the image's sides."""


def peaks(maps: np.ndarray) -> np.ndarray:
    """[N, K, H, W] -> the middle of each map's highest cell, (x, y) as shares of the sides, [N, K, 2]."""
    height, width = maps.shape[2:]
    cell = maps.reshape(*maps.shape[:2], -1).argmax(-1)
    return np.stack([(cell % width + 0.5) / width, (cell // width + 0.5) / height], -1)


class Keypoints(Task):
    """K points of an image: one output [N, K, H, W]."""

    name: ClassVar[str] = "keypoints"
    title: ClassVar[str] = "heat maps of key points"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("points_kept", "points kept", phrase="points where float has them", absent="no reference"),
    )
    metrics: ClassVar[tuple[Figure, ...]] = (Figure("pck", "PCK@0.1", absent="no points.json"),)
    drop: ClassVar[Limit | None] = Limit("pck_drop", "PCK drop", "points", "pck")
    disagreement: ClassVar[Limit | None] = Limit("points_moved", "points that moved", "points", "points_kept")
    ship: ClassVar[Mapping[str, Templates]] = {"python": Templates(Path(__file__).parent / "ship" / "python")}

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Whether the one output is called heat maps."""
        return cls.refusal(network) is None and "heatmap" in network.outputs[0].name.lower()

    @classmethod
    def refusal(cls, network: Network) -> str | None:
        """There must be one output of maps."""
        shapes = [o.shape for o in network.outputs]
        return None if len(shapes) == 1 and len(shapes[0]) == 3 else "it wants one output [N, points, H, W]"

    def describe(self) -> str:
        """See `Task.describe`."""
        return f"heat maps of {self.outputs[0].shape[0]} key points"

    def meter(self, index: int) -> Comparison:
        """See `Task.meter`."""
        return Kept()

    def truths(self, photos: Any) -> Truths | None:
        """See `Task.truths`; ``points.json`` says it."""
        found = photos.beside("points.json")
        if found is None:
            return None
        try:
            points = {name: np.array(p, float) for name, p in json.loads(found).items()}
        except (ValueError, TypeError, AttributeError) as e:
            raise UserError(f"{photos.where}/points.json is not photo -> [[x, y], ...]: {e}") from e
        wanted = (self.outputs[0].shape[0], 2)
        for name, p in points.items():
            if p.shape != wanted or not np.isfinite(p).all():
                raise UserError(f"{photos.where}/points.json: {name} wants {wanted[0]} pairs of numbers")
        return lambda name, told: points.get(name)

    def scorer(self) -> Scorer:
        """See `Task.scorer`."""
        return Found([])


@dataclass
class Kept(Comparison):
    """Counts points that stay where the float network has them."""

    _kept: int = 0
    _all: int = 0

    def judge(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """See `Comparison.judge`."""
        same = (peaks(reference) == peaks(actual)).all(-1)
        self._kept += int(same.sum())
        self._all += same.size

    def figures(self) -> Mapping[str, float]:
        """See `Comparison.figures`."""
        return {"points_kept": self._kept / self._all}


@dataclass
class Found:
    """A `Scorer`: PCK, the percentage of correct keypoints, as a share.

    Yang and Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", 2013.
    """

    _shares: list[np.ndarray]

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[Any]) -> None:
        """See `Scorer.update`."""
        if len(truths):
            off = np.linalg.norm(peaks(outputs[0]) - np.stack(truths), axis=-1)
            self._shares.append((off <= REACH).mean(1))

    def score(self) -> dict[str, float]:
        """See `Scorer.score`."""
        return {"pck": float(self.hits().mean())} if self._shares else {}

    def hits(self) -> np.ndarray:
        """See `Scorer.hits`."""
        return np.concatenate(self._shares) if self._shares else np.empty(0)
