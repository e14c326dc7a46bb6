"""From templates to the texts of a package.

Four layers have a say, each in a folder of its own:

    task/       what an answer means: `repedge.tasks.base.Task.ship`
    target/     what runs the artifact: `repedge.targets.base.Target.ship`
    platform/   everything else of such an app: repedge/ship/templates/PLATFORM
    common/     what every package has: repedge/ship/templates/common

A file is rendered from the topmost layer that has a template of its name. Such a template need not be whole:
it extends the one under it, ``{% extends "beneath/README.md" %}``, and fills its blocks. A platform's
blocks, left alone, make an app that hands out raw arrays; so a task only says what it makes of them. And any
template includes parts by layer: ``{% include "target/requirements" ignore missing %}``.

Templates never compare the names of targets or tasks: they ask for blocks and parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repedge.errors import UserError
from repedge.ship.platforms import Platform
from repedge.targets.base import Target
from repedge.tasks.base import Task
from repedge.templates import Templates

FOLDER = Path(__file__).parent / "templates"
COMMON = Templates(FOLDER / "common", {"LICENSES.md": "LICENSES.md"})


@dataclass(frozen=True)
class Layers:
    """What a package is made of: layer -> templates. A task need not have any."""

    templates: Mapping[str, Templates]

    @classmethod
    def of(cls, platform: Platform, target: Target, task: Task) -> Layers:
        """Those of a package for a platform that the target ships to."""
        found = {
            "common": COMMON,
            "platform": Templates(FOLDER / platform.name, platform.files),
            "target": target.ship[platform.name],
        }
        if platform.name in task.ship:
            found["task"] = task.ship[platform.name]
        return cls(found)

    @property
    def files(self) -> dict[str, str]:
        """Template's name -> the file's place in the package."""
        found: dict[str, str] = {}
        for layer in self.templates.values():
            found |= layer.files
        return found

    @property
    def stems(self) -> set[str]:
        """Names of the package's files, however it is called: a type of that name would hide one."""
        return {Path(place).stem for place in self.files.values()}

    def render(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Place in the package -> text, of every file; one whose template comes out empty is left out.

        Raises:
            UserError: A template is missing, or asks for a value that there is not.
        """
        import jinja2

        from repedge.ship.environment import Environment

        environment = Environment({name: layer.folders for name, layer in self.templates.items()})
        texts = {}
        for name, place in self.files.items():
            try:
                text = environment.topmost(name).render(values)
            except jinja2.TemplateError as e:
                raise UserError(f"the template {name} of {self._folder(name)} can't be filled: {e}") from e
            if text.strip():
                texts[place.format(name=values["name"], lower=values["lower"])] = text
        return texts

    def _folder(self, name: str) -> Path:
        """Where the templates of the layer are that lists a file."""
        return next(layer.folder for layer in self.templates.values() if name in layer.files)
