"""The stages of a run: named, timed, told to whoever listens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Report = Callable[[str], None]
"""Told the name of each stage as it begins."""


def silent(stage: str) -> None:
    """A `Report` that nobody listens to."""


class Clock:
    """Names and times the stages; ``report`` is told when each begins."""

    def __init__(self, report: Report = silent) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        self._report(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 4)
