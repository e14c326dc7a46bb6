"""Arrays as photos: which shapes and dtypes mean photos, and which the network's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from repedge.config import Preprocess
from repedge.errors import UserError
from repedge.photos import images

LARGEST_ROW = 256 * 2**20
"""Bytes of one image in an array."""

SLACK = 0.25
"""How far network inputs may lie outside what pixels give, of the pixels' range: filters overshoot."""

PHOTOS = "wanted are photos uint8 [N, H, W, 3]"
WANTED = f"{PHOTOS} or network inputs float32"


@dataclass(frozen=True)
class Block:
    """One array of a table.

    Attributes:
        name: Its name in the archive.
        rows: How many images it has; None if it is a single image.
        read: Gives the images with these (rising) indices.
    """

    name: str
    rows: int | None
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]


class Table:
    """The images of several arrays, numbered through.

    Args:
        blocks: The arrays.
        found: What was found, in words.
        columns: Name -> array of integers [n] that lay beside them.

    Attributes:
        columns: Those of them that have a row for each image.
    """

    def __init__(
        self, blocks: Sequence[Block], found: str, columns: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._blocks = blocks
        self.found = found
        self.columns = {k: column for k, column in (columns or {}).items() if len(column) == len(self)}

    def __len__(self) -> int:
        return sum(1 if b.rows is None else b.rows for b in self._blocks)

    def rows(self, indices: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, image) of these rising indices: uint8 [H, W, C], or float32 [C, H, W]."""
        start = 0
        for b in self._blocks:
            size = 1 if b.rows is None else b.rows
            mine = [i - start for i in indices if start <= i < start + size]
            if mine:
                for k, row in zip(mine, b.read(mine), strict=True):
                    yield b.name if b.rows is None else f"{b.name}[{k}]", row
            start += size


def role(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], pre: Preprocess | None) -> str:
    """What an array is: photos, photo, inputs, or empty text for one that is something else, such as labels.

    Args:
        name: What errors call it.
        shape, dtype: Of the array.
        pre: Network inputs are [N, C, H, W] of its size; without it none are wanted.

    Raises:
        UserError: It looks like images, but of no form that is read.
    """
    if len(shape) <= 2:
        return ""
    inputs = () if pre is None else (pre.channels, *pre.size)
    wanted = PHOTOS if pre is None else f"{WANTED} [N, {', '.join(map(str, inputs))}]"
    what = f"{name} is {dtype} {list(shape)}"
    if 0 in shape:
        raise UserError(f"{what}, which holds nothing; {wanted}")
    if dtype == np.uint8 and len(shape) in (3, 4) and shape[-1] in (1, 3, 4):
        return "photos" if len(shape) == 4 else "photo"
    if dtype == np.uint8 and len(shape) == 4 and shape[1] in (1, 3):
        raise UserError(f"{what}: channels come last in photos, so transpose(0, 2, 3, 1) it")
    if dtype == np.float32 and len(shape) == 4 and pre is not None:
        if shape[1:] == inputs:
            return "inputs"
        if shape[-1] == pre.channels:
            raise UserError(f"{what}: network inputs are [N, {', '.join(map(str, inputs))}]; transpose it")
    raise UserError(f"{what}; {wanted}")


def check_row(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], single: bool) -> None:
    """Refuse images that would not fit in memory."""
    size = int(np.prod(shape if single else shape[1:], dtype=np.float64)) * dtype.itemsize
    if size > LARGEST_ROW:
        raise UserError(f"{name} has images of {size / 2**20:.0f} MiB; at most {LARGEST_ROW >> 20} are read")


def check_inputs(content: np.ndarray, pre: Preprocess) -> None:
    """Refuse a network input float32 [C, H, W] that no pixels could give.

    Raises:
        UserError: It was normalised in another way.
    """
    low, high = (float(v(images.to_pixels(content[None], pre))) for v in (np.min, np.max))
    if low < -255 * SLACK or high > 255 * (1 + SLACK):
        raise UserError(
            f"the network inputs are not what this model's normalisation gives: they stand for pixels from "
            f"{low:.0f} to {high:.0f}; normalise with its mean and std, or give uint8 photos"
        )


def sentence(kinds: dict[str, list[str]]) -> str:
    """What was found, from role -> descriptions of arrays; refuses a mixture.

    Raises:
        UserError: No array of images, or photos beside network inputs.
    """
    photos = kinds.get("photos", []) + kinds.get("photo", [])
    inputs, rest = kinds.get("inputs", []), kinds.get("", [])
    if photos and inputs:
        raise UserError(f"photos ({photos[0]}) and network inputs ({inputs[0]}) together; give one kind")
    if not photos and not inputs:
        held = f"only {', '.join(rest[:4])}" if rest else "no arrays"
        raise UserError(f"it holds {held}; {WANTED} [N, C, H, W]")
    listed = (photos or inputs)[:4] + (["..."] if len(photos or inputs) > 4 else [])
    found = f"{'photos' if photos else 'network inputs'}: {', '.join(listed)}"
    return found + (f" (not read: {', '.join(rest[:4])})" if rest else "")


def memory_table(array: np.ndarray, pre: Preprocess | None) -> Table:
    """An array in memory as a table.

    Raises:
        UserError: It is neither photos nor network inputs.
    """
    kind = role("the array", array.shape, array.dtype, pre)
    text = f"{array.dtype} {list(array.shape)}"
    found = sentence({kind: [text]})
    if kind == "photo":
        return Table([Block("array", None, lambda indices: iter([array]))], found)
    return Table([Block("array", len(array), lambda indices: (array[i] for i in indices))], found)


def as_image(array: np.ndarray) -> Image.Image | None:
    """uint8 [H, W] or [H, W, 1 | 3 | 4] as an image in grey or RGB; None for other shapes."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        return None
    return Image.fromarray(np.ascontiguousarray(array[..., :3] if array.ndim == 3 else array))
