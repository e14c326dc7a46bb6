"""The command line: options in, API calls, tables or JSON out. No work is done here.

One file per group of verbs; a new verb is a function with ``@app.command()`` in a file imported below.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer

from repedge import interrupts

from repedge.cli import compile, diagnose, check, profile, ship, about  # isort: skip - the order in --help
from repedge.cli import commands
from repedge.cli.app import app
from repedge.cli.arguments import check_arguments
from repedge.cli.streams import answer, tidy
from repedge.errors import RepedgeError, shown

__all__ = ["about", "app", "check", "compile", "diagnose", "main", "profile", "ship"]

CTRL_C = 130
"""What typer makes of a KeyboardInterrupt, whichever signal it came from."""


@dataclass(frozen=True)
class _End:
    """How a run ended.

    Attributes:
        code: The exit code.
        message: What went wrong; empty where nothing did, or where the table has said it.
        details: What the error knows beside its sentence, for JSON.
        error: For the traceback.
    """

    code: int = 0
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``repedge`` program.

    Every failure ends in one line on stderr and its exit code; with ``--json`` there is exactly one object on
    stdout, whatever happens.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    commands.started(arguments)
    as_json, debug = "--json" in arguments, "--debug" in arguments
    with interrupts.handled(), tidy(as_json, debug):
        try:
            end = _run(arguments)
            interrupts.caught()  # what is left is to say how it ended
        except KeyboardInterrupt as e:
            end = _interrupted(e)
        code = _say(end, as_json, debug)
    sys.exit(code)


def _run(arguments: list[str]) -> _End:
    try:
        check_arguments(arguments)
        code = app(arguments, standalone_mode=False, prog_name="repedge")
        if code == CTRL_C:
            raise KeyboardInterrupt
        return _End(code if isinstance(code, int) else 0)
    except BaseException as e:
        # What fails after a signal came fails because of it: native code makes other errors of it.
        if interrupts.received() or isinstance(e, (KeyboardInterrupt, typer.Abort)):
            return _interrupted(e)
        if not isinstance(e, Exception):
            raise
        return _failed(e)


def _interrupted(e: BaseException) -> _End:
    interrupts.caught()
    return _End(interrupts.exit_code(), interrupts.MESSAGE, error=e)


def _failed(e: Exception) -> _End:
    if isinstance(e, RepedgeError):
        return _End(e.exit_code, str(e), getattr(e, "details", {}), e)
    if hasattr(e, "format_message"):  # wrong usage; click's class or the one typer carries
        return _End(2, shown(e.format_message()), error=e)
    if isinstance(e, OSError) and e.errno == errno.ENOSPC:
        return _End(2, "the disk is full; free some space", error=e)
    text = f"internal error: {type(e).__name__}: {e}; run again with --debug and report it"
    return _End(1, shown(text), error=e)


def _say(end: _End, as_json: bool, debug: bool) -> int:
    """Give the one JSON object, and the line of an error; the exit code."""
    if debug and end.error is not None:
        import traceback

        traceback.print_exception(end.error)
    code, line = end.code, " ".join(end.message.split())
    if as_json:
        try:
            answer(code, end.message, end.details)
        except RepedgeError as e:
            code, line = (code, line) if code else (e.exit_code, str(e))
    if line:
        print(line if line == interrupts.MESSAGE else f"error: {line}", file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    return code
