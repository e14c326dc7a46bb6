"""Small segmenters of 64x64 photos: every way to end one, and what a broken one would give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

CLASSES = 5


class Segmenter(nn.Module):
    """Scores of classes at a quarter of the photo's size, and what ``end`` makes of them.

    Args:
        classes: Channels of the scores.
        end: One of ``quarter`` (nothing), ``whole`` (enlarged), ``softmax``, ``sigmoid``, ``argmax`` (without
            an axis of classes) and ``kept`` (with one).
    """

    def __init__(self, classes: int = CLASSES, end: str = "whole") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()
        )
        self.head, self.end = nn.Conv2d(16, classes, 1), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.body(x))
        if self.end == "quarter":
            return y
        y = interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        if self.end == "softmax":
            return y.softmax(1)
        if self.end == "sigmoid":
            return y.sigmoid()
        return y.argmax(1, keepdim=self.end == "kept") if self.end in ("argmax", "kept") else y


def moved(y: np.ndarray) -> np.ndarray:
    """A map [n, C, H, W], moved by a pixel to the right."""
    return np.concatenate([y[..., :1], y[..., :-1]], -1)


def swapped(y: np.ndarray) -> np.ndarray:
    """The last two classes have changed places."""
    return y[:, [*range(y.shape[1] - 2), -1, -2]]


def dead(y: np.ndarray) -> np.ndarray:
    """The last class has what it has in the mean, everywhere."""
    y = y.copy()
    y[:, -1] = y[:, -1].mean()
    return y


def zeroed(y: np.ndarray) -> np.ndarray:
    """Nothing."""
    return np.zeros_like(y)


FAULTS: dict[Callable[[np.ndarray], np.ndarray], str] = {
    moved: "the map is the float network's, moved right by a pixel",
    swapped: "classes 'd' and 'e' have changed places",
    dead: "class 'e' is dead",
    zeroed: "SQNR 0.0 dB",
}
"""What is planted -> what is to be said of it, of classes called a to e."""
