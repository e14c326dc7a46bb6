"""Options that only one target knows: read, checked, and handed to the target that knows them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repedge import targets
from repedge.errors import UserError
from repedge.precision import Precision
from repedge.targets.base import Target

Builds = Sequence[tuple[str, Precision]]


def choice(*words: str) -> Callable[[Any], str]:
    """Reads one of several words."""

    def read(given: Any) -> str:
        if given not in words:
            raise ValueError(f"not one of {', '.join(words)}")
        return str(given)

    return read


def boolean(given: Any) -> bool:
    """Reads yes or no."""
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(given, bool):
        return given
    if str(given).lower() not in found:
        raise ValueError("neither true nor false")
    return found[str(given).lower()]


def whole(least: int) -> Callable[[Any], int]:
    """Reads a whole number from ``least`` on."""

    def read(given: Any) -> int:
        try:
            number = int(str(given))
        except ValueError:
            number = least - 1
        if number < least:
            raise ValueError(f"not a whole number from {least} on")
        return number

    return read


def route(given: Mapping[str, Any], builds: Builds) -> dict[tuple[str, Precision], dict[str, Any]]:
    """Hand each option to the builds whose target knows it.

    Args:
        given: ``name`` or ``target.name`` -> value; None is as if it were not given. A plain name goes to
            every target that knows it.
        builds: (target, precision) of what is to be built.

    Returns:
        For each build, the options of its target by plain name.

    Raises:
        UserError: No target that is built for knows the option, or the value is wrong.
    """
    routed: dict[tuple[str, Precision], dict[str, Any]] = {build: {} for build in builds}
    for word, value in given.items():
        if value is None:
            continue
        takers = [build for build in builds if _takes(targets.get(build[0]), build[1], word)]
        if not takers:
            raise _unknown(word, builds)
        for build in takers:
            name = word.rpartition(".")[2]
            option = targets.get(build[0]).options[name]
            try:
                routed[build][name] = option.read(value)
            except ValueError as e:
                raise UserError(f"{name} {value!r} is {e}") from e
    return routed


def _takes(target: Target, precision: Precision, word: str) -> bool:
    owner, _, name = word.rpartition(".")
    if owner not in ("", target.name, *target.aliases) or name not in target.options:
        return False
    where = target.options[name].precisions
    return where is None or precision in where


def _unknown(word: str, builds: Builds) -> UserError:
    """Why nobody takes an option: another precision, a target that is not built for, or no such name."""
    chosen = [targets.get(name) for name in dict.fromkeys(name for name, _ in builds)]
    owner, _, name = word.rpartition(".")
    for target in chosen:
        if owner in ("", target.name) and name in target.options:
            where = ", ".join(target.options[name].precisions or ())
            return UserError(
                f"{target.name} has no option {name} at the precision asked for; it is for {where}"
            )
    if owner and owner not in {t.name for t in chosen}:
        built = ", ".join(t.name for t in chosen)
        return UserError(f"the option {word!r} is for the target {owner!r}, which is not among: {built}")
    known = [f"{t.name}.{n}" for t in chosen for n in t.options]
    plain = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(name, plain, n=1)
    hint = f"did you mean {plain[close[0]]}?" if close else f"known: {', '.join(known) or 'none'}"
    subject = " and ".join(t.name for t in chosen)
    return UserError(f"{subject} {'knows' if len(chosen) == 1 else 'know'} no option {word!r}; {hint}")
