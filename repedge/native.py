"""What native libraries write to stderr of their own accord."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def without(chatter: re.Pattern[bytes]) -> Iterator[None]:
    """Leave out what C++ code writes to stderr meanwhile where ``chatter`` matches it.

    For libraries that have no switch for it. Whatever else is written follows afterwards.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        try:
            saved, held = os.dup(2), stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # no stderr, or no room for a file
            yield
            return
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            rest = chatter.sub(b"", held.read())
            if rest:
                os.write(2, rest)
