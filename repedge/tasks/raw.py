"""``raw``: outputs that nothing here makes sense of; compared as numbers, handed on as they are."""

from __future__ import annotations

from typing import ClassVar

from repedge.tasks.base import Network, Task


class Raw(Task):
    """What is left."""

    name: ClassVar[str] = "raw"
    title: ClassVar[str] = "raw outputs"

    @classmethod
    def recognizes(cls, network: Network) -> bool:
        """Always."""
        return True

    def describe(self) -> str:
        """How many outputs."""
        return "1 raw output" if len(self.outputs) == 1 else f"{len(self.outputs)} raw outputs"
