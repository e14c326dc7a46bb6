"""Options in groups, from Python's objects or from the command line's words for their fields."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from repedge.compiler.budget import Budget
from repedge.compiler.quantization import Calibration
from repedge.compiler.request import Check
from repedge.errors import UserError

CALIBRATION = {
    "calib": "source", "calib_count": "count", "calib_seed": "seed", "recipe": "recipe",
    "keep_float": "keep_float",
}  # fmt: skip
BUDGET = {"max_drop": "max_drop", "max_kl": "max_kl", "eval_data": "data", "eval_count": "count"}
CHECK = {"images": "images", "count": "count", "min_sqnr": "min_sqnr"}
"""The command line's word -> the group's field."""


def calibration(given: Calibration | None, words: MutableMapping[str, Any]) -> Calibration | None:
    """The calibration that is meant; its words are taken out of ``words``.

    Raises:
        UserError: It is given both ways, or a recipe without photos.
    """
    fields = _take(words, CALIBRATION, given, "calibration=Calibration(...)")
    fields["keep_float"] = names(fields.get("keep_float") or ())
    if given is not None:
        return given
    if fields.get("source") is not None:
        return Calibration(**fields)
    if fields["keep_float"] or fields.get("recipe", Calibration.recipe) != Calibration.recipe:
        raise UserError("--recipe and --keep-float are for a calibration: pass --calib FOLDER")
    return None


def budget(given: Budget | None, words: MutableMapping[str, Any]) -> Budget | None:
    """The accuracy budget that is meant; its words are taken out of ``words``.

    Raises:
        UserError: It is given both ways, or photos without a limit.
    """
    fields = _take(words, BUDGET, given, "budget=Budget(...)")
    if given is not None:
        return given
    if fields.get("max_drop") is None and fields.get("max_kl") is None:
        if fields.get("data") is not None:
            raise UserError(
                "--eval-data is what an accuracy budget is measured on: give --max-drop or --max-kl"
            )
        return None
    return Budget(**fields)


def check(given: Check | None, words: MutableMapping[str, Any]) -> Check:
    """How artifacts are to be verified; its words are taken out of ``words``.

    Raises:
        UserError: It is given both ways.
    """
    fields = _take(words, CHECK, given, "verification=Check(...)")
    if given is not None:
        return given
    return Check(**fields)


def names(given: Sequence[str]) -> tuple[str, ...]:
    """Names, each of which may be several with commas between."""
    given = (given,) if isinstance(given, str) else given
    return tuple(w.strip() for item in given for w in item.split(",") if w.strip())


def _take(
    words: MutableMapping[str, Any], known: Mapping[str, str], given: object, spelling: str
) -> dict[str, Any]:
    found = {word: words.pop(word) for word in known if word in words}
    twice = [word for word, value in found.items() if value is not None and given is not None]
    if twice:
        raise UserError(f"{', '.join(twice)} and {spelling} say the same thing; give one of them")
    return {known[word]: value for word, value in found.items()}
