"""Stdout is for answers and stderr for progress; what other packages say is kept out of both."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

from repedge.errors import UserError

_answers: TextIO | None = None  # where JSON goes while stdout is taken from everyone else


def answer(text: str) -> None:
    """Write a line of the answer.

    Raises:
        UserError: Whatever reads stdout takes no more.
    """
    try:
        print(text, file=_answers or sys.stdout, flush=True)
    except OSError as error:
        raise UserError(f"the answer can't be written to stdout ({error.strerror})") from error


@contextlib.contextmanager
def tidy(as_json: bool, debug: bool) -> Iterator[None]:
    """Silence Python warnings (unless debugging) and, under ``--json``, send prints of others to stderr.

    A user's factory may print, and so may the C++ code of a library: both would spoil the JSON.
    """
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        if not (debug or sys.warnoptions):
            warnings.simplefilter("ignore")
        if as_json:
            stack.enter_context(_stdout_for_answers())
        yield


@contextlib.contextmanager
def _stdout_for_answers() -> Iterator[None]:
    global _answers
    with contextlib.ExitStack() as stack:
        stdout = _answers = sys.stdout
        if sys.__stdout__ is not None and stdout is sys.__stdout__ and stdout.fileno() == 1:
            stdout.flush()
            _answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
            stack.callback(_put_back, _answers)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _answers = None


def _put_back(stdout: TextIO) -> None:
    os.dup2(stdout.fileno(), 1)
    with contextlib.suppress(OSError):  # `answer` has reported it
        stdout.close()
