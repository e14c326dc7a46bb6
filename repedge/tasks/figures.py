"""Numbers that say how good an answer is, and objects that have them as attributes: ``accuracy.top1``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from repedge import tasks

FEW = 16
"""Of fewer images than this no share is told in per cent."""


@dataclass(frozen=True)
class Figure:
    """A number that says how good an answer is.

    Attributes:
        key: Its name in JSON.
        title: Head of its column.
        unit: ``share`` (from 0 to 1, shown as per cent), ``nats``, ``dB`` or nothing.
        better: Which end is the good one.
        phrase: Its name in a sentence or as the head of a row; the title, if empty.
        absent: What people see where there is no such number.
        counted: Whether it is the share of images of which something is true, so that it is as sure as their
            number makes it.
    """

    key: str
    title: str
    unit: Literal["share", "nats", "dB", ""] = "share"
    better: Literal["more", "less"] = "more"
    phrase: str = ""
    absent: str = "-"
    counted: bool = False

    def interval(self, value: float | None, n: int) -> tuple[float, float] | None:
        """The 95 % confidence interval of a share of ``n`` images; None where there is nothing to say."""
        return wilson(value, n) if self.counted and value is not None and n > 0 else None

    def bounds(self, value: float | None, n: int) -> str:
        """The 95 % interval for people, in per cent; empty where nothing is told in per cent."""
        interval = self.interval(value, n)
        return "" if interval is None or n < FEW else f"{interval[0]:.1%} to {interval[1]:.1%}"

    def text(self, value: float | None, n: int = 0) -> str:
        """The number for people.

        Args:
            n: Images behind it: a share of them is told with its 95 % interval, or as a count where they are
                fewer than `FEW`. 0 leaves both away.
        """
        if value is None:
            return self.absent
        if self.interval(value, n) is not None:
            bounds = self.bounds(value, n)
            return f"{value:.2%} of {n} ({bounds})" if bounds else f"{round(value * n)} of {n}"
        if self.unit == "share":
            return f"{value:.2%}"
        if self.unit == "nats":
            return f"{value:.2e} nats"
        if self.unit == "dB":
            return f"{value:.1f} dB"
        return f"{value:.0f}" if value > 1 and value == round(value) else f"{value:.4f}"  # a number of things

    def worst(self, values: Sequence[float]) -> float | None:
        """The worst of several; None of none."""
        if not values:
            return None
        return min(values) if self.better == "more" else max(values)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of ``n`` trials, from 0 to 1 (E. B. Wilson, 1927)."""
    z = 1.959964
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = ((centre + side) / (1 + z * z / n) for side in (-spread, spread))
    return max(0.0, low), min(1.0, high)


class WithFigures:
    """Gives the entries of the fields ``metrics`` and ``figures``, where there are such, as attributes."""

    def __getattr__(self, name: str) -> Any:
        known: dict[str, Any] = {}
        for field, earlier in tasks.EARLIER.items():
            own = self.__dict__.get(field)
            if own is not None:
                known |= {**dict.fromkeys(earlier), **tasks.nested(own)}
        if name not in known:
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return known[name]
