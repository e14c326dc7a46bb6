"""Templates of app packages, as those who own them list them: a platform, a target, a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Templates:
    """Some files of a package, and parts of others; see `repedge.ship.render` for how they are put together.

    Attributes:
        folder: Where the templates are; each is ``NAME.jinja`` there.
        files: Template's name -> the file's place in the package, beside the files that every package for
            the platform has; see `repedge.ship.platforms.Platform`.
        shared: Where those are that ``folder`` has not: what is the same on several platforms.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
    shared: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where to look, the first first."""
        return (self.folder,) if self.shared is None else (self.folder, self.shared)
