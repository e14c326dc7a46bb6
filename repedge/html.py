"""What repedge's HTML pages share: the palette, the type, tables; and how a report file is written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from repedge.errors import UserError


def style() -> str:
    """The style sheet that every page begins with, light and dark."""
    return (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def check_new(file: Path, force: bool) -> None:
    """Fail before any work where a report could not be written.

    Raises:
        UserError: The file exists (without ``force``), or its folder does not.
    """
    folder = file.absolute().parent
    if file.is_dir():
        raise UserError(f"{file} can't be written: it is a folder")
    if not folder.is_dir():
        raise UserError(f"{file} can't be written: there is no folder {folder}")
    if file.exists() and not force:
        raise UserError(f"{file} exists; pass --force to replace it")


def write_whole(file: Path, text: str, force: bool) -> None:
    """Write a report beside its place and rename it, so that it is whole or absent.

    Raises:
        UserError: It exists (without ``force``), or the operating system refuses.
    """
    check_new(file, force)
    try:
        handle, name = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
    except OSError as e:
        raise UserError(f"{file} can't be written: {e.strerror}") from e
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, file)
    except OSError as e:
        Path(name).unlink(missing_ok=True)
        raise UserError(f"{file} can't be written: {e.strerror}") from e
