"""Label maps: from a segmenter's scores to a class for each pixel, of the input and of the photo.

The arithmetic is that of the app packages, which repeat it to the pixel on every platform: scores of a map
that is smaller than the input are interpolated with whole numbers as weights, which are never divided by,
so that every product is exact in float64 and one sum, in a stated order, is all that rounds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from repedge.tasks.view import View

VOID = 255
"""Of a truth: pixels of which nobody knows what they are, or that are no part of the photo."""


def of_scores(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The best class of every pixel; of equal scores the first. NaN is never better.

    Args:
        scores: float [C, h, w], C > 1.
        size: Height and width of the map to give.

    Returns:
        uint8 [H, W], or uint16 where there are more than 255 classes.
    """
    best, ids = None, np.zeros(size, dtype_of(len(scores)))
    for c, plane in enumerate(scores):
        values = enlarged(plane, size)
        if best is None:
            best = np.where(np.isnan(values), -np.inf, values)
            continue
        more = values > best
        ids[more] = c
        best[more] = values[more]
    return ids


def of_mask(scores: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """1 where a score, float [h, w], is over a threshold, else 0: uint8 [H, W]."""
    whole = weight_of(scores.shape, size)
    return (enlarged(scores, size) > threshold * whole).astype(np.uint8)


def of_ids(ids: np.ndarray, size: tuple[int, int], classes: int) -> np.ndarray:
    """A map of classes [h, w] at another size: each pixel is that of the cell that its middle is in."""
    found = ids[_cells(ids.shape[0], size[0])[:, None], _cells(ids.shape[1], size[1])]
    return found.astype(dtype_of(classes))


def dtype_of(classes: int) -> type[np.unsignedinteger]:
    """What holds a class of so many, and `VOID` beside them."""
    return np.uint8 if classes <= VOID else np.uint16


def none_of(classes: int) -> int:
    """What pixels are that are of no class, where they have to be something: the largest number."""
    return int(np.iinfo(dtype_of(classes)).max)


def enlarged(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map at another size, bilinear between the middles of its cells, times `weight_of`: float64 [H, W].

    In this order: ``p00 * (rest_y * rest_x) + p01 * (rest_y * part_x) + p10 * (part_y * rest_x) + p11 *
    (part_y * part_x)``, where part_y of 2 * H is how far a pixel is below the middle of the cell p00.
    """
    plane = plane.astype(np.float64)
    if plane.shape == size:
        return plane
    (y0, y1), (x0, x1), weights = _grid(plane.shape[0], plane.shape[1], size)
    above, below = plane[y0], plane[y1]
    total = above[:, x0] * weights[0]
    total += above[:, x1] * weights[1]
    total += below[:, x0] * weights[2]
    total += below[:, x1] * weights[3]
    return total


@lru_cache(maxsize=2)
def _grid(height: int, width: int, size: tuple[int, int]) -> tuple[Any, Any, list[np.ndarray]]:
    """Rows and columns that each pixel is between, and the weights of the four cells, [H, W] each."""
    y0, y1, down = _between(height, size[0])
    x0, x1, right = _between(width, size[1])
    up, left = 2 * size[0] - down, 2 * size[1] - right
    pairs = ((up, left), (up, right), (down, left), (down, right))
    return (y0, y1), (x0, x1), [np.multiply.outer(y, x).astype(np.float64) for y, x in pairs]


def weight_of(small: tuple[int, ...], size: tuple[int, int]) -> int:
    """The sum of the weights of `enlarged`."""
    return 1 if small == size else 4 * size[0] * size[1]


def _between(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``new`` pixels the two cells of ``old`` that it is between, and how far from the first.

    The distance is a whole number out of 2 * ``new``. Beyond the middles of the first and the last cell there
    is no other to go to.
    """
    at = (2 * np.arange(new, dtype=np.int64) + 1) * old - new
    first = np.clip(at // (2 * new), 0, old - 1)
    part = np.where((at < 0) | (first == old - 1), 0, at - first * 2 * new)
    return first, np.minimum(first + 1, old - 1), part


def _cells(old: int, new: int) -> np.ndarray:
    """The cell of ``old`` that the middle of each of ``new`` pixels is in."""
    return (2 * np.arange(new, dtype=np.int64) + 1) * old // (2 * new)


def on_photo(ids: np.ndarray, view: View, beyond: int) -> np.ndarray:
    """A label map of the network's input at the photo's size: each pixel as where its middle came to lie.

    Args:
        ids: [H, W].
        view: Where the photo came to lie.
        beyond: What pixels are that were cut off.

    Returns:
        [height, width] of the photo, as ``ids`` otherwise.
    """
    (width, height), (across, down) = view.photo, view.scaled
    x, y = _cells(across, width) + view.left, _cells(down, height) + view.top
    inside = ((y >= 0) & (y < ids.shape[0]))[:, None] & ((x >= 0) & (x < ids.shape[1]))
    found = ids[np.clip(y, 0, ids.shape[0] - 1)[:, None], np.clip(x, 0, ids.shape[1] - 1)]
    return np.where(inside, found, ids.dtype.type(beyond))


def colours(count: int) -> list[tuple[int, int, int]]:
    """The colours of PASCAL VOC's masks: the bits of a class, spread over red, green and blue."""
    found = []
    for c in range(count):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= (c >> (3 * bit + channel) & 1) << (7 - bit)
        found.append((rgb[0], rgb[1], rgb[2]))
    return found
