"""Which bundles a request means: targets x precisions, and what of it can't be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from repedge import targets as registry
from repedge.compiler import groups
from repedge.compiler.refusals import Refused, nothing_built
from repedge.errors import UserError
from repedge.precision import Precision
from repedge.targets.base import Target


class Builds(NamedTuple):
    """What to build, as (target, precision), and what was asked for and is not offered."""

    chosen: tuple[tuple[str, Precision], ...]
    refused: tuple[Refused, ...] = ()


def choose_builds(names: Sequence[str], precisions: Sequence[Precision]) -> Builds:
    """Every asked precision that a target offers, or its default; a target that offers none is refused.

    Raises:
        UserError: No target, an unknown one, or nothing that could be built.
    """
    names, precisions = groups.names(names), groups.names(precisions)
    if not names:
        raise UserError(f"name at least one --target: {', '.join(registry.names())}")
    builds: list[tuple[str, Precision]] = []
    refused: list[Refused] = []
    for target in {t.name: t for t in map(registry.get, names)}.values():
        asked = tuple(dict.fromkeys(precisions)) or target.precisions[:1]
        offered = [p for p in asked if p in target.precisions]
        if why := _why_not(target, asked, offered):
            refused += [Refused(target.name, p, why) for p in asked]
        else:
            builds += [(target.name, p) for p in offered]
    if not builds:
        raise nothing_built([(r, UserError(r.why)) for r in refused])
    return Builds(tuple(builds), tuple(refused))


def _why_not(target: Target, asked: Sequence[Precision], offered: Sequence[Precision]) -> str:
    if not offered:
        right = ", ".join(target.precisions)
        return f"{target.name} does not offer {', '.join(asked)}; it offers {right}"
    if missing := target.missing_modules():
        return f"target {target.name} needs {', '.join(missing)}, not installed: pip install repedge"
    return ""
