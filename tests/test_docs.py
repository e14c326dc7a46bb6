"""Pages and docstrings name places that exist."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from places import ROOT

GENERATED = {"repedge.repvit"}
"""Names in packages that `repedge ship` makes."""


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for part in parts[k:]:
            if not hasattr(found, part):
                return part in getattr(found, "__annotations__", {})
            found = getattr(found, part)
        return True
    return False


def unknown(page: Path) -> Iterator[str]:
    """Modules and paths in backticks that are not there."""
    text = page.read_text()
    for name in set(re.findall(r"`+(repedge(?:\.\w+)+)`+", text)) - GENERATED:
        if not resolves(name):
            yield f"{page.relative_to(ROOT)}: {name}"
    if page.suffix == ".md":
        for path in set(re.findall(r"`((?:repedge|targets|calib|tests|bench|examples|docs)/[\w/.]+)`", text)):
            if not (ROOT / path).exists():
                yield f"{page.name}: {path}"


def test_pages_and_docstrings_name_what_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    modules = [p for room in ("repedge", "bench", "examples") for p in (ROOT / room).rglob("*.py")]
    assert not [place for page in [*pages, *modules] for place in unknown(page)]


def test_a_name_that_went_is_found() -> None:
    assert not resolves("repedge.pipeline")
    assert not resolves("repedge.precision.NOTHING")
    assert resolves("repedge.targets.base.Target.compile")


def test_the_contributors_page_lists_every_room() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    rooms = [p.name for p in (ROOT / "repedge").iterdir() if (p / "__init__.py").exists()]
    assert not [room for room in rooms if f"\n  {room}/ " not in page]
