"""What no option means: words that are no text, and words that are empty."""

from __future__ import annotations

from collections.abc import Sequence

from repedge.errors import UserError, shown

TEXTS = ("--description", "--author", "--license")
"""Options whose value may be empty."""


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse words that the rest of the program could only trip over.

    An empty word is what a shell makes of a variable that is not set; as a path it would mean the working
    folder.

    Raises:
        UserError: Says which.
    """
    before = ""
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"'{shown(word)}' is no UTF-8 text, which every artifact and manifest is written in; "
                "rename the file"
            ) from None
        if word.startswith("--") and word.endswith("="):
            before, word = word[:-1], ""
        if not word and before not in TEXTS:
            what = before if before.startswith("-") else "one of the arguments"
            raise UserError(f"{what} is empty; is a variable of the shell not set?")
        before = word
