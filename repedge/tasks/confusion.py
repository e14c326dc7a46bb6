"""mIoU and pixel accuracy: how well a map of classes covers the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from repedge.tasks.resampling import Change, bootstrap

AT_ONCE = 100
"""Draws of photos that are counted together."""


class Confusion:
    """A `Scorer` of label maps. Of the confusion matrix of each photo its diagonal and its sums are kept.

    Args:
        decode: The network's outputs [n, ...] -> the class of each pixel of its input, integers [H, W] for
            each image.
        classes: How many there are. A truth's pixels that are of none are left out.
    """

    def __init__(self, decode: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]], classes: int) -> None:
        self._decode, self._classes = decode, classes
        self._counts: list[np.ndarray] = []

    def update(self, outputs: Sequence[np.ndarray], truths: Sequence[np.ndarray]) -> None:
        """See `Scorer.update`; truths are label maps of the network's input."""
        if len(truths):
            for found, wanted in zip(self._decode(outputs), truths, strict=True):
                self._counts.append(self._counted(found, wanted))

    def _counted(self, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Pixels of each class that are right, wanted and found: int64 [3, classes]."""
        known = wanted < self._classes
        found, wanted = found[known], wanted[known]
        maps = (wanted[found == wanted], wanted, found)
        return np.stack([np.bincount(m, minlength=self._classes)[: self._classes] for m in maps])

    @property
    def _all(self) -> np.ndarray:
        return np.stack(self._counts)

    def score(self) -> dict[str, float]:
        """``miou``, over the classes that are there or were found, and ``pixel_acc``; empty of no pixels."""
        if not self._counts or not self._all[:, 1].any():
            return {}
        right, wanted, _ = self._all.sum(0)
        return {
            "miou": float(_miou(self._all.sum(0)[None])[0]),
            "pixel_acc": float(right.sum() / wanted.sum()),
        }

    def hits(self) -> np.ndarray:
        """Of each photo the share of its pixels that are right; 1 of one without any."""
        right, wanted = (self._all[:, i].sum(1) for i in (0, 1)) if self._counts else (np.empty(0),) * 2
        return np.divide(right, wanted, out=np.ones(len(right)), where=wanted > 0)

    def lost_from(self, exact: Confusion) -> Change | None:
        """What ``exact`` has more of mIoU, by bootstrap over the photos."""
        if not self.score():
            return None
        mine, first = self._all.astype(np.float64), exact._all.astype(np.float64)

        def lost(counts: np.ndarray) -> np.ndarray:
            parts = [counts[i : i + AT_ONCE].astype(np.float64) for i in range(0, len(counts), AT_ONCE)]
            return np.concatenate(
                [_miou(np.tensordot(part, first, 1)) - _miou(np.tensordot(part, mine, 1)) for part in parts]
            )

        return bootstrap(lost, len(mine))


def _miou(counts: np.ndarray) -> np.ndarray:
    """[k, 3, classes] -> the mean of intersection over union of the classes that occur, float64 [k]."""
    right, wanted, found = (counts[:, i].astype(np.float64) for i in range(3))
    union = wanted + found - right
    shares = np.divide(right, union, out=np.zeros_like(right), where=union > 0)
    seen = (union > 0).sum(1)
    return np.divide(shares.sum(1), seen, out=np.full(len(seen), np.nan), where=seen > 0)
