"""Where a photo came to lie in the network's input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """Where a photo came to lie in the network's input.

    A point (x, y) of the photo is ``left + x * scaled[0] / photo[0]``, ``top + y * scaled[1] / photo[1]``
    there.

    Attributes:
        photo: Its width and height, pixels.
        scaled: Width and height that it was resized to.
        left, top: Where its corner is in the input; below 0 where it was cropped.
        size: Height and width of the input.
    """

    photo: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]
