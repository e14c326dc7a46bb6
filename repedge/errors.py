"""What can go wrong, with the exit code each kind ends the program with.

Every message is one sentence that says what is wrong, where, and what to do about it. The command
line prints it without a traceback (``--debug`` shows one).
"""

from __future__ import annotations


class RepedgeError(Exception):
    """Base of all errors that repedge raises on purpose."""

    exit_code = 1


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
