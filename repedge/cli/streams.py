"""Stdout is for answers and stderr for progress; what other packages say is kept out of both."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from repedge.errors import UserError
from repedge.version import __version__

_stdout: TextIO | None = None  # where JSON goes while stdout is taken from everyone else
_kept: dict[str, Any] = {}  # the verb's answer, until it is known how the run ended


def keep(data: Mapping[str, Any]) -> None:
    """Keep what a verb answers for `answer`."""
    _kept.update(data)


def answer(code: int, error: str, details: Mapping[str, Any]) -> None:
    """Write the JSON object of a run: what its verb kept, how it ended, and why.

    Args:
        code: The exit code.
        error: What went wrong; empty: nothing, or what the verb said of it itself.
        details: What the error knows beside its sentence.

    Raises:
        UserError: Whatever reads stdout takes no more.
    """
    ended = {"error": error or _kept.get("error"), "exit_code": code}
    found = {"repedge": __version__, **_kept, **details, **ended}
    try:
        print(json.dumps(_numbers(found), allow_nan=False), file=_stdout or sys.stdout, flush=True)
    except OSError as failure:
        raise UserError(f"the answer can't be written to stdout ({failure.strerror})") from failure


def _numbers(data: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(data, Mapping):
        return {key: _numbers(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_numbers(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextlib.contextmanager
def tidy(as_json: bool, debug: bool) -> Iterator[None]:
    """Silence Python warnings (unless debugging) and, under ``--json``, send prints of others to stderr.

    A user's factory may print, and so may the C++ code of a library: both would spoil the JSON.
    """
    _kept.clear()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        if not (debug or sys.warnoptions):
            warnings.simplefilter("ignore")
        if as_json:
            stack.enter_context(_stdout_for_answers())
        yield


@contextlib.contextmanager
def _stdout_for_answers() -> Iterator[None]:
    global _stdout
    with contextlib.ExitStack() as stack:
        stdout = _stdout = sys.stdout
        if sys.__stdout__ is not None and stdout is sys.__stdout__ and stdout.fileno() == 1:
            stdout.flush()
            _stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
            stack.callback(_put_back, _stdout)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            _stdout = None


def _put_back(stdout: TextIO) -> None:
    os.dup2(stdout.fileno(), 1)
    with contextlib.suppress(OSError):  # `answer` has reported it
        stdout.close()
