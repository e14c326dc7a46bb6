"""Templates of app packages, as those who own them list them: a platform, a target, a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Templates:
    """Some files of a package.

    Attributes:
        folder: Where the templates are; each is ``NAME.jinja`` there.
        files: Template's name -> the file's place in the package; see `repedge.ship.platforms.Platform`.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
