"""What repedge's HTML pages share: the palette, the type, tables; and how a report file is written."""

from __future__ import annotations

import os
from pathlib import Path

from repedge.disk import leftovers, regular
from repedge.errors import UserError

MARKS = (b'<meta name="generator" content="repedge">', b'{"generator": "repedge"}')
"""One of these is in the first `HEAD` bytes of every report that repedge writes."""

HEAD = 1024


def style() -> str:
    """The style sheet that every page begins with, light and dark."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def check_new(file: Path, force: bool, ours: bool = False) -> None:
    """Fail before any work where a report could not be written.

    Args:
        file: Its path.
        force: Replace an earlier report.
        ours: Whether the file is in a folder of repedge's own, so that it may be replaced whatever it is.

    Raises:
        UserError: The file exists (without ``force``, or it is no report of ours), or its folder does not.
    """
    if file.name in ("", "..") or "\0" in str(file):
        raise UserError(f"{str(file)!r} is no name that a file can have; name the report's file")
    folder = file.absolute().parent
    if file.is_dir():
        raise UserError(f"{file} can't be written: it is a folder")
    if not folder.is_dir():
        raise UserError(f"{file} can't be written: there is no folder {folder}")
    if os.path.lexists(file) and not force:
        raise UserError(f"{file} exists; pass --force to replace it")
    if os.path.lexists(file) and not (ours or _is_report(file)):
        raise UserError(
            f"{file} exists and is no report that repedge wrote, so --force will not replace it; move it away"
        )


def _is_report(file: Path) -> bool:
    """Whether a file is a report of ours, or empty."""
    try:
        regular.check(file)
        with file.open("rb") as f:
            head = f.read(HEAD)
    except OSError:
        return False
    return not head or any(mark in head for mark in MARKS)


def write_whole(file: Path, text: str, force: bool, ours: bool = False) -> None:
    """Write a report beside its place and rename it, so that it is whole or absent.

    Args:
        file, force, ours: As for `check_new`.
        text: The report.

    Raises:
        UserError: It exists (without ``force``), or the operating system refuses.
    """
    check_new(file, force, ours)
    place = file.absolute().parent
    try:
        with leftovers.held(place, f".{file.name}.partial") as folder:
            (folder / file.name).write_text(text, encoding="utf-8")
            os.replace(folder / file.name, file)
    except OSError as e:
        raise UserError(f"{file} can't be written: {e.strerror}") from e
