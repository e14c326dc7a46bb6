"""Ctrl-C, SIGTERM (``docker stop``, a CI's time limit) and a closed terminal: the first line to the last.

A signal becomes a KeyboardInterrupt, so that whatever is half-written is removed on the way out, and the
program ends with 128 + the signal's number and one line. Three things would lose it, and are seen to here:

- Raised while a package loads, it may come out of the package's native code as an ImportError, or abort the
  process. So it waits for the import, up to `PATIENCE`.
- Code may swallow it (a callback, a finalizer, a broad ``except``). So it is raised again until the program
  has begun to end: see `_remind`.
- While Python shuts down, the default action would end the process without a word. So after `finished`, with
  the answer out and its exit code settled, signals are ignored.

Nothing but the standard library is imported: this is there before anything else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

MESSAGE = "interrupted; nothing half-written is left"
SIGNALS = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))

PATIENCE = 5.0
"""Seconds that an import may take to end. A user's own module may run for hours."""

AGAIN = 0.1
"""Seconds between two reminders."""

INSISTENCE = 1.0
"""Seconds after which a second signal is no echo of the first: the program ends at once, tidied up or not."""


class _State:
    """What has happened.

    Attributes:
        number: The signal that came first; None: none.
        since: When it came, on the monotonic clock.
        raised: Whether it has been raised.
        caught: Whether the program has begun to end because of it.
        before: Handlers that were there.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.since = 0.0
        self.raised = False
        self.caught = False
        self.reminding = False
        self.before: dict[int, Any] = {}


_state = _State()


def install() -> bool:
    """Take the signals, except those that whoever started the program has it ignore.

    Returns:
        Whether they were taken: not from a thread beside the main one, and not twice.
    """
    global _state
    if _state.before or threading.current_thread() is not threading.main_thread():
        return False
    _state = _State()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _state.before[number] = signal.signal(number, _stop)
    return True


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """The signals are taken meanwhile; what took them before has them back afterwards."""
    mine = install()
    try:
        yield
    finally:
        if mine:
            _state.caught = True
            for number, handler in _state.before.items():
                signal.signal(number, handler)
            _state.before = {}


def finished() -> None:
    """The program has said all that it has to say: signals change nothing any more."""
    _state.caught = True
    for number in _state.before:
        signal.signal(number, signal.SIG_IGN)


def caught() -> None:
    """The program has begun to end because of a signal, and reminds itself no more."""
    _state.caught = True


def received() -> bool:
    """Whether a signal came; then whatever fails, fails because of it."""
    return _state.number is not None


def exit_code() -> int:
    """128 + the number of the signal that came, as shells count; of SIGINT if none did."""
    return 128 + (signal.SIGINT if _state.number is None else _state.number)


def _stop(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    reminder, _state.reminding = _state.reminding, False
    if _state.number is None:
        _state.number, _state.since = number, now
        threading.Thread(target=_remind, args=(_state,), daemon=True).start()
    elif not reminder and now - _state.since > INSISTENCE:
        print(MESSAGE.partition(";")[0], file=sys.stderr, flush=True)
        os._exit(128 + number)
    if _state.caught or _unwinding():
        return
    if _importing(frame) and now - _state.since < PATIENCE:
        return
    _state.raised = True
    raise KeyboardInterrupt


def _remind(state: _State) -> None:
    """Send the signal again, until the program ends because of it."""
    main = threading.main_thread()
    while not state.caught and main.is_alive():
        time.sleep(AGAIN)
        if state.caught or state.number is None or main.ident is None:
            return
        state.reminding = True
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main.ident, state.number)  # it also ends a system call that waits
        else:
            signal.raise_signal(state.number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _unwinding() -> bool:
    """Whether a ``finally`` or ``except`` is at work on an interrupt that was raised."""
    error = sys.exc_info()[1]
    for _ in range(20):
        if error is None or isinstance(error, KeyboardInterrupt):
            break
        error = error.__context__
    return _state.raised and isinstance(error, KeyboardInterrupt)
