"""Whether numbers of candidates answer to photos as the float network's do, streamed.

What a number says beyond what it says of every photo is its deviation from its own mean over the photos. A
dead branch has none, a wrong one has others; the correlation with the float network's shows it, however small
they are beside a grid of boxes or a bias that all scores have.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SAMPLE = 200_000
"""Numbers that are looked at for the steps of integers."""

STILL, MOVING = 1e-6, 1e-4
"""Deviations, as a share of numbers, that are none, and that are some."""

SILENT = 0.1
"""A share of what numbers should be that is next to nothing."""

STEPS = 8.0
"""What never moves by so many steps of the integers is not seen by them."""

LEAST = 1e-4
"""What never moves by so much is not seen by floats, either, next to probabilities."""

LEVELS = 4096
"""Numbers with more different values than these are no integers of 8 bits."""


@dataclass
class Moments:
    """Of the numbers of one kind, [n, candidates, channels] of both networks.

    Args:
        starts: Where each map's candidates begin.

    Attributes:
        n: Photos.
        grain: The step of the artifact's integers; 0 where it has floats.
        low, high: Least and largest reference value, [maps, channels].
    """

    starts: np.ndarray
    n: int = 0
    grain: float = 0.0
    low: np.ndarray = field(default_factory=lambda: np.empty(0))
    high: np.ndarray = field(default_factory=lambda: np.empty(0))
    _sums: list[np.ndarray] = field(default_factory=list)
    _products: list[np.ndarray] = field(default_factory=list)

    def update(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Add a batch."""
        r, a = reference.astype(np.float64), actual.astype(np.float64)
        if not self.n:
            self.grain = _grain(actual)
            self.low, self.high = self._least(r, np.minimum), self._least(r, np.maximum)
            self._sums = [np.zeros(r.shape[1:]) for _ in range(2)]
            self._products = [np.zeros((len(self.starts), r.shape[2] + 1)) for _ in range(3)]
        self.n += len(r)
        self.low = np.minimum(self.low, self._least(r, np.minimum))
        self.high = np.maximum(self.high, self._least(r, np.maximum))
        for total, x in zip(self._sums, (r, a), strict=True):
            total += x.sum(0)
        for total, (x, y) in zip(self._products, ((r, r), (a, a), (r, a)), strict=True):
            total += np.add.reduceat(_and_mean(np.einsum("nkc,nkc->kc", x, y), x, y), self.starts)

    def _least(self, x: np.ndarray, which: np.ufunc) -> np.ndarray:
        found: np.ndarray = which.reduceat(which.reduce(x, axis=0), self.starts)
        return found

    def _centered(self) -> list[np.ndarray]:
        """Sums of r r, a a and r a of the deviations, [maps, channels + 1]: last of the channels' mean."""
        r, a = self._sums
        found = []
        for total, (x, y) in zip(self._products, ((r, r), (a, a), (r, a)), strict=True):
            means = _and_mean(x * y, x[None], y[None])
            found.append(total - np.add.reduceat(means, self.starts) / self.n)
        return found

    def correlation(self) -> np.ndarray:
        """Of the deviations of each channel of each map, [maps, channels]; 0 where one has none."""
        return _correlation(*(c[:, :-1] for c in self._centered()))

    def of_maps(self) -> np.ndarray:
        """All channels of each map taken together, [maps]."""
        return _correlation(*(c[:, :-1].sum(1) for c in self._centered()))

    def of_channels(self) -> np.ndarray:
        """All maps taken together, [channels]."""
        return _correlation(*(c[:, :-1].sum(0) for c in self._centered()))

    def contrast(self) -> float:
        """Of what tells the channels of a candidate apart: of their differences from their common mean.

        What they say of every photo counts, too.
        """
        channels = self._products[0].shape[1] - 1
        both = [float(c[:, :-1].sum() - channels * c[:, -1].sum()) for c in self._products]
        return float(_correlation(*(np.array(v) for v in both)))

    def apart(self) -> float:
        """Root mean square of those differences over that of the reference's numbers."""
        whole, channels = self._products[0], self._products[0].shape[1] - 1
        differences = whole[:, :-1].sum() - channels * whole[:, -1].sum()
        return float(np.sqrt(max(differences, 0.0) / max(whole[:, :-1].sum(), 1e-30)))

    def moving(self) -> np.ndarray:
        """Root mean square of the reference's deviations over that of its numbers, [maps, channels]."""
        centered, whole = self._centered()[0][:, :-1], self._products[0][:, :-1]
        return np.sqrt(np.maximum(centered, 0) / np.maximum(whole, 1e-30))

    def dead(self) -> np.ndarray:
        """Which channels of which maps say nothing, or the same of every photo, and should not.

        Returns:
            Bool [maps, channels]; False, too, where the float network's own hardly move.
        """
        reference, own = (c[:, :-1] for c in self._centered()[:2])
        all_of_it, whole = (p[:, :-1] for p in self._products[:2])
        still = (own <= STILL**2 * whole) & (reference > MOVING**2 * all_of_it)
        silent = whole <= SILENT**2 * all_of_it
        return (still | silent) & self.large()

    def large(self) -> np.ndarray:
        """Which channels of which maps move by more than what integers, or floats, don't see."""
        found: np.ndarray = self.high - self.low > max(STEPS * self.grain, LEAST)
        return found


def _and_mean(products: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A further column: products of the means over the channels."""
    means = np.einsum("nk,nk->k", x.mean(-1), y.mean(-1))
    return np.concatenate([products, means[:, None]], 1)


def _correlation(rr: np.ndarray, aa: np.ndarray, ra: np.ndarray) -> np.ndarray:
    power = np.sqrt(np.maximum(rr, 0) * np.maximum(aa, 0))
    return np.divide(ra, power, out=np.zeros_like(power), where=power > 0)


def _grain(actual: np.ndarray) -> float:
    flat = actual.reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLE)]
    values = np.unique(sample)
    if len(values) < 2 or len(values) > min(LEVELS, len(sample) // 16):
        return 0.0
    return float(np.diff(values).min())
