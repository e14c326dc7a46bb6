"""Commands to go on with, composed of what was given: whole, and quoted for a shell.

A suggestion that leaves out ``--weights`` or ``--mean`` would build another network. So none is written by
hand: each takes over every option that the user gave and that the next verb knows by the same name.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

import typer

from repedge.cli.app import app

_arguments: list[str] = []

NEVER = frozenset(("as_json", "debug", "force", "dry_run"))
"""How a run goes, which is not what it is about."""


def started(arguments: list[str]) -> None:
    """Keep what the program was called with."""
    _arguments[:] = arguments


def command(
    verb: str, *, keep: Collection[str] | None = None, drop: Collection[str] = (), **values: Any
) -> str:
    """A command with the options that were given.

    Args:
        verb: What it does.
        keep: Parameters that it may take over; None: all that it knows.
        drop: Parameters that it does not.
        values: Parameters with other values than were given.
    """
    group: Any = typer.main.get_command(app)
    known = group.commands[verb]
    names = {p.name for p in known.params}
    taken = {
        name: value
        for name, value in _given(group).items()
        if name in names and name not in NEVER and name not in drop and (keep is None or name in keep)
    }
    taken |= values
    words = ["repedge", verb]
    for p in sorted(known.params, key=lambda p: p.param_type_name != "argument"):
        if p.name in taken:
            words += _words(p, taken[p.name])
    return shlex.join(words)


def _given(group: Any) -> dict[str, Any]:
    """Parameter -> value, of those on the command line."""
    if not _arguments or _arguments[0] not in group.commands:
        return {}
    verb, *rest = _arguments
    context = group.commands[verb].make_context(verb, list(rest), resilient_parsing=True)
    return {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }


def _words(parameter: Any, value: Any) -> list[str]:
    several = value if isinstance(value, (list, tuple)) else [value]
    if parameter.param_type_name == "argument":
        return [str(one) for one in several]
    option = max(parameter.opts, key=len)
    if isinstance(value, bool):
        return [option] if value else []
    found: list[str] = []
    for one in map(str, several):
        found += [f"{option}={one}"] if one.startswith("-") else [option, one]
    return found
