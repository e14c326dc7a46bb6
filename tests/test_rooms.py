"""Who may know what: targets and tasks speak for themselves, and linters read every room."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

from repedge.targets import TARGETS
from repedge.tasks import TASKS

PACKAGE = ROOT / "repedge"

HARDWARE = {"gpu"}
"""Words that are a device's, too: what a phone's runtime calls its units."""

SCORES = {"top1", "top5", "agree_top1", "top1_drop", "float_top1"}
"""What only a network that scores classes has."""


@cache
def words(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, text) of each string and attribute of a module."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    strings = [(n.lineno, n.value) for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return (*strings, *((n.lineno, n.attr) for n in nodes if isinstance(n, ast.Attribute)))


def named(known: set[str], room: str, allowed: dict[str, set[str]]) -> list[str]:
    """Places outside of a room where one of the words is."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        wanted = known - allowed.get(place.parts[0], set())
        if place.parts[0] != room:
            found += [f"{place}:{line} {word}" for line, word in words(path) if word in wanted]
    return found


def test_only_targets_know_their_names() -> None:
    assert not named(set(TARGETS), "targets", {"devices": HARDWARE})


def test_only_tasks_know_of_class_scores() -> None:
    assert not named(SCORES, "tasks", {})


def test_only_tasks_know_their_names() -> None:
    assert not named(set(TASKS) - {"raw"}, "tasks", {"targets": {"classify"}})  # an operator of Core ML


@pytest.mark.parametrize(
    "fault", ['x = "tflite"\n', 'if t.name == "coreml":\n    pass\n', 'n = ["gpu", "cpu"]\n']
)
def test_a_name_is_found_where_it_should_not_be(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "new.py").write_text(fault)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert named(set(TARGETS), "targets", {"devices": HARDWARE})


def test_the_linter_reads_every_file() -> None:
    """A folder's name in an exclusion hides every folder of that name."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    seen = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True
    )
    files = {Path(line).resolve() for line in seen.stdout.splitlines()}
    assert {(ROOT / name) for name in listed.stdout.split() if (ROOT / name).exists()} <= files
