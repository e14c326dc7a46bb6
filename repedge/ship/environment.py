"""jinja2, told of layers: ``task/README.md`` is a template of the layer ``task``.

Only `repedge.ship.render` imports this, and only to render: jinja2 is not needed before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2

from repedge.ship import names

BENEATH = "beneath"
"""A prefix that stands for whichever layer has the template, of those under the one that asks."""

LAYERS = ("task", "target", "platform", "common")
"""The topmost first."""


class Environment(jinja2.Environment):
    """Finds templates by layer.

    Args:
        folders: Layer -> where its templates are, the first folder first; each is ``NAME.jinja`` there.
    """

    def __init__(self, folders: Mapping[str, tuple[Path, ...]]) -> None:
        self._folders = folders
        super().__init__(
            loader=jinja2.FunctionLoader(self._read),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # source code: every value goes through a filter of `names`
        )
        self.filters.update(names.LITERALS)

    def topmost(self, name: str) -> jinja2.Template:
        """The template of the topmost layer that has one of this name."""
        return self.select_template([f"{layer}/{name}" for layer in LAYERS])

    def join_path(self, template: str, parent: str) -> str:
        """What a template means by the name of another: see `BENEATH`."""
        layer, _, name = template.partition("/")
        if layer != BENEATH:
            return template
        under = LAYERS[LAYERS.index(parent.partition("/")[0]) + 1 :]
        return next((f"{one}/{name}" for one in under if self._find(f"{one}/{name}")), template)

    def _find(self, template: str) -> Path | None:
        layer, _, name = template.partition("/")
        places = (folder / f"{name}.jinja" for folder in self._folders.get(layer, ()))
        return next((place for place in places if place.is_file()), None)

    def _read(self, template: str) -> tuple[str, str, None] | None:
        found = self._find(template)
        return None if found is None else (found.read_text(encoding="utf-8"), str(found), None)
