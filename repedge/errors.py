"""What can go wrong, with the exit code each kind ends the program with.

Every message is one sentence that says what is wrong, where, and what to do about it. The command
line prints it without a traceback (``--debug`` shows one).
"""

from __future__ import annotations

LONGEST = 2000
"""Characters of a message; files made to hurt have names of megabytes."""

END = 300
"""Characters at the end of a message, where it says what to do, that are kept when it is cut."""


def shown(text: str) -> str:
    """A message that any terminal, log and file takes: bounded, with what is not printable escaped."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - END - 5]} ... {text[-END:]}"
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class RepedgeError(Exception):
    """Base of all errors that repedge raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return shown(super().__str__())


class UserError(RepedgeError):
    """The user's input is wrong: a path, an option, a checkpoint, a model."""

    exit_code = 2


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'repedge[{extra}]'")


class UnsupportedModel(UserError):
    """The graph has operators (or uses of operators) that a target has no lowering for."""


class CheckFailed(RepedgeError):
    """A verification, certificate or budget was not met."""

    exit_code = 3


class DeviceError(RepedgeError):
    """A device or runtime failed while doing what it should be able to do."""

    exit_code = 4
