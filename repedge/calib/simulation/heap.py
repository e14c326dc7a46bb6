"""Memory that is free but still the process's: calibration frees much at once, step after step."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Sequence

import numpy as np


def give_back(collect: bool = False) -> None:
    """Return free memory to the system.

    glibc keeps what lies below anything still in use, and other steps, which need other sizes, take
    more on top of it: the peak would be the sum of all steps' instead of the greatest. Does nothing
    where malloc is another one.

    Args:
        collect: Whether to look for unreachable cycles first, as graphs that were worked on are; takes
            tenths of a second.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def stacked(batches: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """`np.concatenate`, column by column, of small results of large computations, [n, ...] each.

    They are copied into one block at once: kept one by one, each would sit in a hole that the next
    computation's large tensors then don't fit into.

    Raises:
        ValueError: There is none.
    """
    blocks: list[np.ndarray] = []
    count = 0
    for parts in batches:
        if not blocks:
            blocks = [np.empty((64, *part.shape[1:]), part.dtype) for part in parts]
        for i, part in enumerate(parts):
            while count + len(part) > len(blocks[i]):
                blocks[i] = np.concatenate([blocks[i], np.empty_like(blocks[i])])
            blocks[i][count : count + len(part)] = part
        count += len(parts[0])
    if not blocks:
        raise ValueError("there is nothing to stack")
    return [block[:count] for block in blocks]
