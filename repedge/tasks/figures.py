"""Objects with a task's figures in them, which read as attributes: ``accuracy.top1``."""

from __future__ import annotations

from typing import Any

from repedge import tasks


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
