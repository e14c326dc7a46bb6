"""How sure a difference of two networks on the same photos is: paired, by bootstrap over the photos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from repedge.tasks.base import Scorer

DRAWS = 1000
"""Sets of photos that are drawn."""


@dataclass(frozen=True)
class Change:
    """By how much one network's first metric is above another's, as shares.

    Attributes:
        value: The difference.
        low, high: Its 95 % interval.
        error: Its standard error.
    """

    value: float
    low: float
    high: float
    error: float


def change(exact: Scorer, mine: Scorer) -> Change | None:
    """What is lost of the first metric from ``exact`` to ``mine``, which saw the same photos.

    Returns:
        None of no photos.
    """
    own = getattr(mine, "lost_from", None)
    if own is not None:
        found: Change | None = own(exact)
        return found
    lost = exact.hits() - mine.hits()
    if not len(lost):
        return None
    drawn = bootstrap(lambda counts: counts @ lost / len(lost), len(lost))
    error = math.sqrt(float(lost.var()) / len(lost))
    return Change(float(lost.mean()), drawn.low, drawn.high, error)


def bootstrap(of: Callable[[np.ndarray], np.ndarray], n: int, draws: int = DRAWS) -> Change:
    """The interval of a number that is made of photos (B. Efron, 1979), by percentiles.

    Args:
        of: How often each photo is drawn, int64 [draws, n] -> the number of each draw, [draws]; NaN where a
            draw gives none.
        n: Photos.
        draws: How many.
    """
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), draws)
    value = float(of(np.ones((1, n), np.int64))[0])
    found = of(counts)
    found = found[np.isfinite(found)]
    if not len(found):
        return Change(value, value, value, 0.0)
    low, high = np.percentile(found, [2.5, 97.5])
    return Change(value, float(low), float(high), float(found.std()))
