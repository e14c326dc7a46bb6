"""The command line: options in, API calls, tables or JSON out. No work is done here.

One file per group of verbs; a new verb is a function with ``@app.command()`` in a file imported below.
"""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import typer

from repedge.version import __version__

from repedge.cli import compile, diagnose, check, profile, ship, about  # isort: skip - the order in --help
from repedge.cli.app import app
from repedge.cli.streams import answer, tidy
from repedge.errors import RepedgeError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
TERMINATED = 143  # 128 + SIGTERM

_terminated = False

__all__ = ["about", "app", "check", "compile", "diagnose", "main", "profile", "ship"]


@contextlib.contextmanager
def _one_line(arguments: list[str]) -> Iterator[None]:
    """Every failure ends in one line on stderr (and in JSON, if asked for) and its exit code."""
    try:
        yield
    except RepedgeError as e:
        _fail(arguments, str(e), e.exit_code, e)
    except (KeyboardInterrupt, typer.Abort):
        code = TERMINATED if _terminated else INTERRUPTED
        message = "interrupted; nothing half-written is left"
        if "--json" in arguments:
            with contextlib.suppress(RepedgeError):
                answer(json.dumps({"repedge": __version__, "error": message, "exit_code": code}))
        print(message, file=sys.stderr)
        sys.exit(code)
    except Exception as e:
        if hasattr(e, "format_message"):  # wrong usage; click's class or the one typer carries
            _fail(arguments, e.format_message(), 2, e)
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            _fail(arguments, "the disk is full; free some space", 2, e)
        text = f"internal error: {type(e).__name__}: {e}; run again with --debug and report it"
        _fail(arguments, text, 1, e)


def _fail(arguments: list[str], message: str, code: int, error: BaseException) -> None:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    if "--json" in arguments:
        with contextlib.suppress(RepedgeError):
            details = getattr(error, "details", {})
            answer(json.dumps({"repedge": __version__, "error": message, "exit_code": code, **details}))
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM (``docker stop``, a CI's time limit) cleans up as Ctrl-C does."""
    global _terminated
    _terminated = False

    def stop(number: int, frame: Any) -> None:
        global _terminated
        _terminated = True
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # only the main thread may
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``repedge`` program."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with tidy("--json" in arguments, "--debug" in arguments), _one_line(arguments), _terminable():
        code = app(arguments, standalone_mode=False, prog_name="repedge")
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
