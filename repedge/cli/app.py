"""The program object, how its words are checked, and how answers are shown."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import typer

from repedge.cli.streams import keep
from repedge.errors import UserError
from repedge.precision import SYNONYMS

app = typer.Typer(
    name="repedge",
    help="Put re-parameterizable CNNs on phones, edge boxes and GPU servers: fused, compiled, verified.",
    epilog="Start with:  repedge compile --target tflite   (the bundled demo model, no download)",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def several(given: Sequence[str]) -> list[str]:
    """Words of a repeatable option, each of which may be several with commas between."""
    return [word.strip() for item in given for word in item.split(",") if word.strip()]


def words(option: str, given: list[str], known: Sequence[str]) -> list[str]:
    """Check option words against the known ones, with a did-you-mean."""
    for word in given:
        if word not in known:
            meant = SYNONYMS.get(word.lower())
            close = [meant] if meant in known else difflib.get_close_matches(word.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            raise UserError(f"--{option} {word!r} is unknown; {hint}")
    return given


def precision_words(given: list[str], *more: str) -> list[str]:
    """Check precision words against those of all targets, and ``more``."""
    from repedge import targets

    return words("precision", given, [*targets.precisions(), *more]) if given else []


def pairs(option: str, given: list[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` words as a dictionary.

    Raises:
        UserError: One is not of the form.
    """
    found: dict[str, str] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--{option} {pair!r}: write NAME=VALUE")
        found[name.strip()] = value
    return found


def show(as_json: bool, data: dict[str, Any], table: Callable[[], None], error: str = "") -> None:
    """Give the answer: a table for people, or an object that `repedge.cli.main` prints in the end.

    Args:
        error: What failed, where the verb returns an exit code for it and the table says it.
    """
    if as_json:
        keep({**data, "error": error or None})
    else:
        table()
